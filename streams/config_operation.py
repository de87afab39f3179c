"""What a collection's part of the configuration says about operating a migration: order, throttles, gate, cutover.

None of it decides a vector; all of it may be changed while a build runs. It must never read a file (but
the system's time zones) or open a connection.
"""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path, PurePath
from typing import Annotated, Literal, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from streams.config_types import Count, FilePath, HttpUrl, Part, Rate, Seconds, Strict, TopicName, Whole, wrong

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Event = Literal["building", "ready", "serving", "previous", "retired", "aborted", "failed", "paused"]
CONDITIONS: tuple[Event, ...] = ("failed", "paused")
"""Beside a stage: nothing can be done before them."""
TierName = Literal["listed", "newest", "rest"]
TIERS: tuple[TierName, ...] = get_args(TierName)
_HOURS = re.compile(r"([01]\d|2[0-3]):[0-5]\d-(([01]\d|2[0-3]):[0-5]\d|24:00)")


def _hours(text: str) -> str:
    begin, _, end = text.partition("-")
    if not _HOURS.fullmatch(text) or begin == end:
        raise wrong("is no time of day", "hours like 22:00-06:00, from 00:00 up to 24:00")
    return text


def _timezone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # the last: a folder of them, like America
        raise wrong("is no time zone", "a name like Europe/Berlin, or UTC") from None
    return name


class Category(Strict):
    """A field of the documents and the weight of each of its values; a value that is not named weighs 1."""

    field: Annotated[str, Field(min_length=1)]
    weights: Annotated[dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]], Field(min_length=1)]


class Priority(Strict):
    """In which order a replay goes: the listed keys, most searched first; then the newest; then the rest.

    `keys`: a file of searched keys with their counts; `topic`: a compacted topic of them. A count halves every
    `half_life_days` since its time. `newest`: the share of the documents that were written last.
    """

    keys: FilePath | None = None
    topic: TopicName | None = None
    half_life_days: Rate | None = None
    category: Category | None = None
    newest: Share = 0.0

    @property
    def tiers(self) -> tuple[TierName, ...]:
        """The order that this comes to, the rest last."""
        listed = self.keys is not None or self.topic is not None
        there = {"listed": listed, "newest": self.newest > 0, "rest": True}
        return tuple(tier for tier in TIERS if there[tier])

    @model_validator(mode="after")
    def _one_list(self) -> Priority:
        if self.keys is not None and self.topic is not None:
            raise wrong("has two lists of keys", "one of keys and topic", "keys")
        for name in ("half_life_days", "category"):
            if getattr(self, name) is not None and self.keys is None and self.topic is None:
                raise wrong("weighs keys that nothing lists", f"{name} beside keys or topic", name)
        return self


class Throttle(Strict):
    """What slows or holds a replay; live writes never (streams.throttles). All are looked at, all that hold are named.

    `max_live_lag`: events of the live lane. `max_weaviate_latency_ms`: 95th percentile of this build's own calls.
    `max_disk`, `max_memory`: shares of what Weaviate has; the first has a default, which holds where the disk is known,
    below the 90% at which Weaviate turns read-only. `max_endpoint_errors`: share of the requests. `file`: holds while
    it exists. `http`: goes on while a GET of it is answered 2xx. `hours`: when it may go, as 22:00-06:00 in
    `timezone`; none: always.
    """

    max_live_lag: Count | None = None
    max_weaviate_latency_ms: Rate | None = None
    max_disk: Part | None = 0.85
    max_memory: Part | None = None
    max_endpoint_errors: Part | None = None
    file: FilePath | None = None
    http: HttpUrl | None = None
    hours: list[Annotated[str, AfterValidator(_hours)]] = Field(default_factory=list)
    timezone: Annotated[str, AfterValidator(_timezone)] = "UTC"


class ShadowGate(Strict):
    """What shadowed queries must show of a version before it serves: `min_queries` compared, else nobody can tell;
    `min_overlap`: of the first documents of both, in the mean (none unless configured: a better model finds others);
    `max_empty_increase`: of the share of queries that find nothing."""

    min_queries: Annotated[Whole, Field(ge=1, le=1_000_000)] = 100
    min_overlap: Share | None = None
    max_empty_increase: Share = 0.01


