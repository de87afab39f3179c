"""Every part of the pipeline beside its limit, in one run.

    python -m benchmarks [--quick] [--only core,scan]      also: make bench, make bench-deployment, make bench-quick

Writes results/bench.json, .md and plots (a quick run: nothing). It ends with 1 when a fact that is no timing misses its
bound, and must never fail for a timing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter

from benchmarks import (
    core,
    growth,
    history,
    into_weaviate,
    live,
    overlap,
    plan_scan,
    search,
    start_up,
    swaps,
    sweep,
    workers,
)
from benchmarks.harness import Bench, Part, services, write

PARTS: Mapping[str, Callable[[Bench], Part]] = {
    "core": core.measure,
    "history": history.measure,
    "growth": growth.measure,
    "plan_scan": plan_scan.measure,
    "into_weaviate": into_weaviate.measure,
    "sweep": sweep.measure,
    "live": live.measure,
    "overlap": overlap.measure,
    "workers": workers.measure,
    "start_up": start_up.measure,
    "search": search.measure,
    "swaps": swaps.measure,
}
LONG = frozenset({"growth", "live", "workers", "start_up", "swaps"})
"""Would show nothing in a few seconds: left out of a quick run."""
DEPLOYMENTS = frozenset({"workers", "search", "swaps"})
"""Of several processes together, a quarter of an hour: `make bench-deployment`, or those that are asked for by name."""


def run(names: Sequence[str], *, quick: bool) -> int:
    """Each part's tables are printed as they come; all of them are written at the end. The exit status."""
    done: dict[str, Part] = {}
    with services() as addresses:
        for name in names:
            began = perf_counter()
            done[name] = PARTS[name](Bench(addresses, quick))
            for table in done[name].tables:
                print(table.markdown(), flush=True)
            print(f"{name}: {perf_counter() - began:.0f} s\n", flush=True)
    facts = [fact for part in done.values() for fact in part.facts]
    for fact in facts:
        print(fact)
    if not quick:
        for path in write("bench", done):
            print(f"wrote {path}")
    return 0 if all(fact.holds for fact in facts) else 1


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="in less than two minutes; writes nothing")
    parser.add_argument("--only", help=f"some of {','.join(PARTS)}")
    given = parser.parse_args()
    left_out = LONG if given.quick else DEPLOYMENTS
    names = given.only.split(",") if given.only else [name for name in PARTS if name not in left_out]
    if unknown := set(names) - PARTS.keys():
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    sys.exit(run(names, quick=given.quick))


if __name__ == "__main__":
    main()
