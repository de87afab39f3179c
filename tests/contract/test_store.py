"""What every `VectorStore` promises, over the in-memory one and a real Weaviate.

It must never look inside a store: only the Protocol, and the errors it names.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from itertools import pairwise
from uuid import NAMESPACE_URL, UUID, uuid4, uuid5

import numpy as np
import pytest

from connectors import reserved
from connectors.errors import ConfigurationError, ContentRejected, IdentityChanged, NotFound, Refused, WrongModel
from connectors.memory.store import MemoryStore
from connectors.protocols import JSON, Condition, Head, Operator, Scalar, Space, SpaceObject, SpaceSpec, VectorStore
from connectors.services import Addresses
from connectors.weaviate.settings import WeaviateSettings
from connectors.weaviate.spaces import open_store

USER = {"body": "text", "lang": "keyword", "year": "int", "rank": "number", "open": "bool", "day": "date"}


@pytest.fixture(params=["memory", "weaviate"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[VectorStore]:
    opened: VectorStore
    if request.param == "memory":
        opened = MemoryStore()
    else:
        at: Addresses = request.getfixturevalue("services")
        opened = await open_store(WeaviateSettings(http=at.weaviate_http, grpc=at.weaviate_grpc))
    yield opened
    await opened.close()


@pytest.fixture
async def names(store: VectorStore) -> AsyncIterator[Callable[[], str]]:
    """A factory of names for spaces and aliases; what was made under them is removed at the end."""
    given: list[str] = []

    def name() -> str:
        given.append(f"T{uuid4().hex}")
        return given[-1]

    yield name
    for one in given:
        await store.drop_alias(one)
        await store.drop_space(one)


MakeSpace = Callable[..., Awaitable[Space]]


@pytest.fixture
async def make_space(store: VectorStore, names: Callable[[], str]) -> MakeSpace:
    async def make(dimensions: int = 4, metric: str = "cosine", properties: Mapping[str, str] | None = None) -> Space:
        spec = SpaceSpec(names(), dimensions, metric, '{"envelope": 1}', properties=properties or {})
        await store.create_space(spec)
        return store.space(spec.name)

    return make


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def stored(
    doc_id: str,
    chunk: int = 0,
    *,
    chunks: int = 1,
    offset: int = 7,
    vector: object = None,
    user: Mapping[str, JSON] | None = None,
) -> SpaceObject:
    properties: dict[str, JSON] = {
        reserved.DOC_ID: doc_id,
        reserved.DOC_HASH: sha(doc_id),
        reserved.CHUNK: chunk,
        reserved.CHUNKS: chunks,
        reserved.SOURCE_HASH: sha("source of " + doc_id),
        reserved.PARTITION: 3,
        reserved.OFFSET: offset,
        reserved.EVENT_TIME: 1_700_000_000_123,
        reserved.EMBEDDED_AT: 1_700_000_001_456,
        reserved.SPACE: "v1@0123456789ab",
        reserved.ORIGIN: "embedded",
        reserved.TEXT: f"text of {doc_id}",
        **(user or {}),
    }
    values = np.array([1, 0, 0, 0] if vector is None else vector, dtype=np.float32)
    return SpaceObject(uuid5(NAMESPACE_URL, f"{doc_id}#{chunk}"), properties, values)


async def everything(space: Space, page: int = 2000) -> list[Head]:
    return [head async for heads in space.scan(page) for head in heads]


async def ids(space: Space) -> set[UUID]:
    return {head.uuid for head in await everything(space)}


async def test_create_is_idempotent_for_the_same_description_only(store: VectorStore, names: Callable[[], str]) -> None:
    description = '{"model": "m", "größe": 384,\n  "note": "verbatim  \\u0000"}'
    spec = SpaceSpec(names(), 4, "cosine", description)
    assert await store.description(spec.name) is None
    await store.create_space(spec)
    await store.create_space(spec)
    assert await store.description(spec.name) == description
    with pytest.raises(Refused):
        await store.create_space(SpaceSpec(spec.name, 4, "cosine", "another"))
    assert await store.description(spec.name) == description


@pytest.mark.parametrize("quantization", ["none", "sq", "bq", "rq", "pq"])
async def test_every_quantization_can_be_had(store: VectorStore, names: Callable[[], str], quantization: str) -> None:
    name = names()
    await store.create_space(SpaceSpec(name, 4, "cosine", "{}", quantization))
    assert await store.space(name).upsert([stored("a")]) == {}
    assert [hit.doc_id for hit in await store.space(name).search(np.array([1, 0, 0, 0], np.float32), 5)] == ["a"]


@pytest.mark.parametrize(
    ("change", "properties"),
    [
        ({"name": "lower"}, {}),
        ({"name": "With space"}, {}),
        ({"metric": "manhattan"}, {}),
        ({"quantization": "zip"}, {}),
        ({"dimensions": 0}, {}),
        ({}, {"cf_mine": "text"}),
        ({}, {"Upper": "text"}),
        ({}, {"id": "text"}),
        ({}, {"tags": "list"}),
    ],
)
async def test_a_spec_that_cannot_be_is_refused(
    store: VectorStore, names: Callable[[], str], change: dict[str, object], properties: dict[str, str]
) -> None:
    good = {"name": names(), "dimensions": 4, "metric": "cosine", "quantization": "none"}
    args = {**good, **change}
    spec = SpaceSpec(
        str(args["name"]),
        int(str(args["dimensions"])),
        str(args["metric"]),
        "{}",
        str(args["quantization"]),
        properties,
    )
    with pytest.raises(ConfigurationError) as caught:
        await store.create_space(spec)
    assert caught.value.next_step
    assert str(args["name"]) not in await store.spaces()


async def test_a_space_tells_the_properties_it_was_made_with(store: VectorStore, make_space: MakeSpace) -> None:
    space = await make_space(properties=USER)
    assert await store.properties(space.name) == USER
    await store.drop_space(space.name)
    with pytest.raises(IdentityChanged):
        await store.properties(space.name)


async def test_spaces_lists_what_exists_and_drop_is_idempotent(store: VectorStore, make_space: MakeSpace) -> None:
    first, second = await make_space(), await make_space()
    assert {first.name, second.name} <= set(await store.spaces())
    await store.drop_space(first.name)
    await store.drop_space(first.name)
    assert first.name not in await store.spaces()
    assert second.name in await store.spaces()
    assert await store.description(first.name) is None


async def test_an_alias_is_created_moved_and_dropped(
    store: VectorStore, make_space: MakeSpace, names: Callable[[], str]
) -> None:
    alias, first, second = names(), await make_space(), await make_space()
    assert await store.alias_target(alias) is None
    with pytest.raises(NotFound):
        await store.point_alias(alias, names())
    assert await store.alias_target(alias) is None
    await store.point_alias(alias, first.name)
    await store.point_alias(alias, first.name)
    assert await store.alias_target(alias) == first.name
    await store.point_alias(alias, second.name)
    assert await store.alias_target(alias) == second.name
    with pytest.raises(NotFound):
        await store.point_alias(alias, names())
    assert await store.alias_target(alias) == second.name
    assert await store.description(alias) is None, "an alias is not a space"
    assert alias not in await store.spaces()
    await store.drop_space(alias)
    assert second.name in await store.spaces(), "dropping by the name of an alias must not reach the space"
    await store.drop_alias(alias)
    await store.drop_alias(alias)
    assert await store.alias_target(alias) is None
    assert second.name in await store.spaces()


async def test_an_alias_and_a_space_never_share_a_name(
    store: VectorStore, make_space: MakeSpace, names: Callable[[], str]
) -> None:
    space, other, alias = await make_space(), await make_space(), names()
    with pytest.raises(Refused):
        await store.point_alias(space.name, other.name)
    await store.point_alias(alias, space.name)
    with pytest.raises(Refused):
        await store.create_space(SpaceSpec(alias, 4, "cosine", '{"envelope": 1}'))


async def test_heads_give_back_every_reserved_property(make_space: MakeSpace) -> None:
    space = await make_space()
    obj = stored("a", 2, chunks=5, offset=2**53)
    assert await space.upsert([obj]) == {}
    expected = Head(obj.uuid, "a", sha("a"), 2, 5, sha("source of a"), 3, 2**53)
    assert await space.heads([obj.uuid]) == {obj.uuid: expected}
    assert await everything(space) == [expected]
    assert await space.properties([obj.uuid]) == {obj.uuid: obj.properties}


async def test_ids_that_look_alike_stay_apart(make_space: MakeSpace) -> None:
    space = await make_space()
    look_alike = [
        "caf\u00e9",
        "cafe\u0301",
        "Doc",
        "doc",
        "doc ",
        " doc",
        "do c",
        "doc\t",
        "doc\n",
        "dоc",
        "文書/1?x=#2",
        "👩‍🔬",
        "a\x00b",
        "'\"\\",
    ]
    objects = [stored(doc_id) for doc_id in look_alike]
    assert await space.upsert(objects) == {}
    assert await space.count() == len(look_alike)
    heads = await space.heads([obj.uuid for obj in objects])
    assert [heads[obj.uuid].doc_id for obj in objects] == look_alike
    assert [heads[obj.uuid].doc_hash for obj in objects] == [sha(doc_id) for doc_id in look_alike]
    assert await space.delete_chunks([sha("doc")], 0) == 1
    assert {head.doc_id for head in await everything(space)} == set(look_alike) - {"doc"}


async def test_an_upsert_replaces_what_has_the_same_id(make_space: MakeSpace) -> None:
    space = await make_space(properties=USER)
    await space.upsert([stored("a", offset=1, user={"lang": "en", "year": 1999}), stored("b", offset=1)])
    newer = stored("a", offset=2, vector=[0, 1, 0, 0], user={"year": 2001})
    assert await space.upsert([newer]) == {}
    assert await space.count() == 2
    head = (await space.heads([newer.uuid], vectors=True))[newer.uuid]
    assert head.offset == 2
    assert head.vector is not None
    assert head.vector.tolist() == [0, 1, 0, 0]
    assert (await space.properties([newer.uuid]))[newer.uuid] == newer.properties, "the old properties are gone"
    hits = await space.search(np.array([0, 1, 0, 0], np.float32), 2)
    assert [hit.doc_id for hit in hits] == ["a", "b"]


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2-squared"])
async def test_vectors_come_back_bit_for_bit(make_space: MakeSpace, metric: str) -> None:
    space = await make_space(dimensions=33, metric=metric)
    rng = np.random.default_rng(5)
    objects = [stored(f"d{i}", vector=rng.normal(size=33) * 10.0 ** (i - 4)) for i in range(8)]
    assert await space.upsert(objects) == {}
    heads = await space.heads([obj.uuid for obj in objects], vectors=True)
    for obj in objects:
        vector = heads[obj.uuid].vector
        assert vector is not None
        assert vector.dtype == np.float32
        assert vector.tobytes() == obj.vector.tobytes()
    without = await space.heads([objects[0].uuid])
    assert without[objects[0].uuid].vector is None


async def test_heads_of_missing_ids_are_absent(make_space: MakeSpace) -> None:
    space = await make_space()
    here = stored("here")
    await space.upsert([here])
    absent = [uuid4() for _ in range(700)]
    assert set(await space.heads([*absent, here.uuid, here.uuid])) == {here.uuid}
    assert await space.heads([]) == {}
    assert await space.properties(absent) == {}


async def test_delete_is_idempotent_and_exact(make_space: MakeSpace) -> None:
    space = await make_space()
    objects = [stored(f"d{i}") for i in range(20)]
    await space.upsert(objects)
    doomed = [obj.uuid for obj in objects[:12]]
    await space.delete([*doomed, uuid4()])
    await space.delete(doomed)
    await space.delete([])
    assert await ids(space) == {obj.uuid for obj in objects[12:]}
    assert await space.heads(doomed) == {}
    assert await space.count() == 8
    hits = await space.search(np.array([1, 0, 0, 0], np.float32), 50)
    assert {hit.uuid for hit in hits} == {obj.uuid for obj in objects[12:]}


async def test_erase_is_idempotent_and_exact(make_space: MakeSpace) -> None:
    space = await make_space()
    objects = [stored(f"d{i}") for i in range(20)]
    await space.upsert(objects)
    doomed = [obj.uuid for obj in objects[:12]]
    await space.erase([*doomed, uuid4()])
    await space.erase(doomed)
    await space.erase([])
    assert await ids(space) == {obj.uuid for obj in objects[12:]}
    assert await space.heads(doomed) == {}
    assert await space.count() == 8
    hits = await space.search(np.array([1, 0, 0, 0], np.float32), 50)
    assert {hit.uuid for hit in hits} == {obj.uuid for obj in objects[12:]}


async def test_delete_chunks_takes_the_late_chunks_of_these_documents(make_space: MakeSpace) -> None:
    space = await make_space()
    await space.upsert([stored(doc, chunk, chunks=6) for doc in ("a", "b", "c") for chunk in range(6)])
    assert await space.delete_chunks([sha("a"), sha("b"), sha("absent")], 4) == 4
    assert await space.delete_chunks([sha("a"), sha("b")], 4) == 0
    assert await space.delete_chunks([], 0) == 0
    left = {(head.doc_id, head.chunk) for head in await everything(space)}
    assert left == {(d, c) for d in ("a", "b") for c in range(4)} | {("c", c) for c in range(6)}
    assert await space.delete_chunks([sha("c")], 0) == 6


async def test_delete_chunks_goes_on_beyond_the_servers_limit_of_one_request(make_space: MakeSpace) -> None:
    space = await make_space(dimensions=2)
    total = 10_050  # one delete request of Weaviate stops at 10,000
    objects = [stored("long", chunk, chunks=total, vector=[1, chunk + 1]) for chunk in range(total)]
    for at in range(0, total, 2000):
        assert await space.upsert(objects[at : at + 2000]) == {}
    assert await space.count() == total
    assert await space.delete_chunks([sha("long")], 3) == total - 3
    assert sorted(head.chunk for head in await everything(space)) == [0, 1, 2]


async def test_scan_sees_every_object_once(make_space: MakeSpace) -> None:
    space = await make_space()
    assert await everything(space) == []
    objects = [stored(f"d{i}", i % 3, chunks=3) for i in range(250)]
    await space.upsert(objects)
    pages = [page async for page in space.scan(60)]
    seen = [head.uuid for page in pages for head in page]
    assert len(seen) == len(set(seen)) == 250
    assert set(seen) == {obj.uuid for obj in objects}
    assert max(len(page) for page in pages) <= 60
    assert len(pages) >= 5


async def test_one_bad_object_does_not_take_the_others_with_it(make_space: MakeSpace) -> None:
    space = await make_space(properties=USER)
    good = [stored(f"g{i}") for i in range(5)]
    zeros = stored("zeros", vector=[0, 0, 0, 0])
    nan = stored("nan", vector=[1, float("nan"), 0, 0])
    long = stored("long", vector=[1, 2, 3])
    undeclared = stored("undeclared", user={"colour": "red"})
    surrogate = stored("surrogate", user={"body": "\ud800"})
    wrong_type = stored("type", user={"year": "1999"})
    too_large = stored("large", user={"year": 2**53 + 1})
    no_date = stored("date", user={"day": "2024-02-30T00:00:00Z"})
    failed = await space.upsert(
        [good[0], zeros, nan, good[1], long, undeclared, good[2], surrogate, wrong_type, too_large, no_date, *good[3:]]
    )
    kinds = {uuid: type(error) for uuid, error in failed.items()}
    assert kinds == {obj.uuid: WrongModel for obj in (zeros, nan, long)} | {
        obj.uuid: ContentRejected for obj in (undeclared, surrogate, wrong_type, too_large, no_date)
    }
    assert await ids(space) == {obj.uuid for obj in good}
    for error in failed.values():
        assert "1999" not in str(error)
        assert "red" not in str(error)


async def test_the_first_object_cannot_set_another_vector_length(make_space: MakeSpace) -> None:
    space = await make_space(dimensions=4)
    short = stored("short", vector=[1, 2, 3])
    assert isinstance((await space.upsert([short]))[short.uuid], WrongModel)
    assert await space.upsert([stored("right")]) == {}
    with pytest.raises(WrongModel):
        await space.search(np.array([1, 2, 3], np.float32), 1)


async def test_equal_ids_in_one_call_are_a_defect_of_the_caller(make_space: MakeSpace) -> None:
    space = await make_space()
    with pytest.raises(AssertionError):
        await space.upsert([stored("a", offset=1), stored("a", offset=2)])


async def test_a_space_dropped_under_our_feet_is_an_identity_changed_and_stays_dropped(
    store: VectorStore, make_space: MakeSpace
) -> None:
    used, fresh = await make_space(), await make_space()
    obj = stored("a")
    await used.upsert([obj])
    for name in (used.name, fresh.name):
        await store.drop_space(name)
    for space in (used, fresh):
        calls: list[Callable[[], Awaitable[object]]] = [
            partial(space.upsert, [obj]),
            partial(space.heads, [obj.uuid]),
            partial(space.heads, [obj.uuid], vectors=True),
            partial(space.delete, [obj.uuid]),
            partial(space.erase, [obj.uuid]),
            partial(space.delete_chunks, [sha("a")], 0),
            partial(everything, space),
            space.count,
            partial(space.properties, [obj.uuid]),
            partial(space.search, obj.vector, 1),
            space.indexing_queue,
        ]
        for call in calls:
            with pytest.raises(IdentityChanged) as caught:
                await call()
            assert space.name in caught.value.message
            assert caught.value.next_step
        assert space.name not in await store.spaces(), "a write must never create a space"


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2-squared"])
async def test_search_orders_as_brute_force_does(make_space: MakeSpace, metric: str) -> None:
    space = await make_space(dimensions=8, metric=metric)
    rng = np.random.default_rng(11)
    vectors = rng.normal(size=(60, 8)).astype(np.float32)
    await space.upsert([stored(f"d{i}", vector=vector) for i, vector in enumerate(vectors)])
    query = rng.normal(size=8).astype(np.float32)
    match metric:
        case "cosine":
            distances = 1 - vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
            scores = 1 - distances / 2
        case "dot":
            distances = -(vectors @ query)
            scores = -distances
        case _:
            distances = ((vectors - query) ** 2).sum(axis=1)
            scores = -distances
    order = np.argsort(distances)[:10]
    hits = await space.search(query, 10)
    assert [hit.doc_id for hit in hits] == [f"d{i}" for i in order]
    np.testing.assert_allclose([hit.distance for hit in hits], distances[order], atol=1e-4)
    np.testing.assert_allclose([hit.score for hit in hits], scores[order], atol=1e-4)
    assert all(a.score >= b.score for a, b in pairwise(hits))
    assert await space.search(query, 0) == []
    assert len(await space.search(query, 100)) == 60


async def test_a_hit_shows_the_users_properties_and_not_the_pipelines(make_space: MakeSpace) -> None:
    space = await make_space(properties=USER)
    assert await space.search(np.array([1, 0, 0, 0], np.float32), 3) == []
    await space.upsert([stored("a", 1, chunks=2, user={"lang": "en", "year": 1999})])
    (hit,) = await space.search(np.array([1, 0, 0, 0], np.float32), 3)
    assert (hit.doc_id, hit.chunk) == ("a", 1)
    assert hit.properties == {
        reserved.DOC_ID: "a",
        reserved.CHUNK: 1,
        reserved.SPACE: "v1@0123456789ab",
        reserved.TEXT: "text of a",
        "lang": "en",
        "year": 1999,
    }


@pytest.mark.parametrize(
    ("given", "back"),
    [
        ({"body": "  Ünï\ttext\n", "lang": " EN ", "year": -5, "rank": 1.5, "open": False}, None),
        ({"body": "", "lang": "", "year": 0, "rank": 0.0, "open": True}, None),
        ({"year": 2**53, "rank": -1e300}, None),
        ({"rank": 3}, {"rank": 3.0}),
        ({"day": "2024-01-02T03:04:05Z"}, None),
        ({"day": "2024-01-02T03:04:05.120+02:00"}, {"day": "2024-01-02T03:04:05.12+02:00"}),
        ({"day": "2024-01-02T03:04:05.000+00:00"}, {"day": "2024-01-02T03:04:05Z"}),
        ({"lang": None, "day": None, "year": None}, {}),
    ],
)
async def test_user_properties_of_every_type(
    make_space: MakeSpace, given: dict[str, JSON], back: dict[str, JSON] | None
) -> None:
    space = await make_space(properties=USER)
    obj = stored("a", user=given)
    assert await space.upsert([obj]) == {}
    kept = (await space.properties([obj.uuid]))[obj.uuid]
    users = {name: value for name, value in kept.items() if not name.startswith(reserved.PREFIX)}
    expected = given if back is None else back
    assert users == expected
    assert {name: type(value) for name, value in users.items()} == {n: type(v) for n, v in expected.items()}


FILTERED: Mapping[str, Mapping[str, JSON]] = {
    "a": {"lang": "en", "year": 1990, "rank": 0.5, "open": True, "day": "2024-01-02T03:04:05Z"},
    "b": {"lang": " de ", "year": 2000, "rank": 1.5, "open": False, "day": "2024-01-02T05:04:05.25+02:00"},
    "c": {"lang": "en-GB", "year": 2010, "rank": 3, "open": True, "day": "2025-06-01T00:00:00Z"},
    "d": {},
}


@pytest.fixture
async def filtered(make_space: MakeSpace) -> Space:
    space = await make_space(properties=USER)
    await space.upsert([stored(key, offset=i, user=user) for i, (key, user) in enumerate(FILTERED.items())])
    return space


@pytest.mark.parametrize(
    ("name", "operator", "value", "found"),
    [
        ("lang", "eq", "en", "a"),
        ("lang", "eq", "de", "b"),
        ("lang", "in", ("en", "en-GB", "fr"), "ac"),
        ("year", "eq", 2000, "b"),
        ("year", "in", (1990, 2010), "ac"),
        ("year", "gte", 2000, "bc"),
        ("year", "lt", 2000, "a"),
        ("rank", "gt", 0.5, "bc"),
        ("rank", "eq", 3, "c"),
        ("rank", "lte", 1.5, "ab"),
        ("rank", "in", (0.5, 3.0), "ac"),
        ("open", "eq", True, "ac"),
        ("open", "eq", False, "b"),
        ("day", "eq", "2024-01-02T04:04:05+01:00", "a"),
        ("day", "gt", "2024-01-02T03:04:05Z", "bc"),
        ("day", "lt", "2024-01-02T03:04:05.5Z", "ab"),
    ],
)
async def test_a_filter_leaves_what_matches(
    filtered: Space, name: str, operator: Operator, value: Scalar | tuple[Scalar, ...], found: str
) -> None:
    hits = await filtered.search(np.array([1, 0, 0, 0], np.float32), 10, [Condition(name, operator, value)])
    assert sorted(hit.doc_id for hit in hits) == list(found)
    assert [hit.offset for hit in sorted(hits, key=lambda hit: hit.doc_id)] == ["abcd".index(key) for key in found]


async def test_all_conditions_must_hold(filtered: Space) -> None:
    query = np.array([1, 0, 0, 0], np.float32)
    both = [Condition("open", "eq", True), Condition("year", "gte", 2000)]
    assert [hit.doc_id for hit in await filtered.search(query, 10, both)] == ["c"]
    assert await filtered.search(query, 10, [*both, Condition("lang", "eq", "en")]) == []


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        (Condition("nothing", "eq", "x"), "cannot be filtered on"),
        (Condition("cf_doc_id", "eq", "a"), "cannot be filtered on"),
        (Condition("body", "eq", "text"), "cannot be filtered on"),
        (Condition("lang", "gt", "en"), "gt cannot be asked"),
        (Condition("open", "in", (True,)), "in cannot be asked"),
        (Condition("year", "eq", "1990"), "no int"),
        (Condition("year", "eq", True), "no int"),
        (Condition("rank", "lt", float("nan")), "no number"),
        (Condition("day", "lt", "yesterday"), "no date"),
        (Condition("lang", "eq", "  "), "no keyword"),
        (Condition("lang", "in", ()), "0 values"),
        (Condition("year", "eq", (1, 2)), "2 values"),
    ],
)
async def test_a_filter_that_cannot_be_is_refused(filtered: Space, condition: Condition, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as raised:
        await filtered.search(np.array([1, 0, 0, 0], np.float32), 10, [condition])
    assert raised.value.next_step


async def test_what_a_search_finds_does_not_wait_for_the_index(make_space: MakeSpace) -> None:
    space = await make_space()
    assert await space.indexing_queue() == 0
    assert await space.upsert([stored("a"), stored("b", vector=[0, 1, 0, 0])]) == {}
    assert [hit.doc_id for hit in await space.search(stored("b", vector=[0, 1, 0, 0]).vector, 1)] == ["b"]
    assert await space.indexing_queue() == 0
