"""What goes over the wire: requests that refuse what they do not know, and answers as they are documented.

Values only. Names keep to the patterns of the configuration, so that no path trick reaches anything behind them.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Annotated, Literal

from fastapi import Header, Path
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    FiniteFloat,
    JsonValue,
    Tag,
    model_validator,
)

from streams.config_operation import RouteName
from streams.config_types import wrong
from streams.controls import CONTROLS
from streams.search.query import MOST_HITS

CollectionName = Annotated[str, Path(pattern=r"^[a-z0-9_][a-z0-9_-]{0,47}$", description="As in the configuration.")]
VersionName = Annotated[str, Path(pattern=r"^[a-z0-9_]{1,48}$", description="As in the configuration.")]
SpaceName = Annotated[str, Path(pattern=r"^[a-z0-9_]{1,48}$", description="A vector space: a version's name.")]
IdempotencyKey = Annotated[
    str | None,
    Header(
        pattern=r"^[A-Za-z0-9_.:-]{1,100}$",
        description="Chosen by the caller; the same key with the same request is carried out once, however often it is "
        "sent, and gets the same answer.",
    ),
]
WHOLE = BeforeValidator(lambda value: int(value) if isinstance(value, float) and value.is_integer() else value)
"""5.0 is a whole number to JSON."""
Why = Annotated[str, Field(max_length=500, description="In words; kept in the journal for ever.")]
Name = Annotated[str, Field(pattern=r"^[a-z0-9_]{1,48}$")]


class Request(BaseModel):
    """No unknown fields, no conversions: "5" is no number."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


# search


class _Search(Request):
    top_k: Annotated[int, Field(ge=1, le=MOST_HITS), WHOLE] = 10
    filter: Annotated[dict[str, JsonValue], Field(max_length=50)] | None = None
    vector_space: Name | None = None


class TextSearch(_Search):
    """`filter`: over declared properties, such as {"lang": "en", "year": {"gte": 1990}, "kind": ["a", "b"]}.
    `vector_space`: another one than the default, to try it before the swap; or `mode`: another route than the
    configured one. `caller`: who asks, the same for the same one, by which a progressive rollout goes."""

    model_config = ConfigDict(json_schema_extra={"not": {"required": ["mode", "vector_space"]}})

    query: Annotated[str, Field(min_length=1, max_length=20_000)]
    mode: RouteName | None = None
    caller: Annotated[str, Field(min_length=1, max_length=200)] | None = None

    @model_validator(mode="after")
    def _one_way(self) -> TextSearch:
        if {"mode", "vector_space"} <= self.model_fields_set:
            raise wrong("has both mode and vector_space", "one of them at most")
        return self


class VectorSearch(_Search):
    """`vector`: of the model with this `fingerprint`, which must be that of the space. Otherwise as with a query."""

    vector: Annotated[list[FiniteFloat], Field(min_length=1, max_length=65_535)]
    fingerprint: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]


def _kind_of(body: object) -> str:
    asked = body if isinstance(body, Mapping) else {}
    return "vector" if "vector" in asked or "fingerprint" in asked else "query"


SearchRequest = Annotated[
    Annotated[TextSearch, Tag("query")] | Annotated[VectorSearch, Tag("vector")], Discriminator(_kind_of)
]


class SearchHit(BaseModel):
    """One document, by its best chunk. `text`: of that chunk, where the collection stores it."""

    id: str
    score: float
    properties: dict[str, JsonValue]
    text: str | None
    chunk: int
    space: str
    fingerprint: str


class SearchAnswer(BaseModel):
    """`route`: the way the query took, `why` in words. `version` to `fingerprint`: of the space that answered, in a
    merged answer of the new one."""

    collection: str
    route: str
    why: str
    version: str
    stage: str
    space: str
    fingerprint: str
    took_ms: float
    hits: list[SearchHit]


class RolloutAnswer(BaseModel):
    """Of all servers. `rollout`: null when no version comes; `shadow`: null when no query was shadowed."""

    collection: str
    rollout: dict[str, JsonValue] | None
    shadow: dict[str, JsonValue] | None


# verbs


class Said(Request):
    """A verb with nothing but a reason."""

    why: Why = ""


class Start(Said):
    """`replay_rate`: documents a second."""

    replay_rate: Annotated[FiniteFloat, Field(gt=0, le=1e6)] | None = None


