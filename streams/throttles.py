"""What slows or holds a replay, decided from readings. Live writes never ask here.

Pure: no clock, no file and no connection. What has held goes on only when it is clearly better, so that nothing flaps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, time
from types import MappingProxyType
from typing import Literal, NamedTuple
from zoneinfo import ZoneInfo

from streams.config_operation import Throttle
from streams.state import Controls

Gauged = Literal["max_live_lag", "max_weaviate_latency_ms", "max_disk", "max_memory", "max_endpoint_errors"]
Kind = Literal[
    "max_live_lag", "max_weaviate_latency_ms", "max_disk", "max_memory", "max_endpoint_errors", "file", "http"
]

SLOWED_FROM = 0.5  # of a bound: from here on slower and slower, down to SLOWEST at the bound
SLOWEST = 0.2
STEP = 0.05
HELD_AT_LEAST_S = 5.0
UNREAD_HOLDS_S = 60.0
STALE_S = 30.0


class Reading(NamedTuple):
    """`value`: in the unit of its bound; of `file` and `http` 1.0 to hold and 0.0 to let go; None with `trouble`, why
    it could not be read. `at_s`: when, on the monotonic clock. `said`: what the other side answered."""

    value: float | None
    at_s: float
    trouble: str = ""
    said: str = ""


@dataclass(frozen=True, slots=True)
class Held:
    """No replayed document may go on, for this reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class Slowed:
    """The replay goes at this share of its speed, between 0 and 1."""

    factor: float
    reason: str


Decision = Held | Slowed | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """`held_since`: of each bound that holds, and `read_at` of the last good reading: to be given to the next
    `decide`. `unread`: what could not be read and does not hold, in words."""

    decision: Decision = None
    held_since: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    read_at: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    unread: str = ""


class _Gauge(NamedTuple):
    """`says`: what is measured; `unit`: how its figures are written. `lets_go`: the value at which what has held goes
    on, from the bound. `slows`: whether going slower helps."""

    says: str
    unit: str
    lets_go: Callable[[float], float]
    slows: bool

    def figure(self, value: float) -> str:
        return self.unit.format(value)


_GAUGES: Mapping[Gauged, _Gauge] = {
    "max_disk": _Gauge("Weaviate's disk", "{:.0%}", lambda bound: bound - 0.02, slows=False),
    "max_memory": _Gauge("Weaviate's memory", "{:.0%}", lambda bound: bound - 0.02, slows=False),
    "max_live_lag": _Gauge("live lag", "{:,.0f}", lambda bound: 0.8 * bound, slows=True),
    "max_weaviate_latency_ms": _Gauge("Weaviate's p95", "{:,.0f} ms", lambda bound: 0.8 * bound, slows=True),
    "max_endpoint_errors": _Gauge("failed requests", "{:.0%}", lambda bound: 0.8 * bound, slows=True),
}
GAUGES: tuple[Gauged, ...] = tuple(_GAUGES)


def in_force(configured: Throttle, controls: Controls) -> Throttle:
    """The bounds as `set` has changed them: 0 there means none."""
    changed: dict[str, float | None] = {
        name: getattr(controls, name) or None for name in _GAUGES if getattr(controls, name) is not None
    }
    return configured.model_copy(update=changed)


