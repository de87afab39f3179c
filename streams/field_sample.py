"""What fields a sample of real records has, which of them look like text to embed, and of what type the others are.

Pure: for `crossfade init`. It must never keep or show a value of a document, only names, types, shares and lengths.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, get_args

import orjson
from pydantic import ValidationError

from connectors.protocols import JSON, Bounds, Record
from streams.config import Collection
from streams.config_types import PropertyType
from streams.documents import DocumentSchema, Put, Rejected, parse

TITLES = ("title", "headline", "heading", "subject", "name")
_PROSE_WORDS = 4.0
_MOST_DISTINCT = 1000  # kept of a field while it may be a keyword
_COMMON = 0.5
_TYPES: tuple[PropertyType, ...] = get_args(PropertyType)
_ORDER: tuple[PropertyType, ...] = ("bool", "int", "number", "date", "text")
_KINDS: Mapping[type, str] = {dict: "object", list: "array", str: "string", bool: "bool", int: "int", float: "number"}


@dataclass(frozen=True, slots=True)
class SeenField:
    """One field of the sampled documents. `kind`: the property type that every value seen fits, None when there is
    none; `shape`: what it is in JSON; `share`: of the documents that have it; means are over its strings."""

    name: str
    kind: PropertyType | None
    shape: str
    share: float
    mean_characters: float
    mean_words: float

    @property
    def titled(self) -> bool:
        """Whether its name is one that titles have."""
        return self.name.lower() in TITLES

    @property
    def is_prose(self) -> bool:
        return self.kind == "text" and (self.titled or self.mean_words >= _PROSE_WORDS)


@dataclass(frozen=True, slots=True)
class Sample:
    """What was found in `records` records; the rest are no JSON objects. `fields` in the documents' own order."""

    records: int
    documents: int
    deletes: int
    enveloped: int
    fields: tuple[SeenField, ...]

    @property
    def unreadable(self) -> int:
        return self.records - self.documents - self.deletes


class Stretch(NamedTuple):
    """Offsets [start, end) of a partition of which at most `most` records are to be read."""

    partition: int
    start: int
    end: int
    most: int


