"""The journal read from its end: the newest entries, page by page, and never more than a bounded piece of it."""

from __future__ import annotations

import pytest

from connectors.memory.log import MemoryLog
from streams import journal
from streams.journal import entries_of, newest
from streams.state import JournalEntry, TopicNames

NAMES = TopicNames("cf")


class Counting(MemoryLog):
    """Remembers which offsets it was asked for."""

    def __init__(self) -> None:
        super().__init__(range_records=7)
        self.asked = 0

    def read_range(self, topic: str, partition: int, start: int, end: int):  # type: ignore[no-untyped-def]
        self.asked += end - start
        return super().read_range(topic, partition, start, end)


def log_of(*entries: tuple[str, str], partitions: int = 1) -> Counting:
    """One entry for each (collection, version); `at_ms` counts them."""
    kafka = Counting()
    kafka.create_topic(NAMES.journal, partitions, cleanup_policy="delete")
    for at_ms, (collection, version) in enumerate(entries):
        entry = JournalEntry(at_ms=at_ms, collection=collection, version=version, event="e")
        kafka.append(NAMES.journal, collection.encode(), entry.to_bytes(), partition=at_ms % partitions)
        if at_ms % 3 == 0:
            kafka.skip(NAMES.journal, at_ms % partitions, 1)  # the mark of a transaction
    return kafka


async def pages(kafka: MemoryLog, limit: int, version: str | None = None) -> list[list[int]]:
    found, before = list[list[int]](), ""
    while True:
        page = await newest(kafka, NAMES, "docs", limit, version=version, before=before)
        found.append([entry.at_ms for entry in page.entries])
        assert len(found) < 1000, "it comes to an end"
        if not page.older:
            return found
        before = page.older


@pytest.mark.parametrize("partitions", [1, 3])
@pytest.mark.parametrize("limit", [1, 2, 7, 50, 1000])
async def test_all_pages_together_are_the_journal(limit: int, partitions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "WINDOW", 5)
    names = [("docs", "v1"), ("other", "v1"), ("docs", "v2"), ("other", "v9"), ("other", "v9")] * 20
    kafka = log_of(*names, partitions=partitions)
    kafka.append(NAMES.journal, b"docs", b"no entry", partition=0)
    kafka.append(NAMES.journal, b"docs", None, partition=0)
    whole = [entry.at_ms for entry in await entries_of(kafka, NAMES, "docs")]
    assert len(whole) == 40
    found = await pages(kafka, limit)
    assert [at for page in reversed(found) for at in page] == whole
    assert {len(page) for page in found[:-1]} <= {limit}
    of_v2 = [at for page in reversed(await pages(kafka, limit, "v2")) for at in page]
    assert of_v2 == [at for at in whole if names[at][1] == "v2"]


async def test_the_newest_few_are_found_without_reading_the_rest() -> None:
    kafka = log_of(*[("docs", "v1")] * 5000)
    page = await newest(kafka, NAMES, "docs", 10)
    assert [entry.at_ms for entry in page.entries] == list(range(4990, 5000))
    assert kafka.asked <= journal.WINDOW


async def test_one_call_reads_a_bounded_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """However rare a collection's entries are: the answer says where to read on."""
    monkeypatch.setattr(journal, "WINDOW", 10)
    monkeypatch.setattr(journal, "MOST_READ", 100)
    kafka = log_of(("docs", "v1"), *[("other", "v1")] * 900)
    page = await newest(kafka, NAMES, "docs", 10)
    assert (page.entries, bool(page.older)) == ([], True)
    assert kafka.asked <= 100
    assert [at for found in await pages(kafka, 10) for at in found] == [0]


async def test_entries_are_kept_up_to_so_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    kafka = log_of(*[("docs", "v1")] * 50)
    size = len(JournalEntry(at_ms=10, collection="docs", version="v1", event="e").to_bytes())
    monkeypatch.setattr(journal, "MOST_BYTES", 5 * size)
    found = await pages(kafka, 40)
    assert {len(page) for page in found} == {5}
    assert sorted(at for page in found for at in page) == list(range(50))
    monkeypatch.setattr(journal, "MOST_BYTES", 1)
    assert [len(page) for page in await pages(kafka, 40)] == [1] * 50


async def test_a_place_beyond_the_end_is_the_end() -> None:
    kafka = log_of(*[("docs", "v1")] * 5)
    page = await newest(kafka, NAMES, "docs", 2, before="999999999-7")
    assert [entry.at_ms for entry in page.entries] == [3, 4]
