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


def _columns(digests: Sequence[bytes]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    pairs = np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


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
        at = self.positions(digests)
        return np.where(at == ABSENT, ABSENT, self._entry[at]) if len(self) else at

    def newest_offsets(self, digests: Sequence[bytes]) -> list[int]:
        """The newest offset of each key, put or tombstone; ABSENT where the key is unknown."""
        return [ABSENT if entry == ABSENT else entry >> 1 for entry in self.entries(digests).tolist()]

    def put_offsets(self, digests: Sequence[bytes]) -> NDArray[np.int64]:
        """int64[n]: where the newest record of each key stands; ABSENT where that is a tombstone or there is none."""
        entries = self.entries(digests)
        return np.where((entries == ABSENT) | (entries & 1 == 1), ABSENT, entries >> 1)

    def positions(self, digests: Sequence[bytes]) -> NDArray[np.int64]:
        """int64[n]: where each digest stands in the index's own order (see `key_digest`), ABSENT if unknown."""
        if not digests or not len(self):
            return np.full(len(digests), ABSENT, dtype=np.int64)
        high, low = _columns(digests)
        at = np.searchsorted(self._high, high, side="left")
        at[at == len(self)] = 0
        found = (self._high[at] == high) & (self._low[at] == low)
        result = np.where(found, at, ABSENT)
        for i in np.flatnonzero((self._high[at] == high) & ~found):  # equal upper halves: walk them
            j = int(at[i]) + 1
            while j < len(self) and self._high[j] == high[i]:
                if self._low[j] == low[i]:
                    result[i] = j
                    break
                j += 1
        return result

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


class KeyIndexBuilder:
    """Collects (digest, offset, tombstone) in log order and keeps the last of each key.

    It sorts whenever as much has come as it holds, so that a log of n records costs n log n. That takes seconds where
    there are millions: whoever must not stand still so long calls `compact` and `build` elsewhere once it says so.
    """

    _PENDING = 1 << 14

    def __init__(self) -> None:
        self._high = np.empty(0, np.uint64)
        self._low = np.empty(0, np.uint64)
        self._entry = np.empty(0, np.int64)
        self._new: list[tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.int64]]] = []
        self._digests: list[bytes] = []
        self._pending: list[int] = []
        self._records = 0

    @property
    def due(self) -> bool:
        """The next `add` will sort."""
        return sum(len(entry) for _, _, entry in self._new) >= max(16 * self._PENDING, len(self._entry))

    @property
    def large(self) -> bool:
        """`build` will sort for more than a moment."""
        return bool(self._new) and len(self._new) + len(self._entry) // self._PENDING >= 16

    def add(self, digests: Sequence[bytes], offsets: Sequence[int], tombstones: Sequence[bool]) -> None:
        if self.due:
            self.compact()
        self._digests.extend(digests)
        self._pending.extend(offset * 2 + tombstone for offset, tombstone in zip(offsets, tombstones, strict=True))
        self._records += len(digests)
        if len(self._pending) >= self._PENDING:
            self._pack()

    def compact(self) -> None:
        """Sort what has come, and drop what newer records have replaced."""
        self._pack()
        if not self._new:
            return
        highs, lows, entries = zip((self._high, self._low, self._entry), *self._new, strict=True)
        self._new = []
        high, low, entry = np.concatenate(highs), np.concatenate(lows), np.concatenate(entries)
        order = np.lexsort((entry, low, high))
        high, low, entry = high[order], low[order], entry[order]
        last = np.ones(len(entry), dtype=np.bool_)
        last[:-1] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
        self._high, self._low, self._entry = high[last], low[last], entry[last]

    def build(self) -> KeyIndex:
        self.compact()
        return KeyIndex(self._high, self._low, self._entry, self._records)

    def _pack(self) -> None:
        if self._pending:
            self._new.append((*_columns(self._digests), np.array(self._pending, dtype=np.int64)))
            self._digests, self._pending = [], []
