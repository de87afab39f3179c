"""The verb `history`: the journal of one collection, who did what, when and why.

It reads the journal topic only, from its beginning.
"""

from __future__ import annotations

import logging

import click
from pydantic import ValidationError

from connectors.errors import NotFound
from streams.cli import Options
from streams.cli.builds import collection_argument
from streams.cli.output import emit, json_option, moment, plain
from streams.cli.session import Session, run, session
from streams.state import JournalEntry

log = logging.getLogger(__name__)


@click.command()
@collection_argument
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the newest N entries.")
@json_option
@click.pass_obj
def history(options: Options, collection: str, limit: int | None, as_json: bool) -> None:
    """Who did what to COLLECTION, when and why, oldest first: every command, stage change, cutover and refusal.

    Example: crossfade history articles --limit 20
    """

    async def work() -> None:
        async with session(options) as opened:
            entries = await _entries(opened, collection)
            if not entries:
                async with opened.state() as view:
                    view.collection(collection)  # a misspelt name, with the names there are
        shown = entries[-limit:] if limit else entries
        if as_json:
            emit(
                {
                    "collection": collection,
                    "entries": [entry.model_dump(mode="json", exclude={"format", "collection"}) for entry in shown],
                }
            )
            return
        for entry in shown:
            click.echo(_line(entry))

    run(work())


async def _entries(opened: Session, collection: str) -> list[JournalEntry]:
    """Oldest first. Raises NotFound when no worker ever ran here."""
    try:
        bounds = await opened.kafka.bounds(opened.names.journal)
    except NotFound as error:
        raise opened.no_worker_yet() from error
    entries: list[JournalEntry] = []
    for partition, ends in bounds.items():
        async for batch in opened.kafka.read_range(opened.names.journal, partition, ends.earliest, ends.stable):
            for record in batch.records:
                if record.key == collection.encode() and record.value is not None:
                    try:
                        entries.append(JournalEntry.model_validate_json(record.value))
                    except ValidationError:
                        log.warning("a journal entry at offset %d cannot be read and is left out", record.offset)
    return sorted(entries, key=lambda entry: entry.at_ms)


def _line(entry: JournalEntry) -> str:
    what = f"{entry.version or '-'}  {entry.event}"
    who = f"  by {entry.who}" if entry.who else ""
    return plain(f"{moment(entry.at_ms)}  {what}{who}" + (f"  {entry.why}" if entry.why else ""))
