"""End to end into Weaviate: a replay into a fresh space, beside the fastest writers we could make by hand.

Both read the same topic, look vectors up in the same table, and leave equal objects in spaces of one schema, written at
QUORUM; the writers by hand keep no state, check nothing and survive nothing.

Tried by hand, none faster than the others beyond the noise (a busy machine), because Weaviate is the limit: requests of
32, 64, 128, 256, 512 and 1,000 objects; 1, 2 and 4 in flight; the gRPC stub with futures, with threads and of asyncio;
the server's own batching (BatchStream). Their CPU was alike too, but for requests below 128 objects, which cost more.
The client's insert_many needs three times as much, its batch context and its streaming one more than that.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from typing import Any

import grpc  # type: ignore[import-untyped]
import numpy as np
import orjson
import weaviate
from confluent_kafka import Message
from weaviate.classes.config import ConsistencyLevel
from weaviate.classes.data import DataObject
from weaviate.connect import ConnectionParams
from weaviate.proto.v1 import base_pb2, batch_pb2, weaviate_pb2_grpc

from benchmarks.harness import Bench, Cost, Fact, Figures, Part, Table, Value, alternate, child, median, ratio, spread
from benchmarks.pipeline import SCHEMA, build, document, encoder_of, make_topic, tuned_consumer
from connectors import reserved
from connectors.protocols import Embedded, ModelFacts, SpaceSpec, Vectors
from connectors.weaviate.client import Rpc, Stub, open_connection
from connectors.weaviate.settings import WeaviateSettings
from connectors.weaviate.spaces import WeaviateStore
from connectors.weaviate.writer import WeaviateSpace
from streams.garbage import collect_seldom

MOST_CPU_US, LEAST_RATIO = 70.0, 0.95
DOCUMENT_BYTES = 830
MAX_BATCH = 32  # texts a request to the endpoint: the default of a version
BY_HAND, OBJECTS, IN_FLIGHT = "by hand: protobuf, float32 bytes", 256, 2
CLIENT = "by hand: the client's insert_many"
OURS = "crossfade, a replay"


def vectors(documents: int, dimensions: int) -> Vectors:
    """float32[documents, dimensions], each of length 1: those of document 0, 1, ..."""
    drawn = np.random.default_rng(1).standard_normal((documents, dimensions), dtype=np.float32)
    table: Vectors = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    return table


def keyed(documents: int) -> Iterator[tuple[bytes, bytes]]:
    return ((f"document-{n:09d}".encode(), document(n, DOCUMENT_BYTES)) for n in range(documents))


class Lookup:
    """An embedder that reads a text's number and gives the table's row. `first` is called before the first answer."""

    max_batch = MAX_BATCH

    def __init__(self, table: Vectors, first: Callable[[], object]) -> None:
        self._table = table
        self._first: Callable[[], object] | None = first
        self.texts = 0

    async def embed(self, texts: Sequence[str]) -> Embedded:
        if self._first is not None:
            self._first()
            self._first = None
        self.texts += len(texts)
        return Embedded(self._table[[int(text[9 : text.index("\n")]) for text in texts]])

    async def facts(self) -> ModelFacts:
        return ModelFacts()

    async def close(self) -> None:
        pass


class Counted:
    """A stub whose calls are counted."""

    def __init__(self, stub: Stub) -> None:
        self.writes = self.reads = 0
        self.BatchObjects = self._counting(stub.BatchObjects, writes=1)
        self.BatchDelete = self._counting(stub.BatchDelete, writes=1)
        self.Search = self._counting(stub.Search, reads=1)
        self.Aggregate = self._counting(stub.Aggregate, reads=1)

    def _counting(self, method: Rpc[Any, Any], *, writes: int = 0, reads: int = 0) -> Rpc[Any, Any]:
        def call(*args: Any, **options: Any) -> Any:
            self.writes += writes
            self.reads += reads
            return method(*args, **options)

        return call


@contextlib.asynccontextmanager
async def fresh_space(
    http: str, rpc: str, dimensions: int, description: str, documents: int
) -> AsyncIterator[tuple[WeaviateStore, WeaviateSpace, Counted]]:
    """As a build's own; it is gone after the block, which has to leave so many objects in it."""
    connection = await open_connection(WeaviateSettings(http, rpc))
    store = WeaviateStore(connection)
    connection.stub = counted = Counted(connection.stub)
    name = f"Bench_{uuid.uuid4().hex[:12]}"
    await store.create_space(SpaceSpec(name, dimensions, "cosine", description, properties=SCHEMA.properties))
    try:
        yield store, store.space(name), counted
        if (stored := await store.space(name).count()) != documents:
            raise RuntimeError(f"{stored} objects of {documents} documents")
    finally:
        await store.drop_space(name)
        await store.close()


