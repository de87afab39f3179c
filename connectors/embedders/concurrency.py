"""How many requests an endpoint is given at once, found by trying: values and arithmetic.

Must never wait, read a clock or know a network: what a request took is passed in, the caller keeps to `limit`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ticket:
    """What was in force when a request began. `in_flight` counts itself; `alike`, those of its own lane.

    `yielding`: the replay left room for the live lane.
    """

    flight: int
    level: int
    in_flight: int
    alike: int
    yielding: bool = False


@dataclass(slots=True)
class _Window:
    """Requests that began while one limit was in force."""

    count: int = 0
    in_flight: int = 0
    alike: int = 0
    tokens: float = 0.0
    seconds: float = 0.0

    @property
    def mean_in_flight(self) -> float:
        return self.in_flight / self.count

    @property
    def mean_alike(self) -> float:
        return self.alike / self.count

    @property
    def mean_others(self) -> float:
        return (self.in_flight - self.alike) / self.count

    def add(self, ticket: Ticket, tokens: float, seconds: float) -> None:
        self.count += 1
        self.in_flight += ticket.in_flight
        self.alike += ticket.alike
        self.tokens += tokens
        self.seconds += seconds

    def merge(self, other: _Window) -> None:
        self.count += other.count
        self.in_flight += other.in_flight
        self.alike += other.alike
        self.tokens += other.tokens
        self.seconds += other.seconds


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
    """How many requests to keep in flight: fast to the endpoint's best point, then at rest there.

    From the start the limit doubles with every round of replies, as TCP's slow start does, until the later requests of
    a round take longer than the first ones did. Then whether more in flight pays is tried, not guessed, as in PCC (Dong
    et al., "PCC: Re-architecting Congestion Control for Consistent High Performance", NSDI 2015): a window of requests
    at the limit, one a step above or below it. Goodput is the number in flight over their slowdown (Little's law);
    more latency at the same goodput is a queue, as in TCP Vegas (Brakmo, Peterson 1995). Between two windows, one below
    the best point and one above, goodput is what the endpoint can do at once: the limit goes there, and one more for
    the live lane. Then trials of one step are rare, until one is kept or the endpoint changes.

    While live events come, the caller may hold the replay to less than `at_once` once the search is at `rest`. Such
    requests meet no queue; how much longer the same took at the limit says, by Little's law, how many of those the
    endpoint really served at once. They tell nothing else, so after some thousands the limit is used again for a while.

    A refusal or time-out halves the limit, once for all requests that were in flight together; the level that was
    refused is tried again only after a while. `least` equal to `most` is a fixed limit.
    """

    _START = 8
    _NO_QUEUE = 0.7  # of the first requests' speed, kept by the later ones of a round: double again
    _ALL_AT_ONCE = 1.25  # a round sent at once waits for whole turns: it shows less than the endpoint can do
    _PAYS, _PAYS_NOT = 0.8, 0.2  # of a wide step in flight, seen in goodput: between them lies the best point
    _DOWN_FREE = 0.3  # of a wide step down: less is lost, so the best point lies still lower, or not far above
    _UP_PAYS, _DOWN_PAYS = 0.4, 0.25  # of a small step
    _CHANGED = 0.4  # in the logarithm of goodput, from one window at rest to the next
    _SIZES = 16  # requests of less than this part of the largest of late tell nothing: how long they wait is not theirs
    _FIRST_REST, _LONGEST_REST = 12, 96  # windows between trials while none is kept
    _FREE = 16  # requests that left room, until it is known what one takes
    _TRUSTED = 250  # windows of such requests, until the limit is used again for one: live calls then wait
    _FIRST_PATIENCE, _LONGEST_PATIENCE = 32, 256  # windows below a refused level

    def __init__(self, most: int, least: int = 1) -> None:
        if not 1 <= least <= most:
            raise ValueError("1 <= least <= most")
        self.most = most
        self.least = least
        self.limit = min(most, max(least, self._START))
        self._base = self.limit
        self._rising = True  # doubling round by round
        self._seeking = False  # wide steps, until the best point lies between two of them
        self._direction = 0  # of the trial that runs; 0: at the base
        self._next = 1
        self._stride = 0  # wide steps in a row that were kept
        self._window = _Window()
        self._first = _Window()  # while rising: requests that met no queue
        self._full = False  # while rising: the limit was fully used
        self._at_base: _Window | None = None
        self._flight = self._level = 0
        self._misses = self._rest = 0
        self._rest_length = self._FIRST_REST
        self._ceiling: int | None = None
        self._patience = 0
        self._patience_length = self._FIRST_PATIENCE
        self._largest = 0.0
        self._service = _ServiceTime()
        self._free = _Window()  # requests that left room for the live lane
        self._at_once: int | None = None
        self._trusted = self._unsettled = 0

    @property
    def rests(self) -> bool:
        """Whether the limit is the best point as far as is known, and was used of late."""
        if self.least == self.most:
            return True
        return not self._rising and self._direction == 0 and self._at_base is not None and self._trusted > 0

    @property
    def at_once(self) -> int:
        """How many requests the endpoint serves without a queue: at first a careful guess."""
        if self.least == self.most:
            return self.limit
        return max(1, self.limit // 2) if self._at_once is None else self._at_once

    def begin(self, in_flight: int, alike: int | None = None, *, yielding: bool = False) -> Ticket:
        """A request begins; `in_flight` counts it, and so does `alike`, those of its lane (all, unless told)."""
        return Ticket(self._flight, self._level, in_flight, in_flight if alike is None else alike, yielding)

    def succeeded(self, ticket: Ticket, tokens: float, seconds: float) -> None:
        """Learns from requests that ran with the present limit fully used (one slot may be kept for the live lane)."""
        if tokens * self._SIZES < self._largest:
            self._largest *= 0.98
            return
        if tokens > self._SIZES * self._largest:
            self._service, self._first, self._window, self._at_base = _ServiceTime(), _Window(), _Window(), None
            self._go(self._base, 0)
        self._largest = max(0.98 * self._largest, tokens)
        seconds = max(seconds, 1e-6)
        self._service.learn(tokens, seconds)
        if ticket.level != self._level or self.least == self.most:
            return
        if ticket.yielding:
            self._learn_free(ticket, tokens, seconds)
        elif self._rising:
            high = ticket.in_flight >= max(2, self.limit // 2)
            (self._window if high else self._first).add(ticket, tokens, seconds)
            self._full = self._full or ticket.in_flight >= self.limit - 1
            if high and self._window.count >= max(4, self.limit // 2):
                self._rise(self._window)
        elif ticket.in_flight >= self.limit - 1:
            if self._unsettled > 0 and ticket.in_flight > ticket.alike:  # those of another limit may still be queued
                self._unsettled -= 1
                return
            window = self._window
            window.add(ticket, tokens, seconds)
            if window.count >= self._enough:
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
        self._settle(min(self.limit // 2, left) if throttled else self.limit // 2)
        self._next, self._rest = 1, 0
        return True

    @property
    def _enough(self) -> int:
        """Requests in a window: fewer where time presses, more where a small difference is looked for."""
        if self._direction == 0 and self._window.in_flight > self._window.alike:
            return max(24, 3 * self.limit)
        if self._seeking or 4 * abs(self.limit - self._base) >= self._base:  # of two slots one is no small step
            if self._direction > 0:
                return max(8, self.limit)
            # Where one slot less is half of all (one may be kept for the live lane), few show it, and each is dear.
            return max(6 if 2 * (self.limit - 1) < self._base else 12, 3 * self.limit // 2)
        return max(24, 2 * self.limit) if self._direction else max(16, 2 * self.limit)

    @property
    def _top(self) -> int:
        return self.most if self._ceiling is None else max(self.least, min(self.most, self._ceiling))

    def _rise(self, window: _Window) -> None:
        if not self._full:  # nobody asks for more
            self._window = _Window()
            return
        keeps = 1.0
        if self._first.count:
            keeps = min(1.0, self._service.slowdown(self._first) / self._service.slowdown(window))
        if keeps >= self._NO_QUEUE:
            if self.limit >= self._top:
                self._settle(self.limit)
                return
            self._first.merge(window)
            self._full = False
            self._base = min(self._top, 2 * self.limit)
            self._go(self._base, 0)
        else:
            knee = self._ALL_AT_ONCE * keeps * window.mean_alike
            self._seek(min(self.limit, math.ceil(knee) + 1), 1)

    def _learn_free(self, ticket: Ticket, tokens: float, seconds: float) -> None:
        self._trusted -= 1
        full, free = self._at_base, self._free
        if full is None or free.count >= 4 * self._FREE:
            return
        free.add(ticket, tokens, seconds)
        if free.count % self._FREE == 0:
            queue = max(1.0, self._service.slowdown(full) / self._service.slowdown(free))
            served = full.mean_alike / queue + min(full.mean_others, free.mean_others)
            self._at_once = max(1, min(self.limit, round(served)))

    def _at_rest(self, window: _Window) -> None:
        before, self._at_base = self._at_base, window
        self._free, self._trusted = _Window(), self._TRUSTED * window.count
        if self._ceiling is not None:
            self._patience -= 1
            if self._patience <= 0:
                self._ceiling = None
        if self._seeking:
            if before is not None or not window.mean_others:  # else the live lane goes first: it has waited enough
                self._try()
            return
        change = 0.0 if before is None else math.log(self._goodput(window) / self._goodput(before))
        if abs(change) > self._CHANGED:
            # the endpoint changed: look again at once, where more goes through upwards, else downwards
            self._seek(self.limit, 1 if change > 0 else -1)
            self._at_base = window
            self._try()
        elif self._rest > 0:
            self._rest -= 1
        else:
            self._try()

    def _judge(self, window: _Window) -> None:
        base = self._at_base
        if base is None:  # never: a trial begins at a measured base
            raise AssertionError("a trial without a base")
        step = math.log(window.mean_in_flight / base.mean_in_flight)
        gain = math.log(self._goodput(window) / self._goodput(base))
        # with one slot kept for the live lane, 2 can mean no more in flight than 1: then go on up
        follows = gain / step if abs(step) > 0.02 else 1.0
        if self._seeking:
            self._judge_wide(window, base, follows, gain)
        elif follows >= self._UP_PAYS if self._direction > 0 else follows < self._DOWN_PAYS:
            self._keep(window)
        else:
            self._next = -self._direction
            self._misses += 1
            if self._misses >= 2:
                self._misses, self._rest = 0, self._rest_length
                self._rest_length = min(2 * self._rest_length, self._LONGEST_REST)
            self._go(self._base, 0)

    def _judge_wide(self, window: _Window, base: _Window, follows: float, gain: float) -> None:
        fewer = window if self._direction < 0 else base
        knee = round(fewer.mean_alike * math.exp(abs(gain)) + 0.2) + 1
        if self._direction > 0:
            if follows >= self._PAYS:
                self._keep(window)
            elif follows > self._PAYS_NOT:
                self._settle(min(knee, self.limit))
            elif self._stride:  # the way up to here paid in full
                self._settle(self._base)
            else:
                self._next = -1
                self._go(self._base, 0)
                self._try()
        elif follows <= self._DOWN_FREE:
            self._keep(window)
        else:
            self._settle(min(knee, self._base))

    def _keep(self, window: _Window) -> None:
        """The step paid: from here, a further one in the same direction. Several in a row become wide."""
        if self._direction > 0 and self._ceiling is None:
            self._patience_length = self._FIRST_PATIENCE
        self._base, self._at_base, self._misses = self.limit, window, 0
        self._rest_length = self._FIRST_REST
        self._next = self._direction
        self._stride += 1
        if self._stride > 2 and self._direction > 0:
            self._seeking = True
        self._try()

    def _try(self) -> None:
        step = max(1, self._base // 8)
        if self._seeking:
            step = max(1, (self._base + 1) // 2 if self._next > 0 else self._base // 4)
        levels = {1: min(self._top, self._base + step), -1: max(self.least, self._base - step)}
        for direction in (self._next,) if self._seeking else (self._next, -self._next):
            if (levels[direction] - self._base) * direction > 0:
                if direction != self._next:
                    self._stride = 0
                self._next = direction
                self._go(levels[direction], direction)
                return
        self._settle(self._base)

    def _seek(self, limit: int, direction: int) -> None:
        self._settle(limit)
        self._seeking, self._next = True, direction

    def _settle(self, limit: int) -> None:
        """Rest at this limit for a while."""
        limit = min(self.most, max(self.least, limit))
        self._rising = self._seeking = False
        self._go(limit, 0)
        self._base, self._at_base = limit, None
        self._stride = self._misses = 0
        self._next = -1
        self._rest = self._rest_length = self._FIRST_REST
        self._unsettled = limit

    def _go(self, limit: int, direction: int) -> None:
        if direction == 0:
            self._stride = 0
        self._direction = direction
        if limit != self.limit:
            self.limit = limit
            self._level += 1
            self._at_once = None
        self._window = _Window()

    def _goodput(self, window: _Window) -> float:
        return window.mean_alike / self._service.slowdown(window)
