"""Copies of the state and progress topics in memory, which workers, command line and API hold instead of a database.

A view only follows: it never writes, and when Kafka is away it stays at the last known state.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol, Self

from pydantic import ValidationError

from connectors.errors import CrossfadeError, Transient
from connectors.protocols import Record
from streams.migration.series import SeriesRecord, is_series, series_key
from streams.progress import ProgressRecord
from streams.search.routes import to_come
from streams.search.tallies import SearchesRecord, is_searches
from streams.state import BuildState, CollectionState, unknown

log = logging.getLogger(__name__)


class Tail(Protocol):
    """Follows a small topic from its beginning (connectors.kafka.ranges.TopicTail)."""

    caught_up: bool

    async def start(self) -> None: ...

    async def read(self, timeout_s: float) -> list[Record]: ...

    async def close(self) -> None: ...


class View(ABC):
    """Call order: `load`, then `run` in a task of its own; cancel it and `close`."""

    def __init__(self, tail: Tail) -> None:
        self._tail = tail
        self._changed = asyncio.Condition()

    async def load(self) -> None:
        """Read to the end once. Raises NotFound when the topic does not exist yet, Unreachable without a broker."""
        await self._tail.start()
        while not self._tail.caught_up:
            self._take(await self._tail.read(0.2))

    async def run(self) -> None:
        """Follow for ever; cancel to stop."""
        while True:
            try:
                records = await self._tail.read(0.5)
            except Transient:
                await asyncio.sleep(0.5)  # the client beneath reconnects
                continue
            if records:
                async with self._changed:
                    self._take(records)
                    self._changed.notify_all()

    async def again(self, tail: Tail) -> None:
        """After `run` has ended: what is known stands until all of `tail` was read, and is then replaced in one step.
        Raises as `load`, and then nothing has changed."""
        fresh = type(self)(tail)
        try:
            await fresh.load()
        except BaseException:
            await fresh.close()
            raise
        async with self._changed:
            old, self._tail = self._tail, tail
            self._become(fresh)
            self._changed.notify_all()
        with contextlib.suppress(CrossfadeError):  # it has failed already
            await old.close()

    async def wait_for(self, condition: Callable[[Self], bool]) -> None:
        """Return when the condition holds; checked after every change."""
        async with self._changed:
            await self._changed.wait_for(lambda: condition(self))

    async def changed(self) -> None:
        """Return at the next change."""
        async with self._changed:
            await self._changed.wait()

    async def close(self) -> None:
        await self._tail.close()

    def _take(self, records: Sequence[Record]) -> None:
        for record in records:
            if record.key is None:
                continue
            key = record.key.decode(errors="replace")
            try:
                self._apply(key, record.value)
            except ValidationError:
                log.error("a record of another program under key %r is left out", key)

    @abstractmethod
    def _apply(self, key: str, value: bytes | None) -> None: ...

    @abstractmethod
    def _become(self, fresh: Self) -> None:
        """Know what `fresh` knows, and nothing else."""


class StateView(View):
    """Collections by name, and the newest build of each version by collection/version."""

    def __init__(self, tail: Tail) -> None:
        super().__init__(tail)
        self.collections: dict[str, CollectionState] = {}
        self.builds: dict[str, BuildState] = {}

    def _apply(self, key: str, value: bytes | None) -> None:
        if value is None:
            self.collections.pop(key, None)
            self.builds.pop(key, None)
        elif "/" in key:
            self.builds[key] = BuildState.model_validate_json(value)
        else:
            self.collections[key] = CollectionState.model_validate_json(value)

    def _become(self, fresh: Self) -> None:
        self.collections, self.builds = fresh.collections, fresh.builds

    def collection(self, name: str) -> CollectionState:
        """Raises NotFound with the names that exist."""
        try:
            return self.collections[name]
        except KeyError:
            raise unknown("collection", name, self.collections) from None

    def build(self, collection: str, version: str) -> BuildState:
        """The newest build of a version. Raises NotFound with the versions that exist."""
        self.collection(collection)
        try:
            return self.builds[f"{collection}/{version}"]
        except KeyError:
            known = [build.version for build in self.builds_of(collection)]
            could_be = re.fullmatch("[a-z0-9_]+", version) is not None
            start = f"crossfade start {collection} {version}" if could_be else ""
            raise unknown(f"version of {collection}", version, known, start) from None

    def serving(self, collection: str) -> BuildState | None:
        """The build that serves a collection; None before the first cutover."""
        known = self.collections.get(collection)
        return self.builds.get(f"{collection}/{known.serving}") if known is not None and known.serving else None

    def coming(self, collection: str) -> BuildState | None:
        """The version that is being brought in; None when there is none, or nothing serves. Raises NotFound."""
        self.collection(collection)
        serving = self.serving(collection)
        return to_come(self.builds_of(collection), serving) if serving is not None else None

    def builds_of(self, collection: str) -> list[BuildState]:
        return [build for build in self.builds.values() if build.collection == collection]


class ProgressView(View):
    """The newest progress record of each key: collection/version, and collection/version/partition.

    The series of a build (streams.migration.series) is kept as it came, and read when somebody asks for it. Beside
    them stands what each server has counted of its searches (streams.search.tallies), by key.
    """

    def __init__(self, tail: Tail) -> None:
        super().__init__(tail)
        self.records: dict[str, ProgressRecord] = {}
        self.counted: dict[str, SearchesRecord] = {}
        self._series: dict[str, bytes] = {}

    def _apply(self, key: str, value: bytes | None) -> None:
        if is_series(key):
            self._series[key] = value or b""
        elif is_searches(key):
            if value is None:
                self.counted.pop(key, None)
            else:
                self.counted[key] = SearchesRecord.model_validate_json(value)
        elif value is None:
            self.records.pop(key, None)
        else:
            self.records[key] = ProgressRecord.model_validate_json(value)

    def _become(self, fresh: Self) -> None:
        self.records, self.counted, self._series = fresh.records, fresh.counted, fresh._series

    def partitions(self, build: BuildState) -> list[ProgressRecord]:
        """The newest record of each partition of this build; older epochs are left out."""
        keys = [f"{build.key}/{partition}" for partition in range(build.partitions)]
        found = [self.records.get(key) for key in keys]
        return [record for record in found if record is not None and record.epoch == build.epoch]

    def searches(self, collection: str) -> list[SearchesRecord]:
        """What each server has counted, those that have ended since included."""
        return [record for record in self.counted.values() if record.collection == collection]

    def series(self, build: BuildState) -> SeriesRecord | None:
        """The course of this build; None when no controller has written one yet, or not one that can be read."""
        key = series_key(build.key, build.epoch)
        if not (value := self._series.get(key)):
            return None
        try:
            return SeriesRecord.model_validate_json(value)
        except ValidationError:
            log.error("the series under key %r cannot be read and is left out", key)
            return None
