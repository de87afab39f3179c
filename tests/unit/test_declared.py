"""Versions added over HTTP: kept in the state, built at endpoints the configuration allows, and nowhere else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import JsonValue

from streams import config
from streams.config_embedders import address_of
from streams.declared import Declarations, endpoint_for
from streams.state import CollectionState, Command, Declared
from streams.versions import Stage
from tests.served import Served, served

SPACES = "/collections/docs/vector-spaces"
SECRET = "the-key-of-the-endpoint"
ENDPOINTS: list[JsonValue] = [
    {"provider": "tei", "url": "http://tei.example.com:8080", "model": "acme/words", "api_key": SECRET},
    {"provider": "tei", "url": "http://other.example.com", "model": "acme/words"},
    {"provider": "openai", "url": "https://api.example.com/v1", "model": "acme/large"},
]


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Served]:
    async with served(tmp_path, ENDPOINTS) as one:
        await one.serve("v1")
        yield one


async def add(api: Served, name: str, model: str, dims: int = 8) -> tuple[int, dict[str, Any]]:
    answer = await api.http.post(SPACES, json={"name": name, "dims": dims, "model": model})
    return answer.status_code, answer.json()


async def test_a_version_no_file_has(api: Served) -> None:
    status, added = await add(api, "words", "acme/words", 16)
    assert (status, added["status"], added["dims"], added["model"]) == (201, "building", 16, "acme/words")
    state = (await api.world.view()).collection("docs")
    assert state.declared == {"words": Declared(model="acme/words", dimensions=16, url="http://tei.example.com:8080")}
    assert SECRET not in state.model_dump_json()
    version = api.backend.current.collection("docs").version("words")
    assert [endpoint.url for endpoint in version.endpoints] == ["http://tei.example.com:8080"]
    assert "words" not in api.backend.settings.collection("docs").versions, "the file is left as it is"
    status, again = await add(api, "words", "acme/words", 16)
    assert (status, again["space"]) == (201, added["space"])
    assert (await add(api, "words", "acme/words", 17))[0] == 409


async def test_its_life_to_the_end_and_again_at_another_endpoint(api: Served) -> None:
    await add(api, "words", "acme/words")
    elsewhere = await api.http.post(f"{SPACES}/words/rebuild", json={"embed_endpoint": "http://other.example.com"})
    assert (elsewhere.status_code, "another endpoint" in elsewhere.json()["detail"]) == (409, True)
    here = await api.http.post(f"{SPACES}/words/rebuild", json={"embed_endpoint": "http://tei.example.com:8080/embed"})
    assert (here.status_code, here.json()["status"]) == (202, "building")
    build = (await api.world.view()).build("docs", "words")
    for partition in (0, 1):
        args: dict[str, JsonValue] = {"epoch": build.epoch, "partition": partition}
        await api.controller.handle(Command(verb="replayed", collection="docs", version="words", args=args))
    api.world.report("words", build.epoch)
    await api.seen((await api.world.view()).build("docs", "words"))
    default = "/collections/docs/default-vector-space"
    assert (await api.http.put(default, json={"name": "words"})).status_code == 200
    assert (await api.http.put(default, json={"name": "v1"})).status_code == 200
    assert (await api.http.delete(f"{SPACES}/words")).status_code == 200
    rebuilt = await api.http.post(
        f"{SPACES}/words/rebuild", json={"embed_endpoint": "http://OTHER.example.com:80/embed"}
    )
    assert (rebuilt.status_code, rebuilt.json()["status"]) == (202, "building")
    now = (await api.world.view()).build("docs", "words")
    assert (now.stage, now.fingerprint, now.epoch) == (Stage.BUILDING, build.fingerprint, build.epoch + 1)
    assert (await api.world.view()).collection("docs").declared["words"].url == "http://other.example.com"


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://api.example.com/v1",
        "http://169.254.169.254",
        "http://tei.example.com:8081",
        "http://x@tei.example.com:8080",
        "http://tei.example.com:8080@169.254.169.254/",
        "http://[::ffff:169.254.169.254]",
        "http://2852039166",
        "http://localhost:8080",
        "http://127.1:8080",
        "http://[::1]:8080",
        "http://tei.example.com:8080/embed/../admin",
        "http://tei.example.com:8080/embed?to=http://169.254.169.254",
        "gopher://tei.example.com:8080",
        "\x00",
    ],
)
async def test_texts_go_to_allowed_endpoints_of_its_model_only(api: Served, endpoint: str) -> None:
    await add(api, "words", "acme/words")
    refused = await api.http.post(f"{SPACES}/words/rebuild", json={"embed_endpoint": endpoint})
    assert (refused.status_code, refused.json()["type"]) == (403, "urn:crossfade:problem:endpoint-not-allowed")


async def test_a_request_under_its_key_is_the_same_one_when_the_version_is_known_by_then(api: Served) -> None:
    body, key = {"name": "words", "dims": 8, "model": "acme/words"}, {"Idempotency-Key": "add-1"}
    assert (await api.http.post(SPACES, json=body, headers=key)).status_code == 201
    assert (await api.http.delete(f"{SPACES}/words")).status_code == 200
    sent = len(api.commands.sent)
    assert (await api.http.post(SPACES, json=body, headers=key)).status_code == 201
    assert len(api.commands.sent) == sent, "it was carried out before"


async def test_what_cannot_be_added(api: Served) -> None:
    status, refused = await add(api, "large", "acme/unknown")
    assert (status, "embed_endpoints" in refused["next_step"]) == (404, True)
    await add(api, "words", "acme/words")
    status, refused = await add(api, "again", "acme/words")
    assert (status, refused["next_step"]) == (409, "use version words")
    assert (await add(api, "v2", "acme/words", 64))[0] == 409, "the file's own versions come first"


async def test_the_controller_allows_only_what_its_own_file_allows(api: Served) -> None:
    """Whoever can write commands cannot have texts sent elsewhere: each worker asks its own configuration."""
    for declaration in (
        {"model": "acme/words", "dimensions": 8, "url": "http://elsewhere.example.com"},
        {"model": "acme/words", "dimensions": 0, "url": "http://tei.example.com:8080"},
        {"model": "acme/words"},
        "words",
    ):
        outcome = await api.world.ask(api.controller, "start", "mine", declaration=declaration)
        assert not outcome.ok
        assert outcome.next_step
    assert (await api.world.view()).collection("docs").declared == {}


async def test_a_start_that_a_crash_interrupted_is_completed(api: Served) -> None:
    api.world.fuse.blow(0, after=RuntimeError("the process ends here"))  # after the first write: it is declared
    declaration = {"model": "acme/words", "dimensions": 8, "url": "http://tei.example.com:8080"}
    command = Command(verb="start", collection="docs", version="words", args={"declaration": declaration})  # type: ignore[dict-item]
    with pytest.raises(RuntimeError):
        await api.controller.handle(command)
    await api.world.controller()  # takes over, and completes what was begun
    assert (await api.world.view()).build("docs", "words").stage is Stage.BUILDING


def test_the_file_comes_first_and_a_forbidden_endpoint_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "crossfade.yaml"
    path.write_text(
        "embed_endpoints: [{provider: tei, url: 'http://a', model: m}]\n"
        "collections: {docs: {topic: t, text: {fields: [a]}, versions: "
        "{v1: {embedder: {provider: hashing}, dimensions: 8}}}}\n"
    )
    settings = config.load(path)
    declared = {
        "v1": Declared(model="m", dimensions=3, url="http://a"),
        "v2": Declared(model="m", dimensions=4, url="http://a"),
        "v3": Declared(model="m", dimensions=4, url="http://b"),
    }
    state = CollectionState(collection="docs", alias="Docs", topic="t", declared=declared)
    kept = Declarations()
    merged = kept.merged(settings, {"docs": state, "gone": state})
    versions = merged.collection("docs").versions
    assert {name: version.dimensions for name, version in versions.items()} == {"v1": 8, "v2": 4}
    assert kept.merged(settings, {"docs": state, "gone": state}) is merged
    assert kept.merged(settings, {}) is settings


def test_two_spellings_of_an_address_are_one() -> None:
    assert address_of("HTTP://Example.com/") == address_of("http://example.com:80")
    assert address_of("https://example.com:443/v1/") == address_of("https://example.com/v1")
    assert len({address_of(url) for url in ("http://a", "https://a", "http://a:81", "http://a/b", "http://b")}) == 5
    for none in ("http://user@a", "http://a?b", "http://a#b", "http://[", "http://a:99999"):
        assert address_of(none) == ""


def test_an_endpoint_is_found_by_its_model(tmp_path: Path) -> None:
    settings = config.Settings.model_validate({"embed_endpoints": ENDPOINTS})
    assert endpoint_for(settings, "nobody's") is None
    found = endpoint_for(settings, "acme/words", "http://tei.example.com:8080/embed")
    assert found is not None
    assert found.api_key is not None
    assert endpoint_for(settings, "acme/large", "http://tei.example.com:8080") is None
    assert endpoint_for(settings, "acme/words", "") is None
