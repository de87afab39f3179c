"""The one configuration file: pydantic models, and the loader that names file, line, key and the value wanted.

Never prints a secret: neither in an error, nor in a repr, nor in a traceback.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated

from pydantic import (
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from connectors import reserved
from connectors.embedders import hashing
from connectors.errors import ConfigurationError, NotFound
from connectors.protocols import JSON
from streams.config_embedders import AnyEndpoint, HashingEmbedder, TeiEmbedder, Version
from streams.config_file import Source, Stamp, read_yaml
from streams.config_operation import Cutover, Gate, Hook, Priority, Retention, Routes, Throttle, Watch
from streams.config_serve import Serve
from streams.config_types import (
    ClientValue,
    FilePath,
    HostPort,
    HostPorts,
    HttpOrigin,
    HttpUrl,
    Listen,
    PropertyType,
    Seconds,
    Secret,
    Strict,
    TopicName,
    Whole,
    wrong,
)
from streams.documents import DocumentSchema, template_fields
from streams.tokens import Tokenizer, load_tokenizer
from streams.versions import SPACE_TAIL, Envelope

DEFAULT_PATH = Path("config/crossfade.yaml")
PATH_VARIABLE = "CROSSFADE_CONFIG"
MAX_NAME = 48
NO_METRICS = "none"

_COLLECTION = re.compile(r"[a-z0-9_][a-z0-9_-]*")
_VERSION = re.compile(r"[a-z0-9_]+")
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")
_ALIAS = re.compile(r"[A-Z][A-Za-z0-9_]{0,99}")
_PROPERTY = re.compile(r"[a-z_][A-Za-z0-9_]{0,99}")
_RESERVED_PROPERTIES = ("id", "_id", "vector", "vectors", "_additional")
_OWN_TOPICS = ("commands", "state", "progress", "dead-letters", "journal")
_OWN_CLIENT_SETTINGS = frozenset(
    {
        "auto.offset.reset",
        "bootstrap.servers",
        "enable.auto.commit",
        "enable.auto.offset.store",
        "enable.idempotence",
        "enable.partition.eof",
        "group.id",
        "group.instance.id",
        "group.protocol",
        "isolation.level",
        "metadata.broker.list",
        "partitioner",
        "session.timeout.ms",
        "transactional.id",
    }
)


LEASE_MARGIN_S = 3.0
SHORTEST_LEASE_S = 1.0


class Kafka(Strict):
    """`client`: further librdkafka settings (security, TLS); their values are treated as secret."""

    bootstrap_servers: HostPorts | None = None
    topic_prefix: str = "crossfade"
    client: dict[str, ClientValue] = Field(default_factory=dict, repr=False)
    session_timeout_s: Seconds = 45.0

    @field_validator("topic_prefix")
    @classmethod
    def _prefix(cls, prefix: str) -> str:
        if not _TOPIC.fullmatch(prefix) or len(prefix) > 100 or prefix[0] in ".-":
            raise wrong("is no topic prefix", "up to 100 letters, digits, '.', '_' or '-', beginning with none of '.-'")
        return prefix

    @field_validator("client")
    @classmethod
    def _client(cls, client: dict[str, str]) -> dict[str, str]:
        if owned := sorted(_OWN_CLIENT_SETTINGS & client.keys()):
            raise wrong(f"sets {', '.join(owned)}, which Crossfade sets itself", "other librdkafka settings only")
        return client


class Weaviate(Strict):
    """Where vectors go: `http` a URL, `grpc` host:port; TLS on both when `http` is https. Both or neither.

    `metrics`, `data_path`: where its disk and memory can be learned (connectors.weaviate.capacity).
    """

    http: HttpOrigin | None = None
    grpc: HostPort | None = None
    api_key: Secret | None = None
    write_timeout_s: Seconds = 20.0
    settle_s: Seconds = 30.0
    metrics: list[HttpUrl] = Field(default_factory=list)
    data_path: FilePath | None = None

    @model_validator(mode="after")
    def _both(self) -> Weaviate:
        if (self.http is None) != (self.grpc is None):
            raise wrong("has one of http and grpc", "both addresses, or neither to use what `crossfade up` started")
        return self


class Text(Strict):
    """What is embedded: the named fields of a document, through a template that reads each of them."""

    fields: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]
    template: str | None = None

    @model_validator(mode="after")
    def _template(self) -> Text:
        if len(set(self.fields)) != len(self.fields):
            raise wrong("names a field twice", "each text field once", "fields")
        if self.template is None:
            return self
        try:
            read = template_fields(self.template)
        except ValueError as error:
            raise wrong(f"cannot be read: {error}", "a template like {title}: {text}", "template") from None
        if read != set(self.fields):
            raise wrong(
                f"reads {', '.join(sorted(read)) or 'no field'}",
                f"a template that reads exactly the declared fields: {', '.join(self.fields)}",
                "template",
            )
        return self


class Collection(Strict):
    """One stream of documents. `name` is its key in the file; `alias` defaults to it in capitals: my-docs, MyDocs."""

    name: str = ""
    topic: TopicName
    alias: str
    text: Text
    properties: dict[str, PropertyType] = Field(default_factory=dict)
    store_text: bool = True
    max_record_bytes: Annotated[Whole, Field(ge=1, le=100_000_000)] = 1_000_000
    priority: Priority = Field(default_factory=Priority)
    throttle: Throttle = Field(default_factory=Throttle)
    gate: Gate = Field(default_factory=Gate)
    cutover: Cutover = Field(default_factory=Cutover)
    watch: Watch | None = None
    retention: Retention = Field(default_factory=Retention)
    hooks: list[Hook] = Field(default_factory=list)
    routes: Routes = Field(default_factory=Routes)
    versions: dict[str, Version] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _default_alias(cls, raw: object) -> object:
        if isinstance(raw, dict) and isinstance(raw.get("name"), str) and raw.get("alias") is None:
            return {**raw, "alias": "".join(part[:1].upper() + part[1:] for part in re.split("[-_]", raw["name"]))}
        return raw

    @field_validator("alias")
    @classmethod
    def _alias(cls, alias: str) -> str:
        if not _ALIAS.fullmatch(alias):
            raise wrong("is no Weaviate name", "a capital letter, then up to 99 letters, digits or '_' (alias: Name)")
        if any(SPACE_TAIL.fullmatch(alias, i) for i in range(len(alias))):
            raise wrong("could be the name of a space", "a name that does not end in _version_epoch_fingerprint")
        return alias

    @field_validator("properties")
    @classmethod
    def _properties(cls, properties: dict[str, str]) -> dict[str, str]:
        lowered: dict[str, str] = {}
        for name in properties:
            if not _PROPERTY.fullmatch(name) or name.startswith("__"):
                # Weaviate lowers the first letter itself: a capital would come back under another name
                raise wrong("is no property name", "a small letter or '_', then letters, digits or '_'", name)
            if name in _RESERVED_PROPERTIES or name.startswith(reserved.PREFIX):
                names = ", ".join(_RESERVED_PROPERTIES)
                raise wrong("is reserved", f"a name other than {names} and not beginning with cf_", name)
            if (other := lowered.setdefault(name.lower(), name)) != name:
                raise wrong(f"differs from {other!r} only in capitals", "names Weaviate can tell apart", name)
        return properties

    @model_validator(mode="after")
    def _category_is_a_property(self) -> Collection:
        category = self.priority.category
        if category is not None and category.field not in self.properties:
            known = _names(self.properties)
            raise wrong("is no declared property", f"one of: {known}", "priority", "category", "field")
        return self

    @model_validator(mode="after")
    def _distinct_versions(self) -> Collection:
        seen: dict[str, str] = {}
        for name, version in self.versions.items():
            if not _VERSION.fullmatch(name) or len(name) > MAX_NAME:
                raise wrong("is no version name", f"up to {MAX_NAME} of a-z, 0-9 and '_'", "versions", name)
            other = seen.setdefault(envelope_of(self, version).fingerprint, name)
            if other != name:
                raise wrong(
                    f"is the same model as version {other}", "versions that differ in their model", "versions", name
                )
        return self

    def version(self, name: str) -> Version:
        """Raises NotFound with the versions there are."""
        if name not in self.versions:
            raise NotFound(
                f"collection {self.name} has no version {name}",
                next_step=f"use one of {_names(self.versions)}, or add it under collections.{self.name}.versions",
            )
        return self.versions[name]


class VectorCache(Strict):
    """Vectors kept in a file of this machine, so that a rebuild pays for no text twice."""

    path: FilePath
    max_gib: Annotated[float, Field(gt=0, le=10_000, allow_inf_nan=False)] = 10.0


class Metrics(Strict):
    """Where a worker serves Prometheus metrics: host:port of this machine, or `none`."""

    listen: Listen = "127.0.0.1:9464"

    @property
    def chosen(self) -> bool:
        """Somebody has written the address down."""
        return "listen" in self.model_fields_set


class Settings(Strict):
    """The whole file. `prices`: USD for a million tokens, by model name. `embed_endpoints`: where the texts of versions
    that are added over HTTP may be sent."""

    kafka: Kafka = Field(default_factory=Kafka)
    weaviate: Weaviate = Field(default_factory=Weaviate)
    prices: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(default_factory=dict)
    vector_cache: VectorCache | None = None
    metrics: Metrics = Field(default_factory=Metrics)
    serve: Serve = Field(default_factory=Serve)
    embed_endpoints: list[AnyEndpoint] = Field(default_factory=list)
    collections: dict[str, Collection] = Field(default_factory=dict)
    _path: Path | None = PrivateAttr(default=None)
    _files: Mapping[Path, Stamp | None] = PrivateAttr(default_factory=dict)

    @property
    def path(self) -> Path | None:
        """The file these settings were loaded from."""
        return self._path

    @property
    def files(self) -> Mapping[Path, Stamp | None]:
        """What was read for them, that file and those with secrets, as each was just before."""
        return self._files

    @model_validator(mode="before")
    @classmethod
    def _name_collections(cls, raw: object) -> object:
        """A collection's name is its key."""
        if not isinstance(raw, Mapping) or not isinstance(raw.get("collections"), Mapping):
            return raw
        named: dict[object, object] = {}
        for name, collection in raw["collections"].items():
            if not isinstance(name, str) or not _COLLECTION.fullmatch(name) or len(name) > MAX_NAME:
                raise wrong(
                    "is no collection name",
                    f"up to {MAX_NAME} of a-z, 0-9, '_' and '-', not beginning with '-'",
                    "collections",
                    str(name),
                )
            if isinstance(collection, Collection):
                named[name] = collection.model_copy(update={"name": name})
            elif isinstance(collection, Mapping):
                if collection.get("name", name) != name:
                    raise wrong("differs from its key", f"no name; {name} is its name", "collections", name, "name")
                named[name] = {**collection, "name": name}
            else:
                named[name] = collection
        return {**raw, "collections": named}

    @property
    def lease_s(self) -> float:
        """Rule 11: how long after a group commit was sent writes may still begin."""
        return self.kafka.session_timeout_s - self.weaviate.write_timeout_s - LEASE_MARGIN_S

    @model_validator(mode="after")
    def _whole(self) -> Settings:
        most = min(self.kafka.session_timeout_s / 2, self.kafka.session_timeout_s - LEASE_MARGIN_S - SHORTEST_LEASE_S)
        if self.weaviate.write_timeout_s > most:
            # rules 9 and 11: a write must have ended, with time to spare, before another owner can begin
            raise wrong(
                "leaves too little of kafka.session_timeout_s",
                f"at most {most:g}" if most > 0 else "a session_timeout_s of 10 or more",
                "weaviate",
                "write_timeout_s",
            )
        aliases: dict[str, str] = {}
        for name, collection in self.collections.items():
            if collection.topic in {f"{self.kafka.topic_prefix}.{own}" for own in _OWN_TOPICS}:
                raise wrong(
                    "is a topic of Crossfade's own", "the topic of your documents", "collections", name, "topic"
                )
            lowered = collection.alias.lower()  # Weaviate takes names that differ only in capitals for the same
            for other_alias, other in aliases.items():
                if lowered == other_alias:
                    raise wrong(
                        f"has the alias of collection {other}", "an alias of its own", "collections", name, "alias"
                    )
                short, long = sorted((lowered, other_alias), key=len)
                if long.startswith(short + "_"):
                    raise wrong(
                        f"its spaces could have the names of collection {other}'s",
                        "aliases of which none is another one with '_' and more behind it",
                        "collections",
                        name,
                        "alias",
                    )
            aliases[lowered] = name
        return self

    def collection(self, name: str) -> Collection:
        """Raises NotFound with the collections there are."""
        if name not in self.collections:
            raise NotFound(
                f"there is no collection {name}",
                next_step=f"use one of {_names(self.collections)}, or add it under collections in {self._path}",
            )
        return self.collections[name]


