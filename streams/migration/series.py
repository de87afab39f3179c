"""The course of one build in numbers: a bounded series of its progress over time, for the report.

The progress topic keeps only the newest record of each key. So the controller keeps this one beside them, thinned out
as it grows, and the next controller goes on with it. Pure: no clock is read here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from streams.progress import FRESH_MS, ProgressRecord

FIRST_EVERY_MS = 1_000
REPLAY_POINTS = 400
AFTER_POINTS = 200
PUBLISH_EVERY_MS = 10_000
WAITS_KEPT = 30
RUNS_KEPT = 50
REASON_CHARACTERS = 160


class Point(NamedTuple):
    """What was counted at a moment, since the build began. `lag`: the highest since the point before, in events."""

    at_ms: int
    completed: int
    total: int
    live: int
    lag: int
    tokens: int
    nano_usd: int


class Wait(BaseModel):
    """Time in which the build gave one reason (numbers in it left aside). `times`: how often that began."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    status: str
    reason: str
    times: int
    lasted_ms: int
    first_ms: int
    last_ms: int


class Run(BaseModel):
    """One start of the build's lanes in one worker: a new worker, or the same one after a restart of them."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    worker: str
    since_ms: int
    last_ms: int


class Track(BaseModel):
    """Points in the order of time, not closer than `every_ms` to each other."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    every_ms: int = FIRST_EVERY_MS
    points: list[Point] = Field(default_factory=list)


