"""How often each document was found, by its key: what orders the next replay (streams.priority), in a file or a topic.

It must never see a query, nor lose an answer because the counts cannot be written.
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from connectors.errors import ConfigurationError, CrossfadeError, NotFound
from connectors.protocols import Log, RecordSink
from streams.config_operation import Searched as Settings
from streams.priority import Searched, read_file, read_topic

log = logging.getLogger(__name__)

AT_ONCE = 1000  # records on their way
CLOSE_S = 2.0
ROOM = 1.25  # counts may grow so far beyond their bound before they are cut: cutting sorts all of them


class AccessCounts:
    """Counts and the time of the last search in ms, of at most about `most` keys: the least searched go first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._counts: dict[str, tuple[float, int]] = {}

    def add(self, keys: Iterable[str], now_ms: int, times: float = 1.0) -> set[str]:
        """Returns the keys that had to go."""
        for key in keys:
            count, at_ms = self._counts.get(key, (0.0, 0))
            self._counts[key] = count + times, max(at_ms, now_ms)
        if len(self._counts) <= ROOM * self._most:
            return set()
        before = set(self._counts)
        self._counts = {row.key.decode(): (row.searches, row.at_ms or 0) for row in self.rows()}
        return before - set(self._counts)

    def of(self, key: str) -> tuple[float, int] | None:
        """Its count and the time of its last search in ms; None for one that is not counted (any more)."""
        return self._counts.get(key)

    def copy(self) -> AccessCounts:
        """For a thread: sorting many keys takes long, and searches go on counting."""
        made = AccessCounts(self._most)
        made._counts = dict(self._counts)
        return made

    def rows(self) -> list[Searched]:
        """Most searched first; of equal ones the last searched."""
        best = sorted(self._counts.items(), key=lambda one: (-one[1][0], -one[1][1], one[0]))
        return [Searched(key.encode(), count, at_ms) for key, (count, at_ms) in best[: self._most]]


class AccessFiles:
    """The counts of each collection's `routes.searched.file`, read when it is first counted and written each `every_s`
    seconds of searches, whole or not at all. `close` writes what is left. One process writes one file.
    """

    def __init__(self, clock_s: Callable[[], float], wall_ms: Callable[[], int]) -> None:
        self._clock_s = clock_s
        self._wall_ms = wall_ms
        self._counts: dict[Path, AccessCounts] = {}
        self._begun_s: dict[Path, float] = {}
        self._under_way: dict[Path, asyncio.Task[None]] = {}

    def found(self, settings: Settings | None, keys: Iterable[str]) -> None:
        """An answer that holds these documents. Nothing is counted without a file to write it to."""
        if settings is None or settings.file is None:
            return
        path = settings.file
        if path not in self._counts:
            self._counts[path] = AccessCounts(settings.most)
            self._begin(path, self._load(path))
        self._counts[path].add(keys, self._wall_ms())
        if self._clock_s() - self._begun_s[path] >= settings.every_s and path not in self._under_way:
            self._begin(path, asyncio.to_thread(_write, path, self._counts[path].copy()))

    async def close(self) -> None:
        await asyncio.gather(*self._under_way.values())
        for path, counts in self._counts.items():
            await asyncio.to_thread(_write, path, counts)

    def _begin(self, path: Path, work: Coroutine[None, None, None]) -> None:
        self._begun_s[path] = self._clock_s()
        task = self._under_way[path] = asyncio.create_task(work)
        task.add_done_callback(lambda _: self._under_way.pop(path, None))

    async def _load(self, path: Path) -> None:
        """What was counted before. A file that cannot be read is said once, and written anew."""
        try:
            before = await asyncio.to_thread(lambda: read_file(path) if path.exists() else [])
        except ConfigurationError as error:
            log.warning("what was searched before is left out: %s", error.message)
            return
        for row in before:
            self._counts[path].add([row.key.decode()], row.at_ms or 0, row.searches)


@dataclass(slots=True)
class _Published:
    """What this server has counted for one topic. `changed`: keys whose record is not written yet."""

    counts: AccessCounts
    begun_s: float
    changed: set[str] = field(default_factory=set)
    loaded: bool = False
    task: asyncio.Task[None] | None = None


