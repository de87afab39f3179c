"""The one place that wires concrete connectors to the pipeline: addresses and settings in, Kafka and Weaviate out.

It decides nothing; the worker, the command line and the API all open the outside world here.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from connectors import services
from connectors.embedders.hashing import HashingEmbedder
from connectors.embedders.tei import TeiEmbedder
from connectors.errors import ConfigurationError, NotFound
from connectors.kafka.headers import Headed, read_headed
from connectors.kafka.log import KafkaLog
from connectors.kafka.producer import KafkaSink, TransactionalProducer
from connectors.kafka.ranges import TopicTail
from connectors.kafka.settings import KafkaSettings
from connectors.kafka.topics import Topics
from connectors.protocols import Embedder
from connectors.weaviate.settings import WeaviateSettings
from connectors.weaviate.spaces import WeaviateStore, open_store
from streams import config
from streams.config import Settings
from streams.encoding import Encoder
from streams.state import TopicNames
from streams.views import ProgressView, StateView

SERVICES_FOLDER = Path(".crossfade/services")


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


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


def _running(folder: Path, keys: str) -> services.Addresses:
    addresses = services.running(folder)
    if addresses is None:
        raise ConfigurationError(
            f"{keys} not configured, and no local services are running",
            next_step="start local ones with: crossfade up; or set the addresses in the configuration",
        )
    return addresses


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
        kafka = kafka_settings(settings)
        store = await open_store(weaviate_settings(settings))
        sink = KafkaSink(kafka)
        await sink.start()
        return cls(
            settings, TopicNames(settings.kafka.topic_prefix), kafka, Topics(kafka), KafkaLog(kafka), sink, store
        )

    async def close(self) -> None:
        await self.sink.close()
        await self.store.close()

    def transactional_producer(self) -> TransactionalProducer:
        """The controller's: under one fixed id, so that a former controller is fenced."""
        return TransactionalProducer(self.kafka_settings, f"{self.names.prefix}.controller")

    def dead_letters(self) -> AsyncIterator[Headed]:
        """Every dead letter with its headers, from the beginning to now."""
        return read_headed(self.kafka_settings, self.names.dead_letters)

    def state_view(self) -> StateView:
        return StateView(TopicTail(self.kafka_settings, self.names.state))

    def progress_view(self) -> ProgressView:
        return ProgressView(TopicTail(self.kafka_settings, self.names.progress))

    async def ensure_topics(self) -> None:
        """Crossfade's own topics (DESIGN.md section 4). Existing ones are left as they are."""
        own = {
            self.names.commands: {"cleanup.policy": "delete", "retention.ms": str(7 * 24 * 3600 * 1000)},
            self.names.state: {"cleanup.policy": "compact"},
            self.names.progress: {"cleanup.policy": "compact"},
            self.names.journal: {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"},
            self.names.dead_letters: {
                "cleanup.policy": "delete",
                "retention.ms": "-1",
                "max.message.bytes": str(await self._largest_record() + 64 * 1024),
            },
        }
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


def make_embedder(settings: config.HashingEmbedder | config.TeiEmbedder, dimensions: int) -> Embedder:
    """The embedder a version names. Opens no connection yet."""
    if isinstance(settings, config.HashingEmbedder):
        return HashingEmbedder(
            dimensions,
            word_ngrams=settings.word_ngrams,
            char_ngrams=settings.char_ngrams,
            sublinear=settings.sublinear,
            seed=settings.seed,
        )
    return TeiEmbedder(
        settings.url,
        api_key=settings.api_key.get_secret_value() if settings.api_key else None,
        timeout_s=settings.timeout_s,
        max_batch=settings.max_batch,
        truncate=settings.truncate,
    )


def make_encoder(collection: config.Collection, version: config.Version) -> Encoder:
    """The encoder of one declared version, with its own embedder."""
    return Encoder(config.envelope_of(collection, version), make_embedder(version.embedder, version.dimensions))
