"""What runs in a services folder, and which process is really ours: state file, folder lock, process identity.

Must never signal a process that this project did not start, so a pid counts only together with its start time.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from connectors.errors import ConfigurationError, Refused

Say = Callable[[str], None]
Way = Literal["docker", "local"]
STATE_FILE = "services.json"


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the services answer, `host:port` each."""

    kafka: str
    weaviate_http: str
    weaviate_grpc: str


@dataclass(frozen=True, slots=True)
class Process:
    """A process and when it began, as the system says it: together they are never given out twice."""

    pid: int
    started: str


@dataclass(frozen=True, slots=True)
class State:
    """One folder's services: `processes` or a compose `project`, or neither when they are stopped.

    `ports` by name are kept then too, so that a restart keeps the addresses people have noted.
    """

    way: Way
    ports: Mapping[str, int]
    processes: Mapping[str, Process] = field(default_factory=dict)
    project: str = ""

    @property
    def started(self) -> bool:
        return bool(self.processes or self.project)

    @property
    def addresses(self) -> Addresses:
        return Addresses(*(f"127.0.0.1:{self.ports[name]}" for name in ("kafka", "weaviate_http", "weaviate_grpc")))


def log_file(folder: Path, name: str) -> Path:
    """Where the named service of this folder writes what it says."""
    return folder / "logs" / f"{name}.log"


def load(folder: Path) -> State | None:
    """The folder's state, or None where nothing was ever started. Raises ConfigurationError for a damaged file."""
    path = folder / STATE_FILE
    try:
        raw = json.loads(path.read_text())
        return State(
            way=raw["way"],
            ports={str(name): int(port) for name, port in raw["ports"].items()},
            processes={name: Process(int(p["pid"]), str(p["started"])) for name, p in raw["processes"].items()},
            project=str(raw["project"]),
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"{path} cannot be read as the state of local services ({type(error).__name__})",
            next_step="end what is left of those services by hand, delete the file, then run `crossfade up`",
        ) from error


def save(folder: Path, state: State) -> None:
    """Write whole or not at all: another process may be reading."""
    new = folder / f"{STATE_FILE}.new"
    new.write_text(json.dumps(asdict(state), indent=2) + "\n")
    new.replace(folder / STATE_FILE)


@contextmanager
def locked(path: Path, say: Say, *, busy: str, timeout_s: float = 1800) -> Iterator[None]:
    """Hold the lock file; says `busy` once when somebody else has it. The system frees it if the holder dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        deadline, told = time.monotonic() + timeout_s, False
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise Refused(
                        f"{path} has been held by another process for {timeout_s:.0f} s",
                        next_step="see which `crossfade up` or `crossfade down` still runs, and end it",
                    ) from error
                if not told:
                    say(busy)
                    told = True
                time.sleep(0.1)
        yield


def started(pid: int) -> str | None:
    """When this process began, or None when there is none (or only its unreaped remains)."""
    proc = Path("/proc")
    if (proc / "self/stat").exists():
        try:
            # The command name stands in parentheses and may hold anything, so fields are counted from the last one.
            fields = (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        boot = (proc / "sys/kernel/random/boot_id").read_text().strip()
        return None if fields[0] in "ZX" else f"{boot}/{fields[19]}"
    listing = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    status, _, began = listing.stdout.strip().partition(" ")
    return None if not status or status.startswith("Z") else began.strip()


def alive(process: Process) -> bool:
    return started(process.pid) == process.started


def spawn(argv: list[str], *, log: Path, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Process:
    """Start a process that outlives us, in a session of its own; stdout and stderr go to `log`, begun anew.

    A shell forks it and leaves, so it is nobody's child to be waited for. Raises ConfigurationError when it is
    gone at once.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("")
    shell = subprocess.run(
        ["/bin/sh", "-c", 'log=$1; shift; "$@" </dev/null >>"$log" 2>&1 & echo $!', "sh", str(log), *argv],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        start_new_session=True,
        env=None if env is None else dict(env),
        cwd=cwd,
    )
    pid = int(shell.stdout)
    began = started(pid)
    if began is None:
        raise ConfigurationError(f"{argv[0]} ended as soon as it was started", next_step=f"read {log}")
    return Process(pid, began)


def stop(process: Process, *, grace_s: float = 20) -> bool:
    """SIGTERM, then SIGKILL after the grace time. False when it was gone already (or the pid is another's now)."""
    if not alive(process):
        return False
    for number, patience_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 10.0)):
        try:
            os.kill(process.pid, number)
        except ProcessLookupError:
            return True
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            if not alive(process):
                return True
            time.sleep(0.05)
    raise Refused(
        f"process {process.pid} does not end, not even by SIGKILL", next_step=f"look at process {process.pid}"
    )
