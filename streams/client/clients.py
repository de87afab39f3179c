"""The two clients: one for threads, one for asyncio. Both only carry out what the calls say, so neither knows more.

Connections are kept and used again, redirects are never followed, proxy variables and cookies are not looked at.
"""

from __future__ import annotations

import asyncio
import inspect
import ssl
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from functools import wraps
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import httpx

from connectors.embedders.transport import tls_context
from connectors.errors import ConfigurationError
from streams.client import calls
from streams.client.answers import Version
from streams.client.errors import Misconfigured
from streams.client.events import Following
from streams.client.exchange import LOST, Asked, Body, Broken, Came, Flow, Reply, Sending, Wait, lost, too_late
from streams.client.settings import Settings, checked

P = ParamSpec("P")
T = TypeVar("T")

_LIMITS = httpx.Limits(max_connections=256, max_keepalive_connections=64, keepalive_expiry=20.0)
"""A connection goes before the server, after 30 s, hangs up on a request that is just being sent."""


def _asks(describe: Callable[P, Asked[T]]) -> Callable[Concatenate[Crossfade, P], T]:
    """The method of Crossfade that carries out what `describe` says."""

    @wraps(describe)
    def method(self: Crossfade, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._carry_out(describe(*args, **kwargs).flow(self._settings))

    _shown_as(method, describe)
    return method


def _awaits(describe: Callable[P, Asked[T]]) -> Callable[Concatenate[AsyncCrossfade, P], Coroutine[Any, Any, T]]:
    """The method of AsyncCrossfade that carries out what `describe` says."""

    @wraps(describe)
    async def method(self: AsyncCrossfade, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._carry_out(describe(*args, **kwargs).flow(self._settings))

    _shown_as(method, describe)
    return method


def _shown_as(method: Callable[..., object], describe: Callable[..., object]) -> None:
    """help() shows it as a method that returns what was asked for."""
    of = inspect.signature(describe)
    first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    returned = str(of.return_annotation).partition("[")[2].removesuffix("]")
    shown = of.replace(parameters=[first, *of.parameters.values()], return_annotation=returned)
    method.__dict__["__signature__"] = shown
    method.__name__ = describe.__name__.rstrip("_")


class _Client:
    """What both have in common: settings, and how they are shown."""

    _settings: Settings

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._settings.url!r})"


