"""Hooks and pages of metrics that hang, lie or are no such thing: the look ends in time and says what was wrong."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.aside import Aside
from connectors.errors import ConfigurationError, CrossfadeError
from connectors.http_get import HttpGet
from connectors.protocols import Capacity
from connectors.weaviate.capacity import SERIES, CapacitySettings, capacity, read_pages
from streams.config_operation import Throttle
from streams.throttle_checks import Gauges, ThrottleChecks

IN_TIME_S = 20.0  # the time-outs below are 0.3 s; what hangs would hang for ever

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def speaking(talk: Talk) -> AsyncIterator[str]:
    """A server on loopback that says what `talk` says, and its address."""
    talks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        talks.add(task)
        try:
            await talk(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in talks:
            task.cancel()
        await asyncio.gather(*talks, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while True:  # polled: a reading tells nobody that it has changed
            if condition():
                return
            await asyncio.sleep(0.05)


def saying(reply: bytes, *, then_hang: bool = False) -> Talk:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(reply)
        await writer.drain()
        if then_hang:
            await asyncio.Event().wait()

    return talk


async def dripping(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A header now and then, each well within any time-out of a single read."""
    writer.write(b"HTTP/1.1 200 OK\r\n")
    for number in range(1000):
        writer.write(f"x-{number}: y\r\n".encode())
        await writer.drain()
        await asyncio.sleep(0.05)


async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(b"go_memstats_sys_bytes 1\n" * 5000)
        await writer.drain()


async def answer_of(url: str, most_bytes: int = 0) -> int:
    http = HttpGet(url, "the hook", timeout_s=0.3)
    try:
        return (await http.get(most_bytes)).status
    finally:
        await http.close()


@pytest.mark.parametrize(
    ("talk", "said"),
    [
        (saying(b"", then_hang=True), "did not answer within 0.3 s"),
        (saying(b"HTTP/1.1 2", then_hang=True), "did not answer within 0.3 s"),
        (dripping, "did not answer within 0.3 s"),
        (saying(b"nonsense\r\n\r\n"), "did not answer: RemoteProtocolError"),
        (saying(b""), "did not answer: RemoteProtocolError"),
    ],
)
async def test_a_hook_that_hangs_or_babbles_ends_in_time(talk: Talk, said: str) -> None:
    async with speaking(talk) as url:
        began_s = time.monotonic()
        with pytest.raises(CrossfadeError) as raised:
            await answer_of(url)
        assert said in raised.value.message
        assert time.monotonic() - began_s < IN_TIME_S


