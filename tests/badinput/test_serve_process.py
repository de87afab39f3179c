"""A real `crossfade serve` and what comes over real sockets: tricks in paths and heads, callers who go away, who send
or read slowly, and far too many of them. It goes on answering others, and what it took for them comes back.

Its log must never hold a stack trace, nor anything that was sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import JsonValue

from benchmarks.harness import held_mb
from benchmarks.search import filled
from connectors.services import Addresses
from streams.api.listening import Room
from tests.conftest import MakeTopic, Unique
from tests.deployment import COLLECTION, Deployment, deployed
from tests.faults.tei_server import DIMENSIONS, TeiServer, tei_server
from tests.serving import KEY, listens, serving

SEARCH = f"/collections/{COLLECTION}/search"
PAUSE = f"/collections/{COLLECTION}/versions/v1/pause"
MARK = "zebra-mark"
AUTHORIZED = {"Authorization": f"Bearer {KEY}"}
IN_FLIGHT = 32
MANY = 10_000
HOLD = """
import asyncio, resource, sys
async def main(port, many):
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    opened = []
    async def one():
        try:
            opened.append(await asyncio.open_connection("127.0.0.1", port))
            opened[-1][1].write(b"GET /healthz HTTP/1.1\\r\\n")
        except OSError:
            pass
    for at in range(0, many, 500):
        await asyncio.gather(*(one() for _ in range(min(500, many - at))))
    print(len(opened), flush=True)
    await asyncio.to_thread(sys.stdin.readline)
asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
"""


@dataclass
class Process:
    """A server that v1 answers from, with an endpoint for its model; no worker runs, so no verb has an outcome."""

    d: Deployment
    endpoint: TeiServer
    server: subprocess.Popen[bytes]
    host: str
    port: int

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def files(self) -> int:
        return len(os.listdir(f"/proc/{self.server.pid}/fd"))

    def log(self) -> str:
        return (self.d.folder / "serve.log").read_text(errors="replace")

    async def raw(self, sent: bytes) -> bytes:
        """All that comes back until the connection ends, or nothing more is said for a while after an answer."""
        reader, writer = await asyncio.open_connection(self.host, self.port)
        came = b""
        try:
            writer.write(sent)
            async with asyncio.timeout(10):
                while b"\r\n\r\n" not in came and (piece := await reader.read(65_536)):
                    came += piece
                head, _, body = came.partition(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
                while len(body) < length and (piece := await reader.read(65_536)):
                    body += piece
            return head + b"\r\n\r\n" + body
        finally:
            writer.transport.abort()

    async def until_calm(self, files: int) -> None:
        """It holds no more files than that again. Polled: nobody else could tell."""
        async with asyncio.timeout(60):
            while self.files > files:  # noqa: ASYNC110
                await asyncio.sleep(0.1)


@asynccontextmanager
async def process(
    services: Addresses, folder: Path, unique: Unique, topic: str, **section: JsonValue
) -> AsyncIterator[Process]:
    collection: dict[str, JsonValue] = {"text": {"fields": ["text"]}}
    async with (
        tei_server() as endpoint,
        deployed(services, folder, unique("cf"), topic, unique("Docs"), collection) as d,
    ):
        listens(d, requests_per_minute=1_000_000, in_flight=IN_FLIGHT, **section)
        embedder: dict[str, JsonValue] = {
            "provider": "tei",
            "url": endpoint.url,
            "model": "acme/words",
            "timeout_s": 60,
        }
        d.add_version("v1", {"embedder": embedder, "dimensions": DIMENSIONS})
        await filled(d, d.out.store, 20)
        async with serving(d) as (curl, server):
            host, _, port = curl.url.removeprefix("http://").partition(":")
            yield Process(d, endpoint, server, host, int(port))
            assert server.poll() is None, "it has ended"
        log = (d.folder / "serve.log").read_text(errors="replace")
        assert "Traceback" not in log, log
        assert "a defect" not in log, log
        assert MARK not in log


@pytest.fixture
async def p(services: Addresses, tmp_path: Path, unique: Unique, make_topic: MakeTopic) -> AsyncIterator[Process]:
    async with process(services, tmp_path, unique, make_topic(1), timeout_s=20) as one:
        yield one


def is_problem(came: bytes) -> dict[str, Any]:
    head, _, body = came.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 4"), came[:300]
    assert b"content-type: application/problem+json" in head.lower(), came[:300]
    found: dict[str, Any] = json.loads(body)
    assert found["title"]
    assert found["detail"]
    assert found["next_step"]
    assert MARK.encode() not in came
    return found


async def answers(p: Process, query: str = "asked before") -> httpx.Response:
    async with httpx.AsyncClient(base_url=p.url, headers=AUTHORIZED, timeout=20) as http:
        assert (await http.get("/healthz")).status_code == 200
        return await http.post(SEARCH, json={"query": query})


async def told(p: Process) -> httpx.Response:
    async with httpx.AsyncClient(base_url=p.url, headers=AUTHORIZED, timeout=20) as http:
        return await http.get(f"/collections/{COLLECTION}")


TARGETS = [
    b"/collections/..%2f..%2fetc%2fpasswd",
    b"/collections/docs%2fsearch",
    b"/collections/docs%2Fversions%2Fv1",
    b"/collections/%2e%2e/docs",
    b"/collections/docs/../../zebra-mark",
    b"/collections/./docs",
    b"//collections/docs",
    b"/collections//docs",
    b"/collections/docs%00",
    b"/collections/docs%0d%0aX:%20zebra-mark",
    b"/collections/%ff%fe",
    b"/collections/%F0%9F%92%A5",
    b"/collections/d\xc3\xb6cs",
    b"/collections/%zz",
    b"/collections/%",
    b"/collections/docs;zebra-mark",
    b"/collections/docs%3fzebra-mark",
    b"/collections/" + b"%2e" * 1000,
    b"/collections/" + b"a" * 20_000,
    b"/collections/" + b"a" * 100_000,
    b"/collections/docs/versions/..%5c..%5cv1",
    b"/collections/docs/vector-spaces/v1%2f..%2fv2/status",
    b"*",
    b"zebra-mark",
    b"/collections/do\x00cs",
    b"/collections/do cs",
]
HEADS = {
    "no HTTP": b"zebra-mark\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "another HTTP": b"GET /nothing HTTP/9.9\r\nHost: localhost\r\n\r\n",
    "no host": b"GET /collections HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /collections HTTP/1.1\r\nHost: a\r\nHost: zebra-mark\r\n\r\n",
    "two lengths": b"POST /collections HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcde",
    "a negative length": b"POST /collections HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
    "a length without an end": b"POST /collections HTTP/1.1\r\nHost: a\r\nContent-Length: " + b"9" * 500 + b"\r\n\r\n",
    "no chunk": f"POST {SEARCH} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{MARK}\r\n".encode(),
    "another transfer": f"POST {SEARCH} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: {MARK}\r\n\r\n".encode(),
    "a folded header": b"GET /collections HTTP/1.1\r\nHost: a\r\nX: b\r\n zebra-mark\r\n\r\n",
    "a nameless header": b"GET /collections HTTP/1.1\r\nHost: a\r\n: zebra-mark\r\n\r\n",
    "a NUL": b"GET /collections HTTP/1.1\r\nHost: a\r\nX: zebra-mark\x00\r\n\r\n",
    "a large head": b"GET /collections HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 60_000 + b"\r\n\r\n",
    "an upgrade": b"GET /nothing HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    "a tunnel": b"CONNECT zebra-mark:443 HTTP/1.1\r\nHost: zebra-mark:443\r\n\r\n",
}


async def test_paths_and_heads_as_nobody_should_send_them(p: Process) -> None:
    for target in TARGETS:
        head = b" HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + KEY.encode() + b"\r\n\r\n"
        found = is_problem(await p.raw(b"GET " + target + head))
        assert found["status"] in (400, 404, 422), target
    for what, sent in HEADS.items():
        found = is_problem(await p.raw(sent))
        assert found["status"] in (400, 401, 404, 413), what
    assert (await answers(p)).status_code == 200


async def test_whoever_goes_away_is_not_worked_for_any_more(p: Process) -> None:
    """In the middle of a search and of a verb; all places at once are taken by such callers, and free again. Searches
    take none of the others' places, nor they theirs."""
    assert (await answers(p)).status_code == 200, "from now on its vector is kept"
    before = p.files
    p.endpoint.answer_after_s = 60
    for method_path, body, full, beside in (
        (SEARCH, {"query": MARK}, answers, told),
        (PAUSE, {"why": MARK}, told, answers),
    ):
        writers = []
        for _ in range(IN_FLIGHT):
            _, writer = await asyncio.open_connection(p.host, p.port)
            writer.write(_request(method_path, body))
            writers.append(writer)
        await _until(partial(_is, 503, full, p))
        assert (await beside(p)).status_code == 200
        for writer in writers:
            writer.transport.abort()
        await _until(partial(_is, 200, full, p))
    await p.until_calm(before + 5)


