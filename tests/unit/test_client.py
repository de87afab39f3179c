"""Both clients against the real server on a socket, over memory connectors: search, vector spaces, verbs, progress."""

from __future__ import annotations

import asyncio
import inspect
import logging
import pickle
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from pydantic import JsonValue

import connectors.errors
from connectors.errors import CrossfadeError
from streams import client as exported
from streams.client import (
    Misconfigured,
    NotActive,
    NotAdmitted,
    NotFound,
    NotUnderstood,
    Refused,
    TryLater,
    Unfit,
    Unreachable,
    calls,
    settings,
)
from streams.client.exchange import Call
from streams.config_serve import hash_of
from streams.state import Command
from tests.clients import BOTH, Asks, Makes
from tests.served import DOCUMENTS, Served, free_port, listened, served

KEY = "SECRETm3x7" * 4
V2 = {"dims": 64, "model": "crossfade-hashing"}


@dataclass
class World:
    api: Served
    url: str
    ask: Asks


@pytest.fixture(params=BOTH, ids=["threads", "asyncio"])
def makes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Makes:
    for name in (settings.URL_VARIABLE, settings.KEY_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    made: Makes = request.param
    return made


@pytest.fixture
async def world(tmp_path: Path, makes: Makes) -> AsyncIterator[World]:
    keys: list[JsonValue] = [
        {"name": "ops", "hash": hash_of(KEY), "roles": ["search", "operate"], "requests_per_minute": 1e6}
    ]
    async with listened(tmp_path, keys=keys) as (api, url):
        ask = makes(url, KEY, retries=0)
        yield World(api, url, ask)
        await ask.close()


async def test_search(world: World) -> None:
    await world.api.serve("v1")
    v2 = await world.api.ready("v2")
    found = await world.ask("search", "docs", "kittens purr", top_k=2)
    assert (found.collection, found.version, found.route, len(found.hits)) == ("docs", "v1", "serving", 2)
    first = found.hits[0]
    assert (first.id, first.properties, first.text) == ("cats", {"kind": "c"}, DOCUMENTS["cats"])
    assert (first.space, first.fingerprint, first.chunk) == (found.space, found.fingerprint, 0)
    there = await world.ask("search", "docs", "kittens purr", vector_space="v2", filter={"kind": ["d", "k"]})
    assert (there.route, there.fingerprint, {hit.id for hit in there.hits}) == (
        "named",
        v2.fingerprint,
        {"dogs", "kafka"},
    )
    asked = await world.ask("search", "docs", "cats", mode="bridge", caller="somebody")
    assert asked.route in ("serving", "bridge", "hybrid"), asked.why
    vector = [1.0] * 64
    near = await world.ask("search", "docs", vector=vector, fingerprint=found.fingerprint, top_k=1)
    assert len(near.hits) == 1
    with pytest.raises(Unfit) as refused:
        await world.ask("search", "docs", vector=vector, fingerprint=v2.fingerprint)
    assert refused.value.type == "urn:crossfade:problem:wrong-vector"


async def test_one_client_for_many(world: World) -> None:
    """Each has the answer to its own question."""
    await world.api.serve("v1")
    asked = [*DOCUMENTS] * 20
    found = await asyncio.gather(*(world.ask("search", "docs", DOCUMENTS[key], top_k=1) for key in asked))
    assert [answer.hits[0].id for answer in found] == asked


async def test_vector_spaces_from_adding_to_deleting(world: World) -> None:
    await world.api.serve("v1")
    added = await world.ask("add_vector_space", "docs", "v2", **V2)
    assert (added.name, added.status, added.default) == ("v2", "building", False)
    assert (await world.ask("vector_space_status", "docs", "v2")).status == "building"
    with pytest.raises(NotActive, match=r"not active after 0\.1 s: building, 0%"):
        await world.ask("wait_until_active", "docs", "v2", timeout_s=0.1, poll_s=0.05)
    waiting = asyncio.create_task(world.ask("wait_until_active", "docs", "v2", poll_s=0.05, timeout_s=20))
    for partition in (0, 1):
        args = {"epoch": 2, "partition": partition}
        await world.api.controller.handle(Command(verb="replayed", collection="docs", version="v2", args=dict(args)))
    world.api.world.report("v2", 2)
    async with asyncio.timeout(10):
        active = await waiting
    assert (active.name, active.status, active.progress) == ("v2", "active", 1.0)
    for name in ("v2", "v1"):
        swapped = await world.ask("set_default_vector_space", "docs", name)
        assert swapped.verified is not False
        assert (await world.ask("vector_spaces", "docs")).default == name
    with pytest.raises(Refused) as refused:
        await world.ask("delete_vector_space", "docs", "v1")
    assert refused.value.status == 409
    await world.ask("delete_vector_space", "docs", "v2")
    assert (await world.ask("vector_space", "docs", "v2")).status == "deleted"
    with pytest.raises(NotActive, match="deleted"):
        await world.ask("wait_until_active", "docs", "v2")
    with pytest.raises(NotAdmitted) as elsewhere:
        await world.ask("rebuild_vector_space", "docs", "v2", embed_endpoint="http://169.254.169.254/")
    assert elsewhere.value.type == "urn:crossfade:problem:endpoint-not-allowed"


async def test_a_swap_that_waits_says_so(world: World) -> None:
    await world.api.serve("v1")
    await world.api.ready("v2")
    world.api.wants_approval()
    waits = await world.ask("set_default_vector_space", "docs", "v2")
    assert "waits until somebody approves it" in waits.pending
    assert (waits.verified, (await world.ask("vector_spaces", "docs")).default) == (None, "v1")
    done = await world.ask("cutover", "docs", "v2", approve=True)
    assert (done.pending, (await world.ask("vector_spaces", "docs")).default) == ("", "v2")


async def test_every_verb(world: World) -> None:
    ask = world.ask
    started = await ask("start", "docs", "v1", replay_rate=5.0, why="because")
    assert (started.ok, started.data["epoch"]) == (True, 1)
    await ask("pause", "docs", "v1", all=True)
    assert (await ask("version", "docs", "v1")).paused == "all"
    await ask("resume", "docs", "v1")
    await ask("set", "docs", "v1", {"replay_rate": 7, "max_disk": None})
    assert (await ask("version", "docs", "v1")).controls["replay_rate"] == 7
    with pytest.raises(Unfit):
        await ask("set", "docs", "v1", {"colour": 1})
    with pytest.raises(Refused, match="confirmed by name"):
        await ask("abort", "docs", "v1", confirm="v2")
    await ask("abort", "docs", "v1", confirm="v1")
    await world.api.serve("v1")
    await world.api.ready("v2")
    checked = await ask("cutover", "docs", "v2", check=True)
    assert (checked.data["checked"], (await ask("collection", "docs")).serving) == (10, "v1")
    assert (await ask("cutover", "docs", "v2", why="it is better")).command_id
    assert (await ask("collection", "docs")).serving == "v2"
    swept = await ask("verify", "docs", "v2")
    assert (swept.clean, swept.checked) == (True, 10)
    judged = await ask("evaluate", "docs", "v2", k=5)
    assert (judged.quality, judged.against) == (None, None)
    assert (await ask("plan", "docs", "v3"))["sample"] == 2000
    assert (await ask("plan", "docs", "v3", sample=None))["sample"] is None
    await ask("rollback", "docs", max_lag=10)
    with pytest.raises(Refused, match="rolled back already"):
        await ask("rollback", "docs")
    await ask("rollback", "docs", from_version="v1")
    await ask("retire", "docs", "v1", confirm="v1")
    told = await ask("history", "docs", version="v2")
    assert ("cutover", "ops@http", "it is better") in [(e.event, e.who, e.why) for e in told.entries]
    newest = await ask("history", "docs", limit=3)
    before = await ask("history", "docs", limit=3, before=newest.older)
    assert (len(newest.entries), len(before.entries)) == (3, 3)
    assert before.entries[-1].at_ms <= newest.entries[0].at_ms
    assert before.entries != newest.entries
    assert [one.collection for one in (await ask("collections")).collections] == ["docs"]
    assert (await ask("rollout", "docs")).rollout is None
    with pytest.raises(Refused, match="no version of docs is ready"):
        await ask("raise_rollout", "docs")
    with pytest.raises(Refused, match="no version"):
        await ask("end_rollout", "docs", why="enough")


async def test_a_refusal_shows_what_was_found(world: World) -> None:
    await world.api.ready("v1")
    world.api.world.found = {"missing": 2}
    with pytest.raises(Refused) as caught:
        await world.ask("cutover", "docs", "v1", idempotency_key="swap-1")
    refused = caught.value
    assert (refused.status, refused.title, refused.data["missing"]) == (409, "A rule forbids this now", 2)
    assert refused.next_step == "crossfade verify docs v1"
    assert refused.command_id is not None
    assert refused.command_id.startswith("swap-1.")
    assert refused.idempotency_key == "swap-1"
    assert isinstance(refused, CrossfadeError)
    with pytest.raises(NotFound):
        await world.ask("collection", "other")
    with pytest.raises(Unfit) as unfit:
        await world.ask("search", "docs", "cats", top_k=0)
    assert [wrong.where for wrong in unfit.value.errors] == ["body.query.top_k"]


async def test_an_error_comes_whole_out_of_another_process(world: World) -> None:
    await world.api.ready("v1")
    world.api.world.found = {"missing": 2}
    with pytest.raises(Refused) as caught:
        await world.ask("cutover", "docs", "v1")
    for error in (caught.value, Misconfigured("no", next_step="do"), NotActive("not yet")):
        told = pickle.loads(pickle.dumps(error))
        assert (type(told), str(told), vars(told)) == (type(error), str(error), vars(error))


async def test_no_controller_answers(world: World) -> None:
    """It may still be carried out: the error says under which id, and when to ask again."""
    await world.api.ready("v1")
    world.api.controller.stand_down()
    with pytest.raises(TryLater) as caught:
        await world.ask("pause", "docs", "v1", idempotency_key="p1")
    assert str(caught.value.command_id).startswith("p1.")
    assert (caught.value.retry_after_s, caught.value.idempotency_key) == (3.0, "p1")


async def test_what_failed_is_not_waited_for(world: World) -> None:
    await world.ask("start", "docs", "v1")
    args: dict[str, JsonValue] = {"epoch": 1, "cause": "the endpoint is gone"}
    await world.api.controller.handle(Command(verb="failed", collection="docs", version="v1", args=args))
    with pytest.raises(NotActive, match="the endpoint is gone"):
        await world.ask("wait_until_active", "docs", "v1", timeout_s=10, poll_s=0.05)


async def test_progress_is_told_as_it_changes(world: World) -> None:
    await world.api.ready("v1")
    told = world.ask.follow("docs", "v1")
    async with asyncio.timeout(20):
        first = await anext(told)
        assert (first.version, first.paused, first.stage) == ("v1", None, "ready")
        await world.ask("pause", "docs", "v1")
        assert (await anext(told)).paused == "replay"
        await world.ask("resume", "docs", "v1")
        assert (await anext(told)).paused is None
        with pytest.raises(NotFound):
            await anext(world.ask.follow("docs", "v9"))


async def test_health(world: World) -> None:
    assert await world.ask("ready") is True
    world.api.backend.health.note("kafka", connectors.errors.Unreachable("no broker answers"), 5)
    healthy = await world.ask("health")
    assert (healthy.status, healthy.state, healthy.away[0].name) == ("degraded", "last known", "kafka")
    assert await world.ask("ready") is True
    world.api.backend.health.note("weaviate", connectors.errors.Unreachable("connection refused"), 6)
    assert await world.ask("ready") is False


async def test_nothing_listens(makes: Makes) -> None:
    ask = makes(f"http://127.0.0.1:{free_port()}", retries=1)
    assert await ask("ready") is False
    with pytest.raises(Unreachable, match="does not answer"):
        await ask("pause", "docs", "v1")
    await ask.close()


async def test_the_key_and_the_query_are_never_shown(
    world: World, makes: Makes, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    await world.api.serve("v1")
    await world.ask("search", "docs", "CANARYt4w8")
    with pytest.raises(Unfit) as unfit:
        await world.ask("search", "docs", "CANARYt4w8", top_k=-1)
    wrong = makes(world.url, "WRONGKEYm3x7")
    with pytest.raises(NotAdmitted) as unknown:
        await wrong("search", "docs", "CANARYt4w8")
    await wrong.close()
    monkeypatch.setenv(settings.KEY_VARIABLE, KEY)
    monkeypatch.setenv(settings.URL_VARIABLE, world.url)
    known = makes()
    await known("search", "docs", "cats")
    await known.close()
    shown = (
        caplog.text
        + repr(world.ask)
        + repr(known)
        + repr(settings.checked(None, None, timeout_s=1, command_timeout_s=1, retries=0, plain_http=False))
        + "".join(f"{error!s} {error!r} {vars(error)}" for error in (unfit.value, unknown.value))
    )
    assert world.url in shown, "it was logged at all"
    for secret in (KEY, "CANARYt4w8", "WRONGKEYm3x7"):
        assert secret not in shown


async def test_a_client_of_another_version_says_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A field that is missing or of another type is named; what stands in it is not shown."""
    await world.api.serve("v1")
    monkeypatch.setattr(calls, "reader_of", lambda _: exported.answers.reader_of(exported.VectorSpaces))
    with pytest.raises(NotUnderstood, match="vector_spaces") as caught:
        await world.ask("search", "docs", "kittens")
    assert "purr" not in str(caught.value)
    assert caught.value.__cause__ is None


REQUESTS: dict[str, Call[Any]] = {
    "search": calls.search("docs", "q"),
    "rollout": calls.rollout("docs"),
    "raise_rollout": calls.raise_rollout("docs"),
    "end_rollout": calls.end_rollout("docs"),
    "list_spaces": calls.vector_spaces("docs"),
    "add_space": calls.add_vector_space("docs", "v2", dims=1, model="m"),
    "one_space": calls.vector_space("docs", "v2"),
    "space_status": calls.vector_space_status("docs", "v2"),
    "rebuild": calls.rebuild_vector_space("docs", "v2", embed_endpoint="http://a"),
    "set_default": calls.set_default_vector_space("docs", "v2"),
    "delete_space": calls.delete_vector_space("docs", "v2"),
    "start": calls.start("docs", "v2"),
    "pause": calls.pause("docs", "v2"),
    "resume": calls.resume("docs", "v2"),
    "set": calls.set_("docs", "v2", {}),
    "abort": calls.abort("docs", "v2", confirm="v2"),
    "retire": calls.retire("docs", "v2", confirm="v2"),
    "cutover": calls.cutover("docs", "v2"),
    "rollback": calls.rollback("docs"),
    "plan": calls.plan("docs", "v2"),
    "verify": calls.verify("docs", "v2"),
    "redrive": calls.redrive("docs", "v2"),
    "evaluate": calls.evaluate("docs", "v2"),
    "collections": calls.collections(),
    "collection": calls.collection("docs"),
    "version": calls.version("docs", "v2"),
    "events": calls.progress("docs", "v2"),
    "history": calls.history("docs"),
    "healthz": calls.health(),
    "readyz": Call("GET", "/readyz", bytes, only_reads=True),
}
"""By the server's name of the operation."""


async def test_the_client_has_all_that_the_server_has(tmp_path: Path) -> None:
    """Every operation, whether it takes a key, and every field of every request and answer, by the OpenAPI document."""
    async with served(tmp_path) as api:
        document = api.app.openapi()
    operations = {
        operation["operationId"]: (method.upper(), path, operation)
        for path, item in document["paths"].items()
        for method, operation in item.items()
    }
    assert set(REQUESTS) == set(operations)
    names = {"collection": "docs", "version": "v2", "space": "v2"}
    for name, (method, path, operation) in operations.items():
        call = REQUESTS[name]
        assert (call.method, call.path) == (method, path.format(**names))
        takes_key = any(p["name"] == "idempotency-key" for p in operation.get("parameters", []))
        assert (call.key is not None) == takes_key, name
        assert call.only_reads == (not takes_key)
    schemas = document["components"]["schemas"]
    same_name = [n for n in exported.__all__ if isinstance(getattr(exported, n), type) and n in schemas]
    renamed = {"Version": "VersionAnswer", "Collection": "CollectionAnswer", "Collections": "CollectionsAnswer"}
    pairs = {**{name: name for name in same_name}, **renamed, "Progress": "ProgressRecord"}
    inner = {"partition", "requests_done", "live_position", "worker", "running_since"}  # of one partition
    for ours, theirs in pairs.items():
        known = {field.name for field in fields(getattr(exported, ours))}
        told = set(schemas[theirs]["properties"])
        assert known == told - {"schema"} - (inner if ours == "Progress" else set()), ours
    assert len(pairs) >= 18, sorted(pairs)
    answers = {s for s in schemas if s not in pairs.values()}
    requests = {
        "Abort", "Change", "Cutover", "DefaultSpace", "Ending", "Evaluate", "NewSpace", "Pause", "PlanRequest",
        "Rebuild", "Rollback", "Said", "Start", "TextSearch", "VectorSearch", "Verify",
    }  # fmt: skip
    assert answers <= requests | {"Problem", "Controls", "JsonValue"}, answers - requests
    bodies: dict[str, Call[Any]] = {
        "Cutover": calls.cutover(
            "c",
            "v",
            check=True,
            approve=True,
            cancel=True,
            force="f",
            accept_inconclusive="a",
            accept_held=["k"],
            accept_lost=1,
            why="w",
        ),
        "Rollback": calls.rollback("c", from_version="v", accept_lag=True, max_lag=1, why="w"),
        "Start": calls.start("c", "v", replay_rate=1, why="w"),
        "Pause": calls.pause("c", "v", why="w"),
        "Ending": calls.retire("c", "v", confirm="v", why="w"),
        "Change": calls.set_("c", "v", {}, why="w"),
        "Evaluate": calls.evaluate("c", "v", k=1, against="o"),
        "Verify": calls.verify("c", "v"),
        "PlanRequest": calls.plan("c", "v"),
        "NewSpace": REQUESTS["add_space"],
        "Rebuild": REQUESTS["rebuild"],
        "DefaultSpace": REQUESTS["set_default"],
        "Said": calls.resume("c", "v", why="w"),
        "TextSearch": calls.search("c", "q", filter={}, vector_space="v", mode="hybrid", caller="c"),
        "VectorSearch": calls.search("c", vector=[1], fingerprint="f", filter={}, vector_space="v"),
    }
    for theirs, call in bodies.items():
        assert set(call.body or {}) == set(schemas[theirs]["properties"]), theirs
    assert set(get_args(calls.Mode)) == set(schemas["TextSearch"]["properties"]["mode"]["anyOf"][0]["enum"])


def test_its_import_is_light() -> None:
    """It stands in other people's programs: no server, no Kafka, no Weaviate, no framework."""
    heavy = "fastapi starlette uvicorn faust aiokafka confluent_kafka weaviate grpc numpy langchain_core llama_index"
    code = (
        "import sys, streams.client; loaded = {name.partition('.')[0] for name in sys.modules};"
        f"print(sorted(loaded & set({heavy!r}.split())))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
    assert (Path(exported.__file__).parent.parent / "py.typed").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"url": "ftp://127.0.0.1"}, "no http"),
        ({"url": "127.0.0.1:8470"}, "no http"),
        ({"url": "http://[::1"}, "no http"),
        ({"url": "http://127.0.0.1:99999"}, "no http"),
        ({"url": f"http://me:{KEY}@127.0.0.1"}, "user name"),
        ({"url": f"https://example.com/?key={KEY}"}, "user name"),
        ({"url": "http://search.example.com", "api_key": KEY}, "in the clear"),
        ({"url": "http://127.0.0.1.example.com", "api_key": KEY}, "in the clear"),
        ({"url": "http://127.0.0.1", "api_key": f"{KEY}\n"}, "no HTTP header"),
        ({"url": "http://127.0.0.1", "api_key": f"{KEY}ü"}, "no HTTP header"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"command_timeout_s": float("nan")}, "command_timeout_s"),
        ({"retries": -1}, "retries"),
        ({"ca_file": "no-such.pem"}, "ca_file"),
    ],
)
def test_what_it_is_not_made_with(makes: Makes, given: dict[str, Any], said: str) -> None:
    with pytest.raises(Misconfigured, match=said) as caught:
        makes(**given)
    assert caught.value.next_step
    assert KEY not in str(caught.value)


