"""One endpoint and the turns to it: live before replay, within its limits, left alone when it is away.

Must never try twice, send before the endpoint's Retry-After, or lose a slot when a caller is cancelled.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from connectors.embedders.concurrency import AdaptiveConcurrency, Ticket
from connectors.embedders.limits import Circuit, LiveLoad, State, TokenBucket
from connectors.errors import (
    ConfigurationError,
    ContentRejected,
    CrossfadeError,
    Refused,
    Throttled,
    Transient,
    Unreachable,
)
from connectors.protocols import Embedded, Embedder

MOST_IN_FLIGHT = 32
_FIRST_HOLD_S, _LONGEST_HOLD_S = 0.25, 15.0
_AT_ONCE_S = 1e-9


@dataclass(frozen=True, slots=True)
class EndpointStatus:
    """For status output. `outcomes` counts calls: ok, rejected, throttled, failed, refused, cancelled, broken.

    `busy_s`: seconds with a request in flight; `held_s`: seconds that are left of a Retry-After; `tokens`: of the
    calls that gave vectors, as the endpoint counted or as estimated.
    """

    name: str
    rank: int
    state: State
    in_flight: int
    concurrency: int
    waiting_urgent: int
    waiting_replay: int
    busy_s: float
    held_s: float
    tokens: int
    outcomes: Mapping[str, int]
    last_error: str | None
    refused: str | None


@dataclass(slots=True, eq=False)
class Turn:
    """A slot of `endpoint`, and its share of the rates: to be spent by `attempt` or given back."""

    endpoint: Endpoint
    tokens: int
    urgent: bool
    ticket: Ticket
    probe: bool


@dataclass(slots=True, eq=False)
class Waiter:
    """In the queues of one or more endpoints; `future` gives the first turn, or None: look again, something changed."""

    tokens: int
    urgent: bool
    future: asyncio.Future[Turn | None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def wake(self, turn: Turn | None) -> None:
        if not self.future.done():
            self.future.set_result(turn)


class Endpoint:
    """Serves calls in the order of their arrival, urgent ones first, at most `concurrency` (32) at once.

    Replay calls leave one slot of the concurrency of the moment to urgent ones, where it is 2 or more. `rank`,
    `weight`, `lanes` and `overflow` are for a pool: see there. `price`: USD for a million tokens. Belongs
    to one event loop.
    """

    def __init__(
        self,
        name: str,
        embedder: Embedder,
        *,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        concurrency: int | None = None,
        fixed_concurrency: bool = False,
        rank: int = 0,
        weight: float = 1.0,
        lanes: frozenset[str] | None = None,
        overflow: bool = False,
        price: float = 0.0,
    ) -> None:
        most = MOST_IN_FLIGHT if concurrency is None else concurrency
        for option, value in (
            ("requests_per_minute", requests_per_minute),
            ("tokens_per_minute", tokens_per_minute),
            ("concurrency", most),
            ("weight", weight),
        ):
            if value is not None and not 0 < value < math.inf:
                raise ConfigurationError(
                    f"{option} of endpoint {name} is {value}", next_step=f"give {option} a number above 0"
                )
        self.name = name
        self.embedder = embedder
        self.rank = rank
        self.weight = weight
        self.lanes = lanes
        self.overflow = overflow
        self.price = price
        self.most_in_flight = most
        self.refused: str | None = None  # set by the pool
        self.trouble = ""  # why it last failed
        self._requests = None if requests_per_minute is None else TokenBucket(requests_per_minute, 0.0)
        self._tokens = None if tokens_per_minute is None else TokenBucket(tokens_per_minute, 0.0)
        self._concurrency = AdaptiveConcurrency(most, most if fixed_concurrency else 1)
        self._live = LiveLoad()
        self._circuit = Circuit()
        self._urgent: OrderedDict[Waiter, None] = OrderedDict()
        self._replay: OrderedDict[Waiter, None] = OrderedDict()
        self._in_flight = self._replay_in_flight = 0
        self._held_until_s = -math.inf
        self._holds = 0
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._busy_s = self._busy_since_s = 0.0
        self._counted = 0
        self._outcomes: Counter[str] = Counter()
        self._last_error: str | None = None

    async def embed(self, texts: Sequence[str], *, tokens: int, urgent: bool) -> Embedded:
        """One attempt, when its turn has come. `tokens` is an estimate until the reply says.

        Raises Unreachable at once while the circuit is open, else what the embedder raised.
        """
        while True:
            if self._circuit.wait_s(_now_s()) > 0:
                raise away([self], self.away_s())
            turn = self.begin(tokens, urgent) or await queue([self], tokens, urgent)
            if turn is not None:
                return await self.attempt(turn, texts)

    def begin(self, tokens: int, urgent: bool) -> Turn | None:
        """A turn, when one is free and nobody waits who goes before. Raises Refused when closed."""
        self._check_open()
        return self._begin(tokens, urgent) if self._is_next(urgent) else None

    def ready(self, tokens: int, urgent: bool) -> bool:
        """Whether `begin` would give a turn."""
        return self._is_next(urgent) and self._delay_s(tokens, urgent, _now_s()) <= 0

    def has_slot(self, urgent: bool) -> bool:
        """Whether the concurrency of the moment has room for one more of this kind."""
        return self._in_flight < self._concurrency.limit and (urgent or self._replay_in_flight < self._share(_now_s()))

    def _share(self, now_s: float) -> int:
        """How many replay calls may be in flight: one less than the limit, or while live calls come, what these leave
        of all that the endpoint serves at once; half of that in any case."""
        limit = self._concurrency.limit
        wanted = self._live.slots(now_s) if self._concurrency.rests else 0
        served = self._concurrency.at_once if wanted else limit
        return min(max(1, limit - 1), max(1, served // 2, served - max(1, wanted)))

    def away_s(self) -> float:
        """Seconds until this endpoint may be asked again: 0.0 unless it is held or its circuit is not closed."""
        now_s = _now_s()
        wait_s = self._circuit.wait_s(now_s)
        held_s = self._held_until_s - now_s
        return max(self._circuit.first_pause_s if wait_s == math.inf else wait_s, held_s if held_s > _AT_ONCE_S else 0)

    @property
    def state(self) -> State:
        return self._circuit.state

    def join(self, waiter: Waiter) -> None:
        """At the end of its lane's queue. Raises Refused when closed."""
        self._check_open()
        (self._urgent if waiter.urgent else self._replay)[waiter] = None
        self._serve()

    def leave(self, waiter: Waiter) -> None:
        """Out of the queue, wherever in it."""
        lane = self._urgent if waiter.urgent else self._replay
        if waiter in lane:
            del lane[waiter]
            self._serve()

    def look_again(self) -> None:
        """Everybody who waits decides anew where to wait."""
        for lane in (self._urgent, self._replay):
            while lane:
                lane.popitem(last=False)[0].wake(None)

    def give_back(self, turn: Turn) -> None:
        """A turn that nothing was sent with."""
        if self._requests is not None:
            self._requests.correct(1, 0)
        if self._tokens is not None:
            self._tokens.correct(turn.tokens, 0)
        self._end(turn, "cancelled")
        self._circuit.abandoned(probe=turn.probe)
        self._serve()

    async def attempt(self, turn: Turn, texts: Sequence[str]) -> Embedded:
        """One call of the embedder with this turn, which it ends. Raises what the embedder raised."""
        began_s = _now_s()
        try:
            reply = await self.embedder.embed(texts)
        except Transient as error:
            self._end(turn, "throttled" if isinstance(error, Throttled) else "failed", error)
            self._slow_down(turn, error)
            raise
        except CrossfadeError as error:
            self._end(turn, "rejected" if isinstance(error, ContentRejected) else "refused", error)
            self._circuit.answered(probe=turn.probe)
            raise
        except BaseException as error:
            cancelled = isinstance(error, asyncio.CancelledError)
            self._end(turn, "cancelled" if cancelled else "broken", None if cancelled else error)
            self._circuit.abandoned(probe=turn.probe)
            raise
        else:
            self._end(turn, "ok")
            self._circuit.answered(probe=turn.probe)
            self._holds = 0
            if not (turn.urgent and turn.ticket.yielding):
                self._concurrency.succeeded(turn.ticket, _padded(turn.tokens, texts), _now_s() - began_s)
            if self._tokens is not None and reply.tokens is not None:
                self._tokens.correct(turn.tokens, reply.tokens)
            self._counted += turn.tokens if reply.tokens is None else reply.tokens
            return reply
        finally:
            self._serve()

    def status(self) -> EndpointStatus:
        """As of now."""
        now_s = _now_s()
        return EndpointStatus(
            name=self.name,
            rank=self.rank,
            state=self._circuit.state,
            in_flight=self._in_flight,
            concurrency=self._concurrency.limit,
            waiting_urgent=sum(not waiter.future.done() for waiter in self._urgent),
            waiting_replay=sum(not waiter.future.done() for waiter in self._replay),
            busy_s=self._busy_s + (now_s - self._busy_since_s if self._in_flight else 0.0),
            held_s=max(0.0, self._held_until_s - now_s),
            tokens=self._counted,
            outcomes=dict(self._outcomes),
            last_error=self._last_error,
            refused=self.refused,
        )

    async def close(self) -> None:
        """Who waits gets Refused; the embedder is closed."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self.look_again()
        await self.embedder.close()

    def _slow_down(self, turn: Turn, error: Transient) -> None:
        now_s = _now_s()
        throttled = isinstance(error, Throttled)
        self.trouble = error.message
        lowest = self._concurrency.limit == self._concurrency.least
        first = self._concurrency.refused(turn.ticket, self._in_flight, throttled=throttled)
        hold_s = error.retry_after_s or 0.0
        if throttled:
            self._circuit.answered(probe=turn.probe)
            if error.retry_after_s is None and lowest and first:  # nothing left to halve, and it does not say how long
                hold_s = min(_LONGEST_HOLD_S, _FIRST_HOLD_S * 2.0 ** min(self._holds, 16))
                self._holds += 1
            opened = False
        else:
            opened = self._circuit.failed(now_s, probe=turn.probe, retry_after_s=error.retry_after_s)
        if hold_s > 0:
            self._held_until_s = max(self._held_until_s, now_s + hold_s)
        if opened or hold_s > 0:
            self.look_again()

    def _check_open(self) -> None:
        if self._closed:
            raise Refused(f"endpoint {self.name} is closed", next_step="start the build again")

    def _is_next(self, urgent: bool) -> bool:
        first = self._first()
        return first is None or (urgent and not first.urgent)

    def _first(self) -> Waiter | None:
        """Who goes next. Those who went elsewhere, or were cancelled, are dropped on the way."""
        for lane in (self._urgent, self._replay):
            while lane:
                waiter = next(iter(lane))
                if not waiter.future.done():
                    return waiter
                del lane[waiter]
        return None

    def _serve(self) -> None:
        """Give what is free to those who wait; set the timer if only time stands between. No lane overtakes."""
        while (waiter := self._first()) is not None:
            turn = self._begin(waiter.tokens, waiter.urgent)
            if turn is None:
                self._wake_in(self._delay_s(waiter.tokens, waiter.urgent, _now_s()))
                return
            waiter.wake(turn)

    def _wake_in(self, delay_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if delay_s < math.inf and not self._closed:
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._serve)

    def _delay_s(self, tokens: int, urgent: bool, now_s: float) -> float:
        """Until a turn may begin; infinite when that takes an event, not time."""
        if not self.has_slot(urgent) or self.refused is not None:
            return math.inf
        held_s = self._held_until_s - now_s
        return max(
            held_s if held_s > _AT_ONCE_S else 0.0,
            self._circuit.wait_s(now_s),
            self._requests.delay_s(1, now_s) if self._requests is not None else 0.0,
            self._tokens.delay_s(tokens, now_s) if self._tokens is not None else 0.0,
        )

    def _begin(self, tokens: int, urgent: bool) -> Turn | None:
        now_s = _now_s()
        if self._delay_s(tokens, urgent, now_s) > 0:
            return None
        if self._requests is not None:
            self._requests.take(1, now_s)
        if self._tokens is not None:
            self._tokens.take(tokens, now_s)
        if not self._in_flight:
            self._busy_since_s = now_s
        self._in_flight += 1
        self._replay_in_flight += not urgent
        alike = self._in_flight - self._replay_in_flight if urgent else self._replay_in_flight
        yielding = self._share(now_s) < self._concurrency.limit - 1
        ticket = self._concurrency.begin(self._in_flight, alike, yielding=yielding)
        if urgent:
            self._live.begun(now_s)
        return Turn(self, tokens, urgent, ticket, self._circuit.begin())

    def _end(self, turn: Turn, outcome: str, error: BaseException | None = None) -> None:
        self._in_flight -= 1
        self._replay_in_flight -= not turn.urgent
        if turn.urgent:
            self._live.ended(_now_s())
        if not self._in_flight:
            self._busy_s += _now_s() - self._busy_since_s
        self._outcomes[outcome] += 1
        if error is not None:
            self._last_error = type(error).__name__


async def queue(endpoints: Sequence[Endpoint], tokens: int, urgent: bool) -> Turn | None:
    """Wait in all their queues for the first turn that any of them has; None: something changed, look again."""
    waiter = Waiter(tokens, urgent)
    try:
        for endpoint in endpoints:
            endpoint.join(waiter)
        return await waiter.future
    except BaseException:
        turn = waiter.future.result() if waiter.future.done() and not waiter.future.cancelled() else None
        if turn is not None:  # it came in the same moment
            turn.endpoint.give_back(turn)
        raise
    finally:
        for endpoint in endpoints:
            endpoint.leave(waiter)


def away(endpoints: Sequence[Endpoint], wait_s: float) -> Unreachable:
    """What is raised when none of them may be asked for `wait_s`."""
    names = ", ".join(endpoint.name for endpoint in endpoints)
    said = next((endpoint.trouble for endpoint in endpoints if endpoint.trouble), "it does not answer")
    return Unreachable(
        (f"every endpoint of {names} is away" if len(endpoints) > 1 else f"endpoint {names} is away") + f": {said}",
        next_step="look at the endpoint's own log; start it, or correct its address in the configuration",
        retry_after_s=wait_s,
    )


def _padded(tokens: int, texts: Sequence[str]) -> float:
    """Tokens that a GPU works on: each text is as long as the longest beside it."""
    lengths = [len(text) for text in texts]
    return tokens * len(lengths) * max(lengths) / max(1, sum(lengths))


def _now_s() -> float:
    return asyncio.get_running_loop().time()
