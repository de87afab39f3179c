"""Swaps while searches come over HTTP: a real `crossfade serve`, a worker, Kafka and Weaviate.

Counts only, and so few searches a second that a busy machine keeps up; what swaps cost at 200 a second is measured by
`python -m benchmarks --only swaps`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from benchmarks.http_load import loaded
from benchmarks.swaps import QUERIES, two_versions
from connectors.services import Addresses
from tests.conftest import MakeTopic, Unique
from tests.deployment import Deployment, deployed

SWAPS = 5
PER_S = 50.0
DOCUMENTS = 150


@pytest.fixture
async def d(services: Addresses, tmp_path: Path, unique: Unique, make_topic: MakeTopic) -> AsyncIterator[Deployment]:
    topic, collection = make_topic(2), {"text": {"fields": ["text"]}}
    async with deployed(services, tmp_path, unique("cf"), topic, unique("Docs"), collection) as deployment:  # type: ignore[arg-type]
        yield deployment


async def test_no_search_fails_or_is_mixed_while_the_default_space_changes(d: Deployment) -> None:
    async with two_versions(d, DOCUMENTS) as served, loaded(served.load(PER_S)) as account:
        for number in range(SWAPS):
            there = number % 2 == 0
            assert await served.swap("v2" if there else "v1") is there, "there by cutover, back by rollback"
            await asyncio.sleep(2 * QUERIES / PER_S / SWAPS)  # each query is asked while each of them serves
    answers = account.answers
    assert len(answers) >= 2 * QUERIES
    assert [answer.failed for answer in answers if answer.failed] == []
    assert [answer.mixed for answer in answers if answer.mixed] == []
    by_space = Counter(answer.space for answer in answers)
    assert set(by_space) == {d.build(version).space for version in ("v1", "v2")}
    assert "Traceback" not in (d.folder / "serve.log").read_text() + d.logs()
