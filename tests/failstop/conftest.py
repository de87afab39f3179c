"""A deployment for each test, on a topic of its own that a test may ruin."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient
from pydantic import JsonValue

from connectors.services import Addresses
from tests.conftest import MakeTopic, Unique
from tests.deployment import Deployment, deployed

Deploy = Callable[..., AbstractAsyncContextManager[Deployment]]

SMALL: dict[str, JsonValue] = {"embedder": {"provider": "hashing"}, "dimensions": 16}
LARGE: dict[str, JsonValue] = {"embedder": {"provider": "hashing"}, "dimensions": 32}


@pytest.fixture
def admin(services: Addresses) -> AdminClient:
    return AdminClient({"bootstrap.servers": services.kafka})


@pytest.fixture
def deploy(services: Addresses, tmp_path: Path, unique: Unique, make_topic: MakeTopic) -> Deploy:
    """`deploy(partitions=..., prefix=..., alias=..., folder=..., topic=...)`: each has a default nobody else has."""

    def make(
        *,
        partitions: int = 1,
        prefix: str | None = None,
        alias: str | None = None,
        folder: str = "a",
        topic: str | None = None,
        properties: dict[str, JsonValue] | None = None,
    ) -> AbstractAsyncContextManager[Deployment]:
        place = tmp_path / folder
        place.mkdir()
        collection: dict[str, JsonValue] = {"text": {"fields": ["text"]}, "properties": properties or {}}
        return deployed(
            services,
            place,
            prefix or unique("fs"),
            topic or make_topic(partitions=partitions),
            alias or unique("Fs"),
            collection,
            session_timeout_s=10.0,
            settle_s=1.0,
        )

    return make
