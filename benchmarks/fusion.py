"""What users of a search are shown while a model is replaced: nDCG@10 at each share migrated, of every fusion.

    python -m benchmarks.fusion        # a minute; results/fusion.json and .md, docs/fusion.svg

On the Cranfield collection (CROSSFADE_DATA, or shared/data beside the checkout), from one model without a network to
a better one. Search is exact and the fusions are the router's own, so the figures are of the fusions alone.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from uuid import UUID

import numpy as np
import orjson

from benchmarks.harness import RESULTS, Part, Table, Value, write
from connectors.embedders.hashing import HashingEmbedder
from connectors.protocols import Hit, Vectors
from streams.config_operation import FusionName, Routes
from streams.migration.evaluate import evaluate
from streams.search.fusion import Calibration, Pair, calibration_of, depth_of, merge
from streams.search.routes import Situation, decide
from streams.state import BuildState
from streams.versions import Stage

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("CROSSFADE_DATA", ROOT.parent / "shared" / "data")) / "cranfield"
PLOT = ROOT / "docs" / "fusion.svg"

K = 10
SHARES = (0.0, 0.10, 0.25, 0.50, 0.75, 0.90, 1.0)
ORDERS = 5  # random ones, beside that of the collection
SAMPLED = 50  # queries whose scores the calibration is made of
FUSIONS: tuple[FusionName, ...] = ("places", "reciprocal", "weighted", "calibrated")
MOST_BELOW = 0.005

Golden = Sequence[tuple[str, Mapping[str, float]]]
Ranked = Sequence[Sequence[str]]
Column = dict[str, float]


@dataclass(frozen=True, slots=True)
class Models:
    """An old model and a new one."""

    name: str
    old: HashingEmbedder
    new: HashingEmbedder


@dataclass(frozen=True, slots=True)
class Scores:
    """float[queries, documents] of each model: cosine, as `Hit.score` has it."""

    keys: Sequence[str]
    old: Vectors
    new: Vectors


def read() -> tuple[dict[str, str], Golden]:
    """Documents that have a text, in the collection's order, and the judged queries."""
    documents: dict[str, str] = {}
    for line in (DATA / "documents.jsonl").read_bytes().splitlines():
        event = orjson.loads(line)
        if text := str((event["value"] or {}).get("text", "")).strip():
            documents[event["key"]] = text
    queries = [orjson.loads(line) for line in (DATA / "queries.jsonl").read_bytes().splitlines()]
    return documents, [(query["query"], query["relevant"]) for query in queries]


async def scores_of(models: Models, documents: Mapping[str, str], golden: Golden) -> Scores:
    async def cosines(model: HashingEmbedder) -> Vectors:
        queries = (await model.embed([query for query, _ in golden])).vectors
        return np.asarray((1 + unit(queries) @ unit((await model.embed(list(documents.values()))).vectors).T) / 2)

    return Scores(list(documents), await cosines(models.old), await cosines(models.new))


def unit(vectors: Vectors) -> Vectors:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12), np.float32)


def nearest(scores: Vectors, keys: Sequence[str], among: Sequence[int], depth: int) -> list[Hit]:
    """Of one query. What is not `among` is not in the space."""
    held = np.asarray(among, np.int64)
    best = held[np.argsort(-scores[held], kind="stable")[:depth]] if len(held) else held
    return [Hit(UUID(int=int(at)), keys[at], 0, float(scores[at]), 0.0, {}, int(at)) for at in best]


def ndcg(answers: Ranked, golden: Golden) -> float:
    """As `crossfade evaluate` counts it, with the gain of graded judgements."""
    judged = [(list(ids), grades) for ids, (_, grades) in zip(answers, golden, strict=True)]
    return evaluate(judged, K, "exponential").ndcg


def measure(scores: Scores, golden: Golden, order: Sequence[int], share: float, sampled: Sequence[int]) -> Column:
    """nDCG of each way to answer, with the first `share` of the documents in `order` migrated."""
    everything, moved = range(len(order)), order[: round(share * len(order))]
    depth = max(depth_of(fusion, K) for fusion in FUSIONS)
    queries = range(len(golden))
    old = [nearest(scores.old[q], scores.keys, everything, depth) for q in queries]
    new = [nearest(scores.new[q], scores.keys, moved, depth) for q in queries]
    held = {scores.keys[at]: at for at in moved}
    calibration = calibration_of(
        (by_old[hit.doc_id], hit.score)
        for q in sampled
        for by_old in [{hit.doc_id: hit.score for hit in old[q]}]
        for hit in new[q]
        if hit.doc_id in by_old
    )

    def merged(fusion: FusionName, coverage: float) -> Ranked:
        return [fused(fusion, old[q], new[q], held, coverage, calibration) for q in queries]

    def by_default() -> Ranked:
        """The hybrid route, as configured when nobody says anything."""
        way = decide(situation(share), Routes(), mode="hybrid")
        if way.beside is not None:
            return merged(way.fusion, way.coverage)
        return [[hit.doc_id for hit in hits[:K]] for hits in (new if way.build.version == "new" else old)]

    column = {
        "old": ndcg([[hit.doc_id for hit in hits[:K]] for hits in old], golden),
        "new, as far as it is": ndcg([[hit.doc_id for hit in hits[:K]] for hits in new], golden),
    }
    column |= {fusion: ndcg(merged(fusion, share), golden) for fusion in FUSIONS}
    return column | {"hybrid by default": ndcg(by_default(), golden)}


