"""An endpoint shaped like TEI that can be told to misbehave: each path is a model, and one switch turns all of them.

It must never listen on anything but loopback.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

DIMENSIONS = 8
GUILTY = "guilty"

Vectors = list[list[float]]
Reply = tuple[int, str, bytes]


def vector(text: str) -> list[float]:
    return [byte / 256 + 0.01 for byte in hashlib.sha256(text.encode()).digest()[:DIMENSIONS]]


def embedded(texts: list[str]) -> Vectors:
    return [vector(text) for text in texts]


def ok(body: object) -> Reply:
    return 200, "application/json", json.dumps(body).encode()


def said(status: int, texts: list[str], kind: str = "application/json") -> Reply:
    """An error that quotes what was sent, as real ones do."""
    return status, kind, json.dumps({"error": f"cannot embed {texts}", "error_type": "Validation"}).encode()


def with_last(texts: list[str], number: object) -> Reply:
    """One number of the last vector is another; JSON of Python's own kind, with NaN and Infinity."""
    rows: list[list[object]] = [list(row) for row in embedded(texts)]
    rows[-1][0] = number
    return ok(rows)


def html(texts: list[str]) -> Reply:
    return 200, "text/html", f"<html><body>{texts} is being repaired</body></html>".encode()


BEHAVIOURS: dict[str, Callable[[list[str]], Reply]] = {
    "sound": lambda texts: ok(embedded(texts)),
    "dimension": lambda texts: ok([[*row, 0.5] for row in embedded(texts)]),
    "ragged": lambda texts: ok([row[: len(row) - i] for i, row in enumerate(embedded([*texts, "more"]))][: len(texts)]),
    "count": lambda texts: ok(embedded([*texts, "one more"])),
    "too_few": lambda texts: ok(embedded(texts)[:-1]),
    "nan": lambda texts: with_last(texts, float("nan")),
    "infinity": lambda texts: with_last(texts, float("inf")),
    "overflow": lambda texts: with_last(texts, 1e39),
    "nulls": lambda texts: with_last(texts, None),
    "strings": lambda texts: with_last(texts, "0.5"),
    "zeros": lambda texts: ok([[0.0] * DIMENSIONS for _ in texts]),
    "one_zero": lambda texts: ok([[0.0] * DIMENSIONS if GUILTY in text else vector(text) for text in texts]),
    "html": html,
    "half_json": lambda texts: (200, "application/json", json.dumps(embedded(texts)).encode()[:-5]),
    "object": lambda texts: ok({"embeddings": embedded(texts)}),
    "redirect": lambda texts: said(307, texts),
    "forbidden": lambda texts: said(403, texts),
    "refuses": lambda texts: said(422, texts),
    "refuses_one": lambda texts: said(413, texts) if GUILTY in "".join(texts) else ok(embedded(texts)),
    "down": lambda texts: said(503, texts),
    "broken": lambda texts: said(500, texts, "text/plain"),
}
ON_THE_WIRE = ("cut", "oversized", "silent")
"""Those that are not a whole reply: cut off, endless, none at all."""


@dataclass(slots=True)
class Misbehaving:
    """`well`: everything answers as it should. `sent`: bytes of the endless reply, at most, in one request."""

    well: bool = True
    url: str = ""
    sent: int = 0
    keys: set[str] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                length = 0
                while (header := await reader.readline()) not in (b"\r\n", b""):
                    name, _, value = header.decode().partition(":")
                    if name.lower() == "content-length":
                        length = int(value)
                    elif name.lower() == "authorization":
                        self.keys.add(value.strip())
                texts: list[str] = json.loads(await reader.readexactly(length))["inputs"]
                name = line.split()[1].decode().split("/")[1]
                if not await self._answer(writer, "sound" if self.well else name, texts):
                    return
        except (ConnectionError, asyncio.IncompleteReadError):  # the client hung up, as it should on some
            return
        finally:
            writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, name: str, texts: list[str]) -> bool:
        """False when the connection is of no more use."""
        if name == "silent":
            await asyncio.sleep(30)
            return False
        if name == "oversized":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n[[")
            sent = 0
            while True:
                writer.write(b"0.125," * 20_000)
                await writer.drain()
                self.sent = max(self.sent, sent := sent + 120_000)
        if name == "cut":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 5000\r\n\r\n[[0.5,")
            await writer.drain()
            return False
        status, kind, body = BEHAVIOURS[name](texts)
        location = "location: http://127.0.0.1:9/elsewhere\r\n" if 300 <= status < 400 else ""
        head = f"HTTP/1.1 {status} x\r\n{location}content-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        return True


@asynccontextmanager
async def misbehaving() -> AsyncIterator[Misbehaving]:
    behaviour = Misbehaving()
    server = await asyncio.start_server(behaviour.serve, "127.0.0.1", 0)
    behaviour.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield behaviour
    finally:
        server.close()
