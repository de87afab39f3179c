"""The vectors of the newest queries, by the model's fingerprint and the text, so that a question asked again costs
nothing at the endpoint.

It must never grow beyond its bound, nor keep a query's text.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict

from connectors.protocols import Vectors

QUERIES_KEPT = 2048  # 6 MB of 768 dimensions


class QueryVectors:
    """The least recently used one goes first. A vector that is handed out cannot be written to."""

    def __init__(self, most: int = QUERIES_KEPT) -> None:
        self._most = most
        self._kept: OrderedDict[bytes, Vectors] = OrderedDict()
        self.hits = 0
        self.misses = 0

    def get(self, fingerprint: str, text: str) -> Vectors | None:
        """float32[dim]."""
        vector = self._kept.get(key := _key(fingerprint, text))
        if vector is None:
            self.misses += 1
            return None
        self.hits += 1
        self._kept.move_to_end(key)
        return vector

    def put(self, fingerprint: str, text: str, vector: Vectors) -> None:
        """`vector`: float32[dim]; a copy of it is kept."""
        kept = vector.copy()
        kept.setflags(write=False)
        self._kept[key := _key(fingerprint, text)] = kept
        self._kept.move_to_end(key)
        while len(self._kept) > self._most:
            self._kept.popitem(last=False)

    def __len__(self) -> int:
        return len(self._kept)


def _key(fingerprint: str, text: str) -> bytes:
    digest = hashlib.blake2b(fingerprint.encode(), digest_size=16)
    digest.update(b"\0" + text.encode(errors="surrogatepass"))
    return digest.digest()