def _names(known: Mapping[str, object]) -> str:
    return ", ".join(known) or "(none are declared)"


def envelope_of(collection: Collection, version: Version) -> Envelope:
    """Everything that decides this version's vectors; no address, key, rate or provenance.

    Raises ConfigurationError when a tokenizer file that decides them cannot be read.
    """
    embedder = version.embedder
    options: dict[str, JSON]
    if isinstance(embedder, HashingEmbedder):
        model, revision = hashing.MODEL, hashing.REVISION
        options = {
            "word_ngrams": list(embedder.word_ngrams) if embedder.word_ngrams else None,
            "char_ngrams": list(embedder.char_ngrams) if embedder.char_ngrams else None,
            "sublinear": embedder.sublinear,
            "seed": embedder.seed,
        }
    else:
        model, revision = embedder.model, embedder.revision
        options = {"truncate": embedder.truncate} if isinstance(embedder, TeiEmbedder) else {}
    decides = version.overlong == "truncate" or version.chunking is not None  # else no file is read for the envelope
    tokenizer = tokenizer_of(version) if decides else None
    if version.overlong == "truncate" and tokenizer is not None:
        options |= {"overlong": "truncate", "tokenizer": tokenizer.id}
    chunking = "none"
    if version.chunking is not None:
        chunking = version.chunking.chunking.canonical(tokenizer.id if tokenizer else None)
    return Envelope(
        provider=embedder.provider,
        model=model,
        revision=revision,
        options=options,
        dimensions=version.dimensions,
        text_fields=tuple(collection.text.fields),
        template=collection.text.template,
        normalize=version.normalize,
        metric=version.metric,
        quantization=version.quantization,
        document_prefix=version.document_prefix,
        query_prefix=version.query_prefix,
        max_tokens=version.max_tokens,
        chunking=chunking,
    )


