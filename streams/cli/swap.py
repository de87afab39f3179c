"""Verbs that move search from one version to another: cutover and rollback.

They only ask the controller, which sweeps, moves the alias and records it; nothing here touches an alias.
"""

from __future__ import annotations

import click
from pydantic import JsonValue

from streams.cli import Options
from streams.cli.builds import collection_argument, timeout_option, version_argument, why_option
from streams.cli.output import emit, json_option, next_line, outcome_json, require
from streams.cli.session import ASK_S, SWEEP_S, ask, run, session
from streams.control import whoami
from streams.state import Command, CommandOutcome


@click.command()
@collection_argument
@version_argument
@click.option("--check", is_flag=True, help="Only report whether it could: nothing is moved.")
@click.option(
    "--accept-held",
    multiple=True,
    metavar="KEY",
    help="Accept that this document stands in the dead letters; once for each.",
)
@why_option
@timeout_option(SWEEP_S)
@json_option
@click.pass_obj
def cutover(
    options: Options,
    collection: str,
    version: str,
    check: bool,
    accept_held: tuple[str, ...],
    why: str,
    timeout_s: float,
    as_json: bool,
) -> None:
    """Move search to VERSION, atomically, once a sweep has found its space equal to the log.

    The version that served until now is kept current for a rollback.

    Example: crossfade cutover articles v2 --check
    """

    async def work() -> None:
        args: dict[str, JsonValue] = {}
        if check:
            args["check"] = True
        if accept_held:
            args["accept_held"] = list(accept_held)
        async with session(options) as opened, opened.state() as view:
            view.build(collection, version)
            command = Command(verb="cutover", collection=collection, version=version, args=args, who=whoami(), why=why)
            waits_for = "the sweep of the whole space" + ("" if check else ", then the swap")
            outcome = require(await ask(opened, view, command, timeout_s=timeout_s, waits_for=waits_for))
            previous = view.collection(collection).previous
        if check:
            then = f"crossfade cutover {collection} {version}"
        elif previous:
            then = f"crossfade rollback {collection}, if anything is wrong with {version}"
        else:
            then = f"crossfade search {collection} QUERY"
        if as_json:
            emit(outcome_json(outcome, then))
            return
        click.echo(outcome.message)
        click.echo(_swept(outcome))
        next_line(then)

    run(work())


def _swept(outcome: CommandOutcome) -> str:
    found = ", ".join(
        f"{name} {outcome.data[name]}"
        for name in ("checked", "missing", "stale", "extra", "held")
        if name in outcome.data
    )
    return f"  sweep: {found or 'done before'}"


@click.command()
@collection_argument
@click.option("--accept-lag", is_flag=True, help="Go back however far the previous version lags behind the log.")
@click.option(
    "--max-lag",
    type=click.IntRange(min=0),
    metavar="EVENTS",
    help="Refuse when the previous version is further behind the log than this.  [default: 1000]",
)
@why_option
@timeout_option(ASK_S)
@json_option
@click.pass_obj
def rollback(
    options: Options,
    collection: str,
    accept_lag: bool,
    max_lag: int | None,
    why: str,
    timeout_s: float,
    as_json: bool,
) -> None:
    """Move search back to the previous version, which was kept current; the other one is kept current in turn.

    Example: crossfade rollback articles --why "worse answers for short queries"
    """

    async def work() -> None:
        args: dict[str, JsonValue] = {}
        if accept_lag:
            args["accept_lag"] = True
        if max_lag is not None:
            args["max_lag"] = max_lag
        async with session(options) as opened, opened.state() as view:
            view.collection(collection)
            command = Command(verb="rollback", collection=collection, args=args, who=whoami(), why=why)
            outcome = require(await ask(opened, view, command, timeout_s=timeout_s))
        then = f"crossfade status {collection}"
        if as_json:
            emit(outcome_json(outcome, then))
            return
        click.echo(outcome.message)
        click.echo(f"  {outcome.data.get('serving')} was {outcome.data.get('lag', 0)} events behind the log")
        next_line(then)

    run(work())
