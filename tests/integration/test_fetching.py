"""How much is fetched ahead and handed over at once: bounded in bytes, however large the documents are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence

import pytest

from benchmarks.pipeline import NoEncoder, NoSpace, build, encoder_of
from connectors.kafka import log as kafka_log
from connectors.kafka.producer import produce_many
from connectors.kafka.ranges import read_keys, read_range
from connectors.kafka.reader import KafkaGroupReader
from connectors.kafka.settings import KafkaSettings
from connectors.protocols import Commit, KeyBatch
from connectors.services import Addresses
from streams.build import SCANS_AT_ONCE
from tests.conftest import MakeTopic, Unique

RECORD_BYTES = 20_000
RECORDS = 1_000


class FromTheStart:
    """connectors.protocols.Rebalance of an owner that has never committed."""

    async def assigned(self, committed: Mapping[int, Commit | None]) -> Mapping[int, int]:
        return dict.fromkeys(committed, 0)

    async def revoked(self, partitions: Sequence[int]) -> Mapping[int, Commit]:
        return {}

    async def lost(self, partitions: Sequence[int]) -> None:
        return None


def large() -> Iterator[tuple[bytes, bytes, None]]:
    return ((b"k%d" % number, (b"%d " % number).ljust(RECORD_BYTES, b"x"), None) for number in range(RECORDS))


async def test_a_read_is_bounded_in_bytes(services: Addresses, make_topic: MakeTopic, unique: Unique) -> None:
    settings = KafkaSettings(services.kafka)
    topic = make_topic(4)
    produce_many(settings, topic, large())
    reader = KafkaGroupReader(settings, topic, unique("group"))
    await reader.start(FromTheStart())
    reads: list[int] = []
    try:
        async with asyncio.timeout(60):
            while sum(reads) < RECORDS:
                reads.append(len(await reader.read(RECORDS, 0.5)))
                await asyncio.sleep(0.05)  # so that there is always more than may come at once
    finally:
        await reader.close()
    assert max(reads) * RECORD_BYTES <= settings.prefetch_bytes / 4


async def test_a_batch_of_a_range_is_bounded_in_bytes(services: Addresses, make_topic: MakeTopic) -> None:
    settings = KafkaSettings(services.kafka)
    topic = make_topic(1)
    produce_many(settings, topic, large())
    batches: list[int] = []
    async for batch in read_range(settings, topic, 0, 0, RECORDS):
        batches.append(len(batch.records))
        await asyncio.sleep(0.01)
    assert sum(batches) == RECORDS
    assert max(batches) * RECORD_BYTES <= settings.prefetch_bytes / 8


async def test_few_partitions_are_scanned_at_once(
    services: Addresses, make_topic: MakeTopic, monkeypatch: pytest.MonkeyPatch
) -> None:
    scanning, most = 0, 0

    async def counted(
        settings: KafkaSettings, topic: str, partition: int, start: int, end: int, digest: Callable[[bytes], bytes]
    ) -> AsyncIterator[KeyBatch]:
        nonlocal scanning, most
        scanning += 1
        most = max(most, scanning)
        async for batch in read_keys(settings, topic, partition, start, end, digest):
            yield batch
        scanning -= 1

    monkeypatch.setattr(kafka_log, "read_keys", counted)
    topic = make_topic(6)
    documents = ((b"k%d" % number, b'{"title": "t", "text": "x"}', None) for number in range(600))
    produce_many(KafkaSettings(services.kafka), topic, documents)
    async with build(services.kafka, topic, NoEncoder(encoder_of(8)), NoSpace(), replay=True) as running:
        async with asyncio.timeout(60):
            await running.until_replayed()
    assert most == SCANS_AT_ONCE