def tokenizer_of(version: Version) -> Tokenizer | None:
    """Of the version's file, kept while the file is the same. Raises ConfigurationError."""
    path = version.tokenizer
    if path is None:
        return None
    try:
        stat = path.stat()
    except OSError:
        return load_tokenizer(path)  # which says what is wrong
    return _tokenizer(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=8)
def _tokenizer(path: Path, _modified_ns: int, _size: int) -> Tokenizer:
    return load_tokenizer(path)


def schema_of(collection: Collection) -> DocumentSchema:
    """How this collection's records are read."""
    return DocumentSchema(
        collection=collection.name,
        fields=tuple(collection.text.fields),
        template=collection.text.template,
        properties=dict(collection.properties),
        max_record_bytes=collection.max_record_bytes,
    )


def find_config(explicit: Path | None = None) -> Path:
    """The file to use: the one named, else of CROSSFADE_CONFIG, else config/crossfade.yaml here.

    Raises ConfigurationError that says every place it looked.
    """
    from_environment = os.environ.get(PATH_VARIABLE)
    looked = [
        f"--config: {explicit if explicit else 'not given'}",
        f"{PATH_VARIABLE}: {from_environment or 'not set'}",
        f"default: {DEFAULT_PATH.absolute()}",
    ]
    # a place that was named is the only one looked at: falling back to another file would be a surprise
    path = explicit or (Path(from_environment) if from_environment else DEFAULT_PATH)
    if not path.is_file():
        raise ConfigurationError(
            f"no configuration file at {path}; looked at " + "; ".join(looked),
            next_step=f"crossfade init writes one; or name yours with --config or {PATH_VARIABLE}",
        )
    return path


