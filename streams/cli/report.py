"""The verb `report`: one HTML page of a migration, from the topics alone.

It reads state, journal, progress and the headers of the dead letters, and writes nothing but its file.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from pathlib import Path

import click

from connectors.errors import NotFound, Refused
from connectors.kafka.headers import read_headed
from streams.cli import Options
from streams.cli.builds import collection_argument, version_argument
from streams.cli.history import entries_of
from streams.cli.output import emit, json_option, next_line
from streams.cli.report_facts import Facts, facts_json, facts_of
from streams.cli.report_page import MARK, page
from streams.cli.session import Session, run, session
from streams.state import BuildState
from streams.wiring import wall_ms


@click.command()
@collection_argument
@version_argument
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    metavar="FILE",
    help="Where to write the page; - for stdout.  [default: COLLECTION-VERSION-EPOCH.html in this folder]",
)
@json_option
@click.pass_obj
def report(options: Options, collection: str, version: str, output: Path | None, as_json: bool) -> None:
    """Write one HTML page about the newest build of VERSION: what was done and when, throughput and lag over time,
    coverage, gate, sweeps, costs, and the faults it survived.

    The page holds everything it shows and runs no script; it has no text of a document in it. With --json the same
    facts come as an object, and a page is written only where --output says so.

    Example: crossfade report articles v2 --output v2.html
    """
    to_stdout = output is not None and str(output) == "-"
    if to_stdout and as_json:
        raise click.UsageError("--output - and --json both want stdout")

    async def work() -> None:
        async with session(options) as opened:
            facts = await look(opened, collection, version)
        if to_stdout:
            click.echo(page(facts), nl=False)
            return
        path = output
        if path is None and not as_json:
            path = Path(f"{collection}-{version}-{facts.build.epoch}.html")
        if path is not None:
            write(path, page(facts))
        if as_json:
            emit(facts_json(facts))
        elif path is not None:
            click.echo(f"the report of {facts.build.key} stands in {path}")
            next_line(f"open {path} in a browser, or print it")

    run(work())


async def look(opened: Session, collection: str, version: str) -> Facts:
    """Raises NotFound with the names that exist."""
    async with opened.state() as view, opened.progress() as progress:
        build = view.build(collection, version)
        return facts_of(
            view.collection(collection),
            build,
            await entries_of(opened, collection),
            progress.records.get(build.key),
            progress.series(build),
            await dead_letters(opened, build),
            wall_ms(),
        )


async def dead_letters(opened: Session, build: BuildState) -> dict[str, int]:
    """How many dead letters of this build there are, by cause; their bytes are not looked at."""
    causes: Counter[str] = Counter()
    named = (build.collection, build.version, str(build.epoch))
    try:
        async for headers, _ in read_headed(opened.kafka_settings, opened.names.dead_letters):
            if (headers.get("collection"), headers.get("version"), headers.get("epoch")) == named:
                causes[headers.get("cause", "unknown")] += 1
    except NotFound:
        return {}
    return dict(causes)


def write(path: Path, text: str) -> None:
    """Whole or not at all, and in the place of nothing but an older report. Raises Refused."""
    try:
        if path.exists() and not _is_report(path):
            raise Refused(
                f"{path} exists and is no report of Crossfade: it stays as it is",
                next_step="name another file: crossfade report COLLECTION VERSION --output FILE",
            )
        handle, fresh = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(fresh, 0o666 & ~umask)  # mkstemp's is for one's own eyes only
            os.replace(fresh, path)
        except BaseException:
            Path(fresh).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise Refused(
            f"{path} cannot be written: {error.strerror}",
            next_step="name a file in a folder of yours: crossfade report COLLECTION VERSION --output FILE",
        ) from error


def _is_report(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.read(len(MARK)) == MARK
