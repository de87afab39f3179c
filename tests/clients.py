"""Both clients asked in one way, so that one test holds for either."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from streams.client import AsyncCrossfade, Crossfade, Version


class Asks(Protocol):
    """`name`: of a method. Its answer, or what it raises."""

    async def __call__(self, name: str, *args: Any, **given: Any) -> Any: ...

    def follow(self, collection: str, version: str) -> AsyncIterator[Version]:
        """The progress."""
        ...

    async def close(self) -> None: ...


@dataclass
class FromThreads:
    client: Crossfade

    async def __call__(self, name: str, *args: Any, **given: Any) -> Any:
        return await asyncio.to_thread(getattr(self.client, name), *args, **given)

    async def follow(self, collection: str, version: str) -> AsyncIterator[Version]:
        told = self.client.progress(collection, version)
        while (one := await asyncio.to_thread(next, told, None)) is not None:
            yield one

    async def close(self) -> None:
        self.client.close()


@dataclass
class FromAsyncio:
    client: AsyncCrossfade

    async def __call__(self, name: str, *args: Any, **given: Any) -> Any:
        return await getattr(self.client, name)(*args, **given)

    def follow(self, collection: str, version: str) -> AsyncIterator[Version]:
        return self.client.progress(collection, version)

    async def close(self) -> None:
        await self.client.aclose()


Makes = Callable[..., Asks]
"""Takes what a client takes."""


def from_threads(*args: Any, **given: Any) -> Asks:
    return FromThreads(Crossfade(*args, **given))


def from_asyncio(*args: Any, **given: Any) -> Asks:
    return FromAsyncio(AsyncCrossfade(*args, **given))


BOTH: tuple[Makes, ...] = (from_threads, from_asyncio)
