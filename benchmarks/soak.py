"""Hours of steady work in one process: does a document cost as much at the end as it did at the beginning?

    python -m benchmarks.soak [--minutes 180]        also: make soak

The live lane follows a stream of changes to a fixed set of documents; encoder and space do nothing. Every minute: CPU a
document, and the memory the process holds. Writes results/soak.json, .md and plots.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from confluent_kafka import Producer

from benchmarks.harness import ROOT, Part, Plot, Table, Value, cpu_s, held_mb, services, write
from benchmarks.pipeline import NoEncoder, NoSpace, build, document, encoder_of, make_topic
from streams.garbage import collect_seldom

KEYS = 100_000
PER_S = 1_000
PORTION_S = 0.02
LOOK_S = 60.0


class Minute(NamedTuple):
    """`at_s` since the begin; `cpu_us` a document of this minute; `held_mb`: resident now."""

    at_s: float
    documents: int
    cpu_us: float
    held_mb: float


def feed(servers: str, topic: str) -> None:
    """Changes and a few deletes, PER_S a second in portions, until somebody ends it."""
    producer = Producer({"bootstrap.servers": servers, "linger.ms": 20, "compression.type": "lz4"})
    drawn, sent, began = random.Random(1), 0, time.monotonic()
    while True:
        while sent < PER_S * (time.monotonic() - began):
            key = b"document-%09d" % drawn.randrange(KEYS)
            producer.produce(topic, key=key, value=None if drawn.random() < 0.01 else document(sent))
            sent += 1
        producer.poll(0)
        time.sleep(PORTION_S)  # one event at a time would take half a core for the sender


async def follow(servers: str, topic: str, seconds: float) -> list[Minute]:
    minutes: list[Minute] = []
    async with build(servers, topic, NoEncoder(encoder_of(384)), NoSpace(), replay=False) as running:
        await running.until_resolved(1)
        began = time.monotonic()
        done, spent = running.resolved, cpu_s()
        while time.monotonic() - began < seconds:
            await asyncio.sleep(LOOK_S)
            more, now = running.resolved - done, cpu_s()
            minutes.append(Minute(time.monotonic() - began, more, 1e6 * (now - spent) / max(1, more), held_mb()))
            done, spent = done + more, now
            print(f"{minutes[-1].at_s / 60:5.0f} min  {minutes[-1]}", file=sys.stderr, flush=True)
    return minutes


def part_of(minutes: Sequence[Minute]) -> Part:
    """Tenths of the time beside the first of them."""
    size = max(1, len(minutes) // 10)
    tenths = [minutes[at : at + size] for at in range(0, len(minutes) - size + 1, size)]
    rows: list[dict[str, Value]] = []
    for tenth in tenths:
        cpu_us = statistics.median(minute.cpu_us for minute in tenth)
        rows.append(
            {
                "until, min": tenth[-1].at_s / 60,
                "documents": float(sum(minute.documents for minute in tenth)),
                "CPU a document, us": cpu_us,
                "of that of the first": cpu_us / statistics.median(minute.cpu_us for minute in tenths[0]),
                "held MB": tenth[-1].held_mb,
            }
        )
    what = (
        f"{PER_S:,} changes a second to {KEYS:,} documents of 700 bytes, 1% of them deletes, through the live lane for "
        f"{minutes[-1].at_s / 60:.0f} minutes. A lane that is not busy pays more for each: its batches are small."
    )
    plots = [
        Plot("cpu", "CPU a document", "min", "us", {"live": [(m.at_s / 60, m.cpu_us) for m in minutes]}),
        Plot("memory", "Memory held", "min", "MB", {"worker": [(m.at_s / 60, m.held_mb) for m in minutes]}),
    ]
    details: dict[str, object] = {"minutes": [minute._asdict() for minute in minutes]}
    return Part([Table("A worker that runs for hours", what, rows)], plots=plots, details=details)


def run(minutes: float) -> None:
    collect_seldom()
    with services() as addresses:
        topic = make_topic(addresses.kafka, 1, [(b"document-000000000", document(0))])
        command = [sys.executable, "-m", "benchmarks.soak", "--feed", addresses.kafka, topic]
        feeder = subprocess.Popen(command, cwd=ROOT)
        try:
            part = part_of(asyncio.run(follow(addresses.kafka, topic, 60 * minutes)))
        finally:
            feeder.terminate()
            feeder.wait()
    print(part.tables[0].markdown())
    for path in write("soak", {"soak": part}):
        print(f"wrote {path}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=180.0)
    parser.add_argument("--feed", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.feed:
        feed(*given.feed)
    else:
        run(given.minutes)


if __name__ == "__main__":
    main()
