"""More workers, and more versions in one worker, where the endpoint is the limit: each has one of its own.

Real `crossfade worker` processes, on one consumer group for each version; their limit is the same with one of them.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from time import perf_counter

from pydantic import JsonValue

from benchmarks import deployment
from benchmarks.deployment import cpu_s, documents, ended, resolved, start_worker, version
from benchmarks.gpu_server import Model
from benchmarks.harness import Bench, Control, Figures, Part, Table, Value, endpoint, ratio, spread
from tests.deployment import Deployment

LEAST_OF_LINEAR, LEAST_OF_ENDPOINT = 0.9, 0.95
MODEL = Model(documents_per_s=90, slots=2, batch=8, tokens=64)  # of four of them, Weaviate takes all
PARTITIONS = 8
FROM, TO = 0.2, 0.7  # of the documents: between these all are at work


def _raw(name: str, url: str) -> dict[str, JsonValue]:
    """Every version is a model of its own, and has the same work."""
    return {**version(url, max_batch=MODEL.batch), "query_prefix": name}


async def _run(bench: Bench, workers: int, versions: int, seconds: float) -> Figures:
    """Replays of all the versions at once, from the moment on at which every partition has its owner and its plan."""
    names = [f"v{number}" for number in range(versions)]
    count = int(MODEL.documents_per_s * seconds * workers)
    with ExitStack() as stack:
        endpoints = [[stack.enter_context(endpoint(MODEL)) for _ in names] for _ in range(workers)]
        async with deployment.deployment(bench.services, partitions=PARTITIONS) as d:
            hold = Path(d.folder) / "hold"
            hold.touch()
            d.set_collection("throttle", {"file": str(hold)})
            await d.produce(documents(0, count, tokens=MODEL.tokens))
            for name, control in zip(names, endpoints[0], strict=True):
                d.add_version(name, _raw(name, control.url))
            processes = [  # the address of an endpoint is no part of the model
                start_worker(d, {name: _raw(name, control.url) for name, control in zip(names, own, strict=True)})
                for own in endpoints
            ]
            for name in names:
                await d.until_stage(name, "building")
                await d.until(partial(_planned, d, name, workers, count))
            hold.unlink()
            rates, used_s, embedded = await _window(d, names, [c for own in endpoints for c in own], processes, count)
            for process in processes:
                await ended(process, kill=True)
    of_endpoint = [rate / MODEL.documents_per_s for rate in rates]
    return {
        "per_s": sum(rates),
        "of_endpoint": statistics.mean(of_endpoint),
        "least_of_endpoint": min(of_endpoint),
        "cpu_us": 1e6 * used_s / embedded,
        "embedded": embedded / (count * versions),
    }


def _planned(d: Deployment, name: str, workers: int, count: int) -> bool:
    """Every worker has as many partitions as the others, and has planned them."""
    owners = [record.worker for record in d.progress.partitions(d.build(name))]
    shares = [owners.count(one) for one in set(owners)]
    return shares == [PARTITIONS // workers] * workers and d.counters(name).total == count


async def _window(
    d: Deployment,
    names: Sequence[str],
    endpoints: Sequence[Control],
    processes: Sequence[subprocess.Popen[bytes]],
    count: int,
) -> tuple[list[float], float, float]:
    """Texts a second of each endpoint, the workers' CPU in seconds, and documents embedded, while all are at work."""

    def look() -> tuple[float, list[float], float]:
        texts = [control.books()["texts"] for control in endpoints]
        return perf_counter(), texts, sum(cpu_s(process) for process in processes)

    await d.until(lambda: all(resolved(d, name) >= FROM * count for name in names))
    began_s, before, used_before_s = look()
    await d.until(lambda: all(resolved(d, name) >= TO * count for name in names))
    ended_s, after, used_s = look()
    texts = [late - early for late, early in zip(after, before, strict=True)]
    return [some / (ended_s - began_s) for some in texts], used_s - used_before_s, sum(texts)


def measure(bench: Bench) -> Part:
    seconds, rounds = bench.sized(4, 4), bench.sized(5, 1)
    shapes = [(1, 1), (2, 1)] if bench.quick else [(1, 1), (2, 1), (4, 1), (1, 2), (1, 4)]
    figures: dict[str, list[Figures]] = {}
    for number in range(rounds):
        for workers, versions in reversed(shapes) if number % 2 else shapes:
            one = asyncio.run(_run(bench, workers, versions, seconds))
            figures.setdefault(f"{workers} workers, {versions} versions", []).append(one)
    alone = figures["1 workers, 1 versions"]
    rows: list[dict[str, Value]] = []
    for workers, versions in shapes:
        of = figures[f"{workers} workers, {versions} versions"]
        linear = [{"per_s": one["per_s"] / (workers * versions)} for one in of]
        rows.append(
            {
                "workers": workers,
                "versions": versions,
                "texts/s": str(spread(of, "per_s")),
                "of linear": str(ratio(linear, alone, "per_s")),
                "of the endpoint's rate": str(spread(of, "of_endpoint")),
                "the slowest": str(spread(of, "least_of_endpoint")),
                "CPU a text, us": str(spread(of, "cpu_us")),
            }
        )
    what = (
        f"A replay over {PARTITIONS} partitions into Weaviate; each version has in each worker an endpoint of "
        f"{MODEL.documents_per_s:g} texts/s. Wanted: at least {LEAST_OF_LINEAR:g} of linear with more workers, at "
        f"least {LEAST_OF_ENDPOINT:g} of each endpoint's rate with more versions, and CPU a text that does not grow."
    )
    return Part([Table("Workers and versions", what, rows)], details=figures)
