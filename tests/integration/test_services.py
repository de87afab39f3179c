"""Local services for real, in a folder of their own: up, up again, killed, down, up on other ports, data kept."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from connectors.services import Addresses, docker, down, local, running, up
from connectors.services.state import State, Way, alive, load

WHAT_IS_MISSING: dict[Way, Callable[[], str]] = {
    "docker": lambda: docker.missing() or "",
    "local": lambda: "; ".join(local.missing()),
}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "services"
    down(tmp_path / "services", say=lambda line: None, remove_data=True)


def state_of(folder: Path) -> State:
    state = load(folder)
    assert state is not None
    return state


def store_something(at: Addresses) -> None:
    admin = AdminClient({"bootstrap.servers": at.kafka})
    admin.create_topics([NewTopic("kept", num_partitions=1, replication_factor=1)])["kept"].result(timeout=30)
    body = {"class": "Kept", "vectorizer": "none"}
    httpx.post(f"http://{at.weaviate_http}/v1/schema", json=body, timeout=30).raise_for_status()


def what_is_stored(at: Addresses) -> tuple[bool, bool]:
    topics = AdminClient({"bootstrap.servers": at.kafka}).list_topics(timeout=30).topics
    return "kept" in topics, httpx.get(f"http://{at.weaviate_http}/v1/schema/Kept", timeout=30).status_code == 200


@pytest.mark.parametrize("way", ["docker", "local"])
def test_up_and_down_and_up_again(folder: Path, way: Way) -> None:
    if missing := WHAT_IS_MISSING[way]():
        pytest.skip(missing)
    said: list[str] = []
    first = up(folder, say=said.append, how=way)
    assert running(folder) == first
    before = state_of(folder)
    store_something(first)

    assert up(folder, say=said.append, how=way) == first
    assert "already running" in said[-1]
    assert state_of(folder) == before, "nothing was started anew"

    assert down(folder, say=said.append)
    assert running(folder) is None
    assert not down(folder, say=said.append), "nothing was left to stop"
    assert not any(alive(process) for process in before.processes.values())

    with ExitStack() as strangers:
        # Somebody else takes two of the ports meanwhile.
        for name in ("kafka", "weaviate_http"):
            stranger = strangers.enter_context(socket.socket())
            stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            stranger.bind(("127.0.0.1", before.ports[name]))
            stranger.listen()
        again = up(folder, say=said.append, how=way)
    assert again.kafka != first.kafka
    assert again.weaviate_http != first.weaviate_http
    assert again.weaviate_grpc == first.weaviate_grpc, "a free port is used again"
    assert what_is_stored(again) == (True, True)

    assert down(folder, say=said.append, remove_data=True)
    assert [path.name for path in folder.iterdir()] == ["lock"]


def test_local_processes_are_mended_and_stay_on_loopback(folder: Path) -> None:
    if missing := WHAT_IS_MISSING["local"]():
        pytest.skip(missing)
    both: list[Addresses] = []
    starters = [
        threading.Thread(target=lambda: both.append(up(folder, say=lambda line: None, how="local"))) for _ in range(2)
    ]
    for starter in starters:
        starter.start()
    for starter in starters:
        starter.join()
    first = both[0]
    assert both == [first, first], "two at the same time do not fight: one starts, the other finds"

    state = state_of(folder)
    for name, port in state.ports.items():
        # On Linux the whole of 127.0.0.0/8 is this machine: who listens on all interfaces answers here too.
        with socket.socket() as probe:
            probe.settimeout(5)
            assert probe.connect_ex(("127.0.0.2", port)) != 0, f"{name} listens beyond 127.0.0.1"

    store_something(first)
    os.kill(state.processes["kafka"].pid, signal.SIGKILL)
    while alive(state.processes["kafka"]):
        pass
    assert running(folder) is None, "half of the services is not running"

    assert up(folder, say=lambda line: None, how="local") == first
    mended = state_of(folder)
    assert mended.processes.keys() == state.processes.keys()
    assert not alive(state.processes["weaviate"]), "the other half was started anew, not twice"
    assert what_is_stored(first) == (True, True)
