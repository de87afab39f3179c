"""Servers that are not what the client asks: no JSON, endless, hanging, breaking off, redirecting, with broken events.

Each ends in an error of the client's own, in time, with neither the key nor the query nor what came in it.
"""

from __future__ import annotations

import asyncio
import gzip
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from email.utils import formatdate
from pathlib import Path

import pytest

from streams.client import ClientError, Failed, Misconfigured, NoAnswer, NotUnderstood, TryLater, Unfit
from streams.client import events as client_events
from streams.client import settings as client_settings
from tests.clients import BOTH, Asks, Makes
from tests.unit.loopback import Answer, Authority, Loopback, Request, always, loopback, reply

KEY = "SECRETm3x7" * 4
QUERY = "CANARYt4w8"
PLANTED = "PLANTEDz5k1"
JSON = "content-type: application/json\r\n"
PROBLEM = "content-type: application/problem+json\r\n"
STREAM = b"HTTP/1.1 200 x\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
VERSION = (
    b'{"collection":"docs","version":"v1","stage":"building","epoch":1,"fingerprint":"f","space":"s","paused":null,'
    b'"failure":null,"controls":{},"provenance":{},"started_ms":0,"ready_ms":0,"reporting":false,"progress":null,'
    b'"next":""}'
)
TOLD = b"event: progress\ndata: " + VERSION + b"\n\n"


@pytest.fixture(params=BOTH, ids=["threads", "asyncio"])
def makes(request: pytest.FixtureRequest) -> Makes:
    made: Makes = request.param
    return made


@asynccontextmanager
async def asked(makes: Makes, answer: Answer, **given: object) -> AsyncIterator[tuple[Asks, Loopback]]:
    async with loopback(answer) as server:
        ask = makes(server.url(), KEY, **{"retries": 0, "timeout_s": 5, **given})
        yield ask, server
        await ask.close()


def fit_to_be_shown(error: ClientError) -> None:
    shown = f"{error!s}{error!r}{vars(error)}{error.__cause__!r}"
    for secret in (KEY, QUERY, PLANTED):
        assert secret not in shown
    assert error.next_step or error.detail


