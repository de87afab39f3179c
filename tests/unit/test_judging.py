"""Two spaces asked the same queries: all of them, a few at once, through short trouble; and what no space holds."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from connectors import reserved
from connectors.errors import ConfigurationError, ContentRejected, Refused, Unreachable
from connectors.memory.log import MemoryLog
from connectors.memory.store import MemoryStore
from connectors.protocols import Space, SpaceObject, SpaceSpec, Vectors
from streams import retry
from streams.config import Settings
from streams.config_operation import Gate
from streams.documents import doc_hash, object_id
from streams.migration.evaluate import Comparison, Reply, Scored
from streams.migration.gate import Unjudged
from streams.migration.golden import GoldenQuery, GoldenSet
from streams.migration.judging import AT_ONCE, Ask, evaluate_spaces, holds_of, quality_of
from streams.search.nearest import nearest
from streams.search.questions import Questions
from streams.views import ProgressView, StateView
from streams.wiring import Outside

GOLDEN = GoldenSet("golden", tuple(GoldenQuery(f"q{i}", f"words {i}", {f"d{i}": 1.0}) for i in range(30)))
GATE = Gate(k=3)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_PAUSE_S", 0.0)


def right(query: str) -> Reply:
    return Reply((Scored(f"d{query.removeprefix('words ')}", 0.9),), 1.0)


class Asked:
    """An `Ask` that notes what it was asked, and how many at once."""

    def __init__(self, found: set[int] = frozenset(range(30))) -> None:  # type: ignore[assignment]
        self.queries: list[str] = []
        self.depths: set[int] = set()
        self.under_way = self.most = 0
        self._found = found

    async def __call__(self, query: str, k: int) -> Reply:
        self.queries.append(query)
        self.depths.add(k)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await asyncio.sleep(0)
        self.under_way -= 1
        return right(query) if int(query.removeprefix("words ")) in self._found else Reply((), 1.0)


async def test_every_query_goes_to_both_once_after_one_that_opens_the_connections() -> None:
    old, new = Asked({*range(15)}), Asked()
    heard: list[int] = []
    found = await evaluate_spaces(old, new, GOLDEN, GATE, versions=("v1", "v2"), done=heard.append)
    for asked in (old, new):
        assert sorted(asked.queries) == sorted([query.query for query in GOLDEN.queries] + ["words 0"])
        assert asked.queries[0] == "words 0"
        assert asked.depths == {3}
        assert 1 < asked.most <= AT_ONCE
    assert heard == list(range(1, 31))
    assert found.old is not None
    assert (found.old.version, found.old.recall.value) == ("v1", 0.5)
    assert (found.new.version, found.new.recall.value) == ("v2", 1.0)
    assert found.ratio is not None
    assert found.ratio.value == 2.0


async def test_one_space_alone() -> None:
    found = await evaluate_spaces(None, Asked(), GOLDEN, GATE)
    assert found.old is None
    assert found.new.recall.value == 1.0


async def test_short_trouble_is_waited_out_and_lasting_trouble_is_raised() -> None:
    left = {query.query: 2 for query in GOLDEN.queries}

    async def shaky(query: str, k: int) -> Reply:
        left[query] -= 1
        if left[query] >= 0:
            raise Unreachable("away")
        return right(query)

    async def away(query: str, k: int) -> Reply:
        raise Unreachable("away for good")

    assert (await evaluate_spaces(None, shaky, GOLDEN, GATE)).new.recall.value == 1.0
    with pytest.raises(Unreachable, match="for good"):
        await evaluate_spaces(Asked(), away, GOLDEN, GATE)


async def test_a_query_the_model_cannot_take_is_nothing_found() -> None:
    async def picky(query: str, k: int) -> Reply:
        if query == "words 7":
            raise ContentRejected("too long")
        return right(query)

    found = await evaluate_spaces(None, picky, GOLDEN, GATE)
    assert (found.new.refused, found.new.empty) == (1, 1)
    assert found.new.recall.value == pytest.approx(29 / 30)


async def test_a_failure_ends_the_other_queries() -> None:
    asked: list[str] = []

    async def gone(query: str, k: int) -> Reply:
        asked.append(query)
        await asyncio.sleep(0)
        if query == "words 3":
            raise Refused("its space is gone")
        return right(query)

    with pytest.raises(Refused):
        await evaluate_spaces(None, gone, GOLDEN, GATE)
    before = len(asked)
    await asyncio.sleep(0.01)
    assert len(asked) == before < 15


# what both verbs call


async def test_quality_of_a_gate() -> None:
    async def away(query: str, k: int) -> Reply:
        raise Unreachable("away")

    assert await quality_of(None, away, None, GATE) is None
    assert await quality_of(None, away, GOLDEN, GATE) == Unjudged("away")
    found = await quality_of(None, Asked(), GOLDEN, GATE)
    assert isinstance(found, Comparison)
    assert found.queries == 30


async def test_a_worker_without_the_golden_set_says_that_it_is_the_one(tmp_path: Path) -> None:
    """Whoever asked for the cutover has the file, and would look for it in vain."""
    one = {"topic": "docs", "text": {"fields": ["text"]}, "gate": {"golden": str(tmp_path / "absent.jsonl")}}
    settings = Settings.model_validate({"collections": {"docs": {**one, "versions": {}}}})
    kafka = MemoryLog()
    outside, state, progress = cast(Outside, None), StateView(kafka.tail("state")), ProgressView(kafka.tail("progress"))
    questions = Questions(outside, state, progress, lambda: settings)
    with pytest.raises(ConfigurationError) as raised:
        await questions.queries("docs")
    assert f"the worker that judges, on {socket.gethostname()}, cannot use gate.golden: " in raised.value.message
    assert "absent.jsonl: there is no such file" in raised.value.message
    assert "every worker needs it" in raised.value.next_step


# spaces


def vector(number: int) -> Vectors:
    values = np.zeros(30, dtype=np.float32)
    values[number] = 1
    return values


async def filled(store: MemoryStore, name: str, documents: Sequence[int], chunks: int = 1) -> Space:
    await store.create_space(SpaceSpec(name, 30, "cosine", "{}"))
    space = store.space(name)
    objects = [
        SpaceObject(
            object_id("docs", f"d{number}", chunk),
            {
                reserved.DOC_ID: f"d{number}",
                reserved.DOC_HASH: doc_hash(f"d{number}"),
                reserved.CHUNK: chunk,
                reserved.CHUNKS: chunks,
                reserved.SOURCE_HASH: "0" * 64,
                reserved.PARTITION: 0,
                reserved.OFFSET: number,
                reserved.EVENT_TIME: 0,
                reserved.EMBEDDED_AT: 0,
                reserved.SPACE: "v1@0123456789ab",
                reserved.ORIGIN: "embedded",
            },
            vector(number),
        )
        for number in documents
        for chunk in range(chunks)
    ]
    assert await space.upsert(objects) == {}
    return space


def asking(space: Space) -> Ask:
    async def ask(query: str, k: int) -> Reply:
        hits = await nearest(space, vector(int(query.removeprefix("words "))), k)
        return Reply(tuple(Scored(hit.doc_id, hit.score) for hit in hits), 1.0)

    return ask


async def test_spaces_with_chunks_and_keys_that_no_space_holds() -> None:
    store = MemoryStore()
    old, new = await filled(store, "V1", range(20), chunks=5), await filled(store, "V2", range(25))
    holds = holds_of("docs", new, old)
    found = await evaluate_spaces(asking(old), asking(new), GOLDEN, GATE, holds=holds)
    assert found.old is not None
    assert (found.old.recall.value, found.new.recall.value) == pytest.approx((20 / 30, 25 / 30))
    assert found.unknown == ("d25", "d26", "d27", "d28", "d29"), "no space has them"
    reply = await asking(old)("words 3", 3)
    assert len({hit.key for hit in reply.hits}) == 3
    assert reply.hits[0].key == "d3"


async def test_many_keys_are_looked_for_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.migration.judging.KEYS_AT_ONCE", 4)
    space = await filled(MemoryStore(), "V1", range(10))
    assert await holds_of("docs", space)([f"d{n}" for n in range(30)]) == {f"d{n}" for n in range(10)}
