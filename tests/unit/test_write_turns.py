"""What waits for its turn at the space goes together: bounded, in order, each caller with its own outcomes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import cast
from uuid import UUID

import numpy as np
import pytest

from connectors.errors import Overloaded
from connectors.protocols import SpaceObject
from streams.ordering import Event, Outcome
from streams.space_writer import DocumentWrite
from streams.write_turns import Outcomes, WriteTurns

MOST_OBJECTS = 256


class Space:
    """Each call waits until `go` lets it; keeps what came in each."""

    def __init__(self) -> None:
        self.calls: list[list[object]] = []
        self.going: list[asyncio.Future[None]] = []
        self.running = 0

    async def store(self, writes: Sequence[DocumentWrite]) -> Outcomes:
        self.calls.append([write.event for write in writes])
        self.going.append(asyncio.get_running_loop().create_future())
        self.running += 1
        try:
            await self.going[-1]
        finally:
            self.running -= 1
        return [
            (write.event, Outcome.DEAD_LETTER if "bad" in str(write.event) else Outcome.WRITTEN) for write in writes
        ]

    def go(self, call: int, error: Exception | None = None) -> None:
        if error is None:
            self.going[call].set_result(None)
        else:
            self.going[call].set_exception(error)


def writes(*names: str, objects: int = 1) -> list[DocumentWrite]:
    one = SpaceObject(UUID(int=0), {}, np.zeros(1, dtype=np.float32))
    return [DocumentWrite(cast("Event", name), [one] * objects) for name in names]


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def start(turns: WriteTurns, *names: str, objects: int = 1) -> asyncio.Task[Outcomes]:
    return asyncio.ensure_future(turns.store(writes(*names, objects=objects)))


async def test_what_can_go_goes_at_once_and_the_rest_together() -> None:
    space = Space()
    turns = WriteTurns(asyncio.Semaphore(2), space.store, MOST_OBJECTS)
    tasks = []
    for number in range(5):
        tasks.append(start(turns, f"{number}a", f"{number}b"))
        await settle()
    assert space.calls == [["0a", "0b"], ["1a", "1b"]], "nothing waits while there is a turn"
    space.go(1)
    await settle()
    assert space.calls[2:] == [["2a", "2b", "3a", "3b", "4a", "4b"]], "in the order it came"
    space.go(0)
    space.go(2)
    outcomes = await asyncio.gather(*tasks)
    assert [[str(event) for event, _ in one] for one in outcomes] == [[f"{n}a", f"{n}b"] for n in range(5)]


async def test_a_turn_is_not_spent_on_what_somebody_took_along() -> None:
    space = Space()
    turns = WriteTurns(asyncio.Semaphore(2), space.store, MOST_OBJECTS)
    tasks = [start(turns, name) for name in ("a", "b", "c", "d")]
    await settle()
    space.go(0)
    await settle()
    assert space.calls[2] == ["c", "d"]
    tasks.append(start(turns, "e"))
    await settle()
    assert space.running == 2
    space.go(1)
    await settle()
    assert space.calls[3] == ["e"]
    for call in (2, 3):
        space.go(call)
    await asyncio.gather(*tasks)


async def test_a_call_is_bounded() -> None:
    space = Space()
    turns = WriteTurns(asyncio.Semaphore(1), space.store, MOST_OBJECTS)
    names = [str(number) for number in range(7)]
    tasks = [start(turns, name, objects=MOST_OBJECTS // 2) for name in names[:6]]
    tasks.append(start(turns, names[6], objects=3 * MOST_OBJECTS))
    for call in range(5):
        await settle()
        space.go(call)
    await asyncio.gather(*tasks)
    assert space.calls == [["0"], ["1", "2"], ["3", "4"], ["5"], ["6"]]


async def test_each_hears_of_its_own() -> None:
    space = Space()
    turns = WriteTurns(asyncio.Semaphore(1), space.store, MOST_OBJECTS)
    tasks = [start(turns, name) for name in ("a", "b", "bad")]
    await settle()
    space.go(0)
    await settle()
    space.go(1)
    assert [(str(event), outcome) for one in await asyncio.gather(*tasks) for event, outcome in one] == [
        ("a", Outcome.WRITTEN),
        ("b", Outcome.WRITTEN),
        ("bad", Outcome.DEAD_LETTER),
    ]


async def test_what_went_together_fails_together_and_the_next_goes() -> None:
    space = Space()
    turns = WriteTurns(asyncio.Semaphore(1), space.store, MOST_OBJECTS)
    tasks = [start(turns, name) for name in ("a", "b", "c")]
    await settle()
    tasks.append(start(turns, "d", objects=MOST_OBJECTS))
    space.go(0)
    await settle()
    space.go(1, Overloaded("full"))
    await settle()
    space.go(2)
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(one) for one in found] == [list, Overloaded, Overloaded, list]


@pytest.mark.parametrize("whose", [1, 2])
async def test_who_is_cancelled_while_it_waits_is_not_written(whose: int) -> None:
    space = Space()
    turns = WriteTurns(asyncio.Semaphore(1), space.store, MOST_OBJECTS)
    tasks = [start(turns, name) for name in ("a", "b", "c")]
    await settle()
    tasks[whose].cancel()
    await settle()
    space.go(0)
    await settle()
    assert space.calls[1] == [["c"], ["b"]][whose - 1]
    space.go(1)
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(one) for one in found].count(asyncio.CancelledError) == 1


async def test_all_end_when_the_one_that_writes_is_cancelled() -> None:
    space = Space()
    turns = WriteTurns(asyncio.Semaphore(1), space.store, MOST_OBJECTS)
    tasks = [start(turns, name) for name in ("a", "b", "c")]
    await settle()
    space.go(0)
    await settle()
    tasks[1].cancel()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(one) for one in found] == [list, asyncio.CancelledError, asyncio.CancelledError]
    assert space.running == 0
