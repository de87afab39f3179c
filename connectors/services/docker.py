"""Kafka and Weaviate in a Docker engine, through the compose file shipped beside this module.

Must never name a container, network or volume outside its own compose project, which is derived from the folder.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import time
from pathlib import Path

from connectors.errors import ConfigurationError, Unreachable
from connectors.services import ports
from connectors.services.cache import run_with_progress
from connectors.services.state import Addresses, Say, State, save

COMPOSE_FILE = Path(__file__).with_name("docker-compose.yml")
PORTS = {
    "kafka": "CROSSFADE_KAFKA_PORT",
    "weaviate_http": "CROSSFADE_WEAVIATE_HTTP_PORT",
    "weaviate_grpc": "CROSSFADE_WEAVIATE_GRPC_PORT",
}
_ATTEMPTS = 3
_START_TIMEOUT_S = 180


def missing() -> str | None:
    """What keeps Docker from being used here, or None when its engine answers."""
    if shutil.which("docker") is None:
        return "no `docker` on PATH"
    for command, problem in (
        (["docker", "info", "--format", "{{.ServerVersion}}"], "the Docker engine does not answer"),
        (["docker", "compose", "version"], "the Docker engine answers, but its compose plugin is not installed"),
    ):
        try:
            run = subprocess.run(command, capture_output=True, timeout=20, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return problem
        if run.returncode != 0:
            return problem
    return None


def project(folder: Path) -> str:
    """The compose project of this folder: its containers, network and volumes."""
    return f"crossfade-{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}"


def _compose(folder: Path, *arguments: str) -> list[str]:
    return ["docker", "compose", "--env-file", str(env_file(folder)), "-f", str(COMPOSE_FILE), *arguments]


def env_file(folder: Path) -> Path:
    return folder / "docker.env"


def choose_ports(folder: Path, wanted: dict[str, int]) -> dict[str, int]:
    """Free ports, written with the project's name where compose reads them."""
    chosen = ports.choose(PORTS, wanted)
    lines = [f"COMPOSE_PROJECT_NAME={project(folder)}", *(f"{PORTS[name]}={port}" for name, port in chosen.items())]
    env_file(folder).write_text("\n".join(lines) + "\n")
    return chosen


def start(folder: Path, earlier: State | None, say: Say) -> Addresses:
    """Start both and wait until they answer from outside their containers.

    Raises ConfigurationError with what is missing or what compose said, Unreachable when they do not answer in time.
    """
    if problem := missing():
        raise ConfigurationError(problem)
    wanted = dict(earlier.ports) if earlier else {}
    for attempt in range(1, _ATTEMPTS + 1):
        state = State(way="docker", ports=choose_ports(folder, wanted), project=project(folder))
        save(folder, state)
        try:
            command = _compose(folder, "up", "--detach", "--wait", "--wait-timeout", str(_START_TIMEOUT_S))
            run_with_progress(command, say, what="starting Kafka and Weaviate with Docker (images are pulled once)")
            break
        except ConfigurationError as error:
            stop(folder)
            save(folder, State(way="docker", ports=state.ports))
            # The port may have been taken between our choice and Docker's bind.
            taken = "already allocated" in error.message or "address already in use" in error.message
            if attempt == _ATTEMPTS or not taken:
                raise
            say("a port was taken meanwhile; choosing others")
            wanted = {}
    deadline = time.monotonic() + 30
    while not ports.answers(state.addresses):
        if time.monotonic() > deadline:
            raise Unreachable(
                "the containers are healthy, but do not answer on their loopback ports",
                next_step=f"see `docker compose -p {project(folder)} logs`",
            )
        time.sleep(0.2)
    return state.addresses


def stop(folder: Path) -> None:
    """Remove the project's containers and network; its volumes, and so the data, stay."""
    _down(folder)


def remove_data(folder: Path) -> None:
    """Remove the project's volumes too. Nothing to do where this folder never used Docker."""
    if env_file(folder).exists():
        _down(folder, "--volumes")


def _down(folder: Path, *options: str) -> None:
    run = subprocess.run(_compose(folder, "down", *options), capture_output=True, text=True, check=False)
    if run.returncode != 0:
        raise ConfigurationError(
            f"`docker compose down` failed: {run.stderr.strip()[-1000:]}",
            next_step=f"start the Docker engine, or remove the project {project(folder)} by hand",
        )
