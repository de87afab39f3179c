"""Atomic and bulk writes, tails and topic administration, on a real cluster.

No test may depend on what another one left in a topic.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from random import Random

import pytest

from connectors.errors import AccessDenied, ContentRejected, Fenced, NotFound, Terminal, Unreachable
from connectors.kafka.log import KafkaLog
from connectors.kafka.producer import KafkaSink, Produced, TransactionalProducer, produce_many
from connectors.kafka.ranges import TopicTail
from connectors.kafka.settings import KafkaSettings
from connectors.protocols import Commit, Record, Write
from connectors.services import Addresses
from tests.conftest import MakeTopic, Unique
from tests.contract.log_world import until

TOO_LARGE = Random(1).randbytes(3_000_000)  # compression cannot save it


@pytest.fixture
def settings(services: Addresses) -> KafkaSettings:
    return KafkaSettings(services.kafka)


@pytest.fixture
def log(settings: KafkaSettings) -> KafkaLog:
    return KafkaLog(settings)


async def keys(log: KafkaLog, topic: str) -> list[bytes | None]:
    """All committed keys, partition by partition, once the last stable offset stands."""
    return [record.key for record in await records(log, topic)]


async def records(log: KafkaLog, topic: str) -> list[Record]:
    bounds = await log.bounds(topic)
    return [
        record
        for partition, bound in bounds.items()
        async for batch in log.read_range(topic, partition, bound.earliest, bound.stable)
        for record in batch.records
    ]


async def until_stable(log: KafkaLog, topic: str, offset: int) -> None:
    async def stable() -> bool:
        return (await log.bounds(topic))[0].stable >= offset

    await until(stable)


class TestTransactionalProducer:
    async def test_a_write_is_made_as_a_whole(
        self, settings: KafkaSettings, log: KafkaLog, make_topic: MakeTopic, unique: Unique
    ) -> None:
        one, two = make_topic(), make_topic()
        producer = TransactionalProducer(settings, unique("id"))
        with pytest.raises(Terminal):
            await producer.write([Write(one, b"a", b"1")])
        await producer.fence()
        await producer.write([])
        await producer.write([Write(one, b"a", b"1", [("h", b"1")]), Write(two, b"b", None)])
        with pytest.raises(ContentRejected):
            await producer.write([Write(one, b"small", b"1"), Write(two, b"large", TOO_LARGE)])
        await producer.write([Write(one, b"c", b"1"), Write(two, b"d", b"1")])
        await until_stable(log, two, 4)
        await producer.close()
        assert await keys(log, one) == [b"a", b"c"]
        assert await keys(log, two) == [b"b", b"d"]

    async def test_who_fenced_last_is_the_only_writer(
        self, settings: KafkaSettings, log: KafkaLog, make_topic: MakeTopic, unique: Unique
    ) -> None:
        topic, name = make_topic(), unique("id")
        old, new = TransactionalProducer(settings, name), TransactionalProducer(settings, name)
        await old.fence()
        await old.write([Write(topic, b"old", b"1")])
        await new.fence()
        with pytest.raises(Fenced):
            await old.write([Write(topic, b"zombie", b"1")])
        with pytest.raises(Terminal):
            await old.write([Write(topic, b"zombie", b"1")])
        await new.write([Write(topic, b"new", b"1")])
        await until_stable(log, topic, 4)
        assert await keys(log, topic) == [b"old", b"new"]
        await old.fence()  # a controller that comes back fences in its turn
        with pytest.raises(Fenced):
            await new.write([Write(topic, b"zombie", b"1")])
        await old.close()
        await new.close()

    async def test_no_broker_is_unreachable(self) -> None:
        producer = TransactionalProducer(KafkaSettings("127.0.0.1:1", request_timeout_s=1.0), "id")
        with pytest.raises(Unreachable):
            await producer.fence()
        await producer.close()


class TestProduceMany:
    async def test_everything_arrives_in_order(
        self, settings: KafkaSettings, log: KafkaLog, make_topic: MakeTopic
    ) -> None:
        topic = make_topic(3)
        wanted = [(b"k%d" % (n % 50), None if n % 7 == 0 else b"%d" % n, 1_000 + n) for n in range(3_000)]
        done = await asyncio.to_thread(produce_many, settings, topic, iter(wanted))
        bounds = await log.bounds(topic)
        assert done == Produced(3_000, {p: bound.stable - 1 for p, bound in bounds.items()})
        found = await records(log, topic)
        assert sorted((r.timestamp_ms, r.key, r.value) for r in found) == [(t, k, v) for k, v, t in wanted]
        for partition in bounds:
            times = [r.timestamp_ms for r in found if r.partition == partition]
            assert times == sorted(times)

    async def test_a_record_without_a_time_gets_the_present(
        self, settings: KafkaSettings, log: KafkaLog, make_topic: MakeTopic
    ) -> None:
        topic = make_topic()
        await asyncio.to_thread(produce_many, settings, topic, [(b"k", b"v", None)])
        assert (await records(log, topic))[0].timestamp_ms > 1_600_000_000_000

    async def test_a_refused_record_is_reported_with_what_was_acknowledged(
        self, settings: KafkaSettings, log: KafkaLog, make_topic: MakeTopic
    ) -> None:
        topic = make_topic()

        def some() -> Iterator[tuple[bytes | None, bytes | None, int | None]]:
            yield b"a", b"1", None
            yield b"b", TOO_LARGE, None

        with pytest.raises(ContentRejected, match=r"\(1 records were acknowledged\)"):
            await asyncio.to_thread(produce_many, settings, topic, some())
        assert await keys(log, topic) == [b"a"]

    async def test_who_closes_it_does_not_wait_for_a_read_whose_caller_has_gone(
        self, settings: KafkaSettings, make_topic: MakeTopic
    ) -> None:
        tail = TopicTail(settings, make_topic())
        await tail.start()
        reading = asyncio.create_task(tail.read(3600.0))
        await asyncio.sleep(0.1)
        reading.cancel()
        async with asyncio.timeout(60):
            await tail.close()

    async def test_an_unknown_topic_is_not_found(self, settings: KafkaSettings, unique: Unique) -> None:
        with pytest.raises(NotFound):
            await asyncio.to_thread(produce_many, settings, unique("absent"), [(b"a", b"1", None)])


class TestSink:
    async def test_many_sends_at_once_are_all_acknowledged(
        self, settings: KafkaSettings, log: KafkaLog, make_topic: MakeTopic
    ) -> None:
        topic = make_topic()
        sink = KafkaSink(settings)
        with pytest.raises(Terminal):
            await sink.send(topic, b"k", b"v")
        await sink.start()
        await asyncio.gather(*(sink.send(topic, b"%d" % n, b"v") for n in range(1_000)))
        assert await keys(log, topic) == [b"%d" % n for n in range(1_000)]
        waiting = asyncio.create_task(sink.send(topic, b"last", b"v"))
        await asyncio.sleep(0)
        await sink.close()  # waits for what is under way
        await waiting
        assert (await keys(log, topic))[-1] == b"last"
        with pytest.raises(Terminal):
            await sink.send(topic, b"k", b"v")


class TestTail:
    @pytest.fixture
    async def sink(self, settings: KafkaSettings) -> AsyncIterator[KafkaSink]:
        sink = KafkaSink(settings)
        await sink.start()
        yield sink
        await sink.close()

    async def test_it_says_when_it_has_caught_up_and_goes_on(
        self, settings: KafkaSettings, make_topic: MakeTopic, sink: KafkaSink, unique: Unique
    ) -> None:
        topic = make_topic(2)
        for number in range(20):
            await sink.append(topic, b"%d" % number, b"v", partition=number % 2)
        writer = TransactionalProducer(settings, unique("id"))
        await writer.fence()
        await writer.write([Write(topic, b"in a transaction", b"v")])
        tail = TopicTail(settings, topic)
        await tail.start()
        assert not tail.caught_up
        found: list[Record] = []
        while not tail.caught_up or len(found) < 21:
            found += await tail.read(1.0, max_records=6)
        assert [r.offset for r in found if r.key and r.key.isdigit() and r.partition == 0] == list(range(10))
        assert await tail.read(0.1) == []
        await sink.append(topic, b"later", None, partition=1)
        late: list[Record] = []
        while not late:
            late = await tail.read(1.0)
        assert [(r.key, r.value) for r in late] == [(b"later", None)]
        assert tail.caught_up
        await tail.close()
        await writer.close()

    async def test_an_empty_topic_is_caught_up_at_once(self, settings: KafkaSettings, make_topic: MakeTopic) -> None:
        tail = TopicTail(settings, make_topic())
        await tail.start()
        assert tail.caught_up
        await tail.close()

    async def test_an_unknown_topic_is_not_found(self, settings: KafkaSettings, unique: Unique) -> None:
        tail = TopicTail(settings, unique("absent"))
        with pytest.raises(NotFound):
            await tail.start()
        await tail.close()


class TestTopics:
    async def test_a_topic_is_made_once_and_deleted_once(self, log: KafkaLog, unique: Unique) -> None:
        topic = unique("made")
        assert await log.topics.ensure_topic(topic, 2, {"cleanup.policy": "compact"})
        first = await log.facts(topic)
        assert not await log.topics.ensure_topic(topic, 5, {"cleanup.policy": "delete"})
        assert await log.facts(topic) == first
        assert (first.partitions, first.cleanup_policy) == (2, "compact")
        await log.topics.delete_topic(topic)
        with pytest.raises(NotFound):
            await log.facts(topic)
        await log.topics.delete_topic(topic)

    async def test_lag_counts_from_the_commit_or_the_start(
        self, settings: KafkaSettings, log: KafkaLog, make_topic: MakeTopic, unique: Unique
    ) -> None:
        topic, group = make_topic(), unique("group")
        await asyncio.to_thread(produce_many, settings, topic, [(b"k", b"v", None)] * 10)
        assert await log.topics.lag(group, topic) == {0: 10}
        await log.commit_offsets(group, topic, {0: Commit(7)})
        assert await log.topics.lag(group, topic) == {0: 3}

    async def test_waiting_for_a_broker(self, log: KafkaLog) -> None:
        said: list[str] = []
        await log.topics.wait_for_broker(10.0, said.append)
        assert said == []
        away = KafkaLog(KafkaSettings("127.0.0.1:1"))
        with pytest.raises(Unreachable, match=r"127\.0\.0\.1:1") as raised:
            await away.topics.wait_for_broker(0.6, said.append)
        assert "crossfade up" in raised.value.next_step

    async def test_wrong_credentials_are_denied_or_unreachable(self, services: Addresses) -> None:
        # A plaintext broker closes a SASL connection without a word: no answer is all there is to see.
        client = {"security.protocol": "sasl_plaintext", "sasl.mechanism": "PLAIN", "sasl.username": "u"}
        log = KafkaLog(
            KafkaSettings(services.kafka, client={**client, "sasl.password": "hunter2"}, request_timeout_s=1.0)
        )
        with pytest.raises((AccessDenied, Unreachable)) as raised:
            await log.facts("topic")
        assert "hunter2" not in str(raised.value)
