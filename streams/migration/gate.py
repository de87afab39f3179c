"""Whether a version is good enough to serve: named checks against the bounds of `Gate`, and their verdict.

Pure: what was measured comes in, pass, fail or inconclusive comes out. `evaluate` and `cutover` print the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from pydantic import BaseModel

from connectors.protocols import JSON
from streams.config_operation import Gate, ShadowGate
from streams.migration.evaluate import CONFIDENCE, Comparison, Estimate
from streams.progress import ProgressRecord
from streams.search.tallies import ShadowTally

NOT_SWEPT = "not swept; cutover does"
MOST_SLICES = 20  # named in the notes


class Verdict(StrEnum):
    """FAIL: a figure is beyond its bound. INCONCLUSIVE: none is, but not all of them are known well enough."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at. `value` None: it could not be had. `sentence`: what it means, for a person."""

    name: str
    value: float | None
    bound: float
    verdict: Verdict
    sentence: str


class _WrittenCheck(BaseModel):
    name: str
    value: float | None
    bound: float
    verdict: Verdict
    sentence: str


class _Written(BaseModel):
    """A gate result as it stands in an outcome or the journal."""

    verdict: Verdict
    judged: bool
    checks: list[_WrittenCheck]
    notes: list[str]


@dataclass(frozen=True, slots=True)
class GateResult:
    """`judged`: quality was part of it. `notes`: what was left out or should be known, a sentence each."""

    verdict: Verdict
    checks: tuple[Check, ...]
    notes: tuple[str, ...]
    judged: bool

    @property
    def passed(self) -> bool:
        return self.verdict is Verdict.PASS

    def as_json(self) -> dict[str, JSON]:
        """For `--json`, a command's outcome and the journal; `from_json` reads it again."""
        return {
            "verdict": self.verdict.value,
            "judged": self.judged,
            "checks": [
                {
                    "name": check.name,
                    "value": check.value if check.value is not None and math.isfinite(check.value) else None,
                    "bound": check.bound,
                    "verdict": check.verdict.value,
                    "sentence": check.sentence,
                }
                for check in self.checks
            ],
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, JSON]) -> GateResult:
        """What `as_json` made, such as a command's outcome. Raises ValueError for anything else."""
        read = _Written.model_validate(data)
        checks = tuple(Check(c.name, c.value, c.bound, c.verdict, c.sentence) for c in read.checks)
        return cls(read.verdict, checks, tuple(read.notes), read.judged)

    def lines(self) -> list[str]:
        """`gate: pass`, then one line for each check and note; for terminals and pipes alike."""
        width = max((len(check.name) for check in self.checks), default=0)
        marks = {Verdict.PASS: "ok  ", Verdict.FAIL: "FAIL", Verdict.INCONCLUSIVE: "?   "}
        return [
            f"gate: {self.verdict}",
            *(f"  {marks[check.verdict]} {check.name:<{width}}  {check.sentence}" for check in self.checks),
            *(f"  note: {note}" for note in self.notes),
        ]

    def reasons(self) -> str:
        """What stands in the way, in one line, for a refusal; "" when it passed."""
        return "; ".join(f"{c.name}: {c.sentence}" for c in self.checks if c.verdict is not Verdict.PASS)


@dataclass(frozen=True, slots=True)
class Unjudged:
    """A golden set is configured, but its queries could not be asked: the cause, in words."""

    reason: str


@dataclass(frozen=True, slots=True)
class Swept:
    """What the sweep before a cutover found, in documents. `held`: in the dead letters, and not accepted by name."""

    checked: int
    missing: int
    stale: int
    extra: int
    held: int


@dataclass(frozen=True, slots=True)
class Health:
    """How complete and current a build is. None: nobody could say.

    `documents`: of the replay; `coverage`: the share of them that is accounted for. `live_lag`: events not resolved.
    `unsettled`: keys of writes of unknown outcome. `dead_letters`: events ever sent there, mended ones included; what
    they hold is known by a sweep alone. `index_queue`: vectors stored and not yet in the index. `swept` None: no
    sweep was made. `shadow`: queries that users have asked of what serves, and servers of this build as well; None when
    nothing serves.
    """

    documents: int | None
    coverage: float | None
    live_lag: int | None
    unsettled: int | None
    dead_letters: int | None
    index_queue: int | None
    swept: Swept | None = None
    shadow: ShadowTally | None = None

    @classmethod
    def of(
        cls,
        whole: ProgressRecord | None,
        silent: int,
        index_queue: int | None,
        swept: Swept | None = None,
        shadow: ShadowTally | None = None,
    ) -> Health:
        """`whole`: the build's record (`streams.progress.combine`); `silent`: partitions nobody reports on lately.

        While one is silent, the lag is not known.
        """
        if whole is None:
            return cls(None, None, None, None, None, index_queue, swept, shadow)
        current = None if silent else whole
        return cls(
            documents=whole.total if whole.planned else None,
            coverage=whole.progress if whole.planned else None,
            live_lag=current.live_lag if current else None,
            unsettled=current.unsettled if current else None,
            dead_letters=whole.dead_letters,
            index_queue=index_queue,
            swept=swept,
            shadow=shadow,
        )