class Gate(Strict):
    """When a version is good enough to serve. `golden`: judged queries; without them quality is not judged.

    `gain`: of a grade in nDCG. `min_recall_ratio`: of the serving version's recall at `k`; `min_recall_lower`: what the
    lower end of that ratio's confidence interval must be above. `max_unknown_keys`: the share of the relevant documents
    that may be in no space. `max_index_queue`: vectors that are stored, and wait for their place in the index; never
    more than `min_coverage` leaves of the documents, since a search does not find them. `shadow`: not looked at unless
    configured.
    """

    golden: FilePath | None = None
    k: Annotated[Whole, Field(ge=1, le=1000)] = 10
    gain: Literal["linear", "exponential"] = "linear"
    min_queries: Annotated[Whole, Field(ge=1)] = 20
    min_recall_ratio: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)] = 0.98
    min_recall_lower: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)] = 0.95
    max_unknown_keys: Share = 0.05
    min_coverage: Share = 0.99
    max_live_lag: Annotated[Whole, Field(ge=0)] = 1000
    max_index_queue: Annotated[Whole, Field(ge=0)] = 1000
    shadow: ShadowGate | None = None


class Cutover(Strict):
    """What a cutover waits for beside the gate: that `postpone_file` does not exist on the controller's machine, that
    somebody approves it. `max_rollback_lag`: events that the previous version may be behind the log. `warm_up_s`: for
    so long at most, queries are replayed against the new space before the swap, until their latency is stable.
    `sweep_share`: of the time, at most, in which a sweep, or whatever else reads a whole space, keeps the store at work
    while a version serves; 1: without a pause."""

    postpone_file: FilePath | None = None
    approval: bool = False
    max_rollback_lag: Annotated[Whole, Field(ge=0)] = 1000
    warm_up_s: Annotated[float, Field(ge=0, le=600, allow_inf_nan=False)] = 10.0
    sweep_share: Annotated[float, Field(ge=0.01, le=1, allow_inf_nan=False)] = 0.33


class Retention(Strict):
    """How many `days` after a cutover the previous version is kept for a rollback, until `status` reminds of it.

    `automatic`: it is then retired without being asked about, and its space dropped (streams.migration.retention).
    """

    days: Annotated[float, Field(ge=0, le=3650, allow_inf_nan=False)] = 7.0
    automatic: bool = False


class Hook(Strict):
    """What is called at a change of stage: `command` (no shell; a program with a path begins at the configuration
    file), or `http`, which gets a POST. `before` it can stop the change, `after` it is told. See docs/hooks.md.

    Addresses and arguments may hold secrets, and are never shown: `name` is.
    """

    on: Annotated[list[Event], Field(min_length=1)]
    when: Literal["before", "after"] = "after"
    command: Annotated[list[str], Field(min_length=1)] | None = Field(default=None, repr=False)
    http: HttpUrl | None = Field(default=None, repr=False)
    timeout_s: Annotated[float, Field(gt=0, le=300, allow_inf_nan=False)] = 10.0
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-][A-Za-z0-9_. -]{0,47}$")] = ""

    @property
    def label(self) -> str:
        """What messages call it."""
        return self.name or (PurePath(self.command[0]).name[:48] if self.command else "http")

    @field_validator("command")
    @classmethod
    def _program(cls, command: list[str] | None, info: ValidationInfo) -> list[str] | None:
        if command is None or not command[0].strip():
            if command is not None:
                raise wrong("names no program", "a list: the program and its arguments")
            return None
        folder = (info.context or {}).get("folder")
        if "/" not in command[0] or folder is None:
            return command
        return [str((Path(folder) / Path(command[0]).expanduser()).absolute()), *command[1:]]

    @model_validator(mode="after")
    def _one_way(self) -> Hook:
        if (self.command is None) == (self.http is None):
            raise wrong("has not one thing to call", "one of command and http")
        if self.when == "before" and (late := [event for event in self.on if event in CONDITIONS]):
            raise wrong(f"cannot come before {late[0]}", "when: after", "when")
        return self


RouteName = Literal["serving", "hybrid", "rollout", "bridge"]
FusionName = Literal["places", "reciprocal", "weighted", "calibrated"]


class Hybrid(Strict):
    """While a version is built: below the coverage `from_coverage` the old space answers, from `complete` on the new
    one, between them both, merged by `fusion` (streams.search.fusion)."""

    fusion: FusionName = "places"
    from_coverage: Share = 0.5
    complete: Share = 1.0

    @model_validator(mode="after")
    def _ordered(self) -> Hybrid:
        if self.complete < self.from_coverage:
            raise wrong("is below from_coverage", f"from {self.from_coverage:g} to 1", "complete")
        return self


