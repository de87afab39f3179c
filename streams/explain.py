"""One document's whole story: its records in the log, what each space holds of it, and its dead letters.

It reads only, and shows document text only where it was asked for.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from connectors import reserved
from connectors.errors import IdentityChanged
from connectors.protocols import JSON, Head, Log, Record, VectorStore
from streams import documents
from streams.config import Settings, schema_of
from streams.documents import Delete, DocumentSchema, Put, Rejected
from streams.state import BuildState, TopicNames

Kind = Literal["put", "delete", "rejected"]
Verdict = Literal["current", "pending", "missing", "stale", "extra", "kept", "torn", "held", "gone"]

MEANING: Mapping[Verdict, str] = {
    "current": "the space says what the log says",
    "pending": "the newest record is still to come: the live lane or the replay has not resolved it",
    "missing": "in the log, not in the space",
    "stale": "the space holds another form than the log's newest",
    "extra": "in the space, deleted or unknown in the log",
    "kept": "in the space alone: older than the first record that the topic still has",
    "torn": "in the space alone, as `kept`, but not all of it: chunks of it are missing",
    "held": "the newest record is in the dead letters: an earlier form, or nothing, stands",
    "gone": "the space itself does not exist any more",
}


@dataclass(frozen=True, slots=True)
class LogRecord:
    """One record of the key. `cause`: why a rejected one is no document. `newest`: of all of them."""

    partition: int
    offset: int
    timestamp_ms: int
    kind: Kind
    cause: str
    bytes: int
    source_hash: str
    newest: bool
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """What one space holds of the document. `offset` None: nothing."""

    version: str
    epoch: int
    stage: str
    space: str
    verdict: Verdict
    partition: int | None = None
    offset: int | None = None
    chunks: int = 0
    chunks_found: int = 0
    source_hash: str = ""
    embedded_at_ms: int = 0
    origin: str = ""
    text: str | None = None


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One record of the key in the dead letters."""

    version: str
    epoch: int
    partition: int
    offset: int
    cause: str
    error: str
    at_ms: int


@dataclass(frozen=True, slots=True)
class Story:
    """`records` in log order; `two_partitions`: the key is in more than one, so no order is known (rule 1)."""

    collection: str
    topic: str
    key: str
    records: Sequence[LogRecord]
    spaces: Sequence[Stored]
    dead_letters: Sequence[DeadLetter]
    two_partitions: bool


class Outside(Protocol):
    """What is read (`streams.wiring.Outside`)."""

    @property
    def settings(self) -> Settings: ...

    @property
    def names(self) -> TopicNames: ...

    @property
    def kafka(self) -> Log: ...

    @property
    def store(self) -> VectorStore: ...

    def dead_letters(self) -> AsyncIterator[tuple[Mapping[str, str], Record]]: ...


