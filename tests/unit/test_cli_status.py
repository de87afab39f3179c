"""The status line: one shape whatever is known, and the note and next command that belong to each condition."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from streams.cli import status as verb
from streams.cli.output import Failed
from streams.cli.status_lines import (
    VersionStatus,
    cells,
    coverage,
    details,
    heading,
    line,
    next_of,
    note,
    refresh_s,
    spent,
    status_of,
    table,
    version_json,
)
from streams.progress import ProgressRecord, TierProgress
from streams.state import BuildState, CollectionState, Command, Controls, Failure, Intent
from streams.versions import Stage

NOW_MS = 1_700_000_000_000
SHAPE = re.compile(
    r"\S+/\S+  (building|ready|serving|previous|declared|retired|aborted|paused|failed|waiting) *  "
    r"(-/-|[\d,]+/[\d,]+)  (-|[\d.]+)%  (-|[\d.]+)/s  eta (-|[\dsmhd]+)  lag (-|[\d,]+)  "
    r"spent (-|(<?[\d,.e-]+ (of [\d,.]+ )?USD))  \S.*"
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
    assert shown == (
        "docs/v2  building  1,234/7,400  16.7%  52.1/s  eta 2m03s  lag 12  spent -  held at 50 documents/s"
    )


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
    assert note(unsettled) == "complete; waits for a cutover, unsettled 3"
    assert "settle" in next_of(unsettled)


def test_next_commands() -> None:
    ready = status(build(stage=Stage.READY), report(0), report(1))
    assert next_of(ready) == "crossfade cutover docs v2 --check"
    alone = replace(status(build(stage=Stage.SERVING), report(0), report(1)), alone=True)
    assert next_of(alone) == "crossfade search docs QUERY"  # there is nothing to roll back to
    assert next_of(VersionStatus("docs", "v3", None, None, 0, False)) == "crossfade start docs v3"


def test_after_a_rollback_nobody_is_sent_back_again() -> None:
    serving = replace(status(build(stage=Stage.SERVING), report(0), report(1)), rolled_back=True)
    previous = replace(status(build(stage=Stage.PREVIOUS), report(0), report(1)), rolled_back=True)
    assert next_of(serving) == "crossfade search docs QUERY"
    assert "rollback" not in next_of(previous)
    assert next_of(previous).startswith("crossfade cutover docs v2 --check")


def test_the_heading_says_what_serves() -> None:
    assert heading(COLLECTION) == "docs: serving v1, previous (none), alias Docs, topic docs"
    under_way = COLLECTION.model_copy(update={"intent": Intent(command=Command(verb="cutover", collection="docs"))})
    assert heading(under_way).endswith("cutover under way")


@pytest.mark.parametrize(
    ("one", "state", "reason"),
    [
        (VersionStatus("docs", "v3", None, None, 0, False), "declared", "not started"),
        (status(build(), report(0, planned=False, reason=""), report(1, reason="")), "building", "plan scan"),
        (status(build(), report(0), report(1)), "building", "held at 50 documents/s"),
        (status(build(), report(0, reason=""), report(1, reason="")), "building", "history is replayed"),
        (
            status(build(), *(report(n, reason="", counters={"total": 5, "completed": 5}) for n in (0, 1))),
            "building",
            "the last records before the barrier",
        ),
        (
            status(build(), *(report(n, reason="", replay_done=True) for n in (0, 1))),
            "building",
            "the controller is told that the replay is complete",
        ),
        (status(build(stage=Stage.READY), report(0, reason=""), report(1, reason="")), "ready", "waits for a cutover"),
        (status(build(stage=Stage.SERVING), report(0, reason=""), report(1, reason="")), "serving", "answers searches"),
        (status(build(stage=Stage.PREVIOUS), report(0, reason=""), report(1, reason="")), "previous", "a rollback"),
        (status(build(stage=Stage.RETIRED), fresh=0), "retired", "ended 2023-11-14T22:13:20Z"),
        (status(build(stage=Stage.ABORTED), fresh=0), "aborted", "ended 2023-11-14T22:13:20Z"),
        (status(build(paused="all"), report(0), report(1)), "paused", "replay and live writes are paused"),
        (status(build(failure=Failure(cause="why")), fresh=0), "failed", "stopped: why"),
        (status(build(), report(0), report(1, status="waiting", reason="away")), "waiting", "away"),
        (status(build(), fresh=0), "building", "no worker is reporting"),
    ],
)
def test_every_state_has_its_reason(one: VersionStatus, state: str, reason: str) -> None:
    assert one.state == state
    assert reason in note(one)
    assert line(one).endswith(note(one))
    assert SHAPE.fullmatch(line(one)), line(one)


def test_what_is_paused_makes_no_promise() -> None:
    paused = status(build(paused="replay"), *(report(n, status="paused") for n in (0, 1)))
    assert "  0.0/s  eta -  " in line(paused)
    just_now = status(build(paused="replay"), report(0), report(1))
    assert "  52.1/s  eta -  " in line(just_now), "the reports follow the stage by a second"


def test_a_reason_of_the_replay_ends_with_it() -> None:
    just_now = status(build(stage=Stage.READY), report(0), report(1))
    assert note(just_now) == "complete; waits for a cutover"


def test_a_wait_does_not_end_on_99_percent(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    ready = build(stage=Stage.READY, partitions=1)
    done = {"total": 3700, "completed": 3700}
    after = report(0, status="ready", reason="", replay_done=True, counters=done)
    watched(monkeypatch, [status(ready, report(0), fresh=1), status(ready, after, fresh=1)], "ready")
    assert [row.split()[2] for row in capsys.readouterr().out.splitlines()] == ["3,700/3,700"]


def test_an_eta_is_never_zero_while_documents_are_missing() -> None:
    late = {"total": 100_000, "completed": 99_999}
    one = status(
        build(controls=Controls()), *(report(n, counters=late, total=100_000, completed=99_999) for n in (0, 1))
    )
    assert "  eta 1s  " in line(one)


def test_the_controllers_rate_and_eta_are_taken_while_they_are_recent() -> None:
    def eta(**changes: Any) -> str:
        followed = report(0, rate_per_s=60.0, eta_s=240.0, **{"updated_at": NOW_MS - 1_000, **changes})
        return cells(status_of(build(), [report(0), report(1)], 2, COLLECTION, NOW_MS, followed))[5]

    assert eta() == "eta 4m00s"
    assert eta(updated_at=NOW_MS - 10_000) == eta(epoch=1) == "eta 2m03s"


@pytest.mark.parametrize(
    ("nano_usd", "budget", "shown"),
    [
        (0, None, "-"),
        (0, 50.0, "0.00 of 50 USD"),
        (424_000_000, None, "0.42 USD"),
        (1_234_560_000_000, 2_000.0, "1,234.56 of 2,000 USD"),
        (4_200_000, None, "0.0042 USD"),
        (9_000, None, "<0.0001 USD"),
    ],
)
def test_the_spend_has_its_place(nano_usd: int, budget: float | None, shown: str) -> None:
    counters = {"total": 3700, "completed": 617, "spent_nano_usd": nano_usd}
    one = status(
        build(controls=Controls(budget_usd=budget)), report(0, counters=counters), report(1, counters={"total": 1})
    )
    assert spent(one) == shown
    assert f"  lag 12  spent {shown}  " in line(one)
    assert SHAPE.fullmatch(line(one)), line(one)


def test_many_versions_stand_in_columns() -> None:
    long = report(0, completed=1, counters={"total": 1_000_000, "completed": 1})
    statuses = [
        status(build(), report(0), report(1)),
        status(build(collection="a-long-name", partitions=1), long, fresh=1),
        VersionStatus("docs", "v3", None, None, 0, False),
    ]
    rows = table(statuses)
    for words in ("  eta ", "  lag ", "  spent "):
        assert len({row.index(words) for row in rows}) == 1, rows
    assert len({row.index("%") for row in rows}) == 1, "numbers end under one another"
    assert [re.split(r" {2,}", row.strip()) for row in rows] == [
        [cell.strip() for cell in cells(one)] for one in statuses
    ]
    assert table([]) == []


TIERS = [
    TierProgress(name="listed", total=1_000, completed=1_000, weight=90, weight_completed=90),
    TierProgress(name="newest", total=900, completed=300, weight=6, weight_completed=2),
    TierProgress(name="rest", total=5_000, completed=0, weight=4, weight_completed=0),
]


def test_coverage_by_tier_and_by_traffic() -> None:
    assert coverage(TIERS) == (
        "listed 1,000/1,000 100% of the documents people search for; newest 300/900 33.3%; rest 0/5,000 0.0%; "
        "traffic covered 92.0%"
    )
    assert "traffic" not in coverage([tier.model_copy(update={"weight": 0.0}) for tier in TIERS])
    assert coverage([]) == coverage(TIERS[2:]) == ""
    nearly = TierProgress(name="listed", total=100_000, completed=99_999)
    assert "99.9% " in coverage([nearly]), "100% is all of it"


def test_one_version_in_full() -> None:
    one = status(
        build(started_ms=NOW_MS - 720_000, controls=Controls(replay_rate=50, budget_usd=20, tiers=["listed", "rest"])),
        report(
            0, worker="host-1", tiers=TIERS, dead_letters=2, counters={"total": 9, "dead_letters": 2, "tokens": 61_203}
        ),
        report(1, worker="host-2", updated_at=NOW_MS - 180_000),
        fresh=1,
    )
    shown = dict(details(one))
    assert shown["space"] == "Docs_v2_2_0123456789ab"
    assert shown["build"] == "epoch 2, fingerprint 0123456789ab, started 2023-11-14T22:01:20Z (12m00s ago)"
    assert shown["controls"] == "replay_rate 50 documents/s, budget 20 USD, tiers listed,rest"
    assert shown["coverage"].startswith("listed 1,000/1,000 100%")
    assert shown["refused"] == "2 dead letters; crossfade redrive docs v2"
    assert "61,203 tokens" in shown["spend"]
    assert "lag 6" in shown["partition 0"]
    assert "host-1" in shown["partition 0"]
    assert shown["partition 1"].endswith("was host-2  silent for 3m00s")
    assert details(VersionStatus("docs", "v3", None, None, 0, False)) == []


def test_changes_are_shown_by_source_hash() -> None:
    counters = {"total": 9, "changed_mid_migration": 12, "unchanged_skipped": 3, "suppressed_by_live": 7}
    shown = dict(details(status(build(partitions=1), report(0, counters=counters), fresh=1)))
    assert shown["changes"] == "12 while migrating, 3 of equal text not embedded again, 7 old forms left out"


def test_many_partitions_stay_on_one_screen() -> None:
    reports = [report(n, worker="w", replay_done=n < 40, eta_s=float(n)) for n in range(63)]
    reports[5] = report(5, worker="w", status="waiting", reason="the endpoint is away")
    one = status(build(partitions=64), *reports, fresh=63)
    lines = [words for label, words in details(one) if label.startswith("partition")]
    labels = [label for label, _ in details(one) if label.startswith("partition")]
    assert len(lines) == 12
    assert {"partition  5", "partition 63", "partition 62"} <= set(labels), "trouble, silence and the slowest"
    assert details(one)[-1][1] == "and 52 more partitions, none of them slower or in trouble"
    assert len(details(one)) <= 24


@pytest.mark.parametrize(
    ("seconds_ago", "done", "rate", "changes", "every_s"),
    [
        (10, 10, 1.0, {}, 1.0),
        (100, 10, 1.0, {}, 5.0),
        (1_000, 10, 1.0, {}, 10.0),
        (1_000, 960, 0.1, {}, 1.0),
        (1_000, 500, 10.0, {}, 1.0),
        (1_000, 0, 0.0, {"planned": False}, 1.0),
        (1_000, 1_000, 0.0, {"stage": Stage.READY}, 10.0),
    ],
)
def test_a_watch_looks_more_often_near_start_and_end(
    seconds_ago: int, done: int, rate: float, changes: dict[str, Any], every_s: float
) -> None:
    stage = changes.pop("stage", Stage.BUILDING)
    counters = {"total": 1_000, "completed": done}
    one = status(
        build(partitions=1, controls=Controls(), stage=stage, started_ms=NOW_MS - 1_000 * seconds_ago),
        report(0, total=1_000, completed=done, rate_per_s=rate, counters=counters, **changes),
        fresh=1,
    )
    assert refresh_s([one]) == every_s
    assert refresh_s([]) == 10.0


def watched(monkeypatch: pytest.MonkeyPatch, looks: list[VersionStatus], until: str | None) -> None:
    """Run a watch over these, one a (virtual) second; the last is seen for ever, or until the watch was given up."""
    waits = iter(range(len(looks) + 3))

    async def sleep(_: float) -> None:
        if next(waits, None) is None:
            raise KeyboardInterrupt

    monkeypatch.setattr(verb.asyncio, "sleep", sleep)  # type: ignore[attr-defined]
    seen = iter(looks)
    now = looks[0]

    def look() -> verb.Shown:
        nonlocal now
        now = next(seen, now)
        return [(COLLECTION, [now])]

    asyncio.run(verb._Watch(look, True, until).run())


def test_a_watch_in_a_pipe_prints_what_changed_without_control_characters(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old = build(started_ms=NOW_MS - 10_000_000)
    looks = [
        status(old, report(0), report(1)),
        status(old, report(0), report(1, live_lag=9)),  # only a number, and it is not due
        status(old, report(0, status="waiting", reason="\x07bell"), report(1)),
        status(build(stage=Stage.READY), report(0), report(1)),
    ]
    watched(monkeypatch, looks, "ready")
    said = capsys.readouterr().out
    assert [row.split()[1] for row in said.splitlines()] == ["building", "waiting", "ready"]
    assert all(c == "\n" or c.isprintable() for c in said)


@pytest.mark.parametrize(
    ("one", "told"),
    [
        (status(build(failure=Failure(cause="why", next_step="crossfade abort")), fresh=0), "stopped: why"),
        (status(build(stage=Stage.ABORTED), fresh=0), "is aborted and will not become ready"),
        (VersionStatus("docs", "v3", None, None, 0, False, "topic docs is not compacted"), "not compacted"),
    ],
)
def test_a_wait_for_what_cannot_come_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], one: VersionStatus, told: str
) -> None:
    with pytest.raises(Failed, match=told) as failed:
        watched(monkeypatch, [one], "ready")
    assert failed.value.next_step == next_of(one)


def test_serving_is_waited_for_beyond_ready() -> None:
    ready = status(build(stage=Stage.READY), report(0), report(1))
    assert verb._reached(ready, "ready")
    assert not verb._reached(ready, "serving")
    assert verb._reached(status(build(stage=Stage.SERVING), report(0), report(1)), "serving")
    assert verb._reached(status(build(stage=Stage.PREVIOUS), report(0), report(1)), "ready")


@pytest.mark.parametrize("width", [60, 100, 200])
def test_a_terminal_shows_a_bar_for_what_is_building(width: int) -> None:
    building = status(build(), report(0), report(1))
    serving = status(build(version="v1", stage=Stage.SERVING), report(0), report(1))
    console = Console(width=width, highlight=False, force_terminal=False)
    with console.capture() as captured:
        for part in verb._frame([(COLLECTION, [serving, building])], False):
            console.print(part)
    rows = captured.get().splitlines()
    assert sum("━" in row for row in rows) == 1
    assert all(len(row) <= width for row in rows)
    assert "held at 50 documents/s" in re.sub(r"\s+", " ", captured.get()), "a reason is never cut off"
    assert "next (v2): crossfade status docs v2 -w" in re.sub(r"\s+", " ", captured.get())


def test_json_has_all_of_it() -> None:
    one = status(build(), report(0, worker="host-1", tiers=TIERS, changed_mid_migration=2), report(1))
    data = json.loads(json.dumps(version_json(one)))
    assert [owner["partition"] for owner in data["owners"]] == [0, 1]
    assert data["owners"][0] | {"worker": "host-1", "eta_s": 118, "live_lag": 6, "reporting": True} == data["owners"][0]
    assert [tier["name"] for tier in data["tiers"]] == ["listed", "newest", "rest"]
    assert data["traffic_covered"] == pytest.approx(0.92)
    for name in ("concurrency", "tier_order", "changed_mid_migration", "unchanged_skipped", "cost_usd", "tokens"):
        assert name in data
