"""The state file, the lock and the identity of processes of local services."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from connectors.errors import ConfigurationError, Refused
from connectors.services import running
from connectors.services.state import (
    STATE_FILE,
    Process,
    State,
    alive,
    load,
    locked,
    log_file,
    save,
    spawn,
    started,
    stop,
)

PORTS = {"kafka": 1, "weaviate_http": 2, "weaviate_grpc": 3, "weaviate_raft": 4}


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def silent(line: str) -> None:
    return


def test_state_survives_the_file(tmp_path: Path) -> None:
    state = State(way="local", ports=PORTS, processes={"kafka": Process(7, "boot/123")})
    save(tmp_path, state)
    assert load(tmp_path) == state
    assert state.addresses.weaviate_grpc == "127.0.0.1:3"
    assert [path.name for path in tmp_path.iterdir()] == [STATE_FILE]


def test_a_folder_where_nothing_was_started(tmp_path: Path) -> None:
    assert load(tmp_path) is None
    assert running(tmp_path) is None


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"way": "local", "ports": {"kafka": "x"}, "processes": {}}'])
def test_a_damaged_state_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / STATE_FILE).write_text(content)
    with pytest.raises(ConfigurationError, match=STATE_FILE):
        load(tmp_path)


def test_a_process_is_known_by_pid_and_start(tmp_path: Path) -> None:
    process = spawn(["sleep", "600"], log=log_file(tmp_path, "sleep"))
    recycled = Process(process.pid, process.started + "0")
    try:
        assert alive(process)
        assert not alive(recycled)
        assert not stop(recycled), "a process with another start time is not ours"
        assert alive(process), "and was not touched"
    finally:
        assert stop(process)
    assert not alive(process)
    assert not stop(process)


def test_remains_of_a_process_are_not_alive() -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    try:
        eventually(lambda: started(child.pid) is None)
    finally:
        child.wait()


def test_a_process_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    log = log_file(tmp_path, "stubborn")
    process = spawn(["sh", "-c", "trap '' TERM; echo ready; while true; do sleep 1; done"], log=log)
    eventually(lambda: log.read_text() == "ready\n")
    assert stop(process, grace_s=0.2)
    assert not alive(process)


def test_what_it_writes_goes_to_its_log_and_it_has_its_own_session(tmp_path: Path) -> None:
    log = log_file(tmp_path, "talker")
    process = spawn(["sh", "-c", "echo out; echo err >&2; exec sleep 600"], log=log)
    try:
        eventually(lambda: log.read_text() == "out\nerr\n")
        assert os.getsid(process.pid) != os.getsid(0), "or Ctrl-C in this terminal would reach it"
    finally:
        stop(process)


def test_the_lock_is_held_by_one(tmp_path: Path) -> None:
    path, said = tmp_path / "deep" / "lock", list[str]()
    with (
        locked(path, silent, busy="busy"),
        pytest.raises(Refused, match="held by another"),
        locked(path, said.append, busy="busy", timeout_s=0.2),
    ):
        pytest.fail("the lock was given twice")
    assert said == ["busy"], "said once, however long the wait"
    with locked(path, silent, busy="busy", timeout_s=0):
        pass
