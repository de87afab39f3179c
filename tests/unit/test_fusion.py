"""The fusions: each document once, its newest form, whatever the order of equal inputs; and what each promises."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import get_args
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.protocols import Hit
from streams.config_operation import FusionName
from streams.search.fusion import (
    FEWEST_PAIRS,
    RANK_CONSTANT,
    Calibration,
    Merged,
    Pair,
    Scale,
    calibration_of,
    depth_of,
    merge,
)

FUSIONS: tuple[FusionName, ...] = get_args(FusionName)
CALIBRATION = Calibration(Scale(0.5, 0.2), Scale(0.6, 0.1))


def hit(doc_id: str, score: float, offset: int = 0, chunk: int = 0) -> Hit:
    return Hit(UUID(int=chunk), doc_id, chunk, score, 2 * (1 - score), {}, offset)


def ranked(ids: str, offset: int = 0) -> list[Hit]:
    return [hit(doc_id, 0.9 - 0.01 * at, offset) for at, doc_id in enumerate(ids)]


def pair(old: Sequence[Hit], new: Sequence[Hit], old_at: str = "", new_at: str = "", offset: int = 0) -> Pair:
    return Pair(old, new, dict.fromkeys(old_at, offset), dict.fromkeys(new_at, offset))


def shown(merged: Sequence[Merged]) -> str:
    return "".join(one.hit.doc_id for one in merged)


# --- what holds for every fusion, whatever it is given ---

KEYS = st.sampled_from("abcdefgh")
HITS = st.lists(
    st.builds(
        hit,
        KEYS,
        st.sampled_from([0.1, 0.2, 0.5, 0.5000001, 0.9]),
        st.integers(0, 3),
        st.integers(0, 2),
    ),
    max_size=12,
)
OFFSETS = st.dictionaries(KEYS, st.integers(0, 3), max_size=8)


@st.composite
def pairs(draw: st.DrawFn) -> Pair:
    """As two searches and two look-ups give them: a document has one offset in a space, and both know of it."""
    at = [draw(OFFSETS), draw(OFFSETS)]
    found = [[one for one in (h for h in draw(HITS)) if one.doc_id in held] for held in at]
    sides = [
        [Hit(one.uuid, one.doc_id, one.chunk, one.score, one.distance, {}, held[one.doc_id]) for one in hits]
        for hits, held in zip(found, at, strict=True)
    ]
    return Pair(sides[0], sides[1], at[0], at[1])


SOME = st.sampled_from(FUSIONS)
SHARE = st.floats(0, 1)


@given(pairs(), SOME, SHARE, st.integers(1, 10))
def test_no_document_comes_twice_and_none_from_nowhere(
    both: Pair, fusion: FusionName, share: float, limit: int
) -> None:
    merged = merge(fusion, both, limit, coverage=share, calibration=CALIBRATION)
    ids = [one.hit.doc_id for one in merged]
    assert len(ids) == len(set(ids)) <= limit
    for one in merged:
        assert one.hit in (both.new if one.side == "new" else both.old)


@given(pairs(), SOME, SHARE)
def test_the_newest_form_wins_and_a_stale_one_is_never_shown(both: Pair, fusion: FusionName, share: float) -> None:
    for one in merge(fusion, both, 20, coverage=share, calibration=CALIBRATION):
        known = [at[one.hit.doc_id] for at in (both.old_at, both.new_at) if one.hit.doc_id in at]
        assert one.hit.offset == max(known)


@given(pairs(), SOME, SHARE)
def test_nothing_current_is_lost(both: Pair, fusion: FusionName, share: float) -> None:
    """With room for all, every document is shown that a space has found in its newest form."""
    expected = {
        one.doc_id
        for hits, other in ((both.old, both.new_at), (both.new, both.old_at))
        for one in hits
        if one.offset >= other.get(one.doc_id, -1)
    }
    merged = merge(fusion, both, 20, coverage=share, calibration=CALIBRATION)
    assert {one.hit.doc_id for one in merged} == expected


@given(pairs(), SOME, SHARE, st.randoms(use_true_random=False))
def test_the_order_in_which_hits_come_does_not_matter(
    both: Pair, fusion: FusionName, share: float, rng: random.Random
) -> None:
    old, new = list(both.old), list(both.new)
    rng.shuffle(old)
    rng.shuffle(new)
    shuffled = Pair(old, new, both.old_at, both.new_at)
    first, second = (merge(fusion, one, 20, coverage=share, calibration=CALIBRATION) for one in (both, shuffled))
    assert [(m.hit.doc_id, m.hit.score, m.side) for m in first] == [(m.hit.doc_id, m.hit.score, m.side) for m in second]


@given(pairs(), SOME, SHARE, st.integers(1, 8))
def test_a_shorter_answer_is_the_beginning_of_a_longer_one(
    both: Pair, fusion: FusionName, share: float, limit: int
) -> None:
    longer = merge(fusion, both, 20, coverage=share, calibration=CALIBRATION)
    assert merge(fusion, both, limit, coverage=share, calibration=CALIBRATION) == longer[:limit]


@given(HITS, SOME)
def test_at_none_migrated_it_is_the_old_answer_and_at_all_the_new_one(hits: list[Hit], fusion: FusionName) -> None:
    alone = [one for one in hits if one.offset == 0]
    order = shown(merge("places", Pair(alone, [], {}, {}), 20, coverage=0.0))
    assert shown(merge(fusion, Pair(alone, [], {}, {}), 20, coverage=0.0, calibration=CALIBRATION)) == order
    held = {one.doc_id: 0 for one in alone}
    reverse = [hit(one.doc_id, 1 - one.score) for one in alone]
    both = Pair(reverse, alone, held, held)
    if fusion != "reciprocal":  # it never forgets the old ranking: what the default must not do
        assert shown(merge(fusion, both, 20, coverage=1.0, calibration=CALIBRATION)) == order


# --- places ---


@pytest.mark.parametrize(
    ("old", "new", "moved", "expected"),
    [
        ("abcd", "", "", "abcd"),
        ("abcd", "db", "", "adcb"),  # b and d have moved: their places go to d, then b
        ("abcd", "dcba", "", "dcba"),
        ("abcd", "xb", "", "axcdb"),  # x was not near in the old space; b follows, in the place after the last
        ("abcd", "x", "b", "axcdb"),  # b has moved, and the new space did not find it: it comes last
        ("", "xy", "", "xy"),
    ],
)
def test_places(old: str, new: str, moved: str, expected: str) -> None:
    merged = merge(
        "places", pair(ranked(old), ranked(new), old_at="x" if "x" in new else "", new_at=moved), 10, coverage=0.5
    )
    assert shown(merged) == expected


def test_a_document_that_has_not_moved_keeps_its_place() -> None:
    merged = merge("places", pair(ranked("abcdefgh"), ranked("hfdb"), new_at="bdfh"), 10, coverage=0.5)
    assert [one.hit.doc_id for one in merged][::2] == list("aceg")
    assert [one.side for one in merged] == ["old", "new"] * 4


def test_a_stale_form_gives_its_place_to_what_has_moved() -> None:
    """b was changed: the new space has the newer form and ranks it last, the old space is behind."""
    merged = merge("places", pair(ranked("abc"), [hit("d", 0.9), hit("b", 0.2, offset=7)]), 10, coverage=0.5)
    assert shown(merged) == "adcb"
    assert merged[3].hit.offset == 7


def test_a_newer_form_that_the_new_space_did_not_find_takes_the_old_one_away() -> None:
    stale = Pair(ranked("ab"), ranked("c"), {}, {"a": 9})
    for fusion in FUSIONS:
        assert "a" not in shown(merge(fusion, stale, 10, coverage=0.9, calibration=CALIBRATION))


def test_a_new_space_that_is_behind_does_not_bring_an_old_text_back() -> None:
    behind = Pair([hit("a", 0.9, offset=9)], [hit("a", 0.99, offset=3)], {}, {})
    for fusion in FUSIONS:
        (one,) = merge(fusion, behind, 10, coverage=1.0, calibration=CALIBRATION)
        assert (one.side, one.hit.offset) == ("old", 9)


# --- the others ---


def test_reciprocal_rank_is_the_sum_over_both_lists() -> None:
    merged = merge("reciprocal", pair(ranked("abc"), ranked("cbd")), 10, coverage=0.5)
    scores: Mapping[str, float] = {
        "a": 1 / (RANK_CONSTANT + 1),
        "b": 1 / (RANK_CONSTANT + 2) + 1 / (RANK_CONSTANT + 2),
        "c": 1 / (RANK_CONSTANT + 3) + 1 / (RANK_CONSTANT + 1),
        "d": 1 / (RANK_CONSTANT + 3),
    }
    assert shown(merged) == "".join(sorted(scores, key=lambda key: -scores[key]))


def test_the_weight_of_the_new_space_is_its_coverage() -> None:
    both = pair([hit("a", 0.9), hit("b", 0.5), hit("z", 0.1)], [hit("b", 0.9), hit("a", 0.1)])
    assert shown(merge("weighted", both, 2, coverage=0.1)) == "ab"
    assert shown(merge("weighted", both, 2, coverage=0.9)) == "ba"


def test_calibrated_scores_of_two_models_stand_on_one_scale() -> None:
    """The old model gives 0.9 to anything, the new one is sparing: as they are, its best hit would come last."""
    scale = Calibration(Scale(0.9, 0.01), Scale(0.3, 0.1))
    both = pair([hit("a", 0.91), hit("b", 0.89)], [hit("c", 0.5)])
    assert shown(merge("calibrated", both, 3, coverage=0.5, calibration=scale)) == "cab"
    assert shown(merge("calibrated", both, 3, coverage=0.5)) == shown(merge("places", both, 3, coverage=0.5))


def test_a_calibration_needs_pairs_that_differ() -> None:
    enough = [(0.1 * (at % 10), 0.5 + 0.01 * (at % 10)) for at in range(FEWEST_PAIRS)]
    found = calibration_of(enough)
    assert found is not None
    assert found.old.of(0.45) == pytest.approx(0.0)
    assert found.new.of(0.545) == pytest.approx(0.0)
    assert found.old.of(0.9) == pytest.approx(found.new.of(0.59))
    assert calibration_of(enough[1:]) is None
    assert calibration_of([(0.5, one) for _, one in enough]) is None
    assert calibration_of([(float("nan"), 0.5)] * 200) is None
    assert calibration_of([]) is None


def test_depths() -> None:
    assert depth_of("places", 10) == 20
    assert depth_of("reciprocal", 10) == 50
    assert depth_of("calibrated", 100) == 200