class SeriesRecord(BaseModel):
    """One record of the progress topic: key collection/version/epoch/series, at most about 65 kB.

    `replay`: until the replay was complete; `after`: since then, as long as the build is written. `unseen_ms`: time in
    which no controller looked or no worker reported; `starts`: how many runs there were, of which `runs` are the last.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)

    format: Annotated[int, Field(alias="schema")] = 1
    epoch: int
    since_ms: int
    updated_ms: int
    unseen_ms: int = 0
    replay: Track = Track()
    after: Track = Track()
    waits: list[Wait] = Field(default_factory=list)
    runs: list[Run] = Field(default_factory=list)
    starts: int = 0

    def to_bytes(self) -> bytes:
        return self.model_dump_json(by_alias=True).encode()


def series_key(build_key: str, epoch: int) -> str:
    """In the progress topic. Partitions have keys of three parts, so none of them is ever taken for this one."""
    return f"{build_key}/{epoch}/series"


def is_series(key: str) -> bool:
    return key.count("/") == 3 and key.endswith("/series")


class Sampler:
    """At most `most` points: when there are as many, every second one goes, and from then on they come half as often.

    The first and the newest one always stay, the counts of each are exact, and the highest lag is never lost.
    """

    def __init__(self, most: int, track: Track | None = None) -> None:
        """`most`: at least 3. `track`: to go on with."""
        self._most = most
        self._every_ms = track.every_ms if track is not None else FIRST_EVERY_MS
        self._points = list(track.points) if track is not None else []
        self._peak = 0

    def take(self, point: Point, *, must: bool = False) -> bool:
        """Whether it stays; of what does not, the lag still counts. `must`: although its time has not come."""
        self._peak = max(self._peak, point.lag)
        if self._points and not must and point.at_ms < self._points[-1].at_ms + self._every_ms:
            return False
        self._points.append(point._replace(lag=self._peak))
        self._peak = 0
        if len(self._points) >= self._most:
            self._thin()
        return True

    def _thin(self) -> None:
        first, rest = self._points[0], self._points[1:]
        pairs = [rest[i : i + 2] for i in range(0, len(rest), 2)]
        self._points = [first, *(pair[-1]._replace(lag=max(point.lag for point in pair)) for pair in pairs)]
        self._every_ms *= 2

    @property
    def track(self) -> Track:
        return Track(every_ms=self._every_ms, points=list(self._points))

    def __len__(self) -> int:
        return len(self._points)


class Chronicle:
    """Follows one build for whoever is the controller. Call `look` about once a second."""

    def __init__(self, epoch: int, now_ms: int, before: SeriesRecord | None = None) -> None:
        """`before`: what the controller before this one has left."""
        self._epoch = epoch
        kept = before or SeriesRecord(epoch=epoch, since_ms=now_ms, updated_ms=now_ms)
        self._since_ms = kept.since_ms
        self._replay = Sampler(REPLAY_POINTS, kept.replay)
        self._after = Sampler(AFTER_POINTS, kept.after)
        self._waits = {(wait.status, _form(wait.reason)): wait for wait in kept.waits}
        self._runs = {(run.worker, run.since_ms): run for run in kept.runs}
        self._starts, self._unseen_ms = kept.starts, kept.unseen_ms
        self._looked_ms = kept.updated_ms
        self._published_ms = 0
        self._now: tuple[str, str] | None = None
        self._changed = False

    def look(self, whole: ProgressRecord, parts: Sequence[ProgressRecord], now_ms: int) -> bool:
        """Take note of the build as it is. True: `record` is due to be stored (then call `published`).

        `whole`: the build's record of now, of which `parts` are the partitions'.
        """
        reporting = [record for record in parts if record.is_fresh(now_ms)]
        self._pass(now_ms, seen=bool(reporting))
        if reporting:
            self._sample(whole, now_ms)
            self._note_wait(whole, now_ms)
            self._note_runs(reporting)
        return self._changed and now_ms - self._published_ms >= PUBLISH_EVERY_MS

    def published(self, now_ms: int) -> None:
        self._published_ms, self._changed = now_ms, False

    @property
    def record(self) -> SeriesRecord:
        return SeriesRecord(
            epoch=self._epoch,
            since_ms=self._since_ms,
            updated_ms=self._looked_ms,
            unseen_ms=self._unseen_ms,
            replay=self._replay.track,
            after=self._after.track,
            waits=list(self._waits.values()),
            runs=list(self._runs.values()),
            starts=self._starts,
        )

    def _pass(self, now_ms: int, *, seen: bool) -> None:
        """Time since the last look: of the reason given then, or of nobody's when it was too long ago."""
        passed = max(0, now_ms - self._looked_ms)
        self._looked_ms = max(now_ms, self._looked_ms)
        if not seen or passed > FRESH_MS:
            self._unseen_ms += passed
            self._now = None
        elif self._now is not None and (wait := self._waits.get(self._now)) is not None:
            self._waits[self._now] = wait.model_copy(
                update={"lasted_ms": wait.lasted_ms + passed, "last_ms": self._looked_ms}
            )

    def _sample(self, whole: ProgressRecord, now_ms: int) -> None:
        counted = whole.counted()
        point = Point(
            at_ms=now_ms,
            completed=whole.completed,
            total=whole.total,
            live=counted.live_resolved,
            lag=whole.live_lag,
            tokens=counted.tokens,
            nano_usd=counted.spent_nano_usd,
        )
        if len(self._after):
            self._changed |= self._after.take(point)
        elif whole.replay_done:  # the last of the one is the first of the other, whenever it comes
            self._replay.take(point, must=True)
            self._changed |= self._after.take(point, must=True)
            self._published_ms = 0  # at once: whoever waited for this looks at it now
        else:
            self._changed |= self._replay.take(point)

    def _note_wait(self, whole: ProgressRecord, now_ms: int) -> None:
        waits = bool(whole.reason) or whole.status in ("paused", "waiting", "failed")
        now = (whole.status, _form(whole.reason)) if waits else None
        if now == self._now:
            return
        self._now, self._changed = now, True
        if now is None:
            return
        wait = self._waits.get(now)
        if wait is None and len(self._waits) >= WAITS_KEPT:
            shortest = min(self._waits, key=lambda name: self._waits[name].lasted_ms)
            del self._waits[shortest]
        fresh = Wait(
            status=whole.status,
            reason=whole.reason[:REASON_CHARACTERS],
            times=0,
            lasted_ms=0,
            first_ms=now_ms,
            last_ms=now_ms,
        )
        wait = wait or fresh
        self._waits[now] = wait.model_copy(update={"times": wait.times + 1, "last_ms": now_ms})

    def _note_runs(self, reporting: Iterable[ProgressRecord]) -> None:
        for record in reporting:
            name = (record.worker, record.running_since)
            if name not in self._runs:
                self._starts += 1
                self._changed = True
                if len(self._runs) >= RUNS_KEPT:
                    del self._runs[min(self._runs, key=lambda run: self._runs[run].last_ms)]
                self._runs[name] = Run(worker=record.worker, since_ms=record.running_since, last_ms=record.updated_at)
            elif record.updated_at > self._runs[name].last_ms:
                self._runs[name] = self._runs[name].model_copy(update={"last_ms": record.updated_at})


def _form(reason: str) -> str:
    """Reasons that differ in their numbers alone are one."""
    return re.sub(r"\d[\d.,]*", "#", reason[:REASON_CHARACTERS])
