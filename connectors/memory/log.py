"""A whole Kafka in memory, as far as the pipeline can see one: topics, transactions, groups, commits.

It must never read a clock, start a thread or draw a random number of its own: a simulation has to repeat exactly.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

from connectors.errors import ContentRejected, NotFound, Refused, Unreachable
from connectors.memory.log_groups import MemoryGroup, MemoryReader
from connectors.memory.log_topics import MemoryPartition, MemoryTopic, MemoryTransaction
from connectors.protocols import Bounds, Commit, KeyBatch, RangeBatch, Record, TopicFacts

_IDLE_LIMIT = 60


async def _yield(_timeout_s: float) -> None:
    await asyncio.sleep(0)


def _no_fault(_operation: str, _topic: str) -> None:
    return None


class MemoryLog:
    """`Log` and `RecordSink` in memory.

    `clock`: seconds; sessions expire by it. `idle`: what a read that found nothing does with its time-out (the default
    lets other tasks run once). `fault`: called before every operation with its name and topic; raises what should fail.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = lambda: 0.0,
        idle: Callable[[float], Awaitable[None]] = _yield,
        fault: Callable[[str, str], None] = _no_fault,
        session_timeout_s: float = 45.0,
        range_records: int = 1000,
    ) -> None:
        self.clock = clock
        self.idle = idle
        self.reach = fault
        self.session_timeout_s = session_timeout_s
        self._range_records = range_records
        self._topics: dict[str, MemoryTopic] = {}
        self._groups: dict[tuple[str, str], MemoryGroup] = {}
        self._created = 0

    # ------------------------------------------------------------------ Log

    async def facts(self, topic: str) -> TopicFacts:
        self.reach("facts", topic)
        return self.topic(topic).facts()

    async def bounds(self, topic: str) -> Mapping[int, Bounds]:
        self.reach("bounds", topic)
        return {part.number: Bounds(part.start, part.stable) for part in self.topic(topic).partitions}

    def group_reader(self, topic: str, group: str) -> MemoryReader:
        return MemoryReader(self, topic, self.group(topic, group), f"{group} on {topic}")

    async def read_range(self, topic: str, partition: int, start: int, end: int) -> AsyncIterator[RangeBatch]:
        position, idle = start, 0
        while True:
            if start >= end:
                yield RangeBatch([], start, True)
                return
            self.reach("read_range", topic)
            part = self.topic(topic).partition(partition)
            records, position = part.read(max(position, part.start), self._range_records)
            idle = 0 if records else idle + 1
            if position > end:
                records = [record for record in records if record.offset < end]
            done = position >= end
            if records or done:
                yield RangeBatch(records, position, done)
            if done:
                return
            if idle > _IDLE_LIMIT:
                raise Unreachable(f"reading {topic} partition {partition}: nothing below {end} came")
            if not records:
                await self.idle(1.0)

    async def read_keys(
        self, topic: str, partition: int, start: int, end: int, digest: Callable[[bytes], bytes]
    ) -> AsyncIterator[KeyBatch]:
        async for batch in self.read_range(topic, partition, start, end):
            yield KeyBatch(
                [digest(record.key or b"") for record in batch.records],
                [record.offset for record in batch.records],
                [record.value is None for record in batch.records],
                batch.position,
                batch.done,
            )

    async def committed(self, group: str, topic: str) -> Mapping[int, Commit]:
        self.reach("committed", topic)
        self.topic(topic)
        return dict(self.group(topic, group).commits)

    async def commit_offsets(self, group: str, topic: str, commits: Mapping[int, Commit]) -> None:
        """Raises Refused when the group has members: they alone commit for it."""
        self.reach("commit_offsets", topic)
        known = self.topic(topic)
        for number in commits:
            known.partition(number)
        if self.group(topic, group).members:
            raise Refused(f"committing for group {group}: the group has members", next_step="close its readers first")
        self.group(topic, group).commits.update(commits)

    # ------------------------------------------------------------------ RecordSink

    async def send(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]] = ()
    ) -> None:
        self.reach("send", topic)
        known = self.topic(topic)
        size = sum(map(len, (key or b"", value or b"", *(part for _, part in headers))))
        if size > known.max_message_bytes:
            raise ContentRejected(
                f"writing to {topic}: a record of {size} bytes is over its max.message.bytes",
                next_step="raise the topic's max.message.bytes, or make the record smaller",
            )
        known.partitions[known.place(key)].append(key, value, round(self.clock() * 1000))

    def tail(self, topic: str) -> MemoryTail:
        """All of a topic from its beginning, as `connectors.kafka.ranges.TopicTail`."""
        return MemoryTail(self, topic)

    # ------------------------------------------------------------------ what a test or a simulation does

    def create_topic(
        self,
        name: str,
        partitions: int = 1,
        *,
        cleanup_policy: str = "compact",
        retention_ms: int = 604_800_000,
        delete_retention_ms: int = 86_400_000,
        max_message_bytes: int = 1_048_588,
    ) -> MemoryTopic:
        """A name that was deleted gets a new topic id."""
        if name in self._topics:
            raise Refused(f"topic {name} exists")
        self._created += 1
        topic = self._topics[name] = MemoryTopic(
            name, f"memory-{self._created}", cleanup_policy, retention_ms, delete_retention_ms, max_message_bytes
        )
        self.add_partitions(name, partitions)
        return topic

    def delete_topic(self, name: str) -> None:
        """The brokers forget the groups' commits with it."""
        self._topics.pop(name, None)
        for (topic, _), group in self._groups.items():
            if topic == name:
                group.commits.clear()

    def add_partitions(self, name: str, total: int) -> None:
        topic = self.topic(name)
        topic.partitions += [MemoryPartition(number) for number in range(len(topic.partitions), total)]
        for (known, _), group in self._groups.items():
            if known == name and group.members:
                group.balance(total)

    def append(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        *,
        partition: int | None = None,
        timestamp_ms: int | None = None,
        transaction: MemoryTransaction | None = None,
    ) -> Record:
        """Put, or delete with `value` None; returns the record as the log holds it."""
        known = self.topic(topic)
        part = known.partition(known.place(key) if partition is None else partition)
        when = round(self.clock() * 1000) if timestamp_ms is None else timestamp_ms
        if transaction is None:
            offset = part.append(key, value, when)
        else:
            offset = transaction.append(part, key, value, timestamp_ms=when)
        return Record(part.number, offset, when, key, value)

    def transaction(self) -> MemoryTransaction:
        return MemoryTransaction()

    def skip(self, topic: str, partition: int, count: int) -> None:
        """Leave a gap of offsets at the end."""
        self.topic(topic).partition(partition).skip(count)

    def compact(self, topic: str, *, keep_last: int = 0, expire_tombstones: bool = False) -> None:
        """Run the log cleaner; the newest `keep_last` offsets are left alone, as the active segment is."""
        for part in self.topic(topic).partitions:
            part.compact(keep_last=keep_last, expire_tombstones=expire_tombstones)

    def truncate(self, topic: str, partition: int, before: int) -> None:
        """Retention: drop every offset below `before`."""
        self.topic(topic).partition(partition).truncate(before)

    def assign(self, topic: str, group: str, owners: Mapping[int, MemoryReader]) -> None:
        """Decide who shall hold these partitions, until a member joins or leaves."""
        self.group(topic, group).target.update(owners)

    def expire(self, topic: str, group: str, member: MemoryReader) -> None:
        """End a member's session at once. It is a zombie until its next read tells it so."""
        self.group(topic, group).throw_out(member, self.partition_count(topic))

    def expire_silent(self, group: MemoryGroup, topic: str, *, but: MemoryReader) -> None:
        """End the session of every other member that was silent for the session time-out."""
        for member in list(group.members):
            if member is not but and self.clock() - member.seen_s > self.session_timeout_s:
                group.throw_out(member, self.partition_count(topic))

    # ------------------------------------------------------------------ looking in

    def topic(self, name: str) -> MemoryTopic:
        found = self._topics.get(name)
        if found is None:
            raise NotFound(f"topic {name} does not exist", next_step="create it, or correct its name")
        return found

    def partition_count(self, name: str) -> int:
        found = self._topics.get(name)
        return len(found.partitions) if found else 0

    def group(self, topic: str, group: str) -> MemoryGroup:
        return self._groups.setdefault((topic, group), MemoryGroup())


class MemoryTail:
    """As `connectors.kafka.ranges.TopicTail`."""

    def __init__(self, log: MemoryLog, topic: str) -> None:
        self._log = log
        self._topic = topic
        self._positions: dict[int, int] = {}
        self._ends: dict[int, int] = {}
        self.caught_up = False

    async def start(self) -> None:
        bounds = await self._log.bounds(self._topic)
        self._positions = {number: bound.earliest for number, bound in bounds.items()}
        self._ends = {number: bound.stable for number, bound in bounds.items()}
        self._look()

    async def read(self, timeout_s: float, max_records: int = 1000) -> list[Record]:
        records = self._collect(max_records)
        if not records:
            await self._log.idle(timeout_s)
            records = self._collect(max_records)
        self._look()
        return records

    async def close(self) -> None:
        self._positions = {}

    def _collect(self, max_records: int) -> list[Record]:
        self._log.reach("tail", self._topic)
        records: list[Record] = []
        for number in self._positions:
            part = self._log.topic(self._topic).partition(number)
            found, self._positions[number] = part.read(self._positions[number], max_records - len(records))
            records += found
        return records

    def _look(self) -> None:
        caught = all(self._positions[number] >= end for number, end in self._ends.items())
        self.caught_up = self.caught_up or caught
