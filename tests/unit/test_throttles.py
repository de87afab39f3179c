"""The throttles' decisions: what holds, what slows, what lets go, and what an unread value means."""

from __future__ import annotations

from datetime import UTC, datetime, time
from pathlib import Path

import pytest
from pydantic import ValidationError

from streams.config_operation import Throttle
from streams.state import Controls
from streams.throttles import (
    HELD_AT_LEAST_S,
    SLOWEST,
    STALE_S,
    UNREAD_HOLDS_S,
    Held,
    Kind,
    Reading,
    Slowed,
    Verdict,
    decide,
    in_force,
    unseen,
    within,
)

NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def look(
    settings: Throttle, now_s: float = 0.0, before: Verdict | None = None, wall: datetime = NOON, **values: float | None
) -> Verdict:
    readings: dict[Kind, Reading] = {
        name: Reading(value, now_s, "it does not answer" if value is None else "")  # type: ignore[misc]
        for name, value in values.items()
    }
    return decide(settings, readings, now_s, wall, before)


def reason(verdict: Verdict) -> str:
    return verdict.decision.reason if verdict.decision is not None else ""


def test_nothing_configured_holds_nothing() -> None:
    assert look(Throttle(max_disk=None), max_live_lag=1e9, max_disk=1.0, file=1.0) == Verdict()
    assert look(Throttle(), max_live_lag=1e9, file=1.0) == Verdict(), "the disk has a default, and nobody knows it"


def test_a_nearly_full_disk_holds_by_default_where_it_is_known() -> None:
    said = "held: Weaviate's disk 86% above 85%, the default of throttle.max_disk"
    assert reason(verdict := look(Throttle(), 1.0, max_disk=0.86)) == said
    assert look(Throttle(), 9.0, verdict, max_disk=0.5).decision is None
    assert look(Throttle(), max_disk=0.85).decision is None
    assert (look(Throttle(), max_disk=None).decision, look(Throttle(), max_disk=None).unread) == (None, "")
    assert not unseen(Throttle(), {})
    assert unseen(Throttle(max_disk=0.85), {}), "who asks for it waits for the first look"
    off = in_force(Throttle(), Controls(max_disk=0))
    assert look(off, max_disk=0.99).decision is None
    configured = look(Throttle(max_disk=0.85), max_disk=0.86)
    assert reason(configured) == "held: Weaviate's disk 86% above 85%"
    set_by_hand = look(in_force(Throttle(), Controls(max_disk=0.8)), max_disk=0.86)
    assert reason(set_by_hand) == "held: Weaviate's disk 86% above 80%"


@pytest.mark.parametrize(
    ("name", "bound", "value", "said"),
    [
        ("max_live_lag", 1000, 2300, "held: live lag 2,300 above 1,000"),
        ("max_weaviate_latency_ms", 200, 340, "held: Weaviate's p95 340 ms above 200 ms"),
        ("max_disk", 0.85, 0.9, "held: Weaviate's disk 90% above 85%"),
        ("max_memory", 0.8, 0.95, "held: Weaviate's memory 95% above 80%"),
        ("max_endpoint_errors", 0.1, 0.5, "held: failed requests 50% above 10%"),
    ],
)
def test_a_value_above_its_bound_holds_and_says_so(name: Kind, bound: float, value: float, said: str) -> None:
    settings = Throttle.model_validate({name: bound})

    def at(value: float) -> Verdict:
        return decide(settings, {name: Reading(value, 0.0)}, 0.0, NOON)

    assert at(value).decision == Held(said)
    assert not isinstance(at(bound).decision, Held)  # at the bound is not beyond it


def test_all_that_hold_are_named() -> None:
    said = reason(look(Throttle(max_live_lag=10, max_disk=0.5), max_live_lag=20, max_disk=0.6))
    assert said == "held: Weaviate's disk 60% above 50%; live lag 20 above 10"


