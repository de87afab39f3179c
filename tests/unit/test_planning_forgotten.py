"""What `plan` says of documents that the topic no longer has: how many, or that nobody knows."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from connectors.errors import AccessDenied, CrossfadeError, Unreachable
from connectors.memory.store import MemoryStore, NoFaults
from connectors.protocols import Bounds, Capacity, Space, SpaceSpec, TopicFacts
from streams.key_index import KeyIndexBuilder
from streams.planning import Known, _forgotten
from streams.progress import ProgressRecord
from streams.state import BuildState
from tests.unit.test_carrying import SCHEMA, build, stored

FACTS = TopicFacts("documents", "t1", 2, "compact,delete", 1, 1, 1)
INDEXES = {1: KeyIndexBuilder().build()}


class Refused(NoFaults):
    def __init__(self, error: CrossfadeError | None) -> None:
        self.error = error

    async def before_read(self, space: str) -> None:
        if self.error is not None:
            raise self.error


async def known(error: CrossfadeError | None = None) -> Known:
    store = MemoryStore(Refused(error))
    await store.create_space(SpaceSpec("Docs_v1_1_x", 2, "cosine", "{}", properties=SCHEMA.properties))
    for offset, chunks in ((3, 1), (4, 2), (41, 1)):
        await stored(store.space("Docs_v1_1_x"), f"k{offset}", offset, ["piece"] * chunks)

    def space(_: BuildState) -> Space:
        return store.space("Docs_v1_1_x")

    async def objects(_: BuildState) -> None:
        return None

    def progress(_: BuildState) -> Sequence[ProgressRecord]:
        return ()

    return Known([build("v1")], progress, objects, Capacity(), space)


async def test_those_that_only_the_serving_space_has_are_counted_once() -> None:
    risk = await _forgotten(await known(), FACTS, {1: Bounds(40, 50)}, INDEXES, 1.0)
    assert risk is not None
    assert risk.what.startswith("2 documents that documents no longer has are in the space of docs/v1")
    assert await _forgotten(await known(), FACTS, {1: Bounds(0, 50)}, INDEXES, 1.0) is None


@pytest.mark.parametrize("error", [AccessDenied("Weaviate refuses access"), Unreachable("Weaviate does not answer")])
async def test_a_space_that_cannot_be_read_is_no_space_without_them(error: CrossfadeError) -> None:
    risk = await _forgotten(await known(error), FACTS, {1: Bounds(40, 50)}, INDEXES, 1.0)
    assert risk is not None
    assert f"is not known: {error.message}" in risk.what
