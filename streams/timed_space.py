"""A space that notes how long its calls take: what a build itself sees of the store's latency.

It changes nothing that goes through it.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from uuid import UUID

from connectors.protocols import JSON, Condition, Head, Hit, Space, SpaceObject, Vectors

LATENCY_OF_S = 30.0
FEWEST_CALLS = 3
CALLS_KEPT = 10_000


class Latencies:
    """How long the calls of the last LATENCY_OF_S took, and those that have not ended yet."""

    def __init__(
        self,
        clock_s: Callable[[], float] = time.monotonic,
        observe: Callable[[str, float], None] = lambda *_: None,
    ) -> None:
        """`observe` hears of each call that ended: its operation, and how many seconds it took."""
        self._clock_s = clock_s
        self._observe = observe
        self._ended: deque[tuple[float, float]] = deque(maxlen=CALLS_KEPT)
        self._begun: dict[object, float] = {}

    @contextlib.contextmanager
    def call(self, operation: str = "") -> Iterator[None]:
        """Around one call. One that was cancelled says nothing about the store."""
        this = object()
        self._begun[this] = began_s = self._clock_s()
        try:
            yield
        except Exception:
            self._end(operation, began_s)
            raise
        else:
            self._end(operation, began_s)
        finally:
            del self._begun[this]

    def _end(self, operation: str, began_s: float) -> None:
        now_s = self._clock_s()
        self._ended.append((now_s, now_s - began_s))
        self._observe(operation, now_s - began_s)

    def p95_ms(self) -> float:
        """0 while there are too few calls to tell: then they do not burden the store either."""
        now_s = self._clock_s()
        while self._ended and now_s - self._ended[0][0] > LATENCY_OF_S:
            self._ended.popleft()
        took_s = sorted([took for _, took in self._ended] + [now_s - began for began in self._begun.values()])
        return 1000 * took_s[(95 * len(took_s) - 1) // 100] if len(took_s) >= FEWEST_CALLS else 0.0


class TimedSpace:
    """`inner` as it is, its calls timed; a scan and a count take as long as the space is large, and are not."""

    def __init__(self, inner: Space, latencies: Latencies) -> None:
        self.name = inner.name
        self._inner = inner
        self._latencies = latencies

    async def heads(self, uuids: Sequence[UUID], *, vectors: bool = False) -> Mapping[UUID, Head]:
        with self._latencies.call("heads"):
            return await self._inner.heads(uuids, vectors=vectors)

    async def upsert(self, objects: Sequence[SpaceObject]) -> Mapping[UUID, Exception]:
        with self._latencies.call("upsert"):
            return await self._inner.upsert(objects)

    async def delete(self, uuids: Sequence[UUID]) -> None:
        with self._latencies.call("delete"):
            await self._inner.delete(uuids)

    async def erase(self, uuids: Sequence[UUID]) -> None:
        with self._latencies.call("erase"):
            await self._inner.erase(uuids)

    async def delete_chunks(self, doc_hashes: Sequence[str], from_chunk: int) -> int:
        with self._latencies.call("delete_chunks"):
            return await self._inner.delete_chunks(doc_hashes, from_chunk)

    async def properties(self, uuids: Sequence[UUID]) -> Mapping[UUID, Mapping[str, JSON]]:
        with self._latencies.call("properties"):
            return await self._inner.properties(uuids)

    async def search(self, vector: Vectors, limit: int, filters: Sequence[Condition] = ()) -> list[Hit]:
        with self._latencies.call("search"):
            return await self._inner.search(vector, limit, filters)

    def scan(self, page: int | None = None, share: float = 1.0) -> AsyncIterator[list[Head]]:
        return self._inner.scan(page, share)

    async def count(self) -> int:
        return await self._inner.count()

    async def indexing_queue(self) -> int:
        return await self._inner.indexing_queue()
