"""HTTP/2 where the other side offers it, against a server that speaks as much of it as one call needs."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from connectors.embedders.tei import TeiEmbedder
from connectors.errors import Transient
from tests.unit.loopback import KEY, TEXT, VECTOR, Authority, Loopback, always, caught, listening, loopback

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS, _GOAWAY = 0, 1, 4, 7
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_STATUS_200 = b"\x88"  # an entry of HPACK's static table


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


class Http2:
    """Replies to every request on every stream; `streams` are those it replied to."""

    def __init__(self, body: bytes = b"[[1.0, 2.0]]", *, broken: bool = False) -> None:
        self.streams: list[int] = []
        self._body = body
        self._broken = broken

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readexactly(len(_PREFACE)) == _PREFACE
        writer.write(frame(_SETTINGS, 0, 0))
        while True:
            head = await reader.readexactly(9)
            await reader.readexactly(int.from_bytes(head[:3], "big"))
            kind, flags, stream = head[3], head[4], int.from_bytes(head[5:], "big")
            if kind == _SETTINGS and not flags & _ACK:
                writer.write(frame(_SETTINGS, _ACK, 0))
            elif kind in (_DATA, _HEADERS) and flags & _END_STREAM:
                self.streams.append(stream)
                writer.write(frame(_HEADERS, _END_HEADERS, stream, _STATUS_200))
                if self._broken:
                    writer.write(frame(_DATA, 0, stream, b"[["))
                    writer.write(frame(_SETTINGS, 0, stream, b"no settings"))  # against the rules of HTTP/2
                else:
                    writer.write(frame(_DATA, _END_STREAM, stream, self._body))
            await writer.drain()


async def test_many_calls_share_one_connection_of_http2(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    authority, server, seen = Authority(tmp_path), Http2(), Loopback()
    async with listening(server.serve, seen, tls=authority.server(alpn=("h2",))):
        embedder = TeiEmbedder(seen.url("https"), api_key=KEY, key_header="api-key", ca_file=authority.ca_file)
        with caplog.at_level(logging.DEBUG):
            results = await asyncio.gather(*(embedder.embed([TEXT]) for _ in range(10)))
        await embedder.close()
    assert all(result.vectors.tolist() == [[1.0, 2.0]] for result in results)
    assert (seen.connections, len(server.streams)) == (1, 10)
    assert KEY not in caplog.text  # hpack would write it: it knows no header but Authorization for a secret


async def test_a_server_that_breaks_the_rules_of_http2_breaks_off(tmp_path: Path) -> None:
    authority, server, seen = Authority(tmp_path), Http2(broken=True), Loopback()
    async with listening(server.serve, seen, tls=authority.server(alpn=("h2",))):
        error = await caught(TeiEmbedder(seen.url("https"), api_key=KEY, ca_file=authority.ca_file))
    assert type(error) is Transient
    assert "broke off" in error.message


async def test_http_1_is_spoken_where_it_is_all_there_is_or_all_that_is_wanted(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    for alpn, http2 in ((("http/1.1",), True), (("h2", "http/1.1"), False)):
        async with loopback(always(VECTOR), tls=authority.server(alpn=alpn)) as server:
            embedder = TeiEmbedder(server.url("https"), ca_file=authority.ca_file, http2=http2)
            await embedder.embed([TEXT])
            await embedder.close()
            assert "HTTP/1.1" in server.requests[0].line
