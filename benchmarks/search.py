"""What the router and the HTTP interface add to a search: beside the same query put to Weaviate by hand.

All of them ask one space for the same documents and properties, in turns. The fastest we could make by hand sends one
prepared message over the open channel, with only the vector put in, and reads nothing of the answer.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from time import perf_counter

import orjson
from pydantic import JsonValue
from weaviate.classes.config import ConsistencyLevel
from weaviate.classes.query import MetadataQuery
from weaviate.proto.v1 import search_get_pb2

from benchmarks import deployment
from benchmarks.deployment import cpu_s as cpu_of
from benchmarks.harness import Bench, Fact, Figures, Part, Run, Table, Value, alternate, cpu_s, spread
from benchmarks.http_load import Connection, request
from benchmarks.swaps import SEARCH, text
from connectors import reserved
from connectors.embedders.hashing import HashingEmbedder
from connectors.protocols import Record, SpaceSpec, Vectors, VectorStore
from connectors.weaviate.client import Connection as Weaviate
from connectors.weaviate.client import open_connection
from connectors.weaviate.schema import VECTOR, config_of, shape_of
from connectors.weaviate.search import nearest
from connectors.weaviate.spaces import WeaviateStore
from streams.config import Settings, envelope_of, schema_of
from streams.documents import Put, object_id, source_hash
from streams.search.router import Router
from streams.space_objects import Origin, space_object
from streams.state import BuildState, CollectionState
from streams.versions import Stage, space_name
from streams.wiring import make_encoder, weaviate_settings
from tests.deployment import COLLECTION, Deployment
from tests.serving import KEY, listens, serving

MOST_MS = 1.0
TOP_K, QUERIES, DIMENSIONS = 10, 200, 384
VERSION: Mapping[str, JsonValue] = {"embedder": {"provider": "hashing"}, "dimensions": DIMENSIONS}
BY_HAND, HASHED, CLIENT = "by hand: gRPC", "by hand: hashing, then gRPC", "by hand: weaviate-client"
KEPT, ENCODED, OVER_HTTP = "router, vector kept", "router, hashing", "crossfade serve, vector kept"
LIMITS = {CLIENT: BY_HAND, KEPT: BY_HAND, ENCODED: HASHED, OVER_HTTP: BY_HAND}
"""What each is compared with."""

Ask = Callable[[int], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class _Outside:
    """What the router needs of the outside."""

    settings: Settings
    store: WeaviateStore


@dataclass(slots=True)
class _Counted:
    """Searches that were put to Weaviate over this connection by anybody but by hand."""

    searches: int = 0

    def watch(self, connection: Weaviate) -> None:
        search = connection.stub.Search

        def counted(*given: object, **named: object) -> object:
            self.searches += 1
            return search(*given, **named)  # type: ignore[arg-type]

        connection.stub.Search = counted  # type: ignore[assignment]


async def filled(d: Deployment, store: VectorStore, documents: int) -> BuildState:
    """v1 of the configuration as a worker would have left it: its space, and the state, in which it serves."""
    collection = d.out.settings.collection(COLLECTION)
    declared = collection.version("v1")
    envelope, schema = envelope_of(collection, declared), schema_of(collection)
    name = space_name(collection.alias, "v1", 1, envelope.fingerprint)
    await store.create_space(SpaceSpec(name, envelope.dimensions, "cosine", envelope.canonical_json()))
    encoder = make_encoder(d.out.settings, collection, declared)
    texts = [text(number) for number in range(documents)]
    vectors = await encoder.encode_documents(texts)
    await encoder.close()
    objects = []
    for number, (one, vector) in enumerate(zip(texts, vectors, strict=True)):
        put = Put(f"document-{number}", (one,), {})
        objects.append(
            space_object(
                object_id(COLLECTION, put.doc_id, 0),
                Record(0, number, 1_700_000_000_000, put.doc_id.encode(), b""),
                put,
                source_hash(put, schema),
                chunk=0,
                texts=[one],
                vector=vector,
                origin=Origin("embedded", 1_700_000_000_000),
                space_mark=f"v1@{envelope.fingerprint}",
                store_text=True,
            )
        )
    for at in range(0, documents, 256):
        if failed := await store.space(name).upsert(objects[at : at + 256]):
            raise RuntimeError(f"{len(failed)} objects were not stored")
    build = BuildState(
        collection=COLLECTION,
        version="v1",
        epoch=1,
        stage=Stage.SERVING,
        envelope=orjson.loads(envelope.canonical_json()),
        fingerprint=envelope.fingerprint,
        space=name,
        topic=d.topic,
        partitions=1,
    )
    state = CollectionState(collection=COLLECTION, alias=collection.alias, topic=d.topic, serving="v1", epochs=1)
    for key, record in ((COLLECTION, state), (build.key, build)):
        await d.out.sink.send(d.out.names.state, key.encode(), record.to_bytes())
    async with asyncio.timeout(30):
        await d.state.wait_for(lambda view: build.key in view.builds and COLLECTION in view.collections)
    return build


async def _message(connection: Weaviate, build: BuildState, vector: Vectors) -> search_get_pb2.SearchRequest:
    """What the router sends."""
    config = await config_of(connection, build.space)
    assert config is not None
    return nearest(build.space, shape_of(config), vector, TOP_K)


class _ByHand:
    def __init__(self, connection: Weaviate, prepared: search_get_pb2.SearchRequest) -> None:
        self._search = connection.stub.Search  # as it is now: what is counted later is not counted here
        self._prepared = prepared
        self._model = HashingEmbedder(DIMENSIONS)

    async def ask(self, vector: Vectors) -> object:
        asked = search_get_pb2.SearchRequest()
        asked.CopyFrom(self._prepared)
        asked.near_vector.vectors[0].vector_bytes = vector.tobytes()
        return await self._search(asked, timeout=30.0, metadata=())

    async def ask_text(self, query: str) -> object:
        return await self.ask((await self._model.embed([query])).vectors[0])


def _by_client(connection: Weaviate, build: BuildState, vectors: Sequence[Vectors]) -> Ask:
    collection = connection.client.collections.get(build.space).with_consistency_level(ConsistencyLevel.QUORUM)
    lists = [vector.tolist() for vector in vectors]

    async def ask(number: int) -> object:
        return await collection.query.near_vector(
            lists[number % QUERIES],
            limit=TOP_K,
            target_vector=VECTOR,
            return_properties=[*reserved.SHOWN, reserved.OFFSET],
            return_metadata=MetadataQuery(distance=True),
        )

    return ask


async def _timed(ask: Ask, searches: int, other_cpu_s: Callable[[], float] = lambda: 0.0) -> Figures:
    """One after the other. CPU is of this process and, with `other_cpu_s`, of another."""
    took_s: list[float] = []
    before_s = cpu_s() + other_cpu_s()
    for number in range(searches):
        began_s = perf_counter()
        await ask(number)
        took_s.append(perf_counter() - began_s)
    used_s = cpu_s() + other_cpu_s() - before_s
    return {"wall_ms": 1000 * statistics.median(took_s), "cpu_ms": 1000 * used_s / searches}


@asynccontextmanager
async def _over_http(d: Deployment) -> AsyncIterator[tuple[Ask, Callable[[], float]]]:
    """A real server that answers from the same state; and its CPU."""
    async with serving(d) as (curl, server):
        host, _, port = curl.url.removeprefix("http://").partition(":")
        connection = await Connection.open(host, int(port))
        requests = [
            request(host, int(port), SEARCH, KEY, {"query": text(number), "top_k": TOP_K}) for number in range(QUERIES)
        ]

        async def ask(number: int) -> object:
            status, body = await connection.ask(requests[number % QUERIES])
            if status != 200:
                raise RuntimeError(f"a search was answered with {status}")
            return body

        yield ask, partial(cpu_of, server)
        connection.close()


async def _measured(bench: Bench) -> tuple[dict[str, list[Figures]], dict[str, float]]:
    searches = bench.sized(500, 50)
    async with AsyncExitStack() as stack:
        d = await stack.enter_async_context(deployment.deployment(bench.services, partitions=1))
        listens(d, requests_per_minute=1_000_000)
        d.add_version("v1", VERSION)
        connection = await open_connection(weaviate_settings(d.out.settings))
        stack.push_async_callback(connection.close)
        store = WeaviateStore(connection)
        build = await filled(d, store, bench.sized(10_000, 500))
        router = Router(_Outside(d.out.settings, store), d.state)
        stack.push_async_callback(router.close)
        encoder = router.resolve(COLLECTION).encoder
        vectors = [await encoder.encode_query(text(number)) for number in range(QUERIES)]
        by_hand = _ByHand(connection, await _message(connection, build, vectors[0]))
        new, counted = count(), _Counted()
        counted.watch(connection)

        def another(number: int) -> str:
            return f"{text(number)} asked {next(new)}"

        async def kept(number: int) -> object:
            return await router.search(COLLECTION, text(number % QUERIES), TOP_K)

        async def encoded(number: int) -> object:
            return await router.search(COLLECTION, another(number), TOP_K)

        asks: dict[str, Ask] = {
            BY_HAND: lambda number: by_hand.ask(vectors[number % QUERIES]),
            HASHED: lambda number: by_hand.ask_text(another(number)),
            CLIENT: _by_client(connection, build, vectors),
            KEPT: kept,
            ENCODED: encoded,
        }
        runs: dict[str, Run] = {name: partial(_timed, ask, searches) for name, ask in asks.items()}
        if not bench.quick:  # a server takes longer to start than all the rest of it
            over_http, server_cpu_s = await stack.enter_async_context(_over_http(d))
            asks[OVER_HTTP] = over_http
            runs[OVER_HTTP] = partial(_timed, over_http, searches, server_cpu_s)
        for ask in asks.values():
            await _timed(ask, QUERIES)  # everything is warm, and the vectors are kept
        counted.searches, missed = 0, router.vectors.misses
        await _timed(kept, QUERIES)
        counts = {"searches": counted.searches / QUERIES, "encoded": float(router.vectors.misses - missed)}
        gc.collect()
        return await alternate(runs, bench.sized(7, 2)), counts


def _more(over: Sequence[Figures], under: Sequence[Figures], what: str) -> str:
    """Round by round."""
    return str(spread([{"ms": one[what] - other[what]} for one, other in zip(over, under, strict=True)], "ms"))


def measure(bench: Bench) -> Part:
    figures, counts = asyncio.run(_measured(bench))
    rows: list[dict[str, Value]] = []
    for name, of in figures.items():
        row: dict[str, Value] = {"search": name}
        for what, shown in (("wall_ms", "wall, ms"), ("cpu_ms", "CPU, ms")):
            row[shown] = str(spread(of, what))
            row[f"{shown}, above by hand"] = _more(of, figures[LIMITS[name]], what) if name in LIMITS else ""
        rows.append(row)
    what = (
        f"One search after the other, {TOP_K} of {bench.sized(10_000, 500):,} documents of {DIMENSIONS} dimensions "
        f"with their texts; rounds of {bench.sized(500, 50)} searches of each in turns, median of the rounds with the "
        f"smallest and the largest. CPU is of all threads of the asking process, with {OVER_HTTP.partition(',')[0]} of "
        "the server's and the asking one's together; Weaviate's is nowhere in it. By hand nothing of the answer is "
        "read; the router with hashing is beside the same model called by hand. Wanted: the router at most "
        f"{MOST_MS:g} ms above by hand, on the clock and in CPU."
    )
    facts = [
        Fact("search: queries put to Weaviate for one search", counts["searches"], most=1, least=1),
        Fact("search: encodings of queries whose vector is kept", counts["encoded"], most=0),
    ]
    return Part([Table("A search beside the query alone", what, rows)], facts, details=figures)
