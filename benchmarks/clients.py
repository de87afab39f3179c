"""The clients measured side by side: a plain serial loop, a plain `asyncio.gather` loop, and Crossfade's encoder.

The plain ones are what one writes first, and decently: one connection pool, batches, every request tried again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial

import httpx
import numpy as np
import orjson

from benchmarks.gpu_server import DIMENSIONS, MODEL
from benchmarks.workload import Feed, Window
from streams.build import Limits as LaneLimits
from streams.config import Settings
from streams.encoding import Urgency
from streams.wiring import make_encoder

BATCH = 32
GATHERED = 16  # requests at once
TRIES = 10
TIMEOUT_S = 30.0

Encode = Callable[[Sequence[str], bool, Callable[[Sequence[int]], None]], Awaitable[None]]
"""Texts, whether somebody waits for them, and who hears which of them have their vectors."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of the endpoint, as its user knows them; 0 is none. Only Crossfade has a setting for them.

    `live_slots` of the endpoint's `slots` are configured for live events alone, the others for the replay.
    """

    requests_per_minute: float = 0.0
    tokens_per_minute: float = 0.0
    live_slots: int = 0
    slots: int = 0


@dataclass(frozen=True, slots=True)
class Client:
    """`replay` works off a feed of windows of `window` texts, notes what it has done as it would be stored, and returns
    at its end; `live` embeds one text of now."""

    window: int
    replay: Callable[[Feed], Awaitable[None]]
    live: Callable[[str], Awaitable[None]]


Open = Callable[[str, Limits], AbstractAsyncContextManager[Client]]


class _Plain:
    """One request after the other is right, and tried again when it failed."""

    def __init__(self, url: str) -> None:
        self._client = httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S, trust_env=False)

    async def embed(self, texts: Sequence[str]) -> None:
        body = orjson.dumps({"inputs": texts})
        for attempt in range(TRIES):
            wait_s = min(0.5 * 2**attempt, 8.0)
            try:
                reply = await self._client.post("/embed", content=body, headers={"Content-Type": "application/json"})
            except httpx.TransportError:
                await asyncio.sleep(wait_s)
                continue
            if reply.status_code == 200:
                vectors = np.array(orjson.loads(reply.content), np.float32)
                assert vectors.shape == (len(texts), DIMENSIONS)
                return
            await asyncio.sleep(float(reply.headers.get("retry-after", wait_s)))
        raise RuntimeError(f"no answer in {TRIES} tries")

    async def live(self, text: str) -> None:
        await self.embed([text])

    async def close(self) -> None:
        await self._client.aclose()


@asynccontextmanager
async def serial(url: str, limits: Limits) -> AsyncIterator[Client]:
    """Batch after batch."""
    plain = _Plain(url)

    async def replay(feed: Feed) -> None:
        while window := feed.take():
            await plain.embed(window.texts)
            feed.done(window.numbers)

    yield Client(BATCH, replay, plain.live)
    await plain.close()


@asynccontextmanager
async def gather(url: str, limits: Limits) -> AsyncIterator[Client]:
    """So many batches at once, and when all have come, the next ones."""
    plain = _Plain(url)

    async def replay(feed: Feed) -> None:
        while window := feed.take():
            texts = window.texts
            await asyncio.gather(*(plain.embed(texts[at : at + BATCH]) for at in range(0, len(texts), BATCH)))
            feed.done(window.numbers)

    yield Client(GATHERED * BATCH, replay, plain.live)
    await plain.close()


def by_groups(encode: Encode, group: int, at_once: int) -> Client:
    """A client whose encoder makes batches, limits and retries itself, and is given `at_once` groups at a time."""

    def note(feed: Feed, window: Window, indexes: Sequence[int]) -> None:
        feed.done(window.numbers[index] for index in indexes)

    async def replay(feed: Feed) -> None:
        async def lane() -> None:
            while window := feed.take():
                await encode(window.texts, False, partial(note, feed, window))

        async with asyncio.TaskGroup() as lanes:
            for _ in range(at_once):
                lanes.create_task(lane())

    async def live(text: str) -> None:
        await encode([text], True, lambda _: None)

    return Client(group, replay, live)


@asynccontextmanager
async def crossfade(url: str, limits: Limits) -> AsyncIterator[Client]:
    """The encoder that agents use, made from a configuration as theirs is."""
    embedder = {"provider": "tei", "url": url, "model": MODEL, "max_batch": BATCH, "timeout_s": TIMEOUT_S}
    for name in ("requests_per_minute", "tokens_per_minute"):
        if value := getattr(limits, name):
            embedder[name] = value
    version: dict[str, object] = {"embedder": embedder, "dimensions": DIMENSIONS}
    if share := limits.live_slots:
        version["embedder"] = {**embedder, "lanes": ["live", "query"], "concurrency": share}
        version["fallbacks"] = [{**embedder, "lanes": ["replay"], "concurrency": limits.slots - share}]
    raw = {"collections": {"docs": {"topic": "docs", "text": {"fields": ["text"]}, "versions": {"v1": version}}}}
    settings = Settings.model_validate(raw)
    collection = settings.collection("docs")
    encoder = make_encoder(settings, collection, collection.version("v1"))

    async def encode(texts: Sequence[str], urgent: bool, ready: Callable[[Sequence[int]], None]) -> None:
        urgency = Urgency(lane="live" if urgent else "rest", going=lambda: True)
        encoded = await encoder.encode_each(texts, urgency, lambda indexes, _: ready(indexes))
        assert not encoded.rejected

    limits_of_lane = LaneLimits()
    requests_of_a_group = -(-limits_of_lane.batch // encoder.pool.max_batch)
    # as many as EmbedAgent has under way
    at_once = limits_of_lane.concurrency + -(-encoder.pool.most_in_flight // requests_of_a_group)
    yield by_groups(encode, limits_of_lane.batch, at_once)
    await encoder.close()


CLIENTS: Mapping[str, Open] = {"serial": serial, "gather": gather, "crossfade": crossfade}
