"""What a collection's part of the configuration says about operating a migration: order, throttles, gate, cutover.

None of it decides a vector; all of it may be changed while a build runs. It must never read a file (but
the system's time zones) or open a connection.
"""

from __future__ import annotations

import re
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


class Gate(Strict):
    """When a version is good enough to serve. `golden`: judged queries; without them quality is not judged.

    `gain`: of a grade in nDCG. `min_recall_ratio`: of the serving version's recall at `k`; `min_recall_lower`: what the
    lower end of that ratio's confidence interval must be above. `max_unknown_keys`: the share of the relevant documents
    that may be in no space. `max_index_queue`: vectors that are stored, and wait for their place in the index; never
    more than `min_coverage` leaves of the documents, since a search does not find them.
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


class Cutover(Strict):
    """What a cutover waits for beside the gate: that `postpone_file` does not exist on the controller's machine, that
    somebody approves it. `max_rollback_lag`: events that the previous version may be behind the log. `warm_up_s`: for
    so long at most, queries are replayed against the new space before the swap, until their latency is stable."""

    postpone_file: FilePath | None = None
    approval: bool = False
    max_rollback_lag: Annotated[Whole, Field(ge=0)] = 1000
    warm_up_s: Annotated[float, Field(ge=0, le=600, allow_inf_nan=False)] = 10.0


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
