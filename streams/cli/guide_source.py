"""What `init` asks about the source: brokers, the documents topic, and a sample of its records.

It reads only, and shows no word of a document.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import click

from connectors.errors import AccessDenied, ConfigurationError, NotFound
from connectors.kafka.log import KafkaLog
from connectors.kafka.settings import KafkaSettings
from connectors.kafka.topics import Topics
from connectors.protocols import Bounds, Record, TopicFacts
from streams.cli.asking import ask, ask_until
from streams.cli.guide_answers import LOCAL, Given, Secrets, checked_settings
from streams.cli.output import count, plain
from streams.cli.session import BROKER_PATIENCE_S
from streams.config import Settings
from streams.field_sample import stretches
from streams.setup import collection_name, document_topics, is_reference, is_secret_setting
from streams.wiring import kafka_settings

_SHOWN_TOPICS = 30


@dataclass(frozen=True, slots=True)
class Source:
    """Asks for what was not given; without a terminal it takes proposals where they are safe, else refuses."""

    given: Given
    secrets: Secrets
    terminal: bool

    async def kafka(self) -> tuple[str, KafkaSettings]:
        """The address to write, "" for the local services, and how to reach it now."""
        said = self.given.bootstrap
        if said is None:
            default = LOCAL if _local_runs() else None
            said = ask("Kafka's brokers (host:port, or local for those of `crossfade up`)", default)
        address = "" if said == LOCAL else said
        client = {name: self.secrets.value(value) for name, value in self.client().items()}
        raw = {"kafka": {"client": client} | ({"bootstrap_servers": address} if address else {})}
        checked = checked_settings(raw, "--bootstrap or --client")
        if not address and not _local_runs():
            raise ConfigurationError(
                "no local services are running in this folder",
                next_step="crossfade up, or name your brokers: crossfade init --bootstrap HOST:PORT",
            )
        settings = kafka_settings(checked)
        return address, replace(settings, request_timeout_s=2 * BROKER_PATIENCE_S)

    def client(self) -> dict[str, str]:
        """As the file will say it. Raises ConfigurationError for a secret that stands there itself."""
        found: dict[str, str] = {}
        for one in self.given.client:
            name, equals, value = one.partition("=")
            if not equals or not name or not value:
                raise ConfigurationError("a --client is not KEY=VALUE", next_step="--client security.protocol=SASL_SSL")
            if is_secret_setting(name) and not is_reference(value):
                raise ConfigurationError(
                    f"--client {name} holds a secret, which this file must not",
                    next_step=f"--client '{name}=${{KAFKA_PASSWORD}}', or {name}=file:/path",
                )
            found[name] = value
        return found

    async def topic(self, topics: Topics, *, local: bool) -> tuple[TopicFacts, Mapping[int, Bounds]]:
        names = document_topics(await topics.names())
        if self.given.topic is not None:
            if self.given.topic not in names:
                raise NotFound(
                    f"there is no documents topic {self.given.topic}; {_there_are(names)}",
                    next_step="crossfade init --topic with one of them"
                    if names
                    else _send_documents(self.given.topic, local),
                )
            return await topics.facts(self.given.topic), await topics.bounds(self.given.topic)
        if not names:
            raise NotFound(
                "this cluster has no topic that could hold documents",
                next_step=_send_documents("TOPIC", local),
            )
        found = await asyncio.gather(*(_facts(topics, name) for name in names))
        listed = sorted(filter(None, found), key=lambda one: ("compact" not in one.cleanup_policy, one.name))
        names = [one.name for one in listed[:_SHOWN_TOPICS]]
        held = dict(zip(names, await asyncio.gather(*(topics.bounds(name) for name in names)), strict=True))
        click.echo("Topics (record key = document id):")
        for number, one in enumerate(listed[:_SHOWN_TOPICS], 1):
            size = f"up to {sum(b.stable - b.earliest for b in held[one.name].values()):,} records"
            policy = "compacted" if "compact" in one.cleanup_policy else f"not compacted ({one.cleanup_policy})"
            click.echo(f"  {number:>2}  {one.name}: {policy}, {count(one.partitions, 'partition')}, {size}")
        if len(listed) > _SHOWN_TOPICS:
            click.echo(f"      and {len(listed) - _SHOWN_TOPICS} more, by name")

        def chosen(said: str) -> TopicFacts:
            if said.isdecimal() and 1 <= int(said) <= min(len(listed), _SHOWN_TOPICS):
                return listed[int(said) - 1]
            named = next((one for one in listed if one.name == said), None)
            if named is None:
                raise ValueError("a number of the list, or a topic's name")
            return named

        facts = ask_until("Documents topic (number or name)", chosen, "1")
        return facts, held.get(facts.name) or await topics.bounds(facts.name)

    def name(self, topic: str) -> str:
        proposed = collection_name(topic)
        if not self.terminal:
            return proposed

        def checked(said: str) -> str:
            if not re.fullmatch(r"[a-z0-9_][a-z0-9_-]{0,47}", said):
                raise ValueError("up to 48 of a-z, 0-9, '_' and '-', not beginning with '-'")
            return said

        return ask_until("Name of the collection, for commands", checked, proposed)


async def _facts(topics: Topics, name: str) -> TopicFacts | None:
    """None for a topic that is gone meanwhile, or that we may not look at."""
    try:
        return await topics.facts(name)
    except (NotFound, AccessDenied):
        return None


def _local_runs() -> bool:
    try:
        kafka_settings(Settings())
    except ConfigurationError:
        return False
    return True


async def read_sample(log: KafkaLog, topic: str, bounds: Mapping[int, Bounds], records: int) -> list[Record]:
    """About `records` of them, the oldest and the newest. Raises NotFound when there is none to look at."""
    found: list[Record] = []
    for partition, start, end, most in stretches(bounds, records):
        batches = log.read_range(topic, partition, start, end)
        here = 0
        try:
            async for batch in batches:
                found += batch.records[: most - here]
                here += len(batch.records)
                if here >= most:
                    break
        finally:
            await batches.aclose()  # type: ignore[attr-defined]  # an async generator: its consumer closes with it
    if not found:
        raise NotFound(
            f"topic {topic} is empty: there are no documents to look at",
            next_step="send some documents to it, then again: crossfade init",
        )
    return found


def _there_are(names: Sequence[str]) -> str:
    listed = plain(", ".join(names[:10])) or "none"
    return f"there are: {listed}{', ...' if len(names) > 10 else ''}"


def _send_documents(topic: str, local: bool) -> str:
    """Into a topic that is not there yet; somebody else's Kafka is for its owner to create topics in."""
    made = (
        f"crossfade produce {topic} FILE --create-topic"
        if local
        else "create it with cleanup.policy=compact and send documents to it"
    )
    return f"{made}; then again: crossfade init"
