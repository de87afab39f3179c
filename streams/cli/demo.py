"""`crossfade demo`: sets the stage, has the story told, and clears up however it ends.

It must never leave a process or data behind that `--keep` did not ask for.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click
from rich.console import Console

from streams.cli import FAILED
from streams.cli.output import emit, json_option
from streams.demo.documents import Question
from streams.demo.report import Narrator
from streams.demo.stage import FOLDER, Stage
from streams.demo.story import COLLECTION, Story


@click.command()
@click.option("--keep", is_flag=True, help="Leave services and worker running, and say what to try next.")
@click.option("--stop", is_flag=True, help="Only end what a demo with --keep has left running.")
@json_option
@click.pass_context
def demo(ctx: click.Context, keep: bool, stop: bool, as_json: bool) -> None:
    """The whole story on real services, in a minute or two: a second version is built while documents change, it is
    checked and compared, and search is moved to it, back, and to it again, under load.

    Kafka, Weaviate and a worker of its own run in .crossfade/demo and end with it; yours are not touched. Exit status 1
    when one of the checks failed.

    Example: crossfade demo --keep
    """
    narrator = Narrator(Console(stderr=as_json, highlight=False))
    stage = Stage(FOLDER.absolute(), narrator.say)
    if stop:
        with stage.only_one():
            narrator.say("the demo has been stopped" if stage.clear() else "no demo was running")
        return
    with _interruptible(), stage.only_one():
        passed = _perform(stage, narrator, keep=keep, as_json=as_json)
    if not passed:
        ctx.exit(FAILED)


def _perform(stage: Stage, narrator: Narrator, *, keep: bool, as_json: bool) -> bool:
    narrator.step("Services: Kafka and Weaviate of the demo's own")
    told = False
    try:
        if stage.clear():
            narrator.note("an earlier demo was still running; it has been stopped")
        addresses = stage.start_services()
        narrator.say(f"Kafka answers at {addresses.kafka}, Weaviate at {addresses.weaviate_http}.")
        story = Story(stage, addresses, narrator)
        asyncio.run(story.run())
        told = True
    finally:
        if not (told and keep):
            _clear_up(stage, narrator, told=told)
    passed = all(check.passed for check in story.checks)
    narrator.closing(story.checks)
    if keep:
        _what_to_try(stage, story.example, narrator)
    if as_json:
        checks = [{"name": check.name, "passed": check.passed, "found": check.found} for check in story.checks]
        emit({"passed": passed, "seconds": narrator.seconds, "kept": keep, "checks": checks, **story.facts})
    return passed


def _clear_up(stage: Stage, narrator: Narrator, *, told: bool) -> None:
    """Not to be interrupted: a second Ctrl-C would leave services behind. Logs stay when the story broke off."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        narrator.note("stopping the demo's worker and services")
        if told:
            stage.clear()
        else:
            stage.stop()
            narrator.note(f"logs are in {_short(stage.logs)}")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM ends the demo as Ctrl-C does, so that it clears up."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.raise_signal(signal.SIGINT)

    # SIGINT too: whoever starts the demo in the background of a script may have it ignored
    handlers = {signal.SIGTERM: interrupt, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _what_to_try(stage: Stage, example: Question, narrator: Narrator) -> None:
    program = _program()
    with_config = f"{program} --config {_short(stage.config)}"
    narrator.heading("Everything still runs. Try:")
    for arguments in (
        f"status {COLLECTION}",
        f"search {COLLECTION} {shlex.quote(example.query)}",
        f"explain {COLLECTION} {example.key}",
        f"verify {COLLECTION} v1",
        f"rollback {COLLECTION}",
        f"history {COLLECTION}",
    ):
        narrator.command(f"{with_config} {arguments}")
    narrator.say("and at the end:")
    narrator.command(f"{program} demo --stop")


def _program() -> str:
    """As this process was called, where that can be typed again."""
    called = Path(sys.argv[0])
    if shutil.which("crossfade") and Path(shutil.which("crossfade") or "").resolve() == called.resolve():
        return "crossfade"
    return _short(called.absolute()) if called.name == "crossfade" else "crossfade"


def _short(path: Path) -> str:
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
