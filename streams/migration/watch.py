"""Whether what serves since a cutover does as well as what served before: a look's figures in, what to do out.

Pure: it asks no query and reads no clock, and it never decides on one look alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from streams.state import Bounds, Sample, Watching

IN_A_ROW = 2
LEAST_P95_MS = 20.0


@dataclass(frozen=True, slots=True)
class Answered:
    """One query's end. `found`: how many documents; None when it failed."""

    found: int | None
    took_ms: float


@dataclass(frozen=True, slots=True)
class Step:
    """What a look changes: a bound was `crossed`, all is `calm` again, or the watch's time is `over`."""

    to: Literal["crossed", "calm", "over"]
    reason: str = ""


def sample_of(answers: Sequence[Answered]) -> Sample:
    """The p95 is the nearest rank among those that were answered; None when none was."""
    took = sorted(one.took_ms for one in answers if one.found is not None)
    return Sample(
        asked=len(answers),
        zero=sum(one.found == 0 for one in answers),
        errors=sum(one.found is None for one in answers),
        p95_ms=took[math.ceil(0.95 * len(took)) - 1] if took else None,
    )


def crossed(before: Sample | None, now: Sample, bounds: Bounds) -> str | None:
    """The first bound that `now` is beyond, in words; None when it is within all of them.

    What was as bad before the cutover is not this version's doing. A p95 before of less than 20 ms counts as 20:
    below that the machine decides, not the model.
    """
    for what, most, bad, was in (
        ("failed", bounds.max_errors, now.errors, before.errors if before else 0),
        ("found nothing", bounds.max_zero_results, now.zero, before.zero if before else 0),
    ):
        share = bad / now.asked if now.asked else 0.0
        earlier = was / before.asked if before and before.asked else 0.0
        if share > most and share > earlier:
            return f"{bad} of {now.asked} queries {what}, more than {most:.1%}"
    if before is None or before.p95_ms is None or now.p95_ms is None:
        return None
    most_ms = bounds.max_latency_ratio * max(before.p95_ms, LEAST_P95_MS)
    if now.p95_ms > most_ms:
        return f"the 95th percentile is {now.p95_ms:.0f} ms, more than {most_ms:.0f} (before: {before.p95_ms:.0f})"
    return None


def next_step(watching: Watching, looks: Sequence[Sample], now_ms: int) -> Step | None:
    """After each look, oldest first: a bound counts when two looks in a row are beyond one, and so does calm."""
    last = [crossed(watching.before, look, watching.bounds) for look in looks[-IN_A_ROW:]]
    if len(last) == IN_A_ROW and (newest := last[-1]) is not None and None not in last:
        if watching.result == "watching":
            return Step("crossed", newest)
    elif len(last) == IN_A_ROW and not any(last) and watching.result == "crossed":
        return Step("calm")
    return Step("over") if now_ms >= watching.until_ms else None


def after(watching: Watching, step: Step) -> Watching:
    """The watch as it goes on from there."""
    if step.to == "crossed":
        return watching.model_copy(update={"result": "crossed", "reason": step.reason})
    if step.to == "calm":
        reason = f"within the bounds again; before: {watching.reason}"
        return watching.model_copy(update={"result": "watching", "reason": reason})
    return watching.model_copy(update={"result": "quiet" if watching.result == "watching" else "ended"})
