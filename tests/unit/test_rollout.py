"""Who is in a rollout, and what a step's queries make of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.config_operation import Rollout
from streams.search.rolling import KEPT_MS, Rollouts, observed, outdated
from streams.search.rollout import (
    Latency,
    Observed,
    Pair,
    Seen,
    Standing,
    advance,
    compared_with,
    failed_bound,
    is_in,
    place_of,
    raised,
)
from streams.search.tallies import LEAST_MS, MOST_SLICES, SearchesRecord, add_time, added, p95_of, step_of
from streams.state import BuildState, RolloutState
from streams.versions import Stage

BOUNDS = Rollout(automatic=True, steps=[0.1, 0.5, 1.0], every_s=60, min_queries=10, share=0.1)
GOOD = Observed(100, 0, 0, 30.0)
FINE = Seen(Pair(GOOD, GOOD), Pair(GOOD, GOOD))


@given(st.text(), st.floats(0, 1), st.floats(0, 1))
def test_who_is_in_stays_in_as_the_share_grows(caller: str, one: float, other: float) -> None:
    small, large = sorted((one, other))
    assert not is_in(caller, "docs/v2/2", small) or is_in(caller, "docs/v2/2", large)
    assert not is_in(caller, "docs/v2/2", 0.0)
    assert is_in(caller, "docs/v2/2", 1.0)


def test_the_share_of_callers_is_the_share_asked_for() -> None:
    places = sorted(place_of(f"caller {at}", "docs/v2/2") for at in range(10_000))
    assert all(abs(place - at / 10_000) < 0.03 for at, place in enumerate(places))


def test_it_is_stable_and_differs_between_builds() -> None:
    """Written down: another hash would move every caller at an upgrade of Crossfade."""
    assert place_of("anna", "docs/v2/2") == pytest.approx(0.6034468, abs=1e-6)
    both = [is_in(f"c{at}", "docs/v2/2", 0.5) == is_in(f"c{at}", "docs/v3/3", 0.5) for at in range(1000)]
    assert 400 < sum(both) < 600


@pytest.mark.parametrize(
    ("new", "serving", "said"),
    [
        (GOOD, GOOD, ""),
        (Observed(9, 9, 0, None), GOOD, ""),  # too few to judge
        (Observed(100, 2, 0, 30.0), GOOD, "max_errors"),
        (Observed(100, 1, 0, 30.0), GOOD, ""),
        (Observed(100, 0, 3, 30.0), GOOD, "max_zero_results"),
        (Observed(100, 0, 0, 61.0), GOOD, "max_latency_ratio"),
        (Observed(100, 0, 0, 39.0), Observed(100, 0, 0, 1.0), ""),  # both are fast
        (Observed(100, 0, 0, 41.0), Observed(100, 0, 0, 1.0), "max_latency_ratio"),
        (Observed(100, 0, 0, 500.0), Observed(), ""),  # nothing to compare with
    ],
)
def test_bounds(new: Observed, serving: Observed, said: str) -> None:
    found = failed_bound(BOUNDS, Seen(Pair(new, serving), Pair(new, serving)))
    assert bool(found) == bool(said)
    assert said in found


LONG = Pair(Observed(100_000, 100, 100, 30.0), Observed(100_000, 0, 0, 30.0))


@pytest.mark.parametrize(
    ("recent", "said"),
    [
        (GOOD, ""),
        (Observed(9, 9, 0, None), ""),  # too few to judge
        (Observed(100, 50, 0, 30.0), "50.0% of its queries of the last 300 s failed, above max_errors 1.0%"),
        (Observed(100, 3, 0, 30.0), ""),  # of a hundred that fail as often as they may, as many fail by chance
        (Observed(100, 4, 0, 30.0), "max_errors"),
        (Observed(100_000, 1_100, 0, 30.0), "max_errors"),  # of many not
        (Observed(100, 0, 20, 30.0), "of the last 300 s found nothing, above max_zero_results"),
        (Observed(100, 0, 0, 61.0), "queries of the last 300 s took up to 61 ms, above 60 ms (max_latency_ratio 2; the "
         "serving version took 30 ms meanwhile)"),
    ],
)  # fmt: skip
def test_the_last_window_of_a_long_step_is_judged_too(recent: Observed, said: str) -> None:
    found = failed_bound(BOUNDS, Seen(LONG, Pair(recent, GOOD)))
    assert bool(found) == bool(said)
    assert said in found


def test_no_error_at_all_is_allowed_where_the_bound_is_none() -> None:
    none = BOUNDS.model_copy(update={"max_errors": 0.0})
    assert failed_bound(none, Seen(Pair(GOOD, GOOD), Pair(Observed(100, 1, 0, 30.0), GOOD)))


def test_latency_is_compared_with_the_same_time_or_else_with_the_next_best() -> None:
    few, none = Observed(2, 0, 0, 40.0), Observed()
    before = Latency(25.0, 80, "at step 2, with 50.0% of the callers")

    def by(seen: Seen, *, recent: bool = False) -> tuple[float, str] | None:
        found = compared_with(BOUNDS, seen, recent=recent)
        return None if found is None else (found.p95_ms, found.when)

    assert by(Seen(Pair(GOOD, GOOD), Pair(GOOD, GOOD), before), recent=True) == (30.0, "meanwhile")
    assert by(Seen(Pair(GOOD, GOOD), Pair(GOOD, few), before), recent=True) == (30.0, "at this step")
    assert by(Seen(Pair(GOOD, few), Pair(GOOD, few), before), recent=True) == (25.0, before.when)
    assert by(Seen(Pair(GOOD, few), Pair(GOOD, none), before)) == (25.0, before.when)
    assert by(Seen(Pair(GOOD, few), Pair(GOOD, none))) == (40.0, "at this step"), "better than nothing"
    assert by(Seen(Pair(GOOD, none), Pair(GOOD, none))) is None
    slow = Pair(Observed(100, 0, 0, 61.0), none)
    assert "the serving version took 25 ms at step 2" in failed_bound(BOUNDS, Seen(slow, slow, before))


def test_it_is_raised_when_its_time_and_its_queries_are_there() -> None:
    at = Standing(0.1, 0.0)
    assert advance(at, BOUNDS, FINE, 59.9) == at
    assert advance(at, BOUNDS, Seen(Pair(Observed(9), GOOD)), 61.0) == at
    assert advance(at, BOUNDS, FINE, 60.0) == Standing(0.5, 60.0)
    assert advance(Standing(1.0, 0.0), BOUNDS, FINE, 999.0) == Standing(1.0, 0.0)
    by_hand = BOUNDS.model_copy(update={"automatic": False})
    assert advance(at, by_hand, FINE, 999.0) == at


def test_a_failed_bound_takes_it_back_to_none_also_by_hand_and_it_stays() -> None:
    by_hand = BOUNDS.model_copy(update={"automatic": False})
    bad = Observed(100, 50, 0, 30.0)
    for bounds in (BOUNDS, by_hand):
        fallen = advance(Standing(0.5, 0.0), bounds, Seen(Pair(bad, GOOD)), 5.0)
        assert fallen.share == 0
        assert "max_errors" in fallen.stopped
        assert advance(fallen, bounds, FINE, 1000.0) == fallen
    assert raised(fallen, BOUNDS, 2000.0) == Standing(0.1, 2000.0), "a person may begin again"


COMING = BuildState(
    collection="docs", version="v2", epoch=2, stage=Stage.READY, envelope={}, fingerprint="f", space="S", topic="t"
)


def add(rollouts: Rollouts, step: int, *, new: bool, hits: int | None, took_ms: float, at_ms: int = 0) -> None:
    rollouts.add(COMING, step, new=new, hits=hits, took_ms=took_ms, at_ms=at_ms, window_s=300)


def record(rollouts: Rollouts, replica: str) -> SearchesRecord:
    """As it comes out of the topic again."""
    written = SearchesRecord(collection="docs", replica=replica, rollout=rollouts.tallies()["docs"], updated_at=5)
    return SearchesRecord.model_validate_json(written.to_bytes())


def test_what_several_servers_count_of_one_step_is_added_up() -> None:
    one, other, late = Rollouts(), Rollouts(), Rollouts()
    for took_ms in (10.0, 20.0, 30.0):
        add(one, 3, new=True, hits=5, took_ms=took_ms)
    add(other, 3, new=True, hits=0, took_ms=40.0)
    add(other, 3, new=True, hits=None, took_ms=5_000.0)
    add(other, 3, new=False, hits=5, took_ms=8.0)
    add(late, 2, new=True, hits=None, took_ms=1.0)
    step = step_of([record(one, "a"), record(other, "b"), record(late, "c")], "v2", 2, 3)
    assert step.replicas == 2
    new = observed(step.new)
    assert (new.queries, new.errors, new.zero) == (5, 1, 1)
    assert new.p95_ms is not None
    assert 40.0 <= new.p95_ms <= 42.0, "one that failed has no time"
    assert observed(step.serving).queries == 1
    assert step_of([record(one, "a")], "v2", 3, 3).replicas == 0, "another build of the version"
    assert step_of([record(one, "a")], "v3", 2, 3).replicas == 0


def test_each_step_has_figures_of_its_own() -> None:
    rollouts = Rollouts()
    add(rollouts, 1, new=True, hits=None, took_ms=10)
    add(rollouts, 2, new=True, hits=5, took_ms=10)
    assert step_of([record(rollouts, "a")], "v2", 2, 1).replicas == 0
    assert step_of([record(rollouts, "a")], "v2", 2, 2).new.errors == 0


def test_the_last_window_is_added_up_from_slices_and_what_is_kept_of_it_is_bounded() -> None:
    one, other = Rollouts(), Rollouts()
    for minute in range(600):
        add(one, 1, new=True, hits=5, took_ms=10, at_ms=minute * 60_000)
    for minute in range(0, 600, 10):
        add(other, 1, new=False, hits=None, took_ms=10, at_ms=minute * 60_000)
    records = [record(one, "a"), record(other, "b")]
    tally = records[0].rollout
    assert tally is not None
    assert len(tally.slices) == MOST_SLICES

    def since(minutes: int) -> tuple[int, int, int]:
        step = step_of(records, "v2", 2, 1, since_ms=(600 - minutes) * 60_000)
        return step.new.queries, step.serving.errors, step.replicas

    assert since(5) == (5, 0, 1)
    assert since(15) == (6, 1, 2), "no more of it is kept than a window"
    assert since(0) == (0, 0, 0)
    assert step_of(records, "v2", 2, 1).new.queries == 600
    add(one, 1, new=True, hits=5, took_ms=10, at_ms=60_000)  # the clock was put back
    tally = record(one, "a").rollout
    assert tally is not None
    assert (tally.slices[-1].from_ms, tally.slices[-1].new.queries) == (60_000, 1)


@given(st.lists(st.floats(0.001, 1e7), min_size=1, max_size=50), st.integers(1, 5))
def test_a_percentile_of_buckets_is_the_true_one_or_up_to_5_percent_above_it(times: list[float], servers: int) -> None:
    buckets: list[dict[int, int]] = [{} for _ in range(servers)]
    for at, took_ms in enumerate(times):
        add_time(buckets[at % servers], took_ms)
    together: dict[int, int] = {}
    for one in buckets:
        together = added(together, one)
    found, true = p95_of(together), sorted(times)[(95 * len(times) - 1) // 100]
    assert found is not None
    assert p95_of({}) is None
    assert true <= found * (1 + 1e-9)
    assert found <= max(true * 1.05 * (1 + 1e-9), LEAST_MS)


def test_what_an_ended_server_counted_goes_once_nothing_is_judged_by_it() -> None:
    rollouts = Rollouts()
    add(rollouts, 1, new=True, hits=5, took_ms=10)
    old = record(rollouts, "a")
    at_it = COMING.model_copy(update={"rollout": RolloutState(share=0.1, step=1, since_ms=0, configured=0.1)})
    beyond = COMING.model_copy(update={"rollout": RolloutState(share=0.5, step=2, since_ms=0, configured=0.1)})
    assert not outdated(old, [at_it], 10 * KEPT_MS)
    assert outdated(old, [beyond], 10 * KEPT_MS)
    assert outdated(old, [at_it.model_copy(update={"stage": Stage.SERVING})], 10 * KEPT_MS)
    assert not outdated(old, [beyond], 10)
