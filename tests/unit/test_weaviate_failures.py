"""Every failure of Weaviate's client, gRPC and httpx becomes one of ours, and doubt is never called certainty.

It must never need a Weaviate: a gRPC server of the test's own stands in where the wire matters.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable
from typing import Protocol

import grpc  # type: ignore[import-untyped]
import httpx
import pytest
from weaviate import WeaviateAsyncClient, exceptions
from weaviate.connect import ConnectionParams
from weaviate.proto.v1 import batch_pb2, search_get_pb2, weaviate_pb2_grpc

from connectors.errors import (
    AccessDenied,
    ConfigurationError,
    ContentRejected,
    CrossfadeError,
    NotFound,
    Overloaded,
    Terminal,
    Throttled,
    Transient,
    UnknownOutcome,
    Unreachable,
    WrongModel,
)
from connectors.weaviate.client import Connection
from connectors.weaviate.failures import CLIENT, from_text, mapped, quiet
from connectors.weaviate.settings import WeaviateSettings

CODES = [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]
SENT = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.DATA_LOSS,
}


def test_every_exception_of_the_client_is_mapped_by_name() -> None:
    theirs = {
        cls
        for _, cls in inspect.getmembers(exceptions, inspect.isclass)
        if issubclass(cls, Exception) and cls.__module__ == exceptions.__name__
    }
    assert theirs == set(CLIENT)


@pytest.mark.parametrize("cls", sorted(CLIENT, key=str))
@pytest.mark.parametrize("write", [True, False])
def test_no_exception_of_the_client_gets_through(cls: type[Exception], write: bool) -> None:
    error = mapped(cls.__new__(cls, "said"), write=write) if not _has_status(cls) else _of_status(cls, 500, write)
    assert isinstance(error, CrossfadeError)
    assert error.next_step
    if write and isinstance(error, Unreachable):
        assert cls in {
            exceptions.WeaviateConnectionError,
            exceptions.WeaviateGRPCUnavailableError,
            exceptions.WeaviateStartUpError,
        }, "a write is only called not sent when it certainly was not"


def _has_status(cls: type[Exception]) -> bool:
    return issubclass(cls, exceptions.UnexpectedStatusCodeError | exceptions.ResponseCannotBeDecodedError)


def _of_status(cls: type[Exception], status: int, write: bool) -> CrossfadeError:
    response = httpx.Response(status, json={"error": [{"message": "said"}]})
    if issubclass(cls, exceptions.InsufficientPermissionsError):
        return mapped(cls(response), write=write)
    return mapped(cls("m", response), write=write)


@pytest.mark.parametrize(
    ("status", "write", "expected"),
    [
        (400, True, ConfigurationError),
        (401, True, AccessDenied),
        (403, False, AccessDenied),
        (404, False, NotFound),
        (422, True, ConfigurationError),
        (429, True, Throttled),
        (500, True, UnknownOutcome),
        (500, False, Unreachable),
        (502, True, UnknownOutcome),
        (503, True, Overloaded),
        (507, True, Overloaded),
        (418, True, Terminal),
    ],
)
def test_http_answers(status: int, write: bool, expected: type[CrossfadeError]) -> None:
    assert type(_of_status(exceptions.UnexpectedStatusCodeError, status, write)) is expected


def test_every_exception_of_httpx_is_mapped() -> None:
    theirs = [
        cls
        for _, cls in inspect.getmembers(httpx, inspect.isclass)
        if issubclass(cls, httpx.HTTPError) and cls is not httpx.HTTPStatusError
    ]
    assert len(theirs) > 15
    not_sent = {"ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol"}
    for cls in theirs:
        error = mapped(cls("m"), write=True)
        assert type(error) is (Unreachable if cls.__name__ in not_sent else UnknownOutcome), cls
        assert type(mapped(cls("m"), write=False)) is Unreachable, cls


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("store is read-only due to: manually set by user", Overloaded),
        ("store is read-only due to: resource pressure", Overloaded),
        ('put local object: shard="bwsSXyinFlVm": store is read-only due to: resource pressure', Overloaded),
        ('shard="a1": store is read-only due to: resource pressure, shard="b2": no answer', Overloaded),
        ("store is read-only due to: disk usage too high. Currently at 91.20%, threshold set to 90.00%", Overloaded),
        ("broadcast: cannot reach enough replicas", Overloaded),
        ("new node has a vector with length 2. Existing nodes have vectors with length 3", WrongModel),
        ("distance between entrypoint and query node: 3 vs 2: vector lengths don't match", WrongModel),
        ("invalid date property 'd' on class 'C': requires ..., but the given value is 'foo'", ContentRejected),
        ("no such prop with name 'zz' found in class 'C' in the schema.", ContentRejected),
        ("something nobody has seen yet", None),
        ("something of 'a read-only value'", None),
        ('the given value is \'x shard="a" read-only shard="b" y\'', None),
    ],
)
def test_what_the_server_says_of_one_object(said: str, expected: type[CrossfadeError] | None) -> None:
    error = from_text(said)
    assert type(error) is (expected or type(None))


@pytest.mark.parametrize(
    "said",
    [
        "the given value is 'secret'",
        "doesn't fit: 'a' or 'secret' or 'it's secret' end",
        'value "secret" of `secret`',
        "value 'two\nlines secret' bad",
    ],
)
def test_what_the_server_quotes_is_not_repeated(said: str) -> None:
    assert "secret" not in quiet(said)
    assert len(quiet(said * 50)) <= 200


class Stand(weaviate_pb2_grpc.WeaviateServicer):
    """Refuses everything with `code`, and counts."""

    code = grpc.StatusCode.UNKNOWN
    said = "said"
    calls = 0

    async def BatchObjects(self, request: object, context: Aborting) -> None:  # noqa: N802 - the server's name
        await self._refuse(context)

    async def Search(self, request: object, context: Aborting) -> None:  # noqa: N802 - the server's name
        await self._refuse(context)

    async def _refuse(self, context: Aborting) -> None:
        self.calls += 1
        await context.abort(self.code, self.said)


class Aborting(Protocol):
    def abort(self, code: object, details: str) -> Awaitable[None]: ...


@pytest.fixture
async def stand() -> AsyncIterator[tuple[Stand, Connection]]:
    servicer = Stand()
    server = grpc.aio.server()
    weaviate_pb2_grpc.add_WeaviateServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    settings = WeaviateSettings("127.0.0.1:1", f"127.0.0.1:{port}", connect_timeout_s=5, write_timeout_s=5)
    client = WeaviateAsyncClient(ConnectionParams.from_params("127.0.0.1", 1, False, "127.0.0.1", port, False))
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
    connection = Connection(settings, client, channel, 1_000_000)
    yield servicer, connection
    await connection.close()
    await server.stop(None)


async def _failure(connection: Connection, *, write: bool) -> CrossfadeError:
    put, get = batch_pb2.BatchObjectsRequest().SerializeToString(), search_get_pb2.SearchRequest()
    call: Awaitable[object] = (
        connection.rpc(connection.stub.BatchObjects, put, connection.write_deadline(), write=True)
        if write
        else connection.rpc(connection.stub.Search, get, connection.read_deadline(), write=False)
    )
    with pytest.raises(CrossfadeError) as caught:
        await call
    return caught.value


@pytest.mark.parametrize("code", CODES, ids=lambda code: str(code.name))
async def test_a_request_is_sent_once_whatever_the_answer(
    stand: tuple[Stand, Connection], code: grpc.StatusCode
) -> None:
    servicer, connection = stand
    servicer.code = code
    write, read = await _failure(connection, write=True), await _failure(connection, write=False)
    assert servicer.calls == 2, "rule 11: nothing may send a write again on its own"
    if code in SENT:
        assert type(write) is UnknownOutcome
        assert isinstance(read, Transient)
        assert not isinstance(read, UnknownOutcome), "a read leaves nothing in doubt"
    else:
        assert not isinstance(write, Unreachable)
        assert type(write) is type(read)
    if code in {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}:
        assert type(write) is AccessDenied


async def test_a_server_in_read_only_mode_is_overloaded(stand: tuple[Stand, Connection]) -> None:
    servicer, connection = stand
    servicer.code, servicer.said = grpc.StatusCode.UNAVAILABLE, "read-only mode enabled"
    assert type(await _failure(connection, write=True)) is Overloaded


async def test_a_request_refused_by_a_read_only_shard_waits(stand: tuple[Stand, Connection]) -> None:
    """Weaviate turns its shards read-only when the disk is full: that is no fault of the request."""
    servicer, connection = stand
    servicer.code = grpc.StatusCode.FAILED_PRECONDITION
    servicer.said = 'put batch: shard="a1B2": store is read-only due to: resource pressure'
    error = await _failure(connection, write=True)
    assert isinstance(error, Overloaded)
    assert "store is read-only due to: resource pressure" in error.message
    assert "DISK_USE_READONLY_PERCENTAGE" in error.next_step
    servicer.said = "the schema is of another version"
    assert type(await _failure(connection, write=True)) is Terminal


async def test_a_closed_connection_is_our_own_mistake(stand: tuple[Stand, Connection]) -> None:
    _, connection = stand
    await connection._channel.close()
    assert type(await _failure(connection, write=True)) is Terminal
