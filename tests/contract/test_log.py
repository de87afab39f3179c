"""What every `Log` promises, over the in-memory one and a real cluster.

It must never look inside a log: only the Protocols, and the errors they name.
"""

from __future__ import annotations

import asyncio
from random import Random

import pytest
from confluent_kafka import murmur2

from connectors.errors import ContentRejected, IdentityChanged, NotFound, Refused, Unreachable
from connectors.protocols import Bounds, Commit, KeyBatch, RangeBatch, Record
from tests.conftest import Unique
from tests.contract.log_world import Owner, World, stored, until


async def batches(world: World, topic: str, start: int, end: int, partition: int = 0) -> list[RangeBatch]:
    found = [batch async for batch in world.log.read_range(topic, partition, start, end)]
    assert [batch.done for batch in found] == [False] * (len(found) - 1) + [True]
    assert found[-1].position >= end
    positions = [batch.position for batch in found]
    assert positions == sorted(positions)
    return found


async def offsets(world: World, topic: str, start: int, end: int) -> list[int]:
    """Of the records of a range; its keys are read as well, and must tell the same."""
    found = await batches(world, topic, start, end)
    records = [record for batch in found for record in batch.records]
    keys = [batch async for batch in world.log.read_keys(topic, 0, start, end, reverse)]
    assert [batch.done for batch in keys] == [False] * (len(keys) - 1) + [True]
    assert keys[-1].position >= end  # a record beyond the end may have come along with the last of either
    assert all(len(batch.digests) == len(batch.offsets) == len(batch.deleted) for batch in keys)
    assert [digest for batch in keys for digest in batch.digests] == [reverse(record.key or b"") for record in records]
    assert [deleted for batch in keys for deleted in batch.deleted] == [record.value is None for record in records]
    assert [offset for batch in keys for offset in batch.offsets] == [record.offset for record in records]
    return [record.offset for record in records]


def reverse(key: bytes) -> bytes:
    return key[::-1]


async def test_records_come_back_as_they_were_written(world: World) -> None:
    topic = await world.make_topic(2)
    await world.put(topic, b"a", b"1", timestamp_ms=1_234)
    await world.put(topic, b"b", b"2", partition=1, timestamp_ms=5_678)
    await world.put(topic, b"a", None, timestamp_ms=9_999)
    await world.put(topic, b"\xff\xfe", b"", timestamp_ms=10_000)
    assert await stored(world.log, topic) == [
        Record(0, 0, 1_234, b"a", b"1"),
        Record(0, 1, 9_999, b"a", None),
        Record(0, 2, 10_000, b"\xff\xfe", b""),
    ]
    assert await stored(world.log, topic, 1) == [Record(1, 0, 5_678, b"b", b"2")]


async def test_keys_are_read_without_their_records(world: World) -> None:
    topic = await world.make_topic()
    for value in (b"text", None, b""):
        await world.put(topic, b"key", value)
    found = [batch async for batch in world.log.read_keys(topic, 0, 0, 3, reverse)]
    assert [batch.done for batch in found] == [False] * (len(found) - 1) + [True]
    assert found[-1].position == 3
    assert [digest for batch in found for digest in batch.digests] == [b"yek"] * 3
    assert [offset for batch in found for offset in batch.offsets] == [0, 1, 2]
    assert [deleted for batch in found for deleted in batch.deleted] == [False, True, False], "empty is not absent"
    assert [batch async for batch in world.log.read_keys(topic, 0, 3, 3, reverse)] == [KeyBatch([], [], [], 3, True)]


async def test_a_range_is_cut_at_both_ends(world: World) -> None:
    topic = await world.make_topic()
    for number in range(10):
        await world.put(topic, b"%d" % number, b"v")
    assert await offsets(world, topic, 3, 7) == [3, 4, 5, 6]


async def test_a_long_range_comes_in_order_and_once(world: World) -> None:
    topic = await world.make_topic()
    await asyncio.gather(*(world.sink.send(topic, b"%d" % number, b"v" * 100) for number in range(2_500)))
    found = await batches(world, topic, 0, 2_500)
    assert len(found) > 1
    assert [record.key for batch in found for record in batch.records] == [b"%d" % number for number in range(2_500)]
    assert await offsets(world, topic, 0, 2_500) == list(range(2_500))


async def test_an_empty_range_is_done_at_once(world: World) -> None:
    topic = await world.make_topic()
    assert await batches(world, topic, 0, 0) == [RangeBatch([], 0, True)]


async def test_a_range_that_ends_in_transaction_markers_is_done(world: World) -> None:
    topic = await world.make_topic()
    await world.put(topic, b"a", b"1")
    aborted = await world.begin()
    await aborted.put(topic, [b"x", b"y"])
    await aborted.finish(commit=False)
    committed = await world.begin()
    await committed.put(topic, [b"b"])
    await committed.finish(commit=True)
    await until(lambda: _stable_is(world, topic, 6))  # a, x, y, marker, b, marker
    assert await offsets(world, topic, 0, 6) == [0, 4]
    assert await offsets(world, topic, 1, 4) == []
    assert await offsets(world, topic, 5, 6) == []


async def _stable_is(world: World, topic: str, offset: int) -> bool:
    return (await world.log.bounds(topic))[0].stable == offset


async def test_bounds_stop_at_an_open_transaction(world: World) -> None:
    topic = await world.make_topic(2)
    await world.put(topic, b"a", b"1")
    transaction = await world.begin()
    await transaction.put(topic, [b"b"])
    await world.put(topic, b"c", b"3")  # after the open transaction: in the log, and not stable
    await world.put(topic, b"d", b"4", partition=1)
    assert await world.log.bounds(topic) == {0: Bounds(0, 1), 1: Bounds(0, 1)}
    assert [record.key for record in await stored(world.log, topic)] == [b"a"]
    await transaction.finish(commit=True)
    await until(lambda: _stable_is(world, topic, 4))
    assert [record.key for record in await stored(world.log, topic)] == [b"a", b"b", b"c"]


