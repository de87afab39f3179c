"""The retrievers in the real LangChain and LlamaIndex, over the real app."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest
from langchain_core.documents import Document
from langchain_core.runnables import ConfigurableField, RunnableLambda, RunnablePassthrough
from llama_index.core import Settings as LlamaSettings
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle

from connectors import reserved
from streams.client import AsyncCrossfade, ClientError, Crossfade, Misconfigured, Refused, SearchAnswer, SearchHit
from streams.client.langchain import CrossfadeRetriever as LangChainRetriever
from streams.client.llama_index import CrossfadeRetriever as LlamaIndexRetriever
from streams.client.retrieving import ADDED, Retrieval, found_in
from tests.served import DOCUMENTS, Served, listened

CATS = {"kind": "c"}


@dataclass
class World:
    api: Served
    threads: Crossfade
    asyncs: AsyncCrossfade


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with listened(tmp_path) as (served, url):
        await served.serve("v1")
        await served.ready("v2")
        async with AsyncCrossfade(url, retries=0) as asyncs:
            with Crossfade(url, retries=0) as threads:
                yield World(served, threads, asyncs)


def added(found: dict[str, object]) -> set[str]:
    return {name for name in found if name.startswith(reserved.PREFIX)}


def is_cats(metadata: dict[str, object], world: World, version: str, route: str) -> None:
    build = world.api.backend.state.build("docs", version)
    assert {name: value for name, value in metadata.items() if name not in ADDED} == CATS
    assert added(metadata) == set(ADDED)
    assert (metadata["cf_space"], metadata["cf_fingerprint"]) == (build.space, build.fingerprint)
    assert (metadata["cf_route"], metadata["cf_chunk"]) == (route, 0)
    assert isinstance(metadata["cf_score"], float)


async def test_langchain(world: World) -> None:
    retriever = LangChainRetriever(client=world.threads, async_client=world.asyncs, collection="docs", top_k=2)
    for found in (await asyncio.to_thread(retriever.invoke, "kittens purr"), await retriever.ainvoke("kittens purr")):
        assert [type(one) for one in found] == [Document, Document]
        assert (found[0].id, found[0].page_content) == ("cats", DOCUMENTS["cats"])
        is_cats(found[0].metadata, world, "v1", "serving")
    named = LangChainRetriever(
        client=world.threads, collection="docs", vector_space="v2", filter={"kind": ["c", "d"]}, caller="me"
    )
    found = await named.ainvoke("kittens purr")
    assert [one.id for one in found] == ["cats", "dogs"]
    is_cats(found[0].metadata, world, "v2", "named")
    chosen = retriever.configurable_fields(top_k=ConfigurableField(id="top_k"))
    assert len(await chosen.ainvoke("kittens purr", {"configurable": {"top_k": 1}})) == 1


async def test_in_a_chain_of_langchain(world: World) -> None:
    retriever = LangChainRetriever(async_client=world.asyncs, collection="docs", top_k=1, mode="serving")

    def join(found: list[Document]) -> str:
        return " ".join(one.page_content for one in found)

    def read(given: dict[str, str]) -> str:
        return f"{given['question']}: {given['context']}"

    chain = {"context": retriever | RunnableLambda(join), "question": RunnablePassthrough()} | RunnableLambda(read)
    assert await chain.ainvoke("kittens purr") == f"kittens purr: {DOCUMENTS['cats']}"
    assert await chain.abatch(["puppies bark", "log of events"]) == [
        f"puppies bark: {DOCUMENTS['dogs']}",
        f"log of events: {DOCUMENTS['kafka']}",
    ]


async def test_llama_index(world: World) -> None:
    retriever = LlamaIndexRetriever("docs", world.threads, world.asyncs, top_k=2)
    asked: list[list[NodeWithScore]] = [
        await asyncio.to_thread(retriever.retrieve, "kittens purr"),
        await retriever.aretrieve(QueryBundle("kittens purr")),
    ]
    for found in asked:
        assert len(found) == 2
        assert (found[0].node_id, found[0].text) == ("cats", DOCUMENTS["cats"])
        assert found[0].score == found[0].metadata["cf_score"]
        is_cats(found[0].metadata, world, "v1", "serving")
        shown = found[0].get_content(MetadataMode.LLM)
        assert "kind: c" in shown
        assert "cf_" not in shown + found[0].get_content(MetadataMode.EMBED)
    named = LlamaIndexRetriever("docs", world.threads, vector_space="v2", filter={"kind": ["c", "d"]})
    there = await named.aretrieve("kittens purr")
    assert [one.node_id for one in there] == ["cats", "dogs"]
    is_cats(there[0].metadata, world, "v2", "named")


async def test_in_a_query_engine_of_llama_index(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LlamaSettings, "_llm", MockLLM())
    retriever = LlamaIndexRetriever("docs", async_client=world.asyncs, top_k=1)
    engine = RetrieverQueryEngine.from_args(retriever)
    answer = await engine.aquery("kittens purr")
    assert DOCUMENTS["cats"] in str(answer)
    assert [one.node_id for one in answer.source_nodes] == ["cats"]


async def test_what_goes_wrong_is_said_by_the_client(world: World) -> None:
    await world.api.serve("v2")
    both = {"client": world.threads, "async_client": world.asyncs, "collection": "docs", "vector_space": "v9"}
    for ask in (LangChainRetriever(**both).ainvoke, LlamaIndexRetriever(**both).aretrieve):  # type: ignore[arg-type]
        with pytest.raises(ClientError, match="v9"):
            await ask("kittens")
    for make in (LangChainRetriever, LlamaIndexRetriever):
        with pytest.raises(Misconfigured, match="no client"):
            make(collection="docs")
        for_asyncio: LangChainRetriever | LlamaIndexRetriever = make(collection="docs", async_client=world.asyncs)
        ask_now = for_asyncio.invoke if isinstance(for_asyncio, LangChainRetriever) else for_asyncio.retrieve
        with pytest.raises(Misconfigured, match="from threads"):
            ask_now("kittens")


def test_a_collection_that_stores_no_text() -> None:
    hit = SearchHit("k", 0.5, {"title": "About cats", "year": 1990}, None, 0, "S", "f")
    answer = SearchAnswer("docs", "serving", "", "v1", "serving", "S", "f", 1.0, (hit,))
    assert [one.text for one in found_in(answer, "title")] == ["About cats"]
    for wanting in (None, "year", "subtitle"):
        with pytest.raises(Misconfigured, match="no text"):
            found_in(answer, wanting)
    (told,) = found_in(replace(answer, hits=(replace(hit, text="Cats purr."),)), "title")
    assert (told.id, told.text, told.score, told.metadata["title"]) == ("k", "Cats purr.", 0.5, "About cats")


def test_the_names_that_are_added_are_reserved() -> None:
    assert all(name.startswith(reserved.PREFIX) for name in ADDED)


def test_the_key_is_not_shown() -> None:
    key = "SECRETm3x7" * 4
    refusing = httpx.MockTransport(
        lambda _: httpx.Response(409, json={"title": "No", "detail": "not now", "status": 409})
    )
    with Crossfade("http://127.0.0.1:1", key, transport=refusing) as client:
        retriever = LangChainRetriever(client=client, collection="docs")
        other = LlamaIndexRetriever("docs", client)
        shown = f"{retriever!r}{retriever!s}{retriever.model_dump()}{other!r}{other.retrieval!r}{Retrieval}"
        assert key not in shown
        for ask in (retriever.invoke, other.retrieve):
            with pytest.raises(Refused, match="not now"):
                ask("kittens")
