"""One open connection to a Weaviate server: its REST client for schema and aliases, a gRPC channel for objects.

It must never send a request a second time by itself, nor leave it running past its deadline (rule 11).
"""

# Objects do not go through the client library's own `insert_many` and queries: these send a request up to four more
# times, sleeping in between for longer than our write deadline, so that a write could arrive after rule 11 said it
# cannot; they log failed objects with their text; and they drop the status code that says whether to retry. The
# library's generated messages are the server's public interface, so we speak that on a channel of our own.

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Protocol, TypeVar

from grpc import ChannelConnectivity, ssl_channel_credentials  # type: ignore[import-untyped]
from grpc.aio import AioRpcError, Channel, UsageError, insecure_channel, secure_channel  # type: ignore[import-untyped]
from weaviate import WeaviateAsyncClient
from weaviate.auth import Auth
from weaviate.config import AdditionalConfig, Timeout
from weaviate.connect import ConnectionParams
from weaviate.proto.v1 import (
    aggregate_pb2,
    batch_delete_pb2,
    batch_pb2,
    search_get_pb2,
    weaviate_pb2_grpc,
)

from connectors.errors import ConfigurationError, Terminal, Unreachable
from connectors.weaviate.failures import FOREIGN, mapped, no_answer
from connectors.weaviate.settings import WeaviateSettings

OLDEST_VERSION = (1, 33)  # aliases came with 1.32; `none` and `rq` as explicit quantizations with 1.33
_WRITE = "/weaviate.v1.Weaviate/BatchObjects"
_DEFAULT_MESSAGE_BYTES = 10 * 1024 * 1024  # of servers that do not say theirs

Request = TypeVar("Request", contravariant=True)
Reply = TypeVar("Reply", covariant=True)
T = TypeVar("T")


class Rpc(Protocol[Request, Reply]):
    """A method of a gRPC stub."""

    def __call__(
        self, request: Request, *, timeout: float, metadata: Sequence[tuple[str, str]]
    ) -> Awaitable[Reply]: ...


class Stub(Protocol):
    """What we use of the generated stub, which has no types of its own. A write is given as its message's bytes."""

    BatchObjects: Rpc[bytes, batch_pb2.BatchObjectsReply]
    BatchDelete: Rpc[batch_delete_pb2.BatchDeleteRequest, batch_delete_pb2.BatchDeleteReply]
    Search: Rpc[search_get_pb2.SearchRequest, search_get_pb2.SearchReply]
    Aggregate: Rpc[aggregate_pb2.AggregateRequest, aggregate_pb2.AggregateReply]


class Deadline:
    """A moment on the monotonic clock by which a call, of however many requests, is over."""

    __slots__ = ("_at",)

    def __init__(self, timeout_s: float) -> None:
        self._at = asyncio.get_running_loop().time() + timeout_s

    def left_s(self) -> float:
        """Seconds until then; 0 or less when it has passed."""
        return self._at - asyncio.get_running_loop().time()


class Connection:
    """Made by `open_connection`; `rest` and `rpc` map every foreign error. Close it once, after the last call."""

    def __init__(
        self, settings: WeaviateSettings, client: WeaviateAsyncClient, channel: Channel, message_bytes: int
    ) -> None:
        self.settings = settings
        self.client = client
        self.message_bytes = message_bytes
        self._channel = channel
        self.stub: Stub = weaviate_pb2_grpc.WeaviateStub(channel)  # type: ignore[no-untyped-call]
        self.stub.BatchObjects = channel.unary_unary(
            _WRITE, response_deserializer=batch_pb2.BatchObjectsReply.FromString
        )
        self._metadata = (("authorization", f"Bearer {settings.api_key}"),) if settings.api_key else ()

    def write_deadline(self) -> Deadline:
        return Deadline(self.settings.write_timeout_s)

    def read_deadline(self) -> Deadline:
        return Deadline(self.settings.read_timeout_s)

    async def rest(self, call: Awaitable[T], *, write: bool) -> T:
        """One call of the REST client; raises `connectors.errors` only."""
        timeout_s = self.settings.write_timeout_s if write else self.settings.read_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                return await call
        except TimeoutError as error:
            raise no_answer(f"nothing within {timeout_s:g} s", write=write) from error
        except FOREIGN as error:
            raise mapped(error, write=write) from error

    async def rpc(self, method: Rpc[Request, T], request: Request, deadline: Deadline, *, write: bool) -> T:
        """One gRPC request, sent at most once, over by the deadline.

        Raises Unreachable when it was certainly not sent; after that a write's lost answer is UnknownOutcome.
        """
        await self._connected(deadline)
        timeout_s = deadline.left_s()
        if timeout_s <= 0:
            raise Unreachable("the time for this call was up before it was sent", next_step="check Weaviate's load")
        try:
            return await method(request, timeout=timeout_s, metadata=self._metadata)
        except AioRpcError as error:
            raise mapped(error, write=write) from error
        except UsageError as error:
            raise Terminal(
                "the connection to Weaviate is closed", next_step="this is a defect: please report it"
            ) from error

    async def _connected(self, deadline: Deadline) -> None:
        """Return once the channel is ready: the proof that a later failure came after sending, not before."""
        state = self._channel.get_state(try_to_connect=True)
        if state is ChannelConnectivity.READY:
            return
        try:
            async with asyncio.timeout(min(self.settings.connect_timeout_s, max(deadline.left_s(), 0.0))):
                while state is not ChannelConnectivity.READY:
                    if state is ChannelConnectivity.SHUTDOWN:
                        raise Terminal("the connection to Weaviate is closed", next_step="open the store again")
                    if state is ChannelConnectivity.TRANSIENT_FAILURE:
                        raise self._unreachable()
                    await self._channel.wait_for_state_change(state)
                    state = self._channel.get_state(try_to_connect=True)
        except TimeoutError as error:
            raise self._unreachable() from error

    def _unreachable(self) -> Unreachable:
        host, port, _ = self.settings.grpc_address
        return Unreachable(
            f"nothing answers at the Weaviate gRPC address {host}:{port}",
            next_step="check that Weaviate runs and that weaviate.grpc is right",
        )

    async def close(self) -> None:
        await self._channel.close(grace=None)
        await self.client.close()


