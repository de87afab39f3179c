"""What a space holds of documents, by the digest of their keys, in columns: for tens of millions of them, met in any
order, a page at a time.

Pure: no I/O, no clock, no tasks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from connectors.protocols import Head
from streams.key_index import ABSENT, columns_of, places

MIXED = -1


class Digests:
    """A set of key digests: 16 bytes each, and an eighth of that for those that came last, which stand unsorted."""

    LEAST = 1 << 16

    def __init__(self) -> None:
        self._high = np.empty(0, np.uint64)
        self._low = np.empty(0, np.uint64)
        self._fresh = bytearray()

    def add(self, digests: Sequence[bytes]) -> None:
        """Any of them may be in it already."""
        self._fresh += b"".join(digests)
        if len(self._fresh) >= 16 * max(self.LEAST, len(self._high) // 8):
            self._settle()

    def __len__(self) -> int:
        self._settle()
        return len(self._high)

    def holds(self, digests: Sequence[bytes]) -> NDArray[np.bool_]:
        """bool[n]"""
        self._settle()
        return places(self._high, self._low, *columns_of(digests))[1]

    def among(self, digests: Sequence[bytes]) -> list[bytes]:
        """Those of them that it holds."""
        return [digests[at] for at in np.flatnonzero(self.holds(digests)).tolist()]

    def beyond(self, other: Digests) -> list[bytes]:
        """Those that the other does not hold, in order: few, as a rule."""
        self._settle()
        other._settle()
        at = np.flatnonzero(~places(other._high, other._low, self._high, self._low)[1])
        return [pair.tobytes() for pair in np.stack((self._high[at], self._low[at]), axis=1).astype(">u8")]

    def _settle(self) -> None:
        """Sort what has come, and insert what is new."""
        if not self._fresh:
            return
        high, low = columns_of([bytes(self._fresh)])
        self._fresh = bytearray()
        order = np.lexsort((low, high))
        first = _firsts(high, low, order)
        high, low = high[order][first], low[order][first]
        at, known = places(self._high, self._low, high, low)
        self._high = np.insert(self._high, at[~known], high[~known])
        self._low = np.insert(self._low, at[~known], low[~known])


class Forms:
    """The stored form of each document: its newest offset, and how many of its chunks are there. 32 bytes each, and an
    eighth of that for what came last; half as much again while that is sorted in.

    Whole is a form all of whose chunks are there at one offset, and none of another.
    """

    LEAST = 1 << 16

    def __init__(self) -> None:
        self._high = np.empty(0, np.uint64)
        self._low = np.empty(0, np.uint64)
        self._offset = np.empty(0, np.int64)
        self._met = np.empty(0, np.int32)
        self._chunks = np.empty(0, np.int32)  # as chunk 0 says; 0: not met; MIXED: with parts of another form
        self._fresh = bytearray()
        self._offsets: list[NDArray[np.int64]] = []
        self._counts: list[NDArray[np.int32]] = []

    def add(self, heads: Sequence[Head], digests: Sequence[bytes]) -> None:
        """Chunks of documents, each of them once; `digests`: of their keys."""
        self._fresh += b"".join(digests)
        self._offsets.append(np.array([head.offset for head in heads], np.int64))
        self._counts.append(np.array([_count(head) for head in heads], np.int32))
        if len(self._fresh) >= 16 * max(self.LEAST, len(self._high) // 8):
            self._settle()

    def __len__(self) -> int:
        self._settle()
        return len(self._high)

    @property
    def whole(self) -> int:
        """How many documents are there with all of their chunks."""
        self._settle()
        return int(np.count_nonzero(self._whole()))

    def whole_offsets(self, digests: Sequence[bytes]) -> NDArray[np.int64]:
        """int64[n]: the offset of each document that is whole; ABSENT for every other."""
        self._settle()
        if not digests or not len(self._high):
            return np.full(len(digests), ABSENT, np.int64)
        at, known = places(self._high, self._low, *columns_of(digests))
        at = np.where(known, at, 0)  # first of all: there are few of them, and millions in the columns
        return np.where(known & self._whole(at), self._offset[at], ABSENT)

    def _whole(self, at: NDArray[np.intp] | slice = slice(None)) -> NDArray[np.bool_]:
        chunks = self._chunks[at]
        return np.asarray((chunks > 0) & (chunks == self._met[at]), np.bool_)

    def _settle(self) -> None:
        """Add up what has come by document, then into what is known; what is new is inserted, a column at a time."""
        if not self._fresh:
            return
        high, low = columns_of([bytes(self._fresh)])
        order = np.lexsort((low, high))
        first = _firsts(high, low, order)
        at = np.flatnonzero(first)
        offsets, counts = np.concatenate(self._offsets)[order], np.concatenate(self._counts)[order]
        self._fresh, self._offsets, self._counts = bytearray(), [], []
        high, low = high[order][first], low[order][first]
        newest = np.maximum.reduceat(offsets, at)
        met = np.diff(np.append(at, len(order))).astype(np.int32)
        chunks = np.maximum.reduceat(counts, at)
        chunks[(newest != np.minimum.reduceat(offsets, at)) | (np.minimum.reduceat(counts, at) == MIXED)] = MIXED
        at, known = places(self._high, self._low, high, low)
        here = at[known]
        mixed = (self._offset[here] != newest[known]) | (self._chunks[here] == MIXED) | (chunks[known] == MIXED)
        self._chunks[here] = np.where(mixed, MIXED, np.maximum(self._chunks[here], chunks[known]))
        self._offset[here] = np.maximum(self._offset[here], newest[known])
        self._met[here] += met[known]
        new = ~known
        self._high = np.insert(self._high, at[new], high[new])
        self._low = np.insert(self._low, at[new], low[new])
        self._offset = np.insert(self._offset, at[new], newest[new])
        self._met = np.insert(self._met, at[new], met[new])
        self._chunks = np.insert(self._chunks, at[new], chunks[new])


def _count(head: Head) -> int:
    """What a chunk says of how many there are: chunk 0 alone is believed, and one beyond its own count is no part."""
    if head.chunk >= head.chunks:
        return MIXED
    return 0 if head.chunk else head.chunks


def _firsts(high: NDArray[np.uint64], low: NDArray[np.uint64], order: NDArray[np.intp]) -> NDArray[np.bool_]:
    """bool[n]: of rows in this order, each that differs from the one before it."""
    first = np.ones(len(order), np.bool_)
    first[1:] = (high[order][1:] != high[order][:-1]) | (low[order][1:] != low[order][:-1])
    return first
