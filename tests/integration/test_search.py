"""Queries against real spaces while the version that serves changes under them: none fails, none is mixed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from connectors.protocols import Record, SpaceSpec
from connectors.services import Addresses
from streams.config import envelope_of, load, schema_of
from streams.documents import Put, object_id, source_hash
from streams.search.router import Router
from streams.space_objects import Origin, space_object
from streams.state import BuildState, CollectionState
from streams.versions import Stage
from streams.wiring import Outside, make_encoder
from tests.conftest import Unique

DOCUMENTS = {f"d{i}": f"paragraph {i} about subject {i % 7} and matter {i % 11}" for i in range(60)}


@dataclass
class Served:
    """What a StateView would hold; `serving` is changed while queries run."""

    serving: str = "v1"
    builds: dict[str, BuildState] = field(default_factory=dict)

    def collection(self, name: str) -> CollectionState:
        return CollectionState(collection=name, alias="Docs", topic="docs", serving=self.serving)

    def build(self, collection: str, version: str) -> BuildState:
        return self.builds[version]

    def builds_of(self, collection: str) -> list[BuildState]:
        return list(self.builds.values())


@pytest.fixture
async def outside(tmp_path: Path, services: Addresses, unique: Unique) -> AsyncIterator[Outside]:
    path = tmp_path / "crossfade.yaml"
    path.write_text(
        f"kafka: {{bootstrap_servers: '{services.kafka}'}}\n"
        f"weaviate: {{http: 'http://{services.weaviate_http}', grpc: '{services.weaviate_grpc}'}}\n"
        f"collections: {{docs: {{topic: docs, alias: {unique('Docs')}, text: {{fields: [text]}}, versions: {{"
        "v1: {embedder: {provider: hashing, word_ngrams: null}, dimensions: 64}, "
        "v2: {embedder: {provider: hashing}, dimensions: 256}}}}\n"
    )
    out = await Outside.open(load(path))
    yield out
    await out.close()


@pytest.fixture
async def served(outside: Outside) -> AsyncIterator[Served]:
    """Both versions' spaces, filled with the same documents."""
    state = Served()
    collection = outside.settings.collection("docs")
    schema = schema_of(collection)
    for epoch, version in enumerate(collection.versions, 1):
        envelope = envelope_of(collection, collection.version(version))
        space = f"{collection.alias}_{version}_{epoch}_{envelope.fingerprint}"
        await outside.store.create_space(SpaceSpec(space, envelope.dimensions, "cosine", envelope.canonical_json()))
        encoder = make_encoder(outside.settings, collection, collection.version(version))
        vectors = await encoder.encode_documents(list(DOCUMENTS.values()))
        await encoder.close()
        objects = []
        for offset, ((key, text), vector) in enumerate(zip(DOCUMENTS.items(), vectors, strict=True)):
            change = Put(key, (text,), {})
            objects.append(
                space_object(
                    object_id("docs", key, 0),
                    Record(0, offset, 0, key.encode(), b""),
                    change,
                    source_hash(change, schema),
                    chunk=0,
                    texts=[text],
                    vector=vector,
                    origin=Origin("embedded", 0),
                    space_mark=f"{version}@{envelope.fingerprint}",
                    store_text=True,
                )
            )
        assert await outside.store.space(space).upsert(objects) == {}
        state.builds[version] = BuildState(
            collection="docs",
            version=version,
            epoch=epoch,
            stage=Stage.SERVING,
            envelope={},
            fingerprint=envelope.fingerprint,
            space=space,
            topic="docs",
            partitions=1,
        )
    yield state
    for build in state.builds.values():
        await outside.store.drop_space(build.space)


async def test_known_documents_are_found_in_both_spaces(outside: Outside, served: Served) -> None:
    router = Router(outside, served)
    for version in ("v1", "v2"):
        served.serving = version
        answer = await router.search("docs", DOCUMENTS["d41"], 3)
        assert answer.version == version
        assert answer.hits[0].doc_id == "d41"
        assert answer.hits[0].score > 0.99
        assert answer.hits[0].properties["cf_text"] == DOCUMENTS["d41"]
    await router.close()


async def test_queries_through_many_swaps_never_fail_and_never_mix(outside: Outside, served: Served) -> None:
    router = Router(outside, served)
    answered = {"v1": 0, "v2": 0}

    async def ask(i: int) -> None:
        answer = await router.search("docs", f"subject {i % 7} matter {i % 11}", 5)
        marks = {hit.properties["cf_space"] for hit in answer.hits}
        assert marks == {f"{answer.version}@{answer.fingerprint}"}
        assert answer.space == served.builds[answer.version].space
        assert len(answer.hits) == 5
        answered[answer.version] += 1

    async def swap() -> None:
        for i in range(20):
            served.serving = ("v1", "v2")[i % 2]
            await asyncio.sleep(0.005)

    async def clients(begin: int) -> None:
        for i in range(begin, begin + 50):
            await ask(i)

    await asyncio.gather(swap(), *(clients(100 * n) for n in range(8)))
    assert sum(answered.values()) == 400
    assert min(answered.values()) > 0
    await router.close()
