"""The verb `rollout`: the share of the callers whom a ready version answers, and how it does; up, or back to none.

It only asks the controller, which alone decides for all servers; nothing here writes the state.
"""

from __future__ import annotations

from collections.abc import Mapping

import click
from pydantic import JsonValue

from connectors.protocols import JSON
from streams.cli import Options
from streams.cli.builds import collection_argument, timeout_option, why_option
from streams.cli.output import count, duration, emit, json_option, next_line, outcome_json, plain, require
from streams.cli.session import ASK_S, Session, ask, run, session
from streams.config_operation import Rollout
from streams.control import whoami
from streams.search.rolling import shown
from streams.state import BuildState, Command
from streams.versions import Stage, next_command
from streams.views import StateView
from streams.wiring import wall_ms


@click.command()
@collection_argument
@click.option("--raise", "up", is_flag=True, help="To the next step, at every server; also after a failed bound.")
@click.option("--end", "ended", metavar="WHY", help="Back to nobody, at every server, until somebody raises it.")
@why_option
@timeout_option(ASK_S)
@json_option
@click.pass_obj
def rollout(
    options: Options, collection: str, up: bool, ended: str | None, why: str, timeout_s: float, as_json: bool
) -> None:
    """Show the rollout of the version of COLLECTION that is brought in, with what all servers have counted of its
    present step; or raise it, or end it.

    Example: crossfade rollout articles --raise
    """
    if up and ended is not None:
        raise click.UsageError("--raise and --end do not go together")
    if ended is not None and not ended.strip():
        raise click.UsageError("--end wants a reason in words: it stands in the journal for ever")

    async def work() -> None:
        async with session(options) as opened, opened.state() as view:
            if not up and ended is None:
                await _show(opened, view, collection, as_json)
                return
            build = view.coming(collection)
            args: dict[str, JsonValue] = {"action": "raise" if up else "end"}
            if up:
                args["step"] = build.rollout.step if build is not None and build.rollout is not None else 0
            command = Command(
                verb="rollout",
                collection=collection,
                version=build.version if build is not None else None,
                args=args,
                who=whoami(),
                why=ended or why,
            )
            outcome = require(await ask(opened, view, command, timeout_s=timeout_s))
        then = f"crossfade rollout {collection}"
        if as_json:
            emit(outcome_json(outcome, then))
            return
        click.echo(outcome.message)
        next_line(then)

    run(work())


async def _show(opened: Session, view: StateView, collection: str, as_json: bool) -> None:
    build, rules = view.coming(collection), opened.settings.collection(collection).routes.rollout
    if build is None:
        if as_json:
            emit({"collection": collection, "rollout": None, "next": f"crossfade status {collection}"})
            return
        click.echo(f"{collection}: no version is brought in, so there is nothing to roll out")
        next_line(f"crossfade status {collection}")
        return
    async with opened.progress() as progress:
        now = shown(build, rules, progress.searches(collection), wall_ms())
    then = _next(build, rules)
    if as_json:
        emit({"collection": collection, "rollout": now, "next": then})
        return
    for line in lines(build, view.collection(collection).serving or "", now):
        click.echo(plain(line))
    next_line(then)


def lines(build: BuildState, serving: str, now: Mapping[str, JSON]) -> list[str]:
    """Where it stands, then what was counted of either version, and what the latency is compared with."""
    said = (
        build.rollout.text(build.version) if build.rollout is not None else f"no rollout of {build.version} has begun"
    )
    since_s, replicas = now["since_s"], now["replicas"]
    if isinstance(since_s, float):
        said += f", for {duration(since_s)}"
    found = [f"{build.collection}: {said}{'; raised by itself' if now['automatic'] and not now['stopped'] else ''}"]
    width = max(len(build.version), len(serving), 7)
    found.append(f"  {'version':<{width}}  {'queries':>9}  {'failed':>7}  {'nothing found':>13}  {'p95':>10}")
    found += _figures(build.version, serving, width, now)
    recent = now["recent"]
    assert isinstance(recent, dict)
    window_s = recent["window_s"]
    assert isinstance(window_s, float)
    if isinstance(since_s, float) and since_s > window_s:
        found.append(f"  of these in the last {duration(window_s)}")
        found += _figures(build.version, serving, width, recent)
    if (compared := now["compared_with"]) is None:
        found.append(
            f"  latency: not judged, since {serving or 'no other version'} has answered nothing to compare with"
        )
    else:
        assert isinstance(compared, dict)
        found.append(
            f"  latency: compared with the {compared['p95_ms']:,.1f} ms of {serving} {compared['when']}, "
            f"over {compared['queries']:,} of its queries"
        )
    assert isinstance(replicas, int)
    found.append(f"  counted at this step by {count(replicas, 'server')}")
    return found


def _figures(version: str, serving: str, width: int, now: Mapping[str, JSON]) -> list[str]:
    """A line for either."""
    found = []
    for name, figures in ((version, now["new"]), (serving, now["serving"])):
        assert isinstance(figures, dict)
        p95 = figures["p95_ms"]
        took = f"{p95:,.1f} ms" if isinstance(p95, float) else "-"
        found.append(
            f"  {name:<{width}}  {figures['queries']:>9,}  {figures['errors']:>7,}"
            f"  {figures['zero_results']:>13,}  {took:>10}"
        )
    return found


def _next(build: BuildState, rules: Rollout) -> str:
    if build.stage is not Stage.READY:
        return next_command(build.stage, collection=build.collection, version=build.version)
    if build.rollout is not None and build.rollout.share >= rules.steps[-1]:
        return f"crossfade cutover {build.collection} {build.version} --check"
    return f"crossfade rollout {build.collection} --raise"
