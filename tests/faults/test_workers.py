"""Workers killed, stopped in mid-batch, and stopped for so long that another takes over while their write is under way.

Must never count a kill that did not interrupt anything.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time

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
    running,
    steady,
    until_settled,
    worker_of,
)

CYCLES = 25
SOAK_MINUTES = float(os.environ.get("CROSSFADE_SOAK_MINUTES", "0"))
SEED = int(os.environ.get("CROSSFADE_FAULT_SEED", "20260711"))
EXIT_WITHIN_S = 12.0  # the write deadline, the drain's second, and leaving three groups


def resolved(d: Deployment, version: str) -> int:
    counters = d.counters(version)
    return counters.live_resolved + counters.completed


async def test_25_kills_of_three_workers_during_replay_and_live_writes(deploy: Deploy, say: Say) -> None:
    rng, changes = random.Random(SEED), Changes(SEED, 600)
    async with deploy(partitions=3, session_timeout_s=6.0, write_timeout_s=2.0) as d:
        d.start_worker()
        d.add_version("v1", HASHING)
        await d.until_stage("v1", "ready")
        await produce(d, changes.first())
        d.start_worker()
        d.start_worker()
        d.add_version("v2", {**OTHER_HASHING, "replay_rate": 5})
        await d.until_stage("v2", "building")
        began, cycle, during_replay, peak = time.monotonic(), 0, 0, 0.0
        async with steady(d, changes):
            while cycle < CYCLES or time.monotonic() - began < SOAK_MINUTES * 60:
                before = resolved(d, "v2")
                await d.until(lambda before=before: resolved(d, "v2") >= before + 20)  # type: ignore[misc]
                await asyncio.sleep(rng.uniform(0.5, 2.5))  # noqa: ASYNC251  anywhere in a batch, not at a report
                victim = rng.choice(running(d))
                peak = max(peak, peak_memory_mib(victim))
                during_replay += d.build("v2").stage == "building"
                await d.end_worker(victim, signal.SIGKILL)
                d.start_worker()
                cycle += 1
        assert (await d.ask("set", "v2", replay_rate=0)).ok
        checked = await check(d, "v1", "v2")
        say(
            f"seed {SEED}: {cycle} kills ({during_replay} during the replay) in {time.monotonic() - began:.0f} s, "
            f"{changes.made} changes, {checked} documents checked, 0 lost, 0 resurrected, 0 stale; "
            f"peak memory {peak:.0f} MiB"
        )
        assert SOAK_MINUTES or during_replay >= CYCLES // 2