def decide(
    settings: Throttle, readings: Mapping[Kind, Reading], now_s: float, wall: datetime, before: Verdict | None = None
) -> Verdict:
    """What the readings come to. `wall`: aware; `now_s`: of the readings' clock; `before`: what was decided last.

    What nobody has looked at yet holds; the first look takes seconds. A brake of the operator's (`file`, `http`) that
    cannot be looked at holds too. A bound whose value cannot be read does not, but one that held goes on holding for
    UNREAD_HOLDS_S. A bound that nobody has set, but has a default, neither waits for its first reading nor says that
    it has none: where the value is not known, there is nothing to be done about it.
    """
    before = before or Verdict()
    holds: list[str] = []
    unread: list[str] = []
    slowed: list[Slowed] = []
    held_since: dict[str, float] = {}
    read_at: dict[str, float] = {}
    if settings.file is not None:
        holds += _brake(f"{settings.file} exists", f"the file {settings.file}", readings.get("file"), now_s)
    if settings.http is not None:
        reading = readings.get("http")
        said = f"{settings.http} answered {reading.said}" if reading is not None else ""
        holds += _brake(said, settings.http, reading, now_s)
    if settings.hours and not within(settings.hours, wall.astimezone(ZoneInfo(settings.timezone)).time()):
        holds.append(f"it goes at {', '.join(settings.hours)} {settings.timezone} only")
    for name, gauge in _GAUGES.items():
        bound = getattr(settings, name)
        if bound is None:
            continue
        reading = _fresh(readings.get(name), now_s)
        since = before.held_since.get(name)
        default = name not in settings.model_fields_set
        if reading is None and default:
            continue
        if reading is None:  # a small replay would be over before the first look
            holds.append(f"{name} is not looked at yet")
            continue
        if reading.value is None:
            last_s = before.read_at.get(name, -UNREAD_HOLDS_S)
            if since is not None and now_s - last_s < UNREAD_HOLDS_S:
                holds.append(f"{name} was exceeded and cannot be read now: {reading.trouble}")
                held_since[name], read_at[name] = since, last_s
            elif not default:
                unread.append(f"{name} cannot be read: {reading.trouble}")
            continue
        read_at[name] = reading.at_s
        value, goes_on = reading.value, gauge.lets_go(bound)
        now_at = f"{gauge.says} {gauge.figure(value)}"
        if value > bound:
            of = f", the default of throttle.{name}" if default else ""
            holds.append(f"{now_at} above {gauge.figure(bound)}{of}")
            held_since[name] = now_s if since is None else since
        elif since is not None and (value > goes_on or now_s - since < HELD_AT_LEAST_S):
            holds.append(f"{now_at} was above {gauge.figure(bound)}, goes on at {gauge.figure(goes_on)}")
            held_since[name] = since
        elif gauge.slows and (factor := _factor(value / bound)) < 1:
            slowed.append(Slowed(factor, f"{now_at} nears {gauge.figure(bound)}"))
    decision: Decision = None
    if holds:
        decision = Held("held: " + "; ".join(holds))
    elif slowed:
        slowest = min(slowed, key=lambda one: one.factor)
        decision = Slowed(slowest.factor, f"slowed to {slowest.factor:.0%}: {slowest.reason}")
    return Verdict(decision, held_since, read_at, "; ".join(unread))


def unseen(settings: Throttle, readings: Mapping[Kind, Reading]) -> bool:
    """Whether there is something to look at that nobody has looked at yet."""
    kinds: tuple[Kind, ...] = (*GAUGES, "file", "http")
    wanted = [kind for kind in kinds if kind in settings.model_fields_set and getattr(settings, kind) is not None]
    return any(kind not in readings for kind in wanted)


def within(hours: Sequence[str], at: time) -> bool:
    """Whether a time of day lies in one of the windows; each holds its beginning, not its end."""
    minute = at.hour * 60 + at.minute
    for window in hours:
        begin, end = (int(text[:2]) * 60 + int(text[3:]) for text in window.split("-"))
        if begin <= minute < end or (end < begin and (minute >= begin or minute < end)):
            return True
    return False


def _brake(holds: str, what: str, reading: Reading | None, now_s: float) -> list[str]:
    fresh = _fresh(reading, now_s)
    if fresh is None:
        return [f"{what} is not looked at yet"]
    if fresh.value is None:
        return [fresh.trouble]
    return [holds] if fresh.value else []


def _fresh(reading: Reading | None, now_s: float) -> Reading | None:
    if reading is not None and now_s - reading.at_s > STALE_S:
        return Reading(None, reading.at_s, f"nobody has looked for {now_s - reading.at_s:.0f} s")
    return reading


def _factor(share_of_bound: float) -> float:
    """1 up to SLOWED_FROM, then in a straight line down to SLOWEST at the bound, in steps that a person can follow."""
    over = max(0.0, share_of_bound - SLOWED_FROM) / (1 - SLOWED_FROM)
    return max(SLOWEST, round((1 - over * (1 - SLOWEST)) / STEP) * STEP)
