"""Filters in the server's messages: what is asked is what was meant."""

from __future__ import annotations

from weaviate.proto.v1 import base_pb2

from connectors.protocols import Condition
from connectors.weaviate.wire import matching


def test_a_filter_keeps_every_value_and_its_type() -> None:
    types = {"lang": "keyword", "year": "int", "rank": "number", "open": "bool", "day": "date"}
    one = matching([Condition("year", "gte", 1990)], types)
    assert (one.operator, one.target.property, one.value_int) == (
        base_pb2.Filters.OPERATOR_GREATER_THAN_EQUAL,
        "year",
        1990,
    )
    whole = matching(
        [
            Condition("lang", "in", ("en", "de")),
            Condition("year", "in", (1, 2**53)),
            Condition("rank", "in", (0.5, 3)),
            Condition("rank", "lt", 3),
            Condition("open", "eq", False),
            Condition("day", "lte", "2024-01-02T03:04:05Z"),
            Condition("lang", "eq", "en"),
        ],
        types,
    )
    assert whole.operator == base_pb2.Filters.OPERATOR_AND
    texts, years, ranks, rank, is_open, day, lang = whole.filters
    assert list(texts.value_text_array.values) == ["en", "de"]
    assert list(years.value_int_array.values) == [1, 2**53]
    assert list(ranks.value_number_array.values) == [0.5, 3.0]
    assert (rank.operator, rank.value_number) == (base_pb2.Filters.OPERATOR_LESS_THAN, 3.0)
    assert (is_open.operator, is_open.WhichOneof("test_value"), is_open.value_boolean) == (
        base_pb2.Filters.OPERATOR_EQUAL,
        "value_boolean",
        False,
    )
    assert (day.operator, day.value_text) == (base_pb2.Filters.OPERATOR_LESS_THAN_EQUAL, "2024-01-02T03:04:05Z")
    assert lang.value_text == "en"
