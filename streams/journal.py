"""The journal of one collection, read from its topic: who did what, when and why, and what came of it.

It reads only: all of it from the beginning to now, or the newest entries from the end.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from pydantic import ValidationError

from connectors.protocols import Log, Record
from streams.state import JournalEntry, TopicNames

log = logging.getLogger(__name__)

WINDOW = 1_000
"""Offsets that are read at once, going back; four times as many each time that was not enough."""
MOST_READ = 20_000
"""Offsets of a partition that are looked at for one page."""
MOST_BYTES = 8_000_000
"""Of the records that one page keeps from a partition."""


@dataclass(frozen=True, slots=True)
class Page:
    """`entries`: oldest first. `older`: the place before which older ones are read; "" when there are none."""

    entries: list[JournalEntry]
    older: str


@dataclass(slots=True)
class _Kept:
    """The newest of what is added in the order of the log, up to `most` and up to `most_bytes`, but always one;
    `floor`: everything at or after it that was added is kept."""

    most: int
    most_bytes: int
    floor: int
    found: deque[tuple[int, JournalEntry]] = field(default_factory=deque)
    sizes: deque[int] = field(default_factory=deque)
    bytes: int = 0

    def add(self, offset: int, entry: JournalEntry, size: int) -> None:
        self.found.append((offset, entry))
        self.sizes.append(size)
        self.bytes += size
        while len(self.found) > 1 and (len(self.found) > self.most or self.bytes > self.most_bytes):
            self.floor = self.found.popleft()[0] + 1
            self.bytes -= self.sizes.popleft()


async def entries_of(kafka: Log, names: TopicNames, collection: str) -> list[JournalEntry]:
    """Oldest first. Raises NotFound when no worker ever ran here."""
    bounds = await kafka.bounds(names.journal)
    entries: list[JournalEntry] = []
    for partition, ends in bounds.items():
        async for batch in kafka.read_range(names.journal, partition, ends.earliest, ends.stable):
            entries += [entry for record in batch.records if (entry := _entry(record, collection)) is not None]
    if len(bounds) > 1:  # ours has one: then the log knows the order better than the controllers' clocks
        entries.sort(key=lambda entry: entry.at_ms)
    return entries


async def newest(
    kafka: Log, names: TopicNames, collection: str, limit: int, *, version: str | None = None, before: str = ""
) -> Page:
    """The newest `limit` entries, of one version where one is named, before the place that the page after it gave.

    Reads back from the end, MOST_READ offsets at most: with few entries, or none, there may be older ones all the same,
    and `older` says so. Raises NotFound when no worker ever ran here.
    """
    bounds = await kafka.bounds(names.journal)
    given = dict(enumerate(map(int, before.split("-")))) if before else {}
    floors = dict[int, int]()
    found = list[tuple[int, int, JournalEntry]]()  # partition, offset

    def wanted(record: Record) -> JournalEntry | None:
        entry = _entry(record, collection)
        return entry if entry is not None and (version is None or concerns(entry, version)) else None

    for partition, ends in sorted(bounds.items()):
        end = min(ends.stable, given.get(partition, ends.stable))
        kept = await _back(kafka, names.journal, partition, ends.earliest, end, wanted, limit + 1)
        floors[partition] = kept.floor
        found += [(partition, offset, entry) for offset, entry in kept.found]
    if len(bounds) > 1:
        found.sort(key=lambda one: (one[2].at_ms, one[0], one[1]))
    for partition, offset, _ in found[:-limit]:
        floors[partition] = max(floors[partition], offset + 1)
    more = any(floor > bounds[partition].earliest for partition, floor in floors.items())
    return Page([entry for _, _, entry in found[-limit:]], "-".join(map(str, floors.values())) if more else "")


async def _back(
    kafka: Log,
    topic: str,
    partition: int,
    start: int,
    end: int,
    wanted: Callable[[Record], JournalEntry | None],
    most: int,
) -> _Kept:
    """The newest `most` wanted entries of [start, end), and the floor down to which that was looked at."""
    kept, window, lowest = _Kept(most, MOST_BYTES, end), WINDOW, max(start, end - MOST_READ)
    while kept.floor > lowest and len(kept.found) < most and kept.bytes < MOST_BYTES:
        begin = max(lowest, kept.floor - window)
        piece = _Kept(most - len(kept.found), MOST_BYTES - kept.bytes, begin)
        async for batch in kafka.read_range(topic, partition, begin, kept.floor):
            for record in batch.records:
                if (entry := wanted(record)) is not None:
                    piece.add(record.offset, entry, len(record.value or b""))
        kept.found.extendleft(reversed(piece.found))
        kept.bytes += piece.bytes
        kept.floor = piece.floor
        if piece.floor > begin:  # there was more than there is room for
            break
        window *= 4
    return kept


def _entry(record: Record, collection: str) -> JournalEntry | None:
    """None for one of another collection, or one that cannot be read."""
    if record.key != collection.encode() or record.value is None:
        return None
    try:
        return JournalEntry.model_validate_json(record.value)
    except ValidationError:
        log.warning("a journal entry at offset %d cannot be read and is left out", record.offset)
        return None


def concerns(entry: JournalEntry, version: str) -> bool:
    """Of this version, or a change of it beside another one's, as in a rollback."""
    return entry.version == version or f"{entry.collection}/{version}" in entry.data
