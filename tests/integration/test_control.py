"""Run-time control on real services: what holds a replay says so, live writes go on meanwhile, and `set` changes it."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from pydantic import JsonValue

from connectors.services import Addresses
from tests.conftest import MakeTopic, Unique
from tests.deployment import Deployment, Event, deployed

V1: dict[str, JsonValue] = {"embedder": {"provider": "hashing"}, "dimensions": 32}


@pytest.fixture
async def d(services: Addresses, tmp_path: Path, unique: Unique, make_topic: MakeTopic) -> AsyncIterator[Deployment]:
    collection: dict[str, JsonValue] = {"text": {"fields": ["title", "text"]}, "properties": {"title": "keyword"}}
    async with deployed(
        services, tmp_path, unique("cf"), make_topic(partitions=2), unique("Docs"), collection
    ) as deployment:
        deployment.raw["weaviate"]["data_path"] = str(tmp_path)  # type: ignore[index,call-overload]
        yield deployment


def some_events(keys: range, mark: str) -> list[Event]:
    return [(f"k{i}", {"title": f"{mark} {i}", "text": f"text number {i}"}, None) for i in keys]


class Hook:
    """Answers as it is told; `status` None: takes the connection and hangs."""

    def __init__(self) -> None:
        self.status: int | None = 503
        self.asked = 0
        self.url = ""
        self._talks: set[asyncio.Task[None]] = set()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._talks.add(task)
        try:
            await reader.readuntil(b"\r\n\r\n")
            self.asked += 1
            if self.status is None:
                await asyncio.Event().wait()
            writer.write(f"HTTP/1.1 {self.status} x\r\ncontent-length: 0\r\n\r\n".encode())
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Hook]:
        server = await asyncio.start_server(self._talk, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/may-replay"
        try:
            yield self
        finally:
            server.close()
            for task in self._talks:
                task.cancel()
            await asyncio.gather(*self._talks, return_exceptions=True)


def says(d: Deployment, words: str) -> bool:
    """Every partition of v1 gives this reason."""
    records = d.progress.partitions(d.build("v1"))
    return len(records) == 2 and all(words in record.reason for record in records)


async def live_goes_on(d: Deployment, mark: str) -> None:
    """What is written now arrives, though the replay is held and embeds nothing."""
    await d.produce(some_events(range(5), mark))
    await d.until_live("v1")
    oracle, stored = await d.oracle(), await d.stored("v1")
    assert stored == {key: oracle[key] for key in (f"k{i}" for i in range(5))}
    assert d.counters("v1").embedded_replay == 0


async def test_held_by_a_file_then_by_a_hook_and_live_goes_on(d: Deployment) -> None:
    await d.produce(some_events(range(60), "old"))
    hold = d.folder / "hold"
    hold.touch()
    d.set_collection("throttle", {"file": str(hold)})
    d.add_version("v1", V1)
    d.start_worker()
    await d.until_stage("v1", "building")
    await d.until(lambda: says(d, f"held: {hold} exists"))
    since = {r.running_since for r in d.progress.partitions(d.build("v1"))}
    await live_goes_on(d, "while the file is there")
    status = await d.run("status", "docs", "v1")
    assert f"held: {hold} exists" in status.stdout, status.stdout

    async with Hook().serving() as hook:
        d.set_collection("throttle", {"http": hook.url})
        await d.until(lambda: says(d, f"held: {hook.url} answered 503"))
        await live_goes_on(d, "while the hook says no")
        hook.status = None
        await d.until(lambda: says(d, f"held: {hook.url} did not answer within 2 s"))
        await live_goes_on(d, "while the hook hangs")
        assert {r.running_since for r in d.progress.partitions(d.build("v1"))} == since  # it was not started again
        hook.status = 200
        await d.until_stage("v1", "ready")
        await d.until_live("v1")
        assert await d.stored("v1") == await d.oracle()
        asked = hook.asked
        await d.produce(some_events(range(3), "after"))
        await d.until_live("v1")
        assert hook.asked - asked <= 1  # nobody replays: nobody asks


async def test_a_worker_ends_while_a_hook_hangs(d: Deployment) -> None:
    await d.produce(some_events(range(20), "old"))
    async with Hook().serving() as hook:
        hook.status = None
        d.set_collection("throttle", {"http": hook.url})
        d.add_version("v1", V1)
        worker = d.start_worker()
        await d.until_stage("v1", "building")
        await d.until(lambda: says(d, "did not answer within 2 s"))
        began_s = time.monotonic()
        assert await d.end_worker(worker, signal.SIGTERM) == 0
        assert time.monotonic() - began_s < 90


async def test_a_full_disk_holds_until_set_lets_go(d: Deployment) -> None:
    await d.produce(some_events(range(40), "old"))
    d.set_collection("throttle", {"max_disk": 0.000001})
    d.add_version("v1", V1)
    d.start_worker()
    await d.until_stage("v1", "building")
    await d.until(lambda: says(d, "held: Weaviate's disk ") and says(d, "above 0%"))
    read = await d.run("set", "docs", "v1", "max_disk=?", "--json")
    (disk,) = json.loads(read.stdout)["controls"]
    assert (disk["name"], disk["value"], disk["source"]) == ("max_disk", 1e-6, "configuration")
    done = await d.run("set", "docs", "v1", "max_disk=0", "concurrency=3", "tiers=newest")
    assert done.returncode == 0, done.stderr
    assert "concurrency 3, tiers newest,rest, max_disk off" in done.stdout
    await d.until_stage("v1", "ready")
    assert await d.stored("v1") == await d.oracle()
    told = (await d.run("set", "docs", "v1", "?")).stdout
    for line in ("max_disk                off             set", "concurrency             3               set"):
        assert line in told, told


async def test_set_refuses_with_the_range_and_says_when_no_worker_runs(d: Deployment) -> None:
    await d.produce(some_events(range(5), "old"))
    d.add_version("v1", V1)
    worker = d.start_worker()
    await d.until_stage("v1", "ready")
    for typed, status, said in (
        ("replay_rate=-5", 1, "next: documents a second: above 0 and up to 1,000,000"),
        ("concurrency=5000", 1, "1 to 1,024"),
        ("replay_rat=5", 2, "did you mean replay_rate?"),
        ("tiers=listed,old", 2, "there is no tier 'old'"),
    ):
        refused = await d.run("set", "docs", "v1", typed)
        assert refused.returncode == status, refused
        assert said in refused.stderr, refused.stderr
    direct = await d.ask("set", "v1", replay_rate=-5)  # as another program may send it
    assert (direct.ok, direct.message) == (False, "replay_rate -5 is out of range")
    await d.end_worker(worker)
    began_s = time.monotonic()
    alone = await d.run("set", "docs", "v1", "replay_rate=5")
    assert alone.returncode == 1
    assert "no worker runs, so nobody carries out set docs" in alone.stderr
    assert "crossfade worker" in alone.stderr
    assert time.monotonic() - began_s < 90  # starting Python on a busy machine included
    d.start_worker()  # finds it, and applies it once
    await d.until_state("v1", lambda build: build.controls.replay_rate == 5)
