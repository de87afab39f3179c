"""What a space still holds of forgotten documents: which are wanted, and what can be put together again exactly."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import orjson
import pytest

from connectors import reserved
from connectors.memory.store import MemoryStore
from connectors.protocols import JSON, Head, Record, Space, SpaceSpec
from streams import documents
from streams.carrying import Forgotten, OldSpace, read_back, restore, same_texts, serves_beside
from streams.documents import DocumentSchema, Put, key_digest
from streams.key_index import KeyIndexBuilder
from streams.space_objects import Origin, space_object
from streams.state import BuildState
from streams.versions import Envelope, Stage

SCHEMA = DocumentSchema("docs", ("title", "text"), properties={"tag": "keyword", "n": "int"})
ENVELOPE = Envelope("memory", "m", "1", 2, ("title", "text"))
VALUE: dict[str, JSON] = {"title": " A title", "text": "the text \n\n of it ", "tag": "x", "n": 3}


def build(version: str, envelope: Envelope = ENVELOPE, changes: Mapping[str, object] | None = None) -> BuildState:
    state = BuildState(
        collection="docs",
        version=version,
        epoch=1,
        stage=Stage.SERVING,
        envelope=orjson.loads(envelope.canonical_json()),
        fingerprint=envelope.fingerprint,
        space=f"Docs_{version}_1_x",
        topic="documents",
        topic_id="t1",
        partitions=2,
    )
    return state.model_copy(update=changes)


def parsed(key: str, value: dict[str, JSON] = VALUE) -> Put:
    change = documents.parse(key.encode(), orjson.dumps(value), SCHEMA)
    assert isinstance(change, Put)
    return change


async def stored(
    space: Space, key: str, offset: int, texts: Sequence[str], *, put: Put | None = None, store_text: bool = True
) -> uuid.UUID:
    """As the pipeline stores it; the id of chunk 0."""
    put = put or parsed(key)
    ids = [documents.object_id("docs", key, n) for n in range(len(texts))]
    failed = await space.upsert(
        [
            space_object(
                ids[n],
                Record(1, offset, 1_700_000_000_000, key.encode(), b""),
                put,
                documents.source_hash(put, SCHEMA),
                chunk=n,
                texts=texts,
                vector=np.ones(2, np.float32),
                origin=Origin("embedded", 5),
                space_mark="v1@x",
                store_text=store_text,
            )
            for n in range(len(texts))
        ]
    )
    assert not failed
    return ids[0]


async def old_space(envelope: Envelope = ENVELOPE) -> OldSpace:
    store = MemoryStore()
    await store.create_space(SpaceSpec("Docs_v1_1_x", 2, "cosine", "{}", properties=SCHEMA.properties))
    return OldSpace(build("v1", envelope), store.space("Docs_v1_1_x"), "group")


async def test_a_whole_text_comes_back_as_the_record_would_have_given_it() -> None:
    old = await old_space()
    put = parsed("k")
    uuid_ = await stored(old.space, "k", 7, [documents.text(put, SCHEMA)])
    found = await read_back(old, ENVELOPE, SCHEMA, {uuid_: 7})
    assert found.unfit == 0
    (one,) = found.documents
    assert one.record[:4] == (1, 7, 1_700_000_000_000, b"k")
    assert documents.text(one.change, SCHEMA) == documents.text(put, SCHEMA)
    assert documents.source_hash(one.change, SCHEMA) == documents.source_hash(put, SCHEMA)
    assert (one.change.doc_id, one.change.properties) == (put.doc_id, put.properties)


async def test_pieces_serve_the_same_chunking_and_no_other() -> None:
    cut = replace(ENVELOPE, chunking="characters:10:2")
    old = await old_space(cut)
    uuid_ = await stored(old.space, "k", 7, ["one piece", "piece two"])
    (one,) = (await read_back(old, cut, SCHEMA, {uuid_: 7})).documents
    assert one.change.restored == documents.Restored(
        ("one piece", "piece two"), documents.source_hash(parsed("k"), SCHEMA), True
    )
    for other in (ENVELOPE, replace(cut, chunking="characters:10:3")):
        assert await read_back(old, other, SCHEMA, {uuid_: 7}) == ([], 1)


async def test_a_document_of_one_chunk_serves_any_chunking() -> None:
    old = await old_space(replace(ENVELOPE, chunking="characters:1000:0"))
    uuid_ = await stored(old.space, "k", 7, ["all of it"])
    (one,) = (await read_back(old, ENVELOPE, SCHEMA, {uuid_: 7})).documents
    assert one.change.restored is not None
    assert (one.change.restored.pieces, one.change.restored.cut) == (("all of it",), False)


async def test_what_has_changed_or_gone_since_is_left_to_its_newer_record() -> None:
    old = await old_space()
    moved = await stored(old.space, "moved", 9, ["text"])
    gone = documents.object_id("docs", "gone", 0)
    assert await read_back(old, ENVELOPE, SCHEMA, {moved: 7, gone: 8}) == ([], 0)


async def test_what_cannot_be_put_together_is_counted() -> None:
    cut = replace(ENVELOPE, chunking="characters:10:0")
    old = await old_space(cut)
    without_text = await stored(old.space, "silent", 1, ["text"], store_text=False)
    half = await stored(old.space, "half", 2, ["one", "two"])
    await old.space.delete([documents.object_id("docs", "half", 1)])
    other_type = await stored(old.space, "typed", 3, ["text"])
    assert await read_back(old, cut, SCHEMA, {without_text: 1, half: 2}) == ([], 2)
    changed = replace(SCHEMA, properties={"tag": "int"})
    assert await read_back(old, cut, changed, {other_type: 3}) == ([], 1)
    assert await read_back(old, replace(cut, template="{title}: {text}"), SCHEMA, {other_type: 3}) == ([], 1)


def test_chunks_of_two_forms_are_no_document() -> None:
    part: dict[str, JSON] = {
        reserved.DOC_ID: "k",
        reserved.OFFSET: 4,
        reserved.CHUNKS: 2,
        reserved.SOURCE_HASH: "a",
        reserved.PARTITION: 0,
        reserved.EVENT_TIME: 1,
        reserved.TEXT: "one",
    }
    assert restore([part, {**part, reserved.TEXT: "two"}], SCHEMA, same_cut=True) is not None
    for name, value in ((reserved.OFFSET, 3), (reserved.SOURCE_HASH, "b"), (reserved.CHUNKS, 3), (reserved.TEXT, "")):
        assert restore([part, {**part, name: value}], SCHEMA, same_cut=True) is None


def test_which_documents_are_wanted() -> None:
    """Older than the log, unknown there, or known at this very offset; of this partition; chunk 0 alone."""
    builder = KeyIndexBuilder()
    for key, offset, gone in (("newer", 45, False), ("deleted", 46, True), ("here", 8, False), ("older", 3, False)):
        builder.add([key_digest(key.encode())], [offset], [gone])
    forgotten = Forgotten(1, 40, builder.build())

    def head(key: str, offset: int, partition: int = 1, chunk: int = 0) -> Head:
        return Head(documents.object_id("docs", key, chunk), key, "", chunk, 2, "h", partition, offset)

    wanted = [head("b", 9), head("a", 5), head("here", 8)]
    others = [
        head("newer", 7),
        head("deleted", 6),
        head("older", 4),
        head("young", 40),
        head("c", 1, 0),
        head("a", 5, 1, 1),
    ]
    forgotten.add([*others[:3], *wanted, *others[3:]])
    assert (len(forgotten), forgotten.unknown) == (3, 2)
    ids = {head.uuid: head.offset for head in wanted}
    slices = list(forgotten.slices(2))
    assert [sorted(part.values()) for part in slices] == [[5, 8], [9]]
    assert {uuid_: offset for part in slices for uuid_, offset in part.items()} == ids


@pytest.mark.parametrize(
    ("changes", "beside"),
    [
        ({}, True),
        ({"topic_id": "t2"}, False),  # created anew: the offsets mean nothing
        ({"partitions": 3}, False),
        ({"stage": Stage.RETIRED}, False),
        ({"space": "Docs_v2_1_x"}, False),  # itself
    ],
)
def test_whose_offsets_mean_the_same(changes: dict[str, object], beside: bool) -> None:
    assert serves_beside(build("v2"), build("v1", changes=changes)) is beside
    assert not serves_beside(build("v2"), None)


def test_whose_texts_are_the_same() -> None:
    assert same_texts(
        ENVELOPE, replace(ENVELOPE, model="other", chunking="characters:9:1", document_prefix="passage: ")
    )
    assert not same_texts(ENVELOPE, replace(ENVELOPE, text_fields=("text", "title")))
    assert not same_texts(ENVELOPE, replace(ENVELOPE, template="{title} {text}"))
