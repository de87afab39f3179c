"""Several endpoints of one model as one: by rank, weight and health, each call once at each of them at most.

Must never use an endpoint that was refused, nor wait at one that is away while another has room.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import NamedTuple

from connectors.embedders.endpoint import Endpoint, EndpointStatus, Turn, away, queue
from connectors.errors import (
    AccessDenied,
    ConfigurationError,
    NotFound,
    Throttled,
    Transient,
    WrongModel,
)
from connectors.protocols import ModelFacts, Vectors

log = logging.getLogger(__name__)


class Served(NamedTuple):
    """`vectors`: float32[n, dim]; `tokens`: as the endpoint `counted` them, else as estimated; `price`: USD for a
    million of them at the endpoint that answered."""

    vectors: Vectors
    tokens: int
    counted: bool
    price: float


class Withheld(Exception):
    """Its turn came, and it may not go now: nothing was sent."""


class EndpointPool:
    """The lowest rank that is not away serves; within it, endpoints with room take calls by their weight.

    An endpoint with `overflow` also serves when those of the lower ranks have no free slot. One with `lanes` serves
    calls that name one of them, and one with the lane "replay" every tier of it; a call that names none goes to those
    without `lanes`, or to any if there are none.
    """

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        names = [endpoint.name for endpoint in endpoints]
        if not names or len(set(names)) < len(names):
            raise ConfigurationError(
                f"endpoints are named {', '.join(names)}" if names else "a version without endpoints",
                next_step="give the version at least one endpoint, and each a name of its own",
            )
        self._endpoints = sorted(endpoints, key=lambda endpoint: endpoint.rank)  # stable: as configured
        self._facts_of = endpoints[0]
        self._turns = dict.fromkeys(names, 0.0)

    @property
    def max_batch(self) -> int:
        """The smallest of its endpoints': any of them may be asked."""
        return min(endpoint.embedder.max_batch for endpoint in self._endpoints)

    @property
    def most_in_flight(self) -> int:
        """Requests at once, at all of its endpoints together, however good they prove to be."""
        return sum(endpoint.most_in_flight for endpoint in self._endpoints)

    @property
    def highest_price(self) -> float:
        """USD for a million tokens at the dearest of its endpoints: any of them may answer."""
        return max(endpoint.price for endpoint in self._endpoints)

    async def embed(
        self,
        texts: Sequence[str],
        *,
        tokens: int,
        urgent: bool,
        lane_or_tier: str | None = None,
        may_go: Callable[[], bool] = lambda: True,
    ) -> Served:
        """Waits for the first turn among the endpoints; what one of them cannot do now, another does at once.

        Raises Withheld when `may_go` says no once the turn has come; the Transient that may end soonest when none is
        left, ContentRejected of whichever answered, the Terminal of the last endpoint when all others were taken out or
        have failed, WrongModel when all were excluded.
        """
        allowed = self._allowed(lane_or_tier)
        failed: dict[str, Transient] = {}
        while True:
            turn = await self._turn(allowed, failed, tokens, urgent)
            if not may_go():
                turn.endpoint.give_back(turn)
                raise Withheld
            try:
                vectors, counted = await turn.endpoint.attempt(turn, texts)
                return Served(vectors, tokens if counted is None else counted, counted is not None, turn.endpoint.price)
            except Transient as error:
                failed[turn.endpoint.name] = error
            except (AccessDenied, WrongModel, NotFound, ConfigurationError) as error:
                others = [endpoint for endpoint in allowed if endpoint is not turn.endpoint]
                if all(endpoint.refused is not None for endpoint in others):
                    raise  # the last one stays in: the lane pauses, and asks it again once a person has acted
                self.exclude(turn.endpoint.name, f"{type(error).__name__}: {error.message}", error.next_step)

    def exclude(self, name: str, reason: str, next_step: str = "admit it again when that is mended") -> None:
        """Takes the endpoint out, also as the last one, until `admit`. Calls it is serving end as they end."""
        endpoint = self._named(name)
        if endpoint.refused is None:
            log.warning("endpoint %s is taken out: %s; next: %s", name, reason, next_step)
        endpoint.refused = reason
        self._look_again()

    def admit(self, name: str) -> None:
        """Back in, if it was out."""
        endpoint = self._named(name)
        if endpoint.refused is not None:
            log.info("endpoint %s is back in", name)
        endpoint.refused = None
        self._look_again()

    def status(self) -> tuple[EndpointStatus, ...]:
        """Of each endpoint, by rank."""
        return tuple(endpoint.status() for endpoint in self._endpoints)

    async def facts(self) -> ModelFacts:
        """What the first endpoint, as configured, says of itself. Raises as its embedder does."""
        return await self._facts_of.embedder.facts()

    async def close(self) -> None:
        """Closes all, also when closing one fails; then raises that."""
        ends = await asyncio.gather(*(endpoint.close() for endpoint in self._endpoints), return_exceptions=True)
        for end in ends:
            if end is not None:
                raise end

    async def _turn(self, allowed: list[Endpoint], failed: dict[str, Transient], tokens: int, urgent: bool) -> Turn:
        while True:
            left = [endpoint for endpoint in allowed if endpoint.refused is None and endpoint.name not in failed]
            there = [endpoint for endpoint in left if endpoint.away_s() <= 0]
            if not there:
                raise self._nobody(allowed, left, failed)
            turn, waited_for = self._pick(there, tokens, urgent)
            if turn is None:
                # a better one that is away may be back first: its queue waits for that too
                last = max(endpoint.rank for endpoint in waited_for)
                back = [endpoint for endpoint in left if endpoint not in there and endpoint.rank <= last]
                turn = await queue([*waited_for, *back], tokens, urgent)
            if turn is not None:
                return turn

    def _pick(self, there: list[Endpoint], tokens: int, urgent: bool) -> tuple[Turn | None, list[Endpoint]]:
        """A turn that can begin now, or the endpoints to wait for."""
        waited_for: list[Endpoint] = []
        for _, group in groupby(there, key=lambda endpoint: endpoint.rank):
            rank = list(group)
            if waited_for:
                if any(endpoint.has_slot(urgent) for endpoint in waited_for):
                    break
                rank = [endpoint for endpoint in rank if endpoint.overflow]
            ready = [endpoint for endpoint in rank if endpoint.ready(tokens, urgent)]
            if ready:
                return self._by_weight(ready).begin(tokens, urgent), []
            waited_for += rank
        return None, waited_for

    def _by_weight(self, ready: list[Endpoint]) -> Endpoint:
        """Smooth weighted round robin, as nginx does: each gains its weight, the first pays all of them."""
        for endpoint in ready:
            self._turns[endpoint.name] += endpoint.weight
        chosen = max(ready, key=lambda endpoint: self._turns[endpoint.name])
        self._turns[chosen.name] -= sum(endpoint.weight for endpoint in ready)
        return chosen

    def _nobody(self, allowed: list[Endpoint], left: list[Endpoint], failed: dict[str, Transient]) -> Exception:
        """What to raise when no endpoint can be asked now: the soonest that may pass, or why all are out."""
        troubles: list[Transient] = list(failed.values())
        if left:
            wait_s = min(endpoint.away_s() for endpoint in left)
            if all(endpoint.state != "closed" for endpoint in left):
                troubles.append(away(left, wait_s))
            else:
                names = ", ".join(endpoint.name for endpoint in left)
                said = next((endpoint.trouble for endpoint in left if endpoint.trouble), "it is busy")
                troubles.append(
                    Throttled(
                        f"{names} asked to be left alone for a while: {said}",
                        next_step="lower the version's concurrency or its requests and tokens a minute",
                        retry_after_s=wait_s,
                    )
                )
        if troubles:
            return min(troubles, key=lambda trouble: trouble.retry_after_s or 0.0)
        reasons = "; ".join(f"{endpoint.name}: {endpoint.refused}" for endpoint in allowed)
        return WrongModel(f"every endpoint is taken out: {reasons}", next_step="mend one and admit it again")

    def _allowed(self, lane: str | None) -> list[Endpoint]:
        unbound = [endpoint for endpoint in self._endpoints if endpoint.lanes is None]
        if lane is None:
            return unbound or self._endpoints
        lanes = {lane} if lane in ("live", "query") else {lane, "replay"}
        allowed = [endpoint for endpoint in self._endpoints if endpoint.lanes is None or lanes & endpoint.lanes]
        if not allowed:
            raise ConfigurationError(
                f"no endpoint serves {lane}", next_step=f"name {lane} in an endpoint's lanes, or leave lanes out of one"
            )
        return allowed

    def _named(self, name: str) -> Endpoint:
        for endpoint in self._endpoints:
            if endpoint.name == name:
                return endpoint
        raise NotFound(
            f"no endpoint is named {name}", next_step=f"one of {', '.join(sorted(self._turns))} can be meant"
        )

    def _look_again(self) -> None:
        for endpoint in self._endpoints:
            endpoint.look_again()
