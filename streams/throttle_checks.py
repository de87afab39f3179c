"""The looks behind the throttles: each with its own time-out, beside each other, while a replay is going.

A look that hangs or fails ends as a reading that says so; it must never hold up another one, nor the build.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from connectors.aside import Aside
from connectors.embedders.endpoint import EndpointStatus
from connectors.errors import CrossfadeError
from connectors.http_get import HttpGet
from connectors.protocols import Capacity
from streams.config_operation import Throttle
from streams.throttles import Held, Kind, Reading, Slowed, Verdict, decide, unseen

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
CAPACITY_EVERY_S = 5.0
LOOK_S = 2.0
CAPACITY_S = 10.0
ERRORS_OF_S = 30.0
FEWEST_REQUESTS = 5
_FAILED = ("failed", "broken", "refused")  # "throttled" is not: to find its limit is how an endpoint is used

CapacityLook = Callable[[], Awaitable[Capacity]]


async def unknown_capacity() -> Capacity:
    """Where nobody says how full the store is."""
    return Capacity(troubles=("nobody says how full the store is",))


class ErrorShare:
    """The share of requests that failed in the last ERRORS_OF_S, from counts that only grow."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int, int]] = deque()

    def observe(self, endpoints: Iterable[EndpointStatus], now_s: float) -> float:
        """0 while there are too few requests to tell. Requests refused for their content have been answered."""
        asked = failed = 0
        for endpoint in endpoints:
            asked += sum(endpoint.outcomes.get(name, 0) for name in ("ok", "rejected", *_FAILED))
            failed += sum(endpoint.outcomes.get(name, 0) for name in _FAILED)
        self._seen.append((now_s, asked, failed))
        while len(self._seen) > 1 and now_s - self._seen[0][0] > ERRORS_OF_S:
            self._seen.popleft()
        _, asked_before, failed_before = self._seen[0]
        asked, failed = asked - asked_before, failed - failed_before
        return failed / asked if asked >= FEWEST_REQUESTS else 0.0


@dataclass(frozen=True, slots=True)
class Gauges:
    """What this process knows by itself. `live_lag`: events behind; `latency_ms`: 95th percentile of the store's."""

    live_lag: Callable[[], float]
    latency_ms: Callable[[], float]
    endpoints: Callable[[], Iterable[EndpointStatus]]
    capacity: CapacityLook = unknown_capacity


@dataclass(slots=True)
class ThrottleChecks:
    """Of one build in one worker. `settings`: the bounds in force now. `wanted`: whether a replay is going; without
    one nothing outside is asked, and nothing holds."""

    name: str
    settings: Callable[[], Throttle]
    gauges: Gauges
    wanted: Callable[[], bool]
    readings: dict[Kind, Reading] = field(default_factory=dict)
    verdict: Verdict = field(default_factory=Verdict)
    _file: Aside[bool] = field(default_factory=lambda: Aside("throttle file"))
    _errors: ErrorShare = field(default_factory=ErrorShare)
    _http: HttpGet | None = None
    _http_url: str | None = None

    @property
    def held(self) -> str | None:
        """Why no replayed document may go on now."""
        decision = self._now().decision
        return decision.reason if isinstance(decision, Held) else None

    @property
    def slowed(self) -> float:
        """The share of its speed at which the replay may go, 0 to 1."""
        decision = self.verdict.decision
        return decision.factor if isinstance(decision, Slowed) else 1.0

    @property
    def reason(self) -> str:
        """For `status`: what holds or slows, else what could not be read; empty when there is nothing to say."""
        verdict = self._now()
        return verdict.decision.reason if verdict.decision is not None else verdict.unread

    async def run(self) -> None:
        """Until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                for look in (self._look_inside, self._look_at_file, self._look_at_http, self._look_at_capacity):
                    group.create_task(self._again_and_again(look))
        finally:
            if self._http is not None:
                await self._http.close()

    def _now(self) -> Verdict:
        """Decided anew while the settings have something that nobody has looked at yet."""
        if self.wanted() and unseen(self.settings(), self.readings):
            self._decide()
        return self.verdict

    def _decide(self) -> None:
        if not self.wanted():
            self.verdict = Verdict()
            return
        before = isinstance(self.verdict.decision, Held)
        self.verdict = decide(self.settings(), self.readings, _now_s(), datetime.now(UTC), self.verdict)
        decision = self.verdict.decision
        if isinstance(decision, Held) != before:
            log.info(
                "%s: the replay %s", self.name, f"is {decision.reason}" if isinstance(decision, Held) else "goes on"
            )

    async def _again_and_again(self, look: Callable[[Throttle], Awaitable[None]]) -> None:
        while True:
            if self.wanted():
                try:
                    await look(self.settings())
                except Exception as error:
                    log.error("%s: %s failed", self.name, look.__name__, exc_info=error)
            self._decide()
            await asyncio.sleep(LOOK_EVERY_S)

    async def _look_inside(self, settings: Throttle) -> None:
        gauges, now_s = self.gauges, _now_s()
        self.readings["max_live_lag"] = Reading(gauges.live_lag(), now_s)
        self.readings["max_weaviate_latency_ms"] = Reading(gauges.latency_ms(), now_s)
        self.readings["max_endpoint_errors"] = Reading(self._errors.observe(gauges.endpoints(), now_s), now_s)

    async def _look_at_file(self, settings: Throttle) -> None:
        if (path := settings.file) is None:
            self.readings.pop("file", None)
            return
        try:
            there = await self._file.run(lambda: _exists(path), LOOK_S)
            self.readings["file"] = Reading(float(there), _now_s())
        except TimeoutError:
            self.readings["file"] = Reading(None, _now_s(), f"the file {path} is not answered for within {LOOK_S:g} s")
        except OSError as error:
            self.readings["file"] = Reading(None, _now_s(), f"the file {path} cannot be looked at: {error.strerror}")

    async def _look_at_http(self, settings: Throttle) -> None:
        url = settings.http
        try:
            if url != self._http_url:
                self.readings.pop("http", None)
                if self._http is not None:
                    await self._http.close()
                self._http_url, self._http = url, HttpGet(url, url, timeout_s=LOOK_S) if url is not None else None
            if self._http is None:
                return
            status = (await self._http.get()).status
            self.readings["http"] = Reading(float(not 200 <= status < 300), _now_s(), said=str(status))
        except CrossfadeError as error:
            self.readings["http"] = Reading(None, _now_s(), error.message)

    async def _look_at_capacity(self, settings: Throttle) -> None:
        if settings.max_disk is None and settings.max_memory is None:
            self.readings.pop("max_disk", None)
            self.readings.pop("max_memory", None)
            return
        last = self.readings.get("max_disk")
        if last is not None and _now_s() - last.at_s < CAPACITY_EVERY_S:
            return
        try:
            async with asyncio.timeout(CAPACITY_S):
                found = await self.gauges.capacity()
        except TimeoutError:
            found = Capacity(troubles=(f"no answer within {CAPACITY_S:g} s",))
        now_s = _now_s()
        trouble = "; ".join(found.troubles) or "nobody says"
        self.readings["max_disk"] = Reading(found.disk_used, now_s, trouble)
        self.readings["max_memory"] = Reading(found.memory_used, now_s, trouble)


def _exists(path: Path) -> bool:
    """Raises OSError where nobody can tell: `Path.exists` would say no."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _now_s() -> float:
    return asyncio.get_running_loop().time()
