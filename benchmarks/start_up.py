"""How long one waits: for the command line, for a worker's first event, and for a worker to end.

The limits beside them are Python itself and the client libraries that have to be imported.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Sequence
from time import perf_counter

from benchmarks import deployment
from benchmarks.deployment import documents, resolved, version
from benchmarks.gpu_server import Model
from benchmarks.harness import ROOT, Bench, Fact, Figures, Part, Table, Value, endpoint, ratio, spread
from tests.deployment import RUN_CROSSFADE, Deployment

MOST_S = {"crossfade --help": 0.3, "crossfade status": 1.5, "first event": 10.0, "stop, at rest": 5.0}
MOST_S |= {"stop, in a replay": 5.0}
PYTHON, CLIENTS = "python -c pass", "python -c 'import confluent_kafka, faust'"
MODEL = Model(documents_per_s=400)
REPLAYED_FIRST = 500  # before the worker is told to stop, of many more


def _timed(arguments: Sequence[str]) -> float:
    """Seconds of a Python process from its start to its end."""
    began = perf_counter()
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, cwd=ROOT, env={**os.environ}, check=True)
    return perf_counter() - began


async def _stopped(d: Deployment, worker: subprocess.Popen[bytes]) -> float:
    began = perf_counter()
    if status := await d.end_worker(worker):
        raise RuntimeError(f"the worker ended with {status}")
    return perf_counter() - began


async def _first_event(d: Deployment, number: int) -> tuple[float, subprocess.Popen[bytes]]:
    """Of a build that is at rest: the seconds from the start of a worker until it has one more document stored."""
    space = d.out.store.space(d.build("v1").space)
    before = await space.count()
    await d.produce(documents(1_000_000 + number, 1, tokens=MODEL.tokens))
    began = perf_counter()
    worker = d.start_worker()
    while await space.count() == before:  # noqa: ASYNC110  polled: what counts is that it is there
        await asyncio.sleep(0.02)
    return perf_counter() - began, worker


async def _rounds(bench: Bench) -> dict[str, list[Figures]]:
    seconds: dict[str, list[Figures]] = {}

    def note(name: str, took_s: float) -> None:
        seconds.setdefault(name, []).append({"s": took_s})

    run = ["-c", RUN_CROSSFADE]
    with endpoint(MODEL) as control:
        async with deployment.deployment(bench.services, partitions=2) as d:
            await d.produce(documents(0, 10, tokens=MODEL.tokens))
            d.add_version("v1", version(control.url))
            worker = d.start_worker()
            await d.until_stage("v1", "ready")
            await d.end_worker(worker)
            for number in range(bench.sized(5, 1)):
                note(PYTHON, _timed(["-c", "pass"]))
                note("crossfade --help", _timed([*run, "--help"]))
                note(CLIENTS, _timed(["-c", "import confluent_kafka, faust"]))
                note("crossfade status", _timed([*run, "--config", str(d.config_path), "status"]))
                took_s, worker = await _first_event(d, number)
                note("first event", took_s)
                note("stop, at rest", await _stopped(d, worker))
        for _ in range(bench.sized(5, 1)):
            async with deployment.deployment(bench.services, partitions=2) as d:
                await d.produce(documents(0, 20 * REPLAYED_FIRST, tokens=MODEL.tokens))
                d.add_version("v1", version(control.url))
                worker = d.start_worker()
                await d.until_stage("v1", "building")
                await d.until(lambda d=d: resolved(d, "v1") >= REPLAYED_FIRST)  # type: ignore[misc]
                note("stop, in a replay", await _stopped(d, worker))
    return seconds


def measure(bench: Bench) -> Part:
    figures = asyncio.run(_rounds(bench))
    rows: list[dict[str, Value]] = []
    for name, of in figures.items():
        limit = PYTHON if "--help" in name else CLIENTS
        beside = str(ratio(of, figures[limit], "s")) if name.startswith("crossfade") else ""
        row: dict[str, Value] = {"what": name, "s": str(spread(of, "s")), "at most": MOST_S.get(name)}
        rows.append({**row, "as a multiple of": f"{limit}: {beside}" if beside else ""})
    what = (
        "From the start of the process to its end; first event: from the start of a worker, on a build that is ready, "
        "until a document that waits on the topic is stored; stop: from SIGTERM to the end of the process, at rest and "
        f"in the middle of a replay at {MODEL.documents_per_s:g} documents/s."
    )
    return Part([Table("Start and stop", what, rows)], [_imported()], details=figures)


def _imported() -> Fact:
    """What `--help` and `status` must not wait for."""
    look = "import sys, streams.cli.status; print(sum(name in sys.modules for name in ('weaviate', 'faust', 'grpc')))"
    found = subprocess.run([sys.executable, "-c", look], capture_output=True, cwd=ROOT, check=True, text=True)
    return Fact("start-up: client libraries that status imports and never uses", int(found.stdout), most=0)
