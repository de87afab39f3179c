"""What work passes on its way to the endpoint: shut while a build is paused or throttled, and so many at once.

It never drops what is still wanted, and never interrupts a request that was sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Callable

from connectors.errors import Transient

LOOK_EVERY_S = 0.2


class Unwanted(Transient):
    """Nobody waits for it any more: its partition was revoked meanwhile. No trouble of anybody's."""


class Valve:
    """`shut`: whether nothing may pass now; `most`: how many at once, None for no limit. Both may change meanwhile."""

    def __init__(self, shut: Callable[[], bool] = lambda: False, most: Callable[[], int | None] = lambda: None) -> None:
        self._shut = shut
        self._most = most
        self._inside = 0
        self._left = asyncio.Event()

    def open(self, pressing: Callable[[], bool] = lambda: False) -> bool:
        """`pressing`: something that may not be held waits for this."""
        return not self._shut() or pressing()

    @contextlib.asynccontextmanager
    async def passed(self, wanted: Callable[[], bool], pressing: Callable[[], bool]) -> AsyncIterator[None]:
        """Around one request. Raises Unwanted when it had to wait and is not `wanted` any more."""
        while not self.open(pressing) or self._inside >= (self._most() or math.inf):
            if not wanted():
                raise Unwanted("nobody waits for it any more")
            self._left.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._left.wait()
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1
            self._left.set()
