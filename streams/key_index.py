"""The plan scan's key index: the newest offset of every key of a bounded read, in 24 bytes a key.

Pure: no I/O, no clock, no tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

ABSENT = -1


class Expected(NamedTuple):
    """What the space must hold of a key once nothing is in flight: the newest offset, and whether that is a delete."""

    offset: int
    deleted: bool


def columns_of(digests: Sequence[bytes]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    pairs = np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def places(
    high: NDArray[np.uint64], low: NDArray[np.uint64], wanted_high: NDArray[np.uint64], wanted_low: NDArray[np.uint64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Of digests among sorted ones: before which place each belongs, and whether it is what stands there."""
    at = np.searchsorted(high, wanted_high, side="left")
    if not len(high):
        return at, np.zeros(len(at), np.bool_)
    near = np.minimum(at, len(high) - 1)
    alike = high[near] == wanted_high
    known = alike & (low[near] == wanted_low)
    for i in np.flatnonzero(alike & ~known):  # equal upper halves: look among them
        end = np.searchsorted(high, wanted_high[i], side="right")
        at[i] += np.searchsorted(low[at[i] : end], wanted_low[i], side="left")
        known[i] = at[i] < end and low[at[i]] == wanted_low[i]
    return at, known


class KeyIndex:
    """The newest offset of each key of a bounded read: sorted arrays, 24 bytes a key (16 of key digest, 8 of entry).

    An entry is `offset * 2 + tombstone`. A 64-bit digest would one day lose a document, so digests are 128 bits.
    """

    __slots__ = ("_entry", "_high", "_low", "records")

    def __init__(
        self, high: NDArray[np.uint64], low: NDArray[np.uint64], entry: NDArray[np.int64], records: int
    ) -> None:
        self._high, self._low, self._entry = high, low, entry
        self.records = records

    def __len__(self) -> int:
        return len(self._entry)

    @property
    def nbytes(self) -> int:
        """What its arrays hold."""
        return self._high.nbytes + self._low.nbytes + self._entry.nbytes

    @property
    def deletes(self) -> int:
        """Keys whose newest record is a tombstone."""
        return int(np.count_nonzero(self._entry & 1))

    @property
    def documents(self) -> int:
        """Keys whose newest record is a put: what a replay has to embed at most."""
        return len(self) - self.deletes

    @property
    def superseded(self) -> int:
        """Records that a newer record of their key has replaced."""
        return self.records - len(self)

    def document_offsets(self) -> NDArray[np.int64]:
        """int64[documents], sorted: where the newest records of the documents stand."""
        return np.sort(self._entry[(self._entry & 1) == 0] >> 1)

    def entries(self, digests: Sequence[bytes]) -> NDArray[np.int64]:
        """int64[n]: the entry of each digest, ABSENT where the key is unknown."""
        return self.entries_at(self.positions(digests))

    def entries_at(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64[n]: the entry at each position; ABSENT for ABSENT."""
        return np.where(positions == ABSENT, ABSENT, self._entry[positions]) if len(self) else positions

    def newest_offsets(self, digests: Sequence[bytes]) -> list[int]:
        """The newest offset of each key, put or tombstone; ABSENT where the key is unknown."""
        return [ABSENT if entry == ABSENT else entry >> 1 for entry in self.entries(digests).tolist()]

    def put_offsets(self, digests: Sequence[bytes]) -> NDArray[np.int64]:
        """int64[n]: where the newest record of each key stands; ABSENT where that is a tombstone or there is none."""
        entries = self.entries(digests)
        return np.where((entries == ABSENT) | (entries & 1 == 1), ABSENT, entries >> 1)

    def positions(self, digests: Sequence[bytes]) -> NDArray[np.int64]:
        """int64[n]: where each digest stands in the index's own order (see `key_digest`), ABSENT if unknown."""
        if not digests:
            return np.empty(0, np.int64)
        at, known = places(self._high, self._low, *columns_of(digests))
        return np.where(known, at, ABSENT)

    def entry(self, position: int) -> Expected:
        """Newest offset of the key at a position, and whether it is a delete."""
        entry = int(self._entry[position])
        return Expected(entry >> 1, bool(entry & 1))

    def digest(self, position: int) -> bytes:
        return int(self._high[position]).to_bytes(8, "big") + int(self._low[position]).to_bytes(8, "big")

    def shares_a_key(self, other: KeyIndex) -> bool:
        """Whether any key stands in both indexes."""
        both = np.intersect1d(self._high, other._high)
        if not len(both):
            return False
        mine = {self.digest(int(i)) for i in np.flatnonzero(np.isin(self._high, both))}
        return any(other.digest(int(i)) in mine for i in np.flatnonzero(np.isin(other._high, both)))

    def unmatched_puts(self, matched: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Positions of documents for which `matched` (bool[len]) is False."""
        return np.flatnonzero(~matched & ((self._entry & 1) == 0))

    def current_puts(self, digests: Sequence[bytes], offsets: Sequence[int]) -> NDArray[np.bool_]:
        """bool[n]: the record is the newest of its key, and a put."""
        return np.asarray(self.entries(digests) == np.asarray(offsets, dtype=np.int64) * 2, dtype=np.bool_)


def _newest(high: NDArray[np.uint64], low: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Where each digest stood last, in the order of the digests."""
    order = np.argsort(high)  # not stable, but a quarter of lexsort's time
    upper, lower = _changes(high[order]), _changes(low[order])
    if (lower & ~upper).any():  # two keys whose upper halves are equal
        order = np.lexsort((low, high))
        upper, lower = _changes(high[order]), _changes(low[order])
    first = np.ones(len(order), np.bool_)
    first[1:] = upper | lower
    newest: NDArray[np.int64] = np.maximum.reduceat(order, np.flatnonzero(first))
    return newest


def _changes(column: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """bool[n - 1]: a value is another than the one before."""
    return np.asarray(column[1:] != column[:-1], np.bool_)


class KeyIndexBuilder:
    """Collects (digest, offset, tombstone) in log order and keeps the last of each key.

    What came last stands unsorted behind what is sorted, in the same arrays, until that is an eighth as long (and
    LEAST at least); it is then sorted by itself and merged in place, so that no more than a third beside the index is
    ever held. Sorting and merging takes tenths of a second where there are millions: whoever must not stand still so
    long calls `compact` and `build` elsewhere once it says so.
    """

    LEAST = 1 << 16
    LARGE = 1 << 18
    _BLOCK = 1 << 16

    def __init__(self) -> None:
        self._high = np.empty(0, np.uint64)
        self._low = np.empty(0, np.uint64)
        self._entry = np.empty(0, np.int64)
        self._sorted = 0
        self._filled = 0
        self._records = 0

    @property
    def due(self) -> bool:
        """The next `add` will sort."""
        return self._filled - self._sorted >= max(self.LEAST, self._sorted // 8)

    @property
    def large(self) -> bool:
        """`build` will sort for more than a moment."""
        return self._filled > self._sorted and self._filled >= self.LARGE

    def add(self, digests: Sequence[bytes], offsets: Sequence[int], tombstones: Sequence[bool]) -> None:
        if self.due:
            self.compact()
        begin, end = self._filled, self._filled + len(digests)
        if end > len(self._entry):
            self._resize(max(end, self._sorted + max(self.LEAST, self._sorted // 8)))
        self._high[begin:end], self._low[begin:end] = columns_of(digests)
        self._entry[begin:end] = np.array(offsets, np.int64) * 2 + np.array(tombstones, np.bool_)
        self._filled = end
        self._records += len(digests)

    def compact(self) -> None:
        """Sort what has come, and drop what newer records have replaced."""
        new = slice(self._sorted, self._filled)
        newest = _newest(self._high[new], self._low[new])
        high, low, entry = self._high[new][newest], self._low[new][newest], self._entry[new][newest]
        at, known = places(self._high[: self._sorted], self._low[: self._sorted], high, low)
        self._entry[at[known]] = entry[known]
        if known.any():
            added = ~known
            at, high, low, entry = at[added], high[added], low[added], entry[added]
        self._merge(at, high, low, entry)
        self._sorted = self._filled = self._sorted + len(at)

    def build(self) -> KeyIndex:
        """The index, which takes the arrays: nothing may be added afterwards."""
        self.compact()
        self._resize(self._sorted)
        return KeyIndex(self._high, self._low, self._entry, self._records)

    def _resize(self, size: int) -> None:
        for column in (self._high, self._low, self._entry):
            column.resize(size, refcheck=False)  # in place: large ones are moved by the page, not copied

    def _merge(
        self, at: NDArray[np.int64], high: NDArray[np.uint64], low: NDArray[np.uint64], entry: NDArray[np.int64]
    ) -> None:
        """Insert sorted new keys before the places `at`, from the end, a block at a time: each block moves up, to
        where nothing is that has still to move."""
        end, after = self._sorted, len(at)
        while after:
            begin = max(0, end - self._BLOCK)
            before = int(np.searchsorted(at, begin))
            size = end - begin + after - before
            inserted = at[before:after] - begin + np.arange(after - before)
            kept = np.ones(size, np.bool_)
            kept[inserted] = False
            for column, added in ((self._high, high), (self._low, low), (self._entry, entry)):
                block = np.empty(size, column.dtype)
                block[inserted], block[kept] = added[before:after], column[begin:end]
                column[begin + before : end + after] = block
            end, after = begin, before
