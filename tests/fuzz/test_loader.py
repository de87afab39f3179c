"""Whatever a configuration file holds: it loads, or the loader says where it is wrong, and never shows a secret.

CROSSFADE_FUZZ_CASES: as in test_parser.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.errors import ConfigurationError
from streams import config
from streams.config import Settings, envelope_of, schema_of
from tests.fuzz.edits import edited, many

SECRET = "hunter2SECRET"
SMALL = b"""\
kafka: {bootstrap_servers: "h:1", client: {sasl.password: hunter2SECRET}}
weaviate: {http: "https://h:1", grpc: "h:2", api_key: "${CF_SECRET}"}
collections:
  my-docs:
    topic: docs
    alias: Docs
    text: {fields: [title, text], template: "{title}: {text}"}
    properties: {tag: keyword, day: date}
    versions:
      v1: {embedder: {provider: hashing, word_ngrams: [1, 2]}, dimensions: 64}
      v2: {embedder: {provider: tei, url: "http://h", model: m, api_key: file:secret}, dimensions: 8, replay_rate: 2.5}
"""
KEYS = [
    *("kafka", "weaviate", "collections", "docs", "topic", "alias", "text", "fields", "template", "properties"),
    *("versions", "v1", "embedder", "provider", "dimensions", "client", "api_key", "http", "grpc", "name"),
    *("1", "null", "~", "on"),
]
PROBLEM = re.compile(r"(?P<file>[^\n]+?):(?P<line>[0-9]+): .+wanted.*", re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    place = tmp_path_factory.mktemp("configuration")
    (place / "secret").write_text(SECRET)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CF_SECRET", SECRET)
        yield place


def check(folder: Path, raw: bytes) -> None:
    path = folder / "c.yaml"
    path.write_bytes(raw)
    try:
        settings = config.load(path)
    except ConfigurationError as error:
        refused(path, raw, error)
    else:
        usable(settings)


def refused(path: Path, raw: bytes, error: ConfigurationError) -> None:
    assert error.next_step
    if not error.message.endswith("is not UTF-8"):
        lines = len(raw.decode().splitlines()) + 1
        for problem in re.split(f"(?m)^(?={re.escape(str(path))}:)", error.message)[1:]:
            found = PROBLEM.fullmatch(problem.strip())
            assert found, error.message
            assert 1 <= int(found["line"]) <= lines
    where_it_belongs = raw.count(b"sasl.password: hunter2SECRET}")
    if raw.count(SECRET.encode()) == where_it_belongs:  # else it may have become a key, which errors do name
        assert SECRET not in "".join(traceback.format_exception(error))


def usable(settings: Settings) -> None:
    """What loads can be used: nothing is left to fail later on, and nothing shows a secret."""
    assert SECRET not in repr(settings)
    for collection in settings.collections.values():
        schema_of(collection)
        for version in collection.versions.values():
            envelope = envelope_of(collection, version)
            assert type(envelope).from_json(envelope.canonical_json()) == envelope


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (b"docs", b"do\x00cs", 4),
        (b"64", b"9" * 5000, 10),
        (b"64", b"!!int many", 10),
        (b"64", b"!!bool many", 10),
        (b"64", b"[" * 3000 + b"]" * 3000, 1),
        (b"title, text", b"\xed\xa0\x80", 1),
    ],
    ids=["control-character", "digits", "marked-int", "marked-bool", "depth", "surrogate"],
)
def test_what_the_fuzzer_found(folder: Path, old: bytes, new: bytes, line: int) -> None:
    check(folder, SMALL.replace(old, new, 1))
    with pytest.raises(ConfigurationError) as caught:
        config.load(folder / "c.yaml")
    assert f"c.yaml:{line}: " in caught.value.message or "is not UTF-8" in caught.value.message


@many
@given(raw=edited([SMALL]))
def test_damaged_files(folder: Path, raw: bytes) -> None:
    check(folder, raw)


@many
@given(raw=st.binary(max_size=100) | st.text(max_size=100).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_file(folder: Path, raw: bytes) -> None:
    check(folder, raw)


SCALARS = (
    "1 -1 0 1.5 .nan .inf 1e400 true null [] {} [a] hashing tei http://u:p@h h:1 h:99999 A ${CF_NONE} "
    "Docs_v1_1_0123456789ab 2024-01-01"
)
VALUES = st.sampled_from([*SCALARS.split(" "), "{a: 1}", "''", "9" * 400, "9" * 5000])


@st.composite
def trees(draw: st.DrawFn, depth: int = 4) -> str:
    if depth == 0 or draw(st.integers(0, 5)) == 0:
        return draw(VALUES)
    pairs = draw(st.lists(st.tuples(st.sampled_from(KEYS), trees(depth - 1)), max_size=4))
    return "{" + ", ".join(f"{key!r}: {value}" for key, value in pairs) + "}"


@many
@given(tree=trees(), under=st.sampled_from(["", "kafka: ", "weaviate: ", "collections: {docs: ", "collections: "]))
def test_any_tree(folder: Path, tree: str, under: str) -> None:
    check(folder, (under + tree + "}" * under.count("{")).encode())
