"""What a build sees of the store's latency, and of its endpoints' errors."""

from __future__ import annotations

import asyncio
import inspect

import pytest

from connectors.embedders.endpoint import EndpointStatus
from connectors.memory.store import MemoryStore
from connectors.protocols import Space, SpaceSpec
from streams.throttle_checks import ERRORS_OF_S, ErrorShare
from streams.timed_space import LATENCY_OF_S, Latencies, TimedSpace


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def take(clock: Clock, latencies: Latencies, *seconds: float) -> None:
    for took in seconds:
        with latencies.call():
            clock.now_s += took


def fail(clock: Clock, latencies: Latencies, took_s: float, error: BaseException) -> None:
    with latencies.call():
        clock.now_s += took_s
        raise error


def test_p95_of_the_last_seconds() -> None:
    clock = Clock()
    latencies = Latencies(clock)
    assert latencies.p95_ms() == 0.0
    take(clock, latencies, *[0.01] * 19, 0.2)
    assert latencies.p95_ms() == pytest.approx(10)
    take(clock, latencies, 0.2)
    assert latencies.p95_ms() == pytest.approx(200)
    clock.now_s += LATENCY_OF_S + 1
    assert latencies.p95_ms() == 0.0  # nobody calls: nothing burdens it


def test_two_calls_are_too_few() -> None:
    clock = Clock()
    latencies = Latencies(clock)
    take(clock, latencies, 5.0, 5.0)
    assert latencies.p95_ms() == 0.0
    take(clock, latencies, 4.0)
    assert latencies.p95_ms() == 5000


def test_calls_that_hang_count_while_they_hang_and_failed_ones_after() -> None:
    clock = Clock()
    latencies = Latencies(clock)
    with latencies.call(), latencies.call(), latencies.call():
        clock.now_s += 9.0
        assert latencies.p95_ms() == 9000
    for _ in range(3):
        with pytest.raises(ValueError, match="no"):
            fail(clock, latencies, 9.5, ValueError("no"))
    assert latencies.p95_ms() == 9500


def test_a_cancelled_call_says_nothing() -> None:
    clock = Clock()
    latencies = Latencies(clock)
    for _ in range(5):
        with pytest.raises(asyncio.CancelledError):
            fail(clock, latencies, 1.0, asyncio.CancelledError())
    assert latencies.p95_ms() == 0.0


async def test_every_call_goes_through() -> None:
    """A method that `Space` gains and the wrapper has not would be found missing here."""
    wanted = {name for name, _ in inspect.getmembers(Space, inspect.isfunction) if not name.startswith("_")}
    assert wanted <= set(dir(TimedSpace))
    store = MemoryStore()
    await store.create_space(SpaceSpec("Docs_v1_1_aaaaaaaaaaaa", 2, "cosine", "it"))
    latencies = Latencies()
    space: Space = TimedSpace(store.space("Docs_v1_1_aaaaaaaaaaaa"), latencies)
    assert space.name == "Docs_v1_1_aaaaaaaaaaaa"
    assert await space.upsert([]) == {}
    assert await space.heads([]) == {}
    assert await space.properties([]) == {}
    await space.delete([])
    await space.erase([])
    assert await space.delete_chunks([], 0) == 0
    assert await space.count() == 0
    assert [page async for page in space.scan()] in ([], [[]])
    assert latencies.p95_ms() > 0


def status(**outcomes: int) -> EndpointStatus:
    return EndpointStatus("e", 0, "closed", 0, 1, 0, 0, 0.0, 0.0, 0, outcomes, None, None)


def test_the_share_of_requests_that_failed_lately() -> None:
    share = ErrorShare()
    assert share.observe([status(ok=100, failed=50)], 0.0) == 0.0  # before this build looked
    assert share.observe([status(ok=103, failed=51)], 1.0) == 0.0  # too few to tell
    assert share.observe([status(ok=106, failed=54)], 2.0) == 0.4
    assert share.observe([status(ok=106, failed=54), status(broken=10)], 3.0) == 0.7
    assert share.observe([status(ok=106, failed=54), status(broken=10)], 3.0 + ERRORS_OF_S + 1) == 0.0


def test_limits_and_refused_content_are_no_errors() -> None:
    share = ErrorShare()
    share.observe([status()], 0.0)
    assert share.observe([status(ok=5, throttled=90, cancelled=9, rejected=5)], 1.0) == 0.0
