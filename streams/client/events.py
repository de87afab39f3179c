"""Progress as it happens: server-sent events, read as they come, and asked for again when the stream breaks off.

It never keeps more of an event than an event may have, and never trusts that a line ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import httpx
from pydantic import ValidationError

from streams.client.answers import Version
from streams.client.errors import ClientError, NoAnswer, NotUnderstood, TryLater
from streams.client.exchange import CONNECT_S, Broken, Call, Reply, Sending, refusal, unpacked
from streams.client.settings import Settings

SILENT_S = 45.0
"""The server gives a sign of life every 15 s."""
MOST_EVENT_BYTES = 1 << 20
_PAUSE_S = 1.0


@dataclass(frozen=True, slots=True)
class Event:
    """`name`: `message` where the stream does not say."""

    name: str
    data: bytes


class Parser:
    """Server-sent events (WHATWG HTML, 9.2) out of bytes in any pieces; comments, ids and retries are passed over."""

    def __init__(self, most_bytes: int = MOST_EVENT_BYTES) -> None:
        self._most = most_bytes
        self._rest = b""
        self._name = b""
        self._data: list[bytes] = []
        self._size = 0
        self._first = True

    def feed(self, piece: bytes) -> Iterator[Event]:
        """The events that end in this piece. Raises NotUnderstood for one that grows too long."""
        text = self._rest + piece
        if self._first and len(text) >= 3:
            text = text.removeprefix(b"\xef\xbb\xbf")
            self._first = False
        held = text[-1:] == b"\r"  # a line feed may follow it
        lines = text[: len(text) - held].replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._rest = lines.pop() + b"\r" * held
        for line in lines:
            yield from self._line(line)
        if self._size + len(self._rest) > self._most:
            raise self._too_long()

    def _line(self, line: bytes) -> Iterator[Event]:
        if not line:
            if self._data:
                yield Event(self._name.decode(errors="replace") or "message", b"\n".join(self._data))
            self._name, self._data, self._size = b"", [], 0
            return
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"event":
            self._name = value
        elif name == b"data":
            self._data.append(value)
            self._size += len(value) + 1
        if self._size > self._most:
            raise self._too_long()

    def _too_long(self) -> NotUnderstood:
        return NotUnderstood(
            f"an event is longer than {self._most:,} bytes", next_step="see that url is that of `crossfade serve`"
        )


class Following:
    """The progress of one version over as many streams as it takes. A change is given once, whichever stream tells
    it."""

    def __init__(self, call: Call[Version], settings: Settings) -> None:
        self._settings = settings
        self._call = call
        self._sending = replace(call.sending(settings), headers={"Accept": "text/event-stream"}, timeout_s=SILENT_S)
        self._parser = Parser()
        self._last = b""
        self._failed = 0

    @property
    def sending(self) -> Sending:
        return self._sending

    @property
    def timeout(self) -> httpx.Timeout:
        """Of each wait; the whole has no end."""
        return httpx.Timeout(min(self._settings.timeout_s, CONNECT_S), read=SILENT_S)

    def begins(self, response: httpx.Response) -> bool:
        """Whether it is a stream of events; else it is an answer, to be given to `ended`. Raises NotUnderstood."""
        self._parser = Parser()
        if not response.is_success:
            return False
        headers = {name.lower(): value for name, value in response.headers.items()}
        unpacked(headers, self._settings)
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "text/event-stream":
            raise NotUnderstood(
                f"{self._settings.url} answered {self._sending.path} with no stream of events",
                next_step="see that url is that of `crossfade serve`",
            )
        return True

    def feed(self, piece: bytes) -> Iterator[Version]:
        """Raises NotUnderstood for events that are none of these."""
        for event in self._parser.feed(piece):
            if event.name != "progress" or event.data == self._last:
                continue
            self._last, self._failed = event.data, 0
            try:
                yield self._call.read(event.data)
            except ValidationError:
                raise NotUnderstood(
                    "an event is not what this client knows of progress",
                    next_step="install the client of the server's version",
                ) from None

    def ended(self, came: Reply | Broken | None) -> float:
        """A stream is over: by its end (None), or broken, or refused. Seconds after which to ask for the next; raises
        ClientError when there is no use in it, or when it went wrong too often in a row."""
        error: ClientError = NoAnswer(
            f"{self._settings.url} ended its events", next_step="see that `crossfade serve` runs, and ask again"
        )
        again, pause_s = True, _PAUSE_S
        if isinstance(came, Broken):
            error, again = came.error, came.again or isinstance(came.error, NoAnswer)
        elif came is not None:
            error = refusal(came, self._settings, f"{self._sending.method} {self._sending.path}")
            again = isinstance(error, TryLater)
            if isinstance(error, TryLater) and error.retry_after_s is not None:
                pause_s = max(pause_s, error.retry_after_s)
        self._failed += 1
        if not again or self._failed > self._settings.retries + 1 or pause_s > self._settings.longest_pause_s:
            raise error
        return min(pause_s * 2.0 ** (self._failed - 1), self._settings.longest_pause_s) * (
            0.5 + self._settings.chance() if pause_s == _PAUSE_S else 1.0
        )
