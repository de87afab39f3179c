"""The figures against values worked out by hand, and against what must hold for every ranking."""

from __future__ import annotations

from math import log2

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.migration.evaluate import evaluate, ndcg_at, recall_at, reciprocal_rank

GRADES = {"a": 3.0, "b": 2.0, "c": 1.0, "d": 0.0}


def test_a_ranking_worked_out_by_hand() -> None:
    ranked = ["x", "b", "d", "a", "c"]
    assert recall_at(ranked, GRADES, 4) == pytest.approx(2 / 3)
    assert reciprocal_rank(ranked, GRADES, 4) == pytest.approx(1 / 2)
    ideal = 7 / log2(2) + 3 / log2(3) + 1 / log2(4)
    assert ndcg_at(ranked, GRADES, 4) == pytest.approx((3 / log2(3) + 7 / log2(5)) / ideal)


def test_the_depth_cuts_off() -> None:
    ranked = ["x", "y", "a", "b"]
    assert recall_at(ranked, GRADES, 2) == 0.0
    assert reciprocal_rank(ranked, GRADES, 2) == 0.0
    assert ndcg_at(ranked, GRADES, 2) == 0.0
    assert ndcg_at(["a"], GRADES, 1) == 1.0, "the ideal is cut off too"


def test_chunks_of_one_document_count_once_at_the_first_place() -> None:
    assert reciprocal_rank(["x", "x", "a"], {"a": 1.0}, 2) == 1 / 2
    assert ndcg_at(["a", "a", "a"], {"a": 1.0}, 3) == 1.0
    assert recall_at(["a", "a", "b"], {"a": 1.0, "b": 1.0}, 2) == 1.0


def test_means_over_queries() -> None:
    figures = evaluate([(["a", "b"], {"a": 1.0}), (["x", "b"], {"b": 1.0}), ([], {"a": 1.0})], 10)
    assert (figures.queries, figures.k) == (3, 10)
    means = (figures.recall, figures.mrr, figures.ndcg)
    assert means == pytest.approx((2 / 3, 1 / 2, (1 + 1 / log2(3)) / 3))


@pytest.mark.parametrize(
    ("grades", "k", "message"),
    [({}, 10, "relevant"), ({"a": 0.0}, 10, "relevant"), ({"a": 1.0}, 0, "k is 0"), ({"a": -1.0}, 1, "below 0")],
)
def test_what_measures_nothing_is_refused(grades: dict[str, float], k: int, message: str) -> None:
    for figure in (recall_at, reciprocal_rank, ndcg_at):
        with pytest.raises(ValueError, match=message):
            figure(["a"], grades, k)
    with pytest.raises(ValueError, match="no queries"):
        evaluate([], 10)


ids = st.sampled_from("abcdefgh")
judgements = st.dictionaries(ids, st.integers(0, 4).map(float), min_size=1).filter(lambda g: any(g.values()))


@given(st.lists(ids, max_size=12), judgements, st.integers(1, 12))
def test_bounds_and_the_ideal(ranked: list[str], grades: dict[str, float], k: int) -> None:
    for figure in (recall_at, reciprocal_rank, ndcg_at):
        assert 0.0 <= figure(ranked, grades, k) <= 1.0 + 1e-12
    ideal = sorted(grades, key=lambda one: -grades[one])
    assert ndcg_at(ideal, grades, k) == pytest.approx(1.0)
    assert reciprocal_rank(ideal, grades, k) == 1.0
    assert ndcg_at(ranked, grades, k) <= ndcg_at(ideal, grades, k) + 1e-12
