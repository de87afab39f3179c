"""The replay lane of one partition: the plan scan, the memory of what live has seen, a pass for each of its tiers, and
at last what the log has forgotten and the serving space still holds.

It runs where the live lane owns the partition, embeds each document once, and never writes by itself: it delivers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Literal, NamedTuple, TypeVar
from uuid import UUID

import numpy as np
import orjson

from connectors.errors import Transient
from connectors.protocols import Bounds, Commit, Log, RangeBatch, Record
from streams import tracing
from streams.build import Batch, Build
from streams.carrying import (
    Forgotten,
    OldSpace,
    OldSpaceFault,
    ReadBack,
    of_the_old_space,
    pages_of,
    read_back,
    same_texts,
)
from streams.commits import LiveCommit
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
CHECKPOINT_AGAIN_S = 3600.0  # although nothing is new: brokers forget a commit that nobody has renewed for days
EVERY = 2**62
DELIVERED_GROUPS = 4  # at once: each delivery wakes the agent and whoever waits for its progress
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


async def plan_scan(
    kafka: Log, topic: str, partition: int, end: int, *, start: int = 0, reached: Callable[[int], None] = lambda _: None
) -> KeyIndex:
    """The newest offset of each key in [start, end): exact totals before anything is spent. `reached` hears how far it
    has read."""
    builder = KeyIndexBuilder()
    async for batch in kafka.read_keys(topic, partition, start, end, key_digest):
        if builder.due:  # off the loop: sorting millions of keys must not hold the live lane
            await asyncio.to_thread(builder.compact)
        builder.add(batch.digests, batch.offsets, batch.deleted)
        reached(batch.position)
    return await asyncio.to_thread(builder.build) if builder.large else builder.build()


async def holding(kafka: Log, build: Build, partition: int, position: int) -> OldSpace | None:
    """The space that serves beside a build, once it holds all below `position` of a partition, and nothing in it is in
    doubt. None where nothing serves. Raises Transient as long as it may come to that, OldSpaceFault when it cannot."""
    old = build.old_space()
    if old is None:
        return None
    if (failure := old.state.failure) is not None:  # it may hold what was deleted since: nobody could tell
        raise OldSpaceFault(old.state, f"it has stopped: {failure.cause}", failure.next_step)
    with of_the_old_space(old.state):
        commit = (await kafka.committed(old.group, build.topic)).get(partition)
    reached = old.state.start.get(partition, 0) if commit is None else commit.offset
    if reached < position or (commit is not None and LiveCommit.from_metadata(commit.metadata).doubts):
        raise Transient(
            f"documents that the topic no longer has are brought over from {old.state.key} once it has settled all "
            f"below offset {position} of partition {partition}; it has come to {reached}",
            next_step=f"crossfade status {old.state.collection} {old.state.version}",
        )
    return old


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
        completed: Callable[[PartitionLedger], Awaitable[None]],
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
        self.carrying = False
        self._log_done = False
        self._passes: Passes | None = None
        self._place = Place(0, 0)
        self._tiers: Sequence[TierName] | None = None
        self._delivered = 0
        self._committing = asyncio.Lock()
        self._worth_a_commit = asyncio.Event()
        self._checkpointed: Commit | None = None
        self._checkpointed_s = 0.0

    async def run(self) -> None:
        """Raises what is not Transient; ends early, without a word, when the partition was revoked."""
        ledger, state = self._ledger, self._state()
        partition, barrier = ledger.partition, state.barrier[ledger.partition]
        live_position = ledger.live.position
        commit = await self._patiently(self._committed)
        async with self._build.scans:
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
            await self._carry(index, live_position)
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
        await self._completed(ledger)

    def tiers(self) -> list[TierProgress]:
        """How far each tier is, in their order; nothing while there is only the rest."""
        passes, replay = self._passes, self._ledger.replay
        if passes is None or len(passes) == 1:
            return []
        found: list[TierProgress] = []
        for number, one in enumerate(passes.passes):
            reached = replay.committable if replay is not None and number == self._place.number else 0
            done = self.status == "done" or self.carrying or number < self._place.number
            found.append(one.progress(EVERY if done else reached))
        return combine_tiers(found)

    async def _go_through(self, passes: Passes, place: Place, barrier: int) -> None:
        """Every pass from `place` on, each begun when all of the one before it is resolved. Raises _TiersChanged."""
        ledger = self._ledger
        if place.restarted:
            ledger.recheck_replay = EVERY
        if place.reordered and ledger.takeover is not None and ledger.takeover.replay_left > 0:
            # rule 11: its last writes were of documents that may come at any time in this order, or not at all any more
            ledger.takeover.replay_left, ledger.sweep_due, ledger.carry_due = 0, True, True
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

    # what the log has forgotten

    async def _carry(self, index: KeyIndex, live_position: int) -> None:
        """Bring over what only the serving space still has, each document at the offset it once had, past the same
        guard as a replayed record: whatever live has seen of its key is newer and wins (rules 4 and 5).

        Begun anew after a restart: what is stored already is found to be so. `live_position`: where live began here.
        """
        ledger = self._ledger
        if self._build.old_space() is None:
            return
        begin = (await self._patiently(self._bounds))[ledger.partition].earliest
        if begin and ledger.takeover is not None and ledger.takeover.replay_left > 0:
            # rule 11: a former owner may have been here, and of its last writes the documents may be gone since
            ledger.takeover.replay_left, ledger.sweep_due, ledger.carry_due = 0, True, True
        while begin and ledger.active:
            asked = self._build.old_space()
            try:
                # what live saw before it began here is remembered only as far as the log still has it: the old space
                # must have gone past that, and past all the log has lost
                old = await self._patiently(lambda: self._current(max(begin, live_position)))
                if old is not None and ledger.active:
                    await self._carry_from(old, index, begin)
                return
            except OldSpaceFault as fault:
                await self._agent.progressed(lambda: not ledger.active or self._resolved_so_far())
                now = self._build.old_space()
                if asked is not None and now is not None and now.space.name == asked.space.name:
                    await self._owe(fault)
                    return
                self.carrying = False  # another version serves since: from that one, from the beginning

    async def _owe(self, fault: OldSpaceFault) -> None:
        """The replay ends without what the serving space has: a sweep brings it over once that can be read. Whoever
        owns the partition next must know before anybody takes the replay for complete."""
        ledger, counters = self._ledger, self._build.counters[self._ledger.partition]
        log.warning("%s, partition %d: %s", self._build.name, ledger.partition, fault.text)
        if self.carrying:
            counters.total = counters.completed
        ledger.carry_due, ledger.carry_trouble = True, fault.text
        await self._agent.progressed(lambda: not ledger.active or ledger.told_carry)

    async def _carry_from(self, old: OldSpace, index: KeyIndex, begin: int) -> None:
        ledger, counters = self._ledger, self._build.counters[self._ledger.partition]
        forgotten = await self._patiently(lambda: self._look_through(old, index, begin))
        if not ledger.active or not len(forgotten):
            return
        counters.carried = counters.not_carried = 0
        if not same_texts(old.state.model, self._build.encoder.envelope):
            counters.not_carried = forgotten.unknown
            log.warning(
                "%s: %d documents that partition %d has forgotten stay in %s alone, which embeds another text",
                self._build.name,
                forgotten.unknown,
                ledger.partition,
                old.state.key,
            )
            return
        await self._patiently(self._checkpoint)  # all of the log is done: whoever comes next begins here
        counters.compacted_away += counters.total - counters.completed
        counters.completed = counters.total
        counters.total += len(forgotten)
        ledger.recheck_replay = EVERY
        ledger.begin_replay(0)
        self._delivered = 0
        self.carrying = self._log_done = True
        for wanted in forgotten.slices(self._throttle.portion(DELIVERED_GROUPS * self._build.limits.batch)):
            await self._wait_for_room()
            await self._throttle.take(len(wanted))
            if not ledger.active:
                return
            await self._deliver_carried(wanted, await self._patiently(partial(self._read_back, old, wanted)))
        await self._agent.progressed(lambda: self._done_or_revoked(self._delivered))

    async def _deliver_carried(self, wanted: Mapping[UUID, int], found: ReadBack) -> None:
        ledger, counters = self._ledger, self._build.counters[self._ledger.partition]
        counters.carried += len(found.documents)
        counters.not_carried += found.unfit
        counters.total -= len(wanted) - len(found.documents)
        records = [one.record for one in found.documents]
        digests = [key_digest(record.key or b"") for record in records]
        changes = [one.change for one in found.documents]
        self._delivered = max(wanted.values()) + 1
        await self._deliver(
            [Batch(Lane.REPLAY, ledger, records, digests, self._delivered, "rest", ledger.replay, changes)]
        )

    async def _bounds(self) -> Mapping[int, Bounds]:
        return await self._kafka.bounds(self._build.topic)

    async def _current(self, position: int) -> OldSpace | None:
        """What serves, once it holds all below `position`. None: nothing can be had. Raises Transient until then."""
        return await holding(self._kafka, self._build, self._ledger.partition, position)

    async def _look_through(self, old: OldSpace, index: KeyIndex, begin: int) -> Forgotten:
        partition = self._ledger.partition
        forgotten = Forgotten(partition, min(begin, self._state().barrier[partition]), index)
        async with self._build.space_scans:
            with tracing.span("carry scan") as span:
                async for page in pages_of(old):
                    forgotten.add(page)
                span.note(documents=len(forgotten))
        return forgotten

    async def _read_back(self, old: OldSpace, wanted: Mapping[UUID, int]) -> ReadBack:
        with of_the_old_space(old.state):
            return await read_back(old, self._build.encoder.envelope, self._build.schema, wanted)

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
        seen, partition = self._ledger.seen, self._ledger.partition
        assert seen is not None
        async for batch in self._kafka.read_keys(self._build.topic, partition, start, live_position, key_digest):
            for digest, offset, deleted in zip(batch.digests, batch.offsets, batch.deleted, strict=True):
                seen.note(digest, offset, deleted)

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
        size = self._throttle.portion(DELIVERED_GROUPS * self._build.limits.batch)
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
        if not self.carrying and self._state().controls.tiers != self._tiers:
            raise _TiersChanged
        self.status = "replaying"
        window = self._build.limits.window

        def worth_a_commit() -> bool:
            return not self._worth_a_commit.is_set() and replay.worth_committing(window)

        def may_go_on() -> bool:
            return not ledger.active or self._agent.has_room(Lane.REPLAY, ledger)

        while True:
            if worth_a_commit():
                self._worth_a_commit.set()  # it is made beside this: what it frees is half the window
            if may_go_on():
                return
            await self._agent.progressed(lambda: may_go_on() or worth_a_commit())

    async def _checkpoints(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CHECKPOINT_EVERY_S):
                    await self._worth_a_commit.wait()
            self._worth_a_commit.clear()
            await self._patiently(self._checkpoint)
            await self._agent.notify()  # there may be room now

    async def _checkpoint(self) -> None:
        """Commit the contiguous prefix of the pass (rule 6)."""
        if self._ledger.replay is None:
            return
        async with self._committing:  # one after the other: an older one must not overtake a newer
            replay, commit = self._ledger.replay, self._commit()
            now_s = asyncio.get_running_loop().time()
            resolved = replay.committable
            if commit == self._checkpointed and now_s - self._checkpointed_s < CHECKPOINT_AGAIN_S:
                if self.carrying:
                    replay.acknowledge(resolved)
                return  # a commit costs milliseconds: a replay that is held should cost nothing
            await self._kafka.commit_offsets(self._group, self._build.topic, {self._ledger.partition: commit})
            replay.acknowledge(resolved)
            self._checkpointed, self._checkpointed_s = commit, now_s

    def _commit(self) -> Commit:
        assert self._passes is not None
        assert self._ledger.replay is not None
        place, epoch = self._place, self._build.epoch
        metadata = ReplayCommit(epoch, place.number, self._passes.hash, place.restarted).to_metadata()
        if self._log_done:  # the carry's offsets are none of the last pass, and it is begun anew each time
            return Commit(self._state().barrier[self._ledger.partition], metadata)
        return Commit(self._ledger.replay.committable, metadata)

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        return await patiently(call, going=lambda: self._ledger.active, trouble=self._note_trouble)

    def _note_trouble(self, error: Transient | None) -> None:
        self.trouble = error
        if error is not None:
            log.warning(
                "%s: the replay of partition %d waits: %s", self._build.name, self._ledger.partition, error.message
            )
