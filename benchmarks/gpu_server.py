"""A local HTTP server that takes the time a GPU embedding endpoint would take, and keeps exact books of what it served.

It computes nothing and must never be the limit itself: replies are ready-made bytes, and when a batch starts and ends
follows from the model below, not from when the event loop got round to it (a late timer delays one reply, and no slot).

The model. A request is one batch. `slots` batches run at a time, first come first served, each for
`base_s + per_token_s * texts * tokens of the longest text`: a batch is padded to its longest text. At most `queue`
requests wait; the next one is answered 429. A token is four characters. Work once accepted is done, also when the
client has gone away. Two shapes: TEI's `/embed` and `/info`, OpenAI's `/v1/embeddings` (float and base64).

Beside these: GET /stats, GET /latencies, POST /reset (new books, clock and buckets; faults stay), POST /mark (a client
was restarted), POST /faults (a JSON object with fields of Faults).
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import heapq
import math
import os
import random
import signal
import struct
import sys
from array import array
from dataclasses import asdict, dataclass, fields
from email.utils import formatdate
from functools import lru_cache
from time import time
from typing import Literal, get_args

import orjson

MODEL = "benchmark-model"
DIMENSIONS = 64
VECTOR = (DIMENSIONS**-0.5,) * DIMENSIONS  # of length 1
CHARS_PER_TOKEN = 4

RetryAfter = Literal["none", "seconds", "date"]


@dataclass(frozen=True, slots=True)
class Model:
    """What the endpoint can do. `documents_per_s` is its capacity with all slots full of batches of `batch` texts of
    `tokens` tokens each; limits a minute are 0 for none, and `burst_s` seconds of them may be used at once."""

    documents_per_s: float = 1500.0
    slots: int = 4
    batch: int = 32
    tokens: int = 64
    base_s: float = 0.004
    queue: int = 512
    max_batch: int = 256
    max_tokens: int = 512
    requests_per_minute: float = 0.0
    tokens_per_minute: float = 0.0
    burst_s: float = 1.0
    retry_after: RetryAfter = "none"

    def __post_init__(self) -> None:
        if self.per_token_s <= 0:
            raise ValueError(f"base_s {self.base_s} alone takes longer than {self.documents_per_s:g} documents/s allow")

    @property
    def per_token_s(self) -> float:
        """Seconds of a slot for one token of the padded batch."""
        return (self.slots * self.batch / self.documents_per_s - self.base_s) / (self.batch * self.tokens)

    def service_s(self, texts: int, longest: int) -> float:
        """How long a slot is busy with a batch of so many texts, of which the longest has so many tokens."""
        return self.base_s + self.per_token_s * texts * longest


@dataclass(slots=True)
class Faults:
    """Shares of requests between 0 and 1, drawn in this order. `error`: 500, nothing served. `hang`: never answered,
    nothing served. `cut`: served, and the connection cut in the middle of the reply. `slow`: served, `slow_factor`
    times slower. `down_s`: for so long from now on every request gets 503, or its connection cut (`down_cuts`)."""

    error: float = 0.0
    hang: float = 0.0
    cut: float = 0.0
    slow: float = 0.0
    slow_factor: float = 10.0
    down_s: float = 0.0
    down_cuts: bool = False
    seed: float = 1


@dataclass(slots=True)
class Books:
    """Counts since the last reset. A text is served when its batch ran; `delivered` when its reply was also written
    whole to a connection that was open. Served again is told apart by what had become of it before: `lost` (no
    reply of it was ever delivered), `restart` (delivered, before the last mark), `wasted` (delivered, since then)."""

    requests: int = 0
    requests_served: int = 0
    refused_queue: int = 0
    refused_rate: int = 0
    refused_size: int = 0
    refused_down: int = 0
    faults_error: int = 0
    faults_hang: int = 0
    faults_cut: int = 0
    faults_slow: int = 0
    texts: int = 0
    tokens: int = 0
    tokens_padded: int = 0
    texts_undelivered: int = 0
    texts_again_lost: int = 0
    texts_again_restart: int = 0
    texts_wasted: int = 0
    tokens_again_lost: int = 0
    tokens_again_restart: int = 0
    tokens_wasted: int = 0
    most_waiting: int = 0


class Bucket:
    """So many units a minute, `burst_s` seconds' worth of them at once; full at the start. 0 a minute: no limit."""

    def __init__(self, per_minute: float, burst_s: float, now: float) -> None:
        self.rate = per_minute / 60
        self.size = self.rate * burst_s
        self.begun = now
        self._level = self.size
        self._at = now

    def wait_s(self, units: float, now: float) -> float:
        """0 when there are so many (nothing is taken yet), else how long until there are."""
        if not self.rate:
            return 0.0
        self._level = min(self.size, self._level + (now - self._at) * self.rate)
        self._at = now
        # what is larger than the bucket passes when it is full, and leaves a debt
        return max(0.0, (min(units, self.size) - self._level) / self.rate)

    def take(self, units: float) -> None:
        if self.rate:
            self._level -= units

    def allowed(self, now: float) -> float:
        """The most that could have passed from the start to now."""
        return self.size + self.rate * (now - self.begun)


