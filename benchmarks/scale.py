"""What a migration of a million, a hundred million or a billion documents needs, from what was measured here.

    python -m benchmarks.scale        prints the tables of docs/scale.md from results/bench.json

Estimates: each cost is taken to grow in proportion, and what was measured on this machine to be as fast on yours.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import orjson

from benchmarks.harness import RESULTS, Table, Value
from streams.migration.plan import FLOAT_BYTES, INDEX_BYTES, LOOKUP_BYTES, MEMORY_FACTOR

DOCUMENTS = (1_000_000, 100_000_000, 1_000_000_000)
DIMENSIONS = (384, 1024, 3072)
TOKENS, TEXT_BYTES, RECORD_BYTES = 180, 700, 830
PRICE = 0.02  # USD for a million tokens, as small hosted models cost
GPU_PER_S = 1_500.0  # documents of 64 tokens: one A10G
GPUS, WORKERS, WEAVIATE_CORES = 8, 4, 32
SCAN_MEMORY, REPLAY_MEMORY = 31, 60  # bytes a key at the peak: see docs/scale.md


@dataclass(frozen=True, slots=True)
class Costs:
    """Measured: core seconds of a document or record. `write`: by dimensions, Weaviate and writer together."""

    scan: float
    merge: float
    write: Mapping[int, float]
    sweep_per_s: float


def measured() -> Costs:
    """Raises FileNotFoundError before the first `make bench`."""
    parts = orjson.loads((RESULTS / "bench.json").read_bytes())["parts"]

    def median(figures: Sequence[Mapping[str, float]], name: str) -> float:
        return statistics.median(one[name] for one in figures)

    writes = {
        int(name.split()[0]): 2 / median(next(f for who, f in of.items() if who.startswith("by hand: proto")), "per_s")
        for name, of in parts["into_weaviate"]["details"].items()
    }
    slope = (writes[1024] - writes[384]) / (1024 - 384)
    scans = [one for name, of in parts["plan_scan"]["details"].items() if name != "index" for one in of["scan"]]
    return Costs(
        median(scans, "cpu_us") / 1e6,
        median(parts["core"]["details"]["replay lane"], "cpu_us") / 1e6,
        {**writes, 3072: writes[1024] + slope * (3072 - 1024)},
        median(parts["sweep"]["details"]["a sweep"], "per_s"),
    )


def span(seconds: float) -> str:
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def size(amount: float) -> str:
    return f"{amount / 1e12:.1f} TB" if amount >= 1e12 else f"{amount / 1e9:.1f} GB"


def tables(costs: Costs) -> list[Table]:
    work: list[dict[str, Value]] = []
    room: list[dict[str, Value]] = []
    for documents in DOCUMENTS:
        work.append(
            {
                "documents": f"{documents:,}",
                "log": size(documents * RECORD_BYTES),
                "plan scan": span(documents * costs.scan / WORKERS),
                f"embedding, {GPUS} GPUs": span(documents * TOKENS / 64 / (GPUS * GPU_PER_S)),
                "merge": span(documents * costs.merge / WORKERS),
                "sweep": span(documents / costs.sweep_per_s + documents * costs.scan / WORKERS),
                "memory of a worker": size(160e6 + REPLAY_MEMORY * documents / WORKERS),
                "tokens, USD": f"{documents * TOKENS / 1e6 * PRICE:,.0f}",
            }
        )
        for dimensions in DIMENSIONS:
            vectors = documents * dimensions * FLOAT_BYTES
            disk = vectors + documents * (INDEX_BYTES + LOOKUP_BYTES + TEXT_BYTES)
            room.append(
                {
                    "documents": f"{documents:,}",
                    "dimensions": str(dimensions),
                    f"writing, {WEAVIATE_CORES} cores": span(documents * costs.write[dimensions] / WEAVIATE_CORES),
                    "Weaviate's memory": size(MEMORY_FACTOR * vectors),
                    "its disk": size(disk),
                }
            )
    what = f"Documents of {RECORD_BYTES} bytes and {TOKENS} tokens, one chunk each; {WORKERS} workers."
    held = "Of one replica of the new space, unquantized; the old one stands beside it until it is retired."
    return [Table("The pipeline", what, work), Table("The space", held, room)]


def main() -> None:
    for table in tables(measured()):
        print(table.markdown())


if __name__ == "__main__":
    main()
