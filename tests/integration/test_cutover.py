"""Cutover and rollback on real services with a real worker: the gate, waiting, two operators, the watch, and a load.

Commands are the command line's own, so that what an operator reads is what is looked at.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from pydantic import JsonValue

from connectors.services import Addresses
from streams.demo.asking import Asker
from streams.demo.load import Load
from streams.state import CollectionState
from streams.views import StateView
from tests.conftest import MakeTopic, Unique
from tests.deployment import COLLECTION, Deployment, Event, deployed

V1: Mapping[str, JsonValue] = {"embedder": {"provider": "hashing", "word_ngrams": None}, "dimensions": 64}
V2: Mapping[str, JsonValue] = {"embedder": {"provider": "hashing"}, "dimensions": 256}
DOCUMENTS = 120
PATIENCE_S = 60.0
PER_S = 200
LEAST_PER_S = 120  # of the 200 that are asked for: command lines, worker, Kafka and Weaviate run on the same machine


def text(i: int) -> str:
    return f"document number {i} about subject {i % 7} and matter {i % 11}, page {i * 17}"


@pytest.fixture
async def d(services: Addresses, tmp_path: Path, unique: Unique, make_topic: MakeTopic) -> AsyncIterator[Deployment]:
    """v1 serves, v2 is ready, one worker."""
    collection: dict[str, JsonValue] = {"text": {"fields": ["text"]}}
    async with deployed(services, tmp_path, unique("cf"), make_topic(2), unique("Docs"), collection) as deployment:
        events: list[Event] = [(f"k{i}", {"text": text(i)}, None) for i in range(DOCUMENTS)]
        await deployment.produce(events)
        deployment.start_worker()
        deployment.add_version("v1", V1)
        await deployment.until_stage("v1", "ready")
        done(await deployment.run("cutover", COLLECTION, "v1", "--why", "the first"))
        deployment.add_version("v2", V2)
        await deployment.until_stage("v2", "ready")
        yield deployment


def done(ran) -> str:  # type: ignore[no-untyped-def]
    assert ran.returncode == 0, ran.stderr + ran.stdout
    return str(ran.stdout)


def refused(ran) -> str:  # type: ignore[no-untyped-def]
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert "error: " in ran.stderr
    assert "\n  next: crossfade " in ran.stderr or "\n  next: " in ran.stderr
    return str(ran.stderr)


def state(d: Deployment) -> CollectionState:
    return d.state.collections[COLLECTION]


async def until(d: Deployment, condition: Callable[[CollectionState], bool]) -> None:
    def holds(view: StateView) -> bool:
        return condition(view.collections[COLLECTION])

    async with asyncio.timeout(PATIENCE_S):
        await d.state.wait_for(holds)


def golden(d: Deployment, count: int, *, wrong: bool = False) -> dict[str, JsonValue]:
    """Known-item queries; `wrong`: each names another document than the one it describes."""
    path = d.folder / "golden.jsonl"
    lines = [
        {"id": f"q{i}", "query": text(i), "relevant": {f"k{(i + 40 * wrong) % DOCUMENTS}": 1}} for i in range(count)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {"golden": str(path), "k": 5}


async def history(d: Deployment) -> list[dict[str, JsonValue]]:
    found = json.loads(done(await d.run("history", COLLECTION, "--json")))["entries"]
    assert isinstance(found, list)
    return found


async def test_the_gate_passes_fails_is_forced_and_is_kept_in_the_journal(d: Deployment) -> None:
    d.set_collection("gate", golden(d, 40))
    said = done(await d.run("cutover", COLLECTION, "v2", "--check"))
    assert "docs/v2 can cut over\n  sweep: checked 120, missing 0, stale 0, extra 0, held 0\n  gate: pass\n" in said
    assert "recall@5" in said
    assert state(d).serving == "v1"

    d.set_collection("gate", {**golden(d, 40), "min_coverage": 0.5, "min_recall_ratio": 5.0, "min_recall_lower": 4.0})
    for extra in ((), ("--check",), ("--accept-inconclusive", "all right")):
        told = refused(await d.run("cutover", COLLECTION, "v2", *extra))
        assert "gate: fail" in told
        assert "sweep: checked 120, missing 0" in told
        assert 'crossfade cutover docs v2 --force "REASON"' in told
    as_json = await d.run("cutover", COLLECTION, "v2", "--json")
    assert as_json.returncode == 1
    assert json.loads(as_json.stdout)["data"]["gate"]["verdict"] == "fail"
    assert state(d).serving == "v1"

    forced = done(await d.run("cutover", COLLECTION, "v2", "--force", "the old endpoint closes", "--why", "tonight"))
    assert "docs is served by v2; v1 is kept current for a rollback" in forced
    assert "forced: the old endpoint closes" in forced
    assert "verified: its queries are answered by its space" in forced
    assert state(d).serving == "v2"

    told = done(await d.run("history", COLLECTION, "v2"))
    assert "cutover refused" in told
    assert "forced: the old endpoint closes" in told
    assert "why: tonight" in told
    assert "cutover verified" in told
    assert f"v2@{d.build('v2').fingerprint}" in told
    assert "(hashing " in told, "the envelope, where it was declared"
    assert "gate: fail" in told


async def test_an_inconclusive_gate_waits_for_a_person(d: Deployment) -> None:
    d.set_collection("gate", golden(d, 5))
    told = refused(await d.run("cutover", COLLECTION, "v2"))
    assert "waits for a person" in told
    assert "gate: inconclusive" in told
    assert '--accept-inconclusive "REASON"' in told
    said = done(await d.run("cutover", COLLECTION, "v2", "--accept-inconclusive", "I read all five"))
    assert "accepted although inconclusive: I read all five" in said


async def test_force_does_not_override_the_sweep(d: Deployment) -> None:
    async for page in d.out.store.space(d.build("v2").space).scan():
        await d.out.store.space(d.build("v2").space).erase([page[0].uuid])
        break
    told = refused(await d.run("cutover", COLLECTION, "v2", "--force", "now"))
    assert "missing 1" in told
    assert state(d).serving == "v1"


@asynccontextmanager
async def loaded(d: Deployment) -> AsyncIterator[Load]:
    """200 queries a second of whatever serves, from here to the end; none may fail, none may be mixed, and there must
    have been that many."""
    asker = Asker(d.out, d.state, COLLECTION, 10)
    load = Load(asker.serving, [text(i) for i in range(DOCUMENTS)], PER_S)
    running = asyncio.create_task(load.run())
    try:
        await load.answered(100)
        yield load
        await load.answered(len(load.answers) + 100)
    finally:
        load.stop()
        await running
        await asker.close()
    whole = load.window(0, len(load.answers))
    assert (whole.failed, whole.mixed) == (0, 0), whole.problems
    assert whole.per_s >= LEAST_PER_S, whole


def both_answer(d: Deployment, load: Load, begin: int) -> None:
    """From `begin` on the load has met a swap: each space has answered its part, and never both one query."""
    window = load.window(begin, len(load.answers))
    assert (window.failed, window.mixed) == (0, 0), window.problems
    assert set(window.by_space) == {d.build("v1").space, d.build("v2").space}, window
    assert sum(window.by_space.values()) == window.queries


async def test_a_cutover_waits_for_a_file_through_a_crash_and_goes_on_under_load(d: Deployment) -> None:
    flag = d.folder / "business-hours"
    flag.touch()
    d.set_collection("cutover", {"postpone_file": str(flag)})
    said = done(await d.run("cutover", COLLECTION, "v2", "--why", "after hours"))
    assert f"the cutover to v2 waits until the file {flag} is gone (asked for by " in said
    assert "docs v2 --cancel" in said
    assert "--cancel" in refused(await d.run("cutover", COLLECTION, "v2"))
    assert "waits" in refused(await d.run("cutover", COLLECTION, "v2", "--force", "now"))

    async with loaded(d) as load:
        await d.end_worker(d.workers[0], signal.SIGKILL)
        d.start_worker()
        assert state(d).pending is not None
        before = len(load.answers)
        flag.unlink()
        await until(d, lambda now: now.serving == "v2")
        assert state(d).pending is None
        await load.answered(len(load.answers) + 100)
        both_answer(d, load, before)
        before = len(load.answers)
        gone_back = done(await d.run("rollback", COLLECTION, "--why", "second thoughts"))
        assert "docs is served by v1; v2 is kept current for a rollback" in gone_back
        assert "events behind the log" in gone_back
        await load.answered(len(load.answers) + 100)
        both_answer(d, load, before)
    swapped = state(d).swapped
    assert swapped is not None
    assert (swapped.verb, swapped.why) == ("rollback", "second thoughts")
    events = [entry["event"] for entry in await history(d)]
    for event in ("cutover postponed", "cutover refused", "cutover begins", "cutover", "cutover verified", "rollback"):
        assert event in events, events


async def test_what_waited_is_refused_when_it_is_no_longer_good(d: Deployment) -> None:
    flag = d.folder / "hold"
    flag.touch()
    d.set_collection("cutover", {"postpone_file": str(flag)})
    done(await d.run("cutover", COLLECTION, "v2"))
    async for page in d.out.store.space(d.build("v2").space).scan():
        await d.out.store.space(d.build("v2").space).erase([page[0].uuid])
        break
    flag.unlink()
    await until(d, lambda now: now.pending is None)
    assert state(d).serving == "v1"
    ((note, then),) = state(d).notes
    assert "the cutover to v2 was given up" in note
    assert "missing 1" in note
    assert then == "crossfade verify docs v2"


async def test_approval_and_its_withdrawal(d: Deployment) -> None:
    d.set_collection("cutover", {"approval": True})
    assert "no cutover to docs/v2 waits" in refused(await d.run("cutover", COLLECTION, "v2", "--approve"))
    said = done(await d.run("cutover", COLLECTION, "v2", "--why", "better answers"))
    assert "waits until somebody approves it" in said
    assert "next: crossfade cutover docs v2 --approve" in said
    assert "is withdrawn" in done(await d.run("cutover", COLLECTION, "v2", "--cancel", "--why", "not today"))
    done(await d.run("cutover", COLLECTION, "v2", "--why", "better answers"))
    approved = done(await d.run("cutover", COLLECTION, "v2", "--approve", "--why", "I have looked"))
    assert "docs is served by v2" in approved
    assert "asked for by: " in approved
    assert "approved by: " in approved
    assert state(d).serving == "v2"


async def test_two_operators_at_once(d: Deployment) -> None:
    both = await asyncio.gather(*(d.run("cutover", COLLECTION, "v2", "--why", f"operator {i}") for i in (1, 2)))
    assert sorted(ran.returncode for ran in both) == [0, 1], [ran.stderr for ran in both]
    (loser,) = [ran for ran in both if ran.returncode]
    assert "somebody was first" in loser.stderr or "nothing to do: v2 serves since" in loser.stderr
    assert "cut docs over to v2" in loser.stderr or "cutover by " in loser.stderr

    gone_back = await asyncio.gather(*(d.run("rollback", COLLECTION, "--why", f"operator {i}") for i in (1, 2)))
    assert state(d).serving == "v1", "the second one must not undo the first"
    assert sorted(ran.returncode for ran in gone_back) == [0, 1], [ran.stderr for ran in gone_back]
    (loser,) = [ran for ran in gone_back if ran.returncode]
    assert "somebody was first: when you looked, v2 " in loser.stderr or "was rolled back already" in loser.stderr
    assert "v1 serves since " in loser.stderr
    assert "rollback by " in loser.stderr
    assert "crossfade rollback docs --from v1" in refused(await d.run("rollback", COLLECTION))
    assert "v2 served docs" in refused(await d.run("rollback", COLLECTION, "--from", "v2"))
    assert "is served by v2" in done(await d.run("rollback", COLLECTION, "--from", "v1"))


async def test_a_watch_goes_back_by_itself_when_the_space_is_emptied(d: Deployment) -> None:
    d.set_collection("watch", {"for_s": 120, "every_s": 0.5, "rollback": True})
    done(await d.run("cutover", COLLECTION, "v2"))
    watch = state(d).watch
    assert watch is not None
    assert watch.before is not None
    assert (watch.before.zero, watch.before.errors) == (0, 0)
    space = d.out.store.space(d.build("v2").space)
    async for page in space.scan():
        await space.erase([head.uuid for head in page])
    await until(d, lambda now: now.serving == "v1")
    swapped, watch = state(d).swapped, state(d).watch
    assert swapped is not None
    assert watch is not None
    assert (swapped.verb, swapped.who, watch.result) == ("rollback", "watch", "rolled back")
    assert "queries found nothing, more than 2.0%" in swapped.why
    told = done(await d.run("history", COLLECTION))
    assert "watch: crossed  by watch: the watch over v2: crossed (" in told
    assert "rollback  by watch: docs is served by v1" in told
    assert "was rolled back already: v1 serves since " in refused(await d.run("rollback", COLLECTION))


async def test_a_quiet_watch_ends(d: Deployment) -> None:
    d.set_collection("watch", {"for_s": 2, "every_s": 0.5, "rollback": True})
    done(await d.run("cutover", COLLECTION, "v2"))
    await until(d, lambda now: now.watch is not None and not now.watch.going)
    assert state(d).serving == "v2"
    watch = state(d).watch
    assert watch is not None
    assert (watch.result, watch.reason) == ("quiet", "")
