"""Objects, filters and answers in the server's protobuf messages.

Pure: it must never send anything, nor let a value through that would come back as another.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final
from uuid import UUID

import numpy as np
from weaviate.proto.v1 import base_pb2, base_search_pb2, batch_pb2, properties_pb2, search_get_pb2

from connectors import reserved
from connectors.errors import IdentityChanged
from connectors.protocols import JSON, SpaceObject, Vectors
from connectors.weaviate.schema import VECTOR

QUORUM: Final = base_pb2.CONSISTENCY_LEVEL_QUORUM
FIRST: Final = str(UUID(int=0))
"""Where a cursor begins."""


def batch_object(space: str, obj: SpaceObject) -> batch_pb2.BatchObject:
    """`obj` has passed `reserved.check_object`: its values are str, int, float, bool or None."""
    message = batch_pb2.BatchObject(uuid=str(obj.uuid), collection=space, vectors=[_vector(obj.vector, name=VECTOR)])
    fields = message.properties.non_ref_properties.fields
    for name, value in obj.properties.items():
        if isinstance(value, bool):  # before int, which bool is too
            fields[name].bool_value = value
        elif isinstance(value, str):
            fields[name].string_value = value
        elif isinstance(value, int | float):
            fields[name].number_value = value
    return message


def _vector(vector: Vectors, *, name: str = "") -> base_pb2.Vectors:
    little_endian = vector.astype("<f4", copy=False).tobytes()
    return base_pb2.Vectors(name=name, vector_bytes=little_endian, type=base_pb2.Vectors.VECTOR_TYPE_SINGLE_FP32)


def with_ids(uuids: Iterable[UUID]) -> base_pb2.Filters:
    return _any_of("_id", [str(uuid) for uuid in uuids])


def with_chunks(doc_hashes: Sequence[str], from_chunk: int) -> base_pb2.Filters:
    late_chunks = base_pb2.Filters(
        operator=base_pb2.Filters.OPERATOR_GREATER_THAN_EQUAL,
        target=base_pb2.FilterTarget(property=reserved.CHUNK),
        value_int=from_chunk,
    )
    return base_pb2.Filters(
        operator=base_pb2.Filters.OPERATOR_AND, filters=[_any_of(reserved.DOC_HASH, doc_hashes), late_chunks]
    )


def _any_of(name: str, values: Sequence[str]) -> base_pb2.Filters:
    return base_pb2.Filters(
        operator=base_pb2.Filters.OPERATOR_CONTAINS_ANY,
        target=base_pb2.FilterTarget(property=name),
        value_text_array=base_pb2.TextArray(values=values),
    )


def query(
    space: str,
    limit: int,
    properties: Sequence[str],
    *,
    filters: base_pb2.Filters | None = None,
    after: str | None = None,
    near: Vectors | None = None,
    vectors: bool = False,
) -> search_get_pb2.SearchRequest:
    """A QUORUM read with an explicit limit, of these properties and the id; distances with `near`."""
    request = search_get_pb2.SearchRequest(
        collection=space,
        consistency_level=QUORUM,
        limit=limit,
        properties=search_get_pb2.PropertiesRequest(non_ref_properties=properties),
        metadata=search_get_pb2.MetadataRequest(
            uuid=True, vectors=[VECTOR] if vectors else [], distance=near is not None
        ),
        uses_123_api=True,
        uses_125_api=True,
        uses_127_api=True,
    )
    if filters is not None:
        request.filters.CopyFrom(filters)
    if after is not None:
        request.after = after
    if near is not None:
        request.near_vector.CopyFrom(
            base_search_pb2.NearVector(
                vectors=[_vector(near)], targets=base_search_pb2.Targets(target_vectors=[VECTOR])
            )
        )
    return request


def uuid_of(result: search_get_pb2.SearchResult) -> UUID:
    return UUID(bytes=bytes(result.metadata.id_as_bytes))


def vector_of(result: search_get_pb2.SearchResult) -> Vectors | None:
    """float32[dim], or None where it was not asked for. Raises IdentityChanged for an object without a vector."""
    for stored in result.metadata.vectors:
        if stored.name == VECTOR:
            return np.frombuffer(stored.vector_bytes, dtype="<f4").astype(np.float32)
    raise IdentityChanged(
        f"object {uuid_of(result)} has no vector: it was not written by Crossfade",
        next_step="find who else writes into this space, then build a new version",
    )


def properties_of(result: search_get_pb2.SearchResult) -> dict[str, JSON]:
    """Without those that have no value."""
    found: dict[str, JSON] = {}
    for name, value in result.properties.non_ref_props.fields.items():
        read = _read(value)
        if read is not None:
            found[name] = read
    return found


def _read(value: properties_pb2.Value) -> JSON:
    match value.WhichOneof("kind"):
        case "text_value":
            return value.text_value
        case "int_value":
            return value.int_value
        case "number_value":
            return value.number_value
        case "bool_value":
            return value.bool_value
        case "date_value":
            return value.date_value
        case _:
            return None
