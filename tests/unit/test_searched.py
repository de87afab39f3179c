"""Access counts in a topic: several servers add up, none counts twice, and the replay's order reads them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import orjson
import pytest

from connectors.errors import NotFound, Unreachable
from connectors.memory.log import MemoryLog
from streams.config_operation import Priority, Searched
from streams.documents import DocumentSchema
from streams.priority import Order, read_topic
from streams.replay import plan_scan
from streams.search.searched import AccessTopics

SETTINGS = Searched(topic="searched", every_s=60)


class Kafka:
    """A memory log with a topic of counts, and the sink to it. `failing`: what the next writes raise."""

    def __init__(self, *topics: str) -> None:
        self.log = MemoryLog()
        self.now_s = 0.0
        self.failing: Exception | None = None
        self.sent = 0
        for topic in topics:
            self.log.create_topic(topic, 2)

    async def send(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]] = ()
    ) -> None:
        if self.failing is not None:
            raise self.failing
        self.sent += 1
        self.log.append(topic, key, value)

    def server(self, name: str) -> AccessTopics:
        return AccessTopics(self.log, self, name, lambda: self.now_s, lambda: 1_000 + int(self.now_s))

    async def counts(self) -> dict[str, float]:
        """As the reader adds them up."""
        found: dict[str, float] = {}
        for row in await read_topic(self.log, "searched"):
            found[row.key.decode()] = found.get(row.key.decode(), 0.0) + row.searches
        return found


async def test_two_servers_add_up_and_one_that_begins_again_goes_on() -> None:
    kafka = Kafka("searched")
    for _ in range(3):  # each is started three times
        one, other = kafka.server("a:1"), kafka.server("b:1")
        one.found(SETTINGS, ["x", "y"])
        one.found(SETTINGS, ["x"])
        other.found(SETTINGS, ["x"])
        await one.close()
        await other.close()
    assert await kafka.counts() == {"x": 9.0, "y": 3.0}
    await kafka.server("a:1").close()
    assert await kafka.counts() == {"x": 9.0, "y": 3.0}
    rows = [row for row in await read_topic(kafka.log, "searched") if row.key == b"x"]
    assert [row.at_ms for row in rows] == [1_000, 1_000]


async def test_they_are_written_as_time_goes_on_and_only_what_has_changed() -> None:
    kafka = Kafka("searched")
    server = kafka.server("a:1")
    server.found(SETTINGS, ["x", "y"])
    await asyncio.sleep(0.01)
    assert kafka.sent == 0
    kafka.now_s = 60.0
    server.found(SETTINGS, ["x"])
    await asyncio.sleep(0.01)
    assert (kafka.sent, await kafka.counts()) == (2, {"x": 2.0, "y": 1.0})
    kafka.now_s = 120.0
    server.found(SETTINGS, ["x"])
    await asyncio.sleep(0.01)
    assert (kafka.sent, await kafka.counts()) == (3, {"x": 3.0, "y": 1.0})
    await server.close()
    assert kafka.sent == 3


async def test_while_kafka_is_away_they_wait(caplog: pytest.LogCaptureFixture) -> None:
    kafka = Kafka("searched")
    kafka.failing = Unreachable("away")
    server = kafka.server("a:1")
    for at in range(3):
        kafka.now_s = 60.0 * at
        server.found(SETTINGS, ["secret-key"])
        await asyncio.sleep(0.01)
    assert [record.getMessage() for record in caplog.records] == [
        "the searched keys wait to be published to searched: away"
    ]
    kafka.failing = None
    await server.close()
    assert await kafka.counts() == {"secret-key": 3.0}


async def test_what_cannot_be_read_is_not_written_over() -> None:
    kafka = Kafka("searched")
    first = kafka.server("a:1")
    first.found(SETTINGS, ["x"])
    await first.close()
    reach, kafka.log.reach = kafka.log.reach, _away
    again = kafka.server("a:1")
    again.found(SETTINGS, ["x"])
    await asyncio.sleep(0.01)
    kafka.now_s = 60.0
    again.found(SETTINGS, ["x"])
    await asyncio.sleep(0.01)
    kafka.log.reach = reach
    assert await kafka.counts() == {"x": 1.0}
    kafka.now_s = 120.0
    again.found(SETTINGS, ["x"])
    await asyncio.sleep(0.01)
    await again.close()
    assert await kafka.counts() == {"x": 4.0}


def _away(operation: str, topic: str) -> None:
    raise Unreachable("away")


async def test_without_the_topic_it_is_said_how_to_make_it(caplog: pytest.LogCaptureFixture) -> None:
    kafka = Kafka()
    server = kafka.server("a:1")
    server.found(SETTINGS, ["x"])
    await server.close()
    assert "create it, with cleanup.policy=compact" in caplog.text
    with pytest.raises(NotFound):
        await kafka.counts()


async def test_the_least_searched_go_from_the_topic_too() -> None:
    kafka = Kafka("searched")
    server = kafka.server("a:1")
    settings = Searched(topic="searched", every_s=60, most=10)
    server.found(settings, [f"k{at}" for at in range(10)])
    kafka.now_s = 60.0
    server.found(settings, ["k0"])
    await asyncio.sleep(0.01)
    server.found(settings, [f"m{at}" for at in range(8)])
    await server.close()
    found = await kafka.counts()
    assert len(found) <= 12
    assert found["k0"] == 2.0


async def test_the_replay_does_first_what_all_servers_together_have_found_most() -> None:
    kafka = Kafka("searched")
    kafka.log.create_topic("docs", 1)
    for key in ("a", "b", "c", "d"):
        kafka.log.append("docs", key.encode(), orjson.dumps({"text": "x"}))
    one, other = kafka.server("a:1"), kafka.server("b:1")
    for _ in range(3):
        one.found(SETTINGS, ["b"])
    for server in (one, other):
        server.found(SETTINGS, ["c", "d"])
        server.found(SETTINGS, ["d"])
    await one.close()
    await other.close()
    kafka.log.append("searched", b"a", b"1")  # and what somebody else counts, in the plain form
    index = await plan_scan(kafka.log, "docs", 0, 4)
    passes = await Order(Priority(topic="searched"), kafka.log, "docs", DocumentSchema("docs", ("text",))).passes(
        0, index, None
    )
    assert passes[0].weights is not None
    assert dict(zip(passes[0].offsets.tolist(), passes[0].weights.tolist(), strict=True)) == {
        0: 1.0, 1: 3.0, 2: 2.0, 3: 4.0,
    }  # fmt: skip
