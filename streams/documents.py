"""Change events to documents: one record of the documents topic becomes a put, a delete or a rejection with its cause.

Pure and on the hot path: it never raises whatever the bytes are, and never puts document text into a cause or a detail.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from math import isfinite
from string import Formatter
from typing import NamedTuple
from uuid import UUID

import orjson
from xxhash import xxh3_128_digest

from connectors.protocols import JSON
from connectors.reserved import EXACT_INT

MAX_KEY_BYTES = 1024
DIGEST_SEED = secrets.randbits(64)
_FIELD_SEPARATOR = "\n\n"
_ENVELOPE_KEYS = ("before", "after", "source")


class Restored(NamedTuple):
    """What a space knows of a document whose record is gone. `pieces`: its text as it was embedded, without prefix;
    `cut`: into pieces that stay as they are. Which field held what, only the source hash still stands for."""

    pieces: tuple[str, ...]
    source_hash: str
    cut: bool


class Put(NamedTuple):
    """A document's new form. `fields`: the values of the schema's text fields in its order, "" where absent.

    `restored`: the document comes from a space, not from a record; then there are no fields.
    """

    doc_id: str
    fields: tuple[str, ...]
    properties: dict[str, JSON]
    restored: Restored | None = None


class Delete(NamedTuple):
    """The document is gone."""

    doc_id: str


class Rejected(NamedTuple):
    """The record cannot be a document. `cause`: one of `CAUSES`; `detail`: what is wrong, never the text itself."""

    cause: str
    detail: str


CAUSES = frozenset(
    {
        "key_missing",
        "key_empty",
        "key_too_long",
        "key_not_utf8",
        "record_too_large",
        "malformed_json",
        "not_an_object",
        "bad_envelope",
        "unknown_op",
        "truncate",
        "bad_text",
        "empty_text",
        "bad_property",
    }
)


@dataclass(frozen=True, slots=True)
class DocumentSchema:
    """How one collection reads its documents: text fields in order, template, declared properties by name and type.

    Raises ValueError when the template is not one of `template_fields`' or does not read every field.
    """

    collection: str
    fields: tuple[str, ...]
    template: str | None = None
    properties: Mapping[str, str] = field(default_factory=dict)
    max_record_bytes: int = 1_000_000
    _checks: tuple[tuple[str, str, _Check], ...] = field(init=False, repr=False, compare=False)
    _plain_op: bool = field(init=False, repr=False, compare=False)
    _plain_payload: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.template is not None and (read := template_fields(self.template)) != set(self.fields):
            raise ValueError(f"the template reads {sorted(read)}, the declared text fields are {sorted(self.fields)}")
        declared = {*self.fields, *self.properties}
        checks = tuple((name, kind, _CHECKS[kind]) for name, kind in self.properties.items())
        object.__setattr__(self, "_checks", checks)
        # a collection that declares `op` or `payload` itself has plain documents, not Debezium envelopes
        object.__setattr__(self, "_plain_op", "op" in declared)
        object.__setattr__(self, "_plain_payload", "payload" in declared)


def template_fields(template: str) -> set[str]:
    """The field names a text template reads. Only `{name}`, `{{` and `}}`: no attributes, indexes, formats.

    Raises ValueError with what is wrong otherwise.
    """
    names: set[str] = set()
    for _, name, spec, conversion in Formatter().parse(template):
        if name is None:
            continue
        if spec or conversion or not name.isidentifier():
            raise ValueError("a template may hold only {field} names, and {{ or }} for a brace")
        names.add(name)
    return names


def parse(key: bytes | None, value: bytes | None, schema: DocumentSchema) -> Put | Delete | Rejected:
    """One record of the documents topic. Never raises; a few microseconds."""
    if key is None:
        return Rejected("key_missing", "the record has no key; a document's id is its record's key")
    if not key:
        return Rejected("key_empty", "the key is empty")
    if len(key) > MAX_KEY_BYTES:
        return Rejected("key_too_long", f"the key has {len(key)} bytes, more than {MAX_KEY_BYTES}")
    try:
        doc_id = key.decode()
    except UnicodeDecodeError as error:
        return Rejected("key_not_utf8", f"the key is not UTF-8 at byte {error.start}")
    if value is None:
        return Delete(doc_id)
    if len(value) > schema.max_record_bytes:
        return Rejected("record_too_large", f"the value has {len(value)} bytes, more than {schema.max_record_bytes}")
    try:
        document = orjson.loads(value)
    except orjson.JSONDecodeError as error:
        return Rejected("malformed_json", f"not JSON at line {error.lineno}, column {error.colno}")
    if type(document) is not dict:
        return Rejected("not_an_object", f"the value is {_kind(document)}, not a JSON object")

    change = document
    if "payload" in document and not schema._plain_payload and type(document["payload"]) is dict:
        change = document["payload"]
    if "op" in change and not schema._plain_op and any(name in change for name in _ENVELOPE_KEYS):
        unwrapped = _unwrap(change, doc_id)
        if type(unwrapped) is not dict:
            return unwrapped  # type: ignore[return-value]  # mypy does not narrow by `type(x) is`
        document = unwrapped
    return _put(doc_id, document, schema)


def _unwrap(change: dict[str, JSON], doc_id: str) -> dict[str, JSON] | Delete | Rejected:
    """The document inside a Debezium envelope."""
    op = change["op"]
    if op == "d":
        return Delete(doc_id)
    if op == "t":
        return Rejected("truncate", "a table was truncated: which documents that deletes is not in the record")
    if op not in ("c", "u", "r"):
        return Rejected("unknown_op", "the envelope's op is none of c, u, r, d, t")
    after = change.get("after")
    if not isinstance(after, dict):
        return Rejected("bad_envelope", f"the envelope's after is {_kind(after)}, not an object")
    return after


def _put(doc_id: str, document: dict[str, JSON], schema: DocumentSchema) -> Put | Rejected:
    values: list[str] = []
    blank = True
    for name in schema.fields:
        text_value = document.get(name)
        if text_value is None:
            text_value = ""
        elif type(text_value) is not str:
            return Rejected("bad_text", f"text field {name} is {_kind(text_value)}, not a string")
        elif blank and text_value and not text_value.isspace():
            blank = False
        values.append(text_value)
    if blank:
        return Rejected("empty_text", f"no text: {', '.join(schema.fields)} missing, empty or blank")
    properties = _properties(document, schema)
    return properties if isinstance(properties, Rejected) else Put(doc_id, tuple(values), properties)


def _properties(document: Mapping[str, JSON], schema: DocumentSchema) -> dict[str, JSON] | Rejected:
    properties: dict[str, JSON] = {}
    for name, kind, check in schema._checks:
        raw = document.get(name)
        if raw is None:
            continue
        if not check(raw):
            return Rejected("bad_property", f"property {name} is {_kind(raw)}, not a valid {kind}")
        properties[name] = raw
    return properties


def restored(doc_id: str, kept: Restored, stored: Mapping[str, JSON], schema: DocumentSchema) -> Put | Rejected:
    """A document read back from a space. `stored`: its properties there; those declared now are taken."""
    properties = _properties(stored, schema)
    return properties if isinstance(properties, Rejected) else Put(doc_id, (), properties, kept)


_Check = Callable[[JSON], bool]
_DATE = re.compile(r"\d{4}-\d\d-\d\dT([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,9})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)", re.A)


def _is_text(value: JSON) -> bool:
    return type(value) is str


def _is_int(value: JSON) -> bool:
    return type(value) is int and -EXACT_INT <= value <= EXACT_INT


def _is_number(value: JSON) -> bool:
    return type(value) is int or (type(value) is float and isfinite(value))


def _is_bool(value: JSON) -> bool:
    return type(value) is bool


def _is_date(value: JSON) -> bool:
    """RFC 3339 with a zone, as Weaviate takes it."""
    if type(value) is not str or not _DATE.fullmatch(value):
        return False
    try:
        datetime.fromisoformat(value[:10])
    except ValueError:
        return False
    return True


_CHECKS: Mapping[str, _Check] = {
    "text": _is_text,
    "keyword": _is_text,
    "int": _is_int,
    "number": _is_number,
    "bool": _is_bool,
    "date": _is_date,
}
_KINDS: Mapping[type, str] = {
    dict: "an object",
    list: "an array",
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    float: "a number",
}


def _kind(value: JSON) -> str:
    return _KINDS.get(type(value), "null")


def text(put: Put, schema: DocumentSchema) -> str:
    """What is embedded: the template filled in; without one, the fields that are not blank joined by a blank line."""
    if put.restored is not None:
        return _FIELD_SEPARATOR.join(put.restored.pieces)  # of one that stays cut, only to be measured
    if schema.template is not None:
        return schema.template.format(**dict(zip(schema.fields, put.fields, strict=True)))
    return _FIELD_SEPARATOR.join([part for part in put.fields if part and not part.isspace()])


def source_hash(put: Put, schema: DocumentSchema) -> str:
    """SHA-256 hex over all fields the template reads, before templating; each framed by its length in bytes."""
    if put.restored is not None:
        return put.restored.source_hash
    raw = [value.encode() for value in put.fields]
    return hashlib.sha256(b"".join([b"%d:%b" % (len(value), value) for value in raw])).hexdigest()


def key_digest(key: bytes) -> bytes:
    """16 bytes that stand for a key in this process (a 64-bit hash would one day lose a document): XXH3, 128 bits.

    Ten times as fast as a cryptographic hash. It is seeded, since whoever names documents could otherwise look for two
    keys with one digest; so digests never leave a process.
    """
    return xxh3_128_digest(key, DIGEST_SEED)


def doc_hash(doc_id: str) -> str:
    """SHA-256 hex of the document id: the property to filter on."""
    return hashlib.sha256(doc_id.encode()).hexdigest()


_NAMESPACE = UUID("8f0f3d3e-6d0c-5b0e-9a43-0c5f6a2c7f11").bytes
_VERSION_5, _ITS_BITS = (5 << 76) | (2 << 62), ~((0xF << 76) | (3 << 62))


def object_id(collection: str, doc_id: str, chunk: int) -> UUID:
    """UUIDv5 over collection, document id and chunk index; the framing lets no two of them share a name."""
    name = f"{len(collection)}:{collection}{chunk}:{doc_id}".encode()
    made = int.from_bytes(hashlib.sha1(_NAMESPACE + name, usedforsecurity=False).digest()[:16])
    return UUID(int=made & _ITS_BITS | _VERSION_5)  # UUID(bytes=, version=5) takes twice as long, for every chunk
