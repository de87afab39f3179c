"""Offsets while leadership is on its way: to a topic just made, or from a broker that leaves."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any, cast

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from connectors.errors import NotFound
from connectors.kafka import topics
from connectors.kafka.failures import LeaderUnknown
from connectors.kafka.ranges import bounds_of
from connectors.kafka.settings import KafkaSettings
from connectors.kafka.topics import Topics
from connectors.protocols import Bounds


class FakeAdmin:
    """A topic of two partitions from offset 3 to 3; the next `not_leading` questions find no leader of partition 1.

    `deleted` at the first of them: the topic is gone once it has been described.
    """

    def __init__(self) -> None:
        self.not_leading = 0
        self.deleted = False
        self.gone = False

    def describe_topics(self, collection: object, **_: object) -> Mapping[str, Future[Any]]:
        answer = Future[Any]()
        if self.gone:
            answer.set_exception(KafkaException(KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART)))
        else:
            answer.set_result(SimpleNamespace(partitions=[SimpleNamespace(id=0), SimpleNamespace(id=1)]))
        return {"docs": answer}

    def list_offsets(
        self, wanted: Mapping[TopicPartition, object], **_: object
    ) -> Mapping[TopicPartition, Future[Any]]:
        self.gone = self.deleted
        led = self.not_leading == 0
        self.not_leading = max(0, self.not_leading - 1)
        answers = {where: Future[Any]() for where in wanted}
        for where, answer in answers.items():
            if led or where.partition == 0:
                answer.set_result(SimpleNamespace(offset=3))
            else:
                answer.set_exception(KafkaException(KafkaError(KafkaError.NOT_LEADER_FOR_PARTITION)))
        return answers

    def poll(self, _: float) -> None:
        pass


@pytest.fixture
def admin(monkeypatch: pytest.MonkeyPatch) -> FakeAdmin:
    fake = FakeAdmin()
    monkeypatch.setattr(topics, "AdminClient", lambda *_, **__: fake)
    return fake


async def test_a_leader_that_does_not_know_it_yet_is_asked_again(admin: FakeAdmin) -> None:
    admin.not_leading = 3
    assert await Topics(KafkaSettings("broker:9092")).bounds("docs") == {0: Bounds(3, 3), 1: Bounds(3, 3)}


async def test_but_no_longer_than_a_request_may_take(admin: FakeAdmin) -> None:
    admin.not_leading = 1_000_000
    with pytest.raises(LeaderUnknown, match="NOT_LEADER_FOR_PARTITION"):
        await Topics(KafkaSettings("broker:9092", request_timeout_s=0.2)).bounds("docs")


async def test_a_topic_deleted_meanwhile_is_not_waited_for(admin: FakeAdmin) -> None:
    admin.not_leading, admin.deleted = 1_000_000, True
    with pytest.raises(NotFound):
        await Topics(KafkaSettings("broker:9092")).bounds("docs")


class FakeConsumer:
    """The next `not_leading` questions find no leader."""

    def __init__(self, not_leading: int) -> None:
        self.not_leading = not_leading

    def get_watermark_offsets(self, _: TopicPartition, __: float) -> tuple[int, int]:
        if self.not_leading:
            self.not_leading -= 1
            raise KafkaException(KafkaError(KafkaError.NOT_LEADER_FOR_PARTITION))
        return 3, 7


def test_a_reader_waits_for_a_leader_too() -> None:
    where = TopicPartition("docs", 0)
    assert bounds_of(cast("Consumer", FakeConsumer(3)), where, "reading docs", 5.0) == (3, 7)
    with pytest.raises(LeaderUnknown, match="reading docs"):
        bounds_of(cast("Consumer", FakeConsumer(1_000_000)), where, "reading docs", 0.2)
