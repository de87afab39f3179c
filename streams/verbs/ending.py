"""Verbs that end a version and drop its space: retire and abort.

Never the version that serves, and never without its name.
"""

from __future__ import annotations

from pydantic import JsonValue

from connectors.errors import ConfigurationError, CrossfadeError, NotFound, Refused
from streams.config_operation import Retention
from streams.migration.retention import hindrance, is_over, kept_ms, lasting
from streams.retry import a_while
from streams.state import BuildState, CollectionState, Command, Notice
from streams.verbs.desk import Desk, NotYet, spent
from streams.versions import Stage, check_transition

RETENTION = "retention"
"""The origin of a retirement that the configuration asked for, and the name it has in the journal."""


def retention_of(desk: Desk, collection: str) -> Retention:
    """As configured now. Without automatic, and with the default, where the configuration cannot be read."""
    try:
        return desk.out.settings().collection(collection).retention
    except (ConfigurationError, NotFound):
        return Retention()


def due(desk: Desk, collection: CollectionState) -> Command | None:
    """The command that retires the previous version by itself, if it may be given now. One id for each swap."""
    rules, swapped = retention_of(desk, collection.collection), collection.swapped
    serving, previous = _builds(desk, collection)
    if previous is None or swapped is None or not rules.automatic:
        return None
    if not is_over(collection, rules, desk.out.wall_ms()) or hindrance(collection, serving, previous):
        return None
    args: dict[str, JsonValue] = {"confirm": previous.version, "origin": RETENTION}
    return Command(
        id=f"{RETENTION}/{swapped.command_id}/{previous.version}/{previous.epoch}",
        verb="retire",
        collection=collection.collection,
        version=previous.version,
        args=args,
        who=RETENTION,
        why=f"previous for {rules.days:g} days (retention.automatic)",
    )


def _builds(desk: Desk, collection: CollectionState) -> tuple[BuildState | None, BuildState | None]:
    """Of what serves, and of the previous version."""
    key, builds = collection.collection, desk.state.builds
    return builds.get(f"{key}/{collection.serving}"), builds.get(f"{key}/{collection.previous}")


def not_retired(collection: CollectionState, command: Command, error: CrossfadeError, now_ms: int) -> CollectionState:
    """A retirement that the configuration asked for was refused: nobody waits for the answer, so `status` shows it."""
    if command.args.get("origin") != RETENTION:
        return collection
    text = f"{command.version} was not retired by itself: {error.message}"
    this = f"crossfade retire {command.collection} {command.version} --confirm {command.version}"
    notice = Notice(at_ms=now_ms, text=text, next_step=f"{error.next_step}; then: {this}".removeprefix("; then: "))
    return collection.model_copy(update={"notice": notice})


async def retire(desk: Desk, command: Command) -> None:
    await _end(desk, command, Stage.RETIRED)


async def abort(desk: Desk, command: Command) -> None:
    await _end(desk, command, Stage.ABORTED)


async def _end(desk: Desk, command: Command, stage: Stage) -> None:
    """Stop writing, then drop the space: the stage first, so that no worker writes into what is being dropped."""
    build, collection = desk.state.build(command), desk.state.collection(command)
    if collection.intent is None:
        if command.args.get("origin") == RETENTION and due(desk, collection) != command:  # since it was decided
            raise NotYet(f"{build.key} is not to be retired by itself any more", next_step="")
        if collection.serving == build.version:
            raise Refused(
                f"{build.key} is serving: it cannot be {stage}",
                next_step=f"crossfade rollback {build.collection}",
            )
        # a drop that was refused (by a key without the right, say) left the space behind: once more
        left = build.stage is stage and await a_while(lambda: desk.out.store.description(build.space)) is not None
        if not left:
            check_transition(build.stage, stage, collection=build.collection, version=build.version)
        early = _early(desk, command, collection, build)
        if command.args.get("confirm") != build.version:
            raise Refused(
                f"this drops the space {build.space} for good{early} and must be confirmed by name",
                next_step=f"crossfade {command.verb} {build.collection} {build.version} --confirm {build.version}",
            )
        collection = await desk.state.intend(command, {"early": early}, build.model_copy(update={"stage": stage}))
        build = desk.state.build(command)
    early = str(collection.intent.data.get("early", "")) if collection.intent is not None else ""
    await a_while(lambda: desk.out.store.drop_space(build.space))
    previous = None if collection.previous == build.version else collection.previous
    waits = collection.pending is not None and collection.pending.command.version == build.version
    await desk.state.done(
        command,
        f"{build.key} is {stage}; space {build.space} is dropped{early}",
        data=spent(desk, build),
        collection={"previous": previous, **({"pending": None} if waits else {})},
    )


def _early(desk: Desk, command: Command, collection: CollectionState, build: BuildState) -> str:
    """To be said when the previous version goes before its retention is over: whoever confirms it by name may do so."""
    kept = kept_ms(collection, desk.out.wall_ms())
    rules = retention_of(desk, command.collection)
    if command.verb != "retire" or kept is None or collection.previous != build.version:
        return ""
    if is_over(collection, rules, desk.out.wall_ms()):
        return ""
    return f" (kept for {lasting(kept)} of the {rules.days:g} days configured)"
