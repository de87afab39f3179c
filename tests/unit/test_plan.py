"""What a plan says: exact counts from a log, estimates with honest intervals, prices, limits, sizes and risks."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from connectors.memory.log import MemoryLog
from connectors.protocols import JSON, Bounds, Capacity, Log
from streams.batching import BatchLimits
from streams.chunking import make_chunker
from streams.cli import output, plan_lines
from streams.config_embedders import Version
from streams.documents import DocumentSchema
from streams.migration import plan as figures
from streams.migration.plan import Earlier, Measured, Plan, Ratio, Speed, replayers
from streams.migration.plan_probe import text_of
from streams.migration.plan_risks import Risk, Topic, risks
from streams.migration.plan_scan import Reading, Scan, scan
from streams.planning import Planned
from streams.state import BuildState
from streams.tokens import TokenEstimate, Tokenizer
from streams.versions import Envelope, Stage
from tests.unit.tokenizers import word_level

TOPIC = "t"
WORDS = Tokenizer(word_level())
Document = Mapping[str, JSON] | list[JSON] | None


def log_of(events: list[tuple[str, Document]], partitions: int = 2) -> MemoryLog:
    log = MemoryLog(range_records=7)
    log.create_topic(TOPIC, partitions)
    for key, value in events:
        log.append(TOPIC, key.encode(), None if value is None else json.dumps(value).encode())
    return log


def reading(**more: Any) -> Reading:
    envelope = Envelope("tei", "m", "", 4, ("text",), **more.pop("envelope", {}))
    defaults: dict[str, Any] = {
        "schema": DocumentSchema("c", ("text",), properties={"title": "text"}, max_record_bytes=200),
        "envelope": envelope,
        "chunker": make_chunker(envelope.chunking),
        "tokenizer": None,
        "batch": 4,
        "limits": BatchLimits(3),
        "store_text": True,
        "sample": None,
    }
    return Reading(**{**defaults, **more})


async def scanned(log: Log, how: Reading) -> Scan:
    return await scan(log, TOPIC, await log.bounds(TOPIC), how)


async def test_documents_are_counted_as_the_pipeline_will_treat_them() -> None:
    found = await scanned(
        log_of(
            [
                ("a", {"text": "one two"}),
                ("b", {"text": "old"}),
                ("gone", {"text": "x"}),
                ("b", {"text": "über", "title": "a b"}),
                ("gone", None),
                ("envelope", {"op": "d", "before": {"text": "x"}, "after": None}),
                ("blank", {"text": " "}),
                ("list", [1]),
                ("large", {"text": "x" * 300}),
                ("never", None),
            ]
        ),
        reading(envelope={"document_prefix": "d: "}),
    )
    measured = found.measured
    assert measured.records == 10
    assert measured.superseded == 2
    assert measured.deletes == 3, "two tombstones and a delete said in an envelope"
    assert measured.documents == measured.chunks == 2
    assert measured.replayed == 5
    assert measured.refused == {"empty_text": 1, "not_an_object": 1, "record_too_large": 1}
    assert measured.characters == len("d: one two") + len("d: über")
    assert measured.text_bytes == measured.characters + 1
    assert measured.stored_text_bytes == measured.text_bytes - 2 * len("d: ")
    assert measured.estimated_tokens == sum(TokenEstimate().estimate(text) for text in ("d: one two", "d: über"))
    assert measured.terms == 4
    assert measured.moved == 0


async def test_a_store_without_text_is_smaller() -> None:
    events: list[tuple[str, Document]] = [("a", {"text": "one two"})]
    assert (await scanned(log_of(events), reading(store_text=False))).measured.stored_text_bytes == 0


async def test_requests_are_those_of_groups_cut_at_their_limits() -> None:
    events: list[tuple[str, Document]] = [(f"k{n}", {"text": "a word"}) for n in range(7)]
    found = await scanned(log_of(events, partitions=1), reading())
    assert found.measured.requests == 2 + 1, "a group of four in requests of three, then a group of three"


async def test_chunks_are_counted_one_by_one() -> None:
    found = await scanned(
        log_of([("a", {"text": "one two three four"}), ("b", {"text": "one"})]),
        reading(
            envelope={"chunking": "characters:8:0", "document_prefix": "d: "},
            chunker=make_chunker("characters:8:0"),
            tokenizer=WORDS,
        ),
    )
    pieces = ["one two", "three", "four", "one"]
    assert found.measured.chunks == len(pieces)
    assert found.measured.characters == sum(len("d: " + piece) for piece in pieces)
    assert found.measured.counted_tokens == sum(WORDS.count(["d: " + piece for piece in pieces]))
    assert found.measured.stored_text_bytes == sum(map(len, pieces))


async def test_a_sample_decides_tokens_and_never_documents() -> None:
    chooser = random.Random(5)
    events: list[tuple[str, Document]] = [
        (f"k{n}", {"text": " ".join(["fox"] * chooser.randrange(1, 40))}) for n in range(400)
    ]
    log = log_of(events, partitions=3)
    whole = (await scanned(log, reading(tokenizer=WORDS))).measured
    sampled = (await scanned(log, reading(tokenizer=WORDS, sample=60))).measured
    assert (sampled.documents, sampled.characters, sampled.requests) == (400, whole.characters, whole.requests)
    assert sampled.counted_documents == 0
    assert sampled.sample.counted == 60
    assert sampled.other_documents == 400
    exact = figures.tokens_of(whole, 0, has_tokenizer=True, has_endpoint=True, earlier=None)
    told = figures.tokens_of(sampled, 0, has_tokenizer=True, has_endpoint=True, earlier=None)
    assert exact.low == exact.total == exact.high == whole.counted_tokens
    assert told.low <= exact.total <= told.high
    assert 0.98 * exact.total < told.total < 1.02 * exact.total


async def test_overlong_documents_are_counted_exactly_whatever_the_sample() -> None:
    events: list[tuple[str, Document]] = [(f"k{n}", {"text": "fox " * (n + 1)}) for n in range(40)]
    how = reading(tokenizer=WORDS, sample=2, envelope={"max_tokens": 22})
    measured = (await scanned(log_of(events), how)).measured
    assert measured.refused == {"content_rejected": 20}
    assert measured.documents == 20
    tokens = [n + 3 for n in range(20)]
    assert measured.counted_tokens + measured.sample.tokens <= sum(tokens)
    cut = replace(how, sample=None, envelope=replace(how.envelope, options={"overlong": "truncate"}))
    measured = (await scanned(log_of(events), cut)).measured
    assert measured.refused == {}
    assert measured.documents == 40
    assert measured.counted_tokens == sum(tokens) + 20 * 22


async def test_what_changes_while_it_is_read_is_counted_and_said() -> None:
    log = log_of([("a", {"text": "one"}), ("b", {"text": "one"})], partitions=1)

    def compacts(what: str, _: int, __: int) -> None:
        if what == "keys":
            log.append(TOPIC, b"a", b"{}")
            log.compact(TOPIC)

    found = await scan(log, TOPIC, await log.bounds(TOPIC), reading(), compacts)
    assert (found.measured.documents, found.measured.moved, found.measured.replayed) == (1, 1, 2)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    chooser = random.Random(11)
    texts = [max(4, int(chooser.lognormvariate(6, 1))) for _ in range(3000)]
    members = [(max(1, int(size / 4 * chooser.uniform(0.6, 1.4))), size) for size in texts]
    truth, every_byte = sum(tokens for tokens, _ in members), sum(texts)
    held = 0
    for _ in range(400):
        ratio = Ratio()
        for tokens, size in chooser.sample(members, 200):
            ratio.add(tokens, size)
        estimate, error = ratio.total(len(members), every_byte)
        held += abs(estimate - truth) <= error
    assert 0.90 <= held / 400 <= 0.99


def test_a_whole_sample_is_no_estimate_and_none_says_nothing() -> None:
    ratio = Ratio()
    assert ratio.total(0, 0) == (0.0, 0.0)
    assert str(ratio.total(3, 30)) == "(nan, nan)"
    ratio.add(3, 10)
    ratio.add(4, 20)
    assert ratio.total(2, 30) == (7.0, 0.0)


MEASURED = Measured(
    records=120, superseded=15, deletes=5, documents=100, chunks=200, characters=40_000, text_bytes=40_000,
    stored_text_bytes=40_000, property_bytes=60_000, requests=10, estimated_tokens=10_000, terms=200,
)  # fmt: skip


@pytest.mark.parametrize(
    ("facts", "total", "how"),
    [
        ({"has_endpoint": False}, 10_000, "worker"),
        ({}, 10_050, "bytes"),
        ({"earlier": Earlier("c/v1", 50, 4_000, None)}, 8_000, "earlier"),
    ],
)
def test_tokens_without_a_tokenizer_say_where_they_come_from(facts: dict[str, Any], total: int, how: str) -> None:
    said: dict[str, Any] = {"has_tokenizer": False, "has_endpoint": True, "earlier": None, **facts}
    tokens = figures.tokens_of(MEASURED, 5.0, **said)
    assert (tokens.total, tokens.how) == (total, how)


def version(**more: Any) -> Version:
    embedder = {"provider": "tei", "url": "http://h:1", "model": "m", **more.pop("embedder", {})}
    return Version.model_validate({"embedder": embedder, "dimensions": 8, **more})


def fallback(**more: Any) -> dict[str, Any]:
    return {"provider": "tei", "url": "http://h:2", "model": "m", **more}


def tokens_of(total: int) -> figures.Tokens:
    return figures.Tokens(total, total, total, 0, "tokenizer", 100, "")


def test_the_cost_is_a_range_over_the_endpoints_that_may_replay() -> None:
    told = version(
        embedder={"price_per_million_tokens": 0.5},
        fallbacks=[
            fallback(rank=1, price_per_million_tokens=2.0),
            fallback(lanes=["query"], price_per_million_tokens=99.0),
            fallback(lanes=["rest"]),
        ],
    )
    cost = figures.cost_of(tokens_of(2_000_000), replayers(told, {"m": 1.0}), 3.0)
    assert (cost.low, cost.high) == (1.0, 4.0)
    assert cost.over_budget
    assert not figures.cost_of(tokens_of(2_000_000), replayers(told, {"m": 1.0}), 4.0).over_budget
    unknown = figures.cost_of(tokens_of(1), replayers(told, {}), 3.0)
    assert (unknown.low, unknown.high, unknown.unpriced) == (None, None, ("m",))
    free = figures.cost_of(tokens_of(1), [], None)
    assert (free.low, free.high) == (0.0, 0.0)


def test_time_is_by_the_slowest_bound_and_says_whether_it_was_measured() -> None:
    limited = version(
        embedder={"requests_per_minute": 60, "tokens_per_minute": 600},
        fallbacks=[fallback(tokens_per_minute=1200), fallback(rank=1, tokens_per_minute=1e9)],
    )
    limits = figures.limits_of(MEASURED, tokens_of(6_000), replayers(limited, {}))
    assert limits is not None
    # 60 tokens a document: 10 and 20 documents a minute; the endpoint of rank 1 serves only when those are away
    assert limits.documents_per_s == pytest.approx(30 / 60 * 0.985)
    assert figures.limits_of(MEASURED, tokens_of(6_000), replayers(version(), {})) is None
    overflowing = version(
        embedder={"tokens_per_minute": 600}, fallbacks=[fallback(rank=1, overflow=True, tokens_per_minute=600)]
    )
    both = figures.limits_of(MEASURED, tokens_of(6_000), replayers(overflowing, {}))
    assert both is not None
    assert both.documents_per_s == pytest.approx(20 / 60 * 0.985)
    probe, rate = Speed(50.0, "the probe", measured=True), Speed(20.0, "replay_rate", measured=False)
    assert figures.duration_of(100, [probe, rate, None]) == figures.Duration(5.0, "replay_rate", at_least=False)
    assert figures.duration_of(100, [rate]).at_least
    assert figures.duration_of(100, [None], "seen").seconds is None
    assert figures.duration_of(0, [None]).seconds == 0.0


def test_sizes_are_per_object() -> None:
    new = figures.space_size("v2", "", 200, 768, MEASURED)
    assert new.vectors == 200 * 768 * 4
    assert new.index == 200 * 64 * 10
    assert new.contents == 100_000
    assert new.memory == 2 * new.vectors
    assert figures.space_size("v1", "serving", 100, 384, MEASURED).contents == 50_000
    assert figures.space_size("v1", "serving", 100, 384, Measured()).contents == 0


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"dimensions": 9}, True),
        ({"query_prefix": "q: "}, True),
        ({"document_prefix": "d: "}, False),
        ({"model": "n"}, False),
        ({"chunking": "characters:8:0"}, False),
        ({"revision": "r"}, False),
    ],
)
def test_which_builds_tell_of_each_other(change: dict[str, Any], same: bool) -> None:
    one = Envelope("tei", "m", "", 4, ("text",))
    assert figures.same_texts(one, replace(one, **change)) is same


def test_the_probe_text_is_as_long_as_asked() -> None:
    assert len(text_of(1)) >= 1
    assert 400 <= len(text_of(400)) < 450
    assert len(text_of(10**9)) < 8_100


PLAN = Plan(
    collection="c", version="v2", fingerprint="f" * 12, model="m", dimensions=8, topic=TOPIC, partitions=2,
    measured=MEASURED, tokens=tokens_of(10_000),
    cost=figures.Cost(1.0, 2.0, (0.1, 0.2), (), None),
    duration=figures.Duration(7200.0, "the probe", at_least=False),
    new=figures.space_size("v2", "", 200, 8, MEASURED), present=(), capacity=Capacity(), tiers=(), paid=True,
)  # fmt: skip
SETTINGS = {"cleanup.policy": "compact", "delete.retention.ms": "86400000", "retention.ms": "604800000"}
BOUNDS = {0: Bounds(0, 60), 1: Bounds(0, 60)}


def topic(*, in_two: list[tuple[int, int]] | None = None, end: int = 60, **settings: str) -> Topic:
    told = {name.replace("_", "."): value for name, value in settings.items()}
    return Topic(TOPIC, {**SETTINGS, **told}, BOUNDS, {0: 60, 1: end}, in_two or [])


def named(found: list[Risk]) -> dict[str, str]:
    return {risk.name: risk.severity for risk in found}


def built(stage: Stage, fingerprint: str) -> BuildState:
    return BuildState(
        collection="c", version="v2", epoch=1, stage=stage, envelope={}, fingerprint=fingerprint, space="C_v2_1_f",
        topic=TOPIC,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("plan", "seen", "build", "expected"),
    [
        (PLAN, topic(), None, {}),
        (PLAN, topic(in_two=[(0, 1)]), None, {"keys_in_two_partitions": "stops"}),
        (PLAN, topic(cleanup_policy="compact,delete"), None, {"retention": "loses"}),
        (PLAN, topic(cleanup_policy="delete"), None, {"retention": "loses", "not_compacted": "stops"}),
        (
            PLAN,
            topic(cleanup_policy="delete", retention_ms="-1", retention_bytes="-1"),
            None,
            {"not_compacted": "stops"},
        ),
        (PLAN, topic(delete_retention_ms="7200000"), None, {"delete_retention": "loses"}),
        (PLAN, topic(delete_retention_ms="7200001"), None, {"delete_retention_short": "note"}),
        (PLAN, topic(end=5_000), None, {"open_transactions": "loses"}),
        (PLAN, topic(end=100), None, {}),
        (
            replace(PLAN, cost=figures.Cost(1.0, 2.0, (0.1, 0.2), (), 1.5)),
            topic(),
            None,
            {"over_budget": "note"},
        ),
        (replace(PLAN, cost=figures.Cost(None, None, (), ("m",), None)), topic(), None, {"no_price": "note"}),
        (replace(PLAN, capacity=Capacity(1_050_000, 10_000_000)), topic(), None, {"disk": "stops"}),
        (replace(PLAN, capacity=Capacity(9_000_000, 10_000_000)), topic(), None, {}),
        (
            replace(PLAN, capacity=Capacity(memory_used_bytes=99_000, memory_limit_bytes=100_000)),
            topic(),
            None,
            {"memory": "note"},
        ),
        (
            replace(PLAN, measured=replace(MEASURED, refused={"empty_text": 7})),
            topic(),
            None,
            {"refused": "note"},
        ),
        (
            replace(PLAN, measured=replace(MEASURED, records=20_000, superseded=19_000)),
            topic(),
            None,
            {"superseded": "note"},
        ),
        (PLAN, topic(), built(Stage.READY, "f" * 12), {"already_built": "note"}),
        (PLAN, topic(), built(Stage.READY, "0" * 12), {"another_model": "stops"}),
        (PLAN, topic(), built(Stage.ABORTED, "0" * 12), {}),
    ],
)
def test_risks(plan: Plan, seen: Topic, build: BuildState | None, expected: dict[str, str]) -> None:
    found = risks(plan, seen, build)
    assert named(found) == expected
    assert all(risk.what for risk in found)


def test_a_broker_that_tells_nothing_is_not_called_safe() -> None:
    unknown = Topic(TOPIC, {}, BOUNDS, {0: 60, 1: 60}, [])
    assert named(risks(PLAN, unknown, None)) == {"policy_unknown": "note"}


def test_what_is_left_when_the_records_outlive_the_replay_is_told_apart() -> None:
    short = topic(cleanup_policy="delete", retention_ms="3600000")
    long = topic(cleanup_policy="delete", retention_ms="604800000")
    for seen, late in ((short, True), (long, False)):
        (one,) = [risk for risk in risks(PLAN, seen, None) if risk.name == "retention"]
        assert ("before the replay has read them" in one.what) is late


def test_the_worst_comes_first_and_decides_the_next_command() -> None:
    seen = topic(in_two=[(0, 1)], cleanup_policy="compact,delete", delete_retention_ms="7200001")
    found = risks(PLAN, seen, None)
    assert [risk.severity for risk in found] == ["stops", "loses", "note"]
    assert plan_lines.next_step(Planned(PLAN, found, None, [])).endswith("then: crossfade plan c v2")
    assert plan_lines.next_step(Planned(PLAN, [], None, [])) == "crossfade start c v2"
    ready = plan_lines.next_step(Planned(PLAN, [], built(Stage.READY, "f" * 12), []))
    assert ready == "crossfade cutover c v2 --check"


def test_the_words_hold_the_figures() -> None:
    text = "\n".join(plan_lines.lines(Planned(PLAN, [], None, [])))
    assert "100 to embed, of 120 records: 15 superseded, 5 deletes" in text
    assert "1.00 to 2.00 USD, at 0.1 to 0.2 USD a million tokens" in text
    assert "about 2h00m, by the probe" in text
    assert "free: unknown" in text
    assert text.endswith(
        "Building v2 embeds 100 documents: 10,000 tokens, 1.00 to 2.00 USD, about 2h00m, about 293.4 kB of disk."
    )
    assert all(len(line) <= output.WIDTH for line in text.splitlines()[:-1])
    data = plan_lines.plan_json(Planned(PLAN, [], None, []))
    assert data["documents"] == 100
    assert data["next"] == "crossfade start c v2"
    json.dumps(data)


@pytest.mark.parametrize(
    ("number", "words"), [(0, "0 B"), (999, "999 B"), (1_000, "1.0 kB"), (2_345_678, "2.3 MB"), (10**12, "1.0 TB")]
)
def test_bytes_in_words(number: int, words: str) -> None:
    assert output.size(number) == words


@pytest.mark.parametrize(("amount", "words"), [(0.0, "0.00"), (0.00621, "0.00621"), (1234.5, "1,234.50")])
def test_money_in_words(amount: float, words: str) -> None:
    assert output.usd(amount) == words
