"""How fast and how many at once an endpoint may be asked, and when it is better left alone: values and arithmetic.

Must never wait, read a clock or know a network: the time is passed in, the caller does the waiting.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

State = Literal["closed", "open", "probing"]

_SHARE = 0.985  # of the limit: the rest takes what arrives early or late, and the burst
_MINUTE_S = 60.0
_FORGET_S = 120.0
_CLOSE_ENOUGH = 1e-9


class TokenBucket:
    """Keeps what is taken within `per_minute` in every window of a minute, wherever the provider's windows begin.

    The burst is 1.5% of a second's share (a timer that wakes late loses nothing), or the largest amount asked for of
    late: so every amount passes, and a small one seldom waits behind a large one. What the largest amount adds to a
    window is left out of the rate.
    """

    def __init__(self, per_minute: float, now_s: float) -> None:
        if not per_minute > 0:
            raise ValueError("a limit a minute is more than zero")
        self.per_minute = per_minute
        self._used = 0.0
        self._largest = self._largest_before = 0.0  # in this period and the one before it
        self._period_s = self._at_s = now_s

    def delay_s(self, amount: float, now_s: float) -> float:
        """Seconds until `amount` may be taken; 0.0 when it may be now."""
        self._pass(now_s)
        self._largest = max(self._largest, amount)
        over = self._used + amount - max(self._burst, amount + self._slack)
        return over / self._rate if over > _CLOSE_ENOUGH * (self.per_minute + self._used) else 0.0

    def take(self, amount: float, now_s: float) -> None:
        """Count `amount`, allowed or not: the caller asked `delay_s` first."""
        self._pass(now_s)
        self._largest = max(self._largest, amount)
        self._used += amount

    def correct(self, estimated: float, actual: float) -> None:
        """The reply says it was `actual`; `actual` 0 gives back what was never sent."""
        self._used += actual - estimated

    @property
    def _burst(self) -> float:
        return max(self._largest, self._largest_before)

    @property
    def _slack(self) -> float:
        return (1 - _SHARE) * self.per_minute / _MINUTE_S

    @property
    def _rate(self) -> float:
        """A second. A window can hold the rate's share and one burst; half the limit if bursts are that large."""
        most = min(_SHARE * self.per_minute, self.per_minute - self._burst - self._slack)
        return max(self.per_minute / 2, most) / _MINUTE_S

    def _pass(self, now_s: float) -> None:
        passed_s = max(0.0, now_s - self._at_s)
        self._at_s = max(self._at_s, now_s)
        if self._used > 0:  # below zero is a credit from `correct`, which time neither takes nor makes
            self._used = max(0.0, self._used - passed_s * self._rate)
        if now_s - self._period_s >= _FORGET_S:
            self._largest_before, self._largest, self._period_s = self._largest, 0.0, now_s


@dataclass(frozen=True, slots=True)
class Ticket:
    """What was in force when a request began. `in_flight` counts itself."""

    flight: int
    level: int
    in_flight: int


@dataclass(slots=True)
class _Window:
    """Requests that began while one limit was in force and fully used."""

    count: int = 0
    in_flight: int = 0
    tokens: float = 0.0
    seconds: float = 0.0

    @property
    def mean_in_flight(self) -> float:
        return self.in_flight / self.count


class _ServiceTime:
    """seconds = fixed + each * tokens, by least squares that forget: tells a large request from a slow endpoint."""

    def __init__(self) -> None:
        self._n = self._x = self._y = self._xx = self._xy = 0.0

    def learn(self, tokens: float, seconds: float) -> None:
        keep = 0.995
        self._n = keep * self._n + 1
        self._x = keep * self._x + tokens
        self._y = keep * self._y + seconds
        self._xx = keep * self._xx + tokens * tokens
        self._xy = keep * self._xy + tokens * seconds

    def slowdown(self, window: _Window) -> float:
        """The window's seconds over those that requests of its sizes take on average."""
        spread = self._n * self._xx - self._x * self._x
        each = (self._n * self._xy - self._x * self._y) / spread if spread > 1e-6 * self._n * self._xx else 0.0
        fixed = (self._y - each * self._x) / self._n
        if each < 0:
            each, fixed = 0.0, self._y / self._n
        elif fixed < 0:
            each, fixed = self._xy / self._xx, 0.0
        return window.seconds / max(fixed * window.count + each * window.tokens, 1e-12)


