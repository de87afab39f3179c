"""Two spaces' answers to one query, made into one: each document once, in its newest form.

Pure: it must never ask a space, nor show a form of a document that the other space has already replaced.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from connectors.protocols import Hit
from streams.config_operation import FusionName

RANK_CONSTANT = 60
"""k of reciprocal rank fusion (Cormack, Clarke, Buettcher 2009)."""

FEWEST_PAIRS = 50
"""Below that a scale would say little, and documents keep their places instead."""

Side = Literal["old", "new"]


class Merged(NamedTuple):
    """One document of the answer, as the space of `side` holds it."""

    hit: Hit
    side: Side


@dataclass(frozen=True, slots=True)
class Pair:
    """What both spaces found. `old_at`, `new_at`: the offset at which each holds a document that the other has found;
    a document that is in neither its hits nor its offsets is not held."""

    old: Sequence[Hit]
    new: Sequence[Hit]
    old_at: Mapping[str, int]
    new_at: Mapping[str, int]


class Scale(NamedTuple):
    """The scores of one space: their mean, and the standard deviation around it."""

    mean: float
    spread: float

    def of(self, score: float) -> float:
        """On the common scale: standard deviations above the mean."""
        return (score - self.mean) / self.spread


class Calibration(NamedTuple):
    """Both spaces' scores of the same documents for the same sampled queries."""

    old: Scale
    new: Scale


def calibration_of(pairs: Iterable[tuple[float, float]]) -> Calibration | None:
    """`pairs`: the old and the new space's score of a document that both have found. None while they are too few."""
    scores = np.asarray(list(pairs), np.float64).reshape(-1, 2)
    scores = scores[np.isfinite(scores).all(axis=1)]
    if len(scores) < FEWEST_PAIRS:
        return None
    means, spreads = scores.mean(axis=0), scores.std(axis=0)
    if not (spreads > 1e-12).all():
        return None
    old, new = (Scale(float(mean), float(spread)) for mean, spread in zip(means, spreads, strict=True))
    return Calibration(old, new)


def depth_of(fusion: FusionName, limit: int) -> int:
    """How many documents to ask each space for. Scores and ranks say more with depth; places need no more than the
    answer, and a few for what turns out to be stale."""
    return limit + 10 if fusion == "places" else max(50, 2 * limit)


def merge(
    fusion: FusionName, pair: Pair, limit: int, *, coverage: float, calibration: Calibration | None = None
) -> tuple[Merged, ...]:
    """At most `limit` documents, best first. `coverage`: the share of the documents the new space holds, 0 to 1.

    The order of hits of one score does not matter: their ids decide. Without a `calibration`, places stand in for it.
    """
    lists = _current(pair)
    if fusion == "calibrated" and calibration is None:
        fusion = "places"
    if fusion == "places":
        order = _by_places(lists)
    else:
        scores = {
            "reciprocal": lambda: _reciprocal(lists),
            "weighted": lambda: _weighted(lists, coverage),
            "calibrated": lambda: _calibrated(lists, calibration),
        }[fusion]()
        order = sorted(scores, key=lambda doc_id: (-scores[doc_id], doc_id))
    return tuple(_shown(lists, doc_id) for doc_id in order[:limit])


@dataclass(frozen=True, slots=True)
class _Lists:
    """`old`, `new`: by document, best first, without what is stale. `moved`: documents that the new space holds in a
    form at least as new as the old one's; `places`: the old space's order, stale ones included."""

    old: Mapping[str, Hit]
    new: Mapping[str, Hit]
    moved: frozenset[str]
    places: tuple[str, ...]