@dataclass(slots=True)
class Batch:
    """One accepted request, by the loop's clock."""

    arrived: float
    start: float
    end: float
    texts: list[str]
    sizes: list[int]


class Endpoint:
    """The model at work and its books; knows nothing of HTTP. Times are seconds of one clock that never goes back."""

    def __init__(self, model: Model, now: float) -> None:
        self.model = model
        self.faults = Faults()
        self._random = random.Random(self.faults.seed)
        self._down_until = now
        self._free = [now] * model.slots  # a heap: when each slot is free
        self._ends: list[tuple[float, float]] = []  # a heap: end and start of what is accepted and not over
        self.reset(now)

    def reset(self, now: float) -> None:
        """New books. Of batches under way, what is still to do counts in them."""
        self._begun = now
        self.books, self.latencies = Books(), array("d")
        self._requests = Bucket(self.model.requests_per_minute, self.model.burst_s, now)
        self._tokens = Bucket(self.model.tokens_per_minute, self.model.burst_s, now)
        self._delivered: dict[int, int] = {}  # hash of a text: marks there had been when it was delivered
        self._lost: set[int] = set()
        self._mark = 0
        self._busy = sum(end - max(now, start) for end, start in self._ends if end > now)
        self._first: float | None = None
        self._last = now

    def mark(self) -> None:
        """A client was restarted: what it is served again from now on, it may not know that it had."""
        self._mark += 1

    def set_faults(self, faults: Faults, now: float) -> None:
        self.faults = faults
        self._random = random.Random(faults.seed)
        self._down_until = now + faults.down_s

    def down(self, now: float) -> bool:
        return now < self._down_until

    def draw(self) -> str:
        """The fault this request meets, or ""."""
        drawn = self._random.random()
        for name in ("error", "hang", "cut", "slow"):
            drawn -= getattr(self.faults, name)
            if drawn < 0:
                return name
        return ""

    def refuse(self, texts: list[str], now: float) -> tuple[int, float] | None:
        """Status and seconds to wait when these texts cannot be taken now; else None."""
        books = self.books
        if len(texts) > self.model.max_batch or max(map(tokens_of, texts)) > self.model.max_tokens:
            books.refused_size += 1
            return 413, 0.0
        wanted = sum(map(tokens_of, texts))
        if wait_s := max(self._requests.wait_s(1, now), self._tokens.wait_s(wanted, now)):
            books.refused_rate += 1
            return 429, wait_s
        self._forget(now)
        if len(self._ends) >= self.model.slots + self.model.queue:
            books.refused_queue += 1
            return 429, max(0.0, self._free[0] - now)
        return None

    def accept(self, texts: list[str], now: float, slower: float = 1.0) -> Batch:
        """Give the batch its slot and its times. Only when `refuse` said None for them at the same `now`."""
        books = self.books
        sizes = [tokens_of(text) for text in texts]
        total, longest = sum(sizes), max(sizes)
        self._requests.take(1)
        self._tokens.take(total)
        start = max(now, self._free[0])
        end = start + self.model.service_s(len(texts), longest) * slower
        heapq.heapreplace(self._free, end)
        heapq.heappush(self._ends, (end, start))
        self._busy += end - start
        self._first = now if self._first is None else self._first
        self._last = max(self._last, end)
        books.most_waiting = max(books.most_waiting, len(self._ends) - self.model.slots)
        return Batch(now, start, end, texts, sizes)

    def finish(self, batch: Batch, delivered: bool, now: float) -> None:
        """The batch has run, and its reply was written whole, or could not be."""
        books = self.books
        books.requests_served += 1
        books.texts += len(batch.texts)
        books.tokens += sum(batch.sizes)
        books.tokens_padded += max(batch.sizes) * len(batch.texts)
        for text, size in zip(batch.texts, batch.sizes, strict=True):
            known = hash(text)
            if (mark := self._delivered.get(known)) is not None:
                if mark == self._mark:
                    books.texts_wasted += 1
                    books.tokens_wasted += size
                else:
                    books.texts_again_restart += 1
                    books.tokens_again_restart += size
            elif known in self._lost:
                books.texts_again_lost += 1
                books.tokens_again_lost += size
            if delivered:
                self._delivered[known] = self._mark
            else:
                self._lost.add(known)
        if delivered:
            self.latencies.append(now - batch.arrived)
        else:
            books.texts_undelivered += len(batch.texts)

    def _forget(self, now: float) -> None:
        while self._ends and self._ends[0][0] <= now:
            heapq.heappop(self._ends)

    def stats(self, now: float) -> dict[str, object]:
        """The books, and from them: `span_s` from the first request to the last end (or now, when that is earlier),
        and `busy`, the share of the slots' time in that span in which they ran."""
        self._forget(now)
        busy_s = self._busy - sum(end - max(now, start) for end, start in self._ends)
        span_s = 0.0 if self._first is None else min(now, self._last) - self._first
        return {
            **asdict(self.books),
            "texts_delivered": len(self._delivered),  # different ones
            "elapsed_s": now - self._begun,
            "span_s": span_s,
            "busy_s": busy_s,
            "busy": busy_s / (span_s * self.model.slots) if span_s > 0 else 0.0,
            "in_progress": len(self._ends),
            "requests_allowed": self._requests.allowed(now),
            "tokens_allowed": self._tokens.allowed(now),
            "latency_s": {f"p{q}": quantile(self.latencies, q / 100) for q in (50, 90, 99, 100)},
        }


