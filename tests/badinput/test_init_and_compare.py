"""What `init` and `compare` say to wrong input: reason and next step; nothing written or spent, and no secret shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from connectors.errors import ConfigurationError, Refused
from connectors.kafka.producer import produce_many
from connectors.kafka.settings import KafkaSettings
from connectors.services import Addresses
from streams.cli import cli
from streams.cli.init import write
from tests.conftest import MakeTopic
from tests.keyed_endpoint import DIMENSIONS, keyed_endpoint

SECRET = "hunter2-SECRET"
TEXT = "CONFIDENTIALTEXT"
CLOSED = "http://127.0.0.1:1"


@pytest.fixture
def topic(services: Addresses, make_topic: MakeTopic) -> str:
    name = make_topic()
    values = [{"title": f"T{i}", "text": f"{TEXT} of some words, number {i}", "year": 2000 + i} for i in range(30)]
    records = [(f"k{i}".encode(), json.dumps(value).encode(), None) for i, value in enumerate(values)]
    produce_many(KafkaSettings(bootstrap_servers=services.kafka), name, iter(records))
    return name


def invoke(*args: str) -> Result:
    result = CliRunner().invoke(cli, list(args), prog_name="crossfade")
    assert "Traceback" not in result.output
    assert "unexpected" not in result.output
    for hidden in (SECRET, TEXT):
        assert hidden not in result.output
    return result


def refused(status: int, *args: str) -> str:
    """Of a verb that must fail with a reason and a next step."""
    result = invoke(*args)
    assert result.exit_code == status, result.output
    assert "error: " in result.stderr
    assert "\n  next: " in result.stderr
    return result.stderr


def whole(services: Addresses, topic: str, path: Path, **other: str) -> list[str]:
    said = {"bootstrap": services.kafka, "topic": topic, "fields": "title,text", "provider": "hashing"}
    said |= {"output": str(path), **{name.replace("_", "-"): value for name, value in other.items()}}
    return ["init", *(part for name, value in said.items() for part in (f"--{name}", value))]


def test_without_a_terminal_everything_that_is_missing_is_named_at_once(tmp_path: Path) -> None:
    path = str(tmp_path / "new.yaml")
    error = refused(2, "init", "--output", path)
    assert "--bootstrap, --topic, --fields and --provider are not given" in error
    assert "next: crossfade init --bootstrap HOST:PORT --topic NAME --fields NAME,... --provider hashing|" in error
    error = refused(
        2, "init", "--output", path, "--bootstrap", "x:1", "--topic", "t", "--fields", "a", "--provider", "tei"
    )
    assert "--url is not given" in error
    error = refused(2, "init", "--output", path, "--bootstrap", "x:1", "--topic", "t", "--provider", "openai")
    assert "--fields, --url and --model are not given" in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "dangling link", "folder"])
def test_what_exists_is_never_overwritten(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "crossfade.yaml"
    if kind == "file":
        path.write_text("precious")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "nowhere")
    error = refused(1, "--config", str(path), "init", "--provider", "hashing")
    assert f"{path} exists, and is not overwritten" in error
    assert f"crossfade init --output {tmp_path / 'crossfade-2.yaml'}" in error
    assert [one.name for one in tmp_path.iterdir()] == ["crossfade.yaml"]
    assert kind != "file" or path.read_text() == "precious"


def test_a_file_that_appears_meanwhile_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "crossfade.yaml"
    loading = write.__globals__["config"].load

    def load_slowly(draft: Path) -> object:
        path.write_text("somebody else's")
        return loading(draft)

    monkeypatch.setattr("streams.cli.init.config.load", load_slowly)
    with pytest.raises(Refused, match="is not overwritten"):
        write(path, "collections: {}\n")
    assert path.read_text() == "somebody else's"
    assert list(tmp_path.iterdir()) == [path]


def test_what_would_not_load_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"makes no configuration: collectoins: unknown key") as raised:
        write(tmp_path / "new.yaml", "collectoins: {}\n")
    assert ".new.yaml" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_topics_that_are_not_there_or_empty(
    services: Addresses, topic: str, make_topic: MakeTopic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new.yaml"
    error = refused(1, *whole(services, "nobody-made-this", path))
    assert "there is no documents topic nobody-made-this; there are: " in error
    empty = make_topic(3)
    assert f"topic {empty} is empty" in refused(1, *whole(services, empty, path))
    monkeypatch.chdir(tmp_path)
    error = refused(2, *whole(services, topic, path, bootstrap="local"))
    assert "no local services are running in this folder\n  next: crossfade up, or name your brokers" in error
    assert "no Kafka broker answered" in refused(1, *whole(services, topic, path, bootstrap="127.0.0.1:1"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("other", "status", "said"),
    [
        ({"fields": "title,body"}, 2, "--fields: not seen in the sample: body; seen: title, text, year"),
        ({"fields": "year"}, 2, "--fields: no text in year"),
        ({"fields": "title,title"}, 2, "--fields: wanted: one or more field names, each once"),
        ({"properties": "year:integer"}, 2, "--properties: 'year:integer' is not NAME:TYPE"),
        ({"properties": "id:text"}, 2, "collections.c.properties.id: is reserved"),
        ({"collection": "No Good"}, 2, "is no collection name"),
        ({"version": "v-1"}, 2, "is no version name"),
        ({"bootstrap": "nobody"}, 2, "kafka.bootstrap_servers is no address"),
        ({"bootstrap": f"me:{SECRET}@kafka:9092"}, 2, "holds credentials"),
        ({"client": f"sasl.password={SECRET}"}, 2, "--client sasl.password holds a secret"),
        ({"client": SECRET}, 2, "a --client is not KEY=VALUE"),
        ({"client": "group.id=x"}, 2, "sets group.id, which Crossfade sets itself"),
        ({"weaviate_http": "http://w:1"}, 2, "--weaviate-grpc is not"),
        ({"weaviate_http": f"http://me:{SECRET}@w:1", "weaviate_grpc": "w:2"}, 2, "holds credentials in a URL"),
        ({"provider": "tei", "url": CLOSED}, 1, "127.0.0.1:1"),
        ({"provider": "tei", "url": CLOSED, "api_key": SECRET}, 2, "--api-key does not say where the key stands"),
        ({"provider": "tei", "url": CLOSED, "api_key": "${NOT_SET_ANYWHERE}"}, 2, "NOT_SET_ANYWHERE is not set"),
        ({"provider": "tei", "url": CLOSED, "api_key": "file:nowhere"}, 2, "cannot be read"),
        ({"provider": "tei", "url": f"http://me:{SECRET}@t:1"}, 2, "holds credentials in a URL"),
        ({"provider": "openai", "url": "ftp://t:1", "model": "m"}, 2, "is no http URL"),
    ],
    ids=lambda one: ",".join(one) if isinstance(one, dict) else "",
)
def test_wrong_options(
    services: Addresses, topic: str, tmp_path: Path, other: dict[str, str], status: int, said: str
) -> None:
    assert said in refused(status, *whole(services, topic, tmp_path / "new.yaml", **{"collection": "c", **other}))
    assert list(tmp_path.iterdir()) == []


def test_endpoints_that_are_not_what_they_should_be(
    services: Addresses, topic: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new.yaml"
    monkeypatch.setenv("BAD_KEY", SECRET)
    with keyed_endpoint("another") as endpoint:
        asked = whole(services, topic, path, provider="tei", url=endpoint.url)
        assert "401" in refused(1, *asked)
        assert "401" in refused(1, *asked, "--api-key", "${BAD_KEY}")
    with keyed_endpoint() as endpoint:
        asked = whole(services, topic, path, provider="tei", url=endpoint.url)
        error = refused(2, *asked, "--dimensions", "768")
        assert f"vectors have {DIMENSIONS} dimensions, --dimensions says 768" in error
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_cannot_be(services: Addresses, topic: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    error = refused(2, *whole(services, topic, tmp_path / "file" / "new.yaml"))
    assert "cannot be written" in error
    assert "sampled" not in error


def test_a_topic_without_keys_says_what_will_become_of_its_records(
    services: Addresses, make_topic: MakeTopic, tmp_path: Path
) -> None:
    name = make_topic(config={"cleanup.policy": "delete"})
    record = json.dumps({"title": "a", "text": f"{TEXT} b c d e"}).encode()
    produce_many(KafkaSettings(bootstrap_servers=services.kafka), name, iter([(None, record, None)] * 3))
    result = invoke(*whole(services, name, tmp_path / "new.yaml"))
    assert result.exit_code == 0
    assert "3 of 3 sampled records would go to the dead letters: 3 key_missing" in result.stdout
    assert f"warning: topic {name} is not compacted" in result.stderr


# compare


def compare(
    services: Addresses, topic: str, folder: Path, *args: str, fields: str = "title,text", **versions: object
) -> list[str]:
    path = folder / "crossfade.yaml"
    v1 = {"embedder": {"provider": "hashing"}, "dimensions": 64}
    raw = {
        "kafka": {"bootstrap_servers": services.kafka},
        "collections": {
            "docs": {"topic": topic, "text": {"fields": fields.split(",")}, "versions": {"v1": v1, **versions}}
        },
    }
    path.write_text(yaml.safe_dump(raw))
    return ["--config", str(path), "compare", "docs", *args]


def test_compare_refuses_what_it_cannot_compare(
    services: Addresses, topic: str, make_topic: MakeTopic, tmp_path: Path
) -> None:
    def said(status: int, *args: str, of: str = topic, fields: str = "title,text") -> str:
        return refused(status, *compare(services, of, tmp_path, *args, fields=fields))

    assert "has no version v9" in said(1, "v1", "v9")
    assert "a version is named twice" in said(2, "v1", "v1")
    assert "year is neither a text field nor a property" in said(2, "v1", "--title", "year")
    assert "text is the only text field" in said(2, "v1", "--title", "text", fields="text")
    assert "has no golden set, and none of its fields is called title" in said(2, "v1", fields="text")
    assert "topic nothing-here of docs does not exist" in said(1, "v1", of="nothing-here")
    assert "holds no document to compare with" in said(1, "v1", of=make_topic())
    empty = tmp_path / "golden.jsonl"
    empty.write_text("")
    assert "golden.jsonl" in said(2, "v1", "--golden", str(empty))
    assert "--golden and --title are both given" in said(2, "v1", "--golden", str(empty), "--title", "title")


def test_compare_with_an_endpoint_that_is_another_model_or_wants_a_key(
    services: Addresses, topic: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BAD_KEY", SECRET)
    with keyed_endpoint("another") as endpoint:
        embedder = {"provider": "tei", "url": endpoint.url, "model": "m", "price_per_million_tokens": 0.0}
        with_key = {"embedder": {**embedder, "api_key": "${BAD_KEY}"}, "dimensions": DIMENSIONS}
        assert "401" in refused(1, *compare(services, topic, tmp_path, "v1", "v2", v2=with_key))
    with keyed_endpoint() as endpoint:
        short = {"embedder": {**embedder, "url": endpoint.url}, "dimensions": 8}
        error = refused(1, *compare(services, topic, tmp_path, "v1", "v2", v2=short))
        assert f"gives {DIMENSIONS} dimensions" in error


def test_compare_with_an_endpoint_that_is_away(
    services: Addresses, topic: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.comparing.PATIENCE_S", 1.0)
    embedder = {"provider": "tei", "url": CLOSED, "model": "m", "price_per_million_tokens": 0.0}
    away = {"embedder": embedder, "dimensions": 8}
    error = refused(1, *compare(services, topic, tmp_path, "v1", "v2", v2=away))
    assert "trying again for up to 1 s" in error
