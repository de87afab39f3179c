"""The configuration file: what loads, and that errors name file, line, key and the value wanted, never a secret."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest

from connectors.errors import ConfigurationError, NotFound
from streams import config
from streams.config import Settings, envelope_of, find_config, load, schema_of
from streams.config_embedders import HashingEmbedder, TeiEmbedder, Version
from tests.unit.tokenizers import word_level

SECRET = "hunter2-hunter2"
BASE = """\
collections:
  my-docs:
    topic: docs
    text: {fields: [title, text]}
    properties: {tag: keyword}
    versions:
      v1: {embedder: {provider: hashing}, dimensions: 64}
"""


def loaded(folder: Path, text: str) -> Settings:
    path = folder / "c.yaml"
    path.write_text(text)
    return load(path)


def refused(folder: Path, text: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        loaded(folder, text)
    assert caught.value.next_step
    shown = "".join(traceback.format_exception(caught.value))
    assert SECRET not in shown
    return caught.value.message


def test_the_shipped_configuration_loads_as_it_is() -> None:
    settings = load(Path("config/crossfade.yaml"))
    assert settings.kafka.bootstrap_servers is None
    assert settings.weaviate.http is None
    collection = settings.collection("articles")
    assert envelope_of(collection, collection.version("v1")).dimensions == 64


def test_the_shipped_configuration_loads_with_its_examples_uncommented(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = []
    for line in Path("config/crossfade.yaml").read_text().splitlines():
        bare = line.lstrip()
        indent = line[: len(line) - len(bare)]
        name = bare[2:].split(":")[0].strip().removeprefix("- ").replace(".", "_")
        example = bare.startswith("# ") and name.isidentifier()
        lines.append(indent + bare[2:] if example and ":" in bare and indent else line)
    secret = tmp_path / "kafka-password"
    secret.write_text(SECRET)
    text = "\n".join(lines).replace("/run/secrets/kafka-password", str(secret))
    text = text.replace("/run/secrets/embeddings-key", str(secret))
    (tmp_path / "e5").mkdir()
    (tmp_path / "e5" / "tokenizer.json").write_bytes(word_level())
    for name in ("KAFKA_USER", "WEAVIATE_API_KEY", "TEI_API_KEY"):
        monkeypatch.setenv(name, SECRET)
    settings = loaded(tmp_path, text)
    assert list(settings.collection("articles").versions) == ["v1", "v2", "e5"]
    assert settings.kafka.client["sasl.password"] == SECRET
    assert SECRET not in repr(settings)
    collection = settings.collection("articles")
    e5 = collection.version("e5")
    assert [(endpoint.provider, endpoint.rank) for endpoint in e5.endpoints] == [("tei", 0), ("openai", 1)]
    envelope = envelope_of(collection, e5)
    assert envelope.chunking.startswith("tokens:400:50:")
    assert envelope.options["overlong"] == "truncate"


def test_defaults_and_names(tmp_path: Path) -> None:
    settings = loaded(tmp_path, BASE)
    collection = settings.collection("my-docs")
    assert (collection.name, collection.alias) == ("my-docs", "MyDocs")
    assert settings.path == tmp_path / "c.yaml"
    assert schema_of(collection).properties == {"tag": "keyword"}
    with pytest.raises(NotFound, match="no collection nope") as caught:
        settings.collection("nope")
    assert "my-docs" in caught.value.next_step
    with pytest.raises(NotFound, match="no version v9"):
        collection.version("v9")


def test_settings_can_be_built_in_code() -> None:
    version = Version(embedder=HashingEmbedder(), dimensions=8)
    collection = config.Collection(name="x", topic="t", text=config.Text(fields=["a"]), versions={"v1": version})  # type: ignore[call-arg]
    settings = Settings(collections={"docs": collection})
    assert settings.collection("docs").name == "docs"


def test_variables_and_secret_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CF_TOPIC", "from-env")
    monkeypatch.delenv("CF_UNSET", raising=False)
    (tmp_path / "key").write_text(SECRET + "\n")
    text = BASE.replace("topic: docs", "topic: ${CF_TOPIC}").replace("64", '"${CF_UNSET:-32}"')
    text += "      v2: {embedder: {provider: hashing}, dimensions: 64, document_prefix: 'file:$${x} '}\n"
    text += "weaviate: {http: 'http://h:1', grpc: 'h:2', api_key: file:key}\n"
    text += "kafka: {client: {socket.timeout.ms: 500, enable.x: true}}\n"
    settings = loaded(tmp_path, text)
    collection = settings.collection("my-docs")
    assert collection.topic == "from-env"
    assert collection.version("v1").dimensions == 32
    assert collection.version("v2").document_prefix == "file:${x} "
    assert settings.weaviate.api_key is not None
    assert settings.weaviate.api_key.get_secret_value() == SECRET
    assert settings.kafka.client == {"socket.timeout.ms": "500", "enable.x": "true"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ":1: the file is empty"),
        ("kafka: [\n", ":2: not YAML"),
        (f"weaviate:\n  api_key: *{SECRET}\n", ":2: not YAML"),
        (f"weaviate:\n  api_key: !{SECRET} x\n", ":2: weaviate.api_key: has a YAML tag"),
        ("kafka: {}\nkafka: {}\n", ":2: kafka: is there twice, first on line 1"),
        ("a: &a [*a]\n", ":1: a.0: refers to itself"),
        (
            "kafka:\n  bootstrap_server: x:1\n",
            ":2: kafka.bootstrap_server: unknown key; did you mean bootstrap_servers",
        ),
        (
            "nothing: 1\n",
            ":1: nothing: unknown key; wanted one of: kafka, weaviate, prices, vector_cache, metrics, serve, "
            "embed_endpoints, collections",
        ),
        (f"kafka:\n  client:\n    sasl.password: ${{CF_UNSET}}{SECRET}\n", "variable CF_UNSET is unset"),
        ("kafka: {topic_prefix: '${CF UNSET}'}\n", "has a malformed ${...}"),
        ("weaviate: {api_key: file:nowhere}\n", "cannot be read"),
        ("weaviate: {api_key: file:empty}\n", "is empty"),
        (f"weaviate: {{http: 'http://u:{SECRET}@h:1', grpc: 'h:2'}}\n", "weaviate.http: holds credentials in a URL"),
        (f"kafka: {{bootstrap_servers: 'u:{SECRET}@h:1'}}\n", "kafka.bootstrap_servers: holds credentials"),
        ("kafka: {bootstrap_servers: 'h'}\n", "wanted: host:port"),
        (f"weaviate: {{api_key: [{SECRET}]}}\n", "weaviate.api_key: is not text"),
        (f"weaviate: {{api_key: '{SECRET} x'}}\n", "weaviate.api_key: is empty, or has spaces"),
        ("weaviate: {http: 'http://h:1'}\n", "weaviate: has one of http and grpc"),
        ("weaviate: {write_timeout_s: 30}\n", "weaviate.write_timeout_s: leaves too little of kafka.session_timeout_s"),
        ("weaviate: {write_timeout_s: yes}\n", "wanted: a number"),
        ("weaviate: {write_timeout_s: -1}\n", "-1 does not fit; wanted: greater than 0"),
        ("kafka: {client: {group.id: x}}\n", "sets group.id, which Crossfade sets itself"),
        ("kafka: {topic_prefix: 'a b'}\n", "kafka.topic_prefix: is no topic prefix"),
        ("collections: {-x: {}}\n", "collections.-x: is no collection name"),
        ("kafka: 7\n", "kafka: is not a mapping"),
        ("- a\n", ": is not a mapping"),
    ],
)
def test_errors_name_line_key_and_what_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: str
) -> None:
    monkeypatch.delenv("CF_UNSET", raising=False)
    (tmp_path / "empty").write_text("\n")
    message = refused(tmp_path, text)
    assert message.startswith(f"{tmp_path / 'c.yaml'}:")
    assert expected in message


V1 = "v1: {embedder: {provider: hashing}, dimensions: 64}"
EMBEDDER = "{provider: hashing}"


@pytest.mark.parametrize(
    ("old", "new", "line", "expected"),
    [
        ("topic: docs", "topic: a/b", 3, "my-docs.topic: is no topic name"),
        ("topic: docs", "topic: crossfade.state", 3, "my-docs.topic: is a topic of Crossfade's own"),
        ("    topic: docs\n", "", 2, "my-docs.topic: is missing"),
        ("topic: docs", "topic: docs\n    alias: docs", 4, "my-docs.alias: is no Weaviate name"),
        ("topic: docs", "topic: docs\n    alias: D_v1_2_0123456789ab", 4, "could be the name of a space"),
        ("[title, text]", "[]", 4, "my-docs.text.fields: is too short"),
        ("[title, text]", "[text, text]", 4, "names a field twice"),
        ("[title, text]", "[title, text], template: '{title}'", 4, "text.template: reads title; wanted: a template"),
        ("[title, text]", "[title, text], template: '{title.x}{text}'", 4, "text.template: cannot be read"),
        ("tag: keyword", "tag: money", 5, "properties.tag: 'money' does not fit; wanted: 'text', 'keyword'"),
        ("tag: keyword", "Tag: keyword", 5, "properties.Tag: is no property name"),
        ("tag: keyword", "cf_tag: keyword", 5, "properties.cf_tag: is reserved"),
        ("tag: keyword", "id: keyword", 5, "properties.id: is reserved"),
        ("tag: keyword", "vector: keyword", 5, "properties.vector: is reserved"),
        ("tag: keyword", "tagOne: text, tagone: text", 5, "properties.tagone: differs from 'tagOne' only in capitals"),
        ("topic: docs", "topic: docs\n    routes: {default: best}", 4, "routes.default: 'best' does not fit"),
        ("topic: docs", "topic: docs\n    routes: {hybrid: {fusion: rrf}}", 4, "hybrid.fusion: 'rrf' does not fit"),
        (
            "topic: docs",
            "topic: docs\n    routes: {hybrid: {from_coverage: 0.9, complete: 0.8}}",
            4,
            "routes.hybrid.complete: is below from_coverage; wanted: from 0.9 to 1",
        ),
        ("topic: docs", "topic: docs\n    routes: {rollout: {share: 5}}", 4, "routes.rollout.share: 5 does not fit"),
        ("topic: docs", "topic: docs\n    routes: {rollout: {steps: [0.5, 0.1]}}", 4, "steps: does not grow"),
        ("topic: docs", "topic: docs\n    routes: {shadow: {sample: {most: 5}}}", 4, "wanted: one of file and topic"),
        ("topic: docs", "topic: docs\n    routes: {shadow: {sample: {file: a, topic: b}}}", 4, "one of file and topic"),
        ("topic: docs", "topic: docs\n    routes: {searched: {topic: 'a b'}}", 4, "routes.searched.topic"),
        (
            "topic: docs",
            "topic: docs\n    gate: {shadow: {min_overlap: 2}}",
            4,
            "gate.shadow.min_overlap: 2 does not fit",
        ),
        ("topic: docs", "topic: docs\n    routes: {rollout: {steps: []}}", 4, "rollout.steps: is too short"),
        ("topic: docs", "topic: docs\n    routes: {rollout: {window_s: 0}}", 4, "rollout.window_s: "),
        ("topic: docs", "topic: docs\n    routes: {shadow: {share: .nan}}", 4, "routes.shadow.share: "),
        ("topic: docs", "topic: docs\n    routes: {shadow: {at_once: 0}}", 4, "routes.shadow.at_once: 0 does not fit"),
        ("topic: docs", "topic: docs\n    routes: {searched: {most: true}}", 4, "searched.most: is true or false"),
        ("topic: docs", "topic: docs\n    routes: {fallback: false}", 4, "routes.fallback: unknown key"),
        ("v1:", "V1:", 7, "versions.V1: is no version name"),
        ("v1:", "--all:", 7, "versions.--all: is no version name"),
        (V1, f"{V1}\n      v2{V1[2:]}", 8, "versions.v2: is the same model as version v1"),
        ("dimensions: 64", "dimensions: 0", 7, "versions.v1.dimensions: 0 does not fit"),
        ("dimensions: 64", "dimensions: 64, document_prefix: 7", 7, "document_prefix: is not text"),
        (EMBEDDER, "{provider: hash}", 7, "v1.embedder: has an unknown provider; wanted: provider: hashing, "),
        (EMBEDDER, "{}", 7, "v1.embedder: has no provider"),
        (EMBEDDER, "{provider: hashing, ngrams: 1}", 7, "v1.embedder.ngrams: unknown key"),
        (EMBEDDER, "{provider: hashing, word_ngrams: [2, 1]}", 7, "embedder.word_ngrams: ends below where it begins"),
        (EMBEDDER, "{provider: hashing, word_ngrams: null, char_ngrams: null}", 7, "at least one of them"),
        (EMBEDDER, "{provider: tei, url: 'http://h'}", 7, "v1.embedder.model: is missing"),
        (EMBEDDER, "{provider: tei, url: 'ftp://h', model: m}", 7, "v1.embedder.url: is no http URL"),
        ("  my-docs:", "  other: {topic: t, alias: mydocs, text: {fields: [a]}}\n  my-docs:", 2, "is no Weaviate name"),
        ("  my-docs:", "  other: {topic: t, alias: Mydocs, text: {fields: [a]}}\n  my-docs:", 3, "has the alias of"),
        (
            "  my-docs:",
            "  other: {topic: t, alias: MyDocs_v, text: {fields: [a]}}\n  my-docs:",
            3,
            "could have the names",
        ),
    ],
)
def test_collections_are_checked(tmp_path: Path, old: str, new: str, line: int, expected: str) -> None:
    assert old in BASE
    message = refused(tmp_path, BASE.replace(old, new, 1))
    assert f"c.yaml:{line}: " in message
    assert expected in message


def test_all_errors_are_reported_at_once(tmp_path: Path) -> None:
    message = refused(tmp_path, BASE.replace("64", "0").replace("topic: docs", "topic: a/b") + "kafka: {x: 1}\n")
    assert len(message.splitlines()) == 3


def test_values_from_the_environment_are_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CF_SECRET", SECRET)
    refused(tmp_path, BASE.replace("64", "${CF_SECRET}"))
    refused(tmp_path, BASE.replace("keyword", "'${CF_SECRET}'"))
    refused(tmp_path, f"kafka: {{password: {SECRET}}}\n")


def test_only_what_decides_a_vector_is_in_the_envelope(tmp_path: Path) -> None:
    settings = loaded(
        tmp_path,
        BASE.replace(
            V1,
            "v1: {embedder: {provider: tei, url: 'http://a', model: m}, dimensions: 4}\n"
            "      v2: {embedder: {provider: tei, url: 'http://a', model: m}, dimensions: 4, query_prefix: q}",
        ),
    )
    collection = settings.collection("my-docs")
    one = envelope_of(collection, collection.version("v1"))
    elsewhere = collection.version("v1").model_copy(
        update={
            "embedder": TeiEmbedder.model_validate(
                {"url": "http://b", "model": "m", "timeout_s": 9, "max_batch": 1, "api_key": "k"}
            ),
            "replay_rate": 5.0,
            "concurrency": 9,
            "batch": 1,
            "provenance": {"domain": "law"},
        }
    )
    assert envelope_of(collection, elsewhere) == one
    assert envelope_of(collection, collection.version("v2")) != one
    other_text = collection.model_copy(update={"text": config.Text(fields=["text", "title"])})
    assert envelope_of(other_text, elsewhere) != one


def test_every_option_of_an_embedder_that_decides_a_vector_is_in_the_envelope() -> None:
    collection = config.Collection(name="docs", topic="t", text=config.Text(fields=["a"]), alias="Docs")
    hashing: list[dict[str, object]] = [
        {},
        {"word_ngrams": None},
        {"char_ngrams": None},
        {"word_ngrams": (1, 1)},
        {"char_ngrams": (3, 4)},
        {"sublinear": False},
        {"seed": 1},
    ]
    tei: list[dict[str, object]] = [{}, {"model": "n"}, {"revision": "r"}, {"truncate": True}]
    embedders: list[HashingEmbedder | TeiEmbedder] = [HashingEmbedder.model_validate(options) for options in hashing]
    embedders += [TeiEmbedder.model_validate({"url": "http://h", "model": "m"} | options) for options in tei]
    versions = [Version(embedder=embedder, dimensions=8) for embedder in embedders]
    assert len({envelope_of(collection, version).fingerprint for version in versions}) == len(hashing) + len(tei)


def test_find_config_says_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CROSSFADE_CONFIG", raising=False)
    with pytest.raises(ConfigurationError) as caught:
        find_config(None)
    for place in ("--config: not given", "CROSSFADE_CONFIG: not set", str(tmp_path / "config" / "crossfade.yaml")):
        assert place in caught.value.message
    default = tmp_path / "config" / "crossfade.yaml"
    default.parent.mkdir()
    default.touch()
    assert find_config(None) == Path("config/crossfade.yaml")
    monkeypatch.setenv("CROSSFADE_CONFIG", str(tmp_path / "gone.yaml"))
    with pytest.raises(ConfigurationError, match=r"gone\.yaml"):
        find_config(None)
    assert find_config(default) == default


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load(tmp_path / "nowhere.yaml")
    binary = tmp_path / "b.yaml"
    binary.write_bytes(b"kafka: \xff")
    with pytest.raises(ConfigurationError, match="not UTF-8"):
        load(binary)
