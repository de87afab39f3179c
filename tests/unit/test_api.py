"""The HTTP interface in this process: search, vector spaces, verbs, idempotency, events, health."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from connectors.errors import AccessDenied, CrossfadeError, IdentityChanged, NotFound, Unreachable
from connectors.protocols import Bounds
from streams.api.reading import events_of
from streams.state import Command
from streams.verbs.desk import Asked
from tests.served import DOCUMENTS, Served, served
from tests.unit.test_controller import NAMES

SEARCH = "/collections/docs/search"
SPACES = "/collections/docs/vector-spaces"
V2 = {"name": "v2", "dims": 64, "model": "crossfade-hashing"}


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Served]:
    async with served(tmp_path) as one:
        yield one


async def post(api: Served, path: str, body: object = None, key: str | None = None) -> tuple[int, dict[str, Any]]:
    answer = await api.http.post(
        path, json={} if body is None else body, headers={"Idempotency-Key": key} if key else {}
    )
    return answer.status_code, answer.json()


async def test_search(api: Served) -> None:
    await api.serve("v1")
    status, found = await post(api, SEARCH, {"query": "kittens purr", "top_k": 2})
    assert (status, found["version"], found["route"], found["why"]) == (200, "v1", "serving", found["why"])
    first = found["hits"][0]
    assert (first["id"], first["properties"], first["text"]) == ("cats", {"kind": "c"}, DOCUMENTS["cats"])
    assert (first["space"], first["fingerprint"]) == (found["space"], found["fingerprint"])
    assert len(found["hits"]) == 2
    v2 = await api.ready("v2")
    status, there = await post(api, SEARCH, {"query": "kittens purr", "vector_space": "v2"})
    assert (status, there["fingerprint"], there["route"]) == (200, v2.fingerprint, "named")


async def test_a_vector_is_refused_unless_its_model_made_the_space(api: Served) -> None:
    await api.serve("v1")
    v2 = await api.ready("v2")
    fingerprint = (await post(api, SEARCH, {"query": "cats"}))[1]["fingerprint"]
    status, found = await post(api, SEARCH, {"vector": [1] * 64, "fingerprint": fingerprint})
    assert (status, len(found["hits"])) == (200, 3)
    for body in (
        {"vector": [1] * 64, "fingerprint": v2.fingerprint},
        {"vector": [1] * 64, "fingerprint": fingerprint, "vector_space": "v2"},
        {"vector": [1] * 63, "fingerprint": fingerprint},
        {"vector": [0] * 64, "fingerprint": fingerprint},
        {"vector": [1e300] * 64, "fingerprint": fingerprint},
    ):
        status, refused = await post(api, SEARCH, body)
        assert (status, refused["type"]) == (422, "urn:crossfade:problem:wrong-vector")


async def test_nothing_serves_yet(api: Served) -> None:
    await api.ready("v1")
    status, refused = await post(api, SEARCH, {"query": "cats"})
    assert (status, refused["next_step"]) == (409, "crossfade cutover docs v1")


async def test_vector_spaces_from_adding_to_deleting(api: Served) -> None:
    await api.serve("v1")
    assert (await post(api, SPACES, {**V2, "dims": 65}))[0] == 409
    assert (await post(api, SPACES, {**V2, "name": "v9"}))[0] == 404
    status, added = await post(api, SPACES, V2)
    assert (status, added["status"], added["default"]) == (201, "building", False)
    assert (await api.http.get(f"{SPACES}/v2/status")).json() == {
        "name": "v2",
        "status": "building",
        "progress": 0.0,
        "total": 0,
        "completed": 0,
    }
    refused = await api.http.put("/collections/docs/default-vector-space", json={"name": "v2"})
    assert refused.status_code == 409
    for partition in (0, 1):
        args = {"epoch": 2, "partition": partition}
        await api.controller.handle(Command(verb="replayed", collection="docs", version="v2", args=dict(args)))
    api.world.report("v2", 2)
    await api.seen((await api.world.view()).build("docs", "v2"))
    assert (await api.http.get(f"{SPACES}/v2/status")).json()["status"] == "active"
    for name in ("v2", "v1", "v2", "v1"):  # there and back, and the same again: it is named, so it is no accident
        for _ in range(2):  # the second time it is so already
            swapped = await api.http.put("/collections/docs/default-vector-space", json={"name": name})
            assert swapped.status_code == 200, swapped.text
            assert swapped.json()["verified"] is not False
        assert (await api.http.get(SPACES)).json()["default"] == name
    verbs = {command.id: command.verb for command in api.commands.sent}  # forward again is swept and judged again
    assert list(verbs.values())[-4:] == ["cutover", "rollback", "cutover", "rollback"]
    assert (await api.http.delete(f"{SPACES}/v1")).status_code == 409
    assert (await api.http.delete(f"{SPACES}/v2")).status_code == 200
    shown = (await api.http.get(SPACES)).json()["vector_spaces"]
    assert {one["name"]: one["status"] for one in shown} == {"v1": "active", "v2": "deleted"}


@pytest.mark.parametrize(
    "endpoint", ["http://169.254.169.254/", "http://localhost:80/embed", "file:///etc/passwd", "//", "["]
)
async def test_texts_are_sent_only_where_the_configuration_says(api: Served, endpoint: str) -> None:
    status, refused = await post(api, f"{SPACES}/v2/rebuild", {"embed_endpoint": endpoint})
    assert (status, refused["type"]) == (403, "urn:crossfade:problem:endpoint-not-allowed")
    assert not api.commands.sent


async def test_every_verb(api: Served) -> None:
    versions = "/collections/docs/versions"
    status, done = await post(api, f"{versions}/v1/start", {"replay_rate": 5.0, "why": "because"})
    assert (status, done["data"]["epoch"]) == (200, 1)
    assert (await post(api, f"{versions}/v1/pause", {"all": True}))[0] == 200
    assert (await api.http.get(f"{versions}/v1")).json()["paused"] == "all"
    assert (await post(api, f"{versions}/v1/resume"))[0] == 200
    assert (await post(api, f"{versions}/v1/set", {"changes": {"replay_rate": 7, "max_disk": None}}))[0] == 200
    assert (await api.http.get(f"{versions}/v1")).json()["controls"]["replay_rate"] == 7
    assert (await post(api, f"{versions}/v1/set", {"changes": {"replay_rate": -7}}))[0] == 409
    assert (await post(api, f"{versions}/v1/set", {"changes": {"colour": 1}}))[0] == 422
    status, refused = await post(api, f"{versions}/v1/abort", {"confirm": "v2"})
    assert (status, "confirmed by name" in refused["detail"]) == (409, True)
    assert (await post(api, f"{versions}/v1/abort", {"confirm": "v1"}))[0] == 200
    await api.serve("v1")
    await api.ready("v2")
    status, checked = await post(api, f"{versions}/v2/cutover", {"check": True})
    assert (status, checked["data"]["checked"], checked["data"]["gate"]["verdict"]) == (200, 10, "pass")
    assert (await post(api, f"{versions}/v2/cutover", {"why": "it is better"}))[0] == 200
    status, swept = await post(api, f"{versions}/v2/verify")
    assert (status, swept["clean"], swept["checked"]) == (200, True, 10)
    assert (await post(api, f"{versions}/v2/evaluate"))[1]["quality"] is None
    assert (await post(api, f"{versions}/v3/plan"))[1]["sample"] == 2000
    assert (await post(api, "/collections/docs/rollback", {"max_lag": 10}))[0] == 200
    status, undone = await post(api, "/collections/docs/rollback")
    assert (status, "rolled back already" in undone["detail"]) == (409, True)
    assert (await post(api, "/collections/docs/rollback", {"from_version": "v1"}))[0] == 200
    assert (await post(api, f"{versions}/v1/retire", {"confirm": "v1"}))[0] == 200
    entries = (await api.http.get("/collections/docs/history", params={"version": "v2"})).json()["entries"]
    assert ("cutover", "anybody@http", "it is better") in [(e["event"], e["who"], e["why"]) for e in entries]
    assert len((await api.http.get("/collections/docs/history", params={"limit": 3})).json()["entries"]) == 3


async def test_history_is_read_page_by_page(api: Served) -> None:
    await api.serve("v1")
    for _ in range(3):
        assert (await post(api, "/collections/docs/versions/v1/pause"))[0] == 200
        assert (await post(api, "/collections/docs/versions/v1/resume"))[0] == 200
    history = "/collections/docs/history"
    whole = (await api.http.get(history)).json()
    assert (whole["older"], whole["next"]) == ("", "")
    pages: list[dict[str, Any]] = [(await api.http.get(history, params={"limit": 2})).json()]
    while pages[0]["older"]:
        wanted = f"GET {history}?limit=2&before={pages[0]['older']}"
        assert pages[0]["next"] == wanted
        pages.insert(0, (await api.http.get(wanted.removeprefix("GET "))).json())
    assert [entry for page in pages for entry in page["entries"]] == whole["entries"]
    named = (await api.http.get(history, params={"limit": 1, "version": "v1"})).json()
    assert named["next"] == f"GET {history}?limit=1&version=v1&before={named['older']}"
    assert (await api.http.get(history, params={"version": "v7"})).status_code == 404
    none = await api.http.get(history, params={"version": "v1", "before": "0"})
    assert (none.status_code, none.json()["entries"]) == (200, [])
    for wrong in ("x", "-1", "1-", "1" * 30, "1;2"):
        assert (await api.http.get(history, params={"before": wrong})).status_code == 422


async def test_few_read_the_journal_at_once(api: Served) -> None:
    """Each reading holds a consumer, and may go through a long topic."""
    await api.serve("v1")
    reading, go_on, at_once = 0, asyncio.Event(), 0
    bounds = api.world.kafka.bounds

    async def slow(topic: str) -> Mapping[int, Bounds]:
        nonlocal reading, at_once
        if topic == NAMES.journal:
            reading += 1
            at_once = max(at_once, reading)
            await go_on.wait()
            reading -= 1
        return await bounds(topic)

    api.world.kafka.bounds = slow  # type: ignore[method-assign]
    asked = [asyncio.create_task(api.http.get("/collections/docs/history")) for _ in range(20)]
    async with asyncio.timeout(5):
        done, _ = await asyncio.wait(asked, timeout=0.5)
        assert {one.result().status_code for one in done} == {429}
        assert {one.result().headers["retry-after"] for one in done} == {"1"}
        assert at_once + len(done) == 20
        assert at_once <= 4
        go_on.set()
        answers = await asyncio.gather(*asked)
    assert sorted(answer.status_code for answer in answers) == [200] * at_once + [429] * len(done)
    assert (await api.http.get("/collections/docs/history")).status_code == 200


async def test_a_swap_whose_answers_are_wrong_says_so(api: Served) -> None:
    v1 = await api.ready("v1")
    api.world.answers["v1"] = Asked(v1.space, 0, frozenset(), 5.0)
    status, done = await post(api, "/collections/docs/versions/v1/cutover")
    assert (status, done["verified"]) == (200, False)
    assert "does not answer as it should" in done["message"]


async def test_a_refused_cutover_shows_what_was_found(api: Served) -> None:
    await api.ready("v1")
    api.world.found = {"missing": 2}
    status, refused = await post(api, "/collections/docs/versions/v1/cutover")
    assert (status, refused["data"]["missing"]) == (409, 2)
    assert refused["next_step"] == "crossfade verify docs v1"


async def test_the_same_request_with_its_key_is_carried_out_once(api: Served) -> None:
    await api.serve("v1")
    await api.ready("v2")
    default = "/collections/docs/default-vector-space"
    first = await api.http.put(default, json={"name": "v2"}, headers={"Idempotency-Key": "swap-1"})
    back = await api.http.put(default, json={"name": "v1"}, headers={"Idempotency-Key": "swap-2"})
    late = await api.http.put(default, json={"name": "v2"}, headers={"Idempotency-Key": "swap-1"})
    assert (first.status_code, back.status_code, late.status_code) == (200, 200, 200)
    assert late.json()["command_id"] == first.json()["command_id"], "a late repetition swaps nothing again"
    assert (await api.http.get(SPACES)).json()["default"] == "v1"
    status, refused = await post(api, "/collections/docs/versions/v2/pause", {}, "swap-1")
    assert (status, refused["type"]) == (422, "urn:crossfade:problem:key-used")
    sent = len({command.id for command in api.commands.sent})
    for _ in range(3):
        assert (await post(api, "/collections/docs/versions/v2/pause", {"why": "a"}, "pause-1"))[0] == 200
    assert len({command.id for command in api.commands.sent}) == sent + 1


def slowly(api: Served) -> asyncio.Event:
    """Commands reach the controller once it is set."""
    go_on, handle = asyncio.Event(), api.controller.handle

    async def slow(command: Command) -> None:
        await go_on.wait()
        await handle(command)

    api.controller.handle = slow  # type: ignore[method-assign]
    return go_on


V1_VERBS: list[tuple[str, str, dict[str, Any]]] = [
    ("POST", "versions/v2/pause", {}),
    ("POST", "versions/v2/resume", {}),
    ("POST", "versions/v2/set", {"changes": {"replay_rate": 7}}),
    ("POST", "versions/v2/cutover", {}),
    ("POST", "versions/v2/abort", {"confirm": "v2"}),
    ("POST", "versions/v2/retire", {"confirm": "v2"}),
    ("POST", "versions/v3/start", {}),
    ("POST", "rollout/raise", {}),
    ("PUT", "default-vector-space", {"name": "v2"}),
    ("DELETE", "vector-spaces/v2", {}),
    ("POST", "vector-spaces", {"name": "v3", "dims": 64, "model": "crossfade-hashing"}),
]


@pytest.mark.parametrize(("method", "path", "body"), V1_VERBS, ids=lambda part: str(part))
async def test_the_second_request_with_a_key_waits_for_the_first(
    api: Served, method: str, path: str, body: dict[str, Any]
) -> None:
    await api.serve("v1")
    await api.ready("v2")
    go_on, sent = slowly(api), len(api.commands.sent)

    async def ask(what: dict[str, Any] = body) -> httpx.Response:
        return await api.http.request(
            method, f"/collections/docs/{path}", json=what, headers={"Idempotency-Key": "once-1"}
        )

    asked = [asyncio.create_task(ask()) for _ in range(3)]
    other = asyncio.create_task(
        api.http.post("/collections/docs/versions/v1/pause", json={"all": True}, headers={"Idempotency-Key": "once-1"})
    )
    done, _ = await asyncio.wait([*asked, other], timeout=0.3)
    assert not done
    assert len(api.commands.sent) - sent == 1, "one of them is sent"
    go_on.set()
    answers = [(answer.status_code, answer.json()) for answer in await asyncio.gather(*asked)]
    assert answers[1:] == answers[:1] * 2, "and all have its answer"
    assert (await other).status_code == 422, "a key stands for one request, whichever came first"
    assert len({command.id for command in api.commands.sent[sent:]}) == 1


async def test_a_key_whose_first_request_takes_long_is_told_so(tmp_path: Path) -> None:
    async with served(tmp_path, timeout_s=0.3) as api:
        await api.serve("v1")
        go_on = slowly(api)
        pause = "/collections/docs/versions/v1/pause"
        first = asyncio.create_task(post(api, pause, {}, "once-1"))
        await asyncio.sleep(0.05)
        status, refused = await post(api, pause, {}, "once-1")
        assert (status, refused["type"]) == (409, "urn:crossfade:problem:key-under-way")
        assert "the same key" in refused["next_step"]
        elsewhere = asyncio.create_task(post(api, pause, {}, "once-2"))
        go_on.set()
        assert (await first)[0] == (await elsewhere)[0] == 200
        assert (await post(api, pause, {}, "once-1"))[1] == (await first)[1]


async def test_a_key_whose_command_had_no_outcome_still_stands_for_its_request(api: Served) -> None:
    """The command is out there, and is carried out once a controller runs."""
    await api.ready("v1")
    api.controller.stand_down()
    assert (await post(api, "/collections/docs/versions/v1/pause", {}, "p1"))[0] == 503
    status, refused = await post(api, "/collections/docs/versions/v1/resume", {}, "p1")
    assert (status, refused["type"]) == (422, "urn:crossfade:problem:key-used")


@pytest.mark.parametrize("by", ["default-vector-space", "versions/v2/cutover"])
async def test_a_swap_that_waits_is_accepted_and_not_done(api: Served, by: str) -> None:
    await api.serve("v1")
    await api.ready("v2")
    api.wants_approval()

    async def ask(key: str | None = None) -> httpx.Response:
        method, body = ("PUT", {"name": "v2"}) if by == "default-vector-space" else ("POST", {})
        headers = {"Idempotency-Key": key} if key else {}
        return await api.http.request(method, f"/collections/docs/{by}", json=body, headers=headers)

    waits = await ask("swap-1")
    assert (waits.status_code, waits.headers["location"]) == (202, "/collections/docs")
    assert (waits.json()["pending"], waits.json()["verified"]) == (
        "the cutover to v2 waits until somebody approves it (asked for by anybody@http)",
        None,
    )
    assert waits.json()["next"].startswith("crossfade cutover docs v2 --approve")
    assert waits.json()["pending"] in (await api.http.get(waits.headers["location"])).json()["notes"]
    assert (await api.http.get(SPACES)).json()["default"] == "v1"
    again = await ask("swap-1")
    assert (again.status_code, again.json()) == (202, waits.json())
    sent = len(api.commands.sent)
    anew = await ask()
    if by == "default-vector-space":  # it says what shall be, and that is on its way
        assert (anew.status_code, anew.json()["pending"]) == (202, waits.json()["pending"])
        assert len(api.commands.sent) == sent
    else:
        assert anew.status_code == 409
    status, done = await post(api, "/collections/docs/versions/v2/cutover", {"approve": True})
    assert (status, done["pending"]) == (200, "")
    assert (await api.http.get(SPACES)).json()["default"] == "v2"
    for operation in (("default-vector-space", "put"), ("versions/{version}/cutover", "post")):
        shown = api.app.openapi()["paths"][f"/collections/{{collection}}/{operation[0]}"][operation[1]]["responses"]
        assert {"200", "202"} <= shown.keys()


async def test_no_controller_answers(api: Served) -> None:
    """The command may still be carried out: the problem says under which id, and when to ask again."""
    await api.ready("v1")
    api.controller.stand_down()
    status, problem = await post(api, "/collections/docs/versions/v1/pause", {}, "p1")
    assert (status, problem["command_id"].startswith("p1.")) == (503, True)
    assert "crossfade worker" in problem["next_step"]


async def test_events_tell_of_every_change(api: Served) -> None:
    """As the app itself says them: httpx's transport hands over whole answers only."""
    await api.ready("v1")
    may = True
    events = events_of(api.backend, "docs", "v1", lambda: may)

    async def told() -> dict[str, Any]:
        kind, _, data = (await anext(events)).partition("\n")
        assert kind == "event: progress"
        found: dict[str, Any] = json.loads(data.removeprefix("data: "))
        return found

    async with asyncio.timeout(10):
        assert (await told())["paused"] is None
        await post(api, "/collections/docs/versions/v1/pause")
        assert (await told())["paused"] == "replay"
        may = False
        assert [event async for event in events] == [], "they end when the key is taken back"
        again = events_of(api.backend, "docs", "v1", lambda: True)
        await anext(again)
        api.backend.stopping.set()
        assert [event async for event in again] == [], "they end when the process does"


