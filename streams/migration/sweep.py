"""`verify`: the two-way comparison of a whole space with the log, on a moving topic, by anyone who may read both.

It reads only. What it reports is true of what the live lane had committed; newer records are left out, not guessed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial

from connectors.errors import IdentityChanged, Terminal, Transient
from connectors.protocols import Head, Log, Record, Space
from streams.documents import Delete, DocumentSchema, Put, key_digest, parse
from streams.identity import check_topic
from streams.key_index import KeyIndex
from streams.mend import records_at
from streams.migration.difference import Comparison, Losses, Suspect, keys_in_two_partitions
from streams.migration.forms import Digests
from streams.replay import plan_scan
from streams.retry import a_while
from streams.state import BuildState

LAG_PATIENCE_S = 60.0
PAGES_AHEAD = 8
NAMED = 10


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a sweep found. `checked`: documents of the log compared; `moved`: left out since a newer record came.

    `examples`: up to ten keys of each kind of fault, for `crossfade explain`; `held_keys`: every held key by name.
    `kept`: documents of the space that the log has forgotten (they are older than its start, and in no record), which
    is no fault; `torn`: such documents of which chunks are missing here; `lost`: those that the serving space keeps and
    this one has not whole, or not in that form. `unread`: why that could not be told, and the next step; else "".
    """

    collection: str
    version: str
    checked: int
    missing: int
    stale: int
    extra: int
    held_keys: list[str]
    moved: int
    examples: dict[str, list[str]]
    kept: int = 0
    lost: int = 0
    torn: int = 0
    unread: str = ""

    @property
    def lost_if_known(self) -> int | None:
        """As it is shown: a number that nobody knows is none."""
        return None if self.unread else self.lost

    @property
    def held(self) -> int:
        """Keys whose newest record is in the dead letters."""
        return len(self.held_keys)

    @property
    def clean(self) -> bool:
        return not (self.missing or self.stale or self.extra)


@dataclass(frozen=True, slots=True)
class DeadLetterKey:
    """Where a dead letter of one build came from."""

    partition: int
    offset: int


async def sweep(
    build: BuildState,
    schema: DocumentSchema,
    kafka: Log,
    space: Space,
    live_group: str,
    held: set[DeadLetterKey],
    say: Callable[[str], None] = lambda _: None,
    serving: Space | None = None,
    share: float = 1.0,
) -> Sweep:
    """Compare. `held`: positions in the dead letters; `serving`: another space, of the version that serves, to see what
    would be lost with it (see Sweep). `share`: of the time, at most, in which a space is read (see Space.scan).
    Memory: about 30 bytes a key.

    Raises IdentityChanged for rule 1 (recreated topic, a key in two partitions), Transient when the live lane does
    not come as far as the log's end of now within a minute.
    """
    check_topic(build, await kafka.facts(build.topic))
    ends = {p: b.stable for p, b in (await kafka.bounds(build.topic)).items()}
    say("waiting for the live lane to reach the log's end of now")
    await _caught_up(build, kafka, live_group, ends)
    say("reading the keys of the log")
    async with ahead(space.scan(share=share), PAGES_AHEAD) as pages:  # the store is at work meanwhile
        indexes = {p: await plan_scan(kafka, build.topic, p, end) for p, end in ends.items()}
        if pairs := keys_in_two_partitions(indexes):
            raise IdentityChanged(
                f"a key of {build.topic} is in partitions {pairs[0][0]} and {pairs[0][1]}: their order cannot be known",
                next_step="have all producers use one partitioner (murmur2), delete the key from the other partition",
            )
        # only now: what retention took while the keys were read is in no index, and no fault of the space either
        begins = {p: b.earliest for p, b in (await kafka.bounds(build.topic)).items() if p in indexes and b.earliest}
        say("reading the space")
        comparison = Comparison(indexes, begins, ends)
        async for heads in pages:
            comparison.add(heads)
    suspects = {s.digest: s for s in comparison.finish()}
    kept, torn = comparison.of_forgotten()
    losses, unread = Losses(indexes, begins, comparison.kept), ""
    if serving is not None and begins:
        say("reading the serving space, for what the topic no longer has")
        try:
            async for heads in serving.scan(share=share):
                losses.add(heads)
        except Terminal as error:  # no fault of this build's: see OldSpaceFault
            losses, unread = Losses(indexes, begins, comparison.kept), f"{error.message}; next: {error.next_step}"
    moved = await a_while(lambda: _moved_since(build, kafka, ends, suspects, comparison.newer, losses.lost))
    suspects = {s.digest: s for s in comparison.without_record(moved.faults)} | suspects
    stand = ~moved.faults.holds(list(suspects))
    faults = [suspect for suspect, stands in zip(suspects.values(), stand.tolist(), strict=True) if stands]
    found = await _report(build, schema, kafka, comparison, faults, held, len(moved.faults), indexes)
    if names := sorted(name for digest, name in losses.names.items() if digest not in moved.lost):
        found.examples["lost"] = names[:NAMED]
    return replace(found, kept=kept, torn=torn, lost=len(losses.lost) - len(moved.lost), unread=unread)


