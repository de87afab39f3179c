"""Embedding endpoints on real services: a swapped model, a fallback, chunks, a budget, a key that is refused.

Every test ends with the space equal to the log, or with nothing written that should not be.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from pydantic import JsonValue

from connectors import reserved
from connectors.protocols import JSON
from connectors.services import Addresses
from streams.documents import object_id
from tests.conftest import MakeTopic, Unique
from tests.deployment import COLLECTION, Deployment, deployed
from tests.faults.tei_server import DIMENSIONS, TeiServer, tei_server, vector


@pytest.fixture
async def d(services: Addresses, tmp_path: Path, unique: Unique, make_topic: MakeTopic) -> AsyncIterator[Deployment]:
    collection: dict[str, JsonValue] = {"text": {"fields": ["text"]}}
    topic = make_topic(partitions=2)
    async with deployed(services, tmp_path, unique("cf"), topic, unique("Docs"), collection) as deployment:
        yield deployment


@pytest.fixture
async def endpoint() -> AsyncIterator[TeiServer]:
    async with tei_server() as server:
        yield server


def tei(endpoint: TeiServer, **more: JsonValue) -> dict[str, JsonValue]:
    return {"provider": "tei", "url": endpoint.url, "model": "m", "max_batch": 8, "timeout_s": 5, **more}


def version(endpoint: TeiServer, **more: JsonValue) -> dict[str, JsonValue]:
    return {"embedder": tei(endpoint), "dimensions": DIMENSIONS, "batch": 16, "normalize": False, **more}


async def produce(d: Deployment, first: int, count: int) -> None:
    await d.produce((f"k{n}", {"text": f"the text of document {n}"}, None) for n in range(first, first + count))


async def settled(d: Deployment, name: str) -> None:
    await d.until_stage(name, "ready")
    await d.until_live(name)
    await d.until_settled(name)
    assert (await d.verify(name)).clean
    assert await d.stored(name) == await d.oracle()


async def vectors_of(d: Deployment, name: str, keys: list[str]) -> dict[str, list[float] | None]:
    ids = {object_id(COLLECTION, key, 0): key for key in keys}
    heads = await d.out.store.space(d.build(name).space).heads(list(ids), vectors=True)
    return {ids[uuid]: None if head.vector is None else head.vector.tolist() for uuid, head in heads.items()}


async def test_a_swapped_model_stops_its_version_before_one_vector_is_stored(
    d: Deployment, endpoint: TeiServer
) -> None:
    d.start_worker()
    d.add_version("v1", version(endpoint))
    await produce(d, 0, 40)
    await d.until_stage("v1", "ready")
    await d.until_live("v1")
    endpoint.model = "upgraded over night"
    await produce(d, 40, 40)
    await d.until_state("v1", lambda build: build.failure is not None)
    failure = d.build("v1").failure
    assert failure is not None
    assert "serves another model than the space was built with" in failure.cause
    assert "the text of document" not in d.logs()
    found = await vectors_of(d, "v1", [f"k{n}" for n in range(80)])
    assert found.keys() == {f"k{n}" for n in range(40)}
    for key, stored in found.items():
        assert stored is not None
        assert np.allclose(stored, vector(f"the text of document {key[1:]}"), atol=1e-6)
    endpoint.model = ""
    assert (await d.ask("resume", "v1")).ok
    await settled(d, "v1")
    assert d.counters("v1").dead_letters == 0


async def test_a_fallback_takes_over_and_another_models_is_refused(d: Deployment, endpoint: TeiServer) -> None:
    async with tei_server() as fallback, tei_server() as stranger:
        stranger.model = "another one"
        d.start_worker()
        d.add_version("v1", version(endpoint, fallbacks=[tei(stranger, rank=1), tei(fallback, rank=2)]))
        refused = await d.ask("start", "v1")
        assert not refused.ok
        assert "serves another model" in refused.message
        assert "fallbacks" in refused.next_step
        assert "docs/v1" not in d.state.builds
        d.add_version("v2", version(endpoint, document_prefix="d: ", fallbacks=[tei(fallback, rank=1)]))
        await produce(d, 0, 30)
        await d.until_stage("v2", "ready")
        await d.until_live("v2")
        assert fallback.embedded == []
        await endpoint.down()
        await produce(d, 30, 30)
        await settled(d, "v2")
        assert {f"d: the text of document {n}" for n in range(30, 60)} <= set(fallback.embedded)
        await endpoint.up()


async def test_a_budget_holds_the_build_before_it_is_exceeded(d: Deployment, endpoint: TeiServer) -> None:
    await produce(d, 0, 300)
    priced = {**version(endpoint), "embedder": tei(endpoint, price_per_million_tokens=1000), "budget_usd": 1.0}
    d.add_version("v1", priced)
    d.start_worker()
    await d.until_stage("v1", "building")
    await d.until(
        lambda: (
            d.counters("v1").spent_nano_usd > 0.8e9
            and all("the budget of docs/v1 is reached" in r.reason for r in d.progress.partitions(d.build("v1")))
        )
    )
    spent = d.counters("v1").spent_nano_usd
    assert spent <= 1e9
    asked = len(endpoint.embedded)
    assert 0 < asked < 300
    status = await d.run("status", COLLECTION, "v1")
    assert "the budget of docs/v1 is reached" in status.stdout
    assert "budget_usd=" in status.stdout
    told = await d.run("set", COLLECTION, "v1", "budget_usd=100")
    assert told.returncode == 0, told.stderr
    await settled(d, "v1")
    assert len(endpoint.embedded) == len(set(endpoint.embedded)) == 300, "nothing was paid for twice"
    assert d.counters("v1").spent_nano_usd > spent
    assert d.counters("v1").tokens > 0
    journal = json.loads((await d.run("history", COLLECTION, "--json")).stdout)["entries"]
    outcomes = [entry["data"]["outcome"] for entry in journal if "outcome" in entry["data"]]
    assert any(outcome.get("cost_usd", 0) > 0.9 and outcome["tokens"] > 0 for outcome in outcomes), "of the ready build"


async def test_chunks_are_replaced_completely(d: Deployment, endpoint: TeiServer) -> None:
    d.add_version("v1", version(endpoint, chunking={"by": "characters", "size": 40, "overlap": 0}))
    d.start_worker()
    long = " ".join(f"sentence {n} of a long document." for n in range(12))
    first: dict[str, JSON] = {"text": long}
    await d.produce([("long", first, None), ("short", {"text": "short"}, None), ("gone", first, None)])
    await d.until_stage("v1", "ready")
    await d.until_live("v1")
    chunks = await pieces(d, "v1")
    many = len(chunks["long"])
    assert many == len(chunks["gone"]) > 5
    assert " ".join(chunks["long"]).split() == long.split()
    await d.produce([("long", {"text": long[:75]}, None), ("short", {"text": long}, None), ("gone", None, None)])
    await settled(d, "v1")
    chunks = await pieces(d, "v1")
    assert chunks.keys() == {"long", "short"}
    assert (len(chunks["long"]), len(chunks["short"])) == (2, many)


async def pieces(d: Deployment, name: str) -> dict[str, list[str]]:
    """Document id to its chunks' texts, in order."""
    space = d.out.store.space(d.build(name).space)
    found: dict[str, dict[int, str]] = {}
    async for page in space.scan():
        stored = await space.properties([head.uuid for head in page])
        for head in page:
            text: JSON = stored[head.uuid][reserved.TEXT]
            assert isinstance(text, str)
            found.setdefault(head.doc_id, {})[head.chunk] = text
    return {key: [texts[n] for n in range(len(texts))] for key, texts in found.items()}


