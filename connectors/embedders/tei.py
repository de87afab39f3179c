"""HuggingFace Text Embeddings Inference over HTTP: POST /embed, one vector a text.

It never follows a redirect, never retries, and never accepts a reply that is not exactly one finite vector a text.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime

import httpx
import numpy as np
import orjson

from connectors.embedders.base import check_vectors, refuse_blank
from connectors.errors import (
    AccessDenied,
    ConfigurationError,
    ContentRejected,
    CrossfadeError,
    NotFound,
    Terminal,
    Throttled,
    Transient,
    Unreachable,
    WrongModel,
)
from connectors.protocols import JSON, Embedded, ModelFacts, Vectors

_MAX_WAIT_S = 3600.0
_MOST_BYTES_OF_A_VECTOR = 65_535 * 32  # the longest vector a version may declare, in JSON's longest numbers
_MOST_BYTES_BESIDE = 65_536


class TeiEmbedder:
    """One endpoint. `url` without /embed; `timeout_s` bounds each phase: connecting, sending, waiting for the reply;
    three times that bounds the whole call, and the number of texts the size of what is read of a reply.

    `truncate` False: the endpoint refuses texts longer than the model reads, instead of cutting them silently.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        max_batch: int = 32,
        truncate: bool = False,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        if api_key is not None and (not api_key.isascii() or not api_key.isprintable()):
            # checked here because the HTTP library's own error would show the key
            raise ConfigurationError("api_key has characters no HTTP header can hold", next_step="correct api_key")
        self.max_batch = max_batch
        self._truncate = truncate
        self._timeout_s = timeout_s
        self._where = f"the TEI endpoint {url}"
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx.AsyncClient(
            base_url=url,
            headers=headers,
            timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, 10.0)),
            follow_redirects=False,
            trust_env=False,  # document text goes where the configuration says, not where a proxy variable says
            transport=transport,
        )

    def __repr__(self) -> str:
        return f"TeiEmbedder({self._where})"

    async def embed(self, texts: Sequence[str]) -> Embedded:
        """float32[n, dim] as the model gives them: normalising is the caller's, who knows the envelope.

        Raises what `Embedder` says; ContentRejected stands for the whole call, as TEI does not say which text.
        """
        refuse_blank(texts)
        if not texts:
            return Embedded(np.zeros((0, 0), np.float32))
        body = orjson.dumps({"inputs": list(texts), "truncate": self._truncate, "normalize": False})
        reply = await self._request("POST", "/embed", body, vectors=len(texts))
        return Embedded(_vectors(reply, len(texts), self._where))

    async def facts(self) -> ModelFacts:
        """GET /info. Raises as `embed` does."""
        reply = await self._request("GET", "/info")
        if not isinstance(reply, dict):
            raise WrongModel(f"{self._where} has no /info of TEI", next_step="check that the address is TEI's")
        return ModelFacts(
            model=_text(reply, "model_id"),
            revision=_text(reply, "model_sha"),
            max_batch=_number(reply, "max_client_batch_size"),
            max_batch_tokens=_number(reply, "max_batch_tokens"),
            max_input_tokens=_number(reply, "max_input_length"),
        )

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.aclose()

    async def _request(self, method: str, path: str, body: bytes | None = None, *, vectors: int = 0) -> JSON:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        most_bytes = _MOST_BYTES_BESIDE + vectors * _MOST_BYTES_OF_A_VECTOR
        try:
            async with (
                asyncio.timeout(3 * self._timeout_s),
                self._client.stream(method, path, content=body, headers=headers) as response,
            ):
                if response.status_code != 200:
                    raise _map_status(response, self._where)  # without its body, which nobody reads
                content = await _read(response, most_bytes, self._where)
        except TimeoutError as error:
            raise Transient(
                f"{self._where} did not end its reply in time", next_step="raise timeout_s, or lower max_batch"
            ) from error
        except httpx.HTTPError as error:
            raise map_httpx(error, self._where) from error
        except httpx.InvalidURL as error:
            raise ConfigurationError(f"{self._where} is no URL", next_step="write http://host:port") from error
        try:
            reply: JSON = orjson.loads(content)
        except orjson.JSONDecodeError:
            kind = response.headers.get("content-type", "no content type")
            # without its cause: the decoder's error holds the whole reply
            raise WrongModel(
                f"{self._where} answered {method} {path} with {kind}, not JSON",
                next_step="check that the address is TEI's and not a web page's",
            ) from None
        return reply


