"""What the report of a migration says, as values: from the state, the journal, the progress records and the series.

Pure: figures are taken over as they were recorded, and what nobody recorded is said to be unknown, never guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, zip_longest

from pydantic import JsonValue

from connectors.protocols import JSON
from streams.cli.report_plots import Line, Mark, Plot
from streams.migration.gate import GateResult
from streams.migration.series import Point, SeriesRecord, Track
from streams.progress import Counters, ProgressRecord
from streams.state import BuildState, CollectionState, JournalEntry

GAP_MS = 15_000
SWEEP = ("checked", "missing", "stale", "extra", "held")


@dataclass(frozen=True, slots=True)
class Step:
    """One journal entry of the migration. `number`: in the time line, and above the plots. `stage`: after it."""

    number: int
    entry: JournalEntry
    stage: str

    @property
    def outcome(self) -> Mapping[str, JsonValue]:
        found = self.entry.data.get("outcome")
        return found if isinstance(found, Mapping) else {}

    @property
    def swept(self) -> dict[str, int]:
        """What a sweep found, in documents; empty when this was none."""
        if "checked" not in self.outcome:
            return {}
        return {name: value for name in SWEEP if isinstance(value := self.outcome.get(name), int)}

    @property
    def gate(self) -> GateResult | None:
        gate = self.outcome.get("gate")
        try:
            return GateResult.from_json(gate) if isinstance(gate, Mapping) else None
        except ValueError:
            return None


@dataclass(frozen=True, slots=True)
class Facts:
    """`whole`: the build's newest record, None when none is left of it; `letters`: its dead letters by cause."""

    collection: CollectionState
    build: BuildState
    steps: Sequence[Step]
    whole: ProgressRecord | None
    series: SeriesRecord | None
    now_ms: int
    letters: Mapping[str, int] = field(default_factory=dict)

    @property
    def counted(self) -> Counters | None:
        return self.whole.counted() if self.whole is not None else None

    @property
    def spent(self) -> tuple[int, float] | None:
        """Tokens and USD, as the workers reported; else as the journal says; None when neither knows."""
        if self.counted is not None:
            return self.counted.tokens, self.counted.cost_usd
        for step in reversed(self.steps):
            tokens, cost = step.outcome.get("tokens"), step.outcome.get("cost_usd")
            if isinstance(tokens, int) and isinstance(cost, int | float):
                return tokens, float(cost)
        return None

    @property
    def gates(self) -> list[tuple[Step, GateResult]]:
        """One for each time it was asked: the entries of one cutover repeat it."""
        found: dict[str, tuple[Step, GateResult]] = {}
        for step in self.steps:
            if (gate := step.gate) is not None:
                found.setdefault(step.entry.command_id or str(step.number), (step, gate))
        return list(found.values())

    @property
    def sweeps(self) -> list[Step]:
        found: dict[str, Step] = {}
        for step in self.steps:
            if step.swept:
                found.setdefault(step.entry.command_id or str(step.number), step)
        return list(found.values())

    @property
    def stages(self) -> list[tuple[str, int, int | None]]:
        """Each stage with when it began and ended, in ms since the epoch; None: it goes on."""
        changes = [(step.stage, step.entry.at_ms) for step in self.steps if step.stage]
        kept = [change for i, change in enumerate(changes) if i == 0 or change[0] != changes[i - 1][0]]
        ends = [at_ms for _, at_ms in kept[1:]]
        return [(stage, at_ms, end) for (stage, at_ms), end in zip_longest(kept, ends)]

    def steps_named(self, *events: str) -> list[Step]:
        return [step for step in self.steps if step.entry.event in events]


def facts_of(
    collection: CollectionState,
    build: BuildState,
    entries: Iterable[JournalEntry],
    whole: ProgressRecord | None,
    series: SeriesRecord | None,
    letters: Mapping[str, int],
    now_ms: int,
) -> Facts:
    """`entries`: the collection's whole journal, oldest first."""
    steps = [
        Step(number, entry, _stage(build, entry))
        for number, entry in enumerate((entry for entry in entries if _of(build, entry)), 1)
    ]
    whole = whole if whole is not None and whole.epoch == build.epoch else None
    return Facts(collection, build, steps, whole, series, now_ms, dict(letters))


def _of(build: BuildState, entry: JournalEntry) -> bool:
    """Of this build, not of one that had its name before; or of the whole collection (a rollback) in its time."""
    about = entry.data.get(build.key)
    if isinstance(about, Mapping):
        return about.get("space") == build.space
    if entry.version is not None:
        return entry.version == build.version and entry.epoch in (None, build.epoch)
    return entry.at_ms >= build.started_ms and (build.active or entry.at_ms <= build.updated_ms)


