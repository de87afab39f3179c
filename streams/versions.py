"""What a model version is: its envelope, its fingerprint, the name of its space, its stages and legal moves.

Pure: it never does I/O, and never knows an endpoint's address, a key or a rate.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum

from connectors.errors import ConfigurationError, Refused
from connectors.protocols import JSON

FINGERPRINT_DIGITS = 12


@dataclass(frozen=True, slots=True, eq=False)
class Envelope:
    """Everything that decides a vector. Two envelopes that differ never share a space.

    `options` are the provider's own settings, JSON values only. Equality and hash are those of the canonical JSON,
    so equal envelopes and equal fingerprints are the same thing (to Python, options 1, 1.0 and True would be equal).
    A field added later must be left out of the JSON while it has its default, or every existing space is orphaned.
    """

    provider: str
    model: str
    revision: str
    dimensions: int
    text_fields: tuple[str, ...]
    template: str | None = None
    options: Mapping[str, JSON] = field(default_factory=dict)
    normalize: bool = True
    metric: str = "cosine"
    quantization: str = "none"
    document_prefix: str = ""
    query_prefix: str = ""
    max_tokens: int | None = None
    chunking: str = "none"

    def canonical_json(self) -> str:
        """One line, sorted keys, ASCII only: the same bytes for the same envelope on every machine."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)

    @property
    def fingerprint(self) -> str:
        """First 12 hex digits of SHA-256 over the canonical JSON."""
        return hashlib.sha256(self.canonical_json().encode("ascii")).hexdigest()[:FINGERPRINT_DIGITS]

    @staticmethod
    def from_json(text: str) -> Envelope:
        """The inverse of `canonical_json`. Raises ConfigurationError when it is no envelope this version can read."""
        try:
            raw = json.loads(text)
        except ValueError as error:
            raise ConfigurationError("an envelope is not JSON", next_step=_FOREIGN) from error
        if not isinstance(raw, dict) or (unknown := set(raw) - {f.name for f in fields(Envelope)}):
            what = f"has unknown parts {sorted(unknown)}" if isinstance(raw, dict) else "is not a JSON object"
            raise ConfigurationError(f"an envelope {what}", next_step=_FOREIGN)
        try:
            envelope = Envelope(**{**raw, "text_fields": tuple(raw["text_fields"])})
        except (KeyError, TypeError) as error:
            raise ConfigurationError(f"an envelope lacks a part: {error}", next_step=_FOREIGN) from error
        return envelope

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Envelope) and self.canonical_json() == other.canonical_json()

    def __hash__(self) -> int:
        return hash(self.canonical_json())


_FOREIGN = "it was written by another program or a newer Crossfade; use the version that wrote it"


SPACE_TAIL = re.compile(r"_[a-z0-9_]+_[0-9]+_[0-9a-f]{12}")
"""What stands behind the alias in a space's name."""


def space_name(alias: str, version: str, epoch: int, fingerprint: str) -> str:
    """The Weaviate collection of one build: `<Alias>_<version>_<epoch>_<fingerprint>`."""
    return f"{alias}_{version}_{epoch}_{fingerprint}"


def alias_of_space(name: str, aliases: Iterable[str]) -> str | None:
    """The one whose space a collection of this name could be; None when it is no such name."""
    return next((a for a in aliases if name.startswith(a) and SPACE_TAIL.fullmatch(name, len(a))), None)


class Stage(StrEnum):
    """Where one build of a version stands."""

    DECLARED = "declared"
    BUILDING = "building"
    READY = "ready"
    SERVING = "serving"
    PREVIOUS = "previous"
    RETIRED = "retired"
    ABORTED = "aborted"


TRANSITIONS: Mapping[Stage, frozenset[Stage]] = {
    Stage.DECLARED: frozenset({Stage.BUILDING}),
    Stage.BUILDING: frozenset({Stage.READY, Stage.ABORTED}),
    Stage.READY: frozenset({Stage.SERVING, Stage.ABORTED, Stage.RETIRED}),
    Stage.SERVING: frozenset({Stage.PREVIOUS}),
    # back to ready: a further cutover made another version the one to roll back to; this one is still written
    Stage.PREVIOUS: frozenset({Stage.SERVING, Stage.READY, Stage.RETIRED}),
    # building again is a new build: the controller gives it a new epoch, so nothing of the old one is reused
    Stage.RETIRED: frozenset({Stage.BUILDING}),
    Stage.ABORTED: frozenset({Stage.BUILDING}),
}

ACTIVE = frozenset({Stage.BUILDING, Stage.READY, Stage.SERVING, Stage.PREVIOUS})
"""Stages in which the live lane writes the space."""

_NEXT_COMMAND: Mapping[Stage, str] = {
    Stage.DECLARED: "crossfade start {collection} {version}",
    Stage.BUILDING: "crossfade status {collection} {version} -w",
    Stage.READY: "crossfade cutover {collection} {version} --check",
    Stage.SERVING: "crossfade rollback {collection}",
    Stage.PREVIOUS: "crossfade rollback {collection}, or crossfade retire {collection} {version} --confirm {version}",
    Stage.RETIRED: "crossfade start {collection} {version}",
    Stage.ABORTED: "crossfade start {collection} {version}",
}


def next_command(stage: Stage, *, collection: str = "COLLECTION", version: str = "VERSION") -> str:
    """The command an operator would run next on a version in this stage."""
    return _NEXT_COMMAND[stage].format(collection=collection, version=version)


def check_transition(
    current: Stage, wanted: Stage, *, collection: str = "COLLECTION", version: str = "VERSION"
) -> None:
    """Raises Refused when a version may not go from `current` to `wanted`; its next step is the legal command."""
    if wanted not in TRANSITIONS[current]:
        legal = ", ".join(sorted(TRANSITIONS[current]))
        raise Refused(
            f"{collection}/{version} is {current} and cannot become {wanted}; from here it can become {legal}",
            next_step=next_command(current, collection=collection, version=version),
        )