def test_it_goes_on_only_when_it_is_clearly_better() -> None:
    settings = Throttle(max_live_lag=1000)
    verdict = look(settings, 0.0, max_live_lag=1001)
    for now_s, lag in ((60.0, 999), (61.0, 900), (62.0, 801)):
        verdict = look(settings, now_s, verdict, max_live_lag=lag)
        assert reason(verdict) == f"held: live lag {lag:,} was above 1,000, goes on at 800"
    verdict = look(settings, 63.0, verdict, max_live_lag=800)
    assert isinstance(verdict.decision, Slowed)
    assert isinstance(look(settings, 64.0, verdict, max_live_lag=999).decision, Slowed)  # it has let go


def test_a_hold_lasts_a_few_seconds_however_fast_the_value_falls() -> None:
    settings = Throttle(max_endpoint_errors=0.2)
    verdict = look(settings, 10.0, max_endpoint_errors=0.9)
    assert isinstance(look(settings, 10.0 + HELD_AT_LEAST_S - 0.1, verdict, max_endpoint_errors=0.0).decision, Held)
    assert look(settings, 10.0 + HELD_AT_LEAST_S, verdict, max_endpoint_errors=0.0).decision is None


def test_a_value_that_wavers_about_its_bound_holds_once() -> None:
    settings, verdict, changes = Throttle(max_live_lag=100), Verdict(), 0
    for second in range(200):
        held = isinstance(verdict.decision, Held)
        verdict = look(settings, float(second), verdict, max_live_lag=90 + second % 3 * 10)
        changes += isinstance(verdict.decision, Held) != held
    assert changes == 1


@pytest.mark.parametrize(("lag", "factor"), [(500, None), (600, 0.85), (750, 0.6), (900, 0.35), (1000, SLOWEST)])
def test_it_slows_from_half_of_the_bound_on(lag: int, factor: float | None) -> None:
    decision = look(Throttle(max_live_lag=1000), max_live_lag=lag).decision
    if factor is None:
        assert decision is None
    else:
        assert isinstance(decision, Slowed)
        assert decision.factor == pytest.approx(factor)
        assert decision.reason == f"slowed to {factor:.0%}: live lag {lag:,} nears 1,000"


def test_the_slowest_counts_and_a_hold_comes_before_it() -> None:
    settings = Throttle(max_live_lag=1000, max_weaviate_latency_ms=100, max_disk=0.9)
    slowed = look(settings, max_live_lag=600, max_weaviate_latency_ms=90, max_disk=0.5)
    assert reason(slowed) == "slowed to 35%: Weaviate's p95 90 ms nears 100 ms"
    assert isinstance(look(settings, max_live_lag=600, max_disk=0.91).decision, Held)


def test_a_full_disk_is_not_slowed_towards() -> None:
    assert look(Throttle(max_disk=0.9, max_memory=0.9), max_disk=0.89, max_memory=0.89).decision is None


def test_a_value_that_cannot_be_read_does_not_hold_and_is_said() -> None:
    verdict = look(Throttle(max_disk=0.9), max_disk=None)
    assert (verdict.decision, verdict.unread) == (None, "max_disk cannot be read: it does not answer")


def test_what_held_goes_on_holding_for_a_while_when_it_cannot_be_read_any_more() -> None:
    settings = Throttle(max_disk=0.9)
    verdict = look(settings, 100.0, max_disk=0.95)
    for now_s in (101.0, 130.0, 100.0 + UNREAD_HOLDS_S - 1):
        verdict = look(settings, now_s, verdict, max_disk=None)
        assert reason(verdict) == "held: max_disk was exceeded and cannot be read now: it does not answer"
    verdict = look(settings, 100.0 + UNREAD_HOLDS_S, verdict, max_disk=None)
    assert (verdict.decision, verdict.unread) == (None, "max_disk cannot be read: it does not answer")
    assert look(settings, 200.0, verdict, max_disk=None).decision is None


def test_an_old_value_is_none() -> None:
    settings = Throttle(max_live_lag=10)
    verdict = decide(settings, {"max_live_lag": Reading(99.0, 0.0)}, STALE_S + 1, NOON)
    assert (verdict.decision, verdict.unread) == (None, "max_live_lag cannot be read: nobody has looked for 31 s")


