"""An embedder as the pool that an Encoder wants, for tests that are not about endpoints."""

from __future__ import annotations

from connectors.embedders.endpoint import Endpoint
from connectors.embedders.pool import EndpointPool
from connectors.protocols import Embedder

ENDPOINT_AT_ONCE = 4


def pool_of(embedder: Embedder, *, concurrency: int = ENDPOINT_AT_ONCE) -> EndpointPool:
    return EndpointPool([Endpoint("the-endpoint", embedder, concurrency=concurrency, fixed_concurrency=True)])
