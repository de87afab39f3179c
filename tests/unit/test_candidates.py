"""Candidates on a sample: which documents are drawn, how titles become queries, exact search, and who is better."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import pytest

from connectors.protocols import JSON
from streams import documents
from streams.documents import DocumentSchema, Put
from streams.key_index import KeyIndex, KeyIndexBuilder
from streams.migration import candidates
from streams.migration.candidates import (
    Drawn,
    SampleDocument,
    Stored,
    Worth,
    difference,
    draw,
    known_items,
    nearest,
    table,
    title_field,
    titleless_document,
    within,
)
from streams.migration.evaluate import Reply, Scored
from streams.migration.golden import GoldenQuery, GoldenSet


def index(first: int, documents_: int, *, every: int = 10) -> KeyIndex:
    """Keys k<first>.. each put twice; every tenth deleted. The newest put of key i stands at 2 * i + 1."""
    builder = KeyIndexBuilder()
    for i in range(documents_):
        digest = documents.key_digest(f"k{first + i}".encode())
        builder.add([digest, digest], [2 * i, 2 * i + 1], [False, i % every == 0])
    return builder.build()


def indexes() -> dict[int, KeyIndex]:
    return {0: index(0, 300), 2: index(1000, 100), 1: index(2000, 0)}


def test_only_current_documents_are_drawn_and_each_once() -> None:
    drawn = draw(indexes(), 200)
    assert (drawn.size, drawn.drawn, drawn.missing) == (200, 200, ())
    assert all(offset % 2 == 1 and offset // 2 % 10 for offsets in drawn.offsets.values() for offset in offsets)
    assert drawn.offsets[1] == frozenset()


def test_all_are_drawn_where_there_are_no_more() -> None:
    assert draw(indexes(), 360).size == 360
    assert draw(indexes(), 10_000).size == 360
    assert draw({}, 10) == Drawn({}, {}, ())


def test_the_same_topic_gives_the_same_sample_and_another_seed_another() -> None:
    assert draw(indexes(), 50) == draw(indexes(), 50)
    assert draw(indexes(), 50, seed=1) != draw(indexes(), 50, seed=2)


def test_every_document_is_as_likely_as_any_other() -> None:
    times: Counter[tuple[int, int]] = Counter()
    for seed in range(400):
        times.update((p, offset) for p, offsets in draw(indexes(), 90, seed=seed).random.items() for offset in offsets)
    assert len(times) == 360
    # 400 draws of 90 from 360: 100 each, standard deviation 8.7
    assert all(55 < number < 145 for number in times.values())
    assert abs(sum(number for (p, _), number in times.items() if p == 2) - 9000) < 400


def test_judged_documents_come_beside_the_random_ones_and_missing_ones_are_named() -> None:
    judged = ["k1", "k1001", "k10", "k9999"]  # k10 is deleted, k9999 never was
    drawn = draw(indexes(), 5, judged)
    assert drawn.judged == {0: {3}, 2: {3}, 1: set()}
    assert drawn.missing == ("k10", "k9999")
    assert drawn.drawn == 5
    assert drawn.random == draw(indexes(), 5).random


SCHEMA = DocumentSchema("docs", ("title", "text"), properties={"heading": "text", "year": "int"})


def put(title: str, text: str, **properties: JSON) -> Put:
    return Put("key", (title, text), dict(properties))


def test_the_title_is_left_out_also_where_it_opens_another_field() -> None:
    one = titleless_document(
        put("Wings in slipstreams", "wings in Slipstreams . An experiment"), SCHEMA, "title", drawn=True
    )
    assert (one.title, one.text.strip()) == ("Wings in slipstreams", ". An experiment")
    assert one.whole > 1
    other = titleless_document(put("Wings", "An experiment with Wings"), SCHEMA, "title", drawn=True)
    assert other.text == "An experiment with Wings"


def test_a_document_that_is_nothing_but_its_title_has_no_text_left() -> None:
    assert titleless_document(put("Wings", " wings "), SCHEMA, "title", drawn=True).text == ""
    assert titleless_document(put("Wings", ""), SCHEMA, "title", drawn=True).text == ""


def test_a_title_that_is_only_a_property_serves_too() -> None:
    one = titleless_document(put("A", "Wings and flaps", heading="Wings"), SCHEMA, "heading", drawn=False)
    assert (one.title, one.text) == ("Wings", "A\n\n and flaps")
    assert titleless_document(put("A", "B"), SCHEMA, "heading", drawn=False).title == ""


def test_with_a_template_the_title_is_blank() -> None:
    schema = DocumentSchema("docs", ("title", "text"), template="{title}: {text}")
    assert titleless_document(put("Wings", "An experiment"), schema, "title", drawn=True).text == ": An experiment"


def test_which_field_is_the_title() -> None:
    assert title_field(SCHEMA) == "title"
    assert (
        title_field(DocumentSchema("docs", ("text",), properties={"Headline": "text", "name": "keyword"})) == "Headline"
    )
    assert title_field(DocumentSchema("docs", ("text",), properties={"name": "int"})) is None


def test_documents_with_one_title_are_all_right_answers() -> None:
    found = [
        SampleDocument("a", "x", "Wings", True),
        SampleDocument("b", "y", "Wings", True),
        SampleDocument("c", "", "Flaps", True),
        SampleDocument("d", "z", "", True),
        SampleDocument("e", "z", "Tails", True),
    ]
    golden = known_items(found, "title", 10)
    assert golden is not None
    assert [(q.query, dict(q.relevant)) for q in golden.queries] == [("Wings", {"a": 1, "b": 1}), ("Tails", {"e": 1})]
    assert len((known_items(found, "title", 1) or golden).queries) == 1
    assert known_items([], "title", 10) is None


def golden(*relevant: Mapping[str, float]) -> GoldenSet:
    return GoldenSet("golden", tuple(GoldenQuery(str(i), f"query {i}", one) for i, one in enumerate(relevant)))


def test_a_large_golden_set_is_cut_down_and_says_so() -> None:
    whole = golden(*({f"k{i}": 1, f"m{i}": 2} for i in range(100)))
    assert within(whole, 100) is whole
    some = within(whole, 30)
    assert (len(some.queries), some.notes) == (30, ("30 of 100 queries asked, drawn at random",))
    assert len(within(whole, 100, most_judged=20).queries) == 10
    assert len(within(golden({f"k{i}": 1 for i in range(50)}), 10, most_judged=20).queries) == 1


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2-squared"])
def test_exact_search_is_that_of_a_plain_loop(metric: str) -> None:
    generator = np.random.default_rng(7)
    chunks = [1, 3, 2, 1, 4, 1]
    keys = ["f", "b", "a", "e", "c", "d"]
    vectors = generator.normal(size=(sum(chunks), 5)).astype(np.float32)
    queries = generator.normal(size=(9, 5)).astype(np.float32)
    starts = np.cumsum([0, *chunks[:-1]])
    found = nearest(Stored(keys, starts, vectors), queries, metric, 4)
    for query, hits in zip(queries, found, strict=True):
        best: dict[str, float] = {}
        for key, start, many in zip(keys, starts, chunks, strict=True):
            for row in vectors[start : start + many]:
                score = {
                    "cosine": (1 + row @ query / np.linalg.norm(row) / np.linalg.norm(query)) / 2,
                    "dot": row @ query,
                    "l2-squared": -((row - query) ** 2).sum(),
                }[metric]
                best[key] = max(best.get(key, -np.inf), float(score))
        expected = sorted(best.items(), key=lambda item: -item[1])[:4]
        assert [hit.key for hit in hits] == [key for key, _ in expected]
        assert [hit.score for hit in hits] == pytest.approx([score for _, score in expected], abs=1e-4)


def test_equal_scores_stand_in_the_order_of_keys_and_nothing_finds_nothing() -> None:
    stored = Stored(["b", "a"], np.array([0, 1]), np.ones((2, 3), np.float32))
    assert [hit.key for hit in nearest(stored, np.ones((1, 3), np.float32), "cosine", 5)[0]] == ["a", "b"]
    assert nearest(
        Stored([], np.array([], np.int64), np.zeros((0, 3), np.float32)), np.ones((2, 3), np.float32), "dot", 5
    ) == [(), ()]


def test_blocks_of_queries_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(3)
    stored = Stored([f"k{i}" for i in range(50)], np.arange(50), generator.normal(size=(50, 4)).astype(np.float32))
    queries = generator.normal(size=(20, 4)).astype(np.float32)
    whole = nearest(stored, queries, "cosine", 3)
    monkeypatch.setattr(candidates, "_BLOCK", 150)
    assert nearest(stored, queries, "cosine", 3) == whole


def replies(*places: int) -> list[Reply]:
    """The one relevant document of query i at that place; 0: not found."""
    return [
        Reply(tuple(Scored(f"k{i}" if at == place else f"x{at}", 1.0 - at / 10) for at in range(1, 6)), 1.0)
        for i, place in enumerate(places)
    ]


def verdict(old: list[int], new: list[int]) -> Worth:
    judged = golden(*({f"k{i}": 1.0} for i in range(len(old))))
    return difference(judged, replies(*old), replies(*new), ("old", "new"), 5, "linear").worth


def test_better_and_worse_are_said_where_the_interval_shows_it() -> None:
    hard, easy = [3, 0, 4, 2] * 10, [1, 2, 1, 1] * 10
    assert verdict(hard, easy) is Worth.BETTER
    assert verdict(easy, hard) is Worth.WORSE


def test_no_difference_is_claimed_where_there_is_none_to_see() -> None:
    assert verdict([1, 2] * 20, [1, 2] * 20) is Worth.UNCLEAR
    assert verdict([1, 2] * 20, [2, 1] * 20) is Worth.UNCLEAR
    assert verdict([1, 2] * 20, [*([2, 1] * 19), 1, 1]) is Worth.UNCLEAR


def test_the_bootstrap_is_paired() -> None:
    """Queries differ far more than the versions do: only pairs show that one is better at almost each of them."""
    old = [1, 2, 3, 4, 5, 0] * 10
    assert verdict(old, [max(1, place - 1) if place else 5 for place in old]) is Worth.BETTER


def test_a_handful_of_queries_tells_nothing() -> None:
    judged = golden(*({f"k{i}": 1.0} for i in range(5)))
    found = difference(judged, replies(0, 0, 0, 0, 0), replies(1, 1, 1, 1, 1), ("v1", "v2"), 5, "linear")
    assert found.worth is Worth.UNCLEAR
    assert found.sentence().endswith("5 queries are too few to tell)")


def test_the_sentence_says_what_to_decide_by() -> None:
    judged = golden(*({f"k{i}": 1.0} for i in range(40)))
    found = difference(judged, replies(*[2] * 40), replies(*[1] * 40), ("v1", "v2"), 5, "linear")
    assert found.sentence() == (
        "v2 is better than v1: worth its migration (nDCG@5 +0.369, 95% interval +0.369 to +0.369)"
    )


def test_columns_stand_below_each_other() -> None:
    assert table([("model", ["a", "bb"]), ("nDCG@10", ["0.123", "1"])], ["v1", "version2"]) == [
        "           v1     version2",
        "  model    a      bb",
        "  nDCG@10  0.123  1",
    ]
