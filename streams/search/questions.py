"""What the controller asks of spaces: the gate's golden queries, the proof after a cutover, the watch that follows.

Each query goes through the router, so it meets vectors of its own model only. Nothing is decided here.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence

from connectors import reserved
from connectors.errors import AccessDenied, ConfigurationError, Transient
from connectors.protocols import Space
from streams.config import Settings
from streams.migration.evaluate import Reply, Scored
from streams.migration.gate import GateResult, Health, Swept, judge
from streams.migration.golden import GoldenSet, load_golden
from streams.migration.judging import Ask, holds_of, quality_of
from streams.progress import combine
from streams.search.router import Router
from streams.search.tallies import shadow_of
from streams.state import BuildState
from streams.verbs.desk import Asked
from streams.views import ProgressView, StateView
from streams.wiring import Outside, wall_ms

DEPTH = 10


class Questions:
    """Over the worker's own views. `settings`: as the configuration says now, for whoever has just changed the gate and
    asks at once. `close` when done."""

    def __init__(
        self, out: Outside, state: StateView, progress: ProgressView, settings: Callable[[], Settings]
    ) -> None:
        self._out = out
        self._settings = settings
        self._progress = progress
        self._router = Router(out, state)

    async def judge(self, build: BuildState, serving: BuildState | None, swept: Swept) -> GateResult:
        """The gate, with the sweep that was just made. Raises ConfigurationError for a golden set that cannot be
        used, and what the router raises."""
        collection = build.collection
        gate = self._settings().collection(collection).gate
        space = self._out.store.space(build.space)
        spaces = [space] if serving is None else [space, self._out.store.space(serving.space)]
        golden = await self._golden(collection)
        quality = await quality_of(
            None if serving is None else ranked(self._router, collection, serving.version),
            ranked(self._router, collection, build.version),
            golden,
            gate,
            versions=("nothing" if serving is None else serving.version, build.version),
            holds=holds_of(collection, *spaces),
        )
        return judge(gate, quality, health_of(self._progress, build, await index_queue_of(space), swept, serving))

    async def ask(self, build: BuildState, query: str) -> Asked:
        """One query to this build's space. Raises as the router does."""
        answer = await self._router.search(build.collection, query, DEPTH, build.version)
        marks = frozenset(str(hit.properties.get(reserved.SPACE)) for hit in answer.hits)
        return Asked(answer.space, len(answer.hits), marks, answer.took_ms)

    async def queries(self, collection: str) -> Sequence[str]:
        """The golden set's, in its order; none without one. Raises ConfigurationError when it cannot be used."""
        golden = await self._golden(collection)
        return [] if golden is None else [query.query for query in golden.queries]

    async def _golden(self, collection: str) -> GoldenSet | None:
        """As this process finds it: whoever asked for a cutover may sit at a machine that has the file."""
        path = self._settings().collection(collection).gate.golden
        try:
            return None if path is None else await load_golden(path)
        except ConfigurationError as error:
            raise ConfigurationError(
                f"the worker that judges, on {socket.gethostname()}, cannot use gate.golden: {error.message}",
                next_step=f"{error.next_step}; every worker needs it, at the place its configuration names",
            ) from error

    async def close(self) -> None:
        await self._router.close()


async def index_queue_of(space: Space) -> int | None:
    """Vectors that a search does not find yet; None where it is not known, which the gate says: the nodes API may not
    answer, or the key may have no rights for it."""
    try:
        return await space.indexing_queue()
    except (Transient, AccessDenied):
        return None


def health_of(
    progress: ProgressView,
    build: BuildState,
    queue: int | None,
    swept: Swept | None = None,
    serving: BuildState | None = None,
) -> Health:
    """As the partitions' owners have last reported it, and servers of queries that they asked of `serving` and of it.
    `queue`: of the space's index, None where it is not known."""
    records, now_ms = progress.partitions(build), wall_ms()
    whole = combine(build.version, records, build.partitions, now_ms)
    silent = build.partitions - sum(record.is_fresh(now_ms) for record in records)
    shadow = None
    if serving is not None:
        shadow, _ = shadow_of(progress.searches(build.collection), serving.space, build.space)
    return Health.of(whole, silent, queue, swept, shadow)


def ranked(router: Router, collection: str, version: str) -> Ask:
    """Asks the space of one version, with that version's encoder. It raises as the router does."""

    async def ask(query: str, k: int) -> Reply:
        answer = await router.search(collection, query, k, version)
        return Reply(tuple(Scored(hit.doc_id, hit.score) for hit in answer.hits), answer.took_ms)

    return ask
