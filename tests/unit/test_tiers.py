"""The order of a replay: each document in exactly one pass, listed ones by rank, and a hash that tells orders apart."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.protocols import Commit
from streams.config_operation import TierName
from streams.documents import key_digest
from streams.key_index import KeyIndex, KeyIndexBuilder
from streams.replay import Place, ReplayCommit, resume
from streams.tiers import ONE_TIER, Passes, arrange

TIERS = st.lists(st.sampled_from(["listed", "newest", "rest"]), unique=True)
EVENTS = st.lists(st.tuples(st.integers(0, 15), st.booleans()), max_size=60)
LISTED = st.dictionaries(st.integers(0, 20), st.floats(0, 100), max_size=15)


def digest(key: int) -> bytes:
    return key_digest(str(key).encode())


def index_of(events: Sequence[tuple[int, bool]]) -> KeyIndex:
    builder = KeyIndexBuilder()
    builder.add([digest(key) for key, _ in events], range(len(events)), [gone for _, gone in events])
    return builder.build()


def puts(count: int) -> KeyIndex:
    return index_of([(key, False) for key in range(count)])


@given(EVENTS, TIERS, LISTED, st.floats(0, 1))
def test_every_document_is_in_exactly_one_pass(
    events: list[tuple[int, bool]], tiers: list[TierName], listed: dict[int, float], newest: float
) -> None:
    index = index_of(events)
    weights = {digest(key): weight for key, weight in listed.items()}
    passes = arrange(index, tiers, weights, newest, first_band=2)
    offsets = [offset for one in passes.passes for offset in one.offsets.tolist()]
    assert sorted(offsets) == index.document_offsets().tolist()
    assert passes.documents == index.documents
    assert passes[len(passes) - 1].tier == "rest"
    assert all(len(one) for one in passes.passes[:-1])
    assert (passes.hash == ONE_TIER) == (len(passes) == 1)
    for one in passes.passes:
        assert one.offsets.tolist() == sorted(one.offsets.tolist())
        assert one.holds(range(len(events))).tolist() == [n in set(one.offsets.tolist()) for n in range(len(events))]


def test_listed_keys_go_in_bands_by_rank_then_the_newest_then_the_rest() -> None:
    listed = {digest(key): float(weight) for key, weight in ((7, 50), (1, 90), (3, 40), (99, 1000))}
    passes = arrange(puts(10), ("listed", "newest"), listed, newest=0.3, first_band=2)
    assert [(one.tier, one.offsets.tolist()) for one in passes.passes] == [
        ("listed", [1]),  # 99 ranks first, and has no document: nobody takes its place
        ("listed", [3, 7]),
        ("newest", [6, 8, 9]),  # three of ten: 7 has gone before
        ("rest", [0, 2, 4, 5]),
    ]
    assert [one.begin for one in passes.passes] == [1, 3, 6, 0]
    assert [one.end for one in passes.passes] == [2, 8, 10, 6]
    other = arrange(puts(10), ("newest", "listed"), listed, newest=0.3, first_band=2)
    assert [one.tier for one in other.passes] == ["newest", "listed", "listed", "rest"]
    assert other[0].progress(100).weight == 50, "traffic goes with the document, whatever its tier"
    assert passes.hash != other.hash


def test_progress_and_traffic_below_an_offset() -> None:
    listed = {digest(key): float(10 - key) for key in range(4)}
    passes = arrange(puts(6), ("listed",), listed, first_band=100)
    done = passes[0].progress(2)
    assert (done.name, done.total, done.completed, done.weight, done.weight_completed) == ("listed", 4, 2, 34.0, 19.0)
    assert passes.completed(0, 2) == 2
    assert passes.completed(1, 5) == 5
    assert arrange(puts(6), ())[0].progress(3).weight == 0.0


def test_a_document_that_goes_changes_the_hash_only_where_the_order_changes() -> None:
    listed = {digest(key): 1.0 for key in (1, 2)}
    whole = arrange(puts(10), ("listed",), listed)
    without_another = index_of([(key, key == 9) for key in range(10)])
    without_a_listed = index_of([(key, key == 2) for key in range(10)])
    assert arrange(without_another, ("listed",), listed).hash == whole.hash
    assert arrange(without_a_listed, ("listed",), listed).hash != whole.hash


ONE = arrange(puts(10), ())
MANY = arrange(puts(10), ("newest",), newest=0.3)


@pytest.mark.parametrize(
    ("commit", "passes", "replayed", "place"),
    [
        (None, ONE, False, Place(0, 0)),
        (None, ONE, True, Place(0, 0, restarted=True, reordered=True)),
        (ReplayCommit(2), ONE, False, Place(0, 5)),
        (ReplayCommit(1), ONE, False, Place(0, 0)),
        (ReplayCommit(2, 1, MANY.hash), MANY, True, Place(1, 5)),
        (ReplayCommit(2, 1, MANY.hash, True), MANY, True, Place(1, 5, restarted=True)),
        (ReplayCommit(2, 1, "other"), MANY, True, Place(0, 0, restarted=True, reordered=True)),
        (ReplayCommit(2), MANY, True, Place(0, 0, restarted=True, reordered=True)),
    ],
)
def test_where_a_replay_goes_on(commit: ReplayCommit | None, passes: Passes, replayed: bool, place: Place) -> None:
    made = None if commit is None else Commit(5, commit.to_metadata())
    assert resume(made, 2, passes, replayed=replayed) == place


def test_commits_of_before_there_were_tiers_are_read() -> None:
    assert ReplayCommit.from_metadata('{"epoch":2,"tier":0,"tier_list_hash":"none"}') == ReplayCommit(2)
    assert ReplayCommit.from_metadata("") is None
