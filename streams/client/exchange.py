"""One call from its first sending to its end: what is sent, what the answer means, whether and when it is sent again.

It opens no connection: the two clients drive it, one in threads, one in asyncio. A call is repeated only where that is
safe: it only reads, it carries an Idempotency-Key, or it was certainly not carried out. No error shows more of a
request than its method and its path.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Generic, Literal, Protocol, TypeVar

import httpx
import orjson
from pydantic import JsonValue, TypeAdapter, ValidationError

from connectors.embedders.http_errors import map_tls, retry_after_s, tls_error
from streams.client.errors import (
    Answered,
    ClientError,
    Misconfigured,
    NoAnswer,
    NotUnderstood,
    Problem,
    Unreachable,
    error_of,
)
from streams.client.settings import Settings

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

LOST = (httpx.HTTPError, OSError)
"""What httpx raises when no whole answer comes; ssl's own errors come through while a body is read."""
CONNECT_S = 10.0
_FIRST_PAUSE_S = 0.25
_LONGEST_BACKOFF_S = 8.0
_LONGEST_TEXT = 2_000
_PROBLEM: TypeAdapter[Problem] = TypeAdapter(Problem)


@dataclass(frozen=True, slots=True)
class Sending:
    """One request. `timeout_s`: of each wait, and of the whole from its beginning to its end."""

    method: str
    path: str
    params: Mapping[str, str]
    content: bytes | None
    headers: Mapping[str, str]
    timeout_s: float
    most_bytes: int

    @property
    def timeout(self) -> httpx.Timeout:
        return httpx.Timeout(self.timeout_s, connect=min(self.timeout_s, CONNECT_S))


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer. `headers`: names in lower case."""

    status: int
    headers: Mapping[str, str]
    content: bytes


@dataclass(frozen=True, slots=True)
class Broken:
    """No whole answer. `again`: whether another try may help; `error.idempotency_key` is not known here."""

    error: ClientError
    again: bool


@dataclass(frozen=True, slots=True)
class Wait:
    """Do nothing for so long."""

    seconds: float


Came = Reply | Broken | None
Flow = Generator[Sending | Wait, Came, T]
"""Says what to do next; gets the Reply or Broken of a Sending, and None after a Wait; its value is the call's."""


class Asked(Protocol[T_co]):
    """What a client can carry out."""

    def flow(self, settings: Settings) -> Flow[T_co]:
        """From the beginning. Raises ClientError."""
        ...


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """`read`: the value of an answer with status 200 to 299. `long`: it may take as long as reading everything takes.
    `key`: the Idempotency-Key; with one, or when it `only_reads`, it may be sent again whatever became of it."""

    method: Literal["GET", "POST", "PUT", "DELETE"]
    path: str
    read: Callable[[bytes], T]
    params: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, JsonValue] | None = None
    key: str | None = None
    only_reads: bool = False
    long: bool = False

    def sending(self, settings: Settings) -> Sending:
        """Raises Misconfigured for what cannot be written as JSON."""
        headers = {"Idempotency-Key": self.key} if self.key is not None else {}
        content = None
        if self.body is not None:
            headers["Content-Type"] = "application/json"
            try:
                content = orjson.dumps(self.body)
            except (orjson.JSONEncodeError, RecursionError):
                # without its cause, which may hold what was to be sent
                raise Misconfigured(
                    f"the arguments of {self.method} {self.path} cannot be written as JSON",
                    next_step="give text that is valid Unicode, numbers, lists and dictionaries with text as keys",
                ) from None
        return Sending(
            method=self.method,
            path=self.path,
            params=self.params,
            content=content,
            headers=headers,
            timeout_s=settings.command_timeout_s if self.long else settings.timeout_s,
            most_bytes=settings.most_bytes,
        )

    def flow(self, settings: Settings) -> Flow[T]:
        """Send it until an answer stands, or it may not or need not be sent again."""
        sending = self.sending(settings)
        for tried in range(settings.retries + 1):
            came = yield sending
            error, again = self._failure(came, settings)
            if error is None:
                assert isinstance(came, Reply)
                return self._value(came)
            pause_s = _pause_s(error, tried, settings)
            if not again or tried == settings.retries or pause_s > settings.longest_pause_s:
                raise error
            yield Wait(pause_s)
        raise AssertionError("the last try returns or raises")

    def _failure(self, came: Came, settings: Settings) -> tuple[ClientError | None, bool]:
        """What went wrong, if anything, and whether the same may be sent again."""
        repeatable = self.only_reads or self.key is not None
        if isinstance(came, Broken):
            came.error.idempotency_key = self.key
            return came.error, came.again and (repeatable or isinstance(came.error, Unreachable))
        assert isinstance(came, Reply)
        if 200 <= came.status < 300:
            return None, False
        error = refusal(came, settings, f"{self.method} {self.path}", self.key)
        asked_to = isinstance(error, Answered) and error.retry_after_s is not None
        if came.status == 429:  # turned away at the door
            return error, True
        return error, repeatable and (came.status == 503 or (came.status in (502, 504) and asked_to))

    def _value(self, came: Reply) -> T:
        try:
            return self.read(came.content)
        except ValidationError as error:
            parts = [".".join(map(str, item["loc"]))[:80] for item in error.errors(include_input=False)[:3]]
            # without its cause, which shows the answer: it may hold documents
            raise NotUnderstood(
                f"the answer to {self.method} {self.path} is not what this client knows: "
                + (", ".join(part for part in parts if part) or "it is no JSON"),
                next_step="see that url is that of `crossfade serve`; if it is, install the client of its version",
                idempotency_key=self.key,
            ) from None


