"""The benchmark's endpoint keeps honest books: time, limits, repeats and faults, by the model and over the wire."""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from benchmarks.gpu_server import MODEL, VECTOR, Bucket, Endpoint, Faults, Model, quantile, serve, tokens_of

FULL = "x" * 255  # 64 tokens, the reference length
EXACT = Model(documents_per_s=1000, slots=4, batch=32, tokens=64, base_s=0.008)
FAST = Model(documents_per_s=20_000, slots=2, base_s=0.001)


def batch_of(number: int, texts: int = 32) -> list[str]:
    return [f"{number}-{index}".ljust(255, "x") for index in range(texts)]


@asynccontextmanager
async def running(model: Model = FAST) -> AsyncIterator[httpx.AsyncClient]:
    server = await serve(model)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with httpx.AsyncClient(base_url=url, timeout=5) as client:
        yield client
    server.close()


async def stats(client: httpx.AsyncClient) -> dict[str, float]:
    found: dict[str, float] = (await client.get("/stats")).json()
    return found


# the model, with a clock of the test's own


def test_full_slots_serve_exactly_the_stated_rate_and_are_always_busy() -> None:
    endpoint = Endpoint(EXACT, 100.0)
    batches = [endpoint.accept(batch_of(number), 100.0) for number in range(40)]
    end = max(batch.end for batch in batches)
    assert 40 * 32 / (end - 100.0) == pytest.approx(1000)
    assert endpoint.stats(end + 5)["busy"] == pytest.approx(1.0)
    assert endpoint.stats(end + 5)["span_s"] == pytest.approx(end - 100.0)


def test_a_batch_takes_the_time_of_its_longest_text() -> None:
    endpoint = Endpoint(EXACT, 0.0)
    even = endpoint.accept([FULL] * 32, 0.0)
    padded = endpoint.accept([FULL] + ["short"] * 31, 0.0)
    assert even.end - even.start == pytest.approx(padded.end - padded.start)
    assert endpoint.books.texts == 0  # what waits or runs has not been served
    endpoint.finish(even, True, even.end)
    endpoint.finish(padded, True, padded.end)
    assert endpoint.books.tokens == 33 * 64 + 31 * tokens_of("short")
    assert endpoint.books.tokens_padded == 2 * 32 * 64


def test_busy_counts_only_what_has_run_and_only_since_the_reset() -> None:
    endpoint = Endpoint(EXACT, 0.0)
    service = EXACT.service_s(32, 64)
    for number in range(8):  # two for each slot
        endpoint.accept(batch_of(number), 0.0)
    assert endpoint.stats(service / 2)["busy_s"] == pytest.approx(4 * service / 2)
    endpoint.reset(service * 1.5)
    assert endpoint.stats(service * 1.5)["busy_s"] == pytest.approx(0)
    assert endpoint.stats(service * 3)["busy_s"] == pytest.approx(4 * service / 2)


def test_an_idle_slot_shows() -> None:
    endpoint = Endpoint(EXACT, 0.0)
    service = EXACT.service_s(32, 64)
    for number in range(3):  # a serial client that is twice as slow as the slot
        endpoint.accept(batch_of(number), number * 2 * service)
    assert endpoint.stats(100.0)["busy"] == pytest.approx(3 / (5 * 4))


def test_a_full_queue_refuses_until_a_slot_is_free() -> None:
    endpoint = Endpoint(Model(slots=1, queue=1), 0.0)
    first = endpoint.accept(batch_of(0), 0.0)
    assert endpoint.refuse(batch_of(1), 0.0) is None
    endpoint.accept(batch_of(1), 0.0)
    refused = endpoint.refuse(batch_of(2), 0.0)
    assert refused is not None
    assert refused[0] == 429
    assert endpoint.refuse(batch_of(2), first.end) is None
    assert endpoint.books.refused_queue == 1
    assert endpoint.books.most_waiting == 1


def test_a_limit_a_minute_lets_its_rate_through_and_says_when() -> None:
    model = Model(tokens_per_minute=60 * 64 * 10, burst_s=1.0)  # ten full texts a second
    endpoint = Endpoint(model, 0.0)
    served, now = 0, 0.0
    while now < 20:
        refused = endpoint.refuse([FULL], now)
        if refused is None:
            endpoint.finish(endpoint.accept([FULL], now), True, now)
            served += 1
        else:
            now += refused[1] + 1e-9
    assert served == pytest.approx(10 * 20 + 10, abs=1)
    allowed = endpoint.stats(20.0)["tokens_allowed"]
    assert endpoint.books.tokens == pytest.approx(allowed, rel=0.01)


def test_a_bucket_lets_through_what_is_larger_than_itself_and_then_keeps_the_debt() -> None:
    bucket = Bucket(per_minute=600, burst_s=1, now=0.0)
    assert bucket.wait_s(25, 0.0) == 0
    bucket.take(25)
    assert bucket.wait_s(10, 0.0) == pytest.approx(2.5)


def test_what_is_served_again_is_told_apart() -> None:
    endpoint = Endpoint(EXACT, 0.0)

    def serve_one(text: str, delivered: bool = True) -> None:
        endpoint.finish(endpoint.accept([text], 0.0), delivered, 1.0)

    serve_one("a")
    serve_one("lost", delivered=False)
    serve_one("lost")
    assert endpoint.books.texts_again_lost == 1
    assert endpoint.books.texts_wasted == 0
    serve_one("a")
    assert endpoint.books.texts_wasted == 1
    endpoint.mark()
    serve_one("a")
    assert endpoint.books.texts_again_restart == 1
    serve_one("a")  # the restarted client knows it has it
    assert endpoint.books.texts_wasted == 2
    assert endpoint.books.tokens_wasted == 2 * tokens_of("a")
    endpoint.reset(2.0)
    serve_one("a")
    assert endpoint.books.texts_wasted == 0


