"""Live queries with what two versions have found for each, for a person to judge: the beginning of a golden set.

The one place that keeps what users have asked, so nothing is kept unless it is configured. It never logs a query, and
what cannot be written is left out.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import orjson

from connectors.errors import CrossfadeError
from connectors.protocols import Log, Record, RecordSink
from streams.config_operation import ShadowSample

log = logging.getLogger(__name__)

_ID = re.compile(rb"q[0-9a-f]{16}")


def id_of(query: str) -> str:
    """The same for the same query, wherever it was asked."""
    return "q" + hashlib.blake2b(query.encode(errors="surrogatepass"), digest_size=8).hexdigest()


def line_of(query: str, old: Sequence[str], new: Sequence[str]) -> bytes:
    """In the form of a golden set (docs/gate.md), with nothing judged yet."""
    line = {"id": id_of(query), "query": query, "old": list(old), "new": list(new), "relevant": {}}
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)


class Place(Protocol):
    """Where a sample is kept. `ids`: of the queries that it has, as far as is known; `look` brings in what it has by
    now, `add` one more line. Both raise OSError or CrossfadeError."""

    ids: set[str]

    async def look(self) -> None: ...

    async def add(self, query_id: str, line: bytes) -> None: ...


class Samples:
    """Each file or topic gets every query once, `most` of them with those that it had before: what exists is gone on
    with, also where somebody has judged it since. A file is for one server, and readable by its owner alone; a topic is
    looked at before each query that is kept, so `most` is of all servers together, but for what they write at the same
    moment.

    `kafka`, `sink`: of the topics; without them nothing is kept in one.
    """

    def __init__(self, kafka: Log | None = None, sink: RecordSink | None = None) -> None:
        self._kafka = kafka
        self._sink = sink
        self._places: dict[Path | str, Place] = {}
        self._turns: defaultdict[Path | str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._said: set[Path | str] = set()

    async def keep(self, settings: ShadowSample, query: str, old: Sequence[str], new: Sequence[str]) -> None:
        name, query_id = settings.file or settings.topic, id_of(query)
        if name is None or (place := self._place(name)) is None:
            return

        def wanted() -> bool:
            return query_id not in place.ids and len(place.ids) < settings.most

        if not wanted():
            return
        async with self._turns[name]:
            try:
                line = line_of(query, old, new)
                await place.look()
                if wanted():
                    await place.add(query_id, line)
            except (OSError, CrossfadeError) as error:
                reason = error.message if isinstance(error, CrossfadeError) else error.strerror
                if name not in self._said:
                    log.warning("the sample of queries cannot be written to %s: %s", name, reason)
                self._said.add(name)
                return
            except orjson.JSONEncodeError:  # no text that can be written; the message might show it
                return
            self._said.discard(name)

    def _place(self, name: Path | str) -> Place | None:
        if name not in self._places:
            if isinstance(name, Path):
                self._places[name] = _File(name)
            elif self._kafka is not None and self._sink is not None:
                self._places[name] = _Topic(name, self._kafka, self._sink)
        return self._places.get(name)


class _File:
    """Read once: no other server writes it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = False
        self.ids: set[str] = set()

    async def look(self) -> None:
        if not self._read:
            self.ids = await asyncio.to_thread(_ids, self._path)
            self._read = True

    async def add(self, query_id: str, line: bytes) -> None:
        await asyncio.to_thread(_append, self._path, line)
        self.ids.add(query_id)


class _Topic:
    """Read from where the last look ended: other servers write it too."""

    def __init__(self, topic: str, kafka: Log, sink: RecordSink) -> None:
        self._topic = topic
        self._kafka = kafka
        self._sink = sink
        self._topic_id = ""
        self._read: dict[int, int] = {}
        self.ids: set[str] = set()

    async def look(self) -> None:
        topic_id = (await self._kafka.facts(self._topic)).topic_id
        if topic_id != self._topic_id:  # created anew, it has none of them any more
            self.ids, self._read, self._topic_id = set(), {}, topic_id
        for partition, bounds in (await self._kafka.bounds(self._topic)).items():
            start = max(self._read.get(partition, 0), bounds.earliest)
            async for batch in self._kafka.read_range(self._topic, partition, start, bounds.stable):
                for record in batch.records:
                    self._take(record)
            self._read[partition] = bounds.stable

    async def add(self, query_id: str, line: bytes) -> None:
        await self._sink.send(self._topic, query_id.encode(), line)
        self.ids.add(query_id)

    def _take(self, record: Record) -> None:
        """One without a value takes its query away; one whose key is not of ours is left alone: what is held in memory
        is bounded by what servers have kept."""
        if record.key is None or not _ID.fullmatch(record.key):
            return
        if record.value is None:
            self.ids.discard(record.key.decode())
        else:
            self.ids.add(record.key.decode())


async def read_sample(kafka: Log, topic: str) -> list[bytes]:
    """The newest line of each query that servers have kept there, in the order of the log. Raises NotFound without the
    topic, and Transient."""
    newest: dict[bytes, bytes] = {}
    for partition, bounds in sorted((await kafka.bounds(topic)).items()):
        async for batch in kafka.read_range(topic, partition, bounds.earliest, bounds.stable):
            for record in batch.records:
                if record.key is not None:
                    newest.pop(record.key, None)
                    if record.value is not None:
                        newest[record.key] = record.value.rstrip(b"\n") + b"\n"
    return list(newest.values())


def write_new(path: Path, lines: Sequence[bytes]) -> None:
    """Readable by its owner alone. Raises FileExistsError where there is one: somebody may have judged it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.writelines(lines)


def _ids(path: Path) -> set[str]:
    """Of the queries that the file has already; lines that are none are left to whoever reads it as a golden set."""
    found: set[str] = set()
    if not path.exists():
        return found
    for line in path.read_bytes().splitlines():
        try:
            raw = orjson.loads(line)
        except ValueError:
            continue
        if isinstance(raw, dict) and isinstance(raw.get("id"), str):
            found.add(raw["id"])
    return found


def _append(path: Path, line: bytes) -> None:
    """The whole line in one write."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line)
    finally:
        os.close(descriptor)
