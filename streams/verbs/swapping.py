"""Verbs that move search: cutover and rollback. The alias is the one atomic step; what comes before can be given up.

Nothing here decides what a document is, nor whether a version is good enough: `examining` has to agree first.
"""

from __future__ import annotations

from typing import Literal

from pydantic import JsonValue

from connectors.errors import ConfigurationError, NotFound, Refused
from streams import config_operation
from streams.retry import a_while
from streams.state import (
    Bounds,
    BuildState,
    CollectionState,
    Command,
    Intent,
    Notice,
    Sample,
    Swap,
    Watching,
)
from streams.verbs.asking import problem
from streams.verbs.desk import Desk, NotYet
from streams.verbs.examining import Examined, check_seen, check_settled, lag_of, may_begin
from streams.verbs.waiting import GOES_ON, asked, postponed, withdraw
from streams.versions import Stage


async def cutover(desk: Desk, command: Command, examined: Examined | None = None) -> None:
    """After `examine`: the wait that is configured, else intent, alias, result, and the proof that it answers."""
    build, collection = desk.state.build(command), desk.state.collection(command)
    if collection.intent is None:
        if command.args.get("cancel"):
            await withdraw(desk, command, collection, build)
            return
        may_begin(desk, command)
        assert examined is not None, "a cutover begins with an examination"
        if (examined.epoch, examined.serving) != (build.epoch, collection.serving):
            raise Refused(
                f"{build.key} or what serves has changed while it was looked at",
                next_step=f"crossfade status {build.collection}, then again",
            )
        check_settled(desk, build, examined.since_ms)
        if command.args.get("check"):
            await desk.state.done(command, f"{build.key} can cut over", data=examined.found, event="cutover --check")
            return
        if (pending := await postponed(desk, command, collection, examined.found)) is not None:
            if command.args.get("origin") == GOES_ON:  # the file came back meanwhile: an outcome would be its last
                raise NotYet(pending.text, next_step=pending.next_step)
            await desk.state.done(
                command,
                f"{build.key} can cut over; {pending.text}",
                data={**examined.found, "pending": pending.text, "next": pending.next_step},
                collection={"pending": pending, "notice": None},
                event="cutover approved" if command.args.get("approve") else "cutover postponed",
            )
            return
        data = {**examined.found, **asked(collection.pending, command)}
        collection = await desk.state.intend(
            command, data if examined.watch is None else {**data, "watch": examined.watch}
        )
    assert collection.intent is not None
    if not collection.intent.data.get("swapped"):
        await _swap(desk, command, collection, build)
    await _prove(desk, command, build)


async def rollback(desk: Desk, command: Command) -> None:
    """Back to the previous space, which live has kept current. Refused while it lags beyond the bound."""
    collection = desk.state.collection(command)
    if collection.intent is None:
        check_seen(collection, command.args)
        if collection.previous is not None:
            _check_not_undone(collection, command.args)
        swap = command.args.get("swap")  # a watch goes back from the cutover it watches, and from no other
        if swap is not None and (collection.swapped is None or collection.swapped.command_id != swap):
            raise Refused(f"{collection.collection} has been swapped meanwhile", next_step="")
        if collection.previous is None:
            raise Refused(
                f"{collection.collection} has no previous version to go back to",
                next_step=f"crossfade status {collection.collection}",
            )
        build = desk.state.builds[f"{collection.collection}/{collection.previous}"]
        if build.failure is not None or build.paused == "all":
            raise Refused(
                f"{build.key} is not kept current: " + (build.failure.cause if build.failure else "it is paused"),
                next_step=f"crossfade resume {build.collection} {build.version}",
            )
        lag = await lag_of(desk, build)
        given = command.args.get("max_lag")
        bound = given if isinstance(given, int) else _most_lag(desk, collection.collection)
        if lag > bound and not command.args.get("accept_lag"):
            raise Refused(
                f"{build.key} is {lag} events behind the log, more than {bound}: going back would hide them",
                next_step=f"crossfade rollback {collection.collection} --accept-lag, or wait: crossfade status "
                f"{build.collection} {build.version} -w",
            )
        collection = await desk.state.intend(command, {"lag": lag, "to": build.version})
    assert collection.intent is not None
    build = desk.state.builds[f"{collection.collection}/{collection.intent.data['to']}"]
    if not collection.intent.data.get("swapped"):
        await _swap(desk, command, collection, build)
    await _prove(desk, command, build)


