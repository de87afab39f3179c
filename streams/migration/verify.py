"""`verify` with everything it needs from outside: the dead letters, the space and the group of a build.

The comparison itself is in `sweep`; this only gathers its input.
"""

from __future__ import annotations

from collections.abc import Callable

from connectors.errors import Terminal
from streams.carrying import serves_beside
from streams.config import schema_of
from streams.migration.sweep import DeadLetterKey, Sweep, sweep
from streams.state import BuildState
from streams.wiring import Outside


async def verify(
    out: Outside,
    build: BuildState,
    serving: BuildState | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Sweep:
    """Sweep one build. `serving`: what serves its collection, itself or another: beside searches, the sweep takes no
    more of the store's time than the configuration grants it.

    Raises as `sweep` does, and NotFound when the collection is not configured here.
    """
    beside = None
    if serving is not None and serves_beside(build, serving) and await _is_there(out, serving.space):
        beside = out.store.space(serving.space)  # one that is gone has nothing to lose
    collection = out.settings.collection(build.collection)
    return await sweep(
        build,
        schema_of(collection),
        out.kafka,
        out.store.space(build.space),
        out.names.group(build.collection, build.version, build.epoch, "live"),
        await held_positions(out, build),
        say,
        beside,
        collection.cutover.sweep_share if serving is not None else 1.0,
    )


async def _is_there(out: Outside, space: str) -> bool:
    try:
        return await out.store.description(space) is not None
    except Terminal:  # the sweep will say what is wrong with it
        return True


async def held_positions(out: Outside, build: BuildState) -> set[DeadLetterKey]:
    """Where the dead letters of this build came from."""
    found: set[DeadLetterKey] = set()
    async for headers, _ in out.dead_letters():
        named = (headers.get("collection"), headers.get("version"), headers.get("epoch"))
        if named == (build.collection, build.version, str(build.epoch)):
            found.add(DeadLetterKey(int(headers["partition"]), int(headers["offset"])))
    return found
