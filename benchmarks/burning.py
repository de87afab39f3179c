"""Processes that use CPU and do nothing else: what a piece of work costs those beside it by its CPU alone.

Each line on stdin is a piece of work, JSON: [seconds of CPU, seconds in which they are to be spent evenly].
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import orjson

from benchmarks.harness import ROOT

STEP_S = 0.01


class Burners:
    """Two of them, since a verb keeps worker and store busy at once."""

    def __init__(self, processes: list[asyncio.subprocess.Process]) -> None:
        self._processes = processes

    def burn(self, cpu_s: float, within_s: float) -> None:
        """Returns at once."""
        line = orjson.dumps([cpu_s / len(self._processes), within_s]) + b"\n"
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(line)


@asynccontextmanager
async def burners() -> AsyncIterator[Burners]:
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-m", "benchmarks.burning", stdin=subprocess.PIPE, cwd=ROOT
        )
        for _ in range(2)
    ]
    try:
        yield Burners(processes)
    finally:
        for process in processes:
            process.kill()
            await process.wait()


def _burn(cpu_s: float, within_s: float) -> None:
    """In steps, each followed by its share of the rest."""
    begun_s, spent_s = time.monotonic(), 0.0
    while spent_s < cpu_s:
        step_s = min(STEP_S, cpu_s - spent_s)
        since_s = time.process_time()
        while time.process_time() - since_s < step_s:
            pass
        spent_s += step_s
        time.sleep(max(0.0, begun_s + within_s * spent_s / cpu_s - time.monotonic()))


if __name__ == "__main__":
    for line in sys.stdin.buffer:
        _burn(*orjson.loads(line))