def stretches(bounds: Mapping[int, Bounds], records: int) -> list[Stretch]:
    """The oldest and the newest records of each partition, about `records` in all: a form that came in lately, or that
    went out of use, is seen in one of the two."""
    filled = {partition: b for partition, b in bounds.items() if b.stable > b.earliest}
    found: list[Stretch] = []
    for partition, b in sorted(filled.items()):
        most = max(1, records // (2 * len(filled)))
        newest = max(b.earliest, b.stable - most)
        if newest > b.earliest:
            found.append(Stretch(partition, b.earliest, newest, most))
        found.append(Stretch(partition, newest, b.stable, most))
    return found


@dataclass(slots=True)
class _Tally:
    count: int = 0
    shapes: Counter[str] = field(default_factory=Counter)
    fits: Counter[str] = field(default_factory=Counter)
    strings: int = 0
    characters: int = 0
    words: int = 0
    distinct: set[int] = field(default_factory=set)

    def add(self, value: JSON) -> None:
        self.count += 1
        self.shapes[_KINDS.get(type(value), "null")] += 1
        self.fits.update(kind for kind in _ORDER if _fits(kind, value))
        if isinstance(value, str):
            self.strings += 1
            self.characters += len(value)
            self.words += len(value.split())
            if len(self.distinct) <= _MOST_DISTINCT:
                self.distinct.add(hash(value))

    def seen(self, name: str, documents: int) -> SeenField:
        kind: PropertyType | None = next((k for k in _ORDER if self.fits[k] == self.count), None)
        strings = max(1, self.strings)
        words = self.words / strings
        few = self.count >= 20 and len(self.distinct) * 10 <= self.count
        if kind == "text" and name.lower() not in TITLES and (words < 2 or (few and words < _PROSE_WORDS)):
            kind = "keyword"
        shape = ", ".join(shape for shape, _ in self.shapes.most_common())
        return SeenField(name, kind, shape, self.count / documents, self.characters / strings, words)


def look_at(records: Iterable[Record]) -> Sample:
    """The fields of the records' documents. Reads Debezium envelopes as `documents.parse` does."""
    tallies: dict[str, _Tally] = {}
    total = documents = deletes = enveloped = 0
    for record in records:
        total += 1
        if record.value is None:
            deletes += 1
            continue
        try:
            raw = orjson.loads(record.value)
        except orjson.JSONDecodeError:
            continue
        document = _inside(raw)
        if document is None:
            deletes += isinstance(raw, dict)
            continue
        enveloped += document is not raw
        documents += 1
        for name, value in document.items():
            tally = tallies.setdefault(name, _Tally())
            if value is not None:
                tally.add(value)
    fields = tuple(tally.seen(name, documents) for name, tally in tallies.items() if tally.count)
    return Sample(total, documents, deletes, enveloped, fields)


def _inside(raw: JSON) -> dict[str, JSON] | None:
    """The document of a value, taken out of its envelope; None for what holds none."""
    if not isinstance(raw, dict):
        return None
    payload = raw.get("payload")
    change = payload if isinstance(payload, dict) else raw
    if "op" in change and any(name in change for name in ("before", "after", "source")):
        after = change.get("after")
        return after if isinstance(after, dict) else None
    return raw


def _fits(kind: str, value: JSON) -> bool:
    """As the pipeline itself will judge it."""
    schema = DocumentSchema("sample", ("text",), properties={"value": kind})
    return isinstance(parse(b"key", orjson.dumps({"text": "text", "value": value}), schema), Put)


def propose_text(fields: Sequence[SeenField]) -> tuple[str, ...]:
    """Titles first, then prose that at least half of the documents have; else the longest text there is."""
    prose = [f for f in fields if f.is_prose and f.share >= _COMMON]
    if prose:
        return tuple(f.name for f in sorted(prose, key=lambda f: not f.titled))
    texts = [f for f in fields if f.kind in ("text", "keyword")]
    return (max(texts, key=lambda f: f.mean_characters * f.share).name,) if texts else ()


def propose_properties(fields: Sequence[SeenField], text: Sequence[str]) -> dict[str, PropertyType]:
    """Titles, and every field with one type that is not embedded, as long as Weaviate can hold its name."""
    return {
        f.name: f.kind for f in fields if f.kind is not None and (f.titled or f.name not in text) and declarable(f.name)
    }


def declarable(name: str) -> bool:
    """Whether a property may have this name."""
    raw = {"name": "sample", "topic": "sample", "text": {"fields": ["text"]}, "properties": {name: "text"}}
    try:
        Collection.model_validate(raw)
    except ValidationError:
        return False
    return True


def rejections(records: Iterable[Record], schema: DocumentSchema) -> Counter[str]:
    """How many of the records the collection could not take, by cause; as the pipeline itself will judge them."""
    parsed = (parse(record.key, record.value, schema) for record in records)
    return Counter(one.cause for one in parsed if isinstance(one, Rejected))


def parse_types(text: str) -> dict[str, PropertyType]:
    """`title:text,year:int`; "" for none. Raises ValueError that says what is wrong."""
    found: dict[str, PropertyType] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, said = part.rpartition(":")
        kind = next((kind for kind in _TYPES if kind == said.strip()), None)
        if not name or kind is None:
            raise ValueError(f"{part!r} is not NAME:TYPE with a type of {', '.join(_TYPES)}")
        found[name.strip()] = kind
    return found


def parse_names(text: str) -> tuple[str, ...]:
    """`title,text`: each once. Raises ValueError when there is none, or one twice."""
    names = tuple(filter(None, (part.strip() for part in text.split(","))))
    if not names or len(set(names)) != len(names):
        raise ValueError("wanted: one or more field names, each once, with commas between")
    return names