def judge(gate: Gate, quality: Comparison | Unjudged | None, health: Health) -> GateResult:
    """`quality` None: no golden set is configured. It is then not judged, which a note says, and does not fail.

    A figure beyond its bound fails. One that is within it but too uncertain, or that could not be had, is
    inconclusive. The whole is the worst of all checks.
    """
    checks: list[Check] = []
    notes: list[str] = []
    if quality is None:
        notes.append("quality is not judged: no golden set is configured (gate.golden)")
    elif isinstance(quality, Unjudged):
        checks.append(_unknown("recall", gate.min_recall_ratio, quality.reason))
    else:
        checks += _quality(gate, quality)
        notes += _remarks(gate, quality)
    if gate.shadow is not None and health.shadow is not None:
        checks += _shadowed(gate.shadow, health.shadow)
    checks += _completeness(gate, health)
    if health.swept is None:
        notes.append(NOT_SWEPT)
        if health.dead_letters:
            notes.append(
                f"{health.dead_letters:,} events went to the dead letters: the sweep says which documents they hold"
            )
    worst = next(
        (v for v in (Verdict.FAIL, Verdict.INCONCLUSIVE) if any(check.verdict is v for check in checks)), Verdict.PASS
    )
    return GateResult(worst, tuple(checks), tuple(notes), isinstance(quality, Comparison))


def _quality(gate: Gate, found: Comparison) -> list[Check]:
    checks = [
        Check(
            "golden set",
            found.queries,
            gate.min_queries,
            Verdict.PASS if found.queries >= gate.min_queries else Verdict.INCONCLUSIVE,
            f"{found.queries:,} judged queries"
            + ("" if found.queries >= gate.min_queries else f"; fewer than {gate.min_queries} say little"),
        )
    ]
    if found.unknown:
        share = len(found.unknown) / found.keys
        fits = share <= gate.max_unknown_keys
        checks.append(
            Check(
                "golden keys",
                share,
                gate.max_unknown_keys,
                Verdict.PASS if fits else Verdict.INCONCLUSIVE,
                f"{len(found.unknown):,} of {found.keys:,} relevant documents are in no space ({_named(found)}), "
                f"{'within' if fits else 'more than'} {gate.max_unknown_keys:.0%}",
            )
        )
    if found.old is None or found.ratio is None:
        return checks
    ratio, k, old, new = found.ratio, found.k, found.old, found.new
    if old.recall.value == new.recall.value == 0:
        return [*checks, _unknown("recall", gate.min_recall_ratio, f"neither finds a relevant document among {k}")]
    enough = ratio.value >= gate.min_recall_ratio
    checks.append(
        Check(
            "recall",
            ratio.value,
            gate.min_recall_ratio,
            Verdict.PASS if enough else Verdict.FAIL,
            f"recall@{k} {old.recall.value:.4f} -> {new.recall.value:.4f}: {_times(ratio.value)} that of "
            f"{old.version}, {'at least' if enough else 'below'} {gate.min_recall_ratio:g}",
        )
    )
    sure = ratio.low > gate.min_recall_lower
    checks.append(
        Check(
            "recall interval",
            ratio.low,
            gate.min_recall_lower,
            Verdict.PASS if sure else Verdict.INCONCLUSIVE,
            f"{CONFIDENCE:.0%} interval {_interval(ratio)}: its lower end is "
            + (f"above {gate.min_recall_lower:g}" if sure else f"not above {gate.min_recall_lower:g}"),
        )
    )
    return checks


def _remarks(gate: Gate, found: Comparison) -> list[str]:
    notes = [f"golden set: {note}" for note in found.notes]
    new = found.new
    if found.old is None:
        notes.append(
            f"nothing to compare with, so nothing to be worse than: recall@{found.k} of {new.version} is "
            f"{new.recall.value:.4f} {_interval(new.recall, 4)}"
        )
    if new.refused:
        notes.append(f"{new.version} cannot take {new.refused:,} of the queries: they count as nothing found")
    worse = [one for one in found.slices if one.ratio is not None and one.ratio.high < gate.min_recall_ratio]
    notes += [
        f"slice {one.name!a}: recall is {_times(one.ratio.value)} what it was {_interval(one.ratio)}, "
        f"over {one.queries:,} queries"
        for one in worse[:MOST_SLICES]
        if one.ratio is not None
    ]
    if len(worse) > MOST_SLICES:
        notes.append(f"{len(worse) - MOST_SLICES:,} more slices are worse: crossfade evaluate --json has all of them")
    return notes


