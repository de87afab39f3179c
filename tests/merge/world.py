"""A whole build in memory: topic, space, state and workers that run the production code, in virtual time.

It stands in for Kafka, Weaviate, Faust and the controller, and must never decide anything about documents itself.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import orjson

from connectors import reserved
from connectors.embedders.base import RejectedTexts
from connectors.errors import Terminal, Unreachable
from connectors.memory.embedder import MemoryEmbedder
from connectors.memory.log import MemoryLog
from connectors.memory.store import MemoryStore
from connectors.protocols import JSON, Record, Space, SpaceSpec
from streams import documents
from streams.build import Build, Limits
from streams.build_runner import BuildRunner
from streams.carrying import OldSpace, serves_beside
from streams.config_operation import TierName
from streams.documents import DocumentSchema, key_digest
from streams.encoding import Encoder
from streams.key_index import KeyIndex
from streams.migration.sweep import DeadLetterKey, Sweep, sweep
from streams.ordering import Lease
from streams.progress import Counters, ProgressRecord
from streams.state import BuildState, Command, Failure, Request, TopicNames
from streams.tiers import Passes, arrange
from streams.versions import Envelope, Stage
from tests import oracle
from tests.merge.network import (
    REFUSED_BY_STORE,
    Network,
    NextFault,
    RefusingSpace,
    SimLog,
    SimReader,
    SimSpace,
    Weather,
)
from tests.pools import pool_of
from tests.queue_host import QueueHost

TOPIC = "docs"
REFUSED_BY_MODEL = "refused-by-model"
SCHEMA = DocumentSchema("docs", ("text",), properties={"tag": "keyword"})
NAMES = TopicNames("cf")
SESSION_S = 6.0
DEADLINE_S = 2.0
TOMBSTONES_MS = 60_000

documents.DIGEST_SEED = 1  # a seed of a history is to play the same schedule in every process


class SplitAt:
    """Chunks are what stands between the bars."""

    splits = True

    def split(self, text: str) -> list[str]:
        return [part for part in text.split("|") if part.strip()] or [text]


class Whole:
    splits = False

    def split(self, text: str) -> list[str]:
        return [text]


class Sink:
    """Commands to the world's state, progress and dead letters to its lists."""

    def __init__(self, world: World, network: Network) -> None:
        self._world = world
        self._net = network

    async def send(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]] = ()
    ) -> None:
        await self._net.kafka()
        if topic == NAMES.dead_letters:
            if self._world.dead_letters_away:
                raise Unreachable("simulated: the dead-letter topic cannot be written")
            named = dict(headers)
            at = DeadLetterKey(int(named["partition"]), int(named["offset"]))
            if (named["version"].decode(), int(named["epoch"])) == (self._world.state.version, self._world.state.epoch):
                self._world.dead_letters.append((at, named["cause"].decode()))
        elif topic == NAMES.progress:
            assert key is not None
            assert value is not None
            record = ProgressRecord.model_validate_json(value)
            self._world.progress[key.decode()] = record
            if record.replay_done:
                self._world.reported_replayed.add((record.epoch, record.partition))
        else:
            assert value is not None
            self._world.control(Command.model_validate_json(value))
        await self._net.hop()


@dataclass(slots=True)
class Worker:
    name: str
    network: Network
    runner: BuildRunner
    task: asyncio.Task[None]
    builds: list[Build]


