"""Fixed, harmless texts put through an embedder: how long are its vectors, does it work at all, is it still the same?

They must never change: their stored vectors are compared with new ones to tell that a model was swapped.
"""

from __future__ import annotations

import numpy as np

from connectors.embedders.base import check_vectors
from connectors.errors import WrongModel
from connectors.protocols import Embedder, Vectors

PROBE_TEXT = "The quick brown fox jumps over the lazy dog."
PROBE_TEXTS = (
    PROBE_TEXT,
    "Wie komme ich vom Bahnhof zum Museum?",
    "def total(prices): return sum(prices)",
    "今日は天気がいいですね。",
)


async def probe(embedder: Embedder) -> Vectors:
    """float32[len(PROBE_TEXTS), dim]. Raises what `embed` does; WrongModel when a vector is zero."""
    size = max(1, embedder.max_batch)
    parts = [
        check_vectors((await embedder.embed(some)).vectors, len(some), "the embedder")
        for some in (PROBE_TEXTS[at : at + size] for at in range(0, len(PROBE_TEXTS), size))
    ]
    if len({part.shape[1] for part in parts}) > 1:
        raise WrongModel("the embedder gives vectors of several lengths", next_step="check that one model is behind it")
    vectors: Vectors = np.concatenate(parts)
    if not vectors.any(axis=1).all():
        raise WrongModel("the embedder gives a zero vector for a plain text", next_step="check the model's weights")
    return vectors
