"""The replay lane of one partition: the plan scan, the memory of what live has seen, and a pass for each of its tiers.

It runs where the live lane owns the partition, embeds each document once, and never writes by itself: it delivers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import orjson

from connectors.errors import Transient
from connectors.protocols import Commit, Log, RangeBatch, Record
from streams import tracing
from streams.build import Batch, Build
from streams.config_operation import TierName
from streams.documents import key_digest
from streams.embed_agent import EmbedAgent
from streams.key_index import KeyIndex, KeyIndexBuilder
from streams.ordering import Lane, PartitionLedger
from streams.progress import TierProgress, combine_tiers
from streams.retry import patiently
from streams.state import BuildState
from streams.tiers import ONE_TIER, Pass, Passes

log = logging.getLogger(__name__)
T = TypeVar("T")

CHECKPOINT_EVERY_S = 1.0
EVERY = 2**62
LEAST_SHARE, LONGEST_REST_S = 0.01, 10.0


@dataclass(frozen=True, slots=True)
class ReplayCommit:
    """Metadata of a replay commit: which pass of which build the offset belongs to.

    `restarted`: the passes were begun anew in another order, so that any document may be stored already.
    """

    epoch: int
    tier: int = 0
    tier_list_hash: str = ONE_TIER
    restarted: bool = False

    def to_metadata(self) -> str:
        return orjson.dumps(asdict(self)).decode()

    @classmethod
    def from_metadata(cls, metadata: str) -> ReplayCommit | None:
        try:
            raw = orjson.loads(metadata)
            return cls(int(raw["epoch"]), int(raw["tier"]), str(raw["tier_list_hash"]), bool(raw.get("restarted")))
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
            return None


class Place(NamedTuple):
    """Where a replay goes on: in which pass, from which offset. `restarted` as in ReplayCommit; `reordered`: it was
    found to be so just now, and a former owner went by another order."""

    number: int
    position: int
    restarted: bool = False
    reordered: bool = False


def resume(commit: Commit | None, epoch: int, passes: Passes, *, replayed: bool) -> Place:
    """From the group's last commit. `replayed`: something was replayed before, whatever the commits say."""
    made = ReplayCommit.from_metadata(commit.metadata) if commit else None
    if commit is None or made is None or made.epoch != epoch:
        return Place(0, 0, replayed, replayed)
    if made.tier_list_hash != passes.hash or made.tier >= len(passes):
        return Place(0, 0, restarted=True, reordered=True)
    return Place(made.tier, commit.offset, made.restarted)


class _TiersChanged(Exception):
    """An operator has set another order."""


