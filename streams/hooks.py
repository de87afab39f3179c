"""Which changes of stage a write makes or begins, which hooks they call, and what those are told.

Pure: values in, values out; streams.verbs.telling and the controller do the calling.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Literal

import orjson

from streams.config_operation import Event, Hook
from streams.state import BuildState, CollectionState, Command, StageChange
from streams.versions import Stage

UNTOLD_KEPT = 50

_EVENTS: Mapping[Stage, Event] = {
    Stage.BUILDING: "building",
    Stage.READY: "ready",
    Stage.SERVING: "serving",
    Stage.PREVIOUS: "previous",
    Stage.RETIRED: "retired",
    Stage.ABORTED: "aborted",
}


class HooksFirst(Exception):
    """No error, and so none of that tree: hooks are to be asked before this step begins, which is then tried again with
    `changes` cleared."""

    def __init__(self, changes: Sequence[StageChange]) -> None:
        super().__init__("hooks are to be asked first")
        self.changes = list(changes)


def begins(
    command: Command,
    stored: CollectionState | None,
    collection: CollectionState,
    before: Mapping[str, BuildState],
    builds: Sequence[BuildState],
) -> list[StageChange]:
    """What the step of which this is the first write will change; nothing for a later write of one that has begun.

    A cutover and a rollback are known by what they intend; a build that is declared is about to be built.
    """
    if stored is not None and stored.intent is not None:
        return []
    changes = []
    for build in builds:
        if build.stage is Stage.DECLARED:
            changes.append(_change(command, build, "building", Stage.BUILDING, Stage.DECLARED))
        elif (changed := _moved(command, before.get(build.key), build)) is not None:
            changes.append(changed)
    if command.verb in ("cutover", "rollback") and collection.intent is not None:
        to = command.version if command.verb == "cutover" else collection.intent.data.get("to")
        changes += _swapped(command, collection, before, f"{collection.collection}/{to}")
    return changes


def made(command: Command, before: Mapping[str, BuildState], builds: Sequence[BuildState]) -> list[StageChange]:
    """What this write changes: stages, and the conditions that begin."""
    changes = []
    for build in builds:
        was = before.get(build.key)
        if (changed := _moved(command, was, build)) is not None:
            changes.append(changed)
        if build.failure is not None and (was is None or was.failure is None):
            failed = _change(command, build, "failed", build.stage, build.stage)
            changes.append(failed.model_copy(update={"cause": build.failure.cause}))
        if build.paused is not None and (was is None or was.paused is None):
            changes.append(_change(command, build, "paused", build.stage, build.stage))
    return changes


def hooks_for(hooks: Iterable[Hook], event: Event, when: Literal["before", "after"]) -> list[Hook]:
    """In the order of the configuration."""
    return [hook for hook in hooks if hook.when == when and event in hook.on]


def same(changes: Sequence[StageChange], cleared: Sequence[StageChange]) -> bool:
    """Whether hooks have agreed to just these changes."""
    return [_essence(change) for change in changes] == [_essence(change) for change in cleared]


def told(change: StageChange, when: Literal["before", "after"]) -> dict[str, str]:
    """What a hook gets, by name: as JSON so; as environment variables in capitals behind CROSSFADE_."""
    stage = change.model_dump(mode="json", include={"stage", "from_stage", "event", "verb"})
    at = datetime.fromtimestamp(change.at_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        **{name: str(value) for name, value in stage.items()},
        "when": when,
        "collection": change.collection,
        "version": change.version,
        "epoch": str(change.epoch),
        "space": change.space,
        "fingerprint": change.fingerprint,
        "who": change.who,
        "why": change.why,
        "cause": change.cause,
        "change_id": change.id,
        "at": at,
    }


def as_variables(context: Mapping[str, str]) -> dict[str, str]:
    return {f"CROSSFADE_{name.upper()}": value for name, value in context.items()}


def as_json(context: Mapping[str, str]) -> bytes:
    """A number stays one."""
    return orjson.dumps({"schema": 1, **context, "epoch": int(context["epoch"])})


def refusal(hook: Hook, change: StageChange, said: str) -> str:
    """Why a step did not begin."""
    return (
        f"the hook {hook.label} before {change.event} holds {change.collection}/{change.version} back: {said}; "
        "nothing was changed"
    )


def again(command: Command) -> str:
    """The next step after a refusal by a hook."""
    version = f" {command.version}" if command.version and command.verb != "rollback" else ""
    confirm = f" --confirm {command.version}" if command.verb in ("retire", "abort") else ""
    return (
        f"look at what the hook objects to (collections.{command.collection}.hooks, read anew for each command), then "
        f"again: crossfade {command.verb} {command.collection}{version}{confirm}"
    )


def _moved(command: Command, was: BuildState | None, build: BuildState) -> StageChange | None:
    """A new epoch begins as declared, which is no stage anybody waits for."""
    if was is None or was.stage is build.stage or build.stage not in _EVENTS:
        return None
    return _change(command, build, _EVENTS[build.stage], build.stage, was.stage)


def _swapped(
    command: Command, collection: CollectionState, before: Mapping[str, BuildState], to: str
) -> list[StageChange]:
    """As verbs.swapping will store it: the new one serves, the old one is kept, the one before it stands by."""
    name, found = collection.collection, []
    serving = before.get(f"{name}/{collection.serving}")
    previous = before.get(f"{name}/{collection.previous}")
    if (build := before.get(to)) is not None:
        found.append(_change(command, build, "serving", Stage.SERVING, build.stage))
    if serving is not None and serving.key != to:
        found.append(_change(command, serving, "previous", Stage.PREVIOUS, serving.stage))
    if previous is not None and previous.key != to and previous.stage is Stage.PREVIOUS:
        found.append(_change(command, previous, "ready", Stage.READY, previous.stage))
    return found


def _change(command: Command, build: BuildState, event: Event, stage: Stage, from_stage: Stage) -> StageChange:
    return StageChange(
        id=f"{command.id}/{event}/{build.version}",
        event=event,
        verb=command.verb,
        collection=build.collection,
        version=build.version,
        epoch=build.epoch,
        stage=stage,
        from_stage=from_stage,
        space=build.space,
        fingerprint=build.fingerprint,
        who=command.who,
        why=command.why,
    )


def _essence(change: StageChange) -> tuple[str, int, Stage]:
    return change.id, change.epoch, change.from_stage
