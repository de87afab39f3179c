"""The status line: one shape whatever is known, and the note and next command that belong to each condition."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from streams.cli.status_lines import VersionStatus, heading, line, next_of, note, status_of, version_json
from streams.progress import ProgressRecord
from streams.state import BuildState, CollectionState, Command, Controls, Failure, Intent
from streams.versions import Stage

NOW_MS = 1_700_000_000_000
SHAPE = re.compile(
    r"\S+/\S+  (building|ready|serving|previous|declared|retired|aborted|paused|failed|waiting) *  "
    r"(-/-|[\d,]+/[\d,]+)  (-|[\d.]+)%  (-|[\d.]+)/s  eta (-|[\dsmhd]+)  lag (-|[\d,]+)(  \S.*)?"
)


def build(**changes: Any) -> BuildState:
    base = BuildState(
        collection="docs",
        version="v2",
        epoch=2,
        stage=Stage.BUILDING,
        envelope={},
        fingerprint="0123456789ab",
        space="Docs_v2_2_0123456789ab",
        topic="docs",
        partitions=2,
        controls=Controls(replay_rate=50),
        updated_ms=NOW_MS,
    )
    return base.model_copy(update=changes)


def report(partition: int, **changes: Any) -> ProgressRecord:
    base = ProgressRecord(
        name="v2",
        epoch=2,
        partition=partition,
        status="building",
        reason="held at 50 documents/s",
        progress=0.2,
        total=3700,
        completed=617,
        rate_per_s=26.05,
        eta_s=118,
        changed_mid_migration=0,
        unchanged_skipped=0,
        dead_letters=0,
        live_lag=6,
        planned=True,
        counters={"total": 3700, "completed": 617},
        updated_at=NOW_MS,
    )
    return base.model_copy(update=changes)


COLLECTION = CollectionState(collection="docs", alias="Docs", topic="docs", serving="v1")


def status(one: BuildState, *reports: ProgressRecord, fresh: int = 2) -> VersionStatus:
    return status_of(one, reports, fresh, COLLECTION, NOW_MS)


def test_a_build_under_way() -> None:
    shown = line(status(build(), report(0), report(1)))
    assert shown == ("docs/v2  building  1,234/7,400  16.7%  52.1/s  eta 1m58s  lag 12  held at 50 documents/s")


@pytest.mark.parametrize(
    "one",
    [
        status(build()),
        status(build(), report(0), fresh=1),
        status(build(), report(0), report(1), fresh=0),
        status(build(), report(0, planned=False), report(1)),
        status(build(paused="all"), report(0), report(1)),
        status(build(failure=Failure(cause="the topic was recreated")), report(0), report(1)),
        status(build(stage=Stage.RETIRED), report(0), report(1), fresh=0),
        status(build(stage=Stage.SERVING), report(0, eta_s=0.0), report(1, eta_s=None)),
        VersionStatus("docs", "v3", None, None, 0, False),
        VersionStatus("docs", "v3", None, None, 0, False, "topic docs is not compacted"),
    ],
)
def test_every_line_has_the_same_shape(one: VersionStatus) -> None:
    assert SHAPE.fullmatch(line(one)), line(one)
    version_json(one)


def test_nobody_reports() -> None:
    silent = status(build(), report(0), report(1), fresh=0)
    assert note(silent) == "no worker is reporting"
    assert next_of(silent) == "crossfade worker"
    assert "1,234/7,400  16.7%  -/s  eta -  lag -" in line(silent)  # what was done stays; what moves is not known
    assert note(status(build(), report(0), report(1), fresh=1)).startswith(
        "no worker is reporting on 1 of 2 partitions"
    )


def test_a_build_that_stopped_names_cause_and_cure() -> None:
    stopped = status(
        build(failure=Failure(cause="truncated", next_step="crossfade abort docs v2 --confirm v2")), fresh=0
    )
    assert stopped.state == "failed"
    assert note(stopped) == "stopped: truncated"
    assert next_of(stopped) == "crossfade abort docs v2 --confirm v2"


def test_conditions_beside_the_stage() -> None:
    paused = status(build(paused="replay"), report(0), report(1))
    assert (paused.state, next_of(paused)) == ("paused", "crossfade resume docs v2")
    waiting = status(build(), report(0, status="waiting", reason="the endpoint is away"), report(1))
    assert (waiting.state, note(waiting)) == ("waiting", "the endpoint is away")
    unsettled = status(build(stage=Stage.READY), report(0, unsettled=3, reason=""), report(1, reason=""))
    assert note(unsettled) == "unsettled 3"
    assert "settle" in next_of(unsettled)


def test_next_commands() -> None:
    ready = status(build(stage=Stage.READY), report(0), report(1))
    assert next_of(ready) == "crossfade cutover docs v2 --check"
    alone = replace(status(build(stage=Stage.SERVING), report(0), report(1)), alone=True)
    assert next_of(alone) == "crossfade search docs QUERY"  # there is nothing to roll back to
    assert next_of(VersionStatus("docs", "v3", None, None, 0, False)) == "crossfade start docs v3"


def test_the_heading_says_what_serves() -> None:
    assert heading(COLLECTION) == "docs: serving v1, previous (none), alias Docs, topic docs"
    under_way = COLLECTION.model_copy(update={"intent": Intent(command=Command(verb="cutover", collection="docs"))})
    assert heading(under_way).endswith("cutover under way")
