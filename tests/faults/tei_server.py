"""An embedding endpoint in the shape of TEI, on loopback, that fails as told; its vectors are the same on every run.

Must never answer a text with another vector than the one it gave before, unless a test swaps its model.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

from connectors.embedders.probe import PROBE_TEXTS

DIMENSIONS = 16
Mode = Literal["works", "slow", "401", "500", "503", "cut", "half"]


def vector(text: str, model: str = "") -> list[float]:
    digest = hashlib.sha256((model + text).encode()).digest()
    return [digest[i] / 255 + 0.01 for i in range(DIMENSIONS)]


class TeiServer:
    """`mode`: "cut" breaks the connection instead of answering, "half" in the middle of the answer.

    `embedded` are the documents' texts answered for, in order, without those of the canary; `refused` counts the
    requests that were failed on purpose; `model`: another name, other vectors; `key`: without it, 401.
    """

    def __init__(self) -> None:
        self.mode: Mode = "works"
        self.model = ""
        self.key: str | None = None
        self.answer_after_s = 0.0
        self.embedded: list[str] = []
        self.refused = 0
        self.asked = 0
        self._server: asyncio.Server | None = None
        self._port = 0
        self._connections: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    async def up(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port, limit=1 << 24)
        self._port = self._server.sockets[0].getsockname()[1]

    async def down(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._connections):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                while await self._answer(reader, writer):
                    pass
        finally:
            self._connections.discard(writer)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        if head.startswith("get "):
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
            return True
        length = next(int(line.split(":")[1]) for line in head.split("\r\n") if line.startswith("content-length:"))
        texts: list[str] = json.loads(await reader.readexactly(length))["inputs"]
        self.asked += 1
        await asyncio.sleep(self.answer_after_s)
        mode = self.mode
        if self.key is not None and f"authorization: bearer {self.key}" not in head:
            mode = "401"
        if mode != "works" and mode != "slow":
            self.refused += 1
        if mode == "cut":
            writer.transport.abort()
            return False
        if mode in ("401", "500", "503"):
            writer.write(f"HTTP/1.1 {mode} Error\r\nContent-Length: 5\r\n\r\nsorry".encode())
            await writer.drain()
            return True
        body = json.dumps([vector(text, self.model) for text in texts]).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        if mode == "half":
            writer.write(head.encode() + body[: len(body) // 2])
            await writer.drain()
            writer.transport.close()
            return False
        self.embedded += [text for text in texts if text not in PROBE_TEXTS]
        writer.write(head.encode() + body)
        await writer.drain()
        return True


@asynccontextmanager
async def tei_server() -> AsyncIterator[TeiServer]:
    server = TeiServer()
    await server.up()
    try:
        yield server
    finally:
        await server.down()
