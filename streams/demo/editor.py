"""Somebody who keeps editing, deleting and bringing back documents while a migration goes on.

It only produces to the documents topic; it must never look at what the pipeline makes of it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from streams.demo.documents import Docstring

Change = Literal["edited", "deleted", "re-created"]

CHANGES: tuple[Change, ...] = ("edited", "deleted", "re-created")
WEIGHTS = (60, 25, 15)
GONE_AT_LEAST = 20
"""Deleted documents that stay deleted for a while, so that the history is replayed past them."""


class Send(Protocol):
    """Appends one record and returns when it is acknowledged (RecordSink.send)."""

    async def __call__(self, topic: str, key: bytes, value: bytes | None) -> None: ...


@dataclass(slots=True)
class Edits:
    """How many changes were acknowledged."""

    edited: int = 0
    deleted: int = 0
    recreated: int = 0

    @property
    def total(self) -> int:
        return self.edited + self.deleted + self.recreated


class Editor:
    """See the module. `kept`: keys that are edited but never deleted, because somebody asks for them."""

    def __init__(
        self, send: Send, topic: str, documents: Sequence[Docstring], kept: frozenset[str], per_s: float
    ) -> None:
        self._send = send
        self._topic = topic
        self._living = list(documents)
        self._gone: list[Docstring] = []
        self._kept = kept
        self._per_s = per_s
        self._random = random.Random(7)  # the same choices in every run; when they are made still differs
        self._stop = asyncio.Event()
        self.edits = Edits()

    async def run(self) -> None:
        """Until `stop`, at a steady rate. Raises what the producer raises."""
        loop = asyncio.get_running_loop()
        next_s = loop.time()
        while not self._stop.is_set():
            await self._change()
            next_s = max(next_s + 1 / self._per_s, loop.time())
            try:
                async with asyncio.timeout_at(next_s):
                    await self._stop.wait()
            except TimeoutError:
                continue

    def stop(self) -> None:
        """`run` returns after the change that is under way."""
        self._stop.set()

    async def _change(self) -> None:
        kind = self._random.choices(CHANGES, WEIGHTS)[0]
        if kind == "re-created" and len(self._gone) > GONE_AT_LEAST:
            document = self._gone.pop(0)
            await self._put(document, f"Brought back by change {self.edits.total}.")
            self._living.append(document)
            self.edits.recreated += 1
            return
        at = self._random.randrange(len(self._living))
        document = self._living[at]
        if kind == "deleted" and document.key not in self._kept:
            self._living[at] = self._living[-1]
            self._living.pop()
            await self._send(self._topic, document.key.encode(), None)
            self._gone.append(document)
            self.edits.deleted += 1
        else:
            await self._put(document, f"Edited by change {self.edits.total}.")
            self.edits.edited += 1

    async def _put(self, document: Docstring, note: str) -> None:
        await self._send(self._topic, document.key.encode(), document.to_value(note=note))