class Rollout(Strict):
    """The `share` of the callers whom a version answers from when it is ready; another one here begins it anew.

    `automatic`: raised along `steps` each `every_s` seconds, once `min_queries` were answered by it at a step. Beyond a
    bound, over the step as a whole or over its last `window_s` seconds, it goes back to none, automatic or not:
    `max_zero_results` and `max_errors` are shares of its queries, `max_latency_ratio` is of the serving version's 95th
    percentile, taken as 20 ms where that is less.
    """

    share: Share = 0.0
    automatic: bool = False
    steps: Annotated[list[Part], Field(min_length=1, max_length=100)] = Field(
        default_factory=lambda: [0.01, 0.05, 0.25, 0.5, 1.0]
    )
    every_s: Annotated[float, Field(gt=0, le=30 * 86_400, allow_inf_nan=False)] = 600.0
    min_queries: Annotated[Whole, Field(ge=1, le=1_000_000)] = 100
    window_s: Annotated[float, Field(ge=1, le=86_400, allow_inf_nan=False)] = 300.0
    max_zero_results: Share = 0.02
    max_errors: Share = 0.01
    max_latency_ratio: Rate = 2.0

    @field_validator("steps")
    @classmethod
    def _growing(cls, steps: list[float]) -> list[float]:
        if any(after <= before for before, after in pairwise(steps)):
            raise wrong("does not grow from step to step", "shares like [0.01, 0.1, 0.5, 1]")
        return steps


class ShadowSample(Strict):
    """Where servers keep shadowed queries with what both versions found, for a person to judge and to give back as a
    golden set: `most` different ones. `file`: one for each server; `topic`: a compacted one, `most` of all servers
    together. Either holds what users have asked, in their words."""

    file: FilePath | None = None
    topic: TopicName | None = None
    most: Annotated[Whole, Field(ge=1, le=20_000)] = 200

    @model_validator(mode="after")
    def _one_place(self) -> ShadowSample:
        if (self.file is None) == (self.topic is None):
            raise wrong("has not one place to be kept", "one of file and topic")
        return self


class Shadow(Strict):
    """A `share` of the live queries is asked of the new space as well, in the background: `at_once` at most, those
    beyond are dropped and counted. The first `k` of both answers are compared. `sample`: none unless configured."""

    share: Share = 0.0
    at_once: Annotated[Whole, Field(ge=1, le=1000)] = 4
    k: Annotated[Whole, Field(ge=1, le=100)] = 10
    sample: ShadowSample | None = None


class Searched(Strict):
    """Where a server writes how often each document was found, every `every_s` seconds: keys and counts, never a query,
    of the `most` searched ones. `file`: in the form of priority.keys, one for each server; `topic`: a compacted one for
    priority.topic, one for all servers."""

    file: FilePath | None = None
    topic: TopicName | None = None
    every_s: Seconds = 60.0
    most: Annotated[Whole, Field(ge=1, le=10_000_000)] = 100_000


class Routes(Strict):
    """Which space answers a query that names none (streams.search.routes). `fall_back`: while the model of the space
    that should answer is away, or has not answered within `fall_back_after_s`, the version beside it does, and the
    answer says so."""

    default: RouteName = "serving"
    hybrid: Hybrid = Field(default_factory=Hybrid)
    rollout: Rollout = Field(default_factory=Rollout)
    shadow: Shadow = Field(default_factory=Shadow)
    searched: Searched = Field(default_factory=Searched)
    fall_back: bool = True
    fall_back_after_s: Seconds = 2.0


class Watch(Strict):
    """For `for_s` seconds after a cutover the golden queries are asked every `every_s`; beyond a bound it says so, and
    with `rollback` goes back by itself (streams.migration.watch). `max_zero_results`, `max_errors`: shares of the
    queries. `max_latency_ratio`: of the p95 before the cutover, taken as 20 ms where it was less."""

    for_s: Annotated[float, Field(gt=0, le=7 * 86_400, allow_inf_nan=False)] = 600.0
    every_s: Seconds = 10.0
    max_zero_results: Share = 0.02
    max_errors: Share = 0.01
    max_latency_ratio: Rate = 2.0
    rollback: bool = False
