"""What the topic has forgotten and the serving space still holds: found there, read back, made into records again.

Retention (`cleanup.policy=compact,delete`) or deleted records take documents out of the log that searchers still find.
A build reads the log; these it can only have from the space that serves. It reads that space, and never writes it.
"""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from uuid import UUID

import numpy as np
import orjson

from connectors import reserved
from connectors.errors import Terminal
from connectors.protocols import JSON, Head, Record, Space
from streams import documents
from streams.documents import DocumentSchema, Put, Rejected, key_digest
from streams.key_index import ABSENT, KeyIndex
from streams.state import BuildState
from streams.versions import Envelope


@dataclass(frozen=True, slots=True)
class OldSpace:
    """The space that serves. `group`: of its live lane, whose commits say what it holds; `share`: see Space.scan."""

    state: BuildState
    space: Space
    group: str
    share: float = 1.0


class OldSpaceFault(Exception):
    """The space that serves gives nothing until somebody has put it right. Never a fault of the build that asked.

    `text`: which version's, what it is, and the next step.
    """

    def __init__(self, old: BuildState, cause: str, next_step: str) -> None:
        then = f"; next: {next_step}" if next_step else ""
        self.text = f"documents that the topic no longer has are not brought over from {old.key}: {cause}{then}"
        super().__init__(self.text)


@contextlib.contextmanager
def of_the_old_space(old: BuildState) -> Iterator[None]:
    """Raises OldSpaceFault for what is Terminal there: it must not stop the build that reads it."""
    try:
        yield
    except Terminal as error:
        raise OldSpaceFault(old, error.message, error.next_step) from error


async def pages_of(old: OldSpace) -> AsyncIterator[list[Head]]:
    """All that it holds. Raises OldSpaceFault, and what is Transient."""
    with of_the_old_space(old.state):
        async for page in old.space.scan(share=old.share):
            yield page


def serves_beside(build: BuildState, serving: BuildState | None) -> bool:
    """Whether what serves holds documents of the very log this build reads: their offsets then mean the same."""
    if serving is None or not serving.active or serving.space == build.space:
        return False
    return (serving.topic_id, serving.partitions) == (build.topic_id, build.partitions)


def same_texts(old: Envelope, new: Envelope) -> bool:
    """Both models embed the same text of a document; how they cut it may differ."""
    return (old.text_fields, old.template) == (new.text_fields, new.template)


@dataclass(slots=True)
class Forgotten:
    """Documents of one partition of a space that the log has forgotten: 24 bytes each, by growing offset once sorted.

    `begin`: the log's first offset, or where live begins; `index`: the newest record of each key that the log had when
    the replay was planned. One that stands there at this very offset went while we replayed: it may not have been read.
    """

    partition: int
    begin: int
    index: KeyIndex
    unknown: int = 0
    _offsets: array[int] = field(default_factory=lambda: array("q"))
    _uuids: bytearray = field(default_factory=bytearray)

    def add(self, heads: Sequence[Head]) -> None:
        older = [h for h in heads if h.partition == self.partition and h.chunk == 0 and h.offset < self.begin]
        entries = self.index.entries([key_digest(head.doc_id.encode()) for head in older]).tolist()
        for head, entry in zip(older, entries, strict=True):
            if entry == ABSENT or entry == head.offset * 2:
                self.unknown += entry == ABSENT
                self._offsets.append(head.offset)
                self._uuids += head.uuid.bytes

    def __len__(self) -> int:
        return len(self._offsets)

    def slices(self, size: int) -> Iterator[dict[UUID, int]]:
        """Ids of chunk 0 with their offsets, by growing offset."""
        order = np.argsort(np.asarray(self._offsets, dtype=np.int64), kind="stable").tolist()
        for first in range(0, len(order), size):
            yield {
                UUID(bytes=bytes(self._uuids[16 * at : 16 * at + 16])): self._offsets[at]
                for at in order[first : first + size]
            }


class Carried(NamedTuple):
    """One document as it stood in the log, as far as its space knows."""

    record: Record
    change: Put


class ReadBack(NamedTuple):
    """`documents` by growing offset; `unfit`: how many cannot be put together again. What is in neither has changed
    since it was looked up: its newer record decides."""

    documents: list[Carried]
    unfit: int


async def read_back(old: OldSpace, new: Envelope, schema: DocumentSchema, wanted: Mapping[UUID, int]) -> ReadBack:
    """`wanted`: ids of chunk 0 with the offsets they must still stand at. Raises what the space raises."""
    same_cut = old.state.model.chunking == new.chunking
    stored = await old.space.properties(list(wanted))
    standing = {
        uuid: properties
        for uuid, offset in wanted.items()
        if (properties := stored.get(uuid)) is not None and properties.get(reserved.OFFSET) == offset
    }
    further: dict[UUID, Sequence[UUID]] = {}
    if same_cut:
        for uuid, properties in standing.items():
            doc_id, chunks = str(properties.get(reserved.DOC_ID)), _whole(properties.get(reserved.CHUNKS))
            further[uuid] = [documents.object_id(schema.collection, doc_id, n) for n in range(1, chunks)]
    rest = await old.space.properties([one for ids in further.values() for one in ids]) if any(further.values()) else {}
    found: list[Carried] = []
    unfit = 0
    for uuid, properties in standing.items():
        parts = [properties, *(rest.get(one, {}) for one in further.get(uuid, ()))]
        if any(_whole(part.get(reserved.OFFSET)) > wanted[uuid] for part in parts):
            continue  # a newer form is being written just now
        carried = restore(parts, schema, same_cut=same_cut) if same_texts(old.state.model, new) else None
        if carried is None:
            unfit += 1
        else:
            found.append(carried)
    return ReadBack(sorted(found, key=lambda one: one.record.offset), unfit)


def restore(parts: Sequence[Mapping[str, JSON]], schema: DocumentSchema, *, same_cut: bool) -> Carried | None:
    """The document of these stored chunks (chunk 0 alone, unless `same_cut`). None where its text is not kept, or was
    cut into pieces that another chunking cannot use: what overlapped, or lay between them, nobody knows."""
    first, chunks = parts[0], _whole(parts[0].get(reserved.CHUNKS))
    alike = (reserved.OFFSET, reserved.SOURCE_HASH, reserved.CHUNKS)
    if any(part.get(name) != first.get(name) for part in parts for name in alike) or chunks != len(parts):
        return None
    pieces = tuple(text for part in parts if isinstance(text := part.get(reserved.TEXT), str) and text)
    doc_id, source_hash = first.get(reserved.DOC_ID), first.get(reserved.SOURCE_HASH)
    if len(pieces) != chunks or not isinstance(doc_id, str) or not isinstance(source_hash, str):
        return None
    change = documents.restored(doc_id, documents.Restored(pieces, source_hash, same_cut), first, schema)
    if isinstance(change, Rejected):
        return None
    record = Record(
        _whole(first.get(reserved.PARTITION)),
        _whole(first.get(reserved.OFFSET)),
        _whole(first.get(reserved.EVENT_TIME)),
        doc_id.encode(),
        # for the dead letters, should the model refuse it: nobody has the original bytes any more
        orjson.dumps({"restored_text": list(pieces), **change.properties}),
    )
    return Carried(record, change)


def _whole(value: JSON) -> int:
    return int(value) if isinstance(value, int | float) else -1
