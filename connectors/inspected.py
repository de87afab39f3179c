"""What was seen of brokers, topics, servers and stored objects by somebody who only looks (`doctor`).

Values only; None where the other side does not say, which is never the same as "all is well".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from uuid import UUID

from connectors.protocols import JSON, Vectors


@dataclass(frozen=True, slots=True)
class ClusterFacts:
    """A Kafka cluster. `operations`: what this client may do to the cluster, in Kafka's names (`create`)."""

    cluster_id: str
    brokers: int
    operations: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class PartitionFacts:
    """Copies of a partition: how many there shall be, how many are in sync, and whether one leads."""

    replicas: int
    in_sync: int
    led: bool


@dataclass(frozen=True, slots=True)
class TopicLayout:
    """`operations`: what this client may do to the topic, in Kafka's names (`read`, `write`, `describe`)."""

    partitions: Mapping[int, PartitionFacts]
    operations: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """A Weaviate server. `clock_ms`: ms its clock is ahead of this machine's, None where its answer has no date;
    `within_ms`: how far off that may be. `nodes`: status by name."""

    version: str
    nodes: Mapping[str, str] = field(default_factory=dict)
    clock_ms: int | None = None
    within_ms: int = 0


@dataclass(frozen=True, slots=True)
class SampledObject:
    """One stored object. `properties`: the reserved ones but the text, of which only `has_text` is kept. `vector`:
    float32[dim], None where there is none."""

    uuid: UUID
    properties: Mapping[str, JSON]
    has_text: bool
    vector: Vectors | None