def ours(kafka: str, http: str, rpc: str, topic: str, dimensions: int, documents: int) -> Figures:
    """The replay of a build: what is counted begins with the first text at the endpoint, when the group has been joined
    and the plan scan made, and ends when all is written, committed and reported."""
    collect_seldom()  # as a worker does
    return asyncio.run(_ours(kafka, http, rpc, topic, dimensions, documents))


async def _ours(kafka: str, http: str, rpc: str, topic: str, dimensions: int, documents: int) -> Figures:
    cost = Cost()
    endpoint = Lookup(vectors(documents, dimensions), cost.__enter__)
    encoder = encoder_of(dimensions, endpoint)
    description = encoder.envelope.canonical_json()
    async with fresh_space(http, rpc, dimensions, description, documents) as (store, space, counted):
        async with build(kafka, topic, encoder, space, replay=True, store=store) as running:
            while running.resolved < documents:  # seldom, so that the waiting costs nothing
                if running.ended is not None and running.ended.done():
                    running.ended.result()
                await asyncio.sleep(0.02)
            await running.until_replayed()
            cost.__exit__(None, None, None)
        figures = cost.figures(documents)
        counts = {"texts": endpoint.texts, "writes": counted.writes, "reads": counted.reads}
    return {**figures, **counts}


def by_hand(
    kafka: str,
    http: str,
    rpc: str,
    topic: str,
    dimensions: int,
    documents: int,
    writer: str = "raw",
    objects: int = OBJECTS,
    in_flight: int = IN_FLIGHT,
) -> Figures:
    """The same documents by a loop; what is counted begins with the first records and ends with the last answer."""
    collect_seldom()
    return asyncio.run(_by_hand(kafka, http, rpc, topic, dimensions, documents, writer, objects, in_flight))


async def _by_hand(
    kafka: str, http: str, rpc: str, topic: str, dimensions: int, documents: int, writer: str, objects: int, ahead: int
) -> Figures:
    table, cost = vectors(documents, dimensions), Cost()
    async with fresh_space(http, rpc, dimensions, "", documents) as (_, space, __):
        send = _raw if writer == "raw" else _insert_many
        batches = _batches(kafka, topic, documents, objects, cost.__enter__)
        await asyncio.to_thread(send, http, rpc, space.name, table, batches, ahead)
        cost.__exit__(None, None, None)
    return cost.figures(documents)


def _batches(
    servers: str, topic: str, documents: int, size: int, first: Callable[[], object]
) -> Iterator[list[Message]]:
    """Messages in batches of `size`; `first` is called when the first have come."""
    consumer = tuned_consumer(servers, topic)
    read, held = 0, list[Message]()
    while read < documents:
        found = consumer.consume(1000, 1.0)
        if found and read == 0:
            first()
        read += len(found)
        held += found
        while len(held) >= size or (held and read == documents):
            yield held[:size]
            del held[:size]
    consumer.close()


def _properties(message: Message, embedded_ms: int) -> tuple[int, str, dict[str, str | int]]:
    """The document's number, its id, and all properties that the space has."""
    raw_key = message.key() or b""
    key, value = raw_key.decode(), orjson.loads(message.value() or b"{}")
    text = f"{value['title']}\n\n{value['text']}"
    return (
        int(value["title"][9:]),
        key,
        {
            reserved.DOC_ID: key,
            reserved.DOC_HASH: hashlib.sha256(raw_key).hexdigest(),
            reserved.CHUNK: 0,
            reserved.CHUNKS: 1,
            reserved.SOURCE_HASH: hashlib.sha256(text.encode()).hexdigest(),
            reserved.PARTITION: message.partition() or 0,
            reserved.OFFSET: message.offset() or 0,
            reserved.EVENT_TIME: message.timestamp()[1],
            reserved.EMBEDDED_AT: embedded_ms,
            reserved.SPACE: "v1@0123456789ab",
            reserved.ORIGIN: "embedded",
            reserved.TEXT: text,
            "lang": value["lang"],
            "year": value["year"],
        },
    )


