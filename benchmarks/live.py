"""Live first: how soon an event can be found, while nothing else is to be done and beside a replay at full speed.

The whole pipeline on a real topic and an endpoint that is the limit; into a space that does nothing, and into Weaviate,
which the replay loads too. The events come from a process of their own, and each carries the moment it was sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

import orjson
from confluent_kafka import Producer

from benchmarks.gpu_server import CHARS_PER_TOKEN, DIMENSIONS, MODEL, Model, quantile
from benchmarks.harness import ROOT, Bench, Control, Figures, Part, Table, Value, endpoint, median, ratio, spread
from benchmarks.pipeline import SCHEMA, NoSpace, Running, build, make_topic
from benchmarks.workload import texts
from connectors.embedders.endpoint import Endpoint
from connectors.embedders.pool import EndpointPool
from connectors.embedders.tei import TeiEmbedder
from connectors.protocols import Space, SpaceObject, SpaceSpec, VectorStore
from connectors.services import Addresses
from connectors.weaviate.settings import WeaviateSettings
from connectors.weaviate.spaces import open_store
from streams.encoding import Encoder
from streams.garbage import collect_seldom
from streams.timed_space import Latencies, TimedSpace
from streams.versions import Envelope

A10G = Model(documents_per_s=1500)
EVENTS_PER_S, LIVE_DOCUMENTS = 100.0, 1000
SEARCH_S, TURN_S, BETWEEN_S = 6.0, 5.0, 1.0
NOTHING, WEAVIATE = "a space that does nothing", "Weaviate"


def _record(seed: int, text: str, sent_ns: int) -> bytes:
    return orjson.dumps({"title": str(seed), "text": text, "lang": str(sent_ns), "year": 2000})


def _documents(count: int) -> Iterator[tuple[bytes, bytes]]:
    feed = texts(1)
    return ((f"document-{number:09d}".encode(), _record(number, next(feed), 0)) for number in range(count))


def _send(servers: str, topic: str) -> None:
    """Events at random moments, EVENTS_PER_S of them, until it is ended."""
    producer = Producer({"bootstrap.servers": servers, "linger.ms": 0, "partitioner": "murmur2_random"})
    feed, drawn, number = texts(2), random.Random(2), 0
    next_s = time.monotonic()
    while True:
        next_s += drawn.expovariate(EVENTS_PER_S)
        time.sleep(max(0.0, next_s - time.monotonic()))
        key = f"live-{number % LIVE_DOCUMENTS}"
        # the moment it was due: when this process got no CPU in time, the event is late all the same
        producer.produce(topic, key=key, value=_record(number, next(feed), int(1e9 * next_s)))
        producer.poll(0)
        number += 1


@contextlib.contextmanager
def _events(servers: str, topic: str) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.live", servers, topic], cwd=ROOT)
    try:
        yield
    finally:
        process.kill()
        process.wait()


@dataclass(slots=True)
class Found:
    """Of the events found since the last `take`: seconds from being sent to being acknowledged by the space."""

    taken_s: list[float] = field(default_factory=list)
    written: int = 0

    def take(self) -> tuple[list[float], int]:
        taken, self.taken_s = (self.taken_s, self.written), []
        self.written = 0
        return taken


class _Watched(TimedSpace):
    def __init__(self, inner: Space, found: Found) -> None:
        super().__init__(inner, Latencies())
        self._found = found

    async def upsert(self, objects: Sequence[SpaceObject]) -> Mapping[UUID, Exception]:
        refused = await super().upsert(objects)
        now_s = time.monotonic()
        for one in objects:
            if sent_ns := int(str(one.properties["lang"])):
                self._found.taken_s.append(now_s - sent_ns / 1e9)
            else:
                self._found.written += 1
        return refused


async def _longest_stall_s(stop: asyncio.Event) -> float:
    """How long the event loop once did not come round to what was due."""
    longest_s = 0.0
    while not stop.is_set():
        due_s = time.monotonic() + 0.001
        await asyncio.sleep(0.001)
        longest_s = max(longest_s, time.monotonic() - due_s)
    return longest_s


async def _turn(found: Found, control: Control, seconds: float) -> Figures:
    stop = asyncio.Event()
    stall = asyncio.ensure_future(_longest_stall_s(stop))
    control.reset()
    found.take()
    await asyncio.sleep(seconds)
    taken_s, written = found.take()
    stop.set()
    return {
        "events": float(len(taken_s)),
        "p50_ms": 1000 * (quantile(taken_s, 0.5) or 0.0),
        "p99_ms": 1000 * (quantile(taken_s, 0.99) or 0.0),
        "replayed_per_s": written / seconds,
        "busy": control.books()["busy"],
        "stall_ms": 1000 * await stall,
    }


def _hold(running: Running, *, held: bool) -> None:
    running.state = running.state.model_copy(update={"paused": "replay" if held else None})


@contextlib.asynccontextmanager
async def _space(name: str, services: Addresses, description: str) -> AsyncIterator[tuple[Space, VectorStore | None]]:
    if name == NOTHING:
        yield NoSpace(), None
        return
    store = await open_store(WeaviateSettings(services.weaviate_http, services.weaviate_grpc))
    space = f"Bench_{uuid.uuid4().hex[:12]}"
    await store.create_space(SpaceSpec(space, DIMENSIONS, "cosine", description, properties=SCHEMA.properties))
    try:
        yield store.space(space), store
    finally:
        await store.drop_space(space)
        await store.close()


async def _pairs(bench: Bench, name: str, control: Control) -> dict[str, list[Figures]]:
    """One build, whose replay is held and let go in turns, while the events come."""
    collect_seldom()  # as a worker does: else the whole process stands still while garbage is looked for
    pairs, seconds = bench.sized(5, 1), TURN_S if not bench.quick else 2.0
    envelope = Envelope("tei", MODEL, "1", DIMENSIONS, SCHEMA.fields)
    encoder = Encoder(envelope, EndpointPool([Endpoint("endpoint", TeiEmbedder(control.url))]))
    topic = make_topic(bench.services.kafka, 1, _documents(bench.sized(80_000, 20_000)))
    found = Found()
    quiet: list[Figures] = []
    beside: list[Figures] = []
    async with (
        _space(name, bench.services, envelope.canonical_json()) as (space, store),
        build(bench.services.kafka, topic, encoder, _Watched(space, found), replay=True, store=store) as running,
    ):
        with _events(bench.services.kafka, topic):
            await running.until(lambda one: one.resolved > 0 and bool(found.written))
            await asyncio.sleep(SEARCH_S)
            for number in range(pairs):
                for held in (True, False) if number % 2 else (False, True):
                    _hold(running, held=held)
                    await asyncio.sleep(BETWEEN_S)
                    (quiet if held else beside).append(await _turn(found, control, seconds))
            if running.state.replayed:
                raise RuntimeError("the replay was over before the last turn: give it more documents")
    return {"quiet": quiet, "beside": beside}


def measure(bench: Bench) -> Part:
    rows: list[dict[str, Value]] = []
    details: dict[str, object] = {}
    for name in (NOTHING, WEAVIATE):
        with endpoint(A10G) as control:
            figures = asyncio.run(_pairs(bench, name, control))
        quiet, beside = figures["quiet"], figures["beside"]
        details[name] = figures
        rows.append(
            {
                "into": name,
                "p50 quiet, ms": median(quiet, "p50_ms"),
                "p99 quiet, ms": median(quiet, "p99_ms"),
                "p50 beside a replay, ms": median(beside, "p50_ms"),
                "p99 beside a replay, ms": median(beside, "p99_ms"),
                "p50 beside / quiet": str(ratio(beside, quiet, "p50_ms")),
                "p99 beside / quiet (at most 1.5)": str(ratio(beside, quiet, "p99_ms")),
                "replayed documents/s meanwhile": str(spread(beside, "replayed_per_s")),
                "endpoint busy meanwhile": str(spread(beside, "busy")),
                "longest stall of the event loop, ms, quiet": str(spread(quiet, "stall_ms")),
                "beside": str(spread(beside, "stall_ms")),
            }
        )
    what = (
        f"From an event's being sent to the space's acknowledgement of its object: {EVENTS_PER_S:g} events a second at "
        f"random moments, texts of about {A10G.tokens} tokens ({CHARS_PER_TOKEN} characters each), through Kafka, the "
        f"live lane and an endpoint of {A10G.documents_per_s:,.0f} documents/s with {A10G.slots} slots, first come "
        f"first served. One build, its replay held and let go in turns of {TURN_S:g} s; the first {SEARCH_S:g} s of "
        "the replay, in which the endpoint's best concurrency is found, are not counted. Median of the turns, with the "
        "smallest and the largest."
    )
    return Part([Table("Live first: from sent to found", what, rows)], details=details)


if __name__ == "__main__":
    _send(*sys.argv[1:])
