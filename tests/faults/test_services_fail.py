"""Kafka and Weaviate killed, stopped, frozen and read-only, with both lanes at work: the workers wait and go on.

Must never restart a worker: that it survives is part of what is tested.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from tests.deployment import Deployment
from tests.faults.conftest import Deploy, Say
from tests.faults.own_services import OwnServices
from tests.faults.workload import HASHING, OTHER_HASHING, Changes, check, produce, resolved, running, steady

SEED = 4
BROKER_AWAY_S = 60.0
FROZEN_S = 20.0


@asynccontextmanager
async def both_lanes(d: Deployment, changes: Changes, workers: int = 2) -> AsyncIterator[None]:
    """v1 follows live; v2 replays at a held rate while a steady producer goes on. Inside, the fault is made."""
    d.start_worker()
    d.add_version("v1", HASHING)
    await d.until_stage("v1", "ready")
    await produce(d, changes.first())
    for _ in range(workers - 1):
        d.start_worker()
    d.add_version("v2", {**OTHER_HASHING, "replay_rate": 20})
    await d.until_stage("v2", "building")
    await d.until(lambda: d.counters("v2").completed >= 20)
    for version in ("v1", "v2"):
        await d.until(lambda version=version: len(owners(d, version)) == workers)  # type: ignore[misc]
    async with steady(d, changes):
        await goes_on(d)
        yield
        await goes_on(d)
    assert (await d.ask("set", "v2", replay_rate=0)).ok


def owners(d: Deployment, version: str) -> set[str]:
    return {record.worker for record in d.progress.partitions(d.build(version))}


async def goes_on(d: Deployment) -> None:
    """Both versions resolve events that were not resolved when this was asked."""
    for version in ("v1", "v2"):
        before = resolved(d, version)
        await d.until(lambda before=before, version=version: resolved(d, version) > before + 10)  # type: ignore[misc]


async def judge(d: Deployment, changes: Changes, say: Say, what: str, workers: int = 2) -> None:
    checked = await check(d, "v1", "v2")
    assert len(running(d)) == len(d.workers) == workers, "every worker survived"
    say(f"{what}: {changes.made} changes, {checked} documents checked, 0 lost, 0 resurrected, 0 stale")


async def test_broker_killed_and_started_again(deploy: Deploy, own: OwnServices, say: Say) -> None:
    changes = Changes(SEED, 400)
    async with deploy() as d:
        async with both_lanes(d, changes):
            await asyncio.to_thread(own.kill, "kafka")
            await asyncio.to_thread(own.start, "kafka")
        await judge(d, changes, say, "broker killed")


async def test_broker_stopped_for_a_minute(deploy: Deploy, own: OwnServices, say: Say) -> None:
    changes = Changes(SEED, 400)
    async with deploy() as d:
        async with both_lanes(d, changes):
            await asyncio.to_thread(own.stop, "kafka")
            gone_at = time.monotonic()
            await asyncio.sleep(8.0 + 3.0)  # past the session time-out and every write deadline
            held = await d.stored("v1"), await d.stored("v2")
            await asyncio.sleep(BROKER_AWAY_S - (time.monotonic() - gone_at))
            assert (await d.stored("v1"), await d.stored("v2")) == held, "nothing is written without a lease"
            await asyncio.to_thread(own.start, "kafka")
        await judge(d, changes, say, f"broker stopped for {BROKER_AWAY_S:.0f} s")


async def test_weaviate_killed_and_started_again(deploy: Deploy, own: OwnServices, say: Say) -> None:
    changes = Changes(SEED, 400)
    async with deploy() as d:
        async with both_lanes(d, changes):
            for _ in range(2):
                await asyncio.to_thread(own.kill, "weaviate")
                await asyncio.to_thread(own.start, "weaviate")
                await goes_on(d)
        await judge(d, changes, say, "Weaviate killed twice")


async def test_weaviate_frozen(deploy: Deploy, own: OwnServices, say: Say) -> None:
    changes = Changes(SEED, 400)
    async with deploy() as d:
        async with both_lanes(d, changes):
            own.send("weaviate", signal.SIGSTOP)
            await asyncio.sleep(FROZEN_S)
            own.send("weaviate", signal.SIGCONT)
        await judge(d, changes, say, f"Weaviate frozen for {FROZEN_S:.0f} s")


async def test_weaviate_read_only(deploy: Deploy, own: OwnServices, say: Say) -> None:
    """As a full disk makes it: refused writes are no fault of the documents."""
    changes = Changes(SEED, 400)
    async with deploy() as d:
        async with both_lanes(d, changes):
            spaces = [d.build(version).space for version in ("v1", "v2")]
            await set_shards(own, spaces, "READONLY")
            await d.until(
                lambda: all(r.status == "waiting" for v in ("v1", "v2") for r in d.progress.partitions(d.build(v)))
            )
            held = [await d.stored(version) for version in ("v1", "v2")]
            await asyncio.sleep(3.0)
            assert [await d.stored(version) for version in ("v1", "v2")] == held
            await set_shards(own, spaces, "READY")
        await judge(d, changes, say, "Weaviate read-only")


async def set_shards(own: OwnServices, spaces: list[str], status: str) -> None:
    base = f"http://{own.addresses.weaviate_http}/v1/schema"
    async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
        for space in spaces:
            for shard in (await client.get(f"{base}/{space}/shards")).raise_for_status().json():
                answer = await client.put(f"{base}/{space}/shards/{shard['name']}", json={"status": status})
                answer.raise_for_status()
