"""Shadow queries: how alike two answers are, and that what runs in the background stays there."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.errors import Unreachable
from connectors.memory.log import MemoryLog
from streams.config_operation import Shadow, ShadowSample
from streams.migration.golden import load_golden
from streams.search.agreement import PERSISTENCE, overlap, rank_biased_overlap
from streams.search.sampled import Samples, id_of, read_sample, write_new
from streams.search.shadow import Shadowed, Shadows
from streams.search.tallies import SearchesRecord, ShadowTally, shadow_of
from streams.state import BuildState
from streams.versions import Stage

LISTS = st.lists(st.sampled_from("abcdefghij"), unique=True)


def build(version: str, space: str = "") -> BuildState:
    return BuildState(
        collection="docs",
        version=version,
        epoch=1,
        stage=Stage.READY,
        envelope={},
        fingerprint="f",
        space=space or version,
        topic="t",
    )


V1, V2 = build("v1"), build("v2")
FOUND: Shadowed = (["a", "b"], 2.0)


@given(LISTS, LISTS)
def test_rank_biased_overlap_is_a_share_and_symmetric(one: list[str], other: list[str]) -> None:
    value = rank_biased_overlap(one, other)
    assert -1e-9 <= value <= 1 + 1e-9
    assert value == pytest.approx(rank_biased_overlap(other, one))


@given(LISTS, st.integers(0, 10))
def test_equal_lists_and_beginnings_of_them_agree_fully(one: list[str], cut: int) -> None:
    assert rank_biased_overlap(one, one) == pytest.approx(1.0)
    if one[:cut]:
        assert rank_biased_overlap(one, one[:cut]) == pytest.approx(1.0)


@given(st.permutations("abcdefgh"), st.permutations("abcdefgh"))
def test_of_equal_length_it_is_equation_23(one: list[str], other: list[str]) -> None:
    """RBO_ext = A_k p^k + (1-p)/p * sum of A_d p^d, with A_d the share that both have at depth d."""
    p, k = PERSISTENCE, len(one)
    agreement = [len(set(one[:d]) & set(other[:d])) / d for d in range(1, k + 1)]
    expected = agreement[-1] * p**k + (1 - p) / p * sum(a * p**d for d, a in enumerate(agreement, 1))
    assert rank_biased_overlap(one, other) == pytest.approx(expected)


def test_the_top_counts_most() -> None:
    assert rank_biased_overlap("abcd", "bacd") < rank_biased_overlap("abcd", "abdc") < 1.0
    assert rank_biased_overlap("ab", "cd") == 0.0
    assert rank_biased_overlap("", "") == 1.0
    assert rank_biased_overlap("a", "") == 0.0


def test_overlap() -> None:
    assert overlap("abcd", "dcxy", 4) == 0.5
    assert overlap("abcd", "dcxy", 2) == 0.0
    assert overlap("ab", "abcd", 4) == 0.5
    assert overlap("", "", 4) == 1.0


async def test_it_counts_and_compares_what_both_found() -> None:
    shadows = Shadows(lambda: 0.0)

    async def ask() -> Shadowed:
        return ["b", "a"], 4.0

    async def away() -> Shadowed:
        raise Unreachable("away")

    async def nothing() -> Shadowed:
        return [], 1.0

    for one in (ask, away, nothing):
        shadows.offer(Shadow(share=1.0), V1, V2, FOUND, one)
    await shadows.settle()
    tally = shadows.tallies()["docs"]
    figures = tally.as_json()
    assert (figures["asked"], figures["failed"], figures["dropped"], figures["compared"]) == (3, 1, 0, 2)
    assert (figures["overlap"], figures["live_zero_results"], figures["shadow_zero_results"]) == (0.5, 0.0, 0.5)
    assert figures["rank_overlap"] == pytest.approx(rank_biased_overlap("ab", "ba") / 2, abs=1e-4)
    assert figures["live_p95_ms"] == pytest.approx(2.0, rel=0.05)
    assert figures["shadow_p95_ms"] == pytest.approx(4.0, rel=0.05)
    assert "other" not in shadows.tallies()
    shadows.offer(Shadow(share=1.0), V1, build("v3"), FOUND, ask)
    assert shadows.tallies()["docs"].asked == 1, "another pair begins anew"
    await shadows.close()


async def test_the_load_is_bounded_and_what_is_beyond_is_dropped_and_counted() -> None:
    shadows = Shadows(lambda: 0.0)
    gate = asyncio.Event()
    running = most = 0

    async def slow() -> Shadowed:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await gate.wait()
        running -= 1
        return ["a"], 1.0

    for _ in range(10):
        shadows.offer(Shadow(share=1.0, at_once=3), V1, V2, FOUND, slow)
        await asyncio.sleep(0)
    tally = shadows.tallies()["docs"]
    assert (tally.asked, tally.dropped, most) == (3, 7, 3)
    gate.set()
    await shadows.settle()
    shadows.offer(Shadow(share=1.0, at_once=3), V1, V2, FOUND, slow)
    assert tally.asked == 4
    await shadows.close()


async def test_only_the_sampled_share_is_asked_and_none_by_default() -> None:
    chances = iter([0.05, 0.1, 0.5, 0.09])
    shadows = Shadows(lambda: next(chances))

    async def ask() -> Shadowed:
        return ["a"], 1.0

    for _ in range(4):
        shadows.offer(Shadow(share=0.1), V1, V2, FOUND, ask)
    shadows.offer(Shadow(), V1, V2, FOUND, ask)
    await shadows.settle()
    tally = shadows.tallies()["docs"]
    assert tally.asked == 2


async def test_closing_ends_what_is_under_way() -> None:
    shadows = Shadows(lambda: 0.0)

    async def never() -> Shadowed:
        await asyncio.Event().wait()
        raise AssertionError

    shadows.offer(Shadow(share=1.0), V1, V2, FOUND, never)
    await asyncio.sleep(0)
    await asyncio.wait_for(shadows.close(), 1)
    assert len(asyncio.all_tasks()) == 1


def published(shadows: Shadows, replica: str, at_ms: int = 0) -> SearchesRecord:
    """As it comes out of the topic again."""
    record = SearchesRecord(collection="docs", replica=replica, shadow=shadows.tallies()["docs"], updated_at=at_ms)
    return SearchesRecord.model_validate_json(record.to_bytes())


async def test_what_several_servers_compare_is_added_up() -> None:
    async def ask() -> Shadowed:
        return ["b", "c"], 4.0

    async def nothing() -> Shadowed:
        return [], 8.0

    records = []
    for at, (one, times) in enumerate(((ask, 3), (nothing, 1))):
        shadows = Shadows(lambda: 0.0)
        for _ in range(times):
            shadows.offer(Shadow(share=1.0), V1, V2, FOUND, one)
        await shadows.settle()
        records.append(published(shadows, f"s{at}"))
    elsewhere = Shadows(lambda: 0.0)
    elsewhere.offer(Shadow(share=1.0), V1, build("v3"), FOUND, ask)
    await elsewhere.settle()
    total, replicas = shadow_of([*records, published(elsewhere, "s9", 9)], "v1", "v2")
    assert (replicas, total.compared, total.overlap) == (2, 4, 1.5)
    assert (total.live_zero, total.shadow_zero) == (0, 1)
    assert total.as_json()["shadow_p95_ms"] == pytest.approx(8.0, rel=0.05)
    assert shadow_of([], "v1", "v2") == (ShadowTally(live_space="v1", shadow_space="v2"), 0)


async def test_nothing_of_a_query_is_kept_unless_a_sample_is_configured(tmp_path: Path) -> None:
    async def ask() -> Shadowed:
        return ["b", "c"], 4.0

    path = tmp_path / "sample.jsonl"
    shadows = Shadows(lambda: 0.0)
    shadows.offer(Shadow(share=1.0), V1, V2, FOUND, ask, "how do I end my plan")
    await shadows.settle()
    assert "plan" not in published(shadows, "a").model_dump_json()
    assert os.listdir(tmp_path) == []
    kept = Shadow(share=1.0, sample=ShadowSample(file=path, most=3))
    queries = ["how do I end my plan", "how do I end my plan", "a b", None, "\ud800", "c d", "one too many"]
    for query in queries:
        shadows.offer(kept, V1, V2, FOUND, ask, query)
        await shadows.settle()
    assert path.stat().st_mode & 0o777 == 0o600
    lines = [orjson.loads(line) for line in path.read_bytes().splitlines()]
    assert [line["query"] for line in lines] == ["how do I end my plan", "a b", "c d"]
    assert (lines[0]["old"], lines[0]["new"], lines[0]["relevant"]) == (["a", "b"], ["b", "c"], {})

    lines[1]["relevant"] = {"b": 2, "a": 0}  # a person has judged one of them, and gives the file back
    path.write_bytes(b"".join(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE) for line in lines[:2]))
    golden = await load_golden(path)
    assert [(query.query, query.relevant) for query in golden.queries] == [("a b", {"b": 2})]
    again = Shadows(lambda: 0.0)  # started again, it goes on, and leaves what was judged
    for query in ("a b", "c d", "one too many"):
        again.offer(kept, V1, V2, FOUND, ask, query)
        await again.settle()
    after = [orjson.loads(line) for line in path.read_bytes().splitlines()]
    assert [line["query"] for line in after] == ["how do I end my plan", "a b", "c d"]
    assert after[1] == lines[1]


async def test_a_sample_that_cannot_be_written_is_said_once_without_the_query(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def ask() -> Shadowed:
        return ["b"], 4.0

    shadows = Shadows(lambda: 0.0)
    kept = Shadow(share=1.0, sample=ShadowSample(file=tmp_path / "nowhere" / "sample.jsonl"))
    for query in ("a secret", "another secret"):
        shadows.offer(kept, V1, V2, FOUND, ask, query)
        await shadows.settle()
    assert len(caplog.records) == 1
    assert "secret" not in caplog.text
    assert shadows.tallies()["docs"].compared == 2


class Kafka:
    """A sink to a memory log."""

    def __init__(self) -> None:
        self.log = MemoryLog()
        self.log.create_topic("sample", 2)

    async def send(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]] = ()
    ) -> None:
        self.log.append(topic, key, value)


async def test_a_sample_in_a_topic_is_gone_on_with_by_a_server_that_begins_again() -> None:
    async def ask() -> Shadowed:
        return ["b"], 4.0

    kafka = Kafka()

    async def offered(most: int, *queries: str, samples: Samples | None = None) -> list[str]:
        """What the topic has after a server, begun for it, was asked these."""
        shadows = Shadows(lambda: 0.0, samples or Samples(kafka.log, kafka))
        for query in queries:
            shadows.offer(Shadow(share=1.0, sample=ShadowSample(topic="sample", most=most)), V1, V2, FOUND, ask, query)
            await shadows.settle()
        kept = [orjson.loads(line) for line in await read_sample(kafka.log, "sample")]
        return sorted(line["query"] for line in kept if line)

    kafka.log.append("sample", b"another's", b"{}")  # is no query, and takes the place of none
    assert await offered(3, "one", "two") == ["one", "two"]
    for at in range(5):
        assert await offered(3, "one", "three", f"more {at}") == ["one", "three", "two"], "not `most` more each time"
    assert await offered(4, "four", "five") == ["four", "one", "three", "two"], "`most` was raised"
    kafka.log.append("sample", id_of("one").encode(), None)  # taken away by hand
    assert await offered(4, "six", "seven") == ["four", "six", "three", "two"]
    samples = Samples(kafka.log, kafka)
    await offered(5, "eight", samples=samples)
    kafka.log.delete_topic("sample")
    kafka.log.create_topic("sample", 2)
    for at in range(18):
        kafka.log.append("sample", b"another's", b"{}", partition=at % 2)  # as long as the one before
    assert await offered(6, "nine", "two", samples=samples) == ["nine", "two"], "a new topic begins a new sample"


async def test_a_sample_of_several_servers_in_one_topic_has_each_query_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def ask() -> Shadowed:
        return ["b"], 4.0

    kafka, kept = Kafka(), Shadow(share=1.0, sample=ShadowSample(topic="sample", most=3))
    one, other = Shadows(lambda: 0.0, Samples(kafka.log, kafka)), Shadows(lambda: 0.0, Samples(kafka.log, kafka))
    for shadows, query in ((one, "one"), (other, "one"), (other, "two"), (one, "two"), (one, "three"), (other, "four")):
        shadows.offer(kept, V1, V2, FOUND, ask, query)
        await shadows.settle()
    bounds = await kafka.log.bounds("sample")
    assert sum(partition.stable for partition in bounds.values()) == 3, (
        "neither writes what the other has, nor more than both may"
    )
    found = await read_sample(kafka.log, "sample")
    assert sorted(orjson.loads(line)["query"] for line in found) == ["one", "three", "two"]
    path = tmp_path / "sample.jsonl"
    write_new(path, found)
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(path.read_bytes().splitlines()) == 3
    with pytest.raises(FileExistsError):
        write_new(path, [])
    nowhere = Shadow(share=1.0, sample=ShadowSample(topic="nowhere"))
    shadows = Shadows(lambda: 0.0, Samples(kafka.log, kafka))
    shadows.offer(nowhere, V1, V2, FOUND, ask, "a secret")
    await shadows.settle()
    assert "cannot be written to nowhere" in caplog.text
    assert "secret" not in caplog.text
    without = Shadows(lambda: 0.0)
    without.offer(kept, V1, V2, FOUND, ask, "five")
    await without.settle()
    assert without.tallies()["docs"].compared == 1
