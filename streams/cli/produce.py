"""The verb `produce`: document events from a file into a collection's topic, in the file's order.

It must never send anything behind a malformed line, nor end without saying how many were sent.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from types import FrameType

import click

from connectors.errors import ContentRejected, NotFound
from connectors.kafka.producer import produce_many
from connectors.kafka.settings import KafkaSettings
from connectors.protocols import TopicFacts
from streams.cli import Options
from streams.cli.builds import collection_argument
from streams.cli.event_file import DocumentEvent, open_events, parse_event, read_lines
from streams.cli.output import count, emit, json_option, next_line, say
from streams.cli.session import run, session, unconfigured
from streams.config import Settings

SAY_EVERY_S = 5.0


@click.command()
@collection_argument
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--create-topic", is_flag=True, help="Create the topic, compacted, if it does not exist.")
@click.option(
    "--partitions",
    type=click.IntRange(1, 10_000),
    default=1,
    show_default=True,
    metavar="N",
    help="Of the topic it creates.",
)
@click.option("--limit", type=click.IntRange(min=0), metavar="N", help="Send at most N events.")
@click.option("--skip", type=click.IntRange(min=0), default=0, metavar="N", help="Leave the first N events out.")
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    metavar="EVENTS_PER_S",
    help="Send no faster than this.",
)
@json_option
@click.pass_obj
def produce(
    options: Options,
    collection: str,
    file: str,
    create_topic: bool,
    partitions: int,
    limit: int | None,
    skip: int,
    rate: float | None,
    as_json: bool,
) -> None:
    """Send the document events of FILE to the topic of COLLECTION: JSONL, also .zst, .gz, or - for standard input.

    Each line is {"key": "id", "value": {...} or null, "timestamp_ms": optional}; null deletes the document. Where there
    is no configuration yet, COLLECTION is the name of a topic in the Kafka of `crossfade up`.

    Example: crossfade produce articles events.jsonl.zst --create-topic --limit 1000
    """

    first = unconfigured(options)

    async def prepare() -> tuple[TopicFacts, KafkaSettings]:
        async with session(options, Settings() if first else None) as opened:
            topic = collection if first else opened.settings.collection(collection).topic
            try:
                facts = await opened.kafka.facts(topic)
            except NotFound as error:
                if not create_topic:
                    raise NotFound(
                        f"topic {topic}{'' if first else f' of {collection}'} does not exist",
                        next_step=f"crossfade produce {collection} {file} --create-topic [--partitions N]",
                    ) from error
                await opened.topics.ensure_topic(topic, partitions, {"cleanup.policy": "compact"})
                say(f"created topic {topic}: {count(partitions, 'partition')}, compacted")
                facts = await opened.kafka.facts(topic)
            return facts, opened.kafka_settings

    facts, kafka = run(prepare())
    if "compact" not in facts.cleanup_policy:
        say(f"warning: topic {facts.name} is not compacted: no version can be built from it")
    events = _Events(file, skip=skip, limit=limit, rate=rate)
    with events.until_interrupted():
        produced = produce_many(kafka, facts.name, iter(events))
    last = {str(partition): offset for partition, offset in sorted(produced.last_offsets.items())}
    said = f"{count(produced.count, 'event')} sent to {facts.name}" + (
        f"; last offset of partition {', '.join(f'{p}: {offset}' for p, offset in last.items())}" if last else ""
    )
    if events.fault is not None:
        raise ContentRejected(
            f"{'standard input' if file == '-' else file}, {events.fault.message}; nothing from there on was sent; "
            f"{said}",
            next_step=events.fault.next_step,
        ) from events.fault
    if as_json:
        emit({"topic": facts.name, "sent": produced.count, "last_offsets": last, "interrupted": events.interrupted})
    else:
        click.echo(said)
        next_line("crossfade init" if first else f"crossfade status {collection}")
    if events.interrupted:
        raise KeyboardInterrupt


class _Events:
    """The events to send. Iteration ends, instead of raising, at a fault or an interrupt: what was sent before is
    then still waited for, and counted."""

    def __init__(self, file: str, *, skip: int, limit: int | None, rate: float | None) -> None:
        self._file = file
        self._skip = skip
        self._limit = limit
        self._rate = rate
        self._waiting = False
        self.fault: ContentRejected | None = None
        self.interrupted = False

    @contextmanager
    def until_interrupted(self) -> Iterator[None]:
        """Ctrl-C ends the iteration; a second one is the usual KeyboardInterrupt."""

        def stop(_: int, __: FrameType | None) -> None:
            self.interrupted = True
            signal.signal(signal.SIGINT, before)
            if self._waiting:  # for a line or for the rate: that wait must end now
                raise KeyboardInterrupt

        before = signal.signal(signal.SIGINT, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def __iter__(self) -> Iterator[DocumentEvent]:
        began = said = time.monotonic()
        sent = 0
        with open_events(self._file) as file:
            lines = islice(read_lines(file), self._skip, None)
            while not self.interrupted and (self._limit is None or sent < self._limit):
                try:
                    self._waiting = True
                    line = next(lines, None)
                    self._pace(began, sent)
                except KeyboardInterrupt:
                    return
                except ContentRejected as error:
                    self.fault = error
                    return
                finally:
                    self._waiting = False
                if line is None:
                    return
                try:
                    event = parse_event(*line)
                except ContentRejected as error:
                    self.fault = error
                    return
                yield event
                sent += 1
                if sys.stderr.isatty() and time.monotonic() - said >= SAY_EVERY_S:
                    said = time.monotonic()
                    say(f"{count(sent, 'event')} so far")

    def _pace(self, began: float, sent: int) -> None:
        if self._rate is not None and (ahead_s := began + sent / self._rate - time.monotonic()) > 0:
            time.sleep(ahead_s)