class AccessTopics:
    """The counts of each collection's `routes.searched.topic`, each record under the document's key and this server's
    name, so that the reader adds up what several have counted.

    What stands under this name is read when it is first counted, and written over: a server that begins again goes on,
    and nothing is counted twice. No two that run at once may have one `name`. Written each `every_s` seconds of
    searches; `close` writes what is left, for two seconds at most.
    """

    def __init__(
        self, kafka: Log, sink: RecordSink, name: str, clock_s: Callable[[], float], wall_ms: Callable[[], int]
    ) -> None:
        self._kafka = kafka
        self._sink = sink
        self._ending = f"\0{name}".encode()
        self._clock_s = clock_s
        self._wall_ms = wall_ms
        self._topics: dict[str, _Published] = {}
        self._said: set[str] = set()

    def found(self, settings: Settings, keys: Iterable[str]) -> None:
        """An answer that holds these documents. Nothing is counted without a topic to publish it to."""
        if (topic := settings.topic) is None:
            return
        if (one := self._topics.get(topic)) is None:
            one = self._topics[topic] = _Published(AccessCounts(settings.most), self._clock_s())
            self._begin(one, self._load(topic, one))
        keys = list(keys)
        gone = one.counts.add(keys, self._wall_ms())
        one.changed |= {*keys}
        # nothing stands there of those that had to go before anything was written
        one.changed = one.changed | {*gone} if one.loaded else one.changed - {*gone}
        if self._clock_s() - one.begun_s >= settings.every_s and one.task is None:
            self._begin(one, self._publish(topic, one))

    async def close(self) -> None:
        try:
            async with asyncio.timeout(CLOSE_S):
                await asyncio.gather(*(one.task for one in self._topics.values() if one.task is not None))
                await asyncio.gather(*(self._publish(topic, one) for topic, one in self._topics.items()))
        except TimeoutError:
            log.warning("the last of the searched keys were not published")

    def _begin(self, one: _Published, work: Coroutine[None, None, None]) -> None:
        one.begun_s = self._clock_s()
        one.task = asyncio.create_task(work)
        one.task.add_done_callback(lambda _: setattr(one, "task", None))

    async def _load(self, topic: str, one: _Published) -> None:
        """What this server had counted before. Until it is known nothing is written over it."""
        try:
            before = await read_topic(self._kafka, topic, self._ending)
        except CrossfadeError as error:
            self._say(topic, error)
            return
        for row in before:
            one.changed |= one.counts.add([row.key.decode()], row.at_ms or 0, row.searches)
        one.loaded = True

    async def _publish(self, topic: str, one: _Published) -> None:
        """One record for each key whose count has changed; none any more for those that had to go."""
        if not one.loaded:
            await self._load(topic, one)
        if not one.loaded:
            return
        waiting = list(one.changed)
        while waiting:
            batch, waiting = waiting[:AT_ONCE], waiting[AT_ONCE:]
            one.changed -= set(batch)
            ends = await asyncio.gather(
                *(self._send(topic, key, one.counts.of(key)) for key in batch), return_exceptions=True
            )
            failed = {key: end for key, end in zip(batch, ends, strict=True) if end is not None}
            if failed:
                one.changed |= set(failed)
                self._say(topic, next(iter(failed.values())))
                return
        self._said.discard(topic)

    async def _send(self, topic: str, key: str, count: tuple[float, int] | None) -> None:
        value = None if count is None else orjson.dumps({"key": key, "count": count[0], "at_ms": count[1]})
        await self._sink.send(topic, key.encode() + self._ending, value)

    def _say(self, topic: str, error: BaseException) -> None:
        """Once, until it works again. Keys stay out of it."""
        if topic in self._said:
            return
        self._said.add(topic)
        if isinstance(error, NotFound):
            log.warning("there is no topic %s for the searched keys: create it, with cleanup.policy=compact", topic)
            return
        said = error.message if isinstance(error, CrossfadeError) else type(error).__name__
        log.warning("the searched keys wait to be published to %s: %s", topic, said)


def _write(path: Path, counts: AccessCounts) -> None:
    """As streams.priority.read_line reads it. Trouble is logged: searching goes on."""
    temporary = ""
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "wb") as file:
            for row in counts.rows():
                line = {"key": row.key.decode(), "count": row.searches, "at_ms": row.at_ms}
                file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError as error:
        log.warning("the searched keys cannot be written to %s: %s", path, error.strerror)
        if temporary:
            Path(temporary).unlink(missing_ok=True)
