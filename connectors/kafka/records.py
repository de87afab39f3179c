"""librdkafka messages as `Record`s, and how a batch is fetched: the path every record of every topic takes.

Nothing may be added to it for each record: its cost is paid for every event of a whole history.
"""

from __future__ import annotations

from collections.abc import Sequence

from confluent_kafka import Consumer, Message

from connectors.protocols import Record

_new = tuple.__new__  # a NamedTuple's own constructor is a Python function and costs twice as much


def gather(consumer: Consumer, max_messages: int, timeout_s: float) -> list[Message]:
    """What is there now, or else what comes first within `timeout_s`.

    `consume` with a time-out would wait for a full batch, so that a single event were late by the whole time-out.
    """
    first = consumer.poll(timeout_s)
    if first is None:
        return []
    if max_messages == 1:
        return [first]
    messages = consumer.consume(max_messages - 1, 0)
    messages.insert(0, first)
    return messages


def split(messages: Sequence[Message], values: bool = True) -> tuple[list[Record], list[Message]]:
    """Records, and the events among them (end of partition, errors), each in the order they came."""
    if values:
        records = [
            _new(Record, (m.partition(), m.offset(), m.timestamp()[1], m.key(), m.value()))
            for m in messages
            if m.error() is None
        ]
    else:
        records = [
            _new(Record, (m.partition(), m.offset(), m.timestamp()[1], m.key(), None if m.value() is None else b""))
            for m in messages
            if m.error() is None
        ]
    if len(records) == len(messages):
        return records, []
    return records, [m for m in messages if m.error() is not None]