def fused(
    fusion: FusionName,
    old: Sequence[Hit],
    new: Sequence[Hit],
    held: Mapping[str, int],
    coverage: float,
    calibration: Calibration | None,
) -> list[str]:
    depth = depth_of(fusion, K)
    in_old, in_new = {hit.doc_id for hit in old[:depth]}, {hit.doc_id for hit in new[:depth]}
    new_at = {key: held[key] for key in in_old - in_new if key in held}
    old_at = {key: held[key] for key in in_new - in_old}
    pair = Pair(old[:depth], new[:depth], old_at, new_at)
    return [one.hit.doc_id for one in merge(fusion, pair, K, coverage=coverage, calibration=calibration)]


def situation(share: float) -> Situation:
    def build(version: str, epoch: int, stage: Stage) -> BuildState:
        return BuildState(
            collection="cranfield",
            version=version,
            epoch=epoch,
            stage=stage,
            envelope={},
            fingerprint=version,
            space=version,
            topic="cranfield",
        )

    return Situation(build("old", 1, Stage.SERVING), None, build("new", 2, Stage.BUILDING), share)


def table_of(models: Models, scores: Scores, golden: Golden) -> tuple[Table, list[Column]]:
    """A row for each share: means over the orders, and how far the default was below the old space at worst."""
    rng = np.random.default_rng(20_261_121)
    count = len(scores.keys)
    orders = [list(range(count))] + [rng.permutation(count).tolist() for _ in range(ORDERS)]
    samples = [rng.permutation(len(golden))[:SAMPLED].tolist() for _ in orders]
    rows: list[dict[str, Value]] = []
    means: list[Column] = []
    for share in SHARES:
        columns = [measure(scores, golden, order, share, sample) for order, sample in zip(orders, samples, strict=True)]
        mean = {name: fmean(column[name] for column in columns) for name in columns[0]}
        worst = {
            name: min(column[name] - column["old"] for column in columns) for name in ("hybrid by default", *FUSIONS)
        }
        means.append(mean | {f"{name}, worst": value for name, value in worst.items()})
        shown: dict[str, Value] = {name: f"{value:.3f}" for name, value in mean.items()}
        rows.append({"migrated": f"{share:.0%}", **shown, "default - old, worst": f"{worst['hybrid by default']:+.3f}"})
    what = (
        f"nDCG@{K} over {len(golden)} queries and {count} documents; means over {len(orders)} orders of migration: the "
        f"collection's own and {ORDERS} random ones. Calibrated by {SAMPLED} sampled queries. The last column is the "
        "smallest difference in any order."
    )
    return Table(models.name, what, rows), means


def held_good(means: Iterable[Column]) -> bool:
    """The default is in no order below the old space by more than MOST_BELOW, and is the new one at the end."""
    columns = list(means)
    end = columns[-1]
    return (
        all(column["hybrid by default, worst"] >= -MOST_BELOW for column in columns)
        and end["hybrid by default"] == end["new, as far as it is"]
    )


def plot(title: str, means: Sequence[Column]) -> str:
    """One SVG: a line for each way to answer, over the share that is migrated."""
    names = [name for name in means[0] if not name.endswith(", worst")]
    colours = ("#777777", "#b0b0b0", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000")
    most = max(column[name] for column in means for name in names) * 1.05

    def x(share: float) -> float:
        return 60 + 440 * share

    def y(value: float) -> float:
        return 280 - 250 * value / most

    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 700 330" font-family="sans-serif" font-size="12">',
        f"<title>{title}</title>",
        '<rect width="700" height="330" fill="#ffffff"/>',
        f'<text x="60" y="18">nDCG@{K}, {title}</text>',
        '<text x="500" y="318" text-anchor="end">share of the documents migrated</text>',
    ]
    for step in range(int(most / 0.05) + 1):
        at = y(0.05 * step)
        parts.append(f'<line x1="60" x2="500" y1="{at:.1f}" y2="{at:.1f}" stroke="#e0e0e0"/>')
        parts.append(f'<text x="54" y="{at + 4:.1f}" text-anchor="end">{0.05 * step:.2f}</text>')
    parts += [f'<text x="{x(share):.1f}" y="298" text-anchor="middle">{share:.0%}</text>' for share in SHARES]
    for at_name, (name, colour) in enumerate(zip(names, colours, strict=True)):
        points = " ".join(f"{x(s):.1f},{y(c[name]):.1f}" for s, c in zip(SHARES, means, strict=True))
        style = ' stroke-dasharray="5 4"' if name == "hybrid by default" else ""
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"{style}/>')
        height = 40 + 20 * at_name
        parts.append(f'<line x1="515" x2="540" y1="{height}" y2="{height}" stroke="{colour}" stroke-width="2"{style}/>')
        parts.append(f'<text x="546" y="{height + 4}">{name}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


async def run() -> None:
    if not DATA.is_dir():
        raise SystemExit(f"{DATA} is not there; set CROSSFADE_DATA to the shared data folder")
    documents, golden = read()
    strong = HashingEmbedder(512)
    pairs = [
        Models(
            "From far worse: hashing of letters, 64 dimensions, to words and letters, 512",
            HashingEmbedder(64, word_ngrams=None, char_ngrams=(3, 5)),
            strong,
        ),
        Models(
            "From a little worse: hashing of words and letters, 256 dimensions to 512", HashingEmbedder(256), strong
        ),
    ]
    tables: list[Table] = []
    details: dict[str, list[Column]] = {}
    for models in pairs:
        table, means = table_of(models, await scores_of(models, documents, golden), golden)
        tables.append(table)
        details[models.name] = means
        print(table.markdown(), flush=True)
        print("the default holds" if held_good(means) else "THE DEFAULT DOES NOT HOLD", flush=True)
    PLOT.write_text(plot("256 to 512 dimensions", details[pairs[-1].name]))
    print(*write("fusion", {"fusion": Part(tables, details=details)}, RESULTS), PLOT, sep="\n")
    if not all(held_good(means) for means in details.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    asyncio.run(run())