def refusal(came: Reply, settings: Settings, what: str, key: str | None = None) -> ClientError:
    """What an answer without a good status means. `what`: method and path."""
    if 300 <= came.status < 400:
        return NotUnderstood(
            f"{settings.url} answered {what} with a redirect ({came.status}), which is not followed",
            next_step="give the url that it leads to, if that is where the key may go",
            idempotency_key=key,
        )
    wait_s = retry_after_s(came.headers.get("retry-after"), time.time())
    problem = _problem(came, settings)
    if problem is None:
        problem = Problem(
            title="Not an answer of Crossfade",
            status=came.status,
            detail=f"{what} was answered with {came.status} and no problem description",
            next_step="see that url is that of `crossfade serve`, and what a proxy before it says",
        )
    return error_of(problem, retry_after_s=wait_s, idempotency_key=key)


def lost(error: BaseException, sending: Sending, settings: Settings) -> Broken:
    """What an exception of LOST means."""
    what = f"{sending.method} {sending.path}"
    if isinstance(error, httpx.ConnectError) and (tls := tls_error(error)) is not None:
        mapped = map_tls(tls, settings.url)
        return Broken(Misconfigured(mapped.message, next_step=mapped.next_step), again=False)
    match error:
        case httpx.UnsupportedProtocol() | httpx.LocalProtocolError() | httpx.InvalidURL():
            return Broken(Misconfigured(f"{what} cannot be sent: {type(error).__name__}"), again=False)
        case httpx.PoolTimeout():
            said = "every connection of this client is in use"
            return Broken(Unreachable(said, next_step="ask less at once, or use more clients"), again=False)
        case httpx.ConnectError() | httpx.ConnectTimeout() | httpx.ProxyError():
            return Broken(
                Unreachable(f"{settings.url} does not answer", next_step="start `crossfade serve`, or correct the url"),
                again=True,
            )
        case httpx.TimeoutException():
            return too_late(sending, settings)
        case httpx.DecodingError():
            return Broken(NotUnderstood(f"the answer to {what} cannot be unpacked"), again=False)
        case _:
            return Broken(
                NoAnswer(
                    f"{settings.url} broke off {what}: {type(error).__name__}",
                    next_step="look at its log and at what stands; the same call with its idempotency_key is safe",
                ),
                again=True,
            )


def too_late(sending: Sending, settings: Settings) -> Broken:
    """It is not sent again: the time that the caller gave is over."""
    return Broken(
        NoAnswer(
            f"{settings.url} did not answer {sending.method} {sending.path} within {sending.timeout_s:g} s",
            next_step="look at /readyz and at what stands; the same call with its idempotency_key is safe",
        ),
        again=False,
    )


class Body:
    """An answer as it comes, piece by piece, never more of it than it may have, nor unpacked: a few packed bytes can be
    gigabytes."""

    def __init__(self, sending: Sending, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._sending = sending
        self._settings = settings
        self._clock = clock
        self._ends_s = clock() + sending.timeout_s
        self._status = 0
        self._headers: Mapping[str, str] = {}
        self._content = bytearray()

    def begins(self, response: httpx.Response) -> None:
        """Raises NotUnderstood when it is packed."""
        self._status = response.status_code
        self._headers = {name.lower(): value for name, value in response.headers.items()}
        unpacked(self._headers, self._settings)

    def add(self, piece: bytes) -> None:
        """Raises NotUnderstood when it grows too long, and httpx.ReadTimeout when it takes too long."""
        self._content += piece
        if len(self._content) > self._sending.most_bytes:
            raise NotUnderstood(
                f"the answer to {self._sending.method} {self._sending.path} is longer than "
                f"{self._sending.most_bytes:,} bytes",
                next_step="ask for less (top_k, limit), and see that url is that of `crossfade serve`",
                idempotency_key=self._sending.headers.get("Idempotency-Key"),
            )
        if self._clock() > self._ends_s:
            raise httpx.ReadTimeout("dripped")

    def whole(self) -> Reply:
        return Reply(self._status, self._headers, bytes(self._content))


def unpacked(headers: Mapping[str, str], settings: Settings) -> None:
    """Raises NotUnderstood for an answer that is compressed though it was not asked to be."""
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise NotUnderstood(
            f"{settings.url} packs its answers though it was asked not to",
            next_step="switch compression off at the proxy before `crossfade serve`",
        )


def _pause_s(error: ClientError, tried: int, settings: Settings) -> float:
    """As long as the server asks for; else twice as long each time, and never all clients at once."""
    if isinstance(error, Answered) and error.retry_after_s is not None:
        return error.retry_after_s
    return min(_LONGEST_BACKOFF_S, _FIRST_PAUSE_S * 2.0**tried) * (0.5 + settings.chance())


def _problem(came: Reply, settings: Settings) -> Problem | None:
    """None for what is no problem answer. Whoever answers with the key gets no other to show it to."""
    kind = came.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("application/problem+json", "application/json"):
        return None
    content = came.content
    if settings.key is not None:
        content = content.replace(settings.key.encode(), b"(the key)")
    try:
        said = orjson.loads(content)
        if not isinstance(said, dict):
            return None
        given = {"errors": said.get("errors") or (), "data": said.get("data") or {}}
        texts = {name: _plain(said[name]) for name in ("title", "detail", "type", "next_step") if name in said}
        command_id = said.get("command_id")
        return _PROBLEM.validate_python(
            {**given, **texts, "status": came.status, "command_id": _plain(command_id) if command_id else None}
        )
    except (orjson.JSONDecodeError, ValidationError, RecursionError):
        return None


def _plain(text: object) -> str:
    """For a terminal and a log: no control characters, and not without end."""
    return "".join(c if c.isprintable() or c == "\n" else " " for c in str(text)[:_LONGEST_TEXT])