def tokens_of(text: str) -> int:
    return len(text) // CHARS_PER_TOKEN + 1


def quantile(values: array[float] | list[float], share: float) -> float | None:
    """The smallest value that at least this share of the values does not exceed; None of no values."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


_FLOATS = orjson.dumps(VECTOR)
_BASE64 = b'"' + base64.b64encode(struct.pack(f"<{DIMENSIONS}f", *VECTOR)) + b'"'


@lru_cache(maxsize=1024)
def _tei_reply(count: int) -> bytes:
    return b"[" + b",".join([_FLOATS] * count) + b"]"


@lru_cache(maxsize=1024)
def _openai_items(count: int, vector: bytes) -> bytes:
    items = (b'{"object":"embedding","index":%d,"embedding":%b}' % (index, vector) for index in range(count))
    return b'{"object":"list","model":"%b","data":[%b]' % (MODEL.encode(), b",".join(items))


def _openai_reply(count: int, tokens: int, vector: bytes) -> bytes:
    usage = b',"usage":{"prompt_tokens":%d,"total_tokens":%d}}' % (tokens, tokens)
    return _openai_items(count, vector) + usage


_REASONS = {200: b"OK", 400: b"Bad Request", 404: b"Not Found", 411: b"Length Required", 413: b"Payload Too Large"}
_REASONS |= {429: b"Too Many Requests", 500: b"Internal Server Error", 503: b"Service Unavailable"}


class Connection(asyncio.Protocol):
    """HTTP/1.1 with Content-Length and keep-alive, one request after the other; what no client here needs is not there.

    A request that arrives before the last one is answered waits in the buffer.
    """

    def __init__(self, endpoint: Endpoint, loop: asyncio.AbstractEventLoop) -> None:
        self._endpoint = endpoint
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._head: tuple[bytes, bytes, int] | None = None  # method, path, body length
        self._answering = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._next()

    def _next(self) -> None:
        while not self._answering and self._transport is not None:
            if self._head is None:
                end = self._buffer.find(b"\r\n\r\n")
                if end < 0:
                    return
                lines = bytes(self._buffer[:end]).split(b"\r\n")
                del self._buffer[: end + 4]
                method, path, _ = lines[0].split(b" ", 2)
                length = 0
                for line in lines[1:]:
                    name, _, value = line.partition(b":")
                    if name.lower() == b"content-length":
                        length = int(value)
                    elif name.lower() == b"transfer-encoding":
                        self._send(411, b"{}")
                        self._cut()
                        return
                self._head = method, path, length
            method, path, length = self._head
            if len(self._buffer) < length:
                return
            body = bytes(self._buffer[:length])
            del self._buffer[:length]
            self._head = None
            self._handle(method, path, body)

    def _handle(self, method: bytes, path: bytes, body: bytes) -> None:
        endpoint, now = self._endpoint, self._loop.time()
        match method, path:
            case b"POST", b"/embed":
                self._embed(body, now, openai=False)
            case b"POST", b"/v1/embeddings" | b"/embeddings":
                self._embed(body, now, openai=True)
            case b"GET", b"/info":
                self._send(200, orjson.dumps(_info(endpoint.model)))
            case b"GET", b"/health" | b"/":
                self._send(200, b"{}")
            case b"GET", b"/stats":
                self._send(200, orjson.dumps(endpoint.stats(now)))
            case b"GET", b"/latencies":
                self._send(200, orjson.dumps(list(endpoint.latencies)))
            case b"POST", b"/reset":
                endpoint.reset(now)
                self._send(200, b"{}")
            case b"POST", b"/mark":
                endpoint.mark()
                self._send(200, b"{}")
            case b"POST", b"/faults":
                try:
                    endpoint.set_faults(Faults(**orjson.loads(body or b"{}")), now)
                except (orjson.JSONDecodeError, TypeError):
                    names = ", ".join(one.name for one in fields(Faults))
                    self._send(400, orjson.dumps({"error": f"a JSON object with some of: {names}"}))
                    return
                self._send(200, b"{}")
            case _:
                self._send(404, b"{}")

    def _embed(self, body: bytes, now: float, *, openai: bool) -> None:
        endpoint = self._endpoint
        books = endpoint.books
        books.requests += 1
        if endpoint.down(now):
            books.refused_down += 1
            if endpoint.faults.down_cuts:
                self._cut()
            else:
                self._send(503, b'{"error":"down"}')
            return
        fault = endpoint.draw()
        if fault == "error":
            books.faults_error += 1
            self._send(500, b'{"error":"a fault on demand"}')
            return
        if fault == "hang":
            books.faults_hang += 1
            self._answering = True
            return
        try:
            request = orjson.loads(body)
            texts = request["input" if openai else "inputs"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            self._send(400, b'{"error":"no texts"}')
            return
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            self._send(400, b'{"error":"no texts"}')
            return
        if (refused := endpoint.refuse(texts, now)) is not None:
            self._send(refused[0], b'{"error":"refused"}', self._retry_after(*refused))
            return
        if fault == "slow":
            books.faults_slow += 1
        batch = endpoint.accept(texts, now, endpoint.faults.slow_factor if fault == "slow" else 1.0)
        if openai:
            vector = _BASE64 if request.get("encoding_format") == "base64" else _FLOATS
            reply = _openai_reply(len(texts), sum(map(tokens_of, texts)), vector)
        else:
            reply = _tei_reply(len(texts))
        self._answering = True
        self._loop.call_at(batch.end, self._reply, batch, reply, fault == "cut")

    def _reply(self, batch: Batch, reply: bytes, cut: bool) -> None:
        self._answering = False
        alive = self._transport is not None and not self._transport.is_closing()
        if cut:
            self._endpoint.books.faults_cut += 1
        if alive and cut:
            self._send(200, reply, whole=False)
            self._cut()
        elif alive:
            self._send(200, reply)
        self._endpoint.finish(batch, alive and not cut, self._loop.time())
        self._next()

    def _retry_after(self, status: int, wait_s: float) -> bytes:
        how = self._endpoint.model.retry_after
        if status != 429 or how == "none":
            return b""
        seconds = max(1, math.ceil(wait_s))  # the header knows whole seconds only
        value = str(seconds) if how == "seconds" else formatdate(math.ceil(time() + seconds), usegmt=True)
        return b"Retry-After: %b\r\n" % value.encode()

    def _send(self, status: int, body: bytes, header: bytes = b"", *, whole: bool = True) -> None:
        if self._transport is None:
            return
        head = b"HTTP/1.1 %d %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%b\r\n"
        head %= (status, _REASONS[status], len(body), header)
        self._transport.write(head + (body if whole else body[: len(body) // 2]))

    def _cut(self) -> None:
        if self._transport is not None:
            self._transport.close()


def _info(model: Model) -> dict[str, object]:
    """The part of TEI's /info that clients go by."""
    return {
        "model_id": MODEL,
        "model_sha": "1",
        "max_concurrent_requests": model.slots + model.queue,
        "max_input_length": model.max_tokens,
        "max_batch_tokens": model.max_batch * model.max_tokens,
        "max_client_batch_size": model.max_batch,
    }


