"""What callers of the HTTP interface get wrong, or try: every answer is a problem as RFC 9457 has it, and nothing
that was sent stands in it.
"""

from __future__ import annotations

import asyncio
import datetime
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import JsonValue

from connectors.errors import Unreachable
from connectors.memory.store import NoFaults
from streams.config_serve import hash_of
from tests.served import Served, served
from tests.unit.loopback import VECTOR, always, loopback, reply

SEARCH = "/collections/docs/search"
MARK = "zebra-mark"  # stands in whatever is sent, and in no answer


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Served]:
    async with served(tmp_path, max_body_bytes=100_000, max_results=50) as one:
        await one.serve("v1")
        yield one


def is_problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    found: dict[str, Any] = answer.json()
    assert found["status"] == status
    assert found["title"]
    assert found["detail"]
    assert found["next_step"], "every refusal names the next step"
    assert MARK not in answer.text
    assert "Traceback" not in answer.text
    return found


DEEP = '{"filter": ' + '{"a":' * 5000 + "1" + "}" * 5001
BODIES: dict[str, str | bytes] = {
    "nothing": "",
    "no JSON": f"query={MARK}",
    "a list": "[]",
    "null": "null",
    "a number": "5",
    "an unknown field": f'{{"query": "cats", "surprise": "{MARK}"}}',
    "both": '{"query": "cats", "vector": [1], "fingerprint": "000000000000"}',
    "neither": "{}",
    "a number for a query": '{"query": 5}',
    "an empty query": '{"query": ""}',
    "a blank query": f'{{"query": "   ", "caller": "{MARK}"}}',
    "a query of NUL": '{"query": null}',
    "half a character": '{"query": "\\ud800"}',
    "a number in words": '{"query": "cats", "top_k": "5"}',
    "top_k true": '{"query": "cats", "top_k": true}',
    "top_k 0": '{"query": "cats", "top_k": 0}',
    "top_k with a fraction": '{"query": "cats", "top_k": 1.5}',
    "top_k too large": '{"query": "cats", "top_k": 1001}',
    "top_k above max_results": '{"query": "cats", "top_k": 51}',
    "top_k without an end": '{"query": "cats", "top_k": 1e400}',
    "a vector alone": '{"vector": [1, 2]}',
    "a fingerprint alone": '{"query": "cats", "fingerprint": "000000000000"}',
    "NaN": '{"vector": [NaN], "fingerprint": "000000000000"}',
    "Infinity": '{"vector": [Infinity], "fingerprint": "000000000000"}',
    "a vector of text": f'{{"vector": ["{MARK}"], "fingerprint": "000000000000"}}',
    "a nested vector": '{"vector": [[1]], "fingerprint": "000000000000"}',
    "an empty vector": '{"vector": [], "fingerprint": "000000000000"}',
    "an unknown property": f'{{"query": "cats", "filter": {{"{MARK[:5]}": 1}}}}',
    "a reserved property": '{"query": "cats", "filter": {"cf_offset": 1}}',
    "an operator": f'{{"query": "cats", "filter": {{"kind": {{"like": "{MARK}"}}}}}}',
    "a value of another type": '{"query": "cats", "filter": {"kind": 5}}',
    "a nested filter": '{"query": "cats", "filter": {"kind": {"eq": {"eq": 1}}}}',
    "a filter of null": '{"query": "cats", "filter": {"kind": null}}',
    "a mode": f'{{"query": "cats", "mode": "{MARK}"}}',
    "a mode beside a space": '{"query": "cats", "mode": "hybrid", "vector_space": "v1"}',
    "a path as a space": '{"query": "cats", "vector_space": "../v1"}',
    "a deep body": DEEP,
    "an unended body": '{"query": "cats"',
    "not UTF-8": b'{"query": "\xff\xfe"}',
    "a long query": json.dumps({"query": "a" * 20_001}),
    "lists in lists": '{"fingerprint": "000000000000", "vector": ' + "[" * 50_000,
    "a number of 5,000 digits": '{"query": "cats", "top_k": ' + "9" * 5_000 + "}",
    "minus infinity": '{"vector": [-Infinity], "fingerprint": "000000000000"}',
    "infinity in a filter": '{"query": "cats", "filter": {"kind": Infinity}}',
    "the same name twice": f'{{"query": "cats", "query": 5, "caller": "{MARK}"}}',
    "many properties": json.dumps({"query": "cats", "filter": {f"{MARK}{n}": 1 for n in range(51)}}),
    "a byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": '{"query": "cats", "surprise": 1}'.encode("utf-16"),
}


