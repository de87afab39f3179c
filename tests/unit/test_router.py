"""The router: one route for each query, the encoder of that very space, and refusals that name the next command."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest

from connectors import reserved
from connectors.errors import ConfigurationError, ContentRejected, NotFound, Refused
from connectors.memory.store import MemoryStore
from connectors.protocols import Hit, SpaceObject, SpaceSpec
from streams.config import Collection, Settings, envelope_of
from streams.config_embedders import Version
from streams.encoding import Encoder
from streams.search import encoders
from streams.search.nearest import best_chunks
from streams.search.router import Router
from streams.state import BuildState
from streams.versions import Envelope, Stage
from streams.wiring import make_encoder
from tests.views import Views

TEXTS = {"cats": "cats and kittens purr", "dogs": "dogs and puppies bark", "kafka": "a log of events in partitions"}


def settings(seed: int = 0) -> Settings:
    return Settings.model_validate(
        {
            "collections": {
                "docs": {
                    "topic": "docs",
                    "text": {"fields": ["text"]},
                    "versions": {
                        "v1": {"embedder": {"provider": "hashing", "word_ngrams": None}, "dimensions": 64},
                        "v2": {"embedder": {"provider": "hashing", "seed": seed}, "dimensions": 256},
                    },
                }
            }
        }
    )


@dataclass
class World:
    settings: Settings
    store: MemoryStore
    state: Views
    router: Router


def build(version: str, of: Settings, **changes: Any) -> BuildState:
    collection = of.collection("docs")
    envelope = envelope_of(collection, collection.version(version))
    base = BuildState(
        collection="docs",
        version=version,
        epoch=int(version[1:]),
        stage=Stage.READY,
        envelope={},
        fingerprint=envelope.fingerprint,
        space=f"Docs_{version}",
        topic="docs",
        partitions=1,
    )
    return base.model_copy(update=changes)


async def fill(store: MemoryStore, one: BuildState, encoder: Encoder) -> None:
    await store.create_space(SpaceSpec(one.space, encoder.envelope.dimensions, "cosine", one.version))
    vectors = await encoder.encode_documents(list(TEXTS.values()))
    objects = [
        SpaceObject(
            UUID(int=i),
            {
                reserved.DOC_ID: key,
                reserved.DOC_HASH: "h",
                reserved.CHUNK: 0,
                reserved.CHUNKS: 1,
                reserved.SOURCE_HASH: "s",
                reserved.PARTITION: 0,
                reserved.OFFSET: i,
                reserved.TEXT: text,
            },
            vectors[i],
        )
        for i, (key, text) in enumerate(TEXTS.items())
    ]
    assert await store.space(one.space).upsert(objects) == {}


@pytest.fixture
async def world() -> AsyncIterator[World]:
    configured, store, state = settings(), MemoryStore(), Views()
    state.serve(None)
    collection = configured.collection("docs")
    for version in ("v1", "v2"):
        one = build(version, configured)
        state.builds[one.key] = one
        encoder = make_encoder(configured, collection, collection.version(version))
        await fill(store, one, encoder)
        await encoder.close()
    found = World(configured, store, state, Router(_Outside(configured, store), state))
    yield found
    await found.router.close()


@dataclass(frozen=True)
class _Outside:
    settings: Settings
    store: MemoryStore


@dataclass
class Moving:
    """Its configuration is read again while queries run."""

    settings: Settings
    store: MemoryStore


async def test_the_version_that_serves_answers(world: World) -> None:
    world.state.serve("v1")
    answer = await world.router.search("docs", "kittens", 2)
    assert (answer.version, answer.space, answer.fingerprint) == (
        "v1",
        "Docs_v1",
        world.state.builds["docs/v1"].fingerprint,
    )
    assert answer.hits[0].doc_id == "cats"
    assert len(answer.hits) == 2
    assert answer.took_ms > 0
    assert answer.as_json()["hits"][0]["key"] == "cats"  # type: ignore[index, call-overload]
    world.state.serve("v2")
    assert (await world.router.search("docs", "puppies bark", 1)).version == "v2"


async def test_a_named_version_answers_whatever_serves(world: World) -> None:
    world.state.serve("v1")
    assert (await world.router.search("docs", "events", 1, version="v2")).space == "Docs_v2"


async def test_a_query_under_way_finishes_on_the_route_it_resolved(world: World) -> None:
    world.state.serve("v1")
    held, swapped = asyncio.Event(), asyncio.Event()
    route = world.router.resolve("docs")
    plain = route.encoder.encode_query

    async def slow(text: str) -> Any:
        held.set()
        await swapped.wait()
        return await plain(text)

    route.encoder.encode_query = slow  # type: ignore[method-assign]
    query = asyncio.create_task(world.router.search("docs", "kittens", 1))
    await held.wait()
    world.state.serve("v2")
    later = await world.router.search("docs", "kittens", 1)
    swapped.set()
    answer = await query
    assert (answer.version, answer.space) == ("v1", "Docs_v1")
    assert (later.version, later.space) == ("v2", "Docs_v2")


async def test_nothing_serves_yet(world: World) -> None:
    with pytest.raises(Refused, match="serves yet") as raised:
        await world.router.search("docs", "kittens", 1)
    assert raised.value.next_step == "crossfade cutover docs v1"
    world.state.builds.clear()
    with pytest.raises(Refused) as raised:
        world.router.resolve("docs")
    assert "crossfade start docs VERSION" in raised.value.next_step


async def test_unknown_names(world: World) -> None:
    with pytest.raises(NotFound, match="docs"):
        world.router.resolve("nodocs")
    with pytest.raises(NotFound, match="v1"):
        world.router.resolve("docs", "v9")


@pytest.mark.parametrize("stage", [Stage.RETIRED, Stage.ABORTED])
async def test_an_ended_version_has_no_space(world: World, stage: Stage) -> None:
    world.state.builds["docs/v2"] = build("v2", world.settings, stage=stage)
    with pytest.raises(Refused, match=stage.value):
        world.router.resolve("docs", "v2")


async def test_another_model_under_the_same_name_is_refused(world: World) -> None:
    world.state.serve("v2")
    router = Router(_Outside(settings(seed=7), world.store), world.state)
    with pytest.raises(Refused, match="was built with model") as raised:
        await router.search("docs", "kittens", 1)
    assert world.state.builds["docs/v2"].fingerprint in raised.value.message
    await router.close()


async def test_a_version_that_is_not_configured_here_is_refused(world: World) -> None:
    world.state.serve("v2")
    configured = settings()
    del configured.collections["docs"].versions["v2"]
    with pytest.raises(Refused, match="not in this process's configuration"):
        Router(_Outside(configured, world.store), world.state).resolve("docs")


async def test_encoders_and_spaces_are_kept(world: World) -> None:
    world.state.serve("v1")
    first, second = world.router.resolve("docs"), world.router.resolve("docs", "v1")
    assert first.encoder is second.encoder
    assert first.space is second.space
    assert world.router.resolve("docs", "v2").encoder is not first.encoder


async def test_a_fingerprint_is_made_once_for_each_configuration(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every query asks for it, and it costs a quarter of what the router does."""
    made: list[str] = []

    def counted(collection: Collection, version: Version) -> Envelope:
        made.append(collection.name)
        return envelope_of(collection, version)

    monkeypatch.setattr(encoders, "envelope_of", counted)
    outside = Moving(world.settings, world.store)
    router = Router(outside, world.state)
    for _ in range(5):
        router.resolve("docs", "v2")
    assert len(made) == 1
    outside.settings = settings(seed=1)  # the file was changed: another model under the same name
    with pytest.raises(Refused):
        router.resolve("docs", "v2")
    outside.settings = settings()
    router.resolve("docs", "v2")
    assert len(made) == 3
    await router.close()


