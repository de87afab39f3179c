"""What the queries of one server process have shown, in a form that adds up over processes: the record it publishes.

Pure: counts and times only, never a query, a document or a caller. Durations are kept in buckets, since percentiles of
several processes cannot be added up, and buckets can.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from connectors.protocols import JSON

LEAST_MS = 0.05
GROWTH = 1.05
"""Each bucket ends 5% above the one before: a percentile is at most so much above the true one, and never below it."""
_LOG_GROWTH = math.log(GROWTH)
MOST_BUCKETS = 400  # up to four hours
MOST_SLICES = 6
"""One fewer than they are make a window: a part of the oldest one lies before it."""


class _Part(BaseModel):
    """Unknown fields are ignored, so that an older reader survives a newer writer."""

    model_config = ConfigDict(extra="ignore")


def bucket_of(took_ms: float) -> int:
    """The first bucket that reaches so far."""
    if took_ms <= LEAST_MS:
        return 0
    return min(math.ceil(math.log(took_ms / LEAST_MS) / _LOG_GROWTH - 1e-9), MOST_BUCKETS)


def add_time(buckets: dict[int, int], took_ms: float) -> None:
    at = bucket_of(took_ms)
    buckets[at] = buckets.get(at, 0) + 1


def p95_of(buckets: dict[int, int]) -> float | None:
    """The upper end of the bucket that holds the 95th percentile, in ms; None without any."""
    wanted = math.ceil(0.95 * sum(buckets.values()))
    if not wanted:
        return None
    counted = 0
    for at in sorted(buckets):
        counted += buckets[at]
        if counted >= wanted:
            return float(LEAST_MS * GROWTH**at)
    raise AssertionError("the counts were changed while they were added up")


def added(one: dict[int, int], other: dict[int, int]) -> dict[int, int]:
    return {at: one.get(at, 0) + other.get(at, 0) for at in {**one, **other}}


class Tally(_Part):
    """Queries of one version at one step. `errors`: that it could not answer; `zero`: that found nothing; `took`: of
    those it answered, by bucket."""

    queries: int = 0
    errors: int = 0
    zero: int = 0
    took: dict[int, int] = Field(default_factory=dict)

    def add(self, hits: int | None, took_ms: float) -> None:
        """`hits` None: it failed."""
        self.queries += 1
        if hits is None:
            self.errors += 1
            return
        self.zero += not hits
        add_time(self.took, took_ms)

    def plus(self, other: Tally) -> Tally:
        return Tally(
            queries=self.queries + other.queries,
            errors=self.errors + other.errors,
            zero=self.zero + other.zero,
            took=added(self.took, other.took),
        )

    def as_json(self) -> dict[str, JSON]:
        p95 = p95_of(self.took)
        return {
            "queries": self.queries,
            "errors": self.errors,
            "zero_results": self.zero,
            "p95_ms": None if p95 is None else round(p95, 3),
        }


class Slice(_Part):
    """What the `new` version and the `serving` one were asked in the short time that began at `from_ms`."""

    from_ms: int
    new: Tally = Field(default_factory=Tally)
    serving: Tally = Field(default_factory=Tally)


class StepTally(_Part):
    """Of one step of one build's rollout (streams.state.RolloutState): what the `new` version and the `serving` one
    were asked at it; and of its newest time, cut in slices, `MOST_SLICES` of them."""

    version: str
    epoch: int
    step: int
    new: Tally = Field(default_factory=Tally)
    serving: Tally = Field(default_factory=Tally)
    slices: list[Slice] = Field(default_factory=list)

    def add(self, *, new: bool, hits: int | None, took_ms: float, at_ms: int, window_s: float) -> None:
        """One query, of the `new` version or the serving one. `hits` None: it failed. `window_s`: how far back
        somebody will ask."""
        for part in (self, self._slice(at_ms, window_s)):
            (part.new if new else part.serving).add(hits, took_ms)

    def _slice(self, at_ms: int, window_s: float) -> Slice:
        """That of this time. They stand in the order in which they began, whatever becomes of the clock."""
        length_ms = math.ceil(1000 * window_s / (MOST_SLICES - 1))
        from_ms = at_ms - at_ms % length_ms
        if not self.slices or self.slices[-1].from_ms != from_ms:
            self.slices = [*self.slices[1 - MOST_SLICES :], Slice(from_ms=from_ms)]
        return self.slices[-1]

    def is_of(self, version: str, epoch: int, step: int) -> bool:
        return (self.version, self.epoch, self.step) == (version, epoch, step)


class ShadowTally(_Part):
    """Of queries that `live` has answered and the `shadow` version was asked too, since either of their spaces came.

    `dropped`: not asked, since too many were under way; `failed`: the shadow gave no answer. Of the `compared` ones the
    sums of overlap and rank-biased overlap over the first `k`, those that found nothing, and times by bucket.
    """

    live: str = ""
    live_space: str = ""
    shadow: str = ""
    shadow_space: str = ""
    k: int = 0
    asked: int = 0
    dropped: int = 0
    failed: int = 0
    compared: int = 0
    overlap: float = 0.0
    rank_overlap: float = 0.0
    live_zero: int = 0
    shadow_zero: int = 0
    live_took: dict[int, int] = Field(default_factory=dict)
    shadow_took: dict[int, int] = Field(default_factory=dict)

    def is_of(self, live_space: str, shadow_space: str, k: int) -> bool:
        return (self.live_space, self.shadow_space, self.k) == (live_space, shadow_space, k)

    def add(self, overlap: float, rank_overlap: float, live: tuple[int, float], shadow: tuple[int, float]) -> None:
        """`live`, `shadow`: how many documents each found, and how long it took in ms."""
        self.compared += 1
        self.overlap += overlap
        self.rank_overlap += rank_overlap
        self.live_zero += not live[0]
        self.shadow_zero += not shadow[0]
        add_time(self.live_took, live[1])
        add_time(self.shadow_took, shadow[1])

    def plus(self, other: ShadowTally) -> ShadowTally:
        """Of the same pair."""
        sums = {name: getattr(self, name) + getattr(other, name) for name in _SHADOW_SUMS}
        took = {name: added(getattr(self, name), getattr(other, name)) for name in ("live_took", "shadow_took")}
        return self.model_copy(update={**sums, **took})

    def mean(self, total: float) -> float | None:
        """Over the compared ones; None before there is one."""
        return total / self.compared if self.compared else None

    def as_json(self) -> dict[str, JSON]:
        """Means and rates over the queries that were compared; null before there is one."""

        def shown(value: float | None, digits: int = 4) -> float | None:
            return None if value is None else round(value, digits)

        return {
            "live": self.live,
            "shadow": self.shadow,
            "k": self.k,
            "asked": self.asked,
            "dropped": self.dropped,
            "failed": self.failed,
            "compared": self.compared,
            "overlap": shown(self.mean(self.overlap)),
            "rank_overlap": shown(self.mean(self.rank_overlap)),
            "live_zero_results": shown(self.mean(self.live_zero)),
            "shadow_zero_results": shown(self.mean(self.shadow_zero)),
            "live_p95_ms": shown(p95_of(self.live_took), 3),
            "shadow_p95_ms": shown(p95_of(self.shadow_took), 3),
        }


_SHADOW_SUMS = (
    "asked",
    "dropped",
    "failed",
    "compared",
    "overlap",
    "rank_overlap",
    "live_zero",
    "shadow_zero",
)


class SearchesRecord(_Part):
    """One record of the progress topic: what one process has counted for one collection since it began.

    `replica` is a name that no other process ever has, also not the same server after a restart: so the counts of one
    that has ended stay, and none is counted twice.
    """

    model_config = ConfigDict(extra="ignore", populate_by_name=True)

    format: Annotated[int, Field(alias="schema")] = 1
    collection: str
    replica: str
    rollout: StepTally | None = None
    shadow: ShadowTally | None = None
    updated_at: int

    def to_bytes(self) -> bytes:
        return self.model_dump_json(by_alias=True).encode()


def searches_key(collection: str, replica: str) -> str:
    """In the progress topic. No build has an empty version, so none of its keys is ever taken for this one."""
    return f"{collection}//{replica}/searches"


def is_searches(key: str) -> bool:
    return key.endswith("/searches") and "//" in key


@dataclass(frozen=True, slots=True)
class Step:
    """Of all processes together. `replicas`: how many have counted anything at it."""

    new: Tally = field(default_factory=Tally)
    serving: Tally = field(default_factory=Tally)
    replicas: int = 0


def step_of(
    records: Iterable[SearchesRecord], version: str, epoch: int, step: int, since_ms: int | None = None
) -> Step:
    """What was counted of this step; of other steps, epochs and versions nothing. `since_ms`: no slice that began
    before it, by the clocks of the servers."""
    found: Sequence[StepTally] = [
        record.rollout
        for record in records
        if record.rollout is not None and record.rollout.is_of(version, epoch, step)
    ]
    new, serving, replicas = Tally(), Tally(), 0
    for tally in found:
        parts: Sequence[StepTally | Slice] = (
            [tally] if since_ms is None else [one for one in tally.slices if one.from_ms >= since_ms]
        )
        for part in parts:
            new, serving = new.plus(part.new), serving.plus(part.serving)
        replicas += bool(parts)
    return Step(new, serving, replicas)


def shadow_of(records: Iterable[SearchesRecord], live_space: str, shadow_space: str) -> tuple[ShadowTally, int]:
    """What was compared of these two spaces, and by how many processes; to the depth that the newest record has."""
    newest = sorted(
        (
            record
            for record in records
            if record.shadow is not None
            and (record.shadow.live_space, record.shadow.shadow_space) == (live_space, shadow_space)
        ),
        key=lambda record: record.updated_at,
    )
    parts = [record.shadow for record in newest if record.shadow is not None]
    if not parts:
        return ShadowTally(live_space=live_space, shadow_space=shadow_space), 0
    same = [part for part in parts if part.k == parts[-1].k]
    total = same[0]
    for part in same[1:]:
        total = total.plus(part)
    return total, len(same)
