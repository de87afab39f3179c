"""The question for the nearest objects of one space, and its answer as hits.

Pure: it must never show the pipeline's own properties, nor withhold one the user declared.
"""

from __future__ import annotations

from collections.abc import Sequence

from weaviate.proto.v1 import search_get_pb2

from connectors import reserved
from connectors.errors import IdentityChanged
from connectors.protocols import Condition, Hit, Vectors
from connectors.weaviate import wire
from connectors.weaviate.schema import Shape


def nearest(
    space: str, shape: Shape, vector: Vectors, limit: int, filters: Sequence[Condition] = ()
) -> search_get_pb2.SearchRequest:
    """`vector`: float32[dim]; `limit`: at most what the server allows (QUERY_MAXIMUM_RESULTS, 10,000).

    Raises ConfigurationError for a filter that a space of this shape cannot judge.
    """
    reserved.check_conditions(filters, shape.types)
    matching = wire.matching(filters, shape.types) if filters else None
    return wire.query(space, limit, (*shape.shown, reserved.OFFSET), near=vector, filters=matching)


def hit_of(result: search_get_pb2.SearchResult, metric: str) -> Hit:
    """Raises IdentityChanged for an object that Crossfade did not write."""
    properties = wire.properties_of(result)
    doc_id, chunk = properties.get(reserved.DOC_ID), properties.get(reserved.CHUNK)
    offset = properties.pop(reserved.OFFSET, None)
    if not isinstance(doc_id, str) or not isinstance(chunk, int) or not isinstance(offset, int):
        raise IdentityChanged(
            f"object {wire.uuid_of(result)} was not written by Crossfade",
            next_step="find who else writes into this space, then build a new version",
        )
    distance = result.metadata.distance
    return Hit(
        uuid=wire.uuid_of(result),
        doc_id=doc_id,
        chunk=chunk,
        score=reserved.score_of(metric, distance),
        distance=distance,
        properties=properties,
        offset=offset,
    )
