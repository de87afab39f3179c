"""Verbs that move search from one version to another: cutover and rollback.

They only ask the controller, which sweeps, judges, moves the alias and records it; nothing here touches an alias.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import click
from pydantic import JsonValue

from streams.cli import Options
from streams.cli.builds import collection_argument, timeout_option, version_argument, why_option
from streams.cli.output import Failed, count, emit, json_option, next_line, outcome_json, plain, require, say
from streams.cli.session import ASK_S, SWEEP_S, ask, run, session
from streams.control import whoami
from streams.migration.gate import GateResult
from streams.state import Command, CommandOutcome


@click.command()
@collection_argument
@version_argument
@click.option("--check", is_flag=True, help="Only report whether it could: nothing is moved.")
@click.option("--approve", is_flag=True, help="Let a cutover that waits for approval go on.")
@click.option("--cancel", is_flag=True, help="Withdraw a cutover that waits, or is still examined.")
@click.option(
    "--force",
    metavar="REASON",
    help="Cut over although the gate fails (quality, coverage, lag); kept in the journal. Never overrides the sweep.",
)
@click.option(
    "--accept-inconclusive",
    metavar="REASON",
    help="Cut over although the gate cannot tell; refused all the same when it fails. Kept in the journal.",
)
@click.option(
    "--accept-held",
    multiple=True,
    metavar="KEY",
    help="Accept that this document stands in the dead letters; once for each.",
)
@click.option(
    "--accept-lost",
    type=click.IntRange(min=1),
    metavar="N",
    help="Give up as many documents that the topic no longer has, the serving space has and this one has not.",
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
    approve: bool,
    cancel: bool,
    force: str | None,
    accept_inconclusive: str | None,
    accept_held: tuple[str, ...],
    accept_lost: int | None,
    why: str,
    timeout_s: float,
    as_json: bool,
) -> None:
    """Move search to VERSION, atomically, once a sweep has found its space equal to the log and the gate lets it pass.

    The version that served until now is kept current for a rollback. Where the configuration says so, the cutover
    then waits for a file to go away or for somebody's --approve, and is examined again when it goes on.

    Example: crossfade cutover articles v2 --check
    """
    args = _args(check, approve, cancel, force, accept_inconclusive, accept_held)
    if accept_lost is not None:
        args["accept_lost"] = accept_lost

    async def work() -> None:
        async with session(options) as opened, opened.state() as view:
            view.build(collection, version)
            if not (approve or cancel):
                args["from"] = view.collection(collection).serving  # refused if somebody swaps before it arrives
            command = Command(verb="cutover", collection=collection, version=version, args=args, who=whoami(), why=why)
            waits_for = "the sweep and the gate" if check else "the sweep, the gate and the swap"
            outcome = await ask(opened, view, command, timeout_s=timeout_s, waits_for=waits_for)
            previous = view.collection(collection).previous
        then = outcome.next_step if not outcome.ok else _next(outcome, collection, version, check or cancel, previous)
        if as_json:
            emit(outcome_json(outcome, then))
        elif outcome.ok:
            if _verified(outcome):
                click.echo(outcome.message)
            for line in figures(outcome.data):
                click.echo(line)
        else:
            for line in figures(outcome.data):
                say(line)
        require(outcome)
        if not _verified(outcome):
            raise Failed(outcome.message, next_step=then)
        if not as_json:
            next_line(then)

    run(work())


def _args(
    check: bool,
    approve: bool,
    cancel: bool,
    force: str | None,
    accept_inconclusive: str | None,
    accept_held: Sequence[str],
) -> dict[str, JsonValue]:
    """Raises UsageError for what does not go together."""
    reasons = {"--force": force, "--accept-inconclusive": accept_inconclusive}
    if check + approve + cancel > 1:
        raise click.UsageError("--check, --approve and --cancel do not go together")
    for name, reason in reasons.items():
        if reason is not None and not reason.strip():
            raise click.UsageError(f"{name} wants a reason in words: it stands in the journal for ever")
        if reason is not None and (approve or cancel):
            raise click.UsageError(
                f"{name} does not go with --approve or --cancel: withdraw the cutover and ask for it again"
            )
    args: dict[str, JsonValue] = {
        name: True for name, given in (("check", check), ("approve", approve), ("cancel", cancel)) if given
    }
    if force is not None:
        args["force"] = force
    if accept_inconclusive is not None:
        args["accept_inconclusive"] = accept_inconclusive
    if accept_held:
        args["accept_held"] = list(accept_held)
    return args


def _next(outcome: CommandOutcome, collection: str, version: str, unmoved: bool, previous: str | None) -> str:
    if isinstance(said := outcome.data.get("next"), str):
        return said
    if unmoved:
        return f"crossfade cutover {collection} {version}"
    if previous:
        return f"crossfade rollback {collection}, if anything is wrong with {version}"
    return f"crossfade search {collection} QUERY"


def _verified(outcome: CommandOutcome) -> bool:
    """Otherwise its message is the error."""
    return "answers" not in outcome.data or outcome.data["answers"] == VERIFIED


VERIFIED = "as it should"


def figures(data: Mapping[str, JsonValue], *, brief: bool = False) -> list[str]:
    """What was looked at before a cutover and after it, a line each; none of what was not. `brief`: of the gate, the
    verdict and what did not pass."""
    found = ", ".join(
        f"{name} {_number(data[name])}"
        for name in ("checked", "missing", "stale", "extra", "held", "kept", "lost")
        if name in data
    )
    lines = [f"  sweep: {found}"] if found else []
    gate = data.get("gate")
    if isinstance(gate, Mapping):
        said = GateResult.from_json(gate).lines()
        lines += [f"  {plain(line)}" for line in said if not (brief and line.startswith("  ok "))]
    warmed = data.get("warm_up")
    if isinstance(warmed, Mapping) and "text" in warmed:
        lines.append(f"  {plain(str(warmed['text']))}")
    if isinstance(accepted := data.get("accepted_held"), list):
        lines.append(f"  accepted in the dead letters: {plain(', '.join(map(str, accepted)))}")
    if isinstance(given_up := data.get("accepted_lost"), int):
        lines.append(f"  given up, though the serving space has them: {count(given_up, 'document')}")
    for name, title in (
        ("forced", "forced"),
        ("accepted_inconclusive", "accepted although inconclusive"),
        ("asked_by", "asked for by"),
        ("approved_by", "approved by"),
    ):
        if data.get(name):
            lines.append(f"  {title}: {plain(str(data[name]))}")
    if "answers" in data:
        answers = data["answers"]
        lines.append(f"  verified: {'its queries are answered by its space' if answers == VERIFIED else 'NO'}")
    return lines


def _number(value: JsonValue) -> str:
    return f"{value:,}" if isinstance(value, int) else plain(str(value))


@click.command()
@collection_argument
@click.option("--accept-lag", is_flag=True, help="Go back however far the previous version lags behind the log.")
@click.option(
    "--max-lag",
    type=click.IntRange(min=0),
    metavar="EVENTS",
    help="Refuse when the previous version is further behind the log than this.  [default: cutover.max_rollback_lag "
    "of the configuration, else 1000]",
)
@click.option(
    "--from",
    "serving",
    metavar="VERSION",
    help="What serves now and shall not any more; wanted when the last swap was a rollback itself.",
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
    serving: str | None,
    why: str,
    timeout_s: float,
    as_json: bool,
) -> None:
    """Move search back to the previous version, which was kept current; the other one is kept current in turn.

    Refused when something else serves by the time it arrives than when you asked, or when somebody has just rolled
    back already: two of them never cancel each other out.

    Example: crossfade rollback articles --why "worse answers for short queries"
    """

    async def work() -> None:
        args: dict[str, JsonValue] = {}
        if accept_lag:
            args["accept_lag"] = True
        if max_lag is not None:
            args["max_lag"] = max_lag
        async with session(options) as opened, opened.state() as view:
            args["from"] = serving or view.collection(collection).serving
            args["named"] = serving is not None
            command = Command(verb="rollback", collection=collection, args=args, who=whoami(), why=why)
            outcome = require(await ask(opened, view, command, timeout_s=timeout_s))
        then = outcome.data.get("next") or f"crossfade status {collection}"
        if as_json:
            emit(outcome_json(outcome, str(then)))
        else:
            if _verified(outcome):
                click.echo(outcome.message)
            lag = outcome.data.get("lag", 0)
            behind = count(lag if isinstance(lag, int) else 0, "event")
            click.echo(f"  {outcome.data.get('serving')} was {behind} behind the log")
            for line in figures(outcome.data):
                click.echo(line)
        if not _verified(outcome):
            raise Failed(outcome.message, next_step=str(then))
        if not as_json:
            next_line(str(then))

    run(work())
