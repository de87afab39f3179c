"""The looks of one build: beside each other, only while a replay is going, and what comes of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from connectors.protocols import Capacity
from streams.config_operation import Throttle
from streams.throttle_checks import Gauges, ThrottleChecks


class Bench:
    """A build's throttle with everything it looks at in hand."""

    def __init__(self) -> None:
        self.throttle = Throttle(max_disk=None)
        self.lag = 0.0
        self.replaying = True
        self.full = Capacity(disk_free_bytes=50, disk_total_bytes=100)
        self.looks_at_capacity = 0
        gauges = Gauges(lambda: self.lag, lambda: 0.0, lambda: (), self._capacity)
        self.checks = ThrottleChecks("docs/v1", lambda: self.throttle, gauges, lambda: self.replaying)

    async def _capacity(self) -> Capacity:
        self.looks_at_capacity += 1
        return self.full

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while True:  # polled: a reading tells nobody that it has changed
                if condition():
                    return
                await asyncio.sleep(0.01)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with _running(Bench()) as bench:
        yield bench


@asynccontextmanager
async def _running(bench: Bench) -> AsyncIterator[Bench]:
    running = asyncio.create_task(bench.checks.run())
    try:
        yield bench
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def test_before_the_first_look_nothing_passes_but_where_nothing_is_configured() -> None:
    async def look() -> None:
        bench = Bench()
        assert bench.checks.held is None
        bench.throttle = Throttle(max_disk=0.9)
        assert bench.checks.held == "held: max_disk is not looked at yet"

    asyncio.run(look())


async def test_a_lag_near_its_bound_slows_and_beyond_it_holds(bench: Bench) -> None:
    bench.throttle, bench.lag = Throttle(max_live_lag=1000), 900.0
    await bench.until(lambda: bench.checks.slowed < 1)
    assert bench.checks.slowed == pytest.approx(0.35)
    assert (bench.checks.held, bench.checks.reason) == (None, "slowed to 35%: live lag 900 nears 1,000")
    bench.lag = 2300.0
    await bench.until(lambda: bench.checks.held is not None)
    assert (bench.checks.slowed, bench.checks.reason) == (1.0, "held: live lag 2,300 above 1,000")
    bench.throttle = Throttle()  # the configuration changes while it runs
    await bench.until(lambda: bench.checks.held is None)
    assert bench.checks.reason == ""


async def test_the_disk_is_looked_at_only_where_a_bound_asks_for_it(bench: Bench) -> None:
    bench.throttle = Throttle(max_live_lag=10, max_disk=None)
    await bench.until(lambda: bench.checks.held is None and "max_live_lag" in bench.checks.readings)
    assert bench.looks_at_capacity == 0
    bench.throttle = Throttle(max_disk=0.4, max_memory=0.9)
    await bench.until(lambda: "disk 50% above 40%" in bench.checks.reason)
    assert bench.looks_at_capacity == 1
    bench.throttle = Throttle(max_memory=0.9)
    await bench.until(lambda: bench.checks.held is None)
    assert bench.checks.reason == "max_memory cannot be read: nobody says"


async def test_a_disk_that_is_nearly_full_holds_by_default(bench: Bench) -> None:
    """Weaviate turns read-only at 90%: whoever has configured nothing is kept from that too."""
    bench.throttle, bench.full = Throttle(), Capacity(disk_free_bytes=14, disk_total_bytes=100)
    await bench.until(lambda: bench.checks.held is not None)
    assert bench.checks.reason == "held: Weaviate's disk 86% above 85%, the default of throttle.max_disk"
    bench.throttle = Throttle(max_disk=0.95)
    await bench.until(lambda: bench.checks.held is None)


async def test_where_nobody_knows_the_disk_the_default_is_silent(bench: Bench) -> None:
    bench.throttle, bench.full = Throttle(), Capacity(troubles=("nobody says how full the store is",))
    await bench.until(lambda: bench.looks_at_capacity > 0 and "max_disk" in bench.checks.readings)
    assert (bench.checks.held, bench.checks.reason) == (None, "")


async def test_without_a_replay_nobody_looks_and_nothing_holds(bench: Bench, tmp_path: Path) -> None:
    bench.throttle = Throttle(file=tmp_path, max_disk=0.1)
    await bench.until(lambda: f"{tmp_path} exists" in bench.checks.reason and "above 10%" in bench.checks.reason)
    bench.replaying = False
    looks = bench.looks_at_capacity
    await bench.until(lambda: bench.checks.held is None)
    assert bench.looks_at_capacity == looks
    bench.replaying = True
    await bench.until(lambda: bench.checks.held is not None)


async def test_a_file_that_comes_and_goes(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "hold"
    bench.throttle = Throttle(file=file)
    await bench.until(lambda: bench.checks.held is None and "file" in bench.checks.readings)
    file.touch()
    await bench.until(lambda: bench.checks.held == f"held: {file} exists")
    file.unlink()
    await bench.until(lambda: bench.checks.held is None)


async def test_a_file_nobody_may_look_at_holds(bench: Bench, tmp_path: Path) -> None:
    bench.throttle = Throttle(file=tmp_path / ("x" * 5000))  # the system refuses to say
    await bench.until(lambda: "cannot be looked at: File name too long" in bench.checks.reason)
    assert bench.checks.held is not None
