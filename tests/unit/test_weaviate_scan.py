"""The cursor over a whole space: what is asked when, and what an object is made of.

It must never need a server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from weaviate.proto.v1 import search_get_pb2

from connectors import reserved
from connectors.errors import IdentityChanged, Unreachable
from connectors.protocols import Head
from connectors.weaviate import wire, writer
from connectors.weaviate.writer import LONGEST_COUNTED_S, WeaviateSpace, rest_s

WHOLE: Mapping[str, str | int] = {
    reserved.DOC_ID: "d",
    reserved.DOC_HASH: "h",
    reserved.CHUNK: 0,
    reserved.CHUNKS: 2,
    reserved.SOURCE_HASH: "s",
    reserved.PARTITION: 0,
    reserved.OFFSET: 7,
}


def a_result(number: int, properties: Mapping[str, str | int] = WHOLE) -> search_get_pb2.SearchResult:
    result = search_get_pb2.SearchResult()
    result.metadata.id_as_bytes = UUID(int=number).bytes
    for name, value in properties.items():
        if isinstance(value, int):
            result.properties.non_ref_props.fields[name].int_value = value
        else:
            result.properties.non_ref_props.fields[name].text_value = value
    return result


class FakeConnection:
    """Objects 1 to `objects`, a page at a time; from request `fails` on, and for `away` of them, it is away. Keeps the
    cursors that were asked."""

    Search = None

    def __init__(self, objects: int, fails: int | None = None, away: int = 1000) -> None:
        self.stub = self
        self.asked: list[int] = []
        self.silent = False
        self._objects = objects
        self._fails = range(0) if fails is None else range(fails, fails + away)

    def read_deadline(self) -> None:
        return None

    async def rpc(self, _: Any, request: search_get_pb2.SearchRequest, *__: Any, **___: Any) -> Any:
        first = UUID(request.after).int + 1
        self.asked.append(first - 1)
        if len(self.asked) - 1 in self._fails:
            raise Unreachable("away", next_step="wait")
        await asyncio.sleep(3600 if self.silent else 0)
        numbers = range(first, min(first + request.limit, self._objects + 1))
        return search_get_pb2.SearchReply(results=[a_result(number) for number in numbers])


class SpreadConnection(FakeConnection):
    """Objects with these ids."""

    def __init__(self, ids: Sequence[int]) -> None:
        super().__init__(len(ids))
        self._ids = sorted(ids)

    async def rpc(self, _: Any, request: search_get_pb2.SearchRequest, *__: Any, **___: Any) -> Any:
        after = UUID(request.after).int
        self.asked.append(after)
        await asyncio.sleep(3600 if self.silent else 0)
        results = [a_result(number) for number in self._ids if number > after][: request.limit]
        return search_get_pb2.SearchReply(results=results)


@pytest.fixture
def one_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "CURSORS", 1)


def a_space(connection: FakeConnection) -> WeaviateSpace:
    return WeaviateSpace(connection, "Docs_v1_1_x")  # type: ignore[arg-type]


@pytest.mark.usefixtures("one_cursor")
@pytest.mark.parametrize(("objects", "cursors"), [(0, [0]), (5, [0, 2, 4, 5]), (4, [0, 2, 4])])
async def test_a_scan_asks_for_each_page_once_and_for_one_that_is_empty(objects: int, cursors: list[int]) -> None:
    connection = FakeConnection(objects)
    found = [head.uuid.int for page in [page async for page in a_space(connection).scan(2)] for head in page]
    assert found == list(range(1, objects + 1))
    assert connection.asked == cursors


@pytest.mark.usefixtures("one_cursor")
async def test_the_next_page_is_on_its_way_while_the_caller_has_this_one() -> None:
    connection = FakeConnection(6)
    pages = 0
    async for _ in a_space(connection).scan(2):
        pages += 1
        assert len(connection.asked) == pages + 1


QUARTERS = [number << 126 for number in range(4)]
LAST = (1 << 128) - 1
IDS = st.sets(st.one_of(st.integers(1, LAST), *(st.integers(max(1, at - 2), at + 2) for at in QUARTERS), st.just(LAST)))


@given(IDS, st.integers(1, 4))
async def test_cursors_in_parts_of_the_ids_find_every_object_once(ids: set[int], page: int) -> None:
    connection = SpreadConnection(list(ids))
    found = [head.uuid.int for page in [page async for page in a_space(connection).scan(page)] for head in page]
    assert sorted(found) == sorted(ids)
    assert connection.asked[:4] == QUARTERS, "all at once"
    assert len(connection.asked) <= len(ids) / page + 2 * 4


async def test_who_leaves_a_scan_of_several_cursors_leaves_nothing_running() -> None:
    connection = SpreadConnection([number << 120 for number in range(1, 256)])
    scan = a_space(connection).scan(2)
    await anext(scan)
    connection.silent = True
    await anext(scan)
    await scan.aclose()  # type: ignore[attr-defined]
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "PAGE_PAUSES_S", (0.0, 0.0, 0.0))


@pytest.mark.usefixtures("one_cursor", "at_once")
async def test_a_page_that_fails_for_a_moment_is_asked_for_again() -> None:
    connection = FakeConnection(6, fails=1, away=3)
    found = [head.uuid.int for page in [page async for page in a_space(connection).scan(2)] for head in page]
    assert found == [1, 2, 3, 4, 5, 6]
    assert connection.asked == [0, 2, 2, 2, 2, 4, 6]


@pytest.mark.usefixtures("one_cursor", "at_once")
async def test_a_page_that_goes_on_failing_is_raised_after_those_before_it() -> None:
    scan = a_space(FakeConnection(6, fails=1)).scan(2)
    assert [head.uuid.int for head in await anext(scan)] == [1, 2]
    with pytest.raises(Unreachable):
        await anext(scan)


def test_the_store_rests_so_that_a_scan_takes_its_share_of_the_time() -> None:
    assert rest_s(0.02, 0.25) == pytest.approx(0.06)
    assert rest_s(0.02, 1.0) == 0.0
    assert rest_s(30.0, 0.25) == 3 * LONGEST_COUNTED_S, "a store that hung makes no scan rest for minutes"


async def test_a_scan_that_rests_finds_the_same_and_asks_only_after_its_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    connection, asked_before_rest = FakeConnection(5), list[int]()

    def rest(took_s: float, share: float) -> float:
        asked_before_rest.append(len(connection.asked))
        return 0.001

    monkeypatch.setattr(writer, "rest_s", rest)
    pages = [[head.uuid.int for head in page] async for page in a_space(connection).scan(2, 0.5)]
    assert pages == [[1, 2], [3, 4], [5]]
    assert connection.asked == [0, 2, 4, 5]
    assert asked_before_rest == [1, 2, 3]


@pytest.mark.usefixtures("one_cursor")
async def test_who_leaves_a_scan_leaves_nothing_running() -> None:
    connection = FakeConnection(6)
    scan = a_space(connection).scan(2)
    await anext(scan)
    connection.silent = True
    await anext(scan)
    assert len(asyncio.all_tasks()) == 2
    await scan.aclose()  # type: ignore[attr-defined]
    assert asyncio.all_tasks() == {asyncio.current_task()}


def test_a_head_is_read_as_its_properties_are() -> None:
    assert wire.head_of(a_result(3)) == Head(UUID(int=3), "d", "h", 0, 2, "s", 0, 7)
    assert wire.head_of(a_result(3)) == reserved.head_of(UUID(int=3), wire.properties_of(a_result(3)))


@pytest.mark.parametrize("name", reserved.HEAD)
def test_an_object_without_one_of_ours_was_written_by_somebody_else(name: str) -> None:
    with pytest.raises(IdentityChanged, match=name):
        wire.head_of(a_result(3, {key: value for key, value in WHOLE.items() if key != name}))
    other: str | int = "text" if isinstance(WHOLE[name], int) else 5
    with pytest.raises(IdentityChanged):
        wire.head_of(a_result(3, {**WHOLE, name: other}))
