"""The rollout of the version that comes: begun as configured, raised and ended by what all servers have counted of it,
or by hand.

What follows from the counts is decided in streams.search.rollout; here it becomes state, with an entry in the journal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from connectors.errors import Refused
from connectors.protocols import JSON
from streams.config_operation import Rollout
from streams.search.rolling import observed, seen, served_before, shown, standing_of
from streams.search.rollout import Standing, advance, raised
from streams.search.routes import ready_of
from streams.search.tallies import step_of
from streams.state import BuildState, CollectionState, Command, RolloutState
from streams.verbs.desk import Amendment, Desk

ROLLOUT = "rollout"
"""Who raises and ends it by the bounds of the configuration, in the journal."""
NOBODY = Standing(0.0, 0.0)


def coming(desk: Desk, collection: CollectionState) -> BuildState | None:
    """The version that a rollout would bring in; None while none is ready."""
    serving = _serving(desk, collection)
    if serving is None:
        return None
    return ready_of([b for b in desk.state.builds.values() if b.collection == collection.collection], serving)


def _serving(desk: Desk, collection: CollectionState) -> BuildState | None:
    return desk.state.builds.get(f"{collection.collection}/{collection.serving}")


def wanted(desk: Desk, collection: CollectionState) -> bool:
    """Whether there is a rollout to look after: one that has begun, or that the configuration wants begun."""
    routes, build = desk.out.routes(collection.collection), coming(desk, collection)
    return routes is not None and build is not None and (build.rollout is not None or routes.rollout.share > 0)


def next_of(desk: Desk) -> Callable[[CollectionState], Amendment | None]:
    """What follows now: begun, begun anew since the configuration says another share, counted anew since another
    version serves, raised, ended, or nothing."""

    def change(current: CollectionState) -> Amendment | None:
        routes, build, serving = desk.out.routes(current.collection), coming(desk, current), _serving(desk, current)
        if routes is None or build is None or serving is None:
            return None
        rules, now_s = routes.rollout, desk.out.wall_ms() / 1000
        stands = standing_of(build)
        if build.rollout is None or stands is None or build.rollout.configured != rules.share:
            if stands is None and rules.share <= 0:
                return None
            return _amendment(desk, current, build, rules, Standing(rules.share, now_s), "begins")
        if build.rollout.beside not in ("", serving.space):
            return _amendment(desk, current, build, rules, replace(stands, since_s=now_s), "counted anew")
        found = seen(build, rules, desk.progress.searches(current.collection), desk.out.wall_ms())
        after = advance(stands, rules, found, now_s)
        if after == stands:
            return None
        return _amendment(desk, current, build, rules, after, "ended" if after.stopped else "raised")

    return change


async def rollout(desk: Desk, command: Command) -> None:
    """To the next step, or to its end, by hand. Raises Refused when there is nothing to roll out, and when it stands
    elsewhere by now than its sender saw (`step`): two people who raise it do not raise it twice."""
    collection = desk.state.collection(command)
    name, routes, build = collection.collection, desk.out.routes(command.collection), coming(desk, collection)
    if build is None:
        raise Refused(
            f"no version of {name} is ready and not serving: there is nothing to roll out",
            next_step=f"crossfade status {name}; a rollout begins once a version is ready",
        )
    if routes is None:
        raise Refused(
            f"{name} is not in the configuration of the worker that decides", next_step="give every worker the same one"
        )
    stands, rules, now_s = standing_of(build) or NOBODY, routes.rollout, desk.out.wall_ms() / 1000
    stood, at = command.args.get("step"), build.rollout.step if build.rollout is not None else 0
    if stood is not None and stood != at:
        raise Refused(
            f"the rollout of {build.version} was changed meanwhile: it stands at {stands.share:.1%}",
            next_step=f"crossfade rollout {name} shows it; then again",
        )
    if command.args.get("action") == "end":
        after, event = Standing(0.0, now_s, command.why or f"ended by {command.who or 'nobody named'}"), "ended"
    else:
        after, event = raised(stands, rules, now_s), "raised"
        if after.share == stands.share:
            raise Refused(
                f"the rollout of {build.version} stands at {stands.share:.1%}, and no step is above that",
                next_step=f"crossfade cutover {name} {build.version} --check; or add to routes.rollout.steps",
            )
    changed = _with(desk, collection, build, rules, after)
    assert changed.rollout is not None
    text = changed.rollout.text(build.version)
    if routes.default != "rollout":
        text += f"; routes.default is {routes.default}: only queries that ask for the mode rollout go by it"
    await desk.state.done(
        command, text, changed, data={"rollout": _figures(desk, build, rules, after)}, event=f"rollout {event}"
    )


def _with(desk: Desk, collection: CollectionState, build: BuildState, rules: Rollout, after: Standing) -> BuildState:
    """With the next step, whose number no step of this build ever had: servers may still count one before it."""
    now, before, serving = build.rollout, None, _serving(desk, collection)
    space = serving.space if serving is not None else ""
    if now is not None and now.beside in ("", space):
        records = desk.progress.searches(build.collection)
        before = served_before(now, observed(step_of(records, build.version, build.epoch, now.step).serving), rules)
    step = 1 + max(build.rollout_steps, now.step if now is not None else 0)  # an older Crossfade kept the one alone
    stands = RolloutState(
        share=after.share,
        step=step,
        since_ms=round(after.since_s * 1000),
        configured=rules.share,
        stopped=after.stopped,
        beside=space,
        before=before,
    )
    return build.model_copy(update={"rollout": stands, "rollout_steps": step})


def _figures(desk: Desk, build: BuildState, rules: Rollout, after: Standing) -> dict[str, JSON]:
    """Where it goes, and what was seen of the step that is over by that."""
    return {
        "to": after.share,
        "before": shown(build, rules, desk.progress.searches(build.collection), desk.out.wall_ms()),
    }


def _amendment(
    desk: Desk, current: CollectionState, build: BuildState, rules: Rollout, after: Standing, event: str
) -> Amendment:
    changed = _with(desk, current, build, rules, after)
    assert changed.rollout is not None
    command = Command(
        id=f"{ROLLOUT}/{build.epoch}/{changed.rollout.step}",
        verb="rollout",
        collection=current.collection,
        version=build.version,
        who=ROLLOUT,
        why=after.stopped,
    )
    data = {"rollout": _figures(desk, build, rules, after)}
    text = changed.rollout.text(build.version)
    return Amendment(current, command, f"rollout {event}", text, dict(data), builds=(changed,))
