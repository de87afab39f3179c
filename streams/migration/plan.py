"""What a migration will take: what a scan of the topic counted, beside what the configuration says, as figures.

Pure. It must never show a figure without saying where it comes from, nor a guess where nobody can know.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

from connectors.protocols import Capacity
from streams.config_embedders import Version
from streams.config_operation import TIERS
from streams.progress import TierProgress
from streams.versions import Envelope

SURE = 1.96
"""Standard errors to each side of an estimate: 95% of intervals hold the true figure."""
FLOAT_BYTES = 4
MAX_CONNECTIONS = 32
CONNECTION_BYTES = 10
"""Weaviate's default since 1.26, and the most its documentation counts for each (Resource Planning: 8 to 10 bytes,
at most 2 * maxConnections in the base layer, which holds every object)."""
INDEX_BYTES = 2 * MAX_CONNECTIONS * CONNECTION_BYTES
LOOKUP_BYTES, TERM_BYTES = 240, 55
"""Weaviate's inverted indexes, measured with 1.38 as they are written: of the reserved properties of an object, and of
each word or value of the user's own. Compaction makes them smaller."""
MEMORY_FACTOR = 2
"""Weaviate's rule of thumb (Resource Planning): memory = 2 * the memory footprint of all vectors."""
READ_ONLY_SHARE = 0.9
"""Of the disk, in use: beyond it Weaviate turns read-only (DISK_USE_READONLY_PERCENTAGE) unless told otherwise."""
BUCKET_SHARE = 0.985  # of a limit a minute that is really used: see connectors.embedders.limits


@dataclass(slots=True)
class Ratio:
    """Estimates a total by the ratio to a measure that is known of every member: tokens by bytes. Running sums only."""

    counted: int = 0
    tokens: int = 0
    bytes: int = 0
    _tokens_squared: int = 0
    _bytes_squared: int = 0
    _product: int = 0

    def add(self, tokens: int, text_bytes: int) -> None:
        """One member of the random sample."""
        self.counted += 1
        self.tokens += tokens
        self.bytes += text_bytes
        self._tokens_squared += tokens * tokens
        self._bytes_squared += text_bytes * text_bytes
        self._product += tokens * text_bytes

    def total(self, members: int, all_bytes: int) -> tuple[float, float]:
        """Of `members` with `all_bytes` in all: the estimate, and half of its 95% interval. (0, 0) without members.

        Without a sample it is (nan, nan): nothing can be said.
        """
        if not members:
            return 0.0, 0.0
        if not self.bytes:
            return math.nan, math.nan
        ratio = self.tokens / self.bytes
        estimate = ratio * all_bytes
        if self.counted >= members:
            return estimate, 0.0
        if self.counted < 2:
            return estimate, math.nan
        residuals = self._tokens_squared - 2 * ratio * self._product + ratio * ratio * self._bytes_squared
        variance = max(0.0, residuals) / (self.counted - 1)
        error = members * math.sqrt((1 - self.counted / members) * variance / self.counted)
        return estimate, SURE * error


@dataclass(slots=True)
class Measured:
    """What one pass over the current documents found. `moved`: documents that a newer record replaced meanwhile.

    `records` to `deletes` are those of the key index; `documents` those the space will hold. `refused`: documents by
    the cause under which they will go to the dead letters. `characters` and `text_bytes` are of what is sent, prefixes
    included; `property_bytes` of what is stored beside each vector, as JSON, `terms` the words and values of it that
    become searchable; `counted_tokens` of the
    `counted_documents` that were counted one by one, `sample` estimates the others; `estimated_tokens`: of all, by the
    encoder's first estimate.
    """

    records: int = 0
    superseded: int = 0
    deletes: int = 0
    documents: int = 0
    moved: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    chunks: int = 0
    characters: int = 0
    text_bytes: int = 0
    stored_text_bytes: int = 0
    property_bytes: int = 0
    terms: int = 0
    requests: int = 0
    estimated_tokens: int = 0
    counted_documents: int = 0
    counted_tokens: int = 0
    other_documents: int = 0
    other_bytes: int = 0
    sample: Ratio = field(default_factory=Ratio)

    @property
    def replayed(self) -> int:
        """What `status` will count as the total of the replay: also those that go to the dead letters."""
        return self.documents + sum(self.refused.values()) + self.moved