@pytest.mark.parametrize("what", BODIES)
async def test_bodies_of_a_search(api: Served, what: str) -> None:
    answer = await api.http.post(SEARCH, content=BODIES[what], headers={"Content-Type": "application/json"})
    is_problem(answer, answer.status_code)
    assert answer.status_code in (400, 422)


NO_BODY: dict[str, str | bytes] = {
    "an unknown field": f'{{"surprise": "{MARK}"}}',
    "a list": f'["{MARK}"]',
    "a text": f'"{MARK}"',
    "a deep body": DEEP,
    "lists in lists": "[" * 50_000,
    "no JSON": MARK,
    "not UTF-8": b'{"why": "\xff"}',
    "a wrong type": '{"why": 5, "name": 5, "confirm": 5, "changes": 5, "k": "5", "sample": "5", "repair": "5"}',
    "half a character": '{"why": "\\ud800", "name": "\\ud800", "k": -1, "sample": 0, "repair": 0}',
}


@pytest.mark.parametrize("what", NO_BODY)
async def test_no_operation_takes_a_body_that_does_not_fit(api: Served, what: str) -> None:
    asked = 0
    for path, operations in api.app.openapi()["paths"].items():
        for method, operation in operations.items():
            if "requestBody" not in operation:
                continue
            asked += 1
            address = path.format(collection="docs", version="v1", space="v1")
            headers = {"Content-Type": "application/json"}
            answer = await api.http.request(method, address, content=NO_BODY[what], headers=headers)
            is_problem(answer, answer.status_code)
            assert answer.status_code in (400, 422), (method, address)
    assert asked >= 15
    assert not api.commands.sent


async def test_keys_that_are_unknown_expired_or_of_another_role(tmp_path: Path) -> None:
    yesterday = datetime.datetime.now(datetime.UTC).date() - datetime.timedelta(days=1)
    names: dict[str, dict[str, JsonValue]] = {
        "expired": {"roles": ["search", "operate"], "expires": yesterday.isoformat()},
        "searcher": {"roles": ["search"]},
    }
    keys: list[JsonValue] = [
        {"name": name, "hash": hash_of(f"{MARK}-{name}".ljust(40, "x")), **more} for name, more in names.items()
    ]
    async with served(tmp_path, keys=keys) as api:
        await api.serve("v1")
        for name, status, kind in (
            ("expired", 401, "unknown-caller"),
            ("nobody", 401, "unknown-caller"),
            ("searcher", 403, "wrong-role"),
        ):
            headers = {"Authorization": f"Bearer {f'{MARK}-{name}'.ljust(40, 'x')}"}
            answer = await api.http.post("/collections/docs/versions/v1/pause", json={}, headers=headers)
            assert is_problem(answer, status)["type"] == f"urn:crossfade:problem:{kind}"
        for scheme in ("Basic eDp5", "Bearer", "Bearer ", "Digest x", "\x00"):
            answer = await api.http.post(SEARCH, json={"query": "cats"}, headers={"Authorization": scheme})
            is_problem(answer, 401)
        assert not api.commands.sent


