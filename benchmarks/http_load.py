"""A steady load of searches on a server, from a process of its own: each begun when it is due, whatever is under way.

Latency is counted from the moment a search was due, so a stall of the server, or of this process, counts for every
search that it held up. It must never send a search again, nor leave one out of the account.
"""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson

from benchmarks.gpu_server import quantile
from benchmarks.harness import ROOT

IDLE_S = 5.0
"""Connections that were not used for so long are closed: the server closes them itself after twice that."""
ANSWER_S = 30.0


@dataclass(frozen=True, slots=True)
class Load:
    """What to ask of whom. `path`: of a collection's search; `bodies`: asked in turn; `expected`: by space, the hits
    which that space alone gives to each of the bodies."""

    host: str
    port: int
    path: str
    key: str
    bodies: Sequence[Mapping[str, Any]]
    expected: Mapping[str, Sequence[Any]]
    per_s: float


@dataclass(frozen=True, slots=True)
class Answer:
    """`due_s`: on the system's monotonic clock; `took_s`: from then on. `space`: the one the answer names, "" when it
    failed. `late_s`: of `took_s`, what passed before it was sent."""

    due_s: float
    took_s: float
    late_s: float
    space: str
    failed: str = ""
    mixed: str = ""


@dataclass(slots=True)
class Account:
    """Every answer, once the load has ended."""

    answers: list[Answer] = field(default_factory=list)

    def window(self, begin_s: float, end_s: float) -> list[Answer]:
        """Those that were due in it."""
        return [answer for answer in self.answers if begin_s <= answer.due_s < end_s]


class Connection:
    """HTTP/1.1, kept open: one request after the other. `ask` raises OSError or EOFError when it breaks off."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.used_s = asyncio.get_running_loop().time()

    @classmethod
    async def open(cls, host: str, port: int) -> Connection:
        return cls(*await asyncio.open_connection(host, port))

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """The status and the body."""
        self._writer.write(request)
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
        body = await self._reader.readexactly(length)
        self.used_s = asyncio.get_running_loop().time()
        return int(head.split(b" ", 2)[1]), body

    def close(self) -> None:
        self._writer.close()


def request(host: str, port: int, path: str, key: str, body: Mapping[str, Any], method: str = "POST") -> bytes:
    """As bytes, for `Connection.ask`."""
    content = orjson.dumps(body)
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


def judged(status: int, body: bytes, expected: Mapping[str, Sequence[Any]], number: int) -> tuple[str, str, str]:
    """The space that the answer names, why it failed, what is mixed in it ("" twice for a whole answer)."""
    found = orjson.loads(body)
    if status != 200:
        return "", f"{status}: {found.get('detail')}", ""
    space = str(found["space"])
    if space not in expected:
        return space, "", f"{space} is no version's space"
    if not space.endswith(found["fingerprint"]) or found["hits"] != expected[space][number]:
        others = sorted({hit["space"] for hit in found["hits"]} - {space})
        held = f"holds hits of {', '.join(others)}" if others else "is not what that space alone answers"
        return space, "", f"an answer of {space} {held}"
    return space, "", ""


class _Loading:
    def __init__(self, load: Load) -> None:
        self._load = load
        self._requests = [request(load.host, load.port, load.path, load.key, body) for body in load.bodies]
        self._free: list[Connection] = []
        self.answers: list[Answer] = []

    async def run(self, stop: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        due_s, number = loop.time(), 0
        async with asyncio.TaskGroup() as group:
            while not stop.is_set():
                await asyncio.sleep(due_s - loop.time())
                while due_s <= loop.time():  # those that became due while this process was held up, with their time
                    group.create_task(self._one(number % len(self._requests), due_s))
                    number += 1
                    due_s += 1 / self._load.per_s
        for connection in self._free:
            connection.close()

    async def _one(self, number: int, due_s: float) -> None:
        loop = asyncio.get_running_loop()
        late_s = loop.time() - due_s
        connection: Connection | None = None
        try:
            async with asyncio.timeout(ANSWER_S):
                connection = await self._connection()
                status, body = await connection.ask(self._requests[number])
        except (OSError, EOFError, TimeoutError) as error:
            self.answers.append(Answer(due_s, loop.time() - due_s, late_s, "", type(error).__name__))
            if connection is not None:
                connection.close()
            return
        took_s = loop.time() - due_s
        self._free.append(connection)
        space, failed, mixed = judged(status, body, self._load.expected, number)
        self.answers.append(Answer(due_s, took_s, late_s, space, failed, mixed))

    async def _connection(self) -> Connection:
        """The one used last; a new one where none is free."""
        oldest_s = asyncio.get_running_loop().time() - IDLE_S
        while self._free and self._free[0].used_s < oldest_s:
            self._free.pop(0).close()
        return self._free.pop() if self._free else await Connection.open(self._load.host, self._load.port)


@asynccontextmanager
async def loaded(load: Load) -> AsyncIterator[Account]:
    """The load goes on for as long as the block does; the account is filled when the block has ended."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "benchmarks.http_load",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        limit=1 << 30,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    account = Account()
    try:
        process.stdin.write(orjson.dumps(asdict(load)) + b"\n")
        await process.stdin.drain()
        if await process.stdout.readline() != b"begun\n":
            raise RuntimeError("the load did not begin; what it said is above")
        yield account
        process.stdin.close()
        told = orjson.loads(await process.stdout.readline())
        account.answers = [Answer(*one) for one in told]
        await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _main() -> None:
    """The other side of `loaded`: what to ask comes on stdin, whose end ends it."""
    load = Load(**orjson.loads(await asyncio.to_thread(sys.stdin.buffer.readline)))
    loading, stop = _Loading(load), asyncio.Event()
    gc.freeze()
    gc.disable()  # what is kept here is in no cycle, and a collection would count as the server's time
    running = asyncio.create_task(loading.run(stop))
    sys.stdout.buffer.write(b"begun\n")
    sys.stdout.buffer.flush()
    await asyncio.to_thread(sys.stdin.buffer.readline)
    stop.set()
    await running
    rows = [(one.due_s, one.took_s, one.late_s, one.space, one.failed, one.mixed) for one in loading.answers]
    sys.stdout.buffer.write(orjson.dumps(rows) + b"\n")
    sys.stdout.buffer.flush()


def latencies_ms(answers: Sequence[Answer]) -> dict[str, float]:
    """`p50_ms`, `p99_ms`, `worst_ms` of those that were answered, and the p99 of what this side was late."""
    took_s = sorted(answer.took_s for answer in answers if not answer.failed)
    late_s = sorted(answer.late_s for answer in answers)
    return {
        "p50_ms": 1000 * (quantile(took_s, 0.5) or 0.0),
        "p99_ms": 1000 * (quantile(took_s, 0.99) or 0.0),
        "worst_ms": 1000 * (took_s[-1] if took_s else 0.0),
        "late_p99_ms": 1000 * (quantile(late_s, 0.99) or 0.0),
    }


if __name__ == "__main__":
    asyncio.run(_main())
