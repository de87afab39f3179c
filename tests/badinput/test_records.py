"""Every bad record through the real pipeline: one topic, one worker, one version that meets them live, one in replay.

All are produced once, among healthy ones; each test then looks at what became of one of them.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # public names, imported there without `as`
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    ResourceType,
)
from pydantic import JsonValue

from connectors import reserved
from connectors.kafka.headers import Headed
from connectors.protocols import JSON
from connectors.services import Addresses
from streams.migration.sweep import Sweep
from tests.badinput.cases import CANARY, CASES, EARLIER, MAX_RECORD_BYTES, Case, document
from tests.badinput.speak import crossfade
from tests.deployment import COLLECTION, Deployment, deployed

SECRET = "SECRETz9k2w"
HEALTHY = 40
VERSIONS = ("v1", "v2")
STORED = [case for case in CASES if case.text is not None]
DEAD = [case for case in CASES if case.cause is not None]
DELETED = [case for case in CASES if case.deleted]


@dataclass(slots=True)
class After:
    """What stood when both versions had taken everything."""

    topic: str
    stored: dict[str, dict[str, dict[str, JSON]]] = field(default_factory=dict)
    dead: dict[str, list[Headed]] = field(default_factory=dict)
    sweeps: dict[str, Sweep] = field(default_factory=dict)
    oracle: dict[str, str] = field(default_factory=dict)
    hashes: dict[str, dict[str, str]] = field(default_factory=dict)
    counted: dict[str, int] = field(default_factory=dict)
    offsets: dict[str, int] = field(default_factory=dict)
    said: str = ""

    def dead_letter(self, version: str, case: Case) -> Headed:
        found = [item for item in self.dead[version] if item.headers["offset"] == str(self.offsets[case.name])]
        assert len(found) == 1, f"{case.name} is in the dead letters {len(found)} times"
        return found[0]


@pytest.fixture(scope="module")
def after(services: Addresses, tmp_path_factory: pytest.TempPathFactory) -> Iterator[After]:
    topic = f"badinput-{uuid.uuid4().hex[:8]}"
    admin = AdminClient({"bootstrap.servers": services.kafka})
    # a compacted topic takes no record without a key: it can only hold one from before it was compacted
    admin.create_topics([NewTopic(topic, 1, 1, config={"cleanup.policy": "delete"})])[topic].result(timeout=30)
    try:
        yield asyncio.run(everything(services, tmp_path_factory.mktemp("badinput"), admin, topic))
    finally:
        admin.delete_topics([topic])[topic].result(timeout=30)


async def everything(services: Addresses, folder: Path, admin: AdminClient, topic: str) -> After:
    after = After(topic)
    tag = uuid.uuid4().hex[:8]
    collection: dict[str, JsonValue] = {
        "text": {"fields": ["text"]},
        "properties": {"tag": "keyword", "count": "int", "score": "number", "day": "date"},
        "max_record_bytes": MAX_RECORD_BYTES,
    }
    producer = Producer(
        {
            "bootstrap.servers": services.kafka,
            "compression.type": "zstd",
            "message.max.bytes": 100_000_000,
            "linger.ms": 0,
            "enable.idempotence": True,
        }
    )
    without_key = [case for case in CASES if case.record_key is None]
    produce(producer, after, without_key)
    compact(admin, topic)
    async with deployed(services, folder, f"bi-{tag}", topic, f"Bad_{tag}", collection) as d:
        d.raw["kafka"]["client"] = {"sasl.password": SECRET}  # type: ignore[index,call-overload]
        d.add_version("v1", {"embedder": {"provider": "hashing"}, "dimensions": 32})
        d.start_worker()
        await d.until_stage("v1", "ready")
        produce(producer, after, [case for case in CASES if case.record_key is not None])
        await d.until_live("v1")
        d.add_version("v2", {"embedder": {"provider": "hashing"}, "dimensions": 48})
        await d.until_stage("v2", "ready")
        await d.until_live("v2")
        for version in VERSIONS:
            await d.until_settled(version)
        await look(d, after)
        after.said = d.logs() + await speak(d)
    return after


def compact(admin: AdminClient, topic: str) -> None:
    entry = ConfigEntry("cleanup.policy", "compact", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    admin.incremental_alter_configs([resource])[resource].result(timeout=30)


def produce(producer: Producer, after: After, cases: list[Case]) -> None:
    """Earlier forms, then the cases with a healthy document between any two of them."""

    def noted(name: str, value: bytes | None, key: bytes | None) -> None:
        def delivered(error: object, message: object) -> None:
            assert error is None, f"{name}: {error}"
            after.offsets[name] = message.offset()  # type: ignore[attr-defined]

        producer.produce(after.topic, value, key, on_delivery=delivered)
        producer.flush(60)

    for case in cases:
        if case.earlier:
            noted(f"{case.name}, before", document(EARLIER), case.record_key)
    for number, case in enumerate(cases):
        noted(case.name, case.value, case.record_key)
        noted(f"healthy-{number % HEALTHY}", document(f"healthy {number}"), f"healthy-{number % HEALTHY}".encode())


async def look(d: Deployment, after: After) -> None:
    after.oracle = await d.oracle()
    for version in VERSIONS:
        space = d.out.store.space(d.build(version).space)
        stored = after.stored[version] = {}
        async for page in space.scan():
            for properties in (await space.properties([head.uuid for head in page])).values():
                stored[str(properties[reserved.DOC_ID])] = dict(properties)
        after.hashes[version] = await d.stored(version)
        after.sweeps[version] = await d.verify(version)
        after.counted[version] = d.counters(version).dead_letters
        after.dead[version] = [item async for item in d.out.dead_letters() if item.headers["version"] == version]


async def speak(d: Deployment) -> str:
    """What the command line says about all this."""
    asked = [
        ("--log-level", "debug", "verify", COLLECTION, "v1"),
        ("verify", COLLECTION, "v2", "--json"),
        ("status", COLLECTION),
        ("status", COLLECTION, "v1", "--json"),
        ("history", COLLECTION),
        ("explain", COLLECTION, "json-broken"),
        ("explain", COLLECTION, "text-list", "--json"),
        ("--debug", "cutover", COLLECTION, "v1"),
    ]
    return "".join([await crossfade(d, *words) for words in asked])


def named(case: Case) -> str:
    return case.name


# v2 replays the newest record of each key only, and to it no key and an empty key are one
@pytest.mark.parametrize(
    ("case", "version"),
    [(case, version) for case in DEAD for version in VERSIONS if (case.name, version) != ("key-null", "v2")],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_a_bad_record_is_in_the_dead_letters_with_its_cause_and_its_bytes(
    after: After, case: Case, version: str
) -> None:
    found = after.dead_letter(version, case)
    assert found.headers["cause"] == case.cause
    assert found.headers["topic"] == after.topic
    assert found.headers["partition"] == "0"
    assert found.headers["error"]
    assert found.record.value == case.value
    assert found.record.key == case.record_key


@pytest.mark.parametrize("case", [case for case in DEAD if case.earlier], ids=named)
def test_the_form_before_a_bad_record_stands_where_it_was_stored(after: After, case: Case) -> None:
    assert after.stored["v1"][case.doc_id][reserved.TEXT] == EARLIER
    assert case.doc_id not in after.stored["v2"]  # replayed: the newest record alone counts, and it is held


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("case", STORED, ids=named)
def test_an_odd_but_good_record_is_stored_as_it_is(after: After, case: Case, version: str) -> None:
    stored = after.stored[version][case.doc_id]
    assert stored[reserved.TEXT] == case.text
    assert stored[reserved.OFFSET] == after.offsets[case.name]
    assert {name: value for name, value in stored.items() if not name.startswith(reserved.PREFIX)} == dict(
        case.properties
    )


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("case", DELETED, ids=named)
def test_a_delete_removes_the_document(after: After, case: Case, version: str) -> None:
    assert case.doc_id not in after.stored[version]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_partition_went_on_and_nothing_else_is_there(after: After, version: str) -> None:
    held = {case.doc_id for case in DEAD if case.earlier}
    assert {key: hashed for key, hashed in after.hashes[version].items() if key not in held} == {
        key: hashed for key, hashed in after.oracle.items() if key not in held
    }
    assert sum(key.startswith("healthy-") for key in after.hashes[version]) == HEALTHY


@pytest.mark.parametrize("version", VERSIONS)
def test_verify_is_clean_and_counts_the_held_apart(after: After, version: str) -> None:
    sweep = after.sweeps[version]
    keys = {case.record_key or b"" for case in DEAD}
    assert sweep.clean, sweep
    assert sweep.held == len(keys)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_counts_name_every_dead_letter(after: After, version: str) -> None:
    assert after.counted[version] == len(after.dead[version])
    without_key = {"key-null"} if version == "v2" else set()
    assert len(after.dead[version]) == len({case.name for case in DEAD} - without_key)


def test_no_text_and_no_secret_in_logs_headers_or_output(after: After) -> None:
    assert "v2 is ready" in after.said
    assert "to the dead letters" in after.said
    headers = [value for items in after.dead.values() for item in items for value in item.headers.values()]
    for words in (CANARY, CANARY[:8], SECRET):
        assert words not in after.said
        assert not [value for value in headers if words in value]
