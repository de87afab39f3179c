"""Counts to rates, ETAs and progress records.

Pure: totals come from the plan scan and exact offsets, never from estimates, and no clock is read here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from streams.ordering import Lane, Outcome

Status = Literal[
    "declared", "building", "ready", "serving", "previous", "retired", "aborted", "paused", "failed", "waiting"
]


FRESH_MS = 15_000


@dataclass(slots=True)
class Counters:
    """What one partition's owner has counted since the build began. Added up over partitions for the whole build.

    `total` and `completed` are documents of the replay: live at the barrier, and accounted for (written, suppressed,
    in the dead letters, or compacted away behind a newer record). `changed_mid_migration`: documents of the history
    whose text, by source hash, live changed or deleted before the replay was over. `carried`: documents that the topic
    has forgotten, brought over from the serving space; `not_carried`: those that could not be put together again. The
    others count events.
    """

    total: int = 0
    completed: int = 0
    superseded: int = 0
    deletes: int = 0
    live_resolved: int = 0
    live_resolved_during_replay: int = 0
    replayed: int = 0
    suppressed_by_live: int = 0
    suppressed_by_live_delete: int = 0
    compacted_away: int = 0
    embedded_live: int = 0
    embedded_replay: int = 0
    embedded_mend: int = 0
    written: int = 0
    deleted: int = 0
    stale: int = 0
    changed_mid_migration: int = 0
    unchanged_skipped: int = 0
    dead_letters: int = 0
    mended: int = 0
    tokens: int = 0
    spent_nano_usd: int = 0
    truncated: int = 0
    cached: int = 0
    carried: int = 0
    not_carried: int = 0

    @property
    def cost_usd(self) -> float:
        return self.spent_nano_usd / 1e9

    def embedded(self, lane: Lane) -> None:
        """One document's text went to the model."""
        if lane is Lane.REPLAY:
            self.embedded_replay += 1
        elif lane is Lane.LIVE:
            self.embedded_live += 1
        else:
            self.embedded_mend += 1

    def resolved(self, lane: Lane, outcome: Outcome, *, replaying: bool) -> None:
        """One event was resolved; `replaying`: while the partition's replay was not complete."""
        if lane is Lane.REPLAY:
            self.replayed += 1
            self.completed += 1
        elif lane is Lane.LIVE:
            self.live_resolved += 1
            self.live_resolved_during_replay += replaying
        else:
            self.mended += 1
        if outcome is Outcome.WRITTEN:
            self.written += 1
        elif outcome is Outcome.UNCHANGED:
            self.written += 1
            self.unchanged_skipped += 1
        elif outcome is Outcome.DELETED:
            self.deleted += 1
        elif outcome is Outcome.STALE:
            self.stale += 1
        else:
            self.dead_letters += 1

    def suppressed(self, *, deleted: bool) -> None:
        """A replayed put whose key live has seen (rule 5)."""
        self.suppressed_by_live += 1
        self.suppressed_by_live_delete += deleted
        self.completed += 1

    def add(self, other: Counters) -> None:
        for f in fields(self):
            setattr(self, f.name, getattr(self, f.name) + getattr(other, f.name))

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


class TierProgress(BaseModel):
    """One tier of a replay: its documents, and its share of the traffic (access counts; 0 where nobody counts)."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str
    total: int
    completed: int
    weight: float = 0.0
    weight_completed: float = 0.0


class ProgressRecord(BaseModel):
    """One record of the progress topic: key collection/version (the whole) or collection/version/partition.

    `owing`: what the topic has forgotten is still to be brought over from the space that serves.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)

    format: Annotated[int, Field(alias="schema")] = 1
    name: str
    epoch: int
    partition: int | None = None
    status: Status
    reason: str = ""
    progress: float
    total: int
    completed: int
    rate_per_s: float
    eta_s: float | None
    changed_mid_migration: int
    unchanged_skipped: int
    dead_letters: int
    live_lag: int
    cost_usd: float | None = None
    unsettled: int = 0
    planned: bool = False
    replay_done: bool = False
    owing: bool = False
    requests_done: int = 0
    live_position: int = 0
    worker: str = ""
    running_since: int = 0
    counters: dict[str, int] = Field(default_factory=dict)
    tiers: list[TierProgress] = Field(default_factory=list)
    updated_at: int

    def is_fresh(self, now_ms: int) -> bool:
        """Its owner is at work: owners report each second."""
        return now_ms - self.updated_at < FRESH_MS

    def stands_still(self, now_ms: int) -> bool:
        """Its rate is what it was, not what it is: paused, waiting for something, stopped, or its owner is silent."""
        return self.status in ("paused", "waiting", "failed") or not self.is_fresh(now_ms)

    def counted(self) -> Counters:
        return Counters(**{f.name: self.counters.get(f.name, 0) for f in fields(Counters)})

    def to_bytes(self) -> bytes:
        return self.model_dump_json(by_alias=True).encode()


RATE_WINDOW_S = 30.0
RATE_STEPS = 12
SHORT_REST_S = 10.0