async def test_compaction_gaps_are_crossed(world: World) -> None:
    topic = await world.make_topic(compacting=True)
    for number in range(30):
        await world.put(topic, b"k%d" % (number % 3), b"%d" % number)
    await world.compact(topic)
    bound = (await world.log.bounds(topic))[0]
    assert bound == Bounds(0, 31)
    assert await offsets(world, topic, 0, 31) == [27, 28, 29, 30]
    assert await offsets(world, topic, 0, 27) == []  # the end of the range lies in the gap
    assert await offsets(world, topic, 0, 5) == []
    assert await offsets(world, topic, 12, 29) == [27, 28]


async def test_a_range_below_the_log_start_begins_at_what_is_left(world: World) -> None:
    topic = await world.make_topic()
    for number in range(6):
        await world.put(topic, b"%d" % number, b"v")
    await world.truncate(topic, 4)
    assert await world.log.bounds(topic) == {0: Bounds(4, 6)}
    assert await offsets(world, topic, 0, 6) == [4, 5]
    assert await offsets(world, topic, 0, 3) == []


async def test_a_range_beyond_the_log_is_another_log(world: World) -> None:
    topic = await world.make_topic()
    await world.put(topic, b"a", b"1")
    with pytest.raises(IdentityChanged):
        await batches(world, topic, 100, 200)
    with pytest.raises(IdentityChanged):
        _ = [batch async for batch in world.log.read_keys(topic, 0, 100, 200, reverse)]


async def test_facts_tell_a_recreated_topic_apart(world: World) -> None:
    topic = await world.make_topic(3)
    before = await world.log.facts(topic)
    assert (before.name, before.partitions) == (topic, 3)
    assert set(before.cleanup_policy.split(",")) == {"compact", "delete"}
    assert (before.retention_ms, before.delete_retention_ms) == (-1, 86_400_000)
    assert before.max_message_bytes > 1_000_000
    assert await world.log.facts(topic) == before
    await world.recreate(topic)
    after = await world.log.facts(topic)
    assert (after.name, after.partitions) == (topic, 1)
    assert after.topic_id != before.topic_id


async def test_what_does_not_exist_is_not_found(world: World, unique: Unique) -> None:
    topic = unique("absent")
    with pytest.raises(NotFound):
        await world.log.facts(topic)
    with pytest.raises(NotFound):
        await world.log.bounds(topic)
    with pytest.raises(NotFound):
        await batches(world, topic, 0, 1)
    with pytest.raises(NotFound):
        await batches(world, await world.make_topic(), 0, 1, partition=7)


async def test_brokers_that_do_not_answer_are_unreachable(world: World) -> None:
    with pytest.raises(Unreachable) as raised:
        await world.nowhere.facts("topic")
    assert raised.value.next_step
    with pytest.raises(Unreachable):
        await world.nowhere.bounds("topic")
    with pytest.raises(Unreachable):
        await world.nowhere.committed("group", "topic")
    with pytest.raises(Unreachable):
        _ = [batch async for batch in world.nowhere.read_range("topic", 0, 0, 1)]
    with pytest.raises(Unreachable):
        _ = [batch async for batch in world.nowhere.read_keys("topic", 0, 0, 1, reverse)]


async def test_offsets_of_a_group_without_members_keep_their_metadata(world: World, unique: Unique) -> None:
    topic, group = await world.make_topic(3), unique("group")
    assert await world.log.committed(group, topic) == {}
    metadata = '{"epoch": 3, "tier": "é"}'
    await world.log.commit_offsets(group, topic, {0: Commit(7, metadata), 2: Commit(0)})
    assert await world.log.committed(group, topic) == {0: Commit(7, metadata), 2: Commit(0, "")}
    await world.log.commit_offsets(group, topic, {0: Commit(5)})
    assert await world.log.committed(group, topic) == {0: Commit(5, ""), 2: Commit(0, "")}
    assert await world.log.committed(unique("group"), topic) == {}


async def test_nobody_commits_for_a_group_with_members(world: World, unique: Unique) -> None:
    topic, group = await world.make_topic(), unique("group")
    reader = world.log.group_reader(topic, group)
    await reader.start(Owner())
    try:
        while not reader.positions():
            await reader.read(10, 0.1)
        with pytest.raises(Refused):
            await world.log.commit_offsets(group, topic, {0: Commit(1)})
    finally:
        await reader.close()


async def test_the_sink_says_what_it_cannot_write(world: World, unique: Unique) -> None:
    topic = await world.make_topic()
    with pytest.raises(ContentRejected):
        await world.sink.send(topic, b"k", Random(1).randbytes(3_000_000))  # compression cannot save it
    with pytest.raises(NotFound):
        await world.sink.send(unique("absent"), b"k", b"v")
    await world.sink.send(topic, b"k", b"v", [("cause", b"none")])
    assert [(record.key, record.value) for record in await stored(world.log, topic)] == [(b"k", b"v")]


async def test_keys_are_placed_alike(world: World) -> None:
    topic = await world.make_topic(5)
    for number in range(40):
        await world.sink.send(topic, b"document-%d" % number, b"v")
    found = {
        record.key: record.partition for partition in range(5) for record in await stored(world.log, topic, partition)
    }
    assert found == {key: murmur2(key, 5) for key in (b"document-%d" % number for number in range(40))}
    assert len(set(found.values())) == 5
