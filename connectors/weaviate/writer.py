"""One space of Weaviate: writing its objects, reading them back and searching them, all at QUORUM.

It must never create a space, take a write for done that was not acknowledged, or leave an id of a call unaccounted for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Final, TypeVar
from uuid import UUID

from grpc import StatusCode  # type: ignore[import-untyped]
from grpc.aio import AioRpcError  # type: ignore[import-untyped]
from weaviate.classes.config import ConsistencyLevel
from weaviate.proto.v1 import aggregate_pb2, base_pb2, batch_delete_pb2, search_get_pb2

from connectors import reserved
from connectors.errors import (
    ContentRejected,
    CrossfadeError,
    Overloaded,
    Terminal,
    Transient,
    UnknownOutcome,
    Unreachable,
)
from connectors.protocols import JSON, Condition, Head, Hit, SpaceObject, Vectors
from connectors.weaviate import wire
from connectors.weaviate.client import Connection, Deadline, Rpc
from connectors.weaviate.encoding import Request, RequestEncoder
from connectors.weaviate.failures import from_text, no_answer, quiet
from connectors.weaviate.schema import Shape, config_of, shape_of
from connectors.weaviate.search import hit_of, nearest

BATCH_OBJECTS: Final = 256
BATCH_BYTES: Final = 8 * 1024 * 1024
"""Bounds of one write request, so that one fits into its deadline; the server's own message limit is larger."""

ERASED_AT_ONCE: Final = 16
IDS: Final = 1 << 128
PAGE: Final = 1000
CURSORS: Final = 4
"""At once. Seen with two cores: two read 1.5 times as much as one, three and four no more; pages from 500 on alike."""
SHORT_PAGE: Final = 50
"""Objects of a page of a scan beside searches: they wait for it for a few milliseconds."""
PAGE_PAUSES_S: Final = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0)
IDS_PER_REQUEST: Final = 500  # far below QUERY_MAXIMUM_RESULTS, which a server may have set lower than 10,000
LONGEST_COUNTED_S: Final = 2.0

Page = tuple[Sequence[search_get_pb2.SearchResult], float]
"""And how many seconds it took."""

Asked = TypeVar("Asked")
Reply = TypeVar("Reply")
Item = TypeVar("Item")


def rest_s(took_s: float, share: float) -> float:
    """How long the store is left to others after a page that took so long, for `share` of the time in all.

    A page that hung counts as one of two seconds.
    """
    return min(took_s, LONGEST_COUNTED_S) * (1.0 / share - 1.0)


