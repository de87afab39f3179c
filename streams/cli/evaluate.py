"""The verb `evaluate`: the golden set asked of a version and of the one that serves, and what the gate says of it.

It only reads. Every query is embedded by the model of the space it is asked of; the sweep is left to `cutover`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from connectors.errors import CrossfadeError
from connectors.protocols import JSON, Space
from streams.cli import Options
from streams.cli.builds import collection_argument, version_argument
from streams.cli.output import Failed, emit, json_option, next_line, plain, say
from streams.cli.session import read_settings, run, session, with_weaviate
from streams.config_operation import Gate
from streams.migration.evaluate import FIGURES, Comparison, Estimate, Shift, SpaceQuality
from streams.migration.gate import GateResult, Health, Verdict, judge
from streams.migration.golden import GoldenSet, read_golden
from streams.migration.judging import evaluate_spaces, holds_of
from streams.search.query import MOST_HITS
from streams.search.questions import health_of, ranked
from streams.search.router import Router
from streams.state import BuildState, CollectionState
from streams.versions import Stage, next_command
from streams.views import ProgressView

TITLES = {"recall": "recall@{k}", "precision": "precision@{k}", "mrr": "MRR@{k}", "ndcg": "nDCG@{k}"}
SAY_EVERY_S = 5.0
MOST_SLICES = 20


@dataclass(frozen=True, slots=True)
class Found:
    """What was asked and what came of it. `quality` None: there is no golden set."""

    state: CollectionState
    build: BuildState
    against: BuildState | None
    quality: Comparison | None
    result: GateResult


@click.command()
@collection_argument
@version_argument
@click.option(
    "--golden",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Judged queries: a JSONL file, or a folder with topics.tsv and qrels.txt. Else gate.golden.",
)
@click.option(
    "-k", "depth", type=click.IntRange(1, MOST_HITS), metavar="K", help="How many documents count. Else gate.k."
)
@click.option("--against", metavar="VERSION", help="Compare with this version. Else with the one that serves.")
@click.option(
    "--threshold",
    "thresholds",
    type=float,
    multiple=True,
    metavar="SCORE",
    help="A score you cut answers off at today: which one is as precise in VERSION? May be given again.",
)
@json_option
@click.pass_obj
def evaluate(
    options: Options,
    collection: str,
    version: str,
    golden: Path | None,
    depth: int | None,
    against: str | None,
    thresholds: tuple[float, ...],
    as_json: bool,
) -> None:
    """Is VERSION good enough to serve? Recall, precision, MRR and nDCG beside those of the version that serves, with
    intervals; latency, overlap, slices; completeness and lag; and the verdict: pass, fail or inconclusive.

    Exit status 1 for fail and inconclusive. It only reads; cutover sweeps the space as well.

    Example: crossfade evaluate articles v2 --golden golden.jsonl
    """
    if against == version:
        raise click.UsageError(f"--against {version} would compare {version} with itself")
    _, settings = read_settings(options)
    gate = settings.collection(collection).gate
    gate = gate.model_copy(update={"golden": golden or gate.golden, "k": depth or gate.k})
    judged = read_golden(gate.golden) if gate.golden else None

    async def work() -> Found:
        async with session(options) as opened, opened.state() as view, opened.progress() as progress:
            state, build = view.collection(collection), view.build(collection, version)
            other = against or (state.serving if state.serving != version else None)
            compared = view.build(collection, other) if other else None
            async with with_weaviate(opened) as outside:
                router = Router(outside, view)
                try:
                    space = router.resolve(collection, version).space
                    spaces = [space] + ([router.resolve(collection, other).space] if other else [])
                    quality = None
                    if judged is not None:
                        quality = await _compare(router, collection, version, other, judged, gate, thresholds, spaces)
                    health = await _health(progress, build, compared, space)
                finally:
                    await router.close()
            return Found(state, build, compared, quality, judge(gate, quality, health))

    found = run(work())
    then = _next(found, gate)
    if as_json:
        emit(_json(found, then))
    else:
        for line in [*_lines(found), *found.result.lines()]:
            click.echo(plain(line))
        if found.result.passed:
            next_line(then)
    if not found.result.passed:
        raise Failed(f"{found.build.key}: the gate says {found.result.verdict}", next_step=then)


async def _compare(
    router: Router,
    collection: str,
    version: str,
    other: str | None,
    judged: GoldenSet,
    gate: Gate,
    thresholds: Sequence[float],
    spaces: Sequence[Space],
) -> Comparison:
    say(f"asking {len(judged.queries):,} queries of {' and '.join(filter(None, (other, version)))}")
    return await evaluate_spaces(
        ranked(router, collection, other) if other else None,
        ranked(router, collection, version),
        judged,
        gate,
        versions=(other or "", version),
        holds=holds_of(collection, *spaces),
        thresholds=thresholds,
        done=_telling(len(judged.queries)),
    )


def _telling(total: int) -> Callable[[int], None]:
    """Says how far it is, for sets that take long."""
    last_s = time.monotonic()

    def done(queries: int) -> None:
        nonlocal last_s
        if time.monotonic() - last_s >= SAY_EVERY_S:
            last_s = time.monotonic()
            say(f"asked {queries:,} of {total:,}")

    return done


async def _health(progress: ProgressView, build: BuildState, compared: BuildState | None, space: Space) -> Health:
    queue = None
    try:
        queue = await space.indexing_queue()
    except CrossfadeError as error:
        say(f"the index queue is not known: {error.message}")
    return health_of(progress, build, queue, serving=compared)


def _lines(found: Found) -> list[str]:
    build, quality = found.build, found.quality
    heading = f"{build.key} ({build.stage})"
    if found.against is not None:
        heading += f" against {found.against.version} ({found.against.stage})"
    if quality is None:
        return [heading]
    lines = [
        f"{heading}: judged queries of {Path(quality.golden).name}: {quality.queries:,}, "
        f"k {quality.k}, {quality.gain} gain, 95% intervals"
    ]
    spaces = [space for space in (quality.old, quality.new) if space is not None]
    rows = [["", *(space.version for space in spaces)]]
    rows += [
        [TITLES[name].format(k=quality.k), *(_estimate(getattr(space, name)) for space in spaces)] for name in FIGURES
    ]
    rows += [
        ["latency p50, p95", *(f"{space.p50_ms:.1f}, {space.p95_ms:.1f} ms" for space in spaces)],
        ["without an answer", *(_empty(space) for space in spaces)],
    ]
    lines += _table(rows)
    if quality.overlap is not None:
        lines.append(f"  of the first {quality.k} documents of each query both have {quality.overlap:.1%} in common")
    if quality.shifts:
        lines.append("  score thresholds of the same precision:")
        assert quality.old is not None
        names = quality.old.version, quality.new.version
        header = ["", names[0], "precision", f"kept of {names[0]}", names[1], f"kept of {names[1]}"]
        lines += _table([header, *(_shift(shift) for shift in quality.shifts)], "    ")
    if quality.slices:
        lines.append(f"  slices, by recall@{quality.k}:")
        table = [["", "queries", *(space.version for space in spaces), *(["ratio"] if quality.old else [])]]
        for one in quality.slices[:MOST_SLICES]:
            figures = [f for f in (one.old, one.new) if f is not None]
            ratio = [_estimate(one.ratio, 3)] if one.ratio else []
            table.append([one.name, f"{one.queries:,}", *(f"{f.recall:.4f}" for f in figures), *ratio])
        lines += _table(table, "    ")
        if len(quality.slices) > MOST_SLICES:
            lines.append(f"    {len(quality.slices) - MOST_SLICES} more with --json")
    return lines


def _table(rows: Sequence[Sequence[str]], indent: str = "  ") -> list[str]:
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return [
        (indent + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))).rstrip()
        for row in rows
    ]


def _estimate(estimate: Estimate, digits: int = 4) -> str:
    value, low, high = (f"{part:.{digits}f}" for part in (estimate.value, estimate.low, estimate.high))
    return f"{value} ({low} to {high})"


def _empty(space: SpaceQuality) -> str:
    refused = f", {space.refused:,} of them its model cannot take" if space.refused else ""
    return f"{space.empty:,}{refused}"


def _shift(shift: Shift) -> list[str]:
    return [
        "as asked" if shift.quantile is None else f"{shift.quantile:.0%} of scores below",
        f"{shift.old:.4f}",
        "-" if shift.precision is None else f"{shift.precision:.3f}",
        f"{shift.kept_old:.0%}",
        "none" if shift.new is None else f"{shift.new:.4f}",
        "-" if shift.kept_new is None else f"{shift.kept_new:.0%}",
    ]


def _next(found: Found, gate: Gate) -> str:
    build, result = found.build, found.result
    this = f"{build.collection} {build.version}"
    again = f"crossfade evaluate {this}" + (f" --golden {gate.golden}" if gate.golden else "")
    wrong = {check.name: check for check in result.checks if check.verdict is not Verdict.PASS}
    if not wrong:
        if build.stage is Stage.READY:
            return f"crossfade cutover {this} --check"
        return next_command(build.stage, collection=build.collection, version=build.version)
    if wrong.keys() & {"coverage", "live lag", "unsettled", "index queue", "dead letters"}:
        return f"crossfade status {this} -w; when it has caught up: {again}"
    if "golden set" in wrong or "golden keys" in wrong:
        return f"correct {gate.golden} (docs/gate.md), then: {again}"
    if "recall" in wrong:
        return f"see its answers beside: crossfade search {build.collection} QUERY --version {build.version}"
    return f"add judged queries to {gate.golden}, so that the interval becomes narrower; then: {again}"


def _json(found: Found, then: str) -> dict[str, JSON]:
    return {
        "collection": found.build.collection,
        "version": found.build.version,
        "epoch": found.build.epoch,
        "stage": found.build.stage.value,
        "against": found.against.version if found.against else None,
        "serving": found.state.serving,
        "gate": found.result.as_json(),
        "quality": found.quality.as_json() if found.quality else None,
        "next": then,
    }
