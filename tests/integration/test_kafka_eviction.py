"""A member the coordinator has thrown out behind its back, as after a process was stopped for longer than its session.

The eviction is a LeaveGroup request in the member's name, sent by hand: no client offers one.
"""

from __future__ import annotations

import asyncio
import struct

import pytest

from connectors.errors import Fenced
from connectors.kafka.log import KafkaLog
from connectors.kafka.settings import KafkaSettings
from connectors.protocols import Commit
from connectors.services import Addresses
from tests.conftest import MakeTopic, Unique
from tests.contract.log_world import Owner, until

_LEAVE_GROUP = 13


async def leave_group(broker: str, group: str, member: str) -> None:
    """LeaveGroup, version 1: only where the one broker is also the coordinator."""
    host, port = broker.rsplit(":", 1)
    receive, send = await asyncio.open_connection(host, int(port))
    words = [struct.pack(">h", len(word)) + word for word in (b"test", group.encode(), member.encode())]
    request = struct.pack(">hhi", _LEAVE_GROUP, 1, 7) + b"".join(words)
    send.write(struct.pack(">i", len(request)) + request)
    size = struct.unpack(">i", await receive.readexactly(4))[0]
    correlation, _throttle_ms, error = struct.unpack(">iih", await receive.readexactly(size))
    send.close()
    await send.wait_closed()
    assert (correlation, error) == (7, 0)


async def test_an_evicted_member_commits_nothing_even_when_the_group_is_empty(
    services: Addresses, make_topic: MakeTopic, unique: Unique
) -> None:
    log = KafkaLog(KafkaSettings(services.kafka))
    topic, group, owner = make_topic(), unique("group"), Owner()
    reader = log.group_reader(topic, group)
    await reader.start(owner)

    async def held() -> bool:
        await reader.read(1, 0.1)
        return bool(reader.positions())

    await until(held)
    await reader.commit({0: Commit(0, "ours")})
    member = reader.member_id()
    assert member
    await leave_group(services.kafka, group, member)
    with pytest.raises(Fenced):
        await reader.commit({0: Commit(0, "before it knows")})

    async def told_by_a_heartbeat() -> bool:
        return reader.member_id() != member

    await until(told_by_a_heartbeat)
    with pytest.raises(Fenced):  # a commit without a member's name would be accepted: the group is empty
        await reader.commit({0: Commit(0, "a lone consumer")})
    assert await log.committed(group, topic) == {0: Commit(0, "ours")}

    async def joined_again() -> bool:
        await reader.read(1, 0.1)
        return owner.said("assigned") == [0, 0]

    await until(joined_again)
    assert owner.heard == [("assigned", [0]), ("lost", [0]), ("assigned", [0])]
    await reader.commit({0: Commit(0, "ours again")})
    await reader.close()