async def serve(model: Model, port: int = 0) -> asyncio.Server:
    """Listens on the loopback interface only; port 0 takes a free one."""
    loop = asyncio.get_running_loop()
    endpoint = Endpoint(model, loop.time())
    return await loop.create_server(lambda: Connection(endpoint, loop), "127.0.0.1", port, backlog=1024)


async def _main(model: Model, port: int, tied: bool) -> None:
    """Serves until SIGTERM or SIGINT; when `tied`, at most until its stdin is closed."""
    server = await serve(model, port)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if tied:  # a harness that is killed must not leave servers behind
        loop.add_reader(sys.stdin, lambda: None if os.read(sys.stdin.fileno(), 4096) else stop.set())
    bound = server.sockets[0].getsockname()[1]
    print(orjson.dumps({"url": f"http://127.0.0.1:{bound}", **asdict(model)}).decode(), flush=True)
    await stop.wait()
    server.close()


def main() -> None:
    """One option for each field of Model. The first line on stdout is a JSON object with `url`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_server", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--tied", action="store_true", help="end when stdin is closed")
    defaults = Model()
    for one in fields(Model):
        value = getattr(defaults, one.name)
        choices = get_args(RetryAfter) if one.name == "retry_after" else None
        parser.add_argument(f"--{one.name.replace('_', '-')}", type=type(value), default=value, choices=choices)
    given = vars(parser.parse_args())
    port, tied = given.pop("port"), given.pop("tied")
    asyncio.run(_main(Model(**given), port, tied))


if __name__ == "__main__":
    main()
