"""Objects in Weaviate's messages: nothing is changed on the way, and no request grows beyond its bounds.

It must never send anything.
"""

from __future__ import annotations

from uuid import UUID, uuid4

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from connectors.protocols import SpaceObject
from connectors.weaviate.wire import batch_object
from connectors.weaviate.writer import BATCH_OBJECTS, _batches


def test_values_keep_their_type() -> None:
    vector = np.array([0.1, -2.5, 3e-8], dtype=np.float32)
    obj = SpaceObject(uuid4(), {"t": "x", "b": True, "i": 2**53, "n": 1.5, "none": None}, vector)
    message = batch_object("Space", obj)
    fields = message.properties.non_ref_properties.fields
    assert set(fields) == {"t", "b", "i", "n"}
    assert fields["t"].string_value == "x"
    assert fields["b"].WhichOneof("kind") == "bool_value"
    assert int(fields["i"].number_value) == 2**53
    assert fields["n"].number_value == 1.5
    assert message.vectors[0].vector_bytes == vector.tobytes()
    assert UUID(message.uuid) == obj.uuid


@given(st.lists(st.integers(0, 5000), max_size=700), st.integers(500, 20_000))
def test_batches_are_bounded_complete_and_in_order(lengths: list[int], most_bytes: int) -> None:
    vector = np.zeros(1, dtype=np.float32)
    messages = [
        batch_object("S", SpaceObject(UUID(int=at), {"t": "x" * length}, vector)) for at, length in enumerate(lengths)
    ]
    batches = list(_batches(messages, most_bytes))
    assert [message for batch in batches for message in batch] == messages
    for batch in batches:
        assert 1 <= len(batch) <= BATCH_OBJECTS
        assert len(batch) == 1 or sum(message.ByteSize() for message in batch) <= most_bytes
