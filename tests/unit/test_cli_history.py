"""How an entry of the journal reads, whatever stands in it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

from connectors.memory.log import MemoryLog
from streams.cli.history import entries_of, lines
from streams.cli.session import Session
from streams.state import JournalEntry, TopicNames

BUILD = {
    "stage": "building",
    "fingerprint": "0123456789ab",
    "envelope": {"provider": "tei", "model": "m", "revision": "r1", "dimensions": 384},
}


def entry(event: str, **more: object) -> JournalEntry:
    fields = {"at_ms": 1_700_000_000_000, "collection": "docs", "version": "v2", "event": event, **more}
    return JournalEntry.model_validate(fields)


def test_an_entry_says_when_which_model_what_who_and_why() -> None:
    said = lines(entry("pause", who="anna@a", why="lunch", message="docs/v2 is paused", data={"docs/v2": BUILD}))
    assert said == [
        "2023-11-14T22:13:20Z  v2@0123456789ab  pause  by anna@a: docs/v2 is paused",
        "    why: lunch",
    ]
    assert lines(entry("declared", data={"docs/v2": BUILD}))[0].endswith(
        "v2@0123456789ab (tei m r1, 384 dimensions)  declared"
    )


def test_a_refused_cutover_shows_what_did_not_pass() -> None:
    check = {"bound": 1.0, "value": 0.5, "sentence": "half of it"}
    gate = {
        "verdict": "fail",
        "judged": True,
        "checks": [{**check, "name": "recall", "verdict": "fail"}, {**check, "name": "lag", "verdict": "pass"}],
        "notes": ["a note"],
    }
    outcome = {"checked": 3, "missing": 0, "gate": gate, "forced": "now\x1b[2J"}
    assert lines(entry("cutover refused", data={"outcome": outcome}))[1:] == [
        "    sweep: checked 3, missing 0",
        "    gate: fail",
        "      FAIL recall  half of it",
        "      note: a note",
        "    forced: now\\x1b[2J",
    ]
    spent = {"tokens": 387155, "cost_usd": 0.0077431}
    assert lines(entry("replayed", data={"outcome": spent}))[1:] == ["    tokens: 387,155", "    cost: 0.00774 USD"]
    proof = {**outcome, "answers": "as it should"}
    assert lines(entry("cutover verified", data={"outcome": proof}))[1:] == [
        "    verified: its queries are answered by its space"
    ]


def test_entries_of_other_versions_of_crossfade_are_read() -> None:
    assert lines(entry("rollback", version=None, why="an entry from before `message`", data={"outcome": "text"})) == [
        "2023-11-14T22:13:20Z  -  rollback",
        "    why: an entry from before `message`",
    ]
    assert lines(entry("watch: crossed", data={"outcome": {"now": {"asked": 20, "zero": 20, "errors": 0}}}))[1:] == [
        "    now: 20 queries, 20 found nothing, 0 failed"
    ]


async def test_entries_stand_in_the_order_of_the_journal() -> None:
    """Controllers take turns, and their clocks differ: the topic knows what came first."""
    kafka, names = MemoryLog(), TopicNames("cf")
    kafka.create_topic(names.journal)
    for at_ms, event in ((2_000, "cutover"), (1_000, "rollback"), (3_000, "paused")):
        kafka.append(names.journal, b"docs", entry(event, at_ms=at_ms).to_bytes())
    opened = cast(Session, SimpleNamespace(kafka=kafka, names=names))
    assert [one.event for one in await entries_of(opened, "docs")] == ["cutover", "rollback", "paused"]
