"""What else a plan and a doctor want to know of a topic: its settings, and where its log really ends.

It must never change anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum

from confluent_kafka import IsolationLevel, TopicCollection
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # public names, imported there without `as`
    ConfigEntry,
    ConfigResource,
    DescribeClusterResult,
    OffsetSpec,
    ResourceType,
    TopicDescription,
)

from connectors.inspected import ClusterFacts, PartitionFacts, TopicLayout
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
        latest: OffsetSpec = OffsetSpec.latest()  # type: ignore[no-untyped-call]
        (found,) = await self._offsets(topic, (latest, IsolationLevel.READ_UNCOMMITTED))
        return found

    async def cluster(self) -> ClusterFacts:
        """The cluster as its brokers describe it."""
        found: DescribeClusterResult = await self._answer(
            self._admin.describe_cluster(include_authorized_operations=True, request_timeout=self._timeout_s),
            "asking the Kafka cluster",
        )
        return ClusterFacts(found.cluster_id or "", len(found.nodes), _names(found.authorized_operations))

    async def broker_settings(self) -> Mapping[str, str]:
        """Of one broker, by name; they are alike in a cluster that is looked after."""
        cluster: DescribeClusterResult = await self._answer(
            self._admin.describe_cluster(request_timeout=self._timeout_s), "asking the Kafka cluster"
        )
        resource = ConfigResource(ResourceType.BROKER, str(cluster.nodes[0].id))
        found: dict[str, ConfigEntry] = await self._answer(
            self._admin.describe_configs([resource], request_timeout=self._timeout_s)[resource],
            "reading the configuration of a broker",
        )
        return {name: str(entry.value) for name, entry in found.items() if entry.value is not None}

    async def layout(self, topic: str) -> TopicLayout:
        """Replicas of each partition, and what this client may do to the topic."""
        found: TopicDescription = await self._answer(
            self._admin.describe_topics(
                TopicCollection([topic]), include_authorized_operations=True, request_timeout=self._timeout_s
            )[topic],
            f"describing topic {topic}",
        )
        partitions = {p.id: PartitionFacts(len(p.replicas), len(p.isr), p.leader is not None) for p in found.partitions}
        return TopicLayout(partitions, _names(found.authorized_operations))


def _names(operations: Iterable[Enum] | None) -> frozenset[str] | None:
    """Kafka's names in small letters; None where the brokers tell nothing."""
    return None if operations is None else frozenset(operation.name.lower() for operation in operations)
