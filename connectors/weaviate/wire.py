"""Filters, queries and answers in the server's protobuf messages.

Pure: it must never send anything, nor let a value through that would come back as another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final
from uuid import UUID

import numpy as np
from weaviate.proto.v1 import base_pb2, base_search_pb2, properties_pb2, search_get_pb2

from connectors import reserved
from connectors.errors import IdentityChanged
from connectors.protocols import JSON, Condition, Head, Vectors
from connectors.weaviate.schema import VECTOR

QUORUM: Final = base_pb2.CONSISTENCY_LEVEL_QUORUM
FIRST: Final = str(UUID(int=0))
"""Where a cursor begins."""


def little_endian(vector: Vectors) -> bytes:
    """As the server takes float32."""
    return vector.astype("<f4", copy=False).tobytes()


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


_OPERATORS: Final = {
    "eq": base_pb2.Filters.OPERATOR_EQUAL,
    "in": base_pb2.Filters.OPERATOR_CONTAINS_ANY,
    "lt": base_pb2.Filters.OPERATOR_LESS_THAN,
    "lte": base_pb2.Filters.OPERATOR_LESS_THAN_EQUAL,
    "gt": base_pb2.Filters.OPERATOR_GREATER_THAN,
    "gte": base_pb2.Filters.OPERATOR_GREATER_THAN_EQUAL,
}


def matching(conditions: Sequence[Condition], types: Mapping[str, str]) -> base_pb2.Filters:
    """All of them; at least one. They have passed `reserved.check_conditions`."""
    parts = [_condition(condition, types[condition.name]) for condition in conditions]
    return parts[0] if len(parts) == 1 else base_pb2.Filters(operator=base_pb2.Filters.OPERATOR_AND, filters=parts)


def _condition(condition: Condition, kind: str) -> base_pb2.Filters:
    made = base_pb2.Filters(
        operator=_OPERATORS[condition.operator], target=base_pb2.FilterTarget(property=condition.name)
    )
    values = condition.value if isinstance(condition.value, tuple) else (condition.value,)
    several = condition.operator == "in"
    match kind:
        case "int" if several:
            made.value_int_array.values.extend(int(value) for value in values)
        case "int":
            made.value_int = int(values[0])
        case "number" if several:
            made.value_number_array.values.extend(float(value) for value in values)
        case "number":
            made.value_number = float(values[0])
        case "bool":
            made.value_boolean = bool(values[0])
        case _ if several:
            made.value_text_array.values.extend(str(value) for value in values)
        case _:
            made.value_text = str(values[0])
    return made


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


def _vector(vector: Vectors) -> base_pb2.Vectors:
    return base_pb2.Vectors(vector_bytes=little_endian(vector), type=base_pb2.Vectors.VECTOR_TYPE_SINGLE_FP32)


def uuid_of(result: search_get_pb2.SearchResult) -> UUID:
    return UUID(bytes=bytes(result.metadata.id_as_bytes))


_HEAD_KINDS: Final = tuple(
    (name, "int_value" if reserved.TYPES[name] == "int" else "text_value") for name in reserved.HEAD
)


def head_of(result: search_get_pb2.SearchResult) -> Head:
    """As `reserved.head_of` of all its properties, in a third of the time: a sweep reads every object of a space."""
    uuid, fields = uuid_of(result), result.properties.non_ref_props.fields
    found = []
    for name, kind in _HEAD_KINDS:
        value = fields[name]
        read = getattr(value, kind)
        if not read and not value.HasField(kind):
            return reserved.head_of(uuid, properties_of(result))  # says what is wrong
        found.append(read)
    return Head(uuid, *found)


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
