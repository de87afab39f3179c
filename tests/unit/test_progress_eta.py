"""Rate and ETA over a virtual clock: within 15% of the truth from 10% on at a constant rate, whatever the counts do.

Partitions report each second, in batches; what they share, and who holds whom, differs from test to test.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from streams.progress import ProgressRecord, Rate, Whole, combine

SHOWN_FROM = 0.10
WITHIN = 0.15

Pace = Callable[[float, list["Owner"]], list[float]]  # documents a second of each, now


@dataclass
class Owner:
    """One partition: work flows in evenly and is counted a batch at a time."""

    total: int
    batch: int = 1
    worker: str = "w1"
    done: float = 0.0
    rate: Rate = field(default_factory=Rate)

    @property
    def counted(self) -> int:
        whole = int(self.done + 1e-6)
        return self.total if whole >= self.total else whole - whole % self.batch

    @property
    def ended(self) -> bool:
        return self.counted >= self.total


def shared(total_rate: float) -> Pace:
    """One endpoint, split evenly among those that still replay."""
    return lambda _, owners: [0.0 if o.ended else total_rate / sum(not p.ended for p in owners) for o in owners]


def in_turn(total_rate: float) -> Pace:
    """One endpoint that takes one partition after the other."""

    def pace(_: float, owners: list[Owner]) -> list[float]:
        first = next((o for o in owners if not o.ended), None)
        return [total_rate if o is first else 0.0 for o in owners]

    return pace


def each_its_own(*rates: float) -> Pace:
    return lambda _, owners: [0.0 if o.ended else rate for o, rate in zip(owners, rates, strict=True)]


def held(replay_rate: float, *limits: float) -> Pace:
    """Held to a share of the replay rate each; `limits`: what each could do by itself."""

    def pace(_: float, owners: list[Owner]) -> list[float]:
        share = replay_rate / max(1, sum(not o.ended for o in owners))
        return [0.0 if o.ended else min(share, most) for o, most in zip(owners, limits, strict=True)]

    return pace


def record(number: int, owner: Owner, at_s: float, status: str = "building") -> ProgressRecord:
    return ProgressRecord.model_validate(
        {
            "name": "v2", "epoch": 1, "partition": number, "status": status, "progress": owner.counted / owner.total,
            "total": owner.total, "completed": owner.counted, "rate_per_s": owner.rate.per_s, "eta_s": None,
            "changed_mid_migration": 0, "unchanged_skipped": 0, "dead_letters": 0, "live_lag": 0, "planned": True,
            "replay_done": owner.ended, "worker": owner.worker, "updated_at": int(1000 * at_s),
            "counters": {"total": owner.total, "completed": owner.counted},
        }
    )  # fmt: skip


@dataclass(frozen=True)
class Seen:
    at_s: float
    progress: float
    eta_s: float | None


def simulate(owners: Sequence[Owner], pace: Pace, replay_rate: float | None = None) -> tuple[list[Seen], float]:
    """What was shown each second, and when the last partition ended. Ticks of a hundredth of a second."""
    now, looks, tick = 0, [], 0.01
    everyone, followed = list(owners), Whole()
    while not all(owner.ended for owner in everyone):
        if now % 100 == 0:
            for owner in everyone:
                owner.rate.observe(owner.counted, now * tick)
            records = [record(n, owner, now * tick) for n, owner in enumerate(everyone)]
            whole = followed.combine("v2", records, len(everyone), int(now * tick * 1000), replay_rate)
            assert whole is not None
            looks.append(Seen(now * tick, whole.progress, whole.eta_s))
        for owner, rate in zip(everyone, pace(now * tick, everyone), strict=True):
            owner.done += rate * tick
        now += 1
        assert now < 10_000_000, "the simulation does not end"
    return looks, now * tick


def worst(looks: Sequence[Seen], end_s: float, a_batch_s: float) -> float:
    """The largest relative error from 10% on. Nobody sees into a batch under way: its time, and a report's second, are
    given away, which matters at the very end only."""
    errors, slack_s = [], a_batch_s + 1.0
    for seen in looks:
        left_s = end_s - seen.at_s
        if seen.progress >= SHOWN_FROM:
            assert seen.eta_s is not None, seen
            errors.append(max(0.0, abs(seen.eta_s - left_s) - slack_s) / left_s)
    assert errors
    return max(errors)


CASES: dict[str, tuple[list[Owner], Pace, float | None]] = {
    "one partition, smoothly": ([Owner(6_000)], shared(50), None),
    "one partition, fast and short": ([Owner(30_000, batch=64)], shared(500), None),
    "batches of 64, one in seven seconds": ([Owner(6_400, batch=64)], shared(9.3), None),
    "batches of 256, one in forty seconds": ([Owner(12_800, batch=256)], shared(6.4), None),
    "one document in three seconds": ([Owner(200)], shared(0.33), None),
    "equal partitions": ([Owner(3_000, batch=32) for _ in range(4)], shared(50), None),
    "unequal partitions that share": ([Owner(n, batch=16) for n in (200, 1_000, 6_000)], shared(40), None),
    "unequal partitions, many workers": (
        [Owner(n, batch=16, worker=f"w{n}") for n in (500, 1_000, 6_000)],
        shared(40),
        None,
    ),
    "partitions that wait for their turn": ([Owner(n, batch=16) for n in (3_000, 500, 2_000)], in_turn(30), None),
    "the slow worker decides": (
        [Owner(4_000, 16, "fast"), Owner(4_000, 16, "slow")],
        each_its_own(80, 10),
        None,
    ),
    "held, equal": ([Owner(1_000, batch=4) for _ in range(3)], held(12, 100, 100, 100), 12),
    "held, unequal": ([Owner(n, batch=2) for n in (300, 900, 2_400)], held(12, 100, 100, 100), 12),
    "held above what the endpoint can": ([Owner(n, batch=16) for n in (500, 3_000)], shared(20), 1_000),
    "held, and one is slow by itself": ([Owner(n, batch=2) for n in (2_000, 1_500)], held(60, 100, 5), 60),
}


@pytest.mark.parametrize("name", CASES)
def test_the_eta_is_within_15_percent_from_10_percent_on(name: str) -> None:
    owners, pace, replay_rate = CASES[name]
    longest_s = max(o.batch / rate for o, rate in zip(owners, pace(0.0, owners), strict=True) if rate)
    looks, end_s = simulate([Owner(o.total, o.batch, o.worker) for o in owners], pace, replay_rate)
    assert worst(looks, end_s, longest_s) < WITHIN
    half = [seen for seen in looks if SHOWN_FROM <= seen.progress < 0.5]
    assert worst(half, end_s, 0.0) < WITHIN + longest_s / (end_s - half[-1].at_s)


def test_uneven_batches_average_out() -> None:
    rng = random.Random(7)
    rate, done, at_s, end_s, seen = Rate(), 0, 0.0, 3_000.0, []
    next_s = rng.uniform(2, 18)
    while at_s < end_s:
        while next_s <= at_s:
            done += rng.randint(16, 48)
            next_s += rng.uniform(2, 18)
        rate.observe(done, at_s)
        seen.append((at_s, rate.per_s))
        at_s += 1.0
    truth = done / end_s
    off = [abs(per_s - truth) / truth for at, per_s in seen if at >= 150]
    assert sum(off) / len(off) < 0.15


def test_a_pause_is_not_counted_and_leaves_no_trace() -> None:
    """Ten minutes of pause, with what was in flight coming in meanwhile and the pipeline filling up afterwards."""
    rate = Rate()
    at_s, done = 0.0, 0
    for _ in range(60):
        at_s, done = at_s + 1, done + 10
        rate.observe(done, at_s)
    assert rate.per_s == pytest.approx(10)
    for _ in range(600):
        at_s += 1
        done += 64 if at_s == 62 else 0
        rate.rest()
        assert rate.per_s == pytest.approx(10)
    for second in range(60):
        at_s += 1
        done += 0 if second < 3 else 10  # three seconds until the first comes
        per_s = rate.observe(done, at_s)
        assert per_s == pytest.approx(10, rel=0.15), f"{second} s after the resume"


def test_a_throttle_that_holds_and_lets_go_is_part_of_the_pace() -> None:
    """Four seconds held, four at 20/s: 10/s, and not 20."""
    rate, done = Rate(), 0
    for second in range(200):
        if second % 8 < 4:
            rate.rest()
        else:
            done += 20
            rate.observe(done, float(second))
    assert rate.per_s == pytest.approx(10, rel=0.15)


def test_a_standstill_that_nobody_asked_for_makes_the_eta_grow() -> None:
    """Never a promise of seconds for hours: a second of standstill takes no second off the ETA."""
    owner = Owner(1_000)
    for second in range(50):
        owner.done = 10.0 * second
        owner.rate.observe(owner.counted, float(second))
    before = combine("v2", [record(0, owner, 49.0)], 1, 49_000)
    for second in range(50, 3_650):
        owner.rate.observe(owner.counted, float(second))
    after = combine("v2", [record(0, owner, 3_649.0)], 1, 3_649_000)
    assert before is not None
    assert after is not None
    assert before.eta_s == pytest.approx(51, rel=0.05)
    assert after.eta_s is not None
    assert after.eta_s > 3_600


def test_a_standstill_after_a_resume_is_seen_too() -> None:
    rate = Rate()
    for second in range(60):
        rate.observe(10 * second, float(second))
    rate.rest()
    for second in range(1_000, 2_000):
        rate.observe(590, float(second))
    assert rate.per_s < 0.5


@pytest.mark.parametrize("status", ["paused", "waiting", "failed"])
def test_what_stands_still_has_no_eta(status: str) -> None:
    owners = [Owner(1_000), Owner(1_000)]
    for owner in owners:
        owner.done = 500
        owner.rate.per_s = 10.0
    whole = combine("v2", [record(0, owners[0], 1.0), record(1, owners[1], 1.0, status)], 2, 1_000)
    assert whole is not None
    assert (whole.eta_s, whole.rate_per_s) == (None, 10.0)


def test_a_silent_owner_has_no_eta() -> None:
    owners = [Owner(1_000), Owner(1_000)]
    for owner in owners:
        owner.done = 500
        owner.rate.per_s = 10.0
    whole = combine("v2", [record(0, owners[0], 60.0), record(1, owners[1], 1.0)], 2, 60_000)
    assert whole is not None
    assert (whole.eta_s, whole.rate_per_s) == (None, 10.0)


def test_a_lower_replay_rate_counts_at_once() -> None:
    owners = [Owner(1_000), Owner(1_000)]
    for owner in owners:
        owner.done = 500
        owner.rate.per_s = 100.0
    records = [record(n, owner, 1.0) for n, owner in enumerate(owners)]
    whole = combine("v2", records, 2, 1_000, replay_rate=10)
    assert whole is not None
    assert whole.eta_s == pytest.approx(100)


def test_what_a_former_owner_did_is_no_rate_of_the_new_one() -> None:
    rate = Rate()
    rate.observe(0, 0.0)
    rate.observe(5_000, 1.0)  # read from the commit when the plan scan was done
    for second in range(2, 30):
        rate.observe(4_990 + 10 * second, float(second))
    assert rate.per_s == pytest.approx(10)


def test_partitions_of_one_worker_share_it_however_unequal() -> None:
    owners = [Owner(1_000), Owner(1_000)]
    for owner, per_s in zip(owners, (20.0, 5.0), strict=True):
        owner.done = 500
        owner.rate.per_s = per_s
    whole = combine("v2", [record(n, owner, 1.0) for n, owner in enumerate(owners)], 2, 1_000)
    assert whole is not None
    assert whole.eta_s == pytest.approx(40), "not the 100 s of the slower one alone"
