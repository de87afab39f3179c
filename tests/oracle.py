"""The oracle: the topic read once from the beginning in one thread, last write wins, held keys apart.

It must never share a decision with the code it judges: only the parser of records and the hash are the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from connectors.protocols import JSON, Record
from streams.documents import Delete, DocumentSchema, Put, Rejected, doc_hash, parse, source_hash, text


@dataclass(frozen=True, slots=True)
class Form:
    """What must stand of one document: `texts` are its chunks in order."""

    partition: int
    offset: int
    source_hash: str
    texts: tuple[str, ...]
    properties: Mapping[str, JSON]


@dataclass(slots=True)
class Expected:
    """`current`: by document id. `held`: keys whose newest record is in the dead letters, with the form that may stand
    if not nothing. `loose`: held keys of which nothing is said, because the model or the store refused some of
    their records: that shows only after older events of the key, which waited beside it, were dropped as stale."""

    current: dict[str, Form] = field(default_factory=dict)
    held: dict[str, Form | None] = field(default_factory=dict)
    loose: set[str] = field(default_factory=set)


def expect(
    records: Iterable[Record],
    schema: DocumentSchema,
    split: Callable[[str], list[str]],
    refused: Callable[[str], bool] = lambda _: False,
    loose_from: int = 1,
) -> Expected:
    """`refused`: whether the model or the store refuses a document of this text; so often and a key is loose."""
    current: dict[str, Form] = {}
    held: set[str] = set()
    times_refused: Counter[str] = Counter()
    for record in records:
        change = parse(record.key, record.value, schema)
        whole = text(change, schema) if isinstance(change, Put) else ""
        if isinstance(change, Rejected):
            held.add((record.key or b"").decode(errors="backslashreplace"))
            continue
        if refused(whole):
            held.add(change.doc_id)
            times_refused[change.doc_id] += 1
            continue
        held.discard(change.doc_id)
        if isinstance(change, Delete):
            current.pop(change.doc_id, None)
        else:
            current[change.doc_id] = Form(
                record.partition,
                record.offset,
                source_hash(change, schema),
                tuple(split(whole)),
                change.properties,
            )
    forms = {doc_id: current.pop(doc_id, None) for doc_id in held}
    return Expected(current, forms, {doc_id for doc_id in held if times_refused[doc_id] >= loose_from})


def differences(expected: Expected, stored: Mapping[str, Sequence[Mapping[str, JSON]]]) -> list[str]:
    """What is wrong with a space. `stored`: by document id the properties of its objects, in any order."""
    wrong: list[str] = []
    for doc_id in sorted(expected.current.keys() | expected.held.keys() | stored.keys()):
        if doc_id in expected.loose:
            continue
        wanted = expected.current.get(doc_id)
        objects = sorted(stored.get(doc_id, []), key=lambda o: str(o["cf_chunk"]))
        if wanted is None and objects and doc_id in expected.held:
            wanted = expected.held[doc_id]
        if wanted is None:
            wrong += [f"{doc_id}: extra, stored at {objects[0]['cf_offset']}"] if objects else []
        elif not objects:
            wrong += [f"{doc_id}: missing, wanted at {wanted.offset}"]
        else:
            wrong += _compare(doc_id, wanted, objects)
    return wrong


def _compare(doc_id: str, wanted: Form, objects: Sequence[Mapping[str, JSON]]) -> list[str]:
    if len(objects) != len(wanted.texts):
        return [f"{doc_id}: {len(objects)} chunks, wanted {len(wanted.texts)} at {wanted.offset}"]
    wrong: list[str] = []
    for i, (stored, chunk) in enumerate(zip(objects, wanted.texts, strict=True)):
        must = {
            "cf_doc_id": doc_id,
            "cf_doc_hash": doc_hash(doc_id),
            "cf_chunk": i,
            "cf_chunks": len(wanted.texts),
            "cf_source_hash": wanted.source_hash,
            "cf_partition": wanted.partition,
            "cf_offset": wanted.offset,
            "cf_text": chunk,
            **wanted.properties,
        }
        got = {name: stored.get(name) for name in must}
        wrong += [f"{doc_id}[{i}].{n}: {got[n]!r}, wanted {must[n]!r}" for n in must if got[n] != must[n]]
    return wrong
