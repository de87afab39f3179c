"""What a verb works with: the state it may change, the outside it may act on, and what the workers report.

Values and ports only; the controller makes it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from pydantic import JsonValue

from connectors.errors import Refused
from connectors.protocols import Embedder, Log, VectorStore
from streams.config import Settings
from streams.config_embedders import Version
from streams.migration.sweep import Sweep
from streams.progress import Counters
from streams.state import BuildState, TopicNames
from streams.state_store import StateStore
from streams.versions import next_command
from streams.views import ProgressView


@dataclass(frozen=True, slots=True)
class Outside:
    """What the controller acts on. `settings` reads the configuration anew; `make_embedders`: of each endpoint, with
    its name; `sweep` compares a build with the log."""

    settings: Callable[[], Settings]
    kafka: Log
    store: VectorStore
    make_embedders: Callable[[Version], list[tuple[str, Embedder]]]
    sweep: Callable[[BuildState], Awaitable[Sweep]]
    wall_ms: Callable[[], int]


@dataclass(frozen=True, slots=True)
class Desk:
    """See the module."""

    names: TopicNames
    out: Outside
    state: StateStore
    progress: ProgressView


def spent(desk: Desk, build: BuildState) -> dict[str, JsonValue]:
    """For the journal: what the build's embeddings came to, as its workers last reported."""
    counters = Counters()
    for record in desk.progress.partitions(build):
        counters.add(record.counted())
    return {"tokens": counters.tokens, "cost_usd": counters.cost_usd}


def must_be_active(build: BuildState) -> None:
    """Raises Refused, with the legal command, when nothing writes this build."""
    if not build.active:
        raise Refused(
            f"{build.key} is {build.stage}",
            next_step=next_command(build.stage, collection=build.collection, version=build.version),
        )
