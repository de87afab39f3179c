"""How fast an endpoint may be asked, and when it is better left alone: values and arithmetic.

Must never wait, read a clock or know a network: the time is passed in, the caller does the waiting.
"""

from __future__ import annotations

import math
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
        self._used = self._corrected = 0.0
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
        self._corrected += actual - estimated

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
        self._used += self._corrected  # after the time that passed before it: what is given back is not lost to it
        self._corrected = 0.0
        if now_s - self._period_s >= _FORGET_S:
            self._largest_before, self._largest, self._period_s = self._largest, 0.0, now_s


class LiveLoad:
    """How many live requests are in flight on average of late, and how many slots that asks for.

    Without any for `_QUIET_S` seconds it asks for none: a replay alone has the whole endpoint.
    """

    _QUIET_S = 5.0
    _MEMORY_S = 5.0
    _ALL_TAKEN = 0.05  # of live requests that come may find no slot free

    def __init__(self) -> None:
        self._in_flight = 0
        self._area = self._seconds = 0.0  # both forgotten in time
        self._at_s = self._last_s = -math.inf

    def begun(self, now_s: float) -> None:
        """A live request is sent."""
        if not self._in_flight and now_s - self._last_s > self._QUIET_S:
            self._area = self._seconds = 0.0
            self._at_s = now_s
        self._pass(now_s)
        self._in_flight += 1

    def ended(self, now_s: float) -> None:
        """One is over, however."""
        self._pass(now_s)
        self._in_flight -= 1

    def slots(self, now_s: float) -> int:
        """So many that a live request which comes finds one free, as a rule: by Erlang's loss formula."""
        if not self._in_flight and now_s - self._last_s > self._QUIET_S:
            return 0
        self._pass(now_s, seen=False)
        load = self._area / self._seconds if self._seconds > 0 else 0.0
        slots, lost = 1, load / (1 + load)
        while lost > self._ALL_TAKEN:
            slots += 1
            lost = load * lost / (slots + load * lost)
        return slots

    def _pass(self, now_s: float, *, seen: bool = True) -> None:
        passed_s = now_s - self._at_s
        kept = math.exp(-passed_s / self._MEMORY_S)
        self._area = kept * self._area + self._in_flight * passed_s
        self._seconds = kept * self._seconds + passed_s
        self._at_s = now_s
        if seen:
            self._last_s = now_s


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
