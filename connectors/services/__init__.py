"""Local Kafka and Weaviate for `crossfade up`, the demo and the tests: by Docker, else as processes of this machine.

Must never touch a service it did not start, listen beyond loopback by choice, or call services up before both answer.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Literal

from connectors.errors import ConfigurationError, CrossfadeError
from connectors.services import docker, local, ports
from connectors.services.state import Addresses, Say, load, locked, save, stop

__all__ = ["Addresses", "down", "running", "up", "weaviate_data"]


def up(folder: Path, *, say: Say, how: Literal["auto", "docker", "local"] = "auto") -> Addresses:
    """Start Kafka and Weaviate, or find them running; returns when both answer.

    State, data and logs are below `folder`. `say` is called with one line at a time for the person who waits.
    Blocks: seconds, or minutes when something must be fetched or built first. Raises ConfigurationError that
    names the three ways and what is missing for each, Unreachable when what was started does not answer.
    """
    folder = folder.absolute()
    with _lock(folder, say):
        found = running(folder)
        if found:
            say(f"already running: Kafka at {found.kafka}, Weaviate at {found.weaviate_http}")
            return found
        _stop(folder)  # half of them may still be there
        missing: dict[str, str] = {}
        if how in ("auto", "docker"):
            try:
                return docker.start(folder, load(folder), say)
            except CrossfadeError as error:
                missing["Docker"] = str(error)
        if how in ("auto", "local"):
            try:
                return local.start(folder, load(folder), say)
            except ConfigurationError as error:
                missing["local processes"] = str(error)
        raise ConfigurationError(
            nothing_works(missing), next_step="make one of these ways work, then run `crossfade up` again"
        )


def down(folder: Path, *, say: Say, remove_data: bool = False) -> bool:
    """Stop what `up` started in this folder; True when something was stopped. Raises Refused when it will not end."""
    folder = folder.absolute()
    if not folder.is_dir():
        return False
    with _lock(folder, say):
        stopped = _stop(folder)
        say("services stopped" if stopped else "no services were running")
        if remove_data:
            docker.remove_data(folder)
            for name in ("kafka", "weaviate", "logs"):
                shutil.rmtree(folder / name, ignore_errors=True)
            for name in ("services.json", "kafka.properties", "docker.env"):
                (folder / name).unlink(missing_ok=True)
        return stopped


def running(folder: Path) -> Addresses | None:
    """Where this folder's services answer now, or None. Raises ConfigurationError for a damaged state file."""
    state = load(folder)
    if state is None or not state.started or not ports.answers(state.addresses):
        return None
    return state.addresses


def weaviate_data(folder: Path) -> Path | None:
    """Where the Weaviate of this folder keeps its data; None when it does not run, or keeps them inside Docker."""
    state = load(folder)
    if state is None or not state.started or state.way == "docker":
        return None
    return folder / "weaviate"


def _lock(folder: Path, say: Say) -> AbstractContextManager[None]:
    return locked(
        folder / "lock", say, busy=f"another process is starting or stopping the services of {folder}; waiting"
    )


def _stop(folder: Path) -> bool:
    state = load(folder)
    if state is None or not state.started:
        return False
    if state.project:
        docker.stop(folder)
        stopped = [True]
    else:
        stopped = [stop(process) for process in state.processes.values()]
    save(folder, replace(state, processes={}, project=""))
    return any(stopped)


def nothing_works(missing: Mapping[str, str]) -> str:
    """The message for somebody with no services at all: the three ways, and what is missing for each."""
    ways = {
        "configured addresses": "none given (`kafka` and `weaviate` in the configuration file)",
        "Docker": "not tried",
        "local processes": "not tried",
        **missing,
    }
    return "Kafka and Weaviate cannot be had in any of the three ways:" + "".join(
        f"\n  {number}. {way}: {problem}" for number, (way, problem) in enumerate(ways.items(), 1)
    )
