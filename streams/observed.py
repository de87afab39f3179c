"""What a hosted build shows of itself beside its progress records: endpoints, throttle, store calls, dead letters.

Written by the build's own tasks, read by the thread that serves metrics: values are replaced whole, never mended.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple
from zoneinfo import ZoneInfo

from connectors.embedders.endpoint import EndpointStatus
from streams.config_operation import Throttle
from streams.throttles import Held, Kind, Reading, Slowed, Verdict, within

CALL_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Counted(NamedTuple):
    """`within`: how many calls took no longer than each bucket, and all of them last; `sum_s`: together."""

    within: tuple[int, ...]
    sum_s: float


class CallTimes:
    """How long calls took since the worker began to host the build, by operation, in buckets of CALL_BUCKETS_S."""

    def __init__(self) -> None:
        self._counted: dict[str, Counted] = {}

    def observe(self, operation: str, took_s: float) -> None:
        within, sum_s = self._counted.get(operation, Counted((0,) * (len(CALL_BUCKETS_S) + 1), 0.0))
        first = bisect_left(CALL_BUCKETS_S, took_s)
        self._counted[operation] = Counted((*within[:first], *(n + 1 for n in within[first:])), sum_s + took_s)

    def by_operation(self) -> dict[str, Counted]:
        return dict(self._counted)


def held_by(verdict: Verdict, settings: Throttle, readings: Mapping[Kind, Reading], wall: datetime) -> frozenset[str]:
    """The settings that hold the replay, by name; `unread` when it is held until something is known. `wall`: aware."""
    if not isinstance(verdict.decision, Held):
        return frozenset()
    kinds = set(verdict.held_since)
    for brake in ("file", "http"):
        reading = readings.get(brake)
        if getattr(settings, brake) is not None and reading is not None and reading.value != 0:
            kinds.add(brake)
    if settings.hours and not within(settings.hours, wall.astimezone(ZoneInfo(settings.timezone)).time()):
        kinds.add("hours")
    return frozenset(kinds or {"unread"})


def speed_of(verdict: Verdict) -> float:
    """The share of its speed at which the throttle lets a replay go: 0 while it is held."""
    if isinstance(verdict.decision, Held):
        return 0.0
    return verdict.decision.factor if isinstance(verdict.decision, Slowed) else 1.0


@dataclass(slots=True)
class Observed:
    """Of one build in one worker; it outlives the build's starts there. `dead_letters`: by cause; `held_by`: settings
    of the throttle; `speed`: the share it leaves."""

    calls: CallTimes = field(default_factory=CallTimes)
    dead_letters: Counter[str] = field(default_factory=Counter)
    endpoints: tuple[EndpointStatus, ...] = ()
    held_by: frozenset[str] = frozenset()
    speed: float = 1.0
