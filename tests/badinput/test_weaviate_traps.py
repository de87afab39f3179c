"""Weaviate's traps: batches that fail in part, answers that never come, deletes that delete less than they say.

The writer of documents over the in-memory store, where every fault can be had; the connector over a scripted server.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from uuid import UUID

import grpc  # type: ignore[import-untyped]
import pytest
from weaviate import WeaviateAsyncClient
from weaviate.connect import ConnectionParams
from weaviate.proto.v1 import (
    batch_delete_pb2,
    batch_pb2,
    search_get_pb2,
    weaviate_pb2_grpc,
)

from connectors.errors import (
    ContentRejected,
    IdentityChanged,
    Overloaded,
    Throttled,
    Transient,
    UnknownOutcome,
    Unreachable,
    WrongModel,
)
from connectors.memory.store import Effect, Fault, MemoryStore, NoFaults, Write
from connectors.protocols import Record, SpaceSpec
from connectors.weaviate.client import Connection
from connectors.weaviate.settings import WeaviateSettings
from connectors.weaviate.writer import WeaviateSpace
from streams.documents import Put, key_digest
from streams.ordering import Event, Lane, Lease, PartitionLedger
from streams.space_writer import DocumentWrite, SpaceWriter
from tests.contract.test_store import stored

Serve = Callable[["Deleting"], Awaitable[WeaviateSpace]]
SPACE = "Docs_v1_1_0123456789ab"


class Scripted(NoFaults):
    """Answers the first writes as told, the others well; keeps what was sent."""

    def __init__(self, *faults: Callable[[Write], Fault | None]) -> None:
        self.faults = list(faults)
        self.sent: list[Write] = []

    async def before_write(self, write: Write) -> Fault | None:
        self.sent.append(write)
        return self.faults.pop(0)(write) if self.faults else None


class Bench:
    """A space, its writer, and documents a, b and c on their way into it."""

    def __init__(self, *faults: Callable[[Write], Fault | None]) -> None:
        self.script = Scripted(*faults)
        self.store = MemoryStore(self.script)
        self.ledger = PartitionLedger(0, live_position=0, replaying=False)
        self.ledger.told = True  # the commits tell of doubts already: nothing else to wait for
        self.trouble: list[Transient | None] = []
        lease = Lease(3600.0)
        lease.renew(asyncio.get_running_loop().time())
        note, space = self.trouble.append, self.store.space(SPACE)
        self.writer = SpaceWriter(space, lease, splits=False, write_deadline_s=0.3, settle_s=60.0, trouble=note)
        self.writes = [self._document(name, at) for at, name in enumerate("abc")]

    def _document(self, name: str, offset: int) -> DocumentWrite:
        record = Record(0, offset, 0, name.encode(), b"{}")
        event = Event(Lane.LIVE, record, key_digest(name.encode()), Put(name, ("text",), {}), self.ledger, check=True)
        self.ledger.claim([event])
        return DocumentWrite(event, [stored(name, offset=offset)])

    async def write(self) -> dict[str, str]:
        """Refused documents, each with its reason. The space is there already."""
        await self.store.create_space(SpaceSpec(SPACE, 4, "cosine", "{}"))
        refused = await self.writer.write(self.writes)
        return {event.change.doc_id: error.message for event, error in refused.items()}

    async def names(self) -> set[str]:
        return {head.doc_id async for page in self.store.space(SPACE).scan() for head in page}

    def sent(self) -> list[list[str]]:
        return [[str(obj.properties["cf_doc_id"]) for obj in write.objects] for write in self.script.sent]


def uuid(name: str) -> UUID:
    return stored(name).uuid


def fails(error: Transient, effect: Effect) -> Callable[[Write], Fault]:
    return lambda write: Fault(error, effect)


def for_one(error: Exception, name: str = "b") -> Callable[[Write], Fault]:
    return lambda write: Fault(objects={uuid(name): error})


@pytest.mark.parametrize("error", [Overloaded("disk full", retry_after_s=0), Throttled("429", retry_after_s=0)])
async def test_only_the_object_that_failed_is_sent_again(error: Transient) -> None:
    bench = Bench(for_one(error), for_one(error))
    assert await bench.write() == {}
    assert bench.sent() == [["a", "b", "c"], ["b"], ["b"]]
    assert await bench.names() == {"a", "b", "c"}
    assert bench.script.sent[1].objects[0] is bench.script.sent[2].objects[0]


async def test_an_object_refused_for_what_it_is_is_refused_alone() -> None:
    bench = Bench(for_one(ContentRejected("invalid date")))
    assert await bench.write() == {"b": "invalid date"}
    assert bench.sent() == [["a", "b", "c"]]
    assert await bench.names() == {"a", "c"}


@pytest.mark.parametrize("error", [WrongModel("another length"), IdentityChanged("gone")])
async def test_what_is_not_the_objects_own_fault_stops_the_build_and_refuses_no_document(error: Exception) -> None:
    bench = Bench(for_one(error))
    with pytest.raises(type(error)):
        await bench.write()


@pytest.mark.parametrize("effect", ["lost", "applied", "late"])
async def test_an_unknown_outcome_is_retried_identically_and_doubted(effect: Effect) -> None:
    bench = Bench(fails(UnknownOutcome("no answer", retry_after_s=0), effect))
    assert await bench.write() == {}
    first, second = bench.script.sent
    assert first == second
    assert all(one is other for one, other in zip(first.objects, second.objects, strict=True))
    assert await bench.names() == {"a", "b", "c"}
    assert bench.ledger.doubts.keys() == {write.event.digest for write in bench.writes}
    for late in list(bench.store.late):
        bench.store.land(late)  # the same again: nothing changes
    assert await bench.names() == {"a", "b", "c"}


async def test_a_write_beyond_its_deadline_is_an_unknown_outcome() -> None:
    class Slow(Scripted):
        async def before_write(self, write: Write) -> Fault | None:
            if not self.sent:
                self.sent.append(write)
                await asyncio.sleep(3600)
            return await super().before_write(write)

    bench = Bench()
    bench.script = bench.store.faults = Slow()
    assert await bench.write() == {}
    assert bench.ledger.doubts.keys() == {write.event.digest for write in bench.writes}
    assert any(isinstance(error, UnknownOutcome) for error in bench.trouble)


@pytest.mark.parametrize("error", [Overloaded("read-only", retry_after_s=0), Unreachable("away", retry_after_s=0)])
async def test_a_store_that_cannot_write_is_waited_for_and_nothing_is_doubted(error: Transient) -> None:
    bench = Bench(*[fails(error, "lost")] * 5)
    assert await bench.write() == {}
    assert len(bench.script.sent) == 6
    assert bench.ledger.doubts == {}
    assert bench.trouble[-1] is None
    await bench.writer.delete([(write.event, write.objects[0].uuid) for write in bench.writes])
    assert await bench.names() == set()


# the connector's deletes, against a server that answers as told


class Deleting(weaviate_pb2_grpc.WeaviateServicer):
    """Holds `left` objects; each delete takes `at_once` of them and says `says` (matches, successful, failed)."""

    def __init__(self, left: int, at_once: int, says: Callable[[int], tuple[int, int, int]]) -> None:
        self.left, self.at_once, self.says = left, at_once, says
        self.deletes = 0

    async def BatchDelete(self, request: object, context: object) -> batch_delete_pb2.BatchDeleteReply:  # noqa: N802
        self.deletes += 1
        taken = min(self.left, self.at_once)
        self.left -= taken
        matches, successful, failed = self.says(taken)
        return batch_delete_pb2.BatchDeleteReply(matches=matches, successful=successful, failed=failed)

    async def Search(self, request: object, context: object) -> search_get_pb2.SearchReply:  # noqa: N802
        return search_get_pb2.SearchReply(results=[search_get_pb2.SearchResult()] if self.left else [])

    async def BatchObjects(self, request: object, context: object) -> batch_pb2.BatchObjectsReply:  # noqa: N802
        raise AssertionError("nothing is written here")


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    closing: list[Callable[[], Awaitable[None]]] = []

    async def begin(servicer: Deleting) -> WeaviateSpace:
        server = grpc.aio.server()
        weaviate_pb2_grpc.add_WeaviateServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        settings = WeaviateSettings("127.0.0.1:1", f"127.0.0.1:{port}", connect_timeout_s=5, write_timeout_s=5)
        client = WeaviateAsyncClient(ConnectionParams.from_params("127.0.0.1", 1, False, "127.0.0.1", port, False))
        connection = Connection(settings, client, grpc.aio.insecure_channel(f"127.0.0.1:{port}"), 1_000_000)
        closing.extend([lambda: connection.close(), lambda: server.stop(None)])
        return WeaviateSpace(connection, SPACE)

    yield begin
    for close in closing:
        await close()


IDS: Sequence[UUID] = [uuid("a")]


async def test_a_truncated_delete_is_repeated_until_none_is_left(serve: Serve) -> None:
    server = Deleting(25, 10, lambda taken: (taken, taken, 0))
    space = await serve(server)
    assert await space.delete_chunks(["0" * 64], 1) == 25
    assert server.deletes == 3
    assert server.left == 0


async def test_a_delete_that_claims_success_is_confirmed_by_a_read(serve: Serve) -> None:
    server = Deleting(1, 0, lambda taken: (0, 0, 0))
    space = await serve(server)
    with pytest.raises(Overloaded, match="still reads one"):
        await space.delete(IDS)


async def test_a_delete_of_nothing_is_done(serve: Serve) -> None:
    server = Deleting(0, 10, lambda taken: (0, 0, 0))
    space = await serve(server)
    await space.delete(IDS)
    assert server.deletes == 1