async def open_connection(settings: WeaviateSettings) -> Connection:
    """Connect, check the version and that both addresses answer.

    Raises Unreachable, AccessDenied, or ConfigurationError for a server that is too old or an address that is wrong.
    """
    http_host, http_port, http_secure = settings.http_address
    grpc_host, grpc_port, grpc_secure = settings.grpc_address
    client = WeaviateAsyncClient(
        connection_params=ConnectionParams.from_params(
            http_host, http_port, http_secure, grpc_host, grpc_port, grpc_secure
        ),
        auth_client_secret=Auth.api_key(settings.api_key) if settings.api_key else None,
        additional_config=AdditionalConfig(
            timeout=Timeout(
                init=settings.connect_timeout_s, query=settings.read_timeout_s, insert=settings.write_timeout_s
            )
        ),
        skip_init_checks=True,  # the library's checks ask a package registry for its newest version
    )
    try:
        async with asyncio.timeout(settings.connect_timeout_s):
            await client.connect()
            meta: object = await client.get_meta()
    except asyncio.CancelledError:
        await client.close()
        raise
    except TimeoutError as error:
        await client.close()
        raise Unreachable(
            f"nothing answers at the Weaviate address {http_host}:{http_port}",
            next_step="check that Weaviate runs and that weaviate.http is right",
        ) from error
    except FOREIGN as error:
        await client.close()
        raise mapped(error, write=False) from error
    version, message_bytes = _about(meta)
    if version < OLDEST_VERSION:
        await client.close()
        found, wanted = ".".join(map(str, version)), ".".join(map(str, OLDEST_VERSION))
        raise ConfigurationError(
            f"the Weaviate server is version {found or 'unknown'}, older than {wanted}", next_step="upgrade the server"
        )
    target = f"{grpc_host}:{grpc_port}"
    options = (
        ("grpc.max_send_message_length", message_bytes),
        ("grpc.max_receive_message_length", -1),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 2000),  # the default of two minutes outlasts most restarts
        ("grpc.enable_http_proxy", 0),  # as the REST client: proxies of the environment are not for the database
    )
    channel = (
        secure_channel(target, ssl_channel_credentials(), options) if grpc_secure else insecure_channel(target, options)
    )
    connection = Connection(settings, client, channel, message_bytes)
    try:
        await connection._connected(Deadline(settings.connect_timeout_s))
    except BaseException:
        await connection.close()
        raise
    return connection


def _about(meta: object) -> tuple[tuple[int, ...], int]:
    """Version as (major, minor) and the largest gRPC message in bytes, from the server's meta record."""
    fields: dict[object, object] = meta if isinstance(meta, dict) else {}
    parts = str(fields.get("version", "")).split(".")[:2]
    version = tuple(int(part) for part in parts) if len(parts) == 2 and all(p.isdigit() for p in parts) else ()
    size = fields.get("grpcMaxMessageSize")
    return version, int(size) if isinstance(size, int | float | str) else _DEFAULT_MESSAGE_BYTES
