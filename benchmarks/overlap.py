"""Reading, embedding and writing beside each other, and what a worker holds in memory while one of them is slow.

The limit of the first is the endpoint itself, in its own books; that of the second a number of bytes.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from time import perf_counter

from benchmarks import deployment
from benchmarks.deployment import documents, ended, resolved, version
from benchmarks.gpu_server import DIMENSIONS, MODEL, Model
from benchmarks.harness import (
    Bench,
    Cost,
    Fact,
    Figures,
    Part,
    Plot,
    Table,
    Value,
    child,
    endpoint,
    held_mb,
    median,
    spread,
)
from benchmarks.pipeline import SCHEMA, NoSpace, build, document, make_topic
from connectors.embedders.endpoint import Endpoint
from connectors.embedders.pool import EndpointPool
from connectors.embedders.tei import TeiEmbedder
from streams.batching import BatchLimits
from streams.encoding import Encoder
from streams.versions import Envelope
from tests.faults.proxy import proxy

LEAST_BUSY, MOST_MB = 0.95, 350.0
BELOW_WEAVIATE, ABOVE_WEAVIATE = Model(documents_per_s=400, slots=2), Model(documents_per_s=2000)
LARGE_TOKENS = 5000  # 20 kB
SLOW = Model(documents_per_s=2000, slots=8, tokens=LARGE_TOKENS, max_tokens=10**6)
PARTITIONS = 8


async def _into_weaviate(bench: Bench, seconds: float) -> Figures:
    """A replay by a worker, from the moment on at which it may begin; the endpoint's books when all is stored."""
    model = BELOW_WEAVIATE
    count = int(model.documents_per_s * seconds)
    with endpoint(model) as control:
        async with deployment.deployment(bench.services, partitions=2) as d:
            hold = Path(d.folder) / "hold"
            hold.touch()
            d.set_collection("throttle", {"file": str(hold)})
            await d.produce(documents(0, count, tokens=model.tokens))
            d.add_version("v1", version(control.url))
            worker = d.start_worker()
            await d.until_stage("v1", "building")
            await d.until(lambda: d.counters("v1").total == count)
            control.reset()
            hold.unlink()
            await d.until(lambda: resolved(d, "v1") >= count)
            books = control.books()
            stored = await d.out.store.space(d.build("v1").space).count()
            await ended(worker)
    return {
        "busy": books["busy"],
        "of_rate": count / books["span_s"] / model.documents_per_s,
        "texts_a_request": books["texts"] / books["requests_served"],
        "refused": books["refused_queue"] / books["requests"],
        "embeddings_a_document": (books["texts"] - books["requests_served"]) / count,  # each request holds a probe text
        "stored": stored / count,
    }


def into_nothing(servers: str, topic: str, url: str, count: int) -> Figures:
    """A replay in this process, into a space that does nothing."""
    return asyncio.run(_into_nothing(servers, topic, url, count))


async def _into_nothing(servers: str, topic: str, url: str, count: int) -> Figures:
    model = ABOVE_WEAVIATE
    embedder = TeiEmbedder(url, max_batch=model.batch)
    envelope = Envelope("tei", MODEL, "1", DIMENSIONS, SCHEMA.fields)
    encoder = Encoder(envelope, EndpointPool([Endpoint("gpu", embedder)]), limits=BatchLimits(model.batch))
    async with build(servers, topic, encoder, NoSpace(), replay=True) as running:
        await running.until_resolved(1)
        before = running.resolved
        with Cost() as cost:
            await running.until_resolved(count)
    return cost.figures(count - before)


def _into_nothing_beside(bench: Bench, topic: str, count: int) -> Figures:
    with endpoint(ABOVE_WEAVIATE) as control:
        servers = bench.services.kafka
        cost = child("benchmarks.overlap:into_nothing", servers=servers, topic=topic, url=control.url, count=count)
        books = control.books()
    return {
        "busy": books["busy"],
        "of_rate": count / books["span_s"] / ABOVE_WEAVIATE.documents_per_s,
        "texts_a_request": books["texts"] / books["requests_served"],
        "cpu_us": cost["cpu_us"],
    }


