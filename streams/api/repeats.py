"""Idempotency-Keys as this process knows them: one request of a key at a time, and what each was used for.

What was carried out stands in the state topic, for every server; this is for what is under way, or has no outcome yet.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from weakref import WeakValueDictionary

from streams.api.problems import Answered, problem

REMEMBERED = 10_000


class Repeats:
    """Keys by their collection: another collection's are others."""

    def __init__(self) -> None:
        self._turns: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()
        self._used: dict[tuple[str, str], str] = {}

    @asynccontextmanager
    async def turn(self, collection: str, key: str, wait_s: float) -> AsyncIterator[None]:
        """While no other request with this key is under way. Raises Answered, 409, when one still is after `wait_s`."""
        lock = self._turns.setdefault((collection, key), asyncio.Lock())
        try:
            async with asyncio.timeout(wait_s):
                await lock.acquire()
        except TimeoutError as error:
            raise Answered(
                problem(
                    HTTPStatus.CONFLICT,
                    f"a request to {collection} with the Idempotency-Key {key} is under way",
                    "ask again with the same key: it is carried out once, and answered the same",
                    kind="key-under-way",
                    title="The first request with this key is not answered yet",
                ),
                {"Retry-After": "3"},
            ) from error
        try:
            yield
        finally:
            lock.release()

    def used_for(self, collection: str, key: str) -> str | None:
        """The command that was last sent with it; None when that is not known here (any more)."""
        return self._used.get((collection, key))

    def use(self, collection: str, key: str, command_id: str) -> None:
        self._used.pop((collection, key), None)
        self._used[collection, key] = command_id
        while len(self._used) > REMEMBERED:
            del self._used[next(iter(self._used))]
