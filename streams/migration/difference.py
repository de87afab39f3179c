"""The two-way comparison between the log and a space (rule 8): the log's key index against the stored heads.

A document that the log has forgotten is no fault of the space: what is older than the log's first offset, and in no
record any more, is *kept* if it is whole, and *torn* if chunks of it are missing. Pure: it says what differs; who
reads, who waits and who mends is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from connectors.protocols import Head
from streams.documents import key_digest
from streams.key_index import ABSENT, Expected, KeyIndex
from streams.migration.forms import Digests, Forms

SAMPLED = 100
NEWER = np.iinfo(np.int16).min
"""Instead of how many chunks were met; it stays below zero whatever is counted on."""


@dataclass(slots=True)
class Suspect:
    """One document whose stored form differs from the log's. `doc_id` None: missing, so only the log knows its key.
    `stored_offset`: the newest of its chunks', for one that should not be there."""

    kind: str  # missing, stale or extra
    partition: int
    digest: bytes
    expected: Expected | None
    doc_id: str | None
    stored_offset: int | None = None


@dataclass(slots=True)
class Comparison:
    """Takes the space page by page; `finish` adds what was never met. 30 bytes a key beside the index.

    `indexes`: the key index of each partition below a position up to which everything is resolved. `begins`: the log's
    first offset of each, looked up once the index was read; a partition that is left out begins at 0. `ends`: those
    positions, where what is stored from beyond them is to be told apart: `newer` has the keys of such documents, 16
    bytes each, and they are no suspects, however many come while a sweep lasts. `kept`: by partition, the documents
    that the log has forgotten, whole and torn ones.
    """

    indexes: Mapping[int, KeyIndex]
    begins: Mapping[int, int] = field(default_factory=dict)
    ends: Mapping[int, int] = field(default_factory=dict)
    checked: int = 0
    suspects: dict[bytes, Suspect] = field(default_factory=dict)
    newer: Digests = field(default_factory=Digests)
    _met: dict[int, np.ndarray[tuple[int], np.dtype[np.int16]]] = field(default_factory=dict)
    _wanted: dict[int, np.ndarray[tuple[int], np.dtype[np.int16]]] = field(default_factory=dict)
    _names: dict[bytes, str] = field(default_factory=dict)
    kept: dict[int, Forms] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for partition, index in self.indexes.items():
            self._met[partition] = np.zeros(len(index), np.int16)
            self._wanted[partition] = np.zeros(len(index), np.int16)

    def add(self, heads: Sequence[Head]) -> None:
        """One page of the space, chunks included. Heads of partitions without an index are left out."""
        by_partition: dict[int, list[Head]] = {}
        for head in heads:
            if head.partition in self.indexes:
                by_partition.setdefault(head.partition, []).append(head)
        for partition, mine in by_partition.items():
            self._compare(partition, mine)

    def _compare(self, partition: int, heads: Sequence[Head]) -> None:
        """What is as it should be in columns, the few that are not one by one."""
        index, met, wanted = self.indexes[partition], self._met[partition], self._wanted[partition]
        digests = [key_digest(head.doc_id.encode()) for head in heads]
        at = index.positions(digests)
        current = index.entries_at(at) == 2 * np.array([head.offset for head in heads], np.int64)
        np.add.at(met, at[current], 1)
        first = current & (np.array([head.chunk for head in heads], np.int64) == 0)
        wanted[at[first]] = np.array([head.chunks for head in heads], np.int64)[first]
        begin, end = self.begins.get(partition, 0), self.ends.get(partition)
        forgotten, newer = list[tuple[Head, bytes]](), list[bytes]()
        for i in np.flatnonzero(~current).tolist():
            head, digest, place = heads[i], digests[i], int(at[i])
            if end is not None and head.offset >= end:
                newer.append(digest)
                if place != ABSENT:
                    met[place] = NEWER
                elif len(self._names) < SAMPLED:
                    self._names[digest] = head.doc_id
            elif place == ABSENT and head.offset < begin:
                forgotten.append((head, digest))
            else:
                self._differs(index, head, digest, place)
        if forgotten:
            self.kept.setdefault(partition, Forms()).add(*zip(*forgotten, strict=True))
        self.newer.add(newer)

    def _differs(self, index: KeyIndex, head: Head, digest: bytes, at: int) -> None:
        expected = index.entry(at) if at != ABSENT else None
        if expected is None or expected.deleted:
            known = self.suspects.get(digest)
            if known is None or known.stored_offset is None or known.stored_offset < head.offset:  # the newest chunk's
                self.suspects[digest] = Suspect("extra", head.partition, digest, expected, head.doc_id, head.offset)
            return
        self._met[head.partition][at] += 1
        if not (head.chunk and digest in self.suspects):  # what chunk 0 says counts: it is the document's commit record
            self.suspects[digest] = Suspect("stale", head.partition, digest, expected, head.doc_id, head.offset)

    def finish(self) -> list[Suspect]:
        """Everything that differs: also documents never met, or met with too few or too many chunks."""
        for partition, index in self.indexes.items():
            met, wanted = self._met[partition], self._wanted[partition]
            documents = index.documents
            self.checked += documents
            for at in index.unmatched_puts(np.asarray(met != 0)):
                self._suspect("missing", partition, index, int(at))
            for at in np.flatnonzero((met > 0) & (met != wanted)):
                self._suspect("stale" if wanted[at] else "missing", partition, index, int(at))
        return list(self.suspects.values())

    def without_record(self, seen: Digests) -> list[Suspect]:
        """Of `newer`, those of whose keys no newer record was `seen`."""
        found: list[Suspect] = []
        for digest in self.newer.beyond(seen):
            for partition, index in self.indexes.items():
                if (at := int(index.positions([digest])[0])) != ABSENT:
                    expected = index.entry(at)
                    found.append(Suspect("extra" if expected.deleted else "stale", partition, digest, expected, None))
                    break
            else:
                found.append(Suspect("extra", ABSENT, digest, None, self._names.get(digest)))
        return found

    def of_forgotten(self) -> tuple[int, int]:
        """How many of them are whole, and how many are torn."""
        whole = sum(forms.whole for forms in self.kept.values())
        return whole, sum(map(len, self.kept.values())) - whole

    def _suspect(self, kind: str, partition: int, index: KeyIndex, at: int) -> None:
        digest = index.digest(at)
        if digest not in self.suspects:
            self.suspects[digest] = Suspect(kind, partition, digest, index.entry(at), None)


