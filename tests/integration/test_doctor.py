"""`crossfade doctor` on real services: nothing is wrong with a sound deployment, and what is broken is named."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # public names, imported there without `as`
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)
from pydantic import JsonValue

from connectors import reserved
from connectors.protocols import SpaceObject
from connectors.services import Addresses
from streams.documents import object_id
from tests.conftest import MakeTopic, Unique
from tests.deployment import COLLECTION, Deployment, Event, deployed

V1: Mapping[str, JsonValue] = {"embedder": {"provider": "hashing"}, "dimensions": 64}
UNSEEN = {("clock", "brokers"), ("auto-schema", "http"), ("disk", "the disk of Weaviate")}
"""What nobody tells of services at configured addresses."""


@pytest.fixture
async def d(services: Addresses, tmp_path: Path, unique: Unique, make_topic: MakeTopic) -> AsyncIterator[Deployment]:
    collection: dict[str, JsonValue] = {"text": {"fields": ["text"]}}
    async with deployed(services, tmp_path, unique("cf"), make_topic(2), unique("Docs"), collection) as deployment:
        yield deployment


async def doctor(d: Deployment, *arguments: str) -> tuple[int, dict[tuple[str, str], str], dict[str, dict[str, str]]]:
    """Exit status, verdict by check and what was looked at, and the wrong findings by check."""
    said = await d.run("doctor", *arguments, "--json")
    assert said.stdout, said.stderr
    findings = json.loads(said.stdout)["findings"]
    verdicts = {(one["check"], one["looked_at"]): one["verdict"] for one in findings}
    return said.returncode, verdicts, {one["check"]: one for one in findings if one["verdict"] == "wrong"}


async def test_doctor_names_what_was_broken_behind_its_back(d: Deployment) -> None:
    # nothing is built yet, and nothing is wrong
    status, verdicts, wrong = await doctor(d)
    assert (status, wrong) == (0, {})
    assert verdicts["worker", d.out.names.controller_group] == "note"

    worker = d.start_worker()
    d.add_version("v1", V1)
    await d.until_stage("v1", "ready")
    events: list[Event] = [(f"k{i}", {"text": f"the form {i} of a document"}, None) for i in range(40)]
    await d.produce(events)
    await d.until_live("v1")
    assert (await d.ask("cutover", "v1")).ok

    status, verdicts, wrong = await doctor(d, COLLECTION)
    assert (status, wrong) == (0, {})
    unseen = {(check, "http" if at.startswith("http:") else at) for (check, at), v in verdicts.items() if v != "ok"}
    assert unseen == UNSEEN
    shown = await d.run("doctor")
    assert shown.returncode == 0, shown.stdout
    assert "\x1b" not in shown.stdout
    assert shown.stdout.splitlines()[-1].startswith("3 not known, ")

    await d.end_worker(worker)  # it would put the alias back
    build = d.build("v1")
    space, alias = d.out.store.space(build.space), d.state.collections[COLLECTION].alias
    first = object_id(COLLECTION, "k1", 0)
    kept = dict((await space.properties([first]))[first])
    vector = np.ones(64, np.float32)
    orphan = {**kept, reserved.DOC_ID: "lonely", reserved.DOC_HASH: "lonely", reserved.CHUNK: 1, reserved.CHUNKS: 2}
    failed = await space.upsert(
        [
            SpaceObject(first, {**kept, reserved.SPACE: "v0@000000000000"}, vector),
            SpaceObject(object_id(COLLECTION, "k2", 0), {**kept, reserved.DOC_ID: "k2", reserved.TEXT: None}, vector),
            SpaceObject(object_id(COLLECTION, "lonely", 1), orphan, vector),
        ]
    )
    assert not failed
    await d.out.store.drop_alias(alias)
    _uncompacted(d)

    status, verdicts, wrong = await doctor(d)
    assert status == 1
    assert set(wrong) == {"retention", "worker", "alias", "mixed models", "missing text", "orphaned chunks"}
    assert d.topic in wrong["retention"]["found"]
    assert wrong["retention"]["fix"] == f"set cleanup.policy=compact on {d.topic}"
    assert wrong["worker"]["fix"] == "crossfade worker"
    assert f"points to nothing, but v1 serves, from {build.space}" in wrong["alias"]["found"]
    assert "1 of 41 objects carry v0@000000000000" in wrong["mixed models"]["found"]
    assert "document k2" in wrong["missing text"]["found"]
    assert wrong["orphaned chunks"]["found"].endswith("lonely: chunk 1 has no chunk 0")
    assert "crossfade verify docs v1 --repair" in wrong["orphaned chunks"]["fix"]
    assert verdicts["vectors", build.space] == "ok"

    # it changed nothing
    assert await d.out.store.alias_target(alias) is None
    assert await space.count() == 41


async def test_doctor_without_services_says_what_it_could_not_see(d: Deployment) -> None:
    d.raw["kafka"] = {"bootstrap_servers": "127.0.0.1:1"}
    d.raw["weaviate"] = {"http": "http://127.0.0.1:1", "grpc": "127.0.0.1:2"}
    d._write()
    status, verdicts, wrong = await doctor(d)
    assert status == 1
    assert set(wrong) == {"kafka", "weaviate"}
    assert verdicts["topics, state and offsets", "127.0.0.1:1"] == "not known"


def _uncompacted(d: Deployment) -> None:
    """As an operator might, with Kafka's own tools."""
    entry = ConfigEntry("cleanup.policy", "delete", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, d.topic, incremental_configs=[entry])
    admin = AdminClient({"bootstrap.servers": d.out.kafka_settings.bootstrap_servers})
    admin.incremental_alter_configs([resource])[resource].result(timeout=30)
