"""What requests are answered from: the views, the router, and the way to the controller.

Opened and kept up by streams.api.server; tests make one over connectors in memory.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Annotated

from fastapi import Depends, Request

from connectors.errors import AccessDenied, CrossfadeError, IdentityChanged, NotFound, Transient, Unreachable
from connectors.protocols import JSON, Log, RecordSink, VectorStore
from streams.api.problems import Answered, problem
from streams.api.repeats import Repeats
from streams.config import Settings
from streams.declared import Declarations
from streams.migration.sweep import Sweep
from streams.search.router import Router
from streams.state import BuildState, TopicNames
from streams.views import ProgressView, StateView

log = logging.getLogger(__name__)

_REASONS = (
    (NotFound, "it is not there"),
    (AccessDenied, "it turns Crossfade away"),
    (IdentityChanged, "it is not what it was"),
    (Transient, "it does not answer"),
)


def reason_of(error: CrossfadeError) -> str:
    """For whoever asks after the health, who needs no key: an error's own words may name hosts."""
    found = next((said for kind, said in _REASONS if isinstance(error, kind)), "it cannot be used")
    return f"{found}; the log of `crossfade serve` says more"


@dataclass(slots=True)
class Health:
    """What is away, by name, with the reason; kept by whoever looks after it. All of it is for everybody to see; the
    log has an error's own words."""

    away: dict[str, str] = field(default_factory=dict)
    since_ms: dict[str, int] = field(default_factory=dict)

    def note(self, name: str, error: CrossfadeError | None, now_ms: int) -> None:
        """None: it answers."""
        if error is None:
            if self.away.pop(name, None) is not None:
                log.info("%s is there again", name)
            self.since_ms.pop(name, None)
            return
        if self.away.get(name) != (reason := reason_of(error)):
            log.warning("%s is away: %s", name, error.message)
        self.away[name] = reason
        self.since_ms.setdefault(name, now_ms)


@dataclass(slots=True)
class Backend:
    """`settings`: the newest of the file; `sweep` compares a build with the log, and with what serves; `plan`: what a
    version will take, as JSON; `examining`: verifications, evaluations and plans at once, each of which reads a whole
    topic or space; `journal`: readings of it at once."""

    settings: Settings
    names: TopicNames
    state: StateView
    progress: ProgressView
    kafka: Log
    sink: RecordSink
    store: VectorStore
    router: Router
    sweep: Callable[[BuildState, BuildState | None], Awaitable[Sweep]]
    plan: Callable[[str, str, int | None], Awaitable[dict[str, JSON]]]
    wall_ms: Callable[[], int]
    health: Health = field(default_factory=Health)
    declarations: Declarations = field(default_factory=Declarations)
    repeats: Repeats = field(default_factory=Repeats)
    examining: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(2))
    journal: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(4))
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def current(self) -> Settings:
        """With the versions that were added over HTTP."""
        return self.declarations.merged(self.settings, self.state.collections)


@dataclass(slots=True)
class Outward:
    """What the router asks of the outside, as it is at each query."""

    store: VectorStore
    current: Callable[[], Settings]

    @property
    def settings(self) -> Settings:
        return self.current()


@dataclass(slots=True)
class Opened:
    """`backend` None: Kafka and Weaviate have not answered yet, for this reason (None: it has just been started)."""

    backend: Backend | None = None
    error: CrossfadeError | None = None


async def backend_of(request: Request) -> Backend:
    """A dependency. Raises Unreachable until everything was reached once."""
    opened: Opened = request.app.state.opened
    if opened.backend is None:
        reason, next_step = "it has just been started", "ask again in a second"
        if opened.error is not None:
            reason, next_step = opened.error.message, opened.error.next_step
        raise Unreachable(f"this process does not know the state yet: {reason}", next_step=next_step)
    return opened.backend


Back = Annotated[Backend, Depends(backend_of)]


@asynccontextmanager
async def one_of_few(room: asyncio.Semaphore, what: str, again_s: int) -> AsyncIterator[None]:
    """Raises Answered when there is no `room`: `what` is under way then, in words. Nobody queues for it."""
    if room.locked():
        raise Answered(
            problem(
                HTTPStatus.TOO_MANY_REQUESTS,
                f"{what} are under way here already",
                "ask again when one of them is done",
                kind="busy",
            ),
            {"Retry-After": str(again_s)},
        )
    async with room:
        yield


@asynccontextmanager
async def in_time(backend: Backend, who: str) -> AsyncIterator[None]:
    """Raises Answered when `who` has not answered after serve.timeout_s."""
    timeout_s = backend.settings.serve.timeout_s
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError as error:
        raise Answered(
            problem(
                HTTPStatus.GATEWAY_TIMEOUT,
                f"{who} did not answer within {timeout_s:g} s",
                "look at /readyz for what is away",
                kind="timeout",
            )
        ) from error
