"""Documents on their way into a space, so many calls at once: what waits for its turn goes together.

A store that is the limit is then asked seldom and for much, and one that keeps up at once. It must never change the
order in which documents came, nor hold back what could go.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from streams.ordering import Event, Outcome
from streams.space_writer import DocumentWrite

Outcomes = list[tuple[Event, Outcome]]


class WriteTurns:
    """`slots`: as many calls at once; whatever else uses the space may take turns at them. `store`: one call.
    `together`: objects of one, at most, but for a caller who has more."""

    def __init__(
        self, slots: asyncio.Semaphore, store: Callable[[Sequence[DocumentWrite]], Awaitable[Outcomes]], together: int
    ) -> None:
        self._slots = slots
        self._store = store
        self._together = together
        self._waiting: deque[_Group] = deque()

    async def store(self, writes: Sequence[DocumentWrite]) -> Outcomes:
        """What became of these, when its turn has come, alone or with others. No two that wait may be of one key.

        Raises what the call raised: all that went together fail together.
        """
        group = _Group(writes)
        self._waiting.append(group)
        try:
            async with self._slots:
                if group in self._waiting:  # else somebody has taken it along
                    await self._store_together(self._next())
            return await group.done
        finally:
            group.forget()
            if group in self._waiting:
                self._waiting.remove(group)

    def _next(self) -> list[_Group]:
        """The first that waits, and what fits in with it."""
        taken = [self._waiting.popleft()]
        size = taken[0].objects
        while self._waiting and size + self._waiting[0].objects <= self._together:
            taken.append(self._waiting.popleft())
            size += taken[-1].objects
        return taken

    async def _store_together(self, groups: Sequence[_Group]) -> None:
        try:
            outcomes = dict(await self._store([write for group in groups for write in group.writes]))
        except BaseException as error:
            for group in groups:
                group.fail(error)
            raise
        for group in groups:
            group.succeed([(write.event, outcomes[write.event]) for write in group.writes])


class _Group:
    """One caller's documents. Compared by identity."""

    def __init__(self, writes: Sequence[DocumentWrite]) -> None:
        self.writes = writes
        self.objects = sum(len(write.objects) for write in writes)
        self.done: asyncio.Future[Outcomes] = asyncio.get_running_loop().create_future()

    def succeed(self, outcomes: Outcomes) -> None:
        if not self.done.done():
            self.done.set_result(outcomes)

    def fail(self, error: BaseException) -> None:
        if self.done.done():
            return
        if isinstance(error, asyncio.CancelledError):
            self.done.cancel()
        else:
            self.done.set_exception(error)

    def forget(self) -> None:
        """Nobody waits for it any more."""
        if not self.done.cancel() and not self.done.cancelled():
            self.done.exception()  # seen: the caller has it from the call itself, or was cancelled
