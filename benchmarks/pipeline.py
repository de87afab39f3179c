"""One build of the pipeline in this process, on a real topic: what a worker runs, without Faust and the controller.

Encoder and space are given, so that either can be the one that does nothing. It must decide nothing by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

import numpy as np
import orjson
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from connectors.embedders.endpoint import Endpoint
from connectors.embedders.pool import EndpointPool
from connectors.kafka.log import KafkaLog
from connectors.kafka.settings import KafkaSettings
from connectors.memory.embedder import MemoryEmbedder
from connectors.memory.store import MemoryStore
from connectors.protocols import (
    JSON,
    Condition,
    Embedder,
    Head,
    Hit,
    Space,
    SpaceObject,
    SpaceSpec,
    Vectors,
    VectorStore,
)
from streams.build import Build, Limits
from streams.build_runner import BuildRunner
from streams.chunking import Chunker, make_chunker
from streams.documents import DocumentSchema
from streams.encoding import Encoded, Encoder, Ready, Urgency
from streams.migration.sweep import DeadLetterKey
from streams.ordering import Lease
from streams.progress import ProgressRecord
from streams.state import BuildState, Command, TopicNames
from streams.versions import Envelope, Stage
from streams.wiring import wall_ms
from tests.queue_host import QueueHost

SCHEMA = DocumentSchema("docs", ("title", "text"), properties={"lang": "keyword", "year": "int"})
WORDS = "a document of the stream has a title and a text, and both are read by the template of its version; "


def document(number: int, size: int = 700) -> bytes:
    """A value of about `size` bytes."""
    text = (f"{number} " + WORDS * (size // len(WORDS) + 1))[: max(20, size - 90)]
    return orjson.dumps({"title": f"document {number}", "text": text, "lang": "en", "year": 1990 + number % 30})


def make_topic(servers: str, partitions: int, keys: Iterable[tuple[bytes, bytes | None]]) -> str:
    """A new compacted topic with these records in this order; returns when all are acknowledged."""
    name = f"docs-{uuid.uuid4().hex[:8]}"
    admin = AdminClient({"bootstrap.servers": servers})
    admin.create_topics([NewTopic(name, partitions, 1, config={"cleanup.policy": "compact"})])[name].result(30)
    fill(servers, name, keys)
    return name


def tuned_consumer(servers: str, topic: str, *, prefetch_mib: int = 64) -> Consumer:
    """As fast as librdkafka reads: of partition 0, from its beginning, in no group."""
    consumer = Consumer(
        {
            "bootstrap.servers": servers,
            "group.id": "bench.bare",
            "enable.auto.commit": False,
            "queued.min.messages": 100_000,
            "queued.max.messages.kbytes": prefetch_mib * 1024,
            "fetch.queue.backoff.ms": 5,
        }
    )
    consumer.assign([TopicPartition(topic, 0, 0)])
    return consumer


def fill(servers: str, topic: str, keys: Iterable[tuple[bytes, bytes | None]]) -> None:
    """More records; returns when all are acknowledged."""
    producer = Producer({"bootstrap.servers": servers, "linger.ms": 20, "queue.buffering.max.messages": 1_000_000})
    for key, value in keys:
        while True:
            try:
                producer.produce(topic, value=value, key=key)
                break
            except BufferError:
                producer.poll(0.1)
    if producer.flush(120):
        raise RuntimeError(f"not all records of {topic} were acknowledged")


_ANY = Urgency()


class NoEncoder:
    """Does nothing: every text has the same ready-made vector at once. The part of `Encoder` that a build uses."""

    def __init__(self, inner: Encoder) -> None:
        self.pool = inner.pool
        self.envelope = inner.envelope
        self.texts = 0
        self._vectors = np.tile(np.ones(inner.envelope.dimensions, np.float32), (4096, 1))

    async def encode_each(
        self, texts: Sequence[str], urgency: Urgency = _ANY, ready: Ready = lambda _, __: None
    ) -> Encoded:
        self.texts += len(texts)
        vectors = self._vectors[: len(texts)]
        ready(range(len(texts)), vectors)
        return Encoded(vectors, {}, 0, 0)

    async def facts_differ(self) -> str | None:
        return None

    async def close(self) -> None:
        pass


@dataclass(slots=True)
class NoSpace:
    """A `Space` that takes all and keeps nothing."""

    name: str = "Nothing"
    calls: int = 0
    written: int = 0

    async def heads(self, uuids: Sequence[UUID], *, vectors: bool = False) -> Mapping[UUID, Head]:
        self.calls += 1
        return {}

    async def upsert(self, objects: Sequence[SpaceObject]) -> Mapping[UUID, Exception]:
        self.calls += 1
        self.written += len(objects)
        return {}

    async def delete(self, uuids: Sequence[UUID]) -> None:
        self.calls += 1

    async def erase(self, uuids: Sequence[UUID]) -> None:
        self.calls += 1

    async def delete_chunks(self, doc_hashes: Sequence[str], from_chunk: int) -> int:
        return 0

    async def properties(self, uuids: Sequence[UUID]) -> Mapping[UUID, Mapping[str, JSON]]:
        return {}

    async def search(self, vector: Vectors, limit: int, filters: Sequence[Condition] = ()) -> list[Hit]:
        return []

    async def _nothing(self) -> AsyncIterator[list[Head]]:
        return
        yield

    def scan(self, page: int | None = None, share: float = 1.0) -> AsyncIterator[list[Head]]:
        return self._nothing()

    async def count(self) -> int:
        return 0

    async def indexing_queue(self) -> int:
        return 0


class _Sink:
    """Progress is kept, commands do what the controller would do, dead letters are no part of a benchmark."""

    def __init__(self, running: Running, names: TopicNames) -> None:
        self._running = running
        self._names = names

    async def send(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]] = ()
    ) -> None:
        assert key is not None
        assert value is not None
        if topic == self._names.progress:
            self._running.progress[key.decode()] = ProgressRecord.model_validate_json(value)
        elif topic == self._names.commands:
            self._running.apply(Command.model_validate_json(value))
        else:
            raise RuntimeError(f"a record for {topic}: {dict(headers).get('cause')!r}")


@dataclass(slots=True)
class Running:
    """A build at work. It may start only once: a benchmark of what fails and starts again is none."""

    state: BuildState
    build: Build | None = None
    ended: asyncio.Task[None] | None = None
    progress: dict[str, ProgressRecord] = field(default_factory=dict)

    def apply(self, command: Command) -> None:
        if command.verb != "replayed":
            raise RuntimeError(f"the build gave up: {command.args}")
        replayed = sorted({*self.state.replayed, int(str(command.args["partition"]))})
        self.state = self.state.model_copy(update={"replayed": replayed})

    @property
    def resolved(self) -> int:
        """Events of both lanes."""
        if self.build is None:
            return 0
        return sum(c.replayed + c.live_resolved + c.suppressed_by_live for c in self.build.counters.values())

    async def until(self, condition: Callable[[Running], bool]) -> None:
        """Polled, so that nothing is added to what is measured. Raises what ended the build."""
        while not condition(self):
            if self.ended is not None and self.ended.done():
                self.ended.result()
            await asyncio.sleep(0.005)

    async def until_resolved(self, events: int) -> None:
        await self.until(lambda running: running.resolved >= events)

    async def until_replayed(self) -> None:
        """Every partition's replay is complete and committed, and the state says so."""
        await self.until(lambda running: len(running.state.replayed) == running.state.partitions)


