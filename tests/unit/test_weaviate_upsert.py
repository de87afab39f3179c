"""A call that takes several requests: every id is accounted for, whichever of them fails.

It must never need a server.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from weaviate.proto.v1 import batch_pb2

from connectors import reserved
from connectors.errors import ContentRejected, CrossfadeError, Overloaded, Unreachable, WrongModel
from connectors.protocols import JSON, SpaceObject
from connectors.weaviate.schema import Shape
from connectors.weaviate.writer import BATCH_OBJECTS, WeaviateSpace

Answer = Callable[[int], batch_pb2.BatchObjectsReply]


class FakeConnection:
    """`answer` is asked for each request, by its number. Keeps the ids of each."""

    def __init__(self, answer: Answer, message_bytes: int = 10**7) -> None:
        self.message_bytes = message_bytes
        self.stub = self
        self.sent: list[list[int]] = []
        self._answer = answer

    BatchObjects = None

    def write_deadline(self) -> None:
        return None

    async def rpc(self, _: Any, message: bytes, *__: Any, **___: Any) -> Any:
        request = batch_pb2.BatchObjectsRequest.FromString(message)
        assert len(message) <= self.message_bytes
        self.sent.append([UUID(message.uuid).int for message in request.objects])
        return self._answer(len(self.sent) - 1)


def a_space(connection: FakeConnection) -> WeaviateSpace:
    space = WeaviateSpace(connection, "Docs_v1_1_x")  # type: ignore[arg-type]
    space._known_shape = Shape("cosine", 2, reserved.TYPES)
    return space


def an_object(number: int, text: str = "", dimensions: int = 2) -> SpaceObject:
    properties: dict[str, JSON] = {
        reserved.DOC_ID: str(number),
        reserved.DOC_HASH: "0" * 64,
        reserved.CHUNK: 0,
        reserved.CHUNKS: 1,
        reserved.SOURCE_HASH: "0" * 64,
        reserved.PARTITION: 0,
        reserved.OFFSET: number,
        reserved.TEXT: text,
    }
    return SpaceObject(UUID(int=number), properties, np.ones(dimensions, dtype=np.float32))


def done(_: int) -> batch_pb2.BatchObjectsReply:
    return batch_pb2.BatchObjectsReply()


def failing(at: int, error: CrossfadeError) -> Answer:
    def answer(number: int) -> batch_pb2.BatchObjectsReply:
        if number == at:
            raise error
        return done(number)

    return answer


async def test_all_are_sent_in_order_but_those_that_cannot_be() -> None:
    connection = FakeConnection(done)
    failed = await a_space(connection).upsert([an_object(0), an_object(1, dimensions=3), an_object(2)])
    assert connection.sent == [[0, 2]]
    assert {uuid.int: type(error) for uuid, error in failed.items()} == {1: WrongModel}


async def test_an_object_the_server_names_is_the_one_that_failed() -> None:
    """Also after one of the call was left out, and in the second request."""

    def answer(number: int) -> batch_pb2.BatchObjectsReply:
        faults = [batch_pb2.BatchObjectsReply.BatchError(index=1, error="no nodes available: overloaded")]
        return batch_pb2.BatchObjectsReply(errors=faults if number == 1 else [])

    async def still_there() -> bool:
        return False

    connection = FakeConnection(answer)
    space = a_space(connection)
    space._is_gone = still_there  # type: ignore[method-assign]
    objects = [an_object(number, dimensions=3 if number == 5 else 2) for number in range(BATCH_OBJECTS + 5)]
    failed = await space.upsert(objects)
    assert sorted(uuid.int for uuid in failed) == [5, connection.sent[1][1]]
    assert connection.sent[1][1] == BATCH_OBJECTS + 2


async def test_a_request_that_fails_tells_of_those_never_sent() -> None:
    connection = FakeConnection(failing(1, Overloaded("full")))
    failed = await a_space(connection).upsert([an_object(number) for number in range(3 * BATCH_OBJECTS)])
    assert len(connection.sent) == 2
    kinds = {uuid.int: type(error) for uuid, error in failed.items()}
    second, third = range(BATCH_OBJECTS, 2 * BATCH_OBJECTS), range(2 * BATCH_OBJECTS, 3 * BATCH_OBJECTS)
    assert kinds == {**dict.fromkeys(second, Overloaded), **dict.fromkeys(third, Unreachable)}


async def test_nothing_is_known_when_the_first_request_fails() -> None:
    connection = FakeConnection(failing(0, Overloaded("full")))
    with pytest.raises(Overloaded):
        await a_space(connection).upsert([an_object(number) for number in range(2 * BATCH_OBJECTS)])
    assert len(connection.sent) == 1


async def test_an_object_above_the_message_limit_is_refused_alone() -> None:
    connection = FakeConnection(done, message_bytes=20_000)
    objects = [an_object(0), an_object(1, "x" * 30_000), an_object(2), an_object(3, "x" * 15_000)]
    failed = await a_space(connection).upsert(objects)
    assert {uuid.int: type(error) for uuid, error in failed.items()} == {1: ContentRejected}
    assert connection.sent == [[0], [2, 3]]
