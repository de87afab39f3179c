"""Documents that the topic has forgotten, on real services: a new version has them from the space that serves."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import httpx
import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from pydantic import JsonValue

from connectors import reserved
from connectors.protocols import JSON
from connectors.services import Addresses
from tests.conftest import MakeTopic, Unique
from tests.deployment import COLLECTION, Deployment, deployed

V1: Mapping[str, JsonValue] = {"embedder": {"provider": "hashing"}, "dimensions": 16}
V2: Mapping[str, JsonValue] = {"embedder": {"provider": "hashing"}, "dimensions": 32}
V3: Mapping[str, JsonValue] = {**V2, "dimensions": 48, "chunking": {"by": "characters", "size": 12}}
PROPERTIES: dict[str, JsonValue] = {"tag": "keyword", "n": "int", "score": "number", "at": "date", "old": "bool"}
DOCUMENTS = 60


@pytest.fixture
async def d(services: Addresses, tmp_path: Path, unique: Unique, make_topic: MakeTopic) -> AsyncIterator[Deployment]:
    topic = make_topic(partitions=2, config={"cleanup.policy": "compact,delete"})
    collection: dict[str, JsonValue] = {"text": {"fields": ["title", "text"]}, "properties": PROPERTIES}
    async with deployed(services, tmp_path, unique("cf"), topic, unique("Docs"), collection) as deployment:
        yield deployment


def document(n: int, text: str = "") -> dict[str, JSON]:
    return {
        "title": f"  Document {n}",
        "text": text or f"the text of number {n}\n\nin two paragraphs, naïve and 漢字 ",
        "tag": f"tag {n % 3}",
        "n": n,
        "score": n / 3,
        "at": f"2026-01-{n % 28 + 1:02}T00:00:00Z",
        "old": n % 2 == 0,
    }


async def forget(d: Deployment, admin: AdminClient, but: int) -> None:
    """As retention does: of each partition the log keeps the last offsets only."""
    bounds = await d.out.kafka.bounds(d.topic)
    wanted = [TopicPartition(d.topic, p, max(b.earliest, b.stable - but)) for p, b in bounds.items()]
    futures = admin.delete_records(wanted)
    await asyncio.gather(*(asyncio.to_thread(one.result, 30) for one in futures.values()))


async def objects(d: Deployment, version: str) -> dict[tuple[JSON, JSON], dict[str, JSON]]:
    """By document id and chunk, all properties that do not name the version."""
    space = d.out.store.space(d.build(version).space)
    own = {reserved.SPACE, reserved.EMBEDDED_AT}
    found: dict[tuple[JSON, JSON], dict[str, JSON]] = {}
    async for page in space.scan():
        for stored in (await space.properties([head.uuid for head in page])).values():
            key = (stored[reserved.DOC_ID], stored[reserved.CHUNK])
            found[key] = {name: value for name, value in stored.items() if name not in own}
    return found


async def serving(d: Deployment, version: str) -> None:
    await d.until_live_and_settled(version)
    outcome = await d.ask("cutover", version, force="the gate is not what this is about")
    assert outcome.ok, outcome


async def test_a_cutover_loses_nothing_that_the_topic_has_forgotten(d: Deployment, services: Addresses) -> None:
    admin = AdminClient({"bootstrap.servers": services.kafka})
    worker = d.start_worker()
    await d.produce([(f"k{n}", document(n), None) for n in range(DOCUMENTS)])
    d.add_version("v1", V1)
    await d.until_stage("v1", "ready")
    await serving(d, "v1")
    await forget(d, admin, but=4)

    # the space is no worse for it: nothing is extra, and a repair removes nothing
    before = await objects(d, "v1")
    found = await d.verify("v1")
    assert (found.clean, found.checked, found.kept, found.lost) == (True, 8, DOCUMENTS - 8, 0)
    repaired = await d.run("verify", COLLECTION, "v1", "--repair", "--json")
    assert repaired.returncode == 0, repaired.stderr
    assert json.loads(repaired.stdout)["kept"] == DOCUMENTS - 8
    assert await objects(d, "v1") == before
    told = await d.run("explain", COLLECTION, "k0")
    assert "v1 (serving" in told.stdout
    assert ": kept" in told.stdout

    # a new version, a worker killed on the way, and edits and deletes of what is being brought over
    d.add_version("v2", {**V2, "replay_rate": 12})
    await d.until(lambda: "docs/v2" in d.state.builds and d.counters("v2").carried >= 10)
    kept = sorted(head for head in await d.stored("v1"))
    edited, deleted = kept[::7], kept[3::7]
    await d.produce([(key, document(int(key[1:]), f"another form of {key}"), None) for key in edited[:4]])
    await d.produce([(key, None, None) for key in deleted[:4]])
    await d.end_worker(worker)
    d.start_worker()
    await d.produce([(key, document(int(key[1:]), f"another form of {key}"), None) for key in edited[4:]])
    await d.produce([(key, None, None) for key in deleted[4:]])
    assert (await d.ask("set", "v2", replay_rate=0)).ok
    await d.until_stage("v2", "ready")
    await d.until_live_and_settled("v2")
    await d.until_live("v1")
    now = await objects(d, "v1")
    assert {key for key, _ in now} == set(kept) - set(deleted)
    assert await objects(d, "v2") == now
    for version in ("v1", "v2"):
        found = await d.verify(version)
        assert (found.clean, found.lost, found.held) == (True, 0, 0), found
        assert found.kept == DOCUMENTS - len(kept[::7]) - len(deleted) - len(
            {f"k{n}" for n in range(DOCUMENTS)} & (await d.oracle()).keys() - set(edited)
        )
    await serving(d, "v2")
    assert {key for key, _ in await objects(d, "v2")} == set(kept) - set(deleted)

    # another chunking, from what was brought over: the whole text is there, and is cut anew
    d.add_version("v3", V3)
    await d.until_stage("v3", "ready")
    await serving(d, "v3")
    cut = await objects(d, "v3")
    assert {key for key, _ in cut} == set(kept) - set(deleted)
    assert len(cut) > len(now)


async def test_what_cannot_be_brought_over_is_named_and_given_up_by_number(d: Deployment, services: Addresses) -> None:
    """Without its text a document cannot be embedded anew; nothing moves search away from it unasked."""
    admin = AdminClient({"bootstrap.servers": services.kafka})
    d.start_worker()
    await d.produce([(f"k{n}", document(n), None) for n in range(20)])
    d.add_version("v1", V1)
    await d.until_stage("v1", "ready")
    await serving(d, "v1")
    d.set_collection("store_text", False)
    restarted = max(report.running_since for report in d.progress.partitions(d.build("v1")))
    await d.until(lambda: d.restarted_since("v1", restarted))
    await d.produce([("k3", document(3, "a form whose text is not kept"), None)])
    await d.until_live_and_settled("v1")
    await forget(d, admin, but=0)

    d.add_version("v2", V2)
    await d.until_stage("v2", "ready")
    await d.until_live_and_settled("v2")
    await d.until(lambda: (d.counters("v2").carried, d.counters("v2").not_carried) == (19, 1))
    told = await d.run("verify", COLLECTION, "v2")
    assert told.returncode == 0
    assert "lost 1" in told.stdout
    assert "k3" in told.stdout
    assert (
        "19 from the serving space, which the topic no longer has, 1 could not be"
        in (await d.run("status", COLLECTION, "v2")).stdout
    )
    refused = await d.ask("cutover", "v2", force="the gate is not what this is about")
    assert not refused.ok
    assert "search would lose 1 of the documents" in refused.message
    assert "k3" in refused.message
    assert "--accept-lost 1" in refused.next_step
    assert d.state.collection(COLLECTION).serving == "v1"
    # written again, it is there; or it is let go
    await d.produce([("k3", document(3, "written again"), None)])
    await d.until_live_and_settled("v2")
    assert (await d.verify("v2")).lost == 0
    await serving(d, "v2")


async def test_a_fault_of_the_serving_space_stops_no_build(d: Deployment, services: Addresses) -> None:
    """Somebody else's object stands in the space that serves: nobody can read that through until it is gone."""
    d.start_worker()
    await d.produce([(f"k{n}", document(n), None) for n in range(20)])
    d.add_version("v1", V1)
    await d.until_stage("v1", "ready")
    await serving(d, "v1")
    await forget(d, AdminClient({"bootstrap.servers": services.kafka}), but=2)
    space, astray = d.build("v1").space, str(uuid.uuid4())
    async with httpx.AsyncClient(base_url=f"http://{services.weaviate_http}/v1") as weaviate:
        made = await weaviate.post("/objects", json={"class": space, "id": astray, "vector": [1.0] * 16})
        assert made.status_code == 200, made.text

        d.add_version("v2", V2)
        await d.produce([("k99", document(99), None)])
        await d.until_stage("v2", "ready")
        await d.until_live_and_settled("v2")
        assert len(await d.stored("v2")) == 5
        told = (await d.run("status", COLLECTION, "v2")).stdout
        assert "documents that the topic no longer has are not brought over from docs/v1: object" in told
        assert "find who else writes into this space" in told
        swept = await d.run("verify", COLLECTION, "v2")
        assert swept.returncode == 0, swept.stderr
        assert "lost unknown: the serving space cannot be read: object" in swept.stdout
        refused = await d.ask("cutover", "v2", force="the gate is not what this is about", accept_lost=100)
        assert not refused.ok
        assert "is not known: the space that serves cannot be read: object" in refused.message
        assert refused.data["unread"]

        assert (await weaviate.delete(f"/objects/{space}/{astray}")).status_code == 204
    await d.until(lambda: d.counters("v2").mended >= 16)
    await d.until_live_and_settled("v2")
    found = await d.verify("v2")
    assert (found.clean, found.kept, found.torn, found.lost, found.unread) == (True, 16, 0, 0, "")
    assert await objects(d, "v2") == await objects(d, "v1")
    await serving(d, "v2")
