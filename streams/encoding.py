"""Texts to the vectors of one model version: prefixes, batches, checks and normalisation, as its envelope says.

It must never let through a vector of another size, not finite, or zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from connectors.embedders.base import RejectedTexts, check_vectors
from connectors.embedders.probe import PROBE_TEXT
from connectors.errors import ConfigurationError, ContentRejected, WrongModel
from connectors.protocols import Embedder, Vectors
from streams.versions import Envelope

_UNIT_TOLERANCE = 1e-6


class Encoded(NamedTuple):
    """`vectors`: float32[n, dim], in the order of the texts, rows of rejected texts zero; `rejected`: by index."""

    vectors: Vectors
    rejected: Mapping[int, ContentRejected]


class Encoder:
    """One model version's way from text to vector. Owns the embedder: `close` closes it."""

    def __init__(self, envelope: Envelope, embedder: Embedder) -> None:
        self.envelope = envelope
        self._embedder = embedder

    async def encode_documents(self, texts: Sequence[str]) -> Vectors:
        """float32[n, dim]. Raises RejectedTexts (a ContentRejected) whose `indexes` name the guilty texts when there
        are any, and what `encode_each` raises."""
        vectors, rejected = await self.encode_each(texts)
        if rejected:
            first = rejected[min(rejected)]
            raise RejectedTexts(
                f"{len(rejected)} of {len(texts)} texts cannot be embedded: {first.message}",
                sorted(rejected),
                next_step=first.next_step,
            ) from first
        return vectors

    async def encode_each(self, texts: Sequence[str]) -> Encoded:
        """As `encode_documents`, but the texts the model cannot take are told apart and the others' vectors kept:
        nothing is embedded twice because of a neighbour.

        Raises Transient when the endpoint is away or busy, AccessDenied, WrongModel when what it gives is not of this
        model, ConfigurationError when it refuses even a plain sentence.
        """
        prefixed = [self.envelope.document_prefix + text for text in texts]
        vectors = np.zeros((len(texts), self.envelope.dimensions), np.float32)
        rejected: dict[int, ContentRejected] = {}
        for index, text in enumerate(texts):
            if not text or text.isspace():  # a prefix would hide that there is nothing to embed
                rejected[index] = RejectedTexts("the text is blank", [index], next_step="give the document some text")
        wanted = [index for index in range(len(texts)) if index not in rejected]
        refused: dict[int, ContentRejected] = {}
        size = max(1, self._embedder.max_batch)
        for begin in range(0, len(wanted), size):
            await self._encode_some(prefixed, wanted[begin : begin + size], vectors, refused)
        if refused:
            await self._check_canary(refused[min(refused)])
        return Encoded(vectors, rejected | refused)

    async def encode_query(self, text: str) -> Vectors:
        """float32[dim]. Raises ContentRejected when this query cannot be embedded, else as `encode_each`."""
        if not text or text.isspace():
            raise RejectedTexts("the query is blank", [0], next_step="search for some text")
        vectors = await self._embed([self.envelope.query_prefix + text])
        if len(self._unusable(vectors)):
            raise RejectedTexts("the query has no vector in this model", [0], next_step="search for other words")
        vector: Vectors = self._finish(vectors)[0]
        return vector

    async def close(self) -> None:
        """Closes the embedder."""
        await self._embedder.close()

    async def _encode_some(
        self, texts: Sequence[str], wanted: list[int], vectors: Vectors, refused: dict[int, ContentRejected]
    ) -> None:
        """Fill in the rows of `wanted`; halve what is refused until the guilty texts stand alone."""
        try:
            raw = await self._embed([texts[index] for index in wanted])
        except ContentRejected as error:
            if isinstance(error, RejectedTexts):
                named = {wanted[place] for place in error.indexes if 0 <= place < len(wanted)}
            else:
                named = set()
            if len(wanted) == 1:
                named = set(wanted)
            refused.update(dict.fromkeys(named, error))
            rest = [index for index in wanted if index not in named]
            parts = [rest] if named else [rest[: len(rest) // 2], rest[len(rest) // 2 :]]
            for part in parts:
                if part:
                    await self._encode_some(texts, part, vectors, refused)
            return
        for place in self._unusable(raw):
            refused[wanted[place]] = ContentRejected(
                "the model gives a zero vector for this text, by which nothing can be found",
                next_step="change the text",
            )
        vectors[wanted] = self._finish(raw)

    async def _embed(self, texts: Sequence[str]) -> Vectors:
        raw = check_vectors((await self._embedder.embed(texts)).vectors, len(texts), "the embedder")
        if raw.shape[1] != self.envelope.dimensions:
            raise WrongModel(
                f"the model gives {raw.shape[1]} dimensions, the configuration says {self.envelope.dimensions}",
                next_step=f"set dimensions: {raw.shape[1]} in the version, or point it at the model it was built with",
            )
        return raw

    def _unusable(self, raw: Vectors) -> list[int]:
        """Places of zero rows: they have no cosine, and no store takes them whatever the metric."""
        return [int(place) for place in np.flatnonzero(~raw.any(axis=1))]

    def _finish(self, raw: Vectors) -> Vectors:
        if not self.envelope.normalize:
            return raw.astype(np.float32, copy=False)
        wide = raw.astype(np.float64)
        norms = np.sqrt(np.einsum("nd,nd->n", wide, wide))
        # rows of length 1 stay the very bits the model gave; zero rows stay zero and are refused by the caller
        norms[(np.abs(norms - 1.0) <= _UNIT_TOLERANCE) | (norms == 0.0)] = 1.0
        unit: Vectors = (wide / norms[:, None]).astype(np.float32)
        return unit

    async def _check_canary(self, cause: ContentRejected) -> None:
        """An endpoint that now refuses all must not fill the dead letters: after a refusal, ask a plain sentence."""
        try:
            raw = await self._embed([self.envelope.document_prefix + PROBE_TEXT])
        except ContentRejected as error:
            raise ConfigurationError(
                f"the model refuses every text, also a plain sentence: {error.message}",
                next_step="check the version's embedder (address, options, max_tokens) against its endpoint",
            ) from cause
        if len(self._unusable(raw)):
            raise WrongModel(
                "the model gives zero vectors, also for a plain sentence", next_step="check the model's weights"
            ) from cause
