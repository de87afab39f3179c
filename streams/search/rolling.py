"""A rollout as it stands in the state, and what the queries of this process have shown of its present step.

It decides nothing: the controller does (streams.verbs.rolling), from what all processes have published.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from connectors.protocols import JSON
from streams.config_operation import Rollout
from streams.search.rollout import Latency, Observed, Pair, Seen, Standing, compared_with
from streams.search.tallies import SearchesRecord, Step, StepTally, Tally, p95_of, shadow_of, step_of
from streams.state import BuildState, RolloutState, ServedBefore
from streams.versions import Stage

KEPT_MS = 3_600_000


def standing_of(build: BuildState) -> Standing | None:
    """None before the controller has begun its rollout: nobody is in."""
    now = build.rollout
    return None if now is None else Standing(now.share, now.since_ms / 1000, now.stopped)


def observed(tally: Tally) -> Observed:
    return Observed(tally.queries, tally.errors, tally.zero, p95_of(tally.took))


def seen(build: BuildState, rules: Rollout, records: Collection[SearchesRecord], now_ms: int) -> Seen:
    """What all servers have counted of the present step, and what it is compared with."""
    return _seen(build, *_counted(build, rules, records, now_ms))


def _seen(build: BuildState, whole: Step, recent: Step) -> Seen:
    kept = build.rollout.before if build.rollout is not None else None
    before = None
    if kept is not None:
        when = f"at step {kept.step}, with {kept.share:.1%} of the callers"
        before = Latency(kept.p95_ms, kept.queries, when)
    return Seen(_pair(whole), _pair(recent), before)


def _counted(build: BuildState, rules: Rollout, records: Collection[SearchesRecord], now_ms: int) -> tuple[Step, Step]:
    """Of the present step: since it began, and in its last window."""
    if build.rollout is None:
        return Step(), Step()
    of = build.version, build.epoch, build.rollout.step
    return step_of(records, *of), step_of(records, *of, since_ms=now_ms - round(1000 * rules.window_s))


def _pair(step: Step) -> Pair:
    return Pair(observed(step.new), observed(step.serving))


def served_before(now: RolloutState, serving: Observed, rules: Rollout) -> ServedBefore | None:
    """What is kept of a step that ends for those after it: how long the serving version took, unless it was asked too
    little there and more is known of a step before."""
    if serving.p95_ms is None or (now.before is not None and serving.queries < rules.min_queries):
        return now.before
    return ServedBefore(p95_ms=serving.p95_ms, queries=serving.queries, step=now.step, share=now.share)


class Rollouts:
    """What this process has counted, by collection: of the newest step that it knows."""

    def __init__(self) -> None:
        self._tallies: dict[str, StepTally] = {}

    def add(
        self,
        build: BuildState,
        step: int,
        *,
        new: bool,
        hits: int | None,
        took_ms: float,
        at_ms: int,
        window_s: float,
    ) -> None:
        """One query that the `step` of this build's rollout has routed (StepTally.add), answered `at_ms`."""
        tally = self._tallies.get(build.collection)
        if tally is None or not tally.is_of(build.version, build.epoch, step):
            tally = StepTally(version=build.version, epoch=build.epoch, step=step)
            self._tallies[build.collection] = tally
        tally.add(new=new, hits=hits, took_ms=took_ms, at_ms=at_ms, window_s=window_s)

    def tallies(self) -> dict[str, StepTally]:
        return dict(self._tallies)


def outdated(record: SearchesRecord, builds: Collection[BuildState], now_ms: int) -> bool:
    """Nothing is judged by it any more, and its server has had nothing to add for an hour."""
    if now_ms - record.updated_at < KEPT_MS:
        return False
    step, pair = record.rollout, record.shadow
    if pair is not None and any(
        build.space == pair.shadow_space and build.stage in (Stage.BUILDING, Stage.READY) for build in builds
    ):
        return False
    return not any(
        step is not None
        and build.stage is Stage.READY
        and build.rollout is not None
        and step.is_of(build.version, build.epoch, build.rollout.step)
        for build in builds
        if build.collection == record.collection
    )


def shown(build: BuildState, rules: Rollout, records: Collection[SearchesRecord], now_ms: int) -> dict[str, JSON]:
    """Where the rollout of the version that comes stands, the figures of the present step and of its last window, of
    all servers, and what their latency is compared with."""
    now = build.rollout
    step, recent = _counted(build, rules, records, now_ms)
    found = _seen(build, step, recent)
    return {
        "version": build.version,
        "stage": build.stage.value,
        "share": now.share if now is not None else 0.0,
        "step": now.step if now is not None else 0,
        "since_s": round(max(0, now_ms - now.since_ms) / 1000, 3) if now is not None else None,
        "stopped": (now.stopped or None) if now is not None else None,
        "automatic": rules.automatic,
        "steps": list(rules.steps),
        "replicas": step.replicas,
        "new": step.new.as_json(),
        "serving": step.serving.as_json(),
        "compared_with": _latency(compared_with(rules, found, recent=False)),
        "recent": {
            "window_s": rules.window_s,
            "new": recent.new.as_json(),
            "serving": recent.serving.as_json(),
            "compared_with": _latency(compared_with(rules, found, recent=True)),
        },
    }


def _latency(latency: Latency | None) -> JSON:
    if latency is None:
        return None
    return {"p95_ms": round(latency.p95_ms, 3), "queries": latency.queries, "when": latency.when}


def compared(serving: BuildState, build: BuildState, records: Iterable[SearchesRecord]) -> dict[str, JSON] | None:
    """How the two agree in the queries that all servers have shadowed; None before there is one."""
    tally, replicas = shadow_of(records, serving.space, build.space)
    return {**tally.as_json(), "replicas": replicas} if replicas else None
