"""The verb `verify`: the two-way sweep of one version's space against the log, run here and now.

It reads only; what differs is named, never mended.
"""

from __future__ import annotations

import click

from connectors.errors import Refused
from connectors.protocols import JSON
from streams.cli import Options
from streams.cli.builds import collection_argument, version_argument
from streams.cli.output import Failed, emit, json_option, next_line, plain, say
from streams.cli.session import reporting, run, session, with_weaviate
from streams.migration.sweep import Sweep
from streams.migration.verify import verify as compare
from streams.state import BuildState
from streams.versions import Stage, next_command

MEANING = {
    "missing": "in the log, not in the space",
    "stale": "the space holds another form than the log's newest",
    "extra": "in the space, deleted or unknown in the log",
    "held": "the newest record is in the dead letters: an earlier form, or nothing, stands",
}


@click.command()
@collection_argument
@version_argument
@json_option
@click.pass_obj
def verify(options: Options, collection: str, version: str, as_json: bool) -> None:
    """Compare the whole space of VERSION with the log, both ways: missing, stale, extra and held documents.

    Exit status 1 when anything is missing, stale or extra. Reads only; events may keep coming.

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
            async with with_weaviate(opened) as outside:
                return build, await compare(outside, build, say)

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


def _next(build: BuildState, found: Sweep) -> str:
    if not found.clean or found.held:
        example = next((key for kind in MEANING for key in found.examples.get(kind, [])), "KEY")
        return f"crossfade explain {build.collection} {plain(example)}"
    if build.stage is Stage.READY:
        return f"crossfade cutover {build.collection} {build.version}"
    return f"crossfade status {build.collection} {build.version}"


def _print(build: BuildState, found: Sweep) -> None:
    click.echo(f"{build.key}: {'clean' if found.clean else 'not clean'}  (space {build.space}, topic {build.topic})")
    click.echo(
        f"  checked {found.checked:,}, missing {found.missing}, stale {found.stale}, extra {found.extra}, "
        f"held {found.held}"
    )
    if found.moved:
        click.echo(f"  {found.moved} left out: newer records of them came while the sweep ran")
    for kind, meaning in MEANING.items():
        if keys := found.examples.get(kind):
            click.echo(f"  {kind} ({meaning}): {', '.join(plain(key) for key in keys)}")


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
        "examples": {kind: list(keys) for kind, keys in found.examples.items()},
        "next": then,
    }
