"""The course of a build: bounded however long it lasts, exact where it has points, and gone on with by the next one."""

from __future__ import annotations

import pytest

from connectors.protocols import Record
from streams.migration.series import (
    AFTER_POINTS,
    REPLAY_POINTS,
    RUNS_KEPT,
    WAITS_KEPT,
    Chronicle,
    Point,
    Sampler,
    SeriesRecord,
    is_series,
    series_key,
)
from streams.progress import Counters, ProgressRecord, combine
from streams.state import BuildState
from streams.versions import Stage
from streams.views import ProgressView

START = 1_700_000_000_000


def point(second: int, lag: int = 0) -> Point:
    return Point(START + 1000 * second, 10 * second, 1_000_000, second, lag, 100 * second, 7 * second)


def part(second: int, **more: object) -> ProgressRecord:
    done = min(10 * second, 1000)
    counters = Counters(total=1000, completed=done, live_resolved=second, tokens=5 * done, spent_nano_usd=done)
    fields: dict[str, object] = {
        "name": "v2",
        "epoch": 3,
        "partition": 0,
        "status": "building",
        "progress": done / 1000,
        "total": 1000,
        "completed": done,
        "rate_per_s": 10.0,
        "eta_s": None,
        "changed_mid_migration": 0,
        "unchanged_skipped": 0,
        "dead_letters": 0,
        "live_lag": 0,
        "planned": True,
        "counters": counters.as_dict(),
        "worker": "a-1",
        "running_since": START,
        "updated_at": START + 1000 * second,
        **more,
    }
    return ProgressRecord.model_validate(fields)


def look(chronicle: Chronicle, second: int, **more: object) -> bool:
    one = part(second, **more)
    now_ms = START + 1000 * second
    whole = combine("v2", [one], 1, now_ms)
    assert whole is not None
    return chronicle.look(whole, [one], now_ms)


