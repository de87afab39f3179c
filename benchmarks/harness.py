"""What all benchmarks share: the endpoint in a process of its own, pairs of alternating runs, and what is written down.

A figure is only ever compared with another of the same run: a shared machine is another machine a minute later.
"""

from __future__ import annotations

import contextlib
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx
import orjson

from benchmarks.gpu_server import Model

RESULTS = Path(__file__).parent / "results"

Figures = Mapping[str, float]
Run = Callable[[], Awaitable[Figures]]
Value = float | str | None


@dataclass(frozen=True, slots=True)
class Ratio:
    """Of pairs measured side by side; `low` and `high` are the smallest and the largest."""

    median: float
    low: float
    high: float
    pairs: int

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True, slots=True)
class Books:
    """The endpoint's own figures, from GET /stats."""

    values: Mapping[str, float]

    def __getitem__(self, name: str) -> float:
        return self.values[name]

    def share(self, part: str, whole: str) -> float:
        return self.values[part] / self.values[whole] if self.values[whole] else 0.0


class Control:
    """The side of the endpoint that no client under test uses. Blocking: only called while nothing is timed."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._client = httpx.Client(base_url=url, timeout=10, trust_env=False)

    def reset(self) -> None:
        self._client.post("/reset").raise_for_status()

    def mark(self) -> None:
        self._client.post("/mark").raise_for_status()

    def faults(self, **faults: float) -> None:
        self._client.post("/faults", json=faults).raise_for_status()

    def books(self) -> Books:
        return Books(self._client.get("/stats").raise_for_status().json())

    def close(self) -> None:
        self._client.close()


@contextlib.contextmanager
def endpoint(model: Model) -> Iterator[Control]:
    """A running `gpu_server` of this model; it ends with the block, and also when this process is killed."""
    command = [sys.executable, "-m", "benchmarks.gpu_server", "--tied"]
    for name, value in asdict(model).items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parent.parent, env={**os.environ}
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise RuntimeError("the endpoint did not start; what it said is above")
        control = Control(orjson.loads(line)["url"])
        try:
            yield control
        finally:
            control.close()
    finally:
        process.terminate()
        process.wait(10)
        process.stdin.close()
        process.stdout.close()


async def alternate(runs: Mapping[str, Run], rounds: int) -> dict[str, list[Figures]]:
    """Each of the runs once a round, every second round backwards, so that no one always follows the same other."""
    figures: dict[str, list[Figures]] = {name: [] for name in runs}
    for number in range(rounds):
        names = list(runs)
        for name in reversed(names) if number % 2 else names:
            figures[name].append(await runs[name]())
    return figures


def ratio(over: Sequence[Figures], under: Sequence[Figures], name: str) -> Ratio:
    """Of one figure, round by round."""
    pairs = [one[name] / other[name] for one, other in zip(over, under, strict=True)]
    return Ratio(statistics.median(pairs), min(pairs), max(pairs), len(pairs))


def median(figures: Sequence[Figures], name: str) -> float:
    return statistics.median(one[name] for one in figures)


def spread(figures: Sequence[Figures], name: str) -> Ratio:
    """Median, smallest and largest of a figure that is itself a share."""
    values = [one[name] for one in figures]
    return Ratio(statistics.median(values), min(values), max(values), len(values))


def machine() -> dict[str, str | int | None]:
    """What it ran on, without names."""
    return {"cpus": os.cpu_count(), "python": platform.python_version(), "system": platform.system()}


@dataclass(frozen=True, slots=True)
class Table:
    """One measurement: what was done, in a sentence or two, and its rows."""

    title: str
    what: str
    rows: Sequence[Mapping[str, Value]]

    def markdown(self) -> str:
        columns = list(self.rows[0]) if self.rows else []
        lines = [f"## {self.title}", "", self.what, "", _line(columns), _line(["---"] * len(columns))]
        lines += [_line([_shown(row[column]) for column in columns]) for row in self.rows]
        return "\n".join(lines) + "\n"


def write(name: str, tables: Sequence[Table], details: object, folder: Path = RESULTS) -> list[Path]:
    """`name`.json with every figure of every round, and `name`.md with the tables. Returns both paths."""
    folder.mkdir(parents=True, exist_ok=True)
    at = datetime.now(UTC).isoformat(timespec="seconds")
    whole = {"name": name, "at": at, "machine": machine(), "tables": [asdict(table) for table in tables]}
    data, page = folder / f"{name}.json", folder / f"{name}.md"
    data.write_bytes(orjson.dumps({**whole, "details": details}, option=orjson.OPT_INDENT_2) + b"\n")
    ran_on = ", ".join(f"{key} {value}" for key, value in machine().items())
    page.write_text(f"# {name}\n\n{at}, {ran_on}.\n\n" + "\n".join(table.markdown() for table in tables))
    return [data, page]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _shown(value: Value) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 1000 or float(value).is_integer() else f"{value:.3f}"
