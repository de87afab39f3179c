"""The order of a replay: tiers, each of them one or more passes over the log with documents of its own.

Pure: no I/O, no clock. A pass is named by the offsets of its documents: two owners who find the same passes mean the
same thing by "pass 2, offset 700", and an owner who finds others knows it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from streams.config_operation import TierName
from streams.key_index import ABSENT, KeyIndex
from streams.progress import TierProgress

ONE_TIER = "none"  # the hash of a replay that has only the rest
FIRST_BAND, BANDS = 1_000, 3
"""Listed keys go in bands, each ten times as large as the one before: a pass for each band, not for each key."""


@dataclass(frozen=True, slots=True)
class Pass:
    """One reading of the log. `offsets`: int64[n], sorted: the newest record of each of its documents.

    `weights`: float64[n] beside them, their documents' traffic; None where there is none.
    """

    tier: TierName
    offsets: NDArray[np.int64]
    weights: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def begin(self) -> int:
        """The first offset that need be read; 0 without documents."""
        return int(self.offsets[0]) if len(self.offsets) else 0

    @property
    def end(self) -> int:
        """Just above the last one."""
        return int(self.offsets[-1]) + 1 if len(self.offsets) else 0

    def holds(self, offsets: Sequence[int]) -> NDArray[np.bool_]:
        """bool[n]: the record at that offset is one of its documents."""
        wanted = np.asarray(offsets, dtype=np.int64)
        if not len(self.offsets):
            return np.zeros(len(wanted), dtype=np.bool_)
        at = np.searchsorted(self.offsets, wanted)
        at[at == len(self.offsets)] = 0
        return np.asarray(self.offsets[at] == wanted, dtype=np.bool_)

    def below(self, offset: int) -> int:
        """How many of its documents have their newest record below `offset`."""
        return int(np.searchsorted(self.offsets, offset, side="left"))

    def progress(self, offset: int) -> TierProgress:
        """When everything below `offset` is done."""
        done = self.below(offset)
        whole, part = (0.0, 0.0) if self.weights is None else (self.weights.sum(), self.weights[:done].sum())
        return TierProgress(
            name=self.tier, total=len(self), completed=done, weight=float(whole), weight_completed=float(part)
        )


@dataclass(frozen=True, slots=True)
class Passes:
    """A replay's whole order, the rest last. Every document is in exactly one pass."""

    passes: tuple[Pass, ...]
    hash: str = field(init=False)
    """Equal for equal passes: the first 16 hex digits of SHA-256 over the offsets of all but the rest."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "hash", _hash(self.passes))  # once: every checkpoint carries it

    def __len__(self) -> int:
        return len(self.passes)

    def __getitem__(self, number: int) -> Pass:
        return self.passes[number]

    @property
    def documents(self) -> int:
        return sum(map(len, self.passes))

    def completed(self, number: int, offset: int) -> int:
        """Documents in the passes before `number`, and in that one below `offset`."""
        return sum(map(len, self.passes[:number])) + self.passes[number].below(offset)


def _hash(passes: Sequence[Pass]) -> str:
    if len(passes) == 1:
        return ONE_TIER
    digest = hashlib.sha256()
    for one in passes[:-1]:
        digest.update(f"{one.tier} {len(one)}\n".encode())
        digest.update(one.offsets.astype("<i8").tobytes())
    return digest.hexdigest()[:16]


def arrange(
    index: KeyIndex,
    tiers: Sequence[TierName],
    listed: Mapping[bytes, float] = {},
    newest: float = 0.0,
    first_band: int = FIRST_BAND,
) -> Passes:
    """The passes in the order of `tiers`; the rest comes last, named or not.

    `listed`: key digest to weight; `newest`: of all documents so large a share, those written last that no tier before
    has. Passes without documents are left out, but for the rest.
    """
    traffic = _Traffic.of(index, listed)
    left = index.document_offsets()
    passes: list[Pass] = []
    for tier in tiers:
        if tier == "rest":
            break
        if tier == "listed":
            chosen = traffic.bands(first_band)
        else:
            chosen = [left[len(left) - min(len(left), round(newest * index.documents)) :]]
        for offsets in chosen:
            mine = np.intersect1d(offsets, left, assume_unique=True)
            if len(mine):
                passes.append(Pass(tier, mine, traffic.weights(mine)))
                left = np.setdiff1d(left, mine, assume_unique=True)
    return Passes((*passes, Pass("rest", left, traffic.weights(left))))


@dataclass(frozen=True, slots=True)
class _Traffic:
    """The listed keys' documents. `ranked`: their offsets by their keys' rank, -1 for a key without a document;
    `offsets` (sorted) and `heavy` beside it: the documents there are, and their weights."""

    ranked: NDArray[np.int64]
    offsets: NDArray[np.int64]
    heavy: NDArray[np.float64]

    @classmethod
    def of(cls, index: KeyIndex, listed: Mapping[bytes, float]) -> _Traffic:
        by_rank = sorted(listed.items(), key=lambda item: (-item[1], item[0]))
        ranked = index.put_offsets([digest for digest, _ in by_rank])
        weights = np.asarray([weight for _, weight in by_rank], dtype=np.float64)
        order = np.argsort(ranked)
        order = order[ranked[order] != ABSENT]
        return cls(ranked, ranked[order], weights[order])

    def bands(self, first: int) -> list[NDArray[np.int64]]:
        """By rank among all listed keys, with a document or not: a document that goes moves no other one."""
        cuts = [first * 10**band for band in range(BANDS - 1)]
        return [band[band != ABSENT] for band in np.split(self.ranked, cuts)]

    def weights(self, offsets: NDArray[np.int64]) -> NDArray[np.float64] | None:
        """float64[n]: of the documents at these offsets, 0 for those that nobody looked for; None for nobody at all:
        the rest is mostly that, and large."""
        _, here, there = np.intersect1d(offsets, self.offsets, assume_unique=True, return_indices=True)
        if not len(here):
            return None
        found = np.zeros(len(offsets))
        found[here] = self.heavy[there]
        return found
