"""The verb `compare`: candidate versions on a sample of the real documents, in memory, before anything is built.

It must never write a space, nor spend anything before it has said how much, and been told to.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from connectors.embedders.cache import VectorCache
from connectors.errors import ConfigurationError, Refused
from connectors.protocols import JSON
from streams.cli import Options
from streams.cli.asking import confirm
from streams.cli.builds import collection_argument
from streams.cli.output import count, emit, json_option, next_line, plain, say, size, usd
from streams.cli.session import run, session
from streams.comparing import QUERIES, SAMPLE, Asked, Forecast, Outcome, Setting, cut_texts, forecast, measure, sample
from streams.config_embedders import Version
from streams.migration import candidates
from streams.migration.candidates import Difference, Worth
from streams.migration.evaluate import Estimate


@click.command()
@collection_argument
@click.argument("versions", nargs=-1, required=True, metavar="VERSION...")
@click.option(
    "--sample",
    "documents",
    type=click.IntRange(1, 1_000_000),
    default=SAMPLE,
    show_default=True,
    metavar="N",
    help="Documents drawn at random; those the golden set judges relevant come beside them.",
)
@click.option(
    "--golden",
    type=click.Path(path_type=Path, exists=True),
    help="Judged queries. Else gate.golden of the collection, else titles are the queries.",
)
@click.option("--title", metavar="FIELD", help="Ask for documents by this field, rather than the judged queries.")
@click.option(
    "--queries", type=click.IntRange(1, 20_000), default=QUERIES, show_default=True, metavar="N", help="Asked at most."
)
@click.option(
    "-k", type=click.IntRange(1, 1000), metavar="K", help="How deep answers are looked at. [gate.k of the collection]"
)
@click.option("--yes", is_flag=True, help="Spend what it says it will spend, without asking.")
@json_option
@click.pass_obj
def compare(
    options: Options,
    collection: str,
    versions: tuple[str, ...],
    documents: int,
    golden: Path | None,
    title: str | None,
    queries: int,
    k: int | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Embed a sample of the documents of COLLECTION with each VERSION of the configuration, built or not, and ask the
    same queries of all of them: quality, speed, cost and disk side by side.

    The first version is what the others are compared with. Nothing is stored, but in the vector cache if there is one.

    Example: crossfade compare articles v1 v2 --golden golden.jsonl
    """
    if golden is not None and title is not None:
        raise ConfigurationError("--golden and --title are both given", next_step="give one of them")
    if len(set(versions)) < len(versions):
        raise ConfigurationError("a version is named twice", next_step=f"crossfade compare {collection} VERSION...")
    asked = Asked(collection, versions, documents, golden, title, queries, k)
    result = run(_compare(options, asked, yes=yes))
    if as_json:
        emit(result.as_json())
        return
    for line in result.lines():
        click.echo(line)
    next_line(result.next)


async def _compare(options: Options, asked: Asked, *, yes: bool) -> Result:
    async with session(options) as opened:
        collection = opened.settings.collection(asked.collection)
        versions = {name: collection.version(name) for name in asked.versions}
        setting = await sample(opened.kafka, collection, asked, say)
        cuts = {name: await asyncio.to_thread(cut_texts, collection, one, setting) for name, one in versions.items()}
        forecasts = [forecast(name, one, cuts[name], opened.settings) for name, one in versions.items()]
        _agree(forecasts, asked, versions, yes=yes)
        cache = None
        kept = opened.settings.vector_cache
        if kept is not None and setting.title is None:  # texts without their titles are no use to any build
            cache = await VectorCache.open(kept.path, int(kept.max_gib * 2**30))
        try:
            outcomes = [
                await measure(opened.settings, collection, name, one, setting, cuts[name], cache, say)
                for name, one in versions.items()
            ]
        finally:
            if cache is not None:
                await cache.close()
    first, *others = outcomes
    differences = [
        candidates.difference(
            setting.golden, first.replies, one.replies, (first.version, one.version), setting.gate.k, setting.gate.gain
        )
        for one in others
    ]
    return Result(setting, outcomes, differences, _next(asked, outcomes, differences))


def _agree(forecasts: Sequence[Forecast], asked: Asked, versions: Mapping[str, Version], *, yes: bool) -> None:
    """Says what it will spend; raises unless that is nothing, or somebody says yes."""
    for one in forecasts:
        how = "" if one.exact or not versions[one.version].endpoints else " (guessed at 4 bytes a token)"
        cost = "nothing" if one.usd == 0 else _usd(one.usd)
        say(f"{one.version} will embed {one.tokens:,} tokens{how}, for {cost}")
        budget = versions[one.version].budget_usd
        if budget is not None and one.usd is not None and one.usd > budget:
            raise Refused(
                f"that is more than {one.version}'s budget_usd {budget:g}",
                next_step=f"take a smaller --sample than {asked.sample:,}, or raise budget_usd",
            )
    if all(one.usd == 0 for one in forecasts) or yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        unknown = [one.version for one in forecasts if one.usd is None]
        why = f"nobody has said the price of {', '.join(unknown)}" if unknown else "this costs money"
        free = "; a machine of your own: price_per_million_tokens: 0" if unknown else ""
        raise Refused(
            f"{why}, and there is no terminal to ask at",
            next_step=f"{asked.again} --yes{free}",
        )
    if not confirm("Go on?"):
        raise Refused("nothing was embedded", next_step="a smaller --sample costs less")


