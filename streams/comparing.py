"""Candidate versions on a sample of the real documents, embedded in memory: reading, cutting, embedding, asking.

It writes nothing but to the vector cache, and must never spend anything before a forecast of it was made.
"""

from __future__ import annotations

import asyncio
import shlex
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from connectors.embedders.cache import VectorCache
from connectors.embedders.pool import Served
from connectors.errors import ConfigurationError, ContentRejected, NotFound, Refused, Transient
from connectors.protocols import JSON, Log, Vectors
from streams import config
from streams.chunking import make_chunker
from streams.config import Collection, Settings
from streams.config_embedders import Version
from streams.config_operation import Gate
from streams.documents import DocumentSchema, Put, parse
from streams.encoding import Encoder, Urgency
from streams.key_index import KeyIndex
from streams.migration import candidates
from streams.migration.candidates import Drawn, SampleDocument, Stored
from streams.migration.evaluate import Reply, SpaceQuality, compare
from streams.migration.golden import GoldenSet, load_golden
from streams.migration.plan import FLOAT_BYTES, INDEX_BYTES, REPLAY, replayers
from streams.replay import plan_scan
from streams.retry import a_while
from streams.tokens import TokenEstimate
from streams.turns import in_turns
from streams.wiring import make_encoder

SAMPLE, QUERIES = 1000, 500  # by default
AT_ONCE = 4  # queries under way
TEXTS_AT_ONCE = 1024
PATIENCE_S = 60.0
COUNT_DIFFERS = 0.1
SAY_EVERY_S = 5.0
QUERY = frozenset({"query"})

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be compared: `golden` a file of judged queries, `title` a field to make queries from."""

    collection: str
    versions: tuple[str, ...]
    sample: int
    golden: Path | None
    title: str | None
    queries: int
    k: int | None

    @property
    def again(self) -> str:
        """The command, for a next step that adds something to it."""
        said: list[tuple[str, object]] = [("--golden", self.golden), ("--title", self.title), ("-k", self.k)]
        said += [("--sample", self.sample if self.sample != SAMPLE else None)]
        said += [("--queries", self.queries if self.queries != QUERIES else None)]
        options = [f"{name} {shlex.quote(str(value))}" for name, value in said if value is not None]
        return " ".join(["crossfade compare", self.collection, *self.versions, *options])


@dataclass(frozen=True, slots=True)
class Setting:
    """What all versions are measured on. `title`: the field that known-item queries are made from."""

    collection: str
    golden: GoldenSet
    title: str | None
    gate: Gate
    current: int
    drawn: Drawn
    documents: Sequence[SampleDocument]
    unusable: Mapping[str, int]

    @property
    def random(self) -> frozenset[str]:
        return frozenset(document.key for document in self.documents if document.drawn)


@dataclass(frozen=True, slots=True)
class Cut:
    """The sample as one version embeds it: `texts` chunk by chunk, `owner` the document of each."""

    texts: Sequence[str]
    owner: Sequence[int]
    tokens: Sequence[int]
    exact: bool
    query_tokens: int


@dataclass(frozen=True, slots=True)
class Forecast:
    """Before anything is spent. `usd` None: nobody has said the price."""

    version: str
    tokens: int
    exact: bool
    usd: float | None


@dataclass(slots=True)
class Spent:
    """encoding.Meter of one version: counts, and holds at the version's budget."""

    version: str
    budget_usd: float | None
    highest_price: float
    tokens: int = 0
    usd: float = 0.0
    reserved_usd: float = 0.0

    def reserve(self, tokens: int) -> None:
        """Raises Refused when a request might go beyond the version's budget_usd."""
        cost = tokens * self.highest_price / 1e6
        if self.budget_usd is not None and self.usd + self.reserved_usd + cost > self.budget_usd:
            raise Refused(
                f"{self.version} has spent {self.usd:.6g} USD of its budget_usd {self.budget_usd:g} on this sample",
                next_step="take a smaller --sample, or raise budget_usd of the version",
            )
        self.reserved_usd += cost

    def paid(self, reserved: int, served: Served | None) -> None:
        self.reserved_usd -= reserved * self.highest_price / 1e6
        if served is not None:
            self.tokens += served.tokens
            self.usd += served.tokens * served.price / 1e6


