"""The embedding endpoint down, slow, failing and cut off: nothing is dead-lettered, the lane waits and goes on.

Must never take a document's text for the cause of an outage.
"""

from __future__ import annotations

import asyncio

from pydantic import JsonValue

from tests.deployment import Deployment
from tests.faults.conftest import Deploy, Say
from tests.faults.tei_server import DIMENSIONS, Mode, TeiServer, tei_server
from tests.faults.workload import Changes, check, produce, resolved, running, steady

SEED = 6


def model(endpoint: TeiServer, **more: JsonValue) -> dict[str, JsonValue]:
    embedder: JsonValue = {"provider": "tei", "url": endpoint.url, "model": "faults", "max_batch": 16, "timeout_s": 2}
    return {"embedder": embedder, "dimensions": DIMENSIONS, "batch": 32, **more}


async def until_waiting(d: Deployment) -> None:
    """Status and progress say that the lane waits, and why."""
    await d.until(
        lambda: all(r.status == "waiting" and "TEI endpoint" in r.reason for r in d.progress.partitions(d.build("v1")))
    )


async def goes_on(d: Deployment) -> None:
    before = resolved(d, "v1")
    await d.until(lambda: resolved(d, "v1") > before + 20)


async def test_endpoint_down_slow_failing_and_cut(deploy: Deploy, say: Say) -> None:
    changes = Changes(SEED, 400)
    async with tei_server() as endpoint, deploy() as d:
        await produce(d, changes.first())
        d.add_version("v1", model(endpoint, replay_rate=8))
        d.start_worker()
        await d.until_stage("v1", "building")
        async with steady(d, changes):
            await goes_on(d)
            await endpoint.down()
            await until_waiting(d)
            await endpoint.up()
            await goes_on(d)
            outages: list[Mode] = ["500", "503", "cut", "half"]
            for mode in outages:
                refused = endpoint.refused
                endpoint.mode = mode
                await until_waiting(d)
                assert endpoint.refused > refused, f"{mode} was not met"
                endpoint.mode = "works"
                await goes_on(d)
            endpoint.answer_after_s = 3.0  # beyond the time-out of a request
            await until_waiting(d)
            endpoint.answer_after_s = 0.5  # slow, but in time
            await goes_on(d)
            endpoint.answer_after_s = 0.0
        assert (await d.ask("set", "v1", replay_rate=0)).ok
        checked = await check(d, "v1")
        assert len(running(d)) == 1
        say(
            f"endpoint down, slow, 500, 503, cut, half an answer: {endpoint.refused} requests failed on purpose, "
            f"{changes.made} changes, {checked} documents checked, 0 dead letters"
        )


async def test_an_endpoint_that_is_down_holds_back_no_other_version(deploy: Deploy, say: Say) -> None:
    changes = Changes(SEED, 200)
    async with tei_server() as endpoint, deploy() as d:
        await produce(d, changes.first())
        d.add_version("v1", model(endpoint))
        d.add_version("v2", {"embedder": {"provider": "hashing"}, "dimensions": 32})
        d.start_worker()
        await asyncio.gather(d.until_stage("v1", "ready"), d.until_stage("v2", "ready"))
        await endpoint.down()
        await produce(d, [changes.next() for _ in range(400)])
        await d.until_live("v2")
        await until_waiting(d)
        await endpoint.up()
        checked = await check(d, "v1", "v2")
        say(f"endpoint of one version down: {changes.made} changes, {checked} documents checked")
