"""A whole deployment for a measurement: real `crossfade worker` processes on a topic of their own.

It must never look into a worker: what it used and did is told by the operating system, the endpoints and the topics.
"""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import yaml
from pydantic import JsonValue

from benchmarks.gpu_server import CHARS_PER_TOKEN, DIMENSIONS, MODEL
from benchmarks.harness import ROOT, peak_mb
from connectors.services import Addresses
from tests.deployment import RUN_CROSSFADE, Deployment, Event, deployed

LOOK_EVERY_S = 0.2
_WORDS = [f"word{number * 7919 % 100_003:06d}" for number in range(5000)]


@asynccontextmanager
async def deployment(
    services: Addresses, *, partitions: int, more: Mapping[str, JsonValue] | None = None
) -> AsyncIterator[Deployment]:
    """A new topic, nothing running. `more`: of the collection's configuration."""
    name = uuid.uuid4().hex[:8]
    collection: dict[str, JsonValue] = {"text": {"fields": ["text"]}, **(more or {})}
    with tempfile.TemporaryDirectory(prefix="crossfade-bench-", ignore_cleanup_errors=True) as folder:
        async with deployed(
            services,
            Path(folder),
            f"bench-{name}",
            f"docs-{name}",
            f"Bench_{name}",
            collection,
            session_timeout_s=45.0,
            write_timeout_s=20.0,
        ) as made:
            await made.out.topics.ensure_topic(made.topic, partitions, {"cleanup.policy": "compact"})
            try:
                yield made
            finally:
                await made.out.topics.delete_topic(made.topic)


def version(url: str, **more: JsonValue) -> dict[str, JsonValue]:
    """Of a collection: an endpoint of `gpu_server`; `more` goes to its embedder."""
    return {"embedder": {"provider": "tei", "url": url, "model": MODEL, **more}, "dimensions": DIMENSIONS}


def documents(first: int, count: int, *, tokens: int) -> Iterator[Event]:
    """Puts of texts that are all of this length, and no two alike."""
    size = tokens * CHARS_PER_TOKEN - 1
    for number in range(first, first + count):
        drawn = random.Random(number)
        text = f"{number} " + " ".join(drawn.choices(_WORDS, k=size // 11 + 1))
        yield f"document-{number:09d}", {"text": text[:size].ljust(size, "x")}, None


def start_worker(deployed: Deployment, versions: Mapping[str, JsonValue]) -> subprocess.Popen[bytes]:
    """A worker whose configuration has these versions instead, as where each worker has an endpoint beside it."""
    number = len(deployed.workers)
    path = deployed.folder / f"worker-{number}.yaml"
    collections = deployed.raw["collections"]
    assert isinstance(collections, dict)
    ((name, collection),) = collections.items()
    assert isinstance(collection, dict)
    raw = {**deployed.raw, "collections": {name: {**collection, "versions": versions}}, "metrics": {"listen": "none"}}
    path.write_text(yaml.safe_dump(raw))
    with (deployed.folder / f"worker-{number}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", RUN_CROSSFADE, "--config", str(path), "worker"],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
        )
    deployed.workers.append(process)
    return process


def cpu_s(process: subprocess.Popen[bytes]) -> float:
    """CPU the process has used until now, user and system, in seconds; nan where the system does not say."""
    try:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return float("nan")
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def waited_s(process: subprocess.Popen[bytes]) -> float:
    """How long its first thread was ready to run until now and had no core, in seconds; nan where the system does not
    say."""
    try:
        return int(Path(f"/proc/{process.pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return float("nan")


def busy_s() -> float:
    """CPU that the whole machine has used until now, in seconds of one core; nan where the system does not say."""
    try:
        user, nice, system, _, _, irq, soft = map(int, Path("/proc/stat").read_text().split()[1:8])
    except (OSError, ValueError):
        return float("nan")
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")


async def ended(process: subprocess.Popen[bytes], *, kill: bool = False) -> tuple[float, float]:
    """Stop a worker. The CPU it has used in all, in seconds, and the most memory it held until then, in MB."""
    held_mb = peak_mb(process.pid)
    process.kill() if kill else process.terminate()
    _, status, used = await asyncio.to_thread(os.wait4, process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return used.ru_utime + used.ru_stime, held_mb


def resolved(deployed: Deployment, name: str) -> int:
    """Events of both lanes, as the owners last reported."""
    counters = deployed.counters(name)
    return counters.replayed + counters.live_resolved + counters.suppressed_by_live
