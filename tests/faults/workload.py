"""What every fault runs against and is judged by: a steady producer of changes, and the one check at the end.

Must never judge by anything but the topic itself, read once from the beginning.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import subprocess
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from connectors.errors import Transient
from connectors.protocols import JSON
from tests.deployment import Deployment

WORDS = ("river", "stone", "cloud", "engine", "paper", "window", "garden", "copper", "silver", "signal", "market")
COLLECTION: Mapping[str, JsonValue] = {"text": {"fields": ["text"]}, "properties": {"title": "text", "rank": "int"}}
HASHING: Mapping[str, JsonValue] = {"embedder": {"provider": "hashing"}, "dimensions": 64}
OTHER_HASHING: Mapping[str, JsonValue] = {"embedder": {"provider": "hashing", "seed": 7}, "dimensions": 64}
MEMORY_BOUND_MIB = 400
RESOLVED_WITHIN_S = 120.0


def document(key: str, revision: int, rng: random.Random, words: int = 12) -> dict[str, JSON]:
    text = f"{key} revision {revision} " + " ".join(rng.choice(WORDS) for _ in range(words))
    return {"text": text, "title": f"{key} {revision}", "rank": revision}


class Changes:
    """Seeded edits, deletes, recreates and changed properties of `keys` documents."""

    def __init__(self, seed: int, keys: int) -> None:
        self.rng = random.Random(seed)
        self._now: dict[str, dict[str, JSON] | None] = {f"doc-{i:04d}": None for i in range(keys)}
        self._revision = 0
        self.made = 0

    def first(self) -> list[tuple[str, dict[str, JSON] | None]]:
        """Every document once."""
        return [self._change(key, "edit") for key in self._now]

    def next(self) -> tuple[str, dict[str, JSON] | None]:
        key = self.rng.choice(list(self._now))
        if self._now[key] is None:
            return self._change(key, "edit")
        return self._change(key, self.rng.choices(["edit", "delete", "rank", "same"], [60, 20, 15, 5])[0])

    def edit(self, key: str) -> tuple[str, dict[str, JSON] | None]:
        return self._change(key, "edit")

    def delete(self, key: str) -> tuple[str, dict[str, JSON] | None]:
        return self._change(key, "delete")

    @property
    def keys(self) -> list[str]:
        return list(self._now)

    def _change(self, key: str, how: str) -> tuple[str, dict[str, JSON] | None]:
        self._revision += 1
        self.made += 1
        before = self._now[key]
        if how == "edit":
            self._now[key] = document(key, self._revision, self.rng)
        elif how == "delete":
            self._now[key] = None
        elif how == "rank" and before is not None:
            self._now[key] = {**before, "rank": self._revision}
        return key, self._now[key]


async def produce(d: Deployment, changes: Sequence[tuple[str, dict[str, JSON] | None]]) -> None:
    """Through one idempotent producer, so in order. What a broker that is away does not take is simply not in the log:
    the oracle never counts on what was sent."""

    async def send(key: str, value: dict[str, JSON] | None) -> None:
        with contextlib.suppress(Transient):
            await d.out.sink.send(d.topic, key.encode(), None if value is None else json.dumps(value).encode())

    await asyncio.gather(*(send(key, value) for key, value in changes))


@asynccontextmanager
async def steady(d: Deployment, changes: Changes, per_s: float = 40.0) -> AsyncIterator[None]:
    """A producer that goes on beside whatever happens inside."""
    sending: list[asyncio.Task[None]] = []

    async def go_on() -> None:
        while True:
            sending.append(asyncio.create_task(produce(d, [changes.next() for _ in range(max(1, round(per_s / 5)))])))
            await asyncio.sleep(0.2)

    running = asyncio.create_task(go_on())
    try:
        yield
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await asyncio.gather(*sending)


def peak_memory_mib(process: subprocess.Popen[bytes]) -> float:
    """Peak resident memory of a worker that runs; 0 where the system does not say."""
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return max((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), default=0.0)


def running(d: Deployment) -> list[subprocess.Popen[bytes]]:
    return [process for process in d.workers if process.poll() is None]


def resolved(d: Deployment, version: str) -> int:
    """Events of both lanes, as last reported."""
    counters = d.counters(version)
    return counters.live_resolved + counters.completed


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of one space against the log."""

    version: str
    documents: int
    lost: list[str]
    resurrected: list[str]
    stale: list[str]

    @property
    def clean(self) -> bool:
        return not (self.lost or self.resurrected or self.stale)


async def compare(d: Deployment, version: str) -> Verdict:
    oracle, stored = await d.oracle(), await d.stored(version)
    return Verdict(
        version,
        len(oracle),
        sorted(oracle.keys() - stored.keys()),
        sorted(stored.keys() - oracle.keys()),
        sorted(key for key in oracle.keys() & stored.keys() if oracle[key] != stored[key]),
    )


async def until_settled(d: Deployment, version: str, timeout_s: float = RESOLVED_WITHIN_S) -> None:
    """As the owners report it from now on: a report from before the last fault says nothing."""
    since_ms = time.time_ns() // 1_000_000

    def settled() -> bool:
        records = d.progress.partitions(d.build(version))
        return len(records) == d.build(version).partitions and all(
            record.updated_at > since_ms and not record.unsettled for record in records
        )

    await d.until(settled, timeout_s)


async def check(d: Deployment, *versions: str) -> int:
    """Everything produced is resolved, and every space equals the log. Returns how many documents were compared.

    Call it when the producer has ended. The memory of every worker that still runs is bounded, too.
    """
    checked = 0
    for version in versions:
        await d.until_stage(version, "ready", RESOLVED_WITHIN_S)
        await d.until_live(version, RESOLVED_WITHIN_S)
        await until_settled(d, version)
        verdict = await compare(d, version)
        assert verdict.clean, verdict
        sweep = await d.verify(version)
        assert sweep.clean, sweep
        assert (sweep.checked, sweep.held) == (verdict.documents, 0), sweep
        assert d.counters(version).dead_letters == 0
        assert d.build(version).failure is None
        checked += verdict.documents
    async for headers, _ in d.out.dead_letters():
        raise AssertionError(f"a healthy document was dead-lettered: {headers.get('cause')}")
    peaks = [peak_memory_mib(process) for process in running(d)]
    assert peaks, "no worker runs"
    assert max(peaks) < MEMORY_BOUND_MIB, peaks
    return checked


def worker_of(d: Deployment, version: str, partition: int = 0) -> str:
    """The name of the worker that last reported on a partition."""
    record = d.progress.records.get(f"{d.build(version).key}/{partition}")
    return record.worker if record is not None else ""
