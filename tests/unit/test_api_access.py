"""Who may call: keys, roles, rates, expiry, other hosts and origins; and what the configuration takes for them."""

from __future__ import annotations

import asyncio
import datetime
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner
from pydantic import JsonValue, ValidationError

from connectors.protocols import JSON
from streams import config
from streams.api.access import Access
from streams.api.listening import OTHER_FILES, REFUSED_AT_ONCE, Room
from streams.api.problems import Answered
from streams.api.server import Server
from streams.cli import cli
from streams.config_serve import ApiKey, Serve, hash_of
from tests.served import Served, served

SEARCHER, READER, OPERATOR = "s" * 40, "r" * 40, "o" * 40
KEYS: list[JsonValue] = [
    {"name": "shop", "hash": hash_of(SEARCHER), "roles": ["search"]},
    {"name": "dashboard", "hash": hash_of(READER), "roles": ["read"]},
    {"name": "deploy", "hash": hash_of(OPERATOR), "roles": ["operate"]},
]


async def status(api: Served, method: str, path: str, key: str | None, body: object = None) -> int:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return (await api.http.request(method, path, json=body, headers=headers)).status_code


async def test_each_role_may_do_what_it_says(tmp_path: Path) -> None:
    async with served(tmp_path, keys=KEYS) as api:
        await api.serve("v1")
        query = {"query": "cats"}
        calls = {
            SEARCHER: [200, 403, 403],
            READER: [403, 200, 403],
            OPERATOR: [403, 200, 200],
            None: [401, 401, 401],
            "x" * 40: [401, 401, 401],
            "é": [401, 401, 401],
        }
        for key, wanted in calls.items():
            shown = key.encode() if key == "é" else key
            assert [
                await status(api, "POST", "/collections/docs/search", shown, query),  # type: ignore[arg-type]
                await status(api, "GET", "/collections/docs", shown),  # type: ignore[arg-type]
                await status(api, "POST", "/collections/docs/versions/v1/pause", shown, {}),  # type: ignore[arg-type]
            ] == wanted
        assert await status(api, "GET", "/healthz", None) == 200, "whoever watches needs no key"
        history = await api.http.get("/collections/docs/history", headers={"Authorization": f"Bearer {READER}"})
        paused = [entry for entry in history.json()["entries"] if entry["event"] == "pause"]
        assert [entry["who"] for entry in paused] == ["deploy@http"]


async def test_every_path_but_health_needs_a_key(tmp_path: Path) -> None:
    async with served(tmp_path, keys=KEYS) as api:
        for path, operations in (await api.http.get("/openapi.json")).json()["paths"].items():
            for method in operations:
                concrete = path.format(collection="docs", version="v1", space="v1")
                wanted = 200 if path in ("/healthz", "/readyz") else 401
                answer = await api.http.request(method, concrete, json={})
                assert answer.status_code == wanted, (method, path)
                assert wanted == 200 or answer.headers["www-authenticate"] == "Bearer"


async def test_a_stranger_is_turned_away_before_the_body_is_read(tmp_path: Path) -> None:
    async with served(tmp_path, keys=KEYS) as api:

        async def endless() -> AsyncIterator[bytes]:
            yield b"{"
            await asyncio.Event().wait()

        async with asyncio.timeout(5):
            answer = await api.http.post("/collections/docs/search", content=endless())
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")


