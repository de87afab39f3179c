"""The worlds the log's contract suite runs in.

It must never give a test a world another test has touched.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.conftest import Unique
from tests.contract.log_world import KafkaWorld, MemoryWorld, World


@pytest.fixture(params=["memory", "kafka"])
async def world(request: pytest.FixtureRequest, unique: Unique) -> AsyncIterator[World]:
    if request.param == "memory":
        yield MemoryWorld(unique)
        return
    made = KafkaWorld(request.getfixturevalue("services").kafka, unique)
    await made.appender.start()
    yield made
    await made.close()
