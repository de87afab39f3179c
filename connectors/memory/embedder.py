"""An embedder in this process for tests: vectors from a table or from the text's own hash, faults on demand.

It must never accept what a real embedder refuses, use real time or keep a text longer than its test.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence

import numpy as np

from connectors.embedders.base import check_vectors, refuse_blank
from connectors.protocols import Embedded, ModelFacts

Fault = Callable[[int, Sequence[str]], Awaitable[None]]


class MemoryEmbedder:
    """`table` gives known texts their vectors; any other text gets the unit vector its SHA-256 decides.

    `fault(call, texts)` is awaited before each call is answered (`call` counts from 0): raise from it to fail the
    call, wait in it to hold the call back. `calls` keeps the texts of every call, those that failed too.
    """

    def __init__(
        self,
        dimensions: int = 8,
        *,
        table: Mapping[str, Sequence[float]] | None = None,
        max_batch: int = 64,
        fault: Fault | None = None,
    ) -> None:
        self.dimensions = dimensions
        self.max_batch = max_batch
        self.fault = fault
        self.calls: list[tuple[str, ...]] = []
        self.closed = False
        self.model = ModelFacts()
        self._table = dict(table or {})

    @property
    def embedded(self) -> list[str]:
        """Every text of every call, in order."""
        return [text for call in self.calls for text in call]

    async def embed(self, texts: Sequence[str]) -> Embedded:
        """float32[n, dim]. Raises RejectedTexts for blank texts, WrongModel for a table that does not fit."""
        self.calls.append(tuple(texts))
        if self.fault is not None:
            await self.fault(len(self.calls) - 1, texts)
        refuse_blank(texts)
        rows = [self._table[text] if text in self._table else self._hashed(text) for text in texts]
        vectors = np.array(rows, np.float32).reshape(len(texts), -1)
        return Embedded(check_vectors(vectors, len(texts), "the memory embedder"))

    async def facts(self) -> ModelFacts:
        return self.model

    async def close(self) -> None:
        """Remembers that it was closed."""
        self.closed = True

    def _hashed(self, text: str) -> list[float]:
        raw = hashlib.shake_256(text.encode("utf-8", "surrogatepass")).digest(2 * self.dimensions)
        numbers = np.frombuffer(raw, "<i2").astype(np.float64) + 0.5  # never zero
        unit: list[float] = (numbers / np.sqrt(np.sum(numbers * numbers))).tolist()
        return unit