async def explain(
    out: Outside,
    builds: Sequence[BuildState],
    collection: str,
    key: bytes,
    *,
    text: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Story:
    """Read the whole topic for the key, then look at each active build of `builds` and at the dead letters.

    Raises NotFound for an unknown collection or a missing topic, Transient when something is away.
    """
    configured = out.settings.collection(collection)
    schema = schema_of(configured)
    found = await _records(out.kafka, configured.topic, key, say)
    newest = max(found, key=lambda r: (r.timestamp_ms, r.offset)) if found else None
    letters = await _dead_letters(out, collection, key)
    spaces = [await _stored(out, build, key, newest, schema, letters, text=text) for build in builds if build.active]
    return Story(
        collection,
        configured.topic,
        key.decode(errors="backslashreplace"),
        [_log_record(record, schema, newest=record is newest, text=text) for record in found],
        spaces,
        letters,
        len({record.partition for record in found}) > 1,
    )


async def _records(kafka: Log, topic: str, key: bytes, say: Callable[[str], None]) -> list[Record]:
    """Every record of the key, in every partition: a producer with another partitioner may have put it anywhere."""
    found: list[Record] = []
    for partition, bounds in sorted((await kafka.bounds(topic)).items()):
        say(f"reading partition {partition} of {topic}: {bounds.stable - bounds.earliest} offsets")
        async for batch in kafka.read_range(topic, partition, bounds.earliest, bounds.stable):
            found.extend(record for record in batch.records if record.key == key)
    return found


def _log_record(record: Record, schema: DocumentSchema, *, newest: bool, text: bool) -> LogRecord:
    change = documents.parse(record.key, record.value, schema)
    kind: Kind = "put" if isinstance(change, Put) else "delete" if isinstance(change, Delete) else "rejected"
    return LogRecord(
        record.partition,
        record.offset,
        record.timestamp_ms,
        kind,
        f"{change.cause}: {change.detail}" if isinstance(change, Rejected) else "",
        len(record.value or b""),
        documents.source_hash(change, schema) if isinstance(change, Put) else "",
        newest,
        documents.text(change, schema) if text and isinstance(change, Put) else None,
    )


async def _dead_letters(out: Outside, collection: str, key: bytes) -> list[DeadLetter]:
    letters: list[DeadLetter] = []
    async for headers, record in out.dead_letters():
        if record.key == key and headers.get("collection") == collection:
            letters.append(
                DeadLetter(
                    headers.get("version", ""),
                    int(headers.get("epoch", "0")),
                    int(headers["partition"]),
                    int(headers["offset"]),
                    headers.get("cause", ""),
                    headers.get("error", ""),
                    record.timestamp_ms,
                )
            )
    return letters


async def _stored(
    out: Outside,
    build: BuildState,
    key: bytes,
    newest: Record | None,
    schema: DocumentSchema,
    letters: Sequence[DeadLetter],
    *,
    text: bool,
) -> Stored:
    space = out.store.space(build.space)
    named = (build.version, build.epoch, build.stage.value, build.space)
    doc_id = key.decode(errors="replace")  # a key that is not UTF-8 is stored nowhere
    first = documents.object_id(build.collection, doc_id, 0)
    try:
        head = (await space.heads([first])).get(first)
        ids = [documents.object_id(build.collection, doc_id, i) for i in range(head.chunks)] if head else []
        heads = await space.heads(ids)
        properties = (await space.properties([first])).get(first, {})
    except IdentityChanged:
        return Stored(*named, "gone")
    settled = await _resolved(out, build, newest)
    held = newest is not None and any(
        (one.version, one.epoch) == (build.version, build.epoch)
        and (one.partition, one.offset) == (newest.partition, newest.offset)
        for one in letters
    )
    deletes = newest is not None and isinstance(documents.parse(newest.key, newest.value, schema), Delete)
    whole = head is not None and sum(h.offset == head.offset for h in heads.values()) == head.chunks
    older = False
    if head is not None and newest is None:
        bounds = (await out.kafka.bounds(build.topic)).get(head.partition)
        older = bounds is not None and head.offset < bounds.earliest
    verdict = judge(head, newest, whole=whole, deletes=deletes, held=held, resolved=settled, older=older)
    if head is None:
        return Stored(*named, verdict)
    stored_text = properties.get(reserved.TEXT)
    embedded_at = properties.get(reserved.EMBEDDED_AT)
    return Stored(
        *named,
        verdict,
        head.partition,
        head.offset,
        head.chunks,
        len(heads),
        head.source_hash,
        int(embedded_at) if isinstance(embedded_at, int | float) else 0,
        str(properties.get(reserved.ORIGIN) or ""),
        stored_text if text and isinstance(stored_text, str) else None,
    )


async def _resolved(out: Outside, build: BuildState, newest: Record | None) -> bool:
    """Whether the lane that answers for the newest record has passed it."""
    if newest is None:
        return True
    if newest.offset < build.start.get(newest.partition, 0):
        return newest.partition in build.replayed
    group = out.names.group(build.collection, build.version, build.epoch, "live")
    commit = (await out.kafka.committed(group, build.topic)).get(newest.partition)
    return commit is not None and commit.offset > newest.offset


def judge(
    head: Head | None,
    newest: Record | None,
    *,
    whole: bool,
    deletes: bool,
    held: bool,
    resolved: bool,
    older: bool = False,
) -> Verdict:
    """What the stored chunk 0 means beside the log's newest record of the key.

    `whole`: every chunk is there at its offset; `deletes`: the newest record is a delete; `resolved`: its lane has
    passed it; `older`: what is stored stood before the log's first offset. A dead letter that was applied again since
    is no reason to call it held.
    """
    if head is not None and newest is None and older:
        return "kept" if whole else "torn"
    absent = newest is None or deletes
    if head is not None and newest is not None:
        says_so = not absent and whole and (head.partition, head.offset) == (newest.partition, newest.offset)
    else:
        says_so = absent and head is None and not held
    if says_so:
        return "current"
    if held:
        return "held"
    if absent:
        return "extra" if resolved else "pending"
    if not resolved:
        return "pending"
    return "missing" if head is None else "stale"


def story_json(story: Story) -> dict[str, JSON]:
    """Text fields only where they were asked for."""
    return {
        "collection": story.collection,
        "topic": story.topic,
        "key": story.key,
        "two_partitions": story.two_partitions,
        "records": [_fields(record) for record in story.records],
        "spaces": [_fields(stored) for stored in story.spaces],
        "dead_letters": [_fields(letter) for letter in story.dead_letters],
    }


def _fields(part: LogRecord | Stored | DeadLetter) -> dict[str, JSON]:
    values: dict[str, JSON] = {name: getattr(part, name) for name in part.__slots__}
    if values.get("text", "") is None:
        del values["text"]
    return values
