"""Mending: reading back what is in doubt (rule 11), sweeping what may have missed a delete (rule 8), putting it right.

Runs where the partition is owned. What to write always comes from the log at its own offset, never from anywhere else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from connectors.errors import Transient
from connectors.protocols import Log, RangeBatch, Record
from streams import documents
from streams.build import Build
from streams.documents import Delete, Put, Rejected
from streams.embed_agent import EmbedAgent
from streams.key_index import Expected
from streams.migration.compare import Comparison, Suspect
from streams.ordering import Doubt, Finding, PartitionLedger
from streams.replay import plan_scan, scan_keys
from streams.retry import patiently

log = logging.getLogger(__name__)
T = TypeVar("T")

LOOK_EVERY_S = 0.5
LOOK_AGAIN_S = 5.0  # at a key whose newer record live has still to bring: each look reads the log
READ_BACK = 256
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
        mend: list[tuple[Record, Put | Delete]] = []
        for digest, (doubt, expected) in overwritten.items():
            if doubt.expected != expected or digest in ledger.busy or not ledger.active:
                continue  # an event came while we read: what it wrote decides
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

    async def _newest_since(self, partition: int, offsets: Mapping[bytes, int]) -> dict[bytes, int]:
        """The newest offset of these keys at or after theirs; absent when the log holds none."""
        newest: dict[bytes, int] = {}

        def note(batch: RangeBatch, digests: list[bytes]) -> None:
            newest.update((d, r.offset) for d, r in zip(digests, batch.records, strict=True) if d in offsets)

        end = (await self._kafka.bounds(self._build.topic))[partition].stable
        await scan_keys(self._kafka, self._build.topic, partition, min(offsets.values()), end, note)
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

    async def sweep(self, ledger: PartitionLedger) -> int:
        """Compare one owned partition with the space and doubt whatever differs. Returns how many.

        Exact while events keep coming: the index ends at a position P, the space is read once everything below P is
        resolved, and keys that live has seen since then are left to their own events.
        """
        return await self._patiently(lambda: self._sweep(ledger), ledger)

    async def _sweep(self, ledger: PartitionLedger) -> int:
        loop = asyncio.get_running_loop()
        await self._agent.progressed(lambda: not ledger.active or ledger.seen is None)
        if ledger.takeover is not None:  # what a former owner sent may land until then
            await asyncio.sleep(ledger.takeover.not_before_s - loop.time())
        ledger.touched = set()
        try:
            position = ledger.live.position
            index = await plan_scan(self._kafka, self._build.topic, ledger.partition, position)
            await self._agent.progressed(lambda: not ledger.active or ledger.live.committable >= position)
            comparison = Comparison({ledger.partition: index})
            async for page in self._build.space.scan():
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
            ledger.sweep_due = False
            return len(suspects)
        finally:
            ledger.touched = None

    async def _moved_since(self, partition: int, position: int) -> set[bytes]:
        moved: set[bytes] = set()
        end = (await self._kafka.bounds(self._build.topic))[partition].stable
        await scan_keys(
            self._kafka, self._build.topic, partition, position, end, lambda _, digests: moved.update(digests)
        )
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
