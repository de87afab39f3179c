"""What a verb works with: the state it may change, the outside it may act on, and what the workers report.

Values and ports only; the controller makes it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from connectors.errors import Refused
from connectors.protocols import Embedder, Log, VectorStore
from streams.config import Settings
from streams.config_embedders import Version
from streams.config_operation import Hook, Routes
from streams.migration.gate import GateResult, Swept
from streams.migration.sweep import Sweep
from streams.progress import counted
from streams.state import BuildState, CollectionState, Command, TopicNames
from streams.state_store import StateStore
from streams.versions import next_command
from streams.views import ProgressView


@dataclass(frozen=True, slots=True)
class Asked:
    """One query's answer: the space it came from, how many documents, the marks (`cf_space`) stored with them."""

    space: str
    found: int
    marks: frozenset[str]
    took_ms: float


@dataclass(frozen=True, slots=True)
class Outside:
    """What the controller acts on. `settings` reads the configuration anew; `make_embedders`: of each endpoint, with
    its name; `sweep` compares a build with the log, and with what serves; `judge` is the gate, of a build against what
    serves (None: nothing yet); `ask` puts one query to a build's space with the build's own encoder; `queries`: those
    of a collection's golden set, none without one; `file_exists` on this machine, also when nobody can tell; `hooks`
    and `routes` of a collection, as the configuration was last read (None: it does not know the collection)."""

    settings: Callable[[], Settings]
    kafka: Log
    store: VectorStore
    make_embedders: Callable[[Version], list[tuple[str, Embedder]]]
    sweep: Callable[[BuildState, BuildState | None], Awaitable[Sweep]]
    wall_ms: Callable[[], int]
    judge: Callable[[BuildState, BuildState | None, Swept], Awaitable[GateResult]]
    ask: Callable[[BuildState, str], Awaitable[Asked]]
    queries: Callable[[str], Awaitable[Sequence[str]]]
    file_exists: Callable[[str], Awaitable[bool]]
    hooks: Callable[[str], Sequence[Hook]] = lambda _: ()
    routes: Callable[[str], Routes | None] = lambda _: None


@dataclass(frozen=True, slots=True)
class Amendment:
    """A collection's state, and `builds` of it, as they shall be, and what the journal says of that. `told`: a change
    that hooks have heard of."""

    state: CollectionState
    command: Command
    event: str
    message: str
    data: dict[str, JsonValue]
    told: str = ""
    builds: tuple[BuildState, ...] = ()


@dataclass(frozen=True, slots=True)
class Desk:
    """See the module."""

    names: TopicNames
    out: Outside
    state: StateStore
    progress: ProgressView


class Shown(Refused):
    """A refusal that shows what was looked at: `data` goes into the outcome and the journal."""

    def __init__(self, message: str, *, next_step: str, data: dict[str, JsonValue]) -> None:
        super().__init__(message, next_step=next_step)
        self.data = data


class NotYet(Refused):
    """A refusal that time alone may end: whoever can wait asks again."""


def spent(desk: Desk, build: BuildState) -> dict[str, JsonValue]:
    """For the journal: what the build's embeddings came to, as its workers last reported."""
    counters = counted(desk.progress.partitions(build))
    return {"tokens": counters.tokens, "cost_usd": counters.cost_usd}


def must_be_active(build: BuildState) -> None:
    """Raises Refused, with the legal command, when nothing writes this build."""
    if not build.active:
        raise Refused(
            f"{build.key} is {build.stage}",
            next_step=next_command(build.stage, collection=build.collection, version=build.version),
        )
