"""An independent check of a space: the topic read once from its beginning, last write wins, against what is stored.

It shares no code with the pipeline or the sweep but the readers: it parses and hashes by itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from connectors.protocols import Log, Space


@dataclass(frozen=True, slots=True)
class Stood:
    """Where the newest record of a key stands, and the hash of its text fields (None: deleted)."""

    partition: int
    offset: int
    source_hash: str | None


@dataclass(frozen=True, slots=True)
class Difference:
    """Of one space against the log; `documents`: how many the log says there are."""

    documents: int
    stored: int
    equal: int
    missing: list[str]
    different: list[str]
    extra: list[str]

    @property
    def none(self) -> bool:
        return not (self.missing or self.different or self.extra) and self.equal == self.documents == self.stored


async def newest_records(kafka: Log, topic: str, fields: Sequence[str]) -> dict[str, Stood]:
    """Every key the topic holds. `fields`: those whose text decides the vector."""
    newest: dict[str, Stood] = {}
    for partition, bounds in sorted((await kafka.bounds(topic)).items()):
        async for batch in kafka.read_range(topic, partition, bounds.earliest, bounds.stable):
            for record in batch.records:
                key = (record.key or b"").decode()
                hashed = None if record.value is None else _hash(json.loads(record.value), fields)
                newest[key] = Stood(partition, record.offset, hashed)
    return newest


def _hash(document: Mapping[str, str], fields: Sequence[str]) -> str:
    """As DESIGN.md says it: over the fields before templating, each framed by its length in bytes."""
    parts = [document.get(name, "").encode() for name in fields]
    return hashlib.sha256(b"".join(b"%d:%s" % (len(part), part) for part in parts)).hexdigest()


async def compare(newest: Mapping[str, Stood], space: Space) -> Difference:
    """Source hash and offset of every document, both ways. Raises Transient when the space cannot be read."""
    expected = {key: stood for key, stood in newest.items() if stood.source_hash is not None}
    unseen = set(expected)
    equal = stored = 0
    different: list[str] = []
    extra: list[str] = []
    async for page in space.scan():
        for head in page:
            stored += 1
            want = expected.get(head.doc_id)
            if want is None or head.doc_id not in unseen:
                extra.append(head.doc_id)
                continue
            unseen.discard(head.doc_id)
            if Stood(head.partition, head.offset, head.source_hash) == want:
                equal += 1
            else:
                different.append(head.doc_id)
    return Difference(len(expected), stored, equal, sorted(unseen), different, extra)
