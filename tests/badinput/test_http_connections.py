"""Connections as they should not be: dripped, not read, without TLS where it is wanted; and addresses that cannot be
listened on. Over real sockets, the server in this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from pydantic import JsonValue
from uvicorn.protocols.http.h11_impl import H11Protocol

from connectors.errors import ConfigurationError
from streams.api import listening
from streams.api.listening import Room
from streams.config_serve import Serve
from tests.served import free_port, listened
from tests.unit.loopback import Authority


@asynccontextmanager
async def listens(folder: Path, **section: JsonValue) -> AsyncIterator[tuple[str, int]]:
    """The URL and the port."""
    async with listened(folder, **section) as (api, url):
        await api.serve("v1")
        yield url, int(url.rpartition(":")[2])


async def drip(write: Callable[[bytes], Awaitable[None]]) -> None:
    """Slowly, for as long as anybody listens."""
    with_end = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: "
    await write(with_end)
    while True:
        await asyncio.sleep(0.05)
        await write(b"a")


async def test_a_head_that_is_dripped_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "HEADER_S", 0.5)
    async with listens(tmp_path) as (_, port):
        for first in (b"", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(first)
            if first:
                assert (await reader.readline()).startswith(b"HTTP/1.1 200")

            async def write(piece: bytes, to: asyncio.StreamWriter = writer) -> None:
                to.write(piece)
                await to.drain()

            dripping = asyncio.create_task(drip(write))
            async with asyncio.timeout(5):
                with contextlib.suppress(ConnectionError):  # closed with something of it unread
                    while await reader.read(4096):
                        pass
            dripping.cancel()
            await asyncio.gather(dripping, return_exceptions=True)
            writer.close()


async def test_no_part_of_an_answer_waits_for_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nagle's algorithm and a caller's delayed word together took 40 ms of every answer."""
    made: list[asyncio.Transport] = []
    original = H11Protocol.connection_made

    def connection_made(self: H11Protocol, transport: asyncio.Transport) -> None:
        made.append(transport)
        original(self, transport)

    monkeypatch.setattr(H11Protocol, "connection_made", connection_made)
    async with listens(tmp_path) as (url, _), httpx.AsyncClient() as http:
        assert (await http.get(f"{url}/healthz")).status_code == 200
        (transport,) = made
        assert transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_answers_that_are_not_read_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for again and again, one behind the other, until no buffer takes any more of them."""
    monkeypatch.setattr(listening, "UNREAD_S", 0.3)
    async with listens(tmp_path) as (url, port), httpx.AsyncClient() as http:
        with socket.create_connection(("127.0.0.1", port)) as asking:
            asking.settimeout(10)

            def ask_for_ever() -> None:
                while True:
                    asking.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50)

            with pytest.raises(ConnectionError):
                await asyncio.to_thread(ask_for_ever)
        assert (await http.get(f"{url}/healthz")).status_code == 200


async def test_what_is_no_http_and_heads_without_an_end(tmp_path: Path) -> None:
    async with listens(tmp_path) as (url, port):
        endless = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 500_000
        for sent in (b"\x16\x03\x01\x02\x00\r\n\r\n", b"hello\r\n\r\n", endless):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            line = b""
            async with asyncio.timeout(5):
                with contextlib.suppress(ConnectionError):  # closed with something of it unread
                    line = await reader.readline()
            writer.close()
            assert line.startswith(b"HTTP/1.1 400") or line == b""
        async with httpx.AsyncClient() as http:
            assert (await http.get(f"{url}/healthz")).status_code == 200


async def test_tls_by_file(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    authority.server()
    files: dict[str, JsonValue] = {"certificate": "server.pem", "private_key": "server.pem"}
    async with listens(tmp_path, **files) as (url, port):
        assert url.startswith("https://")
        context = ssl.create_default_context(cafile=str(authority.ca_file))
        async with httpx.AsyncClient(verify=context) as http:
            assert (await http.get(f"{url}/readyz")).json()["status"] == "ok"
            with pytest.raises(httpx.HTTPError):
                await http.get(f"http://127.0.0.1:{port}/readyz")


@pytest.fixture
def tls(tmp_path: Path) -> tuple[dict[str, JsonValue], ssl.SSLContext]:
    """The section's files, and what a client trusts."""
    authority = Authority(tmp_path)
    authority.server()
    context = ssl.create_default_context(cafile=str(authority.ca_file))
    return {"certificate": "server.pem", "private_key": "server.pem"}, context


async def ends(reader: asyncio.StreamReader) -> None:
    """The other side has hung up."""
    async with asyncio.timeout(5):
        with contextlib.suppress(ConnectionError):
            while await reader.read(4096):
                pass


async def test_a_handshake_that_does_not_come_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tls: tuple[dict[str, JsonValue], ssl.SSLContext]
) -> None:
    monkeypatch.setattr(listening, "HANDSHAKE_S", 0.5)
    files, context = tls
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"  # the beginning of a TLS client's, and no more
    async with listens(tmp_path, **files) as (url, port):
        for first in (b"", hello, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(first)
            await ends(reader)
            writer.close()
        async with httpx.AsyncClient(verify=context) as http:
            for _ in range(2):
                assert (await http.get(f"{url}/readyz")).json()["status"] == "ok"


async def test_a_request_that_comes_with_the_end_of_the_handshake(
    tmp_path: Path, tls: tuple[dict[str, JsonValue], ssl.SSLContext]
) -> None:
    """In one piece, as a client's machine may send them: before the server has its connection."""
    files, context = tls
    async with listens(tmp_path, **files) as (_, port):
        come, go = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = context.wrap_bio(come, go, server_hostname="127.0.0.1")
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.timeout(5):
            while True:
                try:
                    client.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    writer.write(go.read())
                    come.write(await reader.read(65_536))
            client.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            writer.write(go.read())
            said = b""
            while b"\r\n" not in said:
                try:
                    said += client.read()
                except ssl.SSLWantReadError:
                    come.write(await reader.read(65_536))
        writer.close()
        assert said.startswith(b"HTTP/1.1 200")


async def test_connections_in_their_handshake_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tls: tuple[dict[str, JsonValue], ssl.SSLContext]
) -> None:
    monkeypatch.setattr(listening, "HANDSHAKE_S", 1.5)
    monkeypatch.setattr(listening, "REFUSED_AT_ONCE", 2)
    monkeypatch.setattr(Room, "of", lambda _: Room(3, 64))
    files, context = tls
    async with listens(tmp_path, **files) as (url, port), httpx.AsyncClient(verify=context) as http:
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(5)]
        with pytest.raises(httpx.TransportError):
            await http.get(f"{url}/healthz")
        for reader, writer in silent:
            await ends(reader)
            writer.close()
        assert (await http.get(f"{url}/healthz")).status_code == 200


async def test_what_cannot_be_listened_on(tmp_path: Path) -> None:
    (tmp_path / "no.pem").write_text("no certificate")

    async def refused(section: Serve) -> ConfigurationError:
        with pytest.raises(ConfigurationError) as raised:
            await listening.listen(lambda *_: None, section, asyncio.Event())  # type: ignore[arg-type]
        assert raised.value.next_step
        return raised.value

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert str(port) in (await refused(Serve(listen=f"127.0.0.1:{port}"))).message
    address = f"127.0.0.1:{free_port()}"
    for file in ("missing.pem", "no.pem"):
        pem = tmp_path / file
        assert "certificate" in (await refused(Serve(listen=address, certificate=pem, private_key=pem))).message
