"""What a cluster says about topics and groups, and the few things Crossfade may change there.

It must never alter the configuration of a topic that exists, nor commit for a group that has members.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from typing import TypeVar

from confluent_kafka import (
    Consumer,
    ConsumerGroupState,
    IsolationLevel,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # public names, imported there without `as`
    AdminClient,
    ConfigEntry,
    ConfigResource,
    ListConsumerGroupsResult,
    ListOffsetsResultInfo,
    NewTopic,
    OffsetSpec,
    ResourceType,
    TopicDescription,
)

from connectors.errors import Fenced, NotFound, Refused, Transient, Unreachable
from connectors.kafka.failures import LeaderUnknown, foreign, mapped, unreachable
from connectors.kafka.settings import KafkaSettings, client_logger
from connectors.kafka.thread import ClientThread
from connectors.protocols import Bounds, Commit, TopicFacts

T = TypeVar("T")


class Topics:
    """Admin requests to one cluster. librdkafka answers them on its own thread; nothing here blocks the event loop."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._timeout_s = settings.request_timeout_s
        with foreign("opening a Kafka admin client"):
            self._admin = AdminClient(settings.admin(), logger=client_logger())

    async def _answer(self, future: Future[T], doing: str, *, reading: bool = True) -> T:
        try:
            with foreign(doing, reading=reading):
                return await asyncio.wrap_future(future)
        finally:
            self._admin.poll(0)  # hands librdkafka's log lines over; they would pile up otherwise

    async def wait_for_broker(self, timeout_s: float, say: Callable[[str], None]) -> None:
        """Return when a broker answers. `say` gets a line for a person every few seconds; Unreachable at the end."""
        started = time.monotonic()
        said = 0.0
        while True:
            left = timeout_s - (time.monotonic() - started)
            try:
                await self._answer(
                    self._admin.describe_cluster(request_timeout=max(0.5, min(2.0, left))), "asking the Kafka cluster"
                )
                return
            except Transient as raised:
                waited = time.monotonic() - started
                if waited >= timeout_s:
                    raise Unreachable(
                        f"no Kafka broker answered at {self._settings.bootstrap_servers} within {timeout_s:g} s",
                        next_step="start it (`crossfade up`), or correct kafka.bootstrap_servers",
                    ) from raised
                if said == 0.0 or waited - said >= 5.0:
                    said = max(waited, 0.001)
                    say(f"waiting for Kafka at {self._settings.bootstrap_servers} ({waited:.0f} s of {timeout_s:g} s)")
            await asyncio.sleep(0.2)

    async def ensure_topic(
        self, name: str, partitions: int, config: Mapping[str, str] | None = None, *, replication: int = -1
    ) -> bool:
        """Create the topic unless it exists; return True when it was created. An existing one is left as it is.

        `replication` -1 takes the cluster's default. Returns when brokers answer for the topic.
        """
        new = NewTopic(name, num_partitions=partitions, replication_factor=replication, config=dict(config or {}))
        try:
            await self._answer(
                self._admin.create_topics([new], request_timeout=self._timeout_s)[name],
                f"creating topic {name}",
                reading=False,
            )
        except Refused:
            return False
        await self._until(f"creating topic {name}", lambda: self._visible(name, partitions))
        return True

    async def delete_topic(self, name: str) -> None:
        """Delete the topic; an absent one is no error. Returns when brokers know it no longer."""
        doing = f"deleting topic {name}"
        try:
            await self._answer(
                self._admin.delete_topics([name], request_timeout=self._timeout_s)[name], doing, reading=False
            )
        except NotFound:
            return
        await self._until(doing, lambda: self._gone(name))

    async def facts(self, topic: str) -> TopicFacts:
        description = await self._describe(topic)
        resource = ConfigResource(ResourceType.TOPIC, topic)
        config: dict[str, ConfigEntry] = await self._answer(
            self._admin.describe_configs([resource], request_timeout=self._timeout_s)[resource],
            f"reading the configuration of topic {topic}",
        )
        return TopicFacts(
            name=topic,
            topic_id=str(description.topic_id),
            partitions=len(description.partitions),
            cleanup_policy=str(config["cleanup.policy"].value),
            retention_ms=_number(config["retention.ms"]),
            delete_retention_ms=_number(config["delete.retention.ms"]),
            max_message_bytes=_number(config["max.message.bytes"]),
        )

    async def names(self) -> list[str]:
        """Of every topic this client may see, but those the brokers keep for themselves."""
        doing = "listing the topics"

        def ask() -> list[str]:
            with foreign(doing, reading=True):
                return list(self._admin.list_topics(timeout=self._timeout_s).topics)

        thread = ClientThread("kafka-topics")
        try:
            found = await thread.run(ask)
        finally:
            await thread.stop()
        return sorted(name for name in found if not name.startswith("__"))

    async def bounds(self, topic: str) -> dict[int, Bounds]:
        first: OffsetSpec = OffsetSpec.earliest()  # type: ignore[no-untyped-call]
        last: OffsetSpec = OffsetSpec.latest()  # type: ignore[no-untyped-call]
        committed = IsolationLevel.READ_COMMITTED
        earliest, stable = await self._offsets(topic, (first, committed), (last, committed))
        return {partition: Bounds(earliest[partition], stable[partition]) for partition in sorted(earliest)}

    async def committed(self, group: str, topic: str) -> dict[int, Commit]:
        description = await self._describe(topic)
        where = [TopicPartition(topic, partition.id) for partition in description.partitions]
        doing = f"reading the commits of group {group}"

        def read(consumer: Consumer) -> list[TopicPartition]:
            return consumer.committed(where, timeout=self._timeout_s)

        found = await self._of_group(group, read, doing, reading=True)
        return {p.partition: Commit(p.offset, p.metadata or "") for p in found if p.offset >= 0}

    async def commit_offsets(self, group: str, topic: str, commits: Mapping[int, Commit]) -> None:
        """Raises Refused when the group has members: they alone commit for it."""
        if not commits:
            return
        doing = f"committing for group {group}"
        offsets = [TopicPartition(topic, p, commit.offset, commit.metadata) for p, commit in commits.items()]

        def commit(consumer: Consumer) -> list[TopicPartition]:
            consumer.committed(offsets, timeout=self._timeout_s)  # finds the coordinator, and unlike a commit in time
            return consumer.commit(offsets=offsets, asynchronous=False)

        try:
            await self._of_group(group, commit, doing, reading=False)
        except Fenced as raised:
            raise Refused(
                f"{doing}: the group has members", next_step="stop the workers that read in this group, then try again"
            ) from raised

    async def _of_group(
        self, group: str, ask: Callable[[Consumer], list[TopicPartition]], doing: str, *, reading: bool
    ) -> list[TopicPartition]:
        """Ask a group's coordinator through a consumer that never joins, opened for this call alone (2 ms of CPU).

        Not through the admin client: one whose request to a coordinator outlasted a broker never hears from that
        coordinator again, and aborts the process when the request is cleaned up (seen with librdkafka 2.16).
        """

        def call() -> list[TopicPartition]:
            with foreign(doing, reading=reading):
                consumer = Consumer(self._settings.consumer(group), logger=client_logger())
                try:
                    return ask(consumer)
                finally:
                    consumer.close()

        thread = ClientThread(f"kafka-offsets-{group}")
        try:
            partitions = await thread.run(call)
        finally:
            await thread.stop()
        for partition in partitions:
            if partition.error is not None:
                raise mapped(partition.error, doing, reading=reading)
        return partitions

    async def lag(self, group: str, topic: str) -> dict[int, int]:
        """Offsets between the group's commit and the last stable offset; from the log's start without a commit."""
        bounds, commits = await asyncio.gather(self.bounds(topic), self.committed(group, topic))
        return {
            p: max(0, bound.stable - (commits[p].offset if p in commits else bound.earliest))
            for p, bound in bounds.items()
        }

    async def groups(self, prefix: str) -> list[str]:
        """Names of the consumer groups that begin with `prefix`, also those without members."""
        answer: ListConsumerGroupsResult = await self._answer(
            self._admin.list_consumer_groups(request_timeout=self._timeout_s), "listing the consumer groups"
        )
        return sorted(found.group_id for found in answer.valid or [] if found.group_id.startswith(prefix))

    async def has_members(self, group: str) -> bool | None:
        """Whether anybody is in the consumer group now; a member that was killed counts until its session ends. None
        when the brokers do not know the group, or do not let us see it.

        From the list that every broker gives, not from the group's coordinator: see `_of_group`.
        """
        answer: ListConsumerGroupsResult = await self._answer(
            self._admin.list_consumer_groups(request_timeout=self._timeout_s), "listing the consumer groups"
        )
        nobody = (ConsumerGroupState.EMPTY, ConsumerGroupState.DEAD)
        states = [found.state for found in answer.valid or [] if found.group_id == group]
        return any(state not in nobody for state in states) if states else None

    async def _describe(self, topic: str) -> TopicDescription:
        return await self._answer(
            self._admin.describe_topics(TopicCollection([topic]), request_timeout=self._timeout_s)[topic],
            f"describing topic {topic}",
        )

    async def _offsets(self, topic: str, *specs: tuple[OffsetSpec, IsolationLevel]) -> list[dict[int, int]]:
        """By partition, for each of `specs`; also while leaders are being chosen. Each time anew which partitions there
        are: a leader that knows nothing of its partition may be one that the topic has been taken from.
        """
        deadline = time.monotonic() + self._timeout_s
        while True:
            description = await self._describe(topic)
            where = [TopicPartition(topic, partition.id) for partition in description.partitions]
            try:
                return await asyncio.gather(*(self._offsets_now(topic, where, *spec) for spec in specs))
            except (NotFound, LeaderUnknown):
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(0.05)

    async def _offsets_now(
        self, topic: str, where: list[TopicPartition], spec: OffsetSpec, isolation: IsolationLevel
    ) -> dict[int, int]:
        answers: dict[TopicPartition, Future[ListOffsetsResultInfo]] = self._admin.list_offsets(
            dict.fromkeys(where, spec), isolation_level=isolation, request_timeout=self._timeout_s
        )
        doing = f"reading the offsets of topic {topic}"
        found = await asyncio.gather(*(self._answer(answer, doing) for answer in answers.values()))
        return {where.partition: info.offset for where, info in zip(answers, found, strict=True)}

    async def _visible(self, name: str, partitions: int) -> bool:
        return len(await self.bounds(name)) >= partitions

    async def _gone(self, name: str) -> bool:
        try:
            await self._describe(name)
        except NotFound:
            return True
        return False

    async def _until(self, doing: str, condition: Callable[[], Coroutine[None, None, bool]]) -> None:
        """Brokers learn of topics one after the other; wait until the one we ask has."""
        deadline = time.monotonic() + self._timeout_s
        while True:
            try:
                if await condition():
                    return
            except (NotFound, Transient) as raised:
                if time.monotonic() > deadline:
                    raise Unreachable(
                        f"{doing}: the brokers have not taken it up", next_step=raised.next_step
                    ) from raised
            if time.monotonic() > deadline:
                raise unreachable(doing)
            await asyncio.sleep(0.05)


def _number(entry: ConfigEntry) -> int:
    return int(str(entry.value))
