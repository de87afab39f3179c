"""The records of the state, commands and journal topics, and the names of Crossfade's own topics and groups.

Values only: the controller alone writes the state topic, and nothing in this file reads or writes anything.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from connectors.errors import NotFound
from streams.config_operation import Event, TierName
from streams.versions import ACTIVE, Envelope, Stage

Verb = Literal[
    "start",
    "pause",
    "resume",
    "set",
    "abort",
    "cutover",
    "rollback",
    "retire",
    "repair",
    "redrive",
    "replayed",
    "failed",
    "rollout",
]
APPLIED_KEPT = 500
FIGURES_KEPT = 20  # outcomes with all they found: their senders read them within minutes
MOST_TEXT, OLD_TEXT = 8_000, 300  # characters of an outcome's message: 500 of them must fit one Kafka record


class TopicNames:
    """Names of Crossfade's own topics under one prefix, and of the consumer groups of a build."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.commands = f"{prefix}.commands"
        self.state = f"{prefix}.state"
        self.progress = f"{prefix}.progress"
        self.dead_letters = f"{prefix}.dead-letters"
        self.journal = f"{prefix}.journal"
        self.controller_group = f"{prefix}.controller"

    def group(self, collection: str, version: str, epoch: int, lane: Literal["live", "replay"]) -> str:
        return f"{self.prefix}.{collection}.{version}.{epoch}.{lane}"