@dataclass(frozen=True, slots=True)
class Outcome:
    """One version, measured. `per_s` None when all vectors came from the cache. `usd_all` None: no price is known.

    `objects`: chunks of all documents, from those drawn at random.
    """

    version: str
    model: str
    dimensions: int
    replies: Sequence[Reply]
    quality: SpaceQuality
    refused: int
    embedded: int
    cached: int
    per_s: float | None
    tokens: int
    usd: float
    priced: bool
    tokens_all: int
    usd_all: float | None
    objects: int

    @property
    def vector_bytes(self) -> int:
        return self.objects * self.dimensions * FLOAT_BYTES

    @property
    def index_bytes(self) -> int:
        return self.objects * INDEX_BYTES

    def as_json(self) -> dict[str, JSON]:
        return {
            "version": self.version,
            "model": self.model,
            "dimensions": self.dimensions,
            "quality": self.quality.as_json(),
            "refused_documents": self.refused,
            "chunks_embedded": self.embedded,
            "chunks_cached": self.cached,
            "documents_per_s": self.per_s,
            "sample_tokens": self.tokens,
            "sample_usd": self.usd if self.priced else None,
            "all_tokens": self.tokens_all,
            "all_usd": self.usd_all,
            "all_objects": self.objects,
            "vector_bytes": self.vector_bytes,
            "index_bytes": self.index_bytes,
        }


# the sample


async def sample(kafka: Log, collection: Collection, asked: Asked, say: Say) -> Setting:
    """Reads the topic twice: keys, then the sample. Raises NotFound without documents, ConfigurationError or Refused
    without anything to ask for."""
    gate = collection.gate if asked.k is None else collection.gate.model_copy(update={"k": asked.k})
    schema = config.schema_of(collection)
    path = asked.golden or (None if asked.title is not None else gate.golden)
    title = _title(asked, schema) if path is None else None
    golden = None
    if path is not None:
        golden = candidates.within(await load_golden(path), asked.queries)
    try:
        bounds = await kafka.bounds(collection.topic)
    except NotFound as error:
        raise NotFound(
            f"topic {collection.topic} of {collection.name} does not exist",
            next_step=f"crossfade produce {collection.name} FILE --create-topic",
        ) from error
    say(f"reading the keys of {collection.topic}, then the sample")
    indexes: dict[int, KeyIndex] = {}
    said = time.monotonic()
    for partition, bound in bounds.items():
        indexes[partition] = await plan_scan(kafka, collection.topic, partition, bound.stable, start=bound.earliest)
        if time.monotonic() - said >= SAY_EVERY_S:
            said = time.monotonic()
            say(f"keys of {len(indexes):,} of {len(bounds):,} partitions read")
    drawn = candidates.draw(indexes, asked.sample, golden.keys if golden else ())
    found, unusable = await _read(kafka, collection.topic, drawn, schema, title)
    if not found:
        raise NotFound(
            f"topic {collection.topic} holds no document to compare with",
            next_step=f"crossfade produce {collection.name} FILE",
        )
    if golden is None:
        assert title is not None
        golden = candidates.known_items([one for one in found if one.drawn], title, asked.queries)
    if golden is None:
        raise Refused(
            f"no sampled document has a {title} and text beside it, so there is nothing to ask for",
            next_step=f"{asked.again} --golden FILE, or --title FIELD",
        )
    current = sum(index.documents for index in indexes.values())
    return Setting(asked.collection, golden, title, gate, current, drawn, found, unusable)


def _title(asked: Asked, schema: DocumentSchema) -> str:
    """Raises ConfigurationError when titles cannot be told from the rest."""
    fields = {*schema.fields, *schema.properties}
    if asked.title is not None and asked.title not in fields:
        raise ConfigurationError(
            f"{asked.title} is neither a text field nor a property of {asked.collection}",
            next_step=f"{asked.again} --title with one of {', '.join(sorted(fields))}",
        )
    title = asked.title or candidates.title_field(schema)
    if title is None:
        raise ConfigurationError(
            f"{asked.collection} has no golden set, and none of its fields is called {candidates.TITLE_FIELDS[0]}",
            next_step=f"{asked.again} --golden FILE, or --title FIELD",
        )
    if set(schema.fields) == {title}:
        raise ConfigurationError(
            f"{title} is the only text field of {asked.collection}: without it nothing is left to be found",
            next_step=f"{asked.again} --golden FILE, or another --title",
        )
    return title


