"""OpenAI's /embeddings over HTTP, as OpenAI, Azure, vLLM, infinity, Ollama and LiteLLM serve it.

It never trusts the order of a reply: `index` alone says which vector is whose, and a reply with a gap is refused whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import httpx
import numpy as np

from connectors.embedders.base import refuse_blank
from connectors.embedders.http import HttpEndpoint, encode_request, most_bytes
from connectors.embedders.http_errors import Advice
from connectors.embedders.replies import Row, numbers, packed_numbers, stack
from connectors.errors import ConfigurationError, WrongModel
from connectors.protocols import JSON, Embedded, ModelFacts, Vectors

_ADVICE = Advice(
    address="check that the address ends before /embeddings (mostly in /v1), and that it serves this model"
)


class OpenAIEmbedder:
    """One endpoint. `url` ends before /embeddings; with `api_version` it is an Azure deployment's.

    `dimensions` is sent where given: some models can shorten their vectors. `encoding` base64 is sent only where
    chosen, and a server that answers with lists all the same is understood. `key_header`: Authorization, on Azure
    api-key. `timeout_s`, `ca_file`, `http2` as `HttpEndpoint` says.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str,
        api_key: str | None = None,
        key_header: str | None = None,
        timeout_s: float = 30.0,
        max_batch: int = 128,
        dimensions: int | None = None,
        encoding: Literal["float", "base64"] = "float",
        api_version: str | None = None,
        ca_file: str | Path | None = None,
        http2: bool = True,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        if not model:
            raise ConfigurationError("an OpenAI embedder without a model", next_step="give the model's name")
        self.max_batch = max_batch
        self._request: dict[str, object] = {"model": model}
        if dimensions is not None:
            self._request["dimensions"] = dimensions
        if encoding != "float":  # float is the default everywhere, and some servers know no other
            self._request["encoding_format"] = encoding
        self._dimensions = dimensions
        self._packed = encoding == "base64"
        self._query = {} if api_version is None else {"api-version": api_version}
        self._served: str | None = None
        self._endpoint = HttpEndpoint(
            url,
            "the OpenAI endpoint",
            _ADVICE,
            api_key=api_key,
            key_header=key_header or ("Authorization" if api_version is None else "api-key"),
            timeout_s=timeout_s,
            ca_file=ca_file,
            http2=http2,
            transport=transport,
        )

    def __repr__(self) -> str:
        return f"OpenAIEmbedder({self._endpoint.where})"

    async def embed(self, texts: Sequence[str]) -> Embedded:
        """float32[n, dim] as the model gives them, and the tokens the endpoint bills.

        Raises what `Embedder` says; ContentRejected stands for the whole call.
        """
        refuse_blank(texts)
        if not texts:
            return Embedded(np.zeros((0, 0), np.float32))
        body = encode_request(self._request | {"input": list(texts)}, texts)
        size = most_bytes(len(texts), self._dimensions)
        reply = (await self._endpoint.ask("POST", "/embeddings", body, most=size, query=self._query)).value
        if not isinstance(reply, dict):
            raise self._wrong("no object")
        vectors = self._vectors(reply.get("data"), len(texts))
        served = reply.get("model")
        self._served = served if isinstance(served, str) and served else None
        return Embedded(vectors, _tokens(reply.get("usage")))

    async def facts(self) -> ModelFacts:
        """What the last reply named as its model, which may be a dated name; all None before the first. Asks nothing:
        of these servers, most say nothing more of a model than its name, and some deny having it."""
        return ModelFacts(model=self._served)

    async def close(self) -> None:
        """Closes the connections."""
        await self._endpoint.close()

    def _vectors(self, data: JSON, count: int) -> Vectors:
        if not isinstance(data, list) or len(data) != count:
            raise self._wrong(f"{len(data)} items" if isinstance(data, list) else "no list", count)
        rows: list[Row | None] = [None] * count
        for item in data:
            index = item.get("index") if isinstance(item, dict) else None
            if not isinstance(item, dict) or type(index) is not int or not 0 <= index < count:
                raise self._wrong("a vector without a usable index", count)
            if rows[index] is not None:
                raise self._wrong("two vectors of one index", count)
            rows[index] = self._row(item.get("embedding"))
        # as many as texts and none twice: no gap is left
        return stack([row for row in rows if row is not None], self._endpoint.where, _ADVICE.address)

    def _row(self, embedding: JSON) -> Row:
        if self._packed and isinstance(embedding, str):
            return packed_numbers(embedding, self._endpoint.where, _ADVICE.address)
        return numbers(embedding, self._endpoint.where, _ADVICE.address)

    def _wrong(self, what: str, count: int | None = None) -> WrongModel:
        texts = "" if count is None else f" for {count} texts"
        return WrongModel(f"{self._endpoint.where} replied {what}{texts}", next_step=_ADVICE.address)


def _tokens(usage: JSON) -> int | None:
    """What was counted, when it is a number that can be one."""
    if not isinstance(usage, dict):
        return None
    for name in ("total_tokens", "prompt_tokens"):
        value = usage.get(name)
        if type(value) is int and value >= 0:
            return value
    return None
