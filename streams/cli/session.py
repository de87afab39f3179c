"""What most verbs need: the configuration, a broker that answers, the views, and a way to ask the controller.

It never waits without a word, and opens Weaviate only for verbs that use it, so that `status` works while it is away.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import click

from connectors.errors import NotFound, Transient
from connectors.kafka.log import KafkaLog
from connectors.kafka.producer import KafkaSink
from connectors.kafka.ranges import TopicTail
from connectors.kafka.settings import KafkaSettings
from connectors.kafka.topics import Topics
from streams import config, control
from streams.cli import Options
from streams.cli.output import say
from streams.config import DEFAULT_PATH, PATH_VARIABLE, Settings
from streams.declared import Declarations
from streams.progress import ProgressRecord
from streams.state import BuildState, Command, CommandOutcome, TopicNames
from streams.views import ProgressView, StateView
from streams.wiring import Outside, kafka_settings, wall_ms

T = TypeVar("T")
View = TypeVar("View", StateView, ProgressView)

BROKER_PATIENCE_S = 5.0
ASK_S = 20.0
SWEEP_S = 600.0
HINT_AFTER_S = 5.0
LIFE_LOOK_S = 3.0
LIFE_AGAIN_S = 1.5


def read_settings(options: Options) -> tuple[Path, Settings]:
    """Raises ConfigurationError that says where it looked, or every line that is wrong."""
    path = config.find_config(options.config)
    return path, config.load(path)


def unconfigured(options: Options) -> bool:
    """No file is named, and none is where it would be looked for: services and documents come before `init`."""
    return options.config is None and not os.environ.get(PATH_VARIABLE) and not DEFAULT_PATH.is_file()


def run(work: Coroutine[None, None, T]) -> T:
    """The verb's one event loop."""
    return asyncio.run(work)


@dataclass(slots=True)
class Session:
    """One verb's connection to Kafka."""

    settings: Settings
    names: TopicNames
    kafka_settings: KafkaSettings
    topics: Topics
    kafka: KafkaLog

    def state(self) -> AbstractAsyncContextManager[StateView]:
        """The state view, loaded and following. Raises NotFound when no worker ever ran with this topic prefix."""
        return self._following(StateView(TopicTail(self.kafka_settings, self.names.state)))

    def progress(self) -> AbstractAsyncContextManager[ProgressView]:
        """The progress view; otherwise as `state`."""
        return self._following(ProgressView(TopicTail(self.kafka_settings, self.names.progress)))

    @asynccontextmanager
    async def _following(self, view: View) -> AsyncIterator[View]:
        try:
            try:
                await view.load()
            except NotFound as error:
                raise self.no_worker_yet() from error
            if isinstance(view, StateView):  # versions that were added over HTTP are known from here on
                self.settings = Declarations().merged(self.settings, view.collections)
            following = asyncio.create_task(view.run())
            try:
                yield view
            finally:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)
        finally:
            await view.close()

    def no_worker_yet(self) -> NotFound:
        return NotFound(
            f"no worker has ever run here: there is no topic {self.names.state}",
            next_step="start one: crossfade worker (or correct kafka.bootstrap_servers and kafka.topic_prefix)",
        )


@asynccontextmanager
async def session(options: Options, settings: Settings | None = None) -> AsyncIterator[Session]:
    """Kafka alone; `settings` instead of those of the file. Raises ConfigurationError; Unreachable within seconds when
    no broker answers."""
    if settings is None:
        settings = read_settings(options)[1]
    kafka = replace(kafka_settings(settings), request_timeout_s=2 * BROKER_PATIENCE_S)
    topics = Topics(kafka)
    await topics.wait_for_broker(BROKER_PATIENCE_S, say)
    yield Session(settings, TopicNames(settings.kafka.topic_prefix), kafka, topics, KafkaLog(kafka))


@asynccontextmanager
async def with_weaviate(opened: Session) -> AsyncIterator[Outside]:
    """Weaviate beside it. Raises Unreachable within seconds when it does not answer."""
    outside = await Outside.open(opened.settings)
    try:
        yield outside
    finally:
        await outside.close()


def reporting(progress: ProgressView, build: BuildState) -> list[ProgressRecord]:
    """The partitions of a build whose owner has just reported."""
    now_ms = wall_ms()
    return [r for r in progress.partitions(build) if r.is_fresh(now_ms)]


async def ask(
    opened: Session, view: StateView, command: Command, *, timeout_s: float, waits_for: str = "the controller"
) -> CommandOutcome:
    """Send a command and wait for its outcome; says on stderr what it waits for when that takes a while.

    Raises Transient when none came: within seconds when no worker runs, since nobody will answer then, but for somebody
    who has said --timeout, and may be starting one.
    """
    sink = KafkaSink(opened.kafka_settings)
    await sink.start()
    hint = asyncio.create_task(_hint(waits_for, timeout_s))
    began_s = time.monotonic()
    lonely = 0
    try:
        while True:
            left_s = timeout_s - (time.monotonic() - began_s)
            look_s = min(max(0.1, left_s), LIFE_AGAIN_S if lonely else LIFE_LOOK_S)
            try:
                return await control.ask(sink, opened.names, view, command, timeout_s=look_s)
            except Transient as error:
                lonely = 0 if await _a_worker_runs(opened) else lonely + 1
                if time.monotonic() - began_s >= timeout_s:
                    raise _no_outcome(command, timeout_s, lonely) from error
                if lonely > 1 and not _said_timeout():
                    raise _no_outcome(command, timeout_s, lonely) from error
                if lonely == 1 and _said_timeout():
                    say(f"no worker runs yet; start one: crossfade worker (waiting up to {timeout_s:g} s)")
    finally:
        hint.cancel()
        await asyncio.gather(hint, return_exceptions=True)
        await sink.close()


def _no_outcome(command: Command, timeout_s: float, lonely: int) -> Transient:
    what = f"{command.verb} {command.collection}"
    if lonely:
        return Transient(
            f"no worker runs, so nobody carries out {what}",
            next_step="start one: crossfade worker; it will find this command and apply it once",
        )
    return Transient(
        f"no outcome of {what} within {timeout_s:g} s, though a worker runs: it is busy, or waits for something itself",
        next_step=f"see crossfade status {command.collection}; the command stays, and is applied once",
    )


def _said_timeout() -> bool:
    """The time to wait is the operator's own word, not our default."""
    context = click.get_current_context(silent=True)
    source = context.get_parameter_source("timeout_s") if context is not None else None
    return source is click.core.ParameterSource.COMMANDLINE


async def _a_worker_runs(opened: Session) -> bool:
    """Somebody hears commands, or has just reported. A broker that does not say leaves it open: yes."""
    try:
        if (there := await opened.topics.has_members(opened.names.controller_group)) is not None:
            return there
        async with opened.progress() as progress:
            now_ms = wall_ms()
            return any(record.is_fresh(now_ms) for record in progress.records.values())
    except NotFound:
        return False
    except Transient:
        return True


async def _hint(waits_for: str, timeout_s: float) -> None:
    await asyncio.sleep(HINT_AFTER_S)
    say(f"waiting for {waits_for}, up to {timeout_s:g} s (Ctrl-C ends the wait, not the command)")
