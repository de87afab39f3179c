"""`evaluate` on real services with a real worker: two versions, their figures, the verdict, the exit status."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import ir_measures
import pytest
from ir_measures import RR, P, R, nDCG
from pydantic import JsonValue

from connectors.services import Addresses
from streams.migration.golden import GoldenSet, read_golden
from streams.search.router import Router
from tests.conftest import ROOT, MakeTopic, Unique
from tests.deployment import COLLECTION, Deployment, Event, deployed

DATA = Path(os.environ.get("CROSSFADE_DATA", ROOT.parent / "shared" / "data")) / "cranfield"
EMPTY: list[JsonValue] = ["cran-471", "cran-995"]  # documents without text
POOR: Mapping[str, JsonValue] = {"embedder": {"provider": "hashing"}, "dimensions": 8}
GOOD: Mapping[str, JsonValue] = {"embedder": {"provider": "hashing"}, "dimensions": 256}
LETTERS: Mapping[str, JsonValue] = {
    "embedder": {"provider": "hashing", "word_ngrams": None, "char_ngrams": [3, 5]},
    "dimensions": 256,
}
WORDS = [a + b + c for a in ("ba", "ko", "mu", "re", "ti") for b in ("la", "ne", "so", "vi") for c in ("k", "m", "r")]


@pytest.fixture
async def deployment(
    services: Addresses, tmp_path: Path, unique: Unique, make_topic: MakeTopic
) -> AsyncIterator[Deployment]:
    text: dict[str, JsonValue] = {"text": {"fields": ["text"]}, "properties": {"title": "text"}}
    topic = make_topic(partitions=2)
    async with deployed(services, tmp_path, unique("ev"), topic, unique("Evaluated"), text) as running:
        yield running


def text_of(number: int) -> str:
    return " ".join(random.Random(number).choices(WORDS, k=30))


def write_golden(path: Path, unknown: int = 0) -> Path:
    """Each query is some words of one document; the last ones are about documents that nobody has."""
    lines = []
    for number in range(60):
        words = random.Random(-number).sample(text_of(number).split(), 12)
        key = f"absent{number}" if number >= 60 - unknown else f"d{number}"
        one = {"id": f"q{number}", "query": " ".join(words), "relevant": {key: 1}, "slice": ["even", "odd"][number % 2]}
        lines.append(json.dumps(one))
    path.write_text("\n".join([*lines, '{"id": "none", "query": "x", "relevant": {}}']))
    return path


async def test_a_version_is_judged_against_the_one_that_serves(deployment: Deployment, tmp_path: Path) -> None:
    d = deployment
    golden = str(write_golden(tmp_path / "golden.jsonl"))
    d.add_version("v1", POOR)
    await d.produce((f"d{number}", {"text": text_of(number), "title": "t"}, None) for number in range(150))
    worker = d.start_worker()
    await d.until_stage("v1", "ready")

    first = await d.run("evaluate", COLLECTION, "v1", "--golden", golden)
    assert first.returncode == 0, first.stderr
    assert "nothing to compare with, so nothing to be worse than" in first.stdout
    assert first.stdout.endswith(f"  next: crossfade cutover {COLLECTION} v1 --check\n")

    assert (await d.ask("cutover", "v1")).ok
    d.add_version("v2", GOOD)
    await d.until_stage("v2", "ready")
    await d.until_live("v2")

    passed = await d.run("evaluate", COLLECTION, "v2", "--golden", golden, "-k", "5", "--threshold", "0.5")
    assert passed.returncode == 0, passed.stdout + passed.stderr
    shown = passed.stdout.splitlines()
    assert shown[0] == (
        f"{COLLECTION}/v2 (ready) against v1 (serving): judged queries of golden.jsonl: 60, k 5, linear gain, "
        "95% intervals"
    )
    assert shown[1].split() == ["v1", "v2"]
    assert [line.split()[0] for line in shown[2:6]] == ["recall@5", "precision@5", "MRR@5", "nDCG@5"]
    assert any(line.split()[:3] == ["as", "asked", "0.5000"] for line in shown)
    assert [line.split()[:2] for line in shown if line.startswith("    even") or line.startswith("    odd")] == [
        ["even", "30"],
        ["odd", "30"],
    ]
    gate = shown[shown.index("gate: pass") :]
    assert [line.split("  ")[1].split()[0] for line in gate[1:] if line.startswith("  ok")] == ["ok"] * 7
    assert "  note: golden set: 1 query has no relevant document and measure" in passed.stdout
    assert "  note: not swept; cutover does" in gate
    assert gate[-1] == f"  next: crossfade cutover {COLLECTION} v2 --check"
    assert "asking 60 queries of v1 and v2" in passed.stderr

    # the other way round: v1 is worse than v2
    failed = await d.run("evaluate", COLLECTION, "v1", "--against", "v2", "--golden", golden, "--json")
    assert failed.returncode == 1
    found = json.loads(failed.stdout)
    assert (found["gate"]["verdict"], found["against"], found["serving"]) == ("fail", "v2", "v1")
    (recall,) = [check for check in found["gate"]["checks"] if check["name"] == "recall"]
    assert (recall["verdict"], recall["bound"]) == ("fail", 0.98)
    assert recall["value"] == found["quality"]["recall_ratio"]["value"] < 0.9
    assert "the gate says fail" in failed.stderr
    assert f"next: see its answers beside: crossfade search {COLLECTION} QUERY --version v1" in failed.stderr

    # documents that nobody has
    strange = str(write_golden(tmp_path / "strange.jsonl", unknown=6))
    unsure = await d.run("evaluate", COLLECTION, "v2", "--golden", strange)
    assert unsure.returncode == 1
    assert "gate: inconclusive" in unsure.stdout
    assert "6 of 60 relevant documents are in no space ('absent54', " in unsure.stdout
    assert "next: correct " in unsure.stderr

    # the golden set of the configuration, and none at all
    unjudged = await d.run("evaluate", COLLECTION, "v2")
    assert unjudged.returncode == 0, unjudged.stderr
    assert "note: quality is not judged: no golden set is configured (gate.golden)" in unjudged.stdout
    d.set_collection("gate", {"golden": golden, "min_recall_ratio": 5})
    configured = await d.run("evaluate", COLLECTION, "v2")
    assert configured.returncode == 1
    assert "below 5" in configured.stdout

    # nobody reports: the lag is not known
    d.set_collection("gate", {})
    await d.end_worker(worker)
    async with asyncio.timeout(90):
        while True:
            ended = await d.run("evaluate", COLLECTION, "v2", "--json")
            checks = {check["name"]: check["verdict"] for check in json.loads(ended.stdout)["gate"]["checks"]}
            if checks["live lag"] == "inconclusive":
                break
            await asyncio.sleep(1)  # polled: that reports have grown old is no event
    assert (ended.returncode, checks["coverage"]) == (1, "pass")


def cranfield() -> Iterator[Event]:
    with (DATA / "documents.jsonl").open() as file:
        for line in file:
            one = json.loads(line)
            yield one["key"], one["value"], None


async def reference(d: Deployment, golden: GoldenSet, version: str, k: int) -> dict[str, float]:
    """What `ir-measures` says of the answers a person would get."""
    router = Router(d.out, d.state)
    run = []
    try:
        for query in golden.queries:
            answer = await router.search(COLLECTION, query.query, k, version)
            run += [ir_measures.ScoredDoc(query.id, h.doc_id, float(k - at)) for at, h in enumerate(answer.hits)]
    finally:
        await router.close()
    qrels = [ir_measures.Qrel(q.id, key, int(grade)) for q in golden.queries for key, grade in q.relevant.items()]
    measures = {"recall": R @ k, "precision": P @ k, "mrr": RR @ k, "ndcg": nDCG @ k}
    return {name: ir_measures.calc_aggregate([m], qrels, run)[m] for name, m in measures.items()}


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data folder is not beside this checkout")
async def test_cranfield_figures_are_those_of_the_reference(
    deployment: Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    d = deployment
    d.add_version("v1", LETTERS)
    d.add_version("v2", GOOD)
    await d.produce(cranfield())
    d.start_worker()
    await d.until_stage("v1", "ready", 240)
    await d.until_stage("v2", "ready", 240)
    outcome = await d.ask("cutover", "v1", accept_held=EMPTY)
    assert outcome.ok, outcome
    golden = read_golden(DATA / "queries.jsonl")
    ended = await d.run("evaluate", COLLECTION, "v2", "--golden", str(DATA / "queries.jsonl"), "--json")
    found = json.loads(ended.stdout)
    assert (ended.returncode == 0) is (found["gate"]["verdict"] == "pass")
    for side, version in (("old", "v1"), ("new", "v2")):
        expected = await reference(d, golden, version, 10)
        mine = found["quality"][side]
        assert mine["version"] == version
        for name, value in expected.items():
            assert mine[name]["value"] == pytest.approx(value, abs=1e-9), (version, name)
            assert mine[name]["low"] < value < mine[name]["high"]
    unknown = found["quality"]["unknown_named"]
    assert set(unknown) <= set(map(str, EMPTY))
    assert found["quality"]["unknown_keys"] == len({*EMPTY} & {*golden.keys})
    shown = await d.run("evaluate", COLLECTION, "v2", "--golden", str(DATA / "queries.jsonl"))
    with capsys.disabled():
        print(f"\n{shown.stdout}{shown.stderr}")
