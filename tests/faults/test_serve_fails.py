"""`crossfade serve` while Kafka or Weaviate are away: it answers what it can, says what it misses, and comes back."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from tests.deployment import COLLECTION
from tests.faults.conftest import Deploy
from tests.faults.own_services import OwnServices
from tests.faults.workload import HASHING, Changes, produce
from tests.serving import Curl, listens, serving

SEARCH = f"/collections/{COLLECTION}/search"
NOTICED_WITHIN_S = 30.0


async def until_ready_says(curl: Curl, wanted: str, status: int) -> dict[str, Any]:
    """`wanted`: its state. Polled: that is all a load balancer can do."""
    ends_s = time.monotonic() + NOTICED_WITHIN_S
    while True:
        got, said = await curl("GET", "/readyz")
        if (got, said["state"]) == (status, wanted):
            return said
        assert time.monotonic() < ends_s, said
        await asyncio.sleep(0.3)


async def test_search_goes_on_while_kafka_is_away(deploy: Deploy, own: OwnServices) -> None:
    async with deploy() as d:
        listens(d, command_timeout_s=3)
        d.add_version("v1", HASHING)
        await produce(d, Changes(1, 50).first())
        d.start_worker()
        await d.until_live_and_settled("v1")
        assert (await d.ask("cutover", "v1")).ok
        async with serving(d) as (curl, process):
            status, before = await curl("POST", SEARCH, {"query": "copper river"})
            assert (status, len(before["hits"])) == (200, 10)

            await asyncio.to_thread(own.stop, "kafka")
            said = await until_ready_says(curl, "last known", 200)
            assert [one["name"] for one in said["away"]] == ["kafka"]
            status, during = await curl("POST", SEARCH, {"query": "copper river"})
            assert (status, [hit["id"] for hit in during["hits"]]) == (200, [hit["id"] for hit in before["hits"]])
            assert (await curl("GET", f"/collections/{COLLECTION}"))[1]["serving"] == "v1"
            status, problem = await curl("POST", f"/collections/{COLLECTION}/versions/v1/pause", {})
            assert (status, bool(problem["next_step"])) == (503, True)

            await asyncio.to_thread(own.start, "kafka")
            assert (await until_ready_says(curl, "current", 200))["away"] == []
            for _ in range(20):  # of three seconds each: the worker needs its time as well
                status, paused = await curl("POST", f"/collections/{COLLECTION}/versions/v1/pause", {})
                if status == 200:
                    break
            assert status == 200, paused
            assert (await curl("GET", f"/collections/{COLLECTION}/versions/v1"))[1]["paused"] == "replay"

            await asyncio.to_thread(own.stop, "weaviate")
            said = await until_ready_says(curl, "current", 503)
            assert [one["name"] for one in said["away"]] == ["weaviate"]
            assert (await curl("POST", SEARCH, {"query": "copper river"}))[0] in (503, 504)
            await asyncio.to_thread(own.start, "weaviate")
            await until_ready_says(curl, "current", 200)
            status, after = await curl("POST", SEARCH, {"query": "copper river"})
            assert (status, len(after["hits"])) == (200, 10)
            assert process.poll() is None
            assert "Traceback" not in (d.folder / "serve.log").read_text()
