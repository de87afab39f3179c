"""What a document costs in a small collection and in a large one: replays of topics of growing numbers of keys.

Encoder and space do nothing; the documents are short, so that the largest topic fits on a laptop.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Iterator

from benchmarks.harness import Bench, Cost, Figures, Part, Plot, Table, Value, child
from benchmarks.pipeline import NoEncoder, NoSpace, build, document, encoder_of, make_topic
from streams.garbage import collect_seldom

KEYS = (10_000, 100_000, 1_000_000, 5_000_000)
TIMES = (9, 5, 3, 1)  # the small ones again and again: a process's first second is not like the others


def keys(documents: int) -> Iterator[tuple[bytes, bytes]]:
    return ((f"document-{number:09d}".encode(), document(number, 150)) for number in range(documents))


def replay(servers: str, topic: str, documents: int) -> Figures:
    """Of the plan scan and of the replay apart: us of CPU a document each, and the whole's peak."""
    collect_seldom()
    return asyncio.run(_replay(servers, topic, documents))


async def _replay(servers: str, topic: str, documents: int) -> Figures:
    encoder, space = NoEncoder(encoder_of(384)), NoSpace()
    with Cost() as scan:
        running_build = build(servers, topic, encoder, space, replay=True)
        running = await running_build.__aenter__()
        await running.until_resolved(1)
        before = running.resolved
    try:
        with Cost() as replayed:
            await running.until_resolved(documents)
    finally:
        await running_build.__aexit__(None, None, None)
    return {"scan_cpu_us": 1e6 * scan.cpu_s / documents, **replayed.figures(documents - before)}


def measure(bench: Bench) -> Part:
    rows: list[dict[str, Value]] = []
    details: dict[str, object] = {}
    cpu: list[tuple[float, float]] = []
    for documents, times in zip(KEYS, TIMES, strict=True):
        topic = make_topic(bench.services.kafka, 1, keys(documents))
        servers = bench.services.kafka
        figures = [
            child("benchmarks.growth:replay", servers=servers, topic=topic, documents=documents) for _ in range(times)
        ]
        details[str(documents)] = figures
        cpu.append((documents, statistics.median(one["cpu_us"] for one in figures)))
        rows.append(
            {
                "keys": float(documents),
                "CPU a document, us": cpu[-1][1],
                "of that at the smallest": cpu[-1][1] / cpu[0][1],
                "documents/s": statistics.median(one["per_s"] for one in figures),
                "peak MB": max(one["peak_mb"] for one in figures),
            }
        )
    what = (
        "Replays of topics of one partition, each key once, documents of 150 bytes; the median of "
        f"{', '.join(map(str, TIMES))} processes. CPU of the replay itself, after the plan scan."
    )
    plot = Plot("growth", "CPU a document", "keys", "us", {"replay": cpu}, log_x=True)
    return Part([Table("A collection that grows", what, rows)], plots=[plot], details=details)
