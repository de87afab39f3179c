"""The socket of `crossfade serve`, and uvicorn behind it, until it is told to stop.

It must never be held by a caller who sends slowly, nor outlive its end by more than a few seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from connectors.errors import ConfigurationError
from streams.api.problems import MEDIA_TYPE, Problem, problem
from streams.config_serve import Serve

HANDSHAKE_S = 10.0
HEADER_S = 10.0
UNREAD_S = 30.0
REFUSED_S = 1.0
KEEP_ALIVE_S = 30
STOP_S = 3
MOST_HEAD_BYTES = 32_768
MOST_FILES = 65_536
OTHER_FILES = 256
"""Of the files that this process may open: for Kafka, Weaviate, endpoints and the log."""
REFUSED_AT_ONCE = 128


@dataclass(frozen=True, slots=True)
class Room:
    """Connections this process may have open at once, and how many may wait to be taken (all of those are taken in one
    go, so there have to be files for them too)."""

    connections: int
    waiting: int

    @classmethod
    def of(cls, files: int) -> Room:
        waiting = 2048 if files >= 16_384 else 64
        return cls(max(32, files - OTHER_FILES - REFUSED_AT_ONCE - waiting), waiting)


async def listen(
    app: ASGIApp, serve: Serve, stopping: asyncio.Event, on_ready: Callable[[str], None] = lambda _: None
) -> None:
    """Serve until `stopping`; what is under way then has three seconds. `on_ready` gets the URL.

    Raises ConfigurationError for an address or a TLS file that cannot be used.
    """
    room = Room.of(_files())
    with contextlib.closing(_bound(serve, room)) as bound:
        arriving: set[asyncio.Task[None]] = set()
        server = _Uvicorn(_configured(app, serve, room, arriving))
        serving = asyncio.create_task(server.serve(sockets=[bound]))
        until = asyncio.create_task(stopping.wait())
        scheme = "https" if serve.certificate else "http"
        host, port = bound.getsockname()[:2]
        on_ready(f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}")
        try:
            await asyncio.wait([serving, until], return_when=asyncio.FIRST_COMPLETED)
        finally:
            until.cancel()
            server.should_exit = True
            await asyncio.wait([serving], timeout=STOP_S + 0.5)
            for task in (serving, *arriving):
                task.cancel()
            await asyncio.gather(serving, until, *arriving, return_exceptions=True)


class _Uvicorn(uvicorn.Server):
    """Leaves signals to whoever runs it: uvicorn's own would end the process before connections are closed."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Impatient(H11Protocol):
    """Closes a connection on which no whole head of a request comes in time, however slowly it is dripped, one whose
    caller does not read its answers, and one too many, with a problem answer wherever somebody is there to read it."""

    def __init__(self, most_connections: int, config: uvicorn.Config, *args: Any, **more: Any) -> None:
        super().__init__(config, *args, **more)
        self._most = most_connections
        self._too_many = False
        self._early = b""
        self._overdue: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._most + REFUSED_AT_ONCE:
            transport.abort()
            return
        if len(self.connections) > self._most:
            self._too_many = True
            self.loop.call_later(REFUSED_S, transport.abort)
            return
        # an answer is sent in two pieces, and without this the second waits 40 ms for the caller's word on the first;
        # asyncio sees to it only for sockets that were made with their protocol named
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._wait()

    def begin(self) -> None:
        """Take what came with the end of a TLS handshake, before there was a connection to answer on."""
        if self._early:
            self.data_received(self._early)
            self._early = b""

    def data_received(self, data: bytes) -> None:
        if self.transport is None:
            self._early += data
            return
        if self._too_many:
            self._refuse(
                problem(
                    HTTPStatus.SERVICE_UNAVAILABLE,
                    f"{self._most:,} connections are open already",
                    "ask again in a second, over a connection that is kept; let this process open more files (ulimit "
                    "-n), or run more replicas of `crossfade serve`",
                    kind="busy",
                    title="Too many connections at once",
                ),
                "Retry-After: 1\r\n",
            )
            return
        super().data_received(data)
        if self._idle and self._overdue is None:
            self._wait()

    def send_400_response(self, msg: str) -> None:
        """For what is no HTTP: `msg` says no more."""
        wanted = f"send HTTP/1.1, its head within {MOST_HEAD_BYTES:,} bytes"
        self._refuse(problem(HTTPStatus.BAD_REQUEST, "this is no HTTP request that could be read", wanted))

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(UNREAD_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def connection_lost(self, exc: Exception | None) -> None:
        if self.transport is None:
            return
        super().connection_lost(exc)
        for timer in (self._overdue, self._unread):
            if timer is not None:
                timer.cancel()

    def _refuse(self, found: Problem, headers: str = "") -> None:
        if self.transport.is_closing():
            return
        body = found.model_dump_json(exclude_none=True).encode()
        head = (
            f"HTTP/1.1 {found.status} {HTTPStatus(found.status).phrase}\r\nContent-Type: {MEDIA_TYPE}\r\n"
            f"Content-Length: {len(body)}\r\n{headers}Connection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    @property
    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _wait(self) -> None:
        self._overdue = self.loop.call_later(HEADER_S, self._look, self.cycle)

    def _look(self, cycle: object) -> None:
        self._overdue = None
        if self._idle and self.cycle is cycle and not self.transport.is_closing():
            self.transport.close()


class _Handshake(asyncio.Protocol):
    """A connection until its TLS handshake is done, then `protocol` has it. asyncio's own TLS servers tell nobody of
    such connections: they could not be counted, and uvicorn hands no time-out on."""

    def __init__(
        self, context: ssl.SSLContext, most_connections: int, arriving: set[asyncio.Task[None]], protocol: _Impatient
    ) -> None:
        self._context = context
        self._most = most_connections
        self._arriving = arriving
        self._protocol = protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        if len(self._protocol.connections) + len(self._arriving) >= self._most + REFUSED_AT_ONCE:
            transport.abort()
            return
        transport.pause_reading()  # until there is who understands it
        task = asyncio.create_task(self._shake_hands(transport))
        self._arriving.add(task)
        task.add_done_callback(self._arriving.discard)

    async def _shake_hands(self, transport: asyncio.Transport) -> None:
        try:
            made = await asyncio.get_running_loop().start_tls(
                transport, self._protocol, self._context, server_side=True, ssl_handshake_timeout=HANDSHAKE_S
            )
        except OSError:  # it failed, or did not come: nobody is there who could be told
            transport.abort()
            return
        if made is not None and not made.is_closing():
            self._protocol.connection_made(made)
            self._protocol.begin()


def _files() -> int:
    """How many files this process may open, once it has been given all that it may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # then it is as many as now
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return MOST_FILES if soft == resource.RLIM_INFINITY else min(soft, MOST_FILES)


def _bound(serve: Serve, room: Room) -> socket.socket:
    host, port = serve.address
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=room.waiting)
    except OSError as error:
        raise ConfigurationError(
            f"{serve.listen} cannot be listened on: {error.strerror or error}",
            next_step="set serve.listen to an address of this machine with a free port",
        ) from error


def _configured(app: ASGIApp, serve: Serve, room: Room, arriving: set[asyncio.Task[None]]) -> uvicorn.Config:
    """`arriving`: connections whose TLS handshake is under way."""
    made = uvicorn.Config(
        app,
        http=partial(_Impatient, room.connections),  # type: ignore[arg-type]
        backlog=room.waiting,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,  # paths hold names, and nothing else of it is wanted
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=STOP_S,
        h11_max_incomplete_event_size=MOST_HEAD_BYTES,
        ssl_certfile=serve.certificate,
        ssl_keyfile=serve.private_key,
    )
    try:
        made.load()
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            f"serve.certificate and serve.private_key cannot be used: {error.strerror or type(error).__name__}",
            next_step="name two PEM files that belong together",
        ) from None
    if (context := made.ssl) is not None:
        made.ssl = None  # uvicorn opens a plain socket then; the handshake is ours
        impatient = partial(_Impatient, room.connections)

        def handshake(**more: Any) -> _Handshake:
            return _Handshake(context, room.connections, arriving, impatient(**more))

        made.http_protocol_class = handshake  # type: ignore[assignment]
    return made