@contextlib.asynccontextmanager
async def build(
    servers: str,
    topic: str,
    encoder: Encoder | NoEncoder,
    space: Space,
    *,
    replay: bool,
    store: VectorStore | None = None,
    limits: Limits | None = None,
    chunker: Chunker | None = None,
    version: str = "v1",
) -> AsyncIterator[Running]:
    """Runs a build of `topic` until the block ends. `replay`: the barrier is the log's end now; else the live lane
    has everything from the log's beginning. `store` holds the space; None for one that need not be there."""
    kafka = KafkaLog(KafkaSettings(servers, reader_group="bench.readers"))
    facts, bounds = await kafka.facts(topic), await kafka.bounds(topic)
    envelope = encoder.envelope
    if store is None:
        store = MemoryStore()
        described = envelope.canonical_json()
        spec = SpaceSpec(space.name, envelope.dimensions, "cosine", described, "none", SCHEMA.properties)
        await store.create_space(spec)
    at = {p: (b.stable if replay else b.earliest) for p, b in bounds.items()}
    running = Running(
        BuildState(
            collection="docs",
            version=version,
            epoch=1,
            stage=Stage.BUILDING,
            envelope=orjson.loads(envelope.canonical_json()),
            fingerprint=envelope.fingerprint,
            space=space.name,
            topic=topic,
            topic_id=facts.topic_id,
            partitions=facts.partitions,
            start=at,
            barrier=at,
        )
    )
    names = TopicNames(f"bench-{uuid.uuid4().hex[:8]}")
    sink = _Sink(running, names)

    def make_build(state: BuildState) -> Build:
        made = Build(
            collection=state.collection,
            version=state.version,
            epoch=state.epoch,
            topic=state.topic,
            dead_letters=names.dead_letters,
            schema=SCHEMA,
            store_text=True,
            space_mark=f"{state.version}@{state.fingerprint}",
            space=space,
            encoder=encoder,  # type: ignore[arg-type]  # NoEncoder is the part of it that is used
            chunker=chunker or make_chunker(envelope.chunking, None),
            sink=sink,
            lease=Lease(20.0),
            limits=limits or Limits(),
            wall_ms=wall_ms,
        )
        if running.build is not None:
            raise RuntimeError("the build failed, and would start again; what it said is above")
        running.build = made
        return made

    async def nothing_held(_: BuildState) -> set[DeadLetterKey]:
        return set()

    runner = BuildRunner(
        lambda: running.state,
        make_build,
        kafka,
        store,
        sink,
        names,
        lambda _: QueueHost(),
        "bench",
        running.progress.get,
        nothing_held,
    )
    running.ended = asyncio.ensure_future(runner.run())
    try:
        yield running
    finally:
        runner.stop(running.ended)
        await asyncio.gather(running.ended, return_exceptions=True)


def encoder_of(dimensions: int, embedder: Embedder | None = None) -> Encoder:
    """An encoder around an embedder of this process; without one it must not be asked."""
    envelope = Envelope("table", "bench", "1", dimensions, SCHEMA.fields)
    inner = embedder or MemoryEmbedder(dimensions)
    return Encoder(envelope, EndpointPool([Endpoint("table", inner, concurrency=4, fixed_concurrency=True)]))
