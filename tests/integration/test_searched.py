"""What users of two real `crossfade serve` find, counted in one topic, is what the next replay does first."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from pathlib import Path

from pydantic import JsonValue

from connectors.services import Addresses
from streams.priority import read_topic
from tests.conftest import MakeTopic, Unique
from tests.deployment import COLLECTION, deployed
from tests.faults.tei_server import DIMENSIONS, tei_server
from tests.serving import Curl, listens, serving

DOCUMENTS = 60
V1: dict[str, JsonValue] = {"embedder": {"provider": "hashing"}, "dimensions": 256}


def text(n: int) -> str:
    return f"the text of document {n}"


async def find(curl: Curl, n: int, times: int) -> None:
    for _ in range(times):
        status, found = await curl("POST", f"/collections/{COLLECTION}/search", {"query": text(n), "top_k": 1})
        assert (status, [hit["id"] for hit in found["hits"]]) == (200, [f"k{n}"])


async def end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    await asyncio.to_thread(process.wait, 30)


async def test_what_two_servers_count_orders_the_next_replay(
    services: Addresses, tmp_path: Path, unique: Unique, make_topic: MakeTopic
) -> None:
    counts = make_topic(2)
    collection: dict[str, JsonValue] = {
        "text": {"fields": ["text"]},
        "routes": {"searched": {"topic": counts, "every_s": 1}},
        "priority": {"topic": counts},
    }
    async with deployed(services, tmp_path, unique("se"), make_topic(1), unique("Found"), collection) as d:
        await d.produce((f"k{n}", {"text": text(n)}, None) for n in range(DOCUMENTS))
        listens(d)
        d.add_version("v1", V1)
        d.start_worker()
        await d.until_live_and_settled("v1")
        assert (await d.ask("cutover", "v1")).ok

        async with serving(d) as (one, first), serving(d, "-b") as (other, second):
            await find(one, 33, 3)
            await find(one, 50, 1)
            await find(other, 50, 2)
            await end(first)
            async with serving(d) as (one, first):  # started again, it goes on counting where it was
                await find(one, 33, 1)
                await end(first)
            await end(second)
        found: dict[bytes, float] = {}
        for row in await read_topic(d.out.kafka, counts):
            found[row.key] = found.get(row.key, 0.0) + row.searches
        assert found == {b"k33": 4.0, b"k50": 3.0}

        async with tei_server() as endpoint:
            embedder: JsonValue = {"provider": "tei", "url": endpoint.url, "model": "m", "max_batch": 4}
            d.add_version("v2", {"embedder": embedder, "dimensions": DIMENSIONS, "batch": 4, "normalize": False})
            await d.until_stage("v2", "ready")
            assert set(endpoint.embedded[:2]) == {text(33), text(50)}
            assert len(endpoint.embedded) == DOCUMENTS
        seen = json.loads((await d.run("status", COLLECTION, "v2", "--json")).stdout)
        listed = seen["collections"][0]["versions"][0]["tiers"][0]
        assert (listed["name"], listed["total"], listed["weight"]) == ("listed", 2, 7.0)
