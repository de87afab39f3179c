"""Several collections and versions at once, and versions that end: each build on its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pydantic import JsonValue

from connectors.services import Addresses
from streams.control import ask, send
from streams.migration.verify import verify
from streams.state import Command
from tests.conftest import MakeTopic, Unique
from tests.deployment import COLLECTION, Deployment, Event, deployed

OTHER = "other"


def version(dimensions: int) -> dict[str, JsonValue]:
    return {"embedder": {"provider": "hashing"}, "dimensions": dimensions}


@pytest.fixture
async def d(services: Addresses, tmp_path: Path, unique: Unique, make_topic: MakeTopic) -> AsyncIterator[Deployment]:
    collection: dict[str, JsonValue] = {"text": {"fields": ["title", "text"]}, "properties": {"title": "keyword"}}
    async with deployed(
        services, tmp_path, unique("cf"), make_topic(partitions=2), unique("Docs"), collection
    ) as deployment:
        yield deployment


def some_events(n: int, mark: str) -> list[Event]:
    return [(f"k{i % 70}", {"title": f"{mark} {i}", "text": f"text number {i}"}, None) for i in range(n)]


async def test_two_collections_and_four_builds_at_once(d: Deployment, make_topic: MakeTopic, unique: Unique) -> None:
    other_topic = make_topic(partitions=1)
    await d.produce(some_events(300, "before"))
    d.raw["collections"][OTHER] = {  # type: ignore[index,call-overload]
        "topic": other_topic,
        "alias": unique("Other"),
        "text": {"fields": ["text"]},
        "versions": {"v1": version(32)},
    }
    for name, dimensions in (("v1", 32), ("v2", 64), ("v3", 128)):
        d.add_version(name, version(dimensions))
    d.start_worker()
    d.start_worker()
    mine, d.topic = d.topic, other_topic
    await d.produce(some_events(50, "elsewhere"))
    d.topic = mine
    await d.produce(some_events(200, "meanwhile"))
    for name in ("v1", "v2", "v3"):
        await d.until_stage(name, "ready")
    await d.produce(some_events(100, "after"))
    oracle = await d.oracle()
    for name in ("v1", "v2", "v3"):
        await d.until_live(name)
        assert await d.stored(name) == oracle
    elsewhere = d.state.builds[f"{OTHER}/v1"]
    async with asyncio.timeout(60):
        await d.state.wait_for(lambda state: state.builds[f"{OTHER}/v1"].stage == "ready")
    found = await verify(d.out, elsewhere)
    assert (found.checked, found.missing, found.stale, found.extra) == (50, 0, 0, 0)
    spaces = {build.space for build in d.state.builds.values()}
    assert len(spaces) == 4


async def test_an_ended_version_is_started_again_by_an_operator_only(d: Deployment) -> None:
    await d.produce(some_events(20, "first"))
    d.add_version("v1", version(32))
    d.start_worker()
    first = await d.until_stage("v1", "ready")
    refused = await d.ask("abort", "v1", confirm="something else")
    assert not refused.ok
    assert "--confirm v1" in refused.next_step
    assert (await d.ask("abort", "v1", confirm="v1")).ok
    await d.until_stage("v1", "aborted")
    assert await d.out.store.description(first.space) is None

    d.add_version("v2", version(64))  # the file is read again, with v1 still in it
    await d.until_stage("v2", "ready")
    assert d.build("v1").stage == "aborted"

    outcome = await d.ask("start", "v1")
    assert outcome.ok, outcome
    again = await d.until_stage("v1", "ready")
    assert again.epoch > first.epoch
    assert again.space != first.space
    assert await d.stored("v1") == await d.oracle()


async def test_pause_holds_the_replay_and_lets_live_through(d: Deployment) -> None:
    await d.produce(some_events(70, "old"))
    d.start_worker()
    d.add_version("v1", {**version(32), "replay_rate": 1})
    await d.until_stage("v1", "building")
    assert (await d.ask("pause", "v1")).ok
    await d.until(lambda: any(r.status == "paused" for r in d.progress.partitions(d.build("v1"))))
    await d.produce(some_events(5, "new"))
    await d.until_live("v1")
    stored = await d.stored("v1")
    assert {f"k{i}" for i in range(5)} <= set(stored)
    assert d.build("v1").stage == "building"
    assert (await d.ask("set", "v1", replay_rate=0)).ok
    assert (await d.ask("resume", "v1")).ok
    await d.until_stage("v1", "ready")
    assert await d.stored("v1") == await d.oracle()


async def test_commands_are_applied_once(d: Deployment) -> None:
    await d.produce(some_events(5, "some"))
    d.start_worker()
    d.add_version("v1", version(32))
    await d.until_stage("v1", "ready")
    command = Command(verb="set", collection=COLLECTION, version="v1", args={"replay_rate": 7})
    await ask(d.out.sink, d.out.names, d.state, command, timeout_s=60)
    assert (await d.ask("set", "v1", replay_rate=9)).ok
    await send(d.out.sink, d.out.names, command)
    assert (await d.ask("pause", "v1")).ok  # one topic, one partition: what was sent before it has been handled
    assert d.build("v1").controls.replay_rate == 9
    assert sum(outcome.id == command.id for outcome in d.state.collections[COLLECTION].applied) == 1


async def test_verify_on_a_moving_topic_gives_no_false_alarm(d: Deployment) -> None:
    await d.produce(some_events(200, "before"))
    d.start_worker()
    d.add_version("v1", version(32))
    await d.until_stage("v1", "ready")
    enough = asyncio.Event()
    made = 0

    async def keep_changing() -> None:
        nonlocal made
        while not enough.is_set():
            edits = some_events(20, f"round {made}")
            deletes: list[Event] = [(f"k{(made * 7 + i) % 70}", None, None) for i in range(5)]
            await d.produce([*edits, *deletes, (f"new{made}", {"text": "was not there before"}, None)])
            made += 1

    changing = asyncio.create_task(keep_changing())
    try:
        for _ in range(5):
            before = made
            found = await d.verify("v1")
            assert (found.missing, found.stale, found.extra, found.held) == (0, 0, 0, 0)
            async with asyncio.timeout(30):
                while made == before:  # noqa: ASYNC110  the next sweep meets other changes
                    await asyncio.sleep(0.01)
    finally:
        enough.set()
        await changing
    await d.until_live("v1")
    assert await d.stored("v1") == await d.oracle()
