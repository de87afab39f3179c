"""One endpoint in virtual time, against simulated servers: its best point, its rates, its queue and its slots."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.embedders.endpoint import Endpoint
from connectors.embedders.pool import Served
from connectors.errors import (
    AccessDenied,
    ConfigurationError,
    ContentRejected,
    CrossfadeError,
    Refused,
    Throttled,
    Transient,
    Unreachable,
)
from connectors.protocols import Embedded, ModelFacts
from tests.merge import virtual_time

Window = Callable[[float, float], bool]


def fixed_window(limit: float, window_s: float = 60.0, phase_s: float = 0.0) -> Window:
    """Counts in windows that begin at multiples of `window_s` after `phase_s`. What is refused does not count."""
    counted: dict[int, float] = {}

    def takes(amount: float, now_s: float) -> bool:
        window = int((now_s - phase_s + 1e6 * window_s) // window_s)
        if counted.get(window, 0.0) + amount > limit:
            return False
        counted[window] = counted.get(window, 0.0) + amount
        return True

    return takes


def sliding_window(limit: float, window_s: float = 60.0) -> Window:
    """Counts what came in the last `window_s`."""
    log: deque[tuple[float, float]] = deque()
    total = 0.0

    def takes(amount: float, now_s: float) -> bool:
        nonlocal total
        while log and log[0][0] <= now_s - window_s + 1e-9:
            total -= log.popleft()[1]
        if total + amount > limit:
            return False
        log.append((now_s, amount))
        total += amount
        return True

    return takes


@dataclass
class Server:
    """Behaves like a GPU endpoint: `lines` requests at once, the rest queues, or is refused beyond `room`.

    A text of n characters has n tokens. Beyond `crowd` in flight each further request slows all by `crowding`. `ran`:
    seconds that its lines were used; `crowded_s`: seconds with more than one request in its queue.
    """

    lines: int = 8
    fixed_s: float = 0.05
    each_s: float = 0.0001
    jitter: float = 0.0
    room: int | None = None
    crowd: int = 10_000
    crowding: float = 0.0
    request_window: Window | None = None
    token_window: Window | None = None
    retry_after_s: float | None = None
    fault: Callable[[], Exception | None] = lambda: None
    max_batch: int = 32
    closed: bool = False
    in_flight: int = 0
    most_in_flight: int = 0
    began_s: list[float] = field(default_factory=list)
    area: float = 0.0
    ran: float = 0.0
    crowded_s: float = 0.0
    _at_s: float = 0.0
    _random: random.Random = field(default_factory=lambda: random.Random(7))

    def __post_init__(self) -> None:
        self._lines = asyncio.Semaphore(self.lines)

    def _count(self, change: int) -> None:
        now_s = now()
        passed_s = now_s - self._at_s
        self.area += self.in_flight * passed_s
        self.ran += min(self.in_flight, self.lines) * passed_s
        self.crowded_s += passed_s if self.in_flight > self.lines + 1 else 0.0
        self._at_s = now_s
        self.in_flight += change
        self.most_in_flight = max(self.most_in_flight, self.in_flight)

    async def embed(self, texts: Sequence[str]) -> Embedded:
        tokens = sum(map(len, texts))
        self.began_s.append(now())
        if (error := self.fault()) is not None:
            await asyncio.sleep(0.001)
            raise error
        if self.room is not None and self.in_flight >= self.room:
            await asyncio.sleep(0.002)
            raise Throttled("too many at once", retry_after_s=self.retry_after_s)
        for window, amount in ((self.request_window, 1), (self.token_window, tokens)):
            if window is not None and not window(amount, now()):
                await asyncio.sleep(0.002)
                raise Throttled("too many a minute", retry_after_s=self.retry_after_s)
        self._count(1)
        try:
            async with self._lines:
                crowded = 1 + self.crowding * max(0, self.in_flight - self.crowd)
                noise = self._random.lognormvariate(0.0, self.jitter) if self.jitter else 1.0
                await asyncio.sleep((self.fixed_s + self.each_s * tokens) * crowded * noise)
        finally:
            self._count(-1)
        return Embedded(np.ones((len(texts), 2), np.float32), tokens)

    async def facts(self) -> ModelFacts:
        return ModelFacts(model="simulated")

    async def close(self) -> None:
        self.closed = True


def now() -> float:
    return asyncio.get_running_loop().time()


Call = Callable[[Sequence[str], int, bool], Awaitable[Embedded | Served]]


def caller(endpoint: Endpoint) -> Call:
    return lambda texts, tokens, urgent: endpoint.embed(texts, tokens=tokens, urgent=urgent)


@dataclass
class Load:
    """`workers` replay callers that never rest, each trying again after what the error says, until `until_s`."""

    call: Call
    workers: int = 48
    sizes: tuple[int, ...] = (500,)
    estimate: float = 1.0
    tokens: int = 0
    calls: int = 0
    refused: int = 0

    async def run(self, until_s: float) -> None:
        async with asyncio.TaskGroup() as group:
            for seed in range(self.workers):
                group.create_task(self._work(until_s, random.Random(seed)))

    async def _work(self, until_s: float, chance: random.Random) -> None:
        while now() < until_s:
            size = chance.choice(self.sizes)
            self.calls += 1
            try:
                async with asyncio.timeout_at(until_s):
                    reply = await self.call(["x" * size], int(size * self.estimate), False)
            except TimeoutError:
                self.calls -= 1
                return
            except Transient as error:
                self.refused += isinstance(error, Throttled)
                await asyncio.sleep(0.1 if error.retry_after_s is None else error.retry_after_s)
            else:
                self.tokens += reply.tokens or 0


def measure(make: Callable[[], Server], concurrency: int | None, seconds: float, sizes: tuple[int, ...]) -> Measured:
    """The second half of a run: tokens a second, and requests at the server. `concurrency` fixed, or None: found."""

    async def main() -> Measured:
        server = make()
        endpoint = Endpoint("e", server, concurrency=concurrency or 32, fixed_concurrency=concurrency is not None)
        load = Load(caller(endpoint), sizes=sizes)
        async with asyncio.TaskGroup() as group:
            group.create_task(load.run(seconds))
            await asyncio.sleep(seconds / 2)
            tokens, area, refused, calls = load.tokens, server.area, load.refused, load.calls
            await asyncio.sleep(seconds / 2 - 0.01)
            half_s = seconds / 2
            return Measured(
                (load.tokens - tokens) / half_s,
                (server.area - area) / half_s,
                (load.refused - refused) / max(1, load.calls - calls),
            )

    return virtual_time.run(main())


@dataclass(frozen=True)
class Measured:
    goodput: float
    in_flight: float
    refused: float


SERVERS: dict[str, tuple[Callable[[], Server], tuple[int, ...]]] = {
    "5 lines, then a queue": (lambda: Server(lines=5), (500,)),
    "16 lines, sizes and times that vary": (lambda: Server(lines=16, jitter=0.2), (20, 200, 800, 2000)),
    "refuses the 21st": (lambda: Server(lines=20, room=20), (500,)),
    "slower for all beyond 10": (lambda: Server(lines=64, crowd=10, crowding=0.15), (500,)),
}


@pytest.mark.parametrize("kind", SERVERS)
def test_the_best_point_is_found(kind: str) -> None:
    make, sizes = SERVERS[kind]
    known = {most: measure(make, most, 20.0, sizes) for most in range(2, 33, 2)}
    top = max(run.goodput for run in known.values())
    best = next(run for run in known.values() if run.goodput >= 0.98 * top)  # fewest in flight that reach it
    found = measure(make, None, 120.0, sizes)
    assert 0.8 * best.in_flight <= found.in_flight <= 1.2 * best.in_flight
    assert found.goodput >= 0.95 * top
    assert found.refused <= 0.001


def of_batches(lines: int, batch_s: float, jitter: float = 0.0) -> Server:
    """500 tokens take `batch_s`."""
    return Server(lines=lines, fixed_s=0.05 * batch_s, each_s=0.95 * batch_s / 500, jitter=jitter)


@pytest.mark.parametrize("jitter", [0.0, 0.1])
@pytest.mark.parametrize("batch_s", [0.005, 0.02, 0.085, 0.15])
@pytest.mark.parametrize("lines", [1, 4, 8, 32])
def test_kept_busy_from_cold(lines: int, batch_s: float, jitter: float) -> None:
    async def main() -> None:
        server = of_batches(lines, batch_s, jitter)
        endpoint = Endpoint("e", server, concurrency=48)  # of 32 the replay would leave one free for ever
        async with asyncio.TaskGroup() as group:
            group.create_task(Load(caller(endpoint), workers=100).run(5.1))
            await asyncio.sleep(5.0)
            server._count(0)
            assert server.ran >= LEAST_BUSY.get((lines, batch_s), 0.95) * 5.0 * lines

    virtual_time.run(main())


LEAST_BUSY = {(32, 0.15): 0.93}  # 33 batches in that time: three go by until 32 are in flight


@pytest.mark.parametrize("jitter", [0.0, 0.1])
@pytest.mark.parametrize("lines", [1, 4, 8, 32])
def test_at_rest_the_queue_is_one_request_at_most(lines: int, jitter: float) -> None:
    async def main() -> None:
        server = of_batches(lines, 0.1, jitter)
        async with asyncio.TaskGroup() as group:
            group.create_task(Load(caller(Endpoint("e", server, concurrency=48)), workers=100).run(121.0))
            await asyncio.sleep(40.0)
            server._count(0)
            ran, area, crowded_s = server.ran, server.area, server.crowded_s
            await asyncio.sleep(80.0)
            server._count(0)
            assert server.ran - ran >= 0.98 * 80.0 * lines
            assert (server.area - area) / 80.0 <= lines + 1
            assert server.crowded_s - crowded_s <= 0.06 * 80.0

    virtual_time.run(main())


def p99_alone_and_beside(
    server: Server, sizes: tuple[int, ...], concurrency: int, *, search_s: float = 1.0, per_s: float = 50.0
) -> tuple[float, float]:
    """So many live calls a second at random moments, alone, then beside a replay; while that searches they come too,
    and do not count."""

    async def main() -> tuple[float, float]:
        endpoint = Endpoint("e", server, concurrency=concurrency)
        chance = random.Random(5)

        async def p99(calls: int) -> float:
            taken_s: list[float] = []

            async def one() -> None:
                began_s = now()
                await endpoint.embed(["x" * 10], tokens=10, urgent=True)
                taken_s.append(now() - began_s)

            async with asyncio.TaskGroup() as group:
                for _ in range(calls):
                    group.create_task(one())
                    await asyncio.sleep(chance.expovariate(per_s))
            return sorted(taken_s)[int(0.99 * calls)]

        alone_s = await p99(500)
        replay = asyncio.create_task(Load(caller(endpoint), workers=100, sizes=sizes).run(1e9))
        await p99(int(search_s * per_s))
        beside_s = await p99(3000)
        replay.cancel()
        await asyncio.wait([replay])
        return alone_s, beside_s

    return virtual_time.run(main())


@pytest.mark.parametrize("make", [lambda: Server(lines=32), lambda: of_batches(32, 0.085, 0.1)])
def test_32_lines_serve_live_calls_beside_a_replay_nearly_as_fast_as_alone(make: Callable[[], Server]) -> None:
    alone_s, beside_s = p99_alone_and_beside(make(), (150, 300, 500, 1000), 32)
    assert beside_s <= 1.5 * alone_s


@pytest.mark.parametrize(("lines", "batches"), [(2, 2.75), (4, 1.5), (8, 1.0)])
def test_few_lines_let_a_live_call_wait_for_about_one_batch(lines: int, batches: float) -> None:
    alone_s, beside_s = p99_alone_and_beside(of_batches(lines, 0.085, 0.1), (150, 300, 500, 1000), 32)
    assert beside_s - alone_s <= batches * 0.085


@pytest.mark.parametrize("per_s", [20.0, 100.0])
@pytest.mark.parametrize("batch_s", [0.013, 0.085])
@pytest.mark.parametrize("lines", [4, 16])
def test_once_the_best_point_is_known_a_replay_leaves_room_for_live_calls(
    lines: int, batch_s: float, per_s: float
) -> None:
    server = of_batches(lines, batch_s, 0.1)
    alone_s, beside_s = p99_alone_and_beside(server, (150, 300, 500, 1000), 32, search_s=15.0, per_s=per_s)
    assert beside_s <= 1.5 * alone_s


def test_a_replay_keeps_half_of_the_endpoint_and_all_of_it_when_no_live_calls_come() -> None:
    async def main() -> None:
        server = of_batches(4, 0.02)
        endpoint = Endpoint("e", server)
        live = Load(lambda texts, tokens, _: endpoint.embed(texts, tokens=tokens, urgent=True), workers=2, sizes=(10,))
        async with asyncio.TaskGroup() as group:
            group.create_task(Load(caller(endpoint)).run(60.0))
            group.create_task(live.run(40.0))
            await asyncio.sleep(20.0)
            for _ in range(200):
                await asyncio.sleep(0.05)
                assert endpoint._replay_in_flight == 2
            await asyncio.sleep(20.0)
            server._count(0)
            ran = server.ran
            await asyncio.sleep(9.0)
            server._count(0)
            assert server.ran - ran >= 0.98 * 9.0 * 4

    virtual_time.run(main())


@pytest.mark.parametrize(("before", "after"), [(6, 20), (20, 6)])
def test_the_best_point_is_found_again_when_it_moves(before: int, after: int) -> None:
    async def main() -> None:
        server = Server(lines=before)
        endpoint = Endpoint("e", server)
        async with asyncio.TaskGroup() as group:
            group.create_task(Load(caller(endpoint)).run(120.0))
            await asyncio.sleep(40.0)
            assert 0.8 * before <= endpoint.status().in_flight <= 1.25 * before
            for _ in range(max(0, after - before)):
                server._lines.release()
            for _ in range(max(0, before - after)):
                await server._lines.acquire()
            await asyncio.sleep(40.0)
            area = server.area
            await asyncio.sleep(39.0)
            assert 0.8 * after <= (server.area - area) / 39.0 <= 1.2 * after

    virtual_time.run(main())


@pytest.mark.parametrize("factor", [0.25, 4.0])
def test_a_change_of_speed_does_not_move_the_best_point(factor: float) -> None:
    async def main() -> None:
        server = Server(lines=10)
        endpoint = Endpoint("e", server)
        async with asyncio.TaskGroup() as group:
            group.create_task(Load(caller(endpoint)).run(120.0))
            await asyncio.sleep(30.0)
            server.fixed_s *= factor
            server.each_s *= factor
            area = server.area
            await asyncio.sleep(89.0)
            assert 8 <= (server.area - area) / 89.0 <= 12

    virtual_time.run(main())


MINUTE_WINDOWS = {
    "fixed": lambda limit: fixed_window(limit, phase_s=17.3),
    "sliding": lambda limit: sliding_window(limit),
    "fixed, by the second": lambda limit: fixed_window(limit / 60, 1.0, phase_s=0.3),
    "sliding, by the second": lambda limit: sliding_window(limit / 60, 1.0),
}


@pytest.mark.parametrize("windows", MINUTE_WINDOWS)
@pytest.mark.parametrize("limit", [60, 600, 6000])
def test_requests_a_minute_are_used_and_not_passed(windows: str, limit: int) -> None:
    async def main() -> None:
        minutes = 10 if limit < 6000 else 3
        server = Server(lines=32, request_window=MINUTE_WINDOWS[windows](limit), jitter=0.3, retry_after_s=1.0)
        load = Load(caller(Endpoint("e", server, requests_per_minute=limit)))
        await load.run(60.0 * minutes)
        assert load.calls - load.refused >= 0.97 * limit * minutes
        assert load.refused <= 0.01 * load.calls

    virtual_time.run(main())


@pytest.mark.parametrize("estimate", [0.8, 1.0, 1.3])
@pytest.mark.parametrize("windows", ["fixed", "sliding"])
def test_tokens_a_minute_are_used_and_not_passed(windows: str, estimate: float) -> None:
    async def main() -> None:
        limit, minutes = 1_000_000, 6
        server = Server(lines=32, token_window=MINUTE_WINDOWS[windows](limit), retry_after_s=1.0)
        load = Load(caller(Endpoint("e", server, tokens_per_minute=limit)), sizes=(300, 2000, 8000), estimate=estimate)
        await load.run(60.0 * minutes)
        assert load.tokens >= 0.97 * limit * minutes
        assert load.refused <= 0.01 * load.calls

    virtual_time.run(main())


def test_an_amount_beyond_the_limit_passes_in_the_end() -> None:
    async def main() -> None:
        endpoint = Endpoint("e", Server(), tokens_per_minute=1000)
        for _ in range(3):
            await endpoint.embed(["x" * 3000], tokens=3000, urgent=False)
        assert endpoint.status().tokens == 9000
        assert now() <= 3 * 60 * 6

    virtual_time.run(main())


@pytest.mark.parametrize("concurrency", [1, 2, 8])
def test_a_live_call_waits_for_one_slot_at_most(concurrency: int) -> None:
    async def main() -> None:
        server = Server(lines=concurrency)
        endpoint = Endpoint("e", server, concurrency=concurrency, fixed_concurrency=True)
        replay_s = server.fixed_s + 500 * server.each_s
        alone_s = server.fixed_s + 10 * server.each_s
        slowest_s = 0.0
        async with asyncio.TaskGroup() as group:
            group.create_task(Load(caller(endpoint)).run(60.0))
            for _ in range(300):
                await asyncio.sleep(0.137)
                began_s = now()
                await endpoint.embed(["x" * 10], tokens=10, urgent=True)
                slowest_s = max(slowest_s, now() - began_s)
        assert slowest_s <= alone_s + (replay_s if concurrency == 1 else 1e-6)

    virtual_time.run(main())


def test_live_calls_take_the_rate_first() -> None:
    async def main() -> None:
        server = Server(lines=32, token_window=sliding_window(600_000))
        endpoint = Endpoint("e", server, tokens_per_minute=600_000, requests_per_minute=6000)
        load = Load(caller(endpoint), sizes=(8000,))
        slowest_s = 0.0
        async with asyncio.TaskGroup() as group:
            group.create_task(load.run(130.0))
            for _ in range(300):
                await asyncio.sleep(0.4)
                began_s = now()
                await endpoint.embed(["x" * 50], tokens=50, urgent=True)
                slowest_s = max(slowest_s, now() - began_s)
        assert slowest_s <= 0.055 + 0.03  # its own time, and what 50 tokens and a request take of the rate
        assert load.refused == 0

    virtual_time.run(main())


def test_urgent_calls_pass_all_waiting_replay_calls_and_keep_their_own_order() -> None:
    async def main() -> None:
        endpoint = Endpoint("e", Server(lines=1), concurrency=1)
        order: list[str] = []

        async def one(name: str) -> None:
            await endpoint.embed(["x"], tokens=1, urgent=name[0] == "u")
            order.append(name)

        async with asyncio.TaskGroup() as group:
            for name in ("r0", "r1", "r2", "u0", "u1"):
                group.create_task(one(name))
        assert order == ["r0", "u0", "u1", "r1", "r2"]

    virtual_time.run(main())


def test_replay_leaves_one_slot_and_is_not_starved_by_a_live_call() -> None:
    async def main() -> None:
        server = Server(lines=4, fixed_s=10.0)
        endpoint = Endpoint("e", server, concurrency=2, fixed_concurrency=True)
        async with asyncio.TaskGroup() as group:
            for urgent in (False, False, True, True):
                group.create_task(endpoint.embed(["x"], tokens=1, urgent=urgent))
            await asyncio.sleep(1.0)
            status = endpoint.status()
            assert (status.in_flight, status.waiting_urgent, status.waiting_replay) == (2, 1, 1)

    virtual_time.run(main())


def test_nobody_sends_before_retry_after() -> None:
    async def main() -> None:
        errors = [Throttled("slow down", retry_after_s=30.0)]
        server = Server(fault=lambda: errors.pop() if errors else None)
        endpoint = Endpoint("e", server)
        with pytest.raises(Throttled):
            await endpoint.embed(["x"], tokens=1, urgent=False)
        assert endpoint.status().held_s == pytest.approx(30.0)
        await asyncio.gather(*(endpoint.embed(["x"], tokens=1, urgent=n % 2 == 0) for n in range(6)))
        assert min(server.began_s[1:]) >= 30.0
        assert endpoint.status().outcomes == {"throttled": 1, "ok": 6}

    virtual_time.run(main())


def test_a_refusal_without_retry_after_at_the_lowest_concurrency_is_waited_out_ever_longer() -> None:
    async def main() -> None:
        server = Server(fault=lambda: Throttled("slow down"))
        endpoint = Endpoint("e", server, concurrency=1)
        for _ in range(6):
            with pytest.raises(Throttled):
                await endpoint.embed(["x"], tokens=1, urgent=True)
        gaps = [after - before for before, after in pairwise(server.began_s)]
        assert gaps == pytest.approx([0.251, 0.501, 1.001, 2.001, 4.001])
        assert endpoint.status().state == "closed"  # it answers: no outage

    virtual_time.run(main())


def test_the_circuit_opens_lets_one_probe_and_closes() -> None:
    async def main() -> None:
        down = True
        server = Server(fault=lambda: Unreachable("no route") if down else None)
        endpoint = Endpoint("e", server)

        async def ask(times: int = 20) -> list[CrossfadeError | Embedded]:
            calls = (endpoint.embed(["x"], tokens=1, urgent=False) for _ in range(times))
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert all(isinstance(result, Unreachable | Embedded) for result in results)
            return results  # type: ignore[return-value]

        await ask()
        sent = len(server.began_s)
        assert sent <= 8  # those in flight together; who waited was told at once
        assert endpoint.status().state == "open"
        assert now() < 0.01
        with pytest.raises(Unreachable) as raised:
            await endpoint.embed(["x"], tokens=1, urgent=True)
        assert raised.value.retry_after_s == pytest.approx(1.0, abs=0.01)
        await asyncio.sleep(1.0)
        await ask()  # one of them probes
        assert len(server.began_s) == sent + 1
        await asyncio.sleep(1.9)
        await ask()
        assert len(server.began_s) == sent + 1  # the pause has doubled
        down = False
        await asyncio.sleep(0.1)
        probe = asyncio.create_task(ask(1))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert endpoint.status().state == "probing"
        assert all(isinstance(result, Unreachable) for result in await ask())
        await probe
        assert endpoint.status().state == "closed"
        assert all(isinstance(result, Embedded) for result in await ask())

    virtual_time.run(main())


def test_a_cancelled_probe_lets_another_probe() -> None:
    async def main() -> None:
        down = True
        server = Server(fixed_s=100.0, fault=lambda: Unreachable("no route") if down else None)
        endpoint = Endpoint("e", server, concurrency=1)
        for _ in range(5):
            with pytest.raises(Unreachable):
                await endpoint.embed(["x"], tokens=1, urgent=False)
        down = False
        await asyncio.sleep(2.0)
        probe = asyncio.create_task(endpoint.embed(["x"], tokens=1, urgent=False))
        await asyncio.sleep(1.0)
        probe.cancel()
        await asyncio.wait([probe])
        await endpoint.embed(["x"], tokens=1, urgent=False)
        assert endpoint.status().outcomes == {"failed": 5, "cancelled": 1, "ok": 1}

    virtual_time.run(main())


@pytest.mark.parametrize("error", [ContentRejected("too long"), AccessDenied("key"), RuntimeError("a bug")])
def test_what_is_no_outage_neither_opens_nor_slows(error: Exception) -> None:
    async def main() -> None:
        endpoint = Endpoint("e", Server(fault=lambda: error))
        before = endpoint.status().concurrency
        for _ in range(12):
            with pytest.raises(type(error)):
                await endpoint.embed(["x"], tokens=1, urgent=False)
        status = endpoint.status()
        assert (status.state, status.concurrency, status.in_flight) == ("closed", before, 0)
        assert status.last_error == type(error).__name__

    virtual_time.run(main())


def test_a_storm_of_cancels_leaks_no_slot_no_place_and_no_budget() -> None:
    async def main() -> None:
        server = Server(lines=4)
        endpoint = Endpoint("e", server, concurrency=4, fixed_concurrency=True, requests_per_minute=6000)
        chance = random.Random(3)
        for _ in range(40):
            tasks = [
                asyncio.create_task(endpoint.embed(["x"], tokens=1, urgent=chance.random() < 0.3)) for _ in range(50)
            ]
            await asyncio.sleep(chance.choice([0.0, 0.01, 0.05, 0.06]))
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            status = endpoint.status()
            assert (status.in_flight, status.waiting_urgent, status.waiting_replay) == (0, 0, 0)
            assert not endpoint._urgent
            assert not endpoint._replay
        assert server.in_flight == 0
        began_s = now()
        await asyncio.gather(*(endpoint.embed(["x"], tokens=1, urgent=True) for _ in range(8)))
        assert now() - began_s <= 0.15  # as fast as at the start: nothing was left taken

    virtual_time.run(main())


def test_a_caller_cancelled_in_the_moment_of_its_turn_passes_it_on() -> None:
    async def main() -> None:
        endpoint = Endpoint("e", Server(fixed_s=1.0), concurrency=1, requests_per_minute=60_000)

        async def first() -> None:
            await endpoint.embed(["x"], tokens=1, urgent=False)
            second.cancel()  # its turn has come, and it does not know yet
            assert endpoint.status().in_flight == 1

        one = asyncio.create_task(first())
        await asyncio.sleep(0)
        second = asyncio.create_task(endpoint.embed(["x"], tokens=1, urgent=False))
        third = asyncio.create_task(endpoint.embed(["x"], tokens=1, urgent=False))
        await asyncio.wait([one, second, third])
        assert second.cancelled()
        assert endpoint.status().outcomes == {"ok": 2, "cancelled": 1}
        assert now() <= 2.1

    virtual_time.run(main())


def test_a_turn_given_back_gives_back_its_share_of_the_rates() -> None:
    async def main() -> None:
        endpoint = Endpoint("e", Server(), requests_per_minute=60, tokens_per_minute=600)
        turn = endpoint.begin(100, False)
        assert turn is not None
        assert not endpoint.ready(100, False)
        endpoint.give_back(turn)
        assert endpoint.ready(100, False)

    virtual_time.run(main())


def test_a_cancelled_head_of_the_queue_lets_the_next_one_go() -> None:
    async def main() -> None:
        endpoint = Endpoint("e", Server(), tokens_per_minute=6000)
        await endpoint.embed(["x" * 6000], tokens=6000, urgent=True)
        large = asyncio.create_task(endpoint.embed(["x"], tokens=6000, urgent=True))
        small = asyncio.create_task(endpoint.embed(["x"], tokens=1, urgent=False))
        await asyncio.sleep(0.01)
        assert endpoint.status().waiting_urgent == 1
        large.cancel()
        await small
        assert now() <= 2.0  # not the minute that the large one would have waited

    virtual_time.run(main())


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["replay", "urgent", "cancel", "wait"]),
        st.sampled_from(["ok", "throttled", "held", "away", "slow", "rejected", "bug"]),
        st.integers(0, 40),
    ),
    min_size=5,
    max_size=60,
)


@given(STEPS, st.integers(1, 5), st.booleans(), st.sampled_from([None, 600.0]))
@settings(max_examples=150)
def test_slots_are_conserved(
    steps: list[tuple[str, str, int]], concurrency: int, fixed: bool, per_minute: float | None
) -> None:
    errors: dict[str, Callable[[], Exception | None]] = {
        "ok": lambda: None,
        "throttled": lambda: Throttled("busy"),
        "held": lambda: Throttled("busy", retry_after_s=0.5),
        "away": lambda: Unreachable("away"),
        "slow": lambda: Transient("no reply in time"),
        "rejected": lambda: ContentRejected("no"),
        "bug": lambda: RuntimeError("bug"),
    }

    async def main() -> None:
        outcomes = ["ok"]
        server = Server(lines=2, fault=lambda: errors[outcomes[-1]]())
        endpoint = Endpoint(
            "e", server, concurrency=concurrency, fixed_concurrency=fixed, requests_per_minute=per_minute
        )
        tasks: list[asyncio.Task[Embedded]] = []
        for step, outcome, number in steps:
            outcomes.append(outcome)
            if step == "wait":
                await asyncio.sleep(number / 100)
            elif step == "cancel" and tasks:
                tasks[number % len(tasks)].cancel()
            else:
                tasks.append(asyncio.create_task(endpoint.embed(["x"], tokens=1, urgent=step == "urgent")))
            status = endpoint.status()
            assert 0 <= endpoint._replay_in_flight <= status.in_flight <= concurrency
            assert 1 <= status.concurrency <= concurrency
        outcomes.append("ok")
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert len(results) == len(tasks)
        status = endpoint.status()
        assert (status.in_flight, status.waiting_urgent, status.waiting_replay) == (0, 0, 0)
        assert endpoint._replay_in_flight == 0
        assert server.in_flight == 0
        await asyncio.sleep(120.0)
        await endpoint.embed(["x"], tokens=1, urgent=False)  # and it still serves
        assert status.outcomes.get("ok", 0) + 1 == endpoint.status().outcomes["ok"]

    virtual_time.run(main())


def test_busy_seconds_and_tokens_are_counted() -> None:
    async def main() -> None:
        endpoint = Endpoint("e", Server(fixed_s=1.0, each_s=0.0), rank=3)
        await asyncio.gather(*(endpoint.embed(["x" * 7], tokens=5, urgent=True) for _ in range(2)))
        await asyncio.sleep(5.0)
        status = endpoint.status()
        assert (status.name, status.rank, status.tokens) == ("e", 3, 14)
        assert status.busy_s == pytest.approx(1.0)

    virtual_time.run(main())


def test_who_waits_when_it_closes_is_told() -> None:
    async def main() -> None:
        server = Server(fixed_s=5.0)
        endpoint = Endpoint("e", server, concurrency=1)
        tasks = [asyncio.create_task(endpoint.embed(["x"], tokens=1, urgent=False)) for _ in range(3)]
        await asyncio.sleep(1.0)
        await endpoint.close()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results] == [Embedded, Refused, Refused]
        assert server.closed

    virtual_time.run(main())


@pytest.mark.parametrize(
    "options", [{"concurrency": 0}, {"weight": 0.0}, {"requests_per_minute": -1.0}, {"tokens_per_minute": float("inf")}]
)
def test_limits_that_allow_nothing_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        Endpoint("e", Server(), **options)  # type: ignore[arg-type]
