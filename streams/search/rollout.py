"""A version that is ready answers a share of the callers, raised step by step, and none beyond a failed bound.

Pure: no clock is read and no query seen; a caller who is in at one share is in at every larger one.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace

from streams.config_operation import Rollout

LEAST_P95_MS = 20.0
"""A faster serving version is compared as if it took that long: a ratio of very short times says nothing."""


DEVIATIONS = 3.0
"""A share of the queries of a window is above a bound when it is so many standard deviations above it: few queries are
looked at again and again there, and would end every long step by chance."""


@dataclass(frozen=True, slots=True)
class Observed:
    """Queries of one version over some time. `zero`: that found nothing; `p95_ms`: None before there are any."""

    queries: int = 0
    errors: int = 0
    zero: int = 0
    p95_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    """What the version that comes and the serving one were asked over the same time."""

    new: Observed = Observed()
    serving: Observed = Observed()


@dataclass(frozen=True, slots=True)
class Latency:
    """95% of these `queries` of the serving version took up to `p95_ms`; `when`, in words."""

    p95_ms: float
    queries: int
    when: str


@dataclass(frozen=True, slots=True)
class Seen:
    """At one step: since it began (`whole`), in its last `window_s` (`recent`), and of a step before it (`before`)."""

    whole: Pair = Pair()
    recent: Pair = Pair()
    before: Latency | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """The `share` of the callers since `since_s` (seconds of any clock); `stopped`: the bound that failed, or ""."""

    share: float
    since_s: float
    stopped: str = ""


def place_of(caller: str, build: str) -> float:
    """Where a caller stands in the order in which callers come in, 0 up to 1; another order for each build."""
    digest = hashlib.blake2b(f"{build}\0{caller}".encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


def is_in(caller: str, build: str, share: float) -> bool:
    """Whether the version answers this caller."""
    return place_of(caller, build) < share


def compared_with(bounds: Rollout, seen: Seen, *, recent: bool) -> Latency | None:
    """What the new version's latency is judged by, of the step as a whole or of its last window: the serving version's
    of the same time, or else of a longer one, or of a step before. The first with enough queries; without one the first
    there is. None while the serving version has answered nothing."""
    found = [(seen.recent.serving, "meanwhile")] if recent else []
    found.append((seen.whole.serving, "at this step"))
    known = [Latency(o.p95_ms, o.queries, when) for o, when in found if o.p95_ms is not None]
    known += [seen.before] if seen.before is not None else []
    enough = (latency for latency in known if latency.queries >= bounds.min_queries)
    return next(enough, known[0] if known else None)


def failed_bound(bounds: Rollout, seen: Seen) -> str:
    """The first bound that the new version's queries have crossed, of this step as a whole or of its last window, in
    words; "" while none is, or while there are too few of them to judge."""
    window = f" of the last {bounds.window_s:g} s"
    return _crossed(bounds, seen.whole.new, compared_with(bounds, seen, recent=False), "", 0.0) or _crossed(
        bounds, seen.recent.new, compared_with(bounds, seen, recent=True), window, DEVIATIONS
    )


def _crossed(bounds: Rollout, new: Observed, compared: Latency | None, of: str, deviations: float) -> str:
    if new.queries < bounds.min_queries:
        return ""
    for name, count, bound, did in (
        ("max_errors", new.errors, bounds.max_errors, "failed"),
        ("max_zero_results", new.zero, bounds.max_zero_results, "found nothing"),
    ):
        most = bound + deviations * math.sqrt(bound * (1 - bound) / new.queries)
        if (share := count / new.queries) > most:
            return f"{share:.1%} of its queries{of} {did}, above {name} {bound:.1%}"
    if new.p95_ms is None or compared is None:
        return ""
    most_ms = bounds.max_latency_ratio * max(compared.p95_ms, LEAST_P95_MS)
    if new.p95_ms <= most_ms:
        return ""
    return (
        f"95% of its queries{of} took up to {new.p95_ms:.0f} ms, above {most_ms:.0f} ms (max_latency_ratio "
        f"{bounds.max_latency_ratio:g}; the serving version took {compared.p95_ms:.0f} ms {compared.when})"
    )


def advance(standing: Standing, bounds: Rollout, seen: Seen, now_s: float) -> Standing:
    """What follows from the queries of this step: the same, the next step, or none with the reason."""
    if standing.share > 0 and (reason := failed_bound(bounds, seen)):
        return Standing(0.0, now_s, reason)
    ripe = now_s - standing.since_s >= bounds.every_s and seen.whole.new.queries >= bounds.min_queries
    if bounds.automatic and not standing.stopped and standing.share > 0 and ripe:
        return raised(standing, bounds, now_s)
    return standing


def raised(standing: Standing, bounds: Rollout, now_s: float) -> Standing:
    """The next step above the present share; unchanged at the last one. A person who raises forgives what failed."""
    higher = [step for step in bounds.steps if step > standing.share]
    if not higher:
        return standing
    return replace(standing, share=higher[0], since_s=now_s, stopped="")
