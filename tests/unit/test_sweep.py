"""Pages that a sweep reads ahead, while it is still at the log's keys."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator

import pytest

from connectors.errors import Unreachable
from connectors.protocols import Head
from streams.migration.sweep import ahead


def page(number: int) -> list[Head]:
    return [Head(uuid.UUID(int=number), str(number), "", 0, 1, "h", 0, number)]


class Pages:
    """`count` pages, then `error` if there is one. `read`: how many were asked for."""

    def __init__(self, count: int, error: BaseException | None = None) -> None:
        self._count = count
        self._error = error
        self.read = 0
        self.asking = True

    async def __call__(self) -> AsyncIterator[list[Head]]:
        try:
            for number in range(self._count):
                await asyncio.sleep(0)
                self.read += 1
                yield page(number)
            if self._error is not None:
                raise self._error
        finally:
            self.asking = False


async def settled() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


async def test_they_come_in_order_and_a_few_of_them_early() -> None:
    pages = Pages(10)
    async with ahead(pages(), 3) as found:
        await settled()
        assert pages.read == 4, "three wait, and one would"
        assert [head.offset async for some in found for head in some] == list(range(10))


async def test_what_reading_raised_comes_after_the_pages_before_it() -> None:
    async with ahead(Pages(2, Unreachable("Weaviate does not answer"))(), 8) as found:
        await settled()
        assert [page[0].offset for page in (await anext(found), await anext(found))] == [0, 1]
        with pytest.raises(Unreachable, match="does not answer"):
            await anext(found)


async def test_a_request_that_was_cancelled_is_no_endless_wait() -> None:
    async with asyncio.timeout(5), ahead(Pages(1, asyncio.CancelledError())(), 8) as found:
        await anext(found)
        with pytest.raises(asyncio.CancelledError):
            await anext(found)


async def test_who_leaves_early_waits_for_nothing() -> None:
    pages = Pages(1000)
    async with asyncio.timeout(5), ahead(pages(), 2):
        await settled()
    await settled()
    assert not pages.asking
    assert pages.read <= 4