async def _overlap(bench: Bench) -> tuple[Table, list[Fact], dict[str, list[Figures]]]:
    seconds = bench.sized(10, 2)
    count = int(ABOVE_WEAVIATE.documents_per_s * seconds / 2)
    # with the title as long as the texts of `documents`
    topic = make_topic(bench.services.kafka, 1, ((b"document-%09d" % n, document(n, 327)) for n in range(count)))
    figures: dict[str, list[Figures]] = {"weaviate": [], "nothing": []}
    for _ in range(bench.sized(5, 1)):
        figures["weaviate"].append(await _into_weaviate(bench, seconds))
        figures["nothing"].append(_into_nothing_beside(bench, topic, count))
    rows: list[dict[str, Value]] = [
        {
            "what": what,
            "endpoint busy": str(spread(figures[name], "busy")),
            "documents/s over its rate": str(spread(figures[name], "of_rate")),
            "texts a request": median(figures[name], "texts_a_request"),
        }
        for name, what in (
            ("weaviate", f"a worker, {BELOW_WEAVIATE.documents_per_s:g} documents/s, into Weaviate"),
            ("nothing", f"{ABOVE_WEAVIATE.documents_per_s:g} documents/s, into a space that does nothing"),
        )
    ]
    what = (
        f"A replay of {seconds} s of texts. Busy: share of the time of the endpoint's slots from the first request to "
        f"the last reply; wanted: at least {LEAST_BUSY:g}. The rate is for full batches of {BELOW_WEAVIATE.batch} "
        "texts; in a worker each holds a probe text."
    )
    last = figures["weaviate"][-1]
    facts = [
        Fact("overlap: embeddings a document", last["embeddings_a_document"], most=1.0, least=1.0),
        Fact("overlap: documents stored of those in the log", last["stored"], most=1.0, least=1.0),
        Fact("overlap: texts a request, of 32", last["texts_a_request"], least=24.0),
    ]
    return Table("Overlap", what, rows), facts, figures


async def _memory(bench: Bench, count: int, seconds: float) -> tuple[Figures, list[tuple[float, float]]]:
    """A worker with this many documents of 20 kB to replay and as many to follow, while Weaviate answers no write.

    Second: (s, MB) from the start of the worker on."""
    samples: list[tuple[float, float]] = []
    with endpoint(SLOW) as control:
        async with AsyncExitStack() as stack:
            grpc = await stack.enter_async_context(proxy(bench.services.weaviate_grpc))
            at = replace(bench.services, weaviate_grpc=grpc.address)
            d = await stack.enter_async_context(deployment.deployment(at, partitions=PARTITIONS))
            await d.produce(documents(0, count, tokens=LARGE_TOKENS))
            d.add_version("v1", version(control.url))
            worker, began = d.start_worker(), perf_counter()
            await d.until_stage("v1", "building")
            grpc.freeze()
            await d.produce(documents(count, count, tokens=LARGE_TOKENS))
            held_since = perf_counter()
            while perf_counter() - held_since < seconds:
                await asyncio.sleep(deployment.LOOK_EVERY_S)
                samples.append((perf_counter() - began, held_mb(worker.pid)))
            embedded = control.books()["texts"]
            _, peak_mb = await ended(worker, kill=True)
            await grpc.mend()
    half = samples[len(samples) // 2 :]
    grown = half[-1][1] - half[0][1]
    return {"peak_mb": peak_mb, "grown_mb": grown, "embedded": embedded, "lag": float(2 * count)}, samples


def measure(bench: Bench) -> Part:
    table, facts, details = asyncio.run(_overlap(bench))
    rows: list[dict[str, Value]] = []
    lines = {}
    for count in (1_500,) if bench.quick else (2_000, 10_000):
        held, samples = asyncio.run(_memory(bench, count, bench.sized(12, 6)))
        details[f"memory, {count}"] = [held]
        lines[f"{2 * count:,} documents behind"] = samples
        rows.append(
            {
                "documents of 20 kB behind": 2 * count,
                "MB of them": 2 * count * LARGE_TOKENS * 4 / 1e6,
                "peak MB": held["peak_mb"],
                "grown in the second half, MB": held["grown_mb"],
                "texts embedded": held["embedded"],
            }
        )
        facts.append(Fact(f"overlap: MB of a worker, {2 * count:,} of 20 kB behind", held["peak_mb"], most=MOST_MB))
    what = (
        f"A worker with one version on {PARTITIONS} partitions, half of the documents to replay and half to follow, "
        f"while Weaviate answers nothing. Wanted: at most {MOST_MB:g} MB, however much there is to do."
    )
    plots = [Plot("memory", "A worker while Weaviate is stuck", "s", "MB", lines, limit=MOST_MB)]
    return Part([table, Table("Memory of a worker that is held up", what, rows)], facts, plots, details)
