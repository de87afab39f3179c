"""A retriever for LlamaIndex: the extra `llama-index`.

It asks `crossfade serve`, so a model that is replaced meanwhile is none of the query engine's business.
"""

from __future__ import annotations

from collections.abc import Mapping

from llama_index.core.callbacks import CallbackManager
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from pydantic import JsonValue

from streams.client.calls import Mode
from streams.client.clients import AsyncCrossfade, Crossfade
from streams.client.retrieving import ADDED, Found, Retrieval, need_one


class CrossfadeRetriever(BaseRetriever):
    """Nodes of one collection. With `async_client` alone it is asked from asyncio only.

    `vector_space`: another space than the default; or `mode`: another route than the configured one. `filter`: over
    declared properties. `caller`: who asks, for a progressive rollout. `text_property`: what stands for the text where
    the collection stores none. A node's metadata are its properties, and `cf_score`, `cf_route`, `cf_space`,
    `cf_fingerprint`, `cf_chunk`, which no model is shown.

    Raises Misconfigured without a client; asking raises ClientError.
    """

    def __init__(
        self,
        collection: str,
        client: Crossfade | None = None,
        async_client: AsyncCrossfade | None = None,
        *,
        top_k: int = 10,
        filter: Mapping[str, JsonValue] | None = None,  # noqa: A002  as the interface calls it
        vector_space: str | None = None,
        mode: Mode | None = None,
        caller: str | None = None,
        text_property: str | None = None,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        need_one(client, async_client)
        super().__init__(callback_manager=callback_manager)
        self.retrieval = Retrieval(
            client, async_client, collection, top_k, filter, vector_space, mode, caller, text_property
        )

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [_node(found) for found in self.retrieval.find(query_bundle.query_str)]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [_node(found) for found in await self.retrieval.find_async(query_bundle.query_str)]


def _node(found: Found) -> NodeWithScore:
    node = TextNode(
        id_=found.id,
        text=found.text,
        metadata=found.metadata,
        excluded_llm_metadata_keys=[*ADDED],
        excluded_embed_metadata_keys=[*ADDED],
    )
    return NodeWithScore(node=node, score=found.score)
