"""Documents into one space: the order of a document's objects, the lease, retries, and doubt after unknown outcomes.

It never decides whether an event is current, and never writes for a partition that was revoked.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple
from uuid import UUID

from connectors.errors import ContentRejected, CrossfadeError, Transient, UnknownOutcome
from connectors.protocols import Space, SpaceObject
from streams import documents
from streams.ordering import Event, Lease, PartitionLedger
from streams.retry import patiently


class DocumentWrite(NamedTuple):
    """One document's new form: all its chunks, chunk 0 first."""

    event: Event
    objects: list[SpaceObject]


class SpaceWriter:
    """Chunk 0 is a document's commit record: written last, removed last (DESIGN.md section 5).

    `splits`: whether the version's documents may have several chunks; `settle_s`: how long a lost write may still land.
    """

    def __init__(
        self,
        space: Space,
        lease: Lease,
        *,
        splits: bool,
        write_deadline_s: float,
        settle_s: float,
        trouble: Callable[[Transient | None], None],
    ) -> None:
        self._space = space
        self._lease = lease
        self._splits = splits
        self._write_deadline_s = write_deadline_s
        self._settle_s = settle_s
        self._trouble = trouble
        self._writing: Counter[PartitionLedger] = Counter()
        self._idle = asyncio.Condition()

    async def write(self, writes: Sequence[DocumentWrite]) -> dict[Event, CrossfadeError]:
        """Store whole documents. Returns those the store refuses for what they are, each with the reason."""
        refused: dict[Event, CrossfadeError] = {}
        await self._clear({w.event: [o.uuid for o in w.objects] for w in writes if w.event.anew})
        if self._splits:
            await self._upsert([(w.event, o) for w in writes for o in w.objects[1:]], refused)
            by_count: dict[int, list[Event]] = {}
            for write in writes:
                by_count.setdefault(len(write.objects), []).append(write.event)
            for count, events in by_count.items():
                await self._delete_chunks(events, count)
        await self._upsert([(w.event, w.objects[0]) for w in writes if w.event not in refused], refused)
        return refused

    async def delete(self, deletes: Sequence[tuple[Event, UUID]]) -> None:
        """Remove whole documents; the id is that of chunk 0."""
        await self._clear({event: [uuid] for event, uuid in deletes if event.anew})
        ids = dict(deletes)
        if self._splits:
            await self._delete_chunks(list(ids), 1)

        async def remove(owned: Sequence[Event]) -> None:
            await self._space.delete([ids[event] for event in owned])

        await self._send(list(ids), remove)

    async def drain(self, ledgers: Sequence[PartitionLedger], timeout_s: float) -> bool:
        """Rule 9: start nothing more for these partitions and wait for their writes. False when some did not end."""
        for ledger in ledgers:
            ledger.active = False
        try:
            async with asyncio.timeout(timeout_s), self._idle:
                await self._idle.wait_for(lambda: not any(self._writing[ledger] > 0 for ledger in ledgers))
        except TimeoutError:
            return False
        for ledger in ledgers:
            del self._writing[ledger]
        return True

    async def _clear(self, ids: Mapping[Event, Sequence[UUID]]) -> None:
        """Remove objects that a read has not found, yet the store may hold: written again as they were, they would
        stay out of its index."""

        async def remove(owned: Sequence[Event]) -> None:
            await self._space.erase([uuid for event in owned for uuid in ids[event]])

        if ids:
            await self._send(list(ids), remove)

    async def _delete_chunks(self, events: Sequence[Event], from_chunk: int) -> None:
        async def remove(owned: Sequence[Event]) -> None:
            await self._space.delete_chunks([documents.doc_hash(e.change.doc_id) for e in owned], from_chunk)

        await self._send(events, remove)

    async def _upsert(self, objects: Sequence[tuple[Event, SpaceObject]], refused: dict[Event, CrossfadeError]) -> None:
        """Store all of them; per-object failures that may pass are retried alone, the others land in `refused`."""
        left = list(objects)

        async def store(owned: Sequence[Event]) -> None:
            nonlocal left
            mine = set(owned)
            left = [(event, o) for event, o in left if event in mine]
            failures = await self._space.upsert([o for _, o in left])
            retry: Transient | None = None
            again: list[tuple[Event, SpaceObject]] = []
            for event, o in left:
                error = failures.get(o.uuid)
                if isinstance(error, Transient):
                    if not isinstance(retry, UnknownOutcome):  # one doubt is not to be hidden by another trouble
                        retry = error
                    again.append((event, o))
                elif isinstance(error, ContentRejected):  # nothing else is the document's own fault
                    refused[event] = error
                elif error is not None:
                    raise error
            left = again
            if retry is not None:
                raise retry

        await self._send([event for event, _ in left], store)

    async def _send(self, events: Sequence[Event], call: Callable[[Sequence[Event]], Awaitable[None]]) -> None:
        """One write, within the lease (rule 11), for the events whose partitions are still ours (rule 9).

        Retried identically while it may succeed. After an unknown outcome its keys are in doubt.
        """
        if not events:
            return
        loop = asyncio.get_running_loop()

        async def attempt() -> None:
            await self._hold_lease(events)
            owned = [event for event in dict.fromkeys(events) if event.ledger.active]
            if not owned:
                return
            ledgers = {event.ledger for event in owned}
            self._writing.update(ledgers)
            try:
                async with asyncio.timeout(self._write_deadline_s):
                    await call(owned)
            except (UnknownOutcome, TimeoutError) as error:
                for event in owned:
                    event.ledger.doubt(event, loop.time() + self._settle_s)
                if isinstance(error, UnknownOutcome):
                    raise
                raise UnknownOutcome(f"{self._space.name}: a write did not end in time") from error
            finally:
                self._writing.subtract(ledgers)
                async with self._idle:
                    self._idle.notify_all()

        def going() -> bool:
            return any(event.ledger.active for event in events)

        try:
            await patiently(attempt, going=going, trouble=self._trouble)
        except Transient:
            if going():
                raise

    async def _hold_lease(self, events: Sequence[Event]) -> None:
        """Wait until the lease is valid and the commits tell of every doubt, or nothing of this is ours any more."""
        loop = asyncio.get_running_loop()

        def must_wait() -> bool:
            owned = {event.ledger for event in events if event.ledger.active}
            return bool(owned) and (
                self._lease.left_s(loop.time()) <= 0 or not all(ledger.may_write for ledger in owned)
            )

        while must_wait():  # noqa: ASYNC110  a time
            await asyncio.sleep(0.05)
