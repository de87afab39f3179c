"""Topics held in memory, with the gaps, markers and open transactions of a real log.

A record must never become visible before its transaction was committed, nor an offset be used twice.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

from connectors.errors import IdentityChanged, NotFound
from connectors.protocols import Record, TopicFacts


class MemoryTransaction:
    """Records that become visible together, or never. Each partition touched gets a marker at the end."""

    def __init__(self) -> None:
        self.open = True
        self.committed = False
        self._partitions: list[MemoryPartition] = []

    def append(
        self, partition: MemoryPartition, key: bytes | None, value: bytes | None, *, timestamp_ms: int = 0
    ) -> int:
        if not self.open:
            raise ValueError("this transaction is over")
        if partition not in self._partitions:
            self._partitions.append(partition)
            partition.open[self] = partition.end
        offset = partition.append(key, value, timestamp_ms)
        partition.transactions[offset] = self
        return offset

    def commit(self) -> None:
        self._finish(committed=True)

    def abort(self) -> None:
        self._finish(committed=False)

    def _finish(self, *, committed: bool) -> None:
        self.open, self.committed = False, committed
        for partition in self._partitions:
            del partition.open[self]
            partition.append_marker()


class MemoryPartition:
    """One partition: offsets and records in parallel lists; a marker is an offset without a record."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.start = 0
        self.end = 0
        self.offsets: list[int] = []
        self.records: list[Record | None] = []
        self.transactions: dict[int, MemoryTransaction] = {}
        self.open: dict[MemoryTransaction, int] = {}  # transaction -> its first offset here

    @property
    def stable(self) -> int:
        """The last stable offset."""
        return min(self.open.values(), default=self.end)

    def append(self, key: bytes | None, value: bytes | None, timestamp_ms: int = 0) -> int:
        offset = self.end
        self.offsets.append(offset)
        self.records.append(Record(self.number, offset, timestamp_ms, key, value))
        self.end = offset + 1
        return offset

    def append_marker(self) -> None:
        self.offsets.append(self.end)
        self.records.append(None)
        self.end += 1

    def skip(self, count: int) -> None:
        """Leave a gap of `count` offsets, as compaction does."""
        self.end += count

    def visible(self, offset: int) -> bool:
        transaction = self.transactions.get(offset)
        return transaction is None or transaction.committed

    def read(self, position: int, max_records: int) -> tuple[list[Record], int]:
        """Visible records from `position` on, and the next position: past every gap and marker when drained.

        Raises IdentityChanged when the position is outside the log.
        """
        if not self.start <= position <= self.end:
            raise IdentityChanged(
                f"position {position} of partition {self.number} is outside the log [{self.start}, {self.end}]",
                next_step="the topic was recreated or truncated; this build must be started anew",
            )
        stable = self.stable
        records: list[Record] = []
        for index in range(bisect_left(self.offsets, position), bisect_left(self.offsets, stable)):
            record = self.records[index]
            if record is None or (self.transactions and not self.visible(record.offset)):
                continue
            if len(records) == max_records:
                return records, records[-1].offset + 1 if records else position
            records.append(record)
        return records, max(position, stable)

    def truncate(self, before: int) -> None:
        """Retention: the log begins at `before`."""
        index = bisect_left(self.offsets, before)
        del self.offsets[:index], self.records[:index]
        self.start = max(self.start, min(before, self.end))

    def compact(self, *, keep_last: int, expire_tombstones: bool) -> None:
        """Keep the newest record of each key below the last stable offset; the last `keep_last` offsets stay whole."""
        limit = min(self.stable, self.end - keep_last)
        newest: dict[bytes | None, int] = {}
        for record in self.records:
            if record is not None and record.offset < limit and self.visible(record.offset):
                newest[record.key] = record.offset
        kept: list[tuple[int, Record | None]] = []
        for offset, record in zip(self.offsets, self.records, strict=True):
            if offset >= limit:
                kept.append((offset, record))
            elif record is None:
                if not expire_tombstones:
                    kept.append((offset, None))
            elif newest.get(record.key) == offset and not (expire_tombstones and record.value is None):
                kept.append((offset, record))
        self.offsets = [offset for offset, _ in kept]
        self.records = [record for _, record in kept]


@dataclass(slots=True)
class MemoryTopic:
    """A topic: its facts and its partitions."""

    name: str
    topic_id: str
    cleanup_policy: str
    retention_ms: int
    delete_retention_ms: int
    max_message_bytes: int
    partitions: list[MemoryPartition] = field(default_factory=list)
    keyless: int = 0  # records without a key so far: they go round the partitions

    def facts(self) -> TopicFacts:
        return TopicFacts(
            self.name,
            self.topic_id,
            len(self.partitions),
            self.cleanup_policy,
            self.retention_ms,
            self.delete_retention_ms,
            self.max_message_bytes,
        )

    def partition(self, number: int) -> MemoryPartition:
        if not 0 <= number < len(self.partitions):
            raise NotFound(f"topic {self.name} has no partition {number}", next_step="check the partition number")
        return self.partitions[number]

    def place(self, key: bytes | None) -> int:
        """The partition of a key, as Java's producer and our own choose it."""
        if key is None:
            self.keyless += 1
            return (self.keyless - 1) % len(self.partitions)
        return (murmur2(key) & 0x7FFFFFFF) % len(self.partitions)


def murmur2(data: Sequence[int]) -> int:
    """The 32-bit MurmurHash2 of Kafka's default partitioner."""
    mask, m = 0xFFFFFFFF, 0x5BD1E995
    length = len(data)
    h = 0x9747B28C ^ length
    whole = length - length % 4
    for i in range(0, whole, 4):
        k = (data[i] | data[i + 1] << 8 | data[i + 2] << 16 | data[i + 3] << 24) * m & mask
        h = (h * m & mask) ^ ((k ^ k >> 24) * m & mask)
    if length > whole:
        for i, byte in enumerate(data[whole:]):
            h ^= byte << 8 * i
        h = h * m & mask
    h = (h ^ h >> 13) * m & mask
    return h ^ h >> 15