@asynccontextmanager
async def ahead(pages: AsyncIterator[list[Head]], most: int) -> AsyncIterator[AsyncIterator[list[Head]]]:
    """The same pages, up to `most` of them read before they are asked for. Raises where they come what reading them
    raised."""
    read: asyncio.Queue[list[Head] | BaseException | None] = asyncio.Queue(most)
    left = False

    async def fill() -> None:
        try:
            async for page in pages:
                await read.put(page)
            await read.put(None)
        except BaseException as error:  # a request that was cancelled, too
            if left:
                raise
            await read.put(error)

    async def given() -> AsyncIterator[list[Head]]:
        while (page := await read.get()) is not None:
            if isinstance(page, BaseException):
                raise page
            yield page

    filling = asyncio.create_task(fill())
    try:
        yield given()
    finally:
        left = True
        filling.cancel()
        await asyncio.gather(filling, return_exceptions=True)


async def _caught_up(build: BuildState, kafka: Log, live_group: str, ends: Mapping[int, int]) -> None:
    """Everything below `ends` is resolved once the live group has committed it."""
    waited_s = 0.0
    while True:
        committed = await kafka.committed(live_group, build.topic)
        behind = {p: end for p, end in ends.items() if end > 0 and (p not in committed or committed[p].offset < end)}
        if not behind:
            return
        if waited_s >= LAG_PATIENCE_S:
            raise Transient(
                f"the live lane of {build.key} has not reached the log's end in partitions {sorted(behind)} "
                f"after {LAG_PATIENCE_S:g} s: nothing can be said of what it has still to write",
                next_step=f"see what holds it: crossfade status {build.collection} {build.version}",
            )
        await asyncio.sleep(0.5)
        waited_s += 0.5


@dataclass(frozen=True, slots=True)
class _Moved:
    """Keys with a record newer than the index, of those that were looked for: the space may rightly hold that one."""

    faults: Digests = field(default_factory=Digests)
    lost: set[bytes] = field(default_factory=set)


async def _moved_since(
    build: BuildState,
    kafka: Log,
    ends: Mapping[int, int],
    suspects: Collection[bytes],
    newer: Digests,
    lost: Digests,
) -> _Moved:
    moved = _Moved()
    if not suspects and not len(newer) and not len(lost):
        return moved
    for partition, bounds in (await kafka.bounds(build.topic)).items():
        async for batch in kafka.read_keys(build.topic, partition, ends[partition], bounds.stable, key_digest):
            moved.faults.add([digest for digest in batch.digests if digest in suspects])
            moved.faults.add(newer.among(batch.digests))
            moved.lost.update(lost.among(batch.digests))
    return moved


async def _report(
    build: BuildState,
    schema: DocumentSchema,
    kafka: Log,
    comparison: Comparison,
    faults: list[Suspect],
    held: set[DeadLetterKey],
    moved: int,
    indexes: Mapping[int, KeyIndex],
) -> Sweep:
    """Counts by kind, once the log's own record of each fault was looked at: a Debezium delete is no document."""
    records: dict[tuple[int, int], Record] = {}
    begins: Mapping[int, int] = {}
    for partition in indexes:
        wanted = [s.expected.offset for s in faults if s.partition == partition and s.expected is not None]
        found = await a_while(partial(records_at, kafka, build.topic, partition, wanted))
        records.update(((partition, offset), record) for offset, record in found.items())
    if any(s.expected is not None and (s.partition, s.expected.offset) not in records for s in faults):
        begins = {p: b.earliest for p, b in (await kafka.bounds(build.topic)).items()}
    counts = {"missing": 0, "stale": 0, "extra": 0}
    examples: dict[str, list[str]] = {kind: [] for kind in counts}
    held_keys: list[str] = []  # a held key always differs from the log, so every one of them is among the faults
    not_documents = 0
    for fault in faults:
        kind, name = fault.kind, fault.doc_id
        if fault.expected is not None:
            at = (fault.partition, fault.expected.offset)
            record = records.get(at)
            if DeadLetterKey(*at) in held:
                held_keys.append(name or _key_text(record.key if record else None))
                continue
            if record is None and fault.expected.offset >= begins.get(fault.partition, 0):
                moved += 1  # compacted away since: a newer record exists
                continue
            if record is None:  # taken by retention since: nothing newer will put it right
                counts[kind] += 1
                continue
            change = parse(record.key, record.value, schema)
            if isinstance(change, Delete) and not fault.expected.deleted:
                not_documents += 1
                if kind == "missing":
                    continue
                kind = "extra"
            name = name or (change.doc_id if isinstance(change, Put | Delete) else _key_text(record.key))
        counts[kind] += 1
        if name and len(examples[kind]) < NAMED:
            examples[kind].append(name)
    return Sweep(
        build.collection,
        build.version,
        comparison.checked - not_documents,
        counts["missing"],
        counts["stale"],
        counts["extra"],
        held_keys,
        moved,
        {kind: names for kind, names in examples.items() if names},
    )


def _key_text(key: bytes | None) -> str:
    return (key or b"").decode(errors="backslashreplace")
