"""Records of the state, commands and journal topics: they survive each other's versions, and ids are kept."""

from __future__ import annotations

import orjson
import pytest
from pydantic import ValidationError

from connectors.errors import ConfigurationError
from streams.state import (
    APPLIED_KEPT,
    BuildState,
    CollectionState,
    Command,
    CommandOutcome,
    Intent,
    JournalEntry,
    TopicNames,
    unknown,
)
from streams.versions import Envelope, Stage

ENVELOPE = Envelope("hashing", "m", "1", 8, ("text",))


def build(**changes: object) -> BuildState:
    raw: dict[str, object] = {
        "collection": "docs", "version": "v1", "epoch": 2, "stage": "building", "space": "Docs_v1_2_x", "topic": "t",
        "envelope": orjson.loads(ENVELOPE.canonical_json()), "fingerprint": ENVELOPE.fingerprint, "partitions": 2,
        "start": {0: 5, 1: 6}, "barrier": {0: 5, 1: 6},
    }  # fmt: skip
    return BuildState.model_validate({**raw, **changes})


@pytest.mark.parametrize(
    "record",
    [
        build(replayed=[1], paused="all"),
        CollectionState(collection="docs", alias="Docs", topic="t", serving="v1", epochs=3),
        CollectionState(
            collection="docs", alias="", topic="", intent=Intent(command=Command(verb="cutover", collection="docs"))
        ),
        Command(verb="set", collection="docs", version="v1", args={"replay_rate": 1.5}),
        JournalEntry(at_ms=1, collection="docs", event="cutover", data={"n": 1}),
    ],
)
def test_a_record_survives_its_topic(record: BuildState | CollectionState | Command | JournalEntry) -> None:
    sent = record.to_bytes()
    assert type(record).model_validate_json(sent) == record
    raw = orjson.loads(sent)
    assert raw["schema"] == 1
    newer = orjson.dumps({**raw, "of_a_newer_version": [1]})
    assert type(record).model_validate_json(newer) == record


def test_offsets_keep_their_partitions() -> None:
    again = BuildState.model_validate_json(build().to_bytes())
    assert again.start == {0: 5, 1: 6}
    assert (again.key, again.active, again.model) == ("docs/v1", True, ENVELOPE)


def test_an_envelope_of_another_program_is_named() -> None:
    with pytest.raises(ConfigurationError, match="unknown parts"):
        _ = build(envelope={"provider": "x", "strange": 1}).model


@pytest.mark.parametrize("stage", list(Stage))
def test_active_is_what_workers_write(stage: Stage) -> None:
    assert build(stage=stage).active == (stage in {Stage.BUILDING, Stage.READY, Stage.SERVING, Stage.PREVIOUS})


def test_an_unknown_verb_is_no_command() -> None:
    with pytest.raises(ValidationError):
        Command.model_validate({"verb": "explode", "collection": "docs"})


def test_outcomes_are_found_by_id_and_the_oldest_are_forgotten() -> None:
    state = CollectionState(
        collection="docs", alias="Docs", topic="t", intent=Intent(command=Command(verb="pause", collection="docs"))
    )
    for n in range(APPLIED_KEPT + 2):
        state = state.with_outcome(CommandOutcome(id=str(n), ok=n % 2 == 0, message=""), n)
    assert state.intent is None
    assert len(state.applied) == APPLIED_KEPT
    assert state.outcome("1") is None
    last = state.outcome(str(APPLIED_KEPT + 1))
    assert last is not None
    assert not last.ok
    assert state.updated_ms == APPLIED_KEPT + 1
    assert state.with_outcome(last, 0, serving="v9").serving == "v9"


def test_every_command_has_an_id_of_its_own() -> None:
    assert Command(verb="pause", collection="a").id != Command(verb="pause", collection="a").id


def test_names_stand_under_the_prefix_and_groups_hold_the_epoch() -> None:
    names = TopicNames("p")
    assert {names.commands, names.state, names.progress, names.dead_letters, names.journal} == {
        "p.commands", "p.state", "p.progress", "p.dead-letters", "p.journal"
    }  # fmt: skip
    assert names.group("docs", "v1", 2, "live") == "p.docs.v1.2.live"
    assert names.group("docs", "v1", 3, "replay") == "p.docs.v1.3.replay"


def test_an_unknown_name_lists_the_known_ones() -> None:
    assert "known: a, b" in unknown("collection", "x", ["b", "a"]).message
    assert "none yet" in unknown("collection", "x", []).message