async def _is(wanted: int, asked: Callable[[Process], Awaitable[httpx.Response]], p: Process) -> bool:
    answer = await asked(p)
    if answer.status_code == 503:
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["type"] == "urn:crossfade:problem:busy"
    return answer.status_code == wanted


async def _until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(15):
        while not await condition():  # noqa: ASYNC110  polled, as a caller would
            await asyncio.sleep(0.05)


def _request(path: str, body: Mapping[str, object], headers: str = "") -> bytes:
    content = json.dumps(body).encode()
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\n"
        f"{headers}Content-Length: {len(content)}\r\n\r\n"
    ).encode() + content


async def test_slow_callers_hold_nobody_up(
    services: Addresses, tmp_path: Path, unique: Unique, make_topic: MakeTopic
) -> None:
    async with process(services, tmp_path, unique, make_topic(1), timeout_s=3) as p:
        before = p.files
        events = f"GET /collections/{COLLECTION}/versions/v1/events HTTP/1.1\r\nHost: a\r\n"
        following = []
        for _ in range(IN_FLIGHT // 4):  # streams that nobody reads
            _, writer = await asyncio.open_connection(p.host, p.port, limit=1024)
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(f"{events}Authorization: Bearer {KEY}\r\n\r\n".encode())
            following.append(writer)
        whole = _request(SEARCH, {"query": MARK})
        head, _, body = whole.partition(b"\r\n\r\n")

        async def drip() -> bytes | None:
            """None: what was still on its way when the server had answered has reset the connection."""
            reader, writer = await asyncio.open_connection(p.host, p.port)
            writer.write(head + b"\r\n\r\n")
            came = asyncio.create_task(reader.read())
            with contextlib.suppress(OSError):
                for at in range(len(body) - 1):
                    if came.done():
                        break
                    writer.write(body[at : at + 1])
                    await writer.drain()
                    await asyncio.sleep(0.4)
            try:
                return await came
            except ConnectionResetError:
                return None
            finally:
                writer.close()

        dripping = [asyncio.create_task(drip()) for _ in range(IN_FLIGHT // 2)]
        assert (await answers(p)).status_code == 200, "others are answered meanwhile"
        async with asyncio.timeout(30):
            heard = [found for found in await asyncio.gather(*dripping) if found is not None]
        assert len(heard) > len(dripping) // 2
        assert {is_problem(found)["status"] for found in heard} == {408}
        for writer in following:
            writer.transport.abort()
        await p.until_calm(before + 5)


async def test_ten_thousand_connections_come_and_go(p: Process) -> None:
    """Each has begun a request and does not go on. Others are answered meanwhile; afterwards files and memory are as
    before: the second time takes no more than the first."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]  # what the server raises its own to
    many = MANY if hard == resource.RLIM_INFINITY else min(MANY, Room.of(hard).connections - 50)
    assert (await answers(p)).status_code == 200
    before = p.files
    held: list[float] = []
    for _ in range(2):
        async with _many(p, many) as opened:
            assert opened == many
            for _ in range(10):
                assert (await answers(p)).status_code == 200
        await p.until_calm(before + 5)
        assert (await answers(p)).status_code == 200
        held.append(held_mb(p.server.pid))
    assert held[1] <= 1.1 * held[0], held


@asynccontextmanager
async def _many(p: Process, many: int) -> AsyncIterator[int]:
    """From a process of its own: how many it could open."""
    opening = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        HOLD,
        str(p.port),
        str(many),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert opening.stdout is not None
    try:
        async with asyncio.timeout(90):
            yield int(await opening.stdout.readline())
    finally:
        opening.kill()
        await opening.wait()


async def test_more_connections_than_files(
    services: Addresses, tmp_path: Path, unique: Unique, make_topic: MakeTopic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those beyond what the process may open are told so, or closed; when the others are gone, all is as before."""
    limited = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (700, 700)); "
    monkeypatch.setattr("tests.serving.RUN_CROSSFADE", limited + "from streams.cli import main; main()")
    async with process(services, tmp_path, unique, make_topic(1)) as p:
        before = p.files
        async with _many(p, 2_000):
            told = b""
            async with asyncio.timeout(15):  # a connection is closed where there is no room even for an answer
                while b"problem:busy" not in told:
                    with contextlib.suppress(OSError):
                        told = await p.raw(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
                    if told.startswith(b"HTTP/1.1 200"):
                        break
            assert p.files < 700
            if not told.startswith(b"HTTP/1.1 200"):
                assert b"application/problem+json" in told
                assert json.loads(told.partition(b"\r\n\r\n")[2])["next_step"]
        await p.until_calm(before + 5)
        assert (await answers(p)).status_code == 200