class WeaviateSpace:
    """A `Space`. Made by `WeaviateStore.space`, which asks the server nothing: the first call finds out if it is there.

    No part of a write call is sent or waited for once `write_timeout_s` has passed since its start; each read request
    has `read_timeout_s`.
    """

    def __init__(self, connection: Connection, name: str) -> None:
        self.name = name
        self._connection = connection
        self._encoder = RequestEncoder(name)
        self._known_shape: Shape | None = None

    async def heads(self, uuids: Sequence[UUID], *, vectors: bool = False) -> Mapping[UUID, Head]:
        """Vectors come back bit for bit as they were stored, with every metric (Weaviate normalises only its index)."""
        found: dict[UUID, Head] = {}
        for result in await self._fetch(uuids, reserved.HEAD, vectors=vectors):
            vector = wire.vector_of(result) if vectors else None
            uuid = wire.uuid_of(result)
            found[uuid] = reserved.head_of(uuid, wire.properties_of(result), vector)
        return found

    async def properties(self, uuids: Sequence[UUID]) -> Mapping[UUID, Mapping[str, JSON]]:
        """Properties without a value are absent; a date may come without the zeros at the end of its fraction."""
        results = await self._fetch(uuids, tuple((await self._shape()).types))
        return {wire.uuid_of(result): wire.properties_of(result) for result in results}

    async def scan(self, page: int | None = None, share: float = 1.0) -> AsyncIterator[list[Head]]:
        """The server is at work on the next pages while the caller has this one: several cursors, each in its part of
        the ids. They are hashes (DESIGN.md section 5), so that the parts are alike.

        With a `share`, one cursor, which asks for the next page only after a while: searches wait behind what the
        server does at a stretch.
        """
        cursors, most = (CURSORS, PAGE) if share == 1.0 else (1, SHORT_PAGE)
        page = page or most
        bounds = [number * IDS // cursors for number in range(cursors + 1)]
        coming = {self._page(UUID(int=begin), page, share): end for begin, end in pairwise(bounds)}
        try:
            while coming:
                done, _ = await asyncio.wait(coming, return_when=asyncio.FIRST_COMPLETED)
                for one in done:
                    results, took_s = await one
                    end = coming.pop(one)
                    if results and share < 1.0:
                        await asyncio.sleep(rest_s(took_s, share))
                    if results and (last := wire.uuid_of(results[-1])).int < end:
                        coming[self._page(last, page, share)] = end
                    else:  # `end` itself included: the cursor that begins there leaves it out
                        results = [result for result in results if wire.uuid_of(result).int <= end]
                    if results:
                        yield await asyncio.to_thread(_heads, results)  # the loop is free: to send requests, for one
        finally:
            for one in coming:
                one.cancel()
            await asyncio.gather(*coming, return_exceptions=True)

    def _page(self, after: UUID, page: int, share: float) -> asyncio.Task[Page]:
        async def ask() -> Page:
            request = wire.query(self.name, page, reserved.HEAD, after=str(after))
            for pause_s in PAGE_PAUSES_S:  # a scan may have been at it for hours
                begun_s = time.monotonic()
                try:
                    return await self._timed(request)
                except Transient as error:
                    took_s = time.monotonic() - begun_s
                    await asyncio.sleep(max(pause_s, error.retry_after_s or 0.0, rest_s(took_s, share)))
            return await self._timed(request)

        return asyncio.create_task(ask())

    async def _timed(self, request: search_get_pb2.SearchRequest) -> Page:
        begun_s = time.monotonic()
        return await self._search(request), time.monotonic() - begun_s

    async def count(self) -> int:
        """Weaviate offers no consistency level for this one: with replicas it is what the asked node holds."""
        reply = await self._call(
            self._connection.stub.Aggregate,
            aggregate_pb2.AggregateRequest(collection=self.name, objects_count=True),
            self._connection.read_deadline(),
            write=False,
        )
        return int(reply.single_result.objects_count)

    async def search(self, vector: Vectors, limit: int, filters: Sequence[Condition] = ()) -> list[Hit]:
        """Raises WrongModel for a vector of another length, ConfigurationError for a filter that cannot be; the rest
        as the other reads."""
        shape = await self._shape()
        if wrong := reserved.check_vector(vector, shape.dimensions):
            raise wrong
        request = nearest(self.name, shape, vector, limit, filters)
        if limit < 1:
            return []
        results = await self._search(request)
        return [hit_of(result, shape.metric) for result in results]

    async def upsert(self, objects: Sequence[SpaceObject]) -> Mapping[UUID, Exception]:
        """Sent in requests of at most BATCH_OBJECTS and BATCH_BYTES, one after the other, in the given order."""
        assert len({obj.uuid for obj in objects}) == len(objects), "one id twice in one call: which is newer?"
        deadline = self._connection.write_deadline()
        shape = await self._shape()
        failed: dict[UUID, Exception] = {}
        fitting: list[SpaceObject] = []
        for obj in objects:
            if wrong := reserved.check_object(obj, shape.types, shape.dimensions):
                failed[obj.uuid] = wrong
            else:
                fitting.append(obj)
        largest = self._connection.message_bytes - 1024
        most_bytes = min(BATCH_BYTES, largest)
        at = 0
        for request in self._encoder.requests(fitting, most_objects=BATCH_OBJECTS, most_bytes=most_bytes):
            batch = request.objects
            if len(request.message) > largest:
                failed[batch[0].uuid] = ContentRejected(
                    f"an object of {len(request.message)} bytes is above Weaviate's message limit",
                    next_step="make the chunks smaller",
                )
            else:
                try:
                    failed.update(await self._send(request, deadline))
                except Transient as error:
                    if at == 0:
                        raise
                    failed.update((obj.uuid, error) for obj in batch)
                    unsent = Unreachable("not sent: a request before it failed", next_step=error.next_step)
                    failed.update((obj.uuid, unsent) for obj in fitting[at + len(batch) :])
                    break
            at += len(batch)
        return failed

    async def _send(self, request: Request, deadline: Deadline) -> dict[UUID, Exception]:
        reply = await self._call(self._connection.stub.BatchObjects, request.message, deadline, write=True)
        failed: dict[UUID, Exception] = {}
        in_doubt = False
        for fault in reply.errors:
            known = from_text(fault.error)
            in_doubt = in_doubt or known is None
            failed[request.objects[fault.index].uuid] = known or UnknownOutcome(
                f"Weaviate could not say that it stored an object: {quiet(fault.error)}",
                next_step="it is read back and mended by itself; check Weaviate's log",
            )
        if in_doubt and await self._is_gone():
            raise reserved.gone(self.name)
        return failed

    async def delete(self, uuids: Sequence[UUID]) -> None:
        deadline = self._connection.write_deadline()
        for some in _chunks(uuids, IDS_PER_REQUEST):
            await self._remove(wire.with_ids(some), deadline)

    async def erase(self, uuids: Sequence[UUID]) -> None:
        """One request an id. A batch delete finds objects through the inverted index, and a Weaviate that was killed
        may have an object (a scan shows it) that is missing there, and stays so when its vector is written again."""
        use = self._connection.client.collections.use(self.name)
        data = use.with_consistency_level(ConsistencyLevel.QUORUM).data
        turns = asyncio.Semaphore(ERASED_AT_ONCE)

        async def remove(uuid: UUID) -> bool:
            async with turns:
                return await self._connection.rest(data.delete_by_id(uuid), write=True)

        try:
            async with asyncio.timeout(self._connection.settings.write_timeout_s):
                existed = await asyncio.gather(*(remove(uuid) for uuid in uuids))
        except TimeoutError as error:
            raise no_answer("the deletes did not end in time", write=True) from error
        except UnknownOutcome as error:  # what it says of a space that is gone, or read-only, has no code of its own
            if await self._is_gone():
                raise reserved.gone(self.name) from error
            raise await self._not_deleted(len(uuids)) from error
        if not all(existed) and await self._is_gone():
            raise reserved.gone(self.name)

    async def delete_chunks(self, doc_hashes: Sequence[str], from_chunk: int) -> int:
        deadline = self._connection.write_deadline()
        removed = 0
        for some in _chunks(doc_hashes, IDS_PER_REQUEST):
            removed += await self._remove(wire.with_chunks(some, from_chunk), deadline)
        return removed

    async def _remove(self, filters: base_pb2.Filters, deadline: Deadline) -> int:
        """Delete what matches, over and over (one request stops at QUERY_MAXIMUM_RESULTS), until a read finds none."""
        request = batch_delete_pb2.BatchDeleteRequest(
            collection=self.name, filters=filters, consistency_level=wire.QUORUM
        )
        left = wire.query(self.name, 1, (), filters=filters)
        removed = 0
        while True:
            reply = await self._call(self._connection.stub.BatchDelete, request, deadline, write=True)
            removed += reply.successful
            if reply.failed:
                raise await self._not_deleted(reply.failed)
            if not (await self._call(self._connection.stub.Search, left, deadline, write=False)).results:
                return removed
            if not reply.matches:
                raise Overloaded(
                    "Weaviate finds no object to delete where it still reads one",
                    next_step="its replicas disagree: check that all its nodes are up",
                )

    async def _not_deleted(self, failed: int) -> Transient:
        """The answer to a delete says how many objects failed, not why: the state of the shards does."""
        config = self._connection.client.collections.use(self.name).config
        shards = await self._connection.rest(config.get_shards(), write=False)
        if any(shard.status == "READONLY" for shard in shards):
            return Overloaded(
                f"{failed} objects were not deleted: the space {self.name} is read-only",
                next_step="free disk or memory on the server, then set its shards READY",
            )
        return UnknownOutcome(
            f"Weaviate did not delete {failed} objects",
            next_step="it is tried again by itself; check that all its nodes are up",
        )

    async def _fetch(
        self, uuids: Sequence[UUID], properties: Sequence[str], *, vectors: bool = False
    ) -> list[search_get_pb2.SearchResult]:
        found: list[search_get_pb2.SearchResult] = []
        for some in _chunks(list(dict.fromkeys(uuids)), IDS_PER_REQUEST):
            request = wire.query(self.name, len(some), properties, filters=wire.with_ids(some), vectors=vectors)
            found += await self._search(request)
        return found

    async def indexing_queue(self) -> int:
        """Over all nodes, replicas included. Always 0 where the server indexes in the write itself."""
        asked = self._connection.client.cluster.nodes(collection=self.name, output="verbose")
        try:
            nodes = await self._connection.rest(asked, write=False)
        except Terminal as error:
            if await self._is_gone():
                raise reserved.gone(self.name) from error
            raise
        return sum(shard.vector_queue_length for node in nodes for shard in node.shards)

    async def _search(self, request: search_get_pb2.SearchRequest) -> Sequence[search_get_pb2.SearchResult]:
        reply = await self._call(self._connection.stub.Search, request, self._connection.read_deadline(), write=False)
        results: Sequence[search_get_pb2.SearchResult] = reply.results
        return results

    async def _call(self, method: Rpc[Asked, Reply], request: Asked, deadline: Deadline, *, write: bool) -> Reply:
        try:
            return await self._connection.rpc(method, request, deadline, write=write)
        except CrossfadeError as error:
            # The server has no code for a collection it does not know, so we ask it whether it is there.
            if _is_plain(error.__cause__) and await self._is_gone():
                raise reserved.gone(self.name) from error
            raise

    async def _shape(self) -> Shape:
        if self._known_shape is None:
            config = await config_of(self._connection, self.name)
            if config is None:
                raise reserved.gone(self.name)
            self._known_shape = shape_of(config)
        return self._known_shape

    async def _is_gone(self) -> bool:
        try:
            return await config_of(self._connection, self.name) is None
        except Transient:  # we cannot know: the first error stands
            return False


def _heads(results: Sequence[search_get_pb2.SearchResult]) -> list[Head]:
    return [wire.head_of(result) for result in results]


def _is_plain(error: BaseException | None) -> bool:
    return isinstance(error, AioRpcError) and error.code() is StatusCode.UNKNOWN


def _chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    return (items[at : at + size] for at in range(0, len(items), size))
