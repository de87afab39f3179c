"""The verb `status`: every version's stage, progress and next command, once or as it changes.

It reads the state and progress topics only, so it works while Weaviate and the workers are away.
"""

from __future__ import annotations

import asyncio
import dataclasses
import re
from collections.abc import Callable, Sequence

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.text import Text

from connectors.protocols import JSON
from streams.cli import Options
from streams.cli.output import Failed, emit, json_option, plain
from streams.cli.session import reporting, run, session
from streams.cli.status_lines import (
    VersionStatus,
    details,
    heading,
    line,
    next_of,
    note,
    notes,
    refresh_s,
    status_of,
    table,
    version_json,
)
from streams.config import Settings, envelope_of
from streams.config_operation import Retention
from streams.migration.retention import reminder
from streams.state import CollectionState, unknown
from streams.versions import Stage
from streams.views import ProgressView, StateView
from streams.wiring import wall_ms

LOOK_EVERY_S = 1.0
REPORTS_BEHIND = 3
BAR_WIDTH = 60
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
REACHED = {
    "ready": frozenset({Stage.READY, Stage.SERVING, Stage.PREVIOUS}),
    "serving": frozenset({Stage.SERVING}),
}

Shown = list[tuple[CollectionState, list[VersionStatus]]]


@click.command()
@click.argument("collection", required=False)
@click.argument("version", required=False)
@click.option(
    "-w",
    "--watch",
    is_flag=True,
    help="Go on until Ctrl-C: each second near a build's start and end, else each 5 to 10.",
)
@click.option(
    "--until",
    type=click.Choice(sorted(REACHED)),
    help="Watch the VERSION until it is so, and exit 0; 1 when its build fails or is given up.",
)
@json_option
@click.pass_obj
def status(
    options: Options, collection: str | None, version: str | None, watch: bool, until: str | None, as_json: bool
) -> None:
    """What serves, and of each version its stage, documents done, rate, ETA, lag of live events, spend and reason.

    With a VERSION also its space, controls, coverage and partitions.

    \b
    Example: crossfade status articles v2 -w
    docs/v2  building  1,234/7,400  16.7%  52.1/s  eta 1m58s  lag 12  spent 0.42 USD  held at 50 documents/s
    """
    if (watch or until) and as_json:
        raise click.UsageError(
            f"{'--watch' if watch else '--until'} and --json do not go together: --json is one object, read once"
        )
    if until and version is None:
        raise click.UsageError("--until needs COLLECTION and VERSION: it waits for one version")

    async def work() -> None:
        async with session(options) as opened, opened.state() as view, opened.progress() as progress:

            def look() -> Shown:
                return _look(opened.settings, view, progress, collection, version)

            shown = look()
            if as_json:
                emit({"collections": [_json(state, statuses) for state, statuses in shown]})
            elif watch or until:
                await _Watch(look, version is not None, until).run()
            else:
                console = Console(highlight=False, soft_wrap=True)
                for text in _texts(shown, version is not None):
                    console.print(text)

    run(work())


class _Watch:
    """Shows what changes: at a terminal in place with progress bars, elsewhere as lines, without control characters."""

    def __init__(self, look: Callable[[], Shown], in_full: bool, until: str | None) -> None:
        self._look = look
        self._in_full = in_full
        self._until = until
        self._lines: dict[str, str] = {}
        self._conditions: dict[str, str] = {}
        self._due_s = 0.0

    async def run(self) -> None:
        """Until it is cancelled, or what is waited for is so. Raises Failed when that can no longer come."""
        console = Console(highlight=False)
        if not console.is_terminal or console.is_dumb_terminal:
            await self._follow(lambda shown: self._print(shown))
            return
        with Live(console=console, auto_refresh=False) as live:
            await self._follow(lambda shown: live.update(Group(*_frame(shown, self._in_full)), refresh=True))

    async def _follow(self, show: Callable[[Shown], None]) -> None:
        """Look each second; show when the numbers are due, or at once when a state or its reason is another."""
        behind = REPORTS_BEHIND
        while True:
            shown = self._look()
            statuses = [one for _, some in shown for one in some]
            now_s = asyncio.get_running_loop().time()
            conditions = {one.name: _condition(one) for one in statuses}
            over = bool(self._until) and _reached(statuses[0], self._until or "")
            if over and behind and statuses[0].whole is not None and not statuses[0].whole.replay_done:
                behind -= 1  # the reports follow the stage by a second: do not end on 99.9%
                await asyncio.sleep(LOOK_EVERY_S)
                continue
            if over or now_s >= self._due_s or conditions != self._conditions:
                show(shown)
                self._conditions = conditions
                self._due_s = now_s + refresh_s(statuses) - LOOK_EVERY_S / 2
            if over:
                return
            await asyncio.sleep(LOOK_EVERY_S)

    def _print(self, shown: Shown) -> None:
        for one in (one for _, some in shown for one in some):
            text = plain(line(one))
            if self._lines.get(one.name) != text:
                click.echo(text)
                self._lines[one.name] = text


