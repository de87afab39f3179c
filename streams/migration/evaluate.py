"""How good ranked lists are: recall@k, reciprocal rank and nDCG@k against graded judgements, for one query and many.

Pure: it never searches, and never decides whether a version is good enough.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import exp2, log2


@dataclass(frozen=True, slots=True)
class Figures:
    """Means over `queries` queries, each between 0 and 1; `k` is the depth all three were measured at."""

    queries: int
    k: int
    recall: float
    mrr: float
    ndcg: float


def recall_at(ranked: Sequence[str], grades: Mapping[str, float], k: int) -> float:
    """Share of the relevant ids (grade above 0) among the first `k`; relevant ids beyond `k` count against it.

    `ranked`: ids, best first; an id that comes twice (several chunks of a document) counts at its first place, and
    its later places are closed up. Raises ValueError without a relevant id, or for a `k` below 1.
    """
    relevant = _relevant(grades, k)
    return len(relevant.keys() & set(_first(ranked, k))) / len(relevant)


def reciprocal_rank(ranked: Sequence[str], grades: Mapping[str, float], k: int) -> float:
    """1 / place of the first relevant id among the first `k`, else 0. Arguments and errors as `recall_at`."""
    relevant = _relevant(grades, k)
    return next((1 / place for place, one in enumerate(_first(ranked, k), 1) if one in relevant), 0.0)


def ndcg_at(ranked: Sequence[str], grades: Mapping[str, float], k: int) -> float:
    """Normalised discounted cumulative gain with gain 2**grade - 1 and discount 1 / log2(place + 1).

    The ideal holds the best `k` judged ids. Arguments and errors as `recall_at`.
    """
    relevant = _relevant(grades, k)
    gained = _discounted(relevant.get(one, 0.0) for one in _first(ranked, k))
    return gained / _discounted(sorted(relevant.values(), reverse=True)[:k])


def evaluate(judged: Iterable[tuple[Sequence[str], Mapping[str, float]]], k: int) -> Figures:
    """Means over (ranked ids, grades by id) of each query. Raises ValueError for no query, and as the figures do."""
    recall = mrr = ndcg = 0.0
    queries = 0
    for ranked, grades in judged:
        queries += 1
        recall += recall_at(ranked, grades, k)
        mrr += reciprocal_rank(ranked, grades, k)
        ndcg += ndcg_at(ranked, grades, k)
    if queries == 0:
        raise ValueError("no queries: there is nothing to take a mean of")
    return Figures(queries, k, recall / queries, mrr / queries, ndcg / queries)


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


def _discounted(grades: Iterable[float]) -> float:
    return sum((exp2(grade) - 1.0) / log2(place + 1) for place, grade in enumerate(grades, 1))
