"""A plan beside what then happens, on real services and an endpoint that counts: documents equal, tokens within 2%."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from confluent_kafka import Producer
from pydantic import JsonValue

from connectors.embedders.probe import PROBE_TEXTS
from connectors.kafka.inspection import Inspection
from connectors.protocols import JSON
from connectors.services import Addresses
from streams.cli import cli
from streams.tokens import Tokenizer
from tests.conftest import MakeTopic, Unique
from tests.contract.embedding_servers import API_KEY, Answered, Server, serving
from tests.deployment import COLLECTION, Deployment, Event, deployed
from tests.faults.tei_server import DIMENSIONS, vector
from tests.unit.tokenizers import byte_level

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dogs", "sea", "shells", "über", "ÄÖÜ", "今日は"]


class CountingServer(Server):
    """TEI that counts with the model's tokenizer, and remembers every text but the probe texts."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = Tokenizer(byte_level())
        self.embedded: list[str] = []
        self.asked = 0

    async def answer(self, path: str, body: bytes) -> Answered:
        if path != "/embed":
            return 404, {"error": "path"}, {}
        texts: list[str] = json.loads(body)["inputs"]
        self.asked += 1
        self.embedded += [text for text in texts if text not in PROBE_TEXTS]
        return 200, [vector(text) for text in texts], {"x-compute-tokens": str(sum(self.tokenizer.count(texts)))}


@pytest.fixture
async def d(services: Addresses, tmp_path: Path, unique: Unique, make_topic: MakeTopic) -> AsyncIterator[Deployment]:
    collection: dict[str, JsonValue] = {"text": {"fields": ["text"]}, "properties": {"title": "text"}}
    topic = make_topic(partitions=2)
    async with deployed(services, tmp_path, unique("cf"), topic, unique("Docs"), collection) as deployment:
        yield deployment


def version(url: str, **more: JsonValue) -> dict[str, JsonValue]:
    embedder: dict[str, JsonValue] = {
        "provider": "tei", "url": url, "model": "m", "api_key": API_KEY, "max_batch": 16, "price_per_million_tokens": 2,
    }  # fmt: skip
    return {"embedder": embedder, "dimensions": DIMENSIONS, "normalize": False, **more}


def events() -> list[Event]:
    """Documents of many lengths, edits, deletes (one of an unknown key), and two that nobody can embed."""
    chooser = random.Random(7)

    def document() -> dict[str, JSON]:
        return {"text": " ".join(chooser.choices(WORDS, k=chooser.randrange(2, 90))), "title": "a title"}

    made: list[Event] = [(f"k{n}", document(), None) for n in range(900)]
    made += [(f"k{chooser.randrange(900)}", document(), None) for _ in range(300)]
    made += [(f"k{n}", None, None) for n in range(0, 900, 30)]
    return [*made, ("never", None, None), ("blank", {"text": " "}, None), ("number", {"text": 7}, None)]


async def run(d: Deployment, *arguments: str) -> Result:
    """The verb, in this process: a plan is asked for many times here."""
    whole = ["--config", str(d.config_path), "plan", COLLECTION, *arguments]
    return await asyncio.to_thread(CliRunner().invoke, cli, whole)


async def planned(d: Deployment, *arguments: str) -> dict[str, JsonValue]:
    found = await run(d, *arguments, "--json")
    assert found.exit_code == 0, found.stderr
    plan = json.loads(found.stdout)
    assert isinstance(plan, dict)
    return plan


async def stored_keys(d: Deployment, name: str) -> set[str]:
    return {head.doc_id async for page in d.out.store.space(d.build(name).space).scan() for head in page}


@pytest.mark.parametrize(
    "more",
    [{"document_prefix": "passage: "}, {"chunking": {"by": "characters", "size": 120, "overlap": 20}}],
    ids=["prefix", "chunks"],
)
async def test_a_plan_says_what_will_be_embedded_and_paid(
    d: Deployment, tmp_path: Path, more: dict[str, JsonValue]
) -> None:
    server = CountingServer()
    (tmp_path / "tokenizer.json").write_bytes(byte_level())
    await d.produce(events())
    async with serving(server) as url:
        d.add_version("v1", version(url, tokenizer="tokenizer.json", **more))
        before = await planned(d, "v1", "--sample", "300")
        exact = await planned(d, "v1", "--exact")
        assert server.asked == 0, "a plan spends nothing"
        assert "docs/v1" not in d.state.builds, "and begins nothing"
        assert before["documents"] == exact["documents"] == 870
        assert before["deletes"] == 31
        assert before["superseded"] == 330
        assert before["refused"] == {"empty_text": 1, "bad_text": 1}
        assert before["next"] == "crossfade start docs v1"

        d.start_worker()
        await d.until_stage("v1", "ready")
        await d.until_live("v1")
        assert (await d.verify("v1")).clean
        await d.until_replayed("v1")
        counters = d.counters("v1")
        assert before["documents"] == len(await stored_keys(d, "v1")) == counters.written
        assert before["replayed"] == counters.total == counters.completed
        assert before["chunks"] == len(server.embedded) == await d.out.store.space(d.build("v1").space).count()
        assert before["characters"] == sum(map(len, server.embedded))
        for plan in (before, exact):
            tokens = plan["tokens"]
            assert isinstance(tokens, dict)
            assert isinstance(total := tokens["total"], int)
            assert tokens["by"] == "tokenizer"
            assert abs(total - counters.tokens) <= 0.02 * counters.tokens
            cost = plan["cost_usd"]
            assert isinstance(cost, dict)
            assert isinstance(high := cost["high"], float)
            assert abs(high - counters.cost_usd) <= 0.03 * counters.cost_usd

        # without the tokenizer, by what the first build has paid; and its space stands beside the new one
        d.add_version("v2", version(url, query_prefix="query: ", **more))
        d.set_collection("versions", {"v2": d.raw["collections"][COLLECTION]["versions"]["v2"]})  # type: ignore[index,call-overload]
        for process in d.workers:
            await d.end_worker(process)
        again = await planned(d, "v2")
        tokens = again["tokens"]
        assert isinstance(tokens, dict)
        assert tokens["by"] == "earlier"
        assert tokens["total"] == pytest.approx(counters.tokens, rel=0.02)
        assert isinstance(spaces := again["spaces"], list)
        assert [(s["version"], s["stage"], s["objects"]) for s in spaces if isinstance(s, dict)] == [
            ("v1", "ready", before["chunks"]),
            ("v2", None, before["chunks"]),
        ]


