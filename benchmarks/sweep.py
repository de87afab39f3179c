"""The sweep of a space beside Weaviate's own cursor: a bare loop over its pages that looks at nothing in them.

Both ask for the same properties of the same objects. The sweep reads the log's keys as well, and compares.
"""

from __future__ import annotations

import asyncio
import math
import uuid
from functools import partial

import grpc  # type: ignore[import-untyped]
import numpy as np
import orjson
from weaviate.proto.v1 import search_get_pb2, weaviate_pb2_grpc

from benchmarks.harness import Bench, Cost, Fact, Figures, Part, Table, Value, alternate, child, median, ratio, spread
from benchmarks.pipeline import SCHEMA, document, encoder_of, make_topic
from connectors import reserved
from connectors.kafka.log import KafkaLog
from connectors.kafka.settings import KafkaSettings
from connectors.protocols import Commit, Record, SpaceSpec
from connectors.weaviate import wire
from connectors.weaviate.client import open_connection
from connectors.weaviate.settings import WeaviateSettings
from connectors.weaviate.spaces import open_store
from connectors.weaviate.writer import CURSORS, PAGE, WeaviateSpace
from streams.config_operation import Cutover
from streams.documents import Put, object_id, parse, text
from streams.garbage import collect_seldom
from streams.migration.sweep import sweep as whole_sweep
from streams.retry import a_while
from streams.space_objects import Origin, space_object
from streams.state import BuildState
from streams.versions import Stage

LEAST_RATIO = 0.9
DIMENSIONS = 384
PAGES = (500, 1000, 2000, 4000)


def cursor(grpc_address: str, space: str, page: int) -> Figures:
    """Every page, one after the other."""
    collect_seldom()
    channel = grpc.insecure_channel(grpc_address, options=(("grpc.max_receive_message_length", -1),))
    stub = weaviate_pb2_grpc.WeaviateStub(channel)  # type: ignore[no-untyped-call]
    after, met, pages = wire.FIRST, 0, 0
    with Cost() as cost:
        while True:
            reply: search_get_pb2.SearchReply = stub.Search(wire.query(space, page, reserved.HEAD, after=after))
            pages += 1
            if not reply.results:
                break
            met += len(reply.results)
            after = str(wire.uuid_of(reply.results[-1]))
    channel.close()
    return {**cost.figures(met), "objects": float(met), "pages": float(pages)}


def swept(kafka: str, http: str, grpc_address: str, build: dict[str, object], group: str, share: float) -> Figures:
    """One sweep as `verify` makes it."""
    collect_seldom()
    settings = WeaviateSettings(http, grpc_address)
    return asyncio.run(_swept(kafka, settings, BuildState.model_validate(build), group, share))


async def _swept(kafka: str, settings: WeaviateSettings, build: BuildState, group: str, share: float) -> Figures:
    connection = await open_connection(settings)
    search, pages = connection.stub.Search, 0

    def counted(*given: object, **named: object) -> object:
        nonlocal pages
        pages += 1
        return search(*given, **named)  # type: ignore[arg-type]

    connection.stub.Search = counted  # type: ignore[assignment]
    log = KafkaLog(KafkaSettings(kafka))
    with Cost() as cost:
        space = WeaviateSpace(connection, build.space)
        found = await whole_sweep(build, SCHEMA, log, space, group, set(), share=share)
    await connection.close()
    faults = found.missing + found.stale + found.extra
    return {**cost.figures(found.checked), "objects": float(found.checked), "pages": float(pages), "faults": faults}