@pytest.mark.parametrize("limit", [0, -1, 1001])
async def test_limits(world: World, limit: int) -> None:
    world.state.serve("v1")
    with pytest.raises(ConfigurationError):
        await world.router.search("docs", "kittens", limit)


async def test_a_blank_query_is_refused(world: World) -> None:
    world.state.serve("v1")
    with pytest.raises(ContentRejected):
        await world.router.search("docs", "  ", 1)


def hit(doc_id: str, chunk: int, score: float) -> Hit:
    return Hit(uuid4(), doc_id, chunk, score, 2 * (1 - score), {}, 0)


def test_the_best_chunk_of_a_document_wins() -> None:
    hits = [hit("a", 1, 0.8), hit("a", 0, 0.9), hit("b", 3, 0.85), hit("c", 0, 0.1)]
    assert [(h.doc_id, h.chunk) for h in best_chunks(hits, 2)] == [("a", 0), ("b", 3)]
    assert len(best_chunks(hits, 10)) == 3


async def test_chunks_of_one_document_do_not_crowd_others_out(world: World) -> None:
    """A document of many near chunks: the router asks for more until it has enough documents."""
    world.state.serve("v1")
    route = world.router.resolve("docs")
    vector = await route.encoder.encode_query("kittens purr")
    crowd = [
        SpaceObject(
            UUID(int=100 + i),
            {
                reserved.DOC_ID: "long",
                reserved.DOC_HASH: "h2",
                reserved.CHUNK: i,
                reserved.CHUNKS: 20,
                reserved.SOURCE_HASH: "s",
                reserved.PARTITION: 0,
                reserved.OFFSET: 9,
            },
            np.asarray(vector, np.float32),
        )
        for i in range(20)
    ]
    assert await route.space.upsert(crowd) == {}
    answer = await world.router.search("docs", "kittens purr", 3)
    assert [h.doc_id for h in answer.hits][:2] == ["long", "cats"]
    assert len(answer.hits) == 3


async def test_an_endpoint_that_moved_is_asked_at_its_new_address(world: World) -> None:
    """The same model, so the same fingerprint: a worker that read its configuration again must not ask the old one."""

    def at(port: int) -> Settings:
        embedder = {"provider": "openai", "url": f"http://127.0.0.1:{port}/v1", "model": "m"}
        versions = {"v1": {"embedder": embedder, "dimensions": 64}}
        one = {"topic": "docs", "text": {"fields": ["text"]}, "versions": versions}
        return Settings.model_validate({"collections": {"docs": one}})

    outside = Moving(at(1), world.store)
    world.state.builds["docs/v1"] = build("v1", outside.settings)
    router = Router(outside, world.state)
    before = router.resolve("docs", "v1").encoder
    assert router.resolve("docs", "v1").encoder is before, "made once, not for each query"
    outside.settings = at(1)  # read again, and the same
    assert router.resolve("docs", "v1").encoder is before
    outside.settings = at(2)
    after = router.resolve("docs", "v1").encoder
    assert after is not before
    await router.close()
