"""The verb `history`: the journal of one collection, who did what, when and why, and what was found.

It reads the journal topic only, from its beginning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import click
from pydantic import JsonValue

from connectors.errors import NotFound
from streams import journal
from streams.cli import Options
from streams.cli.builds import collection_argument
from streams.cli.output import emit, json_option, moment, plain, usd
from streams.cli.session import Session, run, session
from streams.cli.swap import figures
from streams.state import JournalEntry, unknown


@click.command()
@collection_argument
@click.argument("version", required=False)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the newest N entries.")
@json_option
@click.pass_obj
def history(options: Options, collection: str, version: str | None, limit: int | None, as_json: bool) -> None:
    """Who did what to COLLECTION, when and why, oldest first: every command, stage change, cutover and refusal.

    With VERSION, only what concerns it. Below an entry stands what the sweep and the gate found, and the reason given.

    Example: crossfade history articles v2 --limit 20
    """

    async def work() -> None:
        async with session(options) as opened:
            entries = await entries_of(opened, collection)
            if not entries:
                async with opened.state() as view:
                    view.collection(collection)  # a misspelt name, with the names there are
        shown = entries if version is None else [entry for entry in entries if journal.concerns(entry, version)]
        if version is not None and not shown:
            names = {entry.version for entry in entries if entry.version}
            raise unknown(f"version of {collection}", version, names, f"crossfade history {collection}")
        shown = shown[-limit:] if limit else shown
        if as_json:
            emit(
                {
                    "collection": collection,
                    "entries": [entry.model_dump(mode="json", exclude={"format", "collection"}) for entry in shown],
                }
            )
            return
        for entry in shown:
            for line in lines(entry):
                click.echo(line)

    run(work())


async def entries_of(opened: Session, collection: str) -> list[JournalEntry]:
    """Oldest first. Raises NotFound when no worker ever ran here."""
    try:
        return await journal.entries_of(opened.kafka, opened.names, collection)
    except NotFound as error:
        raise opened.no_worker_yet() from error


def lines(entry: JournalEntry) -> list[str]:
    """When, which model, what, by whom, and what came of it; below it the reason and the figures."""
    first = f"{moment(entry.at_ms)}  {_model(entry)}  {entry.event}"
    first += f"  by {entry.who}" if entry.who else ""
    first += f": {entry.message}" if entry.message else ""
    found = [f"  why: {entry.why}"] if entry.why else []
    outcome = entry.data.get("outcome")
    if isinstance(outcome, Mapping):
        proof = "answers" in outcome  # the entry before it has the rest
        found += figures({"answers": outcome["answers"]} if proof else outcome, brief=True)
        found += [f"  {name}: {_sample(outcome[name])}" for name in ("now", "before") if name in outcome]
        found += [f"  {name}: {outcome[name]:,}" for name in ("lag", "tokens") if outcome.get(name)]
        if isinstance(cost := outcome.get("cost_usd"), int | float) and cost:
            found.append(f"  cost: {usd(cost)} USD")
    return [plain(first), *(f"  {plain(line)}" for line in found)]


def _model(entry: JournalEntry) -> str:
    """`v2@0e6aeaeaa572`, as spaces are marked; "-" where no one version is meant."""
    about = entry.data.get(f"{entry.collection}/{entry.version}")
    fingerprint = about.get("fingerprint") if isinstance(about, Mapping) else None
    if fingerprint and entry.event == "declared":
        return f"{entry.version}@{fingerprint} ({_envelope(about)})"
    return f"{entry.version}@{fingerprint}" if fingerprint else entry.version or "-"


def _envelope(about: JsonValue) -> str:
    envelope = about.get("envelope") if isinstance(about, Mapping) else None
    if not isinstance(envelope, Mapping):
        return "model unknown"
    parts: Sequence[JsonValue] = [envelope.get(name) for name in ("provider", "model", "revision")]
    return f"{' '.join(str(part) for part in parts if part)}, {envelope.get('dimensions')} dimensions"


def _sample(sample: JsonValue) -> str:
    if not isinstance(sample, Mapping):
        return "-"
    p95 = sample.get("p95_ms")
    took = f", 95th percentile {p95:.0f} ms" if isinstance(p95, int | float) else ""
    return f"{sample.get('asked')} queries, {sample.get('zero')} found nothing, {sample.get('errors')} failed{took}"
