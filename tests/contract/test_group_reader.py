"""What every `GroupReader` promises, over the in-memory one and a real cluster.

It must never depend on how fast a rebalance is: every wait is for a condition.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress

import pytest

from connectors.errors import Fenced, IdentityChanged, Terminal, Transient
from connectors.protocols import Commit, GroupReader, Record
from tests.conftest import Unique
from tests.contract.log_world import Owner, World, until


class Member:
    """A reader, its owner, and everything it was delivered."""

    def __init__(self, world: World, topic: str, group: str, owner: Owner) -> None:
        self.reader: GroupReader = world.log.group_reader(topic, group)
        self.owner = owner
        self.got: list[Record] = []

    async def start(self) -> Member:
        await self.reader.start(self.owner)
        return self

    async def read(self, max_records: int = 100) -> list[Record]:
        records = await self.reader.read(max_records, 0.1)
        assert len(records) <= max_records
        self.got += records
        return records

    async def until_held(self, *partitions: int) -> None:
        await until(lambda: self._held(partitions))

    async def _held(self, partitions: Sequence[int]) -> bool:
        await self.read()
        return sorted(self.reader.positions()) == sorted(partitions)

    async def until_got(self, count: int) -> None:
        async def enough() -> bool:
            await self.read()
            return len(self.got) >= count

        await until(enough)

    async def until_at(self, positions: Mapping[int, int]) -> None:
        async def there() -> bool:
            await self.read()
            return self.reader.positions() == positions

        await until(there)

    def offsets(self, partition: int = 0) -> list[int]:
        return [record.offset for record in self.got if record.partition == partition]


async def member(world: World, topic: str, group: str, owner: Owner | None = None) -> Member:
    return await Member(world, topic, group, owner or Owner()).start()


async def filled(world: World, partitions: int = 1, count: int = 10) -> str:
    topic = await world.make_topic(partitions)
    for partition in range(partitions):
        for number in range(count):
            await world.put(topic, b"%d" % number, b"v%d" % number, partition=partition)
    return topic


async def test_records_come_in_order_from_where_the_owner_says(world: World, unique: Unique) -> None:
    topic, group = await filled(world, 2), unique("group")
    one = await member(world, topic, group, Owner({0: 4, 1: 0}))
    await one.until_got(16)
    assert one.owner.heard == [("assigned", [0, 1])]
    assert one.owner.committed == {0: None, 1: None}
    assert (one.offsets(0), one.offsets(1)) == ([4, 5, 6, 7, 8, 9], list(range(10)))
    assert one.got[one.got.index(Record(0, 4, 1000, b"4", b"v4"))].value == b"v4"
    assert one.reader.positions() == {0: 10, 1: 10}
    await world.put(topic, b"new", None)
    await one.until_got(17)
    assert one.got[-1] == Record(0, 10, 1000, b"new", None)
    await one.reader.close()


async def test_a_batch_is_no_larger_than_asked_for(world: World, unique: Unique) -> None:
    topic = await filled(world)
    one = await member(world, topic, unique("group"))
    sizes: list[int] = []

    async def all_read() -> bool:
        sizes.append(len(await one.read(3)))
        return len(one.got) == 10

    await until(all_read)
    assert max(sizes) == 3
    assert one.offsets() == list(range(10))
    await one.reader.close()


async def test_commits_keep_their_metadata(world: World, unique: Unique) -> None:
    topic, group = await filled(world, 2), unique("group")
    one = await member(world, topic, group)
    await one.until_held(0, 1)
    await one.reader.commit({0: Commit(3, '{"é": 1}'), 1: Commit(0)})
    await one.reader.commit({})
    assert await world.log.committed(group, topic) == {0: Commit(3, '{"é": 1}'), 1: Commit(0)}
    await one.reader.close()
    two = await member(world, topic, group)
    await two.until_got(17)
    assert two.owner.committed == {0: Commit(3, '{"é": 1}'), 1: Commit(0)}
    assert (two.offsets(0), two.offsets(1)) == (list(range(3, 10)), list(range(10)))
    await two.reader.close()


async def test_the_last_commit_of_a_revoked_partition_counts(world: World, unique: Unique) -> None:
    topic, group = await filled(world), unique("group")
    one = await member(world, topic, group, Owner(last={0: Commit(6, "drained")}))
    await one.until_got(10)
    await one.reader.close()
    assert one.owner.heard == [("assigned", [0]), ("revoked", [0])]
    assert one.reader.positions() == {}
    assert await world.log.committed(group, topic) == {0: Commit(6, "drained")}
    with pytest.raises(Terminal):
        await one.reader.read(1, 0.1)
    await one.reader.close()


async def test_two_members_share_and_never_both_get_a_record(world: World, unique: Unique) -> None:
    topic, group = await filled(world, 4, 30), unique("group")
    one = await member(world, topic, group)
    await one.until_held(0, 1, 2, 3)
    two = await member(world, topic, group)

    async def handed_over() -> bool:
        for reading in (one, two):
            # As a lane does: what was delivered is resolved, and the last commit says so.
            reading.owner.last = {p: Commit(offset) for p, offset in reading.reader.positions().items()}
            await reading.read(7)
        return len(two.reader.positions()) == 2 and len(one.got) + len(two.got) >= 120

    await until(handed_over)
    assert len(one.reader.positions()) == 2
    assert one.reader.positions().keys() | two.reader.positions().keys() == {0, 1, 2, 3}
    assert one.owner.said("revoked") == two.owner.said("assigned")
    everything = [(record.partition, record.offset) for record in one.got + two.got]
    assert sorted(everything) == [(partition, offset) for partition in range(4) for offset in range(30)]
    await asyncio.gather(two.reader.close(), one.until_held(0, 1, 2, 3))
    await one.reader.close()


async def test_a_member_that_was_thrown_out_cannot_commit(world: World, unique: Unique) -> None:
    topic, group = await filled(world), unique("group")
    one = await member(world, topic, group)
    await one.until_got(10)
    await world.outlive(topic, group, one.reader)
    with pytest.raises(Fenced):  # also while the group is empty, where a broker would accept a lone consumer's commit
        await one.reader.commit({0: Commit(4)})
    two = await member(world, topic, group)
    await two.until_held(0)
    await two.reader.commit({0: Commit(8)})
    with pytest.raises(Fenced):
        await one.reader.commit({0: Commit(5)})
    assert await world.log.committed(group, topic) == {0: Commit(8)}

    async def told() -> bool:
        await two.read()
        with suppress(Fenced):  # a reader may say so before the owner is told
            await one.read()
        return one.owner.said("lost") == [0]

    await until(told)
    assert one.owner.said("revoked") == []
    await asyncio.gather(two.reader.close(), one.until_held(0))  # it has joined again
    assert one.owner.committed == {0: Commit(8)}
    await one.reader.close()


async def test_only_what_is_ours_is_committed(world: World, unique: Unique) -> None:
    topic, group = await filled(world, 2), unique("group")
    one = await member(world, topic, group)
    await one.until_held(0, 1)
    with pytest.raises(Fenced):
        await one.reader.commit({7: Commit(1)})
    await one.reader.close()


async def test_positions_cross_markers_and_aborted_records(world: World, unique: Unique) -> None:
    topic = await filled(world, 1, 1)
    aborted = await world.begin()
    await aborted.put(topic, [b"x", b"y"])
    await aborted.finish(commit=False)
    one = await member(world, topic, unique("group"))
    await one.until_at({0: 4})  # 0, x, y, marker
    committed = await world.begin()
    await committed.put(topic, [b"a"])
    await committed.finish(commit=True)
    await one.until_at({0: 6})
    waiting = await world.begin()
    await waiting.put(topic, [b"b"])
    await world.put(topic, b"c", b"behind an open transaction")
    for _ in range(3):
        await one.read()
    assert one.offsets() == [0, 4]
    assert one.reader.positions() == {0: 6}
    await waiting.finish(commit=True)
    await one.until_at({0: 9})
    assert one.offsets() == [0, 4, 6, 7]
    await one.reader.close()


async def test_positions_cross_compaction_gaps(world: World, unique: Unique) -> None:
    topic = await world.make_topic(compacting=True)
    for number in range(20):
        await world.put(topic, b"k%d" % (number % 2), b"v")
    await world.compact(topic)
    one = await member(world, topic, unique("group"), Owner({0: 3}))
    await one.until_at({0: 21})
    assert one.offsets() == [18, 19, 20]
    await one.reader.close()


async def test_a_paused_partition_waits_and_loses_nothing(world: World, unique: Unique) -> None:
    topic = await filled(world, 2)
    one = await member(world, topic, unique("group"))
    await one.until_held(0, 1)
    one.reader.pause([0])
    before = one.offsets(0)
    for number in range(10, 20):
        await world.put(topic, b"%d" % number, b"v")
        await world.put(topic, b"%d" % number, b"v", partition=1)
    await until(lambda: _reads_to(one, 1, 20))
    for _ in range(3):
        await one.read()
    assert one.offsets(0) == before
    one.reader.resume([0])
    await until(lambda: _reads_to(one, 0, 20))
    assert (one.offsets(0), one.offsets(1)) == (list(range(20)), list(range(20)))
    await one.reader.close()


async def _reads_to(one: Member, partition: int, count: int) -> bool:
    await one.read()
    return len(one.offsets(partition)) == count


async def test_a_pause_ends_with_the_ownership(world: World, unique: Unique) -> None:
    topic, group = await filled(world), unique("group")
    one = await member(world, topic, group)
    await one.until_held(0)
    one.reader.pause([0])
    await one.read()
    two = await member(world, topic, group)
    await one.reader.close()
    await two.until_got(10)
    await two.reader.close()


@pytest.mark.parametrize("what", ["assigned", "revoked"])
async def test_what_an_owner_raises_comes_out_of_read(world: World, unique: Unique, what: str) -> None:
    topic, group = await filled(world, 2), unique("group")
    one = await member(world, topic, group)
    one.owner.fail[what] = Transient("the owner is not ready")
    two = None
    if what == "revoked":
        await one.until_held(0, 1)
        two = await member(world, topic, group)

    async def raises() -> bool:
        try:
            await one.read()
            if two is not None:
                await two.read()
        except Transient as raised:
            return raised.message == "the owner is not ready"
        return False

    await until(raises)
    if two is None:  # offered again, and nothing was read before the owner said where to begin
        assert one.got == []
        await one.until_got(20)
        assert one.owner.heard == [("assigned", [0, 1])] * 2
    else:  # let go all the same: the other one gets it
        await asyncio.gather(one.until_held(*one.reader.positions()), _until_some(two))
        assert len(two.reader.positions()) == 1
        await two.reader.close()
    await one.reader.close()


async def _until_some(one: Member) -> None:
    async def some() -> bool:
        await one.read()
        return bool(one.reader.positions())

    await until(some)


async def test_an_owner_may_commit_while_it_is_being_revoked(world: World, unique: Unique) -> None:
    topic, group = await filled(world), unique("group")

    class Draining(Owner):
        reader: GroupReader

        async def revoked(self, partitions: Sequence[int]) -> Mapping[int, Commit]:
            await super().revoked(partitions)
            await self.reader.commit({0: Commit(4)})
            assert dict(await world.log.committed(group, topic)) == {0: Commit(4)}
            return {0: Commit(5)}

    owner = Draining()
    one = await member(world, topic, group, owner)
    owner.reader = one.reader
    await one.until_held(0)
    await one.reader.close()
    assert await world.log.committed(group, topic) == {0: Commit(5)}


@pytest.mark.parametrize("start", [0, 500])
async def test_a_position_outside_the_log_is_another_log(world: World, unique: Unique, start: int) -> None:
    topic = await filled(world)
    await world.truncate(topic, 5)
    one = await member(world, topic, unique("group"), Owner({0: start}))

    async def stopped() -> bool:
        try:
            await one.read()
        except IdentityChanged:
            return True
        return False

    await until(stopped)
    with pytest.raises(IdentityChanged):
        await one.read()
    assert one.got == []
    await one.reader.close()


async def test_a_cancelled_read_loses_nothing(world: World, unique: Unique) -> None:
    topic = await filled(world)
    one = await member(world, topic, unique("group"))
    await one.until_held(0)
    await one.until_got(10)
    reading = asyncio.create_task(one.reader.read(100, 5.0))
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await world.put(topic, b"late", b"v")
    assert one.reader.positions() == {0: 10}
    await one.until_got(11)
    assert one.offsets() == list(range(11))
    await one.reader.close()


async def test_brokers_that_do_not_answer_stop_a_read(world: World) -> None:
    reader = world.nowhere.group_reader("topic", "group")
    await reader.start(Owner())

    async def raises() -> bool:
        try:
            await reader.read(10, 0.2)
        except Transient:
            return True
        return False

    await until(raises)
    with pytest.raises(Transient):  # and goes on saying so
        await reader.read(10, 0.2)
    await reader.close()
