"""Whether a space has been asked often enough to be as fast as it will be: the rounds' figures in, a verdict out.

Pure: it asks no query and reads no clock.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import JsonValue

from streams.state import Sample

LEAST_ROUNDS = 2
WITHIN = 0.2
NOISE_MS = 2.0
LEAST_FAILED = 3
"""Queries that must have been asked before it counts that every one of them failed."""


def stable(rounds: Sequence[Sample]) -> bool:
    """The 95th percentile of the last round is within 20% of the one before, or within 2 ms of it."""
    if len(rounds) < LEAST_ROUNDS:
        return False
    before, last = rounds[-2].p95_ms, rounds[-1].p95_ms
    return before is not None and last is not None and abs(last - before) <= max(WITHIN * before, NOISE_MS)


def all_failed(rounds: Sequence[Sample]) -> bool:
    """Nothing was ever answered, of enough queries to tell."""
    asked = sum(one.asked for one in rounds)
    return asked >= LEAST_FAILED and sum(one.errors for one in rounds) == asked


def unheard(rounds: Sequence[Sample]) -> bool:
    """Nothing was answered yet, and too few were asked to call that a failure."""
    return sum(one.asked for one in rounds) < LEAST_FAILED and all(one.p95_ms is None for one in rounds)


def figures(rounds: Sequence[Sample], took_s: float) -> dict[str, JsonValue]:
    """For the outcome and the journal: what was asked, and in `text` the line that a person reads."""
    failed = sum(one.errors for one in rounds)
    known = [one.p95_ms for one in rounds if one.p95_ms is not None]
    done = stable(rounds)
    times = f"{len(rounds)} round{'s' if len(rounds) != 1 else ''} of {max(one.asked for one in rounds)} queries"
    said = f"warmed up: {times}" if done else f"warm-up ended after {took_s:.1f} s, latency not yet stable: {times}"
    if known:
        said += f", p95 {_ms(known[0])} ms -> {_ms(known[-1])} ms"
    if failed:
        said += f", {failed} failed"
    return {
        "rounds": len(rounds),
        "asked": sum(one.asked for one in rounds),
        "failed": failed,
        "stable": done,
        "took_s": round(took_s, 3),
        "p95_ms": [one.p95_ms for one in rounds],
        "text": said,
    }


def _ms(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"
