"""Bounded reads of one partition and tails of a whole topic, outside any group.

They must never skip or repeat a record, and never call a range done without proof (rule 7).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from connectors.errors import IdentityChanged, NotFound, Unreachable
from connectors.kafka.failures import LeaderUnknown, foreign, mapped, unreachable
from connectors.kafka.records import apart, gather, keys_of, offset_of, records_of, split
from connectors.kafka.settings import KafkaSettings, client_logger
from connectors.kafka.thread import ClientThread
from connectors.protocols import KeyBatch, RangeBatch, Record

MAX_RECORDS = 1000
MAX_KEYS = 8 * MAX_RECORDS
LOOK_S = 0.05
"""How long a tail that is closed may be read on: a command line waits for that at its end."""


def open_consumer(settings: KafkaSettings, prefetch_bytes: int | None = None) -> Consumer:
    """A consumer for manual assignment; it names a group to the broker, but never joins or commits."""
    with foreign("opening a Kafka consumer"):
        conf = settings.consumer(settings.reader_group, prefetch_bytes)
        return Consumer({**conf, "error_cb": _log_error}, logger=client_logger())


def bounds_of(consumer: Consumer, where: TopicPartition, doing: str, timeout_s: float) -> tuple[int, int]:
    """First and last stable offset of a partition; blocks, also while its leader is being chosen."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            with foreign(doing, reading=True):
                return consumer.get_watermark_offsets(where, timeout_s)
        except LeaderUnknown:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.05)


def bounds_of_all(consumer: Consumer, topic: str, doing: str, timeout_s: float) -> dict[int, tuple[int, int]]:
    """Of every partition; otherwise as `bounds_of`. Raises NotFound."""
    with foreign(doing, reading=True):
        found = consumer.list_topics(topic, timeout=timeout_s).topics[topic]
    if found.error is not None:
        raise mapped(found.error, doing, reading=True)
    return {p: bounds_of(consumer, TopicPartition(topic, p), doing, timeout_s) for p in sorted(found.partitions)}


def _log_error(error: KafkaError) -> None:
    client_logger().warning("%s", error.str())


async def read_range(
    settings: KafkaSettings, topic: str, partition: int, start: int, end: int, *, idle_timeout_s: float = 60.0
) -> AsyncIterator[RangeBatch]:
    """See `Log.read_range`. Raises Unreachable when nothing moves for `idle_timeout_s` although `end` was stable."""
    if start >= end:
        yield RangeBatch([], start, True)
        return
    prefetch_bytes = settings.prefetch_bytes // 8  # a replay is not faster than its endpoint, and has many partitions
    async with _opened(settings, topic, partition, start, end, idle_timeout_s, prefetch_bytes) as (thread, reading):
        done = False
        while not done:
            batch = await thread.run(reading.next)
            done = batch.done
            if batch.records or done:
                yield batch


async def read_keys(
    settings: KafkaSettings,
    topic: str,
    partition: int,
    start: int,
    end: int,
    digest: Callable[[bytes], bytes],
    *,
    idle_timeout_s: float = 60.0,
) -> AsyncIterator[KeyBatch]:
    """See `Log.read_keys`. Raises Unreachable as `read_range` does."""
    if start >= end:
        yield KeyBatch([], [], [], start, True)
        return
    prefetch_bytes = settings.prefetch_bytes
    async with _opened(settings, topic, partition, start, end, idle_timeout_s, prefetch_bytes) as (thread, reading):
        coming, done = thread.submit(lambda: reading.next_keys(digest)), False
        while not done:
            batch = await asyncio.wrap_future(coming)
            done = batch.done
            if not done:  # the next one is read while the caller looks at this one
                coming = thread.submit(lambda: reading.next_keys(digest))
            if batch.offsets or done:
                yield batch


@asynccontextmanager
async def _opened(
    settings: KafkaSettings,
    topic: str,
    partition: int,
    start: int,
    end: int,
    idle_timeout_s: float,
    prefetch_bytes: int,
) -> AsyncIterator[tuple[ClientThread, _Range]]:
    thread = ClientThread(f"kafka-range-{topic}-{partition}")
    try:
        reading = await thread.run(
            lambda: _Range(settings, topic, partition, start, end, idle_timeout_s, prefetch_bytes)
        )
        try:
            yield thread, reading
        finally:
            await thread.run(reading.close)
    finally:
        await thread.stop()


