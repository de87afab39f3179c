"""The verb `plan`: what building a version will take, before anything is begun.

It reads the topic, the state and what Weaviate says; it writes nothing, and asks an endpoint only with --probe.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from connectors.errors import ConfigurationError, CrossfadeError, NotFound, Transient
from connectors.kafka.inspection import Inspection
from connectors.protocols import Embedder, Space, VectorStore
from connectors.weaviate.capacity import capacity
from connectors.weaviate.spaces import open_store
from streams.cli import Options
from streams.cli.builds import collection_argument, version_argument
from streams.cli.output import emit, json_option, next_line, say
from streams.cli.plan_lines import lines, next_step, plan_json
from streams.cli.session import Session, read_settings, run, session
from streams.config import Settings
from streams.config_embedders import Version
from streams.migration.plan_scan import Progress
from streams.planning import Known, Planned, make_plan
from streams.progress import ProgressRecord
from streams.state import BuildState
from streams.views import ProgressView
from streams.wiring import capacity_settings, make_embedders, weaviate_settings

SAMPLE = 2_000


@click.command()
@collection_argument
@version_argument
@click.option(
    "--sample",
    type=click.IntRange(min=2),
    default=SAMPLE,
    show_default=True,
    metavar="N",
    help="Documents whose tokens are counted, chosen at random.",
)
@click.option("--exact", is_flag=True, help="Count the tokens of every document.")
@click.option("--probe", is_flag=True, help="Measure the endpoint, with a few requests of a built-in text.")
@json_option
@click.pass_obj
def plan(options: Options, collection: str, version: str, sample: int, exact: bool, probe: bool, as_json: bool) -> None:
    """What building VERSION will take: documents, tokens, cost, time, disk and memory, and what may go wrong.

    Changes nothing and, without --probe, spends nothing. Reads the whole topic twice: first its keys, then the newest
    form of each document. A running worker starts a version as soon as it stands in its configuration: plan before, or
    with a copy of the file.

    \b
    Example: crossfade plan articles v2
             crossfade --config planned.yaml plan articles v2 --exact
    """
    _, settings = read_settings(options)
    declared = settings.collection(collection).version(version)  # a misspelt name is refused before Kafka is asked

    async def work() -> Planned:
        async with session(options) as opened, known(opened, collection) as what, embedders_of(declared) as embedders:
            with _bars() as progress:
                return await make_plan(
                    opened.settings,
                    opened.kafka,
                    Inspection(opened.kafka_settings),
                    what,
                    embedders,
                    collection,
                    version,
                    sample=None if exact else sample,
                    probe=probe,
                    progress=progress,
                )

    planned = run(work())
    if as_json:
        emit(plan_json(planned))
        return
    for line in lines(planned):
        click.echo(line)
    next_line(next_step(planned))


@asynccontextmanager
async def embedders_of(version: Version) -> AsyncIterator[Sequence[tuple[str, Embedder]]]:
    made = make_embedders(version)
    try:
        yield made
    finally:
        for _, embedder in made:
            await embedder.close()


@asynccontextmanager
async def known(opened: Session, collection: str) -> AsyncIterator[Known]:
    """What state, progress and Weaviate say; without any of them a plan is possible all the same."""
    async with AsyncExitStack() as stack:
        builds: list[BuildState] = []
        progress: ProgressView | None = None
        with contextlib.suppress(NotFound):  # no worker ever ran here: nothing was built
            builds = (await stack.enter_async_context(opened.state())).builds_of(collection)
            progress = await stack.enter_async_context(opened.progress())
        store = await stack.enter_async_context(_store(opened.settings)) if any(b.active for b in builds) else None

        def of_partitions(build: BuildState) -> list[ProgressRecord]:
            return progress.partitions(build) if progress is not None else []

        async def objects(build: BuildState) -> int | None:
            with contextlib.suppress(CrossfadeError):
                return await store.space(build.space).count() if store is not None else None
            return None

        def space(build: BuildState) -> Space | None:
            return store.space(build.space) if store is not None else None

        left = await capacity(capacity_settings(opened.settings))
        yield Known(builds, of_partitions, objects, left, space)


@asynccontextmanager
async def _store(settings: Settings) -> AsyncIterator[VectorStore | None]:
    """None where Weaviate does not answer: the sizes of what is there are then taken from the log."""
    try:
        store = await open_store(weaviate_settings(settings))
    except (Transient, ConfigurationError) as error:
        say(f"Weaviate is left out: {error.message}")
        yield None
        return
    try:
        yield store
    finally:
        await store.close()


@contextmanager
def _bars() -> Iterator[Progress]:
    """On a terminal a bar for each pass, on stderr; elsewhere nothing."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda *_: None
        return
    columns = (TextColumn("reading {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, console=console, transient=True) as bars:
        tasks = {what: bars.add_task(what, total=None, visible=False) for what in ("keys", "documents")}
        yield lambda what, done, whole: bars.update(tasks[what], completed=done, total=whole, visible=True)
