"""The main job on real input: the git history of the PEPs, 15,885 events, through two versions and one cutover.

Needs the shared data folder beside the checkout; where it is not, the same scenario runs on made-up input elsewhere.
"""

from __future__ import annotations

import asyncio
import csv
import hashlib
import io
import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import zstandard
from pydantic import JsonValue

from connectors.services import Addresses
from tests.conftest import ROOT, MakeTopic, Unique
from tests.deployment import COLLECTION, Deployment, Event, deployed

DATA = Path(os.environ.get("CROSSFADE_DATA", ROOT.parent / "shared" / "data")) / "peps"
FIRST = 8_000
LIVE_DURING_REPLAY = 3_000
SUPPRESSED = 100

POOR: Mapping[str, JsonValue] = {
    "embedder": {"provider": "hashing", "word_ngrams": None, "char_ngrams": [3, 5]},
    "dimensions": 64,
}
BETTER: Mapping[str, JsonValue] = {"embedder": {"provider": "hashing"}, "dimensions": 512, "replay_rate": 8}

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the shared data folder is not beside this checkout")

Deploy = Callable[[], AbstractAsyncContextManager[Deployment]]


@pytest.fixture
def deploy(services: Addresses, tmp_path: Path, unique: Unique, make_topic: MakeTopic) -> Deploy:
    topic = make_topic(partitions=3)
    return lambda: deployed(
        services,
        tmp_path,
        unique("cf"),
        topic,
        unique("Peps"),
        {"text": {"fields": ["text"]}, "properties": {"title": "text"}},
    )


def events() -> Iterator[Event]:
    """In order, stamped with the time of now: by their own times, years apart, the broker would roll a segment for
    nearly each and compact most of the history away before the replay reads it."""
    with (DATA / "events.jsonl.zst").open("rb") as file:
        stream = zstandard.ZstdDecompressor(max_window_size=2**27).stream_reader(file)
        for line in io.BufferedReader(stream):
            event = json.loads(line)
            yield event["key"], event["value"], None


def final_state() -> dict[str, str]:
    with (DATA / "final_state.tsv").open() as file:
        return dict(csv.reader(file, delimiter="\t"))


async def build_v1_and_begin_v2(d: Deployment, history: list[Event]) -> None:
    d.start_worker()
    d.add_version("v1", POOR)
    await d.until_stage("v1", "ready")
    await d.produce(history[:FIRST])
    await d.until_live("v1")
    outcome = await d.ask("cutover", "v1")
    assert outcome.ok, outcome
    d.add_version("v2", BETTER)
    await d.until_stage("v2", "building")


async def produce_the_rest_while_v2_builds(d: Deployment, history: list[Event]) -> None:
    """In ten portions, each after the replay has got further: the two lanes meet all along the history.

    The replay is paused before its end, however slow the rest is: one delete has still to come before it.
    """
    holding = asyncio.create_task(pause_at(d, completed=250))
    rest = history[FIRST:]
    portion = len(rest) // 10 + 1
    for i in range(10):
        await d.until(lambda i=i: d.counters("v2").completed >= 25 * i)  # type: ignore[misc]
        await d.produce(rest[i * portion : (i + 1) * portion])
    await holding


async def pause_at(d: Deployment, *, completed: int) -> None:
    await d.until(lambda: d.counters("v2").completed >= completed)
    assert (await d.ask("pause", "v2")).ok


async def newest_replayed_last(d: Deployment) -> str:
    """The key whose newest record stands nearest below the barrier of its partition: replayed last there."""
    barrier = d.build("v2").barrier
    partition = max(barrier, key=lambda p: barrier[p])
    newest: dict[str, int] = {}
    async for batch in d.out.kafka.read_range(d.topic, partition, 0, barrier[partition]):
        for record in batch.records:
            assert record.key is not None
            if record.value is None:
                newest.pop(record.key.decode(), None)
            else:
                newest[record.key.decode()] = record.offset
    return max(newest, key=lambda key: newest[key])