def load(path: Path) -> Settings:
    """Read and check one file. Raises ConfigurationError with a line for each thing that is wrong:
    `file:line: key path: problem; wanted: ...`, never the value of a secret."""
    source = read_yaml(path)
    try:
        settings = Settings.model_validate(source.data, context={"folder": path.parent})
    except ValidationError as error:
        problems = [_describe(dict(item), source) for item in error.errors(include_url=False, include_input=False)]
        # no `from error`: pydantic's own message would show the values
        raise ConfigurationError(
            "\n".join(dict.fromkeys(problems)), next_step=f"correct {path} and run the command again"
        ) from None
    settings._path, settings._files = path, source.files
    return settings


_PLAIN: Mapping[str, tuple[str, str]] = {
    "missing": ("is missing", "a value"),
    "string_type": ("is not text", "text (put numbers, dates and yes/no in quotes)"),
    "dict_type": ("is not a mapping", "keys with values, indented below it"),
    "model_type": ("is not a mapping", "keys with values, indented below it"),
    "model_attributes_type": ("is not a mapping", "keys with values, indented below it"),
    "list_type": ("is not a list", "a list: [a, b]"),
    "tuple_type": ("is not a list", "a list of two numbers: [smallest, largest]"),
    "too_short": ("is too short", "at least one value"),
    "union_tag_not_found": ("has no provider", "provider: hashing, provider: tei or provider: openai"),
    "union_tag_invalid": ("has an unknown provider", "provider: hashing, provider: tei or provider: openai"),
}


def _describe(item: dict[str, object], source: Source) -> str:
    kind, context = str(item["type"]), item.get("ctx")
    loc = item["loc"]
    assert isinstance(loc, tuple)
    below = context.get("at", []) if isinstance(context, dict) else []
    path = source.resolve((*loc, *below), missing=kind == "missing")
    if kind in _PLAIN:
        problem = "{}; wanted: {}".format(*_PLAIN[kind])
    elif kind in ("crossfade", "unknown_key"):
        problem = str(item["msg"])
    else:
        wanted = str(item["msg"]).removeprefix("Input should be ").removeprefix("Value should have ")
        shown = source.show(path)
        problem = f"{f'{shown} ' if shown else ''}does not fit; wanted: {wanted}"
    where = ".".join(str(part) for part in path) or "the file"
    return f"{source.path}:{source.line(path)}: {where}: {problem}"
