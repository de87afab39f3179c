"""One world for the log's contract tests, made of memory or of a real cluster: what producers and operators do.

Tests must reach a log only through the Protocols and through this.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from connectors.errors import Unreachable
from connectors.kafka.log import KafkaLog
from connectors.kafka.producer import KafkaSink
from connectors.kafka.settings import KafkaSettings
from connectors.memory.log import MemoryLog
from connectors.memory.log_groups import MemoryReader
from connectors.memory.log_topics import MemoryTransaction
from connectors.protocols import Commit, GroupReader, Log, Record, RecordSink

CONFIG = {"cleanup.policy": "compact,delete", "retention.ms": "-1"}
COMPACTING = {
    **CONFIG,
    "segment.ms": "100",
    "min.cleanable.dirty.ratio": "0.001",
    "delete.retention.ms": "0",
    "min.compaction.lag.ms": "0",
}


class Transaction(Protocol):
    async def put(self, topic: str, keys: Sequence[bytes], *, partition: int = 0) -> None: ...

    async def finish(self, *, commit: bool) -> None: ...


class World(Protocol):
    log: Log
    sink: RecordSink
    nowhere: Log  # its brokers never answer

    async def make_topic(self, partitions: int = 1, *, compacting: bool = False) -> str: ...

    async def recreate(self, topic: str) -> None: ...

    async def put(
        self, topic: str, key: bytes, value: bytes | None, *, partition: int = 0, timestamp_ms: int = 1000
    ) -> int:
        """Append; returns the offset."""
        ...

    async def begin(self) -> Transaction: ...

    async def truncate(self, topic: str, before: int) -> None:
        """Partition 0 begins at `before`."""
        ...

    async def compact(self, topic: str) -> None:
        """Appends one record of key `roll` to partition 0; returns when only the newest of each key is left."""
        ...

    async def outlive(self, topic: str, group: str, member: GroupReader) -> None:
        """Returns when the member's session is over; it does not know."""
        ...

    async def close(self) -> None: ...


async def until(condition: Callable[[], Awaitable[bool]], timeout_s: float = 60.0) -> None:
    deadline = asyncio.get_running_loop().time() + timeout_s
    while not await condition():
        assert asyncio.get_running_loop().time() < deadline, "the condition never came true"
        await asyncio.sleep(0.02)


async def stored(log: Log, topic: str, partition: int = 0) -> list[Record]:
    """All of a partition up to its stable end."""
    bound = (await log.bounds(topic))[partition]
    batches = log.read_range(topic, partition, bound.earliest, bound.stable)
    return [record async for batch in batches for record in batch.records]


class Owner:
    """An owner that begins at its commit, else where it was told, and notes everything it hears."""

    def __init__(self, starts: Mapping[int, int] | None = None, last: Mapping[int, Commit] | None = None) -> None:
        self.starts = dict(starts or {})
        self.last = dict(last or {})
        self.heard: list[tuple[str, list[int]]] = []
        self.committed: dict[int, Commit | None] = {}
        self.fail: dict[str, Exception] = {}

    async def assigned(self, committed: Mapping[int, Commit | None]) -> Mapping[int, int]:
        self._hear("assigned", sorted(committed))
        self.committed.update(committed)
        return {p: self.starts.get(p, commit.offset if commit else 0) for p, commit in committed.items()}

    async def revoked(self, partitions: Sequence[int]) -> Mapping[int, Commit]:
        self._hear("revoked", sorted(partitions))
        return {p: self.last[p] for p in partitions if p in self.last}

    async def lost(self, partitions: Sequence[int]) -> None:
        self._hear("lost", sorted(partitions))

    def _hear(self, what: str, partitions: list[int]) -> None:
        self.heard.append((what, partitions))
        if what in self.fail:
            raise self.fail.pop(what)

    def said(self, what: str) -> list[int]:
        return sorted(p for word, partitions in self.heard for p in partitions if word == what)


# ---------------------------------------------------------------------- memory


def _away(operation: str, topic: str) -> None:
    raise Unreachable(f"{operation} {topic}: no broker answers", next_step="start it")


class _MemoryTransaction:
    def __init__(self, log: MemoryLog) -> None:
        self._log = log
        self._transaction = MemoryTransaction()

    async def put(self, topic: str, keys: Sequence[bytes], *, partition: int = 0) -> None:
        for key in keys:
            self._log.append(topic, key, b"in a transaction", partition=partition, transaction=self._transaction)

    async def finish(self, *, commit: bool) -> None:
        if commit:
            self._transaction.commit()
        else:
            self._transaction.abort()