class AdaptiveConcurrency:
    """How many requests to keep in flight: additive increase, multiplicative decrease, and the best point between.

    Whether one more in flight pays is tried, not guessed, as in PCC (Dong et al., "PCC: Re-architecting Congestion
    Control for Consistent High Performance", NSDI 2015): a window of requests at the limit, one a step above or below
    it, and the step is kept only if goodput follows. Goodput is the number in flight over their slowdown (Little's
    law); more latency at the same goodput is a queue, as in TCP Vegas (Brakmo, Peterson 1995). Netflix's
    concurrency-limits brought both ideas to services. A refusal or time-out halves the limit, once for all requests
    that were in flight together; the level that was refused is tried again only after a while.

    `least` equal to `most` is a fixed limit.
    """

    _UP_PAYS = 0.4  # of the step in flight, seen in goodput
    _DOWN_PAYS = 0.25
    _FIRST_REST, _LONGEST_REST = 2, 16  # windows between trials while none is kept
    _FIRST_PATIENCE, _LONGEST_PATIENCE = 32, 256  # windows below a refused level

    def __init__(self, most: int, least: int = 1) -> None:
        if not 1 <= least <= most:
            raise ValueError("1 <= least <= most")
        self.most = most
        self.least = least
        self.limit = min(most, max(least, 4))
        self._base = self.limit
        self._seeking = True  # doubling, until a refusal or a step that does not pay
        self._direction = 0  # of the trial that runs; 0: at the base
        self._next = 1
        self._window = _Window()
        self._at_base: _Window | None = None
        self._flight = self._level = 0
        self._misses = self._rest = 0
        self._rest_length = self._FIRST_REST
        self._ceiling: int | None = None
        self._patience = 0
        self._patience_length = self._FIRST_PATIENCE
        self._service = _ServiceTime()

    def begin(self, in_flight: int) -> Ticket:
        """A request begins; `in_flight` counts it."""
        return Ticket(self._flight, self._level, in_flight)

    def succeeded(self, ticket: Ticket, tokens: float, seconds: float) -> None:
        """Learns from requests that ran with the present limit fully used (one slot may be kept for the live lane)."""
        seconds = max(seconds, 1e-6)
        self._service.learn(tokens, seconds)
        if ticket.level != self._level or ticket.in_flight < self.limit - 1 or self.least == self.most:
            return
        window = self._window
        window.count += 1
        window.in_flight += ticket.in_flight
        window.tokens += tokens
        window.seconds += seconds
        if window.count >= max(8, self.limit if self._seeking else 2 * self.limit):
            self._window = _Window()
            if self._direction:
                self._judge(window)
            else:
                self._at_rest(window)

    def refused(self, ticket: Ticket, left: int, *, throttled: bool) -> bool:
        """Refused or timed out, with `left` others in flight. True for the first of those in flight together.

        `throttled`: the endpoint said it was too much, so `left` is what it took.
        """
        if throttled:
            most_taken = max(self.least, left)
            self._ceiling = most_taken if self._ceiling is None else min(self._ceiling, most_taken)
        if ticket.flight != self._flight:
            return False
        self._flight += 1
        if throttled:
            self._patience = self._patience_length
            self._patience_length = min(2 * self._patience_length, self._LONGEST_PATIENCE)
        self._seeking = False
        self._go(max(self.least, self.limit // 2), 0)
        self._base, self._at_base = self.limit, None
        self._next, self._misses, self._rest, self._rest_length = 1, 0, 0, self._FIRST_REST
        return True

    def _at_rest(self, window: _Window) -> None:
        before, self._at_base = self._at_base, window
        if self._ceiling is not None:
            self._patience -= 1
            if self._patience <= 0:
                self._ceiling = None
        if before is not None and abs(math.log(self._goodput(window) / self._goodput(before))) > 0.2:
            self._rest, self._rest_length = 0, self._FIRST_REST  # the endpoint changed: look again at once
        if self._rest > 0:
            self._rest -= 1
        else:
            self._try()

    def _judge(self, window: _Window) -> None:
        if self._at_base is None:  # never: a trial begins at a measured base
            raise AssertionError("a trial without a base")
        step = math.log(window.mean_in_flight / self._at_base.mean_in_flight)
        gain = math.log(self._goodput(window) / self._goodput(self._at_base))
        # with one slot kept for the live lane, 2 can mean no more in flight than 1: then go on up
        follows = gain / step if abs(step) > 0.02 else 1.0
        if follows >= self._UP_PAYS if self._direction > 0 else follows < self._DOWN_PAYS:
            if self._direction > 0 and self._ceiling is None:
                self._patience_length = self._FIRST_PATIENCE
            self._base, self._at_base, self._misses = self.limit, window, 0
            self._rest_length = self._FIRST_REST
            self._next = self._direction
            self._try()
            return
        self._seeking = False
        self._next = -self._direction
        self._misses += 1
        if self._misses >= 2:
            self._misses, self._rest = 0, self._rest_length
            self._rest_length = min(2 * self._rest_length, self._LONGEST_REST)
        self._go(self._base, 0)

    def _try(self) -> None:
        step = self._base if self._seeking else max(1, self._base // 8)
        top = self.most if self._ceiling is None else max(self.least, min(self.most, self._ceiling))
        levels = {1: min(top, self._base + step), -1: max(self.least, self._base - step)}
        for direction in (self._next, -self._next):
            if (levels[direction] - self._base) * direction > 0:
                self._go(levels[direction], direction)
                return
        self._go(self._base, 0)

    def _go(self, limit: int, direction: int) -> None:
        self._direction = direction
        if limit != self.limit:
            self.limit = limit
            self._level += 1
        self._window = _Window()

    def _goodput(self, window: _Window) -> float:
        return window.mean_in_flight / self._service.slowdown(window)


class Circuit:
    """Leaves an endpoint alone that failed `failures` times in a row, and lets one request find out if it is back."""

    def __init__(self, *, failures: int = 5, first_pause_s: float = 1.0, longest_pause_s: float = 60.0) -> None:
        self.first_pause_s = first_pause_s
        self._failures = failures
        self._longest_pause_s = longest_pause_s
        self._pause_s = first_pause_s
        self._failed = 0
        self._until_s: float | None = None
        self._probing = False

    @property
    def state(self) -> State:
        if self._until_s is None:
            return "closed"
        return "probing" if self._probing else "open"

    def wait_s(self, now_s: float) -> float:
        """Seconds until a request may be sent: 0.0 now, infinite while one probes."""
        if self._until_s is None:
            return 0.0
        return math.inf if self._probing else max(0.0, self._until_s - now_s)

    def begin(self) -> bool:
        """A request is sent, which `wait_s` allowed. True when it is the probe."""
        self._probing = self._until_s is not None
        return self._probing

    def answered(self, *, probe: bool) -> None:
        """The endpoint is there, whatever it said: closed, unless the request was sent before it opened."""
        if self._until_s is not None and not probe:
            return
        self._failed, self._until_s, self._probing, self._pause_s = 0, None, False, self.first_pause_s

    def failed(self, now_s: float, *, probe: bool, retry_after_s: float | None = None) -> bool:
        """No answer, or an error of the endpoint's own. True when this opened the circuit, or opened it again."""
        if self._until_s is not None and not probe:
            return False  # sent before it opened: nothing new
        self._failed += 1
        if not probe and self._failed < self._failures:
            return False
        self._until_s = now_s + (self._pause_s if retry_after_s is None else retry_after_s)
        self._pause_s = min(2 * self._pause_s, self._longest_pause_s)
        self._probing = False
        return True

    def abandoned(self, *, probe: bool) -> None:
        """Nobody waits for the answer any more: after a probe, another may probe at once."""
        if probe:
            self._probing = False