@dataclass(slots=True)
class Losses:
    """What a space would lose for those who search, were it to serve instead of another one: documents that the log has
    forgotten and that the other one keeps, whole or in part, and this one has not whole, or older. Takes the other one
    page by page. 16 bytes for each such document, and an eighth of that for those that came last.

    `indexes`, `begins`: as of the Comparison of this space, and `kept` what that has found. `lost`: their keys;
    `names`: of SAMPLED of them.
    """

    indexes: Mapping[int, KeyIndex]
    begins: Mapping[int, int]
    kept: Mapping[int, Forms]
    lost: Digests = field(default_factory=Digests)
    names: dict[bytes, str] = field(default_factory=dict)

    def add(self, heads: Sequence[Head]) -> None:
        found = self.among(heads)
        self.lost.add([digest for _, digest in found])
        for head, digest in found:
            if len(self.names) == SAMPLED:
                break
            self.names[digest] = head.doc_id

    def among(self, heads: Sequence[Head]) -> list[tuple[Head, bytes]]:
        """Which of these would be lost, each with the digest of its key; nothing of them is kept."""
        found: list[tuple[Head, bytes]] = []
        for partition, begin in self.begins.items():
            older = [h for h in heads if h.partition == partition and h.offset < begin]
            digests = [key_digest(head.doc_id.encode()) for head in older]
            in_log = self.indexes[partition].positions(digests).tolist()
            here = self.kept.get(partition, Forms()).whole_offsets(digests).tolist()
            for head, digest, at, offset in zip(older, digests, in_log, here, strict=True):
                if at == ABSENT and offset < head.offset:
                    found.append((head, digest))
        return found


def keys_in_two_partitions(indexes: Mapping[int, KeyIndex]) -> list[tuple[int, int]]:
    """Rule 1: pairs of partitions that hold records of one key."""
    pairs = combinations(sorted(indexes), 2)
    return [(first, second) for first, second in pairs if indexes[first].shares_a_key(indexes[second])]
