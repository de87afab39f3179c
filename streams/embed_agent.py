"""The embedding agent of one build: parse, guard, hash, chunk, embed, write, resolve.

It takes deliveries from a Faust channel and never waits in the agent body: work runs in groups beside it, so that
embedding and writing overlap. It never commits and never decides who owns a partition; the lanes do.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeVar
from uuid import UUID

from connectors.errors import IdentityChanged, Transient
from connectors.protocols import Head, Record, Vectors
from streams import documents, tracing
from streams.build import Batch, Build
from streams.documents import Delete, Put, Rejected
from streams.encoding import Urgency
from streams.key_index import ABSENT
from streams.ordering import Action, Event, Lane, Outcome, PartitionLedger, decide
from streams.parts import Parts
from streams.retry import patiently
from streams.space_objects import Origin, space_object
from streams.space_writer import DocumentWrite, SpaceWriter
from streams.spending import PartitionMeter
from streams.valve import LOOK_EVERY_S, Valve
from streams.write_turns import WriteTurns

log = logging.getLogger(__name__)
T = TypeVar("T")

SPLIT_IN_THREAD = 2_000  # characters
SMALL_GROUPS = 4  # of live events under way, beside which a further one has to be full
QUEUED_GROUPS = 8  # of a lane that wait for their turn: the next is at hand, and what waits stays in the CPU's caches


class Sourced(NamedTuple):
    """A put with its source hash."""

    event: Event
    put: Put
    source_hash: str


class EmbedAgent:
    """See the module. One for each build in each worker process.

    `ledgers`: of the partitions this process owns; the live lane fills it. `failed` resolves with the exception that
    ended it: the lanes then start again from their committed positions. `causes`: of the dead letters it has sent.
    """

    def __init__(self, build: Build, causes: Counter[str] | None = None) -> None:
        self.build = build
        self._causes = Counter() if causes is None else causes
        self.ledgers: dict[int, PartitionLedger] = {}
        self.trouble: Transient | None = None
        self._troubles_told: set[type[Transient]] = set()
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._slots = {
            Lane.LIVE: asyncio.Semaphore(build.limits.concurrency),
            Lane.REPLAY: asyncio.Semaphore(build.limits.concurrency),
            Lane.MEND: asyncio.Semaphore(1),
        }
        self._turns = {
            lane: WriteTurns(slots, lambda writes: self._store(writes, Outcome.WRITTEN), build.limits.together)
            for lane, slots in self._slots.items()
        }
        self._most_under_way = self._groups_under_way()
        self._under_way = {lane: asyncio.Semaphore(self._most_under_way) for lane in (Lane.REPLAY, Lane.MEND)}
        self._queued = dict.fromkeys(self._under_way, 0)
        self._live_waiting: list[Event] = []
        self._live_groups = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.writer = SpaceWriter(
            build.space,
            build.lease,
            splits=build.chunker.splits,
            write_deadline_s=build.limits.write_deadline_s,
            settle_s=build.limits.settle_s,
            trouble=self._note_trouble,
        )
        self._valve = Valve(build.all_held)
        self._replay_valve = Valve(lambda: build.held() is not None, build.concurrency)
        self._progressed = asyncio.Condition()

    def _groups_under_way(self) -> int:
        """Enough of a lane to keep its endpoints busy, and its writes with whole requests, and no more: what has been
        embedded and not yet written is paid for again after a kill."""
        pool, limits = self.build.encoder.pool, self.build.limits
        groups_of_a_write = 1 if self.build.chunker.splits else -(-limits.together // limits.batch)
        requests_of_a_group = -(-limits.batch // pool.max_batch)
        return limits.concurrency * groups_of_a_write + -(-pool.most_in_flight // requests_of_a_group)

    async def run(self, stream: AsyncIterable[list[Batch]]) -> None:
        """The agent's body. An error ends it through `failed`, and with it the lanes that feed it."""
        try:
            async for delivery in stream:
                self.accept(delivery)
                await self.notify()  # positions moved, and what was suppressed is resolved: no work will say so
        except Exception as error:  # noqa: BLE001  handed on whole: the runner decides what it means
            self._fail(error)

    def accept(self, delivery: Iterable[Batch]) -> None:
        """Admit a delivery and start its work. No await here: no other lane sees it half done."""
        ready: dict[Lane, list[Event]] = {}
        for batch in delivery:
            if not batch.ledger.active:
                continue  # revoked while the delivery waited in the channel: the new owner reads it again
            admit = self._admit_live if batch.lane is Lane.LIVE else self._admit_replay
            ready.setdefault(batch.lane, []).extend(admit(batch))
        for lane, events in ready.items():
            self._dispatch(lane, events)

    def mend(
        self, ledger: PartitionLedger, changes: Iterable[tuple[Record, Put | Delete]], *, anew: bool = False
    ) -> None:
        """Apply these log records again, whatever the space claims to hold (rule 11, redrive, repair)."""
        splits = self.build.chunker.splits  # then all chunks may have to be rewritten for the sake of one: keep vectors
        events = [
            Event(Lane.MEND, record, documents.key_digest(record.key or b""), change, ledger, check=splits, anew=anew)
            for record, change in changes
        ]
        for event in events:  # rule 11: it lies below the commits, so only a doubt tells the next owner of it
            ledger.doubt(event, asyncio.get_running_loop().time())
            ledger.doubts[event.digest].rewritten = True
        self._dispatch(Lane.MEND, self._claim(ledger, events))

    def _admit_live(self, batch: Batch) -> list[Event]:
        ledger, schema, counters = batch.ledger, self.build.schema, self.build.counters[batch.ledger.partition]
        events: list[Event] = []
        for record, digest in zip(batch.records, batch.digests, strict=True):
            if not ledger.admit_live(record):
                counters.stale += 1
                continue
            change = documents.parse(record.key, record.value, schema)
            if isinstance(change, Rejected):
                ledger.note_live(record, digest, None, deleted=False)
                self._reject(ledger, Lane.LIVE, record, digest, change)
                continue
            ledger.note_live(record, digest, change.doc_id, deleted=isinstance(change, Delete))
            events.append(Event(Lane.LIVE, record, digest, change, ledger, check=True))
        ledger.live.advance(batch.position)
        return self._claim(ledger, events)

    def _admit_replay(self, batch: Batch) -> list[Event]:
        ledger, schema, counters = batch.ledger, self.build.schema, self.build.counters[batch.ledger.partition]
        if ledger.seen is None or ledger.replay is None or ledger.replay is not batch.watermark:
            return []  # of a pass that is over
        events: list[Event] = []
        changes: Sequence[Put | None] = batch.changes or [None] * len(batch.records)
        for record, digest, carried in zip(batch.records, batch.digests, changes, strict=True):
            if record.offset < ledger.replay.position:
                continue  # a redelivery
            change = carried or documents.parse(record.key, record.value, schema)
            doc_id = None if isinstance(change, Rejected) else change.doc_id
            if not ledger.admit_replay(record, digest, doc_id):
                newer = ledger.seen.get(digest)
                counters.suppressed(deleted=newer is not None and newer.deleted)
                if isinstance(change, Put):
                    hashed = documents.source_hash(change, schema)
                    counters.changed_mid_migration += ledger.seen.replayed(digest, hashed)
                continue
            if isinstance(change, Rejected):
                self._reject(ledger, Lane.REPLAY, record, digest, change)
                continue
            check = ledger.recheck_replay > 0
            ledger.recheck_replay -= check
            events.append(Event(Lane.REPLAY, record, digest, change, ledger, check, tier=batch.tier))
        ledger.replay.advance(batch.position)
        return self._claim(ledger, events)

    def _claim(self, ledger: PartitionLedger, events: Sequence[Event]) -> list[Event]:
        admitted = ledger.claim(events)
        for event in admitted.stale:
            self._count(event.lane, ledger, Outcome.STALE)
        return admitted.ready

    def has_room(self, lane: Lane, ledger: PartitionLedger | None = None) -> bool:
        """Whether the lane may admit more: in its window of events (of this or each partition), in bytes for all, and
        in groups that are not under way yet."""
        waiting = len(self._live_waiting) // self.build.limits.batch if lane is Lane.LIVE else self._queued[lane]
        if waiting >= QUEUED_GROUPS:
            return False
        asked = self.ledgers.values() if ledger is None else (ledger,)
        if any(one.in_flight(lane) >= self.build.limits.window for one in asked):
            return False
        held_bytes = sum(one.bytes_in_flight[lane] for one in self.ledgers.values())
        return held_bytes < self.build.limits.bytes_in_flight

    async def progressed(self, condition: Callable[[], bool]) -> None:
        """Return when the condition holds; checked whenever something was admitted or resolved."""
        async with self._progressed:
            await self._progressed.wait_for(condition)

    def _dispatch(self, lane: Lane, events: Sequence[Event]) -> None:
        size = self.build.limits.batch
        if lane is Lane.LIVE:
            self._live_waiting.extend(events)
            self._start_live()
            return
        for i in range(0, len(events), size):
            self._spawn(self._work(lane, events[i : i + size]))

    def _start_live(self) -> None:
        """While few groups are under way another begins at once, however small; then only a full one. What comes
        meanwhile goes together: a request costs this process the same for one text as for many."""
        size, waiting = self.build.limits.batch, self._live_waiting
        while waiting and self._live_groups < (self._most_under_way if len(waiting) >= size else SMALL_GROUPS):
            group = waiting[:size]
            del waiting[:size]
            self._live_groups += 1
            self._spawn(self._work_live(group))

    async def _work_live(self, group: Sequence[Event]) -> None:
        try:
            self._finish(await self._attempt(Lane.LIVE, group))
        finally:
            self._live_groups -= 1
        self._start_live()
        await self.notify()

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if not self.failed.done():
            self.failed.set_exception(error)

    async def _work(self, lane: Lane, events: Sequence[Event]) -> None:
        """A group of a replay or of mends, in its turn."""
        async with self._one_under_way(lane, events):
            outcomes = await self._attempt(lane, events)
        self._finish(outcomes)
        await self.notify()  # also when all was dropped: there is room for others now

    async def _attempt(self, lane: Lane, events: Sequence[Event]) -> list[tuple[Event, Outcome]]:
        """As `_apply`; nothing of what was revoked while it waited."""
        events = [e for e in events if e.ledger.active]
        if not events:
            return []
        try:
            with tracing.span("group", lane=lane.value, events=len(events)):
                return await self._apply(lane, events)
        except Transient:
            if any(e.ledger.active for e in events):
                raise
            self._note_trouble(None)  # whoever still waits for the same says so again
            return []

    def _finish(self, outcomes: Iterable[tuple[Event, Outcome]]) -> None:
        """They are resolved; what waited for their keys is next."""
        waiting: dict[Lane, list[Event]] = {}
        for event, outcome in outcomes:
            self._count(event.lane, event.ledger, outcome)
            if (successor := event.ledger.finish(event, outcome)) is not None:
                waiting.setdefault(successor.lane, []).append(successor)
        for successor_lane, successors in waiting.items():
            self._dispatch(successor_lane, successors)

    @contextlib.asynccontextmanager
    async def _one_under_way(self, lane: Lane, events: Sequence[Event]) -> AsyncIterator[None]:
        """So many groups of a lane at once. While a replay is held those under way stay where they are, and what live
        waits for must not wait behind them: it goes beside them."""
        slots = self._under_way[lane]
        turn = asyncio.ensure_future(slots.acquire())
        self._queued[lane] += 1
        try:
            try:
                while not turn.done() and not (self.build.held() is not None and self._presses(lane, events)):
                    # nothing but a replay is held: the others have only their turn to wait for
                    await asyncio.wait({turn}, timeout=LOOK_EVERY_S if lane is Lane.REPLAY else None)
            finally:
                self._queued[lane] -= 1
            yield
        finally:
            if turn.done():
                slots.release()
            else:
                turn.cancel()

    def _presses(self, lane: Lane, group: Sequence[Event]) -> bool:
        """Whether a live event or a mend waits behind one of a replay's, and may go itself."""
        if lane is not Lane.REPLAY or self.build.all_held():
            return False
        return any(event.ledger.busy.get(event.digest) is not None for event in group)

    async def notify(self) -> None:
        """Have those who wait in `progressed` look again."""
        async with self._progressed:
            self._progressed.notify_all()

    async def _apply(self, lane: Lane, events: Sequence[Event]) -> list[tuple[Event, Outcome]]:
        """Bring a group of events, no two of one key, into the space. What is not returned was dropped by a revoke.

        The space is read and written in the lane's slots; embedding is not, so the endpoint never waits for a write.
        """
        heads = await self._heads(lane, events)
        outcomes: list[tuple[Event, Outcome]] = []
        to_embed: list[Sourced] = []
        to_keep: list[tuple[Sourced, Head]] = []
        to_delete: list[Event] = []
        for event in events:
            change, head = event.change, heads.get(event)
            if head is not None and lane is Lane.MEND:
                head = replace(head, offset=ABSENT)  # it is not believed to hold anything but vectors
            hashed = documents.source_hash(change, self.build.schema) if isinstance(change, Put) else None
            action = decide(event.record.offset, hashed, head)
            if lane is Lane.LIVE and action is not Action.NOTHING and event.ledger.seen is not None:
                changed = event.ledger.seen.met(event.digest, hashed or "", head)
                self.build.counters[event.ledger.partition].changed_mid_migration += changed
            if action is Action.NOTHING:
                outcomes.append((event, Outcome.STALE))
            elif action is Action.DELETE:
                to_delete.append(event)
            else:
                assert isinstance(change, Put)
                assert hashed is not None
                sourced = Sourced(event, change, hashed)
                if action is Action.KEEP_VECTOR and head is not None:
                    to_keep.append((sourced, head))
                else:
                    to_embed.append(sourced)
        kept, lacking = await self._with_kept_vectors(to_keep, events)
        if kept or to_delete:
            async with self._slots[lane]:
                if kept:
                    outcomes.extend(await self._store(kept, Outcome.UNCHANGED))
                if to_delete:
                    with tracing.span("delete", documents=len(to_delete)):
                        await self.writer.delete([(event, self._object_id(event, 0)) for event in to_delete])
            outcomes.extend((event, Outcome.DELETED) for event in to_delete)
        outcomes.extend(await self._embed_and_store(lane, [*to_embed, *lacking], events))
        return [(event, outcome) for event, outcome in outcomes if event.ledger.active]

    async def _store(self, writes: Sequence[DocumentWrite], stored: Outcome) -> list[tuple[Event, Outcome]]:
        """`stored`: what has become of those that the space took."""
        with tracing.span("write", documents=len(writes)):
            refused = await self.writer.write(writes)
        for event, error in refused.items():
            await self._dead_letter(event.record, "store_refused", error.message, event.ledger)
        return [(write.event, Outcome.DEAD_LETTER if write.event in refused else stored) for write in writes]

    async def _heads(self, lane: Lane, events: Sequence[Event]) -> Mapping[Event, Head]:
        """Chunk 0 as stored, for the events that must look before they write."""
        ids = {event: self._object_id(event, 0) for event in events if event.check}
        if not ids:
            return {}  # without waiting for a slot: a first replay embeds while the slots are at work
        async with self._slots[lane]:
            stored = await self._patiently(lambda: self.build.space.heads(list(ids.values())), events)
        found = {event: head for event, uuid in ids.items() if (head := stored.get(uuid)) is not None}
        for event, head in found.items():
            if head.partition != event.record.partition:  # rule 1
                raise IdentityChanged(
                    f"a key of {self.build.topic} is in two partitions: {head.partition} at offset {head.offset} and "
                    f"{event.record.partition} at offset {event.record.offset}; their order cannot be known",
                    next_step="make all producers use one partitioner (murmur2), write the key's last form again, "
                    f"delete it from the other partition, then: crossfade resume {self.build.collection} "
                    f"{self.build.version}",
                )
        return found

    async def _with_kept_vectors(
        self, keep: Sequence[tuple[Sourced, Head]], group: Sequence[Event]
    ) -> tuple[list[DocumentWrite], list[Sourced]]:
        """Same source hash: new offset and properties around the stored vectors. Second: those with a chunk missing."""
        if not keep:
            return [], []
        ids = {item.event: [self._object_id(item.event, i) for i in range(head.chunks)] for item, head in keep}
        wanted = [uuid for uuids in ids.values() for uuid in uuids]
        heads = await self._patiently(lambda: self.build.space.heads(wanted, vectors=True), group)
        stored = await self._patiently(lambda: self.build.space.properties(wanted), group)
        writes: list[DocumentWrite] = []
        lacking: list[Sourced] = []
        pieces = await self._pieces([item for item, _ in keep])
        for (item, head), texts in zip(keep, pieces, strict=True):
            parts = [heads.get(uuid) for uuid in ids[item.event]]
            whole = [p for p in parts if p is not None and p.source_hash == item.source_hash]
            vectors = [p.vector for p in whole if p.vector is not None]
            if len(vectors) != head.chunks or len(texts) != head.chunks:
                lacking.append(item)
                continue
            origin = Origin.from_properties(stored.get(ids[item.event][0], {}))
            writes.append(self._document(item, texts, vectors, origin))
        return writes, lacking

    async def _embed_and_store(
        self, lane: Lane, to_embed: Sequence[Sourced], group: Sequence[Event]
    ) -> list[tuple[Event, Outcome]]:
        """Texts to vectors, and each document into the space as soon as it has all of its own: a kill then costs what
        was at the endpoint, not what had come back. One whose content is refused goes to the dead letters, alone."""
        to_embed = [item for item in to_embed if item.event.ledger.active]
        if not to_embed:
            return []
        parts = Parts(await self._pieces(to_embed))
        origin = Origin("embedded", self.build.wall_ms())
        stores: list[asyncio.Task[list[tuple[Event, Outcome]]]] = []

        def ready(indexes: Sequence[int], vectors: Vectors) -> None:
            writes = []
            for number in parts.arrived(indexes, vectors):
                item, (texts, found) = to_embed[number], parts.document(number)
                self.build.counters[item.event.ledger.partition].embedded(item.event.lane)
                writes.append(self._document(item, texts, found, origin))
            if writes:
                stores.append(asyncio.ensure_future(self._turns[lane].store(writes)))

        try:
            with tracing.span("embed", lane=lane.value, documents=len(to_embed), texts=len(parts.texts)) as span:
                encoded = await self.build.encoder.encode_each(parts.texts, self._urgency(group), ready)
                span.note(rejected=len(encoded.rejected), truncated=encoded.truncated, cached=encoded.cached)
        except BaseException as cause:
            if isinstance(cause, asyncio.CancelledError):
                for store in stores:
                    store.cancel()
            # else what was embedded is stored, although another request of the group has failed for good
            await asyncio.gather(*stores, return_exceptions=True)
            raise
        outcomes = [outcome for written in await asyncio.gather(*stores) for outcome in written]
        counters = self.build.counters[group[0].record.partition]
        counters.truncated += encoded.truncated
        counters.cached += encoded.cached
        for number, error in parts.refused(encoded.rejected).items():
            event = to_embed[number].event
            await self._dead_letter(event.record, "content_rejected", error.message, event.ledger)
            outcomes.append((event, Outcome.DEAD_LETTER))
        return outcomes

    def _urgency(self, group: Sequence[Event]) -> Urgency:
        """Live events go first at the endpoint, and wait for it as long as one of the group is still ours.

        Mends go as the rest of a replay, but are not held with it: what is in doubt has to be settled.
        """
        lane = group[0].lane
        return Urgency(
            "live" if lane is Lane.LIVE else group[0].tier,
            valve=self._replay_valve if lane is Lane.REPLAY else self._valve,
            pressing=lambda: self._presses(lane, group),
            going=lambda: any(event.ledger.active for event in group),
            trouble=self._note_trouble,
            meter=PartitionMeter(
                self.build.spending,
                self.build.counters[group[0].record.partition],
                self.build.encoder.pool.highest_price,
            ),
        )

    async def _pieces(self, items: Sequence[Sourced]) -> list[list[str]]:
        """The chunks of each document; in a thread where finding them would hold the event loop for milliseconds."""
        texts = [documents.text(item.put, self.build.schema) for item in items]

        def split() -> list[list[str]]:
            cut = self.build.chunker.split
            return [_as_it_was(item.put) or cut(text) for item, text in zip(items, texts, strict=True)]

        if self.build.chunker.splits and sum(map(len, texts)) > SPLIT_IN_THREAD:
            return await asyncio.to_thread(split)
        return split()

    def _document(
        self, item: Sourced, texts: Sequence[str], vectors: Sequence[Vectors], origin: Origin
    ) -> DocumentWrite:
        objects = [
            space_object(
                self._object_id(item.event, i),
                item.event.record,
                item.put,
                item.source_hash,
                chunk=i,
                texts=texts,
                vector=vectors[i],
                origin=origin,
                space_mark=self.build.space_mark,
                store_text=self.build.store_text,
            )
            for i in range(len(texts))
        ]
        return DocumentWrite(item.event, objects)

    def _object_id(self, event: Event, chunk: int) -> UUID:
        if chunk:
            return documents.object_id(self.build.collection, event.change.doc_id, chunk)
        if event.uuid is None:
            event.uuid = documents.object_id(self.build.collection, event.change.doc_id, 0)
        return event.uuid

    async def stop(self) -> None:
        """End everything still running; call after the partitions were drained."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _reject(self, ledger: PartitionLedger, lane: Lane, record: Record, digest: bytes, rejected: Rejected) -> None:
        async def settle() -> None:
            await self._dead_letter(record, rejected.cause, rejected.detail, ledger)
            if not ledger.active:
                return
            ledger.resolve_rejected(lane, record.offset, digest)
            self._count(lane, ledger, Outcome.DEAD_LETTER)
            await self.notify()

        self._spawn(settle())

    async def _dead_letter(self, record: Record, cause: str, detail: str, ledger: PartitionLedger) -> None:
        """Keep the original bytes with the reason. A dead-letter topic that cannot be written holds the lane."""
        headers = {
            "collection": self.build.collection,
            "version": self.build.version,
            "epoch": str(self.build.epoch),
            "topic": self.build.topic,
            "partition": str(record.partition),
            "offset": str(record.offset),
            "cause": cause,
            "error": detail,
            "attempts": "1",
        }
        encoded = [(name, value.encode()) for name, value in headers.items()]
        log.warning(
            "%s: partition %d offset %d to the dead letters: %s",
            self.build.name,
            record.partition,
            record.offset,
            cause,
            extra={"partition": record.partition},
        )

        async def send() -> None:
            if ledger.active:
                await self.build.sink.send(self.build.dead_letters, record.key, record.value, encoded)

        try:
            await self._patiently_for(send, lambda: ledger.active)
        except Transient:
            if ledger.active:
                raise
        else:
            self._causes[cause] += ledger.active

    async def _patiently(self, call: Callable[[], Awaitable[T]], events: Sequence[Event]) -> T:
        return await self._patiently_for(call, lambda: any(event.ledger.active for event in events))

    async def _patiently_for(self, call: Callable[[], Awaitable[T]], going: Callable[[], bool]) -> T:
        return await patiently(call, going=going, trouble=self._note_trouble)

    def _note_trouble(self, error: Transient | None) -> None:
        if error is None:
            if self.trouble is not None:
                log.info("%s goes on", self.build.name)
            self._troubles_told.clear()
        elif type(error) not in self._troubles_told:  # each kind once, not a line for each time it is tried
            log.warning("%s waits: %s", self.build.name, error.message)
            self._troubles_told.add(type(error))
        self.trouble = error

    def _count(self, lane: Lane, ledger: PartitionLedger, outcome: Outcome) -> None:
        self.build.counters[ledger.partition].resolved(lane, outcome, replaying=ledger.seen is not None)


def _as_it_was(put: Put) -> list[str]:
    """The pieces of a document that stays cut as it was; none of any other."""
    return list(put.restored.pieces) if put.restored is not None and put.restored.cut else []
