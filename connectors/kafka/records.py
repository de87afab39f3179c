"""librdkafka messages as `Record`s, and how a batch is fetched: the path every record of every topic takes.

Nothing may be added to it for each record: its cost is paid for every event of a whole history.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, cast

from confluent_kafka import Consumer, Message

from connectors.protocols import Record

offset_of: Final = cast("Callable[[Message], int]", Message.offset)  # of a record; events may have none
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


def apart(messages: list[Message]) -> tuple[list[Message], list[Message]]:
    """Those that carry a record, and the events among them (end of partition, errors), each in the order they came."""
    if not any(map(Message.error, messages)):
        return messages, []
    return [m for m in messages if m.error() is None], [m for m in messages if m.error() is not None]


def records_of(messages: Sequence[Message]) -> list[Record]:
    """Of messages without events."""
    return [_new(Record, (m.partition(), m.offset(), m.timestamp()[1], m.key(), m.value())) for m in messages]


def split(messages: list[Message]) -> tuple[list[Record], list[Message]]:
    """Records, and the events among them."""
    carrying, events = apart(messages)
    return records_of(carrying), events


def keys_of(messages: Sequence[Message], digest: Callable[[bytes], bytes]) -> tuple[list[bytes], list[int], list[bool]]:
    """Of messages without events, without a `Record` of each: digests, offsets, and which are deletes."""
    deleted = [False] * len(messages)
    if not all(map(Message.value, messages)):  # an empty value, or none
        deleted = [m.value() is None for m in messages]
    keys = list(map(Message.key, messages))
    if not all(keys):
        keys = [key or b"" for key in keys]
    return list(map(digest, cast("list[bytes]", keys))), list(map(offset_of, messages)), deleted