async def test_a_refused_key_pauses_with_a_clear_cause_and_loses_nothing(d: Deployment, endpoint: TeiServer) -> None:
    d.add_version("v1", version(endpoint))
    d.start_worker()
    await d.until_stage("v1", "ready")
    endpoint.mode = "401"
    await produce(d, 0, 20)
    await d.until_state("v1", lambda build: build.failure is not None)
    failure = d.build("v1").failure
    assert failure is not None
    assert "401" in failure.cause
    assert "api_key" in failure.next_step
    endpoint.mode = "works"
    assert (await d.ask("resume", "v1")).ok
    await settled(d, "v1")
    assert d.counters("v1").dead_letters == 0


async def test_a_key_that_is_rotated_in_its_file_is_taken_up(
    d: Deployment, endpoint: TeiServer, tmp_path: Path
) -> None:
    secret = tmp_path / "endpoint.key"
    secret.write_text("first-key")
    d.add_version("v1", {**version(endpoint), "embedder": tei(endpoint, api_key=f"file:{secret}")})
    endpoint.key = "first-key"
    d.start_worker()
    await produce(d, 0, 20)
    await settled(d, "v1")
    changed_ms = time.time_ns() // 1_000_000
    fresh = secret.with_suffix(".new")
    fresh.write_text("second-key")
    fresh.replace(secret)
    await d.until(lambda: d.restarted_since("v1", changed_ms))
    endpoint.key = "second-key"
    await produce(d, 20, 20)
    await d.until_live("v1")
    await settled(d, "v1")
    assert d.build("v1").failure is None
    assert len(endpoint.embedded) == 40, "nothing was embedded again for it"
    assert "second-key" not in d.logs()


async def test_a_rebuild_pays_for_no_text_twice(d: Deployment, endpoint: TeiServer, tmp_path: Path) -> None:
    d.raw["vector_cache"] = {"path": "vectors.sqlite"}
    await produce(d, 0, 50)
    d.add_version("v1", version(endpoint))
    d.start_worker()
    await d.until_stage("v1", "ready")
    assert (await d.ask("abort", "v1", confirm="v1")).ok
    assert (await d.ask("start", "v1")).ok
    await settled(d, "v1")
    assert len(endpoint.embedded) == len(set(endpoint.embedded)) == 50
    assert d.counters("v1").cached == 50
    assert (tmp_path / "vectors.sqlite").exists()
