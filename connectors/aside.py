"""Blocking calls of the system that may hang (a name server, a file on a network drive), each on a thread of its own.

It must never begin a second call beside one that hangs, nor keep the process from ending.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class Aside(Generic[T]):
    """One kind of call. `name`: of its thread."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._begun: Future[tuple[T | None, Exception | None]] | None = None

    async def run(self, call: Callable[[], T], timeout_s: float) -> T:
        """Raises TimeoutError when it, or the call before it, has not ended in time; else what the call raises."""
        async with asyncio.timeout(timeout_s):
            if self._begun is not None and not self._begun.done():
                await asyncio.wrap_future(self._begun)  # the one before it, which hangs
            self._begun = future = self._begin(call)
            result, error = await asyncio.wrap_future(future)
        if error is not None:
            raise error
        return result  # type: ignore[return-value]  # it is one where there is no error

    def _begin(self, call: Callable[[], T]) -> Future[tuple[T | None, Exception | None]]:
        future: Future[tuple[T | None, Exception | None]] = Future()
        future.set_running_or_notify_cancel()  # from here on nobody can cancel it: the thread will answer

        def work() -> None:
            try:
                future.set_result((call(), None))
            except Exception as error:  # noqa: BLE001  handed on as a value: nobody may be left to hear it raised
                future.set_result((None, error))

        threading.Thread(target=work, name=self._name, daemon=True).start()
        return future
