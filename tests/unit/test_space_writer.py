"""Documents into a space: the order of their objects, the lease, retries, doubt, and draining."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from connectors import reserved
from connectors.errors import ContentRejected, IdentityChanged, Overloaded, UnknownOutcome, Unreachable
from connectors.memory.store import MemoryStore
from connectors.protocols import JSON, Record, Space, SpaceObject, SpaceSpec
from streams.documents import Put, doc_hash, key_digest, object_id
from streams.ordering import Event, Lane, Lease, PartitionLedger
from streams.space_writer import DocumentWrite, SpaceWriter
from tests.merge import virtual_time

DEADLINE_S, SETTLE_S = 2.0, 5.0


class Scripted:
    """A `Space` that keeps what it was asked, and answers each call by the next step of a script."""

    def __init__(self, inner: Space) -> None:
        self.inner = inner
        self.name = inner.name
        self.calls: list[str] = []
        self.script: list[Callable[[], Coroutine[Any, Any, None]]] = []
        self.failing: list[Mapping[UUID, Exception]] = []

    async def _step(self, call: str) -> None:
        self.calls.append(f"{asyncio.get_running_loop().time():.1f} {call}")
        if self.script:
            await self.script.pop(0)()

    async def upsert(self, objects: Sequence[SpaceObject]) -> Mapping[UUID, Exception]:
        await self._step(
            "upsert " + " ".join(f"{o.properties['cf_doc_id']}/{o.properties['cf_chunk']}" for o in objects)
        )
        failing = self.failing.pop(0) if self.failing else {}
        return {**failing, **await self.inner.upsert([o for o in objects if o.uuid not in failing])}

    async def delete(self, uuids: Sequence[UUID]) -> None:
        await self._step(f"delete {len(uuids)}")
        await self.inner.delete(uuids)

    async def delete_chunks(self, doc_hashes: Sequence[str], from_chunk: int) -> int:
        await self._step(f"delete_chunks {len(doc_hashes)} from {from_chunk}")
        return await self.inner.delete_chunks(doc_hashes, from_chunk)


class World:
    def __init__(self, *, splits: bool = True) -> None:
        self.store = MemoryStore()
        self.lease = Lease(10.0)
        self.lease.renew(0.0)
        self.ledger = PartitionLedger(0, live_position=0, replaying=False)
        self.ledger.told = False
        self.splits = splits

    async def open(self) -> SpaceWriter:
        await self.store.create_space(SpaceSpec("S", 2, "cosine", "{}"))
        self.space = Scripted(self.store.space("S"))
        return SpaceWriter(
            self.space,  # type: ignore[arg-type]  # it only ever writes
            self.lease,
            splits=self.splits,
            write_deadline_s=DEADLINE_S,
            settle_s=SETTLE_S,
            trouble=lambda _: None,
        )

    def document(self, key: str, chunks: int = 1, ledger: PartitionLedger | None = None) -> DocumentWrite:
        record = Record(0, 7, 0, key.encode(), b"{}")
        digest = key_digest(key.encode())
        event = Event(Lane.LIVE, record, digest, Put(key, ("x",), {}), ledger or self.ledger, check=True)
        objects = []
        for n in range(chunks):
            properties: dict[str, JSON] = {
                reserved.DOC_ID: key, reserved.DOC_HASH: doc_hash(key), reserved.CHUNK: n, reserved.CHUNKS: chunks,
                reserved.SOURCE_HASH: "s", reserved.PARTITION: 0, reserved.OFFSET: 7,
            }  # fmt: skip
            objects.append(SpaceObject(object_id("c", key, n), properties, np.ones(2, np.float32)))
        return DocumentWrite(event, objects)


def fails(error: Exception) -> Callable[[], Coroutine[Any, Any, None]]:
    async def step() -> None:
        raise error

    return step


def hangs(seconds: float) -> Callable[[], Coroutine[Any, Any, None]]:
    async def step() -> None:
        await asyncio.sleep(seconds)

    return step


def run(main: Coroutine[Any, Any, None]) -> None:
    random.seed(1)
    virtual_time.run(main)


def test_chunk_0_is_written_last() -> None:
    async def main() -> None:
        world = World()
        writer = await world.open()
        assert await writer.write([world.document("a", 3), world.document("b")]) == {}
        assert [call.split(" ", 1)[1] for call in world.space.calls] == [
            "upsert a/1 a/2",
            "delete_chunks 1 from 3",
            "delete_chunks 1 from 1",
            "upsert a/0 b/0",
        ]

    run(main())


def test_chunk_0_is_removed_last() -> None:
    async def main() -> None:
        world = World()
        writer = await world.open()
        written = world.document("a", 3)
        await writer.write([written])
        world.space.calls.clear()
        await writer.delete([(written.event, written.objects[0].uuid)])
        assert [call.split(" ", 1)[1] for call in world.space.calls] == ["delete_chunks 1 from 1", "delete 1"]
        assert await world.store.space("S").count() == 0

    run(main())


def test_nothing_looks_for_surplus_chunks_where_there_are_none() -> None:
    async def main() -> None:
        world = World(splits=False)
        writer = await world.open()
        written = world.document("a")
        await writer.write([written])
        await writer.delete([(written.event, written.objects[0].uuid)])
        assert [call.split(" ", 1)[1] for call in world.space.calls] == ["upsert a/0", "delete 1"]

    run(main())


def test_a_refused_document_keeps_its_commit_record_and_the_others_are_stored() -> None:
    async def main() -> None:
        world = World()
        writer = await world.open()
        bad, good = world.document("bad", 2), world.document("good", 2)
        world.space.failing = [{bad.objects[1].uuid: ContentRejected("no")}]
        refused = await writer.write([bad, good])
        assert refused.keys() == {bad.event}
        assert world.space.calls[-1].endswith("upsert good/0")

    run(main())


def test_what_may_pass_is_retried_alone() -> None:
    async def main() -> None:
        world = World(splits=False)
        writer = await world.open()
        first, second = world.document("a"), world.document("b")
        world.space.failing = [{first.objects[0].uuid: Overloaded("disk")}]
        assert await writer.write([first, second]) == {}
        assert [call.split(" ", 1)[1] for call in world.space.calls] == ["upsert a/0 b/0", "upsert a/0"]
        assert not world.ledger.doubts

    run(main())


@pytest.mark.parametrize("first", [True, False])
def test_one_trouble_never_hides_a_doubt(first: bool) -> None:
    async def main() -> None:
        world = World(splits=False)
        world.ledger.told = True
        writer = await world.open()
        a, b = world.document("a"), world.document("b")
        errors: list[Exception] = [UnknownOutcome("?"), Overloaded("disk")]
        errors = errors if first else errors[::-1]
        world.space.failing = [{a.objects[0].uuid: errors[0], b.objects[0].uuid: errors[1]}]
        await writer.write([a, b])
        unknown = a if first else b
        assert unknown.event.digest in world.ledger.doubts

    run(main())


@pytest.mark.parametrize("step", [fails(UnknownOutcome("?")), hangs(60.0)])
def test_after_an_unknown_outcome_the_key_is_in_doubt_and_the_group_told_first(
    step: Callable[[], Coroutine[Any, Any, None]],
) -> None:
    async def main() -> None:
        world = World(splits=False)
        writer = await world.open()
        one = world.document("a")
        world.space.script = [step]
        writing = asyncio.create_task(writer.write([one]))
        await asyncio.sleep(DEADLINE_S + 1.0)
        ((_, doubt),) = world.ledger.doubts.items()
        assert SETTLE_S <= doubt.not_before_s <= SETTLE_S + DEADLINE_S
        assert len(world.space.calls) == 1, "the same write must not be acknowledged while no commit tells of the doubt"
        world.ledger.told = True
        await writing
        assert len(world.space.calls) == 2

    run(main())


def test_trouble_that_carried_nothing_out_leaves_no_doubt() -> None:
    async def main() -> None:
        world = World(splits=False)
        writer = await world.open()
        world.space.script = [fails(Unreachable("away")), fails(Overloaded("full"))]
        await writer.write([world.document("a")])
        assert len(world.space.calls) == 3
        assert not world.ledger.doubts

    run(main())


def test_nothing_is_sent_without_a_lease() -> None:
    async def main() -> None:
        world = World(splits=False)
        writer = await world.open()
        await asyncio.sleep(10.0)
        writing = asyncio.create_task(writer.write([world.document("a")]))
        await asyncio.sleep(30.0)
        assert world.space.calls == []
        world.lease.renew(35.0)
        await writing
        assert len(world.space.calls) == 1

    run(main())


def test_nothing_is_sent_before_the_first_commit_of_the_partition() -> None:
    async def main() -> None:
        world = World(splits=False)
        world.ledger.told = None
        writer = await world.open()
        writing = asyncio.create_task(writer.write([world.document("a")]))
        await asyncio.sleep(5.0)
        assert world.space.calls == []
        world.ledger.told = False
        await writing

    run(main())


def test_nothing_is_sent_for_a_partition_that_was_revoked() -> None:
    async def main() -> None:
        world = World(splits=False)
        writer = await world.open()
        other = PartitionLedger(1, live_position=0, replaying=False)
        other.told = False
        world.space.script = [fails(Unreachable("away"))]
        writing = asyncio.create_task(writer.write([world.document("a"), world.document("b", ledger=other)]))
        await asyncio.sleep(0.05)
        world.ledger.active = False
        await writing
        assert world.space.calls[-1].endswith("upsert b/0")

    run(main())


def test_a_wait_ends_when_all_of_it_was_revoked() -> None:
    async def main() -> None:
        world = World(splits=False)
        writer = await world.open()
        world.lease.renewed_at_s = float("-inf")
        writing = asyncio.create_task(writer.write([world.document("a")]))
        await asyncio.sleep(1.0)
        world.ledger.active = False
        await writing
        assert world.space.calls == []

    run(main())


def test_drain_waits_for_what_is_on_its_way_and_starts_nothing() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        world = World()
        writer = await world.open()
        world.space.script = [hangs(1.5)]
        writing = asyncio.create_task(writer.write([world.document("a", 2)]))
        await asyncio.sleep(0.1)
        assert await writer.drain([world.ledger], 3.0)
        assert loop.time() == pytest.approx(1.5)
        await writing
        assert len(world.space.calls) == 1, "chunk 0 is not written any more"
        assert await writer.drain([PartitionLedger(3, live_position=0, replaying=False)], 1.0)

    run(main())


def test_drain_says_when_something_did_not_end() -> None:
    async def main() -> None:
        world = World(splits=False)
        writer = await world.open()
        world.space.script = [hangs(1.5)]
        writing = asyncio.create_task(writer.write([world.document("a")]))
        await asyncio.sleep(0.1)
        assert not await writer.drain([world.ledger], 0.5)
        await writing

    run(main())


def test_what_nobody_can_wait_out_is_raised() -> None:
    async def main() -> None:
        world = World(splits=False)
        writer = await world.open()
        await world.store.drop_space("S")
        with pytest.raises(IdentityChanged):
            await writer.write([world.document("a")])

    run(main())
