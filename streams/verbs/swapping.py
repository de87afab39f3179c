"""Verbs that move search: cutover and rollback. The alias is the one atomic step; what comes before can be given up.

Nothing here decides what a document is; a sweep and every partition's owner have to agree before the alias moves.
"""

from __future__ import annotations

import asyncio
import contextlib

from pydantic import JsonValue

from connectors.errors import Refused
from streams.progress import FRESH_MS
from streams.retry import a_while
from streams.state import BuildState, CollectionState, Command
from streams.verbs.desk import Desk
from streams.versions import Stage, check_transition
from streams.views import ProgressView


async def cutover(desk: Desk, command: Command) -> None:
    """Sweep, intent, alias, result. The alias is the one atomic step; everything before it can be given up."""
    build, collection = desk.state.build(command), desk.state.collection(command)
    if collection.intent is None:
        check_transition(build.stage, Stage.SERVING, collection=build.collection, version=build.version)
        _check_settled(desk, build, desk.out.wall_ms() - FRESH_MS)
        sweep = await desk.out.sweep(build)
        found: dict[str, JsonValue] = {
            "checked": sweep.checked,
            "missing": sweep.missing,
            "stale": sweep.stale,
            "extra": sweep.extra,
            "held": sweep.held,
        }
        if not sweep.clean:
            raise Refused(
                f"{build.space} differs from the log: missing {sweep.missing}, stale {sweep.stale}, "
                f"extra {sweep.extra} of {sweep.checked}",
                next_step=f"crossfade verify {build.collection} {build.version}",
            )
        accepted = command.args.get("accept_held") or []
        left = [key for key in sweep.held_keys if key not in (accepted if isinstance(accepted, list) else [])]
        if left:
            names = ", ".join(left[:5]) + (" ..." if len(left) > 5 else "")
            raise Refused(
                f"{len(left)} documents are held in the dead letters: {names}",
                next_step=f"repair them at their producer, or crossfade redrive {build.collection} {build.version} "
                f"if their cause is gone, or accept them by name: crossfade cutover "
                f"{build.collection} {build.version} --accept-held KEY (once for each)",
            )
        # again: a sweep takes its time, a worker may have died, and a report from before a doubt says nothing of it
        _check_settled(desk, build, await _reports_made_now(desk, build))
        if command.args.get("check"):
            await desk.state.done(command, f"{build.key} can cut over", data=found, event="cutover --check")
            return
        collection = await desk.state.intend(command, found)
    await _swap(desk, command, collection, build, "cutover")


async def rollback(desk: Desk, command: Command) -> None:
    """Back to the previous space, which live has kept current. Refused while it lags beyond the bound."""
    collection = desk.state.collection(command)
    if collection.intent is None:
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
        lag = await _lag(desk, build)
        bound = command.args.get("max_lag", 1000)
        if lag > (bound if isinstance(bound, int) else 0) and not command.args.get("accept_lag"):
            raise Refused(
                f"{build.key} is {lag} events behind the log, more than {bound}",
                next_step=f"crossfade rollback {collection.collection} --accept-lag, or wait: crossfade status "
                f"{build.collection} {build.version} -w",
            )
        collection = await desk.state.intend(command, {"lag": lag, "to": build.version})
    assert collection.intent is not None
    build = desk.state.builds[f"{collection.collection}/{collection.intent.data['to']}"]
    await _swap(desk, command, collection, build, "rolled back")


async def _swap(desk: Desk, command: Command, collection: CollectionState, build: BuildState, event: str) -> None:
    """Move the alias to `build` and record it. Runs again, to the same end, after a crash anywhere in it."""
    serving = desk.state.builds.get(f"{collection.collection}/{collection.serving}") if collection.serving else None
    target = await a_while(lambda: desk.out.store.alias_target(collection.alias))
    if target not in (build.space, serving.space if serving else None):
        raise Refused(
            f"the alias {collection.alias} points to {target or 'nothing'}, which Crossfade did not do",
            next_step="find out who moved it, then try again: the alias is Crossfade's alone",
        )
    await a_while(lambda: desk.out.store.point_alias(collection.alias, build.space))
    builds = [build.model_copy(update={"stage": Stage.SERVING})]
    if serving is not None and serving.key != build.key:
        builds.append(serving.model_copy(update={"stage": Stage.PREVIOUS}))
    older = desk.state.builds.get(f"{collection.collection}/{collection.previous}") if collection.previous else None
    if older is not None and older.key not in {b.key for b in builds} and older.stage is Stage.PREVIOUS:
        builds.append(older.model_copy(update={"stage": Stage.READY}))
    intent = collection.intent
    await desk.state.done(
        command,
        f"{collection.collection} is served by {build.version}"
        + (f"; {collection.serving} is kept current for a rollback" if collection.serving else ""),
        *builds,
        data={**(intent.data if intent else {}), "serving": build.version, "space": build.space, "event": event},
        collection={"serving": build.version, "previous": serving.version if serving else None},
    )


async def _reports_made_now(desk: Desk, build: BuildState) -> int:
    """Wait until each partition's owner has reported again; returns since when, in ms since the epoch."""
    since_ms = desk.out.wall_ms()

    def reported(view: ProgressView) -> bool:
        return sum(r.updated_at >= since_ms for r in view.partitions(build)) == build.partitions

    with contextlib.suppress(TimeoutError):  # whoever is silent is named by the check that follows
        async with asyncio.timeout(FRESH_MS / 1000):
            await desk.progress.wait_for(reported)
    return since_ms


def _check_settled(desk: Desk, build: BuildState, since_ms: int) -> None:
    """Nothing failed, nothing held, nothing in doubt (rule 11), as each partition's owner has reported since then."""
    status = f"crossfade status {build.collection} {build.version}"
    if build.failure is not None:
        raise Refused(f"{build.key} stopped: {build.failure.cause}", next_step=build.failure.next_step or status)
    if build.paused is not None:
        raise Refused(f"{build.key} is paused", next_step=f"crossfade resume {build.collection} {build.version}")
    records = desk.progress.partitions(build)
    silent = build.partitions - sum(r.updated_at >= since_ms for r in records)
    if silent:
        raise Refused(
            f"no worker has reported on {silent} of {build.partitions} partitions of {build.key} lately",
            next_step="start one: crossfade worker",
        )
    if unsettled := sum(r.unsettled for r in records):
        raise Refused(
            f"{build.key} is unsettled: {unsettled} keys may still be changed by a write of unknown outcome",
            next_step=f"wait for the settle time (weaviate.settle_s), then again; {status}",
        )


async def _lag(desk: Desk, build: BuildState) -> int:
    """Events between what the build's live lane has committed and the log's end."""
    group = desk.names.group(build.collection, build.version, build.epoch, "live")
    committed = await desk.out.kafka.committed(group, build.topic)
    bounds = await desk.out.kafka.bounds(build.topic)
    return sum(
        max(0, b.stable - (committed[p].offset if p in committed else build.start[p])) for p, b in bounds.items()
    )