async def _filled(bench: Bench, documents: int) -> tuple[BuildState, str]:
    """A topic, a space that is as its replay would have left it, and a live group that has read all."""
    values = {f"document-{n:09d}": document(n) for n in range(documents)}
    servers = bench.services.kafka
    topic = make_topic(servers, 1, ((key.encode(), value) for key, value in values.items()))
    envelope = encoder_of(DIMENSIONS).envelope
    name = f"Sweep_{uuid.uuid4().hex[:8]}"
    store = await open_store(WeaviateSettings(bench.services.weaviate_http, bench.services.weaviate_grpc))
    spec = SpaceSpec(name, DIMENSIONS, "cosine", envelope.canonical_json(), "none", SCHEMA.properties)
    await store.create_space(spec)
    drawn = np.random.default_rng(1).standard_normal((documents, DIMENSIONS), dtype=np.float32)
    objects = []
    for offset, (key, value) in enumerate(values.items()):
        put = parse(key.encode(), value, SCHEMA)
        assert isinstance(put, Put)
        objects.append(
            space_object(
                object_id("docs", key, 0),
                Record(0, offset, 1_700_000_000_000, key.encode(), value),
                put,
                "0" * 64,
                chunk=0,
                texts=[text(put, SCHEMA)],
                vector=drawn[offset],
                origin=Origin("embedded", 1_700_000_000_000),
                space_mark=f"v1@{envelope.fingerprint}",
                store_text=True,
            )
        )
    space = store.space(name)
    for at in range(0, documents, 256):
        if failed := await space.upsert(objects[at : at + 256]):
            raise RuntimeError(f"{len(failed)} objects were not stored")
    await store.close()
    log = KafkaLog(KafkaSettings(servers))
    facts, end = await log.facts(topic), (await log.bounds(topic))[0].stable
    group = f"bench.{name}"
    await a_while(lambda: log.commit_offsets(group, topic, {0: Commit(end)}))  # a broker may have just started
    build = BuildState(
        collection="docs",
        version="v1",
        epoch=1,
        stage=Stage.READY,
        envelope=orjson.loads(envelope.canonical_json()),
        fingerprint=envelope.fingerprint,
        space=name,
        topic=topic,
        topic_id=facts.topic_id,
        partitions=1,
        start={0: end},
        barrier={0: end},
    )
    return build, group


def measure(bench: Bench) -> Part:
    documents = bench.sized(40_000, 1_500)
    services = bench.services
    build, group = asyncio.run(_filled(bench, documents))

    async def bare(page: int) -> Figures:
        return child("benchmarks.sweep:cursor", grpc_address=services.weaviate_grpc, space=build.space, page=page)

    async def ours(share: float = 1.0) -> Figures:
        return child(
            "benchmarks.sweep:swept",
            kafka=services.kafka,
            http=services.weaviate_http,
            grpc_address=services.weaviate_grpc,
            build=build.model_dump(mode="json"),
            group=group,
            share=share,
        )

    limits = {f"the bare cursor, pages of {page:,}": partial(bare, page) for page in PAGES}
    figures = asyncio.run(alternate({**limits, "a sweep": ours}, bench.sized(5, 1)))
    beside = asyncio.run(ours(Cutover().sweep_share))
    best = max(limits, key=lambda name: median(figures[name], "per_s"))
    rows: list[dict[str, Value]] = [
        {
            "what": name,
            "objects/s": median(of, "per_s"),
            "of the best cursor's": str(ratio(of, figures[best], "per_s")),
            "CPU an object, us": str(spread(of, "cpu_us")),
            "peak MB": median(of, "peak_mb"),
        }
        for name, of in figures.items()
    ]
    rows.append(
        {
            "what": f"a sweep while a version serves, {Cutover().sweep_share:g} of the time (once)",
            "objects/s": beside["per_s"],
            "of the best cursor's": f"{beside['per_s'] / median(figures[best], 'per_s'):.3f}",
            "CPU an object, us": f"{beside['cpu_us']:.3f}",
            "peak MB": beside["peak_mb"],
        }
    )
    sweeps = figures["a sweep"]
    pages = math.ceil(documents / PAGE) + 1
    facts = [
        Fact("sweep: pages asked for beside the fewest", max(of["pages"] for of in sweeps) - pages, most=2 * CURSORS),
        Fact("sweep: documents compared, of all", min(of["objects"] for of in sweeps) / documents, most=1, least=1),
        Fact("sweep: faults found where there are none", max(of["faults"] for of in sweeps), most=0),
    ]
    what = (
        f"{documents:,} objects of {DIMENSIONS} dimensions, and as many records in the log. The cursor alone asks for "
        f"page after page and looks at nothing; the sweep has {CURSORS} at once, each for a part of the ids, reads "
        f"the log's keys, and compares. Wanted: at least {LEAST_RATIO:g} of the best cursor's rate."
    )
    return Part([Table("Sweep", what, rows)], facts, details=figures)