class Pause(Said):
    """`all`: live writes too; the space then falls behind the log."""

    all: bool = False


class Change(Said):
    """`changes`: by name, as `crossfade set` knows them; null goes back to no limit, or to what is configured."""

    changes: Annotated[
        dict[str, JsonValue],
        Field(min_length=1, max_length=20, json_schema_extra={"propertyNames": {"enum": list(CONTROLS)}}),
    ]


class Ending(Said):
    """`confirm`: the version's name again, since its space is deleted."""

    confirm: Name


_REASONS = ("force", "accept_inconclusive")


def _given(*names: str) -> dict[str, JsonValue]:
    """JSON schema: all of these are there, and say something."""
    properties: dict[str, JsonValue] = {n: {"type": "string"} if n in _REASONS else {"const": True} for n in names}
    return {"required": list(names), "properties": properties}


class Cutover(Said):
    """As the options of `crossfade cutover`. `force`, `accept_inconclusive`: the reason, in words."""

    model_config = ConfigDict(
        json_schema_extra={
            "not": {
                "anyOf": [
                    *(_given(*pair) for pair in combinations(("check", "approve", "cancel"), 2)),
                    *(_given(flag, reason) for flag in ("approve", "cancel") for reason in _REASONS),
                ]
            }
        }
    )

    check: bool = False
    approve: bool = False
    cancel: bool = False
    force: Annotated[str, Field(min_length=1, max_length=500, pattern=r"\S")] | None = None
    accept_inconclusive: Annotated[str, Field(min_length=1, max_length=500, pattern=r"\S")] | None = None
    accept_held: Annotated[list[Annotated[str, Field(min_length=1, max_length=1000)]], Field(max_length=1000)] = []
    accept_lost: Annotated[int, Field(ge=1, le=2**53), WHOLE] | None = None

    @model_validator(mode="after")
    def _together(self) -> Cutover:
        if self.check + self.approve + self.cancel > 1:
            raise wrong("has more than one of check, approve and cancel", "one of them at most")
        if (self.approve or self.cancel) and (self.force or self.accept_inconclusive):
            raise wrong("gives a reason with approve or cancel", "withdraw the cutover, and ask for it again")
        return self


class Rollback(Said):
    """`from_version`: what serves now and shall not any more; wanted when the last swap was a rollback itself."""

    accept_lag: bool = False
    max_lag: Annotated[int, Field(ge=0, le=10**15), WHOLE] | None = None
    from_version: Name | None = None


class Verify(Request):
    """`repair`: have the workers mend what differs first."""

    repair: bool = False


class Evaluate(Request):
    """`k`: how many documents count; `against`: another version than the one that serves."""

    k: Annotated[int, Field(ge=1, le=MOST_HITS), WHOLE] | None = None
    against: Name | None = None


class PlanRequest(Request):
    """`sample`: documents whose tokens are counted, chosen at random; null for all of them."""

    sample: Annotated[int, Field(ge=2, le=10**9), WHOLE] | None = 2_000


class Outcome(BaseModel):
    """What the controller made of a command. `verified`: after a swap, whether the new space then answered as it should
    (the swap stands either way, and `message` says what is wrong); null for other verbs, and for a swap that waits.
    `pending`: what a swap that was found good still waits for; "" when nothing waits. `next`: what one would do."""

    ok: Literal[True] = True
    verified: bool | None = None
    pending: str = ""
    command_id: str
    message: str
    data: dict[str, JsonValue]
    next: str


# vector spaces


class NewSpace(Request):
    """`model`: as the configuration of the version names it."""

    name: Name
    dims: Annotated[int, Field(ge=1, le=65_535), WHOLE]
    model: Annotated[str, Field(min_length=1, max_length=200)]


class Rebuild(Request):
    """`embed_endpoint`: where the model is served; one of the configuration."""

    embed_endpoint: Annotated[str, Field(min_length=1, max_length=2_000)]


class DefaultSpace(Request):
    """The space that searches go to from now on."""

    name: Name


SpaceState = Literal["declared", "building", "paused", "failed", "active", "deleted"]


class VectorSpace(BaseModel):
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
    note: str


class SpaceStatus(BaseModel):
    """`building`, then `active`."""

    name: str
    status: SpaceState
    progress: float
    total: int
    completed: int


class VectorSpaces(BaseModel):
    """`default`: what searches go to; null while nothing serves."""

    default: str | None
    vector_spaces: list[VectorSpace]
