"""The routes on real services, while a version is built and documents change: no stale text, no wrong mark."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
from pydantic import JsonValue

from connectors import reserved
from connectors.services import Addresses
from streams.config_watch import LOOK_EVERY_S
from streams.documents import object_id
from streams.search.answer import Answer
from streams.search.router import Router
from tests.conftest import MakeTopic, Unique
from tests.deployment import COLLECTION, Deployment, deployed

DOCUMENTS = 300
EDITED = [f"d{number}" for number in range(0, DOCUMENTS, 12)]
OLD: Mapping[str, JsonValue] = {"embedder": {"provider": "hashing", "word_ngrams": None}, "dimensions": 64}
NEW: Mapping[str, JsonValue] = {"embedder": {"provider": "hashing"}, "dimensions": 256, "replay_rate": 30}


@pytest.fixture
async def deployment(
    services: Addresses, tmp_path: Path, unique: Unique, make_topic: MakeTopic
) -> AsyncIterator[Deployment]:
    collection: dict[str, JsonValue] = {"text": {"fields": ["text"]}, "properties": {"kind": "keyword"}}
    topic = make_topic(partitions=2)
    async with deployed(services, tmp_path, unique("rt"), topic, unique("Routed"), collection) as running:
        yield running


def text_of(number: int, edition: int = 0) -> str:
    return f"subject {number % 7} matter {number % 11} number {number} edition {edition}"


async def held(d: Deployment, version: str) -> dict[str, int]:
    """Document id to the offset at which the space holds it now."""
    space = d.out.store.space(d.build(version).space)
    ids = [object_id(COLLECTION, f"d{number}", 0) for number in range(DOCUMENTS)]
    return {head.doc_id: head.offset for head in (await space.heads(ids)).values()}


async def edit(d: Deployment) -> None:
    """The same documents again and again, until this is cancelled."""
    edition = 0
    while True:
        edition += 1
        await d.produce((key, {"text": text_of(int(key[1:]), edition), "kind": "b"}, None) for key in EDITED)
        await asyncio.sleep(0.3)


def check(d: Deployment, answer: Answer, before: list[dict[str, int]]) -> None:
    keys = [hit.doc_id for hit in answer.hits]
    assert len(keys) == len(set(keys))
    # below the threshold v1 alone is asked, and may be a little behind v2
    asked = before if any(hit.version == "v2" for hit in answer.hits) else before[:1]
    for hit in answer.hits:
        build = d.build(hit.version)
        assert (hit.space, hit.fingerprint) == (build.space, build.fingerprint)
        assert hit.properties[reserved.SPACE] == f"{hit.version}@{hit.fingerprint}"
        newest = max((at[hit.doc_id] for at in asked if hit.doc_id in at), default=0)
        assert hit.offset >= newest, f"{hit.doc_id} of {hit.version} is older than what was stored before it was asked"


async def test_hybrid_while_a_version_is_built(deployment: Deployment) -> None:
    d = deployment
    d.add_version("v1", OLD)
    await d.produce((f"d{n}", {"text": text_of(n), "kind": "a"}, None) for n in range(DOCUMENTS))
    d.start_worker()
    await d.until_live_and_settled("v1")
    outcome = await d.ask("cutover", "v1")
    assert outcome.ok, outcome
    router = Router(d.out, d.state, d.progress)
    editing = asyncio.create_task(edit(d))
    taken: list[str] = []
    asked = 0
    try:
        d.add_version("v2", NEW)
        await d.until_state("v2", lambda build: build.stage == "building")
        while d.build("v2").stage == "building":
            asked += 1
            before = [await held(d, "v1"), await held(d, "v2")]
            query = text_of(asked * 12 % DOCUMENTS, asked)
            answer = await router.search(COLLECTION, query, 10, mode="hybrid")
            assert 7 < len(answer.hits) <= 10, "of what is edited meanwhile Weaviate may not find some for a moment"
            check(d, answer, before)
            versions = {hit.version for hit in answer.hits}
            if "below 50%" in answer.why or "not said" in answer.why:
                taken.append("old")
                assert versions == {"v1"}
            elif "merged with v1 by places" in answer.why:
                taken.append("both" if len(versions) == 2 else "merged")
            else:
                taken.append("new")
                assert versions == {"v2"}
            filtered = await router.search(COLLECTION, query, 10, mode="bridge", filters={"kind": "a"})
            assert {hit.properties["kind"] for hit in filtered.hits} == {"a"}
            serving = await router.search(COLLECTION, query, 10)
            assert {hit.version for hit in serving.hits} == {"v1"}
    finally:
        editing.cancel()
        await asyncio.gather(editing, return_exceptions=True)
        await router.close()
    assert {"old", "both"} <= set(taken), taken
    await d.until_stage("v2", "ready")

    # through the command, with progress and state of its own
    said = await d.run("search", COLLECTION, text_of(5), "--mode", "hybrid", "--json")
    assert said.returncode == 0, said.stderr
    shown = json.loads(said.stdout)
    assert (shown["route"], shown["version"], shown["why"]) == ("hybrid", "v2", "v2 is complete (100%)")
    assert {hit["version"] for hit in shown["hits"]} == {"v2"}
    plain = await d.run("search", COLLECTION, text_of(5), "--mode", "bridge")
    assert "  bridge: v2 is complete\n" in plain.stdout

    # a rollout of what is ready, by caller
    at_ms = time.time_ns() // 1_000_000
    d.set_collection("routes", {"default": "rollout", "rollout": {"share": 0.5}})
    await d.until_state("v2", lambda build: build.rollout is not None and build.rollout.share == 0.5)
    router = Router(d.out, d.state, d.progress)
    callers = [f"caller {number}" for number in range(30)]
    first = [(await router.search(COLLECTION, text_of(1), 3, caller=caller)).version for caller in callers]
    again = [(await router.search(COLLECTION, text_of(2), 3, caller=caller)).version for caller in callers]
    await router.close()
    assert first == again
    assert set(first) == {"v1", "v2"}
    await asyncio.sleep(LOOK_EVERY_S + 1)  # the worker has seen the file by now
    await d.produce([("d0", {"text": text_of(0, 99), "kind": "b"}, None)])
    await d.until_live("v2")
    assert not d.restarted_since("v2", at_ms), "a route is no reason to begin a build anew"