class _Record(BaseModel):
    """Unknown fields are ignored, so that an older reader survives a newer writer."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    format: Annotated[int, Field(alias="schema")] = 1

    def to_bytes(self) -> bytes:
        return orjson.dumps(self.model_dump(mode="json", by_alias=True), option=orjson.OPT_NON_STR_KEYS)


class Command(_Record):
    """One operator verb. The sender makes the id and sends the same one again until it sees the outcome."""

    id: str = Field(default_factory=lambda: str(uuid.uuid4()))
    verb: Verb
    collection: str
    version: str | None = None
    args: dict[str, JsonValue] = Field(default_factory=dict)
    who: str = ""
    why: str = ""


class CommandOutcome(_Record):
    """What became of a command: the sender waits for it under its id."""

    id: str
    ok: bool
    message: str
    next_step: str = ""
    data: dict[str, JsonValue] = Field(default_factory=dict)

    def cut(self, characters: int, data: dict[str, JsonValue]) -> CommandOutcome:
        """With this `data`, its texts no longer than that."""
        if self.data == data and max(len(self.message), len(self.next_step)) <= characters:
            return self
        texts = {"message": self.message[:characters], "next_step": self.next_step[:characters]}
        return self.model_copy(update={**texts, "data": data})


class Intent(_Record):
    """A step of several writes that has begun; after a crash the next controller completes it."""

    command: Command
    data: dict[str, JsonValue] = Field(default_factory=dict)


class Swap(_Record):
    """The last change of what serves: who made it, when and why. `before`: what served until then."""

    verb: Literal["cutover", "rollback"]
    version: str
    before: str | None
    who: str
    why: str = ""
    at_ms: int
    command_id: str = ""

    @property
    def text(self) -> str:
        """One line: `v2 serves since 2026-11-21T14:03:12Z: cutover by anna@host (better answers)`."""
        at = datetime.fromtimestamp(self.at_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        why = f" ({self.why})" if self.why else ""
        return f"{self.version} serves since {at}: {self.verb} by {self.who or 'nobody named'}{why}"


class Pending(_Record):
    """A cutover that was found good and waits: until `file` (on the controller's machine) is gone, and, with
    `approval`, until somebody has approved it."""

    command: Command
    since_ms: int
    file: str | None = None
    approval: bool = False
    approved_by: str = ""
    approved_why: str = ""

    @property
    def text(self) -> str:
        """What it waits for, in one line."""
        waits = [f"until the file {self.file} is gone"] if self.file else []
        if self.approval and not self.approved_by:
            waits.append("until somebody approves it")
        approved = f", approved by {self.approved_by}" if self.approved_by else ""
        asked = f" (asked for by {self.command.who or 'nobody named'}{approved})"
        return f"the cutover to {self.command.version} waits {' and '.join(waits) or 'for its turn'}{asked}"

    @property
    def next_step(self) -> str:
        """The command that lets it go on, or withdraws it."""
        this = f"crossfade cutover {self.command.collection} {self.command.version}"
        if self.approval and not self.approved_by:
            return f"{this} --approve; or withdraw it: {this} --cancel"
        return f"remove {self.file}; or withdraw it: {this} --cancel"


class Sample(_Record):
    """Queries asked of one space: how many found nothing, how many failed, and the 95th percentile of the time."""

    asked: int
    zero: int
    errors: int
    p95_ms: float | None


class Bounds(_Record):
    """What a watch compares with (config_operation.Watch), as it was when the watch began."""

    every_s: float
    max_zero_results: float
    max_errors: float
    max_latency_ratio: float
    rollback: bool


class Watching(_Record):
    """The watch after a cutover to `version`. `before`: the same queries at `previous`, asked just before it.

    `result`: watching, crossed (a bound, see `reason`), quiet (it ended within the bounds), ended (by something else,
    or beyond a bound), rolled back, not rolled back (it was refused: see `reason`).
    """

    version: str
    epoch: int
    previous: str | None
    swap_id: str
    since_ms: int
    until_ms: int
    bounds: Bounds
    before: Sample | None = None
    result: Literal["watching", "crossed", "quiet", "ended", "rolled back", "not rolled back"] = "watching"
    reason: str = ""

    @property
    def going(self) -> bool:
        return self.result in ("watching", "crossed", "not rolled back")

    @property
    def text(self) -> str:
        """One line."""
        return f"the watch over {self.version}: {self.result}" + (f" ({self.reason})" if self.reason else "")


class Notice(_Record):
    """Something that happened while nobody waited for an answer, until the next change of what serves, or until it is
    over. `about`: the id of a command that is tried again."""

    at_ms: int
    text: str
    next_step: str = ""
    about: str = ""


class StageChange(_Record):
    """One change of one build's stage, or of a condition beside it (`event`: failed, paused), as hooks are told of it.

    `id` is the same however often a hook hears of the change. `cause`: of a failure.
    """

    id: str
    event: Event
    verb: Verb
    collection: str
    version: str
    epoch: int
    stage: Stage
    from_stage: Stage
    space: str
    fingerprint: str
    who: str = ""
    why: str = ""
    cause: str = ""
    at_ms: int = 0


class Declared(_Record):
    """A version that stands in no configuration file. `url`: of an endpoint that the file allows for it."""

    model: str
    dimensions: int
    url: str


class CollectionState(_Record):
    """One collection. `serving` and `previous` are version names; `epochs` is the last epoch given out.

    `swapped`: the last change of what serves; `pending`: a cutover that waits; `watch`: over the newest cutover;
    `untold`: changes of which hooks are still to be told; `declared`: versions beside those of the configuration file.
    """

    collection: str
    alias: str
    topic: str
    serving: str | None = None
    previous: str | None = None
    epochs: int = 0
    intent: Intent | None = None
    swapped: Swap | None = None
    pending: Pending | None = None
    watch: Watching | None = None
    notice: Notice | None = None
    untold: list[StageChange] = Field(default_factory=list)
    declared: dict[str, Declared] = Field(default_factory=dict)
    applied: list[CommandOutcome] = Field(default_factory=list)
    updated_ms: int = 0

    @property
    def notes(self) -> list[tuple[str, str]]:
        """For `status`: what waits, is watched or went wrong unseen, each with the command that helps (or "")."""
        notes = [(self.pending.text, self.pending.next_step)] if self.pending else []
        if self.watch is not None:
            wrong = self.watch.result in ("crossed", "not rolled back")
            notes.append((self.watch.text, f"crossfade rollback {self.collection}" if wrong else ""))
        if self.notice is not None:
            notes.append((self.notice.text, self.notice.next_step))
        return notes

    def outcome(self, command_id: str) -> CommandOutcome | None:
        return next((o for o in reversed(self.applied) if o.id == command_id), None)

    def with_outcome(self, outcome: CommandOutcome, now_ms: int, **changes: object) -> CollectionState:
        """The newest ones alone keep what was found: a record of the state topic has to stay small."""
        older, newest = self.applied[-APPLIED_KEPT + 1 : -FIGURES_KEPT + 1], self.applied[-FIGURES_KEPT + 1 :]
        applied = [*(one.cut(OLD_TEXT, {}) for one in older), *newest, outcome.cut(MOST_TEXT, outcome.data)]
        return self.model_copy(update={"applied": applied, "updated_ms": now_ms, "intent": None, **changes})


class Failure(_Record):
    """Why a build stopped, with the command that helps. Cleared by `resume`."""

    cause: str
    next_step: str = ""
    at_ms: int = 0


class Request(_Record):
    """Work for the owners of a build's partitions: `repair` (sweep and mend) or `redrive` (the dead letters again)."""

    id: int
    kind: Literal["repair", "redrive"]


class Controls(_Record):
    """What may be changed while a build runs. None: no limit, and for `tiers` those of the configuration.

    `concurrency`: most requests of the replay at the endpoints, of each worker. `tiers`: the replay's order. Bounds of
    the throttle: None as configured, 0 off. What is in range: streams.controls.
    """

    replay_rate: float | None = None
    budget_usd: float | None = None
    concurrency: int | None = None
    tiers: list[TierName] | None = None
    max_live_lag: int | None = None
    max_weaviate_latency_ms: float | None = None
    max_disk: float | None = None
    max_memory: float | None = None
    max_endpoint_errors: float | None = None


class ServedBefore(_Record):
    """How long the serving version took at a `step` of a rollout that is over: 95% of its `queries` up to `p95_ms`.
    `share`: of the callers whom it did not answer."""

    p95_ms: float
    queries: int
    step: int
    share: float


class RolloutState(_Record):
    """Where the rollout of a build stands: the `share` of the callers whom it answers, since `since_ms`.

    `step` counts the changes of all rollouts of this build, so that what servers count belongs to one of them.
    `configured`: the share that the configuration said when this began; another one there begins it anew. `stopped`:
    the bound that failed, or why somebody ended it; "" while it goes on. `beside`: the space of the version that
    serves, "" where an older Crossfade has written it. `before`: of the last step that had enough of its queries.
    """

    share: float
    step: int
    since_ms: int
    configured: float
    stopped: str = ""
    beside: str = ""
    before: ServedBefore | None = None

    def text(self, version: str) -> str:
        """One line."""
        ended = f": ended ({self.stopped})" if self.stopped else ""
        return f"the rollout of {version} stands at {self.share:.1%} of the callers{ended}"


class BuildState(_Record):
    """One build of one version. `start` and `barrier`: offset by partition, stored before the first write (rule 2).

    `rollout`: None before it was begun; `rollout_steps`: the last step given out, never given again. `canary`: base64
    of float32[len(PROBE_TEXTS), dim], the probe texts' vectors when the space was born; empty for a model without an
    endpoint.
    """

    collection: str
    version: str
    epoch: int
    stage: Stage
    envelope: dict[str, JsonValue]
    fingerprint: str
    space: str
    topic: str
    topic_id: str = ""
    partitions: int = 0
    start: dict[int, int] = Field(default_factory=dict)
    barrier: dict[int, int] = Field(default_factory=dict)
    replayed: list[int] = Field(default_factory=list)
    paused: Literal["replay", "all"] | None = None
    failure: Failure | None = None
    controls: Controls = Field(default_factory=Controls)
    requests: list[Request] = Field(default_factory=list)
    rollout: RolloutState | None = None
    rollout_steps: int = 0
    provenance: dict[str, str] = Field(default_factory=dict)
    canary: str = ""
    started_ms: int = 0
    ready_ms: int = 0
    updated_ms: int = 0

    @property
    def key(self) -> str:
        return f"{self.collection}/{self.version}"

    @property
    def active(self) -> bool:
        """Written to by workers."""
        return self.stage in ACTIVE

    @property
    def notes(self) -> list[tuple[str, str]]:
        """For `status`, beside those of its collection."""
        if self.rollout is None or self.stage is not Stage.READY:
            return []
        return [(self.rollout.text(self.version), f"crossfade rollout {self.collection}")]

    @property
    def replay_rate_of_a_partition(self) -> float | None:
        """The build's documents a second, shared by the partitions that are still replaying; None without a limit."""
        rate = self.controls.replay_rate
        return rate / max(1, self.partitions - len(self.replayed)) if rate else None

    @property
    def model(self) -> Envelope:
        """The envelope the space was created with. Raises ConfigurationError when it is not one we can read."""
        return Envelope.from_json(orjson.dumps(self.envelope).decode())


class JournalEntry(_Record):
    """Who did what, when and why, and what came of it (`message`). Kept for ever."""

    at_ms: int
    collection: str
    version: str | None = None
    epoch: int | None = None
    event: str
    who: str = ""
    why: str = ""
    message: str = ""
    command_id: str = ""
    data: dict[str, JsonValue] = Field(default_factory=dict)


def unknown(what: str, name: str, known: Iterable[str], next_step: str = "") -> NotFound:
    """The one wording for a name that nobody knows."""
    names = ", ".join(sorted(known)) or "none yet"
    return NotFound(
        f"no {what} named {name!r}; known: {names}", next_step=next_step or "crossfade status lists everything"
    )
