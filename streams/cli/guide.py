"""What `init` asks, in which order, and what it shows meanwhile: fields of real records, and what would be refused.

It must never show what a document says, nor let a secret reach the screen or the draft.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import click

from connectors.errors import ConfigurationError, CrossfadeError
from connectors.kafka.log import KafkaLog
from connectors.kafka.topics import Topics
from connectors.protocols import Record
from connectors.weaviate.spaces import open_store
from streams.cli.asking import ask, ask_until
from streams.cli.guide_answers import LOCAL, Given, Secrets, checked_settings, option_value
from streams.cli.guide_model import PROVIDERS, ModelQuestions
from streams.cli.guide_source import Source, read_sample
from streams.cli.output import count, plain, say
from streams.cli.session import BROKER_PATIENCE_S
from streams.config_types import PropertyType
from streams.documents import DocumentSchema
from streams.field_sample import (
    Sample,
    SeenField,
    look_at,
    parse_names,
    parse_types,
    propose_properties,
    propose_text,
    rejections,
)
from streams.setup import Draft
from streams.wiring import weaviate_settings

TYPES = ", ".join(get_args(PropertyType))


@dataclass(slots=True)
class Guide:
    """Asks for what was not given; without a terminal it takes proposals where they are safe, else refuses."""

    given: Given
    path: Path
    secrets: Secrets
    terminal: bool

    def require(self) -> None:
        """Raises ConfigurationError with everything that would have to be asked for, when nobody can be asked."""
        if self.terminal:
            return
        needed = {"bootstrap": "HOST:PORT", "topic": "NAME", "fields": "NAME,...", "provider": "|".join(PROVIDERS)}
        if self.given.provider in ("tei", "openai"):
            needed["url"] = "URL"
        if self.given.provider == "openai":
            needed["model"] = "NAME"
        missing = [name for name in needed if getattr(self.given, name) is None]
        if missing:
            raise ConfigurationError(
                f"there is no terminal to ask at, and {_and([f'--{name}' for name in missing])} "
                f"{'is' if len(missing) == 1 else 'are'} not given",
                next_step="crossfade init " + " ".join(f"--{name} {needed[name]}" for name in missing) + " ...",
            )

    async def draft(self) -> tuple[Draft, Sequence[SeenField]]:
        """What the file will say, and the fields that were seen."""
        if self.terminal:
            click.echo(f"This writes {self.path}. Enter takes what stands in brackets; Ctrl-C leaves without writing.")
        source = Source(self.given, self.secrets, self.terminal)
        kafka, settings = await source.kafka()
        topics, log = Topics(settings), KafkaLog(settings)
        await topics.wait_for_broker(BROKER_PATIENCE_S, say)
        facts, bounds = await source.topic(topics, local=not kafka)
        if "compact" not in facts.cleanup_policy:
            say(
                f"warning: topic {facts.name} is not compacted (cleanup.policy {facts.cleanup_policy}): its retention "
                "would take documents away, and no version is built from it"
            )
        records = await read_sample(log, facts.name, bounds, self.given.sample)
        seen = look_at(records)
        self._show(facts.name, seen)
        fields = self._fields(seen)
        properties = self._properties(seen, fields)
        schema = DocumentSchema(facts.name, fields, None, dict(properties))
        _show_rejections(records, schema)
        http, grpc, weaviate_key = await self._weaviate()
        model = await ModelQuestions(self.given, self.secrets, self.terminal).model()
        draft = Draft(
            topic=facts.name,
            collection=self.given.collection or source.name(facts.name),
            version=self.given.version,
            fields=fields,
            properties=properties,
            model=model,
            kafka=kafka,
            client=source.client(),
            weaviate_http=http,
            weaviate_grpc=grpc,
            weaviate_api_key=weaviate_key,
        )
        return draft, seen.fields

    # fields

    def _show(self, topic: str, seen: Sample) -> None:
        others = {"in Debezium envelopes": seen.enveloped, "deletes": seen.deletes, "no JSON object": seen.unreadable}
        listed = "".join(f", {number:,} {what}" for what, number in others.items() if number)
        click.echo(f"{topic}: {count(seen.records, 'record')} sampled, {count(seen.documents, 'document')}{listed}")
        if not seen.fields:
            return
        width = max(10, *(min(32, len(plain(one.name))) for one in seen.fields))
        click.echo(f"  {'field':<{width}}  {'type':<9} {'in':>5}  mean length")
        for one in seen.fields:
            length = f"{one.mean_characters:,.0f} characters" if one.mean_characters else "-"
            kind = one.kind or one.shape
            click.echo(f"  {plain(one.name, 32):<{width}}  {plain(kind, 20):<9} {_share(one.share):>5}  {length}")

    def _fields(self, seen: Sample) -> tuple[str, ...]:
        known = {one.name: one for one in seen.fields}

        def checked(said: str) -> tuple[str, ...]:
            names = parse_names(said)
            if known and (unknown := [name for name in names if name not in known]):
                raise ValueError(f"not seen in the sample: {plain(', '.join(unknown))}; seen: {_names(seen)}")
            if textless := [name for name in names if known and known[name].mean_characters == 0]:
                raise ValueError(f"no text in {plain(', '.join(textless))}; a text field holds strings")
            return names

        if self.given.fields is not None:
            return option_value("--fields", checked, self.given.fields)
        proposed = ",".join(propose_text(seen.fields))
        return ask_until("Text fields to embed, in order", checked, proposed or None)

    def _properties(self, seen: Sample, fields: Sequence[str]) -> dict[str, PropertyType]:
        if self.given.properties is not None:
            return option_value("--properties", parse_types, self.given.properties)
        if not self.terminal:
            return {}  # a type that only the sample suggests is for a person to accept; the file shows them as comments
        proposed = ",".join(f"{name}:{kind}" for name, kind in propose_properties(seen.fields, fields).items())
        return ask_until(
            "Properties kept beside the vector (name:type; none for none)",
            lambda said: {} if said == "none" else parse_types(said),
            proposed or "none",
        )

    # Weaviate

    async def _weaviate(self) -> tuple[str, str, str]:
        """http, grpc and the key's reference; empty for the local one."""
        http = self.given.weaviate_http
        if http is None:
            http = LOCAL
            if self.terminal:
                http = ask("Weaviate (http://host:port, or local for that of `crossfade up`)", LOCAL)
        if http == LOCAL:
            return "", "", ""
        grpc = self.given.weaviate_grpc
        if grpc is None:
            if not self.terminal:
                raise ConfigurationError(
                    "--weaviate-http is given and --weaviate-grpc is not", next_step="add --weaviate-grpc HOST:PORT"
                )
            grpc = ask("Weaviate's gRPC address (host:port)", "")
        key = self.secrets.reference(self.given.weaviate_api_key, "--weaviate-api-key", "Weaviate", "WEAVIATE_API_KEY")
        raw = {"http": http, "grpc": grpc} | ({"api_key": self.secrets.value(key)} if key else {})
        settings = checked_settings({"weaviate": raw}, "--weaviate-http and --weaviate-grpc")
        try:
            store = await open_store(weaviate_settings(settings))
            await store.close()
        except CrossfadeError as error:  # it is not needed for writing the file
            say(f"warning: {error.message}; `crossfade worker` will need it")
        return http, grpc, key


def _show_rejections(records: Sequence[Record], schema: DocumentSchema) -> None:
    """Before anybody is surprised by dead letters."""
    causes = rejections(records, schema)
    if not causes:
        click.echo(f"all {count(len(records), 'sampled record')} can be read this way")
        return
    listed = ", ".join(f"{number:,} {cause}" for cause, number in causes.most_common())
    click.echo(f"{causes.total():,} of {count(len(records), 'sampled record')} would go to the dead letters: {listed}")


def _share(share: float) -> str:
    return "<1%" if 0 < share < 0.01 else f"{share:.0%}"


def _names(seen: Sample) -> str:
    return plain(", ".join(one.name for one in seen.fields), 300)


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
