"""Appending records: one by one with an awaitable acknowledgement, atomically, and in bulk.

A record must never count as written before all in-sync replicas have it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from connectors.errors import CrossfadeError, Fenced, Terminal, Transient, UnknownOutcome
from connectors.kafka.failures import foreign, kind_of, mapped
from connectors.kafka.settings import KafkaSettings, client_logger
from connectors.kafka.thread import ClientThread
from connectors.protocols import Write

_POLL_S = 0.05
_ENDING = (
    KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER,
    KafkaError.UNKNOWN_PRODUCER_ID,
    KafkaError.INVALID_PRODUCER_EPOCH,
    KafkaError.INVALID_PRODUCER_ID_MAPPING,
)
"""What a record is answered that an idempotent producer ends with: an answer does not say that the error is fatal."""


def _log_error(error: KafkaError) -> None:
    client_logger().warning("%s", error.str())


def _open(settings: KafkaSettings, *, linger_ms: int = 5, transactional_id: str | None = None) -> Producer:
    conf = settings.producer(linger_ms=linger_ms, transactional_id=transactional_id)
    with foreign("opening a Kafka producer"):
        return Producer({**conf, "error_cb": _log_error}, logger=client_logger())


class KafkaSink:
    """`connectors.protocols.RecordSink`. `start` first, `close` last: it waits for what is still under way.

    An idempotent producer may end for good (librdkafka's introduction, "Fatal producer errors"); another follows it.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._producer: Producer | None = None
        self._ended: list[Producer] = []
        self._renewing = asyncio.Lock()
        self._thread: ClientThread | None = None
        self._closing = False
        self._polling: asyncio.Future[None] | None = None

    async def start(self) -> None:
        self._thread = ClientThread("kafka-sink")
        self._producer = await self._thread.run(lambda: _open(self._settings))
        self._polling = asyncio.wrap_future(self._thread.submit(self._poll))

    async def send(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]] = ()
    ) -> None:
        """Raises ContentRejected, NotFound, AccessDenied; UnknownOutcome when no acknowledgement came in time, or its
        producer ended before one came."""
        await self.append(topic, key, value, headers=headers)

    async def append(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        *,
        headers: Sequence[tuple[str, bytes]] = (),
        partition: int = -1,
        timestamp_ms: int = 0,
    ) -> tuple[int, int]:
        """As `send`; returns (partition, offset). `partition` -1 goes by the key, `timestamp_ms` 0 is now."""
        if self._producer is None or self._closing:
            raise Terminal("the record sink is not open", next_step="call start() first")
        loop = asyncio.get_running_loop()
        landed: asyncio.Future[tuple[int, int]] = loop.create_future()

        def settle(error: KafkaError | None, message: Message) -> None:  # in the polling thread
            where = (message.partition() or 0, message.offset() or 0)
            loop.call_soon_threadsafe(_settle, landed, _of_delivery(error, doing) if error else None, where)

        doing = f"writing to {topic}"
        while True:
            if self._closing:
                raise Terminal(f"{doing}: the record sink is being closed", next_step="send before close()")
            producer = self._producer
            try:
                with foreign(doing):
                    producer.produce(
                        topic,
                        value,
                        key,
                        partition=partition,
                        on_delivery=settle,
                        timestamp=timestamp_ms,
                        headers=list(headers),
                    )
                break
            except CrossfadeError as raised:
                cause = raised.__cause__
                if isinstance(cause, KafkaException) and _is_over(cause.args[0]):
                    await self._follow(producer)
                    continue
                if not isinstance(cause, BufferError):
                    raise
            await asyncio.sleep(_POLL_S)  # the local queue is full; it empties, or its records time out
        return await landed

    async def close(self) -> None:
        if self._thread is None or self._closing:
            return
        self._closing = True
        if self._polling is not None:
            await self._polling
        await self._thread.stop()

    async def _follow(self, ended: Producer) -> None:
        async with self._renewing:
            if self._producer is ended:
                client_logger().warning("a producer has ended for good, another follows it")
                following = await asyncio.to_thread(lambda: _open(self._settings))
                self._ended.append(ended)  # first: its last answers must be waited for
                self._producer = following

    def _poll(self) -> None:
        while not self._closing or any(map(len, self._producers())):
            for producer in self._producers():
                producer.poll(_POLL_S)
            for producer in [one for one in self._ended if not len(one)]:
                self._ended.remove(producer)

    def _producers(self) -> list[Producer]:
        return [*self._ended, *([self._producer] if self._producer is not None else [])]


def _is_over(error: KafkaError) -> bool:
    return error.fatal() or error.code() == KafkaError._FATAL


def _of_delivery(error: KafkaError, doing: str) -> CrossfadeError:
    if _is_over(error) or error.code() in _ENDING:
        return UnknownOutcome(
            f"{doing}: its producer ended before the answer ({error.name()})", next_step="the same call is repeated"
        )
    return mapped(error, doing)


def _settle(landed: asyncio.Future[tuple[int, int]], error: CrossfadeError | None, where: tuple[int, int]) -> None:
    if landed.done():  # its caller was cancelled
        return
    if error is not None:
        landed.set_exception(error)
    else:
        landed.set_result(where)


