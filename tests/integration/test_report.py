"""The report of a small real migration: paused, its worker killed, judged, cut over and back, told as it was."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import AsyncIterator, Mapping
from itertools import pairwise
from pathlib import Path

import pytest
from pydantic import JsonValue

from connectors.services import Addresses
from streams.progress import Counters
from tests.conftest import MakeTopic, Unique
from tests.deployment import COLLECTION, Deployment, Event, deployed
from tests.unit.test_cli_report import Page

V1: Mapping[str, JsonValue] = {"embedder": {"provider": "hashing", "word_ngrams": None}, "dimensions": 64}
V2: Mapping[str, JsonValue] = {"embedder": {"provider": "hashing"}, "dimensions": 128, "replay_rate": 3}
DOCUMENTS = 120
PARTITIONS = 2
SECRET = "a sentence that no report may ever show"


@pytest.fixture
async def d(services: Addresses, tmp_path: Path, unique: Unique, make_topic: MakeTopic) -> AsyncIterator[Deployment]:
    """v1 serves, v2 is not begun, one worker."""
    collection: dict[str, JsonValue] = {"text": {"fields": ["text"]}}
    async with deployed(
        services, tmp_path, unique("cf"), make_topic(PARTITIONS), unique("Docs"), collection
    ) as deployment:
        events: list[Event] = [(f"k{i}", {"text": f"{SECRET}, number {i}"}, None) for i in range(DOCUMENTS)]
        await deployment.produce(events)
        deployment.start_worker()
        deployment.add_version("v1", V1)
        await deployment.until_stage("v1", "ready")
        await said(deployment, "cutover", COLLECTION, "v1", "--why", "the first")
        yield deployment


async def said(d: Deployment, *arguments: str) -> str:
    ran = await d.run(*arguments)
    assert ran.returncode == 0, ran.stderr + ran.stdout
    return ran.stdout


async def test_the_report_holds_the_figures_of_the_journal_and_the_course_through_a_killed_worker(
    d: Deployment,
) -> None:
    d.add_version("v2", V2)
    await d.until_stage("v2", "building")
    await d.until(lambda: d.counters("v2").completed > 5)
    await said(d, "pause", COLLECTION, "v2", "--why", "lunch & <rest>")
    await d.until(lambda: all(r.status == "paused" for r in d.progress.partitions(d.build("v2"))))
    await d.until(lambda: (kept := d.progress.series(d.build("v2"))) is not None and bool(kept.waits))
    await d.end_worker(d.workers[0], signal.SIGKILL)
    killed_ms = time.time_ns() // 1_000_000
    d.start_worker()
    await d.until(lambda: d.restarted_since("v2", killed_ms))
    await said(d, "set", COLLECTION, "v2", "replay_rate=500")
    await said(d, "resume", COLLECTION, "v2")
    ready = await d.until_stage("v2", "ready")
    await d.produce([("bad", None, None), ("odd", {"text": 7}, None)])
    await d.until_live("v2")
    await said(d, "cutover", COLLECTION, "v2", "--accept-held", "odd", "--why", "better answers")
    await said(d, "rollback", COLLECTION, "--why", "second thoughts")

    def recorded() -> bool:
        kept = d.progress.series(ready)
        return kept is not None and len({run.worker for run in kept.runs}) == 2 and len(kept.after.points) > 1

    await d.until(recorded)

    entries = json.loads(await said(d, "history", COLLECTION, "v2", "--json"))["entries"]
    told = json.loads(await said(d, "report", COLLECTION, "v2", "--json"))
    by_number = {step["number"]: step for step in told["time_line"]}
    assert [step["at_ms"] for step in told["time_line"]] == sorted(step["at_ms"] for step in told["time_line"])
    for entry in entries:
        assert entry in [{k: v for k, v in step.items() if k != "number"} for step in by_number.values()], entry
    events = [step["event"] for step in told["time_line"]]
    for event in (
        "declared",
        "start",
        "pause",
        "resume",
        "replayed",
        "cutover",
        "cutover verified",
        "rollback verified",
    ):
        assert event in events, events
    (gate,), (sweep,) = told["gates"], told["sweeps"]
    outcome = next(entry for entry in entries if entry["event"] == "cutover")["data"]["outcome"]
    assert {name: gate[name] for name in outcome["gate"]} == outcome["gate"]
    assert {name: sweep[name] for name in ("checked", "missing", "stale", "extra", "held")} == {
        name: outcome[name] for name in ("checked", "missing", "stale", "extra", "held")
    }
    assert [one["stage"] for one in told["stages"]] == ["declared", "building", "ready", "serving", "previous"]
    assert told["ready_ms"] == ready.ready_ms
    assert (told["total"], told["completed"]) == (DOCUMENTS, DOCUMENTS)
    assert Counters(**told["counters"]).dead_letters == 1
    assert sum(told["dead_letters"].values()) == 1

    columns = told["series_columns"]
    points = [dict(zip(columns, point, strict=True)) for point in told["series"]["replay"]["points"]]
    assert points[-1]["completed"] == points[-1]["total"] == DOCUMENTS
    fell = [after["at_ms"] for point, after in pairwise(points) if after["completed"] < point["completed"]]
    # what stood beyond a hole in a partition when its worker was killed is resolved again
    assert len(fell) <= PARTITIONS
    assert all(at_ms > killed_ms for at_ms in fell)
    paused_ms = next(step["at_ms"] for step in told["time_line"] if step["event"] == "pause")
    assert told["series"]["since_ms"] <= points[0]["at_ms"] < paused_ms, "the second controller went on with the series"
    waits = {wait["reason"]: wait for wait in told["series"]["waits"]}
    assert waits["paused (replay)"]["lasted_ms"] > 0

    page = d.folder / "v2.html"
    assert f"the report of docs/v2 stands in {page}" in await said(d, "report", COLLECTION, "v2", "--output", str(page))
    html = page.read_text()
    shown = Page(html)
    assert "svg" in shown.tags
    for words in (
        "why: lunch & <rest>",
        "why: better answers",
        "Rollback ",
        "paused (replay)",
        f"120 of {DOCUMENTS} documents",
        ready.fingerprint,
        "by cause: ",
        *(check["sentence"] for check in gate["checks"]),
    ):
        assert words in shown.text, words
    assert SECRET not in html
    assert SECRET not in json.dumps(told)
    assert await said(d, "report", COLLECTION, "v2", "--output", "-") != ""

    refused = await d.run("report", COLLECTION, "v2", "--output", str(d.config_path))
    assert refused.returncode == 1
    assert "is no report of Crossfade" in refused.stderr
    unknown = await d.run("report", COLLECTION, "v3")
    assert unknown.returncode == 1
    assert "v1, v2" in unknown.stderr