class Throttle:
    """Holds a replay to so many documents a second, and to a share of its speed; both may change while it runs."""

    def __init__(self, rate_per_s: Callable[[], float | None], share: Callable[[], float] = lambda: 1.0) -> None:
        self._rate_per_s = rate_per_s
        self._share = share
        self._next_s = 0.0
        self._taken_s: float | None = None

    def portion(self, most: int) -> int:
        """How many documents to hand out at once: at a low rate not a whole batch, or the rate would come in jerks."""
        rate = self._rate_per_s()
        return max(1, min(most, int(rate / 2))) if rate else most

    async def take(self, documents: int) -> None:
        """Wait until `documents` more may go."""
        loop = asyncio.get_running_loop()
        if (share := self._share()) < 1 and self._taken_s is not None:
            worked_s = loop.time() - self._taken_s
            await asyncio.sleep(min(LONGEST_REST_S, worked_s * (1 / max(share, LEAST_SHARE) - 1)))
        self._taken_s = loop.time()
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
    async for batch in kafka.read_range(topic, partition, start, end, values=False):
        if builder.due:  # off the loop: sorting millions of keys must not hold the live lane
            await asyncio.to_thread(builder.compact)
        digests = [key_digest(record.key or b"") for record in batch.records]
        builder.add(digests, [r.offset for r in batch.records], [r.value is None for r in batch.records])
    return await asyncio.to_thread(builder.build) if builder.large else builder.build()


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
        self._throttle = Throttle(lambda: self._state().replay_rate_of_a_partition, build.slowed)
        self.status: Literal["planning", "replaying", "held", "done"] = "planning"
        self.trouble: Transient | None = None
        self.planned = False
        self._passes: Passes | None = None
        self._place = Place(0, 0)
        self._tiers: Sequence[TierName] | None = None
        self._delivered = 0
        self._committing = asyncio.Lock()

    async def run(self) -> None:
        """Raises what is not Transient; ends early, without a word, when the partition was revoked."""
        ledger, state = self._ledger, self._state()
        partition, barrier = ledger.partition, state.barrier[ledger.partition]
        live_position = ledger.live.position
        commit = await self._patiently(self._committed)
        with tracing.span("plan scan") as span:
            index = await self._patiently(lambda: plan_scan(self._kafka, state.topic, partition, barrier))
            span.note(documents=index.documents, superseded=index.superseded, deletes=index.deletes)
        counters = self._build.counters[partition]
        counters.total, counters.superseded, counters.deletes = index.documents, index.superseded, index.deletes
        replayed = counters.replayed > 0
        await self._patiently(lambda: self._remember_live(state.start[partition], live_position))
        checkpoints = asyncio.create_task(self._checkpoints())
        try:
            while ledger.active:
                passes = await self._patiently(lambda: self._order(index))
                place = resume(commit, self._build.epoch, passes, replayed=replayed)
                self.planned, self.status = True, "replaying"
                try:
                    await self._go_through(passes, place, barrier)
                    break
                except _TiersChanged:
                    self.trouble = None
                    log.info("%s: the replay of partition %d takes another order", self._build.name, partition)
                    await self._agent.progressed(lambda: not ledger.active or self._resolved_so_far())
                    commit = self._commit()
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
        self.status, self.trouble = "done", None
        await self._completed(partition)

    def tiers(self) -> list[TierProgress]:
        """How far each tier is, in their order; nothing while there is only the rest."""
        passes, replay = self._passes, self._ledger.replay
        if passes is None or len(passes) == 1:
            return []
        found: list[TierProgress] = []
        for number, one in enumerate(passes.passes):
            reached = replay.committable if replay is not None and number == self._place.number else 0
            done = self.status == "done" or number < self._place.number
            found.append(one.progress(EVERY if done else reached))
        return combine_tiers(found)

    async def _go_through(self, passes: Passes, place: Place, barrier: int) -> None:
        """Every pass from `place` on, each begun when all of the one before it is resolved. Raises _TiersChanged."""
        ledger = self._ledger
        if place.restarted:
            ledger.recheck_replay = EVERY
        if place.reordered and ledger.takeover is not None and ledger.takeover.replay_left > 0:
            # rule 11: its last writes were of documents that may come at any time in this order, or not at all any more
            ledger.takeover.replay_left, ledger.sweep_due = 0, True
        for number in range(place.number, len(passes)):
            one, last = passes[number], number == len(passes) - 1
            end = barrier if last else one.end
            position = max(one.begin if len(one) else end, place.position if number == place.number else 0)
            ledger.begin_replay(position)
            self._delivered = position
            self._passes, self._place = passes, Place(number, position, place.restarted)
            self._build.counters[ledger.partition].completed = passes.completed(number, position)
            await self._patiently(self._checkpoint)  # before anything of it is written, the next owner must know
            await self._read(one, end)
            await self._agent.progressed(partial(self._done_or_revoked, end))
            if not ledger.active:
                return

    async def close(self) -> None:
        """The partition goes to another worker, and was drained: leave it the last checkpoint."""
        if self._ledger.replay is not None:
            await self._checkpoint()

    def _resolved_up_to(self, barrier: int) -> bool:
        """Rule 7: B is reached by proof (the read said so, and moved the position), and all before it is resolved."""
        replay = self._ledger.replay
        return replay is not None and replay.position >= barrier and replay.committable >= barrier

    async def _order(self, index: KeyIndex) -> Passes:
        self._tiers = self._state().controls.tiers
        return await self._build.order(self._ledger.partition, index, self._tiers)

    def _done_or_revoked(self, end: int) -> bool:
        return not self._ledger.active or self._resolved_up_to(end)

    def _resolved_so_far(self) -> bool:
        """Nothing delivered is on its way to the agent or in its hands: another order may begin."""
        replay = self._ledger.replay
        return replay is not None and replay.position >= self._delivered and replay.committable >= replay.position

    async def _committed(self) -> Commit | None:
        return (await self._kafka.committed(self._group, self._build.topic)).get(self._ledger.partition)

    async def _remember_live(self, start: int, live_position: int) -> None:
        """Rule 5 after a restart: what live had seen in [start, where it now began)."""
        seen = self._ledger.seen
        assert seen is not None

        def note(batch: RangeBatch, digests: list[bytes]) -> None:
            for record, digest in zip(batch.records, digests, strict=True):
                seen.note(digest, record.offset, record.value is None)

        await scan_keys(self._kafka, self._build.topic, self._ledger.partition, start, live_position, note)

    async def _read(self, one: Pass, end: int) -> None:
        """[position, end) once, delivering the records of this pass. Survives a broken read. Raises _TiersChanged."""
        ledger = self._ledger
        assert ledger.replay is not None
        reached = ledger.replay.position

        async def read_on() -> None:
            nonlocal reached
            async for batch in self._kafka.read_range(self._build.topic, ledger.partition, reached, end):
                if not ledger.active:
                    return
                await self._deliver_current(batch, one, end)
                reached = batch.position

        if reached < end:
            await self._patiently(read_on)

    async def _deliver_current(self, batch: RangeBatch, one: Pass, end: int) -> None:
        ledger = self._ledger
        chosen = np.flatnonzero(one.holds([record.offset for record in batch.records])).tolist()
        size = self._throttle.portion(self._build.limits.batch)
        slices = [chosen[at : at + size] for at in range(0, len(chosen), size)] or [[]]
        reached = max(batch.position, end) if batch.done else batch.position
        for n, part in enumerate(slices):
            await self._wait_for_room()
            await self._throttle.take(len(part))
            if not ledger.active:
                return
            records: list[Record] = [batch.records[i] for i in part]
            position = reached if n == len(slices) - 1 else records[-1].offset + 1
            digests = [key_digest(record.key or b"") for record in records]
            self._delivered = position
            await self._deliver([Batch(Lane.REPLAY, ledger, records, digests, position, one.tier, ledger.replay)])

    async def _wait_for_room(self) -> None:
        ledger = self._ledger
        replay = ledger.replay
        assert replay is not None
        while ledger.active and self._build.held() is not None:
            self.status = "held"
            await asyncio.sleep(0.2)
        if self._state().controls.tiers != self._tiers:
            raise _TiersChanged
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
        if self._ledger.replay is None:
            return
        async with self._committing:  # one after the other: an older one must not overtake a newer
            replay, commit = self._ledger.replay, self._commit()
            await self._kafka.commit_offsets(self._group, self._build.topic, {self._ledger.partition: commit})
            replay.acknowledge(commit.offset)

    def _commit(self) -> Commit:
        assert self._passes is not None
        assert self._ledger.replay is not None
        place, epoch = self._place, self._build.epoch
        metadata = ReplayCommit(epoch, place.number, self._passes.hash, place.restarted).to_metadata()
        return Commit(self._ledger.replay.committable, metadata)

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        return await patiently(call, going=lambda: self._ledger.active, trouble=self._note_trouble)

    def _note_trouble(self, error: Transient | None) -> None:
        self.trouble = error
        if error is not None:
            log.warning(
                "%s: the replay of partition %d waits: %s", self._build.name, self._ledger.partition, error.message
            )
