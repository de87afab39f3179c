"""A pool in virtual time: ranks, weights, overflow, lanes, fallback and return, and what is raised when all fail."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.embedders.endpoint import Endpoint
from connectors.embedders.pool import EndpointPool, Served, Withheld
from connectors.errors import (
    AccessDenied,
    ConfigurationError,
    ContentRejected,
    CrossfadeError,
    NotFound,
    Refused,
    Terminal,
    Throttled,
    Transient,
    Unreachable,
    WrongModel,
)
from tests.merge import virtual_time
from tests.unit.test_endpoint import Load, Server, now


async def ask(pool: EndpointPool, *, urgent: bool = False, lane: str | None = None) -> Served:
    return await pool.embed(["x" * 10], tokens=10, urgent=urgent, lane_or_tier=lane)


def failing(*errors: Exception | None) -> Callable[[], Exception | None]:
    """These in turn, then none."""
    left = list(errors)
    return lambda: left.pop(0) if left else None


def always(error: Exception) -> Callable[[], Exception | None]:
    return lambda: error


def test_calls_are_shared_by_weight() -> None:
    async def main() -> None:
        servers = [Server(), Server(), Server()]
        weights = (5.0, 2.0, 1.0)
        pool = EndpointPool(
            [Endpoint(f"e{n}", server, weight=weights[n]) for n, server in enumerate(servers)],
        )
        for _ in range(80):
            await ask(pool)
        assert [len(server.began_s) for server in servers] == [50, 20, 10]

    virtual_time.run(main())


def test_the_lowest_rank_serves_alone_and_calls_wait_for_it() -> None:
    async def main() -> None:
        own, other = Server(), Server()
        pool = EndpointPool([Endpoint("other", other, rank=1), Endpoint("own", own, concurrency=2)])
        await asyncio.gather(*(ask(pool) for _ in range(30)))
        assert len(own.began_s) == 30
        assert not other.began_s

    virtual_time.run(main())


def test_overflow_takes_what_finds_no_free_slot() -> None:
    async def main() -> None:
        own, other = Server(lines=2, fixed_s=1.0), Server(fixed_s=1.0)
        pool = EndpointPool(
            [
                Endpoint("own", own, concurrency=3, fixed_concurrency=True),
                Endpoint("other", other, rank=1, overflow=True, concurrency=5, fixed_concurrency=True),
            ]
        )
        await asyncio.gather(*(ask(pool) for _ in range(4)))
        assert (len(own.began_s), len(other.began_s)) == (2, 2)
        began_s = now()
        await asyncio.gather(*(ask(pool) for _ in range(12)))  # six at once, whichever is free first
        assert now() - began_s == pytest.approx(2.0, abs=0.01)
        assert (len(own.began_s), len(other.began_s)) == (6, 10)

    virtual_time.run(main())


def test_overflow_takes_nothing_of_what_only_waits_for_the_rate() -> None:
    async def main() -> None:
        own, other = Server(), Server()
        pool = EndpointPool(
            [Endpoint("own", own, requests_per_minute=600), Endpoint("other", other, rank=1, overflow=True)]
        )
        for _ in range(20):
            await ask(pool)
        assert (len(own.began_s), len(other.began_s)) == (20, 0)

    virtual_time.run(main())


def test_fallback_and_return() -> None:
    async def main() -> None:
        down = False
        own = Server(lines=16, fault=lambda: Unreachable("no route") if down else None)
        other = Server(lines=16)
        pool = EndpointPool([Endpoint("own", own), Endpoint("other", other, rank=1)])
        load = Load(lambda texts, tokens, urgent: pool.embed(texts, tokens=tokens, urgent=urgent), workers=20)
        async with asyncio.TaskGroup() as group:
            group.create_task(load.run(100.0))
            await asyncio.sleep(20.0)
            assert not other.began_s
            down = True
            asked = len(own.began_s)
            await asyncio.sleep(30.0)
            assert pool.status()[0].state == "open"
            assert len(own.began_s) - asked <= 20 + 5  # those in flight, and a probe after 1, 2, 4, 8 and 16 s
            assert len(other.began_s) > 100
            down = False
            await asyncio.sleep(33.0)  # the pause of then is at most 32 s
            assert pool.status()[0].state == "closed"
            used = len(other.began_s)
            await asyncio.sleep(16.0)
            assert len(other.began_s) - used <= 20
        assert load.refused == 0
        assert pool.status()[0].outcomes["failed"] <= 25  # and none of them reached a caller

    virtual_time.run(main())


def test_a_call_that_fails_is_tried_elsewhere_at_once_and_once_only() -> None:
    async def main() -> None:
        servers = [Server(fault=lambda: Transient("no reply in time")) for _ in range(3)]
        servers[1].fault = lambda: Throttled("busy", retry_after_s=2.0)
        pool = EndpointPool([Endpoint(f"e{n}", server, rank=n) for n, server in enumerate(servers)])
        with pytest.raises(Transient, match="no reply in time"):
            await ask(pool)
        assert [len(server.began_s) for server in servers] == [1, 1, 1]
        assert now() < 0.01
        servers[2].fault = failing()
        await ask(pool)
        assert [len(server.began_s) for server in servers] == [2, 1, 2]  # the second asked to be left alone

    virtual_time.run(main())


def test_the_soonest_trouble_is_raised() -> None:
    async def main() -> None:
        servers = [Server(fault=always(Throttled("busy", retry_after_s=wait_s))) for wait_s in (30.0, 5.0, 60.0)]
        pool = EndpointPool([Endpoint(f"e{n}", server) for n, server in enumerate(servers)])
        with pytest.raises(Throttled) as raised:
            await ask(pool)
        assert raised.value.retry_after_s == 5.0
        await asyncio.sleep(1.0)
        with pytest.raises(Throttled) as raised:  # nobody is sent to, and it is said for how long
            await ask(pool)
        assert raised.value.retry_after_s == pytest.approx(4.0, abs=0.1)
        assert raised.value.next_step
        assert [len(server.began_s) for server in servers] == [1, 1, 1]

    virtual_time.run(main())


def test_all_circuits_open_is_told_at_once() -> None:
    async def main() -> None:
        servers = [Server(fault=lambda: Unreachable("no route")) for _ in range(2)]
        pool = EndpointPool([Endpoint(f"e{n}", server, rank=n) for n, server in enumerate(servers)])
        for _ in range(5):
            with pytest.raises(Unreachable):
                await ask(pool)
        at_s = now()
        with pytest.raises(Unreachable, match="every endpoint of e0, e1 is away") as raised:
            await ask(pool, urgent=True)
        assert now() == at_s
        assert raised.value.retry_after_s == pytest.approx(1.0, abs=0.01)
        assert [len(server.began_s) for server in servers] == [5, 5]
        for server in servers:
            server.fault = failing()
        await asyncio.sleep(raised.value.retry_after_s or 0.0)
        await ask(pool)

    virtual_time.run(main())


def test_who_waits_at_an_endpoint_that_goes_away_goes_elsewhere() -> None:
    async def main() -> None:
        own = Server(fixed_s=1.0, fault=failing(None, None, Throttled("busy", retry_after_s=600.0)))
        other = Server()
        pool = EndpointPool([Endpoint("own", own, concurrency=3), Endpoint("other", other, rank=1)])
        await asyncio.gather(*(ask(pool) for _ in range(20)))
        assert now() < 10.0
        assert len(own.began_s) == 4  # one beside the one that was refused
        assert len(other.began_s) == 17

    virtual_time.run(main())


def test_who_waits_goes_to_a_better_endpoint_that_is_back() -> None:
    async def main() -> None:
        own = Server(fault=failing(Throttled("busy", retry_after_s=5.0)))
        other = Server(fixed_s=100.0)
        pool = EndpointPool([Endpoint("own", own, concurrency=1), Endpoint("other", other, rank=1, concurrency=1)])
        tasks = [asyncio.create_task(ask(pool)) for _ in range(4)]
        done, _ = await asyncio.wait(tasks, timeout=10.0)
        assert len(done) == 3
        assert min(own.began_s[1:]) == pytest.approx(5.0, abs=0.01)
        await asyncio.gather(*tasks)

    virtual_time.run(main())


@pytest.mark.parametrize(
    "error", [AccessDenied("the key"), WrongModel("shape"), NotFound("path"), ConfigurationError("redirect")]
)
def test_a_misconfigured_endpoint_is_taken_out_while_others_remain(
    error: CrossfadeError, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        bad, good = Server(fault=lambda: error), Server()
        pool = EndpointPool([Endpoint("bad", bad), Endpoint("good", good, rank=1)])
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                await ask(pool)
        assert len(bad.began_s) == 1
        assert pool.status()[0].refused == f"{type(error).__name__}: {error.message}"
        assert [record.getMessage().split(":")[0] for record in caplog.records] == ["endpoint bad is taken out"]
        good.fault = lambda: error
        for _ in range(2):  # the last one is asked again: a key may have been mended
            with pytest.raises(type(error)):
                await ask(pool)
        assert pool.status()[1].refused is None
        good.fault = bad.fault = failing()
        pool.admit("bad")
        await ask(pool)
        assert len(bad.began_s) == 2

    virtual_time.run(main())


def test_rejected_content_and_other_ends_are_raised_as_they_are() -> None:
    async def main() -> None:
        other = Server()
        for error in (ContentRejected("too long"), Terminal("cannot be read"), RuntimeError("a bug")):
            pool = EndpointPool([Endpoint("e", Server(fault=failing(error))), Endpoint("other", other, rank=1)])
            with pytest.raises(type(error)) as raised:
                await ask(pool)
            assert raised.value is error
            assert pool.status()[0].refused is None
        assert not other.began_s

    virtual_time.run(main())


def test_excluded_endpoints_get_nothing_until_admitted() -> None:
    async def main() -> None:
        servers = [Server(fixed_s=1.0), Server(fixed_s=1.0)]
        pool = EndpointPool([Endpoint(f"e{n}", server, concurrency=1) for n, server in enumerate(servers)])
        tasks = [asyncio.create_task(ask(pool)) for _ in range(6)]
        await asyncio.sleep(0.5)
        pool.exclude("e0", "another model answers")
        await asyncio.gather(*tasks)
        assert [len(server.began_s) for server in servers] == [1, 5]
        pool.exclude("e1", "another model answers")
        with pytest.raises(WrongModel, match="e0: another model answers; e1: another model answers"):
            await ask(pool)
        pool.admit("e0")
        await ask(pool)
        assert [len(server.began_s) for server in servers] == [2, 5]
        with pytest.raises(NotFound, match="no endpoint is named e7"):
            pool.admit("e7")

    virtual_time.run(main())


def test_waiting_calls_hear_of_an_admitted_endpoint() -> None:
    async def main() -> None:
        slow, quick = Server(fixed_s=100.0), Server()
        pool = EndpointPool([Endpoint("slow", slow, concurrency=1), Endpoint("quick", quick)])
        pool.exclude("quick", "canary")
        tasks = [asyncio.create_task(ask(pool)) for _ in range(5)]
        await asyncio.sleep(1.0)
        pool.admit("quick")
        done, waits = await asyncio.wait(tasks, timeout=1.0)
        assert (len(done), len(waits)) == (4, 1)

    virtual_time.run(main())


def test_lanes_bind_endpoints() -> None:
    async def main() -> None:
        dear, own = Server(), Server()
        pool = EndpointPool([Endpoint("dear", dear, lanes=frozenset({"high"})), Endpoint("own", own, rank=1)])
        for lane, at in (("high", dear), ("bulk", own), (None, own)):
            before = len(at.began_s)
            await ask(pool, lane=lane)
            assert len(at.began_s) == before + 1
        dear.fault = failing(Transient("away"))
        await ask(pool, lane="high")
        assert len(own.began_s) == 3
        bound = EndpointPool([Endpoint("dear", dear, lanes=frozenset({"high"}))])
        await ask(bound)
        with pytest.raises(ConfigurationError, match="no endpoint serves bulk"):
            await ask(bound, lane="bulk")

    virtual_time.run(main())


def test_live_calls_go_first_in_a_pool_too() -> None:
    async def main() -> None:
        servers = [Server(lines=4), Server(lines=4)]
        pool = EndpointPool(
            [Endpoint(f"e{n}", server, concurrency=4, fixed_concurrency=True) for n, server in enumerate(servers)]
        )
        load = Load(lambda texts, tokens, urgent: pool.embed(texts, tokens=tokens, urgent=urgent))
        async with asyncio.TaskGroup() as group:
            group.create_task(load.run(30.0))
            for _ in range(100):
                await asyncio.sleep(0.2)
                began_s = now()
                await ask(pool, urgent=True)
                assert now() - began_s <= 0.052

    virtual_time.run(main())


def test_a_storm_of_cancels_leaks_nothing_in_any_queue() -> None:
    async def main() -> None:
        chance = random.Random(5)
        endpoints = [Endpoint(f"e{n}", Server(lines=2), concurrency=2, overflow=True, rank=n) for n in range(3)]
        pool = EndpointPool(endpoints)
        for _ in range(30):
            tasks = [asyncio.create_task(ask(pool, urgent=chance.random() < 0.3)) for _ in range(40)]
            await asyncio.sleep(chance.choice([0.0, 0.03, 0.051, 0.06]))
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            assert all(status.in_flight == 0 for status in pool.status())
            assert not any(endpoint._urgent or endpoint._replay for endpoint in endpoints)

    virtual_time.run(main())


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["replay", "urgent", "cancel", "wait", "exclude", "admit"]),
        st.sampled_from(["ok", "throttled", "held", "away", "denied"]),
        st.integers(0, 40),
    ),
    min_size=5,
    max_size=50,
)


@given(STEPS, st.lists(st.tuples(st.integers(0, 1), st.integers(1, 3), st.booleans()), min_size=1, max_size=3))
@settings(max_examples=150)
def test_slots_are_conserved_and_every_call_ends(
    steps: list[tuple[str, str, int]], shapes: list[tuple[int, int, bool]]
) -> None:
    errors: dict[str, Callable[[], Exception | None]] = {
        "ok": lambda: None,
        "throttled": lambda: Throttled("busy"),
        "held": lambda: Throttled("busy", retry_after_s=0.5),
        "away": lambda: Unreachable("away"),
        "denied": lambda: AccessDenied("key"),
    }

    async def main() -> None:
        outcomes = ["ok"] * len(shapes)
        servers = [Server(lines=2, fault=lambda n=n: errors[outcomes[n]]()) for n in range(len(shapes))]  # type: ignore[misc]
        endpoints = [
            Endpoint(f"e{n}", servers[n], rank=rank, concurrency=most, overflow=overflow)
            for n, (rank, most, overflow) in enumerate(shapes)
        ]
        pool = EndpointPool(endpoints)
        tasks: list[asyncio.Task[Served]] = []
        for step, outcome, number in steps:
            outcomes[number % len(shapes)] = outcome
            name = f"e{number % len(shapes)}"
            match step:
                case "wait":
                    await asyncio.sleep(number / 100)
                case "cancel":
                    if tasks:
                        tasks[number % len(tasks)].cancel()
                case "exclude":
                    pool.exclude(name, "canary")
                case "admit":
                    pool.admit(name)
                case _:
                    tasks.append(asyncio.create_task(ask(pool, urgent=step == "urgent")))
            for endpoint in endpoints:
                assert 0 <= endpoint._replay_in_flight <= endpoint._in_flight <= endpoint._concurrency.most
        outcomes[:] = ["ok"] * len(shapes)
        await asyncio.gather(*tasks, return_exceptions=True)  # in virtual time, a lost wake-up is Stuck
        for endpoint, server in zip(endpoints, servers, strict=True):
            assert (endpoint._in_flight, endpoint._replay_in_flight, server.in_flight) == (0, 0, 0)
            assert not endpoint._urgent
            assert not endpoint._replay
            pool.admit(endpoint.name)
        await asyncio.sleep(120.0)
        for _ in range(3):
            await ask(pool)  # one by one: some may be probes

    virtual_time.run(main())


def test_facts_batch_and_close() -> None:
    async def main() -> None:
        servers = [Server(max_batch=64), Server(max_batch=8)]
        pool = EndpointPool([Endpoint("first", servers[0], rank=1), Endpoint("second", servers[1])])
        assert pool.max_batch == 8
        assert (await pool.facts()).model == "simulated"
        await pool.close()
        assert all(server.closed for server in servers)
        with pytest.raises(Refused, match="closed"):
            await ask(pool)

    virtual_time.run(main())


@pytest.mark.parametrize("names", [[], ["a", "a"]])
def test_endpoints_have_names_of_their_own(names: list[str]) -> None:
    with pytest.raises(ConfigurationError):
        EndpointPool([Endpoint(name, Server()) for name in names])


def test_a_tier_goes_to_its_endpoints_and_to_those_of_the_whole_replay() -> None:
    async def main() -> None:
        dear, cheap = Server(), Server()
        pool = EndpointPool(
            [
                Endpoint("dear", dear, lanes=frozenset({"live", "listed"})),
                Endpoint("cheap", cheap, lanes=frozenset({"replay"}), rank=1),
            ]
        )
        await ask(pool, lane="listed")
        await ask(pool, lane="live", urgent=True)
        assert (len(dear.began_s), len(cheap.began_s)) == (2, 0)
        await ask(pool, lane="newest")
        await ask(pool, lane="rest")
        assert (len(dear.began_s), len(cheap.began_s)) == (2, 2)
        with pytest.raises(ConfigurationError):
            await ask(pool, lane="query", urgent=True)

    virtual_time.run(main())


def test_a_turn_that_may_not_go_is_given_back_and_nothing_sent() -> None:
    async def main() -> None:
        server = Server()
        pool = EndpointPool([Endpoint("e", server, concurrency=1, fixed_concurrency=True)])
        with pytest.raises(Withheld):
            await pool.embed(["x"], tokens=1, urgent=False, may_go=lambda: False)
        assert not server.began_s
        await ask(pool)
        assert len(server.began_s) == 1

    virtual_time.run(main())
