"""Servers that embed like TEI and like OpenAI, as far as a client can tell. They must never leave loopback."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from connectors.memory.embedder import MemoryEmbedder

DIMENSIONS = 16
MAX_BATCH = 8
API_KEY = "test-key"


Answered = tuple[int, object, dict[str, str]]


class Server:
    """Requests with a key to replies in JSON."""

    def __init__(self) -> None:
        self.requests = 0
        self.hold: asyncio.Event | None = None
        self.model = MemoryEmbedder(DIMENSIONS)

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                headers: dict[str, str] = {}
                while (header := await reader.readline()) not in (b"\r\n", b""):
                    name, _, value = header.decode().partition(":")
                    headers[name.lower()] = value.strip()
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                if self.hold is not None:
                    await self.hold.wait()
                status, reply, more = await self._authorized(line.split()[1].decode(), headers, body)
                raw = json.dumps(reply).encode()
                more |= {"content-type": "application/json", "content-length": str(len(raw))}
                head = "".join(f"{name}: {value}\r\n" for name, value in more.items())
                writer.write(f"HTTP/1.1 {status} x\r\n{head}\r\n".encode() + raw)
                await writer.drain()
        except ConnectionError:  # a client that gave up
            return
        finally:
            writer.close()

    async def _authorized(self, path: str, headers: dict[str, str], body: bytes) -> Answered:
        self.requests += 1
        if headers.get("authorization") != f"Bearer {API_KEY}":
            return 401, {"error": "key"}, {}
        return await self.answer(path, body)

    async def answer(self, path: str, body: bytes) -> Answered:
        raise NotImplementedError


class TeiServer(Server):
    """As much of TEI as a client can tell apart: /embed and /info, its limits, its statuses. Below /plain, only its
    shape: another path, and no /info."""

    async def answer(self, path: str, body: bytes) -> Answered:
        if path == "/info":
            info = {"model_id": "m", "model_sha": "r", "max_client_batch_size": MAX_BATCH, "max_input_length": 512}
            return 200, info, {}
        if path not in ("/embed", "/plain/vectors"):
            return 404, {"error": "path"}, {}
        request = json.loads(body)
        texts: list[str] = request["inputs"]
        if len(texts) > MAX_BATCH:
            return 413, {"error": "batch", "error_type": "Validation"}, {}
        if any(not text for text in texts):
            return 422, {"error": "empty", "error_type": "Validation"}, {}
        if any(len(text) > 10_000 for text in texts) and not request["truncate"]:
            return 413, {"error": texts[0], "error_type": "Validation"}, {}
        counted = {} if path.startswith("/plain") else {"x-compute-tokens": str(count_tokens(texts))}
        return 200, (await self.model.embed(texts)).vectors.tolist(), counted


class OpenAIServer(Server):
    """As much of OpenAI as a client can tell apart; the last text's vector comes first."""

    async def answer(self, path: str, body: bytes) -> Answered:
        request = json.loads(body)
        texts: list[str] = request["input"]
        if path != "/v1/embeddings" or request["model"] != "m":
            return 404, {"error": {"message": "no such model"}}, {}
        if len(texts) > MAX_BATCH or any(not text or len(text) > 10_000 for text in texts):
            return 400, {"error": {"message": texts[0]}}, {}
        rows = (await self.model.embed(texts)).vectors
        whole = request.get("encoding_format", "float") == "float"
        data = [
            {"index": n, "embedding": row.tolist() if whole else base64.b64encode(row.astype("<f4").tobytes()).decode()}
            for n, row in enumerate(rows)
        ]
        usage = {"prompt_tokens": count_tokens(texts), "total_tokens": count_tokens(texts)}
        return 200, {"object": "list", "data": data[::-1], "model": "m-2025", "usage": usage}, {}


def count_tokens(texts: list[str]) -> int:
    return sum(len(text.split()) for text in texts)


@asynccontextmanager
async def serving(behaviour: Server) -> AsyncIterator[str]:
    server = await asyncio.start_server(behaviour, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()
    await server.wait_closed()
