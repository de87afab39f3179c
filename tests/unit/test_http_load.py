"""The load by which swaps are measured: what it counts as failed or mixed, and that a stall counts for all it held."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from benchmarks.http_load import Load, judged, latencies_ms, loaded

OLD, NEW = "Docs_v1_1_aaa", "Docs_v2_2_bbb"
STALL_S = 0.5


def hit(space: str, key: str = "k") -> dict[str, Any]:
    return {"id": key, "score": 0.5, "space": space, "fingerprint": space[-3:]}


EXPECTED = {OLD: [[hit(OLD)]], NEW: [[hit(NEW)]]}


def answer(space: str, *hits: dict[str, Any], fingerprint: str = "") -> bytes:
    return orjson.dumps({"space": space, "fingerprint": fingerprint or space[-3:], "hits": hits})


@pytest.mark.parametrize("space", [OLD, NEW])
def test_a_whole_answer(space: str) -> None:
    assert judged(200, answer(space, hit(space)), EXPECTED, 0) == (space, "", "")


@pytest.mark.parametrize(
    "body",
    [
        answer(NEW, hit(OLD)),
        answer(NEW, hit(NEW), hit(OLD)),
        answer(NEW, hit(NEW, "another document")),
        answer(NEW),
        answer(NEW, hit(NEW), fingerprint="aaa"),
        answer("Docs_v3_3_ccc", hit("Docs_v3_3_ccc")),
    ],
)
def test_a_mixed_answer(body: bytes) -> None:
    _, failed, mixed = judged(200, body, EXPECTED, 0)
    assert (failed, bool(mixed)) == ("", True)


def test_a_failed_answer() -> None:
    assert judged(503, b'{"detail": "away"}', EXPECTED, 0) == ("", "503: away", "")


async def test_a_stall_counts_for_every_search_that_was_due_in_it() -> None:
    asked = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        while await reader.readuntil(b"\r\n\r\n"):
            await reader.readexactly(len(orjson.dumps({"query": "a"})))
            asked += 1
            if asked == 20:
                stalled.set()
            if stalled.is_set():
                await free.wait()
            body = answer(OLD, hit(OLD))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        except (EOFError, OSError):
            writer.close()

    stalled, free = asyncio.Event(), asyncio.Event()
    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    async with loaded(Load(host, port, "/search", "key", [{"query": "a"}], EXPECTED, 100.0)) as account:
        await stalled.wait()
        await asyncio.sleep(STALL_S)
        free.set()
        await asyncio.sleep(0.1)
    server.close()
    assert asked == len(account.answers), "none was sent twice, none left out"
    assert not [one for one in account.answers if one.failed or one.mixed]
    held = [one for one in account.answers if one.took_s > STALL_S / 5]
    assert len(held) >= 0.7 * STALL_S * 100, "also those that were due while nothing moved"
    assert latencies_ms(account.answers)["worst_ms"] >= 1000 * STALL_S * 0.9
