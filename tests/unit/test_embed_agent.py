"""How much an agent takes in at once: groups that wait for their turn are few, and whoever waits for room is told."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from connectors.memory.embedder import MemoryEmbedder
from connectors.memory.store import MemoryStore
from connectors.protocols import Record, SpaceSpec
from streams.build import Batch, Build, Limits
from streams.chunking import make_chunker
from streams.documents import DocumentSchema, key_digest
from streams.embed_agent import QUEUED_GROUPS, SMALL_GROUPS, EmbedAgent
from streams.encoding import Encoder
from streams.ordering import Lane, Lease, PartitionLedger
from streams.versions import Envelope
from tests.pools import pool_of

SCHEMA = DocumentSchema("docs", ("text",))
ENVELOPE = Envelope("memory", "m", "1", 2, ("text",))
GROUP = 2


class NoSink:
    async def send(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]] = ()
    ) -> None:
        raise AssertionError("nothing here ends in the dead letters")


def waiting_for(gate: asyncio.Event, sizes: list[int]) -> MemoryEmbedder:
    async def fault(_: int, texts: Sequence[str]) -> None:
        sizes.append(len(texts))
        await gate.wait()

    return MemoryEmbedder(2, max_batch=GROUP, fault=fault)


async def agent_with(gate: asyncio.Event, sizes: list[int] | None = None) -> EmbedAgent:
    """`sizes` hears of each request how many texts it has."""
    store = MemoryStore()
    await store.create_space(SpaceSpec("Docs", 2, "cosine", ENVELOPE.canonical_json()))
    lease = Lease(1e9)
    lease.renew(asyncio.get_running_loop().time())
    build = Build(
        "docs",
        "v1",
        1,
        "topic",
        "dead",
        SCHEMA,
        True,
        "v1@x",
        store.space("Docs"),
        Encoder(ENVELOPE, pool_of(waiting_for(gate, [] if sizes is None else sizes), concurrency=1)),
        make_chunker("none", None),
        NoSink(),
        lease,
        Limits(batch=GROUP),
        lambda: 0,
    )
    return EmbedAgent(build)


def ledger_of(agent: EmbedAgent, partition: int) -> PartitionLedger:
    ledger = agent.ledgers[partition] = PartitionLedger(partition, live_position=0, replaying=False)
    ledger.told = True  # a commit was acknowledged: it may write
    return ledger


def live(ledger: PartitionLedger, documents: int, first: int = 0) -> Batch:
    records = [
        Record(ledger.partition, offset, 0, f"{ledger.partition}-{offset}".encode(), b'{"text": "t"}')
        for offset in range(first, first + documents)
    ]
    return Batch(Lane.LIVE, ledger, records, [key_digest(record.key or b"") for record in records], first + documents)


async def test_live_events_that_come_while_others_are_under_way_go_together() -> None:
    gate, sizes = asyncio.Event(), list[int]()
    agent = await agent_with(gate, sizes)
    ledger = ledger_of(agent, 0)
    for offset in range(SMALL_GROUPS + 3 * GROUP):
        agent.accept([live(ledger, 1, offset)])  # one after the other, as they come
        await asyncio.sleep(0)
    gate.set()
    async with asyncio.timeout(5):
        await agent.progressed(lambda: ledger.live.committable == ledger.live.position)
    assert sizes == [1] * SMALL_GROUPS + [GROUP] * 3
    await agent.stop()


async def test_no_more_is_taken_in_than_groups_may_wait() -> None:
    gate = asyncio.Event()
    agent = await agent_with(gate)
    ledger = ledger_of(agent, 0)
    under_way = agent._groups_under_way()
    agent.accept([live(ledger, GROUP * (under_way + QUEUED_GROUPS))])
    await asyncio.sleep(0)
    assert not agent.has_room(Lane.LIVE)
    assert agent.has_room(Lane.REPLAY)  # each lane has groups of its own
    gate.set()
    async with asyncio.timeout(5):
        await agent.progressed(lambda: agent.has_room(Lane.LIVE))
        await agent.progressed(lambda: ledger.live.committable == ledger.live.position)
    await agent.stop()


async def test_whoever_waits_for_room_hears_of_groups_that_were_revoked() -> None:
    gate = asyncio.Event()
    agent = await agent_with(gate)
    ledger = ledger_of(agent, 0)
    agent.accept([live(ledger, GROUP * (agent._groups_under_way() + QUEUED_GROUPS))])
    await asyncio.sleep(0)
    waits = asyncio.ensure_future(agent.progressed(lambda: agent.has_room(Lane.LIVE)))
    await asyncio.sleep(0)
    ledger.active = False  # as a revoke does
    del agent.ledgers[0]
    gate.set()
    async with asyncio.timeout(5):
        await waits
    await agent.stop()
