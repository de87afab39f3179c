"""What work passes on its way to the endpoint: nothing while it is shut, so many at once, and nobody waits for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from connectors.errors import Transient
from connectors.memory.embedder import MemoryEmbedder
from streams.encoding import Encoder, Urgency
from streams.valve import Valve
from streams.versions import Envelope
from tests.merge import virtual_time
from tests.pools import pool_of

ENVELOPE = Envelope("memory", "m", "1", 2, ("text",))


def test_nothing_is_sent_while_it_is_shut_and_all_of_it_after() -> None:
    async def main() -> None:
        shut = True
        embedder = MemoryEmbedder(2, max_batch=1)
        encoder = Encoder(ENVELOPE, pool_of(embedder))
        urgency = Urgency("rest", going=lambda: True, valve=Valve(lambda: shut))
        task = asyncio.ensure_future(encoder.encode_each(["a", "b", "c"], urgency))
        await asyncio.sleep(30.0)
        assert not embedder.calls
        shut = False
        assert (await task).vectors.any(axis=1).all()
        assert len(embedder.calls) == 3

    virtual_time.run(main())


def test_what_waits_for_its_turn_at_the_endpoint_is_held_too() -> None:
    async def main() -> None:
        shut = False

        async def slow(call: int, texts: Sequence[str]) -> None:
            await asyncio.sleep(5.0)

        embedder = MemoryEmbedder(2, max_batch=1, fault=slow)
        encoder = Encoder(ENVELOPE, pool_of(embedder, concurrency=1))
        urgency = Urgency("rest", going=lambda: True, valve=Valve(lambda: shut))
        task = asyncio.ensure_future(encoder.encode_each(["a", "b", "c"], urgency))
        await asyncio.sleep(1.0)
        shut = True
        await asyncio.sleep(60.0)
        assert len(embedder.calls) == 1, "the one that was sent is answered, no other is sent"
        shut = False
        await task
        assert sorted(text for call in embedder.calls for text in call) == ["a", "b", "c"]

    virtual_time.run(main())


def test_what_presses_passes_also_when_it_is_shut() -> None:
    async def main() -> None:
        pressing = False
        embedder = MemoryEmbedder(2)
        urgency = Urgency("rest", going=lambda: True, valve=Valve(lambda: True), pressing=lambda: pressing)
        task = asyncio.ensure_future(Encoder(ENVELOPE, pool_of(embedder)).encode_each(["a"], urgency))
        await asyncio.sleep(5.0)
        assert not task.done()
        pressing = True
        await task

    virtual_time.run(main())


def test_so_many_at_once() -> None:
    async def main() -> None:
        inside, most = 0, 0
        limit: int | None = 2
        valve = Valve(most=lambda: limit)

        async def one() -> None:
            nonlocal inside, most
            async with valve.passed(lambda: True, lambda: False):
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(1.0)
                inside -= 1

        await asyncio.gather(*(one() for _ in range(6)))
        assert most == 2
        limit, most = None, 0
        await asyncio.gather(*(one() for _ in range(6)))
        assert most == 6

    virtual_time.run(main())


def test_who_waits_for_nobody_gives_up() -> None:
    async def main() -> None:
        with pytest.raises(Transient):
            async with valve.passed(lambda: False, lambda: False):
                pass

    valve = Valve(lambda: True)
    virtual_time.run(main())