class Crossfade(_Client):
    """`crossfade serve` over HTTP; may be used by many threads at once. Close it, or use it in a `with`.

    `url`, `api_key`: None takes CROSSFADE_URL (else http://127.0.0.1:8470) and CROSSFADE_API_KEY. `timeout_s`: most
    that one try of a call may take; `command_timeout_s`: of one that sweeps, judges or swaps. `retries`: of a call that
    may be repeated. `ca_file`: PEM, instead of the public authorities. `plain_http`: a key may go unencrypted to
    another machine. `transport`: in place of real connections, or for a proxy.

    A server that sends the head of its answer in drops can hold a thread for longer than `timeout_s`, which then bounds
    each wait; not so AsyncCrossfade.

    Raises Misconfigured; its methods raise ClientError.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout_s: float = 35.0,
        command_timeout_s: float = 615.0,
        retries: int = 3,
        ca_file: str | Path | None = None,
        plain_http: bool = False,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._settings = checked(
            url,
            api_key,
            timeout_s=timeout_s,
            command_timeout_s=command_timeout_s,
            retries=retries,
            plain_http=plain_http,
        )
        self._http = httpx.Client(
            headers=self._settings.headers,
            trust_env=False,  # the key goes where it is said to go, not where a proxy variable says
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
            transport=transport or httpx.HTTPTransport(verify=_trusted(ca_file), trust_env=False, limits=_LIMITS),
        )

    search = _asks(calls.search)
    rollout = _asks(calls.rollout)
    raise_rollout = _asks(calls.raise_rollout)
    end_rollout = _asks(calls.end_rollout)
    vector_spaces = _asks(calls.vector_spaces)
    vector_space = _asks(calls.vector_space)
    vector_space_status = _asks(calls.vector_space_status)
    add_vector_space = _asks(calls.add_vector_space)
    rebuild_vector_space = _asks(calls.rebuild_vector_space)
    wait_until_active = _asks(calls.wait_until_active)
    set_default_vector_space = _asks(calls.set_default_vector_space)
    delete_vector_space = _asks(calls.delete_vector_space)
    collections = _asks(calls.collections)
    collection = _asks(calls.collection)
    version = _asks(calls.version)
    history = _asks(calls.history)
    health = _asks(calls.health)
    ready = _asks(calls.ready)
    plan = _asks(calls.plan)
    start = _asks(calls.start)
    pause = _asks(calls.pause)
    resume = _asks(calls.resume)
    set = _asks(calls.set_)
    abort = _asks(calls.abort)
    verify = _asks(calls.verify)
    redrive = _asks(calls.redrive)
    evaluate = _asks(calls.evaluate)
    cutover = _asks(calls.cutover)
    rollback = _asks(calls.rollback)
    retire = _asks(calls.retire)

    def progress(self, collection: str, version: str) -> Iterator[Version]:
        """A version as it is, and then each time it has changed, at most each second, without an end: through restarts
        of the server, until the caller stops or nothing answers any more."""
        following = Following(calls.progress(collection, version), self._settings)
        while True:
            came: Came = None
            try:
                with self._open(following.sending, following.timeout) as response:
                    if following.begins(response):
                        for piece in response.iter_bytes():
                            yield from following.feed(piece)
                    else:
                        came = self._read(response, following.sending)
            except LOST as error:
                came = lost(error, following.sending, self._settings)
            time.sleep(following.ended(came))

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _carry_out(self, flow: Flow[T]) -> T:
        try:
            step = next(flow)
            while True:
                if isinstance(step, Wait):
                    time.sleep(step.seconds)
                    step = next(flow)
                else:
                    step = flow.send(self._send(step))
        except StopIteration as done:
            value: T = done.value
            return value
        finally:
            flow.close()

    def _send(self, sending: Sending) -> Reply | Broken:
        try:
            with self._open(sending, sending.timeout) as response:
                return self._read(response, sending)
        except LOST as error:
            return lost(error, sending, self._settings)

    def _open(self, sending: Sending, timeout: httpx.Timeout) -> AbstractContextManager[httpx.Response]:
        url = self._settings.url + sending.path
        return self._http.stream(
            sending.method,
            url,
            params=sending.params or None,
            content=sending.content,
            headers=sending.headers,
            timeout=timeout,
            follow_redirects=False,
        )

    def _read(self, response: httpx.Response, sending: Sending) -> Reply:
        body = Body(sending, self._settings)
        body.begins(response)
        for piece in response.iter_bytes():
            body.add(piece)
        return body.whole()


class AsyncCrossfade(_Client):
    """`crossfade serve` over HTTP, for asyncio. Arguments and methods are those of Crossfade; what is returned there is
    awaited here. Close it with `aclose`, or use it in an `async with`."""

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout_s: float = 35.0,
        command_timeout_s: float = 615.0,
        retries: int = 3,
        ca_file: str | Path | None = None,
        plain_http: bool = False,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._settings = checked(
            url,
            api_key,
            timeout_s=timeout_s,
            command_timeout_s=command_timeout_s,
            retries=retries,
            plain_http=plain_http,
        )
        self._http = httpx.AsyncClient(
            headers=self._settings.headers,
            trust_env=False,
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
            transport=transport or httpx.AsyncHTTPTransport(verify=_trusted(ca_file), trust_env=False, limits=_LIMITS),
        )

    search = _awaits(calls.search)
    rollout = _awaits(calls.rollout)
    raise_rollout = _awaits(calls.raise_rollout)
    end_rollout = _awaits(calls.end_rollout)
    vector_spaces = _awaits(calls.vector_spaces)
    vector_space = _awaits(calls.vector_space)
    vector_space_status = _awaits(calls.vector_space_status)
    add_vector_space = _awaits(calls.add_vector_space)
    rebuild_vector_space = _awaits(calls.rebuild_vector_space)
    wait_until_active = _awaits(calls.wait_until_active)
    set_default_vector_space = _awaits(calls.set_default_vector_space)
    delete_vector_space = _awaits(calls.delete_vector_space)
    collections = _awaits(calls.collections)
    collection = _awaits(calls.collection)
    version = _awaits(calls.version)
    history = _awaits(calls.history)
    health = _awaits(calls.health)
    ready = _awaits(calls.ready)
    plan = _awaits(calls.plan)
    start = _awaits(calls.start)
    pause = _awaits(calls.pause)
    resume = _awaits(calls.resume)
    set = _awaits(calls.set_)
    abort = _awaits(calls.abort)
    verify = _awaits(calls.verify)
    redrive = _awaits(calls.redrive)
    evaluate = _awaits(calls.evaluate)
    cutover = _awaits(calls.cutover)
    rollback = _awaits(calls.rollback)
    retire = _awaits(calls.retire)

    async def progress(self, collection: str, version: str) -> AsyncIterator[Version]:
        """As Crossfade.progress."""
        following = Following(calls.progress(collection, version), self._settings)
        while True:
            came: Came = None
            try:
                async with self._open(following.sending, following.timeout) as response:
                    if following.begins(response):
                        async for piece in response.aiter_bytes():
                            for told in following.feed(piece):
                                yield told
                    else:
                        came = await self._read(response, following.sending)
            except LOST as error:
                came = lost(error, following.sending, self._settings)
            await asyncio.sleep(following.ended(came))

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _carry_out(self, flow: Flow[T]) -> T:
        try:
            step = next(flow)
            while True:
                if isinstance(step, Wait):
                    await asyncio.sleep(step.seconds)
                    step = next(flow)
                else:
                    step = flow.send(await self._send(step))
        except StopIteration as done:
            value: T = done.value
            return value
        finally:
            flow.close()

    async def _send(self, sending: Sending) -> Reply | Broken:
        try:
            async with asyncio.timeout(sending.timeout_s), self._open(sending, sending.timeout) as response:
                return await self._read(response, sending)
        except TimeoutError:
            return too_late(sending, self._settings)
        except LOST as error:
            return lost(error, sending, self._settings)

    def _open(self, sending: Sending, timeout: httpx.Timeout) -> AbstractAsyncContextManager[httpx.Response]:
        url = self._settings.url + sending.path
        return self._http.stream(
            sending.method,
            url,
            params=sending.params or None,
            content=sending.content,
            headers=sending.headers,
            timeout=timeout,
            follow_redirects=False,
        )

    async def _read(self, response: httpx.Response, sending: Sending) -> Reply:
        body = Body(sending, self._settings)
        body.begins(response)
        async for piece in response.aiter_bytes():
            body.add(piece)
        return body.whole()


def _trusted(ca_file: str | Path | None) -> ssl.SSLContext:
    try:
        return tls_context(ca_file)
    except ConfigurationError as error:
        raise Misconfigured(error.message, next_step=error.next_step) from error