class Rate:
    """Documents a second over about the last `window_s`, and honest about batches, pauses and standstills.

    Counts come in steps (a batch at once), so it is measured from step to step: at least `RATE_STEPS` of them where
    there are as many, and never from a moment between two. No step yet, or one: no rate. A rest (held on purpose) of
    more than `SHORT_REST_S` is no working time; shorter ones, such as those of a throttle that holds and lets go in
    turn, are part of the pace. A standstill without a rest lowers the rate as long as it lasts.
    """

    def __init__(self, window_s: float = RATE_WINDOW_S) -> None:
        self._window_s = window_s
        self._seen: tuple[float, int] | None = None
        self._step: tuple[float, int] | None = None
        self._since_s = 0.0  # the last step, or the end of a rest: from then on a next one is waited for
        self._steps: deque[tuple[float, int]] = deque([(0.0, 0)])  # in working time, and in documents of that time
        self._resting = False
        self.per_s = 0.0

    def observe(self, count: int, now_s: float) -> float:
        """`count`: completed so far. Returns the rate. Call it about once a second."""
        if self._seen is None or count < self._seen[1] or (self._resting and now_s - self._seen[0] > SHORT_REST_S):
            self._step = None  # begun, counted anew by another owner, or rested: the next step is where it goes on
            self._since_s = now_s
        elif count > self._seen[1]:
            self._note_step(count, now_s)
        self._seen, self._resting = (now_s, count), False
        return self._measure(now_s)

    def rest(self) -> None:
        """The replay is held on purpose: a long time until the next observation does not count."""
        self._resting = True

    def _note_step(self, count: int, now_s: float) -> None:
        if self._step is not None:
            at_s, done = self._steps[-1]
            self._steps.append((at_s + now_s - self._step[0], done + count - self._step[1]))
        self._step, self._since_s = (now_s, count), now_s
        while len(self._steps) > RATE_STEPS + 1 and self._steps[-1][0] - self._steps[1][0] >= self._window_s:
            self._steps.popleft()

    def _measure(self, now_s: float) -> float:
        (first_s, first), (last_s, last) = self._steps[0], self._steps[-1]
        if last > first:
            longest_s = max(after[0] - before[0] for before, after in pairwise(self._steps))
            self.per_s = (last - first) / (last_s - first_s + max(0.0, now_s - self._since_s - longest_s))
        return self.per_s


def eta_s(total: int, completed: int, rate_per_s: float, held_rate: float | None = None) -> float | None:
    """Seconds to go, or None where nobody can know (no rate yet). `held_rate` caps it, documents a second."""
    left = total - completed
    if left <= 0:
        return 0.0
    rate = min(rate_per_s, held_rate) if held_rate else rate_per_s
    return left / rate if rate > 0 else None


HELD_SHARE = 0.8  # of its share of the replay rate: a partition that does as much is held by it
SLOW_SHARE = 0.5  # of the fastest one's rate: what does less is slow by itself, not for want of its turn


class Whole:
    """One build as a whole, followed over time by whoever speaks for it; `combine` alone knows one moment only.

    The rate is measured over all partitions: one that ends hands its part on to the others, whose own rates say so a
    window later. Who was slow by itself while others ran is remembered until then.
    """

    def __init__(self) -> None:
        self._rate = Rate()
        self._slow: frozenset[int | None] = frozenset()

    def combine(
        self,
        name: str,
        records: Iterable[ProgressRecord],
        partitions: int,
        now_ms: int,
        replay_rate: float | None = None,
    ) -> ProgressRecord | None:
        """As `combine`, with the rate and ETA of the whole. Call it about once a second."""
        newest = list(records)
        now = combine(name, newest, partitions, now_ms, replay_rate)
        if now is None or not now.planned:
            return now
        replaying = [r for r in newest if not r.replay_done]
        if replaying and all(r.stands_still(now_ms) for r in replaying):
            self._rate.rest()
            return now
        per_s = self._rate.observe(now.completed, now_ms / 1000)
        self._slow = slow_ones(_paces(replaying, replay_rate), self._slow)
        if per_s <= 0 or not replaying:
            return now
        per_s = min(per_s, replay_rate or per_s)
        eta = eta_of_the_whole(replaying, replay_rate, now_ms, per_s, self._slow)
        return now.model_copy(update={"rate_per_s": per_s, "eta_s": eta})


class Pace(NamedTuple):
    """What shares with the others: a worker with its partitions, or one partition that is held to a rate of its own.

    `left`: documents; `per_s`: documents a second.
    """

    partitions: frozenset[int | None]
    left: int
    per_s: float


