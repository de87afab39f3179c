"""A real Weaviate behind connections that break, and what it says when it cannot or may not do what is asked.

It must never disturb the server for other tests: only this test's own spaces and a proxy of its own.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from uuid import NAMESPACE_URL, uuid4, uuid5

import numpy as np
import pytest

from connectors import reserved
from connectors.errors import Overloaded, UnknownOutcome, Unreachable
from connectors.protocols import JSON, SpaceObject, SpaceSpec
from connectors.services import Addresses
from connectors.weaviate import wire
from connectors.weaviate.settings import WeaviateSettings
from connectors.weaviate.spaces import WeaviateStore, open_store


def stored(doc_id: str, vector: tuple[float, float] = (1, 0)) -> SpaceObject:
    properties: dict[str, JSON] = {
        reserved.DOC_ID: doc_id,
        reserved.DOC_HASH: doc_id,
        reserved.CHUNK: 0,
        reserved.CHUNKS: 1,
        reserved.SOURCE_HASH: "s",
        reserved.PARTITION: 0,
        reserved.OFFSET: 1,
    }
    return SpaceObject(uuid5(NAMESPACE_URL, doc_id), properties, np.array(vector, dtype=np.float32))


class Proxy:
    """Passes bytes on, until it is told to swallow the answers or to hang up once a request has passed."""

    def __init__(self, target: str) -> None:
        self.host, port = target.rsplit(":", 1)
        self.port = int(port)
        self.swallow_answers = False
        self.cut_after_request = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        if self._server:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(self.host, self.port)
        for source, sink, answers in ((reader, far_writer, False), (far_reader, writer, True)):
            task = asyncio.create_task(self._pass(source, sink, answers, writer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, answers: bool, near: asyncio.StreamWriter
    ) -> None:
        try:
            while data := await source.read(65536):
                if answers and self.swallow_answers:
                    continue
                if answers and self.cut_after_request:
                    near.transport.abort()
                    return
                sink.write(data)
                await sink.drain()
        except OSError:
            return
        finally:
            sink.close()
            with suppress(OSError):
                await sink.wait_closed()


@pytest.fixture
async def store(services: Addresses) -> AsyncIterator[WeaviateStore]:
    opened = await open_store(WeaviateSettings(services.weaviate_http, services.weaviate_grpc))
    yield opened
    await opened.close()


MakeSpace = Callable[[], Awaitable[str]]


@pytest.fixture
async def make_space(store: WeaviateStore) -> AsyncIterator[MakeSpace]:
    made: list[str] = []

    async def make() -> str:
        made.append(f"T{uuid4().hex}")
        await store.create_space(SpaceSpec(made[-1], 2, "cosine", "{}"))
        return made[-1]

    yield make
    for name in made:
        await store.drop_space(name)


@pytest.fixture
async def space_name(make_space: MakeSpace) -> str:
    return await make_space()


@pytest.fixture
async def proxy(services: Addresses) -> AsyncIterator[Proxy]:
    made = Proxy(services.weaviate_grpc)
    yield made
    await made.stop()


@pytest.fixture
async def through(services: Addresses, proxy: Proxy) -> AsyncIterator[WeaviateStore]:
    """A store whose objects go through the proxy, with short time-outs."""
    settings = WeaviateSettings(
        services.weaviate_http, await proxy.start(), connect_timeout_s=1, write_timeout_s=1.5, read_timeout_s=1.5
    )
    opened = await open_store(settings)
    yield opened
    await opened.close()


def closed_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


async def test_nothing_at_the_address(services: Addresses) -> None:
    nowhere = closed_port()
    with pytest.raises(Unreachable) as caught:
        await open_store(WeaviateSettings(nowhere, services.weaviate_grpc, connect_timeout_s=1))
    assert caught.value.next_step
    with pytest.raises(Unreachable, match=r"gRPC address.*\n.*weaviate\.grpc"):
        await open_store(WeaviateSettings(services.weaviate_http, nowhere, connect_timeout_s=1))


async def test_a_write_without_an_answer_is_in_doubt_and_may_have_landed(
    store: WeaviateStore, through: WeaviateStore, space_name: str, proxy: Proxy
) -> None:
    space, obj = through.space(space_name), stored("a")
    assert await space.upsert([stored("before")]) == {}
    proxy.swallow_answers = True
    started = asyncio.get_running_loop().time()
    with pytest.raises(UnknownOutcome):
        await space.upsert([obj])
    assert asyncio.get_running_loop().time() - started < 3, "rule 11 counts on the deadline"
    with pytest.raises(UnknownOutcome):
        await space.delete([stored("before").uuid])
    with pytest.raises(Unreachable):
        await space.heads([obj.uuid])
    kept = await store.space(space_name).heads([obj.uuid, stored("before").uuid])
    assert set(kept) == {obj.uuid}, "both writes had taken effect"


async def test_a_connection_cut_after_sending_leaves_doubt_and_heals(
    through: WeaviateStore, space_name: str, proxy: Proxy
) -> None:
    space, obj = through.space(space_name), stored("a")
    assert await space.count() == 0
    assert await space.upsert([stored("before")]) == {}
    proxy.cut_after_request = True
    with pytest.raises(UnknownOutcome):
        await space.upsert([obj])
    proxy.cut_after_request = False  # whether it landed is open: the first bytes back may come before the write is done
    async with asyncio.timeout(20):
        while True:
            try:
                assert await space.upsert([obj]) == {}
                break
            except Unreachable:  # gRPC waits a moment before it connects again
                await asyncio.sleep(0.05)
    assert await space.count() == 2


async def test_a_server_that_went_away_is_unreachable_before_anything_is_sent(
    store: WeaviateStore, through: WeaviateStore, space_name: str, proxy: Proxy
) -> None:
    space, obj = through.space(space_name), stored("a")
    assert await space.upsert([stored("before")]) == {}
    await proxy.stop()

    async def until_unreachable() -> None:
        while True:  # the channel learns of the lost connection a moment later
            try:
                await space.upsert([obj])
            except UnknownOutcome:
                continue
            except Unreachable:
                return

    await asyncio.wait_for(until_unreachable(), 20)
    for call in (space.heads([obj.uuid]), space.delete([obj.uuid]), space.search(obj.vector, 1)):
        with pytest.raises(Unreachable):
            await call
    assert set(await store.space(space_name).heads([obj.uuid])) == set()


async def test_a_read_only_space_is_overloaded_and_recovers(store: WeaviateStore, space_name: str) -> None:
    space, obj = store.space(space_name), stored("a")
    assert await space.upsert([obj]) == {}
    config = store._connection.client.collections.use(space_name).config
    await config.update_shards("READONLY")
    failed = await space.upsert([stored("b"), stored("c")])
    assert {type(error) for error in failed.values()} == {Overloaded}
    assert len(failed) == 2
    calls = (space.delete([obj.uuid]), space.erase([obj.uuid]), space.delete_chunks([obj.uuid.hex, "a"], 0))
    for call in calls:
        with pytest.raises(Overloaded, match="read-only"):
            await call
    assert set(await space.heads([obj.uuid])) == {obj.uuid}
    await config.update_shards("READY")
    await space.delete([obj.uuid])
    assert await space.count() == 0


async def test_large_upserts_go_in_several_requests(store: WeaviateStore, space_name: str) -> None:
    space = store.space(space_name)
    objects = [stored(f"d{i}", (i, 1)) for i in range(600)]
    large = [
        SpaceObject(obj.uuid, {**obj.properties, reserved.TEXT: "x" * 3_000_000}, obj.vector) for obj in objects[:5]
    ]
    assert await space.upsert(large + objects[5:]) == {}
    assert await space.count() == 600
    kept = await space.properties([large[0].uuid])
    assert kept[large[0].uuid][reserved.TEXT] == "x" * 3_000_000


async def test_readers_through_the_alias_never_see_a_gap_or_a_mixture(
    store: WeaviateStore, make_space: MakeSpace
) -> None:
    names = [await make_space(), await make_space()]
    alias = f"T{uuid4().hex}"
    for which, name in enumerate(names):
        assert await store.space(name).upsert([stored(f"{which}-{i}") for i in range(20)]) == {}
    await store.point_alias(alias, names[0])
    connection = store._connection
    seen: list[str] = []

    async def read(times: int) -> None:
        for _ in range(times):
            request = wire.query(alias, 20, (reserved.DOC_ID,), near=np.array([1, 0], np.float32))
            reply = await connection.rpc(connection.stub.Search, request, connection.read_deadline(), write=False)
            ids = [str(wire.properties_of(result)[reserved.DOC_ID]) for result in reply.results]
            spaces = {doc_id.split("-")[0] for doc_id in ids}
            assert len(ids) == 20
            assert len(spaces) == 1
            seen.append(spaces.pop())

    for turn in range(20):
        await asyncio.gather(*(read(12) for _ in range(4)), store.point_alias(alias, names[turn % 2]))
    assert set(seen) == {"0", "1"}
    await store.drop_alias(alias)
