"""The worker: one process with the agents of the builds it hosts and, by membership, the controller.

It wires and supervises; what is right is decided by the modules it starts. It never touches a document itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from connectors.embedders.cache import VectorCache
from connectors.errors import ConfigurationError, CrossfadeError, IdentityChanged, NotFound, Transient
from streams import config, metrics, tracing
from streams.agent_host import FaustHost, agents_app
from streams.build import Build, Limits
from streams.build_runner import AgentHost, BuildRunner, failure_command
from streams.carrying import OldSpace, serves_beside
from streams.chunking import make_chunker
from streams.command_stream import CommandStream
from streams.config import Settings, envelope_of, schema_of
from streams.config_embedders import Version
from streams.config_operation import Cutover, Gate, Hook, Retention, Routes, Throttle
from streams.config_watch import LOOK_EVERY_S, ConfigurationFile
from streams.control import send
from streams.controller import Controller
from streams.declared import Declarations
from streams.identity import check_model, check_source, check_state_kept, check_state_topic
from streams.migration.gate import GateResult, Swept
from streams.migration.series import SeriesRecord
from streams.migration.sweep import Sweep
from streams.migration.verify import held_positions, verify
from streams.ordering import Lease
from streams.priority import Order
from streams.progress import ProgressRecord
from streams.search.questions import Questions
from streams.state import BuildState, Command
from streams.verbs.desk import Outside as DeskOutside
from streams.views import StateView
from streams.wiring import (
    CONTROLLER_SESSION_S,
    Outside,
    capacity_reader,
    file_exists,
    make_embedders,
    make_encoder,
    wall_ms,
    whole_requests,
)

log = logging.getLogger(__name__)

UNHOSTED_MS = 10_000
STATE_LOOK_EVERY_S = 5.0
OFFICE_LOOK_EVERY_S = 0.1
BROKER_PATIENCE_S = 120.0


class _Hosted(NamedTuple):
    """A build that runs here, and the settings it was started with."""

    runner: BuildRunner
    task: asyncio.Task[None]
    settings: tuple[config.Collection, Version]


def _named(build: BuildState) -> dict[str, str]:
    return {"collection": build.collection, "version": build.version, "fingerprint": build.fingerprint}


async def _sweep(out: Outside, build: BuildState, serving: BuildState | None) -> Sweep:
    with tracing.span("sweep", **_named(build)) as span:
        swept = await verify(out, build, serving)
        span.note(checked=swept.checked, missing=swept.missing, stale=swept.stale, extra=swept.extra)
        return swept


async def _judge(questions: Questions, build: BuildState, serving: BuildState | None, swept: Swept) -> GateResult:
    with tracing.span("gate", **_named(build)) as span:
        judged = await questions.judge(build, serving, swept)
        span.note(verdict=judged.verdict.value)
        return judged


class Worker:
    """See the module. `run` until `stop` or a signal."""

    def __init__(self, config_path: Path, settings: Settings) -> None:
        self._file = ConfigurationFile(config_path, settings)
        self._settings = settings
        self._declarations = Declarations()
        self._name = f"{socket.gethostname()}-{os.getpid()}"
        self._stopping = asyncio.Event()
        self._running: dict[tuple[str, int], _Hosted] = {}
        self._told: set[str] = set()
        self._elected: Callable[[], bool] = lambda: False
        self._misfits: dict[str, IdentityChanged] = {}
        self._cache: VectorCache | None = None

    def stop(self) -> None:
        """Drain, commit and leave; `run` returns when that is done."""
        self._stopping.set()

    async def run(self, *, on_ready: Callable[[], None] = lambda: None) -> None:
        """Raises ConfigurationError, and Unreachable when Kafka or Weaviate do not answer within two minutes."""
        loop = asyncio.get_running_loop()
        for number, action in (
            (signal.SIGTERM, self.stop),
            (signal.SIGINT, self.stop),
            (signal.SIGHUP, self._file.look_now),
        ):
            loop.add_signal_handler(number, action)
        traces = tracing.Tracing.begin(self._name)
        self._capacity = capacity_reader(self._settings)
        self._out = await Outside.open(self._settings)
        closing = contextlib.ExitStack()
        try:
            if (kept := self._settings.vector_cache) is not None:
                self._cache = await VectorCache.open(kept.path, int(kept.max_gib * 2**30))
            await self._out.topics.wait_for_broker(BROKER_PATIENCE_S, log.warning)
            await self._out.ensure_topics()
            spaces, groups = await self._out.store.spaces(), await self._out.topics.groups(self._out.names.prefix)
            state_id = (await self._out.kafka.facts(self._out.names.state)).topic_id
            self._view, self._progress = self._out.state_view(), self._out.progress_view()
            await self._view.load()
            check_state_kept(
                self._out.names.prefix,
                state_is_empty=not self._view.collections,
                aliases=[collection.alias for collection in self._settings.collections.values()],
                spaces=spaces,
                groups=groups,
            )
            await self._progress.load()
            self._serve_metrics(closing)
            with tempfile.TemporaryDirectory(prefix="crossfade-") as folder:
                await self._supervise(on_ready, folder, state_id)
        finally:
            if self._cache is not None:
                await self._cache.close()
            await self._capacity.close()
            await self._out.close()
            closing.close()
            if traces is not None:
                await traces.end()

    def _serve_metrics(self, closing: contextlib.ExitStack) -> None:
        """Until `closing`. Raises ConfigurationError for an address that somebody has chosen and that cannot be had;
        without the default one, which another worker of this machine may have, this one goes on and says so."""
        wanted = self._settings.metrics
        if wanted.listen == config.NO_METRICS:
            return
        view = metrics.View(
            self._name,
            self._view.collections,
            self._view.builds,
            self._progress.records,
            lambda: {key: hosted.runner.observed for key, hosted in list(self._running.items())},
            lambda: self._elected() and self._controller.active,
        )
        try:
            server = metrics.serve(metrics.Worker(view), wanted.listen)
        except ConfigurationError as error:
            if wanted.chosen:
                raise
            log.info("goes on without metrics: %s; %s", error.message, error.next_step)
            return
        closing.callback(server.server_close)
        closing.callback(server.shutdown)
        log.info("metrics at http://%s/metrics", wanted.listen)

    async def _supervise(self, on_ready: Callable[[], None], folder: str, state_id: str) -> None:
        writer = self._out.transactional_producer()
        questions = Questions(self._out, self._view, self._progress, self._newest)
        outside = DeskOutside(
            settings=self._file.checked,
            kafka=self._out.kafka,
            store=self._out.store,
            make_embedders=make_embedders,
            sweep=partial(_sweep, self._out),
            wall_ms=wall_ms,
            judge=partial(_judge, questions),
            ask=questions.ask,
            queries=questions.queries,
            file_exists=file_exists,
            hooks=self._hooks_of,
            routes=self._routes_of,
        )
        self._controller = Controller(self._out.names, outside, writer, self._progress)
        self._agents = agents_app(folder)
        commands = CommandStream(
            self._out.names,
            self._out.kafka,
            self._out.command_reader,
            self._controller.handle,
            self._controller.stand_down,
        )
        self._elected = lambda: commands.elected
        background = [
            asyncio.create_task(part)
            for part in (
                self._view.run(),
                self._progress.run(),
                commands.run(),
                self._hold_office(),
                self._controller.watch(),
                self._controller.attend(),
                self._controller.summarise(self._publish),
                self._host_builds(),
                self._watch_state(state_id),
                self._watch_configuration(),
            )
        ]
        stopping = asyncio.create_task(self._stopping.wait())
        log.info("worker %s is up", self._name)
        on_ready()
        try:
            done, _ = await asyncio.wait([stopping, *background], return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stopping}:
                task.result()  # none of these ends by itself: what ended it is the worker's failure
        finally:
            self._controller.stand_down()
            for task in (stopping, *background):
                task.cancel()
            for hosted in self._running.values():
                hosted.runner.stop(hosted.task)
            running = (hosted.task for hosted in self._running.values())
            await asyncio.gather(stopping, *background, *running, return_exceptions=True)
            await writer.close()
            await questions.close()
            await self._view.close()
            await self._progress.close()
            log.info("worker %s has stopped", self._name)

    async def _watch_state(self, known: str) -> None:
        """Raises IdentityChanged when the state topic is no longer the one that was read: the client beneath the view
        only waits for a topic that was deleted."""
        name = self._out.names.state
        while True:
            await asyncio.sleep(STATE_LOOK_EVERY_S)
            try:
                check_state_topic(name, known, (await self._out.kafka.facts(name)).topic_id)
            except NotFound:
                check_state_topic(name, known, None)
            except Transient as error:
                log.info("the state topic was not looked at: %s", error.message)

    # the controller's office

    async def _hold_office(self) -> None:
        """Be the controller while the commands partition is ours: also again, after another has fenced this one.

        Whoever fenced it may have been right: it then has its session's time to be given the partition.
        """
        while True:
            await asyncio.sleep(OFFICE_LOOK_EVERY_S)
            if not self._elected() or self._controller.active:
                continue
            try:
                await self._controller.take_over(self._load_state)
            except Transient as error:
                log.warning("taking over as the controller waits: %s", error.message)
                continue
            if not self._elected():  # the partition went while we took over
                self._controller.stand_down()
                continue
            await self._controller.stood_down()
            if self._controller.fenced:
                await asyncio.sleep(CONTROLLER_SESSION_S)

    async def _load_state(self) -> StateView:
        view = self._out.state_view()
        await view.load()
        await view.close()
        return view

    async def _publish(self, key: str, record: ProgressRecord | SeriesRecord | None) -> None:
        value = record.to_bytes() if record is not None else None
        await self._out.sink.send(self._out.names.progress, key.encode(), value)

    # hosting builds

    async def _host_builds(self) -> None:
        """Run what the state says is active, as the configuration says now, and stop what is not."""
        while True:
            self._newest()
            wanted = {
                (b.key, b.epoch): b
                for b in self._view.builds.values()
                if b.active and b.failure is None and self._can_host(b)
            }
            for key, hosted in list(self._running.items()):
                if key not in wanted or hosted.settings != self._settings_of(wanted[key]):
                    del self._running[key]
                    hosted.runner.stop(hosted.task)
                    await asyncio.gather(hosted.task, return_exceptions=True)
            for key, build in wanted.items():
                if key not in self._running:
                    settings = self._settings_of(build)
                    runner = self._runner(build, *settings)
                    self._running[key] = _Hosted(runner, asyncio.create_task(runner.run()), settings)
            await self._report_misfits()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):  # the configuration may have changed instead
                    await self._view.changed()

    def _settings_of(self, build: BuildState) -> tuple[config.Collection, Version]:
        """All of the configuration that a hosted build was made from; neither another version beside it, nor what is
        looked up anew each time."""
        collection = self._settings.collection(build.collection)
        rest = {
            "versions": {},
            "throttle": Throttle(),
            "gate": Gate(),
            "cutover": Cutover(),
            "watch": None,
            "retention": Retention(),
            "hooks": [],
            "routes": Routes(),
        }
        return collection.model_copy(update=rest), collection.version(build.version)

    def _hooks_of(self, collection: str) -> Sequence[Hook]:
        known = self._newest().collections.get(collection)
        return known.hooks if known is not None else ()

    def _routes_of(self, collection: str) -> Routes | None:
        known = self._newest().collections.get(collection)
        return known.routes if known is not None else None

    def _can_host(self, build: BuildState) -> bool:
        """This worker's configuration must know the version, as the same model of the same topic."""
        self._misfits.pop(build.key, None)
        try:
            collection, version = self._settings_of(build)
        except NotFound:
            self._tell(f"{build.key} is not in this worker's configuration: it is not hosted here")
            return False
        try:
            check_source(build, collection.topic)
            check_model(build, envelope_of(collection, version).fingerprint)
        except IdentityChanged as error:
            self._misfits[build.key] = error
            self._tell(f"{build.key} is not hosted here: {error}")
            return False
        return True

    async def _report_misfits(self) -> None:
        """Stop, with its cause, a build that this worker may not host, unless another worker hosts it."""
        now_ms = wall_ms()
        for key, error in self._misfits.items():
            build = self._view.builds.get(key)
            if build is None or not build.active or build.failure is not None:
                continue
            reported = [r.updated_at for r in self._progress.partitions(build)]
            if now_ms - max([build.updated_ms, *reported]) > UNHOSTED_MS:
                with contextlib.suppress(Transient):
                    await send(self._out.sink, self._out.names, failure_command(build, error, self._name))

    def _tell(self, message: str) -> None:
        if message not in self._told:
            self._told.add(message)
            log.error("%s", message)

    def _runner(self, build: BuildState, collection: config.Collection, version: Version) -> BuildRunner:
        """`collection`, `version`: as they passed `_can_host`: a restart must not take up what the file says later."""

        def state() -> BuildState:
            now = self._view.builds.get(build.key, build)
            return now if now.epoch == build.epoch else build

        def make_host(name: str) -> AgentHost:
            return FaustHost(self._agents, name)

        return BuildRunner(
            state,
            lambda state: self._make_build(state, collection, version),
            self._out.kafka,
            self._out.store,
            self._out.sink,
            self._out.names,
            make_host,
            self._name,
            self._progress.records.get,
            lambda state: held_positions(self._out, state),
            lambda: self._throttle_of(collection),
            self._capacity.read,
        )

    def _throttle_of(self, hosted: config.Collection) -> Throttle:
        """As the file says now: bounds change while a build runs, without starting it again."""
        return self._settings.collections.get(hosted.name, hosted).throttle

    def _make_build(self, state: BuildState, collection: config.Collection, version: Version) -> Build:
        weaviate, schema = self._settings.weaviate, schema_of(collection)
        encoder = make_encoder(self._settings, collection, version, canary=state.canary, cache=self._cache)
        return Build(
            collection=state.collection,
            version=state.version,
            epoch=state.epoch,
            topic=state.topic,
            dead_letters=self._out.names.dead_letters,
            schema=schema,
            store_text=collection.store_text,
            space_mark=f"{state.version}@{state.fingerprint}",
            space=self._out.store.space(state.space),
            encoder=encoder,
            chunker=make_chunker(state.model.chunking, config.tokenizer_of(version)),
            sink=self._out.sink,
            lease=Lease(self._settings.lease_s),
            limits=Limits(
                batch=whole_requests(version, encoder),
                concurrency=version.concurrency,
                write_deadline_s=weaviate.write_timeout_s,
                settle_s=weaviate.settle_s,
            ),
            wall_ms=wall_ms,
            order=Order(collection.priority, self._out.kafka, state.topic, schema).passes,
            old_space=lambda: self._old_space(state),
            sweep_share=lambda: self._sweep_share(state.collection),
        )

    def _old_space(self, build: BuildState) -> OldSpace | None:
        """What serves now beside a build, if it was made from the same log."""
        serving = self._view.serving(build.collection)
        if serving is None or not serves_beside(build, serving):
            return None
        group = self._out.names.group(serving.collection, serving.version, serving.epoch, "live")
        return OldSpace(serving, self._out.store.space(serving.space), group, self._sweep_share(build.collection))

    def _sweep_share(self, collection: str) -> float:
        """As the file says now; all of the time where nothing is searched."""
        known = self._settings.collections.get(collection)
        return known.cutover.sweep_share if known is not None and self._view.serving(collection) is not None else 1.0

    # configuration

    async def _watch_configuration(self) -> None:
        """A version that appears in the file is started, once; SIGHUP looks at once."""
        while True:
            self._newest()
            await self._start_new_versions()
            await self._file.wait()

    def _newest(self) -> Settings:
        """What the file says, and the versions that were added over HTTP."""
        self._settings = self._out.settings = self._declarations.merged(self._file.newest(), self._view.collections)
        return self._settings

    async def _start_new_versions(self) -> None:
        """The id makes it once for each model, however many workers see the file; ended versions stay ended."""
        for name, collection in self._settings.collections.items():
            for version_name, version in collection.versions.items():
                if f"{name}/{version_name}" in self._view.builds:
                    continue
                fingerprint = envelope_of(collection, version).fingerprint
                command_id = f"{name}/{version_name}/{fingerprint}"
                known = self._view.collections.get(name)
                if known is not None and (outcome := known.outcome(command_id)) is not None:
                    self._tell(
                        f"{name}/{version_name} was not started: {outcome.message}; {outcome.next_step}; "
                        f"then: crossfade start {name} {version_name}"
                    )
                    continue
                command = Command(
                    id=command_id,
                    verb="start",
                    collection=name,
                    version=version_name,
                    args={"origin": "configuration", "fingerprint": fingerprint},
                    who=self._name,
                    why="the version is in the configuration",
                )
                try:
                    await send(self._out.sink, self._out.names, command)
                except CrossfadeError as error:
                    log.error("%s/%s was not started: %s", name, version_name, error)
