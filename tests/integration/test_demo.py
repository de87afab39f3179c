"""The demo as a new user runs it, in a folder of its own: the whole story, what it suggests, and an end by Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from connectors.services.state import Process, alive, load

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-c", "from streams.cli import main; main()"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "80"}


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    run(tmp_path, "demo", "--stop")


def run(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *arguments]
    return subprocess.run(command, cwd=home, env=ENVIRONMENT, capture_output=True, text=True, timeout=900, check=False)


def processes(home: Path) -> list[Process]:
    """The worker and the services of the demo in this folder, as its files name them."""
    folder = home / ".crossfade" / "demo"
    state = load(folder)
    found = list(state.processes.values()) if state else []
    worker = folder / "worker.json"
    return [*found, Process(**json.loads(worker.read_text()))] if worker.exists() else found


def test_the_whole_story_and_every_command_it_suggests(home: Path) -> None:
    ran = run(home, "demo", "--keep", "--json")
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert told["passed"], told["checks"]
    assert all(check["passed"] for check in told["checks"])
    assert told["documents"] > 1000
    assert told["replay"]["suppressed_by_live"] > 0
    assert (told["sweep"]["missing"], told["sweep"]["stale"], told["sweep"]["extra"]) == (0, 0, 0)
    assert told["quality"]["v2"]["ndcg"] > told["quality"]["v1"]["ndcg"]
    assert [(swap["failed"], swap["mixed"]) for swap in told["swaps"]] == [(0, 0)] * 3
    assert all(swap["queries"] >= 1000 and swap["per_s"] >= 100 for swap in told["swaps"])
    assert all(sum(swap["by_space"].values()) == swap["queries"] for swap in told["swaps"])
    assert told["log_check"]["v1"]["equal"] == told["log_check"]["v2"]["equal"] == told["log_check"]["v1"]["documents"]
    assert told["state"]["serving"] == "v2"
    assert all(len(line) <= 80 or "crossfade" in line for line in ran.stderr.splitlines())

    kept = processes(home)
    assert all(alive(process) for process in kept)
    suggested = re.findall(r"^ +crossfade (.+)$", ran.stderr, re.MULTILINE)
    assert len(suggested) >= 6
    for line in suggested:
        tried = run(home, *shlex.split(line))
        assert tried.returncode == 0, (line, tried.stderr)
    assert "demo --stop" in suggested[-1]
    assert not any(alive(process) for process in kept)
    assert not (home / ".crossfade" / "demo").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_nothing_running(home: Path, number: signal.Signals) -> None:
    with (home / "said").open("w") as said:
        demo = subprocess.Popen([*COMMAND, "demo"], cwd=home, env=ENVIRONMENT, stdout=said, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 600
    while "Version v2 is added" not in (home / "said").read_text():
        assert demo.poll() is None, (home / "said").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    begun = processes(home)
    assert begun
    assert all(alive(process) for process in begun)
    demo.send_signal(number)
    assert demo.wait(timeout=120) == 130
    assert not any(alive(process) for process in begun)
    assert "Traceback" not in (home / "said").read_text()