class _Range:
    """The blocking half of `read_range` and `read_keys`."""

    def __init__(
        self,
        settings: KafkaSettings,
        topic: str,
        partition: int,
        start: int,
        end: int,
        idle_timeout_s: float,
        prefetch_bytes: int,
    ) -> None:
        self._settings = settings
        self._where = TopicPartition(topic, partition)
        self._doing = f"reading {topic} partition {partition} from {start} to {end}"
        self._position = start
        self._end = end
        self._idle_timeout_s = idle_timeout_s
        self._moved_at = time.monotonic()
        self._batch_size = 1  # until the size of a record is known
        self._batch_bytes = prefetch_bytes // 2
        self._consumer = open_consumer(settings, prefetch_bytes)
        try:
            self._begin()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        with foreign(self._doing, reading=True):
            self._consumer.close()

    def _begin(self) -> None:
        """Assign at the position, or at the log's first offset where retention has moved it beyond."""
        earliest, stable = bounds_of(self._consumer, self._where, self._doing, self._settings.request_timeout_s)
        if self._position > stable:
            raise IdentityChanged(
                f"{self._doing}: the log ends at {stable}, below position {self._position}",
                next_step="the topic was recreated or truncated; this build must be started anew",
            )
        self._position = max(self._position, earliest)
        with foreign(self._doing, reading=True):
            self._consumer.assign([TopicPartition(self._where.topic, self._where.partition, self._position)])

    def next(self) -> RangeBatch:
        """The next batch; empty when nothing came within a second."""
        records = records_of(self._messages())
        return RangeBatch(records, self._position, self._position >= self._end)

    def next_keys(self, digest: Callable[[bytes], bytes]) -> KeyBatch:
        """As `next`, of up to MAX_KEYS or a little more: so small are they that the way to the event loop counts."""
        batch = KeyBatch([], [], [], self._position, False)
        while len(batch.offsets) < MAX_KEYS and (messages := self._messages()):
            digests, offsets, deleted = keys_of(messages, digest)
            batch.digests.extend(digests)
            batch.offsets.extend(offsets)
            batch.deleted.extend(deleted)
        return batch._replace(position=self._position, done=self._position >= self._end)

    def _messages(self) -> list[Message]:
        """What came within a second and is in the range; the position is moved, events are taken."""
        if self._position >= self._end:  # all of it is gone from the log
            return []
        with foreign(self._doing, reading=True):
            messages = gather(self._consumer, self._batch_size, 1.0)
        if not messages:
            self._check_idle()
            return []
        # A batch of huge documents must not fill the memory; one of small ones should be as large as may be.
        per_record = max(1, sum(map(len, messages)) // len(messages))
        messages, events = apart(messages)
        if messages:
            self._moved_at = time.monotonic()
            self._batch_size = max(1, min(MAX_RECORDS, self._batch_bytes // per_record))
            self._position = offset_of(messages[-1]) + 1
            if self._position > self._end:
                messages = [message for message in messages if offset_of(message) < self._end]
        for event in events:
            self._take_event(event)
        return messages

    def _take_event(self, message: Message) -> None:
        error, offset = message.error(), message.offset()
        if error is None:
            return
        if error.code() == KafkaError._PARTITION_EOF:
            if offset is not None:
                self._position = max(self._position, offset)
        elif error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            self._begin()  # retention passed us while we read; anything else is IdentityChanged
        else:
            failure = mapped(error, self._doing, reading=True)
            if not isinstance(failure, Unreachable):
                raise failure
            self._check_idle()

    def _check_idle(self) -> None:
        # The end was stable once, so the broker we ask now can only lag behind, or be away.
        if time.monotonic() - self._moved_at > self._idle_timeout_s:
            raise unreachable(f"{self._doing}: nothing below {self._end} came for {self._idle_timeout_s:g} s")


class TopicTail:
    """All of a small topic from its beginning, then for ever what is added: a view of `.state` or `.progress`.

    `start`, then `read` over and over; `caught_up` turns true, and stays so, once everything that was in the topic at
    `start` has been returned by `read`. Partitions added later are not seen. `close` last.
    """

    def __init__(self, settings: KafkaSettings, topic: str) -> None:
        self._settings = settings
        self._topic = topic
        self._doing = f"following topic {topic}"
        self._thread = ClientThread(f"kafka-tail-{topic}")
        self._consumer: Consumer | None = None
        self._behind: dict[int, int] = {}  # partition -> the stable end at start that was not reached yet
        self._closing = False
        self.caught_up = False

    async def start(self) -> None:
        """Raises NotFound for an unknown topic, Unreachable when no broker answers."""
        await self._thread.run(self._open)
        self.caught_up = not self._behind

    async def read(self, timeout_s: float, max_records: int = MAX_RECORDS) -> list[Record]:
        """What came, in offset order for each partition; [] when nothing did. Not to be cancelled in between."""
        records = await self._thread.run(lambda: self._read(timeout_s, max_records))
        self.caught_up = not self._behind
        return records

    async def close(self) -> None:
        """Does not wait out a read that is under way, whose caller may have gone."""
        self._closing = True
        await self._thread.run(self._close)
        await self._thread.stop()

    def _open(self) -> None:
        consumer = self._consumer = open_consumer(self._settings)
        bounds = bounds_of_all(consumer, self._topic, self._doing, self._settings.request_timeout_s)
        self._behind = {partition: stable for partition, (earliest, stable) in bounds.items() if stable > earliest}
        with foreign(self._doing, reading=True):
            consumer.assign([TopicPartition(self._topic, p, earliest) for p, (earliest, _) in bounds.items()])

    def _read(self, timeout_s: float, max_records: int) -> list[Record]:
        if self._consumer is None:
            raise RuntimeError(f"{self._doing}: start() was not called")
        deadline = time.monotonic() + timeout_s
        records: list[Record] = []
        while not records:
            with foreign(self._doing, reading=True):
                messages = gather(self._consumer, max_records, min(LOOK_S, max(0.0, deadline - time.monotonic())))
            records, events = split(messages)
            self._behind = {
                partition: end
                for partition, end in self._behind.items()
                if not any(record.partition == partition and record.offset + 1 >= end for record in records)
            }
            for event in events:
                self._take_event(event)
            if self._closing or time.monotonic() >= deadline or (events and not self._behind):
                break
        return records

    def _take_event(self, message: Message) -> None:
        error, partition, offset = message.error(), message.partition(), message.offset()
        if error is None:
            return
        if error.code() != KafkaError._PARTITION_EOF:
            failure = mapped(error, self._doing, reading=True)
            if isinstance(failure, NotFound | IdentityChanged):  # it was there at `start`
                raise IdentityChanged(
                    f"topic {self._topic} was deleted or created anew while it was followed",
                    next_step="start again: crossfade worker; it says what must be restored",
                ) from failure
            raise failure
        if partition is not None and offset is not None and offset >= self._behind.get(partition, offset + 1):
            del self._behind[partition]

    def _close(self) -> None:
        if self._consumer is not None:
            with foreign(self._doing, reading=True):
                self._consumer.close()
            self._consumer = None
