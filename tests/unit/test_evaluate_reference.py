"""Our figures against those of `ir-measures` (trec_eval's): on generated rankings, and on the Cranfield collection.

Equal to 1e-9, query by query. The collection is of the shared data folder; what is generated needs nothing.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import ir_measures
import numpy as np
import pytest
from ir_measures import RR, P, R, nDCG

from connectors.embedders.hashing import HashingEmbedder
from streams.migration.evaluate import (
    Reply,
    Scored,
    compare,
    evaluate,
    ndcg_at,
    precision_at,
    recall_at,
    reciprocal_rank,
)
from streams.migration.golden import GoldenQuery, GoldenSet, read_golden
from tests.conftest import ROOT

DATA = Path(os.environ.get("CROSSFADE_DATA", ROOT.parent / "shared" / "data")) / "cranfield"
EXPONENTIAL = {grade: 2**grade - 1 for grade in range(1, 5)}

Grades = Mapping[str, Mapping[str, float]]
Ranked = Mapping[str, Sequence[str]]

FIGURES: dict[str, Callable[[Sequence[str], Mapping[str, float], int], float]] = {
    "recall": recall_at,
    "precision": precision_at,
    "rr": reciprocal_rank,
    "ndcg": ndcg_at,
    "ndcg-exponential": lambda ranked, grades, k: ndcg_at(ranked, grades, k, "exponential"),
}


def theirs(grades: Grades, ranked: Ranked, k: int) -> dict[tuple[str, str], float]:
    """By figure and query id."""
    measures = {
        "recall": R @ k,
        "precision": P @ k,
        "rr": RR @ k,
        "ndcg": nDCG @ k,
        "ndcg-exponential": nDCG(gains=EXPONENTIAL) @ k,
    }
    qrels = [ir_measures.Qrel(q, doc, int(g)) for q, judged in grades.items() for doc, g in judged.items()]
    run = [
        ir_measures.ScoredDoc(q, doc, float(len(docs) - at))
        for q, docs in ranked.items()
        for at, doc in enumerate(docs)
    ]
    # one at a time: 0.4.3 gives nDCG the gains of another nDCG that is asked for in the same call
    return {
        (name, found.query_id): found.value
        for name, measure in measures.items()
        for found in ir_measures.iter_calc([measure], qrels, run)
    }


def check(grades: Grades, ranked: Ranked, k: int) -> None:
    expected = theirs(grades, ranked, k)
    assert len(expected) == len(FIGURES) * len(grades)
    for (name, query), value in expected.items():
        assert FIGURES[name](ranked[query], grades[query], k) == pytest.approx(value, abs=1e-9), (name, query)
    for gain, name in (("linear", "ndcg"), ("exponential", "ndcg-exponential")):
        figures = evaluate([(ranked[q], grades[q]) for q in grades], k, gain)  # type: ignore[arg-type]
        means = {n: np.mean([v for (m, _), v in expected.items() if m == n]) for n in FIGURES}
        assert figures.recall == pytest.approx(means["recall"], abs=1e-9)
        assert figures.precision == pytest.approx(means["precision"], abs=1e-9)
        assert figures.mrr == pytest.approx(means["rr"], abs=1e-9)
        assert figures.ndcg == pytest.approx(means[name], abs=1e-9)


@pytest.mark.parametrize("k", [1, 3, 10, 50])
def test_generated_rankings(k: int) -> None:
    drawn = random.Random(k)
    names = [f"d{i}" for i in range(60)]
    grades: dict[str, dict[str, float]] = {}
    ranked: dict[str, list[str]] = {}
    for i in range(60):
        judged = drawn.sample(names, drawn.randint(1, 20))
        grades[f"q{i}"] = {doc: float(drawn.randint(0, 4)) for doc in judged} | {judged[0]: float(drawn.randint(1, 4))}
        ranked[f"q{i}"] = drawn.sample(names, drawn.randint(1, 40))
    check(grades, ranked, k)


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data folder is not beside this checkout")
async def test_cranfield() -> None:
    golden = read_golden(DATA / "queries.jsonl")
    assert len(golden.queries) == 225
    grades = {query.id: query.relevant for query in golden.queries}
    with (DATA / "documents.jsonl").open() as file:
        documents = {one["key"]: one["value"]["text"] for one in map(json.loads, file) if one["value"]["text"].strip()}
    keys = list(documents)
    replies: dict[str, list[Reply]] = {}
    for name, embedder in {
        "v1": HashingEmbedder(dimensions=256, word_ngrams=None, char_ngrams=(3, 5)),
        "v2": HashingEmbedder(dimensions=512),
    }.items():
        stored = (await embedder.embed(list(documents.values()))).vectors
        asked = (await embedder.embed([query.query for query in golden.queries])).vectors
        scores = asked @ stored.T
        order = np.argsort(-scores, axis=1, kind="stable")[:, :100]
        replies[name] = [
            Reply(tuple(Scored(keys[at], float(line[at])) for at in places), 1.0)
            for line, places in zip(scores, order, strict=True)
        ]
        ranked = {
            query.id: [hit.key for hit in reply.hits]
            for query, reply in zip(golden.queries, replies[name], strict=True)
        }
        for k in (1, 10, 100):
            check(grades, ranked, k)

    found = compare(golden, replies["v1"], replies["v2"], k=10)
    for space, name in ((found.old, "v1"), (found.new, "v2")):
        assert space is not None
        expected = theirs(
            grades, {q.id: [h.key for h in r.hits] for q, r in zip(golden.queries, replies[name], strict=True)}, 10
        )
        for figure, mine in (
            ("recall", space.recall),
            ("precision", space.precision),
            ("rr", space.mrr),
            ("ndcg", space.ndcg),
        ):
            mean = np.mean([value for (n, _), value in expected.items() if n == figure])
            assert mine.value == pytest.approx(mean, abs=1e-9)
            assert mine.low < mean < mine.high


def test_the_reference_sees_what_we_see_of_a_query_without_answers() -> None:
    golden = GoldenSet("g", (GoldenQuery("q", "words", {"a": 2.0}),))
    found = compare(golden, None, [Reply((), 1.0)], k=10)
    assert found.new.ndcg.value == 0.0
    assert all(value == 0.0 for value in theirs({"q": {"a": 2.0}}, {"q": []}, 10).values())
