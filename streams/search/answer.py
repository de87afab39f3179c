"""What a search answers: hits that say which space and which model each comes from, and the route that was taken.

It decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from connectors.protocols import JSON, Hit
from streams.search.routes import Taken
from streams.versions import Stage


@dataclass(frozen=True, slots=True)
class Placed(Hit):
    """A hit, and the space it comes from."""

    version: str
    space: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Answer:
    """`hits`: one for each document, by its best chunk, best first; in a merged answer the order counts, since scores
    of two models cannot be compared. `version` to `fingerprint`: of the space that answered, of a merged answer of the
    new one. `took_ms`: encoding and searching. `route` was taken, and `why`, in one sentence.
    """

    collection: str
    version: str
    stage: Stage
    epoch: int
    space: str
    fingerprint: str
    hits: tuple[Placed, ...]
    took_ms: float
    route: Taken = "serving"
    why: str = ""

    def as_json(self) -> dict[str, JSON]:
        """With every property a hit carries, its text included."""
        return {
            "collection": self.collection,
            "version": self.version,
            "stage": self.stage.value,
            "epoch": self.epoch,
            "space": self.space,
            "fingerprint": self.fingerprint,
            "route": self.route,
            "why": self.why,
            "took_ms": round(self.took_ms, 3),
            "hits": [
                {
                    "key": hit.doc_id,
                    "chunk": hit.chunk,
                    "score": hit.score,
                    "distance": hit.distance,
                    "version": hit.version,
                    "space": hit.space,
                    "fingerprint": hit.fingerprint,
                    "properties": dict(hit.properties),
                }
                for hit in self.hits
            ],
        }
