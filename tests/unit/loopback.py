"""A small real HTTP/1.1 server on loopback that answers as it is told, byte for byte, with or without TLS.

It must never listen on anything but loopback.
"""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from connectors.errors import CrossfadeError
from connectors.protocols import Embedder

KEY = "SECRETm3x7"
TEXT = "CANARYt4w8"


@dataclass(frozen=True, slots=True)
class Request:
    line: str
    headers: dict[str, str]
    body: bytes


Answer = Callable[[Request, asyncio.StreamWriter], Awaitable[None]]
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass(slots=True)
class Loopback:
    """What came: connections, and the whole requests on them."""

    port: int = 0
    connections: int = 0
    requests: list[Request] = field(default_factory=list)

    def url(self, scheme: str = "http", host: str = "127.0.0.1") -> str:
        return f"{scheme}://{host}:{self.port}"


def reply(body: bytes, headers: str = "", status: int = 200) -> bytes:
    """A whole HTTP/1.1 reply."""
    return f"HTTP/1.1 {status} x\r\ncontent-length: {len(body)}\r\n{headers}\r\n".encode() + body


def always(raw: bytes) -> Answer:
    """The same bytes to every request."""

    async def answer(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(raw)

    return answer


VECTOR = reply(b"[[1.0, 2.0]]")
"""TEI's to one text."""


async def caught(embedder: Embedder) -> CrossfadeError:
    """What one text raises; never with the key or the text in it."""
    try:
        with pytest.raises(CrossfadeError) as raised:
            await embedder.embed([TEXT])
    finally:
        await embedder.close()
    error = raised.value
    assert error.next_step
    assert KEY not in str(error) + repr(embedder)
    assert TEXT not in str(error)
    return error


@asynccontextmanager
async def loopback(
    answer: Answer, *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[Loopback]:
    """`answer` is asked once a request."""
    seen = Loopback()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := (await reader.readline()).decode().strip():
            headers: dict[str, str] = {}
            while header := (await reader.readline()).decode().strip():
                name, _, value = header.partition(":")
                headers[name.lower()] = value.strip()
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            request = Request(line, headers, body)
            seen.requests.append(request)
            await answer(request, writer)
            await writer.drain()

    async with listening(serve, seen, tls=tls, host=host):
        yield seen


@asynccontextmanager
async def listening(
    serve: Serve, seen: Loopback, *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[None]:
    """`serve` for every connection until the end, when those still open are cut."""
    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        seen.connections += 1
        try:
            await serve(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):  # the client hung up, or it is the end
            pass
        finally:
            writer.close()
            tasks.discard(task)

    server = await asyncio.start_server(connected, host, 0, ssl=tls)
    seen.port = server.sockets[0].getsockname()[1]
    try:
        yield
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


class Authority:
    """A certificate authority of its own: `ca_file`, and contexts for servers whose certificates it signed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        self.ca_file = folder / "ca.pem"
        made = self._signed(self._name, self._key.public_key(), (-1, 1), authority=True)
        self.ca_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))

    def server(
        self, *, days: tuple[int, int] = (-1, 1), address: str = "127.0.0.1", alpn: tuple[str, ...] = ("http/1.1",)
    ) -> ssl.SSLContext:
        """`days`: first and last day of the certificate, from today. `address`: the one it is for."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test server")])
        made = self._signed(name, key.public_key(), days, address=address)
        file = self._folder / "server.pem"
        file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + made.public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        context.set_alpn_protocols(list(alpn))
        return context

    def _signed(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePublicKey,
        days: tuple[int, int],
        *,
        authority: bool = False,
        address: str = "127.0.0.1",
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        first, last = (now + datetime.timedelta(days=day) for day in days)
        alternative = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(first)
            .not_valid_after(last)
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(alternative, critical=False)
            .sign(self._key, hashes.SHA256())
        )
