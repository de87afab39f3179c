"""What a cutover looks at before anything is moved: may it begin, the sweep, the gate, the warm-up, nothing in doubt.

It takes as long as a sweep takes, and changes nothing: commands of the same collection go on meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass

from pydantic import JsonValue

from connectors.errors import Refused
from streams.migration.gate import GateResult, Swept, Verdict
from streams.migration.sweep import Sweep
from streams.migration.warm_up import all_failed, figures, stable, unheard
from streams.progress import FRESH_MS
from streams.state import Bounds, BuildState, CollectionState, Command, Sample
from streams.verbs.asking import queries_of, sample
from streams.verbs.desk import Desk, NotYet, Shown
from streams.verbs.waiting import args_of, goes_on
from streams.versions import Stage, check_transition
from streams.views import ProgressView

log = logging.getLogger(__name__)

ACCEPTED_NAMED = 100
WARM_UP_QUERIES = 30  # of a round: that many of the golden ones
WARM_UP_PAUSE_S = 0.5  # after a round in which nothing was answered


@dataclass(frozen=True, slots=True)
class Examined:
    """What was found of a build before its cutover, and of what: nothing of it may have changed when the alias moves.

    `found`: for the outcome and the journal; `since_ms`: every partition's owner has reported since then; `watch`:
    what the watch after the cutover begins with.
    """

    epoch: int
    serving: str | None
    since_ms: int
    found: dict[str, JsonValue]
    watch: dict[str, JsonValue] | None


def needs_examination(desk: Desk, command: Command) -> bool:
    """Whether this cutover is to look at the build first. False: to go on with one that has begun, or to withdraw."""
    return desk.state.begun(command.collection) is None and not command.args.get("cancel")


def may_begin(desk: Desk, command: Command) -> None:
    """Raises Refused when this cutover is out of the question as things stand, without looking at the space."""
    build, collection = desk.state.build(command), desk.state.collection(command)
    pending, args = collection.pending, args_of(collection, command)
    if goes_on(command):
        if pending is None or pending.command.version != build.version:
            raise Refused(
                f"no cutover to {build.key} waits to be approved",
                next_step=f"crossfade cutover {build.collection} {build.version}",
            )
    elif pending is not None and not command.args.get("check"):
        raise Refused(f"{collection.collection}: {pending.text}", next_step=pending.next_step)
    if collection.serving == build.version:
        since = collection.swapped.text if collection.swapped else f"{build.version} serves"
        raise Refused(f"nothing to do: {since}", next_step=f"crossfade status {collection.collection}")
    check_seen(collection, args)
    check_transition(build.stage, Stage.SERVING, collection=build.collection, version=build.version)


async def examine(desk: Desk, command: Command) -> Examined:
    """The sweep, the gate, and how the serving space answers just now. Changes nothing.

    Raises Refused (Shown, with what was found) when the build may not serve, and what the sweep and the gate raise.
    """
    build, collection = desk.state.build(command), desk.state.collection(command)
    args = args_of(collection, command)
    _check_goes_on(build)
    # the gate judges by reports, and this view of them may be behind that of the state
    check_settled(desk, build, await _reports_made_now(desk, build))
    serving = desk.state.builds.get(f"{build.collection}/{collection.serving}") if collection.serving else None
    sweep = await desk.out.sweep(build, serving)
    found: dict[str, JsonValue] = {
        "checked": sweep.checked,
        "missing": sweep.missing,
        "stale": sweep.stale,
        "extra": sweep.extra,
        "held": sweep.held,
    }
    if sweep.kept or sweep.lost:  # only where the log has forgotten anything
        found |= {"kept": sweep.kept, "lost": sweep.lost}
    if sweep.torn:
        found["torn"] = sweep.torn
    if sweep.unread:
        found["unread"] = sweep.unread
    _check_swept(build, sweep, args, found)
    swept = Swept(sweep.checked, sweep.missing, sweep.stale, sweep.extra, held=0)  # those left are accepted by name
    judged = await desk.out.judge(build, serving, swept)
    found["gate"] = judged.as_json()
    found |= _overridden(judged, build, args, found)
    if not args.get("check") and (warmed := await _warm_up(desk, build)) is not None:
        found["warm_up"] = warmed
    watch = None if args.get("check") else await _watch(desk, build, serving)
    # again: all that takes its time, a worker may have died, and a report from before a doubt says nothing of it
    since_ms = await _reports_made_now(desk, build)
    check_settled(desk, build, since_ms)
    return Examined(build.epoch, collection.serving, since_ms, found, watch)


async def _warm_up(desk: Desk, build: BuildState) -> dict[str, JsonValue] | None:
    """Ask the new space, round after round, until it answers no faster; what came of it, None when nothing was asked.

    Slow or failing queries stop no cutover. Raises NotYet when not one of them was answered: search would fail too.
    """
    for_s = desk.out.settings().collection(build.collection).cutover.warm_up_s
    if for_s <= 0:
        return None
    loop = asyncio.get_running_loop()
    queries = (await queries_of(desk, build.collection))[:WARM_UP_QUERIES]
    began_s, rounds = loop.time(), list[Sample]()
    while not stable(rounds) and (loop.time() < began_s + for_s or unheard(rounds)):
        round_ = await sample(desk, build, queries, began_s + for_s - loop.time(), most=len(queries))
        if round_ is None:
            return {"text": "not warmed up: it cannot be asked from the controller's machine"}
        rounds.append(round_)
        if round_.p95_ms is None:
            await asyncio.sleep(WARM_UP_PAUSE_S)
    if all_failed(rounds):
        failed = sum(one.errors for one in rounds)
        raise NotYet(
            f"not one of {failed} warm-up queries was answered by {build.key}",
            next_step=f"crossfade search {build.collection} QUERY --version {build.version} says why; without a "
            "warm-up: set cutover.warm_up_s: 0 in the configuration",
        )
    warmed = figures(rounds, loop.time() - began_s)
    log.info("%s %s", build.key, warmed["text"])
    return warmed


async def _watch(desk: Desk, build: BuildState, serving: BuildState | None) -> dict[str, JsonValue] | None:
    """What the watch begins with: its bounds, and the queries asked of the serving space just before. JSON."""
    rules = desk.out.settings().collection(build.collection).watch
    if rules is None:
        return None
    before = None
    if serving is not None:
        before = await sample(desk, serving, await queries_of(desk, build.collection), rules.every_s)
    return {
        "for_s": rules.for_s,
        "bounds": Bounds.model_validate(rules.model_dump(include=set(Bounds.model_fields))).model_dump(by_alias=True),
        "before": before.model_dump(by_alias=True) if before else None,
    }


def check_seen(collection: CollectionState, args: dict[str, JsonValue]) -> None:
    """Raises Refused when another version serves than the sender saw (`from`): somebody else was first."""
    if "from" not in args or args["from"] == collection.serving:
        return
    now = collection.swapped.text if collection.swapped else f"{collection.serving or 'nothing'} serves"
    raise Refused(
        f"somebody was first: when you looked, {args['from'] or 'nothing'} served {collection.collection}; {now}",
        next_step=f"crossfade history {collection.collection} --limit 5, and only then again",
    )


def _check_swept(build: BuildState, sweep: Sweep, args: dict[str, JsonValue], found: dict[str, JsonValue]) -> None:
    """Nothing overrides these: a document that is missing or wrong cannot be argued away. What the serving space alone
    has can be given up, by whoever says how many documents that is."""
    if not sweep.clean:
        raise Shown(
            f"{build.space} differs from the log: missing {sweep.missing}, stale {sweep.stale}, "
            f"extra {sweep.extra} of {sweep.checked}",
            next_step=f"crossfade verify {build.collection} {build.version}",
            data=found,
        )
    accepted = args.get("accept_held") or []
    left = [key for key in sweep.held_keys if key not in (accepted if isinstance(accepted, list) else [])]
    if left:
        names = ", ".join(left[:5]) + (" ..." if len(left) > 5 else "")
        raise Shown(
            f"{len(left)} documents are held in the dead letters: {names}",
            next_step=f"repair them at their producer, or crossfade redrive {build.collection} {build.version} "
            f"if their cause is gone, or accept them by name: crossfade cutover "
            f"{build.collection} {build.version} --accept-held KEY (once for each)",
            data=found,
        )
    if sweep.held_keys:  # by whoever gave the command: the journal says of which documents
        found["accepted_held"] = list(sweep.held_keys[:ACCEPTED_NAMED])
    _check_lost(build, sweep, args, found)


def _check_lost(build: BuildState, sweep: Sweep, args: dict[str, JsonValue], found: dict[str, JsonValue]) -> None:
    """Raises Shown where searchers would lose documents that the topic has forgotten, more than were accepted, or where
    nobody can say how many: a number that is not known cannot be accepted."""
    if sweep.unread:
        raise Shown(
            f"what search would lose of the documents that {build.topic} no longer has is not known: the space that "
            f"serves cannot be read: {sweep.unread}",
            next_step=f"put that right, then: crossfade cutover {build.collection} {build.version} (a space that is "
            "deleted has nothing to lose)",
            data=found,
        )
    if not sweep.lost:
        return
    accepted = args.get("accept_lost")
    if isinstance(accepted, int) and not isinstance(accepted, bool) and sweep.lost <= accepted:
        found["accepted_lost"] = sweep.lost
        return
    names = ", ".join(sweep.examples.get("lost", [])[:5]) + (" ..." if sweep.lost > 5 else "")
    this = f"{build.collection} {build.version}"
    raise Shown(
        f"search would lose {sweep.lost} of the documents that {build.topic} no longer has: they are in the serving "
        f"space, and not in {build.space}: {names}",
        next_step=f"write them to the topic again; or bring over what can be: crossfade verify {this} --repair; or let "
        f"them go, with their number: crossfade cutover {this} --accept-lost {sweep.lost}",
        data=found,
    )


def _overridden(
    judged: GateResult, build: BuildState, args: dict[str, JsonValue], found: dict[str, JsonValue]
) -> dict[str, JsonValue]:
    """For the journal: by whose reason a verdict that is no pass is overridden. Raises Shown when by none.

    What can be overridden is the gate's alone: quality, coverage, lag, index. A reason that was given for a verdict
    that passes is not needed, and not kept.
    """
    if judged.passed:
        return {}
    this = f"crossfade cutover {build.collection} {build.version}"
    look = f"look at crossfade evaluate {build.collection} {build.version}"
    force, accept = args.get("force"), args.get("accept_inconclusive")
    if isinstance(force, str) and force:
        return {"forced": force}
    if judged.verdict is Verdict.FAIL:
        raise Shown(
            f"{build.key} does not pass the gate: {judged.reasons()}",
            next_step=f'{look}; to cut over all the same: {this} --force "REASON"',
            data=found,
        )
    if isinstance(accept, str) and accept:
        return {"accepted_inconclusive": accept}
    raise Shown(
        f"the gate cannot tell whether {build.key} is good enough, and waits for a person: {judged.reasons()}",
        next_step=f'{look}; to accept it as it is: {this} --accept-inconclusive "REASON"',
        data=found,
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


def check_settled(desk: Desk, build: BuildState, since_ms: int) -> None:
    """Nothing failed, nothing held, nothing in doubt (rule 11), as each partition's owner has reported since then."""
    _check_goes_on(build)
    records = desk.progress.partitions(build)
    silent = build.partitions - sum(r.updated_at >= since_ms for r in records)
    if silent:
        raise NotYet(
            f"no worker has reported on {silent} of {build.partitions} partitions of {build.key} lately",
            next_step="start one: crossfade worker",
        )
    if unsettled := sum(r.unsettled for r in records):
        raise NotYet(
            f"{build.key} is unsettled: {unsettled} keys may still be changed by a write of unknown outcome",
            next_step=f"wait for the settle time (weaviate.settle_s), then again; {_status(build)}",
        )


def _check_goes_on(build: BuildState) -> None:
    if build.failure is not None:
        raise Refused(
            f"{build.key} stopped: {build.failure.cause}", next_step=build.failure.next_step or _status(build)
        )
    if build.paused is not None:
        raise Refused(f"{build.key} is paused", next_step=f"crossfade resume {build.collection} {build.version}")


def _status(build: BuildState) -> str:
    return f"crossfade status {build.collection} {build.version}"


async def lag_of(desk: Desk, build: BuildState) -> int:
    """Events between what the build's live lane has committed and the log's end."""
    group = desk.names.group(build.collection, build.version, build.epoch, "live")
    committed = await desk.out.kafka.committed(group, build.topic)
    bounds = await desk.out.kafka.bounds(build.topic)
    behind = 0
    for partition, bound in bounds.items():
        start = build.start.get(partition, bound.earliest)  # a partition added since: nothing of it is written yet
        behind += max(0, bound.stable - (committed[partition].offset if partition in committed else start))
    return behind