@dataclass(frozen=True, slots=True)
class Result:
    """All that is printed."""

    setting: Setting
    outcomes: Sequence[Outcome]
    differences: Sequence[Difference]
    next: str

    def as_json(self) -> dict[str, JSON]:
        setting = self.setting
        return {
            "collection": setting.collection,
            "documents": setting.current,
            "sample": {
                "documents": len(setting.documents),
                "random": len(setting.random),
                "unusable": dict(setting.unusable),
                "judged_missing": len(setting.drawn.missing),
            },
            "golden": setting.golden.name,
            "title": setting.title,
            "notes": list(setting.golden.notes),
            "queries": len(setting.golden.queries),
            "k": setting.gate.k,
            "versions": [outcome.as_json() for outcome in self.outcomes],
            "differences": [one.as_json() for one in self.differences],
            "next": self.next,
        }

    def lines(self) -> Iterator[str]:
        setting, k = self.setting, self.setting.gate.k
        yield from _about(setting)
        rows: list[tuple[str, list[str]]] = []

        def row(label: str, cells: Iterator[str]) -> None:
            rows.append((label, list(cells)))

        every = self.outcomes
        row("model", (plain(one.model, 40) for one in every))
        row("dimensions", (f"{one.dimensions:,}" for one in every))
        row(f"nDCG@{k}", (_interval(one.quality.ndcg) for one in every))
        row(f"recall@{k}", (_interval(one.quality.recall) for one in every))
        row(f"MRR@{k}", (_interval(one.quality.mrr) for one in every))
        row("query embedded in", (f"{one.quality.p50_ms:,.1f} ms, p95 {one.quality.p95_ms:,.1f} ms" for one in every))
        row("documents embedded", ("(cached)" if one.per_s is None else f"{one.per_s:,.0f}/s" for one in every))
        if any(one.refused or one.quality.refused for one in every):
            row("refused", (f"{one.refused:,} documents, {one.quality.refused:,} queries" for one in every))
        row("sample's documents", (f"{one.tokens:,} tokens, {_usd(one.usd if one.priced else None)}" for one in every))
        row(
            f"all {setting.current:,} documents",
            (f"about {one.tokens_all:,} tokens, {_usd(one.usd_all)}" for one in every),
        )
        row("  vectors on disk", (size(one.vector_bytes) for one in every))
        row("  index on disk", (size(one.index_bytes) for one in every))
        yield from candidates.table(rows, [one.version for one in every])
        for one in self.differences:
            yield one.sentence()
            if one.worth is not Worth.WORSE:
                yield f"  its price: {self._price(one.version)}"

    def _price(self, version: str) -> str:
        (one,) = [outcome for outcome in self.outcomes if outcome.version == version]
        disk = size(one.vector_bytes + one.index_bytes)
        return f"about {one.tokens_all:,} tokens, {_usd(one.usd_all)}, and {disk} of disk beside the texts"


def _about(setting: Setting) -> Iterator[str]:
    beside = len(setting.documents) - len(setting.random)
    judged = f", and {beside:,} more that the judged queries name" if beside else ""
    yield (
        f"{setting.collection}: {len(setting.random):,} of {count(setting.current, 'document')}, drawn at "
        f"random{judged}"
    )
    yield f"  queries: {len(setting.golden.queries):,}, {plain(setting.golden.name)}"
    if setting.title is not None:
        yield f"  each query is a document's {setting.title}; it is left out of the embedded text, also where it opens"
        yield "  another field: else finding the document again would be no test"
    else:
        yield "  in a sample all is found more easily: compare the versions with each other, not with `evaluate`"
    for note in setting.golden.notes:
        yield f"  {note}"
    if setting.drawn.missing:
        yield f"  {count(len(setting.drawn.missing), 'judged document')} not in the topic; not found, for every version"
    if setting.unusable:
        causes = ", ".join(f"{number:,} {cause}" for cause, number in setting.unusable.items())
        yield f"  left out, as they would be of every space: {causes}"


def _interval(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f})"


def _usd(amount: float | None) -> str:
    return "price unknown" if amount is None else f"{usd(amount)} USD"


def _next(asked: Asked, outcomes: Sequence[Outcome], differences: Sequence[Difference]) -> str:
    better = [one for one in differences if one.worth is Worth.BETTER]
    if better:
        best = max(better, key=lambda one: one.ndcg.value)
        return f"crossfade plan {asked.collection} {best.version}"
    if not differences:
        return f"crossfade compare {asked.collection} {outcomes[0].version} OTHER, another version of the configuration"
    if any(one.worth is Worth.UNCLEAR for one in differences):
        return "more judged queries, with --golden, narrow the interval"
    return "another model: add it as a version, and compare again"