class World:
    """One build of one version of one collection. `limits` as small as they can be, so that every bound is met.

    `beside`: the world whose topic, store and weather this one shares; it builds another version. `beside_fault`: which
    read of that world's space is refused to this one, and with what.
    """

    def __init__(
        self,
        seed: int,
        *,
        partitions: int,
        chunks: bool,
        limits: Limits,
        calm: bool = False,
        beside: World | None = None,
    ) -> None:
        self.seed = seed
        self.beside = beside
        self.beside_serves = True
        self.beside_fault: tuple[str, Terminal] | None = None
        self.rng = random.Random(seed)
        self.loop = asyncio.get_running_loop()
        self.limits = limits
        self.weather = Weather(settle_s=limits.settle_s)
        self.chunker = SplitAt() if chunks else Whole()
        version = "v2" if beside else "v1"
        if beside is None:
            self.kafka = MemoryLog(
                clock=self.loop.time,
                idle=self._idle,
                session_timeout_s=SESSION_S,
                range_records=self.rng.choice((3, 1000)),
            )
            self.kafka.create_topic(TOPIC, partitions, delete_retention_ms=TOMBSTONES_MS)
            self.faults = NextFault()
            self.store = MemoryStore(self.faults)
            self.records: list[Record] = []
            self.trace: list[str] = []
        else:
            self.kafka, self.faults, self.store, self.weather = (
                beside.kafka,
                beside.faults,
                beside.store,
                beside.weather,
            )
            self.records, self.trace = beside.records, beside.trace
        self.envelope = Envelope("memory", "m", "1", 4, ("text",))
        self.state = BuildState(
            collection="docs",
            version=version,
            epoch=1,
            stage=Stage.BUILDING,
            envelope=orjson.loads(self.envelope.canonical_json()),
            fingerprint=self.envelope.fingerprint,
            space=f"Docs_{version}_1_x",
            topic=TOPIC,
            topic_id=self.kafka.topic(TOPIC).topic_id,
            partitions=partitions,
        )
        self.dead_letters: list[tuple[DeadLetterKey, str]] = []
        self.dead_letters_away = False
        self.progress: dict[str, ProgressRecord] = {}
        self.reported_replayed: set[tuple[int, int | None]] = set()
        self.ready_ms = 0
        self.workers: dict[str, Worker] = {}
        self.compacted: bool = beside is not None and beside.compacted
        self.to_stop = False  # a build that gives up is what the scenario waits for
        self.failure: str | None = None
        self.calm = calm
        self.embeddings = 0
        self.listed: dict[bytes, float] = {}
        self.newest = 0.0
        self.refusing = True
        self.replay_documents: dict[
            int, int
        ] = {}  # keys of each partition whose newest record below the barrier is a put

    async def _idle(self, timeout_s: float) -> None:
        await asyncio.sleep(max(timeout_s, 0.2))

    def say(self, what: str) -> None:
        self.trace.append(f"{self.loop.time():8.2f}  {what}")

    # --- the outside ------------------------------------------------------------------------------------------------

    def produce(self, key: str, value: JSON | bytes | None, partition: int | None = None) -> Record:
        raw = value if value is None or isinstance(value, bytes) else orjson.dumps(value)
        record = self.kafka.append(TOPIC, key.encode(), raw, partition=partition)
        self.records.append(record)
        self.say(f"produce {key} = {raw!r} at {record.partition}:{record.offset}")
        return record

    def compact(self, *, keep_last: int, expire_tombstones: bool = False) -> None:
        self.say(f"compact, keeping the last {keep_last}")
        self.kafka.compact(TOPIC, keep_last=keep_last, expire_tombstones=expire_tombstones)
        self.compacted = True

    def expire(self) -> None:
        """The log cleaner, with every tombstone gone that is older than tombstones are kept."""
        horizon_ms = round(self.loop.time() * 1000) - TOMBSTONES_MS
        for part in self.kafka.topic(TOPIC).partitions:
            young = next((r.offset for r in part.records if r is not None and r.timestamp_ms > horizon_ms), part.end)
            part.compact(keep_last=part.end - young, expire_tombstones=True)
        self.compacted = True
        self.say("compact, tombstones expire")

    def forget(self, partition: int, before: int) -> None:
        """Retention: the log of a partition begins there."""
        self.say(f"partition {partition} forgets all below {before}")
        self.kafka.truncate(TOPIC, partition, before)
        self.compacted = True

    def read_up_to(self, partition: int) -> int:
        """What its live lane has still to read begins there."""
        commits = self.kafka.group(TOPIC, self.live_group).commits
        return commits[partition].offset if partition in commits else self.state.start.get(partition, 0)

    async def abort_build(self) -> None:
        """As the controller does for `abort` and the next `start`: another epoch, nothing of the former remains."""
        for name in sorted(self.workers):
            await self.stop_worker(name)
        await self.store.drop_space(self.state.space)
        epoch = self.state.epoch + 1
        self.state = self.state.model_copy(
            update={
                "epoch": epoch,
                "space": f"Docs_{self.state.version}_{epoch}_x",
                "stage": Stage.BUILDING,
                "replayed": [],
                "requests": [],
            }
        )
        self.dead_letters.clear()
        self.replay_documents.clear()
        self.say("aborted, and started again")
        await self.start_build()

    async def start_build(self) -> None:
        await self.store.create_space(
            SpaceSpec(self.state.space, 4, "cosine", self.envelope.canonical_json(), properties=SCHEMA.properties)
        )
        ends = {p: b.stable for p, b in (await self.kafka.bounds(TOPIC)).items()}
        self.state = self.state.model_copy(update={"start": ends, "barrier": ends})
        newest = {record.key: record for record in self.records}
        for record in newest.values():
            if record.value is not None:
                self.replay_documents[record.partition] = self.replay_documents.get(record.partition, 0) + 1
        self.say(f"build starts, barrier {ends}")

    def control(self, command: Command) -> None:
        if command.args["epoch"] != self.state.epoch:
            return  # of a build that was aborted
        if command.verb == "replayed":
            partition = int(str(command.args["partition"]))
            assert (self.state.epoch, partition) in self.reported_replayed, "the state is ahead of the reports"
            replayed = sorted({*self.state.replayed, partition})
            stage = Stage.READY if len(replayed) == self.state.partitions else self.state.stage
            if stage is not self.state.stage:
                self.ready_ms = round(self.loop.time() * 1000) + 1_000_000
            self.state = self.state.model_copy(update={"replayed": replayed, "stage": stage})
            self.say(f"replayed {partition}")
        elif self.to_stop:
            self.failure = str(command.args["cause"])
            self.state = self.state.model_copy(update={"failure": Failure(cause=self.failure)})
            self.say(f"the build stops: {self.failure}")
        else:
            raise AssertionError(f"the build gave up: {command.args}")

    def ask(self, kind: Literal["repair", "redrive"]) -> None:
        """As the controller does for the verb."""
        number = len(self.state.requests) + 1
        requests = [*self.state.requests, Request(id=number, kind=kind)]
        self.state = self.state.model_copy(update={"requests": requests})

    # --- workers ----------------------------------------------------------------------------------------------------

    def start_worker(self, name: str) -> None:
        self.say(f"start {name}")
        rng = random.Random(f"{self.seed}/{self.state.version}/{name}")  # no other worker's coming changes its luck
        network = Network(rng, self.store, self.faults, self.weather, say=self.say)
        builds: list[Build] = []
        sink = Sink(self, network)

        def make_build(state: BuildState) -> Build:
            build = Build(
                collection=state.collection,
                version=state.version,
                epoch=state.epoch,
                topic=state.topic,
                dead_letters=NAMES.dead_letters,
                schema=SCHEMA,
                store_text=True,
                space_mark="v1@x",
                space=SimSpace(network, self.store.space(state.space)),
                encoder=Encoder(self.envelope, pool_of(MemoryEmbedder(4, max_batch=3, fault=self._embed(network)))),
                chunker=self.chunker,
                sink=sink,
                lease=Lease(SESSION_S - DEADLINE_S - 0.5),
                limits=self.limits,
                wall_ms=lambda: round(self.loop.time() * 1000) + 1_000_000,
                order=self._order,
                old_space=lambda: self._old_space(network),
            )
            builds.append(build)
            return build

        log = SimLog(network, self.kafka)
        runner = BuildRunner(
            lambda: self.state,
            make_build,
            log,
            self.store,
            sink,
            NAMES,
            lambda _: QueueHost(),
            name,
            self.progress.get,
            self._held,
        )
        self.workers[name] = Worker(name, network, runner, asyncio.ensure_future(runner.run()), builds)

    def _old_space(self, network: Network) -> OldSpace | None:
        """The first version serves, once it is complete."""
        first = self.beside
        if first is None or not self.beside_serves or first.state.stage is not Stage.READY:
            return None
        if not serves_beside(self.state, first.state):
            return None
        return OldSpace(first.state, self._space_beside(network, first), first.live_group)

    def _space_beside(self, network: Network, first: World) -> Space:
        return RefusingSpace(network, self.store.space(first.state.space), lambda: self.beside_fault)

    async def _order(self, _: int, index: KeyIndex, tiers: Sequence[TierName] | None) -> Passes:
        wanted: Sequence[TierName] = ("listed", "newest") if tiers is None else tiers
        return arrange(index, wanted, dict(self.listed), self.newest, first_band=1)

    def search_for(self, keys: Sequence[str], newest: float) -> None:
        """What people look for: whoever begins a replay from now on goes by it."""
        self.say(f"searched for: {', '.join(keys) or 'nothing'}; newest {newest}")
        self.listed = {key_digest(key.encode()): float(len(keys) - n) for n, key in enumerate(keys)}
        self.newest = newest

    async def _held(self, _: BuildState) -> set[DeadLetterKey]:
        return {at for at, _ in self.dead_letters}

    def _embed(self, network: Network) -> Callable[[int, Sequence[str]], Awaitable[None]]:
        async def fault(_: int, texts: Sequence[str]) -> None:
            await network.hop()
            if self.refusing and (guilty := [i for i, text in enumerate(texts) if REFUSED_BY_MODEL in text]):
                raise RejectedTexts("simulated: the model refuses", guilty)
            self.embeddings += len(texts)

        return fault

    async def stop_worker(self, name: str) -> None:
        self.say(f"stop {name}")
        worker = self.workers.pop(name)
        worker.runner.stop(worker.task)
        await asyncio.gather(worker.task, return_exceptions=True)
        self.say(f"stopped {name}")

    def kill_worker(self, name: str) -> None:
        """As SIGKILL: nothing it does has an effect any more, except what it had already sent."""
        self.say(f"kill {name}")
        worker = self.workers.pop(name)
        worker.network.dead = True
        worker.runner.stop(worker.task)

    def move(self, partition: int) -> None:
        """A rebalance: the partition goes to the next member of the group, and with the next call perhaps back."""
        group = self.kafka.group(TOPIC, self.live_group)
        if len(group.members) > 1 and (holder := group.target.get(partition)) in group.members:
            self.say(f"partition {partition} moves on")
            following = group.members[(group.members.index(holder) + 1) % len(group.members)]
            self.kafka.assign(TOPIC, self.live_group, {partition: following})

    # --- the end ----------------------------------------------------------------------------------------------------

    @property
    def live_group(self) -> str:
        return NAMES.group("docs", self.state.version, self.state.epoch, "live")

    def settled(self, since_ms: int) -> bool:
        """What the controller would look at before a cutover, and the sweep before it reads."""
        records = [self.progress.get(f"{self.state.key}/{p}") for p in range(self.state.partitions)]
        commits = self.kafka.group(TOPIC, self.live_group).commits
        return self.state.stage is Stage.READY and all(
            record is not None
            and record.epoch == self.state.epoch
            and record.updated_at > max(since_ms, self.ready_ms)
            and record.unsettled == 0
            and record.live_position >= self.kafka.topic(TOPIC).partition(p).stable  # made after all was resolved
            and record.replay_done
            and p in commits
            and commits[p].offset >= self.kafka.topic(TOPIC).partition(p).stable
            for p, record in enumerate(records)
        )

    async def until_settled(self, patience_s: float = 400.0) -> None:
        """`patience_s` virtual seconds."""
        since_ms = round(self.loop.time() * 1000) + 1_000_000
        deadline_s = self.loop.time() + patience_s
        while not self.settled(since_ms):
            assert self.loop.time() < deadline_s, f"never settled: {self._why()}"
            await asyncio.sleep(0.5)
        self.say("settled")

    def _why(self) -> str:
        commits = self.kafka.group(TOPIC, self.live_group).commits
        ends = [part.stable for part in self.kafka.topic(TOPIC).partitions]
        shown = {k: (r.status, r.reason, r.unsettled, r.replay_done) for k, r in self.progress.items()}
        return f"stage {self.state.stage}, ends {ends}, commits {commits}, {shown}"

    def expected(self) -> oracle.Expected:
        def refused(text: str) -> bool:
            return (self.refusing and REFUSED_BY_MODEL in text) or REFUSED_BY_STORE in text

        expected = oracle.expect(self._visible(), SCHEMA, self.chunker.split, refused, 2 if self.calm else 1)
        if self.compacted:  # a record of a held key may have gone before anyone read it
            expected.loose.update(expected.held)
        return expected

    async def stored(self) -> dict[str, list[dict[str, JSON]]]:
        space = self.store.space(self.state.space)
        found: dict[str, list[dict[str, JSON]]] = {}
        async for page in space.scan():
            for properties in (await space.properties([head.uuid for head in page])).values():
                found.setdefault(str(properties[reserved.DOC_ID]), []).append(dict(properties))
        return found

    async def check(self) -> None:
        """The space equals the oracle, and goes on to when every late write has landed; the sweep agrees."""
        expected = self.expected()
        wrong = oracle.differences(expected, await self.stored())
        assert not wrong, f"the space differs from the log: {wrong[:5]}"
        for write in list(self.store.late):
            self.say(f"lands after all was called settled: {write.verb}")
            self.store.land(write)
        wrong = oracle.differences(expected, await self.stored())
        assert not wrong, f"a late write changed what was called settled: {wrong[:5]}"
        found = await self.sweep()
        assert found.clean, f"the sweep finds {found}"
        newest = {(record.key or b"").decode(errors="backslashreplace"): record for record in self._visible()}
        in_log = [key for key in expected.held if not self._forgotten(newest[key])]
        assert found.held == len(in_log), f"the sweep counts {found.held} held, {len(in_log)} are"
        kept = {key for key in await self.stored() if self._forgotten(newest[key])}
        assert found.kept == len(kept), f"the sweep counts {found.kept} kept, {sorted(kept)} are"
        lost = set(found.examples.get("lost", []))
        assert lost <= expected.held.keys(), f"search would lose {sorted(lost)}"

    def _visible(self) -> list[Record]:
        return [r for r in self.records if self.kafka.topic(TOPIC).partition(r.partition).visible(r.offset)]

    def _forgotten(self, record: Record) -> bool:
        return record.offset < self.kafka.topic(TOPIC).partition(record.partition).start

    async def sweep(self) -> Sweep:
        held = {at for at, _ in self.dead_letters}
        space = self.store.space(self.state.space)
        serving: Space | None = self.store.space(self.beside.state.space) if self.beside else None
        if self.beside and self.beside_fault:
            serving = self._space_beside(self.workers[min(self.workers)].network, self.beside)
        return await sweep(self.state, SCHEMA, self.kafka, space, self.live_group, held, serving=serving)

    def counters(self) -> Counters:
        total = Counters()
        for record in self.progress.values():
            total.add(record.counted())
        return total


__all__ = ["REFUSED_BY_MODEL", "REFUSED_BY_STORE", "TOPIC", "SimReader", "World"]
