"""What else a plan and a doctor want to know of a topic: its settings, and where its log really ends.

It must never change anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import Future

from confluent_kafka import IsolationLevel, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # public names, imported there without `as`
    ConfigEntry,
    ConfigResource,
    ListOffsetsResultInfo,
    OffsetSpec,
    ResourceType,
)

from connectors.kafka.topics import Topics


class Inspection(Topics):
    """Admin requests that only read. Raises as `Topics` does."""

    async def topic_settings(self, topic: str) -> Mapping[str, str]:
        """Every setting of the topic by name, defaults included; those without a value are left out."""
        resource = ConfigResource(ResourceType.TOPIC, topic)
        found: dict[str, ConfigEntry] = await self._answer(
            self._admin.describe_configs([resource], request_timeout=self._timeout_s)[resource],
            f"reading the configuration of topic {topic}",
        )
        return {name: str(entry.value) for name, entry in found.items() if entry.value is not None}

    async def ends(self, topic: str) -> Mapping[int, int]:
        """By partition: the end of the log, open transactions included (`bounds` stops at the last stable offset)."""
        description = await self._describe(topic)
        latest: OffsetSpec = OffsetSpec.latest()  # type: ignore[no-untyped-call]
        wanted = {TopicPartition(topic, partition.id): latest for partition in description.partitions}
        answers: dict[TopicPartition, Future[ListOffsetsResultInfo]] = self._admin.list_offsets(
            wanted, isolation_level=IsolationLevel.READ_UNCOMMITTED, request_timeout=self._timeout_s
        )
        doing = f"reading the end of topic {topic}"
        found = await asyncio.gather(*(self._answer(answer, doing) for answer in answers.values()))
        return {where.partition: info.offset for where, info in zip(answers, found, strict=True)}
