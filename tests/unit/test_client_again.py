"""What is sent again, with which key, after how long; and what is not. Over a transport that answers as it is told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from email.utils import formatdate
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.client import (
    AsyncCrossfade,
    ClientError,
    Crossfade,
    Failed,
    NoAnswer,
    NotActive,
    NotUnderstood,
    TryLater,
    Unreachable,
    calls,
)
from streams.client.answers import VectorSpace
from streams.client.errors import _OF_STATUS, Answered, Problem, error_of
from streams.client.events import Event, Parser
from streams.client.exchange import Asked, Broken, Call, Came, Reply, Wait
from streams.client.settings import Settings
from tests.served import served

OUTCOME = b'{"ok":true,"command_id":"k.1","message":"done","data":{},"next":""}'
DONE = Reply(200, {"content-type": "application/json"}, OUTCOME)
LOST = Broken(NoAnswer("it broke off"), again=True)
AWAY = Broken(Unreachable("nobody listens"), again=True)


def settings(retries: int = 3) -> Settings:
    return Settings("http://127.0.0.1:1", None, 30.0, 600.0, retries, 1_000_000, chance=lambda: 0.5)


def problem(status: int, **headers: str) -> Reply:
    said = b'{"title":"No","status":%d,"detail":"not now","next_step":"wait"}' % status
    return Reply(status, {"content-type": "application/problem+json", **headers}, said)


def carried_out(asked: Asked[Any], answers: Sequence[Came], retries: int = 3) -> tuple[Any, list[str], list[float]]:
    """The value or the error; the Idempotency-Keys in the order sent; the pauses."""
    flow, left = asked.flow(settings(retries)), iter(answers)
    keys, pauses = list[str](), list[float]()
    try:
        step = next(flow)
        while True:
            if isinstance(step, Wait):
                pauses.append(step.seconds)
                step = next(flow)
            else:
                keys.append(step.headers.get("Idempotency-Key", ""))
                step = flow.send(next(left))
    except StopIteration as done:
        return done.value, keys, pauses
    except ClientError as error:
        return error, keys, pauses


def verb() -> Asked[Any]:
    return calls.pause("docs", "v1")


def read() -> Asked[Any]:
    return calls.search("docs", "q")


def unkeyed() -> Asked[Any]:
    """As somebody might write one; ours all carry a key."""
    return replace(calls.pause("docs", "v1"), key=None)


@pytest.mark.parametrize("lost", [LOST, AWAY, problem(503), problem(503, **{"retry-after": "2"}), problem(429)])
def test_a_verb_is_sent_again_with_its_key(lost: Came) -> None:
    done, keys, pauses = carried_out(verb(), [lost, lost, DONE])
    assert done.message == "done"
    assert len(keys) == 3
    assert len(set(keys)) == 1
    assert keys[0]
    assert pauses == ([2.0, 2.0] if isinstance(lost, Reply) and "retry-after" in lost.headers else [0.25, 0.5])
    assert carried_out(verb(), [DONE])[1] != keys, "another call has another key"
    assert carried_out(calls.pause("docs", "v1", idempotency_key="mine"), [lost, DONE])[1] == ["mine", "mine"]


@pytest.mark.parametrize(
    ("asked", "came", "sent"),
    [
        (verb, problem(409), 1),
        (verb, problem(422), 1),
        (verb, problem(401), 1),
        (verb, problem(500), 1),
        (verb, problem(502), 1),
        (verb, problem(502, **{"retry-after": "0"}), 4),
        (verb, problem(504), 1),
        (verb, problem(504, **{"retry-after": "0"}), 4),
        (verb, Broken(NoAnswer("too late"), again=False), 1),
        (verb, LOST, 4),
        (read, LOST, 4),
        (read, problem(503), 4),
        (unkeyed, LOST, 1),
        (unkeyed, problem(503), 1),
        (unkeyed, AWAY, 4),
        (unkeyed, problem(429), 4),
    ],
)
def test_what_is_sent_again(asked: Callable[[], Asked[Any]], came: Came, sent: int) -> None:
    error, keys, _ = carried_out(asked(), [came] * 9)
    assert isinstance(error, ClientError)
    assert len(keys) == sent
    assert error.idempotency_key == (keys[0] or None)


def test_the_pause_is_what_the_server_asks_for() -> None:
    in_five = formatdate(time.time() + 5, usegmt=True)
    for header, low, high in (("7", 7, 7), ("0", 0, 0), (in_five, 3, 5), ("soon", 0.25, 0.25), ("-1", 0, 0)):
        _, _, pauses = carried_out(read(), [problem(503, **{"retry-after": header})] * 9, 1)
        assert low <= pauses[0] <= high, header
    for too_long in ("61", formatdate(time.time() + 4000, usegmt=True)):
        error, keys, pauses = carried_out(read(), [problem(503, **{"retry-after": too_long})] * 9)
        assert (type(error), len(keys), pauses) == (TryLater, 1, []), "it is handed on, not slept through"
        assert error.retry_after_s > 60
    _, _, pauses = carried_out(read(), [AWAY] * 9, 7)
    assert pauses == [0.25, 0.5, 1, 2, 4, 8, 8]


def test_waiting_outlasts_a_restart_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    space = {
        "name": "v2", "status": "building", "default": False, "dims": 8, "model": "m", "fingerprint": "f", "space": "s",
        "progress": 0.5, "total": 2, "completed": 1, "note": "",
    }  # fmt: skip

    def told(status: str) -> Reply:
        return Reply(200, {}, httpx.Response(200, json={**space, "status": status}).content)

    now_s = 0.0

    def clock() -> float:
        return now_s

    def waits(answers: Iterator[Came], timeout_s: float | None) -> VectorSpace:
        nonlocal now_s
        now_s = 0.0
        flow = calls.Activation("docs", "v2", timeout_s, 1.0, clock).flow(settings(0))
        try:
            step = next(flow)
            while True:
                if isinstance(step, Wait):
                    now_s += step.seconds
                    step = next(flow)
                else:
                    step = flow.send(next(answers))
        except StopIteration as done:
            found: VectorSpace = done.value
            return found

    restart: list[Came] = [told("building"), *[AWAY] * 20, problem(503), LOST, told("paused"), told("active")]
    assert waits(iter(restart), None).status == "active"
    with pytest.raises(Unreachable):
        waits(iter([told("building"), *[AWAY] * 500]), None)
    with pytest.raises(NotActive, match=r"after 9 s: building, 50%"):
        waits(iter([told("building")] * 500), 9.0)
    for ends in ("failed", "deleted"):
        with pytest.raises(NotActive):
            waits(iter([told("building"), told(ends)]), None)


def test_every_status_has_its_class() -> None:
    for status in range(400, 600):
        error = error_of(Problem("t", status, "d"))
        assert type(error) is _OF_STATUS.get(status, Failed)
        assert error.status == status
    assert all(issubclass(kind, Answered) for kind in _OF_STATUS.values())


async def test_a_lost_answer_changes_nothing_twice(tmp_path: Path) -> None:
    """Over the real app: the first answer to each of them is lost."""
    async with served(tmp_path) as api:
        await api.serve("v1")
        inner = httpx.ASGITransport(app=api.app)
        lost = list[str]()

        class Losing(httpx.AsyncBaseTransport):
            async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
                answer = await inner.handle_async_request(request)
                key = request.headers["idempotency-key"]
                if key not in lost:
                    lost.append(key)
                    raise httpx.ReadError("the answer is lost", request=request)
                return answer

        async with AsyncCrossfade("http://127.0.0.1:8470", transport=Losing()) as client:
            added = await client.add_vector_space("docs", "v2", dims=64, model="crossfade-hashing")
            assert added.status == "building"
            assert (await client.delete_vector_space("docs", "v2")).ok
            await api.ready("v2")
            for name in ("v2", "v1"):
                done = await client.set_default_vector_space("docs", name)
                assert (done.ok, done.verified) == (True, True), "the outcome of the first, not that it is so already"
            assert (await client.pause("docs", "v2")).command_id.startswith(lost[-1])
            assert (await client.delete_vector_space("docs", "v2")).command_id.startswith(lost[-1])
        assert len(set(lost)) == 6
        assert [c.verb for c in api.commands.sent] == ["start", "abort", "cutover", "rollback", "pause", "retire"]


def test_what_every_request_carries() -> None:
    """The key, and no cookie that somebody has set."""
    seen = list[httpx.Request]()

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={"status": "ok", "state": "current", "away": []}, headers={"Set-Cookie": "a=b"})

    with Crossfade("http://127.0.0.1:1", "k" * 40, transport=httpx.MockTransport(answer)) as client:
        client.health()
        client.health()
    assert all("cookie" not in request.headers for request in seen)
    assert {request.headers["authorization"] for request in seen} == {"Bearer " + "k" * 40}
    assert {request.headers["accept-encoding"] for request in seen} == {"identity"}


def test_no_proxy_variable_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with Crossfade("http://127.0.0.1:1", retries=0) as client:
        assert not client._http._mounts


EVENTS = b": hello\n\nevent: progress\ndata: {\ndata: }\n\ndata:one\nid: 4\nretry: 5\nunknown\n\nevent: x\n\ndata\n\n"
PARSED = [Event("progress", b"{\n}"), Event("message", b"one"), Event("message", b"")]


@given(st.lists(st.integers(1, len(EVENTS)), max_size=20), st.sampled_from([b"\n", b"\r\n", b"\r"]), st.booleans())
def test_events_in_pieces_of_any_size(cuts: list[int], end: bytes, marked: bool) -> None:
    raw = (b"\xef\xbb\xbf" if marked else b"") + EVENTS.replace(b"\n", end)
    at = sorted({0, len(raw), *(cut for cut in cuts if cut < len(raw))})
    parser = Parser()
    found = [event for a, b in pairwise(at) for event in parser.feed(raw[a:b])]
    assert found + list(parser.feed(b"\n")) == PARSED


@given(st.lists(st.binary(max_size=40), max_size=10))
def test_events_of_any_bytes(pieces: list[bytes]) -> None:
    parser = Parser(most_bytes=100)
    try:
        for piece in pieces:
            list(parser.feed(piece))
    except NotUnderstood:
        assert sum(map(len, pieces)) > 100


async def test_a_cancelled_call_leaves_no_connection() -> None:
    hangs = asyncio.Event()
    began = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        began.set()
        assert await reader.read() == b"", "hung up on"
        hangs.set()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with AsyncCrossfade(f"http://127.0.0.1:{port}") as client:
        asking = asyncio.create_task(client.collections())
        await began.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        async with asyncio.timeout(5):
            await hangs.wait()
    server.close()


def test_a_call_says_how_long_it_may_take() -> None:
    long = {"cutover", "verify", "redrive", "plan", "evaluate", "set_default_vector_space"}
    asked: dict[str, Call[Any]] = {
        "cutover": calls.cutover("d", "v"), "verify": calls.verify("d", "v"), "redrive": calls.redrive("d", "v"),
        "plan": calls.plan("d", "v"), "evaluate": calls.evaluate("d", "v"), "pause": calls.pause("d", "v"),
        "set_default_vector_space": calls.set_default_vector_space("d", "v"), "search": calls.search("d", "q"),
    }  # fmt: skip
    for name, call in asked.items():
        assert call.sending(settings()).timeout_s == (600 if name in long else 30)