class TransactionalProducer:
    """Atomic writes under a fixed transactional id: whoever fenced last is the only one who can write.

    Call order: `fence`, then `write` over and over, `close` last. After UnknownOutcome call `fence` again and read
    back what stands: the write was then either made as a whole or not at all.
    """

    def __init__(self, settings: KafkaSettings, transactional_id: str) -> None:
        self._settings = settings
        self._id = transactional_id
        self._doing = f"writing as {transactional_id}"
        self._thread = ClientThread(f"kafka-transactions-{transactional_id}")
        self._producer: Producer | None = None

    async def fence(self) -> None:
        """Shut every earlier producer of this id out, and settle what it left open. Raises Transient, AccessDenied."""
        await self._thread.run(self._fence)

    async def write(self, records: Sequence[Write]) -> None:
        """All of them or none. Raises Fenced when another producer of this id has fenced since.

        Any other error but UnknownOutcome means that nothing was written.
        """
        if records:
            await self._thread.run(lambda: self._write(records))

    async def close(self) -> None:
        def drop() -> None:
            self._producer = None

        await self._thread.run(drop)
        await self._thread.stop()

    def _fence(self) -> None:
        self._producer = None
        producer = _open(self._settings, transactional_id=self._id)
        with foreign(f"fencing as {self._id}", reading=True):
            producer.init_transactions(self._settings.request_timeout_s)
        self._producer = producer

    def _write(self, records: Sequence[Write]) -> None:
        producer = self._producer
        if producer is None:
            raise Terminal(f"{self._doing}: not fenced", next_step="call fence() first")
        for attempt in (1, 2, 3):
            failure = self._try(producer, records)
            if failure is None:
                return
            # It was aborted as a whole, so it may be repeated; the first write after an abort can fail for that alone.
            if attempt == 3 or not isinstance(failure, Transient) or self._producer is None:
                raise failure

    def _try(self, producer: Producer, records: Sequence[Write]) -> CrossfadeError | None:
        """One transaction. Returns why it was aborted; raises Fenced, UnknownOutcome, and what never began."""
        failures: list[KafkaError] = []

        def landed(error: KafkaError | None, _: Message) -> None:
            if error is not None and error.code() not in (KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT):
                failures.append(error)

        try:
            with foreign(self._doing):
                producer.begin_transaction()
                for topic, key, value, headers in records:
                    producer.produce(topic, value, key, on_delivery=landed, headers=list(headers))
        except CrossfadeError:
            self._abort(producer)
            raise
        for attempt in (1, 2, 3):
            try:
                producer.commit_transaction(self._settings.request_timeout_s)
                return None
            except KafkaException as raised:
                error: KafkaError = raised.args[0]
                if error.retriable() and not error.fatal() and attempt < 3:
                    continue  # librdkafka resumes the same commit
                fenced = issubclass(kind_of(error), Fenced)
                if error.txn_requires_abort() and not fenced:
                    self._abort(producer)
                    if failures:  # a record's own error says more than "the transaction has to be aborted"
                        return mapped(failures[0], self._doing, reading=True)
                    return Transient(f"{self._doing}: aborted ({error.name()})", next_step="the same call is repeated")
                self._producer = None  # whatever comes next has to fence first
                if fenced:
                    raise mapped(error, self._doing) from raised
                raise UnknownOutcome(
                    f"{self._doing}: no answer whether the write was made ({error.name()})",
                    next_step="fence again and read back",
                ) from raised
        return None

    def _abort(self, producer: Producer) -> None:
        try:
            producer.abort_transaction(self._settings.request_timeout_s)
        except KafkaException as raised:
            # Nothing was committed; the next fence aborts it on the broker's side.
            self._producer = None
            client_logger().warning("%s: aborting failed: %s", self._doing, raised.args[0].str())


@dataclass(frozen=True, slots=True)
class Produced:
    """How many records of a bulk write were acknowledged, and the last offset of each partition."""

    count: int
    last_offsets: dict[int, int]


def produce_many(
    settings: KafkaSettings, topic: str, records: Iterable[tuple[bytes | None, bytes | None, int | None]]
) -> Produced:
    """Write (key, value or None to delete, timestamp_ms or None for now) in order. Blocks: run it in a thread.

    Raises the first failure, after everything under way was settled; its message says how many were acknowledged.
    """
    producer = _open(settings, linger_ms=20)
    failures: list[KafkaError] = []
    last: dict[int, int] = {}
    count = 0

    def landed(error: KafkaError | None, message: Message) -> None:
        nonlocal count
        if error is not None:
            failures.append(error)
            return
        count += 1
        last[message.partition() or 0] = message.offset() or 0

    doing = f"writing to {topic}"
    with foreign(doing):
        for sent, (key, value, timestamp_ms) in enumerate(records):
            while True:
                try:
                    producer.produce(topic, value, key, on_delivery=landed, timestamp=timestamp_ms or 0)
                    break
                except BufferError:
                    producer.poll(_POLL_S)
            if sent % 1000 == 999:
                producer.poll(0)
            if failures:
                break
        while len(producer):
            producer.flush(1.0)
    if failures:
        raise mapped(failures[0], f"{doing} ({count} records were acknowledged)")
    return Produced(count, last)
