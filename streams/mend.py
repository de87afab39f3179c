"""Mending: reading back what is in doubt (rule 11), sweeping what may have missed a delete (rule 8), putting it right.

Runs where the partition is owned. What to write always comes from the log at its own offset; only what the log has
forgotten comes from the space that serves, at the offset it once had.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import TypeVar
from uuid import UUID

from connectors.errors import Transient
from connectors.protocols import Log, Record
from streams import documents
from streams.build import Build
from streams.carrying import Carried, OldSpaceFault, of_the_old_space, pages_of, read_back, same_texts
from streams.documents import Delete, Put, Rejected
from streams.embed_agent import EmbedAgent
from streams.key_index import Expected
from streams.migration.difference import Comparison, Losses, Suspect
from streams.ordering import Doubt, Finding, PartitionLedger
from streams.replay import holding, plan_scan
from streams.retry import patiently

log = logging.getLogger(__name__)
T = TypeVar("T")

LOOK_EVERY_S = 0.5
LOOK_AGAIN_S = 5.0  # at a key whose newer record live has still to bring: each look reads the log
READ_BACK = 256
OLD_LOOKS = 12  # at how far the space that serves has come
SAME_READ = 2000  # offsets nearer than this are fetched by one read of the log


async def records_at(kafka: Log, topic: str, partition: int, offsets: Iterable[int]) -> dict[int, Record]:
    """The log's records at these offsets; those compacted away are absent."""
    wanted = sorted(set(offsets))
    found: dict[int, Record] = {}
    at = 0
    while at < len(wanted):
        last = at
        while last + 1 < len(wanted) and wanted[last + 1] - wanted[last] <= SAME_READ:
            last += 1
        asked = set(wanted[at : last + 1])
        async for batch in kafka.read_range(topic, partition, wanted[at], wanted[last] + 1):
            found.update((record.offset, record) for record in batch.records if record.offset in asked)
        at = last + 1
    return found


