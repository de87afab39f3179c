"""The documents nearest to a vector in one space: each once, by its best chunk.

It must never ask more than one space, nor know where the vector came from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from connectors.protocols import Condition, Hit, Space, Vectors

MOST_OBJECTS = 10_000  # of one request: Weaviate's QUERY_MAXIMUM_RESULTS


async def nearest(space: Space, vector: Vectors, limit: int, filters: Sequence[Condition] = ()) -> tuple[Hit, ...]:
    """At most `limit` documents, best first. `vector`: float32[dim]. Raises as `Space.search` does."""
    objects = limit
    while True:
        found = await space.search(vector, objects, filters)
        hits = best_chunks(found, limit)
        if len(hits) == limit or len(found) < objects or objects == MOST_OBJECTS:
            return hits
        objects = min(4 * objects, MOST_OBJECTS)  # several chunks of one document took the places of others


def best_chunks(hits: Iterable[Hit], limit: int) -> tuple[Hit, ...]:
    """The best hit of each document, best first, at most `limit`."""
    best: dict[str, Hit] = {}
    for hit in sorted(hits, key=lambda hit: -hit.score):
        best.setdefault(hit.doc_id, hit)
        if len(best) == limit:
            break
    return tuple(best.values())
