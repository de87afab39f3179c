"""What the server answers, as values. Fields that a newer server adds are ignored, those it may lack have defaults.

Documents are in some of them: whoever logs one, logs those.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Literal, TypeVar

from pydantic import JsonValue, TypeAdapter

T = TypeVar("T")
SpaceState = Literal["declared", "building", "paused", "failed", "active", "deleted"]
Objects = Mapping[str, JsonValue]


# search


@dataclass(frozen=True, slots=True)
class SearchHit:
    """One document, by its best chunk. `text`: of that chunk, None where the collection does not store it."""

    id: str
    score: float
    properties: Objects
    text: str | None
    chunk: int
    space: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class SearchAnswer:
    """`route`: the way the query took, `why` in words. `version` to `fingerprint`: of the space that answered, in a
    merged answer of the new one. Scores of two spaces cannot be compared; the order counts."""

    collection: str
    route: str
    why: str
    version: str
    stage: str
    space: str
    fingerprint: str
    took_ms: float
    hits: tuple[SearchHit, ...]


@dataclass(frozen=True, slots=True)
class RolloutAnswer:
    """Of all servers. `rollout`: None when no version comes; `shadow`: None when no query was shadowed."""

    collection: str
    rollout: Objects | None
    shadow: Objects | None


# vector spaces


@dataclass(frozen=True, slots=True)
class VectorSpace:
    """One version as a vector space. `progress`: a share of 1; `total`, `completed`: documents of the history."""

    name: str
    status: SpaceState
    default: bool
    dims: int
    model: str
    fingerprint: str
    space: str
    progress: float
    total: int
    completed: int
    note: str = ""


@dataclass(frozen=True, slots=True)
class SpaceStatus:
    """`building`, then `active`."""

    name: str
    status: SpaceState
    progress: float
    total: int
    completed: int


@dataclass(frozen=True, slots=True)
class VectorSpaces:
    """`default`: what searches go to; None while nothing serves."""

    default: str | None
    vector_spaces: tuple[VectorSpace, ...]


# verbs


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was made of a verb. `verified`: after a swap, whether the new space then answered as it should (the swap
    stands either way, and `message` says what is wrong); None for other verbs, and for a swap that waits. `pending`:
    what a swap that was found good still waits for (status 202: it is not done yet); "" when nothing waits. `next`:
    what one would do."""

    command_id: str
    message: str
    data: Objects
    next: str
    ok: bool = True
    verified: bool | None = None
    pending: str = ""


@dataclass(frozen=True, slots=True)
class Swept:
    """What `verify` found; `examples`: keys of each kind. `kept`: documents that the topic has forgotten and this
    space has; `torn`: those of which it has not all chunks; `lost`: those that the serving space has and this one has
    not, null where that cannot be read: `unread` says why, and the next step."""

    collection: str
    version: str
    epoch: int
    space: str
    clean: bool
    checked: int
    missing: int
    stale: int
    extra: int
    held: int
    moved: int
    kept: int
    lost: int | None
    torn: int
    unread: str
    examples: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Evaluated:
    """`verdict`: pass, fail or inconclusive; `gate`: every check of it; `quality`: None without judged queries."""

    collection: str
    version: str
    against: str | None
    verdict: str
    gate: Objects
    quality: Objects | None


# what stands


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a build stopped, with what helps. `at_ms`: milliseconds since 1970."""

    cause: str
    next_step: str = ""
    at_ms: int = 0


@dataclass(frozen=True, slots=True)
class TierProgress:
    """One tier of a replay: its documents, and its share of the traffic (0 where nobody counts)."""

    name: str
    total: int
    completed: int
    weight: float = 0.0
    weight_completed: float = 0.0


@dataclass(frozen=True, slots=True)
class Progress:
    """`progress`: a share of 1; `total`, `completed`: documents of the history; `live_lag`: records; `owing`: what the
    topic has forgotten is still to come from the space that serves; `updated_at`: milliseconds since 1970, when a
    worker last reported."""

    name: str
    status: str
    progress: float
    total: int
    completed: int
    rate_per_s: float
    eta_s: float | None
    updated_at: int
    epoch: int = 0
    reason: str = ""
    changed_mid_migration: int = 0
    unchanged_skipped: int = 0
    dead_letters: int = 0
    live_lag: int = 0
    cost_usd: float | None = None
    unsettled: int = 0
    planned: bool = False
    replay_done: bool = False
    owing: bool = False
    counters: Mapping[str, int] = field(default_factory=dict)
    tiers: tuple[TierProgress, ...] = ()


@dataclass(frozen=True, slots=True)
class Version:
    """`progress`: None until a worker has reported. `reporting`: every partition has an owner that has just reported.
    `next`: the command one would run next."""

    collection: str
    version: str
    stage: str
    epoch: int
    fingerprint: str
    space: str
    paused: str | None
    failure: Failure | None
    controls: Objects
    provenance: Mapping[str, str]
    started_ms: int
    ready_ms: int
    reporting: bool
    progress: Progress | None
    next: str


@dataclass(frozen=True, slots=True)
class Collection:
    """`under_way`: the verb of a step that has begun. `notes`: what waits, is watched or went wrong unseen."""

    collection: str
    alias: str
    topic: str
    serving: str | None
    previous: str | None
    under_way: str | None
    notes: tuple[str, ...]
    versions: tuple[Version, ...]


@dataclass(frozen=True, slots=True)
class Collections:
    """Those that the state topic knows."""

    collections: tuple[Collection, ...]


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """Who did what, when (milliseconds since 1970) and why, and what came of it (`message`)."""

    at_ms: int
    collection: str
    event: str
    version: str | None = None
    epoch: int | None = None
    who: str = ""
    why: str = ""
    message: str = ""
    command_id: str = ""
    data: Objects = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class History:
    """Oldest first. `older`: give it as `before`, and older entries follow (there may be some also where few or none
    were found); "" when there are none. `next`: that call."""

    collection: str
    entries: tuple[JournalEntry, ...]
    older: str = ""
    next: str = ""


@dataclass(frozen=True, slots=True)
class Away:
    """What does not answer, why, and since when (milliseconds since 1970)."""

    name: str
    reason: str
    since_ms: int


@dataclass(frozen=True, slots=True)
class Health:
    """`status`: ok, degraded (what is `away` is missed, the rest goes on) or starting. `state`: `none` until it was
    read once, `current`, or `last known` while Kafka is away."""

    status: str
    state: str
    away: tuple[Away, ...]


@cache
def _adapter(kind: type[T]) -> TypeAdapter[T]:
    return TypeAdapter(kind)


def reader_of(kind: type[T]) -> Callable[[bytes], T]:
    """JSON to a value. Raises pydantic.ValidationError, which shows what it was given."""
    return lambda content: _adapter(kind).validate_json(content)  # type: ignore[arg-type]  # a type is hashable
