"""An event loop whose time jumps to the next timer when there is nothing to do: waiting costs nothing.

It must never touch the real clock: what runs in it repeats exactly.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Stuck(AssertionError):
    """Nothing is ready and no timer is set: every task waits for another."""


class _Jump(selectors.SelectSelector):
    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Stuck("every task waits for another, and no timer is set")
        if timeout > 0:
            self.now_s += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """Starts at 0 s. Knows no sockets, threads or signals."""

    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.now_s


def run(main: Coroutine[Any, Any, T]) -> T:
    """As asyncio.run, in virtual time."""
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(main)
    finally:
        loop.run_until_complete(_cancel_all())
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


async def _cancel_all() -> None:
    """Again where it must be: a cancel that meets a failure is lost in a task group of this Python."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for _ in range(3):
        for task in left:
            task.cancel()
        if left:
            _, left = await asyncio.wait(left, timeout=60.0)
    if left:
        raise Stuck(f"{len(left)} tasks do not end")
