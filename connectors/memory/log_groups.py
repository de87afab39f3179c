"""Consumer groups in memory: members, generations, cooperative rebalances and fenced commits.

A partition must never have two holders, and a member that was thrown out must never commit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from connectors.errors import Fenced, Terminal
from connectors.protocols import Commit, Rebalance, Record

if TYPE_CHECKING:
    from connectors.memory.log import MemoryLog


class MemoryGroup:
    """One group on one topic.

    `target` says who shall hold a partition, `holder` who does: as with a cooperative rebalance, the new one waits
    until the old one has let go in one of its own reads, or was thrown out.
    """

    def __init__(self) -> None:
        self.members: list[MemoryReader] = []
        self.target: dict[int, MemoryReader] = {}
        self.holder: dict[int, MemoryReader] = {}
        self.commits: dict[int, Commit] = {}
        self.generation = 0

    def balance(self, partitions: int) -> None:
        """Share the partitions evenly; whoever has one keeps it where that is fair."""
        self.generation += 1
        free: list[int] = []
        load = dict.fromkeys(self.members, 0)
        most = -(-partitions // len(self.members)) if self.members else 0
        extra = partitions - len(self.members) * (most - 1)  # how many members may hold `most`
        target: dict[int, MemoryReader] = {}
        for number in range(partitions):
            member = self.target.get(number)
            if member in load and member is not None:
                full = load[member] == most - 1
                if load[member] < most - 1 or (full and extra > 0):
                    extra -= full
                    load[member] += 1
                    target[number] = member
                    continue
            free.append(number)
        for number in free:
            if not self.members:
                break
            member = min(self.members, key=lambda known: (load[known], self.members.index(known)))
            load[member] += 1
            target[number] = member
        self.target = target

    def throw_out(self, member: MemoryReader, partitions: int) -> None:
        """The member's session is over; it learns of it in its next call."""
        if member in self.members:
            self.members.remove(member)
            self.holder = {number: holder for number, holder in self.holder.items() if holder is not member}
            self.balance(partitions)


class MemoryReader:
    """`connectors.protocols.GroupReader` on a `MemoryLog`."""

    def __init__(self, log: MemoryLog, topic: str, group: MemoryGroup, name: str) -> None:
        self._log = log
        self._topic = topic
        self._group = group
        self._name = name
        self._owner: Rebalance | None = None
        self._closed = False
        self._reached: dict[int, int] = {}
        self._paused: set[int] = set()
        self._served = 0  # the partition after the one served last: none starves
        self.seen_s = 0.0

    async def start(self, owner: Rebalance) -> None:
        self._owner = owner
        self._join()

    async def read(self, max_records: int, timeout_s: float) -> list[Record]:
        if self._owner is None or self._closed:
            raise Terminal(f"{self._name}: the reader was not started, or is closed", next_step="call start() first")
        self._log.reach("read", self._topic)
        self._log.expire_silent(self._group, self._topic, but=self)
        await self._rebalance(self._owner)
        records = self._collect(max_records)
        if not records:
            await self._log.idle(timeout_s)
            self._log.reach("read", self._topic)
            if self in self._group.members:
                records = self._collect(max_records)
        self.seen_s = self._log.clock()
        return records

    def positions(self) -> Mapping[int, int]:
        return dict(self._reached)

    def pause(self, partitions: Sequence[int]) -> None:
        self._paused |= set(partitions)

    def resume(self, partitions: Sequence[int]) -> None:
        self._paused -= set(partitions)

    async def commit(self, commits: Mapping[int, Commit]) -> None:
        if commits:
            self._commit(commits)

    async def close(self) -> None:
        if self._closed or self._owner is None:
            self._closed = True
            return
        self._closed = True
        held = sorted(self._reached)
        try:
            if self not in self._group.members:
                if held:
                    await self._owner.lost(held)
            elif held:
                await self._revoke(self._owner, held)
        finally:
            self._reached = {}
            self._group.throw_out(self, self._log.partition_count(self._topic))

    def _join(self) -> None:
        self.seen_s = self._log.clock()
        self._group.members.append(self)
        self._group.balance(self._log.partition_count(self._topic))

    async def _rebalance(self, owner: Rebalance) -> None:
        group = self._group
        if self not in group.members:
            held, self._reached = sorted(self._reached), {}
            self._paused -= set(held)
            self._join()
            if held:
                await owner.lost(held)
        if taken := sorted(p for p in self._reached if group.target.get(p) is not self):
            await self._revoke(owner, taken)
        offered = [p for p, member in sorted(group.target.items()) if member is self and p not in self._reached]
        gained = [p for p in offered if group.holder.get(p, self) is self]
        if gained:
            group.holder.update(dict.fromkeys(gained, self))
            starts = await owner.assigned({p: group.commits.get(p) for p in gained})
            if missing := set(gained) - starts.keys():
                raise ValueError(f"the owner names no start for partitions {sorted(missing)}")
            self._reached.update({p: starts[p] for p in gained})

    async def _revoke(self, owner: Rebalance, partitions: list[int]) -> None:
        try:
            commits = await owner.revoked(partitions)
            if commits and self in self._group.members:
                self._commit(commits)
        finally:
            for number in partitions:
                self._reached.pop(number, None)
                self._paused.discard(number)
                if self._group.holder.get(number) is self:
                    del self._group.holder[number]

    def _collect(self, max_records: int) -> list[Record]:
        records: list[Record] = []
        numbers = sorted(self._reached.keys() - self._paused)
        later = [number for number in numbers if number >= self._served]
        for number in later + [number for number in numbers if number < self._served]:
            if len(records) == max_records:
                break
            partition = self._log.topic(self._topic).partition(number)
            found, self._reached[number] = partition.read(self._reached[number], max_records - len(records))
            records += found
            if found:
                self._served = number + 1
        return records

    def _commit(self, commits: Mapping[int, Commit]) -> None:
        self._log.reach("commit", self._topic)
        group = self._group
        if self not in group.members or any(group.holder.get(number) is not self for number in commits):
            raise Fenced(
                f"committing for {self._name}: this member is no longer in the group",
                next_step="nothing to do here: another member has taken over",
            )
        self.seen_s = self._log.clock()
        group.commits.update(commits)
