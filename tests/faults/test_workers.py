"""Workers killed, stopped in mid-batch, and stopped for so long that another takes over while their write is under way.

Must never count a kill that did not interrupt anything.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from pydantic import JsonValue

from tests.deployment import COLLECTION as DOCS
from tests.deployment import Deployment
from tests.faults.conftest import Deploy, Say
from tests.faults.own_services import OwnServices
from tests.faults.proxy import proxy
from tests.faults.tei_server import DIMENSIONS, tei_server
from tests.faults.workload import (
    HASHING,
    OTHER_HASHING,
    Changes,
    check,
    compare,
    peak_memory_mib,
    produce,
    resolved,
    running,
    steady,
    until_settled,
    worker_of,
)

CYCLES = 25
SOAK_MINUTES = float(os.environ.get("CROSSFADE_SOAK_MINUTES", "0"))
SEED = int(os.environ.get("CROSSFADE_FAULT_SEED", "20260711"))
EXIT_WITHIN_S = 12.0  # the write deadline, the drain's second, and leaving three groups


async def test_25_kills_of_three_workers_during_replay_and_live_writes(
    deploy: Deploy, own: OwnServices, say: Say
) -> None:
    # So many documents that what a kill loses is seldom written again, and writes slow enough for a kill to meet one.
    rng, changes = random.Random(SEED), Changes(SEED, 3000)
    async with (
        proxy(own.addresses.weaviate_grpc) as grpc,
        deploy(partitions=3, session_timeout_s=6.0, write_timeout_s=2.0) as d,
    ):
        slow = replace(own.addresses, weaviate_grpc=grpc.address)
        d.add_version("v1", HASHING)
        d.add_version("v2", {**OTHER_HASHING, "replay_rate": 5})
        await produce(d, changes.first())
        d.start_worker(slow)
        await d.until_stage("v1", "ready")
        d.start_worker(slow)
        d.start_worker(slow)
        await d.until_stage("v2", "building")
        began, cycle, during_replay, peak = time.monotonic(), 0, 0, 0.0
        grpc.delay_s = 0.15
        async with steady(d, changes):
            while cycle < CYCLES or time.monotonic() - began < SOAK_MINUTES * 60:
                before = resolved(d, "v2")
                await d.until(lambda before=before: resolved(d, "v2") >= before + 5)  # type: ignore[misc]
                await asyncio.sleep(rng.uniform(0.2, 1.5))  # anywhere in a batch, not at a report
                victim = rng.choice(running(d))
                peak = max(peak, peak_memory_mib(victim))
                during_replay += d.build("v2").stage == "building"
                await d.end_worker(victim, signal.SIGKILL)
                d.start_worker(slow)
                cycle += 1
        grpc.delay_s = 0.0
        assert (await d.ask("set", "v2", replay_rate=0)).ok
        checked = await check(d, "v1", "v2")
        say(
            f"seed {SEED}: {cycle} kills ({during_replay} during the replay) in {time.monotonic() - began:.0f} s, "
            f"{changes.made} changes, {checked} documents checked, 0 lost, 0 resurrected, 0 stale; "
            f"peak memory {peak:.0f} MiB"
        )
        assert SOAK_MINUTES or during_replay >= CYCLES // 2


async def test_sigterm_in_mid_batch(deploy: Deploy, say: Say) -> None:
    """It ends with status 0 in time, and what it had committed is not embedded again."""
    changes = Changes(SEED, 300)
    async with tei_server() as endpoint, deploy(partitions=1) as d:
        await produce(d, changes.first())
        tei: JsonValue = {"provider": "tei", "url": endpoint.url, "model": "faults", "max_batch": 8, "concurrency": 4}
        d.add_version("v1", {"embedder": tei, "dimensions": DIMENSIONS, "batch": 16})
        worker = d.start_worker()
        await d.until_stage("v1", "building")
        endpoint.answer_after_s = 0.4
        await d.until(lambda: d.counters("v1").completed >= 60)
        began = time.monotonic()
        assert await d.end_worker(worker, signal.SIGTERM) == 0
        took_s = time.monotonic() - began
        assert took_s < EXIT_WITHIN_S
        group = d.out.names.group(DOCS, "v1", d.build("v1").epoch, "replay")
        committed = (await d.out.kafka.committed(group, d.topic))[0].offset
        assert 60 <= committed < 300, "it was stopped in the middle"
        before = len(endpoint.embedded)
        endpoint.answer_after_s = 0.0
        d.start_worker()
        checked = await check(d, "v1")
        again = endpoint.embedded[before:]
        done = set(await texts_below(d, committed))
        assert not done & set(again), "committed documents were embedded again"
        in_flight = (2 + 4 * 8 // 16) * 16  # groups that may be written, and groups at the endpoint, times batch
        assert len(endpoint.embedded) <= 300 + in_flight
        say(
            f"SIGTERM in mid-batch: status 0 after {took_s:.1f} s at offset {committed} of 300; "
            f"{len(endpoint.embedded) - 300} texts embedded twice; {checked} documents checked"
        )


async def texts_below(d: Deployment, offset: int) -> list[str]:
    texts = []
    async for batch in d.out.kafka.read_range(d.topic, 0, 0, offset):
        texts += [json.loads(record.value)["text"] for record in batch.records if record.value is not None]
    return texts


async def test_a_stopped_worker_whose_write_lands_after_the_takeover(
    deploy: Deploy, own: OwnServices, say: Say
) -> None:
    """The zombie: SIGSTOP with a write under way, past the session time-out; another takes over and writes newer
    forms; the old write arrives; SIGCONT."""
    changes = Changes(SEED, 60)
    at = own.addresses
    async with proxy(at.weaviate_grpc) as grpc, deploy(partitions=1, settle_s=12.0) as d:
        await produce(d, changes.first())
        d.add_version("v1", HASHING)
        zombie = d.start_worker(replace(at, weaviate_grpc=grpc.address))
        await d.until_stage("v1", "ready")
        await until_settled(d, "v1")
        first_owner = worker_of(d, "v1")
        d.start_worker()
        keys = changes.keys[:20]
        grpc.catch(above_bytes=4000)
        await produce(d, [changes.edit(key) for key in keys])
        old = await d.oracle()
        await asyncio.wait_for(grpc.caught.wait(), 20)
        zombie.send_signal(signal.SIGSTOP)
        # the newer forms: ten edited again, ten deleted
        await produce(d, [changes.edit(key) for key in keys[:10]] + [changes.delete(key) for key in keys[10:]])
        await d.until_live("v1")
        assert worker_of(d, "v1") != first_owner
        assert not (await compare(d, "v1")).stale, "the new owner has written the newer forms"
        grpc.release()
        landed = await until_landed(d, old, keys)
        zombie.send_signal(signal.SIGCONT)
        checked = await check(d, "v1")
        assert zombie.poll() is None, "it has joined again, not died"
        say(f"zombie: {landed} old forms landed after the takeover, all mended; {checked} documents checked")


async def test_a_killed_worker_whose_write_never_arrives(deploy: Deploy, own: OwnServices, say: Say) -> None:
    """Rule 6: commits go on beside the write, and none of them passes it, so that the next owner writes it."""
    changes = Changes(SEED, 60)
    at = own.addresses
    async with proxy(at.weaviate_grpc) as grpc, deploy(partitions=1, write_timeout_s=4.0) as d:
        await produce(d, changes.first())
        d.add_version("v1", HASHING)
        doomed = d.start_worker(replace(at, weaviate_grpc=grpc.address))
        await d.until_stage("v1", "ready")
        await d.until_live("v1")
        await until_settled(d, "v1")
        grpc.catch(above_bytes=4000)
        await produce(d, [changes.edit(key) for key in changes.keys[:20]])
        await asyncio.wait_for(grpc.caught.wait(), 20)
        await asyncio.sleep(2.0)  # two commits, and well within the write deadline
        await d.end_worker(doomed, signal.SIGKILL)
        grpc.lose()
        assert len((await compare(d, "v1")).stale) == 20, "the write was under way"
        d.start_worker()
        checked = await check(d, "v1")
        say(f"killed with a write under way that never arrives: 20 documents written again; {checked} checked")


async def until_landed(d: Deployment, old: Mapping[str, str], keys: Sequence[str], timeout_s: float = 10) -> int:
    """Wait until the space holds old forms of keys again: the fault has really happened. Returns how many."""
    async with asyncio.timeout(timeout_s):
        while True:
            stored = await d.stored("v1")
            if landed := sum(stored.get(key) == old[key] for key in keys):
                return landed
            await asyncio.sleep(0.1)  # polled: a space cannot be subscribed to


async def test_a_write_whose_answer_was_lost_lands_later(deploy: Deploy, own: OwnServices, say: Say) -> None:
    """The connection breaks in mid-write; the worker writes again, and then newer forms; the first write arrives."""
    changes = Changes(SEED, 60)
    at = own.addresses
    async with proxy(at.weaviate_grpc) as grpc, deploy(partitions=1, settle_s=12.0) as d:
        await produce(d, changes.first())
        d.add_version("v1", HASHING)
        d.start_worker(replace(at, weaviate_grpc=grpc.address))
        await d.until_stage("v1", "ready")
        await until_settled(d, "v1")
        keys = changes.keys[:20]
        grpc.catch(above_bytes=4000)
        await produce(d, [changes.edit(key) for key in keys])
        old = await d.oracle()
        await asyncio.wait_for(grpc.caught.wait(), 20)
        await grpc.cut()
        await grpc.mend()
        await d.until_live("v1")
        await produce(d, [changes.edit(key) for key in keys[:10]] + [changes.delete(key) for key in keys[10:]])
        await d.until_live("v1")
        assert not (await compare(d, "v1")).stale, "the newer forms are written"
        grpc.release()
        landed = await until_landed(d, old, keys)
        checked = await check(d, "v1")
        assert d.counters("v1").mended >= landed
        say(f"lost answer: {landed} old forms landed later, all mended; {checked} documents checked")