async def test_events_end_when_they_shall(api: Served) -> None:
    await api.ready("v1")
    events = "/collections/docs/versions/v1/events"
    for for_s in (0, 0.1):
        async with asyncio.timeout(5):
            answer = await api.http.get(events, params={"for_s": for_s})
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        assert answer.text.count("event: progress\ndata: {") == 1, "what stands is told at once"
    for wrong in ("-1", "nan", "inf", "1e9", "soon"):
        assert (await api.http.get(events, params={"for_s": wrong})).status_code == 422
    assert (await api.http.get("/collections/docs/versions/v9/events")).status_code == 404


async def test_events_end_with_their_version(api: Served) -> None:
    """As when the state was read again and has it no more."""
    await api.ready("v1")
    events = events_of(api.backend, "docs", "v1", lambda: True)
    async with asyncio.timeout(5):
        await anext(events)
        api.backend.state.builds = {}
        assert [event async for event in events] == []


async def test_health_says_what_is_away(api: Served) -> None:
    await api.serve("v1")
    assert (await api.http.get("/healthz")).json() == {"status": "ok", "state": "current", "away": []}
    api.backend.health.note("kafka", Unreachable("no broker answers"), 5)
    ready = await api.http.get("/readyz")
    assert (ready.status_code, ready.json()["state"]) == (200, "last known")
    reason = "it does not answer; the log of `crossfade serve` says more"
    assert ready.json()["away"] == [{"name": "kafka", "reason": reason, "since_ms": 5}]
    assert (await post(api, SEARCH, {"query": "cats"}))[0] == 200, "the last known state goes on answering"
    api.backend.health.note("weaviate", Unreachable("connection refused"), 6)
    assert (await api.http.get("/readyz")).status_code == 503
    assert (await api.http.get("/healthz")).status_code == 200
    api.opened.backend = None
    assert (await api.http.get("/readyz")).status_code == 503
    status, problem = await post(api, SEARCH, {"query": "cats"})
    assert (status, problem["status"]) == (503, 503)