def test_too_long_and_too_many_are_refused() -> None:
    endpoint = Endpoint(Model(max_batch=2, max_tokens=4), 0.0)
    for texts in (["a", "b", "c"], ["a" * 16]):
        assert endpoint.refuse(texts, 0.0) == (413, 0.0)
    assert endpoint.refuse(["a" * 15], 0.0) is None


def test_a_base_time_that_the_capacity_leaves_no_room_for_is_refused() -> None:
    with pytest.raises(ValueError, match="longer than"):
        Model(documents_per_s=10_000, slots=1, batch=32, base_s=0.004)


def test_quantiles() -> None:
    assert quantile([3.0, 1.0, 2.0, 4.0], 0.5) == 2.0
    assert quantile([3.0, 1.0, 2.0, 4.0], 1.0) == 4.0
    assert quantile([], 0.5) is None


# over the wire


async def test_both_shapes_are_answered() -> None:
    async with running() as client:
        tei = (await client.post("/embed", json={"inputs": ["a", "b"]})).json()
        assert tei == [list(VECTOR)] * 2
        body: dict[str, object] = {"input": ["a", "bcdef"], "model": MODEL}
        floats = (await client.post("/v1/embeddings", json=body)).json()
        assert [item["index"] for item in floats["data"]] == [0, 1]
        assert floats["data"][1]["embedding"] == list(VECTOR)
        assert floats["usage"]["total_tokens"] == tokens_of("a") + tokens_of("bcdef")
        packed = (await client.post("/embeddings", json={**body, "encoding_format": "base64"})).json()
        raw = base64.b64decode(packed["data"][0]["embedding"])
        assert struct.unpack(f"<{len(VECTOR)}f", raw) == VECTOR
        info = (await client.get("/info")).json()
        assert (info["model_id"], info["max_client_batch_size"]) == (MODEL, FAST.max_batch)


async def test_a_reply_never_comes_before_its_time() -> None:
    model = Model(documents_per_s=400, slots=2, base_s=0.001)
    loop = asyncio.get_running_loop()
    async with running(model) as client:
        begun = loop.time()
        await asyncio.gather(*(client.post("/embed", json={"inputs": batch_of(number)}) for number in range(4)))
        took = loop.time() - begun
        assert took >= 4 * 32 / 400
        found = await stats(client)
        assert found["busy_s"] == pytest.approx(4 * model.service_s(32, 64))
        assert found["texts"] == 128


async def test_requests_over_the_limit_get_429_and_retry_after() -> None:
    model = Model(documents_per_s=20_000, slots=2, base_s=0.001, requests_per_minute=60, retry_after="seconds")
    async with running(model) as client:
        assert (await client.post("/embed", json={"inputs": ["a"]})).status_code == 200
        refused = await client.post("/embed", json={"inputs": ["a"]})
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert (await stats(client))["refused_rate"] == 1


async def _answer(client: httpx.AsyncClient) -> int | str:
    try:
        return (await client.post("/embed", json={"inputs": ["a"]}, timeout=0.5)).status_code
    except httpx.TransportError as error:
        return type(error).__name__


@pytest.mark.parametrize(
    ("faults", "answer", "count"),
    [
        ({"error": 1}, 500, "faults_error"),
        ({"cut": 1}, "RemoteProtocolError", "faults_cut"),
        ({"hang": 1}, "ReadTimeout", "faults_hang"),
        ({"slow": 1}, 200, "faults_slow"),
        ({"down_s": 60}, 503, "refused_down"),
        ({"down_s": 60, "down_cuts": True}, "RemoteProtocolError", "refused_down"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
async def test_each_fault_is_what_it_says(faults: dict[str, float], answer: int | str, count: str) -> None:
    async with running() as client:
        assert (await client.post("/faults", json=faults)).status_code == 200
        assert await _answer(client) == answer
        found = await stats(client)
        assert found[count] == 1
        assert found["texts"] == (1 if count in ("faults_cut", "faults_slow") else 0)
        assert found["texts_undelivered"] == (1 if count == "faults_cut" else 0)
        await client.post("/faults", json={})
        assert await _answer(client) == 200
        assert (await stats(client))["texts_again_lost"] == (1 if count == "faults_cut" else 0)


async def test_a_client_that_goes_away_has_its_work_done_and_not_delivered() -> None:
    async with running(Model(documents_per_s=400, slots=2, base_s=0.001)) as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.post("/embed", json={"inputs": batch_of(0)}, timeout=0.05)
        await client.post("/embed", json={"inputs": batch_of(1)})  # takes as long on the other slot, from later on
        found = await stats(client)
        assert (found["texts"], found["texts_undelivered"]) == (64, 32)


@pytest.mark.parametrize("body", [b"", b"{}", b'{"inputs": []}', b'{"inputs": [1]}', b"[]"])
async def test_a_request_without_texts_is_refused(body: bytes) -> None:
    async with running() as client:
        assert (await client.post("/embed", content=body)).status_code == 400
        assert (await client.post("/faults", content=b'{"eror": 1}')).status_code == 400


def test_faults_are_drawn_by_their_shares() -> None:
    endpoint = Endpoint(EXACT, 0.0)
    endpoint.set_faults(Faults(error=0.2, cut=0.1), 0.0)
    drawn = [endpoint.draw() for _ in range(5000)]
    assert drawn.count("error") == pytest.approx(1000, rel=0.1)
    assert drawn.count("cut") == pytest.approx(500, rel=0.15)
    assert drawn.count("") + drawn.count("error") + drawn.count("cut") == 5000
