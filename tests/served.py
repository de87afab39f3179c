"""The HTTP interface over connectors in memory and a real controller: no socket, no service, true answers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from uuid import UUID

import httpx
import numpy as np
import yaml
from fastapi import FastAPI
from pydantic import JsonValue

from connectors import reserved
from connectors.protocols import JSON, SpaceObject
from streams import config
from streams.api import listening
from streams.api.app import make_app
from streams.api.backend import Backend, Opened, Outward
from streams.api.following import Following
from streams.controller import Controller
from streams.search.router import Router
from streams.state import BuildState, Command
from streams.views import ProgressView, StateView
from streams.wiring import make_encoder
from tests.unit.test_controller import CONFIG, NAMES, World

DOCUMENTS = {"cats": "cats and kittens purr", "dogs": "dogs and puppies bark", "kafka": "a log of events"}
SERVED = CONFIG.replace("text: {fields: [text]}", "text: {fields: [text]}\n    properties: {kind: keyword}").replace(
    "dimensions: 8", "dimensions: 64"
)


class Commands:
    """A sink whose commands reach the controller beside whoever sends them, as a topic's do."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self.sent: list[Command] = []
        self._handling: set[asyncio.Task[None]] = set()

    async def send(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]] = ()
    ) -> None:
        assert topic == NAMES.commands
        assert value is not None
        command = Command.model_validate_json(value)
        self.sent.append(command)
        task = asyncio.create_task(self._controller.handle(command))
        self._handling.add(task)
        task.add_done_callback(self._handling.discard)

    async def close(self) -> None:
        for task in self._handling:
            task.cancel()
        await asyncio.gather(*self._handling, return_exceptions=True)


@dataclass
class Served:
    """`http` asks the app in this process; `state`: what keeps the state view up."""

    world: World
    controller: Controller
    opened: Opened
    backend: Backend
    state: Following
    commands: Commands
    app: FastAPI
    http: httpx.AsyncClient

    async def ready(self, version: str) -> BuildState:
        """A build that only waits for its cutover, with the documents in its space."""
        build = await self.world.ready(self.controller, version)
        configured = self.backend.settings.collection("docs")
        encoder = make_encoder(self.backend.settings, configured, configured.version(version))
        vectors = await encoder.encode_documents(list(DOCUMENTS.values()))
        await encoder.close()
        objects = [
            SpaceObject(
                UUID(int=at + 1),
                {**_properties(key, at), reserved.TEXT: text, "kind": key[:1]},
                np.asarray(vectors[at], dtype=np.float32),
            )
            for at, (key, text) in enumerate(DOCUMENTS.items())
        ]
        assert await self.world.store.space(build.space).upsert(objects) == {}
        await self.seen(build)
        return build

    def wants_approval(self) -> None:
        """Of every cutover, from now on."""
        path = self.world.path
        path.write_text(path.read_text().replace("    text: {", "    cutover: {approval: true}\n    text: {"))

    async def seen(self, build: BuildState) -> None:
        """The state view has this build as it is."""
        async with asyncio.timeout(5):
            await self.backend.state.wait_for(lambda view: view.builds.get(build.key, build).stage == build.stage)

    async def serve(self, version: str) -> None:
        await self.ready(version)
        assert (await self.world.ask(self.controller, "cutover", version)).ok
        async with asyncio.timeout(5):
            await self.backend.state.wait_for(lambda view: view.collections["docs"].serving == version)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@asynccontextmanager
async def listened(folder: Path, **section: JsonValue) -> AsyncIterator[tuple[Served, str]]:
    """The same behind the real server on a socket of the loopback, with its URL."""
    stopping, ready = asyncio.Event(), asyncio.Event()
    async with served(folder, listen=f"127.0.0.1:{free_port()}", **section) as api:
        said: list[str] = []

        def on_ready(url: str) -> None:
            said.append(url)
            ready.set()

        serving = asyncio.create_task(listening.listen(api.app, api.backend.settings.serve, stopping, on_ready))
        try:
            async with asyncio.timeout(10):
                await ready.wait()
            yield api, said[0]
        finally:
            stopping.set()
            async with asyncio.timeout(10):
                await serving


def _properties(key: str, at: int) -> dict[str, JSON]:
    return {
        reserved.DOC_ID: key,
        reserved.DOC_HASH: f"hash of {key}",
        reserved.CHUNK: 0,
        reserved.CHUNKS: 1,
        reserved.SOURCE_HASH: "s",
        reserved.PARTITION: 0,
        reserved.OFFSET: at,
    }


async def _planned(collection: str, version: str, sample: int | None) -> dict[str, JSON]:
    return {"collection": collection, "version": version, "documents": len(DOCUMENTS), "sample": sample}


@asynccontextmanager
async def served(
    folder: Path, embed_endpoints: Sequence[JsonValue] = (), /, **serve: JsonValue
) -> AsyncIterator[Served]:
    """`serve`: the section of the configuration. Nothing is built yet; commands wait two seconds at most."""
    world = World(folder)
    section = {"command_timeout_s": 2, "timeout_s": 2, **serve}
    world.path.write_text(SERVED + yaml.safe_dump({"serve": section, "embed_endpoints": list(embed_endpoints)}))
    world.kafka.create_topic(NAMES.commands)
    controller = await world.controller()
    settings = config.load(world.path)
    state, progress = StateView(world.kafka.tail(NAMES.state)), world.progress
    for view in (state, progress):
        await view.load()
    commands = Commands(controller)
    backend = _backend(world, settings, state, progress, commands)
    followed = [
        Following(name, view, partial(world.kafka.tail, topic), backend.health, lambda: world.now_ms)
        for name, view, topic in (("state", state, NAMES.state), ("progress", progress, NAMES.progress))
    ]
    following = [asyncio.create_task(one.run()) for one in followed]
    opened = Opened(backend)
    app = make_app(opened, lambda: backend.settings.serve)
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8470") as http:
        try:
            yield Served(world, controller, opened, backend, followed[0], commands, app, http)
        finally:
            backend.stopping.set()
            for task in following:
                task.cancel()
            await asyncio.gather(*following, return_exceptions=True)
            await commands.close()
            await backend.router.close()
            await state.close()
            await progress.close()


def _backend(
    world: World, settings: config.Settings, state: StateView, progress: ProgressView, commands: Commands
) -> Backend:
    backend = Backend(
        settings=settings,
        names=NAMES,
        state=state,
        progress=progress,
        kafka=world.kafka,
        sink=commands,
        store=world.store,
        router=Router(Outward(world.store, lambda: backend.current), state, progress, live=True),
        sweep=world.sweep,
        plan=_planned,
        wall_ms=lambda: world.now_ms,
    )
    return backend
