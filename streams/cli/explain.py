"""The verb `explain`: one document's whole story, in words or as data.

It prints document text only with --text.
"""

from __future__ import annotations

import os

import click

from streams.cli import Options
from streams.cli.builds import collection_argument
from streams.cli.output import count, emit, json_option, moment, next_line, plain
from streams.cli.session import run, session, with_weaviate
from streams.explain import MEANING, LogRecord, Stored, Story, story_json
from streams.explain import explain as look

SHORT = 12


@click.command()
@collection_argument
@click.argument("key")
@click.option("--text", is_flag=True, help="Show the document's text too.")
@json_option
@click.pass_obj
def explain(options: Options, collection: str, key: str, text: bool, as_json: bool) -> None:
    """Everything about the document KEY: its records in the log, what each space holds of it, its dead letters.

    Reads the whole topic once.

    Example: crossfade explain articles article-17
    """

    async def work() -> Story:
        async with session(options) as opened, opened.state() as view, with_weaviate(opened) as outside:
            return await look(outside, view.builds_of(collection), collection, os.fsencode(key), text=text)

    story = run(work())
    if as_json:
        emit(story_json(story))
    else:
        _print(story)


def _print(story: Story) -> None:
    key = plain(story.key)
    if not story.records:
        click.echo(f"{key}: no record in topic {story.topic}: never written, or deleted and compacted away")
    else:
        click.echo(f"{key}: {count(len(story.records), 'record')} in topic {story.topic}")
    for record in story.records:
        click.echo(f"  {_record(record)}")
        if record.text is not None:
            click.echo(f"    text: {plain(record.text)}")
    if story.two_partitions:
        click.echo("  the key is in more than one partition: the order of its records cannot be known")
        next_line("make all producers use one partitioner (murmur2), and delete the key from the other partition")
    for stored in story.spaces:
        click.echo(f"{story.collection}/{stored.version} ({stored.stage}, space {stored.space}): {stored.verdict}")
        click.echo(f"  {MEANING[stored.verdict]}; {_holds(stored)}")
        if stored.text is not None:
            click.echo(f"    text: {plain(stored.text)}")
        if stored.verdict in ("missing", "stale", "extra"):
            next_line(f"crossfade verify {story.collection} {stored.version}, to see how many there are")
        if stored.verdict == "held":
            next_line(
                f"repair it at its producer, or: crossfade cutover {story.collection} {stored.version} "
                f"--accept-held {key}"
            )
    if not story.spaces:
        click.echo(f"no version of {story.collection} is built")
        next_line(f"crossfade status {story.collection}")
    for letter in story.dead_letters:
        click.echo(
            f"dead letter of {story.collection}/{plain(letter.version)}: partition {letter.partition} offset "
            f"{letter.offset}, {moment(letter.at_ms)}, {plain(letter.cause)}: {plain(letter.error)}"
        )


def _record(record: LogRecord) -> str:
    parts = [
        f"partition {record.partition} offset {record.offset}",
        moment(record.timestamp_ms),
        record.kind if not record.cause else f"rejected ({plain(record.cause)})",
        f"{record.bytes:,} bytes",
    ]
    if record.source_hash:
        parts.append(f"source hash {record.source_hash[:SHORT]}")
    return "  ".join(parts) + ("  <- newest" if record.newest else "")


def _holds(stored: Stored) -> str:
    if stored.offset is None:
        return "it holds nothing of this document"
    chunks = count(stored.chunks, "chunk") + (
        "" if stored.chunks_found == stored.chunks else f", {stored.chunks_found} found"
    )
    return (
        f"it holds offset {stored.offset} of partition {stored.partition}, {chunks}, "
        f"source hash {stored.source_hash[:SHORT]}, {stored.origin} {moment(stored.embedded_at_ms)}"
    )
