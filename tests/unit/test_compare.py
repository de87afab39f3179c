"""The two-way comparison against brute force, chunks included, and keys in two partitions."""

from __future__ import annotations

import tracemalloc
import uuid

from hypothesis import given
from hypothesis import strategies as st

from connectors.protocols import Head
from streams.documents import key_digest
from streams.key_index import KeyIndex, KeyIndexBuilder
from streams.migration.compare import Comparison, keys_in_two_partitions


def index_of(entries: dict[str, tuple[int, bool]]) -> KeyIndex:
    builder = KeyIndexBuilder()
    for key, (offset, gone) in sorted(entries.items(), key=lambda item: item[1][0]):
        builder.add([key_digest(key.encode())], [offset], [gone])
    return builder.build()


def heads_of(key: str, offset: int, chunks: int, partition: int = 0, present: int | None = None) -> list[Head]:
    """`present`: bits of the chunks that are there; all by default."""
    bits = (1 << chunks) - 1 if present is None else present
    return [Head(uuid.uuid4(), key, "", n, chunks, "h", partition, offset) for n in range(chunks + 1) if bits >> n & 1]


KEYS = st.sampled_from(["a", "b", "c", "d"])
LOG = st.dictionaries(KEYS, st.tuples(st.integers(0, 3), st.booleans()))
SPACE = st.dictionaries(KEYS, st.tuples(st.integers(0, 3), st.integers(1, 3), st.integers(0, 15)))


@given(LOG, SPACE, st.integers(1, 5))
def test_it_says_what_brute_force_says(
    log: dict[str, tuple[int, bool]], space: dict[str, tuple[int, int, int]], page: int
) -> None:
    log = {key: (n * 4 + offset, gone) for n, (key, (offset, gone)) in enumerate(log.items())}
    stored: dict[str, list[Head]] = {}
    for key, (shift, chunks, present) in space.items():
        offset = log[key][0] + max(0, shift - 2) if key in log else shift
        if heads := heads_of(key, offset, chunks, present=present & ((1 << (chunks + 1)) - 1)):
            stored[key] = heads
    wanted: dict[str, str] = {}
    for key in log.keys() | stored.keys():
        offset, gone = log.get(key, (-1, True))
        heads = stored.get(key, [])
        if gone:
            if heads:
                wanted[key] = "extra"
        elif not heads:
            wanted[key] = "missing"
        elif any(head.offset != offset for head in heads):
            wanted[key] = "stale"
        elif 0 not in {head.chunk for head in heads}:
            wanted[key] = "missing"
        elif len(heads) != heads[0].chunks:
            wanted[key] = "stale"
    comparison = Comparison({0: index_of(log)})
    flat = [head for heads in stored.values() for head in heads]
    for at in range(0, len(flat), page):
        comparison.add(flat[at : at + page])
    found = {suspect.digest: suspect.kind for suspect in comparison.finish()}
    assert found == {key_digest(key.encode()): kind for key, kind in wanted.items()}
    assert comparison.checked == sum(not gone for _, gone in log.values())


def test_a_suspect_carries_what_mending_needs() -> None:
    comparison = Comparison({0: index_of({"a": (5, False), "b": (6, False), "c": (7, True)})})
    comparison.add([*heads_of("b", 2, 1), *heads_of("c", 3, 1), *heads_of("d", 4, 1)])
    by_kind = {(s.kind, s.doc_id): s for s in comparison.finish()}
    assert by_kind.keys() == {("missing", None), ("stale", "b"), ("extra", "c"), ("extra", "d")}
    assert by_kind["extra", "d"].expected is None
    assert by_kind["extra", "d"].stored_offset == 4
    expected = by_kind["stale", "b"].expected
    assert expected is not None
    assert (expected.offset, expected.deleted) == (6, False)


def test_every_partition_is_compared_with_its_own_index() -> None:
    comparison = Comparison({0: index_of({"a": (1, False)}), 1: index_of({"b": (1, False)})})
    comparison.add([*heads_of("a", 1, 1, partition=0), *heads_of("b", 1, 1, partition=0)])
    kinds = {(s.partition, s.kind) for s in comparison.finish()}
    assert kinds == {(0, "extra")}, "the same key cannot be missing in 1 and extra in 0: one verdict a key"


def test_heads_of_partitions_that_are_not_compared_are_left_out() -> None:
    comparison = Comparison({0: index_of({"a": (1, False)})})
    comparison.add([*heads_of("a", 1, 1), *heads_of("z", 9, 1, partition=7)])
    assert comparison.finish() == []


@given(st.lists(st.sets(st.sampled_from("abcdef")), min_size=1, max_size=4))
def test_keys_in_two_partitions(keys: list[set[str]]) -> None:
    indexes = {p: index_of({key: (n, False) for n, key in enumerate(sorted(mine))}) for p, mine in enumerate(keys)}
    wanted = [(i, j) for i in range(len(keys)) for j in range(i + 1, len(keys)) if keys[i] & keys[j]]
    assert keys_in_two_partitions(indexes) == wanted


def test_a_sweep_of_many_documents_needs_few_bytes_for_each() -> None:
    """At most 64 bytes a document, pages and index included, while everything is as it should be."""
    documents, page = 100_000, 1000
    tracemalloc.start()
    try:
        builder = KeyIndexBuilder()
        for first in range(0, documents, page):
            offsets = list(range(first, first + page))
            builder.add([key_digest(b"k%d" % offset) for offset in offsets], offsets, [False] * page)
        comparison = Comparison({0: builder.build()})
        held_by_index, _ = tracemalloc.get_traced_memory()
        for first in range(0, documents, page):
            comparison.add([heads_of(f"k{offset}", offset, 1)[0] for offset in range(first, first + page)])
        assert comparison.finish() == []
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert comparison.checked == documents
    assert held_by_index <= 40 * documents
    assert held <= 64 * documents
