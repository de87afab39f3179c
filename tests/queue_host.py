"""Where an agent runs in tests and benchmarks: the channel that a worker has from Faust, as a plain queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable

from streams.build import Batch


class QueueHost:
    """build_runner.AgentHost on a plain queue."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[list[Batch]] = asyncio.Queue(maxsize=2)
        self._task: asyncio.Task[None] | None = None

    async def start(self, body: Callable[[AsyncIterable[list[Batch]]], Awaitable[None]]) -> None:
        async def stream() -> AsyncIterator[list[Batch]]:
            while True:
                yield await self._queue.get()

        self._task = asyncio.ensure_future(body(stream()))

    async def put(self, delivery: list[Batch]) -> None:
        await self._queue.put(delivery)

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
