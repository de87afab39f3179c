"""`connectors.protocols.Log` on a Kafka cluster.

It only ties topics, group readers and bounded reads together; it must never keep state of its own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping

from connectors.kafka.ranges import read_keys, read_range
from connectors.kafka.reader import KafkaGroupReader
from connectors.kafka.settings import KafkaSettings
from connectors.kafka.topics import Topics
from connectors.protocols import Bounds, Commit, KeyBatch, RangeBatch, TopicFacts


class KafkaLog:
    """One cluster. Needs no closing: readers and ranges close themselves."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self.topics = Topics(settings)

    async def facts(self, topic: str) -> TopicFacts:
        return await self.topics.facts(topic)

    async def bounds(self, topic: str) -> Mapping[int, Bounds]:
        return await self.topics.bounds(topic)

    def group_reader(self, topic: str, group: str) -> KafkaGroupReader:
        return KafkaGroupReader(self._settings, topic, group)

    def read_range(self, topic: str, partition: int, start: int, end: int) -> AsyncIterator[RangeBatch]:
        return read_range(self._settings, topic, partition, start, end)

    def read_keys(
        self, topic: str, partition: int, start: int, end: int, digest: Callable[[bytes], bytes]
    ) -> AsyncIterator[KeyBatch]:
        return read_keys(self._settings, topic, partition, start, end, digest)

    async def committed(self, group: str, topic: str) -> Mapping[int, Commit]:
        return await self.topics.committed(group, topic)

    async def commit_offsets(self, group: str, topic: str, commits: Mapping[int, Commit]) -> None:
        await self.topics.commit_offsets(group, topic, commits)