def _shadowed(bounds: ShadowGate, seen: ShadowTally) -> list[Check]:
    enough = seen.compared >= bounds.min_queries
    checks = [
        Check(
            "shadow queries",
            seen.compared,
            bounds.min_queries,
            Verdict.PASS if enough else Verdict.INCONCLUSIVE,
            f"{seen.compared:,} of users' queries were asked of both"
            + ("" if enough else f"; fewer than {bounds.min_queries:,} say little"),
        )
    ]
    overlap = seen.mean(seen.overlap)
    if not enough or overlap is None:
        return checks
    if bounds.min_overlap is not None:
        fits = overlap >= bounds.min_overlap
        checks.append(
            Check(
                "shadow overlap",
                overlap,
                bounds.min_overlap,
                Verdict.PASS if fits else Verdict.FAIL,
                f"{overlap:.1%} of the first {seen.k} documents are the same, "
                f"{'at least' if fits else 'below'} {bounds.min_overlap:.1%}",
            )
        )
    more = (seen.shadow_zero - seen.live_zero) / seen.compared
    fits = more <= bounds.max_empty_increase
    checks.append(
        Check(
            "shadow empty",
            more,
            bounds.max_empty_increase,
            Verdict.PASS if fits else Verdict.FAIL,
            f"{seen.live_zero / seen.compared:.1%} of them found nothing in {seen.live}, "
            f"{seen.shadow_zero / seen.compared:.1%} in {seen.shadow}: "
            f"{'at most' if fits else 'more than'} {bounds.max_empty_increase:.1%} more",
        )
    )
    return checks


def _completeness(gate: Gate, health: Health) -> list[Check]:
    checks = [_coverage(gate, health.coverage)]
    if (swept := health.swept) is not None:
        wrong = swept.missing + swept.stale + swept.extra
        checks.append(
            Check(
                "sweep",
                wrong,
                0,
                Verdict.FAIL if wrong else Verdict.PASS,
                f"checked {swept.checked:,}, missing {swept.missing:,}, stale {swept.stale:,}, extra {swept.extra:,}",
            )
        )
        held = f"{swept.held:,} documents are held there" if swept.held else "none is held but those accepted by name"
        checks.append(Check("dead letters", swept.held, 0, Verdict.FAIL if swept.held else Verdict.PASS, held))
    elif health.dead_letters == 0:
        checks.append(Check("dead letters", 0, 0, Verdict.PASS, "none"))
    elif health.dead_letters is None:
        checks.append(_unknown("dead letters", 0, "no worker has reported"))
    silent = "no worker reports on every partition"
    checks.append(_at_most("live lag", health.live_lag, gate.max_live_lag, "events behind the log", silent))
    if health.unsettled is None or health.unsettled:
        reason = silent if health.unsettled is None else f"{health.unsettled:,} keys may still be changed by a write"
        checks.append(_unknown("unsettled", 0, reason))
    queued = "vectors are stored and not yet found by a search"
    checks.append(
        _at_most("index queue", health.index_queue, _queue_bound(gate, health), queued, "the store did not say")
    )
    return checks


def _queue_bound(gate: Gate, health: Health) -> int:
    """What waits for the index is not found, as if it were not there: coverage bounds it too."""
    if health.documents is None:
        return gate.max_index_queue
    return min(gate.max_index_queue, math.floor(health.documents * (1 - gate.min_coverage) + 1e-9))


def _coverage(gate: Gate, coverage: float | None) -> Check:
    if coverage is None:
        return _unknown("coverage", gate.min_coverage, "the documents are not counted yet")
    enough = coverage >= gate.min_coverage
    # cut, not rounded: 0.98999 is not 99%
    shown = f"{int(coverage * 10_000) / 100:g}% of the documents are replayed"
    return Check(
        "coverage",
        coverage,
        gate.min_coverage,
        Verdict.PASS if enough else Verdict.FAIL,
        f"{shown}, {'at least' if enough else 'below'} {gate.min_coverage * 100:g}%",
    )


def _at_most(name: str, value: int | None, bound: int, what: str, reason: str) -> Check:
    if value is None:
        return _unknown(name, bound, reason)
    within = value <= bound
    return Check(
        name,
        value,
        bound,
        Verdict.PASS if within else Verdict.FAIL,
        f"{value:,} {what}, {'at most' if within else 'more than'} {bound:,}",
    )


def _unknown(name: str, bound: float, reason: str) -> Check:
    return Check(name, None, bound, Verdict.INCONCLUSIVE, f"not known: {reason}")


def _named(found: Comparison) -> str:
    most = 5
    return ", ".join(ascii(key) for key in found.unknown[:most]) + (", ..." if len(found.unknown) > most else "")


def _times(ratio: float) -> str:
    return f"{ratio:.3f} times" if math.isfinite(ratio) else "more than any number of times"


def _interval(estimate: Estimate, digits: int = 3) -> str:
    low, high = (f"{end:.{digits}f}" if math.isfinite(end) else "no end" for end in (estimate.low, estimate.high))
    return f"({low} to {high})"
