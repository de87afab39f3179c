"""A bad configuration through the real command: file and line, key, value wanted, next step, exit status."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from connectors.services import Addresses
from streams.cli import cli
from tests.badinput.speak import crossfade
from tests.conftest import MakeTopic, Unique
from tests.deployment import COLLECTION, deployed

SECRET = "hunter2SECRET"
BASE = """\
kafka: {bootstrap_servers: "127.0.0.1:1"}
collections:
  docs:
    topic: documents
    text: {fields: [text]}
    versions:
      v1: {embedder: {provider: hashing}, dimensions: 64}
"""
TEI = "{provider: tei, url: 'http://h', model: m}"
V1 = "v1: {embedder: {provider: hashing}, dimensions: 64}"

LOADER: dict[str, tuple[str, str, int, str, str]] = {
    # name: what is replaced, by what, line, key, the value wanted
    "unset-secret": (
        "{provider: hashing}",
        "{provider: tei, url: 'http://h', model: m, api_key: '${CF_NOT_SET}'}",
        7,
        "collections.docs.versions.v1.embedder.api_key: the environment variable CF_NOT_SET is unset or empty",
        "export CF_NOT_SET",
    ),
    "empty-secret": (
        "{provider: hashing}",
        "{provider: tei, url: 'http://h', model: m, api_key: '${CF_EMPTY}'}",
        7,
        "the environment variable CF_EMPTY is unset or empty",
        "export CF_EMPTY",
    ),
    "secret-file-absent": (
        "{provider: hashing}",
        "{provider: tei, url: 'http://h', model: m, api_key: 'file:nowhere'}",
        7,
        "embedder.api_key: the secret file",
        "file:/path/of/a/readable/file",
    ),
    "secret-no-header-can-hold": (
        "{provider: hashing}",
        "{provider: tei, url: 'http://h', model: m, api_key: '${CF_TWO_LINES}'}",
        7,
        "embedder.api_key: is empty, or has spaces or characters no HTTP header can hold",
        "the key alone",
    ),
    "credentials-in-url": (
        "{provider: hashing}",
        f"{{provider: tei, url: 'http://me:{SECRET}@h', model: m}}",
        7,
        "embedder.url: holds credentials in a URL",
        "the key in api_key",
    ),
    "credentials-in-weaviate": (
        "collections:",
        f"weaviate: {{http: 'https://me:{SECRET}@h', grpc: 'h:1'}}\ncollections:",
        2,
        "weaviate.http: holds credentials in a URL",
        "api_key",
    ),
    "credentials-in-brokers": (
        "127.0.0.1:1",
        f"me:{SECRET}@h:1",
        1,
        "kafka.bootstrap_servers: holds credentials",
        "host:port",
    ),
    "alias-is-a-space": (
        "topic: documents",
        "topic: documents\n    alias: Docs_v1_1_0123456789ab",
        5,
        "collections.docs.alias: could be the name of a space",
        "_version_epoch_fingerprint",
    ),
    "alias-of-two": (
        "  docs:",
        "  other: {topic: t, alias: Docs, text: {fields: [a]}}\n  docs:",
        4,
        "collections.docs: has the alias of collection other",
        "an alias of its own",
    ),
    "one-fingerprint": (
        V1,
        f"{V1}\n      v2{V1[2:]}",
        8,
        "collections.docs.versions.v2: is the same model as version v1",
        "versions that differ in their model",
    ),
    "own-topic": (
        "topic: documents",
        "topic: crossfade.state",
        4,
        "collections.docs.topic: is a topic of Crossfade's own",
        "the topic of your documents",
    ),
    "reserved-property": (
        "    versions:",
        "    properties: {cf_offset: int}\n    versions:",
        6,
        "collections.docs.properties.cf_offset: is reserved",
        "not beginning with cf_",
    ),
    "property-type": (
        "    versions:",
        "    properties: {price: money}\n    versions:",
        6,
        "collections.docs.properties.price: 'money' does not fit",
        "'text', 'keyword', 'int'",
    ),
    "unknown-key": (
        "topic: documents",
        "topic: documents\n    max_record_byte: 5",
        5,
        "collections.docs.max_record_byte: unknown key; did you mean max_record_bytes?",
        "one of: topic, alias, text",
    ),
    "key-twice": (
        "topic: documents",
        "topic: documents\n    topic: others",
        5,
        "is there twice, first on line 4",
        "once",
    ),
    "dimensions-word": (
        "dimensions: 64",
        "dimensions: many",
        7,
        "versions.v1.dimensions: 'many' does not fit",
        "integer",
    ),
    "dimensions-absent": (", dimensions: 64", "", 7, "versions.v1.dimensions: is missing", "a value"),
    "not-yaml": (
        "topic: documents",
        "topic: [documents",
        5,
        "not YAML: expected ',' or ']', but got ':'",
        "a YAML file",
    ),
    "a-list": (
        "    text: {fields: [text]}",
        "    text: [fields]",
        5,
        "docs.text: is not a mapping",
        "keys with values",
    ),
    "client-setting-of-ours": (
        '"127.0.0.1:1"}',
        '"127.0.0.1:1", client: {isolation.level: read_uncommitted}}',
        1,
        "kafka.client: sets isolation.level, which Crossfade sets itself",
        "other librdkafka settings only",
    ),
    "deadline-beyond-session": (
        "collections:",
        "weaviate: {write_timeout_s: 40}\ncollections:",
        2,
        "weaviate.write_timeout_s: leaves too little of kafka.session_timeout_s",
        "at most 22.5",
    ),
}


@pytest.mark.parametrize("name", LOADER)
def test_what_the_loader_refuses(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new, line, problem, wanted = LOADER[name]
    assert BASE.count(old) == 1
    monkeypatch.delenv("CF_NOT_SET", raising=False)
    monkeypatch.setenv("CF_EMPTY", "")
    monkeypatch.setenv("CF_TWO_LINES", f"{SECRET}\nx")
    path = tmp_path / "crossfade.yaml"
    path.write_text(BASE.replace(old, new))
    for words in (["status", "docs"], ["--debug", "worker"], ["verify", "docs", "v1", "--json"]):
        result = CliRunner().invoke(cli, ["--config", str(path), *words])
        assert result.exit_code == 2, result.output
        assert result.stdout == ""
        (guilty,) = [row for row in result.stderr.splitlines() if row.startswith("error: ")]
        assert guilty.startswith(f"error: {path}:{line}: ")
        assert problem in guilty
        assert wanted in guilty.partition("wanted")[2]
        assert f"  next: correct {path}" in result.stderr
        assert SECRET not in result.output


def test_no_file_says_where_it_looked(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["--config", str(tmp_path / "no.yaml"), "status"])
    assert result.exit_code == 2
    assert f"--config: {tmp_path / 'no.yaml'}" in result.stderr
    assert "next: " in result.stderr


def test_a_wrong_name_is_a_failure_not_a_misuse(tmp_path: Path) -> None:
    path = tmp_path / "crossfade.yaml"
    path.write_text(BASE)
    result = CliRunner().invoke(cli, ["--config", str(path), "verify"])
    assert result.exit_code == 2  # usage
    result = CliRunner().invoke(cli, ["--config", str(path), "status", "docs"])
    assert result.exit_code == 1  # nobody answers at 127.0.0.1:1
    assert "no Kafka broker answered at 127.0.0.1:1" in result.stderr
    assert "next: start it" in result.stderr


async def test_topics_and_endpoints_that_do_not_fit(
    services: Addresses, tmp_path: Path, unique: Unique, make_topic: MakeTopic
) -> None:
    """Refused by the controller, each with the next step; then the step is taken and the build begins."""
    topic = make_topic(config={"cleanup.policy": "delete"})
    collection = {"text": {"fields": ["text"]}}
    async with deployed(services, tmp_path, unique("cf"), topic, unique("Cf"), collection) as d:  # type: ignore[arg-type]
        d.start_worker()
        await d.until_attended()
        d.add_version("v1", {"embedder": {"provider": "hashing"}, "dimensions": 16})
        said = await crossfade(d, "start", COLLECTION, "v1")
        assert "-> 1\n" in said
        assert f"error: topic {topic} is not compacted (cleanup.policy=delete)" in said
        assert f"next: kafka-configs --alter --topic {topic} --add-config cleanup.policy=compact" in said
        d.raw["collections"][COLLECTION]["topic"] = f"{topic}-nowhere"  # type: ignore[index,call-overload]
        d._write()
        said = await crossfade(d, "start", COLLECTION, "v1")
        assert "-> 1\n" in said
        assert f"{topic}-nowhere" in said
        assert "next: create the topic" in said
        said = await crossfade(d, "start", COLLECTION, "v7")
        assert "-> 1\n" in said
        assert "error: collection docs has no version v7" in said
        said = await crossfade(d, "status", "nope")
        assert "-> 1\n" in said
        assert d.state.builds == {}