@pytest.mark.parametrize(
    "name",
    ["%2e%2e", "..%2f..%2fetc", "docs%00", "docs%0a", "Docs", "a" * 49, "%ff", "'", "docs ", "d%C3%B6cs", "docs%252f"],
)
async def test_names_with_tricks(api: Served, name: str) -> None:
    for path in (
        f"/collections/{name}",
        f"/collections/docs/versions/{name}",
        f"/collections/docs/vector-spaces/{name}",
    ):
        answer = await api.http.get(path)
        is_problem(answer, answer.status_code)
        assert answer.status_code in (404, 422), path


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/docs", 404),
        ("GET", SEARCH, 405),
        ("TRACE", SEARCH, 405),
        ("OPTIONS", SEARCH, 405),
        ("GET", "/collections/docs/", 404),
        ("GET", "/collections/other", 404),
        ("GET", "/collections/docs/versions/v2", 404),
        ("GET", "/collections/docs/versions/v2/events", 404),
        ("GET", "/collections/docs/history?limit=0", 422),
        ("GET", "/collections/docs/history?limit=ten", 422),
        ("GET", "/collections/docs/history?version=..", 422),
        ("DELETE", "/collections/docs/vector-spaces/v1", 409),
    ],
)
async def test_paths_and_methods(api: Served, method: str, path: str, status: int) -> None:
    is_problem(await api.http.request(method, path), status)


async def test_verbs_with_wrong_arguments(api: Served) -> None:
    of_v1 = "/collections/docs/versions/v1"
    for path, body in (
        (f"{of_v1}/start", {"replay_rate": 0}),
        (f"{of_v1}/start", {"replay_rate": "5"}),
        (f"{of_v1}/pause", {"all": 1}),
        (f"{of_v1}/set", {"changes": {}}),
        (f"{of_v1}/set", {"changes": {MARK: 1}}),
        (f"{of_v1}/retire", {}),
        (f"{of_v1}/retire", {"confirm": ".."}),
        (f"{of_v1}/cutover", {"check": True, "cancel": True}),
        (f"{of_v1}/cutover", {"force": "  "}),
        (f"{of_v1}/cutover", {"approve": True, "force": "because"}),
        (f"{of_v1}/evaluate", {"against": "v1"}),
        (f"{of_v1}/plan", {"sample": 1}),
        ("/collections/docs/rollback", {"max_lag": -1}),
        ("/collections/docs/vector-spaces", {"name": "V2", "dims": 64, "model": "m"}),
        ("/collections/docs/vector-spaces", {"name": "v2", "dims": 0, "model": "m"}),
    ):
        is_problem(await api.http.post(path, json=body), 422)
    for key in ("", "a/b", "a" * 101, "watch/1"):
        is_problem(await api.http.post(f"{of_v1}/pause", json={}, headers={"Idempotency-Key": key}), 422)
    assert not api.commands.sent


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "json"])
async def test_bodies_of_another_kind(api: Served, kind: str) -> None:
    """As a form of a web page would send them."""
    answer = await api.http.post(SEARCH, content='{"query": "cats"}', headers={"Content-Type": kind})
    is_problem(answer, answer.status_code)
    assert answer.status_code in (400, 415, 422)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_an_endpoint_that_redirects_is_not_followed(tmp_path: Path, status: int) -> None:
    """The configuration allows it, on this machine; where it points to is not allowed."""
    async with loopback(always(VECTOR)) as elsewhere:
        leads_there = always(reply(b"", f"location: {elsewhere.url()}/embed\r\n", status))
        async with loopback(leads_there) as endpoint:
            allowed: list[JsonValue] = [{"provider": "tei", "url": endpoint.url(), "model": "acme/words"}]
            async with served(tmp_path, allowed) as api:
                await api.serve("v1")
                new = {"name": "words", "dims": 2, "model": "acme/words"}
                assert (await api.http.post("/collections/docs/vector-spaces", json=new)).status_code == 201
                rebuild = {"embed_endpoint": elsewhere.url()}
                refused = await api.http.post("/collections/docs/vector-spaces/words/rebuild", json=rebuild)
                assert is_problem(refused, 403)["type"] == "urn:crossfade:problem:endpoint-not-allowed"
                answer = await api.http.post(SEARCH, json={"query": MARK, "vector_space": "words"})
                assert f"answered {status}, a redirect" in is_problem(answer, 500)["detail"]
                assert endpoint.requests
        assert not elsewhere.connections


