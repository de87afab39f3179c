"""The limits as values: no loop, no clock; time is a number that the test moves."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.embedders.concurrency import AdaptiveConcurrency
from connectors.embedders.limits import Circuit, LiveLoad, TokenBucket
from tests.unit.test_endpoint import fixed_window, sliding_window


def spend(bucket: TokenBucket, amounts: list[float], until_s: float, late_s: float = 0.0) -> list[tuple[float, float]]:
    """(when, amount) of a caller that always has more to send and wakes up to `late_s` late."""
    chance = random.Random(1)
    now_s = 0.0
    sent: list[tuple[float, float]] = []
    while now_s < until_s:
        amount = amounts[len(sent) % len(amounts)]
        while (delay_s := bucket.delay_s(amount, now_s)) > 0:
            now_s += delay_s + chance.uniform(0.0, late_s)
        bucket.take(amount, now_s)
        sent.append((now_s, amount))
    return sent


@pytest.mark.parametrize("limit", [60, 100, 997, 6000])
@pytest.mark.parametrize("late_s", [0.0, 0.01])
def test_a_limit_is_used_and_no_window_holds_more(limit: int, late_s: float) -> None:
    sent = spend(TokenBucket(limit, 0.0), [1], 300.0, late_s)
    assert len(sent) >= 0.97 * limit * 5
    for window in (sliding_window(limit), fixed_window(limit, phase_s=11.0)):
        assert all(window(amount, at_s) for at_s, amount in sent)


@pytest.mark.parametrize("amounts", [[8000.0], [300.0, 8000.0, 2000.0], [1.0, 50_000.0]])
def test_large_amounts_pass_and_no_window_holds_more(amounts: list[float]) -> None:
    limit = 1_000_000
    sent = spend(TokenBucket(limit, 0.0), amounts, 600.0)
    share = sum(amount for _, amount in sent) / (10 * limit)
    assert share >= min(0.97, 1 - max(amounts) / limit - 0.01)
    window = sliding_window(limit)
    assert all(window(amount, at_s) for at_s, amount in sent)


def test_a_small_amount_need_not_wait_for_what_a_large_one_overdrew() -> None:
    bucket = TokenBucket(60_000, 0.0)
    bucket.take(8000, 0.0)
    assert bucket.delay_s(8000, 0.0) == pytest.approx(8000 / 866.7, rel=0.01)
    assert bucket.delay_s(100, 0.5) == 0.0


def test_a_correction_gives_back_and_takes_more() -> None:
    bucket = TokenBucket(60_000, 0.0)
    bucket.take(1000, 0.0)
    waits_s = [bucket.delay_s(1000, 0.0)]
    for estimated, actual in ((1000, 400), (0, 1000)):
        bucket.correct(estimated, actual)
        waits_s.append(bucket.delay_s(1000, 0.0))
    slack, rate = 0.015 * 1000, 0.985 * 1000
    assert waits_s == pytest.approx([(used - slack) / rate for used in (1000, 400, 1400)], rel=0.005)
    bucket.correct(1400, 0)
    assert bucket.delay_s(1000, 0.0) == 0.0


def test_what_is_given_back_after_a_while_is_not_lost_to_that_while() -> None:
    bucket = TokenBucket(60_000, 0.0)
    bucket.take(1000, 0.0)
    bucket.correct(1000, 0)  # a second later than anything was asked: the bucket had emptied by then
    assert bucket.delay_s(1000, 1.1) == 0.0
    bucket.take(1000, 1.1)
    assert bucket.delay_s(1000, 1.1) == 0.0


def test_an_idle_hour_saves_up_nothing() -> None:
    bucket = TokenBucket(6000, 0.0)
    passed = 0
    while bucket.delay_s(1, 3600.0) == 0.0:
        bucket.take(1, 3600.0)
        passed += 1
    assert passed <= 3


@given(st.floats(1.0, 1e6), st.lists(st.floats(0.001, 1e5), min_size=1, max_size=20))
def test_every_amount_passes_after_the_delay_that_is_told(limit: float, amounts: list[float]) -> None:
    bucket, now_s = TokenBucket(limit, 0.0), 0.0
    for amount in amounts:
        rounds = 0
        while (delay_s := bucket.delay_s(amount, now_s)) > 0:
            assert delay_s <= 2.01 * 60 * max(amounts) / limit
            now_s += delay_s
            rounds += 1
            assert rounds <= 6  # told once; a burst may be forgotten meanwhile, and numbers are rounded
        bucket.take(amount, now_s)


def drive(limiter: AdaptiveConcurrency, lines: int, requests: int, seconds: float = 1.0) -> list[int]:
    """The limits in force, request by request, at an endpoint that serves `lines` at once and queues the rest."""
    limits = []
    for _ in range(requests):
        ticket = limiter.begin(limiter.limit)
        limiter.succeeded(ticket, 100, seconds * max(1.0, ticket.in_flight / lines))
        limits.append(limiter.limit)
    return limits


@pytest.mark.parametrize("lines", [1, 2, 5, 13, 32, 64])
def test_the_limit_goes_to_the_knee_and_stays(lines: int) -> None:
    limits = drive(AdaptiveConcurrency(64), lines, 30_000)[-10_000:]
    assert abs(sum(limits) / len(limits) - lines) <= max(0.5, 0.1 * lines)


def test_it_doubles_with_every_round_that_finds_no_queue() -> None:
    limiter = AdaptiveConcurrency(64)
    for round_number in range(3):
        for ticket in [limiter.begin(n) for n in range(1, limiter.limit)]:
            limiter.succeeded(ticket, 100, 1.0)
        assert limiter.limit == 8 * 2 ** (round_number + 1)


@pytest.mark.parametrize("lines", [2, 4, 5])
def test_a_round_that_queues_ends_the_doubling_near_the_knee(lines: int) -> None:
    limiter = AdaptiveConcurrency(64)
    for ticket in [limiter.begin(n) for n in range(1, limiter.limit)]:
        limiter.succeeded(ticket, 100, float(-(-ticket.in_flight // lines)))
    assert lines <= limiter.limit <= lines + 3


def test_a_wide_step_that_pays_in_part_leads_to_what_its_goodput_shows() -> None:
    limiter = AdaptiveConcurrency(64)
    for ticket in [limiter.begin(n) for n in range(1, limiter.limit)]:
        limiter.succeeded(ticket, 100, float(-(-ticket.in_flight // 4)))
    assert limiter.limit == 5
    assert drive(limiter, 6, 30)[-1] == 7  # 5, 8, and between them 6 and one for the live lane


def test_small_requests_between_large_ones_tell_nothing() -> None:
    limiter = AdaptiveConcurrency(64)
    for _ in range(400):
        limiter.succeeded(limiter.begin(1), 10, 0.005)
    alone = AdaptiveConcurrency(64)
    for _ in range(3000):
        for one in (limiter, alone):
            ticket = one.begin(one.limit)
            one.succeeded(ticket, 500, max(1.0, ticket.in_flight / 5))
        limiter.succeeded(limiter.begin(limiter.limit, 1), 10, 1.0)  # waits as long, for nothing of its own
        assert limiter.limit == alone.limit


def test_the_live_lane_in_flight_is_no_goodput_of_the_replay() -> None:
    limiter, limits = AdaptiveConcurrency(64), []
    for _ in range(20_000):
        total = limiter.limit
        live = min(total - 1, 1 + total // 2)  # the longer the queue, the more of those in flight only wait in it
        replay = total - live
        limiter.succeeded(limiter.begin(total, replay), 500, max(1.0, replay / 4))
        limits.append(limiter.limit)
    assert sum(limits[-5000:]) / 5000 <= 14  # 4 of these replay


def test_it_never_grows_when_unused() -> None:
    limiter = AdaptiveConcurrency(64)
    for _ in range(1000):
        limiter.succeeded(limiter.begin(1), 100, 1.0)
    assert limiter.limit == 8


def test_a_refusal_halves_once_for_those_in_flight_together() -> None:
    limiter = AdaptiveConcurrency(64)
    drive(limiter, 64, 500)
    limit = limiter.limit
    assert limit >= 32
    tickets = [limiter.begin(n) for n in range(1, limit + 1)]
    assert [limiter.refused(ticket, limit - 1, throttled=False) for ticket in tickets] == [True] + [False] * (limit - 1)
    assert limiter.limit == limit // 2
    assert limiter.refused(limiter.begin(1), 0, throttled=False)
    assert limiter.limit == limit // 4
    for _ in range(10):
        limiter.refused(limiter.begin(1), 0, throttled=False)
    assert limiter.limit == 1


def test_a_refused_level_is_tried_again_only_after_a_while() -> None:
    limiter = AdaptiveConcurrency(64)
    drive(limiter, 64, 40)
    limiter.refused(limiter.begin(21), 20, throttled=True)
    limits = drive(limiter, 64, 60_000)
    first = next(place for place, limit in enumerate(limits) if limit > 20)
    assert first >= 20 * 2 * 32
    assert max(limits) == 64  # the endpoint takes more by now


def test_equal_bounds_are_a_fixed_limit() -> None:
    limiter = AdaptiveConcurrency(7, 7)
    assert set(drive(limiter, 2, 500)) == {7}
    limiter.refused(limiter.begin(7), 6, throttled=True)
    assert limiter.limit == 7


@given(st.lists(st.tuples(st.sampled_from(["ok", "throttled", "slow"]), st.integers(1, 40), st.floats(0, 50))))
def test_the_limit_stays_in_its_bounds(events: list[tuple[str, int, float]]) -> None:
    limiter = AdaptiveConcurrency(20, 2)
    for kind, number, seconds in events:
        ticket = limiter.begin(min(number, limiter.limit))
        if kind == "ok":
            for _ in range(number):
                limiter.succeeded(ticket, number, seconds)
        else:
            limiter.refused(ticket, number, throttled=kind == "throttled")
        assert 2 <= limiter.limit <= 20


def at_rest(lines: int) -> AdaptiveConcurrency:
    """An endpoint that serves `lines` at once, searched, then used with room left for live requests."""
    limiter = AdaptiveConcurrency(64)
    drive(limiter, lines, 5000)
    for _ in range(5000):
        if limiter.rests:
            break
        drive(limiter, lines, 1)
    for _ in range(100):
        limiter.succeeded(limiter.begin(max(1, lines // 2), yielding=True), 100, 1.0)
    return limiter


@pytest.mark.parametrize("lines", [1, 2, 4, 13, 32])
def test_requests_that_left_room_tell_how_many_are_served_at_once(lines: int) -> None:
    assert abs(at_rest(lines).at_once - lines) <= lines // 32


def test_requests_that_left_room_are_no_slower_endpoint() -> None:
    limiter = at_rest(13)
    limit = limiter.limit
    for _ in range(3000):
        limiter.succeeded(limiter.begin(6, yielding=True), 100, 1.0)
    assert (limiter.limit, limiter.rests) == (limit, True)


def test_the_limit_is_tried_again_after_some_thousand_requests_that_left_room() -> None:
    limiter = at_rest(4)
    trusted = tried = 0
    while limiter.rests and trusted < 20_000:
        limiter.succeeded(limiter.begin(2, yielding=True), 100, 1.0)
        trusted += 1
    while not limiter.rests and tried < 20_000:
        drive(limiter, 4, 1)
        tried += 1
    assert 3000 <= trusted < 20_000
    assert tried <= trusted / 100


def test_until_it_is_known_half_the_limit_is_taken_for_what_is_served_at_once() -> None:
    limiter = AdaptiveConcurrency(64)
    assert (limiter.rests, limiter.at_once) == (False, limiter.limit // 2)
    assert (AdaptiveConcurrency(7, 7).rests, AdaptiveConcurrency(7, 7).at_once) == (True, 7)


def loaded(in_flight: float, seconds: float = 60.0) -> LiveLoad:
    """Live requests of 10 ms, one after the other or beside each other, so that so many are in flight on average."""
    load = LiveLoad()
    for step in range(int(100 * seconds)):
        begun = int((step + 1) * in_flight) - int(step * in_flight)
        for _ in range(begun):
            load.begun(0.01 * step)
        for _ in range(begun):
            load.ended(0.01 * (step + 1))
    return load


@pytest.mark.parametrize(("in_flight", "slots"), [(0.01, 1), (0.1, 2), (0.3, 2), (0.7, 3), (1.4, 4), (4.0, 8)])
def test_live_requests_are_left_the_slots_their_load_asks_for(in_flight: float, slots: int) -> None:
    assert loaded(in_flight).slots(60.0) == slots


def test_without_live_requests_no_slot_is_kept() -> None:
    assert LiveLoad().slots(0.0) == 0
    load = loaded(4.0)
    assert load.slots(64.0) > 0
    assert load.slots(66.0) == 0
    load.begun(100.0)
    assert load.slots(100.0) == 1  # what was before is forgotten
    assert load.slots(200.0) > 1  # it is in flight still
    load.ended(200.0)


def test_a_load_is_known_after_a_second() -> None:
    assert loaded(0.7, 1.0).slots(1.0) == 3


@pytest.mark.parametrize(("most", "least"), [(0, 1), (2, 3), (5, 0)])
def test_impossible_bounds_are_refused(most: int, least: int) -> None:
    with pytest.raises(ValueError, match="least"):
        AdaptiveConcurrency(most, least)


def opened(**options: float) -> Circuit:
    circuit = Circuit(failures=3, **options)
    for _ in range(3):
        assert circuit.state == "closed"
        circuit.begin()
        circuit.failed(10.0, probe=False)
    assert circuit.state == "open"
    return circuit


def test_a_circuit_opens_after_failures_in_a_row_only() -> None:
    circuit = Circuit(failures=3)
    for _ in range(10):
        circuit.failed(0.0, probe=False)
        circuit.failed(0.0, probe=False)
        circuit.answered(probe=False)
    assert circuit.state == "closed"
    assert circuit.wait_s(0.0) == 0.0


def test_one_request_probes_and_the_pause_doubles_to_its_bound() -> None:
    circuit, now_s = opened(first_pause_s=1.0, longest_pause_s=5.0), 10.0
    for pause_s in (1.0, 2.0, 4.0, 5.0, 5.0):
        assert circuit.wait_s(now_s) == pytest.approx(pause_s)
        now_s += pause_s
        assert circuit.wait_s(now_s) == 0.0
        assert circuit.begin()
        assert (circuit.state, circuit.wait_s(now_s)) == ("probing", math.inf)
        assert circuit.failed(now_s, probe=True)
    now_s += 5.0
    circuit.begin()
    circuit.answered(probe=True)
    assert (circuit.state, circuit.wait_s(now_s)) == ("closed", 0.0)
    for _ in range(3):
        circuit.failed(now_s, probe=False)
    assert circuit.wait_s(now_s) == 1.0  # the pause begins anew


def test_what_was_sent_before_it_opened_changes_nothing() -> None:
    circuit = opened()
    assert not circuit.failed(10.5, probe=False)
    circuit.answered(probe=False)
    assert circuit.wait_s(10.5) == pytest.approx(0.5)


def test_a_circuit_honours_retry_after() -> None:
    circuit = opened()
    circuit.begin()
    circuit.failed(11.0, probe=True, retry_after_s=90.0)
    assert circuit.wait_s(11.0) == 90.0


def test_a_probe_nobody_waits_for_makes_room_for_another() -> None:
    circuit = opened()
    circuit.begin()
    circuit.abandoned(probe=True)
    assert circuit.wait_s(11.0) == 0.0
