"""Fixtures for faults: services of their own, which these tests kill, and deployments on them.

The fixture `services` of the whole suite is replaced here, so that nothing of it can ever be hit.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Protocol

import pytest
from pydantic import JsonValue

from connectors.services import Addresses, local
from connectors.services.state import locked
from tests.conftest import MakeTopic, Unique, session_folder
from tests.deployment import Deployment, deployed
from tests.faults.own_services import OwnServices
from tests.faults.workload import COLLECTION

INSIDE = "CROSSFADE_INSIDE_NAMESPACE"  # set in a run of pytest in a network namespace of its own
Say = Callable[[str], None]


class Deploy(Protocol):
    """`topic`: settings of it beside compaction. Writes are sent within 8 - 3 - 3 s of the last commit, by default."""

    def __call__(
        self,
        *,
        partitions: int = 2,
        topic: Mapping[str, str] | None = None,
        session_timeout_s: float = 8.0,
        write_timeout_s: float = 3.0,
        settle_s: float = 2.0,
        collection: Mapping[str, JsonValue] = COLLECTION,
    ) -> AbstractAsyncContextManager[Deployment]: ...


@pytest.fixture(scope="session")
def say(pytestconfig: pytest.Config) -> Say:
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")

    def say(line: str) -> None:
        with capture.global_and_fixture_disabled():
            print(f"[faults] {line}", flush=True)

    return say


@pytest.fixture(scope="session")
def own(say: Say) -> Iterator[OwnServices]:
    """Kafka and Weaviate of these tests alone, as local processes whose ids we know."""
    if problems := local.missing():
        pytest.skip("faults need Kafka and Weaviate as processes of this machine: " + "; ".join(problems))
    folder = session_folder("fault-services-inside" if INSIDE in os.environ else "fault-services")
    with (
        locked(folder / "session.lock", say, busy="another session injects faults in this checkout; waiting"),
        pytest.MonkeyPatch.context() as patch,
    ):
        services = OwnServices.begin(folder, say, patch)
        try:
            yield services
        finally:
            services.end()


@pytest.fixture(scope="session")
def services(own: OwnServices) -> Addresses:
    return own.addresses


@pytest.fixture
def deploy(own: OwnServices, tmp_path: Path, unique: Unique, make_topic: MakeTopic) -> Deploy:
    @asynccontextmanager
    async def deploy(
        *,
        partitions: int = 2,
        topic: Mapping[str, str] | None = None,
        session_timeout_s: float = 8.0,
        write_timeout_s: float = 3.0,
        settle_s: float = 2.0,
        collection: Mapping[str, JsonValue] = COLLECTION,
    ) -> AsyncIterator[Deployment]:
        async with deployed(
            own.addresses,
            tmp_path,
            unique("cf"),
            make_topic(partitions, {"cleanup.policy": "compact", **(topic or {})}),
            unique("Faults"),
            collection,
            session_timeout_s=session_timeout_s,
            write_timeout_s=write_timeout_s,
            settle_s=settle_s,
        ) as d:
            try:
                yield d
            finally:
                await asyncio.to_thread(own.heal)

    return deploy