def test_what_it_is_made_with(makes: Makes) -> None:
    for given in (
        {"url": "https://search.example.com/below/", "api_key": KEY},
        {"url": "http://search.example.com", "api_key": KEY, "plain_http": True},
        {"url": "http://search.example.com"},
        {"url": "http://[::1]:8470", "api_key": KEY},
        {},
    ):
        assert KEY not in repr(makes(**given))


def test_arguments_that_cannot_be_sent() -> None:
    for wrong in ("", "..", "a/b", "A", "a?b", "kittens purr", "a" * 49, "a\n"):
        with pytest.raises(Misconfigured) as caught:
            calls.search(wrong, "q")
        assert "kittens" not in str(caught.value)
        for describe in (calls.version, calls.vector_space):
            with pytest.raises(Misconfigured):
                describe("docs", wrong)
    for either in ({}, {"query": "q", "vector": [1.0]}):
        with pytest.raises(Misconfigured, match="either a query or a vector"):
            calls.search("docs", **either)  # type: ignore[arg-type]
    with pytest.raises(Misconfigured, match="not finite"):
        calls.search("docs", vector=[float("nan")], fingerprint="f")
    with pytest.raises(Misconfigured, match="idempotency_key"):
        calls.pause("docs", "v1", idempotency_key="a b")
    with pytest.raises(Misconfigured, match="poll_s"):
        calls.wait_until_active("docs", "v1", poll_s=0)
    made = settings.checked("http://127.0.0.1", None, timeout_s=1, command_timeout_s=1, retries=0, plain_http=False)
    deep: Any = []
    for _ in range(2_000):
        deep = [deep]
    bodies: list[Any] = [{"kind": object()}, {"kind": "\ud800"}, {"kind": deep}]
    for body in bodies:
        with pytest.raises(Misconfigured, match="cannot be written as JSON"):
            calls.search("docs", "q", filter=body).sending(made)


def test_every_method_is_there_twice_with_its_signature() -> None:
    threads, asyncs = exported.Crossfade, exported.AsyncCrossfade
    public = {name for name in vars(threads) if not name.startswith("_")}
    assert public - {"close"} == {name for name in vars(asyncs) if not name.startswith("_")} - {"aclose"}
    assert len(public) == 32
    assert get_type_hints(calls.search)["return"].__origin__ is Call
    shown = inspect.signature(threads.retire)
    assert [*shown.parameters] == ["self", "collection", "version", "confirm", "why", "idempotency_key"]
    assert shown.return_annotation == "Outcome"
