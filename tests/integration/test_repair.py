"""Repair and redrive on real services: a partition's owner puts right what the log says, and nobody else writes."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from pydantic import JsonValue

from connectors import reserved
from connectors.protocols import JSON, SpaceObject
from connectors.services import Addresses
from streams.documents import object_id
from tests.conftest import MakeTopic, Unique
from tests.deployment import COLLECTION, Deployment, Event, deployed

V1: Mapping[str, JsonValue] = {"embedder": {"provider": "hashing"}, "dimensions": 64}


@pytest.fixture
async def d(services: Addresses, tmp_path: Path, unique: Unique, make_topic: MakeTopic) -> AsyncIterator[Deployment]:
    topic = make_topic(partitions=2)
    collection: dict[str, JsonValue] = {"text": {"fields": ["text"]}, "max_record_bytes": 2000}
    async with deployed(services, tmp_path, unique("cf"), topic, unique("Docs"), collection) as deployment:
        deployment.start_worker()
        deployment.add_version("v1", V1)
        await deployment.until_stage("v1", "ready")
        yield deployment


def document(text: str) -> dict[str, JSON]:
    return {"text": text}


async def test_repair_mends_what_is_missing_stale_or_extra(d: Deployment) -> None:
    events: list[Event] = [(f"k{i}", document(f"the form {i} of a document"), None) for i in range(40)]
    await d.produce(events)
    await d.produce([("k7", document("a newer form"), None), ("k9", None, None)])
    await d.until_live("v1")
    space = d.out.store.space(d.build("v1").space)

    await space.delete([object_id(COLLECTION, "k3", 0)])
    for key, offset in (("k7", 0), ("k9", 0)):  # an old form, and one back from the dead
        await space.upsert([await tampered(d, key, like="k5", offset=offset)])
    found = await d.verify("v1")
    assert (found.missing, found.stale, found.extra) == (1, 1, 1)
    assert found.examples == {"missing": ["k3"], "stale": ["k7"], "extra": ["k9"]}

    told = await d.run("verify", COLLECTION, "v1")
    assert told.returncode == 1
    assert "verify docs v1 --repair" in told.stderr
    mended = await d.run("verify", COLLECTION, "v1", "--repair", "--json")
    assert mended.returncode == 0, mended.stderr
    assert json.loads(mended.stdout)["clean"]
    assert await d.stored("v1") == await d.oracle()


async def tampered(d: Deployment, key: str, *, like: str, offset: int) -> SpaceObject:
    """What a stray write might leave: a form of `key` that claims an old offset in the key's own partition."""
    space = d.out.store.space(d.build("v1").space)
    uuid, twin = object_id(COLLECTION, key, 0), object_id(COLLECTION, like, 0)
    properties = dict((await space.properties([twin]))[twin])
    partition = await partition_of(d, key)
    properties |= {
        reserved.DOC_ID: key,
        reserved.DOC_HASH: f"tampered-{key}",
        reserved.OFFSET: offset,
        reserved.PARTITION: partition,
    }
    return SpaceObject(uuid, properties, np.ones(64, np.float32))


async def partition_of(d: Deployment, key: str) -> int:
    for partition, bounds in (await d.out.kafka.bounds(d.topic)).items():
        async for batch in d.out.kafka.read_range(d.topic, partition, 0, bounds.stable):
            if any(record.key == key.encode() for record in batch.records):
                return partition
    raise AssertionError(f"{key} is in no partition")


async def test_redrive_applies_dead_letters_whose_cause_is_gone(d: Deployment) -> None:
    await d.produce(
        [
            ("small", document("fits"), None),
            ("large", document("x y " * 1000), None),
            ("replaced", document("x y " * 1000), None),
            ("replaced", document("a form that fits"), None),
            ("wrong", {"text": 7}, None),
        ]
    )
    await d.until_live("v1")
    found = await d.verify("v1")
    assert (found.missing, found.stale, found.extra, found.held) == (0, 0, 0, 2)  # large and wrong
    assert set(await d.stored("v1")) == {"small", "replaced"}

    changed_at_ms = int(time.time() * 1000)
    d.set_collection("max_record_bytes", 1_000_000)
    await d.until(lambda: d.restarted_since("v1", changed_at_ms))
    redriven = await d.run("redrive", COLLECTION, "v1", "--json")
    assert redriven.returncode == 0, redriven.stderr
    assert json.loads(redriven.stdout)["applied"] == 1
    assert set(await d.stored("v1")) == {"small", "replaced", "large"}
    found = await d.verify("v1")
    assert (found.missing, found.stale, found.extra, found.held) == (0, 0, 0, 1)
    assert await d.stored("v1") == await d.oracle()
