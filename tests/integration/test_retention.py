"""What comes after a migration on real services: the warm-up line, the reminder, the retirement; and a full disk.

The disk is that of a Weaviate of this test's own, which is told to call it full early.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
from pydantic import JsonValue

from connectors.services import Addresses, ports, weaviate
from connectors.services.state import Process, stop
from streams.state import CollectionState
from tests.conftest import MakeTopic, Unique
from tests.deployment import COLLECTION, Deployment, Event, deployed

V1: Mapping[str, JsonValue] = {"embedder": {"provider": "hashing", "word_ngrams": None}, "dimensions": 32}
V2: Mapping[str, JsonValue] = {"embedder": {"provider": "hashing"}, "dimensions": 64}
TEXT: dict[str, JsonValue] = {"text": {"fields": ["text"]}}
PATIENCE_S = 120.0


def events(keys: range) -> list[Event]:
    return [(f"k{i}", {"text": f"document number {i} about subject {i % 7}"}, None) for i in keys]


async def done(d: Deployment, *arguments: str) -> str:
    ran = await d.run(*arguments)
    assert ran.returncode == 0, ran.stderr + ran.stdout
    return ran.stdout


def state(d: Deployment) -> CollectionState:
    return d.state.collections[COLLECTION]


async def test_the_previous_version_is_kept_reminded_of_and_retired(
    services: Addresses, tmp_path: Path, unique: Unique, make_topic: MakeTopic
) -> None:
    async with deployed(services, tmp_path, unique("cf"), make_topic(2), unique("Docs"), TEXT) as d:
        await d.produce(events(range(60)))
        d.start_worker()
        for name, version in (("v1", V1), ("v2", V2)):
            d.add_version(name, version)
            await d.until_stage(name, "ready")
            said = await done(d, "cutover", COLLECTION, name)
            assert "\n  warmed up: " in said, said
            assert " of 4 queries, p95 " in said, said
        space = d.build("v1").space
        assert "has been previous" not in await done(d, "status", COLLECTION)
        early = await d.run("retire", COLLECTION, "v1")
        assert early.returncode != 0

        d.set_collection("retention", {"days": 0})
        said = await done(d, "status", COLLECTION)
        assert (
            "  v1 has been previous for less than a minute\n  next: crossfade retire docs v1 --confirm v1\n" in said
        ), said
        (note,) = json.loads(await done(d, "status", COLLECTION, "--json"))["collections"][0]["notes"]
        assert note["next"] == "crossfade retire docs v1 --confirm v1"
        await asyncio.sleep(5)
        assert state(d).previous == "v1", "nobody has switched it on"

        d.set_collection("retention", {"days": 0, "automatic": True})
        async with asyncio.timeout(PATIENCE_S):
            await d.state.wait_for(lambda view: view.collections[COLLECTION].previous is None)
        assert state(d).serving == "v2"
        assert d.build("v1").stage == "retired"
        assert space not in await d.out.store.spaces()
        told = await done(d, "history", COLLECTION, "v1")
        assert "retention" in told
        assert "previous for 0 days (retention.automatic)" in told
        assert "warmed up: " in await done(d, "history", COLLECTION, "v2")
        assert (await d.verify("v2")).clean


class OwnWeaviate:
    """A server of this test, which calls its disk full from a share of it on."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self._folder, self._patch = folder, patch
        self._at = ports.choose(weaviate.PORTS, {})
        self._process: Process | None = None

    @property
    def http(self) -> str:
        return f"127.0.0.1:{self._at['weaviate_http']}"

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self._at['weaviate_grpc']}"

    async def start(self, full_at_percent: int) -> None:
        for name in ("DISK_USE_READONLY_PERCENTAGE", "DISK_USE_WARNING_PERCENTAGE"):
            self._patch.setitem(weaviate.SETTINGS, name, str(full_at_percent))
        self._process = weaviate.start(self._folder, weaviate.binary(print), self._at)
        async with asyncio.timeout(PATIENCE_S):
            while True:  # polled: a server that starts tells nobody
                if await asyncio.to_thread(ports.weaviate_answers, self.http, self.grpc):
                    return
                await asyncio.sleep(0.2)

    async def stop(self) -> None:
        if self._process is not None:
            await asyncio.to_thread(stop, self._process)


@pytest.fixture
async def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[OwnWeaviate]:
    (tmp_path / "own").mkdir()
    server = OwnWeaviate(tmp_path / "own", monkeypatch)
    yield server
    await server.stop()


async def test_writes_wait_while_weaviate_calls_its_disk_full(
    services: Addresses, own: OwnWeaviate, tmp_path: Path, unique: Unique, make_topic: MakeTopic
) -> None:
    """The shards that are there when the disk is found full turn read-only: live writes wait, and lose nothing."""
    await own.start(99)
    at = Addresses(services.kafka, own.http, own.grpc)
    async with deployed(at, tmp_path, unique("cf"), make_topic(2), unique("Docs"), TEXT) as d:
        await d.produce(events(range(30)))
        d.start_worker()
        d.add_version("v1", V1)
        await d.until_stage("v1", "ready")
        await own.stop()
        await own.start(1)
        await d.produce(events(range(30, 60)))

        def reasons() -> str:
            return " ".join(record.reason for record in d.progress.partitions(d.build("v1")))

        await d.until(lambda: "Weaviate is read-only" in reasons(), 60)
        assert "store is read-only due to" in reasons()
        await asyncio.sleep(3)
        assert sum(record.dead_letters for record in d.progress.partitions(d.build("v1"))) == 0
        assert d.build("v1").failure is None
        await own.stop()
        await own.start(99)
        await d.until(lambda: sum(record.live_lag for record in d.progress.partitions(d.build("v1"))) == 0)
        assert await d.stored("v1") == await d.oracle()
        assert sum(record.dead_letters for record in d.progress.partitions(d.build("v1"))) == 0
