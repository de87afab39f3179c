"""Kafka and Weaviate for faults only: each can be killed, stopped, frozen and started again by itself.

Must never signal a process that its own state file does not name.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pytest

from connectors.services import Addresses, down, kafka, ports, up, weaviate
from connectors.services.state import Process, State, alive, load, log_file, save, stop

Name = Literal["kafka", "weaviate"]
PROXIED = "kafka_proxied"  # a second listener of the broker, advertised at ADVERTISED
ADVERTISED = "kafka_advertised"
ANSWERS_WITHIN_S = 90.0


def quiet(_: str) -> None:
    """Nobody waits for these lines."""


class EndedWhileStarting(AssertionError):
    """With the last that it logged."""


@dataclass(slots=True)
class OwnServices:
    """The services of one folder. `say` gets one line about each fault."""

    folder: Path
    say: Callable[[str], None]
    extra_ports: dict[str, int]

    @classmethod
    def begin(cls, folder: Path, say: Callable[[str], None], patch: pytest.MonkeyPatch) -> OwnServices:
        """Start both. The broker gets one listener more, whose advertised address a proxy of the test may take."""
        down(folder, say=quiet, remove_data=True)  # what a killed session may have left
        extra = ports.choose([PROXIED, ADVERTISED], {})
        plain = kafka.broker_properties

        def with_proxied_listener(data: Path, at: dict[str, int]) -> str:
            if data.parent != folder.absolute():  # services of another test, in this process
                return plain(data, at)
            inner, outer = f"PLAINTEXT://127.0.0.1:{at['kafka']}", f"PROXIED://127.0.0.1:{extra[ADVERTISED]}"
            proxied, controller = f"PROXIED://127.0.0.1:{extra[PROXIED]}", at["kafka_controller"]
            # of a setting given twice, Java takes the last
            return plain(data, at) + (
                f"listeners={inner},{proxied},CONTROLLER://127.0.0.1:{controller}\n"
                f"advertised.listeners={inner},{outer}\n"
                "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT\n"
                "inter.broker.listener.name=PLAINTEXT\n"
            )

        patch.setattr(kafka, "broker_properties", with_proxied_listener)
        up(folder, say=say, how="local")
        return cls(folder, say, extra)

    @property
    def _state(self) -> State:
        state = load(self.folder)
        assert state is not None
        return state

    @property
    def addresses(self) -> Addresses:
        return self._state.addresses

    @property
    def kafka_behind_proxy(self) -> tuple[str, str]:
        """Where clients must connect to, and where a proxy there must pass them on to."""
        return f"127.0.0.1:{self.extra_ports[ADVERTISED]}", f"127.0.0.1:{self.extra_ports[PROXIED]}"

    def process(self, name: Name) -> Process:
        return self._state.processes[name]

    def send(self, name: Name, number: signal.Signals) -> None:
        process = self.process(name)
        assert alive(process), f"{name} is not running"
        os.kill(process.pid, number)

    def kill(self, name: Name) -> None:
        """SIGKILL; returns when it is gone."""
        process = self.process(name)
        self.send(name, signal.SIGKILL)
        while alive(process):
            time.sleep(0.01)

    def stop(self, name: Name) -> None:
        """SIGTERM; returns when it is gone."""
        stop(self.process(name))

    def start(self, name: Name) -> None:
        """Start it again, on its ports and data; returns when it answers. As an operator would, up to three times:
        while it was down, something else on this machine may have had one of its ports for a moment."""
        for attempt in range(3):
            self._begin(name)
            try:
                return self.wait(name)
            except EndedWhileStarting as error:
                self.say(f"attempt {attempt + 1}: {error}")
        raise AssertionError(f"{name} ended three times while it was starting")

    def _begin(self, name: Name) -> None:
        state = self._state
        if name == "kafka":
            began = kafka.start(self.folder, kafka.java(), kafka.fetch(quiet), state.ports)
        else:
            began = weaviate.start(self.folder, weaviate.binary(quiet), state.ports)
        save(self.folder, replace(state, processes={**state.processes, name: began}))

    def wait(self, name: Name) -> None:
        at = self.addresses
        deadline = time.monotonic() + ANSWERS_WITHIN_S
        while not (
            ports.kafka_answers(at.kafka)
            if name == "kafka"
            else ports.weaviate_answers(at.weaviate_http, at.weaviate_grpc)
        ):
            if not alive(self.process(name)):
                last = log_file(self.folder, name).read_text(errors="replace").splitlines()[-15:]
                raise EndedWhileStarting("\n".join([f"{name} ended while it was starting:", *last]))
            assert time.monotonic() < deadline, f"{name} does not answer"
            time.sleep(0.1)

    def heal(self) -> None:
        """Whatever a failed test left: both run and answer."""
        for name in ("kafka", "weaviate"):
            process = self.process(name)
            if alive(process):
                os.kill(process.pid, signal.SIGCONT)
                self.wait(name)
            else:
                self.start(name)

    def end(self) -> None:
        for process in self._state.processes.values():
            if alive(process):
                os.kill(process.pid, signal.SIGCONT)  # a stopped process would not hear SIGTERM
        down(self.folder, say=quiet, remove_data=True)
