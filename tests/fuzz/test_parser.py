"""Whatever a record holds: the parser answers, says nothing of the text, and passes nothing that a store refuses.

CROSSFADE_FUZZ_CASES: cases of each test; a thousand in `make test`, 100,000 in `make soak`.
"""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from connectors import reserved
from connectors.protocols import Record
from streams import documents
from streams.documents import CAUSES, Delete, DocumentSchema, Put, Rejected, parse
from streams.space_objects import Origin, space_object
from tests.badinput.cases import BOMB_BYTES, CANARY, CASES, debezium, document
from tests.fuzz.edits import edited, many

SCHEMAS = [
    DocumentSchema(
        collection="articles",
        fields=("title", "text"),
        properties={"title": "text", "tag": "keyword", "count": "int", "score": "number", "ok": "bool", "day": "date"},
        max_record_bytes=5_000,
    ),
    DocumentSchema(collection="c", fields=("payload",), template="{{{payload}}}", properties={"op": "keyword"}),
    DocumentSchema(collection="c", fields=("after", "text"), properties={"schema": "int", "before": "date"}),
]
TYPES = [{**reserved.TYPES, **schema.properties} for schema in SCHEMAS]
FULL = document("text", title="t", tag="a", count=1, score=1.5, ok=True, day="2024-02-29T00:00:00Z")
SEEDS = [
    FULL,
    debezium("u", schema=True, after={"text": "row", "count": 2}),
    debezium("d", schema=False, before={"text": "row"}),
    *(case.value for case in CASES if case.value is not None and len(case.value) < BOMB_BYTES // 1000),
]
NAMES = ["title", "text", "tag", "count", "score", "ok", "day", "op", "payload", "before", "after", "source", "schema"]
OPS = st.sampled_from(["c", "u", "d", "r", "t", "x"])
NUMBERS = st.sampled_from(
    [*["0", "-0", "1e308", "1e309", "-1e-400", "NaN", "01"], *map(str, (2**53, 2**53 + 1, 2**63, 2**64, 10**30))]
)
DATES = st.sampled_from(["2024-02-29T23:59:60Z", "0000-01-01T00:00:00Z", "9999-12-31T23:59:59.999999999-23:59"])


@st.composite
def texts_of_json(draw: st.DrawFn, depth: int = 3) -> str:
    """JSON as text, so that it may hold a key twice, a number no double holds, an escape of half a character."""
    kind = draw(st.sampled_from("olsnxd" if depth else "snxd"))
    if kind == "o":
        pairs = draw(st.lists(st.tuples(st.sampled_from(NAMES), texts_of_json(depth - 1)), max_size=5))
        return "{" + ",".join(f'"{name}":{value}' for name, value in pairs) + "}"
    if kind == "l":
        return "[" + ",".join(draw(st.lists(texts_of_json(depth - 1), max_size=3))) + "]"
    if kind == "n":
        return draw(NUMBERS)
    if kind == "x":
        return draw(st.sampled_from(["null", "true", "false", '"\\ud83d"', '"\\udc00\\ud800"', '"\\u0000"']))
    if kind == "d":
        return f'"{draw(OPS | DATES)}"'
    return json.dumps(draw(st.text(max_size=8)), ensure_ascii=draw(st.booleans()))


KEYS = st.binary(max_size=40) | st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass")) | st.none()


def sound(key: bytes | None, value: bytes | None, number: int) -> Put | Delete | Rejected:
    schema = SCHEMAS[number]
    result = parse(key, value, schema)
    if isinstance(result, Rejected):
        assert result.cause in CAUSES
        assert CANARY not in result.detail
        assert len(result.detail) < 300
        return result
    assert result.doc_id.encode() == key
    if isinstance(result, Put):
        storable(result, number)
    return result


def storable(put: Put, number: int) -> None:
    """What passes the parser is taken by the store: nothing is left to be refused there."""
    schema = SCHEMAS[number]
    text = documents.text(put, schema)
    assert text.strip()
    hashed = documents.source_hash(put, schema)
    made = space_object(
        uuid4(),
        Record(0, 1, 2, b"k", b"v"),
        put,
        hashed,
        chunk=0,
        texts=[text],
        vector=np.ones(3, np.float32),
        origin=Origin("embedded", 1),
        space_mark="v1@x",
        store_text=True,
    )
    assert reserved.check_object(made, TYPES[number], 3) is None


def agrees(put: Put, value: bytes, number: int) -> None:
    """With the standard library's parser, which also takes the last of two equal keys."""
    found: Any = json.loads(value, parse_int=lambda digits: int(digits) if len(digits) < 20 else float(digits))
    schema = SCHEMAS[number]
    while not all(str(found.get(name) or "") == text for name, text in zip(schema.fields, put.fields, strict=True)):
        found = found["payload"] if isinstance(found.get("payload"), dict) else found["after"]
    assert {name: found[name] for name in put.properties} == put.properties


@many
@given(key=KEYS, value=st.none() | st.binary(max_size=200), number=st.integers(0, len(SCHEMAS) - 1))
def test_any_bytes(key: bytes | None, value: bytes | None, number: int) -> None:
    sound(key, value, number)


@many
@given(value=edited(SEEDS), number=st.integers(0, len(SCHEMAS) - 1))
def test_damaged_records(value: bytes, number: int) -> None:
    result = sound(b"k", value, number)
    if isinstance(result, Put):
        agrees(result, value, number)


@many
@given(value=texts_of_json(), number=st.integers(0, len(SCHEMAS) - 1))
def test_any_json(value: str, number: int) -> None:
    raw = value.encode("utf-8", "surrogatepass")
    result = sound(b"k", raw, number)
    if isinstance(result, Put):
        agrees(result, raw, number)


@many
@given(
    pairs=st.lists(st.tuples(st.sampled_from(sorted(SCHEMAS[0].properties)), NUMBERS | texts_of_json(1)), max_size=4)
)
def test_any_properties_of_a_sound_document(pairs: list[tuple[str, str]]) -> None:
    raw = "{" + ",".join(f'"{name}":{value}' for name, value in [*pairs, ("text", '"sound"')]) + "}"
    encoded = raw.encode("utf-8", "surrogatepass")
    result = sound(b"k", encoded, 0)
    if isinstance(result, Put):
        agrees(result, encoded, 0)


@many
@given(value=edited([FULL]))
def test_the_same_bytes_mean_the_same(value: bytes) -> None:
    first, second = parse(b"k", value, SCHEMAS[0]), parse(b"k", bytes(value), SCHEMAS[0])
    assert first == second
    if isinstance(first, Put) and isinstance(second, Put):
        assert documents.source_hash(first, SCHEMAS[0]) == documents.source_hash(second, SCHEMAS[0])
