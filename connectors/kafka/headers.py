"""Reading a small topic once with its records' headers, as the dead letters are read.

Headers are left out everywhere else because they cost on every record of a whole history.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import NamedTuple

from confluent_kafka import Consumer, Message, TopicPartition

from connectors.kafka.failures import foreign, mapped
from connectors.kafka.ranges import bounds_of_all, open_consumer
from connectors.kafka.records import gather, split
from connectors.kafka.settings import KafkaSettings
from connectors.kafka.thread import ClientThread
from connectors.protocols import Record

_BATCH = 1000
_WAIT_S = 1.0


class Headed(NamedTuple):
    """A record with its headers, values decoded as UTF-8."""

    headers: Mapping[str, str]
    record: Record


async def read_headed(settings: KafkaSettings, topic: str) -> AsyncIterator[Headed]:
    """Every record of the topic from its beginning to the stable end of now. Raises NotFound, Unreachable."""
    thread = ClientThread(f"kafka-headed-{topic}")
    doing = f"reading topic {topic}"
    consumer: Consumer | None = None
    try:
        consumer = await thread.run(lambda: open_consumer(settings))
        opened = consumer
        ends = await thread.run(lambda: _assign(opened, settings, topic, doing))
        while ends:
            for item in await thread.run(lambda: _read(opened, ends, doing)):
                yield item
    finally:
        if consumer is not None:
            await thread.run(consumer.close)
        await thread.stop()


def _assign(consumer: Consumer, settings: KafkaSettings, topic: str, doing: str) -> dict[int, int]:
    """Begin at the beginning; the stable end of each partition that holds anything."""
    bounds = bounds_of_all(consumer, topic, doing, settings.request_timeout_s)
    ends = {partition: stable for partition, (earliest, stable) in bounds.items() if stable > earliest}
    with foreign(doing, reading=True):
        consumer.assign([TopicPartition(topic, partition, 0) for partition in ends])
    return ends


def _read(consumer: Consumer, ends: dict[int, int], doing: str) -> list[Headed]:
    """The next records; partitions whose end was reached (by a record or by end-of-partition) leave `ends`."""
    with foreign(doing, reading=True):
        messages = gather(consumer, _BATCH, _WAIT_S)
    records, events = split(messages)
    good = [m for m in messages if m.error() is None]
    headed = [
        Headed(_headers(m), r) for m, r in zip(good, records, strict=True) if r.offset < ends.get(r.partition, -1)
    ]
    for record in records:
        if record.offset + 1 >= ends.get(record.partition, record.offset + 2):
            del ends[record.partition]
    for event in events:
        error, partition, offset = event.error(), event.partition(), event.offset()
        if error is not None and error.name() != "_PARTITION_EOF":
            raise mapped(error, doing, reading=True)
        if partition is not None and offset is not None and offset >= ends.get(partition, offset + 1):
            del ends[partition]
    return headed


def _headers(message: Message) -> dict[str, str]:
    headers = message.headers() or []
    pairs = headers.items() if isinstance(headers, dict) else headers
    return {
        str(name): value if isinstance(value, str) else (value or b"").decode(errors="replace") for name, value in pairs
    }
