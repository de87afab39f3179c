"""Golden sets that can be used: what is read of both forms, what is left out, and that it is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.migration.golden import GoldenQuery, load_golden, parse_jsonl, parse_trec, read_golden


def lines(*values: object) -> bytes:
    return "".join(json.dumps(value) + "\n" for value in values).encode()


def query(number: int, **more: object) -> dict[str, object]:
    return {"id": f"q{number}", "query": f"words {number}", "relevant": {"a": 1}, **more}


def test_jsonl() -> None:
    golden = parse_jsonl(
        lines(
            {"id": "q1", "query": "wing flutter", "relevant": {"a": 3, "b": 0, "c": 0.5}, "slice": "short"},
            {"id": 2, "query": "Grüße", "relevant": {"d e": 1}, "slice": ["long", "short", "long"]},
        ),
        "g.jsonl",
    )
    assert golden.queries == (
        GoldenQuery("q1", "wing flutter", {"a": 3.0, "c": 0.5}, ("short",)),
        GoldenQuery("2", "Grüße", {"d e": 1.0}, ("long", "short")),
    )
    assert golden.notes == ()
    assert golden.keys == ("a", "c", "d e")


def test_empty_lines_a_byte_order_mark_and_windows_line_ends_do_no_harm() -> None:
    data = b"\xef\xbb\xbf" + b"\r\n" + lines(query(1)).replace(b"\n", b"\r\n") + b"\r\n" + lines(query(2)).rstrip()
    assert [one.id for one in parse_jsonl(data, "g").queries] == ["q1", "q2"]


def test_separators_of_unicode_inside_a_text_end_no_line() -> None:
    line = json.dumps(query(1, query="a\u2028b\x85c"), ensure_ascii=False).encode()
    assert parse_jsonl(line, "g").queries[0].query == "a\u2028b\x85c"


def test_queries_without_a_relevant_document_are_left_out_and_named() -> None:
    golden = parse_jsonl(lines(query(1), query(2, relevant={}), query(3, relevant={"a": 0, "b": 0.0})), "g")
    assert [one.id for one in golden.queries] == ["q1"]
    assert golden.notes == ("2 queries have no relevant document and measure nothing: left out: 'q2', 'q3'",)


def test_fields_that_nobody_reads_are_named() -> None:
    golden = parse_jsonl(lines(query(1, slices=["a"]), query(2, source="clicks", slices=[])), "g")
    (note,) = golden.notes
    assert note.startswith("fields that nobody reads: ")
    assert {"'slices'", "'source'"} == set(note.removeprefix("fields that nobody reads: ").split(", "))


def test_trec(tmp_path: Path) -> None:
    (tmp_path / "topics.tsv").write_text("1\twing flutter\n\n2\theat, transfer\n3\tnothing judged\n")
    (tmp_path / "qrels.txt").write_text("1 0 a 3\n1 0 b 0\n1 Q0 c -1\n2\t0\td\t1\n9 0 a 1\n")
    golden = read_golden(tmp_path)
    assert golden.queries == (
        GoldenQuery("1", "wing flutter", {"a": 3.0}),
        GoldenQuery("2", "heat, transfer", {"d": 1.0}),
    )
    assert golden.name == str(tmp_path)
    left_out, strangers = golden.notes
    assert "1 query has no relevant document" in left_out
    assert "'3'" in left_out
    assert "judges 1 queries" in strangers
    assert "'9'" in strangers


async def test_a_file_is_read_in_a_thread(tmp_path: Path) -> None:
    path = tmp_path / "g.jsonl"
    path.write_bytes(lines(query(1)))
    assert await load_golden(path) == read_golden(path)


words = st.text(min_size=1, max_size=12).filter(lambda text: bool(text.strip()))


@given(st.dictionaries(words, st.tuples(words, st.dictionaries(words, st.integers(1, 4), min_size=1)), min_size=1))
def test_what_is_written_is_read(queries: dict[str, tuple[str, dict[str, int]]]) -> None:
    data = lines(*({"id": name, "query": text, "relevant": judged} for name, (text, judged) in queries.items()))
    golden = parse_jsonl(data, "g")
    assert [(one.id, one.query, dict(one.relevant)) for one in golden.queries] == [
        (name, text, {key: float(grade) for key, grade in judged.items()}) for name, (text, judged) in queries.items()
    ]
    assert golden.notes == ()


@given(st.dictionaries(st.integers(0, 99), st.dictionaries(st.integers(0, 99), st.integers(-2, 4)), min_size=1))
def test_both_forms_say_the_same(judged: dict[int, dict[int, int]]) -> None:
    judged[100] = {1: 1}
    jsonl = lines(
        *(
            {"id": f"{q}", "query": f"words {q}", "relevant": {f"d{doc}": max(0, g) for doc, g in grades.items()}}
            for q, grades in judged.items()
        )
    )
    topics = "".join(f"{q}\twords {q}\n" for q in judged)
    qrels = "".join(f"{q} 0 d{doc} {grade}\n" for q, grades in judged.items() for doc, grade in grades.items())
    trec = parse_trec(topics.encode(), qrels.encode(), "topics.tsv", "qrels.txt")
    assert trec.queries == parse_jsonl(jsonl, "g").queries


@pytest.mark.parametrize("ends", ["", "\n"])
def test_the_last_line_may_have_no_end(ends: str) -> None:
    assert len(parse_jsonl(lines(query(1), query(2)).rstrip() + ends.encode(), "g").queries) == 2