async def test_a_key_is_hashed_once_for_each_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And compared with each configured one: that is what a stranger can make this process do."""
    hashed: list[str] = []

    def counting(key: str) -> str:
        hashed.append(key)
        return hash_of(key)

    async with served(tmp_path, keys=KEYS) as api:
        await api.serve("v1")
        monkeypatch.setattr("streams.api.access.hash_of", counting)
        for key, wanted in ((READER, 200), (SEARCHER, 403), ("x" * 40, 401)):
            assert await status(api, "GET", "/collections/docs", key) == wanted
        assert hashed == [READER, SEARCHER, "x" * 40]


async def test_a_key_that_is_taken_back_while_the_body_comes_is_refused(tmp_path: Path) -> None:
    async with served(tmp_path, keys=KEYS) as api:
        await api.serve("v1")

        async def body() -> AsyncIterator[bytes]:
            yield b"{"
            fewer = {"serve": Serve.model_validate({"keys": KEYS[:2]})}
            api.backend.settings = api.backend.settings.model_copy(update=fewer)
            yield b"}"

        answer = await api.http.post(
            "/collections/docs/versions/v1/pause", content=body(), headers={"Authorization": f"Bearer {OPERATOR}"}
        )
        assert (answer.status_code, api.commands.sent) == (401, [])


def test_a_rate_is_kept_for_each_key() -> None:
    now_s = 0.0
    serve = Serve.model_validate({"keys": KEYS, "requests_per_minute": 60})
    access = Access(lambda: serve, lambda: now_s)
    for _ in range(5):
        access.admit(access.known(SEARCHER), "search")
    with pytest.raises(Answered) as refused:
        access.admit(access.known(SEARCHER), "search")
    assert (refused.value.problem.status, refused.value.headers["Retry-After"]) == (429, "2")
    access.admit(access.known(READER), "read")
    now_s = 1.0
    assert access.admit(access.known(SEARCHER), "search").who == "shop@http"
    with pytest.raises(Answered):
        access.admit(access.known(SEARCHER), "search")


def test_a_key_is_taken_until_its_last_day_and_while_it_is_configured() -> None:
    day = datetime.date(2026, 5, 31)
    key = ApiKey(name="shop", hash=hash_of(SEARCHER), roles=["search"], expires=day)
    serve, today = Serve(keys=[key]), day
    access = Access(lambda: serve, today=lambda: today)
    access.admit(access.known(SEARCHER), "search")
    today = day + datetime.timedelta(days=1)
    with pytest.raises(Answered) as refused:
        access.admit(access.known(SEARCHER), "search")
    assert (refused.value.problem.status, "expired" in refused.value.problem.detail) == (401, True)
    today, serve = day, Serve.model_validate({"keys": KEYS[1:]})
    with pytest.raises(Answered) as refused:
        access.admit(access.known(SEARCHER), "search")
    assert refused.value.problem.status == 401


@pytest.mark.parametrize(
    "section",
    [
        {"listen": "0.0.0.0:8470"},
        {"listen": "search.example.com:8470"},
        {"listen": "127.0.0.1"},
        {"keys": [{"name": "a", "hash": SEARCHER, "roles": ["search"]}]},
        {"keys": [{"name": "a", "hash": hash_of(SEARCHER), "roles": []}]},
        {"keys": [{"name": "a", "hash": hash_of(SEARCHER), "roles": ["root"]}]},
        {"keys": [{"name": "a b", "hash": hash_of(SEARCHER), "roles": ["read"]}]},
        {"keys": [KEYS[0], {**KEYS[0], "name": "other"}]},  # type: ignore[dict-item]
        {"keys": [KEYS[0], {**KEYS[1], "name": "shop"}]},  # type: ignore[dict-item]
        {"certificate": "server.pem"},
        {"max_body_bytes": 0},
        {"timeout_s": float("nan")},
        {"cors": True},
    ],
)
def test_what_the_configuration_refuses(section: dict[str, JsonValue]) -> None:
    with pytest.raises(ValidationError) as refused:
        Serve.model_validate(section)
    assert SEARCHER not in str(refused.value)


def test_beyond_this_machine_with_keys() -> None:
    serve = Serve.model_validate({"listen": "[::]:8470", "keys": KEYS})
    assert serve.address == ("::", 8470)
    assert hash_of(SEARCHER) not in repr(serve)


def test_keys_are_made_and_hashed() -> None:
    made = CliRunner().invoke(cli, ["serve", "--new-key"])
    key = made.stderr.strip().rpartition(" ")[2]
    assert (made.exit_code, made.stdout.strip()) == (0, hash_of(key))
    assert len(key) >= 32
    hashed = CliRunner().invoke(cli, ["serve", "--hash-key"], input=f"{key}\n")
    assert (hashed.exit_code, hashed.output.strip()) == (0, hash_of(key))
    for short in ("", "secret", "with spaces " * 4, "ö" * 40):
        refused = CliRunner().invoke(cli, ["serve", "--hash-key"], input=f"{short}\n")
        assert refused.exit_code == 2
        assert "crossfade serve --new-key" in refused.output
        assert not short or short not in refused.output


@pytest.mark.parametrize("files", [256, 700, 1024, 4096, 20_000, 65_536])
def test_there_is_room_for_every_file_that_may_be_open(files: int) -> None:
    room = Room.of(files)
    assert room.connections >= 32
    if files >= 1024:
        assert room.connections + REFUSED_AT_ONCE + room.waiting + OTHER_FILES <= files


async def test_without_keys_only_this_machine_by_its_own_name(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        for host, wanted in {
            "127.0.0.1:8470": 200,
            "localhost": 200,
            "[::1]:8470": 200,
            "evil.example.com": 403,
            "127.0.0.1.evil.example.com": 403,
            "10.0.0.1": 403,
            "[": 403,
            "user@localhost": 403,
        }.items():
            assert (await api.http.get("/healthz", headers={"Host": host})).status_code == wanted, host


async def test_a_page_of_another_origin_changes_nothing(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        await api.serve("v1")
        pause = "/collections/docs/versions/v1/pause"
        for headers, wanted in (
            ({"Origin": "https://evil.example.com"}, 403),
            ({"Origin": "null"}, 403),
            ({"Sec-Fetch-Site": "cross-site"}, 403),
            ({"Origin": "http://127.0.0.1:8470", "Sec-Fetch-Site": "same-origin"}, 200),
        ):
            answer = await api.http.post(pause, json={}, headers=headers)
            assert answer.status_code == wanted, headers
            assert "access-control-allow-origin" not in answer.headers


def test_serve_ends_with_what_to_correct(tmp_path: Path) -> None:
    """Nothing is up: it would wait for Kafka and Weaviate, but not for an address it can never have."""
    path = tmp_path / "crossfade.yaml"
    services = (
        "kafka: {bootstrap_servers: '127.0.0.1:1'}\nweaviate: {http: 'http://127.0.0.1:1', grpc: '127.0.0.1:2'}\n"
    )
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        for section, said in (("{listen: '0.0.0.0:8470'}", "without keys"), (f"{{listen: '{listen}'}}", "in use")):
            path.write_text(f"{services}serve: {section}\n")
            ended = CliRunner().invoke(cli, ["--config", str(path), "serve"])
            assert (ended.exit_code, said in ended.output) == (2, True), ended.output
            assert "next:" in ended.output


async def test_it_answers_before_it_knows_anything_and_stops(tmp_path: Path) -> None:
    path = tmp_path / "crossfade.yaml"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path.write_text(
        "kafka: {bootstrap_servers: '127.0.0.1:1'}\nweaviate: {http: 'http://127.0.0.1:1', grpc: '127.0.0.1:2'}\n"
        f"serve: {{listen: '127.0.0.1:{port}'}}\n"
    )

    async def plan(*_: object) -> dict[str, JSON]:
        raise AssertionError("nobody asks for one")

    server, ready = Server(path, config.load(path), plan), asyncio.Event()
    running = asyncio.create_task(server.run(on_ready=lambda _: ready.set()))
    async with asyncio.timeout(20), httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
        await ready.wait()
        assert (await http.get("/healthz")).json()["status"] == "starting"
        assert (await http.get("/readyz")).status_code == 503
        answer = await http.get("/collections")
        assert (answer.status_code, answer.json()["type"]) == (503, "urn:crossfade:problem:transient")
        began_s = time.monotonic()
        server.stop()
        await running
        assert time.monotonic() - began_s < 5
