"""The verb `shadow`: how the version that is brought in agrees with the serving one, in queries that users have asked.

It only reads what servers have published, and writes a file where it is told to; it asks no space.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import click

from connectors.errors import Refused
from connectors.protocols import JSON
from streams.cli import Options
from streams.cli.builds import collection_argument
from streams.cli.output import count, emit, json_option, next_line, plain
from streams.cli.session import Session, run, session
from streams.search.rolling import compared
from streams.search.sampled import read_sample, write_new


@click.command()
@collection_argument
@click.option(
    "--sample",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the queries that servers have kept in routes.shadow.sample.topic to this new file, to be judged.",
)
@json_option
@click.pass_obj
def shadow(options: Options, collection: str, path: Path | None, as_json: bool) -> None:
    """Show what all servers have compared: overlap, order, latency and empty answers of the queries that they asked of
    the version of COLLECTION that is brought in as well (routes.shadow).

    Example: crossfade shadow articles
    """

    async def work() -> None:
        if path is not None:
            async with session(options) as opened:
                await _export(opened, collection, path, as_json)
            return
        async with session(options) as opened, opened.state() as view, opened.progress() as progress:
            build, settings = view.coming(collection), opened.settings.collection(collection).routes.shadow
            serving = view.collection(collection).serving
            found = None
            if build is not None and serving is not None:
                found = compared(view.build(collection, serving), build, progress.searches(collection))
            if build is None:
                then = f"crossfade status {collection}"
            elif found is None:
                then = "set routes.shadow.share above 0" if settings.share <= 0 else "crossfade serve, and ask it"
            else:
                then = f"crossfade evaluate {collection} {build.version}"
        if as_json:
            emit({"collection": collection, "shadow": found, "next": then})
            return
        if build is None:
            click.echo(f"{collection}: no version is brought in, so there is nothing to compare")
        elif found is None:
            click.echo(f"{collection}: no query was asked of {build.version} beside {serving} yet")
        else:
            for line in lines(collection, found):
                click.echo(plain(line))
        next_line(then)

    run(work())


async def _export(opened: Session, collection: str, path: Path, as_json: bool) -> None:
    """Raises Refused where no topic is configured, or the file is there already; NotFound without the topic."""
    sample = opened.settings.collection(collection).routes.shadow.sample
    if sample is None or sample.topic is None:
        raise Refused(
            f"{collection} keeps no sample in a topic",
            next_step="set routes.shadow.sample.topic; a sample in a file is on the machine of its server",
        )
    kept = await read_sample(opened.kafka, sample.topic)
    try:
        await asyncio.to_thread(write_new, path, kept)
    except OSError as error:
        raise Refused(
            f"{path} cannot be written: {error.strerror}", next_step="name a file that is not there yet"
        ) from error
    then = f"fill in relevant of each line, then: crossfade evaluate {collection} VERSION --golden {path}"
    if as_json:
        emit({"collection": collection, "queries": len(kept), "file": str(path), "next": then})
        return
    click.echo(f"{collection}: {len(kept):,} queries to judge in {path}")
    next_line(then)


def lines(collection: str, found: Mapping[str, JSON]) -> list[str]:
    """What was asked and compared, then the figures of both versions."""
    replicas = found["replicas"]
    assert isinstance(replicas, int)
    said = [
        f"{collection}: {found['asked']:,} queries of {found['live']} also asked of {found['shadow']} by "
        f"{count(replicas, 'server')}: {found['compared']:,} compared, {found['failed']:,} failed, "
        f"{found['dropped']:,} dropped"
    ]
    if not found["compared"]:
        return said
    said.append(
        f"  of the first {found['k']}: overlap {_share(found['overlap'])}, in order {_share(found['rank_overlap'])}"
    )
    for title, name, form in (("found nothing", "zero_results", _share), ("95% within", "p95_ms", _ms)):
        said.append(
            f"  {title}: {found['live']} {form(found[f'live_{name}'])}, "
            f"{found['shadow']} {form(found[f'shadow_{name}'])}"
        )
    return said


def _share(value: JSON) -> str:
    return f"{value:.1%}" if isinstance(value, float) else "-"


def _ms(value: JSON) -> str:
    return f"{value:,.1f} ms" if isinstance(value, float) else "-"
