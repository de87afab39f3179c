"""Every kind of bad record, and of odd but good ones, with what must become of each.

Values only. Each bad value carries `CANARY`, which must never turn up in a log, an error text or a command's output.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

CANARY = "CANARYq7f3"
MAX_RECORD_BYTES = 100_000
BOMB_BYTES = 40_000_000
EARLIER = "the earlier form"
"""Text of the healthy record written before the one under test, under the same key."""


@dataclass(frozen=True, slots=True)
class Case:
    """One record. Exactly one of: `cause` (dead-lettered), `text` (stored), `deleted`.

    `key` "" stands for the case's own name; `earlier`: a healthy record of the key comes before it.
    """

    name: str
    value: bytes | None
    cause: str | None = None
    text: str | None = None
    deleted: bool = False
    key: bytes | None = b"\0own"
    earlier: bool = True
    properties: tuple[tuple[str, object], ...] = ()

    @property
    def record_key(self) -> bytes | None:
        return self.name.encode() if self.key == b"\0own" else self.key

    @property
    def doc_id(self) -> str:
        return (self.record_key or b"").decode()


def document(text: str = CANARY, **more: object) -> bytes:
    return json.dumps({"text": text, **more}).encode()


def bad(name: str, cause: str, value: bytes | None) -> Case:
    return Case(name, value, cause=cause)


def bad_key(name: str, cause: str, key: bytes | None) -> Case:
    return Case(name, document(), cause=cause, key=key, earlier=False)


def good(name: str, value: bytes, text: str, **properties: object) -> Case:
    return Case(name, value, text=text, properties=tuple(properties.items()))


def good_key(name: str, key: str) -> Case:
    return Case(name, document(f"text of {name}"), text=f"text of {name}", key=key.encode(), earlier=False)


def raw(inside: str) -> bytes:
    """A document with this as it stands behind its text."""
    return f'{{"text": "{CANARY}", {inside}}}'.encode()


def debezium(op: str, *, schema: bool, **row: object) -> bytes:
    change = {"op": op, "before": None, "after": None, "source": {"db": CANARY}, "ts_ms": 1, **row}
    return json.dumps({"schema": {"type": "struct", "version": 1}, "payload": change} if schema else change).encode()


KEYS = [
    bad_key("key-null", "key_missing", None),
    bad_key("key-empty", "key_empty", b""),
    bad_key("key-huge", "key_too_long", b"k" * 50_000),
    bad_key("key-one-too-long", "key_too_long", b"k" * 1025),
    bad_key("key-not-utf8", "key_not_utf8", b"\xff\xfe-key"),
    bad_key("key-surrogate", "key_not_utf8", b"\xed\xa0\x80-key"),
    good_key("key-longest", "k" * 1024),
    good_key("key-composed", "caf\u00e9"),
    good_key("key-decomposed", "cafe\u0301"),
    good_key("key-capital", "Cafe"),
    good_key("key-small", "cafe"),
    good_key("key-space-behind", "cafe "),
    good_key("key-with-nul", "nul\x00key"),
    good_key("key-quotes", "a\"b'c\\d\n"),
    good_key("key-emoji", "\U0001f9ea"),
]

JSONS = [
    bad("json-broken", "malformed_json", f'{{"text": {CANARY}}}'.encode()),
    bad("json-truncated", "malformed_json", document()[:-4]),
    bad("json-two", "malformed_json", document() + document()),
    bad("json-array", "not_an_object", json.dumps([CANARY]).encode()),
    bad("json-string", "not_an_object", json.dumps(CANARY).encode()),
    bad("json-number", "not_an_object", b"7"),
    bad("json-null", "not_an_object", b"null"),
    bad("value-empty", "malformed_json", b""),
    bad("value-not-utf8", "malformed_json", b'{"text": "' + CANARY.encode() + b'\xff"}'),
    bad("value-bom", "malformed_json", b"\xef\xbb\xbf" + document()),
    bad("surrogate-escaped", "malformed_json", raw('"text": "\\ud800"')),
    bad("nesting-deep", "malformed_json", raw('"x": ' + "[" * 20_000 + "]" * 20_000)),
    bad("nesting-open", "malformed_json", b"[" * 50_000),
    bad("number-nan", "malformed_json", raw('"score": NaN')),
    bad("number-infinity", "malformed_json", raw('"score": -Infinity')),
    bad("number-overflow", "malformed_json", raw('"score": 1e999')),
    bad("value-too-large", "record_too_large", document(CANARY * (MAX_RECORD_BYTES // len(CANARY)))),
    bad("bomb", "record_too_large", document(CANARY + "a" * BOMB_BYTES)),
    Case("tombstone", None, deleted=True),
    good("nesting-shallow", raw('"x": ' + "[" * 500 + "]" * 500), CANARY),
    good("keys-twice", b'{"text": "' + CANARY.encode() + b'", "text": "the last one wins"}', "the last one wins"),
    good("integer-huge-undeclared", raw(f'"x": {10**40}'), CANARY),
    good("text-with-nul", document("nul \x00 inside"), "nul \x00 inside"),
    good("text-astral", document("\U0001f9ea \u202e \ufffd"), "\U0001f9ea \u202e \ufffd"),
    good("text-long", document("long " * 15_000), "long " * 15_000),
    good("schema-unknown", document("of schema 99", schema=99), "of schema 99"),
]

TEXTS = [
    bad("text-missing", "empty_text", json.dumps({"note": CANARY}).encode()),
    bad("text-null", "empty_text", raw('"text": null')),
    bad("text-empty", "empty_text", document("", note=CANARY)),
    bad("text-blank", "empty_text", document(" \t\r\n\u00a0\u2003", note=CANARY)),
    bad("text-number", "bad_text", json.dumps({"text": 7, "note": CANARY}).encode()),
    bad("text-boolean", "bad_text", json.dumps({"text": True, "note": CANARY}).encode()),
    bad("text-list", "bad_text", json.dumps({"text": [CANARY]}).encode()),
    bad("text-object", "bad_text", json.dumps({"text": {"en": CANARY}}).encode()),
]

PROPERTIES = [
    bad("property-type-changes", "bad_property", document(count=CANARY)),
    bad("property-text-becomes-number", "bad_property", document(tag=7)),
    bad("property-list", "bad_property", document(tag=[CANARY])),
    bad("property-float-for-int", "bad_property", document(count=1.5)),
    bad("property-bool-for-int", "bad_property", document(count=True)),
    bad("integer-beyond-doubles", "bad_property", raw(f'"count": {2**53 + 1}')),
    bad("integer-beyond-64-bits", "bad_property", raw(f'"count": {2**64}')),
    bad("integer-beyond-everything", "bad_property", raw(f'"count": {10**40}')),
    bad("date-impossible", "bad_property", document(day="2024-02-30T00:00:00Z")),
    bad("date-without-zone", "bad_property", document(day="2024-02-03T00:00:00")),
    good("integer-largest", raw(f'"count": {2**53}'), CANARY, count=2**53),
    good("property-null", document(tag=None), CANARY),
    good(
        "property-names-reserved",
        document("reserved", cf_offset=-5, cf_doc_id="another", id="x", vector=[1.0], _additional={}),
        "reserved",
    ),
    good("property-names-invalid", document("invalid", **{"a b": 1, "Ä": 2, "": 3, "x" * 500: 4}), "invalid"),
]

ENVELOPES = [
    case
    for schema in (False, True)
    for form in ("with" if schema else "without",)
    for case in (
        *(
            good(f"debezium-{op}-{form}", debezium(op, schema=schema, after={"text": f"row {op}"}), f"row {op}")
            for op in "cur"
        ),
        Case(f"debezium-d-{form}", debezium("d", schema=schema, before={"text": CANARY}), deleted=True),
        bad(f"debezium-t-{form}", "truncate", debezium("t", schema=schema)),
        bad(f"debezium-m-{form}", "unknown_op", debezium("m", schema=schema)),
        bad(f"debezium-no-row-{form}", "bad_envelope", debezium("u", schema=schema)),
        bad(f"debezium-bad-row-{form}", "bad_envelope", debezium("u", schema=schema, after=[CANARY])),
        bad(f"debezium-no-text-{form}", "empty_text", debezium("c", schema=schema, after={"note": CANARY})),
    )
]

CASES = [*KEYS, *JSONS, *TEXTS, *PROPERTIES, *ENVELOPES]
