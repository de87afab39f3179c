"""Counts to rates, ETAs and progress records.

Pure: totals come from the plan scan and exact offsets, never from estimates, and no clock is read here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Literal

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
    in the dead letters, or compacted away behind a newer record). The others count events.
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

    @property
    def cost_usd(self) -> float:
        return self.spent_nano_usd / 1e9

    def embedded(self, lane: Lane) -> None:
        """One document's text went to the model."""
        self.embedded_live += lane is Lane.LIVE
        self.embedded_replay += lane is Lane.REPLAY
        self.embedded_mend += lane is Lane.MEND

    def resolved(self, lane: Lane, outcome: Outcome, *, replaying: bool) -> None:
        """One event was resolved; `replaying`: while the partition's replay was not complete."""
        if lane is Lane.REPLAY:
            self.replayed += 1
            self.completed += 1
        elif lane is Lane.LIVE:
            self.live_resolved += 1
            self.live_resolved_during_replay += replaying
            self.changed_mid_migration += replaying and outcome in (Outcome.WRITTEN, Outcome.DELETED)
        else:
            self.mended += 1
        self.written += outcome in (Outcome.WRITTEN, Outcome.UNCHANGED)
        self.unchanged_skipped += outcome is Outcome.UNCHANGED
        self.deleted += outcome is Outcome.DELETED
        self.stale += outcome is Outcome.STALE
        self.dead_letters += outcome is Outcome.DEAD_LETTER

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


class ProgressRecord(BaseModel):
    """One record of the progress topic: key collection/version (the whole) or collection/version/partition."""

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
    requests_done: int = 0
    live_position: int = 0
    worker: str = ""
    running_since: int = 0
    counters: dict[str, int] = Field(default_factory=dict)
    updated_at: int

    def is_fresh(self, now_ms: int) -> bool:
        """Its owner is at work: owners report each second."""
        return now_ms - self.updated_at < FRESH_MS

    def counted(self) -> Counters:
        return Counters(**{f.name: self.counters.get(f.name, 0) for f in fields(Counters)})

    def to_bytes(self) -> bytes:
        return self.model_dump_json(by_alias=True).encode()


class Rate:
    """Documents a second, smoothed exponentially over about `window_s`; honest after a pause since idle time counts."""

    def __init__(self, window_s: float = 20.0) -> None:
        self._window_s = window_s
        self._at_s: float | None = None
        self._count = 0
        self.per_s = 0.0

    def observe(self, count: int, now_s: float) -> float:
        """`count`: completed so far. Returns the smoothed rate."""
        if self._at_s is None or count < self._count:
            self._at_s, self._count = now_s, count
            return self.per_s
        elapsed_s = now_s - self._at_s
        if elapsed_s <= 0:
            return self.per_s
        instant = (count - self._count) / elapsed_s
        weight = min(1.0, elapsed_s / self._window_s) if self.per_s else 1.0
        self.per_s += weight * (instant - self.per_s)
        self._at_s, self._count = now_s, count
        return self.per_s

    def rest(self) -> None:
        """The replay is held on purpose: the time until the next observation does not count."""
        self._at_s = None


def eta_s(total: int, completed: int, rate_per_s: float, held_rate: float | None = None) -> float | None:
    """Seconds to go, or None where nobody can know (no rate yet). `held_rate` caps it, documents a second."""
    left = total - completed
    if left <= 0:
        return 0.0
    rate = min(rate_per_s, held_rate) if held_rate else rate_per_s
    return left / rate if rate > 0 else None


def combine(name: str, records: Iterable[ProgressRecord], partitions: int, now_ms: int) -> ProgressRecord | None:
    """The whole build's record from its partitions' newest ones; None before any partition has reported.

    The ETA is that of the slowest partition: they do not help each other.
    """
    newest = list(records)
    if not newest:
        return None
    counters = Counters()
    for record in newest:
        counters.add(record.counted())
    planned = len(newest) == partitions and all(r.planned for r in newest)
    etas = [r.eta_s for r in newest if not r.replay_done]
    worst = next((r for r in newest if r.status in ("failed", "waiting", "paused")), newest[0])
    return ProgressRecord(
        name=name,
        epoch=newest[0].epoch,
        status=worst.status,
        reason=worst.reason,
        progress=counters.completed / counters.total if counters.total else (1.0 if planned else 0.0),
        total=counters.total,
        completed=counters.completed,
        rate_per_s=sum(r.rate_per_s for r in newest if not r.replay_done),
        eta_s=None if not planned or None in etas else max((e for e in etas if e is not None), default=0.0),
        changed_mid_migration=counters.changed_mid_migration,
        unchanged_skipped=counters.unchanged_skipped,
        dead_letters=counters.dead_letters,
        live_lag=sum(r.live_lag for r in newest),
        cost_usd=counters.cost_usd,
        unsettled=sum(r.unsettled for r in newest),
        planned=planned,
        replay_done=len(newest) == partitions and all(r.replay_done for r in newest),
        requests_done=min(r.requests_done for r in newest) if len(newest) == partitions else 0,
        counters=counters.as_dict(),
        updated_at=now_ms,
    )
