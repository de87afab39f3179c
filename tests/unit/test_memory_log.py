"""What a simulation may ask of `MemoryLog` beyond the contract: its clock, its faults, its groups and its cleaner.

Nothing here waits.
"""

from __future__ import annotations

import pytest
from confluent_kafka import murmur2 as reference

from connectors.errors import Fenced, NotFound, Overloaded
from connectors.memory.log import MemoryLog
from connectors.memory.log_groups import MemoryReader
from connectors.memory.log_topics import murmur2
from connectors.protocols import Bounds, Commit
from tests.contract.log_world import Owner, stored


async def joined(log: MemoryLog, owner: Owner | None = None) -> MemoryReader:
    reader = log.group_reader("t", "g")
    await reader.start(owner or Owner())
    return reader


def test_keys_are_hashed_as_kafka_does() -> None:
    for length in range(40):
        key = bytes(range(200, 200 + length)) if length < 56 else b""
        if key:
            assert (murmur2(key) & 0x7FFFFFFF) % 1009 == reference(key, 1009)


async def test_a_session_ends_by_the_injected_clock() -> None:
    now = [0.0]
    log = MemoryLog(clock=lambda: now[0], session_timeout_s=10.0)
    log.create_topic("t")
    silent, awake = Owner(), Owner()
    one = await joined(log, silent)
    await one.read(1, 0.0)
    two = await joined(log, awake)
    now[0] = 10.0
    await two.read(1, 0.0)
    assert awake.heard == []
    now[0] = 10.5
    await two.read(1, 0.0)
    assert awake.heard == [("assigned", [0])]
    with pytest.raises(Fenced):
        await one.commit({0: Commit(1)})
    await one.read(1, 0.0)  # the zombie resumes, and learns of it
    assert silent.heard == [("assigned", [0]), ("lost", [0])]


async def test_a_partition_has_one_holder_until_it_lets_go() -> None:
    log = MemoryLog()
    log.create_topic("t", 2)
    first, second = Owner(), Owner()
    one = await joined(log, first)
    await one.read(1, 0.0)
    two = await joined(log, second)
    log.assign("t", "g", {0: two, 1: two})
    await two.read(1, 0.0)
    assert second.heard == []
    await one.read(1, 0.0)
    await two.read(1, 0.0)
    assert (first.heard, second.heard) == ([("assigned", [0, 1]), ("revoked", [0, 1])], [("assigned", [0, 1])])


async def test_members_share_evenly_and_keep_what_they_have() -> None:
    log = MemoryLog()
    log.create_topic("t", 7)
    readers = [await joined(log) for _ in range(3)]
    target = log.group("t", "g").target
    assert sorted(list(target.values()).count(reader) for reader in readers) == [2, 2, 3]
    before = dict(target)
    await readers[2].close()
    after = log.group("t", "g").target
    assert sorted(list(after.values()).count(reader) for reader in readers[:2]) == [3, 4]
    assert all(after[p] is owner for p, owner in before.items() if owner is not readers[2])
    log.add_partitions("t", 8)
    assert sorted(list(log.group("t", "g").target.values()).count(reader) for reader in readers[:2]) == [4, 4]


async def test_a_fault_strikes_where_it_is_told_to() -> None:
    armed: list[str] = []

    def fault(operation: str, topic: str) -> None:
        if operation in armed:
            raise Overloaded(f"{operation} of {topic}")

    log = MemoryLog(fault=fault)
    log.create_topic("t")
    log.append("t", b"k", b"v")
    reader = await joined(log)
    assert len(await reader.read(1, 0.0)) == 1
    armed.append("commit")
    with pytest.raises(Overloaded):
        await reader.commit({0: Commit(1)})
    assert await log.committed("g", "t") == {}
    armed[:] = ["send"]
    with pytest.raises(Overloaded):
        await log.send("t", b"k", b"v")
    assert await log.bounds("t") == {0: Bounds(0, 1)}


async def test_the_cleaner_keeps_the_newest_and_forgets_tombstones_when_told() -> None:
    log = MemoryLog()
    log.create_topic("t")
    for key, value in ((b"a", b"1"), (b"b", b"1"), (b"a", b"2"), (b"b", None), (b"c", b"1")):
        log.append("t", key, value)
    aborted = log.transaction()
    log.append("t", b"a", b"never", transaction=aborted)
    aborted.abort()
    waiting = log.transaction()
    log.append("t", b"c", b"not yet", transaction=waiting)
    log.compact("t")
    assert [record.offset for record in await stored(log, "t")] == [2, 3, 4]
    log.compact("t", expire_tombstones=True)
    assert [record.offset for record in await stored(log, "t")] == [2, 4]
    waiting.commit()
    log.compact("t")
    assert [(record.key, record.value) for record in await stored(log, "t")] == [(b"a", b"2"), (b"c", b"not yet")]
    assert await log.bounds("t") == {0: Bounds(0, 9)}


async def test_a_gap_at_the_end_is_crossed() -> None:
    log = MemoryLog()
    log.create_topic("t")
    log.append("t", b"a", b"1")
    log.skip("t", 0, 5)
    reader = await joined(log)
    await reader.read(10, 0.0)
    assert reader.positions() == {0: 6}
    assert [batch.done async for batch in log.read_range("t", 0, 2, 6)] == [True]


async def test_commits_go_with_the_topic() -> None:
    log = MemoryLog()
    log.create_topic("t")
    await log.commit_offsets("g", "t", {0: Commit(3)})
    log.delete_topic("t")
    with pytest.raises(NotFound):
        await log.committed("g", "t")
    log.create_topic("t")
    assert await log.committed("g", "t") == {}


async def test_a_tail_catches_up_and_goes_on() -> None:
    log = MemoryLog()
    log.create_topic("t", 2)
    for number in range(6):
        log.append("t", b"%d" % number, b"v", partition=number % 2)
    tail = log.tail("t")
    await tail.start()
    assert not tail.caught_up
    assert len(await tail.read(0.0, max_records=4)) == 4
    assert not tail.caught_up
    assert len(await tail.read(0.0)) == 2
    assert tail.caught_up
    record = log.append("t", b"later", None)
    assert await tail.read(0.0) == [record]
    await tail.close()