async def check_everything(d: Deployment, history: list[Event], embeddings_over: int = 0) -> None:
    final = final_state()
    oracle = await d.oracle()
    for version in ("v1", "v2"):
        texts = await d.stored_texts(version)
        assert {key: hashlib.sha256(text.encode()).hexdigest() for key, text in texts.items()} == final
        assert await d.stored(version) == oracle
        sweep = await d.verify(version)
        assert (sweep.checked, sweep.missing, sweep.stale, sweep.extra, sweep.held) == (740, 0, 0, 0, 0)
    counters = d.counters("v2")
    assert counters.live_resolved_during_replay >= LIVE_DURING_REPLAY
    assert counters.suppressed_by_live >= SUPPRESSED
    assert counters.suppressed_by_live_delete >= 1
    assert counters.total == live_at_barrier(history)
    assert counters.embedded_replay <= counters.total + embeddings_over
    print(
        f"\n{counters.live_resolved_during_replay} live events resolved before the replay ended; "
        f"{counters.suppressed_by_live} replayed puts suppressed, {counters.suppressed_by_live_delete} of them of "
        f"deleted keys; {counters.embedded_replay} replay embeddings for {counters.total} documents at the barrier"
    )


def live_at_barrier(history: list[Event]) -> int:
    live: set[str] = set()
    for key, value, _ in history[:FIRST]:
        if value is None:
            live.discard(key)
        else:
            live.add(key)
    return len(live)


async def cut_over_and_back(d: Deployment, history: list[Event]) -> None:
    alias = d.state.collections[COLLECTION].alias
    outcome = await d.ask("cutover", "v2")
    assert outcome.ok, outcome
    assert await d.out.store.alias_target(alias) == d.build("v2").space
    outcome = await d.ask("rollback")
    assert outcome.ok, outcome
    assert await d.out.store.alias_target(alias) == d.build("v1").space
    await d.produce(history[-500:])
    for version in ("v1", "v2"):
        await d.until_live(version)
        assert await d.stored(version) == await d.oracle()
        assert (await d.verify(version)).clean


async def delete_one_before_the_replay_comes(d: Deployment, history: list[Event]) -> Event:
    """The history deletes no document that is live at event 8,000, so one is deleted here; returns its last form."""
    key = await newest_replayed_last(d)
    last = next(event for event in reversed(history) if event[0] == key)
    await d.produce([(key, None, None)])
    await d.until_live("v2")
    assert d.build("v2").stage == "building", "the replay was over before the delete"
    return last


async def test_peps_through_two_versions(deploy: Deploy) -> None:
    history = list(events())
    async with deploy() as d:
        await build_v1_and_begin_v2(d, history)
        await produce_the_rest_while_v2_builds(d, history)
        await d.until_live("v2")
        again = await delete_one_before_the_replay_comes(d, history)
        assert (await d.ask("set", "v2", replay_rate=0)).ok
        assert (await d.ask("resume", "v2")).ok
        await d.until_stage("v2", "ready")
        await d.produce([again])
        await d.until_live("v2")
        await d.until_live("v1")
        await d.until(lambda: d.counters("v2").completed == d.counters("v2").total > 0)
        await d.until_settled("v2")
        await check_everything(d, history)
        await cut_over_and_back(d, history)


async def test_peps_with_a_worker_stopped_and_a_worker_killed(deploy: Deploy) -> None:
    history = list(events())
    async with deploy() as d:
        await build_v1_and_begin_v2(d, history)
        stopped, killed = d.start_worker(), d.start_worker()
        await d.until(lambda: len({r.worker for r in d.progress.partitions(d.build("v2"))}) == 3)
        producing = asyncio.create_task(produce_the_rest_while_v2_builds(d, history))
        await d.until(lambda: d.counters("v2").completed >= 60)
        assert await d.end_worker(stopped, signal.SIGTERM) == 0
        await d.until(lambda: d.counters("v2").completed >= 120)
        await d.end_worker(killed, signal.SIGKILL)
        await producing
        await d.until_live("v2")
        again = await delete_one_before_the_replay_comes(d, history)
        assert (await d.ask("set", "v2", replay_rate=0)).ok
        assert (await d.ask("resume", "v2")).ok
        await d.until_stage("v2", "ready")
        await d.produce([again])
        await d.until_live("v2")
        await d.until_live("v1")
        await d.until_settled("v2")
        await d.until_settled("v1")
        batches_in_flight = 2 * 64  # concurrency times batch, of the one process that was killed
        await check_everything(d, history, embeddings_over=batches_in_flight)
        await cut_over_and_back(d, history)
