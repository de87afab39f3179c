"""The one place that wires concrete connectors to the pipeline: addresses and settings in, Kafka and Weaviate out.

It decides nothing; the worker, the command line and the API all open the outside world here.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from connectors import services
from connectors.embedders import hashing, openai, tei
from connectors.embedders.cache import VectorCache
from connectors.embedders.canary import CanaryEmbedder, from_base64
from connectors.embedders.endpoint import Endpoint
from connectors.embedders.pool import EndpointPool
from connectors.errors import ConfigurationError, NotFound
from connectors.kafka.headers import Headed, read_headed
from connectors.kafka.log import KafkaLog
from connectors.kafka.producer import KafkaSink, TransactionalProducer
from connectors.kafka.ranges import TopicTail
from connectors.kafka.reader import KafkaGroupReader
from connectors.kafka.settings import KafkaSettings
from connectors.kafka.topics import Topics
from connectors.protocols import Embedder, GroupReader
from connectors.weaviate.capacity import CapacityReader, CapacitySettings
from connectors.weaviate.settings import WeaviateSettings
from streams import config
from streams.batching import BatchLimits
from streams.config import Settings
from streams.config_embedders import HashingEmbedder, OpenAIEmbedder, TeiEmbedder, Version
from streams.encoding import Encoder
from streams.state import TopicNames
from streams.views import ProgressView, StateView

if TYPE_CHECKING:
    from connectors.weaviate.spaces import WeaviateStore

SERVICES_FOLDER = Path(".crossfade/services")
CONTROLLER_SESSION_S = 10.0
HASHING_AT_ONCE = 2  # it computes in this process: more at once would only take turns


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


async def file_exists(path: str) -> bool:
    """On this machine; True also when nobody can tell: whoever waits for its end then goes on waiting."""

    def look() -> bool:
        try:
            Path(path).lstat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True
        return True

    return await asyncio.to_thread(look)


def kafka_settings(settings: Settings, folder: Path = SERVICES_FOLDER) -> KafkaSettings:
    """Configured addresses, else those of `crossfade up`. Raises ConfigurationError when there are neither."""
    configured = settings.kafka.bootstrap_servers
    return KafkaSettings(
        bootstrap_servers=configured or _running(folder, "kafka.bootstrap_servers").kafka,
        client=settings.kafka.client,
        session_timeout_s=settings.kafka.session_timeout_s,
        reader_group=f"{settings.kafka.topic_prefix}.readers",
    )


def weaviate_settings(settings: Settings, folder: Path = SERVICES_FOLDER) -> WeaviateSettings:
    """As `kafka_settings`, for Weaviate."""
    configured = settings.weaviate
    api_key = configured.api_key.get_secret_value() if configured.api_key else None
    if configured.http and configured.grpc:
        http, grpc = configured.http, configured.grpc
    else:
        addresses = _running(folder, "weaviate.http and weaviate.grpc")
        http, grpc = addresses.weaviate_http, addresses.weaviate_grpc
    return WeaviateSettings(
        http,
        grpc,
        api_key=api_key,
        grpc_secure=http.startswith("https://"),
        write_timeout_s=configured.write_timeout_s,
    )


def capacity_settings(settings: Settings, folder: Path = SERVICES_FOLDER) -> CapacitySettings:
    """Where Weaviate's disk and memory can be learned: as configured, else of this machine's own Weaviate."""
    configured = settings.weaviate
    local = configured.http is None and not configured.metrics
    return CapacitySettings(
        tuple(configured.metrics),
        configured.data_path or (services.weaviate_data(folder) if local else None),
        here=local,
    )


def capacity_reader(settings: Settings, folder: Path = SERVICES_FOLDER) -> CapacityReader:
    """Looks there as often as it is asked to. Raises ConfigurationError for an address that is none."""
    return CapacityReader(capacity_settings(settings, folder))


def _running(folder: Path, keys: str) -> services.Addresses:
    addresses = services.running(folder)
    if addresses is None:
        raise ConfigurationError(
            f"{keys} not configured, and no local services are running",
            next_step="start local ones with: crossfade up; or set the addresses in the configuration",
        )
    return addresses


def own_topics(names: TopicNames, largest_record: int) -> Mapping[str, Mapping[str, str]]:
    """Crossfade's own topics and the settings they are created with, one partition each. `largest_record`: bytes that
    the documents topics take."""
    return {
        names.commands: {"cleanup.policy": "delete", "retention.ms": str(7 * 24 * 3600 * 1000)},
        names.state: {"cleanup.policy": "compact"},
        names.progress: {"cleanup.policy": "compact"},
        names.journal: {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"},
        names.dead_letters: {
            "cleanup.policy": "delete",
            "retention.ms": "-1",
            "max.message.bytes": str(largest_record + 64 * 1024),
        },
    }


@dataclass(slots=True)
class Outside:
    """Everything open at once. `close` when done."""

    settings: Settings
    names: TopicNames
    kafka_settings: KafkaSettings
    topics: Topics
    kafka: KafkaLog
    sink: KafkaSink
    store: WeaviateStore

    @classmethod
    async def open(cls, settings: Settings) -> Outside:
        """Raises ConfigurationError for what is configured, Unreachable when Weaviate does not answer."""
        from connectors.weaviate.spaces import open_store  # Weaviate's client takes most of a second to import

        kafka = kafka_settings(settings)
        store = await open_store(weaviate_settings(settings))
        sink = KafkaSink(kafka)
        try:
            await sink.start()
        except BaseException:
            await store.close()
            raise
        return cls(
            settings, TopicNames(settings.kafka.topic_prefix), kafka, Topics(kafka), KafkaLog(kafka), sink, store
        )

    async def close(self) -> None:
        await self.sink.close()
        await self.store.close()

    def transactional_producer(self) -> TransactionalProducer:
        """The controller's: under one fixed id, so that a former controller is fenced."""
        return TransactionalProducer(self.kafka_settings, f"{self.names.prefix}.controller")

    def command_reader(self) -> GroupReader:
        """A member of the controllers' group. It may be silent for less long than one of a live lane: nobody answers
        an operator meanwhile."""
        session_s = min(CONTROLLER_SESSION_S, self.kafka_settings.session_timeout_s)
        settings = replace(self.kafka_settings, session_timeout_s=session_s)
        return KafkaGroupReader(settings, self.names.commands, self.names.controller_group)

    def dead_letters(self) -> AsyncIterator[Headed]:
        """Every dead letter with its headers, from the beginning to now."""
        return read_headed(self.kafka_settings, self.names.dead_letters)

    def tail(self, topic: str) -> TopicTail:
        return TopicTail(self.kafka_settings, topic)

    def state_view(self) -> StateView:
        return StateView(self.tail(self.names.state))

    def progress_view(self) -> ProgressView:
        return ProgressView(self.tail(self.names.progress))

    async def ensure_topics(self) -> None:
        """Crossfade's own topics (DESIGN.md section 4). Existing ones are left as they are."""
        own = own_topics(self.names, await self._largest_record())
        for name, settings in own.items():
            await self.topics.ensure_topic(name, 1, settings)

    async def _largest_record(self) -> int:
        """The dead letters must take whatever a documents topic takes."""
        largest = 1024 * 1024
        for collection in self.settings.collections.values():
            try:
                largest = max(largest, (await self.kafka.facts(collection.topic)).max_message_bytes)
            except NotFound:
                continue  # the topic comes later
        return largest


