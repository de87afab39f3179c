"""What every request is held to before anything of it is believed: its size, its pace, where it comes from.

It must never read a body beyond the limit, nor wait longer than the time-out for the rest of one.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable
from http import HTTPStatus
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from streams.api.access import FOUND_KEY, Access
from streams.api.problems import Answered, Problem, answer, defect, problem
from streams.config_serve import Serve

UNLIMITED = frozenset({"/healthz", "/readyz"})
"""Answered also when everything else is full: whoever watches this process must not take it for dead."""
ALWAYS = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]
KEYLESS = UNLIMITED | {"/openapi.json"}
SEARCH, EVENTS = "/search", "/events"
"""Each kind of request has as much room as the others, and a room of its own: streams last as long as their readers
like, and however many searches wait, whoever operates this is heard, to go back from what makes them wait."""
_MORE = {503: {"Retry-After": "1"}, 401: {"WWW-Authenticate": "Bearer"}}
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


class _TooLarge(Exception):
    pass


class _TooSlow(Exception):
    pass


class Limits:
    """ASGI middleware, around everything else."""

    def __init__(self, app: ASGIApp, serve: Callable[[], Serve], access: Access) -> None:
        self._app = app
        self._serve = serve
        self._access = access
        self._in_flight = {"searches": 0, "streams": 0, "requests": 0}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        serve = self._serve()
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        kind = _kind(scope)
        if (found := self._refusal(scope, headers, serve, kind)) is not None:
            await answer(found, _headers(found))(scope, receive, send)
            return
        counted = scope["path"] not in UNLIMITED
        self._in_flight[kind] += counted
        try:
            await self._bounded(scope, receive, send, serve)
        finally:
            self._in_flight[kind] -= counted

    def _refusal(self, scope: Scope, headers: dict[bytes, str], serve: Serve, kind: str) -> Problem | None:
        scope[FOUND_KEY] = None
        if scope["path"] not in KEYLESS:  # before a byte of the body: a stranger holds no room
            try:
                scope[FOUND_KEY] = self._access.known(_token(headers))
            except Answered as refused:
                return refused.problem
        if scope["path"] not in UNLIMITED and self._in_flight[kind] >= serve.in_flight:
            return problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"{serve.in_flight} {kind} are under way already",
                "ask again in a second; more replicas of `crossfade serve` share the work",
                kind="busy",
                title="Too many requests at once",
            )
        if not serve.keys and not _loopback_name(headers.get(b"host", "")):
            return problem(  # a page elsewhere whose name leads here (DNS rebinding) is not somebody of this machine
                HTTPStatus.FORBIDDEN,
                "without keys only this machine is answered, by its own name",
                "ask 127.0.0.1 or localhost, or configure serve.keys",
                kind="other-host",
            )
        if scope["method"] not in SAFE and _foreign_origin(headers):
            return problem(
                HTTPStatus.FORBIDDEN,
                "a page of another origin may not change anything here (no CORS)",
                "call from a server, not from a browser page",
                kind="other-origin",
            )
        if b"%2f" in scope.get("raw_path", b"").lower():
            return problem(  # it would be taken for a slash, and what stands before it for another resource
                HTTPStatus.NOT_FOUND,
                "no name here has a slash, encoded or not",
                "see /openapi.json",
                kind="not-found",
            )
        length = headers.get(b"content-length", "")
        if length.isascii() and length.isdigit() and int(length[:20]) > serve.max_body_bytes:
            return _too_large(serve)
        return None

    async def _bounded(self, scope: Scope, receive: Receive, send: Send, serve: Serve) -> None:
        """Pass the request on; the body is counted, and has to be there in time, as it comes. What nobody waits for any
        more is given up: a command that was sent stays, and is applied once."""
        loop, this = asyncio.get_running_loop(), asyncio.current_task()
        assert this is not None
        ends_s = loop.time() + serve.timeout_s
        seen = 0
        whole = False
        begun = False
        found: Problem | None = None
        gone, given_up = asyncio.Event(), False
        watching: asyncio.Task[None] | None = None

        async def watch() -> None:
            """What comes after the whole request is that the caller went away, or has its answer."""
            nonlocal given_up
            while (await receive())["type"] != "http.disconnect":
                pass
            gone.set()
            if not begun:  # else the answer sees to its own end
                given_up = True
                this.cancel()

        async def take() -> Message:
            nonlocal seen, whole, found, watching
            if whole:
                await gone.wait()
                return {"type": "http.disconnect"}
            try:
                async with asyncio.timeout_at(ends_s):
                    message = await receive()
            except TimeoutError:
                found = problem(
                    HTTPStatus.REQUEST_TIMEOUT,
                    f"the request did not come whole within {serve.timeout_s:g} s",
                    "send it faster, or in smaller pieces",
                )
                raise _TooSlow from None
            seen += len(message.get("body", b""))
            whole = message["type"] != "http.request" or not message.get("more_body", False)
            if seen > serve.max_body_bytes:
                found = _too_large(serve)
                raise _TooLarge
            if message["type"] == "http.disconnect":
                gone.set()
            elif whole:
                watching = asyncio.create_task(watch())
            return message

        async def give(message: Message) -> None:
            nonlocal begun
            if found is not None and not begun:
                return  # what the rest makes of a body that broke off; the problem is said below
            begun = True
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *ALWAYS]
            await send(message)

        try:
            await self._app(scope, take, give)
        except (_TooLarge, _TooSlow):
            pass  # `found` says it
        except asyncio.CancelledError:
            if not given_up or this.uncancel():
                raise
        except Exception as error:  # noqa: BLE001  the last place there is: beyond it, its words would be logged
            found = defect(error)
        finally:
            if watching is not None:
                watching.cancel()
        if found is not None and not begun:
            await answer(found, {**_headers(found), "Connection": "close"})(scope, receive, send)


def _kind(scope: Scope) -> str:
    if scope["method"] == "POST" and scope["path"].endswith(SEARCH):
        return "searches"
    return "streams" if scope["path"].endswith(EVENTS) else "requests"


def _too_large(serve: Serve) -> Problem:
    return problem(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"the request is larger than {serve.max_body_bytes:,} bytes",
        "send less, or raise serve.max_body_bytes",
    )


def _headers(found: Problem) -> dict[str, str]:
    always = {name.decode(): value.decode() for name, value in ALWAYS}
    return {**always, **_MORE.get(found.status, {})}


def _token(headers: dict[bytes, str]) -> str | None:
    """As fastapi.security.HTTPBearer reads it."""
    scheme, _, token = headers.get(b"authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None


def _loopback_name(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    try:
        return "@" not in host and ipaddress.ip_address(name).is_loopback
    except ValueError:
        return host.partition(":")[0].lower() == "localhost"


def _foreign_origin(headers: dict[bytes, str]) -> bool:
    """A browser says where a page came from."""
    if headers.get(b"sec-fetch-site", "none") not in ("none", "same-origin"):
        return True
    origin = headers.get(b"origin")
    if origin is None:
        return False
    try:
        return urlsplit(origin).netloc != headers.get(b"host", "")
    except ValueError:
        return True
