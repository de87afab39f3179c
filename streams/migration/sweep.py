"""`verify`: the two-way comparison of a whole space with the log, on a moving topic, by anyone who may read both.

It reads only. What it reports is true of what the live lane had committed; newer records are left out, not guessed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from connectors.errors import IdentityChanged, Transient
from connectors.protocols import Log, Record, Space
from streams.documents import Delete, DocumentSchema, Put, parse
from streams.identity import check_topic
from streams.key_index import KeyIndex
from streams.mend import records_at
from streams.migration.compare import Comparison, Suspect, keys_in_two_partitions
from streams.replay import plan_scan, scan_keys
from streams.state import BuildState

LAG_PATIENCE_S = 60.0
NAMED = 10


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a sweep found. `checked`: documents of the log compared; `moved`: left out since a newer record came.

    `examples`: up to ten keys of each kind of fault, for `crossfade explain`; `held_keys`: every held key by name.
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
) -> Sweep:
    """Compare. `held`: positions in the dead letters. Memory: about 30 bytes a key.

    Raises IdentityChanged for rule 1 (recreated topic, a key in two partitions), Transient when the live lane does
    not come as far as the log's end of now within a minute.
    """
    check_topic(build, await kafka.facts(build.topic))
    ends = {p: b.stable for p, b in (await kafka.bounds(build.topic)).items()}
    say("waiting for the live lane to reach the log's end of now")
    await _caught_up(build, kafka, live_group, ends)
    say("reading the keys of the log")
    indexes = {p: await plan_scan(kafka, build.topic, p, end) for p, end in ends.items()}
    if pairs := keys_in_two_partitions(indexes):
        raise IdentityChanged(
            f"a key of {build.topic} is in partitions {pairs[0][0]} and {pairs[0][1]}: their order cannot be known",
            next_step="make all producers use one partitioner (murmur2) and delete the key from the other partition",
        )
    say("reading the space")
    comparison = Comparison(indexes)
    async for page in space.scan():
        comparison.add(page)
    suspects = {s.digest: s for s in comparison.finish()}
    moved = await _moved_since(build, kafka, ends, suspects) if suspects else set()
    faults = [s for digest, s in suspects.items() if digest not in moved]
    return await _report(build, schema, kafka, comparison, faults, held, len(moved), indexes)


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


async def _moved_since(
    build: BuildState, kafka: Log, ends: Mapping[int, int], suspects: Mapping[bytes, Suspect]
) -> set[bytes]:
    """Suspects with a record newer than the index: the space may rightly hold that one."""
    moved: set[bytes] = set()
    for partition, bounds in (await kafka.bounds(build.topic)).items():
        await scan_keys(
            kafka,
            build.topic,
            partition,
            ends[partition],
            bounds.stable,
            lambda _, digests: moved.update(d for d in digests if d in suspects),
        )
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
    for partition in indexes:
        wanted = [s.expected.offset for s in faults if s.partition == partition and s.expected is not None]
        found = await records_at(kafka, build.topic, partition, wanted)
        records.update(((partition, offset), record) for offset, record in found.items())
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
            if record is None:
                moved += 1  # compacted away since: a newer record exists
                continue
            change = parse(record.key, record.value, schema)
            if isinstance(change, Delete) and not fault.expected.deleted:
                not_documents += 1
                if kind == "missing":
                    continue
                kind = "extra"
            name = name or (change.doc_id if isinstance(change, Put | Delete) else _key_text(record.key))
        counts[kind] += 1
        if len(examples[kind]) < NAMED:
            examples[kind].append(name or "")
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
