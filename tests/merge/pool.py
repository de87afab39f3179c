"""Many histories over all cores: each process plays blocks of seeds, with the production code whole or broken.

It must never share anything between two histories: a seed fails the same way alone.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from tests.merge import broken, scenario

BLOCK = 25


@dataclass(frozen=True, slots=True)
class Found:
    """The first seed that fails; `report` says how, with a short history."""

    seed: int
    report: str


@contextmanager
def processes(count: int | None = None) -> Iterator[ProcessPoolExecutor]:
    """As many as there are cores, each silent."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count or os.cpu_count() or 1, mp_context=context, initializer=_quiet)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _quiet() -> None:
    logging.disable(logging.CRITICAL)
    warnings.filterwarnings("ignore", message="coroutine .* was never awaited")  # of tasks cancelled before they began
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)  # a history lives for a tenth of a second


def play(first: int, end: int, forgetting: bool = False) -> Found | None:
    """The unbroken code."""
    for seed in range(first, end):
        played = scenario.attempt(seed, forgetting=forgetting)
        if played.failure:
            return Found(seed, scenario.report(seed, played, forgetting=forgetting))
    return None


def play_until(first: int, deadline_s: float) -> tuple[int, Found | None]:
    """Seeds from `first` on until a time of the monotonic clock; how many were played."""
    seed = first
    while time.monotonic() < deadline_s:
        if found := play(seed, seed + 1):
            return seed - first + 1, found
        seed += 1
    return seed - first, None


def hunt(fault: str, most: int) -> Found | None:
    """The first of so many seeds that shows the fault, which must pass without it."""
    forgetting = broken.FAULTS[fault].forgetting
    with broken.break_rule(fault):
        for seed in range(most):
            played = scenario.attempt(seed, forgetting=forgetting)
            if played.failure:
                report = scenario.report(seed, played, forgetting=forgetting, command=f"tests.merge.broken {fault}")
                break
        else:
            return None
    unbroken = scenario.attempt(seed, forgetting=forgetting)
    assert not unbroken.failure, f"seed {seed} fails in unbroken code too: {unbroken.failure}"
    return Found(seed, report)
