"""Names of the properties Crossfade keeps in every space, and the checks of names and objects both stores share.

Pure: it must never talk to a store, so that the in-memory store and the real one cannot differ in what they accept.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Final
from uuid import UUID

import numpy as np

from connectors.errors import ConfigurationError, ContentRejected, CrossfadeError, IdentityChanged, Terminal, WrongModel
from connectors.protocols import JSON, Condition, Head, Operator, Scalar, SpaceObject, SpaceSpec, Vectors

PREFIX: Final = "cf_"
DOC_ID: Final = "cf_doc_id"
DOC_HASH: Final = "cf_doc_hash"
CHUNK: Final = "cf_chunk"
CHUNKS: Final = "cf_chunks"
SOURCE_HASH: Final = "cf_source_hash"
PARTITION: Final = "cf_partition"
OFFSET: Final = "cf_offset"
EVENT_TIME: Final = "cf_event_time"  # ms since the epoch, UTC
EMBEDDED_AT: Final = "cf_embedded_at"  # ms since the epoch, UTC
SPACE: Final = "cf_space"
ORIGIN: Final = "cf_origin"
TEXT: Final = "cf_text"

TYPES: Final[Mapping[str, str]] = {
    DOC_ID: "keyword",
    DOC_HASH: "keyword",
    CHUNK: "int",
    CHUNKS: "int",
    SOURCE_HASH: "keyword",
    PARTITION: "int",
    OFFSET: "int",
    EVENT_TIME: "int",
    EMBEDDED_AT: "int",
    SPACE: "keyword",
    ORIGIN: "keyword",
    TEXT: "text",
}
"""Type of each reserved property, in the words of `SpaceSpec.properties`."""

HEAD: Final = (DOC_ID, DOC_HASH, CHUNK, CHUNKS, SOURCE_HASH, PARTITION, OFFSET)
"""What a `Head` is made of; every stored object has all of them."""

SHOWN: Final = (DOC_ID, CHUNK, SPACE, TEXT)
"""Reserved properties a search result carries beside the user's own; SPACE proves which model's vector was met."""

USER_TYPES: Final = frozenset({"text", "keyword", "int", "number", "bool", "date"})
METRICS: Final = frozenset({"cosine", "dot", "l2-squared"})
QUANTIZATIONS: Final = frozenset({"none", "sq", "bq", "rq", "pq"})

EXACT_INT: Final = 2**53
"""Integers travel to Weaviate as doubles: beyond this they would be stored as another number."""

_SPACE_NAME = re.compile(r"[A-Z][A-Za-z0-9_]{0,254}")
_PROPERTY_NAME = re.compile(r"[a-z_][A-Za-z0-9_]{0,230}")
_TAKEN = frozenset({"id", "vector", "vectors", "_id", "_additional"})
_DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)")


def check_name(name: str) -> None:
    """Of a space or an alias. Raises ConfigurationError for a name Weaviate would refuse or silently capitalise."""
    if not _SPACE_NAME.fullmatch(name):
        raise ConfigurationError(
            f"{name!r} cannot name a space or an alias",
            next_step="begin with a capital letter and use only letters, digits and '_' (at most 255)",
        )


def check_spec(spec: SpaceSpec) -> None:
    """Raises ConfigurationError when a space cannot be created from it."""
    check_name(spec.name)
    for what, value, allowed in (
        ("metric", spec.metric, METRICS),
        ("quantization", spec.quantization, QUANTIZATIONS),
    ):
        if value not in allowed:
            raise ConfigurationError(
                f"{what} {value!r} is not known", next_step=f"use one of {', '.join(sorted(allowed))}"
            )
    if spec.dimensions < 1:
        raise ConfigurationError(f"{spec.dimensions} dimensions", next_step="set the model's vector length, 1 or more")
    for name, kind in spec.properties.items():
        if not _PROPERTY_NAME.fullmatch(name) or name in _TAKEN or name.startswith(PREFIX):
            raise ConfigurationError(
                f"{name!r} cannot name a property",
                next_step=f"begin with a small letter, use letters, digits and '_'; not {PREFIX}*, "
                + ", ".join(sorted(_TAKEN)),
            )
        if kind not in USER_TYPES:
            raise ConfigurationError(
                f"property {name} has the unknown type {kind!r}",
                next_step=f"use one of {', '.join(sorted(USER_TYPES))}",
            )


def check_vector(vector: Vectors, dimensions: int) -> CrossfadeError | None:
    """WrongModel unless it is float32[dimensions], finite and not zero."""
    if vector.ndim != 1 or vector.dtype != np.float32:
        return WrongModel(f"a vector must be float32[dim], this is {vector.dtype}{list(vector.shape)}")
    if vector.shape[0] != dimensions:
        return WrongModel(
            f"a vector of {vector.shape[0]} dimensions for a space of {dimensions}",
            next_step="check which model the endpoint serves, and the dimensions of the version",
        )
    squares = float(np.dot(vector, vector))
    if not (math.isfinite(squares) or bool(np.isfinite(vector).all())):
        return WrongModel("a vector with numbers that are not finite", next_step="check the model endpoint")
    if squares == 0.0 and not vector.any():
        return WrongModel("a vector of zeros", next_step="check the model endpoint")
    return None


def check_object(obj: SpaceObject, types: Mapping[str, str], dimensions: int) -> CrossfadeError | None:
    """What a store would refuse in this object, found before anything is sent; None when it can be stored.

    `types`: reserved and user properties of the space. WrongModel for the vector, ContentRejected for a property.
    """
    if wrong := check_vector(obj.vector, dimensions):
        return wrong
    for name in HEAD:
        if obj.properties.get(name) is None:
            return Terminal(
                f"an object without {name} cannot be stored", next_step="this is a defect: please report it"
            )
    for name, value in obj.properties.items():
        kind = types.get(name)
        if kind is None:
            return ContentRejected(
                f"the space has no property {name!r}",
                next_step="declare it in the configuration and build a new version",
            )
        if value is not None and not _fits(value, kind):
            return ContentRejected(f"property {name!r} is {type(value).__name__}, not a storable {kind}")
    return None


MOST_CONDITIONS: Final = 32
MOST_VALUES: Final = 1000

OPERATORS: Final[Mapping[str, tuple[Operator, ...]]] = {
    "keyword": ("eq", "in"),
    "int": ("eq", "in", "lt", "lte", "gt", "gte"),
    "number": ("eq", "in", "lt", "lte", "gt", "gte"),
    "bool": ("eq",),
    "date": ("eq", "lt", "lte", "gt", "gte"),
}
"""What can be asked of each type of property. Of text nothing: stores cut it into words, so nothing would be exact."""


def check_conditions(conditions: Iterable[Condition], types: Mapping[str, str]) -> None:
    """`types`: of the properties, by name; reserved ones may be among them and are never filtered on.

    Raises ConfigurationError with what can be asked. Values are never shown.
    """
    asked = list(conditions)
    if len(asked) > MOST_CONDITIONS:
        raise ConfigurationError(f"a filter of {len(asked)} conditions", next_step=f"use at most {MOST_CONDITIONS}")
    known = {name: kind for name, kind in types.items() if kind in OPERATORS and not name.startswith(PREFIX)}
    for condition in asked:
        kind = known.get(condition.name)
        if kind is None:
            raise ConfigurationError(
                f"{condition.name[:100]!r} cannot be filtered on",
                next_step=f"use one of {', '.join(sorted(known)) or '(no property is declared)'}; a text property is "
                "searched by meaning alone",
            )
        if condition.operator not in OPERATORS[kind]:
            raise ConfigurationError(
                f"{condition.name} is a {kind}: {condition.operator} cannot be asked of it",
                next_step=f"use one of {', '.join(OPERATORS[kind])}",
            )
        values = condition.value if isinstance(condition.value, tuple) else (condition.value,)
        if isinstance(condition.value, tuple) != (condition.operator == "in") or not 0 < len(values) <= MOST_VALUES:
            raise ConfigurationError(
                f"the filter on {condition.name} has {len(values)} values",
                next_step=f"one value, or 1 to {MOST_VALUES} of them for in",
            )
        for value in values:
            if not _fits(value, kind) or (isinstance(value, str) and not value.strip()):
                raise ConfigurationError(
                    f"the filter on {condition.name} has a value that is no {kind}",
                    next_step=f"{condition.name} is declared as {kind}",
                )


def matches(properties: Mapping[str, JSON], conditions: Iterable[Condition], types: Mapping[str, str]) -> bool:
    """Whether stored properties match all the conditions, as Weaviate judges them. `conditions` have been checked."""
    return all(_matches(properties.get(one.name), one, types[one.name]) for one in conditions)


def _matches(stored: JSON, condition: Condition, kind: str) -> bool:
    if stored is None:
        return False
    have, value = _comparable(stored, kind), condition.value
    if isinstance(value, tuple):
        return any(have == _comparable(one, kind) for one in value)
    wanted = _comparable(value, kind)
    match condition.operator:
        case "lt":
            return have < wanted
        case "lte":
            return have <= wanted
        case "gt":
            return have > wanted
        case "gte":
            return have >= wanted
        case _:
            return have == wanted


def _comparable(value: JSON | Scalar, kind: str) -> tuple[float, float, str]:
    """Of a date: seconds since the epoch, the fraction apart, since a float has no room for both."""
    if kind == "date":
        body, zone = (str(value)[:-1], "+00:00") if str(value).endswith("Z") else (str(value)[:-6], str(value)[-6:])
        seconds, _, fraction = body.partition(".")
        return datetime.fromisoformat(seconds + zone).timestamp(), float(f"0.{fraction or 0}"), ""
    if isinstance(value, int | float):  # bool too
        return float(value), 0.0, ""
    return 0.0, 0.0, str(value).strip()  # as the FIELD tokenization does


def _fits(value: JSON, kind: str) -> bool:
    if kind in ("keyword", "text"):  # first: most are, and a history of them goes through here
        return isinstance(value, str) and (value.isascii() or _encodes(value))
    match kind:
        case "int":
            return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= EXACT_INT
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        case "bool":
            return isinstance(value, bool)
        case _:
            return isinstance(value, str) and bool(_DATE.fullmatch(value)) and _is_instant(value)


def _is_instant(value: str) -> bool:
    try:
        datetime.fromisoformat(value[:19])
    except ValueError:
        return False
    return True


def _encodes(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # a lone surrogate: JSON can carry it, UTF-8 cannot
        return False
    return True


def date_as_stored(value: str) -> str:
    """The form in which Weaviate gives a date back: the same instant, without zeros at the end of the fraction."""
    body, zone = (value[:-1], "Z") if value.endswith("Z") else (value[:-6], value[-6:])
    if "." in body:
        body = body.rstrip("0").removesuffix(".")
    return body + ("Z" if zone in {"+00:00", "-00:00"} else zone)


def head_of(uuid: UUID, properties: Mapping[str, JSON], vector: Vectors | None = None) -> Head:
    """Raises IdentityChanged when something else than Crossfade wrote this object."""
    got = [properties.get(name) for name in HEAD]
    match got:
        case [
            str(doc_id),
            str(doc_hash),
            int(chunk),
            int(chunks),
            str(source_hash),
            int(partition),
            int(offset),
        ]:
            return Head(uuid, doc_id, doc_hash, chunk, chunks, source_hash, partition, offset, vector)
    missing = ", ".join(name for name, value in zip(HEAD, got, strict=True) if value is None)
    raise IdentityChanged(
        f"object {uuid} was not written by Crossfade (without {missing or 'properties of the right type'})",
        next_step="find who else writes into this space, then build a new version",
    )


def gone(space: str) -> IdentityChanged:
    """The error of every call on a space that does not exist (any more)."""
    return IdentityChanged(
        f"the space {space} is gone",
        next_step="somebody dropped or retired it: see `crossfade status`, then start a new build",
    )


def score_of(metric: str, distance: float) -> float:
    """As `Hit.score` promises: higher is better."""
    return 1.0 - distance / 2.0 if metric == "cosine" else -distance