async def _swap(desk: Desk, command: Command, collection: CollectionState, build: BuildState) -> None:
    """Move the alias to `build` and record it. Runs again, to the same end, after a crash anywhere in it.

    The intent stays, for the proof that the space answers.
    """
    serving = desk.state.builds.get(f"{collection.collection}/{collection.serving}") if collection.serving else None
    target = await a_while(lambda: desk.out.store.alias_target(collection.alias))
    if target not in (build.space, serving.space if serving else None):
        raise Refused(
            f"the alias {collection.alias} points to {target or 'nothing'}, which Crossfade did not do",
            next_step="find out who moved it, then try again: the alias is Crossfade's alone",
        )
    await a_while(lambda: desk.out.store.point_alias(collection.alias, build.space))
    builds = [build.model_copy(update={"stage": Stage.SERVING, "rollout": None})]
    if serving is not None and serving.key != build.key:
        builds.append(serving.model_copy(update={"stage": Stage.PREVIOUS}))
    older = desk.state.builds.get(f"{collection.collection}/{collection.previous}") if collection.previous else None
    if older is not None and older.key not in {b.key for b in builds} and older.stage is Stage.PREVIOUS:
        builds.append(older.model_copy(update={"stage": Stage.READY}))
    intent = collection.intent
    assert intent is not None
    message = f"{collection.collection} is served by {build.version}" + (
        f"; {collection.serving} is kept current for a rollback" if collection.serving else ""
    )
    shown = {name: value for name, value in intent.data.items() if name != "watch"}
    verb: Literal["cutover", "rollback"] = "cutover" if command.verb == "cutover" else "rollback"
    data: dict[str, JsonValue] = {
        **shown,
        "from": collection.serving,
        "serving": build.version,
        "space": build.space,
        "event": "cutover" if verb == "cutover" else "rolled back",
    }
    now_ms = desk.out.wall_ms()
    swapped = Swap(
        verb=verb,
        version=build.version,
        before=collection.serving,
        who=command.who,
        why=command.why,
        at_ms=now_ms,
        command_id=command.id,
    )
    changes: dict[str, object] = {
        "serving": build.version,
        "previous": serving.version if serving else None,
        "swapped": swapped,
        "notice": None,
    }
    if verb == "rollback":
        changes["watch"] = _ended(collection.watch, command)
        if (waited := collection.pending) is not None:  # asked for before this: nobody would expect it any more
            text = f"the cutover to {waited.command.version} that waited is withdrawn by this rollback"
            message = f"{message}; {text}"
            next_step = f"crossfade cutover {collection.collection} {waited.command.version}"
            changes |= {"pending": None, "notice": Notice(at_ms=now_ms, text=text, next_step=next_step)}
    else:
        changes["pending"] = None
        changes["watch"] = _begun(intent.data.get("watch"), build, swapped, serving, now_ms)
    changes["intent"] = Intent(command=command, data={**data, "swapped": True, "message": message})
    await desk.state.commit(collection.model_copy(update=changes), builds, command, verb, message, data=data)


async def _prove(desk: Desk, command: Command, build: BuildState) -> None:
    """Ask what serves now, and say what came of it: the swap stands either way."""
    collection = desk.state.collection(command)
    assert collection.intent is not None
    data = dict(collection.intent.data)
    message = str(data.pop("message", ""))
    data.pop("swapped", None)
    checked, kept = data.get("checked"), data.get("kept", 0)
    total = sum(record.total for record in desk.progress.partitions(build))
    documents = checked + kept if isinstance(checked, int) and isinstance(kept, int) else total
    wrong = await problem(desk, build, collection.alias, documents)
    if not wrong:
        data["answers"] = "as it should"
        await desk.state.done(command, message, data=data, event=f"{command.verb} verified")
        return
    text = f"{collection.collection} is served by {build.version}, which does not answer as it should: {wrong}"
    this = f"{build.collection} {build.version}"
    undo = f"crossfade verify {this} --repair"
    if command.verb == "cutover":
        undo = f"crossfade rollback {build.collection}" if collection.previous else f"crossfade status {this}"
    await desk.state.done(
        command,
        text,
        data={**data, "answers": wrong, "next": undo},
        collection={"notice": Notice(at_ms=desk.out.wall_ms(), text=text, next_step=undo)},
        event=f"{command.verb} NOT verified",
    )


def _begun(
    begins: JsonValue, build: BuildState, swapped: Swap, serving: BuildState | None, now_ms: int
) -> Watching | None:
    if not isinstance(begins, dict):
        return None
    for_s = begins["for_s"]
    assert isinstance(for_s, int | float)
    return Watching(
        version=build.version,
        epoch=build.epoch,
        previous=serving.version if serving else None,
        swap_id=swapped.command_id,
        since_ms=now_ms,
        until_ms=now_ms + int(1000 * for_s),
        bounds=Bounds.model_validate(begins["bounds"]),
        before=Sample.model_validate(begins["before"]) if begins["before"] else None,
    )


def _ended(watch: Watching | None, command: Command) -> Watching | None:
    if watch is None or not watch.going:
        return None
    if command.args.get("swap") == watch.swap_id:
        return watch.model_copy(update={"result": "rolled back", "reason": command.why})
    return watch.model_copy(update={"result": "ended", "reason": f"rollback by {command.who or 'nobody named'}"})


def _check_not_undone(collection: CollectionState, args: dict[str, JsonValue]) -> None:
    """Raises Refused for a rollback of a rollback, unless the sender named what shall stop serving: whoever comes
    second, a moment after somebody else, would bring back the version that both want to be rid of."""
    last = collection.swapped
    if "from" not in args or args.get("named") or last is None or last.verb != "rollback":
        return
    raise Refused(
        f"{collection.collection} was rolled back already: {last.text}; another rollback would bring "
        f"{collection.previous} back",
        next_step=f"to do just that: crossfade rollback {collection.collection} --from {last.version}, or with sweep "
        f"and gate: crossfade cutover {collection.collection} {collection.previous}",
    )


def _most_lag(desk: Desk, collection: str) -> int:
    """The configured bound; a configuration that cannot be read now must not stand in the way of going back."""
    try:
        return desk.out.settings().collection(collection).cutover.max_rollback_lag
    except (ConfigurationError, NotFound):
        return config_operation.Cutover().max_rollback_lag
