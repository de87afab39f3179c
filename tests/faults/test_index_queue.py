"""A Weaviate that indexes behind the writes: what waits is told, is not found by a search, and becomes fewer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest

from connectors.errors import CrossfadeError
from connectors.protocols import SpaceSpec
from connectors.services import ports, weaviate
from connectors.services.state import stop
from connectors.weaviate.settings import WeaviateSettings
from connectors.weaviate.spaces import WeaviateStore, open_store
from streams.config_operation import Gate
from streams.migration.gate import Health, Verdict, judge
from tests.contract.test_store import stored

OBJECTS = 500
PATIENCE_S = 60.0


def quiet(_: str) -> None:
    """Nobody waits for these lines."""


@pytest.fixture
async def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[WeaviateStore]:
    monkeypatch.setitem(weaviate.SETTINGS, "ASYNC_INDEXING", "true")
    at = ports.choose(weaviate.PORTS, {})
    process = weaviate.start(tmp_path, weaviate.binary(quiet), at)
    try:
        settings = WeaviateSettings(f"127.0.0.1:{at['weaviate_http']}", f"127.0.0.1:{at['weaviate_grpc']}")
        opened = await _opened(settings)
        yield opened
        await opened.close()
    finally:
        stop(process)


async def _opened(settings: WeaviateSettings) -> WeaviateStore:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                return await open_store(settings)
            except CrossfadeError:
                await asyncio.sleep(0.2)  # polled: a server that starts tells nobody


async def test_what_waits_for_the_index_is_told(store: WeaviateStore) -> None:
    name = f"T{uuid4().hex}"
    await store.create_space(SpaceSpec(name, 64, "cosine", "{}"))
    space = store.space(name)
    assert await space.indexing_queue() == 0
    drawn = np.random.default_rng(1)
    objects = [stored(f"d{i}", vector=drawn.normal(size=64)) for i in range(OBJECTS)]
    assert await space.upsert(objects) == {}

    queued = await space.indexing_queue()
    assert 0 < queued <= OBJECTS
    assert await space.search(objects[-1].vector, 1) == [], "what waits is not found: this is why the gate looks"
    assert len(await space.heads([obj.uuid for obj in objects])) == OBJECTS, "but it is there"
    health = Health(OBJECTS, 1.0, 0, 0, 0, queued)
    assert judge(Gate(), None, health).verdict is Verdict.FAIL

    async with asyncio.timeout(PATIENCE_S):
        while True:
            if not await space.indexing_queue():
                break
            await asyncio.sleep(0.2)  # polled: the server tells nobody
    assert [hit.doc_id for hit in await space.search(objects[-1].vector, 1)] == [f"d{OBJECTS - 1}"]
