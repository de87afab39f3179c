"""What is taken from librdkafka's messages without making a record of each."""

from __future__ import annotations

import pytest
from confluent_kafka import Message

from connectors.kafka.records import keys_of


def message(offset: int, key: bytes | None, value: bytes | None) -> Message:
    return Message(topic="docs", partition=0, offset=offset, key=key, value=value)


@pytest.mark.parametrize("key", [b"", None])
def test_a_missing_key_is_an_empty_one_and_an_empty_value_no_delete(key: bytes | None) -> None:
    messages = [message(3, b"a", b"{}"), message(5, key, b"{}"), message(6, b"c", b""), message(9, b"d", None)]
    digests, offsets, deleted = keys_of(messages, lambda key: b"<" + key + b">")
    assert digests == [b"<a>", b"<>", b"<c>", b"<d>"]
    assert offsets == [3, 5, 6, 9]
    assert deleted == [False, False, False, True]


def test_two_records_of_a_key_are_two() -> None:
    messages = [message(0, b"a", b"1"), message(1, b"a", b"2")]
    assert keys_of(messages, bytes.upper) == ([b"A", b"A"], [0, 1], [False, False])
