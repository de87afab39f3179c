"""Documents of several chunks: a late write of any chunk is put right, though only chunk 0 is read back.

The random histories found it; these are the shortest ones that show it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

from streams.build import Limits
from streams.documents import object_id
from tests.merge import virtual_time
from tests.merge.world import World

LIMITS = Limits(batch=8, window=16, read_records=8, write_deadline_s=2.0, settle_s=4.0)


def play(story: Callable[[World], Awaitable[None]]) -> World:
    """Run a story on documents that split at bars, to a settled end, and compare with the oracle."""

    async def main() -> World:
        world = World(1, partitions=1, chunks=True, limits=LIMITS)
        await world.start_build()
        world.start_worker("a")
        await world.until_settled()
        await story(world)
        await world.until_settled()
        await world.check()
        return world

    random.seed(1)
    return virtual_time.run(main())


async def a_late_write_of_the_other_chunks(world: World) -> None:
    """The first upsert of `one|two|three`, of chunks 1 and 2, lands after whatever is produced next."""
    network = world.workers["a"].network
    network.land_after_s = 3.5
    fates = iter(["late"])

    async def fate(verb: str, _: object) -> str | None:
        return next(fates, None) if verb == "upsert" else None

    network.on_write = fate  # type: ignore[assignment]  # the one fate is an Effect
    world.produce("k", {"text": "one|two|three"})
    await asyncio.sleep(1.5)
    assert world.store.late


def test_a_deleted_document_keeps_no_chunk_that_lands_late() -> None:
    async def story(world: World) -> None:
        await a_late_write_of_the_other_chunks(world)
        world.produce("k", None)

    assert play(story).embeddings == 3


def test_a_shorter_form_keeps_no_chunk_of_the_longer_one() -> None:
    async def story(world: World) -> None:
        await a_late_write_of_the_other_chunks(world)
        world.produce("k", {"text": "four"})

    assert play(story).embeddings == 4, "the vector it has is kept"


def test_a_chunk_of_the_older_form_does_not_stay() -> None:
    async def story(world: World) -> None:
        await a_late_write_of_the_other_chunks(world)
        world.produce("k", {"text": "four|five|six"})

    play(story)


def test_a_repair_mends_a_chunk_that_is_missing() -> None:
    async def story(world: World) -> None:
        world.produce("k", {"text": "one|two"})
        await world.until_settled()
        await world.store.space(world.state.space).delete([object_id("docs", "k", 1)])
        world.ask("repair")
        await asyncio.sleep(10.0)

    play(story)
