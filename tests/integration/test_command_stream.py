"""The command stream on real Kafka: one of its members is elected, and every command is heard."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from connectors.errors import NotFound, Unreachable
from connectors.kafka.log import KafkaLog
from connectors.kafka.producer import KafkaSink
from connectors.kafka.reader import KafkaGroupReader
from connectors.kafka.settings import KafkaSettings
from connectors.protocols import Record
from connectors.services import Addresses
from streams.command_stream import CommandStream
from streams.control import send
from streams.state import Command, TopicNames
from tests.conftest import MakeTopic, Unique

PATIENCE_S = 60


class Office:
    """One commands topic, and as many streams on it as a test begins. `taken`: ids of commands; each is carried out
    until `goes_on`. `broken`: what the next read raises, until the group is joined anew."""

    def __init__(self, settings: KafkaSettings, names: TopicNames) -> None:
        self.settings, self.names = settings, names
        self.kafka, self.sink = KafkaLog(settings), KafkaSink(settings)
        self.taken: list[str] = []
        self.joined = self.lost = 0
        self.broken: Exception | None = None
        self.goes_on = asyncio.Event()
        self.goes_on.set()

    def join(self) -> KafkaGroupReader:
        office, self.broken = self, None
        self.joined += 1

        class Reader(KafkaGroupReader):
            async def read(self, max_records: int, timeout_s: float) -> list[Record]:
                if office.broken is not None:
                    raise office.broken
                return await super().read(max_records, timeout_s)

        return Reader(self.settings, self.names.commands, self.names.controller_group)

    @asynccontextmanager
    async def stream(self) -> AsyncIterator[CommandStream]:
        async def handle(command: Command) -> None:
            self.taken.append(command.id)
            await self.goes_on.wait()

        def lost() -> None:
            self.lost += 1

        stream = CommandStream(self.names, self.kafka, self.join, handle, lost)
        running = asyncio.create_task(stream.run())
        try:
            yield stream
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    async def sent(self) -> str:
        command = Command(verb="pause", collection="docs")
        await send(self.sink, self.names, command)
        return command.id

    async def is_taken(self) -> None:
        """A command that is sent now."""
        command = await self.sent()
        await until(lambda: command in self.taken)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110  another client's election cannot be subscribed to
            await asyncio.sleep(0.05)


@pytest.fixture
async def office(services: Addresses, unique: Unique, make_topic: MakeTopic) -> AsyncIterator[Office]:
    names = TopicNames(unique("cf"))
    names.commands = make_topic(config={"cleanup.policy": "delete"})
    office = Office(KafkaSettings(services.kafka, session_timeout_s=6.0), names)
    await office.sink.start()
    try:
        yield office
    finally:
        await office.sink.close()


async def test_what_was_sent_before_anybody_listened_is_heard_and_heard_once(office: Office) -> None:
    early = [await office.sent() for _ in range(3)]
    async with office.stream() as stream:
        await until(lambda: len(office.taken) == 3)
        assert stream.elected
    assert office.lost == 1, "the controller was told to stand down"
    async with office.stream():
        await office.is_taken()
    assert office.taken[:3] == early
    assert len(office.taken) == 4


async def test_after_trouble_it_joins_again(office: Office) -> None:
    async with office.stream() as stream:
        await office.is_taken()
        office.broken = Unreachable("no broker answers", next_step="wait")
        await until(lambda: office.joined == 2)
        await office.is_taken()
        assert stream.elected
        assert office.lost == 1, "another may have been the controller meanwhile"


async def test_of_two_one_is_elected_and_the_other_takes_over(office: Office) -> None:
    async with AsyncExitStack() as one, AsyncExitStack() as two:
        first, second = await one.enter_async_context(office.stream()), await two.enter_async_context(office.stream())
        await until(lambda: first.elected or second.elected)
        await office.is_taken()
        assert first.elected != second.elected
        leaves, stays = (one, second) if first.elected else (two, first)
        await leaves.aclose()
        await until(lambda: stays.elected)
        await office.is_taken()
    assert len(office.taken) == 2


async def test_a_command_that_is_still_carried_out_is_heard_again_by_who_comes_next(office: Office) -> None:
    office.goes_on.clear()
    async with office.stream():
        long = await office.sent()
        await until(lambda: long in office.taken)
        await office.is_taken()
    office.goes_on.set()
    async with office.stream():
        await until(lambda: len(office.taken) == 4)
    assert office.taken[2:] == office.taken[:2], "from the oldest that was not done"


async def test_a_record_that_is_no_command_is_left_out(office: Office, caplog: pytest.LogCaptureFixture) -> None:
    async with office.stream():
        await office.sink.send(office.names.commands, b"docs", b'{"verb": "dance"}')
        await office.sink.send(office.names.commands, b"docs", None)
        await office.is_taken()
    assert len([record for record in caplog.records if "is no command" in record.message]) == 2


async def test_what_retention_took_meanwhile_is_passed_over(office: Office, services: Addresses) -> None:
    async with office.stream():
        await office.is_taken()
    await office.sent()
    admin, where = AdminClient({"bootstrap.servers": services.kafka}), TopicPartition(office.names.commands, 0, 2)
    await asyncio.wrap_future(admin.delete_records([where])[where])
    async with office.stream():
        await office.is_taken()
    assert len(office.taken) == 2


async def test_without_its_topic_it_ends_with_the_cause(office: Office, unique: Unique) -> None:
    office.names.commands = unique("absent")
    stream = CommandStream(office.names, office.kafka, office.join, lambda _: asyncio.sleep(0), lambda: None)
    with pytest.raises(NotFound):
        async with asyncio.timeout(PATIENCE_S):
            await stream.run()
