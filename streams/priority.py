"""Which documents people look for: the list of searched keys, read and weighed, and a replay's passes made from it.

It only reads; what is done first is decided in streams.tiers. Keys are never logged.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import orjson

from connectors.errors import ConfigurationError
from connectors.protocols import Log
from streams.config_operation import Category, Priority, TierName
from streams.documents import DocumentSchema, Put, key_digest, parse
from streams.key_index import ABSENT, KeyIndex
from streams.tiers import Passes, arrange

DAY_MS = 86_400_000.0
MOST_FILE_BYTES = 2**30


class Searched(NamedTuple):
    """One key that was searched for: how often, and when last (ms since the epoch; None where nobody noted it)."""

    key: bytes
    searches: float
    at_ms: int | None = None


def read_line(line: str) -> Searched:
    """`{"key": "a1", "count": 12, "at_ms": 1790000000000}`, `a1<TAB>12` or `a1`. Raises ValueError that says why."""
    if line.lstrip().startswith("{"):
        raw = orjson.loads(line)
        key, count, at_ms = raw.get("key"), raw.get("count", 1), raw.get("at_ms")
        if not isinstance(key, str) or (unknown := set(raw) - {"key", "count", "at_ms"}):
            raise ValueError(f"unknown {', '.join(sorted(unknown))}" if isinstance(key, str) else "key is not text")
    else:
        key, _, rest = line.partition("\t")
        count, at_ms = (_number(rest) if rest else 1.0), None
    return Searched(key.encode(), _count(count), _at(at_ms))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:  # its own message would show the text: it may be a key
        raise ValueError("what stands behind the tab is not a number") from None


def _count(count: object) -> float:
    if isinstance(count, bool) or not isinstance(count, int | float) or not 0 <= count < math.inf:
        raise ValueError("count is not a number of 0 or more")
    return float(count)


def _at(at_ms: object) -> int | None:
    if at_ms is None or (isinstance(at_ms, int) and not isinstance(at_ms, bool)):
        return at_ms
    raise ValueError("at_ms is not a whole number of milliseconds")


def read_file(path: Path) -> list[Searched]:
    """A line for each key; a key that comes twice is added up. Raises ConfigurationError with file and line."""
    wanted = 'a line like {"key": "a1", "count": 12}, or a1<TAB>12'
    found: list[Searched] = []
    try:
        if path.stat().st_size > MOST_FILE_BYTES:
            raise ConfigurationError(f"{path} is larger than 1 GiB", next_step="list the most searched keys only")
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not (text := line.rstrip("\r\n")).strip():
                    continue
                try:
                    found.append(read_line(text))
                except (ValueError, AttributeError) as error:
                    problem = "is not JSON" if isinstance(error, orjson.JSONDecodeError) else str(error)
                    raise ConfigurationError(f"{path}:{number}: {problem}", next_step=f"wanted: {wanted}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigurationError(
            f"the searched keys in {path} cannot be read: {reason}", next_step="correct priority.keys"
        ) from error
    return found


def read_value(key: bytes, value: bytes, timestamp_ms: int) -> Searched:
    """A number, or `{"count": n}`; with `key`, the document it is of, where several count it, each under a record key
    of its own. `at_ms`: of the last search, else the record's time. Raises ValueError."""
    raw = orjson.loads(value)
    if not isinstance(raw, dict):
        return Searched(key, _count(raw), timestamp_ms)
    named, at_ms = raw.get("key"), _at(raw.get("at_ms"))
    return Searched(
        named.encode() if isinstance(named, str) else key,
        _count(raw.get("count")),
        timestamp_ms if at_ms is None else at_ms,
    )


