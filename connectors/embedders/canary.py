"""Whether an endpoint still serves the model a space was built with: a probe text rides along with every request.

A probe now and then would leave a time in which vectors of another model are stored before anybody looks; one in the
same request is answered by the same model, also behind a load balancer. It must never let a reply pass unlooked at.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence

import numpy as np

from connectors.embedders.base import RejectedTexts, check_vectors
from connectors.embedders.probe import PROBE_TEXTS
from connectors.errors import ContentRejected, WrongModel
from connectors.protocols import Embedded, Embedder, ModelFacts, Vectors

LEAST_COSINE = 0.999
"""Half precision, other kernels and other batch sizes move a vector by less; another model by more."""


class CanaryEmbedder:
    """`embedder`, of which every reply is compared. `birth`: float32[len(PROBE_TEXTS), dim], the probe texts' vectors
    when the space was born; each request carries one of the texts, in turn. `max_batch` leaves room for it."""

    def __init__(self, name: str, embedder: Embedder, birth: Vectors) -> None:
        self._name = name
        self._embedder = embedder
        self._birth = check_vectors(birth, len(PROBE_TEXTS), "the stored canary")
        self._turn = 0
        self.max_batch = max(1, embedder.max_batch - 1)

    async def embed(self, texts: Sequence[str]) -> Embedded:
        """As the embedder; also raises WrongModel when the probe's vector is not the one of the space's birth."""
        if not texts:
            return await self._embedder.embed(texts)
        turn = self._turn = (self._turn + 1) % len(PROBE_TEXTS)
        try:
            if self._embedder.max_batch == 1:
                probe_tokens = await self._check_alone(turn)
                reply = await self._embedder.embed(texts)
                if reply.tokens is not None and probe_tokens is not None:
                    reply = reply._replace(tokens=reply.tokens + probe_tokens)
                return reply
            reply = await self._embedder.embed([*texts, PROBE_TEXTS[turn]])
        except RejectedTexts as error:
            named = [index for index in error.indexes if index < len(texts)]
            if not named:
                raise ContentRejected(error.message, next_step=error.next_step) from error
            raise RejectedTexts(error.message, named, next_step=error.next_step) from error
        vectors = check_vectors(reply.vectors, len(texts) + 1, self._name)
        self._compare(vectors[-1], turn)
        return reply._replace(vectors=vectors[:-1])

    async def facts(self) -> ModelFacts:
        return await self._embedder.facts()

    async def close(self) -> None:
        await self._embedder.close()

    async def _check_alone(self, turn: int) -> int | None:
        """Where a request holds one text, the probe can only go before it. Its tokens, where the endpoint counts."""
        reply = await self._embedder.embed([PROBE_TEXTS[turn]])
        self._compare(check_vectors(reply.vectors, 1, self._name)[0], turn)
        return reply.tokens

    def _compare(self, vector: Vectors, turn: int) -> None:
        _same(self._name, vector, self._birth[turn], _NEXT_STEP)


_NEXT_STEP = "let the endpoint serve the former model again (for the new one add a version of its own)"


def check_birth(name: str, vectors: Vectors, birth: Vectors) -> None:
    """Both float32[len(PROBE_TEXTS), dim], before there is a space. Raises WrongModel when the models differ."""
    for vector, expected in zip(vectors, birth, strict=True):
        _same(
            name, vector, expected, "take the endpoint out of the version's fallbacks, or let it serve the same model"
        )


def to_base64(vectors: Vectors) -> str:
    """float32 bytes, little-endian, row after row."""
    return base64.b64encode(np.ascontiguousarray(vectors, dtype="<f4").tobytes()).decode("ascii")


def from_base64(text: str) -> Vectors:
    """float32[len(PROBE_TEXTS), dim]: the inverse of `to_base64`."""
    vectors: Vectors = np.frombuffer(base64.b64decode(text), "<f4").reshape(len(PROBE_TEXTS), -1)
    return vectors


def _same(name: str, vector: Vectors, expected: Vectors, next_step: str) -> None:
    if len(vector) != len(expected):
        raise WrongModel(
            f"{name} gives {len(vector)} dimensions, the space was built with {len(expected)}", next_step=next_step
        )
    similarity = cosine(vector, expected)
    if not similarity >= LEAST_COSINE:
        raise WrongModel(
            f"{name} serves another model than the space was built with: its vector for a probe text has cosine "
            f"{similarity:.4f} with the one stored then (at least {LEAST_COSINE} is the same model)",
            next_step=next_step,
        )


def cosine(a: Vectors, b: Vectors) -> float:
    """Of two float32[dim], in float64; 0.0 where one is zero."""
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    norms = float(np.linalg.norm(wide_a) * np.linalg.norm(wide_b))
    return float(wide_a @ wide_b) / norms if norms else 0.0