async def test_a_probe_measures_and_says_what_it_spent(d: Deployment) -> None:
    server = CountingServer()
    await d.produce(events()[:50])
    async with serving(server) as url:
        d.add_version("v1", version(url))
        unknown = await planned(d, "v1")
        assert isinstance(duration := unknown["duration"], dict)
        assert duration["seconds"] is None
        found = await run(d, "v1", "--probe")
        assert found.exit_code == 0, found.stderr
        assert "tokens spent" in found.stdout
        assert "by the probe" in found.stdout
        assert "quick brown" in " ".join(server.embedded), "the built-in text"
        assert not {str(value["text"]) for _, value, _ in events()[:50] if value} & set(server.embedded)


async def test_refusals_say_what_to_do(d: Deployment) -> None:
    d.add_version("v1", {"embedder": {"provider": "hashing"}, "dimensions": 32})
    unknown = await d.run("plan", COLLECTION, "v7")
    assert unknown.returncode == 1
    assert "no version v7" in unknown.stderr
    assert "v1" in unknown.stderr
    option = await run(d, "--", "--exact")
    assert option.exit_code == 1
    assert "no version --exact" in option.stderr
    misused = await run(d, "v1", "--sample", "0")
    assert misused.exit_code == 2
    unpaid = await run(d, "v1", "--probe")
    assert "no endpoint to probe" in unpaid.stderr
    empty = await run(d, "v1")
    assert empty.exit_code == 0
    assert "nothing to embed" in empty.stdout
    assert "next: crossfade produce" in empty.stdout
    d.set_collection("topic", "no-such-topic")
    missing = await run(d, "v1")
    assert missing.exit_code == 1
    assert "no topic no-such-topic" in missing.stderr
    assert "--create-topic" in missing.stderr
    d.raw["kafka"] = {"bootstrap_servers": "127.0.0.1:1", "topic_prefix": "x"}
    d.set_collection("topic", d.topic)
    away = await run(d, "v1")
    assert away.exit_code == 1
    assert "no Kafka broker answered" in away.stderr


async def test_risks_are_read_off_the_real_topic(d: Deployment, make_topic: MakeTopic, services: Addresses) -> None:
    topic = make_topic(2, {"cleanup.policy": "compact,delete", "retention.ms": "3600000", "delete.retention.ms": "9"})
    d.add_version("v1", {"embedder": {"provider": "hashing"}, "dimensions": 32})
    d.set_collection("topic", topic)
    producer = Producer({"bootstrap.servers": services.kafka})
    for partition in (0, 1):
        producer.produce(topic, json.dumps({"text": "a fox"}), "twice", partition)
    writer = Producer({"bootstrap.servers": services.kafka, "transactional.id": topic})
    await asyncio.to_thread(writer.init_transactions)
    writer.begin_transaction()
    for n in range(1_200):
        writer.produce(topic, json.dumps({"text": "a fox"}), f"k{n}", 1)
    await asyncio.to_thread(producer.flush)
    await asyncio.to_thread(writer.flush)
    try:
        plan = await planned(d, "v1")
    finally:
        await asyncio.to_thread(writer.abort_transaction)
    assert isinstance(found := plan["risks"], list)
    assert {(risk["severity"], risk["name"]) for risk in found if isinstance(risk, dict)} == {
        ("stops", "keys_in_two_partitions"),
        ("loses", "retention"),
        ("loses", "open_transactions"),
        ("note", "delete_retention_short"),
    }
    assert plan["documents"] == 2, "what stands behind the transaction is not seen"
    ends = await Inspection(d.out.kafka_settings).ends(topic)
    assert ends[1] >= 1_201
