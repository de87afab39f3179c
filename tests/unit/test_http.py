"""The client all HTTP embedders share, against real servers on loopback: what it sends, bears and refuses."""

from __future__ import annotations

import asyncio
import gzip
import json
import time

import httpx
import pytest

from connectors.embedders.http import most_bytes
from connectors.embedders.tei import TeiEmbedder
from connectors.embedders.transport import ConnectionsTransport
from connectors.errors import (
    AccessDenied,
    ConfigurationError,
    Transient,
    Unreachable,
    WrongModel,
)
from tests.unit.loopback import KEY, TEXT, VECTOR, Answer, Loopback, Request, always, caught, listening, loopback, reply


async def test_a_connection_is_used_again() -> None:
    async with loopback(always(VECTOR)) as server:
        embedder = TeiEmbedder(server.url(), api_key=KEY)
        for _ in range(5):
            await embedder.embed([TEXT])
        await embedder.close()
    assert (server.connections, len(server.requests)) == (1, 5)
    assert server.requests[0].headers["accept-encoding"] == "identity"


async def test_concurrent_calls_have_a_connection_each_and_keep_it() -> None:
    together = asyncio.Barrier(8)

    async def answer(_: Request, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(10):
            await together.wait()
        writer.write(VECTOR)

    async with loopback(answer) as server:
        embedder = TeiEmbedder(server.url())
        for _ in range(3):
            await asyncio.gather(*(embedder.embed([TEXT]) for _ in range(8)))
        await embedder.close()
    assert (server.connections, len(server.requests)) == (8, 24)


async def test_a_proxy_variable_and_a_cookie_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with loopback(always(reply(b"[[1.0]]", "set-cookie: replica=7\r\n"))) as server:
        embedder = TeiEmbedder(server.url())
        await embedder.embed([TEXT])
        await embedder.embed([TEXT])
        await embedder.close()
    assert "cookie" not in server.requests[1].headers


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_neither_text_nor_key_follows_a_redirect(status: int) -> None:
    async with loopback(always(VECTOR)) as other:
        redirect = reply(b"", f"location: {other.url(host='localhost')}/embed\r\n", status)
        async with loopback(always(redirect)) as server:
            error = await caught(TeiEmbedder(server.url(), api_key=KEY))
    assert type(error) is ConfigurationError
    assert f"answered {status}, a redirect" in error.message
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    assert other.connections == 0


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refused_key_is_named_but_not_shown(status: int) -> None:
    async with loopback(always(reply(f"{KEY} {TEXT}".encode(), "", status))) as server:
        error = await caught(TeiEmbedder(server.url(), api_key=KEY))
    assert type(error) is AccessDenied
    assert "api_key" in error.next_step


async def test_another_header_holds_the_key_alone() -> None:
    async with loopback(always(VECTOR)) as server:
        embedder = TeiEmbedder(server.url(), api_key=KEY, key_header="x-api-key")
        await embedder.embed([TEXT])
        await embedder.close()
    assert server.requests[0].headers["x-api-key"] == KEY
    assert "authorization" not in server.requests[0].headers


async def silent(_: Request, __: asyncio.StreamWriter) -> None:
    await asyncio.sleep(30)


async def drip(_: Request, writer: asyncio.StreamWriter) -> None:
    """Never silent for long enough to be a time-out of one wait."""
    writer.write(b"HTTP/1.1 200 x\r\ncontent-length: 1000\r\n\r\n[[")
    for _piece in range(900):
        writer.write(b"1")
        await writer.drain()
        await asyncio.sleep(0.05)


async def cut(_: Request, writer: asyncio.StreamWriter) -> None:
    writer.write(VECTOR[:-4])
    writer.close()


@pytest.mark.parametrize(
    ("answer", "says", "at_most_s"),
    [(silent, "did not reply in time", 10), (drip, "did not end its reply in time", 10), (cut, "broke off", 10)],
)
async def test_time_has_an_end_and_the_call_may_be_made_again(answer: Answer, says: str, at_most_s: float) -> None:
    async with loopback(answer) as server:
        began = time.monotonic()
        error = await caught(TeiEmbedder(server.url(), timeout_s=0.2))
        assert time.monotonic() - began < at_most_s
    assert type(error) is Transient
    assert says in error.message


async def test_a_server_that_does_not_take_the_request_is_a_time_out() -> None:
    async def deaf(_: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
        await asyncio.sleep(30)

    server = Loopback()
    async with listening(deaf, server):
        embedder = TeiEmbedder(server.url(), timeout_s=0.2)
        with pytest.raises(Unreachable) as raised:
            await embedder.embed(["x" * 30_000_000])
        assert "did not take the whole request" in raised.value.message
        await embedder.close()


async def test_nobody_there_is_unreachable() -> None:
    async with loopback(always(VECTOR)) as server:
        pass
    assert type(await caught(TeiEmbedder(server.url()))) is Unreachable
    assert type(await caught(TeiEmbedder("http://no-such-host.invalid"))) is Unreachable


async def test_too_large_a_reply_is_not_read_to_its_end() -> None:
    sent = 0

    async def endless(_: Request, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 x\r\n\r\n[[")
        while True:
            writer.write(b"0.125," * 20_000)
            sent += 120_000
            await writer.drain()

    async with loopback(endless) as server:
        error = await caught(TeiEmbedder(server.url()))
    assert type(error) is WrongModel
    assert f"more than the {most_bytes(1)} bytes" in error.message
    assert most_bytes(1) <= sent < most_bytes(1) + 20_000_000


def test_a_reply_may_be_as_long_as_its_vectors_and_no_longer() -> None:
    longest = json.dumps([[-1.2345678901234567e-308] * 4096] * 8)
    assert len(longest) < most_bytes(8, 4096) < most_bytes(8) <= most_bytes(4096) == 1 << 28


@pytest.mark.parametrize("packing", ["gzip", "deflate", "br", "zstd", "gzip, gzip", "x-unknown"])
async def test_a_packed_reply_is_refused_before_it_is_unpacked(packing: str) -> None:
    bomb = gzip.compress(b"[[" + b"1," * 8_000_000)
    async with loopback(always(reply(bomb, f"content-encoding: {packing}\r\n"))) as server:
        error = await caught(TeiEmbedder(server.url()))
    assert type(error) is ConfigurationError
    assert "packs its replies" in error.message


async def test_html_is_named_and_the_name_of_the_content_decides_nothing() -> None:
    async with loopback(always(reply(f"<p>{TEXT}".encode(), "content-type: text/html\r\n"))) as server:
        error = await caught(TeiEmbedder(server.url()))
        assert type(error) is WrongModel
        assert "with text/html, not JSON" in error.message
    async with loopback(always(reply(b"[[1.0, 2.0]]", "content-type: text/html\r\n"))) as server:
        embedder = TeiEmbedder(server.url())
        assert (await embedder.embed([TEXT])).vectors.tolist() == [[1.0, 2.0]]
        await embedder.close()


@pytest.mark.parametrize("raw", [b"SSH-2.0-OpenSSH_9\r\n\r\n", b"\x00" * 64, b"HTTP/1.1 abc x\r\n\r\n"])
async def test_what_is_no_http_may_be_something_starting_up(raw: bytes) -> None:
    async with loopback(always(raw)) as server:
        assert type(await caught(TeiEmbedder(server.url()))) is Transient


class Foreign(Exception):
    """As a library below httpx may raise one."""


async def test_an_exception_httpx_has_no_name_for_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Body(httpx.AsyncByteStream):
        async def __aiter__(self):  # type: ignore[no-untyped-def]
            yield b"["
            raise Foreign(KEY)

    async def breaks(self: object, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/now":
            raise Foreign(KEY)
        return httpx.Response(200, stream=Body())

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", breaks)
    for path in ("/now", "/later"):
        error = await caught(TeiEmbedder("http://h.test", path=path, transport=ConnectionsTransport(None, http2=True)))
        assert type(error) is Transient
        assert "broke off" in error.message
