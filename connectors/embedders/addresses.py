"""Which addresses document text and keys must never be sent to, and the guard that sees to it at each connection.

A name is judged by what it resolves to and then by the peer really reached, before the first byte (of TLS, too).
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol, cast

import httpx

from connectors.errors import ConfigurationError, Unreachable

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Guard = Callable[[str, Mapping[str, object]], Awaitable[None]]

_FORBIDDEN_NAMES = frozenset({"metadata", "metadata.google.internal", "metadata.goog", "instance-data"})
_FORBIDDEN_ADDRESSES = frozenset(
    map(
        ipaddress.ip_address,
        (
            "100.100.100.200",  # Alibaba Cloud
            "168.63.129.16",  # Azure's host agent
            "192.0.0.192",  # Oracle Cloud
            "fd00:ec2::254",  # AWS
            "fd20:ce::254",  # Google Cloud
        ),
    )
)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_SCHEMES = ("http", "https")
_PATH = re.compile(r"/(?!/)[!$-~]*")


class _Stream(Protocol):
    """As much as the guard uses of the network stream that httpx documents for its `trace` extension."""

    def get_extra_info(self, info: str) -> object: ...

    async def aclose(self) -> None: ...


def endpoint_url(url: str, path: str, query: Mapping[str, str], where: str) -> httpx.URL:
    """`path` below `url`, on the same host. Raises ConfigurationError for what must not or cannot be called."""
    if not _PATH.fullmatch(path):
        raise ConfigurationError(f"{where} has a path that is none", next_step="write a path like /embed")
    try:
        base = httpx.URL(url)
        whole = base.copy_with(raw_path=base.raw_path.rstrip(b"/") + path.encode())
    except (httpx.InvalidURL, UnicodeError):
        # without its cause: it may show what stands between https:// and @
        raise ConfigurationError(f"{where} is no URL", next_step="write http://host:port") from None
    if base.scheme not in _SCHEMES or not base.host:
        raise ConfigurationError(f"{where} is no http or https URL", next_step="write http://host:port")
    refuse_name(base.host, where)
    return whole.copy_merge_params(query) if query else whole


def refuse_secrets(url: str) -> None:
    """Raises ConfigurationError, without showing the URL, when a part of it may be a key: addresses are shown."""
    authority = re.split(r"[/?#]", url.partition("://")[2] or url, maxsplit=1)[0]
    if "@" in authority or "?" in url or "#" in url:
        raise ConfigurationError(
            "an embedder's url has a user name, a password, a query or a fragment",
            next_step="write http://host:port and the path, and give the key as api_key",
        )


def refuse_name(host: str, where: str) -> None:
    """Raises ConfigurationError for a forbidden name, or an address written out."""
    name = host.strip("[]").rstrip(".").lower()
    if name in _FORBIDDEN_NAMES or is_forbidden(name):
        raise _refusal(where)


def is_forbidden(text: str) -> bool:
    """Link-local, unspecified, or where a cloud gives out credentials; also inside IPv6. False for a name."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        address = _inner(address)
    return address.is_link_local or address.is_unspecified or address in _FORBIDDEN_ADDRESSES


def _inner(address: ipaddress.IPv6Address) -> IPAddress:
    """The IPv4 address that an IPv6 address stands for, else itself, without its zone."""
    plain = ipaddress.IPv6Address(int(address))
    if plain in _NAT64:
        return ipaddress.IPv4Address(int(plain) & 0xFFFFFFFF)
    return plain.ipv4_mapped or plain.sixtofour or plain


def guard_connections(where: str, connect_s: float) -> Guard:
    """For httpx's request extension `trace`: raises ConfigurationError before anything is sent to such an address.

    Both looks are needed: the first connects to nothing forbidden at all, the second cannot be fooled by a name that
    resolves to something else a moment later.
    """

    async def guard(event: str, info: Mapping[str, object]) -> None:
        if event == "connection.connect_tcp.started":
            for address in await _resolve(str(info["host"]), where, connect_s):
                if is_forbidden(address):
                    raise _refusal(where)
        elif event == "connection.connect_tcp.complete":
            stream = cast(_Stream, info["return_value"])
            peer = stream.get_extra_info("server_addr")
            if not isinstance(peer, tuple) or is_forbidden(str(peer[0])):
                await stream.aclose()
                raise _refusal(where)

    return guard


async def _resolve(host: str, where: str, connect_s: float) -> list[str]:
    """Nothing where the name is unknown: connecting will say so."""
    try:
        async with asyncio.timeout(connect_s):
            found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except TimeoutError as error:
        raise Unreachable(f"{where} has a name that is not resolved in time", next_step="check the DNS") from error
    except OSError:
        return []
    return [str(address[0]) for *_, address in found]


def _refusal(where: str) -> ConfigurationError:
    return ConfigurationError(
        f"{where} is a link-local, unspecified or cloud metadata address, to which no text is sent",
        next_step="configure the address of the embedding endpoint itself",
    )
