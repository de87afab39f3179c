"""`crossfade init` on a real broker with real records: from options, and at a pseudo-terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from connectors.kafka.producer import produce_many
from connectors.kafka.settings import KafkaSettings
from connectors.protocols import JSON
from connectors.services import Addresses
from streams import config
from streams.cli import cli
from tests.conftest import MakeTopic
from tests.keyed_endpoint import DIMENSIONS, INFO, Endpoint, keyed_endpoint
from tests.terminal import Terminal

KEY = "sk-NOBODYMAYSEETHIS"
CONFIDENTIAL = "CONFIDENTIALTEXT"


def documents(count: int) -> list[tuple[bytes, bytes | None, int | None]]:
    whole: list[tuple[bytes, bytes | None, int | None]] = []
    for i in range(count):
        value: dict[str, JSON] = {
            "title": f"Title number {i}",
            "text": f"{CONFIDENTIAL} that goes on for more than a few words, {i}",
            "year": 1990 + i % 30,
            "category": ["news", "sport"][i % 2],
            "tags": ["a"],
        }
        if i % 10 == 0:
            del value["year"]
        whole.append((f"k{i}".encode(), json.dumps(value).encode(), None))
    return [*whole, (b"k1", None, None)]


@pytest.fixture
def topic(services: Addresses, make_topic: MakeTopic) -> str:
    name = make_topic(2)
    produce_many(KafkaSettings(bootstrap_servers=services.kafka), name, iter(documents(200)))
    return name


def run(*args: str, config_path: Path | None = None) -> Result:
    before = [] if config_path is None else ["--config", str(config_path)]
    return CliRunner().invoke(cli, [*before, "init", *args], prog_name="crossfade")


def given(services: Addresses, topic: str, *more: str) -> list[str]:
    return ["--bootstrap", services.kafka, "--topic", topic, "--fields", "title,text", *more]


def test_from_options_alone(services: Addresses, topic: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / "crossfade.yaml"
    said = run(*given(services, topic, "--provider", "hashing", "--properties", "year:int"), config_path=path)
    assert said.exit_code == 0, said.output
    settings = config.load(path)
    (collection,) = settings.collections.values()
    assert (settings.kafka.bootstrap_servers, collection.topic) == (services.kafka, topic)
    assert (collection.text.fields, dict(collection.properties)) == (["title", "text"], {"year": "int"})
    assert f"  next: crossfade plan {collection.name} v1; crossfade worker builds it" in said.stdout.replace(
        "crossfade up, for Weaviate; then ", ""
    )
    assert f"export CROSSFADE_CONFIG={path}" in said.stdout
    assert f"{topic}: 201 records sampled, 200 documents, 1 deletes" in said.stdout
    assert "all 201 sampled records can be read this way" in said.stdout
    assert CONFIDENTIAL not in said.output + path.read_text()
    assert "# category: keyword" in path.read_text()
    assert list(path.parent.iterdir()) == [path]


def test_an_endpoint_is_asked_for_what_it_is(
    services: Addresses, topic: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "crossfade.yaml"
    monkeypatch.setenv("INIT_KEY", KEY)
    with keyed_endpoint(KEY) as endpoint:
        said = run(
            *given(services, topic, "--provider", "tei", "--url", endpoint.url, "--api-key", "${INIT_KEY}"),
            *("--output", str(path), "--collection", "docs", "--price", "0.02"),
        )
    assert said.exit_code == 0, said.output
    version = config.load(path).collection("docs").version("v1")
    (served,) = version.endpoints
    assert (served.model, served.revision, version.dimensions) == (INFO["model_id"], INFO["model_sha"], DIMENSIONS)
    assert (served.max_batch, served.price_per_million_tokens) == (16, 0.02)
    assert (version.document_prefix, version.query_prefix) == ("passage: ", "query: ")
    assert KEY not in said.output + path.read_text()
    assert "api_key: ${INIT_KEY}" in path.read_text()
    assert len(endpoint.embedded) == 4
    assert not any(CONFIDENTIAL in text for text in endpoint.embedded)


def test_a_key_in_a_file(services: Addresses, topic: str, tmp_path: Path) -> None:
    path = tmp_path / "crossfade.yaml"
    (tmp_path / "key").write_text(KEY + "\n")
    with keyed_endpoint(KEY) as endpoint:
        said = run(
            *given(services, topic, "--provider", "tei", "--url", endpoint.url, "--api-key", "file:key"),
            *("--output", str(path)),
        )
    assert said.exit_code == 0, said.output
    assert KEY not in said.output + path.read_text()
    assert "api_key: file:key" in path.read_text()


UNSET = {"TEI_API_KEY": None, "CROSSFADE_CONFIG": None}


def test_guided_at_a_terminal(services: Addresses, topic: str, tmp_path: Path) -> None:
    with keyed_endpoint(KEY) as endpoint:
        status, seen = _guided(services, topic, tmp_path, endpoint)
    path = tmp_path / "config" / "crossfade.yaml"
    assert status == 0, seen
    assert endpoint.refused == 1
    written = path.read_text()
    for hidden in (KEY, "sk-MISTYPED", CONFIDENTIAL):
        assert hidden not in seen
        assert hidden not in written
    assert f"{topic}: compacted, 2 partitions, up to 201 records" in seen
    assert "wanted: not seen in the sample: body; seen: title, text, year, category, tags" in seen
    assert "year        int         90%  -" in seen
    assert f"{DIMENSIONS} dimensions, model {INFO['model_id']}, revision {INFO['model_sha']}" in seen
    assert "wrote config/crossfade.yaml: collection docs, version v1" in seen
    assert "export TEI_API_KEY=..., as it was not written" in seen
    assert "crossfade plan docs v1; crossfade worker builds it" in seen
    assert "Traceback" not in seen


def _guided(services: Addresses, topic: str, folder: Path, endpoint: Endpoint) -> tuple[int, str]:
    t = Terminal(folder, ["init"], UNSET)
    t.answer("Kafka's brokers", services.kafka)
    t.answer("Documents topic (number or name)", topic)
    t.answer("Text fields to embed, in order [title,text]", "title,body")
    t.answer("Text fields to embed, in order [title,text]", "")
    t.answer("[title:text,year:int,category:keyword]", "")
    t.answer("Weaviate (", "")
    t.answer("Embedding model, served by", "tei")
    for secret in ("sk-MISTYPED", KEY):
        t.answer("Address of the endpoint", endpoint.url)
        t.answer("Key for the endpoint", "env")
        t.answer("Variable that holds the key (its name) [TEI_API_KEY]", "")
        t.answer("(not shown, not written)", secret)
    t.answer(f"Model that it serves [{INFO['model_id']}]", "")
    t.answer("before documents (none for none) [passage:]", "")
    t.answer("before queries (none for none) [query:]", "")
    t.answer("Price, USD for a million tokens", "0.02")
    t.answer("Name of the collection", "docs")
    return t.end(), t.seen


def test_ctrl_c_leaves_without_writing(services: Addresses, topic: str, tmp_path: Path) -> None:
    t = Terminal(tmp_path, ["init", "--bootstrap", services.kafka, "--topic", topic], UNSET)
    t.interrupt("Text fields to embed")
    assert t.end() != 0
    assert not (tmp_path / "config").exists()
