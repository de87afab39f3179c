"""The live lane of one build: follows the topic from the start offset on, and owns the partitions its group gives it.

Ownership decides everything else (rule 3): whoever holds a partition here replays it, mends it and writes it, alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

from connectors.errors import Fenced, Transient
from connectors.protocols import Commit, GroupReader, Log, Record
from streams.build import Batch, Build
from streams.commits import LONG_AGO, LiveCommit
from streams.documents import key_digest
from streams.embed_agent import EmbedAgent
from streams.identity import check_position, check_topic
from streams.ordering import Following, Lane, PartitionLedger, Takeover
from streams.state import BuildState

log = logging.getLogger(__name__)

READ_TIMEOUT_S, HELD_READ_S = 0.3, 0.1  # an event that comes ends a read at once: longer reads only cost less
COMMIT_EVERY_S = 1.0


class Partitions(Protocol):
    """What else must happen when partitions come and go: the replay lane and the mender of each."""

    def known(self, partition: int) -> bool:
        """Whether a worker has ever reported on this partition of this build."""
        ...

    async def gained(self, ledger: PartitionLedger) -> None: ...

    async def dropped(self, ledgers: Sequence[PartitionLedger], *, lost: bool) -> None:
        """Stop whatever was begun for them. Not `lost`: they were drained, and a last checkpoint may be made."""
        ...


class LiveLane:
    """See the module. `run` until cancelled; then it drains, commits and leaves the group.

    Implements connectors.protocols.Rebalance.
    """

    def __init__(
        self,
        build: Build,
        state: Callable[[], BuildState],
        kafka: Log,
        reader: GroupReader,
        agent: EmbedAgent,
        deliver: Callable[[list[Batch]], Awaitable[None]],
        partitions: Partitions,
    ) -> None:
        self._build = build
        self._state = state
        self._kafka = kafka
        self._reader = reader
        self._agent = agent
        self._deliver = deliver
        self._partitions = partitions
        self._held: set[int] = set()
        self._committed_at_s = float("-inf")
        self._delivered: dict[int, int] = {}
        self.ledgers = agent.ledgers

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        await self._reader.start(self)
        try:
            while True:
                await self._hold_or_go_on()
                records = await self._reader.read(
                    self._build.limits.read_records, HELD_READ_S if self._held else READ_TIMEOUT_S
                )
                if delivery := self._batches(records):
                    await self._deliver(delivery)
                if loop.time() - self._committed_at_s >= COMMIT_EVERY_S or self._must_commit():
                    await self._commit()
        finally:
            await self._reader.close()

    async def _hold_or_go_on(self) -> None:
        """Stop fetching while there is no room; reads go on all the same, because membership lives in them.

        Not at the first moment: a reader that is stopped throws away what it has fetched ahead. A partition gained
        meanwhile is held too, and those held before it are not forgotten.
        """
        paused = self._state().paused == "all"
        if not paused and not self._held:
            await self._wait_for_room(asyncio.get_running_loop().time() + HELD_READ_S)
        hold = paused or not self._agent.has_room(Lane.LIVE)
        if hold:
            if fresh := self.ledgers.keys() - self._held:
                self._reader.pause(sorted(fresh))
        elif self._held:
            self._reader.resume(sorted(self._held))
        self._held = set(self.ledgers) if hold else set()

    async def _wait_for_room(self, until_s: float) -> None:
        loop = asyncio.get_running_loop()
        while not self._agent.has_room(Lane.LIVE) and loop.time() < until_s:
            if self._must_commit():
                await self._commit()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(until_s):
                    await self._agent.progressed(lambda: self._agent.has_room(Lane.LIVE) or self._must_commit())

    def _batches(self, records: Sequence[Record]) -> list[Batch]:
        by_partition: dict[int, list[Record]] = {}
        for record in records:
            by_partition.setdefault(record.partition, []).append(record)
        batches: list[Batch] = []
        for partition, position in self._reader.positions().items():
            ledger = self.ledgers.get(partition)
            mine = by_partition.get(partition, [])
            if ledger is None or (not mine and position <= self._delivered.get(partition, -1)):
                continue
            self._delivered[partition] = position
            digests = [key_digest(record.key or b"") for record in mine]
            batches.append(Batch(Lane.LIVE, ledger, mine, digests, position))
        return batches

    def _must_commit(self) -> bool:
        """Work waits for a commit: writes until the group knows of a doubt, reads until the window has room."""
        window = self._build.limits.window
        return any(not one.may_write or one.live.worth_committing(window) for one in self.ledgers.values())

    async def _commit(self) -> None:
        """Commit the contiguous prefix (rule 6), and so renew the lease (rule 11), also when nothing is new."""
        if not self.ledgers:
            return
        loop = asyncio.get_running_loop()
        sent_at_s = loop.time()
        sent = {
            ledger: (self._commit_of(ledger, clean=False), ledger.in_doubt, ledger.lacks)
            for ledger in self.ledgers.values()
        }
        for ledger, (_, in_doubt, lacks) in sent.items():  # from now on, not only from the answer on
            if ledger.told and not in_doubt:
                ledger.told = False
            ledger.told_carry = ledger.told_carry and lacks
        try:
            await self._reader.commit({ledger.partition: commit for ledger, (commit, *_) in sent.items()})
        except Fenced:
            log.warning(
                "%s: the group has gone on without this worker; its partitions come back by a rebalance",
                self._build.name,
            )
        except Transient as error:
            log.warning("%s: a commit got no answer, writes wait for the next: %s", self._build.name, error.message)
        else:
            self._build.lease.renew(sent_at_s)
            for ledger, (commit, in_doubt, lacks) in sent.items():
                heard = lacks and not ledger.told_carry
                ledger.told, ledger.told_carry = in_doubt, lacks
                if heard:
                    await self._agent.notify()
                ledger.live.acknowledge(commit.offset)
        self._committed_at_s = loop.time()

    def _commit_of(self, ledger: PartitionLedger, *, clean: bool) -> Commit:
        metadata = LiveCommit(self._build.epoch, clean, ledger.in_doubt, ledger.following.at_ms, ledger.lacks)
        return Commit(ledger.live.committable, metadata.to_metadata())

    # the group's callbacks

    async def assigned(self, committed: Mapping[int, Commit | None]) -> Mapping[int, int]:
        loop = asyncio.get_running_loop()
        state = self._state()
        facts = await self._kafka.facts(state.topic)
        check_topic(state, facts)
        bounds = await self._kafka.bounds(state.topic)
        limits = self._build.limits
        starts: dict[int, int] = {}
        for partition, commit in committed.items():
            position = commit.offset if commit is not None else state.start[partition]  # rule 2
            check_position(state, partition, position, bounds[partition])
            last = self._left_by(partition, commit)
            now_ms, kept_ms = self._build.wall_ms(), facts.delete_retention_ms
            followed_ms = last.at_ms if last is not None else now_ms
            ledger = PartitionLedger(
                partition,
                live_position=position,
                replaying=partition not in state.replayed,
                following=Following(followed_ms, kept_ms, late=now_ms - followed_ms > kept_ms),
            )
            if last is not None:
                if not last.clean:
                    ledger.takeover = Takeover(
                        loop.time() + limits.settle_s, bounds[partition].stable, limits.reach, limits.reach
                    )
                ledger.recheck_replay = limits.reach
                ledger.sweep_due = last.doubts  # which keys, the former owner knew alone
                ledger.carry_due = last.carry
            self.ledgers[partition] = ledger
            self._delivered[partition] = -1
            starts[partition] = position
            await self._partitions.gained(ledger)
        self._committed_at_s = float("-inf")  # commit at once: it is the first proof of membership
        log.info("%s owns partitions %s", self._build.name, sorted(self.ledgers))
        return starts

    def _left_by(self, partition: int, commit: Commit | None) -> LiveCommit | None:
        """What the former owner said; None where there was none.

        A group without members loses its commits in time. What was written then is still there.
        """
        if commit is not None:
            return LiveCommit.from_metadata(commit.metadata)
        return LONG_AGO if self._partitions.known(partition) else None

    async def revoked(self, partitions: Sequence[int]) -> Mapping[int, Commit]:
        ledgers = self._drop(partitions)
        drained = await self._agent.writer.drain(ledgers, self._build.limits.write_deadline_s + 1.0)
        await self._partitions.dropped(ledgers, lost=False)
        return {ledger.partition: self._commit_of(ledger, clean=drained and not ledger.unsettled) for ledger in ledgers}

    async def lost(self, partitions: Sequence[int]) -> None:
        ledgers = self._drop(partitions)
        for ledger in ledgers:
            ledger.active = False
        await self._partitions.dropped(ledgers, lost=True)
        log.warning("%s lost partitions %s to another worker", self._build.name, sorted(partitions))

    def _drop(self, partitions: Sequence[int]) -> list[PartitionLedger]:
        self._held -= set(partitions)
        return [ledger for p in partitions if (ledger := self.ledgers.pop(p, None)) is not None]
