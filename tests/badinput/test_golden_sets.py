"""Golden sets that nobody can judge by: file, line, what is wrong and what is wanted; nothing is left out silently.

Parsed here, and through the real command, which must end with status 2 before it asks any service.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from connectors.errors import ConfigurationError
from streams.cli import cli
from streams.migration import golden as module
from streams.migration.golden import GoldenSet, parse_jsonl, parse_trec, read_golden

SECRET = "CANARYq7f3"  # stands for a query's or a document's text: no error may show it
GOOD = b'{"id": "q0", "query": "words", "relevant": {"a": 1}}\n'
BASE = """\
kafka: {bootstrap_servers: "127.0.0.1:1"}
weaviate: {http: "http://127.0.0.1:1", grpc: "127.0.0.1:2"}
collections:
  docs:
    topic: documents
    text: {fields: [text]}
    versions: {v1: {embedder: {provider: hashing}, dimensions: 64}}
"""

LINES: dict[str, tuple[bytes, str, str]] = {
    # name: the second line, what is wrong with it, what is wanted
    "no-json": (b"{'id': 'CANARYq7f3'}", "is no JSON", '{"id": "q1"'),
    "half-a-line": (b'{"id": "q1", "query": "CANARYq7f3', "is no JSON", '{"id": "q1"'),
    "a-list": (b'["q1", "CANARYq7f3"]', "is no JSON object", '{"id": "q1"'),
    "a-number": (b"7", "is no JSON object", '{"id": "q1"'),
    "deeper-than-anyone-reads": (b"[" * 100_000, "is no JSON", '{"id": "q1"'),
    "no-id": (b'{"query": "CANARYq7f3", "relevant": {"a": 1}}', "has no id", '{"id": "q1"'),
    "no-query": (b'{"id": "q1", "relevant": {"a": 1}}', "has no query", '"query": "some words"'),
    "no-relevant": (b'{"id": "q1", "query": "CANARYq7f3"}', "has no relevant", '"relevant": {"document key": 1}'),
    "misspelt": (b'{"id": "q1", "query": "x", "relevance": {"a": 1}}', "has no relevant", '"relevant"'),
    "empty-id": (b'{"id": "", "query": "x", "relevant": {"a": 1}}', "id is no text", '"id": "q1"'),
    "id-true": (b'{"id": true, "query": "x", "relevant": {"a": 1}}', "id is no text", '"id": "q1"'),
    "blank-query": (b'{"id": "q1", "query": " \\n", "relevant": {"a": 1}}', "query is no text", '"query"'),
    "query-a-list": (b'{"id": "q1", "query": ["CANARYq7f3"], "relevant": {"a": 1}}', "query is no text", '"query"'),
    "endless-query": (
        json.dumps({"id": "q1", "query": SECRET * 2000, "relevant": {"a": 1}}).encode(),
        "query is longer than 10,000 characters",
        "what a person would type",
    ),
    "half-a-character": (b'{"id": "q1", "query": "\\ud800", "relevant": {"a": 1}}', "lone surrogate", "UTF-8"),
    "half-a-character-in-a-key": (b'{"id": "q1", "query": "x", "relevant": {"\\udc80": 1}}', "lone surrogate", "UTF-8"),
    "relevant-a-list": (b'{"id": "q1", "query": "x", "relevant": ["a"]}', "relevant is no object", "grade"),
    "grade-a-text": (b'{"id": "q1", "query": "x", "relevant": {"a": "1"}}', "of 'a' is no number", "grade"),
    "grade-true": (b'{"id": "q1", "query": "x", "relevant": {"a": true}}', "of 'a' is no number", "grade"),
    "grade-null": (b'{"id": "q1", "query": "x", "relevant": {"a": null}}', "of 'a' is no number", "grade"),
    "grade-negative": (b'{"id": "q1", "query": "x", "relevant": {"a": -1}}', "'a' is not between 0", "0 or more"),
    "grade-nan": (b'{"id": "q1", "query": "x", "relevant": {"a": NaN}}', "'a' is not between 0", "0 or more"),
    "grade-infinite": (b'{"id": "q1", "query": "x", "relevant": {"a": 1e999}}', "'a' is not between 0", "0 or more"),
    "grade-huge": (b'{"id": "q1", "query": "x", "relevant": {"a": 1' + b"0" * 400 + b"}}", "is not between", "0 or"),
    "grade-of-5000-digits": (b'{"id": "q1", "query": "x", "relevant": {"a": ' + b"9" * 5000 + b"}}", "is no JSON", ""),
    "empty-key": (b'{"id": "q1", "query": "x", "relevant": {"": 1}}', "an empty key", "document key"),
    "a-document-twice": (b'{"id": "q1", "query": "x", "relevant": {"a": 1, "a": 2}}', "'a' stands there twice", "once"),
    "a-field-twice": (b'{"id": "q1", "id": "q2", "query": "x", "relevant": {}}', "'id' stands there twice", "once"),
    "id-again": (GOOD, "id 'q0' stands in line 1 already", "distinct ids"),
    "slice-a-number": (b'{"id": "q1", "query": "x", "relevant": {"a": 1}, "slice": 3}', "slice is no text", "slice"),
    "slices-mixed": (b'{"id": "q1", "query": "x", "relevant": {"a": 1}, "slice": ["a", 3]}', "slice is no text", ""),
    "not-utf-8": (b'{"id": "q1", "query": "CANARYq7f3 \xff", "relevant": {"a": 1}}', "is not UTF-8", "UTF-8"),
}  # fmt: skip


def refused(read: Callable[[], object]) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        read()
    assert caught.value.next_step
    assert SECRET not in str(caught.value)
    assert SECRET not in repr(caught.value.__cause__)
    return caught.value


@pytest.mark.parametrize("name", LINES)
def test_a_bad_line(name: str) -> None:
    line, problem, wanted = LINES[name]
    message = refused(lambda: parse_jsonl(GOOD + line + b"\n", "set.jsonl")).message
    assert message.startswith("set.jsonl, line 2: ")
    assert problem in message
    assert "; wanted: " in message
    assert wanted in message.partition("; wanted: ")[2]
    assert len(message) < 1000


def test_every_bad_line_is_counted_and_the_first_five_are_shown() -> None:
    message = refused(lambda: parse_jsonl(GOOD + b"{}\n" * 8, "set.jsonl")).message
    assert [f"line {at}: has no id" in message for at in range(2, 8)] == [True] * 5 + [False]
    assert message.endswith("... and 3 more lines")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is empty"),
        (b"\n \n", "it is empty"),
        (b'{"id": "q1", "query": "x", "relevant": {"a": 0}}', "1 query has no relevant document"),
    ],
)
def test_nothing_to_judge_by(data: bytes, reason: str) -> None:
    assert reason in refused(lambda: parse_jsonl(data, "set.jsonl")).message


TREC: dict[str, tuple[bytes, bytes, str]] = {
    "three-columns": (b"1\tx\n", b"1 0 a 1\n1 0 a\n", "qrels.txt, line 2: has 3 columns"),
    "a-run-instead-of-qrels": (b"1\tx\n", b"1 Q0 a 1 9.5 run\n", "qrels.txt, line 1: has 6 columns"),
    "grade-a-word": (b"1\tx\n", b"1 0 a relevant\n", "qrels.txt, line 1: the grade of 'a' is no whole number"),
    "grade-a-fraction": (b"1\tx\n", b"1 0 a 0.5\n", "qrels.txt, line 1: the grade of 'a' is no whole number"),
    "grade-huge": (b"1\tx\n", b"1 0 a 100000\n", "qrels.txt, line 1: the grade of 'a' is above 1000"),
    "judged-twice": (b"1\tx\n", b"1 0 a 1\n1 0 a 2\n", "qrels.txt, line 2: document 'a' of query '1' is judged a"),
    "no-tab": (b"1 x\n", b"1 0 a 1\n", "topics.tsv, line 1: is no topic"),
    "two-tabs": (b"1\tx\ty\n", b"1 0 a 1\n", "topics.tsv, line 1: is no topic"),
    "no-query": (b"1\t \n", b"1 0 a 1\n", "topics.tsv, line 1: the query is no text"),
    "topic-twice": (b"1\tx\n1\ty\n", b"1 0 a 1\n", "topics.tsv, line 2: id '1' stands there already"),
    "not-utf-8": (b"1\t\xff\n", b"1 0 a 1\n", "topics.tsv, line 1: is not UTF-8"),
    "others-are-judged": (b"1\tx\n", b"7 0 a 1\n", "topics.tsv: holds no query to judge by: 1 query has no relevant"),
    "none-is-relevant": (b"1\tx\n", b"1 0 a 0\n1 0 b -1\n", "topics.tsv: holds no query to judge by"),
}  # fmt: skip


@pytest.mark.parametrize("name", TREC)
def test_bad_trec_files(name: str) -> None:
    topics, qrels, problem = TREC[name]
    message = refused(lambda: parse_trec(topics, qrels, "topics.tsv", "qrels.txt")).message
    assert problem in message


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "there is no such file" in refused(lambda: read_golden(tmp_path / "absent.jsonl")).message
    assert "topics.tsv: there is no such file" in refused(lambda: read_golden(tmp_path)).message
    (tmp_path / "large.jsonl").write_bytes(GOOD * 3)
    monkeypatch.setattr(module, "MOST_BYTES", 100)
    assert "is larger than" in refused(lambda: read_golden(tmp_path / "large.jsonl")).message
    (tmp_path / "folder" / "topics.tsv").mkdir(parents=True)
    assert "cannot be read" in refused(lambda: read_golden(tmp_path / "folder")).message


def test_more_queries_than_anyone_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_QUERIES", 2)
    data = b"".join(GOOD.replace(b"q0", b"q%d" % at) for at in range(3))
    assert "3 queries, more than 2" in refused(lambda: parse_jsonl(data, "set.jsonl")).message


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(one: bytes, other: bytes) -> None:
    for read in (partial(parse_jsonl, GOOD + one, "g"), partial(parse_trec, one, other, "t", "q")):
        with suppress(ConfigurationError):
            assert isinstance(read(), GoldenSet)


@pytest.mark.parametrize("name", ["id-again", "grade-of-5000-digits", "no-json"])
def test_the_command_refuses_before_it_asks_any_service(tmp_path: Path, name: str) -> None:
    line, problem, _ = LINES[name]
    (tmp_path / "crossfade.yaml").write_text(BASE)
    (tmp_path / "set.jsonl").write_bytes(GOOD + line + b"\n")
    arguments = ["evaluate", "docs", "v1", "--golden", str(tmp_path / "set.jsonl")]
    result = CliRunner().invoke(cli, ["--config", str(tmp_path / "crossfade.yaml"), *arguments], prog_name="crossfade")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert f"{tmp_path / 'set.jsonl'}, line 2: {problem}" in result.stderr
    assert "\n  next: correct the golden set" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["docs", "v1", "-k", "0"], "0 is not in the range"),
        (["docs", "v1", "-k", "5000"], "5000 is not in the range"),
        (["docs", "v1", "--against", "v1"], "would compare v1 with itself"),
        (["docs", "v1", "--threshold", "high"], "'high' is not a valid float"),
        (["docs", "--json"], "Missing argument 'VERSION'"),
        (["docs", "--golden"], "Option '--golden' requires an argument"),
        (["absent", "v1"], "there is no collection absent"),
    ],
)
def test_wrong_arguments(tmp_path: Path, arguments: list[str], said: str) -> None:
    (tmp_path / "crossfade.yaml").write_text(BASE)
    config = ["--config", str(tmp_path / "crossfade.yaml")]
    result = CliRunner().invoke(cli, [*config, "evaluate", *arguments], prog_name="crossfade")
    assert result.exit_code in (1, 2)
    assert said in result.stderr