@pytest.mark.parametrize("kind", [Unreachable, AccessDenied, NotFound, IdentityChanged, CrossfadeError])
async def test_health_names_no_host_and_the_log_does(
    api: Served, kind: type[CrossfadeError], caplog: pytest.LogCaptureFixture
) -> None:
    error = kind("broker-7.internal:9092 and weaviate.internal:8080 say no", next_step="look at broker-7.internal")
    api.backend.health.note("kafka", error, 5)
    api.backend.health.note("kafka", error, 6)
    assert [one.message.count("broker-7.internal:9092") for one in caplog.records if "kafka" in one.message] == [1]
    for known in (True, False):
        if not known:
            api.opened.backend, api.opened.error = None, error
        for path in ("/healthz", "/readyz"):
            said = (await api.http.get(path)).text
            assert "internal" not in said
            assert "the log of `crossfade serve` says more" in said


async def test_the_last_known_state_stands_until_the_state_was_read_again(
    api: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its consumer dies, of whatever; it is opened again until one has read everything."""
    monkeypatch.setattr("streams.api.following.OPEN_AGAIN_S", 0.01)
    await api.serve("v1")
    await api.ready("v2")
    tried = 0
    dies: CrossfadeError | None = AccessDenied("broker-7.internal says no")

    def reach(operation: str, topic: str) -> None:
        nonlocal tried
        if operation == "tail" and topic == NAMES.state and dies is not None:
            tried += 1
            raise dies

    async def said(path: str) -> tuple[int, str, list[str]]:
        answer = await api.http.get(path)
        return answer.status_code, answer.json()["state"], [one["name"] for one in answer.json()["away"]]

    async def until(state: str) -> None:
        async with asyncio.timeout(5):
            while (await said("/readyz"))[1] != state:  # noqa: ASYNC110  polled: that is all a load balancer can do
                await asyncio.sleep(0.01)

    api.world.kafka.reach = reach
    await until("last known")
    async with asyncio.timeout(5):
        while tried < 5:
            assert (await post(api, SEARCH, {"query": "cats"}))[0] == 200
            assert (await api.http.get(SPACES)).json()["default"] == "v1"
            await asyncio.sleep(0.01)
    for path in ("/healthz", "/readyz"):
        assert await said(path) == (200, "last known", ["state"])
    dies = Unreachable("half of it was read")
    await api.controller.handle(Command(verb="cutover", collection="docs", version="v2"))
    assert (await api.http.get(SPACES)).json()["default"] == "v1"
    dies = None
    await until("current")
    assert (await api.http.get(SPACES)).json()["default"] == "v2", "what was missed meanwhile is there"
    assert await said("/healthz") == (200, "current", [])
    api.state.replace(IdentityChanged("the topic is another one"))
    assert (await post(api, "/collections/docs/versions/v1/pause"))[0] == 200, "and it is followed again"


async def test_a_rollout_by_hand_is_one_for_all_servers(api: Served) -> None:
    await api.serve("v1")
    status, refused = await post(api, "/collections/docs/rollout/raise")
    assert (status, refused["next_step"]) == (409, "crossfade status docs; a rollout begins once a version is ready")
    assert (await api.http.get("/collections/docs/rollout")).json()["rollout"] is None
    await api.ready("v2")
    status, raised = await post(api, "/collections/docs/rollout/raise", {"why": "it looks good"}, key="up-1")
    assert (status, raised["next"]) == (200, "GET /collections/docs/rollout")
    assert (await post(api, "/collections/docs/rollout/raise", {"why": "it looks good"}, key="up-1"))[1] == raised
    now = (await api.http.get("/collections/docs/rollout")).json()["rollout"]
    assert (now["version"], now["share"], now["step"], now["replicas"]) == ("v2", 0.01, 1, 0), "sent twice, raised once"
    notes = (await api.http.get("/collections/docs")).json()["notes"]
    assert notes == ["the rollout of v2 stands at 1.0% of the callers"]
    bodiless = await api.http.post("/collections/docs/rollout/raise")
    assert bodiless.status_code == 200
    body = {"query": "kittens purr", "mode": "rollout", "caller": "anna"}
    for at in range(3):
        found = (await post(api, SEARCH, {**body, "caller": f"caller {at}"}))[1]
        assert found["route"] == "rollout"
    assert (await api.http.post("/collections/docs/rollout/end", json={"why": "worse", "more": 1})).status_code == 422
    assert (await post(api, "/collections/docs/rollout/end", {"why": "worse answers"}))[0] == 200
    now = (await api.http.get("/collections/docs/rollout")).json()["rollout"]
    assert (now["share"], now["stopped"], now["step"]) == (0.0, "worse answers", 3)
    assert "worse answers" in (await post(api, SEARCH, body))[1]["why"]
    events = [entry.event for entry in await api.world.journal() if entry.event.startswith("rollout")]
    assert events == ["rollout refused", "rollout raised", "rollout raised", "rollout ended"]


async def test_while_kafka_is_away_the_last_known_share_stands(api: Served) -> None:
    await api.serve("v1")
    await api.ready("v2")
    for _ in range(5):
        assert (await post(api, "/collections/docs/rollout/raise"))[0] == 200

    def away(operation: str, topic: str) -> None:
        raise Unreachable("no broker answers")

    api.world.kafka.reach = away
    for at in range(3):
        found = (await post(api, SEARCH, {"query": "kittens", "mode": "rollout", "caller": f"c{at}"}))[1]
        assert found["version"] == "v2", found["why"]
    now = (await api.http.get("/collections/docs/rollout")).json()["rollout"]
    assert (now["share"], now["step"]) == (1.0, 5)
