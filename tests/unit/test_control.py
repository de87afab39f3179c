"""What an operator is told of a command that cannot be sent."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from connectors.errors import AccessDenied, Transient
from connectors.protocols import RecordSink
from streams import control
from streams.state import Command, TopicNames
from streams.views import StateView


class NobodyAnswers:
    collections: dict[str, object]

    def __init__(self) -> None:
        self.collections = {}

    async def wait_for(self, _: object) -> None:
        await asyncio.Event().wait()


class Sink:
    def __init__(self, error: Exception) -> None:
        self.error = error

    async def send(self, *_: object) -> None:
        raise self.error


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (AccessDenied("the broker refuses the topic", next_step="grant WRITE on it"), "the broker refuses the topic"),
        (Transient("no Kafka broker answers"), "no outcome of pause docs within 0.05 s"),
    ],
)
async def test_why_a_command_has_no_outcome(error: Exception, told: str) -> None:
    view, sink = cast("StateView", NobodyAnswers()), cast("RecordSink", Sink(error))
    command = Command(verb="pause", collection="docs", version="v1", who="test")
    with pytest.raises(type(error), match=told):
        await control.ask(sink, TopicNames("cf"), view, command, timeout_s=0.05)