async def _read(
    kafka: Log, topic: str, drawn: Drawn, schema: DocumentSchema, title: str | None
) -> tuple[list[SampleDocument], dict[str, int]]:
    """The sampled documents, and how many of the sample no space could hold, by cause."""
    found: list[SampleDocument] = []
    unusable: Counter[str] = Counter()
    for partition, offsets in sorted(drawn.offsets.items()):
        if not offsets:
            continue
        at_random = drawn.random[partition]
        async for batch in kafka.read_range(topic, partition, min(offsets), max(offsets) + 1):
            for record in batch.records:
                if record.offset not in offsets:
                    continue
                change = parse(record.key, record.value, schema)
                if not isinstance(change, Put):
                    unusable[getattr(change, "cause", "deleted")] += 1
                    continue
                is_drawn = record.offset in at_random
                if title is None:
                    found.append(candidates.plain_document(change, schema, drawn=is_drawn))
                elif (one := candidates.titleless_document(change, schema, title, drawn=is_drawn)).text:
                    found.append(one)
                else:
                    unusable["nothing but a title"] += 1
    return found, dict(unusable)


# before


def cut_texts(collection: Collection, version: Version, setting: Setting) -> Cut:
    """Work for a thread: it cuts and counts."""
    envelope, tokenizer = config.envelope_of(collection, version), config.tokenizer_of(version)
    chunker = make_chunker(envelope.chunking, tokenizer)
    texts: list[str] = []
    owner: list[int] = []
    for at, document in enumerate(setting.documents):
        chunks = chunker.split(document.text)
        texts += chunks
        owner += [at] * len(chunks)
    sent = [envelope.document_prefix + text for text in texts]
    asked = [envelope.query_prefix + query.query for query in setting.golden.queries]
    if tokenizer is None:
        estimate = TokenEstimate()
        return Cut(
            texts, owner, [estimate.estimate(one) for one in sent], False, sum(estimate.estimate(one) for one in asked)
        )
    tokens = tokenizer.count(sent)
    if envelope.max_tokens is not None and version.overlong == "truncate":
        tokens = [min(number, envelope.max_tokens) for number in tokens]
    return Cut(texts, owner, tokens, True, sum(tokenizer.count(asked)))


def _price(version: Version, prices: Mapping[str, float], lanes: frozenset[str] = REPLAY) -> float | None:
    """USD for a million tokens at the dearest endpoint that may answer; None where one has no price."""
    if not version.endpoints:
        return 0.0
    found = [one.price for one in replayers(version, prices, lanes)]
    known = [price for price in found if price is not None]
    return max(known, default=0.0) if len(known) == len(found) else None


def forecast(name: str, version: Version, cut: Cut, settings: Settings) -> Forecast:
    """Queries may be another endpoint's, and dearer than the documents."""
    parts = (sum(cut.tokens), REPLAY), (cut.query_tokens, QUERY)
    costs = [(tokens, _price(version, settings.prices, lanes)) for tokens, lanes in parts]
    known = [tokens * price / 1e6 for tokens, price in costs if price is not None]
    usd = sum(known) if len(known) == len(costs) else None
    return Forecast(name, sum(tokens for tokens, _ in costs), cut.exact, usd)


# each version


@dataclass(slots=True)
class _Embedding:
    """The sample's vectors as they come."""

    vectors: Vectors
    refused: set[int] = field(default_factory=set)
    embedded: int = 0
    cached: int = 0
    took_s: float = 0.0


