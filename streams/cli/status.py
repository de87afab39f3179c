"""The verb `status`: every version's stage, progress and next command, once or as it changes.

It reads the state and progress topics only, so it works while Weaviate and the workers are away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import click
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from connectors.protocols import JSON
from streams.cli import Options
from streams.cli.output import emit, json_option, plain
from streams.cli.session import reporting, run, session
from streams.cli.status_lines import VersionStatus, heading, line, next_of, status_of, version_json
from streams.config import Settings, envelope_of
from streams.state import CollectionState, unknown
from streams.views import ProgressView, StateView
from streams.wiring import wall_ms

WATCH_EVERY_S = 1.0
STYLES = {
    "building": "cyan",
    "ready": "bright_cyan",
    "serving": "bold green",
    "previous": "blue",
    "paused": "yellow",
    "waiting": "yellow",
    "failed": "bold red",
    "aborted": "dim",
    "retired": "dim",
}

Shown = list[tuple[CollectionState, list[VersionStatus]]]


@click.command()
@click.argument("collection", required=False)
@click.argument("version", required=False)
@click.option("-w", "--watch", is_flag=True, help="Show it again every second until Ctrl-C.")
@json_option
@click.pass_obj
def status(options: Options, collection: str | None, version: str | None, watch: bool, as_json: bool) -> None:
    """What serves, and of each version its stage, documents done, rate, ETA, lag of live events and next command.

    \b
    Example: crossfade status articles v2 -w
    docs/v2  building  1,234/7,400  16.7%  52.1/s  eta 1m58s  lag 12  held at 50 documents/s
    """
    if watch and as_json:
        raise click.UsageError("--watch and --json do not go together: --json is one object, read once")

    async def work() -> None:
        async with session(options) as opened, opened.state() as view, opened.progress() as progress:
            shown = _look(opened.settings, view, progress, collection, version)
            if as_json:
                emit({"collections": [_json(state, statuses) for state, statuses in shown]})
            elif not watch:
                console = Console(highlight=False, soft_wrap=True)
                for text in _texts(shown):
                    console.print(text)
            else:
                await _watch(opened.settings, view, progress, collection, version)

    run(work())


async def _watch(
    settings: Settings, view: StateView, progress: ProgressView, collection: str | None, version: str | None
) -> None:
    """On a terminal in place; elsewhere the version lines again, whenever one has changed."""
    console = Console(highlight=False, soft_wrap=True)
    if console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            while True:
                live.update(Group(*_texts(_look(settings, view, progress, collection, version))), refresh=True)
                await asyncio.sleep(WATCH_EVERY_S)
    last: list[str] = []
    while True:
        shown = _look(settings, view, progress, collection, version)
        lines = [plain(line(one)) for _, statuses in shown for one in statuses]
        if lines != last:
            click.echo("\n".join(lines))
            last = lines
        await asyncio.sleep(WATCH_EVERY_S)


def _look(
    settings: Settings, view: StateView, progress: ProgressView, collection: str | None, version: str | None
) -> Shown:
    """What there is to show. Raises NotFound with the names that exist."""
    known = {
        name: state for name, state in view.collections.items() if view.builds_of(name) or name in settings.collections
    }
    for name, configured in settings.collections.items():
        known.setdefault(name, CollectionState(collection=name, alias=configured.alias, topic=configured.topic))
    if collection is not None:
        if collection not in known:
            raise unknown("collection", collection, known, "crossfade status lists everything")
        known = {collection: known[collection]}
    shown = [(state, _versions(settings, view, progress, state)) for _, state in sorted(known.items())]
    if version is None:
        return shown
    state, statuses = shown[0]
    chosen = [one for one in statuses if one.version == version]
    if not chosen:
        names = [one.version for one in statuses]
        raise unknown(f"version of {state.collection}", version, names, f"crossfade status {state.collection}")
    return [(state, chosen)]


def _versions(
    settings: Settings, view: StateView, progress: ProgressView, state: CollectionState
) -> list[VersionStatus]:
    """Those that were built, oldest first, then those the configuration only declares."""
    statuses = [
        status_of(build, progress.partitions(build), len(reporting(progress, build)), state, wall_ms())
        for build in sorted(view.builds_of(state.collection), key=lambda build: build.epoch)
    ]
    built = {one.version for one in statuses}
    configured = settings.collections.get(state.collection)
    if configured is not None:
        for name, version in configured.versions.items():
            if name not in built:
                fingerprint = envelope_of(configured, version).fingerprint
                tried = state.outcome(f"{state.collection}/{name}/{fingerprint}")
                refused = tried.message if tried and not tried.ok else ""
                statuses.append(VersionStatus(state.collection, name, None, None, 0, False, refused))
    return statuses


def _texts(shown: Shown) -> list[Text]:
    if not shown:
        return [
            Text("no collection yet"),
            Text("  next: declare one under collections in the configuration, then: crossfade worker"),
        ]
    texts: list[Text] = []
    for state, statuses in shown:
        texts.append(Text(plain(heading(state)), style="bold"))
        if not statuses:
            texts.append(Text(f"  next: declare a version under collections.{state.collection}.versions"))
        for one in statuses:
            text = Text(plain(line(one)))
            text.highlight_words([f"  {one.state:<8}"], STYLES.get(one.state, ""))
            texts += [text, Text(f"  next: {plain(next_of(one))}", style="dim")]
    return texts


def _json(state: CollectionState, statuses: Sequence[VersionStatus]) -> dict[str, JSON]:
    return {
        "collection": state.collection,
        "serving": state.serving,
        "previous": state.previous,
        "alias": state.alias,
        "topic": state.topic,
        "under_way": state.intent.command.verb if state.intent else None,
        "versions": [version_json(one) for one in statuses],
    }
