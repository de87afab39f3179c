"""A fixed, harmless text put through an embedder: how long are its vectors, and does it work at all?

It must never change: a stored probe vector is compared with a new one to tell that a model was swapped.
"""

from __future__ import annotations

import numpy as np

from connectors.embedders.base import check_vectors
from connectors.errors import WrongModel
from connectors.protocols import Embedder, Vectors

PROBE_TEXT = "The quick brown fox jumps over the lazy dog."


async def probe(embedder: Embedder) -> Vectors:
    """float32[dim]: the probe text's vector. Raises what `embed` does; WrongModel when it is zero."""
    vectors = check_vectors((await embedder.embed([PROBE_TEXT])).vectors, 1, "the embedder")
    vector: Vectors = vectors[0]
    if not np.any(vector):
        raise WrongModel("the embedder gives a zero vector for plain English", next_step="check the model's weights")
    return vector


async def probe_dimensions(embedder: Embedder) -> int:
    """How many dimensions this embedder's vectors have. Raises what `probe` does."""
    return len(await probe(embedder))
