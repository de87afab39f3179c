"""The one place where blocking Kafka clients run: a thread of its own for each client.

Client calls must never run anywhere else, and the event loop must never wait for one.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TypeVar

from connectors.errors import Terminal

T = TypeVar("T")


class _Job:
    __slots__ = ("call", "urgent")

    def __init__(self, call: Callable[[], None], urgent: bool) -> None:
        self.call = call
        self.urgent = urgent


class ClientThread:
    """Runs calls one after the other in one thread.

    A client's callback may have to wait for the event loop, which may itself be waiting for an `urgent` call (a
    revoked owner that commits while it drains): `ask` therefore runs urgent calls while it waits.
    """

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._later: deque[_Job] = deque()
        self._stopping = False
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def submit(self, call: Callable[[], T], *, urgent: bool = False) -> Future[T]:
        """Queue a call. The future cannot be cancelled once the call runs. Raises Terminal after `stop`.

        It runs in the caller's context, and so does what it asks of the event loop: logs and traces tell whose it is.
        """
        if self._stopping:
            raise Terminal(f"{self._thread.name} is closed", next_step="start a new one")
        future: Future[T] = Future()
        context = contextvars.copy_context()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = context.run(call)
            except BaseException as raised:  # noqa: BLE001 - handed on: it belongs to whoever waits for the future
                future.set_exception(raised)
            else:
                future.set_result(result)

        self._jobs.put(_Job(run, urgent))
        return future

    async def run(self, call: Callable[[], T], *, urgent: bool = False) -> T:
        """Queue a call and wait for it."""
        return await asyncio.wrap_future(self.submit(call, urgent=urgent))

    def ask(self, loop: asyncio.AbstractEventLoop, question: Coroutine[None, None, T]) -> Future[T]:
        """In the thread: run a coroutine on the event loop, and wait. Returns its finished future."""
        answer: Future[T] = asyncio.run_coroutine_threadsafe(question, loop)
        answer.add_done_callback(lambda _: self._jobs.put(None))
        while not answer.done():
            job = self._jobs.get()
            if job is None:
                continue
            if job.urgent:
                job.call()
            else:
                self._later.append(job)
        return answer

    async def stop(self) -> None:
        """Let what is queued finish, then end the thread."""

        def last() -> None:
            self._stopping = True

        if self._stopping:
            return
        await self.run(last)
        await asyncio.to_thread(self._thread.join)

    def _serve(self) -> None:
        while not self._stopping:
            job = self._later.popleft() if self._later else self._jobs.get()
            if job is not None:
                job.call()