def _condition(status: VersionStatus) -> str:
    """What is shown at once when it changes: the state and its reason, but not the numbers in it."""
    return re.sub(r"[\d,.]+", "#", f"{status.state} {note(status)}")


def _reached(status: VersionStatus, until: str) -> bool:
    """Raises Failed when the build has stopped, was given up, or could not be started."""
    build = status.build
    if build is not None and build.failure is None and build.stage in REACHED[until]:
        return True
    if build is None and not status.refused:
        return False
    if build is None or build.failure is not None or not build.active:
        raise Failed(
            f"{status.name} is {status.state} and will not become {until}: {note(status)}", next_step=next_of(status)
        )
    return False


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
        status_of(
            build,
            progress.partitions(build),
            len(reporting(progress, build)),
            state,
            wall_ms(),
            progress.records.get(build.key),
        )
        for build in sorted(view.builds_of(state.collection), key=lambda build: build.epoch)
    ]
    built = {one.version: one for one in statuses}
    configured = settings.collections.get(state.collection)
    if (kept := built.get(state.previous or "")) is not None:
        serving = view.builds.get(f"{state.collection}/{state.serving}")
        rules = configured.retention if configured is not None else Retention()
        reminds = reminder(state, serving, kept.build, rules, wall_ms())
        statuses[statuses.index(kept)] = dataclasses.replace(kept, reminder=reminds)
    if configured is not None:
        for name, version in configured.versions.items():
            if name not in built:
                fingerprint = envelope_of(configured, version).fingerprint
                tried = state.outcome(f"{state.collection}/{name}/{fingerprint}")
                refused = tried.message if tried and not tried.ok else ""
                statuses.append(VersionStatus(state.collection, name, None, None, 0, False, refused))
    return statuses


def _texts(shown: Shown, in_full: bool) -> list[Text]:
    """Headings, one line a version under each other, and what to do next; with `in_full` what else is known."""
    return [text for text, _ in _parts(shown, in_full)]


def _frame(shown: Shown, in_full: bool) -> list[RenderableType]:
    """The same for a terminal, with a progress bar under each version that replays."""
    frame: list[RenderableType] = []
    for text, status in _parts(shown, in_full):
        frame.append(text)
        if status is not None and status.replaying and status.whole is not None:
            bar = ProgressBar(
                total=max(1, status.whole.total), completed=status.whole.completed, width=BAR_WIDTH, pulse=False
            )
            frame.append(Padding(bar, (0, 0, 0, 2)))
    return frame


def _parts(shown: Shown, in_full: bool) -> list[tuple[Text, VersionStatus | None]]:
    """Lines to print; those of a version with its status."""
    if not shown:
        return [
            (Text("no collection yet"), None),
            (Text("  next: declare one under collections in the configuration, then: crossfade worker"), None),
        ]
    rows = iter(table([one for _, statuses in shown for one in statuses]))
    parts: list[tuple[Text, VersionStatus | None]] = []
    for state, statuses in shown:
        parts.append((Text(plain(heading(state)), style="bold"), None))
        for said, step in notes(state, statuses):
            parts.append((Text(f"  {plain(said)}", style="yellow"), None))
            if step:
                parts.append((Text(f"  next: {plain(step)}", style="dim"), None))
        if not statuses:
            parts.append((Text(f"  next: declare a version under collections.{state.collection}.versions"), None))
        for one in statuses:
            text = Text(plain(next(rows)))
            text.highlight_words([f"  {one.state:<8}"], STYLES.get(one.state, ""))
            parts.append((text, one))
            if in_full:
                parts += [(Text(plain(f"  {label:<13} {words}".rstrip())), None) for label, words in details(one)]
        for one in statuses:
            of = f" ({one.version})" if len(statuses) > 1 else ""
            parts.append((Text(f"  next{of}: {plain(next_of(one))}", style="dim"), None))
    return parts


def _json(state: CollectionState, statuses: Sequence[VersionStatus]) -> dict[str, JSON]:
    return {
        "collection": state.collection,
        "serving": state.serving,
        "previous": state.previous,
        "alias": state.alias,
        "topic": state.topic,
        "under_way": state.intent.command.verb if state.intent else None,
        "notes": [{"note": said, "next": step} for said, step in notes(state, statuses)],
        "versions": [version_json(one) for one in statuses],
    }