class Mender:
    """Of one build in one worker process. `run` until cancelled."""

    def __init__(self, build: Build, kafka: Log, agent: EmbedAgent) -> None:
        self._build = build
        self._kafka = kafka
        self._agent = agent

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            for ledger in list(self._agent.ledgers.values()):
                if ledger.forget_held(loop.time()):
                    await self._agent.notify()
                if due := ledger.due(loop.time(), READ_BACK):
                    try:
                        await self._patiently(partial(self._read_back, ledger, due), ledger)
                    except Transient:
                        if ledger.active:
                            raise
                    await self._agent.notify()

    async def _read_back(self, ledger: PartitionLedger, due: Sequence[tuple[bytes, Doubt]]) -> None:
        """Look at each doubtful key as it stands, and apply the log again where an older write landed late."""
        ids = {digest: documents.object_id(self._build.collection, doubt.doc_id, 0) for digest, doubt in due}
        before = {digest: (doubt.expected, doubt.not_before_s) for digest, doubt in due}
        heads = await self._build.space.heads(list(ids.values()))
        overwritten: dict[bytes, tuple[Doubt, Expected]] = {}
        for digest, doubt in due:
            if digest in ledger.busy or (doubt.expected, doubt.not_before_s) != before[digest]:
                continue  # a newer event came while we looked, or the same one has an unknown outcome again
            expected, head = doubt.expected, heads.get(ids[digest])
            assert expected is not None  # only then is a doubt due
            finding = doubt.judge(head)
            ahead = head is not None and head.offset > expected.offset
            # one of the other chunks may have been overwritten; the store may hold what it does not find
            unseen = self._build.chunker.splits or expected.deleted
            if finding is Finding.SETTLED and unseen and not ahead and not doubt.rewritten:
                finding = Finding.OVERWRITTEN
            if finding is Finding.SETTLED and ledger.doubts.get(digest) is doubt:
                del ledger.doubts[digest]
            elif finding is Finding.OVERWRITTEN:
                overwritten[digest] = (doubt, expected)
        if overwritten:
            await self._put_right(ledger, overwritten)

    async def _put_right(self, ledger: PartitionLedger, overwritten: dict[bytes, tuple[Doubt, Expected]]) -> None:
        wanted = [expected.offset for _, expected in overwritten.values()]
        records = await records_at(self._kafka, self._build.topic, ledger.partition, wanted)
        gone = {d: e.offset for d, (_, e) in overwritten.items() if e.offset not in records and not e.deleted}
        newest = await self._newest_since(ledger.partition, gone) if gone else {}
        forgotten = await self._forgotten(ledger.partition, {d: o for d, o in gone.items() if d not in newest})
        ids = {
            documents.object_id(self._build.collection, overwritten[d][0].doc_id, 0): o for d, o in forgotten.items()
        }
        try:
            carried = {one.record.key: one for one in await self._read_from_old(ids)}
        except OldSpaceFault as fault:  # they stay in doubt no longer than others, but the next sweep has them again
            carried, ledger.carry_due, ledger.carry_trouble = {}, True, fault.text
        mend: list[tuple[Record, Put | Delete]] = []
        for digest, (doubt, expected) in overwritten.items():
            if doubt.expected != expected or digest in ledger.busy or not ledger.active:
                continue  # an event came while we read: what it wrote decides
            if digest in forgotten:  # by retention: that deletes no document
                if (one := carried.get(doubt.doc_id.encode())) is not None:
                    mend.append((one.record, one.change))
                else:  # nobody has it any more, but for a newer record that live brings, or what stands here
                    log.warning("%s: a forgotten document in doubt stays as it is", self._build.name)
                    del ledger.doubts[digest]
                continue
            record = records.get(expected.offset)
            deleted = expected.deleted or (digest in gone and digest not in newest)
            if record is None and deleted:  # the tombstone itself was compacted away
                record = Record(ledger.partition, expected.offset, self._build.wall_ms(), doubt.doc_id.encode(), None)
            change = documents.parse(record.key, record.value, self._build.schema) if record is not None else None
            if record is not None and isinstance(change, Put | Delete):
                mend.append((record, change))
            elif record is not None or ledger.live.is_resolved(newest[digest]):
                ledger.doubts.pop(digest, None)  # held: its newest record is in the dead letters
            else:
                # live brings the record that replaced it, unless that is a delete which the log forgets before
                doubt.not_before_s = asyncio.get_running_loop().time() + LOOK_AGAIN_S
        if mend:
            log.warning("%s: mends %d documents of partition %d", self._build.name, len(mend), ledger.partition)
            self._agent.mend(ledger, mend, anew=True)

    async def _forgotten(self, partition: int, gone: Mapping[bytes, int]) -> dict[bytes, int]:
        """Those whose record stood before the log's start: retention took them, no newer record did."""
        if not gone:
            return {}
        begin = (await self._kafka.bounds(self._build.topic))[partition].earliest
        return {digest: offset for digest, offset in gone.items() if offset < begin}

    async def _read_from_old(self, ids: Mapping[UUID, int]) -> list[Carried]:
        """What the space that serves still holds at these offsets, as far as it can be put together again. Raises
        OldSpaceFault."""
        old = self._build.old_space()
        if not ids or old is None:
            return []
        with of_the_old_space(old.state):
            return (await read_back(old, self._build.encoder.envelope, self._build.schema, ids)).documents

    async def _newest_since(self, partition: int, offsets: Mapping[bytes, int]) -> dict[bytes, int]:
        """The newest offset of these keys at or after theirs; absent when the log holds none."""
        newest: dict[bytes, int] = {}
        topic, start = self._build.topic, min(offsets.values())
        end = (await self._kafka.bounds(topic))[partition].stable
        async for batch in self._kafka.read_keys(topic, partition, start, end, documents.key_digest):
            newest.update((d, offset) for d, offset in zip(batch.digests, batch.offsets, strict=True) if d in offsets)
        return newest

    async def redrive(self, ledger: PartitionLedger, offsets: Sequence[int]) -> None:
        """Apply the partition's dead letters again, each at its own offset, unless its key has a newer record.

        Returns when they are resolved; one that is refused again is in the dead letters again.
        """
        await self._patiently(lambda: self._redrive(ledger, offsets), ledger)

    async def _redrive(self, ledger: PartitionLedger, offsets: Sequence[int]) -> None:
        ledger.touched = set()
        try:
            position = ledger.live.position
            wanted = [offset for offset in offsets if offset < position]
            if not wanted:
                return
            await self._agent.progressed(lambda: not ledger.active or ledger.live.committable >= position)
            topic, partition = self._build.topic, ledger.partition
            index = await plan_scan(self._kafka, topic, partition, position, start=min(wanted))
            records = list((await records_at(self._kafka, topic, partition, wanted)).values())
            digests = [documents.key_digest(record.key or b"") for record in records]
            newest = index.newest_offsets(digests)
            mend: dict[bytes, tuple[Record, Put | Delete]] = {}
            for record, digest, offset in zip(records, digests, newest, strict=True):
                change = documents.parse(record.key, record.value, self._build.schema)
                if offset == record.offset and digest not in ledger.touched and not isinstance(change, Rejected):
                    mend[digest] = (record, change)
            if ledger.active:
                self._agent.mend(ledger, mend.values())
        finally:
            ledger.touched = None
        await self._agent.progressed(lambda: not ledger.active or not any(d in ledger.busy for d in mend))

    async def sweep(self, ledger: PartitionLedger, *, asked: bool = False) -> int:
        """Compare one owned partition with the space and doubt whatever differs. Returns how many.

        What the log has forgotten and only the serving space has is brought over where a person has `asked`, or where
        that is still due; otherwise it may be what this version rightly deleted and the other one did not hear of.

        Exact while events keep coming: the index ends at a position P, the space is read once everything below P is
        resolved, and keys that live has seen since then are left to their own events.
        """
        return await self._patiently(lambda: self._sweep(ledger, asked=asked), ledger)

    async def _sweep(self, ledger: PartitionLedger, *, asked: bool) -> int:
        loop = asyncio.get_running_loop()
        await self._agent.progressed(lambda: not ledger.active or ledger.seen is None)
        if ledger.takeover is not None:  # what a former owner sent may land until then
            await asyncio.sleep(ledger.takeover.not_before_s - loop.time())
        ledger.touched = set()
        try:
            position = ledger.live.position
            index = await plan_scan(self._kafka, self._build.topic, ledger.partition, position)
            await self._agent.progressed(lambda: not ledger.active or ledger.live.committable >= position)
            begin = (await self._kafka.bounds(self._build.topic))[ledger.partition].earliest  # as of after the scan
            comparison = Comparison({ledger.partition: index}, {ledger.partition: begin})
            async with self._build.space_scans:
                async for page in self._build.space.scan(share=self._build.sweep_share()):
                    comparison.add(page)
            suspects = comparison.finish()
            records = await records_at(
                self._kafka,
                self._build.topic,
                ledger.partition,
                [s.expected.offset for s in suspects if s.expected is not None],
            )
            moved = await self._moved_since(ledger.partition, position)
            now_s = loop.time()
            for suspect in suspects:
                if suspect.digest in moved:
                    continue  # the index may lack it only because of a newer record, which live has still to bring
                if (named := self._expected(suspect, records)) is not None:
                    ledger.suspect(suspect.digest, *named, now_s)
            kept, torn = comparison.of_forgotten()
            if kept or torn:
                log.warning(
                    "%s: %d documents of partition %d are older than its log, chunks are missing of %d of them: of a "
                    "missed delete of theirs the sweep can tell nothing",
                    self._build.name,
                    kept + torn,
                    ledger.partition,
                    torn,
                )
            losses = Losses({ledger.partition: index}, {ledger.partition: begin}, comparison.kept)
            brought = 0
            if not begin:
                ledger.carry_due = False  # the log has all there is
            elif asked or ledger.carry_due:
                brought = await self._bring_over(ledger, losses, position, asked=asked)
            ledger.sweep_due = False
            return len(suspects) + brought
        finally:
            ledger.touched = None

    async def _bring_over(self, ledger: PartitionLedger, losses: Losses, position: int, *, asked: bool) -> int:
        """What the log has forgotten, the space that serves holds and this one has not whole; both hold all below
        `position`, and what live has seen since is `touched`. A page at a time: nobody knows how much it is. Returns
        how many. What was due, or asked for, is due until all of it was read."""
        brought = 0
        try:
            old = await self._soon(lambda: holding(self._kafka, self._build, ledger.partition, position))
            if old is not None and same_texts(old.state.model, self._build.encoder.envelope):
                async with self._build.space_scans:
                    async for page in pages_of(old):
                        lost = {head.uuid: head.offset for head, _ in losses.among(page) if head.chunk == 0}
                        for at in range(0, len(lost), READ_BACK):
                            ids = dict(islice(lost.items(), at, at + READ_BACK))
                            brought += await self._bring(ledger, ids, asked=asked)
        except Transient as error:
            log.warning("%s: not everything is brought over: %s", self._build.name, error.message)
            ledger.carry_due, ledger.carry_trouble = True, error.message
        except OldSpaceFault as fault:
            log.warning("%s, partition %d: %s", self._build.name, ledger.partition, fault.text)
            ledger.carry_due, ledger.carry_trouble = True, fault.text
        else:
            if ledger.active:
                ledger.carry_due, ledger.carry_trouble = False, ""
        return brought

    async def _bring(self, ledger: PartitionLedger, ids: Mapping[UUID, int], *, asked: bool) -> int:
        found = await self._read_from_old(ids)
        # what stands below is `touched` already; what stands above, live has still to bring
        moved = await self._moved_since(ledger.partition, ledger.live.position)
        mend: dict[bytes, tuple[Record, Put | Delete]] = {}
        for record, change in found:
            digest = documents.key_digest(record.key or b"")
            touched = ledger.touched is None or digest in ledger.touched
            refused = digest in ledger.carry_refused and not asked
            if not touched and not refused and digest not in moved and digest not in ledger.busy:
                mend[digest] = (record, change)
        if not ledger.active or not mend:
            return 0
        self._agent.mend(ledger, mend.values())
        await self._agent.progressed(lambda: not ledger.active or not any(d in ledger.busy for d in mend))
        for digest, (record, _) in mend.items():
            doubt = ledger.doubts.get(digest)
            if doubt is not None and doubt.held_at == record.offset:
                ledger.carry_refused.add(digest)
        return len(mend)

    async def _soon(self, call: Callable[[], Awaitable[T]]) -> T:
        """Patient for some seconds: lanes commit each second."""
        for _ in range(OLD_LOOKS):
            with contextlib.suppress(Transient):
                return await call()
            await asyncio.sleep(LOOK_EVERY_S)
        return await call()

    async def _moved_since(self, partition: int, position: int) -> set[bytes]:
        moved: set[bytes] = set()
        end = (await self._kafka.bounds(self._build.topic))[partition].stable
        async for batch in self._kafka.read_keys(self._build.topic, partition, position, end, documents.key_digest):
            moved.update(batch.digests)
        return moved

    def _expected(self, suspect: Suspect, records: Mapping[int, Record]) -> tuple[str, Expected] | None:
        """The document and what the log says of it; None when a newer record or the dead letters answer for it.

        A form that stands before a dead letter is written again where it has chunks: one of them may be missing.
        """
        if suspect.expected is None or (suspect.expected.deleted and suspect.doc_id is not None):
            assert suspect.doc_id is not None
            return suspect.doc_id, suspect.expected or Expected(suspect.stored_offset or 0, deleted=True)
        record = records.get(suspect.expected.offset)
        if record is None:
            return None
        change = documents.parse(record.key, record.value, self._build.schema)
        if isinstance(change, Rejected):
            if suspect.doc_id is None or suspect.stored_offset is None or not self._build.chunker.splits:
                return None
            return suspect.doc_id, Expected(suspect.stored_offset, deleted=False)
        return change.doc_id, Expected(record.offset, deleted=isinstance(change, Delete))

    async def _patiently(self, call: Callable[[], Awaitable[T]], ledger: PartitionLedger) -> T:
        return await patiently(call, going=lambda: ledger.active, trouble=self._note_trouble)

    def _note_trouble(self, error: Transient | None) -> None:
        if error is not None:
            log.warning("%s: mending waits: %s", self._build.name, error.message)
