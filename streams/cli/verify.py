"""The verbs `verify` and `redrive`: the two-way sweep of a version's space against the log, and what mends it.

The command line only reads and asks: the partitions' owners write, from the log, at its own offsets.
"""

from __future__ import annotations

import asyncio

import click

from connectors.errors import Refused, Transient
from connectors.protocols import JSON
from streams.cli import Options
from streams.cli.builds import collection_argument, timeout_option, version_argument
from streams.cli.output import Failed, count, emit, json_option, next_line, plain, require, say
from streams.cli.session import ASK_S, SWEEP_S, Session, ask, reporting, run, session, with_weaviate
from streams.control import whoami
from streams.migration.sweep import NAMED, Sweep
from streams.migration.verify import verify as compare
from streams.progress import Counters, counted
from streams.state import BuildState, Command, Verb
from streams.versions import Stage, next_command
from streams.views import ProgressView, StateView

MEANING = {
    "missing": "in the log, not in the space",
    "stale": "the space holds another form than the log's newest",
    "extra": "in the space, deleted or unknown in the log",
    "held": "the newest record is in the dead letters: an earlier form, or nothing, stands",
    "lost": "forgotten by the topic, kept by the serving space, not here: search would lose it with a cutover",
}


@click.command()
@collection_argument
@version_argument
@click.option("--repair", is_flag=True, help="Have the workers mend what differs first, then compare.")
@timeout_option(SWEEP_S)
@json_option
@click.pass_obj
def verify(options: Options, collection: str, version: str, repair: bool, timeout_s: float, as_json: bool) -> None:
    """Compare the whole space of VERSION with the log, both ways: missing, stale, extra and held documents.

    Exit status 1 when anything is missing, stale or extra. Events may keep coming. Without --repair it only reads.

    Example: crossfade verify articles v2
    """

    async def work() -> tuple[BuildState, Sweep]:
        async with session(options) as opened, opened.state() as view:
            build = view.build(collection, version)
            if not build.active:
                raise Refused(
                    f"{build.key} is {build.stage}: it has no space to compare",
                    next_step=next_command(build.stage, collection=collection, version=version),
                )
            async with opened.progress() as progress:
                if not reporting(progress, build):
                    say(f"no worker is reporting on {build.key}: the sweep waits up to a minute for its live lane")
                if repair:
                    await _have_done(opened, view, progress, build, "repair", timeout_s)
            async with with_weaviate(opened) as outside:
                return build, await compare(outside, build, view.serving(collection), say)

    build, found = run(work())
    then = _next(build, found)
    if as_json:
        emit(_json(build, found, then))
    else:
        _print(build, found)
        if found.clean:
            next_line(then)
    if not found.clean:
        raise Failed(
            f"{build.key} differs from the log: missing {found.missing}, stale {found.stale}, extra {found.extra}",
            next_step=then,
        )


@click.command()
@collection_argument
@version_argument
@timeout_option(SWEEP_S)
@json_option
@click.pass_obj
def redrive(options: Options, collection: str, version: str, timeout_s: float, as_json: bool) -> None:
    """Apply the dead letters of VERSION again, each at its own offset, unless its document has a newer record.

    What is refused again is in the dead letters again, with its cause.

    Example: crossfade redrive articles v2
    """

    async def work() -> tuple[BuildState, Counters, Counters]:
        async with session(options) as opened, opened.state() as view, opened.progress() as progress:
            build = view.build(collection, version)
            before = counted(progress.partitions(build))
            await _have_done(opened, view, progress, build, "redrive", timeout_s)
            return build, before, counted(progress.partitions(build))

    build, before, after = run(work())
    then = f"crossfade verify {collection} {version}"
    applied, refused = after.mended - before.mended, after.dead_letters - before.dead_letters
    if as_json:
        emit({"collection": collection, "version": version, "applied": applied, "refused": refused, "next": then})
        return
    click.echo(f"{build.key}: {count(applied, 'dead letter')} applied, {refused:,} refused again")
    next_line(then)


