"""The encoder: prefixes, batches, checks, normalisation, and telling the guilty text from a broken endpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from connectors.embedders.base import RejectedTexts
from connectors.embedders.cache import VectorCache
from connectors.embedders.hashing import HashingEmbedder
from connectors.embedders.pool import Served
from connectors.embedders.tei import TeiEmbedder
from connectors.errors import ConfigurationError, ContentRejected, Throttled, Unreachable, WrongModel
from connectors.memory.embedder import MemoryEmbedder
from connectors.protocols import ModelFacts
from streams import config
from streams import config_embedders as embedders
from streams.batching import BatchLimits
from streams.config_embedders import Version
from streams.encoding import Encoder, Urgency
from streams.tokens import Tokenizer
from streams.versions import Envelope
from streams.wiring import make_embedders, make_encoder
from tests.pools import pool_of
from tests.unit.tokenizers import word_level

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
    encoder = Encoder(ENVELOPE, pool_of(embedder))
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
    encoder = Encoder(replace(ENVELOPE, normalize=False), pool_of(MemoryEmbedder(2, table={"passage: a": [3.0, 4.0]})))
    assert (await encoder.encode_documents(["a"])).tolist() == [[3.0, 4.0]]


async def test_vectors_of_length_one_keep_their_bits() -> None:
    nearly = np.array([0.6000001, 0.8], np.float32)
    table = {"passage: a": nearly.tolist()}
    assert (await Encoder(ENVELOPE, pool_of(MemoryEmbedder(2, table=table))).encode_documents(["a"])).tolist() == [
        nearly.tolist()
    ]
    hashing = HashingEmbedder(64)
    envelope = replace(ENVELOPE, dimensions=64, document_prefix="")
    texts = ["the wing", "a propeller", "in a slipstream"]
    assert (
        await Encoder(envelope, pool_of(hashing)).encode_documents(texts) == (await hashing.embed(texts)).vectors
    ).all()


async def test_other_dimensions_are_the_wrong_model() -> None:
    encoder = Encoder(ENVELOPE, pool_of(MemoryEmbedder(3)))
    with pytest.raises(WrongModel, match="3 dimensions, the configuration says 2") as caught:
        await encoder.encode_documents(["a"])
    assert "dimensions: 3" in caught.value.next_step
    with pytest.raises(WrongModel):
        await encoder.encode_query("a")


async def test_a_zero_vector_rejects_its_text_alone() -> None:
    table = {"passage: b": [0.0, 0.0], "query: b": [0.0, 0.0]}
    encoder = Encoder(ENVELOPE, pool_of(MemoryEmbedder(2, table=table)))
    with pytest.raises(RejectedTexts) as caught:
        await encoder.encode_documents(["a", "b", "c"])
    assert caught.value.indexes == (1,)
    vectors, rejected, _, _ = await encoder.encode_each(["a", "b", "c"])
    assert list(rejected) == [1]
    assert not vectors[1].any()
    assert vectors[[0, 2]].any(axis=1).all()
    with pytest.raises(ContentRejected):
        await encoder.encode_query("b")
    dot = Encoder(replace(ENVELOPE, metric="dot", normalize=False), pool_of(MemoryEmbedder(2, table=table)))
    with pytest.raises(RejectedTexts):
        await dot.encode_documents(["b"])


async def test_a_model_of_zeros_is_the_wrong_model() -> None:
    class Zeros(MemoryEmbedder):
        def _hashed(self, text: str) -> list[float]:
            return [0.0, 0.0]

    with pytest.raises(WrongModel):
        await Encoder(ENVELOPE, pool_of(Zeros(2))).encode_each(["a", "b"])


@pytest.mark.parametrize("count", [1, 2, 7])
async def test_blank_texts_are_rejected_in_spite_of_a_prefix_and_cost_nothing(count: int) -> None:
    embedder = MemoryEmbedder(2)
    rejected = (await Encoder(ENVELOPE, pool_of(embedder)).encode_each([" "] * count)).rejected
    assert list(rejected) == list(range(count))
    assert embedder.calls == []
    with pytest.raises(RejectedTexts):
        await Encoder(ENVELOPE, pool_of(embedder)).encode_query("")


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
    vectors, rejected, _, _ = await Encoder(ENVELOPE, pool_of(embedder)).encode_each([str(n) for n in range(16)])
    assert set(rejected) == bad
    for index in range(16):
        assert vectors[index].any() == (index not in bad)
    if len(bad) == 1:
        assert len(embedder.calls) == 9 + 1  # and the plain sentence, which shows that it is the text's fault


async def test_an_only_text_that_is_refused_is_the_texts_fault() -> None:
    embedder = MemoryEmbedder(2, fault=Picky("a"))
    with pytest.raises(RejectedTexts) as caught:
        await Encoder(ENVELOPE, pool_of(embedder)).encode_documents(["a"])
    assert caught.value.indexes == (0,)
    assert len(embedder.calls) == 2, "the plain sentence is asked once"


async def test_an_endpoint_that_refuses_everything_rejects_no_document() -> None:
    async def refuse(call: int, texts: Sequence[str]) -> None:
        raise ContentRejected("422")

    with pytest.raises(ConfigurationError) as caught:
        await Encoder(ENVELOPE, pool_of(MemoryEmbedder(2, fault=refuse))).encode_each(["a", "b"])
    assert caught.value.next_step


async def test_an_endpoint_that_begins_to_refuse_everything_rejects_no_document() -> None:
    async def refuse(call: int, texts: Sequence[str]) -> None:
        if call > 0:
            raise ContentRejected("422")

    embedder = MemoryEmbedder(2, max_batch=2, fault=refuse)
    with pytest.raises(ConfigurationError, match="also a plain sentence"):
        await Encoder(ENVELOPE, pool_of(embedder)).encode_each(["a", "b", "c", "d"])


async def test_other_errors_pass_through() -> None:
    async def away(call: int, texts: Sequence[str]) -> None:
        raise Unreachable("away")

    with pytest.raises(Unreachable):
        await Encoder(ENVELOPE, pool_of(MemoryEmbedder(2, fault=away))).encode_documents(["a"])


async def test_the_factory_makes_what_the_configuration_names() -> None:
    version = Version(embedder=embedders.HashingEmbedder(word_ngrams=None, seed=3), dimensions=16)
    collection = config.Collection(name="docs", topic="t", text=config.Text(fields=["text"]), alias="Docs")
    encoder = make_encoder(config.Settings(), collection, version)
    expected = (await HashingEmbedder(16, word_ngrams=None, seed=3).embed(["the wing"])).vectors
    assert (await encoder.encode_documents(["the wing"]) == expected).all()
    assert encoder.envelope == config.envelope_of(collection, version)
    tei = embedders.TeiEmbedder.model_validate({"url": "http://h/", "model": "m", "api_key": "secret", "max_batch": 5})
    ((name, made),) = make_embedders(Version(embedder=tei, dimensions=16))
    assert (name, type(made)) == ("h", TeiEmbedder)
    assert made.max_batch == 5
    assert "secret" not in repr(made) + repr(tei)
    await made.close()


# batches, patience, long texts, the cache


def urgency(**given: Any) -> Urgency:
    return Urgency("rest", going=lambda: True, **given)


async def test_a_batch_that_has_to_wait_does_not_cost_the_others_again() -> None:
    async def sometimes(call: int, texts: Sequence[str]) -> None:
        if call in (1, 3, 4):
            raise Throttled("429", retry_after_s=0.01)

    embedder = MemoryEmbedder(2, max_batch=2, fault=sometimes)
    heard: list[bool] = []
    encoder = Encoder(ENVELOPE, pool_of(embedder))
    encoded = await encoder.encode_each(
        [str(n) for n in range(10)], urgency(trouble=lambda error: heard.append(error is not None))
    )
    assert encoded.vectors.any(axis=1).all()
    answered = [call for number, call in enumerate(embedder.calls) if number not in (1, 3, 4)]
    assert sorted(text for call in answered for text in call) == sorted(f"passage: {n}" for n in range(10))
    assert True in heard


async def test_nobody_waits_for_an_endpoint_that_nobody_asks_any_more() -> None:
    async def away(call: int, texts: Sequence[str]) -> None:
        raise Unreachable("away")

    with pytest.raises(Unreachable):
        await Encoder(ENVELOPE, pool_of(MemoryEmbedder(2, fault=away))).encode_each(["a"], Urgency("live"))


async def test_batches_meet_each_limit_and_order_is_restored() -> None:
    embedder = MemoryEmbedder(2, max_batch=8)
    encoder = Encoder(replace(ENVELOPE, document_prefix=""), pool_of(embedder), limits=BatchLimits(8, characters=30))
    texts = ["x" * (1 + 7 * n % 23) + str(n) for n in range(20)]
    vectors = await encoder.encode_documents(texts)
    assert all(sum(map(len, call)) <= 30 for call in embedder.calls)
    for text, vector in zip(texts, vectors, strict=True):
        assert (vector == (await MemoryEmbedder(2).embed([text])).vectors[0]).all()


@pytest.mark.parametrize("overlong", ["truncate", "dead_letter"])
async def test_a_text_beyond_the_models_tokens(overlong: str) -> None:
    tokenizer = Tokenizer(word_level())
    options = {"overlong": "truncate"} if overlong == "truncate" else {}
    envelope = replace(ENVELOPE, document_prefix="", max_tokens=5, options=options)
    embedder = MemoryEmbedder(2)
    encoded = await Encoder(envelope, pool_of(embedder), tokenizer=tokenizer).encode_each(
        ["the fox", "the quick fox jumps over"]
    )
    if overlong == "truncate":
        assert (encoded.truncated, dict(encoded.rejected)) == (1, {})
        assert sorted(embedder.embedded) == ["the fox", "the quick fox"]
    else:
        assert (encoded.truncated, list(encoded.rejected)) == (0, [1])
        assert embedder.embedded == ["the fox"], "what cannot be read is not paid for"


async def test_a_text_that_was_paid_for_is_kept(tmp_path: Path) -> None:
    cache = await VectorCache.open(tmp_path / "vectors.sqlite", 2**24)
    embedder = MemoryEmbedder(2)
    encoder = Encoder(ENVELOPE, pool_of(embedder), cache=cache)
    first = await encoder.encode_each(["a", "b"])
    second = await encoder.encode_each(["b", "c", "a"])
    assert (first.cached, second.cached) == (0, 2)
    assert embedder.embedded == ["passage: a", "passage: b", "passage: c"]
    assert (second.vectors[[2, 0]] == first.vectors).all()
    another = Encoder(replace(ENVELOPE, revision="2"), pool_of(embedder), cache=cache)
    assert (await another.encode_each(["a"])).cached == 0, "another model's vectors"
    await cache.close()


async def test_every_request_is_metered() -> None:
    class Meter:
        def __init__(self) -> None:
            self.log: list[tuple[str, int]] = []

        def reserve(self, tokens: int) -> None:
            self.log.append(("reserve", tokens))

        def paid(self, reserved: int, served: Served | None) -> None:
            self.log.append(("paid" if served else "lost", reserved))

    async def once(call: int, texts: Sequence[str]) -> None:
        if call == 0:
            raise Unreachable("away", retry_after_s=0.01)

    meter = Meter()
    await Encoder(ENVELOPE, pool_of(MemoryEmbedder(2, fault=once))).encode_each(["a"], urgency(meter=meter))
    assert [what for what, _ in meter.log] == ["reserve", "lost", "reserve", "paid"]


async def test_a_revision_that_differs_is_said() -> None:
    embedder = MemoryEmbedder(2)
    encoder = Encoder(replace(ENVELOPE, revision="abc"), pool_of(embedder))
    assert await encoder.facts_differ() is None
    embedder.model = ModelFacts(revision="abcdef")
    assert await encoder.facts_differ() is None, "the configuration may give its beginning"
    embedder.model = ModelFacts(revision="fff")
    assert "revision fff" in (await encoder.facts_differ() or "")
