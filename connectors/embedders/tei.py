"""HuggingFace Text Embeddings Inference over HTTP, or anything of its shape: {"inputs": [...]} to one vector a text.

It never follows a redirect, never retries, and never accepts a reply that is not exactly one finite vector a text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx
import numpy as np

from connectors.embedders.base import refuse_blank
from connectors.embedders.http import HttpEndpoint, encode_request, most_bytes
from connectors.embedders.http_errors import Advice
from connectors.embedders.replies import numbers, stack
from connectors.errors import WrongModel
from connectors.protocols import JSON, Embedded, ModelFacts, Vectors

_ADVICE = Advice(
    address="check that the address is that of TEI, without its path, and of an embedding model",
    rejected="shorten the text, or set truncate: true, which is another model version; see max_batch too",
)


class TeiEmbedder:
    """One endpoint. `url` without `path`. `timeout_s`, `ca_file`, `http2`, `key_header` as `HttpEndpoint` says.

    `truncate` False: the endpoint refuses texts longer than the model reads, instead of cutting them silently.
    """

    def __init__(
        self,
        url: str,
        *,
        path: str = "/embed",
        api_key: str | None = None,
        key_header: str = "Authorization",
        timeout_s: float = 30.0,
        max_batch: int = 32,
        truncate: bool = False,
        ca_file: str | Path | None = None,
        http2: bool = True,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.max_batch = max_batch
        self._path = path
        self._truncate = truncate
        self._endpoint = HttpEndpoint(
            url,
            "the TEI endpoint",
            _ADVICE,
            api_key=api_key,
            key_header=key_header,
            timeout_s=timeout_s,
            ca_file=ca_file,
            http2=http2,
            transport=transport,
        )
        self._endpoint.url(path)

    def __repr__(self) -> str:
        return f"TeiEmbedder({self._endpoint.where})"

    async def embed(self, texts: Sequence[str]) -> Embedded:
        """float32[n, dim] as the model gives them: normalising is the caller's, who knows the envelope.

        Raises what `Embedder` says; ContentRejected stands for the whole call, as TEI does not say which text.
        """
        refuse_blank(texts)
        if not texts:
            return Embedded(np.zeros((0, 0), np.float32))
        body = encode_request({"inputs": list(texts), "truncate": self._truncate, "normalize": False}, texts)
        reply = await self._endpoint.ask("POST", self._path, body, most=most_bytes(len(texts)))
        return Embedded(_vectors(reply.value, len(texts), self._endpoint.where), _counted(reply.headers))

    async def facts(self) -> ModelFacts:
        """GET /info; all None where there is none, or none of TEI's. Raises as `embed` does."""
        try:
            reply = await self._endpoint.ask("GET", "/info", most=most_bytes(0), absent=(404, 405))
        except WrongModel:  # a page or something else that is no JSON: whether vectors come is seen by `embed`
            return ModelFacts()
        if not isinstance(reply.value, dict):
            return ModelFacts()
        return ModelFacts(
            model=_text(reply.value, "model_id"),
            revision=_text(reply.value, "model_sha"),
            max_batch=_number(reply.value, "max_client_batch_size"),
            max_batch_tokens=_number(reply.value, "max_batch_tokens"),
            max_input_tokens=_number(reply.value, "max_input_length"),
        )

    async def close(self) -> None:
        """Closes the connections."""
        await self._endpoint.close()


def _vectors(reply: JSON, count: int, where: str) -> Vectors:
    if not isinstance(reply, list) or len(reply) != count:
        size = f"{len(reply)} items" if isinstance(reply, list) else "no list"
        raise WrongModel(f"{where} replied {size} for {count} texts", next_step=_ADVICE.address)
    return stack([numbers(row, where, _ADVICE.address) for row in reply], where, _ADVICE.address)


def _counted(headers: Mapping[str, str]) -> int | None:
    """TEI counts a call's tokens in a header."""
    value = headers.get("x-compute-tokens", "")
    return int(value) if value.isascii() and value.isdigit() and len(value) < 16 else None


def _text(reply: Mapping[str, JSON], name: str) -> str | None:
    value = reply.get(name)
    return value if isinstance(value, str) else None


def _number(reply: Mapping[str, JSON], name: str) -> int | None:
    value = reply.get(name)
    return value if type(value) is int and value > 0 else None
