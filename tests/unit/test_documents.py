"""Parsing change events: every cause, Debezium, templates, hashes; and that no bytes whatever make it raise."""

from __future__ import annotations

import hashlib
import uuid
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streams import documents
from streams.documents import Delete, DocumentSchema, Put, Rejected, parse

SCHEMA = DocumentSchema(
    collection="articles",
    fields=("title", "text"),
    properties={"title": "text", "tag": "keyword", "n": "int", "x": "number", "ok": "bool", "on": "date"},
    max_record_bytes=10_000,
)


def parsed(value: object, schema: DocumentSchema = SCHEMA) -> Put | Delete | Rejected:
    return parse(b"doc-1", orjson.dumps(value), schema)


def test_a_plain_document_is_a_put() -> None:
    value = {"id": "other", "title": "T", "text": "body", "tag": "a", "n": 3, "x": 1.5, "ok": True, "extra": [1]}
    assert parsed(value) == Put("doc-1", ("T", "body"), {"title": "T", "tag": "a", "n": 3, "x": 1.5, "ok": True})


def test_null_is_a_delete_and_json_null_is_not() -> None:
    assert parse(b"doc-1", None, SCHEMA) == Delete("doc-1")
    result = parse(b"doc-1", b"null", SCHEMA)
    assert isinstance(result, Rejected)
    assert result.cause == "not_an_object"


@pytest.mark.parametrize(
    ("key", "value", "cause"),
    [
        (None, b'{"text":"a"}', "key_missing"),
        (b"", b'{"text":"a"}', "key_empty"),
        (b"", None, "key_empty"),
        (b"\xff", b'{"text":"a"}', "key_not_utf8"),
        (b"\xed\xa0\x80", b'{"text":"a"}', "key_not_utf8"),
        (b"k" * 1025, b'{"text":"a"}', "key_too_long"),
        (b"k", b'{"text":"' + b"a" * 10_000 + b'"}', "record_too_large"),
        (b"k", b"", "malformed_json"),
        (b"k", b'{"text":', "malformed_json"),
        (b"k", b'{"text":"\\ud800"}', "malformed_json"),
        (b"k", b'{"text":"a","x":NaN}', "malformed_json"),
        (b"k", b'{"text":"a","x":1e999}', "malformed_json"),
        (b"k", b'{"text":"\xff"}', "malformed_json"),
        (b"k", b"[" * 5000, "malformed_json"),
        (b"k", b"[]", "not_an_object"),
        (b"k", b'"text"', "not_an_object"),
        (b"k", b"{}", "empty_text"),
        (b"k", b'{"title":" ","text":"\\n\\t"}', "empty_text"),
        (b"k", b'{"title":null,"text":null}', "empty_text"),
        (b"k", b'{"title":"a","text":7}', "bad_text"),
        (b"k", b'{"text":["a"]}', "bad_text"),
    ],
)
def test_bad_records_are_rejected_with_their_cause(key: bytes | None, value: bytes | None, cause: str) -> None:
    result = parse(key, value, SCHEMA)
    assert isinstance(result, Rejected)
    assert result.cause == cause


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("tag", 1),
        ("n", 1.0),
        ("n", True),
        ("n", 2**53 + 1),
        ("x", "1"),
        ("x", True),
        ("ok", 1),
        ("ok", "true"),
        ("on", "2024-02-30T00:00:00Z"),
        ("on", "2024-02-03"),
        ("on", "2024-02-03T00:00:00"),
        ("on", "2024-02-03T24:00:00Z"),
        ("on", 5),
    ],
)
def test_a_property_of_the_wrong_type_rejects_the_record(name: str, bad: object) -> None:
    result = parsed({"text": "a", name: bad})
    assert isinstance(result, Rejected)
    assert result.cause == "bad_property"
    assert name in result.detail


@pytest.mark.parametrize("good", ["2024-02-29T23:59:59Z", "2024-02-03T00:00:00.123456789+05:30"])
def test_dates_are_rfc_3339(good: str) -> None:
    assert parsed({"text": "a", "on": good}) == Put("doc-1", ("", "a"), {"on": good})


def test_a_null_property_is_absent() -> None:
    assert parsed({"text": "a", "n": None}) == Put("doc-1", ("", "a"), {})


@pytest.mark.parametrize("op", ["c", "u", "r"])
@pytest.mark.parametrize("wrapped", [True, False])
def test_debezium_puts(op: str, wrapped: bool) -> None:
    change = {"op": op, "before": None, "after": {"title": "T", "text": "a"}, "source": {"lsn": 1}, "ts_ms": 1}
    value = {"schema": {"type": "struct"}, "payload": change} if wrapped else change
    assert parsed(value) == Put("doc-1", ("T", "a"), {"title": "T"})


def test_debezium_delete_truncate_and_the_rest() -> None:
    assert parsed({"payload": {"op": "d", "before": {"text": "a"}, "after": None}}) == Delete("doc-1")
    causes = {
        "truncate": {"op": "t", "source": {}},
        "unknown_op": {"op": "m", "source": {}},
        "bad_envelope": {"op": "u", "before": {"text": "a"}, "after": None},
        "empty_text": {"payload": {"op": "c", "after": {}}},
    }
    for cause, value in causes.items():
        result = parsed(value)
        assert isinstance(result, Rejected)
        assert result.cause == cause


