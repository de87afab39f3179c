"""A TCP proxy inside the test: it passes bytes on, holds them, swallows them or cuts the connections.

Must never change or drop a byte of a connection that it keeps open.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

LINGER_S = 3.0


class Proxy:
    """From `address` to `target`, both host:port. Made by `proxy`.

    `freeze`: nothing passes, nothing closes, new connections are taken and wait: what a cable pulled out looks like.
    `cut`: every connection breaks and new ones are refused. `catch`: see there. `mend` ends all three.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self._server: asyncio.Server | None = None
        self._port = 0
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._pairs: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._catch_above_bytes: int | None = None
        self._release = asyncio.Event()
        self._lost = False
        self.caught = asyncio.Event()
        self.delay_s = 0.0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    async def listen(self, port: int = 0) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port or self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    def freeze(self) -> None:
        self._flowing.clear()

    async def cut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        await self._break_all()

    async def mend(self) -> None:
        self._flowing.set()
        if self._server is None:
            await self.listen()

    def catch(self, above_bytes: int) -> None:
        """Hold the connection over which the next piece of at least so many bytes goes to the target: that piece and
        all after it, while its client hears nothing. `caught` is set then; `release` lets it go on."""
        self._catch_above_bytes = above_bytes
        self.caught.clear()
        self._release.clear()

    def lose(self) -> None:
        """What was caught never reaches the target."""
        self._lost = True
        self._release.set()

    def release(self) -> None:
        """What was caught reaches the target now, however late, also when its client has long gone."""
        self._release.set()

    async def close(self) -> None:
        self._flowing.set()
        self._release.set()
        await self.cut()

    async def _break_all(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()
        pairs = [task for task in self._pairs if not task.done()]
        await asyncio.wait(pairs, timeout=0.2) if pairs else None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._pairs.add(task)
        try:
            await self._flowing.wait()
            host, _, port = self._target.rpartition(":")
            with contextlib.suppress(OSError):
                there, to_there = await asyncio.open_connection(host, int(port))
                self._writers |= {writer, to_there}
                try:
                    await asyncio.gather(self._outward(reader, to_there), self._pass_on(there, writer))
                finally:
                    self._writers -= {writer, to_there}
                    to_there.close()
        finally:
            self._pairs.discard(task)
            writer.close()

    async def _outward(self, reader: asyncio.StreamReader, to_there: asyncio.StreamWriter) -> None:
        caught = False
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 18):
                await self._flowing.wait()
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                if self._catch_above_bytes is not None and len(data) >= self._catch_above_bytes:
                    self._catch_above_bytes = None
                    data += await self._gather_more(reader)
                    self._writers.discard(to_there)  # a cut of the client's side leaves it
                    self.caught.set()
                    await self._release.wait()
                    caught = True
                    if self._lost:
                        break
                to_there.write(data)
                await to_there.drain()
        if caught:
            await asyncio.sleep(LINGER_S)  # a server gives up what it is doing for a connection that closes
        if to_there.can_write_eof():
            with contextlib.suppress(OSError):
                to_there.write_eof()

    async def _gather_more(self, reader: asyncio.StreamReader) -> bytes:
        """The rest of the same request: whatever follows without a pause."""
        data = b""
        with contextlib.suppress(TimeoutError):
            while True:
                async with asyncio.timeout(0.1):
                    piece = await reader.read(1 << 18)
                if not piece:
                    break
                data += piece
        return data

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 18):
                await self._flowing.wait()
                writer.write(data)
                await writer.drain()
        writer.close()


@asynccontextmanager
async def proxy(target: str, address: str | None = None) -> AsyncIterator[Proxy]:
    """`address`: where to listen, a free port when it is None."""
    made = Proxy(target)
    await made.listen(int(address.rpartition(":")[2]) if address else 0)
    try:
        yield made
    finally:
        await made.close()
