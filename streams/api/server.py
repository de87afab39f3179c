"""The process of `crossfade serve`: the views and connections behind the socket, and its end.

It answers from the first second, if only that it does not know anything yet; it must never end because Kafka or
Weaviate are away.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

from connectors.errors import CrossfadeError, IdentityChanged, NotFound
from connectors.protocols import JSON
from streams.api.app import make_app
from streams.api.backend import Backend, Opened, Outward
from streams.api.following import OPEN_AGAIN_S, Following
from streams.api.listening import listen
from streams.config import Settings
from streams.config_watch import ConfigurationFile
from streams.migration.verify import verify
from streams.search.publishing import Publisher
from streams.search.router import Router
from streams.search.sampled import Samples
from streams.search.searched import AccessTopics
from streams.search.shadow import Shadows
from streams.wiring import Outside, wall_ms

log = logging.getLogger(__name__)

Plan = Callable[[Settings, str, str, int | None], Awaitable[dict[str, JSON]]]

LOOK_EVERY_S = 3.0
BROKER_PATIENCE_S = 3.0
LAST_WORDS_S = 1.0


class Server:
    """`run` until `stop` or a signal. `plan` is the verb of that name."""

    def __init__(self, path: Path, settings: Settings, plan: Plan) -> None:
        self._file = ConfigurationFile(path, settings)
        self._settings = settings
        self._plan = plan
        self._opened = Opened()
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Answer what is under way, for three seconds at most, and leave."""
        self._stopping.set()

    async def run(self, *, on_ready: Callable[[str], None] = lambda _: None) -> None:
        """`on_ready` gets the URL. Raises ConfigurationError for an address or a TLS file that cannot be used."""
        serve = self._settings.serve
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, self._file.look_now)
        app = make_app(self._opened, lambda: self._settings.serve)
        tasks = [
            asyncio.create_task(part)
            for part in (
                listen(app, serve, self._stopping, on_ready),
                self._keep_open(),
                self._watch_configuration(),
                self._end_streams(),
            )
        ]
        try:
            done, _ = await asyncio.wait(tasks[:3], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # the first of them ends when it is told to; none of the others does by itself
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _end_streams(self) -> None:
        await self._stopping.wait()
        if self._opened.backend is not None:
            self._opened.backend.stopping.set()

    async def _keep_open(self) -> None:
        """Open Kafka and Weaviate, however often that takes; what is opened then lasts as long as this process."""
        while True:
            try:
                async with self._open() as (backend, followed):
                    self._opened.backend = backend
                    await self._look_after(backend, followed)
            except CrossfadeError as error:
                log.warning("cannot answer yet: %s", error.message)
                self._opened.error = error
            await asyncio.sleep(OPEN_AGAIN_S)

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[tuple[Backend, list[Following]]]:
        """Raises Unreachable, ConfigurationError, and NotFound when no worker ever ran here."""
        async with AsyncExitStack() as stack:
            out = await Outside.open(self._settings)
            stack.push_async_callback(out.close)
            await out.topics.wait_for_broker(BROKER_PATIENCE_S, lambda _: None)
            state, progress = out.state_view(), out.progress_view()
            for view in (state, progress):
                stack.push_async_callback(view.close)
                try:
                    await view.load()
                except NotFound as error:
                    raise NotFound(
                        f"no worker has ever run here: there is no topic {out.names.state}",
                        next_step="start one: crossfade worker",
                    ) from error
            host = socket.gethostname()
            port = self._settings.serve.address[1]
            searched = AccessTopics(out.kafka, out.sink, f"{host}:{port}", time.monotonic, wall_ms)
            shadows = Shadows(samples=Samples(out.kafka, out.sink))
            router = Router(
                Outward(out.store, lambda: backend.current),
                state,
                progress,
                live=True,
                shadows=shadows,
                searched=searched,
            )
            stack.push_async_callback(router.close)
            replica = f"{host}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
            publisher = Publisher(router.rollouts, router.shadows, out.sink, out.names.progress, replica, wall_ms)
            stack.push_async_callback(_last_words, publisher)
            backend = Backend(
                settings=self._settings,
                names=out.names,
                state=state,
                progress=progress,
                kafka=out.kafka,
                sink=out.sink,
                store=out.store,
                router=router,
                sweep=partial(verify, out),
                plan=lambda collection, version, sample: self._plan(backend.current, collection, version, sample),
                wall_ms=wall_ms,
            )
            followed = [
                Following(name, view, partial(out.tail, topic), backend.health, wall_ms)
                for name, view, topic in (
                    ("state", state, out.names.state),
                    ("progress", progress, out.names.progress),
                )
            ]
            self._out = out
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one.run()) for one in followed] + [group.create_task(publisher.run())]
                try:
                    yield backend, followed
                finally:
                    for task in tasks:
                        task.cancel()

    async def _look_after(self, backend: Backend, followed: list[Following]) -> None:
        """For ever: say what is away, and have the views read again when the state topic is another one."""
        out = self._out
        state_id: str | None = None
        while True:
            backend.settings = out.settings = self._settings
            before = state_id
            try:
                await out.topics.wait_for_broker(BROKER_PATIENCE_S, lambda _: None)
                backend.health.note("kafka", None, wall_ms())
                state_id = (await out.kafka.facts(out.names.state)).topic_id
            except NotFound:
                state_id = None
            except CrossfadeError as error:
                backend.health.note("kafka", error, wall_ms())
            if before is not None and state_id != before:
                for one in followed:
                    one.replace(
                        IdentityChanged(
                            f"the topic {out.names.state} was deleted or created anew",
                            next_step="start: crossfade worker",
                        )
                    )
            try:
                await out.store.spaces()
                backend.health.note("weaviate", None, wall_ms())
            except CrossfadeError as error:
                backend.health.note("weaviate", error, wall_ms())
            await asyncio.sleep(LOOK_EVERY_S)

    async def _watch_configuration(self) -> None:
        """New versions, and keys that were added or taken out, count within seconds, on SIGHUP at once; the address and
        the TLS files after a restart."""
        taken = self._settings
        while True:
            if (fresh := self._file.newest()) is not taken:
                taken = fresh
                if fresh.serve.listen != self._settings.serve.listen:
                    log.warning("serve.listen has changed: it counts after a restart")
                self._take(fresh)
            await self._file.wait()

    def _take(self, fresh: Settings) -> None:
        if not fresh.serve.keys and not self._settings.serve.on_loopback:
            log.error("the changed configuration is not taken: it has no keys, and others than this machine are served")
            return
        address = {"listen": self._settings.serve.listen}
        self._settings = fresh.model_copy(update={"serve": fresh.serve.model_copy(update=address)})
        if self._opened.backend is not None:
            self._opened.backend.settings = self._out.settings = self._settings


async def _last_words(publisher: Publisher) -> None:
    """What the last queries have shown, unless Kafka is away."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LAST_WORDS_S):
            await publisher.publish()