async def read_topic(kafka: Log, topic: str, ending: bytes = b"") -> list[Searched]:
    """The newest record of each record key (`read_value`); of those with this `ending` alone. Documents that several
    count come several times.

    A record of another form is left out: whoever writes the counts must not be able to stop a build. Raises NotFound
    without the topic, and Transient.
    """
    newest: dict[bytes, Searched] = {}
    for partition, bounds in (await kafka.bounds(topic)).items():
        async for batch in kafka.read_range(topic, partition, bounds.earliest, bounds.stable):
            for record in batch.records:
                if record.key is None or not record.key.endswith(ending):
                    continue
                newest.pop(record.key, None)
                if record.value is not None:
                    with suppress(ValueError):
                        newest[record.key] = read_value(record.key, record.value, record.timestamp_ms)
    return list(newest.values())


def weigh(searched: Iterable[Searched], half_life_days: float | None) -> dict[bytes, float]:
    """Key digest to weight: its counts, halved for every `half_life_days` they are older than the newest of all."""
    rows = list(searched)
    newest_ms = max((row.at_ms for row in rows if row.at_ms is not None), default=0)
    weights: dict[bytes, float] = {}
    for row in rows:
        age_days = (newest_ms - row.at_ms) / DAY_MS if row.at_ms is not None else 0.0
        weight = row.searches * (0.5 ** (age_days / half_life_days) if half_life_days else 1.0)
        digest = key_digest(row.key)
        weights[digest] = weights.get(digest, 0.0) + weight
    return {digest: weight for digest, weight in weights.items() if weight > 0}


async def categories(
    kafka: Log, topic: str, partition: int, index: KeyIndex, digests: Sequence[bytes], name: str, schema: DocumentSchema
) -> dict[bytes, str]:
    """The property `name` of those of these keys that have a document here. Reads the log between the first and the
    last of them."""
    offsets = await asyncio.to_thread(index.put_offsets, digests)  # of a long list
    wanted = {int(offset): digest for offset, digest in zip(offsets, digests, strict=True) if offset != ABSENT}
    found: dict[bytes, str] = {}
    if not wanted:
        return found
    async for batch in kafka.read_range(topic, partition, min(wanted), max(wanted) + 1):
        for record in batch.records:
            if (digest := wanted.get(record.offset)) is not None:
                change = parse(record.key, record.value, schema)
                if isinstance(change, Put) and name in change.properties:
                    found[digest] = str(change.properties[name])
    return found


@dataclass(slots=True)
class Order:
    """Of one build: `passes` for each partition. The list is read once for as long as the build runs here."""

    priority: Priority
    kafka: Log
    topic: str
    schema: DocumentSchema
    _weights: dict[bytes, float] | None = None
    _reading: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def passes(self, partition: int, index: KeyIndex, tiers: Sequence[TierName] | None) -> Passes:
        """`tiers`: the order that an operator has set, None for listed, newest, rest.

        Raises ConfigurationError when the list cannot be read, NotFound without its topic, and Transient.
        """
        wanted: Sequence[TierName] = ("listed", "newest") if tiers is None else tiers
        listed = await self._listed() if "listed" in wanted else {}
        if self.priority.category is not None and listed:
            listed = await self._by_category(self.priority.category, partition, index, listed)
        # off the loop: sorting millions of keys must not hold the live lane
        return await asyncio.to_thread(arrange, index, wanted, listed, self.priority.newest)

    async def _listed(self) -> dict[bytes, float]:
        async with self._reading:
            if self._weights is None:
                if self.priority.keys is not None:
                    rows = await asyncio.to_thread(read_file, self.priority.keys)
                elif self.priority.topic is not None:
                    rows = await read_topic(self.kafka, self.priority.topic)
                else:
                    rows = []
                self._weights = await asyncio.to_thread(weigh, rows, self.priority.half_life_days)
            return self._weights

    async def _by_category(
        self, category: Category, partition: int, index: KeyIndex, listed: dict[bytes, float]
    ) -> dict[bytes, float]:
        found = await categories(self.kafka, self.topic, partition, index, list(listed), category.field, self.schema)
        weights = category.weights
        return {digest: weight * weights.get(found.get(digest, ""), 1.0) for digest, weight in listed.items()}
