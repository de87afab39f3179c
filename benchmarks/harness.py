"""What all benchmarks share: the endpoint in a process of its own, pairs of alternating runs, and what is written down.

A figure is only ever compared with another of the same run: a shared machine is another machine a minute later.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from types import TracebackType

import httpx
import matplotlib as mpl
import orjson
from matplotlib.figure import Figure

from benchmarks.gpu_server import Model
from connectors.services import Addresses, down, up

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
SERVICES = Path(os.environ.get("CROSSFADE_BENCH_FOLDER", ROOT / ".crossfade" / "bench"))

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


@dataclass(frozen=True, slots=True)
class Bench:
    """What every part is given. `quick`: once and small, to see that all of it works and that the facts hold."""

    services: Addresses
    quick: bool

    def sized(self, full: int, quick: int) -> int:
        return quick if self.quick else full


class Cost:
    """What the block took: seconds on the clock and of this process's CPU (all its threads), and the most memory it
    has held by the end of it, in MB.

    CPU is what the operating system counted, user and system. The peak is of the process's whole life: measure in a
    `child` where that matters.
    """

    wall_s: float
    cpu_s: float
    peak_mb: float

    def __enter__(self) -> Cost:
        gc.collect()
        self._wall, self._cpu = perf_counter(), cpu_s()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.wall_s, self.cpu_s = perf_counter() - self._wall, cpu_s() - self._cpu
        self.peak_mb = peak_mb()

    def figures(self, items: int) -> dict[str, float]:
        """For so many items: `per_s`, `cpu_us` of each, `peak_mb`."""
        return {"per_s": items / self.wall_s, "cpu_us": 1e6 * self.cpu_s / items, "peak_mb": self.peak_mb}


def cpu_s() -> float:
    """Of this process until now, user and system, all its threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def peak_mb(pid: int | str = "self") -> float:
    """The most memory a process has held until now. Linux counts what the parent held into a child's ru_maxrss; VmHWM
    begins anew with the program. Elsewhere only this process's own can be told."""
    told = _memory_mb(pid, "VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 if told is None else told


def held_mb(pid: int | str = "self") -> float:
    """What a process holds in memory now; nan where the system does not say."""
    told = _memory_mb(pid, "VmRSS")
    return math.nan if told is None else told


def _memory_mb(pid: int | str, name: str) -> float | None:
    status = Path(f"/proc/{pid}/status")
    return int(status.read_text().split(f"{name}:")[1].split()[0]) / 1024 if status.exists() else None


def child(function: str, **arguments: object) -> dict[str, float]:
    """The figures that `module:function` returns in a process of its own: nothing else is in its CPU and its memory.

    The arguments have to be JSON. What it prints goes to stderr. Raises RuntimeError when it fails.
    """
    command = [sys.executable, "-m", "benchmarks.harness", function]
    done = subprocess.run(command, input=orjson.dumps(arguments), stdout=subprocess.PIPE, cwd=ROOT, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{function} ended with {done.returncode}; what it said is above")
    figures: dict[str, float] = orjson.loads(done.stdout)
    return figures


def _as_child() -> None:
    """The other side of `child`."""
    arguments, answer = orjson.loads(sys.stdin.buffer.read()), os.dup(1)
    os.dup2(2, 1)
    module, _, name = sys.argv[1].partition(":")
    figures = getattr(importlib.import_module(module), name)(**arguments)
    with os.fdopen(answer, "wb") as out:
        out.write(orjson.dumps(figures))


@contextlib.contextmanager
def services() -> Iterator[Addresses]:
    """Kafka and Weaviate for these measurements alone, with nothing in them."""
    quiet = lambda line: None  # noqa: E731
    down(SERVICES, say=quiet, remove_data=True)
    try:
        yield up(SERVICES, say=lambda line: print(line, file=sys.stderr), how="local")
    finally:
        down(SERVICES, say=quiet, remove_data=True)


@contextlib.contextmanager
def endpoint(model: Model) -> Iterator[Control]:
    """A running `gpu_server` of this model; it ends with the block, and also when this process is killed."""
    command = [sys.executable, "-m", "benchmarks.gpu_server", "--tied"]
    for name, value in asdict(model).items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, env={**os.environ})
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


@dataclass(frozen=True, slots=True)
class Fact:
    """A figure that is no timing, and what it may be at most or must be at least: the same on a busy machine."""

    name: str
    value: float
    most: float | None = None
    least: float | None = None

    @property
    def holds(self) -> bool:
        return (self.most is None or self.value <= self.most) and (self.least is None or self.value >= self.least)

    def __str__(self) -> str:
        bounds = [f"at most {self.most:,g}"] if self.most is not None else []
        bounds += [f"at least {self.least:,g}"] if self.least is not None else []
        return f"{'ok  ' if self.holds else 'MISS'} {self.name}: {self.value:,.6g} ({' and '.join(bounds)})"


@dataclass(frozen=True, slots=True)
class Plot:
    """`lines`: by name, (x, y) in order of x; `limit`: a horizontal line that is not to be crossed."""

    name: str
    title: str
    x: str
    y: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    limit: float | None = None
    log_x: bool = False


@dataclass(frozen=True, slots=True)
class Part:
    """What one part of a run gives. `details`: every figure of every round, for the JSON file."""

    tables: Sequence[Table]
    facts: Sequence[Fact] = ()
    plots: Sequence[Plot] = ()
    details: Mapping[str, object] = field(default_factory=dict)


def write(name: str, parts: Mapping[str, Part], folder: Path = RESULTS) -> list[Path]:
    """`name`.json with every figure of every round, `name`.md with the tables, and an SVG for each plot. Parts that the
    file has from an earlier run, and this one has not, stay: nothing is compared across parts. Returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    data, page = folder / f"{name}.json", folder / f"{name}.md"
    known = orjson.loads(data.read_bytes()).get("parts", {}) if data.exists() else {}
    plotted: list[Path] = []
    for key, part in parts.items():
        plotted += [_draw(plot, folder / f"{name}-{plot.name}.svg") for plot in part.plots]
        known[key] = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(),
            "tables": [asdict(table) for table in part.tables],
            "facts": [asdict(fact) for fact in part.facts],
            "plots": [{"file": f"{name}-{plot.name}.svg", "title": plot.title} for plot in part.plots],
            "details": part.details,
        }
    data.write_bytes(
        orjson.dumps({"name": name, "parts": known}, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS) + b"\n"
    )
    text = [f"# {name}\n"]
    for key, told in known.items():
        ran_on = ", ".join(f"{what} {value}" for what, value in told["machine"].items())
        text += [f"*{key}: {told['at']}, {ran_on}*\n"]
        text += [Table(**table).markdown() for table in told["tables"]]
        text += [f"![{plot['title']}]({plot['file']})\n" for plot in told["plots"]]
        if told["facts"]:
            text += ["No timing:\n", *(f"- {Fact(**fact)}" for fact in told["facts"]), ""]
    page.write_text("\n".join(text))
    return [data, page, *plotted]


def _draw(plot: Plot, path: Path) -> Path:
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    axes = figure.subplots()
    for label, points in plot.lines.items():
        axes.plot(*zip(*points, strict=True), marker="o", label=label)
    if plot.limit is not None:
        axes.axhline(plot.limit, linestyle="--", color="grey")
    if plot.log_x:
        axes.set_xscale("log")
    axes.set(title=plot.title, xlabel=plot.x, ylabel=plot.y)
    axes.set_ylim(bottom=0)
    axes.legend()
    with mpl.rc_context({"svg.hashsalt": plot.name}):  # the same plot is the same file
        figure.savefig(path, metadata={"Date": None})
    return path


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _shown(value: Value) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 1000 or float(value).is_integer() else f"{value:.3f}"


if __name__ == "__main__":
    _as_child()
