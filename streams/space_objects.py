"""What one stored object looks like: the reserved properties of DESIGN.md section 5 around a chunk and its vector.

Pure: it never decides whether an object should be written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple
from uuid import UUID

from connectors.protocols import JSON, Record, SpaceObject, Vectors
from connectors.reserved import (
    CHUNK,
    CHUNKS,
    DOC_HASH,
    DOC_ID,
    EMBEDDED_AT,
    EVENT_TIME,
    OFFSET,
    ORIGIN,
    PARTITION,
    SOURCE_HASH,
    SPACE,
    TEXT,
)
from streams.documents import Put, doc_hash


class Origin(NamedTuple):
    """Where a vector came from (`embedded` or `translated`) and when (ms since the epoch); kept with the vector."""

    kind: str
    at_ms: int

    @classmethod
    def from_properties(cls, properties: Mapping[str, JSON]) -> Origin:
        kind, at_ms = properties.get(ORIGIN), properties.get(EMBEDDED_AT)
        return cls(kind if isinstance(kind, str) else "embedded", int(at_ms) if isinstance(at_ms, int | float) else 0)


def space_object(
    uuid: UUID,
    record: Record,
    put: Put,
    source_hash: str,
    *,
    chunk: int,
    texts: Sequence[str],
    vector: Vectors,
    origin: Origin,
    space_mark: str,
    store_text: bool,
) -> SpaceObject:
    """`texts`: the document's chunks; `vector`: float32[dim] of this one; `space_mark`: version@fingerprint."""
    properties: dict[str, JSON] = {
        DOC_ID: put.doc_id,
        DOC_HASH: doc_hash(put.doc_id),
        CHUNK: chunk,
        CHUNKS: len(texts),
        SOURCE_HASH: source_hash,
        PARTITION: record.partition,
        OFFSET: record.offset,
        EVENT_TIME: record.timestamp_ms,
        EMBEDDED_AT: origin.at_ms,
        SPACE: space_mark,
        ORIGIN: origin.kind,
    }
    if store_text:
        properties[TEXT] = texts[chunk]
    properties.update(put.properties)  # never one of ours: the configuration refuses such a name
    return SpaceObject(uuid, properties, vector)
