"""A retriever for LangChain: the extra `langchain`.

It asks `crossfade serve`, so a model that is replaced meanwhile is none of the chain's business.
"""

from __future__ import annotations

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from pydantic import Field, JsonValue

from streams.client.calls import Mode
from streams.client.clients import AsyncCrossfade, Crossfade
from streams.client.retrieving import Found, Retrieval, need_one


class CrossfadeRetriever(BaseRetriever):
    """Documents of one collection. With `async_client` alone it is asked from asyncio only.

    `vector_space`: another space than the default; or `mode`: another route than the configured one. `filter`: over
    declared properties. `caller`: who asks, for a progressive rollout. `text_property`: what stands for the text where
    the collection stores none. A document's metadata are its properties, and `cf_score`, `cf_route`, `cf_space`,
    `cf_fingerprint`, `cf_chunk`.

    Raises Misconfigured without a client; asking raises ClientError.
    """

    client: Crossfade | None = Field(default=None, exclude=True)
    async_client: AsyncCrossfade | None = Field(default=None, exclude=True)
    collection: str
    top_k: int = 10
    filter: dict[str, JsonValue] | None = None
    vector_space: str | None = None
    mode: Mode | None = None
    caller: str | None = None
    text_property: str | None = None

    def model_post_init(self, context: object, /) -> None:
        super().model_post_init(context)
        need_one(self.client, self.async_client)

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        return [_document(found) for found in self._retrieval.find(query)]

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun
    ) -> list[Document]:
        return [_document(found) for found in await self._retrieval.find_async(query)]

    @property
    def _retrieval(self) -> Retrieval:
        return Retrieval(
            self.client,
            self.async_client,
            self.collection,
            self.top_k,
            self.filter,
            self.vector_space,
            self.mode,
            self.caller,
            self.text_property,
        )


def _document(found: Found) -> Document:
    return Document(id=found.id, page_content=found.text, metadata=found.metadata)
