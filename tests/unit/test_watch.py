"""The watch after a cutover, as a pure decision: which bound is crossed, and when it counts."""

from __future__ import annotations

from typing import Literal

import pytest

from streams.migration.watch import Answered, Step, after, crossed, next_step, sample_of
from streams.state import Bounds, Sample, Watching

BOUNDS = Bounds(every_s=1, max_zero_results=0.02, max_errors=0.01, max_latency_ratio=2.0, rollback=True)
BEFORE = Sample(asked=100, zero=0, errors=0, p95_ms=50.0)


def now(*, zero: int = 0, errors: int = 0, p95_ms: float | None = 50.0) -> Sample:
    return Sample(asked=100, zero=zero, errors=errors, p95_ms=p95_ms)


Result = Literal["watching", "crossed", "not rolled back"]


def watching(result: Result = "watching", before: Sample | None = BEFORE) -> Watching:
    return Watching(
        version="v2", epoch=2, previous="v1", swap_id="s", since_ms=0, until_ms=1000, bounds=BOUNDS, before=before,
        result=result, reason="",
    )  # fmt: skip


def test_a_sample_counts_and_takes_the_nearest_rank() -> None:
    answers = [Answered(3, float(ms)) for ms in range(1, 21)]
    assert sample_of(answers) == Sample(asked=20, zero=0, errors=0, p95_ms=19.0)
    assert sample_of([Answered(None, 9000.0), Answered(0, 4.0)]) == Sample(asked=2, zero=1, errors=1, p95_ms=4.0)
    assert sample_of([Answered(None, 1.0)]).p95_ms is None


@pytest.mark.parametrize(
    ("look", "said"),
    [
        (now(), None),
        (now(zero=2), None),
        (now(zero=3), "3 of 100 queries found nothing, more than 2.0%"),
        (now(errors=1), None),
        (now(errors=2), "2 of 100 queries failed, more than 1.0%"),
        (now(errors=100, p95_ms=None), "100 of 100 queries failed, more than 1.0%"),
        (now(p95_ms=100.0), None),
        (now(p95_ms=101.0), "the 95th percentile is 101 ms, more than 100 (before: 50)"),
    ],
)
def test_bounds(look: Sample, said: str | None) -> None:
    assert crossed(BEFORE, look, BOUNDS) == said


def test_what_was_as_bad_before_is_not_the_new_versions_doing() -> None:
    bad = now(zero=10, errors=10)
    assert crossed(bad, bad, BOUNDS) is None
    assert crossed(bad, now(zero=11, errors=10), BOUNDS) == "11 of 100 queries found nothing, more than 2.0%"
    assert crossed(None, now(p95_ms=9000.0), BOUNDS) is None, "nothing was there to be slower than"
    assert crossed(None, now(zero=100), BOUNDS) is not None


def test_a_few_milliseconds_are_no_latency() -> None:
    quick = BEFORE.model_copy(update={"p95_ms": 3.0})
    assert crossed(quick, now(p95_ms=40.0), BOUNDS) is None
    assert crossed(quick, now(p95_ms=41.0), BOUNDS) is not None


def test_a_bound_counts_when_two_looks_in_a_row_are_beyond_one() -> None:
    bad, worse, good = now(zero=50), now(errors=50), now()
    assert next_step(watching(), [bad], 10) is None
    assert next_step(watching(), [bad, good], 10) is None
    assert next_step(watching(), [good, bad], 10) is None
    assert next_step(watching(), [bad, worse], 10) == Step("crossed", "50 of 100 queries failed, more than 1.0%")
    assert next_step(watching("crossed"), [bad, worse], 10) is None, "it is said once"
    assert next_step(watching("crossed"), [bad, good], 10) is None
    assert next_step(watching("crossed"), [good, good], 10) == Step("calm")
    assert next_step(watching("not rolled back"), [bad, bad], 10) is None


def test_a_watch_ends_in_time_and_says_how() -> None:
    assert next_step(watching(), [now(), now()], 999) is None
    over = next_step(watching(), [], 1000)
    assert over == Step("over")
    assert after(watching(), over).result == "quiet"
    assert after(watching("crossed"), over).result == "ended"
    last = next_step(watching(), [now(zero=50), now(zero=50)], 1000)
    assert last is not None
    assert last.to == "crossed", "what the last look found is not lost to the end"
    there = after(watching(), last)
    assert (there.result, there.reason) == ("crossed", "50 of 100 queries found nothing, more than 2.0%")
    calm = after(there, Step("calm"))
    assert calm.result == "watching"
    assert calm.reason.startswith("within the bounds again; before: 50 of 100")
