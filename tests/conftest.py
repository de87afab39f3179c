"""Fixtures for all tests: real Kafka and Weaviate for the whole session, and names and topics of each test's own.

Must never hand two tests the same name, nor leave services behind that the session started.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from hypothesis import settings

from connectors.services import Addresses, docker, down, up
from connectors.services.state import Say, State, locked

settings.register_profile("crossfade", deadline=None)  # a busy machine is no failure: nothing here tests time
settings.load_profile("crossfade")

ROOT = Path(__file__).parent.parent
GIVEN = ("CROSSFADE_TEST_KAFKA", "CROSSFADE_TEST_WEAVIATE_HTTP", "CROSSFADE_TEST_WEAVIATE_GRPC")
COMPACTED = {"cleanup.policy": "compact"}

Unique = Callable[[str], str]


class MakeTopic(Protocol):
    """Creates a topic and returns its name; the topic is deleted after the test. Compacted unless configured."""

    def __call__(self, partitions: int = 1, config: Mapping[str, str] = COMPACTED) -> str: ...


def session_folder(name: str) -> Path:
    """Below the checkout; tests that run beside each other (pytest-xdist) have services of their own."""
    return ROOT / ".crossfade" / "-".join(filter(None, (name, os.environ.get("PYTEST_XDIST_WORKER"))))


@pytest.fixture(scope="session")
def services(pytestconfig: pytest.Config) -> Iterator[Addresses]:
    """Kafka and Weaviate: the addresses given in CROSSFADE_TEST_*, else by testcontainers, else local processes."""
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")

    def say(line: str) -> None:
        with capture.global_and_fixture_disabled():
            print(f"[services] {line}", flush=True)

    given = [os.environ.get(name, "") for name in GIVEN]
    if any(given):
        if not all(given):
            pytest.fail(f"set all of {', '.join(GIVEN)}, or none")
        yield Addresses(*given)
        return
    folder = session_folder("test-services")
    with locked(folder / "session.lock", say, busy="another test session uses this checkout's services; waiting"):
        yield from _containers(folder) if docker.missing() is None else _processes(folder, say)


def _containers(folder: Path) -> Iterator[Addresses]:
    from testcontainers.compose import DockerCompose

    chosen = docker.choose_ports(folder, {})
    file = docker.COMPOSE_FILE
    with DockerCompose(str(file.parent), compose_file_name=file.name, env_file=str(docker.env_file(folder)), wait=True):
        yield State(way="docker", ports=chosen).addresses


def _processes(folder: Path, say: Say) -> Iterator[Addresses]:
    down(folder, say=lambda line: None, remove_data=True)  # what a killed session may have left
    try:
        yield up(folder, say=say, how="local")
    finally:
        down(folder, say=say)


@pytest.fixture
def unique() -> Unique:
    """A factory of names nobody else has: "topic" -> "topic-ab12cd34", and, for Weaviate, "Docs" -> "Docs_ab12cd34"."""
    return lambda name: f"{name}{'_' if name[:1].isupper() else '-'}{uuid.uuid4().hex[:8]}"


@pytest.fixture
def make_topic(services: Addresses, unique: Unique) -> Iterator[MakeTopic]:
    admin = AdminClient({"bootstrap.servers": services.kafka})
    made: list[str] = []

    def make(partitions: int = 1, config: Mapping[str, str] = COMPACTED) -> str:
        name = unique("topic")
        new = NewTopic(name, num_partitions=partitions, replication_factor=1, config=dict(config))
        admin.create_topics([new])[name].result(timeout=30)
        made.append(name)
        deadline = time.monotonic() + 30
        while not _led(admin, name, partitions):
            assert time.monotonic() < deadline, f"no leader for {name}"
        return name

    yield make
    for future in admin.delete_topics(made).values() if made else ():
        future.result(timeout=30)


def _led(admin: AdminClient, topic: str, partitions: int) -> bool:
    found = admin.list_topics(topic, timeout=10).topics[topic].partitions
    return len(found) == partitions and all(partition.leader >= 0 for partition in found.values())
