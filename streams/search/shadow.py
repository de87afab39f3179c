"""A sampled share of the live queries, asked of the version that comes as well: in the background, with bounded load.

It must never delay, change or fail an answer, nor keep a query longer than it takes to ask it, unless a sample for a
person to judge is configured.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence

from connectors.errors import CrossfadeError
from streams.config_operation import Shadow
from streams.search.agreement import overlap, rank_biased_overlap
from streams.search.sampled import Samples
from streams.search.tallies import ShadowTally
from streams.state import BuildState

Shadowed = tuple[Sequence[str], float]
"""The ids found, best first, and how long that took in ms."""


class Shadows:
    """Of one process. `close` ends what is under way. `chance`: 0 up to 1, as random.random; `samples`: for a person to
    judge."""

    def __init__(self, chance: Callable[[], float] = random.random, samples: Samples | None = None) -> None:
        self._chance = chance
        self._under_way: dict[str, set[asyncio.Task[None]]] = {}
        self._tallies: dict[str, ShadowTally] = {}
        self._samples = samples or Samples()

    def offer(
        self,
        settings: Shadow,
        live: BuildState,
        coming: BuildState,
        found: Shadowed,
        ask: Callable[[], Awaitable[Shadowed]],
        query: str | None = None,
    ) -> None:
        """One query that `live` has answered with `found`; `ask` puts it to `coming`, if it is in the sample. `query`:
        its text, for the sample to judge; None where its answers cannot be judged by the text alone."""
        if settings.share <= 0 or self._chance() >= settings.share:
            return
        tally = self._tally(live, coming, settings.k)
        tasks = self._under_way.setdefault(live.collection, set())
        if len(tasks) >= settings.at_once:
            tally.dropped += 1
            return
        tally.asked += 1
        task = asyncio.create_task(self._ask(tally, settings, found, ask, query))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def tallies(self) -> dict[str, ShadowTally]:
        """By collection: of the pair of versions that was asked last."""
        return dict(self._tallies)

    async def settle(self) -> None:
        """Return when nothing is under way."""
        while tasks := [task for some in self._under_way.values() for task in some]:
            await asyncio.wait(tasks)

    async def close(self) -> None:
        tasks = [task for some in self._under_way.values() for task in some]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _tally(self, live: BuildState, coming: BuildState, k: int) -> ShadowTally:
        """Begun anew when another pair of builds is compared, or to another depth."""
        kept = self._tallies.get(live.collection)
        if kept is None or not kept.is_of(live.space, coming.space, k):
            kept = self._tallies[live.collection] = ShadowTally(
                live=live.version, live_space=live.space, shadow=coming.version, shadow_space=coming.space, k=k
            )
        return kept

    async def _ask(
        self,
        tally: ShadowTally,
        settings: Shadow,
        found: Shadowed,
        ask: Callable[[], Awaitable[Shadowed]],
        query: str | None,
    ) -> None:
        try:
            ids, took_ms = await ask()
        except CrossfadeError:
            tally.failed += 1
            return
        live_ids, live_took_ms = found
        k = settings.k
        tally.add(
            overlap(live_ids, ids, k),
            rank_biased_overlap(live_ids[:k], ids[:k]),
            (len(live_ids), live_took_ms),
            (len(ids), took_ms),
        )
        if settings.sample is not None and query is not None:
            await self._samples.keep(settings.sample, query, live_ids[:k], ids[:k])