def test_a_declared_op_field_makes_the_documents_plain() -> None:
    schema = DocumentSchema(collection="c", fields=("after",), properties={"op": "keyword"})
    assert parsed({"op": "d", "after": "text"}, schema) == Put("doc-1", ("text",), {"op": "d"})


def test_a_declared_payload_field_makes_the_documents_plain() -> None:
    schema = DocumentSchema(collection="c", fields=("payload",))
    result = parsed({"payload": {"op": "d", "before": None}}, schema)
    assert isinstance(result, Rejected)
    assert result.cause == "bad_text"


def test_an_op_without_an_envelope_is_a_plain_document() -> None:
    assert parsed({"op": "d", "text": "a"}) == Put("doc-1", ("", "a"), {})


_JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["text", "n"]), inner, max_size=2),
    max_leaves=4,
)
_DOCUMENTS = st.dictionaries(
    st.sampled_from([*SCHEMA.fields, *SCHEMA.properties, "op", "payload", "before", "after", "source"]), _JSON
)


@given(key=st.none() | st.binary(max_size=1100), value=st.none() | st.binary())
def test_no_bytes_make_parse_raise(key: bytes | None, value: bytes | None) -> None:
    assert_sound(parse(key, value, SCHEMA))


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)  # the machine may be busy
@given(value=_DOCUMENTS)
def test_no_document_makes_parse_raise(value: dict[str, Any]) -> None:
    try:
        raw = orjson.dumps(value)
    except TypeError:  # hypothesis draws lone surrogates, which no UTF-8 record can hold
        return
    assert_sound(parse(b"k", raw, SCHEMA))


def assert_sound(result: Put | Delete | Rejected) -> None:
    if isinstance(result, Rejected):
        assert result.cause in documents.CAUSES
    elif isinstance(result, Put):
        assert documents.text(result, SCHEMA).strip()
        assert len(documents.source_hash(result, SCHEMA)) == 64
        assert set(result.properties) <= set(SCHEMA.properties)
        orjson.dumps(result.properties)


@given(secret=st.text(st.characters(categories=["Lu"]), min_size=8, max_size=30))
def test_details_never_hold_document_text(secret: str) -> None:
    text = "secret" + secret
    for value in (
        {"text": [text]},
        {"text": "a", "n": text},
        {"text": "a", "on": text},
        [text],
        text,
        {"op": text, "after": 1},
    ):
        result = parsed(value)
        assert isinstance(result, Rejected)
        assert secret not in result.detail
    broken = parse(b"k", b'{"text":"' + text.encode() + b"\x00", SCHEMA)
    assert isinstance(broken, Rejected)
    assert secret not in broken.detail


def test_text_without_a_template_joins_what_is_there() -> None:
    assert documents.text(Put("k", ("T", "body"), {}), SCHEMA) == "T\n\nbody"
    assert documents.text(Put("k", ("", "body"), {}), SCHEMA) == "body"


def test_text_through_a_template_leaves_braces_of_documents_alone() -> None:
    schema = DocumentSchema(collection="c", fields=("title", "text"), template="{{{title}}}: {text}")
    assert documents.text(Put("k", ("{text}", "a{0}"), {}), schema) == "{{text}}: a{0}"


@pytest.mark.parametrize("template", ["{}", "{0}", "{title.x}", "{title[0]}", "{title!r}", "{title:>9}", "{title", "}"])
def test_templates_hold_field_names_only(template: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        documents.template_fields(template)


def test_a_template_reads_every_field() -> None:
    with pytest.raises(ValueError, match="declared"):
        DocumentSchema(collection="c", fields=("title", "text"), template="{title}")


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=2, max_size=2), st.data())
def test_source_hashes_are_equal_only_for_equal_fields(values: list[str], data: st.DataObject) -> None:
    joined = "".join(values)
    cut = data.draw(st.integers(0, len(joined)))
    moved = (joined[:cut], joined[cut:])
    equal = documents.source_hash(Put("k", tuple(values), {}), SCHEMA) == documents.source_hash(
        Put("k", moved, {}), SCHEMA
    )
    assert equal == (moved == tuple(values))


def test_source_hash_is_that_of_the_framed_fields() -> None:
    expected = hashlib.sha256("1:T3:\u00e9a".encode()).hexdigest()
    assert documents.source_hash(Put("k", ("T", "\u00e9a"), {"n": 1}), SCHEMA) == expected


def test_object_ids_are_uuid5_and_never_meet() -> None:
    names = [
        ("a", "1:b", 0),
        ("a", "b", 1),
        ("a", "b", 11),
        ("a", "1b", 1),
        ("a1", "b", 1),
        ("a", ":b", 1),
        ("a1:", "b", 1),
    ]
    ids = [documents.object_id(*name) for name in names]
    assert len(set(ids)) == len(ids)
    namespace = uuid.UUID(bytes=documents._NAMESPACE)
    assert ids[1] == uuid.uuid5(namespace, "1:a1:b")
    assert documents.object_id("a", "b", 1) == ids[1]


def test_digests(monkeypatch: pytest.MonkeyPatch) -> None:
    digest = documents.key_digest(b"k")
    assert documents.key_digest(b"k") == digest
    monkeypatch.setattr(documents, "DIGEST_SEED", documents.DIGEST_SEED ^ 1)
    assert documents.key_digest(b"k") != digest, "nobody can look for two keys with one digest before the process runs"
    assert documents.doc_hash("\u00e9") == hashlib.sha256("\u00e9".encode()).hexdigest()