def _stage(build: BuildState, entry: JournalEntry) -> str:
    about = entry.data.get(build.key)
    stage = about.get("stage") if isinstance(about, Mapping) else None
    return stage if isinstance(stage, str) else ""


# over time


def plots_of(facts: Facts) -> list[Plot]:
    """Those of the replay, then those of the time since; some of them may be empty."""
    series = facts.series
    if series is None:
        return []
    marks = tuple(Mark(step.entry.at_ms, step.number) for step in facts.steps)
    replay, after = series.replay, series.after
    plots = [
        Plot(
            "The replay: documents of the history done",
            "documents",
            (
                Line("done", _values(replay, lambda p: p.completed)),
                Line("all of them", _values(replay, lambda p: p.total), dashed=True),
            ),
            marks,
        ),
        Plot(
            "The replay: throughput",
            "a second",
            (
                Line("documents of the history", rates(replay, lambda p: p.completed)),
                Line("live events", rates(replay, lambda p: p.live), dashed=True),
            ),
            marks,
        ),
        Plot("The replay: live lag", "events", (Line("live lag", _values(replay, lambda p: p.lag)),), marks),
    ]
    if any(p.nano_usd for p in replay.points):
        plots.append(
            Plot("The replay: spend", "USD", (Line("spent", _values(replay, lambda p: p.nano_usd / 1e9)),), marks)
        )
    elif any(p.tokens for p in replay.points):
        plots.append(
            Plot("The replay: tokens", "tokens", (Line("tokens", _values(replay, lambda p: p.tokens)),), marks)
        )
    return [
        *plots,
        Plot("Since the replay: live lag", "events", (Line("live lag", _values(after, lambda p: p.lag)),), marks),
        Plot("Since the replay: throughput", "a second", (Line("live events", rates(after, lambda p: p.live)),), marks),
    ]


def _values(track: Track, value: Callable[[Point], float]) -> list[tuple[int, float] | None]:
    points: list[tuple[int, float] | None] = []
    for point in track.points:
        last = points[-1] if points else None
        if last is not None and _gap(track, point.at_ms - last[0]):
            points.append(None)
        points.append((point.at_ms, float(value(point))))
    return points


def rates(track: Track, value: Callable[[Point], float]) -> list[tuple[int, float] | None]:
    """Exact means between two points, at the later one; no line where nobody looked, or somebody counted anew."""
    found: list[tuple[int, float] | None] = []
    for before, after in pairwise(track.points):
        passed_ms, more = after.at_ms - before.at_ms, value(after) - value(before)
        if passed_ms <= 0:
            continue
        found.append(None if more < 0 or _gap(track, passed_ms) else (after.at_ms, 1000 * more / passed_ms))
    return found


def _gap(track: Track, passed_ms: int) -> bool:
    return passed_ms > 2 * track.every_ms + GAP_MS


def highest(points: Iterable[tuple[int, float] | None]) -> float | None:
    return max((point[1] for point in points if point is not None), default=None)


# for scripts


def facts_json(facts: Facts) -> dict[str, JSON]:
    """Everything that the page shows; the series as columns by name."""
    build, whole, series = facts.build, facts.whole, facts.series
    return {
        "collection": build.collection,
        "version": build.version,
        "epoch": build.epoch,
        "stage": build.stage.value,
        "space": build.space,
        "fingerprint": build.fingerprint,
        "envelope": dict(build.envelope),
        "provenance": dict(build.provenance),
        "made_at_ms": facts.now_ms,
        "started_ms": build.started_ms or None,
        "ready_ms": build.ready_ms or None,
        "stages": [{"stage": stage, "from_ms": begin, "to_ms": end} for stage, begin, end in facts.stages],
        "time_line": [
            step.entry.model_dump(mode="json", exclude={"format", "collection"}) | {"number": step.number}
            for step in facts.steps
        ],
        "gates": [{"number": step.number, "at_ms": step.entry.at_ms, **gate.as_json()} for step, gate in facts.gates],
        "sweeps": [{"number": step.number, "at_ms": step.entry.at_ms, **step.swept} for step in facts.sweeps],
        "tokens": facts.spent[0] if facts.spent else None,
        "cost_usd": facts.spent[1] if facts.spent else None,
        "total": whole.total if whole else None,
        "completed": whole.completed if whole else None,
        "tiers": [tier.model_dump(mode="json") for tier in whole.tiers] if whole else [],
        "counters": dict(whole.counters) if whole else {},
        "dead_letters": dict(facts.letters),
        "series": series.model_dump(mode="json", exclude={"format", "epoch"}) if series else None,
        "series_columns": list(Point._fields),
    }
