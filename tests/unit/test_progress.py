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
    assert counters.live_resolved_during_replay == 5


def test_live_after_the_replay_is_counted_apart() -> None:
    counters = Counters()
    counters.resolved(Lane.LIVE, Outcome.WRITTEN, replaying=False)
    assert (counters.live_resolved, counters.live_resolved_during_replay) == (1, 0)


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


def test_the_rate_is_measured_from_step_to_step() -> None:
    rate = Rate(window_s=10.0)
    assert rate.observe(0, 0.0) == 0.0
    assert rate.observe(50, 5.0) == 0.0, "nobody knows when the first batch began"
    assert rate.observe(50, 9.0) == 0.0
    assert rate.observe(100, 10.0) == pytest.approx(10.0)
    assert rate.observe(100, 14.0) == pytest.approx(10.0), "no longer than the last one took"
    assert rate.observe(100, 20.0) == pytest.approx(5.0), "a standstill"
    rate.rest()
    assert rate.observe(150, 1000.0) == pytest.approx(10.0), "held on purpose: neither that time nor what came counts"
    assert rate.observe(0, 1001.0) == pytest.approx(10.0), "counted anew by another owner"


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


def test_the_whole_is_the_sum() -> None:
    """Two that replay, 5 documents left each at 2 a second: together 10 left at 4 a second."""
    whole = combine("v2", [record(0), record(1), record(2, eta_s=99.0, replay_done=True)], 3, 11)
    assert whole is not None
    assert (whole.total, whole.completed, whole.progress) == (30, 15, 0.5)
    assert (whole.rate_per_s, whole.eta_s, whole.live_lag) == (4.0, 2.5, 12)
    assert (whole.planned, whole.replay_done, whole.updated_at, whole.partition) == (True, False, 11, None)
    assert whole.counted().written == 9


def test_nothing_is_promised_before_every_partition_was_planned() -> None:
    assert combine("v2", [], 2, 0) is None
    one = combine("v2", [record(0)], 2, 0)
    assert one is not None
    assert (one.planned, one.eta_s, one.replay_done) == (False, None, False)
    two = combine("v2", [record(0, rate_per_s=0.0, eta_s=None), record(1, rate_per_s=0.0, eta_s=None)], 2, 0)
    assert two is not None
    assert two.eta_s is None
    nearly = combine("v2", [record(0, total=5, counters={"total": 5, "completed": 5})], 1, 0)
    assert nearly is not None
    assert nearly.eta_s is None, "everything is counted, and yet it is not done: nobody knows how long that takes"
    empty = combine("v2", [record(0, counters={}, replay_done=True)], 1, 0)
    assert empty is not None
    assert (empty.progress, empty.eta_s, empty.replay_done) == (1.0, 0.0, True)


@pytest.mark.parametrize("status", ["failed", "waiting", "paused"])
def test_the_whole_shows_what_holds_a_partition(status: Status) -> None:
    whole = combine("v2", [record(0), record(1, status=status, reason="why")], 2, 0)
    assert whole is not None
    assert (whole.status, whole.reason) == (status, "why")


def test_the_whole_gives_the_reason_of_what_still_replays() -> None:
    whole = combine("v2", [record(0, replay_done=True), record(1), record(2, reason="held at 5 documents/s")], 3, 0)
    assert whole is not None
    assert (whole.status, whole.reason) == ("building", "held at 5 documents/s")