def _current(pair: Pair) -> _Lists:
    """A stale hit has no vote either: it was ranked by a text that is no more. (Offsets of one document are of one
    partition, so they can be compared.)"""
    old, new = _ordered(pair.old), _ordered(pair.new)
    old_at = {**pair.old_at, **{doc_id: hit.offset for doc_id, hit in old.items()}}
    new_at = {**pair.new_at, **{doc_id: hit.offset for doc_id, hit in new.items()}}
    moved = frozenset(doc_id for doc_id, offset in new_at.items() if offset >= old_at.get(doc_id, -1))
    return _Lists(
        {doc_id: hit for doc_id, hit in old.items() if hit.offset >= new_at.get(doc_id, -1)},
        {doc_id: hit for doc_id, hit in new.items() if hit.offset >= old_at.get(doc_id, -1)},
        moved,
        tuple(old),
    )


def _ordered(hits: Iterable[Hit]) -> dict[str, Hit]:
    """Each document once, by its best hit; best first."""
    found: dict[str, Hit] = {}
    for hit in sorted(hits, key=lambda hit: (-hit.score, hit.doc_id, -hit.offset, hit.chunk)):
        found.setdefault(hit.doc_id, hit)
    return found


def _shown(lists: _Lists, doc_id: str) -> Merged:
    """Of two equally new forms the new space's: its vector is the better one."""
    hit = lists.new.get(doc_id)
    return Merged(hit, "new") if hit is not None else Merged(lists.old[doc_id], "old")


def _by_places(lists: _Lists) -> list[str]:
    """A document that has not moved keeps its place in the old order; the other places go to those that have moved, in
    the new order. So nobody has to compare two models' scores, and at no coverage does a document win or lose for
    being found twice."""
    fill = iter(lists.new)
    order: dict[str, None] = {}
    for doc_id in lists.places:
        taken = next(fill, None) if doc_id in lists.moved else doc_id
        if taken is not None:
            order[taken] = None
    order.update(dict.fromkeys(fill))
    order.update(dict.fromkeys(lists.old))  # moved, and yet not among the new space's hits: still an answer, the last
    return list(order)


def _reciprocal(lists: _Lists) -> dict[str, float]:
    scores: dict[str, float] = {}
    for ranked in (lists.old, lists.new):
        for rank, doc_id in enumerate(ranked, 1):
            scores[doc_id] = scores.get(doc_id, 0.0) + 1.0 / (RANK_CONSTANT + rank)
    return scores


def _weighted(lists: _Lists, coverage: float) -> dict[str, float]:
    """Each list's scores from 0 to 1, the new one's with the coverage as its weight; a document that has not moved is
    judged by the old space alone."""
    old, new = _normalised(lists.old), _normalised(lists.new)

    def score(doc_id: str) -> float:
        if doc_id not in lists.moved:
            return old.get(doc_id, 0.0)
        return (1.0 - coverage) * old.get(doc_id, 0.0) + coverage * new.get(doc_id, 0.0)

    return {doc_id: score(doc_id) for doc_id in {**lists.old, **lists.new}}


def _normalised(ranked: Mapping[str, Hit]) -> dict[str, float]:
    if not ranked:
        return {}
    scores = [hit.score for hit in ranked.values()]
    low, span = min(scores), max(scores) - min(scores)
    return {doc_id: (hit.score - low) / span if span > 0 else 1.0 for doc_id, hit in ranked.items()}


def _calibrated(lists: _Lists, calibration: Calibration | None) -> dict[str, float]:
    """Each document by one space alone, on the common scale: by the new one if it has moved."""
    assert calibration is not None
    to_old: Callable[[float], float] = calibration.old.of
    to_new: Callable[[float], float] = calibration.new.of
    scores = {doc_id: to_new(hit.score) for doc_id, hit in lists.new.items()}
    lowest = min(scores.values(), default=-math.inf)
    for doc_id, hit in lists.old.items():
        if doc_id not in lists.moved:
            scores[doc_id] = to_old(hit.score)
        else:
            scores.setdefault(doc_id, lowest - 1.0 + to_old(hit.score) / 1e6)  # the new space ranks it below its hits
    return scores