async def test_a_hook_is_answered_without_its_body() -> None:
    async with speaking(saying(b"HTTP/1.1 204 No Content\r\n\r\n")) as url:
        assert await answer_of(url) == 204
    async with speaking(saying(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n", then_hang=True)) as url:
        assert await answer_of(url) == 200


async def test_a_redirect_is_not_followed() -> None:
    reply = b"HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/\r\ncontent-length: 0\r\n\r\n"
    async with speaking(saying(reply)) as url:
        assert await answer_of(url) == 302


async def test_nobody_there() -> None:
    with pytest.raises(CrossfadeError, match="did not answer: ConnectError"):
        await answer_of("http://127.0.0.1:1")


@pytest.mark.parametrize("host", ["169.254.169.254", "[fe80::1]", "0.0.0.0", "[::ffff:169.254.169.254]"])
async def test_an_address_that_gives_out_credentials_is_never_called(host: str) -> None:
    with pytest.raises(ConfigurationError, match="never called"):
        await answer_of(f"http://{host}/latest")


async def test_a_name_that_leads_there_is_never_called() -> None:
    http = HttpGet("http://hook.example/", "the hook", resolve=lambda host, port: ["10.0.0.1", "169.254.169.254"])
    with pytest.raises(ConfigurationError, match="never called"):
        await http.get()
    await http.close()


async def test_it_connects_to_the_address_that_was_looked_at() -> None:
    """Also where the name leads elsewhere by then; the first address that takes the connection."""
    heard: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")

    async with speaking(talk) as url:
        port = url.rpartition(":")[2]
        http = HttpGet(f"http://hook.invalid:{port}/go", "it", resolve=lambda host, port: ["127.0.0.9", "127.0.0.1"])
        assert (await http.get()).status == 200
        await http.close()
    assert b"GET /go HTTP/1.1\r\n" in heard[0]
    assert f"Host: hook.invalid:{port}\r\n".encode() in heard[0]


async def test_a_name_server_that_hangs_holds_up_nothing() -> None:
    release = threading.Event()
    asked: list[str] = []

    def hang(host: str, port: int) -> list[str]:
        asked.append(host)
        release.wait(30)
        return ["127.0.0.1"]

    http = HttpGet("http://hook.example/", "the hook", resolve=hang, timeout_s=0.2)
    for _ in range(3):
        with pytest.raises(CrossfadeError, match=r"did not answer within 0\.2 s"):
            await http.get()
    assert asked == ["hook.example"]  # no second call beside the one that hangs
    release.set()
    await http.close()


async def test_a_file_that_hangs_is_looked_at_once() -> None:
    release = threading.Event()
    aside: Aside[bool] = Aside("test")
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await aside.run(lambda: release.wait(30), 0.05)
    assert sum(thread.name == "test" for thread in threading.enumerate()) == 1
    release.set()
    assert await aside.run(lambda: True, 5)


PAGE = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n"


@pytest.mark.parametrize(
    ("talk", "said"),
    [
        (saying(PAGE + b"go_memstats_sys_bytes{ 12 x\n"), "is no page of Prometheus metrics"),
        (saying(PAGE + b"<html>login</html>"), "names no memory limit"),
        (saying(b"HTTP/1.1 401 Unauthorized\r\n\r\n"), "answered 401"),
        (saying(b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n\r\n\x1f\x8b"), "packs its replies"),
        (endless, "replied more than"),
        (saying(PAGE + b"go_memstats_sys_bytes NaN\ngo_gc_gomemlimit_bytes 10\n"), "is no page of Prometheus metrics"),
        (saying(PAGE + b'node_filesystem_avail_bytes{mountpoint="/"} +Inf\n'), "is no page of Prometheus metrics"),
    ],
)
async def test_a_page_of_metrics_that_is_none(talk: Talk, said: str) -> None:
    async with speaking(talk) as url:
        found = await capacity(CapacitySettings(metrics=(url,)))
    assert found.disk_used is None
    assert found.memory_used is None
    assert any(said in trouble for trouble in found.troubles), found.troubles


@given(st.lists(st.tuples(st.sampled_from(SERIES), st.text(max_size=30)), max_size=5))
def test_no_page_raises(lines: list[tuple[str, str]]) -> None:
    found = read_pages([("http://h/metrics", "\n".join(name + rest for name, rest in lines))], Path("/data"))
    assert found.disk_used is None or 0 <= found.disk_used <= 1


async def test_a_data_path_that_is_not_there(tmp_path: Path) -> None:
    found = await capacity(CapacitySettings(data_path=tmp_path / "nowhere"))
    assert found.disk_free_bytes is None
    assert "cannot be looked at: No such file or directory" in found.troubles[0]


async def test_one_look_that_hangs_holds_up_no_other() -> None:
    """The hook holds the replay and says so; meanwhile lag is still looked at, and the hook let go when it answers."""
    goes = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await goes.wait()
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")

    async def hanging() -> Capacity:
        await asyncio.Event().wait()
        raise AssertionError

    async with speaking(talk) as url:
        lag = [0.0]
        checks = ThrottleChecks(
            "docs/v1",
            lambda: Throttle.model_validate({"http": url, "max_live_lag": 100, "max_disk": 0.9}),
            Gauges(lambda: lag[0], lambda: 0.0, lambda: (), hanging),
            lambda: True,
        )
        running = asyncio.create_task(checks.run())
        assert checks.held is not None
        await until(lambda: "did not answer within 2 s" in checks.reason)
        lag[0] = 500.0
        await until(lambda: "live lag 500 above 100" in checks.reason)
        lag[0] = 0.0
        goes.set()
        await until(lambda: "did not answer" not in checks.reason and "lag" not in checks.reason)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
