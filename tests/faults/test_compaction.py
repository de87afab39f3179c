"""The real log cleaner at work while a replay is paused and a worker is away, tombstones expired: the dead stay dead.

Must never go on before the log shows that the records in question are really gone.
"""

from __future__ import annotations

import asyncio
import signal

from tests.deployment import Deployment
from tests.faults.conftest import Deploy, Say
from tests.faults.workload import HASHING, Changes, check, produce

SEED = 7
QUICK_CLEANING = {
    "segment.ms": "500",
    "min.cleanable.dirty.ratio": "0.001",
    "delete.retention.ms": "500",
    "min.compaction.lag.ms": "0",
    "max.compaction.lag.ms": "1000",
}
GONE_WITHIN_S = 60.0


async def offsets_left(d: Deployment) -> set[tuple[int, int]]:
    left: set[tuple[int, int]] = set()
    for partition, bounds in (await d.out.kafka.bounds(d.topic)).items():
        async for batch in d.out.kafka.read_range(d.topic, partition, 0, bounds.stable):
            left.update((partition, record.offset) for record in batch.records)
    return left


async def tombstones(d: Deployment) -> set[tuple[int, int]]:
    found: set[tuple[int, int]] = set()
    for partition, bounds in (await d.out.kafka.bounds(d.topic)).items():
        async for batch in d.out.kafka.read_range(d.topic, partition, 0, bounds.stable):
            found.update((partition, record.offset) for record in batch.records if record.value is None)
    return found


async def until_gone(d: Deployment, doomed: set[tuple[int, int]], filler: list[str], changes: Changes) -> None:
    """Until the cleaner has removed these records. Only closed segments are cleaned, so edits of `filler` go on, which
    close them; the cleaner keeps tombstones through one more pass than it needs."""
    async with asyncio.timeout(GONE_WITHIN_S):
        while doomed & await offsets_left(d):
            await produce(d, [changes.edit(key) for key in filler])
            await asyncio.sleep(0.6)  # longer than segment.ms: the next edit closes a segment


async def test_the_log_cleaner_during_a_paused_replay(deploy: Deploy, say: Say) -> None:
    changes = Changes(SEED, 400)
    keys = changes.keys
    # of the first the replay has stored all when it is paused, of the last none
    deleted_away, deleted, edited, filler = keys[:20] + keys[320:360], keys[20:120], keys[120:220], keys[300:320]
    async with deploy(topic=QUICK_CLEANING) as d:
        await produce(d, changes.first())
        worker = d.start_worker()
        d.add_version("v1", {**HASHING, "replay_rate": 40})
        await d.until_stage("v1", "building")
        await d.until(lambda: d.counters("v1").completed >= 60)
        assert (await d.ask("pause", "v1")).ok
        await d.until(lambda: all(r.status == "paused" for r in d.progress.partitions(d.build("v1"))))
        paused_at = d.counters("v1").completed
        # live sees these, while the replay of what they replace is held
        overwritten = await offsets_left(d)
        await produce(d, [changes.edit(key) for key in edited] + [changes.delete(key) for key in deleted])
        await d.until_live("v1")
        assert d.build("v1").stage == "building", "the replay was over before its log was cleaned"
        assert await d.end_worker(worker, signal.SIGTERM) == 0
        # and these nobody sees: the documents stand in the space, or in the replay's range, and the tombstones go
        assert set(keys[:20]) <= (await d.stored("v1")).keys()
        await produce(d, [changes.delete(key) for key in deleted_away])
        doomed = await tombstones(d)
        assert len(doomed) == len(deleted) + len(deleted_away)
        left = await offsets_left(d)
        await until_gone(d, doomed, filler, changes)
        gone = (overwritten | left) - await offsets_left(d)
        d.start_worker()
        assert (await d.ask("resume", "v1")).ok
        assert (await d.ask("set", "v1", replay_rate=0)).ok
        checked = await check(d, "v1")
        stored = await d.stored("v1")
        assert not stored.keys() & {*deleted, *deleted_away}, "a deleted document is back"
        assert checked == len(keys) - len(deleted) - len(deleted_away)
        say(
            f"log cleaner: paused at {paused_at} of {len(keys)}, {len(gone)} records cleaned away, "
            f"{len(doomed)} of them tombstones; {checked} documents checked, 0 resurrected"
        )
