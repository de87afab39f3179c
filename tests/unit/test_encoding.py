"""The encoder: prefixes, batches, checks, normalisation, and telling the guilty text from a broken endpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from connectors.embedders.base import RejectedTexts
from connectors.embedders.hashing import HashingEmbedder
from connectors.embedders.tei import TeiEmbedder
from connectors.errors import ConfigurationError, ContentRejected, Unreachable, WrongModel
from connectors.memory.embedder import MemoryEmbedder
from streams import config
from streams.encoding import Encoder
from streams.versions import Envelope
from streams.wiring import make_embedder, make_encoder

ENVELOPE = Envelope(
    provider="memory",
    model="m",
    revision="",
    dimensions=2,
    text_fields=("text",),
    document_prefix="passage: ",
    query_prefix="query: ",
)


async def test_prefixes_batches_order_and_length() -> None:
    embedder = MemoryEmbedder(2, max_batch=3, table={"passage: 0": [3.0, 4.0], "query: 0": [0.0, -2.0]})
    encoder = Encoder(ENVELOPE, embedder)
    vectors = await encoder.encode_documents([str(n) for n in range(8)])
    assert [len(call) for call in embedder.calls] == [3, 3, 2]
    assert embedder.embedded == [f"passage: {n}" for n in range(8)]
    assert vectors.dtype == np.float32
    assert vectors[0].tolist() == pytest.approx([0.6, 0.8])
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0)
    query = await encoder.encode_query("0")
    assert query.shape == (2,)
    assert query.tolist() == [0.0, -1.0]
    assert (await encoder.encode_documents([])).shape == (0, 2)
    await encoder.close()
    assert embedder.closed


async def test_without_normalisation_vectors_are_the_models_own() -> None:
    encoder = Encoder(replace(ENVELOPE, normalize=False), MemoryEmbedder(2, table={"passage: a": [3.0, 4.0]}))
    assert (await encoder.encode_documents(["a"])).tolist() == [[3.0, 4.0]]


async def test_vectors_of_length_one_keep_their_bits() -> None:
    nearly = np.array([0.6000001, 0.8], np.float32)
    table = {"passage: a": nearly.tolist()}
    assert (await Encoder(ENVELOPE, MemoryEmbedder(2, table=table)).encode_documents(["a"])).tolist() == [
        nearly.tolist()
    ]
    hashing = HashingEmbedder(64)
    envelope = replace(ENVELOPE, dimensions=64, document_prefix="")
    texts = ["the wing", "a propeller", "in a slipstream"]
    assert (await Encoder(envelope, hashing).encode_documents(texts) == (await hashing.embed(texts)).vectors).all()


async def test_other_dimensions_are_the_wrong_model() -> None:
    encoder = Encoder(ENVELOPE, MemoryEmbedder(3))
    with pytest.raises(WrongModel, match="3 dimensions, the configuration says 2") as caught:
        await encoder.encode_documents(["a"])
    assert "dimensions: 3" in caught.value.next_step
    with pytest.raises(WrongModel):
        await encoder.encode_query("a")


async def test_a_zero_vector_rejects_its_text_alone() -> None:
    table = {"passage: b": [0.0, 0.0], "query: b": [0.0, 0.0]}
    encoder = Encoder(ENVELOPE, MemoryEmbedder(2, table=table))
    with pytest.raises(RejectedTexts) as caught:
        await encoder.encode_documents(["a", "b", "c"])
    assert caught.value.indexes == (1,)
    vectors, rejected = await encoder.encode_each(["a", "b", "c"])
    assert list(rejected) == [1]
    assert not vectors[1].any()
    assert vectors[[0, 2]].any(axis=1).all()
    with pytest.raises(ContentRejected):
        await encoder.encode_query("b")
    dot = Encoder(replace(ENVELOPE, metric="dot", normalize=False), MemoryEmbedder(2, table=table))
    with pytest.raises(RejectedTexts):
        await dot.encode_documents(["b"])


async def test_a_model_of_zeros_is_the_wrong_model() -> None:
    class Zeros(MemoryEmbedder):
        def _hashed(self, text: str) -> list[float]:
            return [0.0, 0.0]

    with pytest.raises(WrongModel):
        await Encoder(ENVELOPE, Zeros(2)).encode_each(["a", "b"])


@pytest.mark.parametrize("count", [1, 2, 7])
async def test_blank_texts_are_rejected_in_spite_of_a_prefix_and_cost_nothing(count: int) -> None:
    embedder = MemoryEmbedder(2)
    _, rejected = await Encoder(ENVELOPE, embedder).encode_each([" "] * count)
    assert list(rejected) == list(range(count))
    assert embedder.calls == []
    with pytest.raises(RejectedTexts):
        await Encoder(ENVELOPE, embedder).encode_query("")


class Picky:
    """Refuses whole calls that hold a bad text, without saying which, as TEI does."""

    def __init__(self, *bad: str) -> None:
        self.bad = {f"passage: {text}" for text in bad}

    async def __call__(self, call: int, texts: Sequence[str]) -> None:
        if self.bad & set(texts):
            raise ContentRejected("422")


@pytest.mark.parametrize("bad", [{0}, {15}, {3, 4}, {0, 7, 8, 15}, set(range(15))], ids=str)
async def test_the_guilty_are_found_by_halving(bad: set[int]) -> None:
    embedder = MemoryEmbedder(2, max_batch=16, fault=Picky(*(str(n) for n in bad)))
    vectors, rejected = await Encoder(ENVELOPE, embedder).encode_each([str(n) for n in range(16)])
    assert set(rejected) == bad
    for index in range(16):
        assert vectors[index].any() == (index not in bad)
    if len(bad) == 1:
        assert len(embedder.calls) == 9 + 1  # and the plain sentence, which shows that it is the text's fault


async def test_an_only_text_that_is_refused_is_the_texts_fault() -> None:
    embedder = MemoryEmbedder(2, fault=Picky("a"))
    with pytest.raises(RejectedTexts) as caught:
        await Encoder(ENVELOPE, embedder).encode_documents(["a"])
    assert caught.value.indexes == (0,)
    assert len(embedder.calls) == 2, "the plain sentence is asked once"


async def test_an_endpoint_that_refuses_everything_rejects_no_document() -> None:
    async def refuse(call: int, texts: Sequence[str]) -> None:
        raise ContentRejected("422")

    with pytest.raises(ConfigurationError) as caught:
        await Encoder(ENVELOPE, MemoryEmbedder(2, fault=refuse)).encode_each(["a", "b"])
    assert caught.value.next_step


async def test_an_endpoint_that_begins_to_refuse_everything_rejects_no_document() -> None:
    async def refuse(call: int, texts: Sequence[str]) -> None:
        if call > 0:
            raise ContentRejected("422")

    embedder = MemoryEmbedder(2, max_batch=2, fault=refuse)
    with pytest.raises(ConfigurationError, match="also a plain sentence"):
        await Encoder(ENVELOPE, embedder).encode_each(["a", "b", "c", "d"])


async def test_other_errors_pass_through() -> None:
    async def away(call: int, texts: Sequence[str]) -> None:
        raise Unreachable("away")

    with pytest.raises(Unreachable):
        await Encoder(ENVELOPE, MemoryEmbedder(2, fault=away)).encode_documents(["a"])


async def test_the_factory_makes_what_the_configuration_names() -> None:
    version = config.Version(embedder=config.HashingEmbedder(word_ngrams=None, seed=3), dimensions=16)
    collection = config.Collection(name="docs", topic="t", text=config.Text(fields=["text"]), alias="Docs")
    encoder = make_encoder(collection, version)
    expected = (await HashingEmbedder(16, word_ngrams=None, seed=3).embed(["the wing"])).vectors
    assert (await encoder.encode_documents(["the wing"]) == expected).all()
    assert encoder.envelope == config.envelope_of(collection, version)
    tei = config.TeiEmbedder.model_validate({"url": "http://h/", "model": "m", "api_key": "secret", "max_batch": 5})
    made = make_embedder(tei, 16)
    assert isinstance(made, TeiEmbedder)
    assert made.max_batch == 5
    assert "secret" not in repr(made) + repr(tei)
    await made.close()
