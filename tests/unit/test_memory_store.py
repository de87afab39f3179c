"""The faults the in-memory store can be given: a simulation stands on what they promise.

It must never test what the contract suite tests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from uuid import UUID, uuid4

import numpy as np
import pytest

from connectors import reserved
from connectors.errors import IdentityChanged, Overloaded, UnknownOutcome, Unreachable
from connectors.memory.store import Effect, Fault, MemorySpace, MemoryStore, NoFaults, Write
from connectors.protocols import SpaceObject, SpaceSpec


class Once(NoFaults):
    """This fault for the next write, then none."""

    def __init__(self, fault: Fault) -> None:
        self.fault: Fault | None = fault
        self.seen: list[Write] = []

    async def before_write(self, write: Write) -> Fault | None:
        self.seen.append(write)
        fault, self.fault = self.fault, None
        return fault


def stored(chunk: int = 0, offset: int = 1) -> SpaceObject:
    properties: Mapping[str, str | int] = {
        reserved.DOC_ID: "a",
        reserved.DOC_HASH: "h",
        reserved.CHUNK: chunk,
        reserved.CHUNKS: 1,
        reserved.SOURCE_HASH: "s",
        reserved.PARTITION: 0,
        reserved.OFFSET: offset,
    }
    return SpaceObject(UUID(int=chunk), properties, np.ones(2, dtype=np.float32))


@pytest.fixture
async def store() -> MemoryStore:
    store = MemoryStore()
    await store.create_space(SpaceSpec("S", 2, "cosine", "{}"))
    return store


@pytest.fixture
def space(store: MemoryStore) -> MemorySpace:
    return store.space("S")


@pytest.mark.parametrize(("effect", "count"), [("lost", 0), ("applied", 1), ("late", 0)])
async def test_a_write_in_doubt(store: MemoryStore, space: MemorySpace, effect: Effect, count: int) -> None:
    store.faults = Once(Fault(UnknownOutcome("no answer"), effect))
    with pytest.raises(UnknownOutcome):
        await space.upsert([stored()])
    assert await space.count() == count
    assert len(store.late) == (effect == "late")


async def test_a_late_write_lands_on_what_is_there_then(store: MemoryStore, space: MemorySpace) -> None:
    store.faults = Once(Fault(UnknownOutcome("no answer"), "late"))
    with pytest.raises(UnknownOutcome):
        await space.upsert([stored(offset=1)])
    await space.upsert([stored(offset=2), stored(1), stored(2)])
    (late,) = store.late
    store.land(late)
    assert store.late == []
    assert (await space.heads([UUID(int=0)]))[UUID(int=0)].offset == 1
    store.faults = Once(Fault(UnknownOutcome("no answer"), "late"))
    with pytest.raises(UnknownOutcome):
        await space.delete_chunks(["h"], 1)
    await space.upsert([stored(3)])
    store.land(store.late[0])
    assert await space.count() == 1, "the delete also takes the chunk that came after it was sent"


async def test_a_late_write_never_brings_a_space_back(store: MemoryStore, space: MemorySpace) -> None:
    store.faults = Once(Fault(UnknownOutcome("no answer"), "late"))
    with pytest.raises(UnknownOutcome):
        await space.upsert([stored()])
    await store.drop_space("S")
    store.land(store.late[0])
    assert await store.spaces() == []
    with pytest.raises(IdentityChanged):
        await space.count()


async def test_objects_can_fail_one_by_one(store: MemoryStore, space: MemorySpace) -> None:
    error = Overloaded("read-only")
    store.faults = Once(Fault(objects={UUID(int=1): error}))
    assert await space.upsert([stored(0), stored(1)]) == {UUID(int=1): error}
    assert set(await space.heads([UUID(int=0), UUID(int=1)])) == {UUID(int=0)}


async def test_an_answer_can_be_lost_after_the_effect(store: MemoryStore, space: MemorySpace) -> None:
    class Lose(NoFaults):
        async def after_write(self, write: Write) -> None:
            raise UnknownOutcome("no answer")

    store.faults = Lose()
    with pytest.raises(UnknownOutcome):
        await space.upsert([stored()])
    assert await space.count() == 1


async def test_reads_can_fail(store: MemoryStore, space: MemorySpace) -> None:
    class Away(NoFaults):
        async def before_read(self, space: str) -> None:
            raise Unreachable("away")

    store.faults = Away()
    for call in (space.count(), space.heads([uuid4()]), space.properties([uuid4()])):
        with pytest.raises(Unreachable):
            await call


async def test_a_space_dropped_while_a_write_is_held_back_refuses_it(store: MemoryStore, space: MemorySpace) -> None:
    gate = asyncio.Event()

    class Hold(NoFaults):
        async def before_write(self, write: Write) -> Fault | None:
            await gate.wait()
            return None

    store.faults = Hold()
    write = asyncio.create_task(space.upsert([stored()]))
    await asyncio.sleep(0)
    await store.drop_space("S")
    gate.set()
    with pytest.raises(IdentityChanged):
        await write
    assert await store.spaces() == []


async def test_what_is_stored_cannot_be_changed_from_outside(space: MemorySpace) -> None:
    obj = stored()
    await space.upsert([obj])
    obj.vector[0] = 9
    kept = (await space.heads([obj.uuid], vectors=True))[obj.uuid].vector
    assert kept is not None
    kept[1] = 9
    again = (await space.heads([obj.uuid], vectors=True))[obj.uuid].vector
    assert again is not None
    assert again.tolist() == [1, 1]
