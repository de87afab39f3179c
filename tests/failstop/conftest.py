"""A deployment for each test, on a topic of its own that a test may ruin."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient
from pydantic import JsonValue

from connectors.services import Addresses, ports, weaviate
from connectors.services.state import stop
from tests.conftest import MakeTopic, Unique
from tests.deployment import Deployment, deployed

Deploy = Callable[..., AbstractAsyncContextManager[Deployment]]

SMALL: dict[str, JsonValue] = {"embedder": {"provider": "hashing"}, "dimensions": 16}
LARGE: dict[str, JsonValue] = {"embedder": {"provider": "hashing"}, "dimensions": 32}


@pytest.fixture
def admin(services: Addresses) -> AdminClient:
    return AdminClient({"bootstrap.servers": services.kafka})


@pytest.fixture
def other_weaviate(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """A second, empty Weaviate: its HTTP and gRPC addresses."""
    if problem := weaviate.missing():
        pytest.skip(f"a second Weaviate is started as a process of this machine: {problem}")
    folder = tmp_path / "other-weaviate"
    folder.mkdir()
    at = ports.choose(weaviate.PORTS, {})
    process = weaviate.start(folder, weaviate.binary(lambda _: None), at)
    try:
        http, grpc = f"127.0.0.1:{at['weaviate_http']}", f"127.0.0.1:{at['weaviate_grpc']}"
        deadline = time.monotonic() + 60
        while not ports.weaviate_answers(http, grpc):
            assert time.monotonic() < deadline, "the second Weaviate does not answer"
            time.sleep(0.1)
        yield http, grpc
    finally:
        stop(process)


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
