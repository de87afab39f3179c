"""A steady load of queries on whatever version serves, and the account of every answer around a swap.

It must never send a query again, nor leave one out of the account: failed and mixed answers count.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from connectors.errors import CrossfadeError

MOST_IN_FLIGHT = 32


@dataclass(frozen=True, slots=True)
class Answered:
    """One query's end. `space`: what its route resolved to, "" when it failed; `problem`: "" for a whole answer."""

    space: str
    took_s: float
    failed: str = ""
    mixed: str = ""


@dataclass(frozen=True, slots=True)
class Window:
    """The answers of one stretch of the load."""

    queries: int
    seconds: float
    failed: int
    mixed: int
    by_space: dict[str, int]
    median_ms: float
    p99_ms: float
    problems: list[str]

    @property
    def per_s(self) -> float:
        return self.queries / self.seconds if self.seconds > 0 else 0.0


class Load:
    """`per_s` queries a second, each begun at its own time whether or not the ones before have been answered.

    `ask` answers one query with (space its route resolved to, what is mixed in the answer or ""). Call order: `run` in
    a task; `stop`, and `run` returns when nothing is under way any more.
    """

    def __init__(self, ask: Callable[[str], Awaitable[tuple[str, str]]], queries: Sequence[str], per_s: float) -> None:
        self._ask = ask
        self._queries = queries
        self._per_s = per_s
        self._slots = asyncio.Semaphore(MOST_IN_FLIGHT)
        self._stopping = False
        self._more = asyncio.Condition()
        self.answers: list[Answered] = []
        self._ended_s: list[float] = []

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        next_s = loop.time()
        async with asyncio.TaskGroup() as group:
            at = 0
            while not self._stopping:
                await self._slots.acquire()
                group.create_task(self._one(self._queries[at % len(self._queries)]))
                at += 1
                # a machine that cannot keep up is not punished with a burst afterwards: the measured rate tells
                next_s = max(next_s + 1 / self._per_s, loop.time() - 0.1)
                await asyncio.sleep(max(0.0, next_s - loop.time()))

    def stop(self) -> None:
        self._stopping = True

    async def _one(self, query: str) -> None:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        try:
            space, mixed = await self._ask(query)
            answer = Answered(space, loop.time() - began_s, mixed=mixed)
        except CrossfadeError as error:
            answer = Answered("", loop.time() - began_s, failed=f"{type(error).__name__}: {error.message}")
        finally:
            self._slots.release()
        self.answers.append(answer)
        self._ended_s.append(loop.time())
        async with self._more:
            self._more.notify_all()

    async def answered(self, count: int) -> None:
        """Return once `count` queries in all have been answered (or have failed)."""
        async with self._more:
            await self._more.wait_for(lambda: len(self.answers) >= count)

    def window(self, begin: int, end: int) -> Window:
        """The answers [begin, end), in the order in which they came; at least two."""
        answers = self.answers[begin:end]
        took = sorted(answer.took_s for answer in answers)
        return Window(
            queries=len(answers),
            seconds=self._ended_s[end - 1] - self._ended_s[begin],
            failed=sum(bool(answer.failed) for answer in answers),
            mixed=sum(bool(answer.mixed) for answer in answers),
            by_space=dict(Counter(answer.space for answer in answers if answer.space)),
            median_ms=took[len(took) // 2] * 1000,
            p99_ms=took[int(len(took) * 0.99)] * 1000,
            problems=list(dict.fromkeys(a.failed or a.mixed for a in answers if a.failed or a.mixed))[:5],
        )
