"""A long history embedded: the documents as they are now, however often each of them was changed.

Beside it what a plain consumer embeds, which is every put it reads. The history of the PEPs where the shared data
folder is beside the checkout (or named by CROSSFADE_DATA), else a made-up one of the same size.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Iterator
from pathlib import Path

import orjson
import zstandard

from benchmarks.harness import ROOT, Bench, Cost, Fact, Figures, Part, Table, Value, child
from benchmarks.pipeline import NoEncoder, NoSpace, build, document, encoder_of, make_topic

PEPS = Path(os.environ.get("CROSSFADE_DATA", ROOT.parent / "shared" / "data")) / "peps" / "events.jsonl.zst"

Event = tuple[bytes, bytes | None]


def peps() -> Iterator[Event]:
    """In the order they happened, without their times: by those, years apart, the broker would compact most away."""
    with PEPS.open("rb") as file:
        pending = b""
        for chunk in zstandard.ZstdDecompressor(max_window_size=2**27).read_to_iter(file):
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                event = orjson.loads(line)
                yield event["key"].encode(), None if event["value"] is None else orjson.dumps(event["value"])


def made_up(documents: int, events: int) -> Iterator[Event]:
    """Every document once, then changes and, for one event in a thousand, deletes."""
    drawn = random.Random(7)
    for number in range(events):
        key = number if number < documents else drawn.randrange(documents)
        yield f"document-{key}".encode(), None if drawn.random() < 0.001 else document(number)


def replay(servers: str, topic: str) -> Figures:
    return asyncio.run(_replay(servers, topic))


async def _replay(servers: str, topic: str) -> Figures:
    encoder, space = NoEncoder(encoder_of(384)), NoSpace()
    with Cost() as cost:
        async with build(servers, topic, encoder, space, replay=True) as running:
            await running.until_replayed()
    return {"embedded": float(encoder.texts), "written": float(space.written), "s": cost.wall_s}


def measure(bench: Bench) -> Part:
    real = PEPS.is_file() and not bench.quick
    events = list(peps() if real else made_up(*((200, 3_000) if bench.quick else (740, 15_885))))
    live = sum(value is not None for value in dict(events).values())
    plain = sum(value is not None for _, value in events)
    topic = make_topic(bench.services.kafka, 3, events)
    figures = child("benchmarks.history:replay", servers=bench.services.kafka, topic=topic)
    what = (
        f"The {'history of the PEPs' if real else 'made-up history'}: {len(events):,} events in 3 partitions, "
        f"{live:,} documents in the end. A plain consumer embeds every put it reads."
    )
    row: dict[str, Value] = {
        "embedded by a plain consumer": float(plain),
        "embedded by the replay": figures["embedded"],
        "of the plain consumer's": f"1 : {plain / figures['embedded']:.1f}",
        "s, from start to replayed": figures["s"],
    }
    facts = [
        Fact("history: embeddings a document", figures["embedded"] / live, most=1.0, least=1.0),
        Fact("history: objects written a document", figures["written"] / live, most=1.0, least=1.0),
    ]
    return Part([Table("Each document embedded once", what, [row])], facts, details=figures)