async def _have_done(
    opened: Session, view: StateView, progress: ProgressView, build: BuildState, verb: Verb, timeout_s: float
) -> None:
    """Ask the partitions' owners, and return when each has reported that it is done."""
    command = Command(verb=verb, collection=build.collection, version=build.version, who=whoami())
    outcome = require(await ask(opened, view, command, timeout_s=ASK_S))
    number = outcome.data.get("request")
    assert isinstance(number, int)

    def done(reports: ProgressView) -> bool:
        found = reports.partitions(build)
        return len(found) == build.partitions and all(report.requests_done >= number for report in found)

    say(f"{verb} of {build.key}: waiting for whoever owns its {count(build.partitions, 'partition')}")
    try:
        async with asyncio.timeout(timeout_s):
            await progress.wait_for(done)
    except TimeoutError as error:
        raise Transient(
            f"the {verb} of {build.key} is not done after {timeout_s:g} s; it goes on while its workers run",
            next_step=f"crossfade status {build.collection} {build.version}, then again with a longer --timeout",
        ) from error


def _next(build: BuildState, found: Sweep) -> str:
    if found.clean and found.unread and not found.held:
        return f"put the serving space right, then: crossfade verify {build.collection} {build.version} --repair"
    if found.clean and found.lost and not found.held:
        this = f"{build.collection} {build.version}"
        return (
            f"crossfade verify {this} --repair, which brings over what can be; or let them go: "
            f"crossfade cutover {this} --accept-lost {found.lost}"
        )
    if not found.clean or found.held:
        example = next((key for kind in MEANING for key in _named(found, kind)), "KEY")
        explain = f"crossfade explain {build.collection} {plain(example)}"
        mend = "redrive {} {}" if found.clean else "verify {} {} --repair"
        return f"{explain}; to mend: crossfade {mend.format(build.collection, build.version)}"
    if build.stage is Stage.READY:
        return f"crossfade cutover {build.collection} {build.version}"
    return f"crossfade status {build.collection} {build.version}"


def _print(build: BuildState, found: Sweep) -> None:
    click.echo(f"{build.key}: {'clean' if found.clean else 'not clean'}  (space {build.space}, topic {build.topic})")
    click.echo(
        f"  checked {found.checked:,}, missing {found.missing:,}, stale {found.stale:,}, extra {found.extra:,}, "
        f"held {found.held:,}"
    )
    if found.kept:
        click.echo(f"  kept {found.kept:,}: older than the topic's first record, so the space alone has them")
    if found.lost:
        click.echo(f"  lost {found.lost:,}: the serving space alone has them")
    if found.torn:
        click.echo(f"  torn {found.torn:,}: older than the topic's first record, and chunks of them are missing here")
    if found.unread:
        click.echo(f"  lost unknown: the serving space cannot be read: {found.unread}")
    if found.moved:
        click.echo(f"  {found.moved:,} left out: newer records of them came while the sweep ran")
    for kind, meaning in MEANING.items():
        if keys := _named(found, kind):
            click.echo(f"  {kind} ({meaning}): {', '.join(plain(key) for key in keys)}")


def _named(found: Sweep, kind: str) -> list[str]:
    return found.held_keys[:NAMED] if kind == "held" else found.examples.get(kind, [])


def _json(build: BuildState, found: Sweep, then: str) -> dict[str, JSON]:
    return {
        "collection": build.collection,
        "version": build.version,
        "epoch": build.epoch,
        "space": build.space,
        "clean": found.clean,
        "checked": found.checked,
        "missing": found.missing,
        "stale": found.stale,
        "extra": found.extra,
        "held": found.held,
        "moved": found.moved,
        "kept": found.kept,
        "lost": found.lost_if_known,
        "torn": found.torn,
        "unread": found.unread,
        "examples": {kind: [*keys] for kind in MEANING if (keys := _named(found, kind))},
        "next": then,
    }
