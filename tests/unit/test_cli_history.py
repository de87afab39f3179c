"""How an entry of the journal reads, whatever stands in it."""

from __future__ import annotations

from streams.cli.history import lines
from streams.state import JournalEntry

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