@dataclass(frozen=True, slots=True)
class Earlier:
    """A build with the same texts and model: what it has paid, and how fast it was (None: it never got so far)."""

    name: str
    documents: int
    tokens: int
    documents_per_s: float | None


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of the whole replay, with the 95% interval where they are an estimate from a sample.

    `how`: tokenizer, worker (as the worker will count them), earlier or bytes; `counted`: documents looked at;
    `probe`: of the probe texts that ride with the requests, part of `total`.
    """

    total: int
    low: int
    high: int
    probe: int
    how: str
    counted: int
    why: str


@dataclass(frozen=True, slots=True)
class Replayer:
    """An endpoint that may serve a replay. `place`: among the version's endpoints. `price`: USD for a million tokens,
    None where nobody has said one."""

    place: int
    name: str
    model: str
    price: float | None
    rank: int
    overflow: bool
    requests_per_minute: float | None
    tokens_per_minute: float | None


@dataclass(frozen=True, slots=True)
class Cost:
    """USD at the cheapest and at the dearest endpoint; None where no price is known. `over_budget`: the budget is
    below `high`, and the build would be held by it."""

    low: float | None
    high: float | None
    prices: tuple[float, ...]
    unpriced: tuple[str, ...]
    budget: float | None

    @property
    def over_budget(self) -> bool:
        return self.budget is not None and self.high is not None and self.high > self.budget


@dataclass(frozen=True, slots=True)
class Speed:
    """One thing that bounds a replay. `measured`: seen to be reached; otherwise it only cannot be faster."""

    documents_per_s: float
    by: str
    measured: bool


@dataclass(frozen=True, slots=True)
class Duration:
    """`seconds` None: nobody can know, and `by` is then what else was seen. `at_least`: of the bounds that are known
    none was measured."""

    seconds: float | None
    by: str
    at_least: bool


@dataclass(frozen=True, slots=True)
class SpaceSize:
    """Bytes of one space; `objects`: its chunks. `stage` is empty for the one that is planned. `contents`: text and
    properties as JSON; `lookups`: their inverted indexes."""

    name: str
    stage: str
    objects: int
    vectors: int
    index: int
    contents: int
    lookups: int

    @property
    def disk(self) -> int:
        return self.vectors + self.index + self.contents + self.lookups

    @property
    def memory(self) -> int:
        return MEMORY_FACTOR * self.vectors


@dataclass(frozen=True, slots=True)
class Plan:
    """All that `crossfade plan` says, but for the risks. `paid`: there is an endpoint, which may be probed."""

    collection: str
    version: str
    fingerprint: str
    model: str
    dimensions: int
    topic: str
    partitions: int
    measured: Measured
    tokens: Tokens
    cost: Cost
    duration: Duration
    new: SpaceSize
    present: tuple[SpaceSize, ...]
    capacity: Capacity

    tiers: tuple[TierProgress, ...]
    paid: bool

    @property
    def spaces(self) -> tuple[SpaceSize, ...]:
        return (*self.present, self.new)


REPLAY = frozenset({"replay", *TIERS})


def replayers(version: Version, prices: Mapping[str, float], lanes: frozenset[str] = REPLAY) -> list[Replayer]:
    """The endpoints that may serve a replay, or other `lanes`, as configured; none for a model without an endpoint."""
    found = []
    for place, endpoint in enumerate(version.endpoints):
        if endpoint.lanes is not None and not lanes & set(endpoint.lanes):
            continue
        price = endpoint.price_per_million_tokens
        found.append(
            Replayer(
                place=place,
                name=urlsplit(endpoint.url).netloc,
                model=endpoint.model,
                price=prices.get(endpoint.model) if price is None else price,
                rank=endpoint.rank,
                overflow=endpoint.overflow,
                requests_per_minute=endpoint.requests_per_minute,
                tokens_per_minute=endpoint.tokens_per_minute,
            )
        )
    return found


def first_choice(endpoints: Sequence[Replayer]) -> list[Replayer]:
    """Those that share the work while all of them are well: the lowest rank, and the others with `overflow`."""
    lowest = min((endpoint.rank for endpoint in endpoints), default=0)
    return [endpoint for endpoint in endpoints if endpoint.rank == lowest or endpoint.overflow]


def same_texts(one: Envelope, other: Envelope) -> bool:
    """Whether both send the same texts to the same model, so that tokens and speed of one tell of the other."""
    return _texts(one) == _texts(other)


def _texts(envelope: Envelope) -> Envelope:
    return replace(envelope, dimensions=1, normalize=True, metric="cosine", quantization="none", query_prefix="")


def tokens_of(
    measured: Measured, probe_tokens: float, *, has_tokenizer: bool, has_endpoint: bool, earlier: Earlier | None
) -> Tokens:
    """The best that can be said. `probe_tokens`: of the probe text in each request, 0 where none rides along."""
    probe = round(measured.requests * probe_tokens)
    if has_tokenizer:
        counted = measured.counted_documents + measured.sample.counted
        others, error = measured.sample.total(measured.other_documents, measured.other_bytes)
        if not math.isnan(others):
            total = measured.counted_tokens + others + probe
            error = 0.0 if math.isnan(error) else error
            whole = counted >= measured.counted_documents + measured.other_documents
            why = "counted with the version's tokenizer" + ("" if whole else ", a random sample")
            return _tokens(total, error, probe, "tokenizer", counted, why)
    if not has_endpoint:
        why = "4 bytes a token, as the worker counts them for a model without an endpoint"
        return _tokens(measured.estimated_tokens, 0, 0, "worker", measured.documents, why)
    if earlier is not None:
        each = earlier.tokens / earlier.documents
        why = f"{each:,.1f} a document, as {earlier.name} has paid for {earlier.documents:,}"
        return _tokens(each * measured.documents, 0, 0, "earlier", earlier.documents, why)
    why = "guessed at 4 bytes a token; the version's tokenizer would count them"
    return _tokens(measured.estimated_tokens + probe, 0, probe, "bytes", measured.documents, why)


def _tokens(total: float, error: float, probe: int, how: str, counted: int, why: str) -> Tokens:
    low, high = max(0.0, total - error), total + error
    return Tokens(round(total), math.floor(low + 1e-9), math.ceil(high - 1e-9), probe, how, counted, why)


def cost_of(tokens: Tokens, endpoints: Sequence[Replayer], budget: float | None) -> Cost:
    """From the cheapest to the dearest endpoint that may serve the replay. A model without an endpoint costs 0."""
    if not endpoints:
        return Cost(0.0, 0.0, (), (), budget)
    unpriced = tuple(dict.fromkeys(e.model for e in endpoints if e.price is None))
    prices = tuple(sorted({e.price for e in endpoints if e.price is not None}))
    if unpriced or not prices:
        return Cost(None, None, prices, unpriced, budget)
    return Cost(tokens.low * prices[0] / 1e6, tokens.high * prices[-1] / 1e6, prices, (), budget)


def limits_of(measured: Measured, tokens: Tokens, endpoints: Sequence[Replayer]) -> Speed | None:
    """What the limits a minute allow together; None where an endpoint of the first choice has none."""
    rates: list[float] = []
    documents = max(1, measured.documents)
    for endpoint in first_choice(endpoints):
        most = math.inf
        for limit, whole in (
            (endpoint.requests_per_minute, measured.requests),
            (endpoint.tokens_per_minute, tokens.total),
        ):
            if limit is not None and whole:
                most = min(most, limit * BUCKET_SHARE / 60 * documents / whole)
        rates.append(most)
    if not rates or math.inf in rates:
        return None
    return Speed(sum(rates), "requests_per_minute and tokens_per_minute of the endpoints", measured=False)


def duration_of(documents: int, speeds: Iterable[Speed | None], else_seen: str = "") -> Duration:
    """The slowest of what is known decides. `else_seen`: what to say where nothing is."""
    known = [speed for speed in speeds if speed is not None and speed.documents_per_s > 0]
    if not documents:
        return Duration(0.0, "there is nothing to embed", at_least=False)
    if not known:
        return Duration(None, else_seen, at_least=False)
    slowest = min(known, key=lambda speed: speed.documents_per_s)
    return Duration(
        documents / slowest.documents_per_s, slowest.by, at_least=not any(speed.measured for speed in known)
    )


def room_left(capacity: Capacity) -> int | None:
    """Bytes on the fullest node until Weaviate turns read-only; None where nobody says."""
    free, whole = capacity.disk_free_bytes, capacity.disk_total_bytes
    if free is None or whole is None:
        return None
    return max(0, int(free - (1 - READ_ONLY_SHARE) * whole))


def space_size(name: str, stage: str, objects: int, dimensions: int, measured: Measured) -> SpaceSize:
    """Of a space with as many objects, each with the texts and properties that `measured` found on average."""
    share = objects / max(1, measured.chunks)
    return SpaceSize(
        name=name,
        stage=stage,
        objects=objects,
        vectors=objects * dimensions * FLOAT_BYTES,
        index=objects * INDEX_BYTES,
        contents=round((measured.stored_text_bytes + measured.property_bytes) * share),
        lookups=round(objects * LOOKUP_BYTES + measured.terms * TERM_BYTES * share),
    )
