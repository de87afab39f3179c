"""No vector of another model comes through: the probe rides along, and its vector decides."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from connectors.embedders.canary import CanaryEmbedder, check_birth, from_base64, to_base64
from connectors.embedders.endpoint import Endpoint
from connectors.embedders.pool import EndpointPool
from connectors.embedders.probe import PROBE_TEXTS, probe
from connectors.errors import ContentRejected, WrongModel
from connectors.memory.embedder import MemoryEmbedder
from connectors.protocols import Embedded
from streams.encoding import Encoder
from streams.versions import Envelope


class Swapped(MemoryEmbedder):
    """Serves another model once `swapped`, without a word."""

    swapped = False
    drift = 0.0

    async def embed(self, texts: Sequence[str]) -> Embedded:
        vectors = (await super().embed(texts)).vectors
        noise = self.drift * np.random.default_rng(len(self.calls)).standard_normal(vectors.shape)
        return Embedded((vectors[:, ::-1] if self.swapped else vectors) + noise.astype(np.float32))


async def hatched(embedder: MemoryEmbedder) -> CanaryEmbedder:
    return CanaryEmbedder("gpu:80", embedder, from_base64(to_base64(await probe(embedder))))


async def test_the_same_model_comes_through_and_the_probe_stays_behind() -> None:
    inner = Swapped(8, max_batch=4)
    canary = await hatched(inner)
    inner.drift = 1e-4  # other kernels, other batch sizes
    assert canary.max_batch == 3
    for _ in range(2 * len(PROBE_TEXTS)):
        assert (await canary.embed(["a", "b", "c"])).vectors.shape == (3, 8)
    assert {call[-1] for call in inner.calls[1:]} == set(PROBE_TEXTS)


async def test_another_model_is_noticed_with_its_first_reply() -> None:
    inner = Swapped(8)
    canary = await hatched(inner)
    await canary.embed(["a"])
    inner.swapped = True
    with pytest.raises(WrongModel, match=r"gpu:80 serves another model .* cosine"):
        await canary.embed(["a"])
    inner.swapped = False
    await canary.embed(["a"])


async def test_other_dimensions_are_another_model() -> None:
    canary = CanaryEmbedder("gpu:80", MemoryEmbedder(8), await probe(MemoryEmbedder(16)))
    with pytest.raises(WrongModel, match="gives 8 dimensions, the space was built with 16"):
        await canary.embed(["a"])


async def test_an_endpoint_of_single_texts_is_asked_first() -> None:
    inner = Swapped(8, max_batch=1)
    canary = await hatched(inner)
    inner.swapped = True
    calls = len(inner.calls)
    with pytest.raises(WrongModel):
        await canary.embed(["a"])
    assert [call[0] in PROBE_TEXTS for call in inner.calls[calls:]] == [True], "no text went to the wrong model"


async def test_the_tokens_of_a_probe_that_goes_alone_are_counted() -> None:
    class Counting(MemoryEmbedder):
        async def embed(self, texts: Sequence[str]) -> Embedded:
            return (await super().embed(texts))._replace(tokens=sum(map(len, texts)))

    together, alone = await hatched(Counting(8)), await hatched(Counting(8, max_batch=1))
    assert (await alone.embed(["abc"])).tokens == (await together.embed(["abc"])).tokens


async def test_a_refused_text_keeps_its_number_and_a_refused_probe_is_nobodys() -> None:
    canary = await hatched(MemoryEmbedder(8))
    with pytest.raises(ContentRejected) as caught:
        await canary.embed(["a", " "])
    assert getattr(caught.value, "indexes", None) == (1,)


async def test_fallbacks_are_compared_at_birth() -> None:
    birth = await probe(MemoryEmbedder(8))
    check_birth("b", await probe(MemoryEmbedder(8)), birth)
    other = Swapped(8)
    other.swapped = True
    with pytest.raises(WrongModel, match="b serves another model"):
        check_birth("b", await probe(other), birth)


async def test_a_wrong_endpoint_is_taken_out_and_the_right_one_serves() -> None:
    right, wrong = MemoryEmbedder(4), Swapped(4)
    wrong.swapped = True
    birth = await probe(right)
    pool = EndpointPool(
        [
            Endpoint("wrong", CanaryEmbedder("wrong", wrong, birth)),
            Endpoint("right", CanaryEmbedder("right", right, birth), rank=1),
        ]
    )
    envelope = Envelope("memory", "m", "", 4, ("text",))
    encoder = Encoder(envelope, pool)
    vectors = await encoder.encode_documents(["a", "b"])
    assert np.allclose(vectors, (await right.embed(["a", "b"])).vectors, atol=1e-6)
    assert {status.name: status.refused is not None for status in pool.status()} == {"wrong": True, "right": False}
