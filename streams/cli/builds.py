"""Verbs that change one build: start, pause, resume, set, abort, retire.

They only ask the controller; nothing here writes a space, the state or the alias.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable

import click
from pydantic import JsonValue

from streams import controls
from streams.cli import Options
from streams.cli.output import WIDTH, F, emit, json_option, next_line, outcome_json, require
from streams.cli.session import ASK_S, ask, run, session
from streams.config import envelope_of
from streams.config_operation import Throttle
from streams.control import whoami
from streams.state import Command, Verb

collection_argument = click.argument("collection")
version_argument = click.argument("version")
confirm_option = click.option(
    "--confirm", default="", metavar="VERSION", help="The version's name again: its space is deleted."
)
why_option = click.option("--why", default="", metavar="REASON", help="Why, in words; kept in the journal.")


def timeout_option(default_s: float) -> Callable[[F], F]:
    option: Callable[[F], F] = click.option(
        "--timeout",
        "timeout_s",
        type=click.FloatRange(min=0.1),
        default=default_s,
        show_default=True,
        metavar="SECONDS",
        help="How long to wait for the controller.",
    )
    return option


@click.command()
@collection_argument
@version_argument
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True, max=1e6),
    metavar="DOCS_PER_S",
    help="Hold the replay at this many documents a second. Else replay_rate of the configuration.",
)
@why_option
@timeout_option(ASK_S)
@json_option
@click.pass_obj
def start(
    options: Options, collection: str, version: str, rate: float | None, why: str, timeout_s: float, as_json: bool
) -> None:
    """Begin building VERSION of COLLECTION: its own space, written live from now on, its history replayed beside.

    Example: crossfade start articles v2 --rate 50
    """

    async def work() -> None:
        async with session(options) as opened:
            configured = opened.settings.collection(collection)
            fingerprint = envelope_of(configured, configured.version(version)).fingerprint
            args: dict[str, JsonValue] = {"fingerprint": fingerprint}
            if rate is not None:
                args["replay_rate"] = rate
            command = Command(verb="start", collection=collection, version=version, args=args, who=whoami(), why=why)
            async with opened.state() as view:
                outcome = require(await ask(opened, view, command, timeout_s=timeout_s))
        then = f"crossfade status {collection} {version} -w"
        if as_json:
            emit(outcome_json(outcome, then))
            return
        click.echo(outcome.message)
        next_line(then)

    run(work())


def _change(
    options: Options,
    verb: Verb,
    collection: str,
    version: str,
    args: dict[str, JsonValue],
    why: str,
    timeout_s: float,
    as_json: bool,
    then: str,
) -> None:
    """Ask for one change of a build that exists, and print what came of it."""

    async def work() -> None:
        async with session(options) as opened, opened.state() as view:
            view.build(collection, version)  # a misspelt name is refused here, with the names there are
            command = Command(verb=verb, collection=collection, version=version, args=args, who=whoami(), why=why)
            outcome = require(await ask(opened, view, command, timeout_s=timeout_s))
        if as_json:
            emit(outcome_json(outcome, then))
            return
        click.echo(outcome.message)
        next_line(then)

    run(work())


@click.command()
@collection_argument
@version_argument
@click.option("--all", "everything", is_flag=True, help="Hold live writes too: the space then falls behind the log.")
@why_option
@timeout_option(ASK_S)
@json_option
@click.pass_obj
def pause(
    options: Options, collection: str, version: str, everything: bool, why: str, timeout_s: float, as_json: bool
) -> None:
    """Hold the replay of VERSION until `resume`; live events are still written, unless --all.

    Example: crossfade pause articles v2 --why "the endpoint is needed elsewhere"
    """
    then = f"crossfade resume {collection} {version}"
    _change(options, "pause", collection, version, {"all": everything}, why, timeout_s, as_json, then)


@click.command()
@collection_argument
@version_argument
@why_option
@timeout_option(ASK_S)
@json_option
@click.pass_obj
def resume(options: Options, collection: str, version: str, why: str, timeout_s: float, as_json: bool) -> None:
    """Let VERSION go on after `pause`, or after it stopped for a cause that has been removed.

    Example: crossfade resume articles v2
    """
    then = f"crossfade status {collection} {version} -w"
    _change(options, "resume", collection, version, {}, why, timeout_s, as_json, then)


@click.command("set")
@collection_argument
@version_argument
@click.argument("changes", nargs=-1, required=True, metavar="KEY=VALUE...")
@why_option
@timeout_option(ASK_S)
@json_option
@click.pass_obj
def set_(
    options: Options,
    collection: str,
    version: str,
    changes: tuple[str, ...],
    why: str,
    timeout_s: float,
    as_json: bool,
) -> None:
    """Change VERSION while it runs, or read how it stands with ? (KEY=? for one of them).

    \b
    replay_rate              documents a second of the replay
    budget_usd               most USD that may be spent on embeddings before VERSION serves
    concurrency              requests of the replay at once, of each worker
    tiers                    order of the replay: listed,newest
    max_live_lag, max_weaviate_latency_ms, max_disk, max_memory, max_endpoint_errors
                             bounds beyond which the replay is held (events,
                             milliseconds, shares of 1); 0 for none

    none goes back to no limit, or to what is configured. Live writes are never slowed by any of them.

    Example: crossfade set articles v2 replay_rate=50 max_live_lag=500

    Example: crossfade set articles v2 '?'
    """
    args: dict[str, JsonValue] = {}
    asked: list[str] = []
    for change in changes:
        try:
            name, value = controls.read(change)
        except controls.Unreadable as error:
            raise click.UsageError(str(error)) from None
        if value == controls.READ:
            asked.append(name)
        elif name in args:
            raise click.UsageError(f"{name} is given twice")
        else:
            args[name] = value
    if asked and args:
        raise click.UsageError("? reads and KEY=VALUE changes: one of them at a time")
    if asked:
        _read_controls(options, collection, version, asked, as_json)
        return
    then = f"crossfade status {collection} {version} -w"
    _change(options, "set", collection, version, args, why, timeout_s, as_json, then)


def _read_controls(options: Options, collection: str, version: str, asked: list[str], as_json: bool) -> None:
    """Every control, or those that were asked for: value, where it comes from, unit and range. Changes nothing."""

    async def work() -> None:
        async with session(options) as opened, opened.state() as view:
            build = view.build(collection, version)
            declared = opened.settings.collections.get(collection)
            of_version = declared.versions.get(version) if declared is not None else None
            standing = controls.standing(
                build.controls,
                declared.throttle if declared is not None else Throttle(),
                replay_rate=of_version.replay_rate if of_version is not None else None,
                budget_usd=of_version.budget_usd if of_version is not None else None,
                tiers=declared.priority.tiers if declared is not None else ("rest",),
            )
        wanted = [one for one in standing if "" in asked or one.control.name in asked]
        then = f"crossfade set {collection} {version} {wanted[0].control.name}=VALUE"
        if as_json:
            shown = [
                {
                    "name": one.control.name,
                    "value": one.value,
                    "source": one.source,
                    "unit": one.control.unit,
                    "range": one.control.range,
                }
                for one in wanted
            ]
            emit({"collection": collection, "version": version, "controls": shown, "next": then})
            return
        click.echo(f"{build.key}: what can be set while it runs")
        for one in wanted:
            said = f"  {one.control.name:<24}{one.text:<16}{one.source:<14} "
            meaning = textwrap.wrap(f"{one.control.unit}; {one.control.range}", WIDTH - len(said))
            click.echo(said + f"\n{' ' * len(said)}".join(meaning))
        next_line(then)

    run(work())


@click.command()
@collection_argument
@version_argument
@confirm_option
@why_option
@timeout_option(ASK_S)
@json_option
@click.pass_obj
def abort(
    options: Options, collection: str, version: str, confirm: str, why: str, timeout_s: float, as_json: bool
) -> None:
    """Give up the build of VERSION and delete its space. Refused for the version that serves.

    Example: crossfade abort articles v2 --confirm v2
    """
    then = f"crossfade start {collection} {version}"
    _change(options, "abort", collection, version, {"confirm": confirm}, why, timeout_s, as_json, then)


@click.command()
@collection_argument
@version_argument
@confirm_option
@why_option
@timeout_option(ASK_S)
@json_option
@click.pass_obj
def retire(
    options: Options, collection: str, version: str, confirm: str, why: str, timeout_s: float, as_json: bool
) -> None:
    """Stop writing VERSION and delete its space; nothing can go back to it. Refused for the version that serves.

    Example: crossfade retire articles v1 --confirm v1
    """
    then = f"crossfade status {collection}"
    _change(options, "retire", collection, version, {"confirm": confirm}, why, timeout_s, as_json, then)
