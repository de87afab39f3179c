"""One suite over every embedder: what the `Embedder` Protocol promises, TEI's over real HTTP on loopback."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable

import numpy as np
import pytest

from connectors.embedders.base import RejectedTexts
from connectors.embedders.hashing import HashingEmbedder
from connectors.embedders.probe import PROBE_TEXT, probe, probe_dimensions
from connectors.embedders.tei import TeiEmbedder
from connectors.errors import AccessDenied, ContentRejected, Transient, Unreachable
from connectors.memory.embedder import MemoryEmbedder
from connectors.protocols import Embedder

DIMENSIONS = 16
MAX_BATCH = 8
API_KEY = "test-key"


class TeiServer:
    """As much of TEI as a client can tell apart: /embed and /info, its limits, its key, its statuses."""

    def __init__(self) -> None:
        self.requests = 0
        self.hold: asyncio.Event | None = None
        self._model = MemoryEmbedder(DIMENSIONS)

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
                status, reply = await self._answer(line.split()[1].decode(), headers, body)
                raw = json.dumps(reply).encode()
                head = f"HTTP/1.1 {status} x\r\ncontent-type: application/json\r\ncontent-length: {len(raw)}\r\n\r\n"
                writer.write(head.encode() + raw)
                await writer.drain()
        except ConnectionError:  # a client that gave up
            return
        finally:
            writer.close()

    async def _answer(self, path: str, headers: dict[str, str], body: bytes) -> tuple[int, object]:
        self.requests += 1
        if headers.get("authorization") != f"Bearer {API_KEY}":
            return 401, {"error": "key"}
        if path == "/info":
            return 200, {"model_id": "m", "model_sha": "r", "max_client_batch_size": MAX_BATCH, "max_input_length": 512}
        request = json.loads(body)
        texts: list[str] = request["inputs"]
        if len(texts) > MAX_BATCH:
            return 413, {"error": "batch", "error_type": "Validation"}
        if any(not text for text in texts):
            return 422, {"error": "empty", "error_type": "Validation"}
        if any(len(text) > 10_000 for text in texts) and not request["truncate"]:
            return 413, {"error": texts[0], "error_type": "Validation"}
        return 200, (await self._model.embed(texts)).vectors.tolist()


@pytest.fixture
async def tei_server() -> AsyncIterator[tuple[TeiServer, str]]:
    behaviour = TeiServer()
    server = await asyncio.start_server(behaviour, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    yield behaviour, f"http://127.0.0.1:{port}"
    server.close()
    await server.wait_closed()


@pytest.fixture(params=["hashing", "memory", "tei"])
async def embedder(request: pytest.FixtureRequest, tei_server: tuple[TeiServer, str]) -> AsyncIterator[Embedder]:
    make: dict[str, Callable[[], Embedder]] = {
        "hashing": lambda: HashingEmbedder(DIMENSIONS),
        "memory": lambda: MemoryEmbedder(DIMENSIONS, max_batch=MAX_BATCH),
        "tei": lambda: TeiEmbedder(tei_server[1], api_key=API_KEY, max_batch=MAX_BATCH, timeout_s=10),
    }
    made = make[request.param]()
    yield made
    await made.close()


TEXTS = ["the wing", "a propeller slipstream", "the wing", "ünïcode – 漢字 🚀", "x" * 9_000]


async def test_one_float32_row_a_text_in_order(embedder: Embedder) -> None:
    vectors = (await embedder.embed(TEXTS)).vectors
    assert vectors.shape == (len(TEXTS), DIMENSIONS)
    assert vectors.dtype == np.float32
    assert np.isfinite(vectors).all()
    assert vectors.any(axis=1).all()
    assert (vectors[0] == vectors[2]).all()
    assert not np.allclose(vectors[0], vectors[1])


async def test_a_text_has_the_same_vector_alone_again_and_in_any_batch(embedder: Embedder) -> None:
    together = (await embedder.embed(TEXTS)).vectors
    backwards = (await embedder.embed(TEXTS[::-1])).vectors
    for index, text in enumerate(TEXTS):
        assert ((await embedder.embed([text])).vectors[0] == together[index]).all()
    assert (backwards[::-1] == together).all()


async def test_a_full_batch_is_taken(embedder: Embedder) -> None:
    count = min(embedder.max_batch, 200)
    assert (await embedder.embed([f"text {n}" for n in range(count)])).vectors.shape == (count, DIMENSIONS)


async def test_calls_may_overlap(embedder: Embedder) -> None:
    batches = [[f"batch {n}", f"of {n}"] for n in range(8)]
    results = await asyncio.gather(*(embedder.embed(batch) for batch in batches))
    for batch, result in zip(batches, results, strict=True):
        assert (result.vectors == (await embedder.embed(batch)).vectors).all()


@pytest.mark.parametrize("blank", ["", " ", "\n\t"])
async def test_blank_texts_are_rejected_by_index(embedder: Embedder, blank: str) -> None:
    with pytest.raises(RejectedTexts) as caught:
        await embedder.embed(["good", blank, "good", blank])
    assert caught.value.indexes == (1, 3)
    assert (await embedder.embed(["good"])).vectors.shape == (1, DIMENSIONS)


async def test_the_probe_tells_the_dimensions(embedder: Embedder) -> None:
    assert await probe_dimensions(embedder) == DIMENSIONS
    assert (await probe(embedder) == (await embedder.embed([PROBE_TEXT])).vectors[0]).all()


async def test_tei_says_what_it_serves(tei_server: tuple[TeiServer, str]) -> None:
    embedder = TeiEmbedder(tei_server[1], api_key=API_KEY)
    info = await embedder.facts()
    assert (info.model, info.revision, info.max_batch, info.max_input_tokens) == ("m", "r", MAX_BATCH, 512)
    await embedder.close()


async def test_tei_refuses_a_wrong_key_and_names_no_key(tei_server: tuple[TeiServer, str]) -> None:
    embedder = TeiEmbedder(tei_server[1], api_key="wrong-key")
    with pytest.raises(AccessDenied) as caught:
        await embedder.embed(["text"])
    assert "wrong-key" not in str(caught.value) + repr(embedder)
    await embedder.close()


async def test_tei_truncates_only_when_told_to(tei_server: tuple[TeiServer, str]) -> None:
    long = "secret text " * 1000
    strict = TeiEmbedder(tei_server[1], api_key=API_KEY)
    with pytest.raises(ContentRejected) as caught:
        await strict.embed([long])
    assert "secret" not in str(caught.value)
    cutting = TeiEmbedder(tei_server[1], api_key=API_KEY, truncate=True)
    assert (await cutting.embed([long])).vectors.shape == (1, DIMENSIONS)
    await strict.close()
    await cutting.close()


async def test_tei_that_does_not_reply_in_time_may_be_asked_again(tei_server: tuple[TeiServer, str]) -> None:
    server, url = tei_server
    server.hold = asyncio.Event()
    embedder = TeiEmbedder(url, api_key=API_KEY, timeout_s=0.05)
    with pytest.raises(Transient) as caught:
        await embedder.embed(["text"])
    assert not isinstance(caught.value, Unreachable)
    server.hold.set()
    await embedder.close()


async def test_tei_that_is_not_there_is_unreachable() -> None:
    server = await asyncio.start_server(TeiServer(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    embedder = TeiEmbedder(f"http://127.0.0.1:{port}")
    with pytest.raises(Unreachable) as caught:
        await embedder.embed(["text"])
    assert caught.value.next_step
    await embedder.close()
