"""The two-way comparison against brute force, chunks included, and keys in two partitions."""

from __future__ import annotations

import tracemalloc
import uuid
from collections.abc import Callable, Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.protocols import Head
from streams.documents import key_digest
from streams.key_index import ABSENT, KeyIndex, KeyIndexBuilder
from streams.migration.difference import SAMPLED, Comparison, Losses, keys_in_two_partitions
from streams.migration.forms import Digests, Forms


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


@pytest.mark.parametrize("newest_last", [False, True])
def test_what_is_removed_is_removed_up_to_its_newest_chunk(newest_last: bool) -> None:
    """Late writes may leave chunks of several forms; a removal of an older one would wait for the newer for ever."""
    heads = [*heads_of("gone", 10, 1), *heads_of("gone", 2, 3, present=0b110)]
    comparison = Comparison({0: index_of({"other": (30, True)})})
    comparison.add(sorted(heads, key=lambda head: head.offset, reverse=not newest_last))
    assert [(s.kind, s.stored_offset) for s in comparison.finish()] == [("extra", 10)]


def test_every_partition_is_compared_with_its_own_index() -> None:
    comparison = Comparison({0: index_of({"a": (1, False)}), 1: index_of({"b": (1, False)})})
    comparison.add([*heads_of("a", 1, 1, partition=0), *heads_of("b", 1, 1, partition=0)])
    kinds = {(s.partition, s.kind) for s in comparison.finish()}
    assert kinds == {(0, "extra")}, "the same key cannot be missing in 1 and extra in 0: one verdict a key"


def test_heads_of_partitions_that_are_not_compared_are_left_out() -> None:
    comparison = Comparison({0: index_of({"a": (1, False)})})
    comparison.add([*heads_of("a", 1, 1), *heads_of("z", 9, 1, partition=7)])
    assert comparison.finish() == []


NEWER = st.dictionaries(KEYS, st.tuples(st.integers(1, 3), st.integers(0, 15), st.booleans()))


@given(LOG, NEWER, st.integers(1, 5))
def test_what_is_stored_from_beyond_the_end_is_held_against_nobody_whose_newer_record_was_seen(
    log: dict[str, tuple[int, bool]], stored: dict[str, tuple[int, int, bool]], page: int
) -> None:
    """Without suspects for it: there may be millions. Chunks of the form before it may still be there."""
    log = {key: (n, gone) for n, (key, (_, gone)) in enumerate(log.items())}
    end = len(log)
    flat: list[Head] = []
    for key, (chunks, older, _) in stored.items():
        before = heads_of(key, log[key][0], 4, present=older) if key in log and not log[key][1] else []
        now = heads_of(key, end + 7, chunks)
        left = [head for head in before if head.chunk >= chunks]
        flat += [*left, *now] if older % 2 else [*now, *left]
    comparison = Comparison({0: index_of(log)}, ends={0: end})
    for at in range(0, len(flat), page):
        comparison.add(flat[at : at + page])
    found = comparison.finish()
    missing = {key_digest(key.encode()) for key, (_, gone) in log.items() if not gone and key not in stored}
    assert {suspect.digest for suspect in found} == missing
    seen = Digests()
    seen.add([key_digest(key.encode()) for key, (_, _, recorded) in stored.items() if recorded])
    strange = {suspect.digest: suspect for suspect in comparison.without_record(seen)}
    unrecorded = {key_digest(key.encode()): key for key, (_, _, recorded) in stored.items() if not recorded}
    assert strange.keys() == unrecorded.keys()
    for digest, key in unrecorded.items():
        kind = "stale" if key in log and not log[key][1] else "extra"
        assert (strange[digest].kind, strange[digest].expected) == (kind, log.get(key))


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


