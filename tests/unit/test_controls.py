"""What may be set while a build runs: reading it as typed, its range, and how it stands."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue

from connectors.errors import Refused
from streams.config_operation import Throttle
from streams.controls import CONTROLS, READ, Unreadable, changed, read, standing, summary
from streams.state import Controls


@pytest.mark.parametrize(
    ("typed", "name", "value"),
    [
        ("replay_rate=50", "replay_rate", 50.0),
        ("replay_rate=0.5", "replay_rate", 0.5),
        ("replay_rate=none", "replay_rate", None),
        ("replay_rate=0", "replay_rate", None),
        ("budget_usd=1e3", "budget_usd", 1000.0),
        ("concurrency=8", "concurrency", 8),
        ("concurrency=none", "concurrency", None),
        ("tiers=listed,newest", "tiers", ["listed", "newest", "rest"]),
        ("tiers=newest,listed,rest", "tiers", ["newest", "listed", "rest"]),
        ("tiers=rest", "tiers", ["rest"]),
        ("tiers=none", "tiers", None),
        ("max_live_lag=500", "max_live_lag", 500),
        ("max_live_lag=0", "max_live_lag", 0),
        ("max_disk=0.9", "max_disk", 0.9),
        ("max_disk=none", "max_disk", None),
        ("?", "", READ),
        ("tiers=?", "tiers", READ),
    ],
)
def test_what_is_typed(typed: str, name: str, value: JsonValue) -> None:
    found = read(typed)
    assert found == (name, value)
    assert type(found[1]) is type(value)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("replay_rat=5", "did you mean replay_rate?"),
        ("colour=red", "known: replay_rate"),
        ("replay_rate", "replay_rate=?"),
        ("replay_rate=", "documents a second"),
        ("replay_rate=fast", "above 0 and up to 1,000,000"),
        ("replay_rate=nan", "wanted is a number"),
        ("replay_rate=inf", "wanted is a number"),
        ("max_disk=90%", "above 0 and up to 1"),
        ("tiers=listed,new", "did you mean newest?"),
        ("tiers=,", "there is no tier ''"),
        ("", "there is nothing named ''"),
    ],
)
def test_what_is_no_change_says_what_is_wanted(typed: str, said: str) -> None:
    with pytest.raises(Unreadable) as raised:
        read(typed)
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("typed", "wanted"),
    [
        ("replay_rate=-1", "documents a second: above 0 and up to 1,000,000; 0 or none: no limit"),
        ("replay_rate=1000001", "above 0 and up to 1,000,000"),
        ("concurrency=0", "1 to 1,024; none: as configured"),
        ("concurrency=1.5", "1 to 1,024"),
        ("concurrency=2000", "1 to 1,024"),
        ("max_disk=90", "above 0 and up to 1; 0: off; none: as configured"),
        ("max_live_lag=0.5", "1 to"),
        ("tiers=listed,listed", "in the order wanted"),
        ("tiers=rest,listed", "the rest comes last"),
    ],
)
def test_out_of_range_is_refused_with_the_range(typed: str, wanted: str) -> None:
    with pytest.raises(Refused) as raised:
        read(typed)
    assert "is out of range" in raised.value.message
    assert wanted in raised.value.next_step


@pytest.mark.parametrize("value", [True, "5", float("nan"), float("inf"), [1], {"a": 1}])
@pytest.mark.parametrize("name", CONTROLS)
def test_the_controller_checks_again_what_anybody_may_have_sent(name: str, value: JsonValue) -> None:
    with pytest.raises(Refused):
        changed(Controls(), {name: value})


@given(st.text(max_size=40))
def test_nothing_that_is_typed_raises_anything_else(typed: str) -> None:
    try:
        name, value = read(typed)
    except (Unreadable, Refused):
        return
    if value != READ:
        changed(Controls(), {name: value})


def test_only_what_is_named_changes() -> None:
    before = Controls(replay_rate=5, max_live_lag=100)
    after = changed(before, {"replay_rate": None, "tiers": ["newest"], "origin": "configuration"})
    assert after == Controls(replay_rate=None, max_live_lag=100, tiers=["newest", "rest"])
    assert Controls.model_validate_json(after.to_bytes()) == after


def stand(controls: Controls, throttle: Throttle, rate: float | None = None) -> dict[str, tuple[str, str]]:
    found = standing(controls, throttle, replay_rate=rate, budget_usd=None, tiers=("listed", "rest"))
    assert [one.control.name for one in found] == list(CONTROLS)
    return {one.control.name: (one.text, one.source) for one in found}


def test_how_it_stands_and_where_that_comes_from() -> None:
    found = stand(Controls(replay_rate=5, max_live_lag=0, concurrency=4), Throttle(max_live_lag=9, max_disk=0.9), 5)
    assert found["replay_rate"] == ("5", "configuration")
    assert found["budget_usd"] == ("no limit", "default")
    assert found["concurrency"] == ("4", "set")
    assert found["tiers"] == ("listed,rest", "configuration")
    assert found["max_live_lag"] == ("off", "set")
    assert found["max_disk"] == ("0.9", "configuration")
    assert found["max_memory"] == ("off", "default")
    assert stand(Controls(), Throttle(max_live_lag=9))["max_disk"] == ("0.85", "default")
    assert stand(Controls(), Throttle(max_disk=None))["max_disk"] == ("off", "default")
    assert stand(Controls(max_disk=0.7), Throttle())["max_disk"] == ("0.7", "set")
    assert stand(Controls(), Throttle(), 5)["replay_rate"] == ("no limit", "set")
    assert stand(Controls(replay_rate=7), Throttle(), 5)["replay_rate"] == ("7", "set")


def test_the_summary_names_the_limits_and_what_was_set() -> None:
    assert summary(Controls()) == "replay_rate no limit, budget no limit"
    said = summary(Controls(replay_rate=50, budget_usd=20, max_live_lag=0, tiers=["newest", "rest"], max_disk=0.9))
    assert said == "replay_rate 50 documents/s, budget 20 USD, tiers newest,rest, max_live_lag off, max_disk 0.9"
