"""Kafka and Weaviate as processes of this machine: started together, waited for, started again on other ports.

Must never leave a process behind that the state file does not name, nor take a stranger's answer for theirs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from connectors.errors import ConfigurationError, Unreachable
from connectors.services import kafka, ports, weaviate
from connectors.services.state import Addresses, Process, Say, State, alive, log_file, save, stop

_START_TIMEOUT_S = 120.0
_ATTEMPTS = 5


def missing() -> list[str]:
    """Everything that keeps the services from running as local processes, each with what would help; cheap to ask."""
    problems = [problem for problem in (kafka.missing(), weaviate.missing()) if problem]
    try:
        kafka.java()
    except ConfigurationError as error:
        problems.insert(0, error.message)
    return problems


def start(folder: Path, earlier: State | None, say: Say) -> Addresses:
    """Start both and wait until they answer; the ports of the earlier state are used again where they are free.

    Raises ConfigurationError (what is missing, or the log's last words), Unreachable when they do not answer in time.
    """
    if problems := missing():
        raise ConfigurationError("; ".join(problems))
    java, jars, server = kafka.java(), kafka.fetch(say), weaviate.binary(say)
    wanted = dict(earlier.ports) if earlier else {}
    for attempt in range(1, _ATTEMPTS + 1):
        state = State(way="local", ports=ports.choose(kafka.PORTS + weaviate.PORTS, wanted))
        say(f"starting Kafka on port {state.ports['kafka']} and Weaviate on port {state.ports['weaviate_http']}")
        try:
            state = _record(folder, state, "kafka", kafka.start(folder, java, jars, state.ports))
            state = _record(folder, state, "weaviate", weaviate.start(folder, server, state.ports))
            _wait(folder, state)
        except BaseException as error:
            for process in state.processes.values():
                stop(process)
            save(folder, replace(state, processes={}))
            # A port may have been taken between our choice and their bind.
            if attempt < _ATTEMPTS and isinstance(error, ConfigurationError) and _port_was_taken(folder):
                say("a port was taken meanwhile; choosing others")
                wanted = {}
                continue
            raise
        return state.addresses
    raise AssertionError("unreachable: the last attempt returns or raises")


def _record(folder: Path, state: State, name: str, process: Process) -> State:
    """The state file names each process at once: should we be killed now, `down` still finds it."""
    state = replace(state, processes={**state.processes, name: process})
    save(folder, state)
    return state


def _wait(folder: Path, state: State) -> None:
    checks: dict[str, Callable[[], bool]] = {
        "kafka": lambda: ports.kafka_answers(state.addresses.kafka),
        "weaviate": lambda: ports.weaviate_answers(state.addresses.weaviate_http, state.addresses.weaviate_grpc),
    }
    deadline = time.monotonic() + _START_TIMEOUT_S
    for name, answers in checks.items():
        while True:
            answered = answers()
            # Alive after the answer: so it was this process that answered, not a stranger on its port.
            if not alive(state.processes[name]):
                raise ConfigurationError(
                    f"{name} ended while it was starting:\n{_last_lines(log_file(folder, name))}",
                    next_step=f"read {log_file(folder, name)}",
                )
            if answered:
                break
            if time.monotonic() > deadline:
                raise Unreachable(
                    f"{name} did not answer within {_START_TIMEOUT_S:.0f} s", next_step=f"read {log_file(folder, name)}"
                )
            time.sleep(0.1)


def _last_lines(log: Path, lines: int = 12) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else ""


def _port_was_taken(folder: Path) -> bool:
    return any("address already in use" in _last_lines(log_file(folder, n), 60).lower() for n in ("kafka", "weaviate"))
