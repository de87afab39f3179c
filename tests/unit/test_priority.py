"""The list of searched keys: its forms, its weights, and errors that name file, line and what is wanted."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from connectors.errors import ConfigurationError
from connectors.memory.log import MemoryLog
from streams.config_operation import Category, Priority
from streams.documents import DocumentSchema, key_digest
from streams.priority import Order, Searched, read_file, read_topic, weigh
from streams.replay import plan_scan

SCHEMA = DocumentSchema("docs", ("text",), properties={"kind": "keyword"})
DAY_MS = 86_400_000


def test_a_line_is_json_or_a_key_with_a_count(tmp_path: Path) -> None:
    path = tmp_path / "searched"
    path.write_text('{"key": "a", "count": 3, "at_ms": 5}\n\nb\t2.5\nc c\n', encoding="utf-8")
    assert read_file(path) == [Searched(b"a", 3.0, 5), Searched(b"b", 2.5), Searched(b"c c", 1.0)]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"key": 3}', "key is not text"),
        ('{"key": "a", "count": -1}', "count is not a number of 0 or more"),
        ('{"key": "a", "count": true}', "count is not a number of 0 or more"),
        ('{"key": "a", "count": "many"}', "count is not a number of 0 or more"),
        ('{"key": "a", "at_ms": 1.5}', "at_ms is not a whole number of milliseconds"),
        ('{"key": "a", "counts": 1}', "unknown counts"),
        ('{"key": "a"', "is not JSON"),
        ("a\tmany", "behind the tab is not a number"),
        ("a\tinf", "count is not a number of 0 or more"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, problem: str) -> None:
    path = tmp_path / "searched"
    path.write_text(f"first\n{line}\n", encoding="utf-8")
    with pytest.raises(ConfigurationError, match=problem) as caught:
        read_file(path)
    assert f"{path}:2: " in caught.value.message
    assert "wanted" in caught.value.next_step


def test_a_file_that_is_not_there_or_not_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        read_file(tmp_path / "nothing")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="not UTF-8"):
        read_file(tmp_path / "bytes")


def test_counts_of_a_key_are_added_and_halve_with_age() -> None:
    rows = [Searched(b"a", 8.0, 10 * DAY_MS), Searched(b"b", 8.0, 0), Searched(b"a", 1.0), Searched(b"c", 0.0)]
    assert weigh(rows, 5.0) == {key_digest(b"a"): 9.0, key_digest(b"b"): 2.0}
    assert weigh(rows, None) == {key_digest(b"a"): 9.0, key_digest(b"b"): 8.0}
    assert weigh([], 5.0) == {}


async def test_a_topic_of_counts_is_read_newest_first_and_what_is_no_count_is_left_out() -> None:
    log = MemoryLog()
    log.create_topic("counts", 2)
    for key, value in ((b"a", b"3"), (b"b", b'{"count": 2}'), (b"c", b"x"), (b"d", b"9"), (b"d", None), (b"a", b"4")):
        log.append("counts", key, value)
    found = {row.key: row.searches for row in await read_topic(log, "counts")}
    assert found == {b"a": 4.0, b"b": 2.0}


async def test_a_category_weighs_the_listed_keys(tmp_path: Path) -> None:
    log = MemoryLog()
    log.create_topic("docs", 1)
    for key, kind in (("a", "faq"), ("b", "news"), ("c", "old"), ("d", "faq")):
        log.append("docs", key.encode(), orjson.dumps({"text": "x", "kind": kind}))
    path = tmp_path / "searched"
    path.write_text("a\t1\nb\t3\nc\t100\nabsent\t9\n", encoding="utf-8")
    priority = Priority(keys=path, category=Category(field="kind", weights={"faq": 10, "old": 0.01}))
    index = await plan_scan(log, "docs", 0, 4)
    passes = await Order(priority, log, "docs", SCHEMA).passes(0, index, None)
    listed = passes[0]
    assert (listed.tier, listed.offsets.tolist()) == ("listed", [0, 1, 2])
    assert listed.weights is not None
    assert listed.weights.tolist() == [10.0, 3.0, 1.0]
    assert (await Order(priority, log, "docs", SCHEMA).passes(0, index, ["newest"])).hash == "none"
