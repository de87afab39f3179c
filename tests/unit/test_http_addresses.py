"""Where text and keys may go: URLs that are none, paths, and the addresses that are refused before a byte is sent."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import httpx
import pytest

from connectors.embedders import addresses
from connectors.embedders.http import HttpEndpoint
from connectors.embedders.http_errors import Advice
from connectors.embedders.openai import OpenAIEmbedder
from connectors.embedders.tei import TeiEmbedder
from connectors.errors import ConfigurationError, Unreachable
from tests.unit.loopback import KEY, VECTOR, always, caught, loopback


@pytest.mark.parametrize(
    "url",
    ["http://user:SECRETm3x7@h.test", "http://SECRETm3x7@h.test/v1", "https://h.test/?key=SECRETm3x7", "h@SECRETm3x7"],
)
def test_an_address_with_a_secret_in_it_is_refused_unshown(url: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        TeiEmbedder(url)
    assert KEY not in str(raised.value)


@pytest.mark.parametrize("url", ["", "h.test", "ftp://h.test", "http://", "http://h:port", "file:///etc/x"])
def test_what_is_no_url_is_refused_at_once(url: str) -> None:
    with pytest.raises(ConfigurationError):
        TeiEmbedder(url)


@pytest.mark.parametrize(
    "path", ["", "embed", "//other.test/embed", "http://other.test/", "/a b", "/ä", "/a#b", "/a\n"]
)
def test_a_path_leads_nowhere_else(path: str) -> None:
    with pytest.raises(ConfigurationError):
        TeiEmbedder("http://h.test", path=path)


@pytest.mark.parametrize("path", ["/embed", "/v1/models/x/embed", "/embed?pool=mean", "/@other.test/", "/../embed"])
def test_every_path_stays_with_its_host(path: str) -> None:
    endpoint = HttpEndpoint("https://h.test:8443/base%2Fone/", "x", Advice(address="y"))
    url = endpoint.url(path)
    assert (url.scheme, url.host, url.port, url.userinfo) == ("https", "h.test", 8443, b"")
    assert isinstance(url, httpx.URL)


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "169.254.0.1",
        "[fe80::1]",
        "[fe80::1%25eth0]",
        "[fd00:ec2::254]",
        "[fd20:ce::254]",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
        "0.0.0.0",
        "[::]",
        "[::ffff:169.254.169.254]",
        "[::ffff:0.0.0.0]",
        "[64:ff9b::a9fe:a9fe]",
        "[2002:a9fe:a9fe::1]",
        "metadata.google.internal",
        "METADATA.google.internal.",
        "metadata",
        "metadata.goog",
        "instance-data",
    ],
)
def test_a_forbidden_host_is_refused_before_anything_is_asked(host: str) -> None:
    for make in (TeiEmbedder, lambda url: OpenAIEmbedder(url, model="m")):
        with pytest.raises(ConfigurationError, match="metadata address"):
            make(f"http://{host}/v1")


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "10.0.0.1", "169.253.0.1", "100.100.100.201", "tei.internal"])
def test_other_hosts_are_fine(host: str) -> None:
    TeiEmbedder(f"http://{host}:8080", transport=httpx.MockTransport(lambda _: httpx.Response(200)))


def resolve(monkeypatch: pytest.MonkeyPatch, answers: list[list[str]]) -> list[str]:
    """Names resolve to each of `answers` in turn, the last one again and again; the result is what was asked."""
    asked: list[str] = []

    def getaddrinfo(host: str | bytes, port: int | str | None, *_: object, **__: object) -> list[object]:
        name = host.decode() if isinstance(host, bytes) else host
        asked.append(name)
        found = answers.pop(0) if len(answers) > 1 else answers[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, int(port or 0))) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


@pytest.mark.parametrize(
    "found", [["169.254.169.254"], ["127.0.0.1", "169.254.169.254"], ["0.0.0.0"], ["100.100.100.200", "127.0.0.1"]]
)
async def test_a_name_for_a_forbidden_address_is_not_even_connected_to(
    monkeypatch: pytest.MonkeyPatch, found: list[str]
) -> None:
    async with loopback(always(VECTOR)) as server:
        asked = resolve(monkeypatch, [found])
        error = await caught(TeiEmbedder(server.url(host="tei.test"), api_key=KEY))
    assert type(error) is ConfigurationError
    assert "metadata address" in error.message
    assert asked == ["tei.test"]
    assert server.connections == 0


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_name_that_changes_its_mind_gets_a_connection_but_no_byte(
    monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    got: asyncio.Queue[bytes] = asyncio.Queue()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.put_nowait(await reader.read())
        writer.close()

    forbidden: Callable[[str], bool] = addresses.is_forbidden
    monkeypatch.setattr(addresses, "is_forbidden", lambda address: address == "127.0.0.2" or forbidden(address))
    server = await asyncio.start_server(serve, "127.0.0.2", 0)
    asked = resolve(monkeypatch, [["127.0.0.1"], ["127.0.0.2"]])
    port = server.sockets[0].getsockname()[1]
    error = await caught(TeiEmbedder(f"{scheme}://tei.test:{port}", api_key=KEY))
    assert await asyncio.wait_for(got.get(), 5) == b""
    server.close()
    assert type(error) is ConfigurationError
    assert "metadata address" in error.message
    assert asked == ["tei.test", "tei.test"]


async def test_a_name_that_is_not_resolved_in_time_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: object, **__: object) -> list[object]:
        await asyncio.sleep(30)
        return []

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", never)
    error = await caught(TeiEmbedder("http://tei.test", timeout_s=0.1))
    assert type(error) is Unreachable
    assert "resolved" in error.message
