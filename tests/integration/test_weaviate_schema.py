"""What a new space looks like on a real Weaviate: nothing of it is left to the server's defaults.

It must never read a space through our own code where that could hide what the server holds.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import uuid4

import httpx
import pytest

from connectors import reserved
from connectors.errors import ConfigurationError
from connectors.protocols import SpaceSpec
from connectors.services import Addresses
from connectors.weaviate.schema import config_of, shape_of
from connectors.weaviate.settings import WeaviateSettings
from connectors.weaviate.spaces import WeaviateStore, open_store

USER = {"body": "text", "lang": "keyword", "year": "int", "rank": "number", "open": "bool", "day": "date"}


@pytest.fixture
async def store(services: Addresses) -> AsyncIterator[WeaviateStore]:
    opened = await open_store(WeaviateSettings(services.weaviate_http, services.weaviate_grpc))
    yield opened
    await opened.close()


@pytest.fixture
async def name(store: WeaviateStore) -> AsyncIterator[str]:
    given = f"T{uuid4().hex}"
    yield given
    await store.drop_space(given)


@pytest.mark.parametrize("quantization", ["none", "sq", "bq", "rq", "pq"])
@pytest.mark.parametrize("metric", ["cosine", "dot", "l2-squared"])
async def test_a_space_has_the_metric_and_quantization_asked_for(
    store: WeaviateStore, services: Addresses, name: str, metric: str, quantization: str
) -> None:
    await store.create_space(SpaceSpec(name, 96, metric, "d", quantization))
    async with httpx.AsyncClient(trust_env=False) as http:
        schema = (await http.get(f"http://{services.weaviate_http}/v1/schema/{name}")).json()
    (vector,) = schema["vectorConfig"].values()
    assert vector["vectorizer"] == {"none": {}}
    assert vector["vectorIndexType"] == "hnsw"
    assert vector["vectorIndexConfig"]["distance"] == metric
    on = {kind for kind in ("sq", "bq", "rq", "pq") if vector["vectorIndexConfig"].get(kind, {}).get("enabled")}
    assert on == {quantization} - {"none"}


async def test_indexes_and_tokenizations(store: WeaviateStore, services: Addresses, name: str) -> None:
    await store.create_space(SpaceSpec(name, 4, "cosine", "d", properties=USER))
    async with httpx.AsyncClient(trust_env=False) as http:
        schema = (await http.get(f"http://{services.weaviate_http}/v1/schema/{name}")).json()
    found = {prop["name"]: prop for prop in schema["properties"]}
    assert set(found) == set(reserved.TYPES) | set(USER)
    assert {n for n, p in found.items() if p.get("tokenization") == "field"} == {
        n for n, kind in {**reserved.TYPES, **USER}.items() if kind == "keyword"
    }
    assert {n for n, p in found.items() if p["indexSearchable"]} == {"body"}
    assert {n for n, p in found.items() if p["indexFilterable"]} == {reserved.DOC_HASH, reserved.CHUNK, *USER}
    config = await config_of(store._connection, name)
    assert config is not None
    shape = shape_of(config)
    assert (shape.metric, shape.dimensions) == ("cosine", 4)
    assert shape.types == {**reserved.TYPES, **USER}
    assert set(shape.shown) == {*reserved.SHOWN, *USER}


async def test_a_collection_of_somebody_else_is_not_taken_for_a_space(store: WeaviateStore, name: str) -> None:
    await store._connection.client.collections.create(name)
    with pytest.raises(ConfigurationError, match="not a space of Crossfade"):
        await store.space(name).properties([uuid4()])
