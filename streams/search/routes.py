"""Which space or spaces a query is put to, and why: decided once for each query, from what is known at that moment.

Pure: it must never ask a space, nor choose one whose build says it is not current.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from streams.config_operation import FusionName, RouteName, Routes
from streams.progress import ProgressRecord
from streams.search.rollout import Standing, is_in
from streams.state import BuildState
from streams.versions import Stage

ALL_BUT = 0.9999

Taken = RouteName | Literal["named"]


@dataclass(frozen=True, slots=True)
class Situation:
    """One collection at one moment. `coming`: the version that is being brought in; `coverage`: the share of the
    documents it holds, None while nobody has said."""

    serving: BuildState
    previous: BuildState | None = None
    coming: BuildState | None = None
    coverage: float | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """One query's way. `build` answers; with `beside`, the old space's build, both are asked and merged by `fusion`."""

    route: Taken
    build: BuildState
    why: str
    beside: BuildState | None = None
    fusion: FusionName = "places"
    coverage: float = 1.0


def coming_of(builds: Iterable[BuildState], serving: BuildState) -> BuildState | None:
    """The newest build that may follow the serving one: being built or ready, and begun after it. (One that has served
    before, and was kept, is ready too.)"""
    return _newest(b for b in builds if b.stage in (Stage.BUILDING, Stage.READY) and b.epoch > serving.epoch)


def ready_of(builds: Iterable[BuildState], serving: BuildState) -> BuildState | None:
    """The newest of them that is ready: what is begun after it does not end its rollout."""
    return _newest(b for b in builds if b.stage is Stage.READY and b.epoch > serving.epoch)


def to_come(builds: Sequence[BuildState], serving: BuildState) -> BuildState | None:
    """The version that is being brought in: one that is ready before one that is begun after it."""
    return ready_of(builds, serving) or coming_of(builds, serving)


def _newest(builds: Iterable[BuildState]) -> BuildState | None:
    return max(builds, key=lambda build: build.epoch, default=None)


def coverage_of(records: Sequence[ProgressRecord], partitions: int) -> float | None:
    """The share of the history that the replay has accounted for, by the partitions' newest records; None before each
    of them has planned its part. Always below 1: what the topic has forgotten is counted when the rest is done, and a
    build that has everything is ready."""
    if not partitions or len(records) < partitions or not all(record.planned for record in records):
        return None
    total = sum(record.total for record in records)
    return min(ALL_BUT, sum(record.completed for record in records) / total) if total else ALL_BUT


def is_current(build: BuildState) -> bool:
    """Written to as the topic goes on, as far as the state says."""
    return build.active and build.failure is None and build.paused != "all"


def by_name(build: BuildState) -> Decision:
    """The space the query has named, and no other."""
    return Decision("named", build, f"the query names {build.version}, which is {build.stage}")


def decide(
    situation: Situation,
    routes: Routes,
    *,
    mode: RouteName | None = None,
    caller: str | None = None,
    standing: Standing | None = None,
) -> Decision:
    """`mode`: as the query asks, else the configured default. `standing`: of the coming version's rollout."""
    match mode or routes.default:
        case "hybrid":
            return _hybrid(situation, routes)
        case "bridge":
            return _bridge(situation)
        case "rollout":
            return _rollout(situation, caller, standing)
        case _:
            return _old("serving", situation, f"{situation.serving.version} serves")


def _hybrid(now: Situation, routes: Routes) -> Decision:
    hybrid, coming = routes.hybrid, now.coming
    if coming is None or not is_current(coming):
        return _old("hybrid", now, _alone(now))
    coverage = _coverage(now)
    if coverage is None:
        return _old("hybrid", now, f"{coming.version} is being built and has not said how far it is")
    if coverage >= hybrid.complete:
        return Decision("hybrid", coming, f"{coming.version} is complete ({coverage:.0%})")
    if coverage < hybrid.from_coverage:
        why = f"{coming.version} holds {coverage:.0%} of the documents, below {hybrid.from_coverage:.0%}"
        return _old("hybrid", now, why)
    why = f"{coming.version} holds {coverage:.0%} of the documents: merged with {now.serving.version} by "
    return Decision("hybrid", coming, why + hybrid.fusion, now.serving, hybrid.fusion, coverage)


def _bridge(now: Situation) -> Decision:
    coming = now.coming
    if coming is None or not is_current(coming):
        return _old("bridge", now, _alone(now))
    coverage = _coverage(now)
    if coverage == 1.0:
        return Decision("bridge", coming, f"{coming.version} is complete")
    why = f"what {coming.version} holds is ranked by it, the rest by {now.serving.version}"
    return Decision("bridge", coming, why, now.serving, "places", coverage or 0.0)


def _rollout(now: Situation, caller: str | None, standing: Standing | None) -> Decision:
    coming = now.coming
    if coming is None or not is_current(coming):
        return _old("rollout", now, _alone(now))
    if coming.stage is not Stage.READY:
        return _old("rollout", now, f"{coming.version} is {coming.stage}: its rollout begins once it is ready")
    if standing is None or standing.share <= 0:
        stopped = f" ({standing.stopped})" if standing and standing.stopped else ""
        return _old("rollout", now, f"the rollout of {coming.version} stands at 0%{stopped}")
    if caller is None:
        return _old("rollout", now, "the query names no caller, so it cannot be given a stable share of the rollout")
    inside = is_in(caller, f"{coming.key}/{coming.epoch}", standing.share)
    why = f"the rollout of {coming.version} stands at {standing.share:.1%}, this caller is {'in' if inside else 'out'}"
    return Decision("rollout", coming, why) if inside else _old("rollout", now, why)


def _old(route: RouteName, now: Situation, why: str) -> Decision:
    return Decision(route, now.serving, why)


def _alone(now: Situation) -> str:
    if now.coming is None:
        return f"{now.serving.version} serves, and no later version is being built"
    return f"{now.coming.version} is held or has failed, so it may be behind the topic"


def _coverage(now: Situation) -> float | None:
    """A replay that is over has covered everything, where nothing else is said."""
    if now.coming is not None and now.coming.stage is Stage.READY and now.coverage is None:
        return 1.0
    return now.coverage


def stand_in(
    decision: Decision,
    failed: BuildState,
    situation: Situation,
    routes: Routes,
    reason: str,
    tried: Collection[str] = (),
) -> Decision | None:
    """Who answers instead of a decision of which `failed` cannot take part: the serving version for a coming one, the
    previous for the serving one. None where nobody may: the query named a space, nobody else is current, or everybody
    was `tried` (builds' keys)."""
    if decision.route == "named" or not routes.fall_back:
        return None
    other: BuildState | None = situation.serving
    if failed.key == situation.serving.key:
        other = situation.previous if situation.previous and is_current(situation.previous) else None
    if other is None or other.key == failed.key or other.key in tried:
        return None
    why = f"{decision.why}; but {failed.version} cannot answer ({reason}), so {other.version} does"
    return replace(decision, build=other, beside=None, why=why)
