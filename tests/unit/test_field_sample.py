"""What `init` sees in a sample of records: names, types, shares, lengths, and what it proposes."""

from __future__ import annotations

import json

import pytest

from connectors.protocols import JSON, Bounds, Record
from streams.documents import DocumentSchema, Put, parse
from streams.field_sample import (
    Stretch,
    declarable,
    look_at,
    parse_names,
    parse_types,
    propose_properties,
    propose_text,
    rejections,
    stretches,
)


def record(value: JSON, offset: int = 0) -> Record:
    return Record(0, offset, 0, b"key", None if value is None else json.dumps(value).encode())


def records(*values: JSON) -> list[Record]:
    return [record(value, offset) for offset, value in enumerate(values)]


def article(i: int) -> dict[str, JSON]:
    return {
        "id": i,
        "body": f"a text of some length that goes on for more than a few words, number {i}",
        "title": f"Title {i}",
        "section": ["news", "sport"][i % 2],
        "score": i / 2,
        "year": 1990 + i % 20,
        "draft": i % 3 == 0,
        "published": f"2024-01-{i % 28 + 1:02}T10:00:00Z",
        "tags": ["a", "b"],
        "code": f"c{i}",
        "Capital": "x",
    }


def test_types_are_those_every_value_fits() -> None:
    seen = {one.name: one for one in look_at(records(*(article(i) for i in range(60)))).fields}
    kinds = {name: one.kind for name, one in seen.items()}
    assert kinds == {
        "id": "int",
        "body": "text",
        "title": "text",
        "section": "keyword",
        "score": "number",
        "year": "int",
        "draft": "bool",
        "published": "date",
        "tags": None,
        "code": "keyword",
        "Capital": "keyword",
    }
    assert seen["tags"].shape == "array"
    assert seen["section"].mean_characters == 4.5
    assert seen["score"].mean_characters == 0


def test_one_value_that_does_not_fit_takes_the_type_away() -> None:
    whole = [article(i) for i in range(30)]
    whole[7]["year"] = "MCMXC"
    whole[8]["published"] = "2024-02-31T10:00:00Z"
    whole[9]["score"] = 2**60
    seen = {one.name: one for one in look_at(records(*whole)).fields}
    assert seen["year"].kind is None
    assert seen["year"].shape == "int, string"
    assert seen["published"].kind == "keyword"
    assert seen["score"].kind == "number"


@pytest.mark.parametrize("name", ["int", "number", "bool", "date", "text", "keyword"])
def test_a_type_it_finds_is_one_the_pipeline_takes(name: str) -> None:
    whole = [article(i) for i in range(40)]
    for one in look_at(records(*whole)).fields:
        if one.kind == name:
            schema = DocumentSchema("docs", ("body",), properties={one.name: one.kind})
            assert not rejections(records(*whole), schema)


def test_nulls_and_absent_fields_count_as_absent() -> None:
    seen = look_at(records({"a": "x"}, {"a": None}, {"b": 1}, {"a": "y", "c": None}))
    assert [(one.name, one.share) for one in seen.fields] == [("a", 0.5), ("b", 0.25)]


def test_deletes_and_what_is_no_document_are_counted() -> None:
    broken = Record(0, 9, 0, b"key", b"{not json")
    seen = look_at([*records({"a": 1}, None, [1], "text"), broken])
    assert (seen.records, seen.documents, seen.deletes, seen.unreadable) == (5, 1, 1, 3)


def test_envelopes_are_read_as_the_pipeline_reads_them() -> None:
    rows: list[JSON] = [
        {"op": "c", "before": None, "after": {"text": "one"}, "source": {}},
        {"payload": {"op": "u", "after": {"text": "two"}, "source": {}}, "schema": {}},
        {"op": "d", "before": {"text": "two"}, "after": None},
        {"op": "buy", "text": "plain"},
        {"payload": {"text": "inside"}, "text": "outside"},
    ]
    schema = DocumentSchema("docs", ("text",))
    for row in rows:
        seen, change = look_at([record(row)]), parse(b"key", json.dumps(row).encode(), schema)
        assert (seen.documents == 1) == isinstance(change, Put), row
        if isinstance(change, Put):
            assert "text" in [one.name for one in seen.fields]
    assert look_at(records(*rows)).enveloped == 2


def test_titles_come_first_and_then_prose_most_documents_have() -> None:
    rare: dict[str, JSON] = {**article(1), "note": "a remark of several words that hardly any document has"}
    seen = look_at(records(rare, *(article(i) for i in range(40))))
    assert propose_text(seen.fields) == ("title", "body")


def test_without_prose_the_longest_text_is_proposed_and_without_text_nothing() -> None:
    assert propose_text(look_at(records({"sku": "A1", "color": "dark green"}, {"sku": "B2"})).fields) == ("color",)
    assert propose_text(look_at(records({"n": 1})).fields) == ()


def test_properties_leave_out_what_is_embedded_has_no_type_or_no_possible_name() -> None:
    seen = look_at(records(*(article(i) for i in range(40))))
    assert propose_properties(seen.fields, ("title", "body")) == {
        "title": "text",
        "section": "keyword",
        "score": "number",
        "year": "int",
        "draft": "bool",
        "published": "date",
        "code": "keyword",
    }
    assert [declarable(name) for name in ("title", "Title", "id", "cf_x", "a b")] == [True, False, False, False, False]


def test_no_value_is_kept() -> None:
    assert "SECRET" not in repr(look_at(records({"text": "SECRET words in a text of several"}, {"text": "SECRET"})))


def test_the_oldest_and_the_newest_records_of_each_partition_are_looked_at() -> None:
    bounds = {0: Bounds(10, 1000), 1: Bounds(5, 5), 2: Bounds(0, 3)}
    found = stretches(bounds, 40)
    assert found == [Stretch(0, 10, 990, 10), Stretch(0, 990, 1000, 10), Stretch(2, 0, 3, 10)]
    assert stretches({0: Bounds(3, 3)}, 40) == []
    assert all(one.most == 1 for one in stretches({p: Bounds(0, 9) for p in range(50)}, 2))


def test_options_are_read_or_say_what_is_wanted() -> None:
    assert parse_names(" title, text ") == ("title", "text")
    assert parse_types("title:text, ns:x:keyword") == {"title": "text", "ns:x": "keyword"}
    assert parse_types("") == {}
    for wrong in ("", ",", "a,a"):
        with pytest.raises(ValueError, match="each once"):
            parse_names(wrong)
    for wrong in ("title", "title:string", ":text"):
        with pytest.raises(ValueError, match="NAME:TYPE"):
            parse_types(wrong)