def eta_of_the_whole(
    replaying: Sequence[ProgressRecord],
    replay_rate: float | None,
    now_ms: int,
    per_s: float | None = None,
    slow: frozenset[int | None] | None = None,
) -> float | None:
    """Seconds until the last partition is replayed, or None where nobody can know: one stands still, or none moves.

    Partitions share their worker, workers share the endpoint, and all share `replay_rate`: when one ends, the others
    get faster. So what they do together goes on, and those that wait for their turn get it. One that does clearly less
    than the fastest has a limit of its own, which nobody's end will lift: it goes on alone, and may be the last.
    `per_s`, `slow`: of all together, and the partitions that are slow, where somebody has followed them.
    """
    if not replaying:
        return 0.0
    if any(r.stands_still(now_ms) for r in replaying) or all(r.completed >= r.total for r in replaying):
        return None
    paces = _paces(replaying, replay_rate)
    slow = slow_ones(paces) if slow is None else slow
    alone = [pace for pace in paces if pace.partitions <= slow and pace.per_s > 0]
    together = [pace for pace in paces if pace not in alone]
    etas = [pace.left / pace.per_s for pace in alone]
    if together:
        measured = sum(pace.per_s for pace in together)
        shared = measured if per_s is None else max(measured, per_s - sum(pace.per_s for pace in alone))
        if shared <= 0:
            return None
        etas.append(sum(pace.left for pace in together) / shared)
    return max(etas)


def _paces(replaying: Sequence[ProgressRecord], replay_rate: float | None) -> list[Pace]:
    share = replay_rate / len(replaying) if replay_rate and replaying else None
    rates = [min(r.rate_per_s, share) if share else r.rate_per_s for r in replaying]
    held = share is not None and any(rate >= HELD_SHARE * share for rate in rates)
    paces: dict[int | str | None, Pace] = {}
    for record, rate in zip(replaying, rates, strict=True):
        sharer = record.partition if held else record.worker
        before = paces.get(sharer, Pace(frozenset(), 0, 0.0))
        left = max(0, record.total - record.completed)
        paces[sharer] = Pace(before.partitions | {record.partition}, before.left + left, before.per_s + rate)
    return list(paces.values())


def slow_ones(paces: Sequence[Pace], before: frozenset[int | None] = frozenset()) -> frozenset[int | None]:
    """The partitions with a limit of their own. Beside others that shows; alone one stays what it was."""
    moving = [pace for pace in paces if pace.per_s > 0]
    if len(moving) < 2:
        return before
    fastest = max(pace.per_s for pace in moving)
    return frozenset().union(*(pace.partitions for pace in moving if pace.per_s < SLOW_SHARE * fastest))


def combine(
    name: str, records: Iterable[ProgressRecord], partitions: int, now_ms: int, replay_rate: float | None = None
) -> ProgressRecord | None:
    """The whole build's record from its partitions' newest ones; None before any partition has reported.

    `replay_rate`: what the build is held to, documents a second. What stands still, or is silent, has no rate.
    """
    newest = list(records)
    if not newest:
        return None
    counters = counted(newest)
    planned = len(newest) == partitions and all(r.planned for r in newest)
    replaying = [r for r in newest if not r.replay_done]
    speaks = _spokesman(newest)
    return ProgressRecord(
        name=name,
        epoch=newest[0].epoch,
        status=speaks.status,
        reason=speaks.reason,
        progress=counters.completed / counters.total if counters.total else (1.0 if planned else 0.0),
        total=counters.total,
        completed=counters.completed,
        rate_per_s=sum(r.rate_per_s for r in replaying if not r.stands_still(now_ms)),
        eta_s=eta_of_the_whole(replaying, replay_rate, now_ms) if planned else None,
        changed_mid_migration=counters.changed_mid_migration,
        unchanged_skipped=counters.unchanged_skipped,
        dead_letters=counters.dead_letters,
        live_lag=sum(r.live_lag for r in newest),
        cost_usd=counters.cost_usd,
        unsettled=sum(r.unsettled for r in newest),
        planned=planned,
        replay_done=len(newest) == partitions and all(r.replay_done for r in newest),
        owing=any(r.owing for r in newest),
        requests_done=min(r.requests_done for r in newest) if len(newest) == partitions else 0,
        counters=counters.as_dict(),
        tiers=combine_tiers(tier for record in newest for tier in record.tiers),
        updated_at=now_ms,
    )


def _spokesman(records: Sequence[ProgressRecord]) -> ProgressRecord:
    """Whose status and reason stand for the whole: what stopped, then what waits, then what still replays."""
    order = ("failed", "waiting", "paused")

    def rank(record: ProgressRecord) -> tuple[int, bool, bool]:
        status = order.index(record.status) if record.status in order else len(order)
        return status, record.replay_done, not record.reason

    return min(records, key=rank)


def counted(records: Iterable[ProgressRecord]) -> Counters:
    """What they have counted together."""
    counters = Counters()
    for record in records:
        counters.add(record.counted())
    return counters


def combine_tiers(parts: Iterable[TierProgress]) -> list[TierProgress]:
    """Tiers of one name added up, in the order in which they first come."""
    tiers: dict[str, TierProgress] = {}
    for tier in parts:
        before = tiers.get(tier.name, TierProgress(name=tier.name, total=0, completed=0))
        tiers[tier.name] = TierProgress(
            name=tier.name,
            total=before.total + tier.total,
            completed=before.completed + tier.completed,
            weight=before.weight + tier.weight,
            weight_completed=before.weight_completed + tier.weight_completed,
        )
    return list(tiers.values())