@pytest.mark.parametrize("most", [3, 4, 10, 400])
def test_a_sampler_is_bounded_and_loses_neither_end_nor_the_highest_lag(most: int) -> None:
    sampler = Sampler(most)
    for second in range(5000):
        sampler.take(point(second, lag=900 if second == 1234 else second % 5))
        assert len(sampler) < most
        assert sampler.track.points[0].at_ms == START
    kept = sampler.track
    assert max(p.lag for p in kept.points) == 900
    assert all(p == point((p.at_ms - START) // 1000, p.lag) for p in kept.points), "no count is made up"
    gaps = [b.at_ms - a.at_ms for a, b in zip(kept.points, kept.points[1:], strict=False)]
    assert all(kept.every_ms / 2 <= gap <= 2 * kept.every_ms for gap in gaps)
    assert kept.points[-1].at_ms >= START + 1000 * 4999 - 2 * kept.every_ms
    assert kept.every_ms >= 1000 * 5000 / most


def test_the_next_sampler_goes_on_at_the_same_pace() -> None:
    first = Sampler(10)
    for second in range(100):
        first.take(point(second))
    second_one = Sampler(10, first.track)
    assert second_one.track == first.track
    assert not second_one.take(point(99))


def test_a_long_replay_and_a_long_time_after_it_stay_apart_and_small() -> None:
    chronicle = Chronicle(3, START)
    published = 0
    for second in range(3 * 3600):
        done = second >= 3600
        if look(chronicle, second, replay_done=done, status="serving" if done else "building"):
            published += 1
            chronicle.published(START + 1000 * second)
    record = chronicle.record
    assert REPLAY_POINTS / 3 < len(record.replay.points) <= REPLAY_POINTS
    assert AFTER_POINTS / 3 < len(record.after.points) <= AFTER_POINTS
    assert record.replay.points[-1].at_ms == START + 3_600_000, "the very end of the replay is kept"
    assert record.after.points[0].at_ms == START + 3_600_000
    assert published < 900
    assert len(record.to_bytes()) < 60_000
    assert SeriesRecord.model_validate_json(record.to_bytes()) == record


def test_time_is_put_down_to_the_reason_given_and_numbers_make_no_new_one() -> None:
    chronicle = Chronicle(3, START)
    for second in range(1, 61):
        held = 10 < second <= 30 or 40 < second <= 50
        more = {"status": "waiting", "reason": f"live lag {1000 + second} is above 1,000"} if held else {}
        look(chronicle, second, **more)
    (wait,) = chronicle.record.waits
    assert (wait.status, wait.times, wait.lasted_ms) == ("waiting", 2, 30_000)
    assert wait.reason == "live lag 1011 is above 1,000"
    assert (wait.first_ms, wait.last_ms) == (START + 11_000, START + 51_000)


def test_time_that_nobody_saw_is_nobodys() -> None:
    chronicle = Chronicle(3, START)
    look(chronicle, 1, status="paused", reason="paused (replay)")
    look(chronicle, 2, status="paused", reason="paused (replay)")
    after = Chronicle(3, START + 300_000, chronicle.record)
    look(after, 302, status="paused", reason="paused (replay)")
    look(after, 304, status="paused", reason="paused (replay)")
    (wait,) = after.record.waits
    assert wait.lasted_ms == 3_000
    assert after.record.unseen_ms == 300_000

    silent = part(304)
    whole = combine("v2", [silent], 1, START + 340_000)
    assert whole is not None
    after.look(whole, [silent], START + 340_000)
    assert after.record.unseen_ms == 336_000
    assert after.record.replay.points[-1].at_ms == START + 304_000, "what a silent worker said last is no point"


def test_workers_and_their_starts_are_named_and_bounded() -> None:
    chronicle = Chronicle(3, START)
    look(chronicle, 1)
    look(chronicle, 2, worker="b-2", running_since=START + 2000)
    look(chronicle, 3, worker="b-2", running_since=START + 2000)
    record = chronicle.record
    assert [(run.worker, run.last_ms) for run in record.runs] == [("a-1", START + 1000), ("b-2", START + 3000)]
    assert record.starts == 2
    for second in range(4, 200):
        look(
            chronicle,
            second,
            worker=f"c-{second}",
            running_since=second,
            reason="x" * 900 + str(second),
            status="waiting",
        )
        look(chronicle, second, status="waiting", reason="".join(chr(97 + (second // 26**i) % 26) for i in range(3)))
    record = chronicle.record
    assert len(record.runs) == RUNS_KEPT
    assert record.starts == 198
    assert len(record.waits) <= WAITS_KEPT
    assert max(len(wait.reason) for wait in record.waits) <= 160


def test_it_is_published_at_most_every_ten_seconds_and_when_the_replay_ends() -> None:
    chronicle = Chronicle(3, START)
    due = []
    for second in range(1, 32):
        if look(chronicle, second):
            due.append(second)
            chronicle.published(START + 1000 * second)
    assert due == [1, 11, 21, 31]
    assert look(chronicle, 33, replay_done=True), "the end of the replay does not wait"


class _Tail:
    """Nothing comes."""

    caught_up = True

    async def start(self) -> None: ...

    async def read(self, timeout_s: float) -> list[Record]:
        return []

    async def close(self) -> None: ...


def test_a_view_keeps_it_apart_from_the_progress_and_reads_it_for_its_own_epoch(
    caplog: pytest.LogCaptureFixture,
) -> None:
    view = ProgressView(_Tail())
    chronicle = Chronicle(3, START)
    look(chronicle, 1)
    build = BuildState(
        collection="docs",
        version="v2",
        epoch=3,
        stage=Stage.BUILDING,
        envelope={},
        fingerprint="f" * 12,
        space="S",
        topic="t",
        partitions=1,
    )
    key = series_key(build.key, 3)
    assert is_series(key)
    assert not any(is_series(other) for other in ("docs/v2", "docs/v2/0", "docs/v2/3/0"))
    view._apply(key, chronicle.record.to_bytes())
    view._apply("docs/v2/0", part(1).to_bytes())
    assert list(view.records) == ["docs/v2/0"]
    assert view.series(build) == chronicle.record
    assert view.series(build.model_copy(update={"epoch": 4})) is None
    assert not caplog.records
    view._apply(key, b"{}")
    assert view.series(build) is None
    assert "cannot be read" in caplog.text
    view._apply(key, None)
    assert view.series(build) is None