class MemoryWorld:
    def __init__(self, unique: Callable[[str], str]) -> None:
        self._unique = unique
        self.memory = MemoryLog()
        self.log: Log = self.memory
        self.sink: RecordSink = self.memory
        self.nowhere: Log = MemoryLog(fault=_away)

    async def make_topic(self, partitions: int = 1, *, compacting: bool = False) -> str:
        return self.memory.create_topic(
            self._unique("topic"), partitions, cleanup_policy="compact,delete", retention_ms=-1
        ).name

    async def recreate(self, topic: str) -> None:
        self.memory.delete_topic(topic)
        self.memory.create_topic(topic, 1)

    async def put(
        self, topic: str, key: bytes, value: bytes | None, *, partition: int = 0, timestamp_ms: int = 1000
    ) -> int:
        return self.memory.append(topic, key, value, partition=partition, timestamp_ms=timestamp_ms).offset

    async def begin(self) -> Transaction:
        return _MemoryTransaction(self.memory)

    async def truncate(self, topic: str, before: int) -> None:
        self.memory.truncate(topic, 0, before)

    async def compact(self, topic: str) -> None:
        await self.put(topic, b"roll", b"")
        self.memory.compact(topic, keep_last=1)

    async def outlive(self, topic: str, group: str, member: GroupReader) -> None:
        assert isinstance(member, MemoryReader)
        self.memory.expire(topic, group, member)

    async def close(self) -> None:
        return None


# ---------------------------------------------------------------------- Kafka


class _KafkaTransaction:
    def __init__(self, producer: Producer) -> None:
        self._producer = producer

    async def put(self, topic: str, keys: Sequence[bytes], *, partition: int = 0) -> None:
        for key in keys:
            self._producer.produce(topic, b"in a transaction", key, partition=partition)
        assert await asyncio.to_thread(self._producer.flush, 30) == 0

    async def finish(self, *, commit: bool) -> None:
        await asyncio.to_thread(self._producer.commit_transaction if commit else self._producer.abort_transaction, 30)


class KafkaWorld:
    def __init__(self, bootstrap_servers: str, unique: Callable[[str], str]) -> None:
        self._servers = bootstrap_servers
        self._unique = unique
        settings = KafkaSettings(bootstrap_servers, session_timeout_s=2.0, max_poll_interval_s=2.0)
        self.kafka = KafkaLog(settings)
        self.log: Log = self.kafka
        self.appender = KafkaSink(settings)
        self.sink: RecordSink = self.appender
        self.nowhere: Log = KafkaLog(KafkaSettings("127.0.0.1:1", request_timeout_s=1.0))
        self._topics: list[str] = []

    async def make_topic(self, partitions: int = 1, *, compacting: bool = False) -> str:
        name = self._unique("topic")
        await self.kafka.topics.ensure_topic(name, partitions, COMPACTING if compacting else CONFIG)
        self._topics.append(name)
        return name

    async def recreate(self, topic: str) -> None:
        await self.kafka.topics.delete_topic(topic)
        assert await self.kafka.topics.ensure_topic(topic, 1, CONFIG)

    async def put(
        self, topic: str, key: bytes, value: bytes | None, *, partition: int = 0, timestamp_ms: int = 1000
    ) -> int:
        where = await self.appender.append(topic, key, value, partition=partition, timestamp_ms=timestamp_ms)
        return where[1]

    async def begin(self) -> Transaction:
        producer = Producer({"bootstrap.servers": self._servers, "transactional.id": self._unique("transaction")})
        await asyncio.to_thread(producer.init_transactions, 30)
        producer.begin_transaction()
        return _KafkaTransaction(producer)

    async def truncate(self, topic: str, before: int) -> None:
        admin = AdminClient({"bootstrap.servers": self._servers})
        where = TopicPartition(topic, 0, before)
        await asyncio.wrap_future(admin.delete_records([where])[where])

    async def compact(self, topic: str) -> None:
        # Only a closed segment is cleaned; one is closed when a record's timestamp is segment.ms past its first.
        last = await self.put(topic, b"roll", b"", timestamp_ms=1_000_000)

        async def cleaned() -> bool:
            records = await stored(self.log, topic)
            assert records[-1].offset == last
            keys = [record.key for record in records]
            return len(keys) == len(set(keys))

        await until(cleaned)

    async def outlive(self, topic: str, group: str, member: GroupReader) -> None:
        admin = AdminClient({"bootstrap.servers": self._servers})

        async def empty() -> bool:
            found = await asyncio.wrap_future(admin.describe_consumer_groups([group])[group])
            return not found.members

        await until(empty)

    async def close(self) -> None:
        await self.appender.close()
        for topic in self._topics:
            await self.kafka.topics.delete_topic(topic)
