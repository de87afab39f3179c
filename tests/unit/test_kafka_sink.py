"""What the record sink does when its producer ends for good."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from queue import Empty, SimpleQueue

import pytest
from confluent_kafka import KafkaError, KafkaException

from connectors.errors import Terminal, UnknownOutcome
from connectors.kafka import producer
from connectors.kafka.producer import KafkaSink
from connectors.kafka.settings import KafkaSettings

ENDS = KafkaError(KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER, "sequence")  # as an answer carries it


class FakeMessage:
    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return 7


class FakeProducer:
    """Answers at the next poll, with `error` if it is set; once it `is_over`, it takes no more."""

    def __init__(self) -> None:
        self.is_over = False
        self.error: KafkaError | None = None
        self.taken: list[bytes] = []
        self._waiting = SimpleQueue[Callable[[KafkaError | None, FakeMessage], None]]()

    def produce(self, topic: str, value: bytes, key: bytes, *, on_delivery: Callable[..., None], **_: object) -> None:
        if self.is_over:
            raise KafkaException(KafkaError(KafkaError._FATAL, "over"))
        self.taken.append(value)
        self._waiting.put(on_delivery)

    def poll(self, _: float) -> None:
        with suppress(Empty):
            self._waiting.get(timeout=0.01)(self.error, FakeMessage())

    def __len__(self) -> int:
        return self._waiting.qsize()


@pytest.fixture
async def opened(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[KafkaSink, list[FakeProducer]]]:
    made: list[FakeProducer] = []

    def make(*_: object, **__: object) -> FakeProducer:
        made.append(FakeProducer())
        return made[-1]

    monkeypatch.setattr(producer, "_open", make)
    sink = KafkaSink(KafkaSettings("nowhere:1"))
    await sink.start()
    yield sink, made
    await sink.close()


async def test_after_a_producer_that_has_ended_another_writes(
    opened: tuple[KafkaSink, list[FakeProducer]],
) -> None:
    sink, made = opened
    await sink.send("topic", b"key", b"first")
    made[0].is_over = True
    await asyncio.gather(*(sink.send("topic", b"key", value) for value in (b"second", b"third")))
    assert [one.taken for one in made] == [[b"first"], [b"second", b"third"]], "one follows, however many found out"


async def test_what_was_under_way_when_it_ended_may_have_been_written(
    opened: tuple[KafkaSink, list[FakeProducer]],
) -> None:
    sink, made = opened
    made[0].error = ENDS
    with pytest.raises(UnknownOutcome, match="OUT_OF_ORDER_SEQUENCE_NUMBER"):
        await sink.send("topic", b"key", b"value")
    made[0].error = KafkaError(KafkaError._STATE, "another")
    with pytest.raises(Terminal):
        await sink.send("topic", b"key", b"value")
