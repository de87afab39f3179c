"""The plan scan beside librdkafka's own read rate, and what its key index needs in memory.

The limit is a loop of consume(1000), tuned, that looks at the key and the offset of each record and keeps nothing.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from functools import partial
from itertools import islice

from confluent_kafka import Producer

from benchmarks.harness import Bench, Cost, Fact, Figures, Part, Table, Value, alternate, child, median, ratio, spread
from benchmarks.pipeline import document, make_topic, tuned_consumer
from connectors.kafka.log import KafkaLog
from connectors.kafka.settings import KafkaSettings
from streams.documents import key_digest
from streams.garbage import collect_seldom
from streams.key_index import KeyIndexBuilder
from streams.replay import plan_scan

LEAST_RATIO, MOST_BYTES_A_KEY, MOST_MB_OF_5M = 0.7, 24.0, 300.0
BYTES = 830
REWRITTEN = 5  # every fifth record is of a key that came before


def key(number: int) -> bytes:
    return f"document-{number:09d}".encode()


def records(count: int) -> Iterator[tuple[bytes, bytes]]:
    """Four keys in a row, then one of them again, in a new form."""
    values = [document(number, BYTES) for number in range(1000)]
    for number in range(count):
        turn, place = divmod(number, REWRITTEN)
        known = turn * (REWRITTEN - 1)
        yield key(known + place if place < REWRITTEN - 1 else known), values[number % 1000]


def keys_among(count: int) -> int:
    """How many different keys there are in so many records."""
    turns, more = divmod(count, REWRITTEN)
    return turns * (REWRITTEN - 1) + more


def bare(servers: str, topic: str, count: int) -> Figures:
    """As fast as the client reads."""
    collect_seldom()
    with Cost() as cost:
        consumer = tuned_consumer(servers, topic)
        read = 0
        while read < count:  # never for more than there is: it would wait a second for it
            for message in consumer.consume(min(1000, count - read), 1.0):
                message.key()
                message.offset()
                read += 1
        consumer.close()
    return cost.figures(read)


def scan(servers: str, topic: str) -> Figures:
    """As a replay begins."""
    collect_seldom()
    return asyncio.run(_scan(KafkaLog(KafkaSettings(servers)), topic))


async def _scan(log: KafkaLog, topic: str) -> Figures:
    end = (await log.bounds(topic))[0].stable
    with Cost() as cost:
        index = await plan_scan(log, topic, 0, end)
    return {**cost.figures(end), "records": float(index.records), "keys": float(len(index))}


def build(count: int) -> Figures:
    """The index of so many keys, without Kafka: what it costs beside their digests, and what it adds to the process."""
    collect_seldom()
    builder = KeyIndexBuilder()
    with Cost() as started:
        pass
    numbers = iter(range(count))
    with Cost() as both:
        while some := list(islice(numbers, 8000)):
            builder.add([key_digest(key(number)) for number in some], some, [False] * len(some))
        index = builder.build()
    with Cost() as digests:
        for number in range(count):
            key_digest(key(number))
    gc.collect()
    return {
        "cpu_us": 1e6 * (both.cpu_s - digests.cpu_s) / count,
        "digest_us": 1e6 * digests.cpu_s / count,
        "peak_mb": both.peak_mb,
        "added_mb": both.peak_mb - started.peak_mb,
        "bytes_a_key": index.nbytes / len(index),
    }


def _compressed(servers: str, count: int) -> str:
    """A topic as Crossfade's own producer writes it."""
    topic = make_topic(servers, 1, ())
    producer = Producer({**KafkaSettings(servers).producer(linger_ms=20), "queue.buffering.max.messages": 1_000_000})
    for name, value in records(count):
        while True:
            try:
                producer.produce(topic, value, name)
                break
            except BufferError:
                producer.poll(0.1)
    if producer.flush(120):
        raise RuntimeError("not all records were acknowledged")
    return topic


def measure(bench: Bench) -> Part:
    count, servers = bench.sized(400_000, 20_000), bench.services.kafka
    topics = {"uncompressed": make_topic(servers, 1, records(count))}
    if not bench.quick:
        topics["zstd"] = _compressed(servers, count)

    async def run(function: str, **arguments: object) -> Figures:
        return child(f"benchmarks.plan_scan:{function}", servers=servers, **arguments)

    rows: list[dict[str, Value]] = []
    details: dict[str, object] = {}
    scans: list[Figures] = []
    for name, topic in topics.items():
        runs = {
            "consume(1000)": partial(run, "bare", topic=topic, count=count),
            "scan": partial(run, "scan", topic=topic),
        }
        figures = asyncio.run(alternate(runs, bench.sized(5, 1)))
        limit = figures["consume(1000)"]
        details[name], scans = figures, scans + figures["scan"]
        rows += [
            {
                "what": f"{what}, {name}",
                "records/s": median(of, "per_s"),
                "of the loop's": str(ratio(of, limit, "per_s")),
                "CPU a record, us": str(spread(of, "cpu_us")),
                "peak MB": median(of, "peak_mb"),
            }
            for what, of in figures.items()
        ]
    sizes = (1_000_000,) if bench.quick else (1_000_000, 5_000_000)
    built = {size: child("benchmarks.plan_scan:build", count=size) for size in sizes}
    details["index"] = built
    memory: list[dict[str, Value]] = [
        {
            "keys": size,
            "bytes a key": of["bytes_a_key"],
            "peak of the process, MB": of["peak_mb"],
            "of it added, bytes a key": 2**20 * of["added_mb"] / size,
            "CPU a key, us": of["cpu_us"],
            "and for its digest": of["digest_us"],
        }
        for size, of in built.items()
    ]
    keys = keys_among(count)
    facts = [
        Fact("plan scan: records read, of all", min(of["records"] for of in scans) / count, most=1, least=1),
        Fact("plan scan: keys found, of all", min(of["keys"] for of in scans) / keys, most=1, least=1),
        *(
            Fact(f"key index of {size:,}: bytes a key", of["bytes_a_key"], most=MOST_BYTES_A_KEY)
            for size, of in built.items()
        ),
        Fact("key index of 1,000,000: MB added at most while it is built", built[1_000_000]["added_mb"], most=45),
    ]
    if not bench.quick:
        peak = built[5_000_000]["peak_mb"]
        facts.append(Fact("key index of 5,000,000: peak MB of the process", peak, most=MOST_MB_OF_5M))
    what = (
        f"{count:,} records of {BYTES} bytes in one partition, {keys:,} keys. The loop keeps nothing; the scan leaves "
        f"the key index. Both open and close their consumer. Wanted: at least {LEAST_RATIO:g} of the loop's rate."
    )
    of_index = "Built from digests, in a process of its own: what it takes beside reading."
    return Part([Table("Plan scan", what, rows), Table("Key index", of_index, memory)], facts, details=details)
