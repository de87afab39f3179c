"""What `init` writes: it must load as what was said, keep references as references, and explain itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from streams import config
from streams.config import Settings
from streams.field_sample import SeenField
from streams.setup import (
    Draft,
    Model,
    collection_name,
    document_topics,
    is_reference,
    is_secret_setting,
    prefixes,
    yaml_text,
)

HASHING = Model("hashing", 256)
TEI = Model(
    "tei",
    768,
    url="http://127.0.0.1:8081",
    model="intfloat/multilingual-e5-base",
    revision="d13f1b27",
    api_key="${SETUP_KEY}",
    price=0.02,
    max_batch=16,
    max_tokens=512,
    document_prefix="passage: ",
    query_prefix="query: ",
)
DRAFT = Draft("articles", "articles", "v1", ("title", "text"), {"title": "text", "year": "int"}, HASHING)
SEEN = (
    SeenField("title", "text", "string", 1.0, 40.0, 6.0),
    SeenField("year", "int", "int", 0.5, 0.0, 0.0),
    SeenField("category", "keyword", "string", 0.98, 8.0, 1.0),
    SeenField("tags", None, "array", 1.0, 0.0, 0.0),
)


def loaded(folder: Path, draft: Draft) -> Settings:
    path = folder / "crossfade.yaml"
    path.write_text(yaml_text(draft, SEEN))
    return config.load(path)


def test_the_least_loads_and_uses_local_services(tmp_path: Path) -> None:
    settings = loaded(tmp_path, DRAFT)
    collection = settings.collection("articles")
    assert (settings.kafka.bootstrap_servers, settings.weaviate.http) == (None, None)
    assert (collection.topic, collection.text.fields, dict(collection.properties)) == (
        "articles",
        ["title", "text"],
        {"title": "text", "year": "int"},
    )
    assert collection.version("v1").dimensions == 256


def test_everything_that_was_said_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SETUP_KEY", "sk-very-secret")
    monkeypatch.setenv("SETUP_PASSWORD", "hunter2")
    (tmp_path / "weaviate.key").write_text("wv-key\n")
    draft = replace(
        DRAFT,
        model=TEI,
        kafka="kafka-1:9092,kafka-2:9092",
        client={"security.protocol": "SASL_SSL", "sasl.password": "${SETUP_PASSWORD}"},
        weaviate_http="https://weaviate.example.com",
        weaviate_grpc="weaviate.example.com:50051",
        weaviate_api_key="file:weaviate.key",
    )
    settings = loaded(tmp_path, draft)
    version = settings.collection("articles").version("v1")
    (endpoint,) = version.endpoints
    assert settings.kafka.bootstrap_servers == draft.kafka
    assert settings.kafka.client == {"security.protocol": "SASL_SSL", "sasl.password": "hunter2"}
    assert settings.weaviate.api_key is not None
    assert settings.weaviate.api_key.get_secret_value() == "wv-key"
    assert endpoint.api_key is not None
    assert endpoint.api_key.get_secret_value() == "sk-very-secret"
    assert (endpoint.url, endpoint.model, endpoint.revision, endpoint.max_batch, endpoint.price_per_million_tokens) == (
        TEI.url,
        TEI.model,
        TEI.revision,
        16,
        0.02,
    )
    assert (version.dimensions, version.document_prefix, version.query_prefix) == (768, "passage: ", "query: ")
    text = (tmp_path / "crossfade.yaml").read_text()
    for secret in ("sk-very-secret", "hunter2", "wv-key"):
        assert secret not in text


def test_fields_that_were_not_chosen_stand_there_as_comments() -> None:
    lines = [line.strip() for line in yaml_text(DRAFT, SEEN).splitlines()]
    (category,) = [line for line in lines if "category" in line]
    assert category.startswith("# category: keyword")
    assert category.endswith("# in 98% of the sampled documents")
    assert not any("tags" in line for line in lines)


def test_every_key_but_the_obvious_has_a_comment() -> None:
    for model in (HASHING, TEI):
        text = yaml_text(replace(DRAFT, model=model), SEEN)
        for key in ("topic", "fields", "properties", "store_text", "dimensions", "metric", "normalize", "provider"):
            (line,) = [one for one in text.splitlines() if one.strip().startswith(f"{key}:")]
            assert "  # " in line, line


@given(
    fields=st.lists(st.text(min_size=1), min_size=1, max_size=3, unique=True),
    model=st.text(min_size=1),
    prefix=st.text(),
)
@example(fields=["${HOME}", "$${HOME}", "a: b", "# no", "null"], model="${NOT_SET}", prefix="passage:\t${")
def test_any_text_is_written_so_that_it_comes_back(
    tmp_path_factory: pytest.TempPathFactory, fields: list[str], model: str, prefix: str
) -> None:
    if any("\ud800" <= c <= "\udfff" for c in "".join([*fields, model, prefix])):
        return  # no UTF-8 file can hold it, and no JSON document either
    draft = replace(DRAFT, fields=fields, model=replace(TEI, model=model, document_prefix=prefix or "x", api_key=""))
    settings = loaded(tmp_path_factory.mktemp("any"), draft)
    collection = settings.collection("articles")
    version = collection.version("v1")
    assert collection.text.fields == fields
    assert version.endpoints[0].model == model
    assert version.document_prefix == (prefix or "x")


@pytest.mark.parametrize("text", ["${NAME}", "${_a1}", "file:/run/secrets/key", "file:key"])
def test_references(text: str) -> None:
    assert is_reference(text)


@pytest.mark.parametrize("text", ["sk-abc", "$NAME", "${NAME}x", "${}", "file:", "", "${NAME:-sk-abc}"])
def test_what_may_be_the_secret_itself(text: str) -> None:
    assert not is_reference(text)


def test_settings_that_hold_a_secret() -> None:
    names = ("sasl.password", "ssl.key.password", "sasl.oauthbearer.client.secret", "ssl.key.pem")
    assert all(map(is_secret_setting, names))
    assert not any(map(is_secret_setting, ("security.protocol", "sasl.username", "ssl.ca.location")))


def test_crossfades_own_topics_are_hidden_whatever_their_prefix() -> None:
    own = [f"{p}.{n}" for p in ("crossfade", "a.b") for n in ("commands", "state", "progress", "journal")]
    yours = ["articles", "shop.state", "a.b.documents"]
    assert document_topics([*own, *yours, "crossfade.dead-letters", "__consumer_offsets", "_schemas"]) == sorted(yours)


@pytest.mark.parametrize(
    ("topic", "name"),
    [
        ("articles", "articles"),
        ("prod.shop.Article_Changes", "article-changes"),
        ("...", "documents"),
        ("x" * 99, "x" * 48),
    ],
)
def test_a_collection_named_after_its_topic(topic: str, name: str) -> None:
    assert collection_name(topic) == name


def test_prefixes_of_known_models() -> None:
    assert prefixes("intfloat/multilingual-e5-base") == ("passage: ", "query: ")
    assert prefixes("intfloat/e5-mistral-7b-instruct") == ("", "")
    assert prefixes("text-embedding-3-small") == ("", "")
