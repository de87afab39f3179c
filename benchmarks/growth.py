"""What a document costs in a small collection and in a large one, and at the end of a long replay.

Of topics of growing numbers of keys the first documents of a replay are compared: those of a process's first moments
cost less than what follows, however many keys there are. What they come to, one long replay tells, portion by portion.
Encoder and space do nothing; the documents are short, so that the largest topic fits on a laptop.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
from collections.abc import AsyncIterator, Iterator, Sequence

from benchmarks.harness import Bench, Cost, Figures, Part, Plot, Table, Value, child, median, ratio, spread
from benchmarks.pipeline import NoEncoder, NoSpace, Running, build, document, encoder_of, make_topic
from streams.garbage import collect_seldom

SMALL, LARGEST = 10_000, 5_000_000
KEYS = (SMALL, 100_000, 1_000_000, LARGEST)
FIRST = 6_000  # documents: fewer than the smallest has, so that as many are read ahead when they are done as before
ROUNDS, TIMES = 5, (3, 3, 3, 1)  # so many processes a size in each round, and their median
PORTIONS = (SMALL, 100_000, 1_000_000, 2_000_000, 3_000_000, 4_000_000, LARGEST)


def keys(documents: int) -> Iterator[tuple[bytes, bytes]]:
    return ((f"document-{number:09d}".encode(), document(number, 150)) for number in range(documents))


def begins(servers: str, topic: str, documents: int) -> Figures:
    """Of the plan scan, us of CPU a document; of the replay's first documents, what they cost."""
    collect_seldom()
    return asyncio.run(_begins(servers, topic, documents))


async def _begins(servers: str, topic: str, documents: int) -> Figures:
    with Cost() as scan:
        replay = _replay(servers, topic)
        running = await replay.__aenter__()
    try:
        figures = await _up_to(running, FIRST)
    finally:
        await replay.__aexit__(None, None, None)
    return {"scan_cpu_us": 1e6 * scan.cpu_s / documents, **figures}


def goes_on(servers: str, topic: str, portions: Sequence[int]) -> Figures:
    """Of one replay: us of CPU a document, by how many documents it had come to; and the whole's peak."""
    collect_seldom()
    return asyncio.run(_goes_on(servers, topic, portions))


async def _goes_on(servers: str, topic: str, portions: Sequence[int]) -> Figures:
    async with _replay(servers, topic) as running:
        figures = [await _up_to(running, portion) for portion in portions]
    cpu = {str(portion): one["cpu_us"] for portion, one in zip(portions, figures, strict=True)}
    return {**cpu, "peak_mb": max(one["peak_mb"] for one in figures)}


@contextlib.asynccontextmanager
async def _replay(servers: str, topic: str) -> AsyncIterator[Running]:
    """Once its plan scan is over."""
    async with build(servers, topic, NoEncoder(encoder_of(384)), NoSpace(), replay=True) as running:
        await running.until_resolved(1)
        yield running


async def _up_to(running: Running, documents: int) -> Figures:
    before = running.resolved
    with Cost() as cost:
        await running.until_resolved(documents)
    return cost.figures(running.resolved - before)


def measure(bench: Bench) -> Part:
    servers = bench.services.kafka
    topics = {size: make_topic(servers, 1, keys(size)) for size in KEYS}
    figures: dict[int, list[Figures]] = {size: [] for size in KEYS}
    for number in range(ROUNDS):
        for size, times in sorted(zip(KEYS, TIMES, strict=True), reverse=bool(number % 2)):
            given = {"servers": servers, "topic": topics[size], "documents": size}
            runs = [child("benchmarks.growth:begins", **given) for _ in range(times)]
            figures[size].append({name: statistics.median(run[name] for run in runs) for name in runs[0]})
    rows: list[dict[str, Value]] = [
        {
            "keys": float(size),
            "CPU a document, us": str(spread(of, "cpu_us")),
            "of that at the smallest": str(ratio(of, figures[SMALL], "cpu_us")),
            "documents/s": median(of, "per_s"),
            "peak MB": max(one["peak_mb"] for one in of),
        }
        for size, of in figures.items()
    ]
    long = child("benchmarks.growth:goes_on", servers=servers, topic=topics[LARGEST], portions=PORTIONS)
    cpu = [(float(portion), long[str(portion)]) for portion in PORTIONS]
    of_long: list[dict[str, Value]] = [
        {"up to document": upto, "CPU a document, us": us, f"of that up to {PORTIONS[1]:,}": us / cpu[1][1]}
        for upto, us in cpu
    ]
    what = (
        f"Replays of topics of one partition, each key once, documents of 150 bytes. CPU of the first {FIRST:,} "
        f"documents, after the plan scan; {ROUNDS} rounds, in each the median of {max(TIMES)} processes a size, and "
        "one of the largest."
    )
    further = f"One replay of {LARGEST:,} keys, each portion apart; peak of the process {long['peak_mb']:.0f} MB."
    tables = [Table("A collection that grows", what, rows), Table("A replay that goes on", further, of_long)]
    lines = {"begin": [(float(size), median(of, "cpu_us")) for size, of in figures.items()], "one replay": cpu}
    plot = Plot("growth", "CPU a document", "keys", "us", lines, log_x=True)
    details: dict[str, object] = {"begin": {str(size): of for size, of in figures.items()}, "one replay": long}
    return Part(tables, plots=[plot], details=details)
