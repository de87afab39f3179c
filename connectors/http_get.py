"""One request to an address an operator has configured: a check before going on, a page of metrics, or a hook that is
told of a change. Never document text, no key.

It never follows a redirect, uses a proxy, calls an address that gives out credentials, or takes longer than it may.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from typing import NamedTuple

import httpx

from connectors.aside import Aside
from connectors.embedders.addresses import is_forbidden, refuse_name
from connectors.errors import ConfigurationError, Transient, Unreachable

_PIECE_BYTES = 65_536


class Answer(NamedTuple):
    """`content`: as much of the body as was asked for."""

    status: int
    content: bytes


def _resolve(host: str, port: int) -> list[str]:
    return list(dict.fromkeys(str(at[0]) for *_, at in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))


class HttpGet:
    """`where`: what messages call it. It connects to the very address that was looked at, whatever a name resolves to
    a moment later, and its name server may hang without holding up anything else."""

    def __init__(
        self, url: str, where: str, *, resolve: Callable[[str, int], list[str]] = _resolve, timeout_s: float = 2.0
    ) -> None:
        self.where = where
        self._timeout_s = timeout_s
        try:
            self._url = httpx.URL(url)
        except (httpx.InvalidURL, UnicodeError):
            raise ConfigurationError(f"{where} is no URL", next_step="write http://host:port/path") from None
        self._resolve = resolve
        self._names: Aside[list[str]] = Aside(f"resolve {where}")
        self._client = httpx.AsyncClient(timeout=timeout_s, follow_redirects=False, trust_env=False)

    async def get(self, most_bytes: int = 0, *, keep: Callable[[str], bool] | None = None) -> Answer:
        """The status and at most `most_bytes` of the body; with `keep` only the lines of text it says yes to.

        Raises Unreachable, Transient (no answer in time, more than `most_bytes` of what is kept), ConfigurationError
        for an address that must not be called.
        """
        return await self._in_time("GET", None, most_bytes, keep)

    async def post(self, json: bytes) -> int:
        """The status alone; sent once, to the first address that takes the connection. Raises as `get` does."""
        return (await self._in_time("POST", json, 0, None)).status

    async def _in_time(
        self, method: str, json: bytes | None, most_bytes: int, keep: Callable[[str], bool] | None
    ) -> Answer:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._ask(method, json, await self._addresses(), most_bytes, keep)
        except TimeoutError:
            raise Transient(f"{self.where} did not answer within {self._timeout_s:g} s") from None
        except httpx.HTTPError as error:  # without its text, which may hold what the other side said
            raise Unreachable(f"{self.where} did not answer: {type(error).__name__}") from error

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.aclose()

    async def _addresses(self) -> list[str]:
        host = self._url.host
        port = self._url.port or (443 if self._url.scheme == "https" else 80)
        try:
            refuse_name(host, self.where)
        except ConfigurationError:
            raise self._refusal() from None
        try:
            found = await self._names.run(lambda: self._resolve(host, port), self._timeout_s)
        except (OSError, UnicodeError) as error:
            if isinstance(error, TimeoutError):
                raise
            raise Unreachable(f"{self.where}: nobody knows the name {host}") from error
        if any(is_forbidden(address) for address in found):
            raise self._refusal()
        return found

    async def _ask(
        self,
        method: str,
        json: bytes | None,
        addresses: Sequence[str],
        most_bytes: int,
        keep: Callable[[str], bool] | None,
    ) -> Answer:
        last: httpx.ConnectError | None = None
        told = {"Content-Type": "application/json"} if json is not None else {}
        for address in addresses:
            request = self._client.build_request(
                method,
                self._url.copy_with(host=address),
                content=json,
                headers={"Host": self._url.netloc.decode(), "Accept-Encoding": "identity", **told},
                extensions={"sni_hostname": self._url.host},  # the certificate is that of the name
            )
            try:
                response = await self._client.send(request, stream=True)
            except httpx.ConnectError as error:
                last = error
                continue
            try:
                return Answer(response.status_code, await self._read(response, most_bytes, keep))
            finally:
                await response.aclose()
        raise last or Unreachable(f"{self.where}: its name has no address")

    async def _read(self, response: httpx.Response, most_bytes: int, keep: Callable[[str], bool] | None) -> bytes:
        if not most_bytes:
            return b""
        if response.headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise Transient(f"{self.where} packs its replies though it was asked not to")
        kept = bytearray()
        if keep is None:
            async for piece in response.aiter_bytes(_PIECE_BYTES):
                kept += piece
                self._check(kept, most_bytes)
        else:
            rest = b""
            async for piece in response.aiter_bytes(_PIECE_BYTES):
                *lines, rest = (rest + piece).split(b"\n")
                kept += b"".join(line + b"\n" for line in lines if keep(line.decode(errors="replace")))
                self._check(kept + rest, most_bytes)
            kept += rest if keep(rest.decode(errors="replace")) else b""
        return bytes(kept)

    def _check(self, content: bytes | bytearray, most_bytes: int) -> None:
        if len(content) > most_bytes:
            raise Transient(f"{self.where} replied more than {most_bytes} bytes")

    def _refusal(self) -> ConfigurationError:
        return ConfigurationError(
            f"{self.where} is a link-local, unspecified or cloud metadata address, which is never called",
            next_step="configure the address of the service itself",
        )