def _raw(http: str, rpc: str, space: str, table: Vectors, batches: Iterator[list[Message]], ahead: int) -> None:
    """The server's own messages, each object made in its place, `ahead` requests in flight on one channel."""
    channel = grpc.insecure_channel(rpc, [("grpc.max_send_message_length", -1)])
    stub = weaviate_pb2_grpc.WeaviateStub(channel)  # type: ignore[no-untyped-call]
    flying: deque[Any] = deque()
    for batch in batches:
        now_ms = round(time.time() * 1000)
        request = batch_pb2.BatchObjectsRequest(consistency_level=base_pb2.CONSISTENCY_LEVEL_QUORUM)
        for message in batch:
            number, key, properties = _properties(message, now_ms)
            obj = request.objects.add(uuid=str(uuid.uuid5(uuid.NAMESPACE_OID, key)), collection=space)
            obj.vectors.add(
                name="default",
                vector_bytes=table[number].tobytes(),
                type=base_pb2.Vectors.VECTOR_TYPE_SINGLE_FP32,
            )
            fields = obj.properties.non_ref_properties.fields
            for name, value in properties.items():
                if isinstance(value, str):
                    fields[name].string_value = value
                else:
                    fields[name].number_value = value
        while len(flying) >= ahead:
            _check(flying.popleft().result().errors)
        flying.append(stub.BatchObjects.future(request, timeout=60))
    for call in flying:
        _check(call.result().errors)
    channel.close()


def _insert_many(http: str, rpc: str, space: str, table: Vectors, batches: Iterator[list[Message]], _: int) -> None:
    (host, port), (rpc_host, rpc_port) = http.split(":"), rpc.split(":")
    client = weaviate.WeaviateClient(
        ConnectionParams.from_params(host, int(port), False, rpc_host, int(rpc_port), False), skip_init_checks=True
    )
    with client:
        collection = client.collections.use(space).with_consistency_level(ConsistencyLevel.QUORUM)
        for batch in batches:
            now_ms, made = round(time.time() * 1000), []
            for message in batch:
                number, key, properties = _properties(message, now_ms)
                identity = uuid.uuid5(uuid.NAMESPACE_OID, key)
                made.append(DataObject(properties=properties, uuid=identity, vector={"default": table[number]}))
            _check(collection.data.insert_many(made).errors)


def _check(errors: object) -> None:
    if errors:
        raise RuntimeError("Weaviate did not take all objects")


def measure(bench: Bench) -> Part:
    at = bench.services
    tables, facts, details = [], [], dict[str, object]()
    for dimensions, documents in ((384, 1000),) if bench.quick else ((384, 20_000), (1024, 10_000)):
        topic = make_topic(at.kafka, 1, keyed(documents))
        given = {
            "kafka": at.kafka,
            "http": at.weaviate_http,
            "rpc": at.weaviate_grpc,
            "topic": topic,
            "dimensions": dimensions,
            "documents": documents,
        }

        async def run(name: str, arguments: dict[str, object]) -> Figures:
            return child(f"benchmarks.into_weaviate:{name}", **arguments)

        runs = {
            OURS: partial(run, "ours", given),
            BY_HAND: partial(run, "by_hand", given),
        }
        if not bench.quick and dimensions == 384:
            runs[CLIENT] = partial(run, "by_hand", {**given, "writer": "client"})
        figures = asyncio.run(alternate(runs, bench.sized(5, 1)))
        rows: list[dict[str, Value]] = [
            {
                "what": name,
                "documents/s, as a multiple of the fastest by hand": str(ratio(of, figures[BY_HAND], "per_s")),
                "documents/s": median(of, "per_s"),
                "CPU a document, us": str(spread(of, "cpu_us")),
                "peak MB": median(of, "peak_mb"),
            }
            for name, of in figures.items()
        ]
        what = (
            f"{documents:,} documents of {DOCUMENT_BYTES} bytes from one partition into a new space (HNSW, QUORUM), "
            f"{dimensions:,} dimensions, vectors from a table. By hand: requests of {OBJECTS} objects, {IN_FLIGHT} in "
            f"flight; insert_many one after the other. Wanted: at least {LEAST_RATIO:g} of the fastest by hand, and at "
            f"most {MOST_CPU_US:g} us of CPU in our process."
        )
        tables.append(Table(f"Into Weaviate, {dimensions:,} dimensions", what, rows))
        details[f"{dimensions} dimensions"] = figures
        last, say = figures[OURS][-1], f"into Weaviate, {dimensions:,} dimensions"
        facts += [
            Fact(f"{say}: embeddings a document", last["texts"] / documents, most=1.0, least=1.0),
            Fact(f"{say}: reads of Weaviate in a first replay", last["reads"], most=0.0),
            Fact(f"{say}: write requests", last["writes"], most=documents / MAX_BATCH + 20),
        ]
    return Part(tables, facts, details=details)
