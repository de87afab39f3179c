"""The Cranfield collection from `hashing` to MiniLM served by a real model server: built, judged, cut over, searched.

Run by `make test-models`, which installs the server; not part of `make test`. Needs the shared data folder.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import httpx
import numpy as np
import pytest
from pydantic import JsonValue

from connectors.services import Addresses
from streams.migration.evaluate import Figures, evaluate
from streams.search.router import Router
from tests.conftest import ROOT, MakeTopic, Unique
from tests.deployment import COLLECTION, Deployment, Event, deployed
from tests.models.server import DIMENSIONS, MODEL, infinity

DATA = Path(os.environ.get("CROSSFADE_DATA", ROOT.parent / "shared" / "data")) / "cranfield"
EMPTY: list[JsonValue] = ["cran-471", "cran-995"]
DEPTH = 10
AT_ONCE = 8
BUILD_S = 900

HASHING: Mapping[str, JsonValue] = {"embedder": {"provider": "hashing"}, "dimensions": 512}

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the shared data folder is not beside this checkout")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with infinity(tmp_path_factory.mktemp("infinity") / "server.log") as url:
        yield url


@pytest.fixture
async def deployment(
    services: Addresses, tmp_path: Path, unique: Unique, make_topic: MakeTopic
) -> AsyncIterator[Deployment]:
    text: dict[str, JsonValue] = {"text": {"fields": ["text"]}, "properties": {"title": "text"}}
    topic = make_topic(partitions=2)
    async with deployed(services, tmp_path, unique("cf"), topic, unique("Cranfield"), text) as running:
        yield running


def minilm(url: str) -> dict[str, JsonValue]:
    embedder: dict[str, JsonValue] = {"provider": "openai", "url": url, "model": MODEL, "timeout_s": 60}
    return {"embedder": embedder, "dimensions": DIMENSIONS}


def documents() -> Iterator[Event]:
    with (DATA / "documents.jsonl").open() as file:
        for line in file:
            event = json.loads(line)
            yield event["key"], event["value"], None


def golden_set() -> list[tuple[str, dict[str, float]]]:
    with (DATA / "queries.jsonl").open() as file:
        found = [json.loads(line) for line in file]
    return [(one["query"], one["relevant"]) for one in found]


async def judge(router: Router, version: str) -> Figures:
    """Every query of the golden set, asked of the version's space."""
    golden = golden_set()
    turns = asyncio.Semaphore(AT_ONCE)

    async def ranked(query: str) -> list[str]:
        async with turns:
            answer = await router.search(COLLECTION, query, DEPTH, version)
        return [hit.doc_id for hit in answer.hits]

    answers = await asyncio.gather(*(ranked(query) for query, _ in golden))
    return evaluate([(ids, grades) for ids, (_, grades) in zip(answers, golden, strict=True)], DEPTH, "exponential")


def shown(version: str, figures: Figures) -> str:
    return (
        f"{version:20}  recall@{figures.k} {figures.recall:.3f}  MRR@{figures.k} {figures.mrr:.3f}  "
        f"nDCG@{figures.k} {figures.ndcg:.3f}  ({figures.queries} queries)"
    )


async def test_the_server_gives_sense(server: str) -> None:
    """Near sentences are near: without this, what follows would judge nothing."""
    texts = ["heat transfer of a blunt body", "heating of a blunt nosed shape", "payroll of the town council"]
    async with httpx.AsyncClient(base_url=server, timeout=60, trust_env=False) as client:
        reply = (await client.post("/embeddings", json={"model": MODEL, "input": texts})).json()
    first, near, far = (np.array(item["embedding"]) for item in reply["data"])
    assert first.shape == (DIMENSIONS,)
    assert first @ near > first @ far + 0.3


@needs_data
async def test_cranfield_from_hashing_to_minilm(
    deployment: Deployment, server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    d = deployment
    d.add_version("v1", HASHING)
    await d.produce(documents())
    d.start_worker()
    await d.until_stage("v1", "ready")
    # a real collection: two documents are empty, which a person has to accept by name
    refused = await d.ask("cutover", "v1")
    assert not refused.ok
    outcome = await d.ask("cutover", "v1", accept_held=EMPTY)
    assert outcome.ok, outcome
    d.add_version("v2", minilm(server))
    await d.until_stage("v2", "ready", BUILD_S)

    expected = await d.oracle()
    assert expected.keys().isdisjoint(map(str, EMPTY))
    assert await d.stored("v1") == expected
    assert await d.stored("v2") == expected

    router = Router(d.out, d.state)
    try:
        before, after = await judge(router, "v1"), await judge(router, "v2")
        with capsys.disabled():
            print(f"\n{len(expected)} documents\n{shown('v1 hashing', before)}\n{shown('v2 MiniLM', after)}")
        assert after.recall > before.recall
        assert after.mrr > before.mrr
        assert after.ndcg > before.ndcg

        outcome = await d.ask("cutover", "v2", accept_held=EMPTY)
        assert outcome.ok, outcome
        query = "what similarity laws must be obeyed when constructing aeroelastic models of heated high speed aircraft"
        answer = await router.search(COLLECTION, query, DEPTH)
        assert answer.version == "v2"
        assert {hit.doc_id for hit in answer.hits} & golden_set()[0][1].keys()
    finally:
        await router.close()
