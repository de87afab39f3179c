"""Work beside each other: all at once, or so many at a time; what fails ends the rest.

It decides nothing, and leaves no task behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


async def together(works: Iterable[Awaitable[None]]) -> None:
    """All at once; the first that fails ends the others, and is raised itself rather than in a group."""
    tasks = [asyncio.ensure_future(work) for work in works]
    if not tasks:
        return
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def in_turns(items: Iterable[T], work: Callable[[T], Awaitable[None]], at_once: int) -> None:
    """`work` on each of the items in their order, `at_once` of them at a time. Raises as `together`."""
    waiting = iter(items)

    async def take() -> None:
        for item in waiting:
            await work(item)

    await together(take() for _ in range(at_once))