def make_embedders(version: Version) -> list[tuple[str, Embedder]]:
    """Of each endpoint of a version, with the name it has in messages. Opens no connection yet."""
    if isinstance(version.embedder, HashingEmbedder):
        return [("hashing", _hashing(version.embedder, version.dimensions))]
    names: Counter[str] = Counter()
    made: list[tuple[str, Embedder]] = []
    for endpoint in version.endpoints:
        host = urlsplit(endpoint.url).netloc
        names[host] += 1
        made.append((host if names[host] == 1 else f"{host}#{names[host]}", _over_http(endpoint, version.dimensions)))
    return made


def _hashing(settings: HashingEmbedder, dimensions: int) -> Embedder:
    return hashing.HashingEmbedder(
        dimensions,
        word_ngrams=settings.word_ngrams,
        char_ngrams=settings.char_ngrams,
        sublinear=settings.sublinear,
        seed=settings.seed,
    )


def _over_http(settings: TeiEmbedder | OpenAIEmbedder, dimensions: int) -> Embedder:
    api_key = settings.api_key.get_secret_value() if settings.api_key else None
    if isinstance(settings, TeiEmbedder):
        return tei.TeiEmbedder(
            settings.url,
            path=settings.path,
            api_key=api_key,
            ca_file=settings.ca_file,
            http2=settings.http2,
            timeout_s=settings.timeout_s,
            max_batch=settings.max_batch,
            truncate=settings.truncate,
        )
    return openai.OpenAIEmbedder(
        settings.url,
        model=settings.model,
        api_key=api_key,
        ca_file=settings.ca_file,
        http2=settings.http2,
        timeout_s=settings.timeout_s,
        max_batch=settings.max_batch,
        dimensions=dimensions if settings.send_dimensions else None,
        encoding=settings.encoding,
        api_version=settings.api_version,
    )


def make_encoder(
    settings: Settings,
    collection: config.Collection,
    version: Version,
    *,
    canary: str = "",
    cache: VectorCache | None = None,
) -> Encoder:
    """The encoder of one declared version, with its own endpoints. `canary`: of the build (see BuildState), so that
    no other model's vector comes through; `cache` is shared and stays open."""
    made = make_embedders(version)
    if isinstance(version.embedder, HashingEmbedder):
        endpoints = [
            Endpoint(name, embedder, concurrency=HASHING_AT_ONCE, fixed_concurrency=True) for name, embedder in made
        ]
    else:
        birth = from_base64(canary) if canary else None
        endpoints = [
            _endpoint(name, embedder if birth is None else CanaryEmbedder(name, embedder, birth), said, settings.prices)
            for (name, embedder), said in zip(made, version.endpoints, strict=True)
        ]
    pool = EndpointPool(endpoints)
    characters = [said.max_batch_characters for said in version.endpoints if said.max_batch_characters]
    tokens = [said.max_batch_tokens for said in version.endpoints if said.max_batch_tokens]
    return Encoder(
        config.envelope_of(collection, version),
        pool,
        limits=BatchLimits(pool.max_batch, min(characters, default=None), min(tokens, default=None)),
        tokenizer=config.tokenizer_of(version),
        cache=cache,
    )


def whole_requests(version: Version, encoder: Encoder) -> int:
    """Documents of a group: of the version's `batch` as many as make full requests, where one request does not hold
    them all. Else the last request of every group would go with the few texts that are left."""
    most = encoder.pool.max_batch
    return version.batch // most * most or version.batch


def _endpoint(
    name: str, embedder: Embedder, said: TeiEmbedder | OpenAIEmbedder, prices: Mapping[str, float]
) -> Endpoint:
    price = said.price_per_million_tokens
    return Endpoint(
        name,
        embedder,
        requests_per_minute=said.requests_per_minute,
        tokens_per_minute=said.tokens_per_minute,
        concurrency=said.concurrency,
        rank=said.rank,
        weight=said.weight,
        lanes=frozenset(said.lanes) if said.lanes else None,
        overflow=said.overflow,
        price=prices.get(said.model, 0.0) if price is None else price,
    )