@given(LOG, SPACE, st.integers(0, 16), st.integers(1, 5))
def test_what_the_log_has_forgotten_is_no_fault(
    log: dict[str, tuple[int, bool]], space: dict[str, tuple[int, int, int]], begin: int, page: int
) -> None:
    """A key in no record, stored below the log's start, is kept, or torn where not all its chunks are there; at or
    above it somebody missed its delete."""
    log = {key: (begin + n * 4 + offset, gone) for n, (key, (offset, gone)) in enumerate(log.items())}
    stored = {
        key: heads
        for key, (offset, chunks, present) in space.items()
        if (heads := heads_of(key, offset * 4, chunks, present=present & ((1 << (chunks + 1)) - 1)))
    }
    flat = [head for heads in stored.values() for head in reversed(heads)]
    comparison = Comparison({0: index_of(log)}, {0: begin})
    for at in range(0, len(flat), page):
        comparison.add(flat[at : at + page])
    extra = {suspect.doc_id for suspect in comparison.finish() if suspect.kind == "extra"}
    unknown = {key: heads for key, heads in stored.items() if key not in log}
    assert extra - log.keys() == {key for key, heads in unknown.items() if heads[0].offset >= begin}
    older = {key: heads for key, heads in unknown.items() if heads[0].offset < begin}
    whole = {key for key, heads in older.items() if [head.chunk for head in heads] == [*range(heads[0].chunks)]}
    assert comparison.of_forgotten() == (len(whole), len(older) - len(whole))
    for key, heads in older.items():
        found = comparison.kept[0].whole_offsets([key_digest(key.encode())]).tolist()
        assert found == [heads[0].offset if key in whole else ABSENT]


def test_a_delete_that_the_log_still_has_is_extra_however_old_the_document() -> None:
    comparison = Comparison({0: index_of({"a": (50, True)})}, {0: 40})
    comparison.add(heads_of("a", 3, 1))
    assert [suspect.kind for suspect in comparison.finish()] == ["extra"]
    assert comparison.kept == {}


def test_what_a_space_would_lose() -> None:
    """Of the other one's forgotten documents: those that are not here, or in an older form; not those the log knows,
    and none that the log could still bring."""
    indexes, begins = {0: index_of({"logged": (45, False), "deleted": (46, True)})}, {0: 40}
    here = Comparison(indexes, begins)
    for key, offset in (("both", 3), ("older", 4), ("newer", 9), ("logged", 45)):
        here.add(heads_of(key, offset, 1))
    losses = Losses(indexes, begins, here.kept)
    for key, offset in (
        ("both", 3),
        ("older", 5),
        ("newer", 8),
        ("logged", 7),
        ("deleted", 1),
        ("gone", 6),
        ("new", 41),
    ):
        losses.add(heads_of(key, offset, 2))
    losses.add(heads_of("elsewhere", 1, 1, partition=1))
    assert len(losses.lost) == 2
    assert sorted(losses.names.values()) == ["gone", "older"]


def test_a_document_without_one_of_its_chunks_would_be_lost() -> None:
    """Whichever it is; also where the other one has only part of it, and where what is here is of two offsets."""
    indexes, begins = {0: index_of({})}, {0: 40}
    here = Comparison(indexes, begins)
    for key, present in (("whole", 0b111), ("first", 0b001), ("last", 0b110), ("surplus", 0b1111)):
        here.add(heads_of(key, 3, 3, present=present))
    here.add([*heads_of("two forms", 3, 2, present=0b01), *heads_of("two forms", 2, 2, present=0b10)])
    assert here.of_forgotten() == (1, 4)
    losses = Losses(indexes, begins, here.kept)
    for key in ("whole", "first", "last", "surplus", "two forms"):
        losses.add(heads_of(key, 3, 3 if key != "two forms" else 2))
    losses.add(heads_of("part", 3, 3, present=0b100))
    assert sorted(losses.names.values()) == ["first", "last", "part", "surplus", "two forms"]
    assert len(losses.lost) == 5


def test_what_is_lost_costs_few_bytes_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 24 bytes a lost document, and 48 one that is kept, while its pages come and afterwards: ten million of
    either are hundreds of megabytes, not gigabytes."""
    monkeypatch.setattr(Forms, "LEAST", 1024)
    monkeypatch.setattr(Digests, "LEAST", 1024)
    documents, page = 15_000, 50
    indexes, begins = {0: index_of({})}, {0: 10 * documents}

    def pages(name: str) -> Iterator[list[Head]]:
        for first in range(0, documents, page):
            yield [head for n in range(first, first + page) for head in heads_of(f"{name}{n}", n, 2)]

    def held_of(add: Callable[[Sequence[Head]], None], name: str) -> tuple[int, int]:
        tracemalloc.start()
        try:
            for heads in pages(name):
                add(heads)
            return tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

    here = Comparison(indexes, begins)
    held, most = held_of(here.add, "kept")
    assert here.of_forgotten() == (documents, 0)
    assert held <= 48 * documents
    assert most <= 80 * documents
    losses = Losses(indexes, begins, here.kept)
    held, most = held_of(losses.add, "lost")
    assert len(losses.lost) == documents
    assert held <= 24 * documents
    assert most <= 48 * documents
    assert len(losses.names) == SAMPLED
