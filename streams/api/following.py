"""A view that is followed for as long as the process lasts, whatever its consumer ends with.

What it knew last must stand until all of its topic was read again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from connectors.errors import CrossfadeError, IdentityChanged
from streams.api.backend import Health
from streams.views import Tail, View

OPEN_AGAIN_S = 2.0


class Following:
    """`run` in a task of its own, once the view was loaded. `name`: in health, while what is known may be old; `tail`
    makes another consumer of the same topic."""

    def __init__(
        self, name: str, view: View, tail: Callable[[], Tail], health: Health, wall_ms: Callable[[], int]
    ) -> None:
        self._name = name
        self._view = view
        self._tail = tail
        self._health = health
        self._wall_ms = wall_ms
        self._another: asyncio.Queue[IdentityChanged] = asyncio.Queue()

    def replace(self, why: IdentityChanged) -> None:
        """The topic is another one than the one that is followed: a consumer may not notice by itself."""
        self._another.put_nowait(why)

    async def run(self) -> None:
        """For ever. Raises what is a defect, in a group."""
        while True:
            try:
                async with asyncio.TaskGroup() as both:
                    both.create_task(self._view.run())
                    both.create_task(self._until_replaced())
            except* CrossfadeError as ended:
                why = ended.exceptions[0]
                assert isinstance(why, CrossfadeError)
                await self._open_again(why)

    async def _until_replaced(self) -> None:
        raise await self._another.get()

    async def _open_again(self, why: CrossfadeError) -> None:
        while True:
            self._health.note(self._name, why, self._wall_ms())
            try:
                await self._view.again(self._tail())
            except CrossfadeError as error:
                why = error
                await asyncio.sleep(OPEN_AGAIN_S)
                continue
            self._health.note(self._name, None, self._wall_ms())
            return
