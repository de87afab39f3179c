"""What stands between one simulated worker and the in-memory Kafka and vector store: latency, faults, death.

It must never change what the connectors behind it decide; it only delays, loses and answers wrongly.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar
from uuid import UUID

from connectors.errors import ContentRejected, Overloaded, Terminal, UnknownOutcome, Unreachable
from connectors.memory.log import MemoryLog
from connectors.memory.log_groups import MemoryReader
from connectors.memory.store import Effect, Fault, MemoryStore, NoFaults, Write
from connectors.protocols import (
    JSON,
    Bounds,
    Commit,
    Condition,
    Head,
    Hit,
    KeyBatch,
    RangeBatch,
    Rebalance,
    Record,
    Space,
    SpaceObject,
    TopicFacts,
    Vectors,
)

T = TypeVar("T")
REFUSED_BY_STORE = "refused-by-store"


class NextFault(NoFaults):
    """Befalls the next write of the store, which is carried out without an await in between."""

    def __init__(self) -> None:
        self.fault: Fault | None = None

    async def before_write(self, write: Write) -> Fault | None:
        fault, self.fault = self.fault, None
        return fault


@dataclass(slots=True)
class Weather:
    """How bad it is now. Probabilities of one call; `settle_s`: no write lands later than that after it was sent."""

    settle_s: float
    latency_s: float = 0.02
    slow: float = 0.0
    store_fails: float = 0.0
    store_unknown: float = 0.0
    object_fails: float = 0.0
    kafka_fails: float = 0.0


@dataclass(slots=True)
class Network:
    """One worker's. `dead`: nothing it does has an effect any more. `cut_until_s`: Kafka does not answer before.

    `frozen_until_s`: the process stands still, as after SIGSTOP; what it has sent is on its way all the same.
    `on_write`: called with (verb, ids) before a write takes effect; a directed test may wait there or name its fate;
    `land_after_s` then says when late ones land.
    """

    rng: random.Random
    store: MemoryStore
    faults: NextFault
    weather: Weather
    dead: bool = False
    cut_until_s: float = 0.0
    frozen_until_s: float = 0.0
    land_after_s: float | None = None
    say: Callable[[str], None] = lambda _: None
    on_write: Callable[[str, Sequence[object]], Awaitable[Effect | None]] | None = None

    async def hop(self) -> None:
        """One way over the wire."""
        await asyncio.sleep(self.rng.uniform(0.0, self.weather.latency_s))
        if self.weather.slow and self.rng.random() < self.weather.slow:
            await asyncio.sleep(self.rng.uniform(0.0, 3.0))
        await self.thaw()
        if self.dead:
            await asyncio.get_running_loop().create_future()

    async def thaw(self) -> None:
        while (wait_s := self.frozen_until_s - asyncio.get_running_loop().time()) > 0:  # noqa: ASYNC110  a time
            await asyncio.sleep(wait_s)

    async def kafka(self) -> None:
        await self.hop()
        if (wait_s := self.cut_until_s - asyncio.get_running_loop().time()) > 0:
            await asyncio.sleep(wait_s)
            await self.hop()
        if self.rng.random() < self.weather.kafka_fails:
            raise Unreachable("simulated: no broker answers")

    async def read(self) -> None:
        await self.hop()
        if self.rng.random() < self.weather.store_fails:
            raise Unreachable("simulated: the store does not answer")

    async def write(self, verb: str, ids: Sequence[object], call: Callable[[], Awaitable[T]]) -> T:
        """It lands after one hop, lands late, or is lost. A caller that is cancelled leaves it on its way."""
        loop = asyncio.get_running_loop()
        await self.thaw()  # a caller that gives up meanwhile has sent nothing
        sent_s = loop.time()
        fate = await self.on_write(verb, ids) if self.on_write else None
        if fate is None and self.rng.random() < self.weather.store_unknown:
            fate = self.rng.choice(("lost", "applied", "late"))
        try:
            await self.hop_of_write()
        except asyncio.CancelledError:  # the caller gave up, or died: the request is on its way all the same
            await self._carry_out(call, "late", sent_s)
            raise
        if fate is not None:
            await self._carry_out(call, fate, sent_s)
            await self.hop()
            raise UnknownOutcome("simulated: no answer")
        if self.rng.random() < self.weather.store_fails:
            raise self.rng.choice((Unreachable, Overloaded))("simulated: not now")
        if self.dead:
            await self._carry_out(call, "late", sent_s)
            await loop.create_future()
        result = await call()
        await self.hop()
        return result

    async def hop_of_write(self) -> None:
        await asyncio.sleep(self.rng.uniform(0.0, self.weather.latency_s))
        if self.weather.slow and self.rng.random() < self.weather.slow:
            await asyncio.sleep(self.rng.uniform(0.0, 3.0))

    async def _carry_out(self, call: Callable[[], Awaitable[T]], effect: Effect, sent_s: float) -> None:
        known = {id(write) for write in self.store.late}
        self.faults.fault = Fault(UnknownOutcome("simulated: no answer"), effect)
        try:
            await call()
        except UnknownOutcome:
            pass
        finally:
            self.faults.fault = None
        loop = asyncio.get_running_loop()
        for write in self.store.late:
            if id(write) not in known:
                at_s = self.rng.uniform(loop.time(), max(loop.time(), sent_s + self.weather.settle_s * 0.95))
                at_s = at_s if self.land_after_s is None else sent_s + self.land_after_s
                self.say(f"{_named(write)} is late, will land at {at_s:.2f}")
                loop.call_at(at_s, self._land, write)

    def _land(self, write: Write) -> None:
        if any(late is write for late in self.store.late):
            self.say(f"{_named(write)} lands")
            self.store.land(write)


def _named(write: Write) -> str:
    what = [f"{o.properties['cf_doc_id']}@{o.properties['cf_offset']}" for o in write.objects]
    what += [str(uuid) for uuid in write.uuids]
    return f"{write.verb} {what}"


class SimSpace:
    """`Space` behind a network."""

    def __init__(self, network: Network, inner: Space) -> None:
        self.name = inner.name
        self._net = network
        self._inner = inner

    async def heads(self, uuids: Sequence[UUID], *, vectors: bool = False) -> Mapping[UUID, Head]:
        await self._net.read()
        found = await self._inner.heads(uuids, vectors=vectors)
        await self._net.hop()
        return found

    async def indexing_queue(self) -> int:
        return await self._inner.indexing_queue()

    async def upsert(self, objects: Sequence[SpaceObject]) -> Mapping[UUID, Exception]:
        failed: dict[UUID, Exception] = {}
        good: list[SpaceObject] = []
        for obj in objects:
            if REFUSED_BY_STORE in str(obj.properties["cf_text"]):
                failed[obj.uuid] = ContentRejected("simulated: the store refuses this text")
            elif self._net.rng.random() < self._net.weather.object_fails:
                failed[obj.uuid] = Overloaded("simulated: this object not now")
            else:
                good.append(obj)
        if good:
            failed |= await self._net.write("upsert", [o.uuid for o in good], lambda: self._inner.upsert(good))
        return failed

    async def delete(self, uuids: Sequence[UUID]) -> None:
        await self._net.write("delete", uuids, lambda: self._inner.delete(uuids))

    async def erase(self, uuids: Sequence[UUID]) -> None:
        await self._net.write("erase", uuids, lambda: self._inner.erase(uuids))

    async def delete_chunks(self, doc_hashes: Sequence[str], from_chunk: int) -> int:
        return await self._net.write(
            "delete_chunks", doc_hashes, lambda: self._inner.delete_chunks(doc_hashes, from_chunk)
        )

    async def scan(self, page: int | None = None, share: float = 1.0) -> AsyncIterator[list[Head]]:
        async for heads in self._inner.scan(page, share):
            await self._net.read()
            yield heads

    async def count(self) -> int:
        await self._net.read()
        return await self._inner.count()

    async def properties(self, uuids: Sequence[UUID]) -> Mapping[UUID, Mapping[str, JSON]]:
        await self._net.read()
        return await self._inner.properties(uuids)

    async def search(self, vector: Vectors, limit: int, filters: Sequence[Condition] = ()) -> list[Hit]:
        await self._net.read()
        return await self._inner.search(vector, limit, filters)


class RefusingSpace(SimSpace):
    """As long as `fault` names an error, what that says cannot be done: a verb of reading, and the error."""

    def __init__(self, network: Network, inner: Space, fault: Callable[[], tuple[str, Terminal] | None]) -> None:
        super().__init__(network, inner)
        self._fault = fault

    def _refuse(self, verb: str) -> None:
        if (fault := self._fault()) is not None and fault[0] == verb:
            raise fault[1]

    async def scan(self, page: int | None = None, share: float = 1.0) -> AsyncIterator[list[Head]]:
        self._refuse("scan")
        async for heads in super().scan(page, share):
            yield heads

    async def properties(self, uuids: Sequence[UUID]) -> Mapping[UUID, Mapping[str, JSON]]:
        self._refuse("properties")
        return await super().properties(uuids)


class SimReader:
    """`GroupReader` behind a network."""

    def __init__(self, network: Network, inner: MemoryReader) -> None:
        self._net = network
        self.inner = inner

    async def start(self, owner: Rebalance) -> None:
        await self._net.kafka()
        await self.inner.start(owner)

    async def read(self, max_records: int, timeout_s: float) -> list[Record]:
        await self._net.kafka()
        return await self.inner.read(max_records, timeout_s)

    def positions(self) -> Mapping[int, int]:
        return self.inner.positions()

    def pause(self, partitions: Sequence[int]) -> None:
        self.inner.pause(partitions)

    def resume(self, partitions: Sequence[int]) -> None:
        self.inner.resume(partitions)

    async def commit(self, commits: Mapping[int, Commit]) -> None:
        await self._net.kafka()
        await self.inner.commit(commits)
        await self._net.hop()

    async def close(self) -> None:
        if self._net.dead:
            return
        await self.inner.close()


class SimLog:
    """`Log` behind a network."""

    def __init__(self, network: Network, inner: MemoryLog) -> None:
        self._net = network
        self._inner = inner

    async def facts(self, topic: str) -> TopicFacts:
        await self._net.kafka()
        return await self._inner.facts(topic)

    async def bounds(self, topic: str) -> Mapping[int, Bounds]:
        await self._net.kafka()
        return await self._inner.bounds(topic)

    def group_reader(self, topic: str, group: str) -> SimReader:
        return SimReader(self._net, self._inner.group_reader(topic, group))

    async def read_range(self, topic: str, partition: int, start: int, end: int) -> AsyncIterator[RangeBatch]:
        async for batch in self._inner.read_range(topic, partition, start, end):
            await self._net.kafka()
            yield batch

    async def read_keys(
        self, topic: str, partition: int, start: int, end: int, digest: Callable[[bytes], bytes]
    ) -> AsyncIterator[KeyBatch]:
        async for batch in self._inner.read_keys(topic, partition, start, end, digest):
            await self._net.kafka()
            yield batch

    async def committed(self, group: str, topic: str) -> Mapping[int, Commit]:
        await self._net.kafka()
        return await self._inner.committed(group, topic)

    async def commit_offsets(self, group: str, topic: str, commits: Mapping[int, Commit]) -> None:
        await self._net.kafka()
        await self._inner.commit_offsets(group, topic, commits)
        await self._net.hop()


Trouble = Literal["slow", "store_fails", "store_unknown", "object_fails", "kafka_fails"]
