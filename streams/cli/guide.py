"""What `init` asks, and what it looks up to propose answers: topics, fields of real records, the endpoint's facts.

It must never show what a document says, nor let a secret reach the screen or the draft.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar, get_args

import click
from pydantic import ValidationError

from connectors.embedders.probe import probe
from connectors.errors import AccessDenied, ConfigurationError, CrossfadeError, NotFound
from connectors.kafka.log import KafkaLog
from connectors.kafka.settings import KafkaSettings
from connectors.kafka.topics import Topics
from connectors.protocols import Bounds, ModelFacts, Record, TopicFacts
from connectors.weaviate.spaces import open_store
from streams.cli.asking import ask, ask_hidden, ask_until
from streams.cli.output import count, plain, say
from streams.cli.session import BROKER_PATIENCE_S
from streams.config import Settings
from streams.config_embedders import Version
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
    stretches,
)
from streams.setup import (
    Draft,
    Model,
    collection_name,
    document_topics,
    is_reference,
    is_secret_setting,
    prefixes,
)
from streams.wiring import kafka_settings, make_embedders, weaviate_settings

T = TypeVar("T")

LOCAL = "local"
PROVIDERS = ("hashing", "tei", "openai")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_KEYS = ("none", "env", "file")
_SHOWN_TOPICS = 30
_HASHING_DIMENSIONS = 256
TYPES = ", ".join(get_args(PropertyType))


@dataclass(frozen=True, slots=True)
class Given:
    """The options, None where nothing was said."""

    bootstrap: str | None
    client: tuple[str, ...]
    weaviate_http: str | None
    weaviate_grpc: str | None
    weaviate_api_key: str | None
    topic: str | None
    collection: str | None
    fields: str | None
    properties: str | None
    provider: str | None
    url: str | None
    model: str | None
    revision: str | None
    api_key: str | None
    dimensions: int | None
    document_prefix: str | None
    query_prefix: str | None
    price: float | None
    version: str
    sample: int


@dataclass(slots=True)
class Guide:
    """Asks for what was not given; without a terminal it takes proposals where they are safe, else refuses."""

    given: Given
    path: Path
    secrets: dict[str, str]
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
        kafka, settings = await self._kafka()
        topics, log = Topics(settings), KafkaLog(settings)
        await topics.wait_for_broker(BROKER_PATIENCE_S, say)
        facts, bounds = await self._topic(topics)
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
        model = await self._model()
        draft = Draft(
            topic=facts.name,
            collection=self.given.collection or self._name(facts.name),
            version=self.given.version,
            fields=fields,
            properties=properties,
            model=model,
            kafka=kafka,
            client=self._client(),
            weaviate_http=http,
            weaviate_grpc=grpc,
            weaviate_api_key=weaviate_key,
        )
        return draft, seen.fields

    # Kafka

    async def _kafka(self) -> tuple[str, KafkaSettings]:
        """The address to write, "" for the local services, and how to reach it now."""
        said = self.given.bootstrap
        if said is None:
            default = LOCAL if _local_runs() else None
            said = ask("Kafka's brokers (host:port, or local for those of `crossfade up`)", default)
        address = "" if said == LOCAL else said
        client = {name: self._value(value) for name, value in self._client().items()}
        raw = {"kafka": {"client": client} | ({"bootstrap_servers": address} if address else {})}
        checked = _checked(raw, "--bootstrap or --client")
        if not address and not _local_runs():
            raise ConfigurationError(
                "no local services are running in this folder",
                next_step="crossfade up, or name your brokers: crossfade init --bootstrap HOST:PORT",
            )
        settings = kafka_settings(checked)
        return address, replace(settings, request_timeout_s=2 * BROKER_PATIENCE_S)

    def _client(self) -> dict[str, str]:
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

    async def _topic(self, topics: Topics) -> tuple[TopicFacts, Mapping[int, Bounds]]:
        names = document_topics(await topics.names())
        if self.given.topic is not None:
            if self.given.topic not in names:
                raise NotFound(
                    f"there is no documents topic {self.given.topic}; {_there_are(names)}",
                    next_step="crossfade init --topic with one of them"
                    if names
                    else "create it, compacted, and send documents",
                )
            return await topics.facts(self.given.topic), await topics.bounds(self.given.topic)
        if not names:
            raise NotFound(
                "this cluster has no topic that could hold documents",
                next_step="create one with cleanup.policy=compact and send documents to it; then again: crossfade init",
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

    def _name(self, topic: str) -> str:
        proposed = collection_name(topic)
        if not self.terminal:
            return proposed

        def checked(said: str) -> str:
            if not re.fullmatch(r"[a-z0-9_][a-z0-9_-]{0,47}", said):
                raise ValueError("up to 48 of a-z, 0-9, '_' and '-', not beginning with '-'")
            return said

        return ask_until("Name of the collection, for commands", checked, proposed)

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
            return _option("--fields", checked, self.given.fields)
        proposed = ",".join(propose_text(seen.fields))
        return ask_until("Text fields to embed, in order", checked, proposed or None)

    def _properties(self, seen: Sample, fields: Sequence[str]) -> dict[str, PropertyType]:
        if self.given.properties is not None:
            return _option("--properties", parse_types, self.given.properties)
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
        key = self._reference(self.given.weaviate_api_key, "--weaviate-api-key", "Weaviate", "WEAVIATE_API_KEY")
        raw = {"http": http, "grpc": grpc} | ({"api_key": self._value(key)} if key else {})
        settings = _checked({"weaviate": raw}, "--weaviate-http and --weaviate-grpc")
        try:
            store = await open_store(weaviate_settings(settings))
            await store.close()
        except CrossfadeError as error:  # it is not needed for writing the file
            say(f"warning: {error.message}; `crossfade worker` will need it")
        return http, grpc, key

    # the model

    async def _model(self) -> Model:
        given = self.given
        provider = given.provider or ask_until(
            f"Embedding model, served by ({', '.join(PROVIDERS)}; hashing needs no model and no network)",
            _one_of(PROVIDERS),
            "hashing",
        )
        if provider == "hashing":
            return Model(provider, given.dimensions or self._dimensions(_HASHING_DIMENSIONS))
        url = given.url
        while True:
            address = url or ask(_URLS[provider], "http://127.0.0.1:8080" if provider == "tei" else None)
            name = given.model or ("" if provider == "tei" else ask("Model, as the endpoint calls it", None))
            variable = "TEI_API_KEY" if provider == "tei" else "OPENAI_API_KEY"
            key = self._reference(given.api_key, "--api-key", "the endpoint", variable)
            try:
                dimensions, facts = await self._probe(provider, address, name, key)
                break
            except CrossfadeError as error:
                if not self.terminal or url is not None:
                    raise
                say(f"error: {error.message}\n  next: {error.next_step}; asking again")
        if given.dimensions is not None and given.dimensions != dimensions:
            raise ConfigurationError(
                f"the endpoint's vectors have {dimensions} dimensions, --dimensions says {given.dimensions}",
                next_step=f"leave --dimensions out, or --dimensions {dimensions}",
            )
        return self._described(Model(provider, dimensions, address, name, api_key=key), facts)

    def _described(self, model: Model, facts: ModelFacts) -> Model:
        """With what the endpoint says of itself, and what only a person knows."""
        given = self.given
        name = model.model or (ask("Model that it serves", facts.model) if self.terminal else facts.model or "")
        if not name:
            raise ConfigurationError("the endpoint does not say which model it serves", next_step="add --model NAME")
        revision = given.revision if given.revision is not None else facts.revision or ""
        known_document, known_query = prefixes(name)
        document, query, price = given.document_prefix, given.query_prefix, given.price
        if document is None:
            document = self._prefix("documents", known_document)
        if query is None:
            query = self._prefix("queries", known_query)
        if price is None and self.terminal:
            price = ask_until("Price, USD for a million tokens (0 for a machine of your own)", _price, "0")
        default_batch = 32 if model.provider == "tei" else 128
        batch = facts.max_batch if facts.max_batch is not None and facts.max_batch < default_batch else None
        return replace(
            model,
            model=name,
            revision=revision,
            document_prefix=document,
            query_prefix=query,
            price=price,
            max_batch=batch,
            max_tokens=facts.max_input_tokens,
        )

    def _prefix(self, of: str, known: str) -> str:
        if not self.terminal:
            return known
        said = ask(f"Prefix the model wants before {of} (none for none)", known.strip() or "none")
        return "" if said == "none" else f"{said.strip()} "

    def _dimensions(self, proposed: int) -> int:
        if not self.terminal:
            return proposed
        return ask_until("Dimensions", _dimensions, str(proposed))

    async def _probe(self, provider: str, url: str, model: str, key: str) -> tuple[int, ModelFacts]:
        """Asks with four short texts. Raises what the endpoint does."""
        raw: dict[str, object] = {"provider": provider, "url": url, "model": model or "asked"}
        if key:
            raw["api_key"] = self._value(key)
        try:
            version = Version.model_validate({"embedder": raw, "dimensions": 1})
        except ValidationError as error:
            raise _unfit(error, "--url, --model or --api-key") from None
        ((name, embedder),) = make_embedders(version)
        say(f"asking {name} for its vectors, with four short texts")
        try:
            vectors = await probe(embedder)
            facts = await embedder.facts()
        finally:
            await embedder.close()
        dimensions = int(vectors.shape[1])
        known = (("model", facts.model), ("revision", facts.revision))
        said = "".join(f", {what} {plain(one)}" for what, one in known if one)
        click.echo(f"{name}: {dimensions} dimensions{said}")
        return dimensions, facts

    # secrets

    def _reference(self, given: str | None, option: str, whose: str, variable: str) -> str:
        """Where a key stands: "${NAME}", "file:/path" or "" for no key; its value can be had from `_value`."""
        if given is not None:
            if not is_reference(given):  # not shown: it may be the key itself
                raise ConfigurationError(
                    f"{option} does not say where the key stands", next_step=f"{option} '${{NAME}}', or file:/path"
                )
            return given
        if not self.terminal:
            return ""
        where = ask_until(f"Key for {whose}: none, env (a variable) or file", _one_of(_KEYS), "none")
        if where == "none":
            return ""
        if where == "file":
            path = ask_until("File with the key", self._readable, None)
            return f"file:{path}"
        name = ask_until("Variable that holds the key (its name)", _variable_name, variable)
        if not os.environ.get(name) or name in self.secrets:
            said = f"{name} is not set. Its value, to ask the endpoint now (not shown, not written)"
            if typed := ask_hidden(said):
                os.environ[name] = self.secrets[name] = typed
        return f"${{{name}}}"

    def _readable(self, said: str) -> str:
        if not said or not (self.path.parent / Path(said).expanduser()).is_file():
            raise ValueError("a file that exists; a relative path is seen from the configuration's folder")
        return said

    def _value(self, text: str) -> str:
        """What a reference stands for; other text is itself. Raises ConfigurationError when there is nothing."""
        if text.startswith("file:"):
            place = self.path.parent / Path(text.removeprefix("file:"))
            try:
                return place.read_text().rstrip()
            except (OSError, UnicodeDecodeError):
                raise ConfigurationError(
                    f"the secret file {place} cannot be read", next_step="name a readable text file"
                ) from None
        if not is_reference(text):
            return text
        name = text[2:-1]
        value = os.environ.get(name)
        if not value:
            raise ConfigurationError(f"the environment variable {name} is not set", next_step=f"export {name}=...")
        return value


_URLS = {
    "tei": "Address of the endpoint, without its path",
    "openai": "Address of the endpoint, up to before /embeddings (mostly ending in /v1)",
}


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


def _show_rejections(records: Sequence[Record], schema: DocumentSchema) -> None:
    """Before anybody is surprised by dead letters."""
    causes = rejections(records, schema)
    if not causes:
        click.echo(f"all {count(len(records), 'sampled record')} can be read this way")
        return
    listed = ", ".join(f"{number:,} {cause}" for cause, number in causes.most_common())
    click.echo(f"{causes.total():,} of {count(len(records), 'sampled record')} would go to the dead letters: {listed}")


def _checked(raw: Mapping[str, object], options: str) -> Settings:
    try:
        return Settings.model_validate(raw)
    except ValidationError as error:
        raise _unfit(error, options) from None  # pydantic's own message would show the values


def _unfit(error: ValidationError, options: str) -> ConfigurationError:
    problems = [
        f"{'.'.join(str(part) for part in item['loc'])} {item['msg']}"
        for item in error.errors(include_url=False, include_input=False, include_context=False)
    ]
    return ConfigurationError("; ".join(problems), next_step=f"correct {options}: crossfade init --help")


def _option(name: str, checked: Callable[[str], T], said: str) -> T:
    try:
        return checked(said)
    except ValueError as error:
        raise ConfigurationError(f"{name}: {error}", next_step="crossfade init --help") from error


def _one_of(words: Sequence[str]) -> Callable[[str], str]:
    def checked(said: str) -> str:
        if said not in words:
            raise ValueError(f"one of {', '.join(words)}")
        return said

    return checked


def _variable_name(said: str) -> str:
    name = said.removeprefix("${").removesuffix("}")
    if not _VARIABLE.fullmatch(name):  # never repeated: somebody may have pasted the key
        raise ValueError("the name of an environment variable: letters, digits and '_'")
    return name


def _dimensions(said: str) -> int:
    if not said.isdecimal() or not 1 <= int(said) <= 65535:
        raise ValueError("a whole number from 1 to 65535")
    return int(said)


def _price(said: str) -> float:
    wanted = "a number of USD, at least 0"
    try:
        price = float(said)
    except ValueError:
        raise ValueError(wanted) from None
    if not 0 <= price < 1e9:
        raise ValueError(wanted)
    return price


def _share(share: float) -> str:
    return "<1%" if 0 < share < 0.01 else f"{share:.0%}"


def _names(seen: Sample) -> str:
    return plain(", ".join(one.name for one in seen.fields), 300)


def _there_are(names: Sequence[str]) -> str:
    listed = plain(", ".join(names[:10])) or "none"
    return f"there are: {listed}{', ...' if len(names) > 10 else ''}"


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