GOOD_START = b'{"collection":"docs","route":"serving","hits":['


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (reply(b"<html>PLANTEDz5k1</html>", "content-type: text/html\r\n"), NotUnderstood),
        (reply(b"", JSON), NotUnderstood),
        (reply(b'{"collection": "PLANTEDz5k1"', JSON), NotUnderstood),
        (reply(b'["PLANTEDz5k1"]', JSON), NotUnderstood),
        (reply(b'{"collection": {"PLANTEDz5k1": 1}, "hits": "PLANTEDz5k1"}', JSON), NotUnderstood),
        (reply(b"[" * 100_000, JSON), NotUnderstood),
        (reply(b"\xff\xfe\x00", JSON), NotUnderstood),
        (reply(b"\x1f\x8b\x08\x00", JSON + "content-encoding: gzip\r\n"), NotUnderstood),
        (reply(b"", "location: http://example.com/PLANTEDz5k1\r\n", 302), NotUnderstood),
        (reply(b"", "location: /collections/docs/search\r\n", 307), NotUnderstood),
        (reply(b"PLANTEDz5k1", "", 500), Failed),
        (reply(b"PLANTEDz5k1", PROBLEM, 502), Failed),
        (reply(b'{"title": 5, "detail": null}', PROBLEM, 422), Unfit),
        (reply(b'["PLANTEDz5k1"]', PROBLEM, 422), Unfit),
        (reply(b"[" * 100_000, PROBLEM, 422), Unfit),
        (reply(b'{"error": "PLANTEDz5k1"}', JSON, 422), Unfit),
        (b"HTTP/1.1 200 x\r\ncontent-length: 5\r\n\r\n[]", NoAnswer),
        (b"HTTP/1.1 200 x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", NoAnswer),
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", NoAnswer),
        (b"\x16\x03\x01\x02\x00", NoAnswer),
        (b"", NoAnswer),
        (b"HTTP/1.1 200 x\r\nx: " + b"a" * 300_000 + b"\r\n\r\n", NoAnswer),
    ],
    ids=lambda one: one.__name__ if isinstance(one, type) else repr(one[:60]),
)
async def test_what_is_no_answer(makes: Makes, raw: bytes, kind: type[ClientError]) -> None:
    async def answer(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(raw)
        await writer.drain()
        writer.close()

    async with asked(makes, answer) as (ask, server):
        with pytest.raises(ClientError) as caught:
            await ask("search", "docs", QUERY)
        assert type(caught.value) is kind, caught.value
        fit_to_be_shown(caught.value)
        assert len(server.requests) == 1


async def test_a_redirect_takes_the_key_nowhere(makes: Makes) -> None:
    async with loopback(always(reply(b"{}", JSON))) as elsewhere:
        leads = reply(b"", f"location: {elsewhere.url()}/collections/docs\r\n", 308)
        async with asked(makes, always(leads)) as (ask, _):
            with pytest.raises(NotUnderstood, match="redirect"):
                await ask("collection", "docs")
            with pytest.raises(NotUnderstood, match="redirect"):
                await anext(ask.follow("docs", "v1"))
        assert elsewhere.connections == 0


@pytest.mark.parametrize("status", [200, 500])
async def test_an_answer_without_end(makes: Makes, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = 0

    async def answer(_: Request, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(f"HTTP/1.1 {status} x\r\nconnection: close\r\n\r\n".encode() + GOOD_START)
        while True:
            writer.write(b" " * 65_536)
            await writer.drain()
            sent += 65_536

    monkeypatch.setattr(client_settings, "MOST_BYTES", 1_000_000)
    async with asked(makes, answer) as (ask, _):
        with pytest.raises(NotUnderstood, match="longer than 1,000,000 bytes") as caught:
            await ask("search", "docs", QUERY)
        fit_to_be_shown(caught.value)
    assert sent < 30_000_000, "hung up on, but for what the sockets hold"


async def test_an_answer_that_is_packed(makes: Makes) -> None:
    """It may be gigabytes: it is not unpacked, be it ever so right; nor is a stream."""
    packed = "content-encoding: gzip\r\n"
    async with asked(makes, always(reply(gzip.compress(b'{"collections":[]}'), JSON + packed))) as (ask, _):
        with pytest.raises(NotUnderstood, match="packs its answers"):
            await ask("collections")
    stream = reply(gzip.compress(TOLD), "content-type: text/event-stream\r\n" + packed)
    async with asked(makes, always(stream)) as (ask, _):
        with pytest.raises(NotUnderstood, match="packs its answers"):
            await anext(ask.follow("docs", "v1"))


async def test_a_server_that_hangs(makes: Makes) -> None:
    async def hang(_: Request, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)

    async with asked(makes, hang, timeout_s=0.3, retries=3) as (ask, server):
        began_s = time.monotonic()
        with pytest.raises(NoAnswer, match=r"within 0\.3 s") as caught:
            await ask("pause", "docs", "v1", idempotency_key="mine")
        assert time.monotonic() - began_s < 5
        assert len(server.requests) == 1, "the time that was given is over"
        assert caught.value.idempotency_key == "mine"
        assert await ask("ready") is False


async def test_an_answer_that_is_dripped(makes: Makes) -> None:
    async def drip(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 x\r\nconnection: close\r\n\r\n")
        while True:
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.05)

    async with asked(makes, drip, timeout_s=0.5) as (ask, _):
        began_s = time.monotonic()
        with pytest.raises(NoAnswer):
            await ask("collections")
        assert time.monotonic() - began_s < 5


async def test_it_breaks_off_and_comes_back(makes: Makes) -> None:
    """The same key each time; the connection that broke is not used again."""
    done = reply(b'{"ok":true,"command_id":"k","message":"done","data":{},"next":""}', JSON)
    answers = [b"HTTP/1.1 200 x\r\ncontent-length: 90\r\n\r\n{", b"", done]

    async def answer(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(answers.pop(0))
        await writer.drain()
        writer.close()

    async with asked(makes, answer, retries=3) as (ask, server):
        assert (await ask("pause", "docs", "v1")).message == "done"
        keys = [request.headers["idempotency-key"] for request in server.requests]
        assert (len(keys), len(set(keys)), server.connections) == (3, 1, 3)


@pytest.mark.parametrize(
    ("when", "waits_s"),
    [
        (lambda: "1", 0.9),
        (lambda: formatdate(time.time() + 2.5, usegmt=True), 0.9),
        (lambda: "whenever it suits", 0.1),
        (lambda: "nan", 0.1),
        (lambda: "-5", 0),
        (lambda: "Fri, 99 Foo 2026 00:00:00 GMT", 0.1),
    ],
)
async def test_too_many_requests(makes: Makes, when: Callable[[], str], waits_s: float) -> None:
    left = [reply(b"", f"retry-after: {when()}\r\n", 429), reply(b'{"collections":[]}', JSON)]

    async def answer(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(left.pop(0))

    async with asked(makes, answer, retries=1) as (ask, server):
        began_s = time.monotonic()
        assert (await ask("collections")).collections == ()
        assert time.monotonic() - began_s >= waits_s
        assert server.connections == 1, "kept and used again"


async def test_to_be_asked_again_next_week(makes: Makes) -> None:
    async with asked(makes, always(reply(b"", "retry-after: 604800\r\n", 503)), retries=5) as (ask, server):
        with pytest.raises(TryLater) as caught:
            await ask("collections")
        assert (len(server.requests), caught.value.retry_after_s) == (1, 3600.0)


@pytest.mark.parametrize(
    "stream",
    [
        b"event: progress\ndata: {not json PLANTEDz5k1}\n\n",
        b'event: progress\ndata: {"collection": "PLANTEDz5k1"}\n\n',
        b"event: progress\ndata: \xff\xfe\n\n",
        b"event: progress\ndata\n\n",
        b"data: " + b"a" * 3_000_000,
        b"data: PLANTEDz5k1\n" * 200_000,
        b"a" * 3_000_000,
    ],
    ids=lambda one: repr(one[:40]),
)
async def test_events_that_are_none(makes: Makes, stream: bytes) -> None:
    async def answer(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM + TOLD + stream)
        await writer.drain()
        writer.close()

    async with asked(makes, answer) as (ask, _):
        told = ask.follow("docs", "v1")
        assert (await anext(told)).stage == "building"
        with pytest.raises(NotUnderstood) as caught:
            await anext(told)
        fit_to_be_shown(caught.value)


async def test_events_of_other_kinds_are_passed_over_and_a_stream_is_taken_up_again(
    makes: Makes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_events, "_PAUSE_S", 0.01)
    other = b": alive\n\nretry: 1\n\nevent: other\ndata: PLANTEDz5k1\n\nid: 1\r\n\r\n"
    ready = TOLD.replace(b"building", b"ready")
    streams = [STREAM + other + TOLD + other + TOLD, STREAM + TOLD[:50], b"", STREAM + TOLD + ready]

    async def answer(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(streams.pop(0) if streams else reply(b"", "", 404))
        await writer.drain()
        writer.close()

    async with asked(makes, answer, retries=2) as (ask, _):
        told = ask.follow("docs", "v1")
        async with asyncio.timeout(10):
            assert [(await anext(told)).stage for _ in range(2)] == ["building", "ready"]
            with pytest.raises(ClientError) as gone:
                await anext(told)
        assert gone.value.status == 404


async def test_streams_that_always_break_off_are_given_up(makes: Makes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_events, "_PAUSE_S", 0.01)

    async def answer(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM)
        await writer.drain()
        writer.close()

    async with asked(makes, answer, retries=2) as (ask, server):
        with pytest.raises(NoAnswer, match="ended its events"):
            await anext(ask.follow("docs", "v1"))
        assert len(server.requests) == 4


async def test_a_stream_that_falls_silent(makes: Makes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_events, "SILENT_S", 0.2)
    monkeypatch.setattr(client_events, "_PAUSE_S", 0.01)

    async def answer(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM + TOLD)
        await writer.drain()
        await asyncio.sleep(60)

    async with asked(makes, answer, retries=1) as (ask, server):
        told = ask.follow("docs", "v1")
        await anext(told)
        async with asyncio.timeout(10):
            with pytest.raises(NoAnswer, match=r"within 0\.2 s"):
                await anext(told)
        assert {request.headers["accept"] for request in server.requests} == {"text/event-stream"}


async def test_what_is_no_stream(makes: Makes) -> None:
    async with asked(makes, always(reply(VERSION, JSON))) as (ask, _):
        with pytest.raises(NotUnderstood, match="no stream of events"):
            await anext(ask.follow("docs", "v1"))


async def test_a_certificate_nobody_trusts(makes: Makes, tmp_path: Path) -> None:
    """Nothing is sent; with the authority's own file it goes on."""
    authority = Authority(tmp_path)
    async with loopback(always(reply(b'{"collections":[]}', JSON)), tls=authority.server()) as server:
        wary = makes(server.url("https"), KEY)
        with pytest.raises(Misconfigured, match="certificate") as caught:
            await wary("collections")
        fit_to_be_shown(caught.value)
        assert server.requests == []
        trusting = makes(server.url("https"), KEY, ca_file=authority.ca_file)
        assert (await trusting("collections")).collections == ()
        plain = makes(server.url("https").replace("https", "http"), KEY, retries=0)
        with pytest.raises(ClientError) as broken:
            await plain("collections")
        fit_to_be_shown(broken.value)
        for one in (wary, trusting, plain):
            await one.close()


async def test_a_server_that_says_the_key_back(makes: Makes) -> None:
    said = f'{{"title":"No","status":401,"detail":"not {KEY}\\u001b[31m","next_step":"x","data":{{"k":"{KEY}"}}}}'
    async with asked(makes, always(reply(said.encode(), PROBLEM, 401))) as (ask, _):
        with pytest.raises(ClientError, match="not") as caught:
            await ask("collections")
        fit_to_be_shown(caught.value)
        assert "\x1b" not in str(caught.value)