def test_what_nobody_has_looked_at_yet_holds() -> None:
    verdict = look(Throttle(max_disk=0.9, max_live_lag=5), max_live_lag=0)
    assert reason(verdict) == "held: max_disk is not looked at yet"
    assert look(Throttle(max_disk=0.9), 1.0, verdict, max_disk=0.5).decision is None


def test_a_file_holds_while_it_is_there_and_while_nobody_can_tell() -> None:
    settings = Throttle(file=Path("/run/hold"))
    assert reason(look(settings, file=1.0)) == "held: /run/hold exists"
    assert look(settings, file=0.0).decision is None
    assert reason(look(settings)) == "held: the file /run/hold is not looked at yet"
    assert reason(look(settings, file=None)) == "held: it does not answer"


def test_an_http_check_holds_until_it_says_go() -> None:
    settings = Throttle(http="http://hook/replay")
    readings: dict[Kind, Reading] = {"http": Reading(1.0, 0.0, said="503")}
    assert reason(decide(settings, readings, 0.0, NOON)) == "held: http://hook/replay answered 503"
    assert decide(settings, {"http": Reading(0.0, 0.0, said="204")}, 0.0, NOON).decision is None
    assert reason(look(settings, http=None)) == "held: it does not answer"
    stale = decide(settings, {"http": Reading(0.0, 0.0)}, STALE_S + 1, NOON)
    assert reason(stale) == "held: nobody has looked for 31 s"


@pytest.mark.parametrize(
    ("window", "at", "inside"),
    [
        ("22:00-06:00", time(23), True),
        ("22:00-06:00", time(0), True),
        ("22:00-06:00", time(5, 59, 59), True),
        ("22:00-06:00", time(6), False),
        ("22:00-06:00", time(21, 59), False),
        ("09:00-17:30", time(9), True),
        ("09:00-17:30", time(17, 30), False),
        ("00:00-24:00", time(23, 59, 59), True),
        ("18:00-24:00", time(0), False),
    ],
)
def test_windows_of_the_day(window: str, at: time, inside: bool) -> None:
    assert within([window], at) is inside


def test_hours_are_those_of_the_timezone_also_in_summer() -> None:
    settings = Throttle(hours=["22:00-06:00"], timezone="Europe/Berlin")
    winter, summer = datetime(2026, 1, 10, 20, 30, tzinfo=UTC), datetime(2026, 7, 10, 20, 30, tzinfo=UTC)
    assert reason(look(settings, wall=winter)) == "held: it goes at 22:00-06:00 Europe/Berlin only"  # 21:30 there
    assert look(settings, wall=summer).decision is None  # 22:30 there


@pytest.mark.parametrize(
    "wrong",
    [
        {"hours": ["25:00-06:00"]},
        {"hours": ["22:00-06:60"]},
        {"hours": ["22-6"]},
        {"hours": ["22:00-22:00"]},
        {"hours": ["24:00-06:00"]},
        {"timezone": "Europe/Nowhere"},
        {"timezone": "America"},
        {"timezone": "../../etc/passwd"},
        {"max_live_lag": 0},
        {"max_live_lag": True},
        {"max_disk": 0},
        {"max_disk": 85},
        {"max_endpoint_errors": -0.1},
        {"http": "ftp://hook"},
        {"http": "http://user:secret@hook"},
        {"max_lag": 5},
    ],
)
def test_what_is_no_throttle_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Throttle.model_validate(wrong)


def test_set_goes_before_the_configuration_and_zero_switches_off() -> None:
    configured = Throttle(max_live_lag=100, max_disk=0.9, hours=["01:00-02:00"])
    assert in_force(configured, Controls()) == configured
    changed = in_force(configured, Controls(max_live_lag=500, max_disk=0, max_memory=0.7))
    assert (changed.max_live_lag, changed.max_disk, changed.max_memory) == (500, None, 0.7)
    assert changed.hours == ["01:00-02:00"]