async def test_a_body_beyond_the_limit_is_not_read(api: Served) -> None:
    read = 0

    async def much() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(100):
            read += 10_000
            yield b" " * 10_000

    headers = {"Content-Type": "application/json"}
    is_problem(await api.http.post(SEARCH, content=much(), headers=headers), 413)
    assert read <= 120_000
    is_problem(await api.http.post(SEARCH, content=b" " * 100_001, headers=headers), 413)


async def test_a_body_that_does_not_come(api: Served) -> None:
    api.backend.settings = api.backend.settings.model_copy(
        update={"serve": api.backend.settings.serve.model_copy(update={"timeout_s": 0.2})}
    )

    async def slow() -> AsyncIterator[bytes]:
        yield b'{"query": '
        await asyncio.sleep(60)
        yield b'"cats"}'

    async with asyncio.timeout(10):
        is_problem(await api.http.post(SEARCH, content=slow(), headers={"Content-Type": "application/json"}), 408)


class Away(NoFaults):
    async def before_read(self, space: str) -> None:
        raise Unreachable("Weaviate does not answer", next_step="crossfade up")


class Hanging(NoFaults):
    def __init__(self) -> None:
        self.begun, self.cancelled = 0, 0
        self.twenty = asyncio.Event()

    async def before_read(self, space: str) -> None:
        self.begun += 1
        if self.begun == 20:
            self.twenty.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


async def test_weaviate_is_away_or_hangs(api: Served) -> None:
    api.world.store.faults = Away()
    answer = await api.http.post(SEARCH, json={"query": "cats"})
    is_problem(answer, 503)
    assert int(answer.headers["retry-after"]) >= 1
    api.world.store.faults = hanging = Hanging()
    is_problem(await api.http.post(SEARCH, json={"query": "cats"}), 504)
    assert (hanging.begun, hanging.cancelled) == (1, 1), "nothing is left behind"


async def test_requests_that_are_cancelled_leave_nothing_behind(api: Served) -> None:
    api.world.store.faults = hanging = Hanging()
    before = len(asyncio.all_tasks())
    asking = [asyncio.create_task(api.http.post(SEARCH, json={"query": "cats"})) for _ in range(20)]
    async with asyncio.timeout(10):
        await hanging.twenty.wait()
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    assert hanging.cancelled == 20
    assert len(asyncio.all_tasks()) <= before
    api.world.store.faults = NoFaults()
    assert (await api.http.post(SEARCH, json={"query": "cats"})).status_code == 200


async def test_more_requests_at_once_than_there_may_be(api: Served) -> None:
    api.world.store.faults = Hanging()
    section = api.backend.settings.serve.model_copy(update={"in_flight": 10})
    api.backend.settings = api.backend.settings.model_copy(update={"serve": section})
    answers = await asyncio.gather(*(api.http.post(SEARCH, json={"query": "cats"}) for _ in range(50)))
    refused = [answer for answer in answers if answer.status_code == 503]
    assert len(refused) == 40
    assert {is_problem(answer, 503)["type"] for answer in refused} == {"urn:crossfade:problem:busy"}
    assert {answer.headers["retry-after"] for answer in refused} == {"1"}
    api.world.store.faults = NoFaults()
    assert (await api.http.post(SEARCH, json={"query": "cats"})).status_code == 200


async def test_a_defect_shows_nothing_of_itself(
    api: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise RuntimeError(MARK)

    monkeypatch.setattr(api.backend.router, "search", broken)
    answer = await api.http.post(SEARCH, json={"query": "cats"})
    is_problem(answer, 500)
    assert "RuntimeError" in caplog.text
    assert MARK not in caplog.text
    assert answer.headers["cache-control"] == "no-store"
