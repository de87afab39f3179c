"""How good ranked lists are, for one query and many, and how two spaces compare on the same queries.

Pure: it never searches, and never decides whether a version is good enough. Figures are those of `ir-measures`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import exp2, isfinite, log2
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from connectors.protocols import JSON
from streams.migration.golden import GoldenQuery, GoldenSet

Gain = Literal["linear", "exponential"]
FigureName = Literal["recall", "precision", "mrr", "ndcg"]
FIGURES: tuple[FigureName, ...] = get_args(FigureName)

CONFIDENCE = 0.95
RESAMPLES = 2000
SEED = 20_070_327
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
NAMED = 10

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Figures:
    """Means over `queries` queries, each between 0 and 1; `k` is the depth all of them were measured at."""

    queries: int
    k: int
    recall: float
    precision: float
    mrr: float
    ndcg: float


class Scored(NamedTuple):
    """A document that was found; a higher score is better."""

    key: str
    score: float


@dataclass(frozen=True, slots=True)
class Reply:
    """One space's answer to one query: best first, each document once. `took_ms`: what the asker waited for it.

    `refused`: why this space's model cannot take the query at all; it then counts as nothing found.
    """

    hits: tuple[Scored, ...]
    took_ms: float
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure over all queries, and the ends of its 95% bootstrap interval over queries."""

    value: float
    low: float
    high: float

    def as_json(self) -> dict[str, JSON]:
        """JSON has no infinity: null stands for it."""
        return {name: number if isfinite(number) else None for name, number in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class SpaceQuality:
    """One space on the whole golden set. `empty`: queries without any hit; `refused`: those its model cannot take.

    `p50_ms`, `p95_ms`: of the queries that were answered, encoding and searching; 0 when none was.
    """

    version: str
    recall: Estimate
    precision: Estimate
    mrr: Estimate
    ndcg: Estimate
    p50_ms: float
    p95_ms: float
    empty: int
    refused: int

    def as_json(self) -> dict[str, JSON]:
        return {
            "version": self.version,
            **{name: getattr(self, name).as_json() for name in FIGURES},
            "p50_ms": round(self.p50_ms, 3),
            "p95_ms": round(self.p95_ms, 3),
            "empty": self.empty,
            "refused": self.refused,
        }


@dataclass(frozen=True, slots=True)
class Shift:
    """A score threshold of the old space, and the lowest one of the new space that is at least as precise.

    `precision`: share of relevant documents among the old space's hits with a score of `old` or more; None when
    there are no such hits. `kept_*`: share of a space's hits at or above its threshold. `new` None: no threshold of
    the new space is that precise. `quantile`: of the old space's scores, or None for a threshold that was asked for.
    """

    quantile: float | None
    old: float
    precision: float | None
    kept_old: float
    new: float | None
    kept_new: float | None

    def as_json(self) -> dict[str, JSON]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class SliceQuality:
    """The queries of one slice. `old` and `ratio` None: no other space to compare with."""

    name: str
    queries: int
    old: Figures | None
    new: Figures
    ratio: Estimate | None

    def as_json(self) -> dict[str, JSON]:
        return {
            "name": self.name,
            "queries": self.queries,
            "old": asdict(self.old) if self.old else None,
            "new": asdict(self.new),
            "recall_ratio": self.ratio.as_json() if self.ratio else None,
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two spaces on one golden set; `old` None when there is nothing to compare with, and so is what needs both.

    `ratio`: recall of the new space by that of the old one, 1 where both are 0. `overlap`: mean share of the first
    `k` documents that both spaces have in common. `unknown`: relevant keys that no space holds, of `keys` in all.
    """

    golden: str
    notes: tuple[str, ...]
    queries: int
    k: int
    gain: Gain
    keys: int
    unknown: tuple[str, ...]
    old: SpaceQuality | None
    new: SpaceQuality
    ratio: Estimate | None
    overlap: float | None
    shifts: tuple[Shift, ...]
    slices: tuple[SliceQuality, ...]

    def as_json(self) -> dict[str, JSON]:
        return {
            "golden": self.golden,
            "notes": list(self.notes),
            "queries": self.queries,
            "k": self.k,
            "gain": self.gain,
            "confidence": CONFIDENCE,
            "keys": self.keys,
            "unknown_keys": len(self.unknown),
            "unknown_named": list(self.unknown[:NAMED]),
            "old": self.old.as_json() if self.old else None,
            "new": self.new.as_json(),
            "recall_ratio": self.ratio.as_json() if self.ratio else None,
            "overlap": self.overlap,
            "threshold_shifts": [shift.as_json() for shift in self.shifts],
            "slices": [one.as_json() for one in self.slices],
        }


def recall_at(ranked: Sequence[str], grades: Mapping[str, float], k: int) -> float:
    """Share of the relevant ids (grade above 0) among the first `k`; relevant ids beyond `k` count against it.

    `ranked`: ids, best first; an id that comes twice (several chunks of a document) counts at its first place, and
    its later places are closed up. Raises ValueError without a relevant id, or for a `k` below 1.
    """
    relevant = _relevant(grades, k)
    return len(relevant.keys() & set(_first(ranked, k))) / len(relevant)


def precision_at(ranked: Sequence[str], grades: Mapping[str, float], k: int) -> float:
    """Relevant ids among the first `k`, by `k`, however few were found. Arguments and errors as `recall_at`."""
    relevant = _relevant(grades, k)
    return len(relevant.keys() & set(_first(ranked, k))) / k


def reciprocal_rank(ranked: Sequence[str], grades: Mapping[str, float], k: int) -> float:
    """1 / place of the first relevant id among the first `k`, else 0. Arguments and errors as `recall_at`."""
    relevant = _relevant(grades, k)
    return next((1 / place for place, one in enumerate(_first(ranked, k), 1) if one in relevant), 0.0)


def ndcg_at(ranked: Sequence[str], grades: Mapping[str, float], k: int, gain: Gain = "linear") -> float:
    """Normalised discounted cumulative gain with discount 1 / log2(place + 1); the ideal holds the best `k` ids.

    `gain`: linear, the grade itself, as trec_eval and `ir-measures` have it; or exponential, 2**grade - 1. The same
    for grades 0 and 1. Arguments and errors as `recall_at`.
    """
    relevant = _relevant(grades, k)
    gained = _discounted((relevant.get(one, 0.0) for one in _first(ranked, k)), gain)
    return gained / _discounted(sorted(relevant.values(), reverse=True)[:k], gain)


def evaluate(judged: Iterable[tuple[Sequence[str], Mapping[str, float]]], k: int, gain: Gain = "linear") -> Figures:
    """Means over (ranked ids, grades by id) of each query. Raises ValueError for no query, and as the figures do."""
    table = _table(judged, k, gain)
    if not len(table):
        raise ValueError("no queries: there is nothing to take a mean of")
    return _figures(table, k)


def compare(
    golden: GoldenSet,
    old: Sequence[Reply] | None,
    new: Sequence[Reply],
    *,
    k: int,
    gain: Gain = "linear",
    versions: tuple[str, str] = ("old", "new"),
    unknown: Sequence[str] = (),
    thresholds: Sequence[float] = (),
) -> Comparison:
    """`old` and `new`: one reply for each query of the golden set, in its order. Takes some ten seconds for 20,000.

    Intervals are percentiles of 2,000 bootstrap samples of the queries, with a fixed seed, the same samples for both
    spaces (paired). Raises ValueError when the numbers of replies differ, and as the figures do.
    """
    queries = golden.queries
    tables = [
        _table(((_keys(reply), query.relevant) for query, reply in zip(queries, replies, strict=True)), k, gain)
        for replies in ([new] if old is None else [new, old])
    ]
    members: dict[str, list[int]] = {}
    for at, query in enumerate(queries):
        for name in query.slices:
            members.setdefault(name, []).append(at)
    estimates = _estimates(np.hstack(tables))
    return Comparison(
        golden=golden.name,
        notes=golden.notes,
        queries=len(queries),
        k=k,
        gain=gain,
        keys=len(golden.keys),
        unknown=tuple(unknown),
        old=None if old is None else _space(versions[0], estimates.figures[len(FIGURES) :], old),
        new=_space(versions[1], estimates.figures[: len(FIGURES)], new),
        ratio=estimates.ratio,
        overlap=None if old is None else _overlap(old, new, k),
        shifts=() if old is None else threshold_shifts(queries, old, new, thresholds),
        slices=tuple(
            SliceQuality(
                name,
                len(rows),
                None if old is None else _figures(tables[1][rows], k),
                _figures(tables[0][rows], k),
                _estimates(np.hstack([table[rows] for table in tables])).ratio,
            )
            for name, rows in sorted(members.items())
        ),
    )


def threshold_shifts(
    queries: Sequence[GoldenQuery],
    old: Sequence[Reply],
    new: Sequence[Reply],
    thresholds: Sequence[float] = (),
    quantiles: Sequence[float] = QUANTILES,
) -> tuple[Shift, ...]:
    """For each threshold of the old space, and at quantiles of its scores: what keeps the same precision in the new.

    Over all hits of all queries together, as a threshold that cuts answers off would be applied. () when the old
    space found nothing.
    """
    before, after = _Curve.of(queries, old), _Curve.of(queries, new)
    if not len(before.scores):
        return ()
    asked: list[tuple[float | None, float]] = [(None, threshold) for threshold in thresholds]
    asked += [(q, float(np.quantile(before.scores, q, method="inverted_cdf"))) for q in quantiles]
    shifts: list[Shift] = []
    for quantile, threshold in asked:
        precision, kept = before.at(threshold)
        found = None if precision is None else after.lowest(precision)
        kept_new = None if found is None else after.at(found)[1]
        shifts.append(Shift(quantile, threshold, precision, kept, found, kept_new))
    return tuple(shifts)


class _Curve(NamedTuple):
    """All hits of a space, lowest score first. `relevant_from[i]`: relevant ones from place i on."""

    scores: Floats
    relevant_from: Floats

    @classmethod
    def of(cls, queries: Sequence[GoldenQuery], replies: Sequence[Reply]) -> _Curve:
        hits = [
            (hit.score, hit.key in query.relevant)
            for query, reply in zip(queries, replies, strict=True)
            for hit in reply.hits
        ]
        scores = np.array([score for score, _ in hits], dtype=np.float64)
        relevant = np.array([found for _, found in hits], dtype=np.float64)
        order = np.argsort(scores, kind="stable")
        return cls(scores[order], np.cumsum(relevant[order][::-1])[::-1])

    def at(self, threshold: float) -> tuple[float | None, float]:
        """Precision at a threshold, None where nothing is kept; and the share that is kept."""
        first = int(np.searchsorted(self.scores, threshold, side="left"))
        kept = len(self.scores) - first
        return (float(self.relevant_from[first]) / kept if kept else None), kept / max(1, len(self.scores))

    def lowest(self, precision: float) -> float | None:
        """The lowest score that is a threshold of at least this precision."""
        if not len(self.scores):
            return None
        # at one of several equal scores, a threshold keeps all of them: the first place among them counts
        first = np.searchsorted(self.scores, self.scores, side="left")
        precisions = (self.relevant_from / np.arange(len(self.scores), 0, -1))[first]
        enough = np.flatnonzero(precisions >= precision - 1e-12)
        return float(self.scores[enough[0]]) if len(enough) else None


class _Estimates(NamedTuple):
    figures: list[Estimate]
    ratio: Estimate | None


def _estimates(table: Floats) -> _Estimates:
    """`table`: float64[queries, figures of the new space and then of the old one, if there is one]."""
    sampled = _resampled(table)
    figures = [_estimate(float(mean), sampled[:, at]) for at, mean in enumerate(table.mean(axis=0))]
    if table.shape[1] == len(FIGURES):
        return _Estimates(figures, None)
    old = len(FIGURES)  # recall is the first figure of each
    ratios = _ratio(sampled[:, 0], sampled[:, old])
    point = _ratio(np.array([figures[0].value]), np.array([figures[old].value]))
    return _Estimates(figures, _estimate(float(point[0]), ratios))


def _resampled(table: Floats) -> Floats:
    """float64[RESAMPLES, figures]: means of as many queries drawn with replacement, each row of a query kept whole."""
    queries = len(table)
    generator = np.random.default_rng(SEED)
    block = max(1, min(RESAMPLES, 1_000_000 // queries))
    means = []
    for start in range(0, RESAMPLES, block):
        samples = min(block, RESAMPLES - start)
        drawn = generator.integers(0, queries, (samples, queries)) + queries * np.arange(samples)[:, None]
        times = np.bincount(drawn.ravel(), minlength=samples * queries).reshape(samples, queries)  # how often
        means.append(times @ table / queries)
    return np.concatenate(means)


def _estimate(value: float, sampled: Floats) -> Estimate:
    tail = (1 - CONFIDENCE) / 2
    # values that occurred, never a mean of two of them: one may be infinite
    low, high = np.quantile(sampled, [tail, 1 - tail], method="inverted_cdf")
    return Estimate(value, float(low), float(high))


def _ratio(new: Floats, old: Floats) -> Floats:
    """new / old; 1 where both are 0, infinite where only the old one is."""
    infinite = np.where(new > 0, np.inf, 1.0)
    return np.where(old > 0, new / np.where(old > 0, old, 1.0), infinite)


def _space(version: str, estimates: Sequence[Estimate], replies: Sequence[Reply]) -> SpaceQuality:
    took = [reply.took_ms for reply in replies if not reply.refused] or [0.0]
    p50, p95 = np.quantile(took, [0.5, 0.95])
    recall, precision, mrr, ndcg = estimates
    return SpaceQuality(
        version,
        recall,
        precision,
        mrr,
        ndcg,
        p50_ms=float(p50),
        p95_ms=float(p95),
        empty=sum(not reply.hits for reply in replies),
        refused=sum(bool(reply.refused) for reply in replies),
    )


def _overlap(old: Sequence[Reply], new: Sequence[Reply], k: int) -> float | None:
    """Over the queries that at least one space answered; None when none did."""
    shares = []
    for before, after in zip(old, new, strict=True):
        first, second = set(_first(_keys(before), k)), set(_first(_keys(after), k))
        if first or second:
            shares.append(len(first & second) / max(len(first), len(second)))
    return sum(shares) / len(shares) if shares else None


def _keys(reply: Reply) -> list[str]:
    return [hit.key for hit in reply.hits]


def _table(judged: Iterable[tuple[Sequence[str], Mapping[str, float]]], k: int, gain: Gain) -> Floats:
    """float64[queries, FIGURES]"""
    rows = [
        (
            recall_at(ranked, grades, k),
            precision_at(ranked, grades, k),
            reciprocal_rank(ranked, grades, k),
            ndcg_at(ranked, grades, k, gain),
        )
        for ranked, grades in judged
    ]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(FIGURES))


def _figures(table: Floats, k: int) -> Figures:
    return Figures(len(table), k, *(float(mean) for mean in table.mean(axis=0)))


def _first(ranked: Sequence[str], k: int) -> list[str]:
    return list(dict.fromkeys(ranked))[:k]


def _relevant(grades: Mapping[str, float], k: int) -> dict[str, float]:
    if k < 1:
        raise ValueError(f"k is {k}, and must be at least 1")
    if any(grade < 0 for grade in grades.values()):
        raise ValueError("a grade is below 0")
    relevant = {one: grade for one, grade in grades.items() if grade > 0}
    if not relevant:
        raise ValueError("a query without a relevant document measures nothing")
    return relevant


def _discounted(grades: Iterable[float], gain: Gain) -> float:
    worth = (grade if gain == "linear" else exp2(grade) - 1.0 for grade in grades)
    return sum(one / log2(place + 1) for place, one in enumerate(worth, 1))