async def _read(response: httpx.Response, most_bytes: int, where: str) -> bytes:
    """The reply, unpacked, piece by piece: never more of it in memory than it may have."""
    content = bytearray()
    async for piece in response.aiter_bytes(65_536):
        content += piece
        if len(content) > most_bytes:
            raise WrongModel(
                f"{where} replied more than the {most_bytes} bytes that the vectors asked for can take",
                next_step="check that the address is TEI's /embed of an embedding model",
            )
    return bytes(content)


def map_httpx(error: httpx.HTTPError, where: str) -> CrossfadeError:
    """The error tree's name for an exception of httpx. Embedding has no effect, so what was sent may be sent again."""
    next_step = "start the endpoint, or correct its address in the configuration"
    match error:
        case httpx.ConnectTimeout() | httpx.ConnectError() | httpx.ProxyError():
            return Unreachable(f"{where} does not answer", next_step=next_step)
        case httpx.PoolTimeout():
            return Unreachable(f"{where} has no free connection", next_step="lower the version's concurrency")
        case httpx.WriteTimeout() | httpx.WriteError():
            return Unreachable(f"{where} did not take the whole request", next_step=next_step)
        case httpx.ReadTimeout():
            return Transient(f"{where} did not reply in time", next_step="raise timeout_s, or lower batch or max_batch")
        case httpx.TransportError() if not isinstance(error, httpx.UnsupportedProtocol | httpx.LocalProtocolError):
            return Transient(f"{where} broke off: {type(error).__name__}", next_step=next_step)
        case httpx.UnsupportedProtocol():
            return ConfigurationError(f"{where} is no http or https URL", next_step="write http://host:port")
        case httpx.TooManyRedirects():
            return ConfigurationError(f"{where} redirects", next_step="configure the address it redirects to")
        case _:
            return Terminal(f"{where} gave a reply that cannot be read: {type(error).__name__}", next_step=next_step)


def _map_status(response: httpx.Response, where: str) -> CrossfadeError:
    """By status alone: the body may quote the text that was sent, so it is never shown."""
    status = response.status_code
    said = f"{where} answered {status}"
    if status in (429, 503):
        wait_s = retry_after_s(response.headers.get("retry-after"), time.time())
        return Throttled(said, retry_after_s=wait_s, next_step="lower the version's concurrency or replay_rate")
    if status in (408, 424, 425) or status >= 500:  # 424 is TEI's own for an inference that failed
        return Transient(said, next_step="look at the endpoint's own log; lower batch or max_batch if it lacks memory")
    if status in (400, 413, 422):
        return ContentRejected(
            said, next_step="shorten the text, or set truncate: true, which is another model version; see max_batch too"
        )
    if status in (401, 403, 407):
        return AccessDenied(said, next_step="check the embedder's api_key")
    if status == 404:
        return NotFound(said, next_step="give the address of TEI without /embed")
    if 300 <= status < 400:
        return ConfigurationError(f"{said}, a redirect", next_step="configure the address it redirects to")
    return ConfigurationError(said, next_step="check that the address is TEI's")


def retry_after_s(header: str | None, now_s: float) -> float | None:
    """Seconds that a Retry-After header (seconds, or an HTTP date) asks for; None when it says nothing usable."""
    if header is None:
        return None
    try:
        wait_s = float(header)
    except ValueError:
        try:
            wait_s = parsedate_to_datetime(header).timestamp() - now_s
        except (ValueError, OverflowError):
            return None
    return min(max(wait_s, 0.0), _MAX_WAIT_S) if math.isfinite(wait_s) else None


def _vectors(reply: JSON, count: int, where: str) -> Vectors:
    next_step = "check that the address is TEI's /embed of an embedding model"
    if not isinstance(reply, list) or len(reply) != count:
        size = f"{len(reply)} items" if isinstance(reply, list) else "no list"
        raise WrongModel(f"{where} replied {size} for {count} texts", next_step=next_step)
    # exact types: numpy would turn "1", true and null into numbers
    for row in reply:
        if not isinstance(row, list) or not row or not {float, int}.issuperset(map(type, row)):
            raise WrongModel(f"{where} replied something that is no list of numbers", next_step=next_step)
    try:
        with np.errstate(over="ignore"):  # what does not fit becomes infinite, and check_vectors refuses it
            vectors = np.array(reply, np.float32)
    except ValueError as error:
        raise WrongModel(f"{where} replied vectors of different sizes", next_step=next_step) from error
    return check_vectors(vectors, count, where)


def _text(reply: Mapping[str, JSON], name: str) -> str | None:
    value = reply.get(name)
    return value if isinstance(value, str) else None


def _number(reply: Mapping[str, JSON], name: str) -> int | None:
    value = reply.get(name)
    return value if type(value) is int else None
