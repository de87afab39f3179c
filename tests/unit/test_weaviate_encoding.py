"""Objects in a write request's bytes: what the server's own messages read back is what was given, within its bounds.

It must never send anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from uuid import UUID, uuid4

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from weaviate.proto.v1 import base_pb2, batch_pb2

from connectors.protocols import JSON, SpaceObject
from connectors.weaviate.encoding import RequestEncoder

MOST = 256
NAMES = st.from_regex(r"[a-z_][A-Za-z0-9_]{0,230}", fullmatch=True)
VALUES = (
    st.text(st.characters(exclude_categories=["Cs"]))
    | st.integers(-(2**53), 2**53)
    | st.booleans()
    | st.floats(allow_nan=False)
    | st.none()
)


def by_the_library(space: str, obj: SpaceObject) -> batch_pb2.BatchObject:
    """The same object by the generated classes."""
    message = batch_pb2.BatchObject(uuid=str(obj.uuid), collection=space)
    vector = obj.vector.astype("<f4").tobytes()
    message.vectors.add(name="default", vector_bytes=vector, type=base_pb2.Vectors.VECTOR_TYPE_SINGLE_FP32)
    fields = message.properties.non_ref_properties.fields
    for name, value in obj.properties.items():
        match value:
            case bool():
                fields[name].bool_value = value
            case str():
                fields[name].string_value = value
            case int() | float():
                fields[name].number_value = value
    return message


def read(message: bytes) -> batch_pb2.BatchObjectsRequest:
    request: batch_pb2.BatchObjectsRequest = batch_pb2.BatchObjectsRequest.FromString(message)
    assert request.consistency_level == base_pb2.CONSISTENCY_LEVEL_QUORUM
    return request


def objects(lengths: list[int]) -> list[SpaceObject]:
    vector = np.zeros(1, dtype=np.float32)
    return [SpaceObject(UUID(int=at), {"t": "x" * length}, vector) for at, length in enumerate(lengths)]


@given(
    st.lists(st.dictionaries(NAMES, VALUES, min_size=1), min_size=1, max_size=5),
    st.integers(1, 3000),
    st.sampled_from(["S", "Docs_v1_1_0123456789ab", "D" * 255]),
)
@example([{"t": "x" * length} for length in (0, 1, 125, 126, 127, 128, 255, 256, 16383, 16384)], 384, "S")
@example([{"t": "ü" * 64}, {"t": "x" * 128}, {"t": "\x00"}, {"n": 0, "f": 0.0, "no": False, "nothing": None}], 1, "S")
@example([{"n": 1}, {"n": True}, {"n": 1.0}, {"n": "1"}], 32, "S")
@example([{"t": "x" * 3_000_000}], 1, "S")
def test_it_is_what_the_library_would_have_made(properties: list[dict[str, JSON]], dimensions: int, space: str) -> None:
    given_objects = [
        SpaceObject(uuid4(), one, np.random.default_rng(at).standard_normal(dimensions, dtype=np.float32))
        for at, one in enumerate(properties)
    ]
    encoder = RequestEncoder(space)
    for _ in range(2):  # the second time from what was kept
        (request,) = encoder.requests(given_objects, most_objects=MOST, most_bytes=10**9)
        assert request.objects == given_objects
        made = read(request.message)
        for message, obj in zip(made.objects, given_objects, strict=True):
            if any(value is not None for value in obj.properties.values()):
                assert message == by_the_library(space, obj)
        rewritten = made.SerializeToString()
        assert len(rewritten) == len(request.message), "no field twice, none unknown"


def test_every_value_keeps_its_type_and_every_bit() -> None:
    vector = np.array([0.1, -2.5, 3e-8], dtype=np.float32)
    properties: Mapping[str, JSON] = {"t": "ü", "b": True, "f": False, "i": 2**53, "n": 1.5, "none": None}
    obj = SpaceObject(uuid4(), properties, vector)
    (request,) = RequestEncoder("Space").requests([obj], most_objects=1, most_bytes=10_000)
    (message,) = read(request.message).objects
    fields = message.properties.non_ref_properties.fields
    kinds = {name: fields[name].WhichOneof("kind") for name in fields}
    numbers = dict.fromkeys(("i", "n"), "number_value")
    assert kinds == {"t": "string_value", **dict.fromkeys(("b", "f"), "bool_value"), **numbers}
    assert int(fields["i"].number_value) == 2**53
    assert message.vectors[0].vector_bytes == vector.tobytes()
    assert UUID(message.uuid) == obj.uuid


@given(st.lists(st.integers(0, 5000), max_size=700), st.integers(500, 20_000))
@example([0] * (2 * MOST + 1), 10**9)
@example([400, 400, 5000, 400], 1000)
def test_requests_are_bounded_complete_and_in_order(lengths: list[int], most_bytes: int) -> None:
    made = list(RequestEncoder("S").requests(objects(lengths), most_objects=MOST, most_bytes=most_bytes))
    messages = [message for one in made for message in read(one.message).objects]
    assert [len(message.properties.non_ref_properties.fields["t"].string_value) for message in messages] == lengths
    assert [UUID(message.uuid).int for message in messages] == list(range(len(lengths)))
    assert [obj.uuid.int for one in made for obj in one.objects] == list(range(len(lengths)))
    for one in made:
        assert 1 <= len(one.objects) <= MOST
        assert len(one.objects) == 1 or len(one.message) <= most_bytes


@pytest.mark.parametrize(
    ("lengths", "most_bytes", "sizes"),
    [([0] * 600, 10**9, [MOST, MOST, 88]), ([4000] * 7, 13_000, [3, 3, 1]), ([], 1000, [])],
)
def test_requests_are_as_full_as_their_bounds_allow(lengths: list[int], most_bytes: int, sizes: list[int]) -> None:
    made = RequestEncoder("S").requests(objects(lengths), most_objects=MOST, most_bytes=most_bytes)
    assert [len(one.objects) for one in made] == sizes


def test_requests_are_made_one_by_one() -> None:
    """A group of large documents is never in memory a second time as a whole."""
    taken = 0

    def some() -> Iterator[SpaceObject]:
        nonlocal taken
        for obj in objects([1000] * 50):
            taken += 1
            yield obj

    first = next(RequestEncoder("S").requests(some(), most_objects=10, most_bytes=10**9))
    assert len(first.objects) == 10
    assert taken <= 11


def test_what_is_kept_is_bounded() -> None:
    encoder = RequestEncoder("S")
    list(encoder.requests(objects(list(range(0, 50_000, 97))), most_objects=MOST, most_bytes=10**9))
    assert len(encoder._before_text) <= MOST