async def measure(
    settings: Settings,
    collection: Collection,
    name: str,
    version: Version,
    setting: Setting,
    cut: Cut,
    cache: VectorCache | None,
    say: Say,
) -> Outcome:
    """Raises Transient when the endpoint is away for longer than a minute, Refused at the version's budget, and what
    `Encoder.encode_each` raises."""
    encoder = make_encoder(settings, collection, version, cache=cache)
    spent = Spent(name, version.budget_usd, encoder.pool.highest_price)
    try:
        done = await _embed(encoder, name, setting, cut, spent, say)
        queries, replies = await _ask(encoder, name, setting)
    finally:
        await encoder.close()
    refused = {cut.owner[at] for at in done.refused}  # all of a document goes to the dead letters then
    kept = [at for at in range(len(cut.texts)) if cut.owner[at] not in refused]
    whole = [setting.documents[cut.owner[at]].key for at in kept]
    starts = [at for at in range(len(whole)) if at == 0 or whole[at] != whole[at - 1]]
    stored = Stored([whole[at] for at in starts], np.array(starts, np.int64), done.vectors[kept])
    answered = [at for at, reply in enumerate(replies) if not reply.refused]
    hits = await asyncio.to_thread(candidates.nearest, stored, queries[answered], version.metric, setting.gate.k)
    for at, found in zip(answered, hits, strict=True):
        replies[at] = Reply(found, replies[at].took_ms)
    judged = await asyncio.to_thread(
        compare, setting.golden, None, replies, k=setting.gate.k, gain=setting.gate.gain, versions=("", name)
    )
    tokens: dict[str, float] = defaultdict(float)
    chunks: dict[str, float] = defaultdict(float)
    foreseen = sum(cut.tokens)
    if cut.exact and not done.cached and not refused and abs(spent.tokens - foreseen) > COUNT_DIFFERS * foreseen:
        say(
            f"{name}: the endpoint counted {spent.tokens:,} tokens where the version's tokenizer counts {foreseen:,}; "
            "what follows is by the endpoint's count, which is what it bills"
        )
    scale = spent.tokens / foreseen if foreseen and not done.cached else 1.0
    for at, size in enumerate(cut.tokens):
        document = setting.documents[cut.owner[at]]
        tokens[document.key] += size * document.whole
        chunks[document.key] += 1
    tokens_all = round(scale * _in_all(tokens, setting))
    price = _price(version, settings.prices)
    return Outcome(
        version=name,
        model=config.envelope_of(collection, version).model,
        dimensions=version.dimensions,
        replies=replies,
        quality=judged.new,
        refused=len(refused),
        embedded=done.embedded,
        cached=done.cached,
        per_s=done.embedded / len(cut.texts) * len(setting.documents) / done.took_s if done.embedded else None,
        tokens=spent.tokens,
        usd=spent.usd,
        priced=price is not None,
        tokens_all=tokens_all,
        usd_all=None if price is None else tokens_all * price / 1e6,
        objects=_in_all(chunks, setting),
    )


def _in_all(figures: Mapping[str, float], setting: Setting) -> int:
    """A figure of each sampled document, by key, as its sum over all documents: those drawn at random, also those of
    them that no space can hold, stand for all."""
    return round(sum(figures.get(key, 0) for key in setting.random) * setting.current / max(1, setting.drawn.drawn))


async def _embed(encoder: Encoder, name: str, setting: Setting, cut: Cut, spent: Spent, say: Say) -> _Embedding:
    done = _Embedding(np.zeros((len(cut.texts), encoder.envelope.dimensions), np.float32))
    said, patience = time.monotonic(), _Patience(name, say)
    for begin in range(0, len(cut.texts), TEXTS_AT_ONCE):
        texts = cut.texts[begin : begin + TEXTS_AT_ONCE]
        urgency = Urgency("rest", going=patience.going, trouble=patience.trouble, meter=spent)
        began = time.perf_counter()
        encoded = await encoder.encode_each(texts, urgency)
        done.took_s += time.perf_counter() - began
        done.vectors[begin : begin + len(texts)] = encoded.vectors
        done.refused |= {begin + at for at in encoded.rejected}
        done.cached += encoded.cached
        done.embedded += len(texts) - encoded.cached
        if time.monotonic() - said >= SAY_EVERY_S:
            said = time.monotonic()
            say(f"{name}: {begin + len(texts):,} of {len(cut.texts):,} texts embedded")
    return done


async def _ask(encoder: Encoder, name: str, setting: Setting) -> tuple[Vectors, list[Reply]]:
    """float32[queries, dim], and of each query what its embedding took; those the model cannot take are refused."""
    queries = setting.golden.queries
    vectors = np.zeros((len(queries), encoder.envelope.dimensions), np.float32)
    replies = [Reply((), 0.0)] * len(queries)

    async def encode(at: int) -> None:
        async def once() -> None:
            began = time.perf_counter()
            vectors[at] = await encoder.encode_query(queries[at].query)
            replies[at] = Reply((), 1000 * (time.perf_counter() - began))

        try:
            await a_while(once)
        except ContentRejected as error:
            replies[at] = Reply((), 0.0, error.message)

    await encode(0)  # connections are opened before time is taken
    await in_turns(range(len(queries)), encode, AT_ONCE)
    return vectors, replies


class _Patience:
    """Waits out an endpoint's trouble, up to `PATIENCE_S`, and says so."""

    def __init__(self, name: str, say: Say) -> None:
        self._name = name
        self._say = say
        self._since: float | None = None

    def trouble(self, error: Transient | None) -> None:
        if error is None:
            self._since = None
        elif self._since is None:
            self._since = time.monotonic()
            self._say(f"{self._name}: {error.message}; trying again for up to {PATIENCE_S:g} s")

    def going(self) -> bool:
        return self._since is None or time.monotonic() - self._since < PATIENCE_S
