"""`verify` with everything it needs from outside: the dead letters, the space and the group of a build.

The comparison itself is in `sweep`; this only gathers its input.
"""

from __future__ import annotations

from collections.abc import Callable

from streams.config import schema_of
from streams.migration.sweep import DeadLetterKey, Sweep, sweep
from streams.state import BuildState
from streams.wiring import Outside


async def verify(out: Outside, build: BuildState, say: Callable[[str], None] = lambda _: None) -> Sweep:
    """Sweep one build. Raises as `sweep` does, and NotFound when the collection is not configured here."""
    return await sweep(
        build,
        schema_of(out.settings.collection(build.collection)),
        out.kafka,
        out.store.space(build.space),
        out.names.group(build.collection, build.version, build.epoch, "live"),
        await held_positions(out, build),
        say,
    )


async def held_positions(out: Outside, build: BuildState) -> set[DeadLetterKey]:
    """Where the dead letters of this build came from."""
    found: set[DeadLetterKey] = set()
    async for headers, _ in out.dead_letters():
        named = (headers.get("collection"), headers.get("version"), headers.get("epoch"))
        if named == (build.collection, build.version, str(build.epoch)):
            found.add(DeadLetterKey(int(headers["partition"]), int(headers["offset"])))
    return found
