"""What a doctor wants to know of a Weaviate server: its version, nodes, clock, and a sample of what a space holds.

It must never change anything, nor keep a document's text.
"""

from __future__ import annotations

import random
import time
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final
from uuid import UUID

import httpx
from weaviate.proto.v1 import search_get_pb2

from connectors import reserved
from connectors.errors import IdentityChanged
from connectors.inspected import SampledObject, ServerFacts
from connectors.protocols import Vectors
from connectors.weaviate import wire
from connectors.weaviate.client import open_connection
from connectors.weaviate.failures import mapped
from connectors.weaviate.settings import WeaviateSettings
from connectors.weaviate.spaces import WeaviateStore
from connectors.weaviate.writer import WeaviateSpace

PAGE: Final = 250
_SAMPLED: Final = (*reserved.HEAD, reserved.SPACE, reserved.ORIGIN, reserved.TEXT)


class Inspection(WeaviateStore):
    """Requests that only read. Open it with `open_inspection`; raises as `WeaviateStore` does."""

    async def server(self) -> ServerFacts:
        """Version and nodes over the client, the clock from the date of one answer (whole seconds)."""
        meta: object = await self._connection.rest(self._client.get_meta(), write=False)
        version = str(meta.get("version", "unknown")) if isinstance(meta, dict) else "unknown"
        nodes = await self._connection.rest(self._client.cluster.nodes(output="minimal"), write=False)
        clock_ms, within_ms = await self._clock()
        return ServerFacts(version, {str(node.name): str(node.status) for node in nodes}, clock_ms, within_ms)

    async def read_only_shards(self, space: str) -> list[str]:
        """Names of the shards that take no writes."""
        shards = await self._connection.rest(self._client.collections.use(space).config.get_shards(), write=False)
        return sorted(str(shard.name) for shard in shards if shard.status == "READONLY")

    async def sample(self, space: str, most: int) -> list[SampledObject]:
        """At most so many objects, by cursor from a random place: ids are hashes, so it is a random sample; of a space
        that holds no more, all of them."""
        return await _SampledSpace(self._connection, space).sample(most)

    async def _clock(self) -> tuple[int | None, int]:
        host, port, secure = self._connection.settings.http_address
        key = self._connection.settings.api_key
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        url = f"http{'s' if secure else ''}://{f'[{host}]' if ':' in host else host}:{port}/v1/.well-known/ready"
        try:
            async with httpx.AsyncClient(
                timeout=self._connection.settings.connect_timeout_s, trust_env=False, follow_redirects=False
            ) as client:
                asked_ms = time.time_ns() // 1_000_000
                answer = await client.get(url, headers=headers)
                answered_ms = time.time_ns() // 1_000_000
        except httpx.HTTPError as error:
            raise mapped(error, write=False) from error
        said = answer.headers.get("date", "")
        try:
            moment = parsedate_to_datetime(said)
        except (TypeError, ValueError):
            return None, 0
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        # the date is cut to the second: the middle of it is the best guess
        there_ms = round(moment.timestamp() * 1000) + 500
        return there_ms - (asked_ms + answered_ms) // 2, 500 + (answered_ms - asked_ms) // 2


class _SampledSpace(WeaviateSpace):
    async def sample(self, most: int) -> list[SampledObject]:
        start = str(UUID(int=random.getrandbits(128))) if await self.count() > most else wire.FIRST
        found = {one.uuid: one for one in await self._from(start, most)}
        if len(found) < most and start != wire.FIRST:
            for one in await self._from(wire.FIRST, most - len(found)):
                found.setdefault(one.uuid, one)
        return list(found.values())

    async def _from(self, after: str, most: int) -> list[SampledObject]:
        found: list[SampledObject] = []
        while len(found) < most:
            page = min(PAGE, most - len(found))
            results = await self._search(wire.query(self.name, page, _SAMPLED, after=after, vectors=True))
            found += map(_sampled, results)
            if len(results) < page:
                break
            after = str(found[-1].uuid)
        return found


def _sampled(result: search_get_pb2.SearchResult) -> SampledObject:
    properties = wire.properties_of(result)
    text = properties.pop(reserved.TEXT, None)
    vector: Vectors | None
    try:
        vector = wire.vector_of(result)
    except IdentityChanged:  # without one: for the doctor a finding, not a reason to look no further
        vector = None
    return SampledObject(wire.uuid_of(result), properties, isinstance(text, str) and bool(text), vector)


async def open_inspection(settings: WeaviateSettings) -> Inspection:
    """Raises as `open_store` does."""
    return Inspection(await open_connection(settings))
