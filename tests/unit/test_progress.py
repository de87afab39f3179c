"""Counts, rates, ETAs, and the whole build's record from its partitions'."""

from __future__ import annotations

import pytest

from streams.ordering import Lane, Outcome
from streams.progress import Counters, ProgressRecord, Rate, Status, combine, eta_s


def record(partition: int = 0, **changes: object) -> ProgressRecord:
    raw: dict[str, object] = {
        "name": "v2", "epoch": 3, "partition": partition, "status": "building", "progress": 0.5, "total": 10,
        "completed": 5, "rate_per_s": 2.0, "eta_s": 2.5, "changed_mid_migration": 1, "unchanged_skipped": 0,
        "dead_letters": 0, "live_lag": 4, "planned": True, "updated_at": 7,
        "counters": {"total": 10, "completed": 5, "written": 3},
    }  # fmt: skip
    return ProgressRecord.model_validate({**raw, **changes})


def test_outcomes_are_counted_by_lane() -> None:
    counters = Counters()
    for lane in Lane:
        for outcome in Outcome:
            counters.resolved(lane, outcome, replaying=True)
    counters.suppressed(deleted=True)
    counters.suppressed(deleted=False)
    assert (counters.replayed, counters.live_resolved, counters.mended) == (5, 5, 5)
    assert counters.completed == 5 + 2, "written, refused and suppressed documents of the replay are accounted for"
    assert (counters.suppressed_by_live, counters.suppressed_by_live_delete) == (2, 1)
    assert (counters.written, counters.unchanged_skipped, counters.deleted) == (6, 3, 3)
    assert (counters.stale, counters.dead_letters) == (3, 3)
    assert counters.changed_mid_migration == 2, "live writes and deletes while the partition was replayed"


def test_live_after_the_replay_changes_nothing_mid_migration() -> None:
    counters = Counters()
    counters.resolved(Lane.LIVE, Outcome.WRITTEN, replaying=False)
    assert (counters.live_resolved, counters.live_resolved_during_replay, counters.changed_mid_migration) == (1, 0, 0)


def test_embeddings_by_lane() -> None:
    counters = Counters()
    for lane in (Lane.LIVE, Lane.REPLAY, Lane.REPLAY, Lane.MEND):
        counters.embedded(lane)
    assert (counters.embedded_live, counters.embedded_replay, counters.embedded_mend) == (1, 2, 1)


def test_counters_survive_the_progress_topic() -> None:
    counters = Counters(total=4, completed=2, stale=1)
    sent = record(counters=counters.as_dict()).to_bytes()
    assert ProgressRecord.model_validate_json(sent).counted() == counters
    assert b'"schema":1' in sent


def test_the_rate_follows_and_forgets_pauses() -> None:
    rate = Rate(window_s=10.0)
    assert rate.observe(0, 0.0) == 0.0
    assert rate.observe(50, 5.0) == pytest.approx(10.0), "the first interval counts fully"
    assert rate.observe(50, 5.0) == pytest.approx(10.0), "no time, no change"
    assert rate.observe(60, 10.0) == pytest.approx(10.0 + 0.5 * (2.0 - 10.0))
    rate.rest()
    assert rate.observe(60, 1000.0) == pytest.approx(6.0), "held on purpose: that time does not count"
    assert rate.observe(0, 1001.0) == pytest.approx(6.0), "counted anew by another owner"
    assert rate.observe(20, 1021.0) == pytest.approx(1.0), "a window later the past is forgotten"


@pytest.mark.parametrize(
    ("total", "completed", "rate", "held", "seconds"),
    [
        (10, 4, 2.0, None, 3.0),
        (10, 4, 2.0, 1.0, 6.0),
        (10, 4, 2.0, 9.0, 3.0),
        (10, 4, 0.0, None, None),
        (10, 10, 0.0, None, 0.0),
        (10, 12, 1.0, None, 0.0),
    ],
)
def test_the_eta(total: int, completed: int, rate: float, held: float | None, seconds: float | None) -> None:
    assert eta_s(total, completed, rate, held) == seconds


def test_the_whole_is_the_sum_and_as_slow_as_the_slowest() -> None:
    whole = combine("v2", [record(0), record(1, eta_s=9.0), record(2, eta_s=99.0, replay_done=True)], 3, 11)
    assert whole is not None
    assert (whole.total, whole.completed, whole.progress) == (30, 15, 0.5)
    assert (whole.rate_per_s, whole.eta_s, whole.live_lag) == (4.0, 9.0, 12)
    assert (whole.planned, whole.replay_done, whole.updated_at, whole.partition) == (True, False, 11, None)
    assert whole.counted().written == 9


def test_nothing_is_promised_before_every_partition_was_planned() -> None:
    assert combine("v2", [], 2, 0) is None
    one = combine("v2", [record(0)], 2, 0)
    assert one is not None
    assert (one.planned, one.eta_s, one.replay_done) == (False, None, False)
    two = combine("v2", [record(0), record(1, eta_s=None)], 2, 0)
    assert two is not None
    assert two.eta_s is None
    empty = combine("v2", [record(0, counters={}, replay_done=True)], 1, 0)
    assert empty is not None
    assert (empty.progress, empty.eta_s, empty.replay_done) == (1.0, 0.0, True)


@pytest.mark.parametrize("status", ["failed", "waiting", "paused"])
def test_the_whole_shows_what_holds_a_partition(status: Status) -> None:
    whole = combine("v2", [record(0), record(1, status=status, reason="why")], 2, 0)
    assert whole is not None
    assert (whole.status, whole.reason) == (status, "why")
