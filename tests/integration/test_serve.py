"""The upgrade guide of a hosted product, walked with plain curl against `crossfade serve`, real Kafka and Weaviate:
add a vector space, rebuild it, poll, search in it, swap, swap back, delete. And a SIGTERM, with a stream open.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from connectors.services import Addresses
from tests.conftest import MakeTopic, Unique
from tests.deployment import Deployment
from tests.faults.tei_server import DIMENSIONS, tei_server
from tests.serving import BEARER, DOCUMENTS, KEY, V1, V2, Curl, serving, with_matters


@pytest.fixture
async def d(services: Addresses, tmp_path: Path, unique: Unique, make_topic: MakeTopic) -> AsyncIterator[Deployment]:
    async with with_matters(services, tmp_path, unique, make_topic) as deployment:
        yield deployment


async def test_the_upgrade_guide_with_plain_curl(d: Deployment) -> None:
    async with serving(d) as (curl, process):
        await walk(d, curl, process)


async def walk(d: Deployment, curl: Curl, process: subprocess.Popen[bytes]) -> None:
    d.start_worker()
    await d.until_live_and_settled("v1")
    docs = "/collections/docs"

    # nothing serves yet, and whoever asks is told what to do
    status, said = await curl("POST", f"{docs}/search", {"query": "matter number 7"})
    assert (status, said["next_step"]) == (409, "crossfade cutover docs v1")
    status, first = await curl("PUT", f"{docs}/default-vector-space", {"name": "v1"})
    assert status == 200, first
    await d.until_stage("v1", "serving")
    status, before = await curl("POST", f"{docs}/search", {"query": "matter number 7", "top_k": 3})
    assert (status, before["version"], before["hits"][0]["id"]) == (200, "v1", "k7")
    assert before["hits"][0]["properties"] == {"kind": "odd"}
    assert {hit["space"] for hit in before["hits"]} == {before["space"]}

    # add, poll; test_a_version_that_no_file_has rebuilds at an endpoint
    d.add_version("v2", V2)
    d.workers[0].send_signal(signal.SIGHUP)
    async with asyncio.timeout(30):
        while True:
            new = {"name": "v2", "dims": 256, "model": "crossfade-hashing"}
            status, added = await curl("POST", f"{docs}/vector-spaces", new, "-H", "Idempotency-Key: add-v2")
            if status == 201:
                break
            assert status == 404, added  # this process reads the configuration again within two seconds
            await asyncio.sleep(0.3)
    assert added["default"] is False
    status, again = await curl("POST", f"{docs}/vector-spaces", new, "-H", "Idempotency-Key: add-v2")
    assert (status, again["space"]) == (201, added["space"])
    async with asyncio.timeout(90):
        while True:
            status, polled = await curl("GET", f"{docs}/vector-spaces/v2/status")
            assert status == 200
            assert polled["status"] in ("building", "active")
            if polled["status"] == "active":
                break
            await asyncio.sleep(0.3)
    await d.until_live_and_settled("v2")
    status, polled = await curl("GET", f"{docs}/vector-spaces/v2/status")
    assert (polled["progress"], polled["total"], polled["completed"]) == (1.0, DOCUMENTS, DOCUMENTS)

    # search in it before the swap, by text and by vector
    odd = {"query": "matter number 8", "filter": {"kind": "odd"}, "top_k": 5}
    assert {hit["properties"]["kind"] for hit in (await curl("POST", f"{docs}/search", odd))[1]["hits"]} == {"odd"}
    tried = {"query": "matter number 7", "vector_space": "v2"}
    status, there = await curl("POST", f"{docs}/search", tried)
    assert (status, there["version"], there["hits"][0]["id"]) == (200, "v2", "k7")
    wrong = {"vector": [0.5] * 256, "fingerprint": before["fingerprint"], "vector_space": "v2"}
    assert (await curl("POST", f"{docs}/search", wrong))[0] == 422
    right = {"vector": [0.5] * 256, "fingerprint": there["fingerprint"], "vector_space": "v2", "top_k": 2}
    status, found = await curl("POST", f"{docs}/search", right)
    assert (status, len(found["hits"])) == (200, 2)

    # swap, swap back, swap, while searches go on: each of one space
    stop, seen = asyncio.Event(), list[tuple[int, set[str]]]()

    async def searches() -> None:
        while not stop.is_set():
            status, answer = await curl("POST", f"{docs}/search", {"query": "matter number 7", "top_k": 5})
            seen.append((status, {hit["fingerprint"] for hit in answer.get("hits", [])} | {answer["fingerprint"]}))

    asking = asyncio.create_task(searches())
    for name in ("v2", "v1", "v2"):
        status, swapped = await curl("PUT", f"{docs}/default-vector-space", {"name": name})
        assert status == 200, swapped
        assert swapped["data"]["answers"] == "as it should"
        status, answer = await curl("POST", f"{docs}/search", {"query": "matter number 7"})
        assert (status, answer["version"]) == (200, name)
    stop.set()
    await asking
    assert {status for status, _ in seen} == {200}
    assert all(len(fingerprints) == 1 for _, fingerprints in seen)
    assert len(set.union(*(one for _, one in seen))) == 2, "both were asked meanwhile"

    # the default cannot be deleted, the old one can
    status, refused = await curl("DELETE", f"{docs}/vector-spaces/v2")
    assert (status, refused["title"]) == (409, "A rule forbids this now")
    status, gone = await curl("DELETE", f"{docs}/vector-spaces/v1")
    assert status == 200, gone
    status, spaces = await curl("GET", f"{docs}/vector-spaces")
    assert {one["name"]: one["status"] for one in spaces["vector_spaces"]} == {"v1": "deleted", "v2": "active"}
    assert before["space"] not in await d.out.store.spaces()

    # the other verbs, and who did it
    status, swept = await curl("POST", f"{docs}/versions/v2/verify", {})
    assert (status, swept["clean"], swept["checked"]) == (200, True, DOCUMENTS)
    status, planned = await curl("POST", f"{docs}/versions/v1/plan", {"sample": 10})
    assert (status, planned["documents"]) == (200, DOCUMENTS)
    status, judged = await curl("POST", f"{docs}/versions/v2/evaluate", {})
    assert (status, judged["quality"]) == (200, None)
    status, history = await curl("GET", f"{docs}/history")
    assert status == 200
    assert {"ops@http"} <= {entry["who"] for entry in history["entries"]}
    events = await asyncio.to_thread(
        subprocess.run,
        ["curl", "-sN", "--max-time", "3", *BEARER, f"{curl.url}{docs}/versions/v2/events"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert events.stdout.startswith("event: progress\ndata: {")

    # a stream is open, and it stops all the same, within five seconds
    following = await asyncio.to_thread(
        subprocess.Popen,
        ["curl", "-sN", *BEARER, f"{curl.url}{docs}/versions/v2/events"],
        stdout=subprocess.PIPE,
    )
    assert following.stdout is not None
    assert await asyncio.to_thread(following.stdout.readline) == b"event: progress\n"
    began_s = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(process.wait, 10) == 0
    assert time.monotonic() - began_s < 5
    assert await asyncio.to_thread(following.wait, 5) in (0, 18)
    following.stdout.close()
    log = (d.folder / "serve.log").read_text()
    assert "matter number" not in log
    assert KEY not in log
    assert "Traceback" not in log, log


async def test_a_version_that_no_file_has(d: Deployment) -> None:
    """Added over HTTP at an endpoint that the configuration allows, built by the workers, swapped to, deleted."""
    async with tei_server() as endpoint:
        d.raw["embed_endpoints"] = [{"provider": "tei", "url": endpoint.url, "model": "acme/words", "max_batch": 8}]
        d.add_version("v1", V1)
        d.start_worker()
        await d.until_live_and_settled("v1")
        async with serving(d) as (curl, _):
            docs = "/collections/docs"
            status, swapped = await curl("PUT", f"{docs}/default-vector-space", {"name": "v1"})
            assert status == 200, swapped
            new = {"name": "words", "dims": DIMENSIONS, "model": "acme/words"}
            status, added = await curl("POST", f"{docs}/vector-spaces", new)
            assert (status, added["status"]) == (201, "building"), added
            status, rebuilt = await curl(
                "POST", f"{docs}/vector-spaces/words/rebuild", {"embed_endpoint": endpoint.url}
            )
            assert status == 202, rebuilt
            elsewhere = {"embed_endpoint": "http://169.254.169.254/embed"}
            assert (await curl("POST", f"{docs}/vector-spaces/words/rebuild", elsewhere))[0] == 403
            async with asyncio.timeout(90):
                while (polled := (await curl("GET", f"{docs}/vector-spaces/words/status"))[1])["status"] != "active":
                    assert polled["status"] == "building", polled
                    await asyncio.sleep(0.3)
            await d.until_live_and_settled("words")
            assert len(set(endpoint.embedded)) == DOCUMENTS
            query = {"query": "matter number 7", "vector_space": "words", "top_k": 3}
            status, found = await curl("POST", f"{docs}/search", query)
            assert (status, len(found["hits"]), found["hits"][0]["id"]) == (200, 3, "k7")
            await d.end_worker(d.workers[0])
            d.start_worker()  # the declaration is in the state: another worker goes on with it
            await d.produce([("k7", {"text": "another text", "kind": "odd"}, None)])
            await d.until_live_and_settled("words")
            assert "another text" in (await d.stored_texts("words")).values()
            for name in ("words", "v1"):
                status, swapped = await curl("PUT", f"{docs}/default-vector-space", {"name": name})
                assert (status, swapped.get("data", {}).get("answers")) == (200, "as it should"), swapped
            listed = await d.run("search", "docs", "matter number 7", "--version", "words", "--json")
            assert listed.returncode == 0, listed.stderr
            assert (await curl("DELETE", f"{docs}/vector-spaces/words"))[0] == 200
        logs = d.logs() + (d.folder / "serve.log").read_text()
        assert "matter number" not in logs


async def test_searches_go_on_while_the_state_is_gone(d: Deployment) -> None:
    """The state topic is deleted, and comes back from a copy: the consumers of it die, and what was known stands."""
    d.start_worker()
    await d.until_live_and_settled("v1")
    assert (await d.ask("cutover", "v1")).ok
    await d.end_worker(d.workers[0])
    kafka, state = d.out.kafka, d.out.names.state
    ends = (await kafka.bounds(state))[0]
    batches = kafka.read_range(state, 0, ends.earliest, ends.stable)
    copy = [record async for batch in batches for record in batch.records]
    async with serving(d) as (curl, process):

        async def until(wanted: str) -> None:
            async with asyncio.timeout(60):
                while True:
                    for path in ("/readyz", "/healthz"):
                        status, health = await curl("GET", path)
                        assert status == 200
                        assert d.out.kafka_settings.bootstrap_servers not in str(health)
                    status, found = await curl("POST", "/collections/docs/search", {"query": "matter number 7"})
                    if wanted == "last known":
                        assert (status, found["version"]) == (200, "v1")
                    if health["state"] == wanted and status == 200:
                        return
                    await asyncio.sleep(0.2)

        await d.out.topics.delete_topic(state)
        await until("last known")
        assert "state is away" in (d.folder / "serve.log").read_text()
        await d.out.topics.ensure_topic(state, 1, {"cleanup.policy": "compact"})
        for record in copy:
            await d.out.sink.send(state, record.key, record.value)
        await until("current")
        d.start_worker()
        status, paused = await curl("POST", "/collections/docs/versions/v1/pause", {})
        assert status == 200, paused
        status, shown = await curl("GET", "/collections/docs/versions/v1")
        assert (status, shown["paused"]) == (200, "replay"), "it is followed again"
        assert process.poll() is None
