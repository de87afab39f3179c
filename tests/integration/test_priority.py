"""A replay in tiers on real services: what people look for first, each tier at its endpoint, reordered and paused.

Every test ends with the space equal to the log, and with no document embedded twice.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pydantic import JsonValue

from connectors.services import Addresses
from tests.conftest import MakeTopic, Unique
from tests.deployment import COLLECTION, Deployment, deployed
from tests.faults.tei_server import DIMENSIONS, TeiServer, tei_server

DOCUMENTS = 200
SEARCHED = {f"k{n}": 10 * n for n in range(5, 15)}


@pytest.fixture
async def d(services: Addresses, tmp_path: Path, unique: Unique, make_topic: MakeTopic) -> AsyncIterator[Deployment]:
    lines = [json.dumps({"key": key, "count": count}) for key, count in SEARCHED.items()]
    (tmp_path / "searched.jsonl").write_text("\n".join(lines))
    collection: dict[str, JsonValue] = {
        "text": {"fields": ["text"]},
        "priority": {"keys": "searched.jsonl", "newest": 0.2},
    }
    topic = make_topic(partitions=2)
    async with deployed(services, tmp_path, unique("cf"), topic, unique("Docs"), collection) as deployment:
        await deployment.produce((f"k{n}", {"text": text(n)}, None) for n in range(DOCUMENTS))
        yield deployment


@pytest.fixture
async def endpoint() -> AsyncIterator[TeiServer]:
    async with tei_server() as server:
        yield server


def text(n: int) -> str:
    return f"the text of document {n}"


def tei(endpoint: TeiServer, **more: JsonValue) -> dict[str, JsonValue]:
    return {"provider": "tei", "url": endpoint.url, "model": "m", "max_batch": 4, "timeout_s": 5, **more}


def version(endpoint: TeiServer, **more: JsonValue) -> dict[str, JsonValue]:
    return {"embedder": tei(endpoint), "dimensions": DIMENSIONS, "batch": 4, "normalize": False, **more}


async def settled(d: Deployment, name: str) -> None:
    await d.until_stage(name, "ready")
    await d.until_live(name)
    await d.until_settled(name)
    assert (await d.verify(name)).clean
    assert await d.stored(name) == await d.oracle()


async def partitions(d: Deployment) -> list[list[str]]:
    """The documents' texts of each partition, in the order of the log."""
    found: list[list[str]] = []
    for partition, bounds in sorted((await d.out.kafka.bounds(d.topic)).items()):
        found.append([])
        async for batch in d.out.kafka.read_range(d.topic, partition, 0, bounds.stable):
            found[-1] += [text(int((record.key or b"")[1:])) for record in batch.records]
    return found


async def test_searched_documents_go_first_at_their_own_endpoint_then_the_newest(
    d: Deployment, endpoint: TeiServer
) -> None:
    async with tei_server() as bulk:
        dear = tei(endpoint, lanes=["listed", "live", "query"])
        d.add_version("v1", {**version(endpoint), "embedder": dear, "fallbacks": [tei(bulk, lanes=["newest", "rest"])]})
        d.start_worker()
        await settled(d, "v1")
        searched = {text(int(key[1:])) for key in SEARCHED}
        assert set(endpoint.embedded) == searched
        assert len(endpoint.embedded) == len(searched)
        assert len(bulk.embedded) == DOCUMENTS - len(searched)
        for log in await partitions(d):
            left = [one for one in log if one not in searched]
            newest = set(left[len(left) - round(0.2 * len(log)) :])
            went = [one for one in bulk.embedded if one in log]
            assert set(went[: len(newest)]) == newest, "all of the newest before any of the rest"
        seen = json.loads((await d.run("status", COLLECTION, "v1", "--json")).stdout)
        tiers = {tier["name"]: tier for tier in seen["collections"][0]["versions"][0]["tiers"]}
        assert list(tiers) == ["listed", "newest", "rest"]
        assert (tiers["listed"]["completed"], tiers["listed"]["weight"]) == (10, float(sum(SEARCHED.values())))
        assert sum(tier["completed"] for tier in tiers.values()) == DOCUMENTS


async def test_another_order_while_it_runs_embeds_nothing_twice(d: Deployment, endpoint: TeiServer) -> None:
    d.add_version("v1", version(endpoint, replay_rate=8))
    d.start_worker()
    await d.until_stage("v1", "building")
    await d.until(lambda: d.counters("v1").replayed > 20)
    assert (await d.run("pause", COLLECTION, "v1")).returncode == 0  # however slow this machine: not before the end
    told = await d.run("set", COLLECTION, "v1", "tiers=newest")
    assert told.returncode == 0, told.stderr
    assert (await d.run("resume", COLLECTION, "v1")).returncode == 0
    await d.until(lambda: any(r.tiers and r.tiers[0].name == "newest" for r in d.progress.partitions(d.build("v1"))))
    assert (await d.run("set", COLLECTION, "v1", "replay_rate=none")).returncode == 0
    await settled(d, "v1")
    assert sorted(endpoint.embedded) == sorted(text(n) for n in range(DOCUMENTS))


async def test_a_pause_stops_new_embeddings_within_two_seconds_and_resume_loses_none(
    d: Deployment, endpoint: TeiServer
) -> None:
    endpoint.answer_after_s = 0.3
    d.add_version("v1", {**version(endpoint), "embedder": tei(endpoint, concurrency=2)})
    d.start_worker()
    await d.until_stage("v1", "building")
    await d.until(lambda: d.counters("v1").replayed > 20)
    assert (await d.run("pause", COLLECTION, "v1")).returncode == 0
    await asyncio.sleep(2.0)  # the bound that is tested
    asked, embedded = endpoint.asked, len(endpoint.embedded)
    assert embedded < DOCUMENTS
    await d.produce([("new", {"text": "the text of document new"}, None)])
    await d.until(lambda: d.counters("v1").embedded_live == 1)
    await d.until(lambda: all(r.status == "paused" for r in d.progress.partitions(d.build("v1"))))
    assert (endpoint.asked, len(endpoint.embedded)) == (asked + 1, embedded + 1), "the live event, and nothing else"
    assert (await d.run("resume", COLLECTION, "v1")).returncode == 0
    await settled(d, "v1")
    assert len(endpoint.embedded) == len(set(endpoint.embedded)) == DOCUMENTS + 1
