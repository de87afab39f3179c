"""The replay lane of one partition: the plan scan, the memory of what live has seen, and one pass up to the barrier.

It runs where the live lane owns the partition, embeds each document once, and never writes by itself: it delivers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import orjson

from connectors.errors import Transient
from connectors.protocols import Commit, Log, RangeBatch, Record
from streams.build import Batch, Build
from streams.documents import key_digest
from streams.embed_agent import EmbedAgent
from streams.key_index import KeyIndex, KeyIndexBuilder
from streams.ordering import Lane, PartitionLedger
from streams.retry import patiently
from streams.state import BuildState

log = logging.getLogger(__name__)
T = TypeVar("T")

CHECKPOINT_EVERY_S = 1.0
ONE_TIER = "none"  # hash of the tier list while a replay has one tier


@dataclass(frozen=True, slots=True)
class ReplayCommit:
    """Metadata of a replay commit: which pass of which build the offset belongs to."""

    epoch: int
    tier: int = 0
    tier_list_hash: str = ONE_TIER

    def to_metadata(self) -> str:
        return orjson.dumps({"epoch": self.epoch, "tier": self.tier, "tier_list_hash": self.tier_list_hash}).decode()

    @classmethod
    def from_metadata(cls, metadata: str) -> ReplayCommit | None:
        try:
            raw = orjson.loads(metadata)
            return cls(int(raw["epoch"]), int(raw["tier"]), str(raw["tier_list_hash"]))
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
            return None


class Throttle:
    """Holds a replay to so many documents a second, in step with a rate that may change while it runs."""

    def __init__(self, rate_per_s: Callable[[], float | None]) -> None:
        self._rate_per_s = rate_per_s
        self._next_s = 0.0

    def portion(self, most: int) -> int:
        """How many documents to hand out at once: at a low rate not a whole batch, or the rate would come in jerks."""
        rate = self._rate_per_s()
        return max(1, min(most, int(rate / 2))) if rate else most

    async def take(self, documents: int) -> None:
        """Wait until `documents` more may go."""
        loop = asyncio.get_running_loop()
        rate = self._rate_per_s()
        if not rate:
            return
        self._next_s = max(self._next_s, loop.time())
        self._next_s += documents / rate
        while (wait_s := self._next_s - documents / rate - loop.time()) > 0:
            await asyncio.sleep(min(wait_s, 0.5))
            if self._rate_per_s() != rate:  # changed meanwhile: begin to count anew
                self._next_s = loop.time()
                return


async def scan_keys(
    kafka: Log, topic: str, partition: int, start: int, end: int, note: Callable[[RangeBatch, list[bytes]], None]
) -> None:
    """Read keys only of [start, end): `note` gets each batch with its key digests."""
    async for batch in kafka.read_range(topic, partition, start, end, values=False):
        note(batch, [key_digest(record.key or b"") for record in batch.records])


async def plan_scan(kafka: Log, topic: str, partition: int, end: int, *, start: int = 0) -> KeyIndex:
    """The newest offset of each key in [start, end): exact totals before anything is spent."""
    builder = KeyIndexBuilder()

    def note(batch: RangeBatch, digests: list[bytes]) -> None:
        builder.add(digests, [r.offset for r in batch.records], [r.value is None for r in batch.records])

    await scan_keys(kafka, topic, partition, start, end, note)
    return builder.build()


class ReplayLane:
    """One partition's replay, from wherever its group has committed. `run` ends when the replay is complete."""

    def __init__(
        self,
        build: Build,
        state: Callable[[], BuildState],
        kafka: Log,
        group: str,
        agent: EmbedAgent,
        deliver: Callable[[list[Batch]], Awaitable[None]],
        ledger: PartitionLedger,
        completed: Callable[[int], Awaitable[None]],
    ) -> None:
        self._build = build
        self._state = state
        self._kafka = kafka
        self._group = group
        self._agent = agent
        self._deliver = deliver
        self._ledger = ledger
        self._completed = completed
        self._throttle = Throttle(lambda: self._state().replay_rate_of_a_partition)
        self.status: Literal["planning", "replaying", "waiting", "paused", "done"] = "planning"
        self.planned = False
        self._committing = asyncio.Lock()

    async def run(self) -> None:
        """Raises what is not Transient; ends early, without a word, when the partition was revoked."""
        ledger, state = self._ledger, self._state()
        partition, barrier = ledger.partition, state.barrier[ledger.partition]
        live_position = ledger.live.position
        position = await self._patiently(self._committed_position)
        index = await self._patiently(lambda: plan_scan(self._kafka, state.topic, partition, barrier))
        counters = self._build.counters[partition]
        counters.total, counters.superseded, counters.deletes = index.documents, index.superseded, index.deletes
        counters.completed = index.documents_below(position)
        self.planned = True
        await self._patiently(lambda: self._remember_live(state.start[partition], live_position))
        ledger.begin_replay(position)
        checkpoints = asyncio.create_task(self._checkpoints())
        try:
            self.status = "replaying"
            await self._pass(index, barrier)
            await self._agent.progressed(lambda: not ledger.active or self._resolved_up_to(barrier))
        finally:
            checkpoints.cancel()
            await asyncio.gather(checkpoints, return_exceptions=True)
        if not ledger.active:
            return
        await self._patiently(self._checkpoint)
        counters.compacted_away += counters.total - counters.completed  # newer records replaced them while we read
        counters.completed = counters.total
        ledger.end_replay()
        await self._agent.notify()
        self.status = "done"
        await self._completed(partition)

    async def close(self) -> None:
        """The partition goes to another worker, and was drained: leave it the last checkpoint."""
        if self._ledger.replay is not None:
            await self._checkpoint()

    def _resolved_up_to(self, barrier: int) -> bool:
        """Rule 7: B is reached by proof (the read said so, and moved the position), and all before it is resolved."""
        replay = self._ledger.replay
        return replay is not None and replay.position >= barrier and replay.committable >= barrier

    async def _committed_position(self) -> int:
        commit = (await self._kafka.committed(self._group, self._build.topic)).get(self._ledger.partition)
        made = ReplayCommit.from_metadata(commit.metadata) if commit else None
        return commit.offset if commit and made == ReplayCommit(self._build.epoch) else 0

    async def _remember_live(self, start: int, live_position: int) -> None:
        """Rule 5 after a restart: what live had seen in [start, where it now began)."""
        seen = self._ledger.seen
        assert seen is not None

        def note(batch: RangeBatch, digests: list[bytes]) -> None:
            for record, digest in zip(batch.records, digests, strict=True):
                seen.note(digest, record.offset, record.value is None)

        await scan_keys(self._kafka, self._build.topic, self._ledger.partition, start, live_position, note)

    async def _pass(self, index: KeyIndex, barrier: int) -> None:
        """[position, barrier) once, delivering the records that the index calls current. Survives a broken read."""
        ledger = self._ledger
        assert ledger.replay is not None
        reached = ledger.replay.position

        async def read_on() -> None:
            nonlocal reached
            async for batch in self._kafka.read_range(self._build.topic, ledger.partition, reached, barrier):
                if not ledger.active:
                    return
                await self._deliver_current(batch, index, barrier)
                reached = batch.position

        await self._patiently(read_on)

    async def _deliver_current(self, batch: RangeBatch, index: KeyIndex, barrier: int) -> None:
        ledger = self._ledger
        digests = [key_digest(record.key or b"") for record in batch.records]
        current = index.current_puts(digests, [record.offset for record in batch.records])
        chosen = [i for i, keep in enumerate(current.tolist()) if keep]
        size = self._throttle.portion(self._build.limits.batch)
        slices = [chosen[at : at + size] for at in range(0, len(chosen), size)] or [[]]
        end = max(batch.position, barrier) if batch.done else batch.position
        for n, part in enumerate(slices):
            await self._wait_for_room()
            await self._throttle.take(len(part))
            if not ledger.active:
                return
            records: list[Record] = [batch.records[i] for i in part]
            position = end if n == len(slices) - 1 else records[-1].offset + 1
            delivery = Batch(Lane.REPLAY, ledger, records, [digests[i] for i in part], position)
            await self._deliver([delivery])

    async def _wait_for_room(self) -> None:
        ledger = self._ledger
        replay = ledger.replay
        assert replay is not None
        while ledger.active and self._state().paused is not None:
            self.status = "paused"
            await asyncio.sleep(0.2)
        self.status = "replaying"
        window = self._build.limits.window
        while ledger.active and not self._agent.has_room(Lane.REPLAY, ledger):
            await self._agent.progressed(
                lambda: (
                    not ledger.active or self._agent.has_room(Lane.REPLAY, ledger) or replay.worth_committing(window)
                )
            )
            if replay.worth_committing(window):
                await self._patiently(self._checkpoint)

    async def _checkpoints(self) -> None:
        while True:
            await asyncio.sleep(CHECKPOINT_EVERY_S)
            await self._patiently(self._checkpoint)

    async def _checkpoint(self) -> None:
        """Commit the contiguous prefix of the pass (rule 6)."""
        replay = self._ledger.replay
        if replay is None:
            return
        async with self._committing:  # one after the other: an older one must not overtake a newer
            commit = Commit(replay.committable, ReplayCommit(self._build.epoch).to_metadata())
            await self._kafka.commit_offsets(self._group, self._build.topic, {self._ledger.partition: commit})
            replay.acknowledge(commit.offset)

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        return await patiently(call, going=lambda: self._ledger.active, trouble=self._note_trouble)

    def _note_trouble(self, error: Transient | None) -> None:
        self.status = "waiting" if error else "replaying"
        if error is not None:
            log.warning(
                "%s: the replay of partition %d waits: %s", self._build.name, self._ledger.partition, error.message
            )
