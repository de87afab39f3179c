"""TLS as the HTTP embedders use it: verified, each failure with a name, and no text before it is."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from connectors.embedders.tei import TeiEmbedder
from connectors.errors import ConfigurationError, Unreachable
from tests.unit.loopback import KEY, TEXT, VECTOR, Authority, Loopback, always, caught, listening, loopback, reply


async def test_tls_is_verified_against_the_authority(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with loopback(always(VECTOR), tls=authority.server()) as server:
        embedder = TeiEmbedder(server.url("https"), api_key=KEY, ca_file=authority.ca_file)
        assert (await embedder.embed([TEXT])).vectors.tolist() == [[1.0, 2.0]]
        await embedder.close()
        assert len(server.requests) == 1
        unknown = await caught(TeiEmbedder(server.url("https"), api_key=KEY))
        assert type(unknown) is ConfigurationError
        assert "ca_file" in unknown.next_step
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("days", "address", "says", "step"),
    [
        ((-30, -1), "127.0.0.1", "certificate has expired", "renew"),
        ((1, 30), "127.0.0.1", "not yet valid", "clock"),
        ((-1, 1), "127.0.0.2", "127.0.0.1", "host name"),
    ],
    ids=["expired", "of tomorrow", "of another host"],
)
async def test_a_bad_certificate_has_a_name_and_gets_no_text(
    tmp_path: Path, days: tuple[int, int], address: str, says: str, step: str
) -> None:
    authority = Authority(tmp_path)
    async with loopback(always(VECTOR), tls=authority.server(days=days, address=address)) as server:
        error = await caught(TeiEmbedder(server.url("https"), api_key=KEY, ca_file=authority.ca_file))
    assert type(error) is ConfigurationError
    assert says in error.message
    assert step in error.next_step
    assert server.requests == []


async def test_https_to_a_server_without_tls_is_named() -> None:
    async def greeting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(reply(b"", "", 400))

    server = Loopback()
    async with listening(greeting, server):
        error = await caught(TeiEmbedder(server.url("https")))
    assert type(error) is ConfigurationError
    assert "agree on no TLS" in error.message


async def test_a_handshake_that_is_hung_up_on_is_an_outage() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)

    server = Loopback()
    async with listening(hang_up, server):
        error = await caught(TeiEmbedder(server.url("https")))
    assert type(error) is Unreachable


async def test_a_ca_file_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "no.pem").write_text("no certificate")
    for file in (tmp_path / "missing.pem", tmp_path / "no.pem"):
        with pytest.raises(ConfigurationError, match=os.path.basename(file)):
            TeiEmbedder("https://h.test", ca_file=file)
