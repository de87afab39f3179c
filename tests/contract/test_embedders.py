"""One suite over every embedder: what the `Embedder` Protocol promises, those of HTTP over real HTTP on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import numpy as np
import pytest

from connectors.embedders.base import RejectedTexts
from connectors.embedders.hashing import HashingEmbedder
from connectors.embedders.openai import OpenAIEmbedder
from connectors.embedders.probe import PROBE_TEXTS, probe
from connectors.embedders.tei import TeiEmbedder
from connectors.errors import AccessDenied, ContentRejected, Transient, Unreachable
from connectors.memory.embedder import MemoryEmbedder
from connectors.protocols import Embedder, ModelFacts
from tests.contract.embedding_servers import API_KEY, DIMENSIONS, MAX_BATCH, OpenAIServer, TeiServer, serving


@pytest.fixture
async def tei_server() -> AsyncIterator[tuple[TeiServer, str]]:
    behaviour = TeiServer()
    async with serving(behaviour) as url:
        yield behaviour, url


@pytest.fixture
async def openai_url() -> AsyncIterator[str]:
    async with serving(OpenAIServer()) as url:
        yield f"{url}/v1"


@pytest.fixture(params=["hashing", "memory", "tei", "plain", "openai", "openai-base64"])
async def embedder(
    request: pytest.FixtureRequest, tei_server: tuple[TeiServer, str], openai_url: str
) -> AsyncIterator[Embedder]:
    tei_url = tei_server[1]
    make: dict[str, Callable[[], Embedder]] = {
        "hashing": lambda: HashingEmbedder(DIMENSIONS),
        "memory": lambda: MemoryEmbedder(DIMENSIONS, max_batch=MAX_BATCH),
        "tei": lambda: TeiEmbedder(tei_url, api_key=API_KEY, max_batch=MAX_BATCH),
        "plain": lambda: TeiEmbedder(f"{tei_url}/plain", path="/vectors", api_key=API_KEY, max_batch=MAX_BATCH),
        "openai": lambda: OpenAIEmbedder(openai_url, model="m", api_key=API_KEY, max_batch=MAX_BATCH),
        "openai-base64": lambda: OpenAIEmbedder(
            openai_url, model="m", api_key=API_KEY, max_batch=MAX_BATCH, encoding="base64"
        ),
    }
    made = make[request.param]()
    yield made
    await made.close()


TEXTS = ["the wing", "a propeller slipstream", "the wing", "ünïcode – 漢字 🚀", "x" * 9_000]


async def test_one_float32_row_a_text_in_order(embedder: Embedder) -> None:
    vectors = (await embedder.embed(TEXTS)).vectors
    assert vectors.shape == (len(TEXTS), DIMENSIONS)
    assert vectors.dtype == np.float32
    assert np.isfinite(vectors).all()
    assert vectors.any(axis=1).all()
    assert (vectors[0] == vectors[2]).all()
    assert not np.allclose(vectors[0], vectors[1])


async def test_a_text_has_the_same_vector_alone_again_and_in_any_batch(embedder: Embedder) -> None:
    together = (await embedder.embed(TEXTS)).vectors
    backwards = (await embedder.embed(TEXTS[::-1])).vectors
    for index, text in enumerate(TEXTS):
        assert ((await embedder.embed([text])).vectors[0] == together[index]).all()
    assert (backwards[::-1] == together).all()


async def test_a_full_batch_is_taken(embedder: Embedder) -> None:
    count = min(embedder.max_batch, 200)
    assert (await embedder.embed([f"text {n}" for n in range(count)])).vectors.shape == (count, DIMENSIONS)


async def test_calls_may_overlap(embedder: Embedder) -> None:
    batches = [[f"batch {n}", f"of {n}"] for n in range(8)]
    results = await asyncio.gather(*(embedder.embed(batch) for batch in batches))
    for batch, result in zip(batches, results, strict=True):
        assert (result.vectors == (await embedder.embed(batch)).vectors).all()


@pytest.mark.parametrize("blank", ["", " ", "\n\t"])
async def test_blank_texts_are_rejected_by_index(embedder: Embedder, blank: str) -> None:
    with pytest.raises(RejectedTexts) as caught:
        await embedder.embed(["good", blank, "good", blank])
    assert caught.value.indexes == (1, 3)
    assert (await embedder.embed(["good"])).vectors.shape == (1, DIMENSIONS)


async def test_the_probe_is_what_its_texts_give(embedder: Embedder) -> None:
    vectors = await probe(embedder)
    assert vectors.shape == (len(PROBE_TEXTS), DIMENSIONS)
    assert (vectors == (await embedder.embed(PROBE_TEXTS)).vectors).all()


async def test_tokens_and_facts_are_what_the_endpoint_says(embedder: Embedder, request: pytest.FixtureRequest) -> None:
    tokens = (await embedder.embed(["two words", "and three words"])).tokens
    facts = await embedder.facts()
    says = {
        "tei": (5, ModelFacts("m", "r", max_batch=MAX_BATCH, max_input_tokens=512)),
        "plain": (None, ModelFacts()),
        "openai": (5, ModelFacts("m-2025")),
        "openai-base64": (5, ModelFacts("m-2025")),
    }
    kind = request.node.callspec.params["embedder"]
    assert (tokens, facts) == says.get(kind, (tokens, facts))


async def test_texts_that_are_no_unicode_are_rejected_by_index(tei_server: tuple[TeiServer, str]) -> None:
    for embedder in (TeiEmbedder(tei_server[1]), OpenAIEmbedder(tei_server[1], model="m")):
        with pytest.raises(RejectedTexts) as caught:
            await embedder.embed(["good", "half \ud83d", "good", "\udc00"])
        assert caught.value.indexes == (1, 3)
        assert "half" not in str(caught.value)
        await embedder.close()
    assert tei_server[0].requests == 0


async def test_tei_refuses_a_wrong_key_and_names_no_key(tei_server: tuple[TeiServer, str]) -> None:
    embedder = TeiEmbedder(tei_server[1], api_key="wrong-key")
    with pytest.raises(AccessDenied) as caught:
        await embedder.embed(["text"])
    assert "wrong-key" not in str(caught.value) + repr(embedder)
    await embedder.close()


async def test_tei_truncates_only_when_told_to(tei_server: tuple[TeiServer, str]) -> None:
    long = "secret text " * 1000
    strict = TeiEmbedder(tei_server[1], api_key=API_KEY)
    with pytest.raises(ContentRejected) as caught:
        await strict.embed([long])
    assert "secret" not in str(caught.value)
    cutting = TeiEmbedder(tei_server[1], api_key=API_KEY, truncate=True)
    assert (await cutting.embed([long])).vectors.shape == (1, DIMENSIONS)
    await strict.close()
    await cutting.close()


async def test_tei_that_does_not_reply_in_time_may_be_asked_again(tei_server: tuple[TeiServer, str]) -> None:
    server, url = tei_server
    server.hold = asyncio.Event()
    embedder = TeiEmbedder(url, api_key=API_KEY, timeout_s=0.05)
    with pytest.raises(Transient) as caught:
        await embedder.embed(["text"])
    assert not isinstance(caught.value, Unreachable)
    server.hold.set()
    await embedder.close()


async def test_tei_that_is_not_there_is_unreachable() -> None:
    server = await asyncio.start_server(TeiServer(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    embedder = TeiEmbedder(f"http://127.0.0.1:{port}")
    with pytest.raises(Unreachable) as caught:
        await embedder.embed(["text"])
    assert caught.value.next_step
    await embedder.close()
