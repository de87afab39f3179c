"""What all HTTP embedding endpoints share: one client with its connections, its key, its time-outs and its limits.

It never retries, never follows a redirect, never sends a key or text to another host, and never reads more of a reply
than it may have.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import NamedTuple

import httpx
import orjson

from connectors.embedders.addresses import endpoint_url, guard_connections, refuse_secrets
from connectors.embedders.base import RejectedTexts
from connectors.embedders.http_errors import Advice, map_httpx, map_status
from connectors.embedders.keys import key_headers
from connectors.embedders.transport import ConnectionsTransport
from connectors.errors import ConfigurationError, Terminal, Transient, WrongModel
from connectors.protocols import JSON

_CONNECT_S = 10.0
_WHOLE_CALL = 3  # times timeout_s
_PIECE_BYTES = 65_536
_MOST_BYTES_OF_A_NUMBER = 32  # in JSON's longest writing
_MOST_DIMENSIONS = 65_535  # the longest vector a version may declare
_MOST_BYTES_BESIDE = 65_536
_MOST_BYTES_BESIDE_A_VECTOR = 1_024
_MOST_BYTES = 1 << 28


class Reply(NamedTuple):
    """`value` None for one of the statuses the caller takes for "there is no such thing"."""

    value: JSON
    headers: Mapping[str, str]


def most_bytes(vectors: int, dimensions: int | None = None) -> int:
    """How long a reply with so many vectors may be."""
    of_a_vector = (dimensions or _MOST_DIMENSIONS) * _MOST_BYTES_OF_A_NUMBER + _MOST_BYTES_BESIDE_A_VECTOR
    return min(_MOST_BYTES_BESIDE + vectors * of_a_vector, _MOST_BYTES)


class HttpEndpoint:
    """`url`: below which all paths lie. `where`: what messages call it. `ca_file`: PEM, instead of the public
    authorities. `timeout_s` bounds each phase: connecting (10 s at most), sending, each wait for a piece of the reply,
    waiting for a free connection; three times that bounds the whole call. `http2`: where the other side offers it.
    """

    def __init__(
        self,
        url: str,
        where: str,
        advice: Advice,
        *,
        api_key: str | None = None,
        key_header: str = "Authorization",
        timeout_s: float = 30.0,
        ca_file: str | Path | None = None,
        http2: bool = True,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        refuse_secrets(url)  # before anything that shows the address
        self.where = f"{where} {url}"
        self._url = url
        self._advice = advice
        self._timeout_s = timeout_s
        connect_s = min(timeout_s, _CONNECT_S)
        self.url("/")
        self._guard = guard_connections(self.where, connect_s)
        self._client = httpx.AsyncClient(
            headers=key_headers(api_key, key_header) | {"Accept": "application/json", "Accept-Encoding": "identity"},
            timeout=httpx.Timeout(timeout_s, connect=connect_s),
            follow_redirects=False,
            trust_env=False,  # document text goes where the configuration says, not where a proxy variable says
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),  # one would pin all calls to one replica
            transport=transport or ConnectionsTransport(ca_file, http2=http2),
        )

    def url(self, path: str, query: Mapping[str, str] | None = None) -> httpx.URL:
        """Raises ConfigurationError when there is no such URL, or none that may be called."""
        return endpoint_url(self._url, path, query or {}, self.where)

    async def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        most: int,
        query: Mapping[str, str] | None = None,
        absent: Collection[int] = (),
    ) -> Reply:
        """One request, one reply: JSON of at most so many bytes. `absent`: statuses that say there is no such thing.

        Raises what `Embedder.embed` does.
        """
        url = self.url(path, query)
        headers = {"Content-Type": "application/json"} if body is not None else {}
        try:
            async with (
                asyncio.timeout(_WHOLE_CALL * self._timeout_s),
                self._client.stream(
                    method, url, content=body, headers=headers, extensions={"trace": self._guard}
                ) as response,
            ):
                if response.status_code in absent:
                    return Reply(None, response.headers)
                if response.status_code != 200:
                    raise map_status(response, self.where, self._advice)  # without its body, which nobody reads
                content = await self._read(response, most)
        except TimeoutError as error:
            raise Transient(
                f"{self.where} did not end its reply in time", next_step="raise timeout_s, or lower max_batch"
            ) from error
        except httpx.HTTPError as error:
            raise map_httpx(error, self.where) from error
        try:
            value: JSON = orjson.loads(content)
        except orjson.JSONDecodeError:
            kind = response.headers.get("content-type", "no content type")
            # without its cause: the decoder's error holds the whole reply
            raise WrongModel(
                f"{self.where} answered {method} {path} with {kind[:64]}, not JSON", next_step=self._advice.address
            ) from None
        return Reply(value, response.headers)

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.aclose()

    async def _read(self, response: httpx.Response, most: int) -> bytes:
        """Piece by piece, and never unpacked: a few packed bytes can be gigabytes."""
        packed = response.headers.get("content-encoding", "identity").strip().lower()
        if packed != "identity":
            raise ConfigurationError(
                f"{self.where} packs its replies ({packed[:32]!r}) though it was asked not to",
                next_step="switch compression off for this address, at the endpoint or the proxy before it",
            )
        content = bytearray()
        async for piece in response.aiter_bytes(_PIECE_BYTES):
            content += piece
            if len(content) > most:
                raise WrongModel(
                    f"{self.where} replied more than the {most} bytes that the vectors asked for can take",
                    next_step=self._advice.address,
                )
        return bytes(content)


def encode_request(request: Mapping[str, object], texts: Sequence[str]) -> bytes:
    """JSON. Raises RejectedTexts naming the texts that are no Unicode: half of a surrogate pair cannot be sent."""
    try:
        return orjson.dumps(request)
    except orjson.JSONEncodeError:
        broken = [index for index, text in enumerate(texts) if not _is_unicode(text)]
        if not broken:
            raise Terminal("a request cannot be written as JSON", next_step="report this error") from None
        raise RejectedTexts(
            f"{len(broken)} of {len(texts)} texts are no valid Unicode", broken, next_step="correct them at the source"
        ) from None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
