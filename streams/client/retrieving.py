"""What the retrievers of LangChain and LlamaIndex have in common: how they ask, and what of a hit they hand on.

Neither framework is imported here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from streams.client.answers import SearchAnswer
from streams.client.calls import Mode
from streams.client.clients import AsyncCrossfade, Crossfade
from streams.client.errors import Misconfigured

SCORE, ROUTE, SPACE, FINGERPRINT, CHUNK = "cf_score", "cf_route", "cf_space", "cf_fingerprint", "cf_chunk"
ADDED = (SCORE, ROUTE, SPACE, FINGERPRINT, CHUNK)
"""In the metadata, beside the properties: no property's name may begin so."""


@dataclass(frozen=True, slots=True)
class Found:
    """One document. `metadata`: its properties, and ADDED."""

    id: str
    text: str
    score: float
    metadata: dict[str, JsonValue]


@dataclass(frozen=True, slots=True)
class Retrieval:
    """How a retriever asks: from threads with `client`, from asyncio with `async_client`, or else with `client` in a
    thread. `text_property`: what stands for the text where the collection stores none."""

    client: Crossfade | None
    async_client: AsyncCrossfade | None
    collection: str
    top_k: int = 10
    filter: Mapping[str, JsonValue] | None = None
    vector_space: str | None = None
    mode: Mode | None = None
    caller: str | None = None
    text_property: str | None = None

    def find(self, query: str) -> list[Found]:
        """Best first. Raises ClientError."""
        if self.client is None:
            raise Misconfigured(
                "the retriever has no client to be asked with from threads",
                next_step="give it client=Crossfade(...), or ask it from asyncio",
            )
        answer = self.client.search(
            self.collection,
            query,
            top_k=self.top_k,
            filter=self.filter,
            vector_space=self.vector_space,
            mode=self.mode,
            caller=self.caller,
        )
        return found_in(answer, self.text_property)

    async def find_async(self, query: str) -> list[Found]:
        """As `find`; in a thread where there is no client for asyncio."""
        if self.async_client is None:
            return await asyncio.to_thread(self.find, query)
        answer = await self.async_client.search(
            self.collection,
            query,
            top_k=self.top_k,
            filter=self.filter,
            vector_space=self.vector_space,
            mode=self.mode,
            caller=self.caller,
        )
        return found_in(answer, self.text_property)


def found_in(answer: SearchAnswer, text_property: str | None) -> list[Found]:
    """Raises Misconfigured where a document has no text to hand on: an empty one would be believed."""
    found = []
    for hit in answer.hits:
        text = hit.text if hit.text is not None else hit.properties.get(text_property) if text_property else None
        if not isinstance(text, str):
            raise Misconfigured(
                f"{answer.collection} gives no text of its documents",
                next_step="name a property that holds one as text_property, or let the collection store_text",
            )
        metadata: dict[str, JsonValue] = {
            **hit.properties,
            SCORE: hit.score,
            ROUTE: answer.route,
            SPACE: hit.space,
            FINGERPRINT: hit.fingerprint,
            CHUNK: hit.chunk,
        }
        found.append(Found(hit.id, text, hit.score, metadata))
    return found


def need_one(client: Crossfade | None, async_client: AsyncCrossfade | None) -> None:
    """Raises Misconfigured where a retriever has nothing to ask with."""
    if client is None and async_client is None:
        raise Misconfigured(
            "the retriever has no client", next_step="give it client=Crossfade(...), async_client=AsyncCrossfade(...)"
        )
