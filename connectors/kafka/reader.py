"""A member of a consumer group: delivers batches, tells its owner of every rebalance, commits what it is told to.

It must never choose where a read begins, commit by itself, or deliver a record of a partition that was taken away.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from typing import TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from connectors.errors import AccessDenied, CrossfadeError, Fenced, IdentityChanged, Terminal, Transient
from connectors.kafka.failures import foreign, kind_of, mapped, unreachable
from connectors.kafka.records import gather, split
from connectors.kafka.settings import KafkaSettings, client_logger
from connectors.kafka.thread import ClientThread
from connectors.protocols import Commit, Rebalance, Record

T = TypeVar("T")
log = logging.getLogger(__name__)

_FIRST_READ = 64  # records, before their size is known; no more than is fetched ahead can come at once
_COMMIT_RETRY_S = 3.0  # a generation that moves on while we are rejoining is no eviction; it settles in this time


class KafkaGroupReader:
    """`connectors.protocols.GroupReader` over librdkafka, with cooperative-sticky assignment.

    Every consumer call runs in one thread. Rebalances are served inside `read` and `close`; the owner's callbacks run
    on the event loop, and may commit meanwhile. What an owner's callback raises comes out of the `read` it happened
    in; partitions whose `assigned` failed are held back and offered again in the next `read`.
    """

    def __init__(self, settings: KafkaSettings, topic: str, group: str) -> None:
        self._settings = settings
        self._topic = topic
        self._group = group
        self._doing = f"reading topic {topic} in group {group}"
        self._thread = ClientThread(f"kafka-reader-{group}")
        self._consumer: Consumer | None = None
        self._owner: Rebalance | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        # Of the event loop: what was delivered, what should be paused, a read whose caller was cancelled.
        self._delivered: dict[int, int] = {}
        self._paused: frozenset[int] = frozenset()
        self._unfinished: Future[tuple[list[Record], dict[int, int]]] | None = None
        # Of the thread.
        self._reached: dict[int, int] = {}  # next offset of each partition held
        self._offered: set[int] = set()  # ours by assignment, but the owner has not said where to begin
        self._taken: set[int] = set()  # taken away during the current call
        self._applied: set[int] = set()  # paused in the consumer
        self._at_once = (
            _FIRST_READ  # records that one read may hand over: a part of what is fetched, by their last size
        )
        self._suspect = False  # librdkafka said all brokers are down
        self._failures: list[BaseException] = []
        self._fatal: CrossfadeError | None = None

    async def start(self, owner: Rebalance) -> None:
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        await self._thread.run(self._open)

    async def read(self, max_records: int, timeout_s: float) -> list[Record]:
        """See `GroupReader.read`. A cancelled read loses nothing: the next one delivers what it had fetched."""
        future = self._unfinished or self._thread.submit(lambda: self._read(max_records, timeout_s))
        self._unfinished = future
        try:
            records, reached = await asyncio.shield(asyncio.wrap_future(future))
        finally:
            if future.done():
                self._unfinished = None
        self._delivered = reached
        return records

    def positions(self) -> Mapping[int, int]:
        return self._delivered

    def pause(self, partitions: Sequence[int]) -> None:
        """Takes effect with the next `read`; forgotten when the partition is taken away."""
        self._paused |= frozenset(partitions)

    def resume(self, partitions: Sequence[int]) -> None:
        self._paused -= frozenset(partitions)

    async def commit(self, commits: Mapping[int, Commit]) -> None:
        if commits:
            await self._thread.run(lambda: self._commit(commits), urgent=True)

    def member_id(self) -> str:
        """The name the coordinator gave this member; "" while it is none. May be called from anywhere."""
        return (self._consumer.memberid() or "") if self._consumer is not None else ""

    async def close(self) -> None:
        """Revoke what is held, leave the group. Raises what an owner's callback raised."""
        if self._closed:
            return
        self._closed = True
        try:
            await self._thread.run(self._close)
        finally:
            self._delivered = {}
            await self._thread.stop()

    # ------------------------------------------------------------------ in the thread

    def _open(self) -> None:
        with foreign(f"joining group {self._group}"):
            self._consumer = Consumer(
                {**self._settings.consumer(self._group), "error_cb": self._on_error}, logger=client_logger()
            )
            self._consumer.subscribe(
                [self._topic], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
            )

    def _open_consumer(self) -> Consumer:
        if self._consumer is None:
            raise Terminal(f"{self._doing}: the reader was not started, or is closed", next_step="call start() first")
        return self._consumer

    def _read(self, max_records: int, timeout_s: float) -> tuple[list[Record], dict[int, int]]:
        consumer = self._open_consumer()
        deadline = time.monotonic() + timeout_s
        self._taken.clear()
        self._apply_pauses(consumer)
        if self._offered:
            self._adopt(consumer)
        while True:
            self._raise_failure()
            with foreign(self._doing, reading=True):
                messages = gather(consumer, min(max_records, self._at_once), max(0.0, deadline - time.monotonic()))
            records, events = split(messages)
            if records:
                per_record = max(1, sum(map(len, messages)) // len(messages))
                self._at_once = max(1, self._settings.prefetch_bytes // 4 // per_record)
            for event in events:
                self._take_event(event)
            if self._taken:
                records = self._without_taken(consumer, records)
            if records:
                self._suspect = False
                self._reached.update({record[0]: record[1] + 1 for record in records})
                return records, dict(self._reached)
            self._raise_failure()
            if self._suspect:
                self._check_brokers(consumer, max(0.1, min(1.0, deadline - time.monotonic())))
            if time.monotonic() >= deadline:
                return [], dict(self._reached)

    def _raise_failure(self) -> None:
        if self._fatal is not None:
            raise self._fatal
        if self._failures:
            raise self._failures.pop(0)

    def _check_brokers(self, consumer: Consumer, timeout_s: float) -> None:
        # The event is sent once for an outage, and also for an idle connection that was closed: ask.
        try:
            with foreign(self._doing, reading=True):
                consumer.list_topics(self._topic, timeout=timeout_s)
        except Transient as raised:
            raise unreachable(self._doing) from raised
        self._suspect = False

    def _take_event(self, message: Message) -> None:
        error = message.error()
        if error is None:
            return
        partition, offset = message.partition(), message.offset()
        if error.code() == KafkaError._PARTITION_EOF:
            # Rule 6: only this crosses transaction markers and gaps at the end of the log.
            if partition in self._reached and partition not in self._taken and offset is not None:
                self._reached[partition] = max(self._reached[partition], offset)
            return
        failure = mapped(error, f"{self._doing}, partition {partition}", reading=True)
        if error.fatal() or isinstance(failure, IdentityChanged):
            self._fatal = failure
        else:
            self._failures.append(failure)

    def _on_error(self, error: KafkaError) -> None:
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self._suspect = True
        elif error.fatal():
            self._fatal = mapped(error, self._doing, reading=True)
        elif issubclass(kind_of(error), AccessDenied):
            self._failures.append(mapped(error, self._doing, reading=True))
        else:
            client_logger().warning("%s: %s", self._doing, error.str())

    def _without_taken(self, consumer: Consumer, records: list[Record]) -> list[Record]:
        """Drops what was fetched before a revocation of the same call; a partition that came back is read again."""
        for partition in self._taken & self._reached.keys():
            with foreign(self._doing, reading=True):
                consumer.seek(TopicPartition(self._topic, partition, self._reached[partition]))
        return [record for record in records if record[0] not in self._taken]

    def _apply_pauses(self, consumer: Consumer) -> None:
        wanted = self._paused & self._reached.keys()
        with foreign(self._doing, reading=True):
            if stop := wanted - self._applied:
                consumer.pause(self._topic_partitions(stop))
            if go := self._applied - wanted:
                consumer.resume(self._topic_partitions(go))
        self._applied = set(wanted)

    def _topic_partitions(self, partitions: Iterable[int]) -> list[TopicPartition]:
        return [TopicPartition(self._topic, partition) for partition in sorted(partitions)]

    def _tell(self, message: Coroutine[None, None, T]) -> T | None:
        """The owner's answer, or None after noting what it raised: librdkafka must never see an exception."""
        assert self._loop is not None
        answer = self._thread.ask(self._loop, message)
        try:
            error = answer.exception()
        except CancelledError:
            error = Terminal(f"{self._doing}: the event loop ended in the middle of a rebalance")
        if error is not None:
            self._failures.append(error)
            return None
        return answer.result()

    # ------------------------------------------------------------------ rebalances, inside poll, consume and close

    def _on_assign(self, consumer: Consumer, gained: list[TopicPartition]) -> None:
        self._offered |= {partition.partition for partition in gained}
        if not self._adopt(consumer):
            # librdkafka wants an answer, and would otherwise begin where auto.offset.reset says (rule 2).
            consumer.incremental_assign([])

    def _adopt(self, consumer: Consumer) -> bool:
        """Ask the owner where to begin, and begin exactly there. False when nothing was assigned."""
        assert self._owner is not None
        if not self._offered:
            return False
        try:
            committed = self._committed(consumer, self._offered)
        except CrossfadeError as raised:
            self._failures.append(raised)
            return False
        starts = self._tell(self._owner.assigned(committed))
        if starts is None:
            return False
        if missing := self._offered - starts.keys():
            self._failures.append(ValueError(f"the owner names no start for partitions {sorted(missing)}"))
            return False
        wanted = {partition: starts[partition] for partition in sorted(self._offered)}
        consumer.incremental_assign([TopicPartition(self._topic, *start) for start in wanted.items()])
        self._offered.clear()
        self._reached.update(wanted)
        self._delivered = {**self._delivered, **wanted}
        self._apply_pauses(consumer)
        return True

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        assert self._owner is not None
        held = self._held(partitions)
        if held:
            commits = self._tell(self._owner.revoked(held))
            if commits:
                try:
                    self._commit(commits)  # rule 9: while they are still ours
                except CrossfadeError as raised:
                    log.warning("%s: last commit of %s not made, they are read again: %s", self._doing, held, raised)
        self._let_go(consumer, held)

    def _on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        assert self._owner is not None
        held = self._held(partitions)
        if held:
            self._tell(self._owner.lost(held))
        self._let_go(consumer, held)

    def _held(self, partitions: list[TopicPartition]) -> list[int]:
        named = {partition.partition for partition in partitions}
        self._offered -= named
        return sorted(named & self._reached.keys())

    def _let_go(self, consumer: Consumer, held: list[int]) -> None:
        gone = set(held)
        self._taken |= gone
        self._applied -= gone
        self._reached = {p: offset for p, offset in self._reached.items() if p not in gone}
        self._delivered = {p: offset for p, offset in self._delivered.items() if p not in gone}
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self.resume, held)  # a pause ends with the ownership
        consumer.incremental_unassign(self._topic_partitions(held))

    # ------------------------------------------------------------------ offsets

    def _committed(self, consumer: Consumer, partitions: set[int]) -> dict[int, Commit | None]:
        doing = f"reading the commits of group {self._group}"
        with foreign(doing, reading=True):
            found = consumer.committed(self._topic_partitions(partitions), timeout=self._settings.request_timeout_s)
        for partition in found:
            if partition.error is not None:
                raise mapped(partition.error, doing, reading=True)
        return {p.partition: Commit(p.offset, p.metadata or "") if p.offset >= 0 else None for p in found}

    def _commit(self, commits: Mapping[int, Commit]) -> None:
        consumer = self._open_consumer()
        if strangers := sorted(commits.keys() - self._reached.keys()):
            raise Fenced(f"committing for group {self._group}: partitions {strangers} are not ours")
        deadline = time.monotonic() + _COMMIT_RETRY_S
        while True:
            error = self._try_commit(consumer, commits)
            if error is None:
                self._suspect = False
                return
            if error.code() not in (KafkaError.ILLEGAL_GENERATION, KafkaError.REBALANCE_IN_PROGRESS):
                break
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        raise mapped(error, f"committing for group {self._group}")

    def _try_commit(self, consumer: Consumer, commits: Mapping[int, Commit]) -> KafkaError | None:
        offsets = [TopicPartition(self._topic, p, commit.offset, commit.metadata) for p, commit in commits.items()]
        try:
            done = consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaException as raised:
            error: KafkaError = raised.args[0]
            return error
        return next((partition.error for partition in done if partition.error is not None), None)

    def _close(self) -> None:
        if self._consumer is None:
            return
        self._failures.clear()
        self._fatal = None
        with foreign(f"leaving group {self._group}"):
            self._consumer.close()
        self._consumer = None
        if self._failures:
            raise self._failures.pop(0)
