"""The merge core: from the log to resolved, with an encoder and a space that do nothing, in each lane.

Its limit is a loop of consume(1000) and orjson, which does none of the work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from functools import partial

import orjson

from benchmarks.harness import Bench, Cost, Fact, Figures, Part, Table, Value, alternate, child, median, ratio, spread
from benchmarks.pipeline import NoEncoder, NoSpace, build, document, encoder_of, make_topic, tuned_consumer
from streams.garbage import collect_seldom

MOST_CPU_US, LEAST_PER_S = 20.0, 40_000.0
_COUNTED: Mapping[str, tuple[str, float, float | None]] = {
    "embedded": ("embeddings", 1.0, 1.0),
    "written": ("objects written", 1.0, 1.0),
    "calls": ("calls of the store", 0.05, None),
}


def keys(documents: int) -> Iterator[tuple[bytes, bytes]]:
    """Every document once."""
    return ((f"document-{number:09d}".encode(), document(number)) for number in range(documents))


def bare(servers: str, topic: str, documents: int) -> Figures:
    """As fast as the client reads, and JSON of it."""
    consumer = tuned_consumer(servers, topic, prefetch_mib=256)
    read = 0
    with Cost() as cost:
        while read < documents:
            for message in consumer.consume(1000, 1.0):
                orjson.loads(message.value() or b"{}")
                read += 1
    consumer.close()
    return cost.figures(documents)


def lane(servers: str, topic: str, documents: int, replay: bool) -> Figures:
    """All of the topic through one lane of a build."""
    collect_seldom()
    return asyncio.run(_lane(servers, topic, documents, replay))


async def _lane(servers: str, topic: str, documents: int, replay: bool) -> Figures:
    encoder, space = NoEncoder(encoder_of(384)), NoSpace()
    async with build(servers, topic, encoder, space, replay=replay) as running:
        await running.until_resolved(1)  # the group is joined, and the plan scan made
        before = running.resolved
        with Cost() as cost:
            await running.until_resolved(documents)
        figures = cost.figures(documents - before)
    return {**figures, "embedded": float(encoder.texts), "written": float(space.written), "calls": float(space.calls)}


def measure(bench: Bench) -> Part:
    documents = bench.sized(200_000, 20_000)
    servers = bench.services.kafka
    topic = make_topic(servers, 1, keys(documents))

    async def run(name: str, **more: object) -> Figures:
        return child(f"benchmarks.core:{name}", servers=servers, topic=topic, documents=documents, **more)

    runs = {
        "consume(1000) and orjson": partial(run, "bare"),
        "live lane": partial(run, "lane", replay=False),
        "replay lane": partial(run, "lane", replay=True),
    }
    figures = asyncio.run(alternate(runs, bench.sized(5, 1)))
    limit = figures["consume(1000) and orjson"]
    rows: list[dict[str, Value]] = [
        {
            "what": name,
            "CPU a document, us": str(spread(of, "cpu_us")),
            "CPU, as a multiple of the loop's": str(ratio(of, limit, "cpu_us")),
            "documents/s": median(of, "per_s"),
            "peak MB": median(of, "peak_mb"),
        }
        for name, of in figures.items()
    ]
    facts = []
    for name in ("live lane", "replay lane"):
        for counted, (what_for, most, least) in _COUNTED.items():
            value = figures[name][-1][counted] / documents
            facts.append(Fact(f"core, {name}: {what_for} a document", value, most=most, least=least))
    what = (
        f"{documents:,} documents of 700 bytes in one partition, no key twice; encoder and space do nothing. Wanted: "
        f"at most {MOST_CPU_US:g} us of CPU (all threads of the process, librdkafka's too) and {LEAST_PER_S:,.0f} "
        "documents/s."
    )
    return Part([Table("The merge core", what, rows)], facts, details=figures)
