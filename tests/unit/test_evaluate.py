"""The figures against values worked out by hand, and against what must hold for every ranking."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, log2
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.migration.evaluate import (
    Estimate,
    Gain,
    Reply,
    Scored,
    Shift,
    compare,
    evaluate,
    ndcg_at,
    precision_at,
    recall_at,
    reciprocal_rank,
    threshold_shifts,
)
from streams.migration.golden import GoldenQuery, GoldenSet

GRADES = {"a": 3.0, "b": 2.0, "c": 1.0, "d": 0.0}


def test_a_ranking_worked_out_by_hand() -> None:
    ranked = ["x", "b", "d", "a", "c"]
    assert recall_at(ranked, GRADES, 4) == pytest.approx(2 / 3)
    assert reciprocal_rank(ranked, GRADES, 4) == pytest.approx(1 / 2)
    assert precision_at(ranked, GRADES, 4) == pytest.approx(2 / 4)
    ideal = 3 / log2(2) + 2 / log2(3) + 1 / log2(4)
    assert ndcg_at(ranked, GRADES, 4) == pytest.approx((2 / log2(3) + 3 / log2(5)) / ideal)
    ideal = 7 / log2(2) + 3 / log2(3) + 1 / log2(4)
    assert ndcg_at(ranked, GRADES, 4, "exponential") == pytest.approx((3 / log2(3) + 7 / log2(5)) / ideal)


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
    assert precision_at(["a", "a", "b"], {"a": 1.0, "b": 1.0}, 2) == 1.0


def test_precision_is_of_the_depth_however_few_were_found() -> None:
    assert precision_at(["a"], GRADES, 10) == 1 / 10


def test_means_over_queries() -> None:
    figures = evaluate([(["a", "b"], {"a": 1.0}), (["x", "b"], {"b": 1.0}), ([], {"a": 1.0})], 10)
    assert (figures.queries, figures.k) == (3, 10)
    means = (figures.recall, figures.precision, figures.mrr, figures.ndcg)
    assert means == pytest.approx((2 / 3, 2 / 30, 1 / 2, (1 + 1 / log2(3)) / 3))


@pytest.mark.parametrize(
    ("grades", "k", "message"),
    [({}, 10, "relevant"), ({"a": 0.0}, 10, "relevant"), ({"a": 1.0}, 0, "k is 0"), ({"a": -1.0}, 1, "below 0")],
)
def test_what_measures_nothing_is_refused(grades: dict[str, float], k: int, message: str) -> None:
    for figure in (recall_at, precision_at, reciprocal_rank, ndcg_at):
        with pytest.raises(ValueError, match=message):
            figure(["a"], grades, k)
    with pytest.raises(ValueError, match="no queries"):
        evaluate([], 10)


ids = st.sampled_from("abcdefgh")
judgements = st.dictionaries(ids, st.integers(0, 4).map(float), min_size=1).filter(lambda g: any(g.values()))
gains = st.sampled_from(get_args(Gain))


@given(st.lists(ids, max_size=12), judgements, st.integers(1, 12), gains)
def test_bounds_and_the_ideal(ranked: list[str], grades: dict[str, float], k: int, gain: Gain) -> None:
    for figure in (recall_at, precision_at, reciprocal_rank, ndcg_at):
        assert 0.0 <= figure(ranked, grades, k) <= 1.0 + 1e-12
    ideal = sorted(grades, key=lambda one: -grades[one])
    assert ndcg_at(ideal, grades, k, gain) == pytest.approx(1.0)
    assert reciprocal_rank(ideal, grades, k) == 1.0
    assert ndcg_at(ranked, grades, k, gain) <= ndcg_at(ideal, grades, k, gain) + 1e-12


@given(st.lists(ids, max_size=12, unique=True), judgements, st.integers(1, 12))
def test_precision_and_recall_count_the_same_documents(ranked: list[str], grades: dict[str, float], k: int) -> None:
    relevant = sum(grade > 0 for grade in grades.values())
    assert precision_at(ranked, grades, k) * k == pytest.approx(recall_at(ranked, grades, k) * relevant)


# two spaces


def golden_set(*relevant: dict[str, float], slices: Sequence[tuple[str, ...]] = ()) -> GoldenSet:
    named = [*slices, *[()] * (len(relevant) - len(slices))]
    return GoldenSet(
        "golden.jsonl", tuple(GoldenQuery(f"q{at}", f"query {at}", r, named[at]) for at, r in enumerate(relevant))
    )


def reply(*hits: str | tuple[str, float], took_ms: float = 1.0, refused: str = "") -> Reply:
    scored = [Scored(h, 1.0 - place / 100) if isinstance(h, str) else Scored(*h) for place, h in enumerate(hits)]
    return Reply(tuple(scored), took_ms, refused)


def test_two_spaces_worked_out_by_hand() -> None:
    golden = golden_set({"a": 1.0}, {"b": 2.0, "c": 1.0}, slices=[("short",), ("short", "long")])
    old = [reply("a", "x", took_ms=10), reply("b", "x", took_ms=30)]
    new = [reply("x", "a", took_ms=1), reply("c", "b", took_ms=3)]
    found = compare(golden, old, new, k=2, versions=("v1", "v2"), unknown=["c"])
    assert found.old is not None
    assert (found.old.version, found.new.version) == ("v1", "v2")
    assert found.old.recall.value == pytest.approx((1 + 1 / 2) / 2)
    assert found.new.recall.value == pytest.approx(1.0)
    assert found.new.precision.value == pytest.approx((1 / 2 + 1) / 2)
    assert found.new.mrr.value == pytest.approx((1 / 2 + 1) / 2)
    ndcg = (1 / log2(3) + (1 + 2 / log2(3)) / (2 + 1 / log2(3))) / 2
    assert found.new.ndcg.value == pytest.approx(ndcg)
    assert found.ratio is not None
    assert found.ratio.value == pytest.approx(1 / 0.75)
    assert found.overlap == pytest.approx((1 + 1 / 2) / 2)
    assert (found.old.p50_ms, found.old.p95_ms) == pytest.approx((20, 29))
    assert (found.keys, found.unknown) == (3, ("c",))
    slices = {one.name: one for one in found.slices}
    assert slices.keys() == {"short", "long"}
    assert slices["long"].queries == 1
    assert slices["long"].old is not None
    assert (slices["long"].old.recall, slices["long"].new.recall) == pytest.approx((1 / 2, 1))
    assert slices["long"].ratio == Estimate(2.0, 2.0, 2.0)


def test_nothing_to_compare_with() -> None:
    found = compare(golden_set({"a": 1.0}, slices=[("s",)]), None, [reply("a")], k=10)
    assert (found.old, found.ratio, found.overlap, found.shifts) == (None, None, None, ())
    assert found.new.recall == Estimate(1.0, 1.0, 1.0)
    assert found.slices[0].old is None
    assert found.as_json()["old"] is None


def test_the_same_answers_are_as_good_without_any_doubt() -> None:
    golden = golden_set(*[{"a": 1.0}] * 40)
    replies = [reply("a") if at % 3 else reply("x") for at in range(40)]
    found = compare(golden, replies, replies, k=10)
    assert found.ratio == Estimate(1.0, 1.0, 1.0), "the samples are paired"
    assert found.new.recall.low < found.new.recall.value < found.new.recall.high
    assert found.overlap == 1.0


def test_the_interval_is_that_of_the_binomial_and_the_seed_is_fixed() -> None:
    """Recall 0 or 1 of each query: the bootstrap of its mean is a binomial, whose quantiles are known."""
    golden = golden_set(*[{"a": 1.0}] * 100)
    replies = [reply("a") if at < 30 else reply("x") for at in range(100)]
    first, second = (compare(golden, None, replies, k=10).new.recall for _ in range(2))
    assert first == second
    assert first.value == pytest.approx(0.30)
    assert first.low == pytest.approx(0.21, abs=0.011)  # quantiles of Binomial(100, 0.3): 21 and 39
    assert first.high == pytest.approx(0.39, abs=0.011)


def test_a_space_that_finds_nothing() -> None:
    golden = golden_set({"a": 1.0}, {"a": 1.0})
    nothing, something = [reply(), reply("x")], [reply("a"), reply("a")]
    found = compare(golden, nothing, something, k=10)
    assert found.ratio is not None
    assert found.ratio.value == inf
    assert found.as_json()["recall_ratio"] == {"value": None, "low": None, "high": None}
    assert compare(golden, nothing, nothing, k=10).ratio == Estimate(1.0, 1.0, 1.0)
    assert compare(golden, something, nothing, k=10).ratio == Estimate(0.0, 0.0, 0.0)
    assert found.old is not None
    assert found.old.empty == 1


def test_a_query_a_model_cannot_take_counts_as_nothing_found_and_not_in_the_latency() -> None:
    golden = golden_set({"a": 1.0}, {"a": 1.0})
    found = compare(golden, None, [reply("a", took_ms=8), reply(took_ms=0, refused="too long")], k=10)
    assert found.new.recall.value == 1 / 2
    assert (found.new.refused, found.new.empty) == (1, 1)
    assert (found.new.p50_ms, found.new.p95_ms) == (8, 8)


def test_replies_for_other_queries_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        compare(golden_set({"a": 1.0}, {"b": 1.0}), None, [reply("a")], k=10)


def test_a_threshold_worked_out_by_hand() -> None:
    """Old: 0.9 right, 0.8 wrong, 0.7 right, 0.6 wrong. New: right at 0.5 and 0.4, wrong at 0.45 and 0.3."""
    golden = golden_set({"a": 1.0, "b": 1.0})
    old = [reply(("a", 0.9), ("x", 0.8), ("b", 0.7), ("y", 0.6))]
    new = [reply(("a", 0.5), ("x", 0.45), ("b", 0.4), ("y", 0.3))]
    shifts = threshold_shifts(golden.queries, old, new, thresholds=[0.65, 0.95, 0.0], quantiles=[0.9])
    assert shifts[0] == Shift(None, 0.65, 2 / 3, 3 / 4, 0.4, 3 / 4)
    assert shifts[1] == Shift(None, 0.95, None, 0.0, None, None), "nothing is kept, so nothing is known of it"
    assert shifts[2] == Shift(None, 0.0, 2 / 4, 1.0, 0.3, 1.0)
    assert shifts[3] == Shift(0.9, 0.9, 1.0, 1 / 4, 0.5, 1 / 4)


def test_equal_scores_are_kept_together() -> None:
    golden = golden_set({"a": 1.0})
    old = [reply(("a", 0.9), ("x", 0.1))]
    new = [reply(("x", 0.5), ("a", 0.5))]
    (shift,) = threshold_shifts(golden.queries, old, new, thresholds=[0.9], quantiles=[])
    assert shift.precision == 1.0
    assert (shift.new, shift.kept_new) == (None, None), "no threshold parts the two"
    assert threshold_shifts(golden.queries, [reply()], new) == ()
    assert threshold_shifts(golden.queries, old, [reply()], [0.9], [])[0].new is None


hits = st.lists(st.tuples(ids, st.integers(0, 20).map(lambda n: n / 20)), max_size=8, unique_by=lambda hit: hit[0])


@given(st.lists(st.tuples(hits, hits, judgements), min_size=1, max_size=6))
def test_a_new_threshold_keeps_the_precision_and_no_lower_one_does(
    rows: list[tuple[list[tuple[str, float]], list[tuple[str, float]], dict[str, float]]],
) -> None:
    golden = golden_set(*({k: g for k, g in grades.items() if g > 0} for _, _, grades in rows))
    old, new = [reply(*row[0]) for row in rows], [reply(*row[1]) for row in rows]
    pooled = [(h.score, h.key in q.relevant) for q, r in zip(golden.queries, new, strict=True) for h in r.hits]

    def precision(threshold: float) -> float:
        kept = [found for score, found in pooled if score >= threshold]
        return sum(kept) / len(kept)

    for shift in threshold_shifts(golden.queries, old, new):
        assert shift.precision is not None
        enough = sorted(score for score, _ in pooled if precision(score) >= shift.precision - 1e-9)
        assert shift.new == (enough[0] if enough else None)
