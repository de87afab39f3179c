"""One Crossfade deployment for a test: its own prefix, topic and configuration file, worker processes, and the oracle.

Workers are real processes running the real command; they are ended by the id they were started with.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from pydantic import JsonValue

from connectors import reserved
from connectors.kafka.producer import Produced, produce_many
from connectors.protocols import JSON
from connectors.services import Addresses
from streams import config, documents
from streams.config import schema_of
from streams.control import ask
from streams.migration.sweep import Sweep
from streams.migration.verify import verify
from streams.progress import Counters, combine
from streams.state import BuildState, Command, CommandOutcome, Verb
from streams.views import ProgressView, StateView
from streams.wiring import Outside

COLLECTION = "docs"
RUN_CROSSFADE = "from streams.cli import main; main()"

Event = tuple[str, dict[str, JSON] | None, int | None]


@dataclass(slots=True)
class Deployment:
    """`versions` is what the configuration file holds now; change it with `add_version`."""

    folder: Path
    raw: dict[str, JsonValue]
    topic: str
    out: Outside
    state: StateView
    progress: ProgressView
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def config_path(self) -> Path:
        return self.folder / "crossfade.yaml"

    # what an operator does

    def add_version(self, name: str, version: Mapping[str, JsonValue]) -> None:
        """Into the configuration file that the workers watch."""
        self.raw["collections"][COLLECTION]["versions"][name] = dict(version)  # type: ignore[index,call-overload]
        self._write()

    def set_collection(self, key: str, value: JsonValue) -> None:
        """Change one setting of the collection; workers restart the builds that depend on it."""
        self.raw["collections"][COLLECTION][key] = value  # type: ignore[index,call-overload]
        self._write()

    def _write(self) -> None:
        fresh = self.config_path.with_suffix(".new")
        fresh.write_text(yaml.safe_dump(self.raw))
        fresh.replace(self.config_path)
        self.out.settings = config.load(self.config_path)

    async def produce(self, events: Iterable[Event]) -> Produced:
        records = ((k.encode(), None if v is None else json.dumps(v).encode(), at) for k, v, at in events)
        return await asyncio.to_thread(produce_many, self.out.kafka_settings, self.topic, records)

    async def ask(self, verb: Verb, version: str | None = None, **args: JsonValue) -> CommandOutcome:
        command = Command(verb=verb, collection=COLLECTION, version=version, args=args, who="test")
        return await ask(self.out.sink, self.out.names, self.state, command, timeout_s=120)

    async def verify(self, version: str) -> Sweep:
        return await verify(self.out, self.build(version), self.state.serving(COLLECTION))

    async def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The command line, as an operator calls it."""
        command = [sys.executable, "-c", RUN_CROSSFADE, "--config", str(self.config_path), *arguments]
        return await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, env=self.environment(), timeout=120, check=False
        )

    @staticmethod
    def environment() -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "PYTHONFAULTHANDLER": "1"}

    # workers

    def start_worker(self, at: Addresses | None = None) -> subprocess.Popen[bytes]:
        """`at`: where this worker finds the services, if not where the test does; its versions are those of now."""
        number = len(self.workers)
        log = (self.folder / f"worker-{number}.log").open("wb")
        path = self.config_path
        if at is not None:
            path = self.folder / f"worker-{number}.yaml"
            path.write_text(yaml.safe_dump({**self.raw, **_addressed(self.raw, at)}))
        process = subprocess.Popen(
            [sys.executable, "-c", RUN_CROSSFADE, "--config", str(path), "worker"],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=self.environment(),
        )
        log.close()
        self.workers.append(process)
        return process

    async def end_worker(self, process: subprocess.Popen[bytes], how: signal.Signals = signal.SIGTERM) -> int:
        process.send_signal(how)
        return await asyncio.to_thread(process.wait, 60)

    def logs(self) -> str:
        return "\n".join(path.read_text(errors="replace") for path in self._logs())

    # what may be waited for: conditions, never time

    def build(self, version: str) -> BuildState:
        return self.state.builds[f"{COLLECTION}/{version}"]

    def counters(self, version: str) -> Counters:
        """Of the whole build, from the newest report of each partition."""
        build = self.build(version)
        whole = combine(version, self.progress.partitions(build), build.partitions, 0)
        return whole.counted() if whole else Counters()

    async def until_attended(self) -> None:
        """A worker hears commands."""
        async with asyncio.timeout(90):
            # polled: the members of a group cannot be subscribed to
            while not await self.out.topics.has_members(self.out.names.controller_group):  # noqa: ASYNC110
                await asyncio.sleep(0.2)

    async def until_state(self, version: str, condition: Callable[[BuildState], bool], timeout_s: float = 90) -> None:
        """A condition over the build's state, looked at whenever the state changes."""
        key = f"{COLLECTION}/{version}"
        async with asyncio.timeout(timeout_s):
            await self.state.wait_for(lambda view: key in view.builds and condition(view.builds[key]))

    async def until_stage(self, version: str, stage: str, timeout_s: float = 90) -> BuildState:
        key = f"{COLLECTION}/{version}"

        def reached(state: StateView) -> bool:
            return key in state.builds and state.builds[key].stage == stage

        async with asyncio.timeout(timeout_s):
            await self.state.wait_for(reached)
        return self.build(version)

    async def until(self, condition: Callable[[], bool], timeout_s: float = 120) -> None:
        """A condition over progress records, looked at whenever one arrives."""
        try:
            async with asyncio.timeout(timeout_s):
                await self.progress.wait_for(lambda _: condition())
        except TimeoutError:
            raise AssertionError(f"not within {timeout_s:g} s; {self._as_it_stands()}") from None

    def _as_it_stands(self) -> str:
        """For a failing test: what every partition reports, and the last that each worker said."""
        now_ms = time.time_ns() // 1_000_000
        reports = [
            f"{key}: {r.status} {r.reason!r}, unsettled {r.unsettled}, lag {r.live_lag}, {now_ms - r.updated_at} ms old"
            for key, r in sorted(self.progress.records.items())
        ]
        said = [f"{w.name}: {line}" for w in self._logs() for line in w.read_text(errors="replace").splitlines()[-25:]]
        return "\n".join(["as it stands:", *reports, *said])

    def _logs(self) -> list[Path]:
        return sorted(self.folder.glob("worker-*.log"))

    async def until_live(self, version: str, timeout_s: float = 240) -> None:
        """The version's live lane has committed the log's end of now."""
        build = self.build(version)
        group = self.out.names.group(COLLECTION, version, build.epoch, "live")
        ends = {p: b.stable for p, b in (await self.out.kafka.bounds(self.topic)).items()}
        async with asyncio.timeout(timeout_s):
            while True:
                committed = await self.out.kafka.committed(group, self.topic)
                if all(p in committed and committed[p].offset >= end for p, end in ends.items()):
                    return
                await asyncio.sleep(0.2)  # polled: group commits cannot be subscribed to

    async def until_replayed(self, version: str) -> None:
        """Each partition's report says so, with all its counts: the build's state may say it a report earlier."""
        build = self.build(version)
        await self.until(lambda: sum(r.replay_done for r in self.progress.partitions(build)) == build.partitions)

    async def until_live_and_settled(self, version: str) -> None:
        """It could be cut over to now."""
        await self.until_state(version, lambda build: build.stage not in ("declared", "building"))
        await self.until_live(version)
        await self.until_settled(version)

    async def until_settled(self, version: str, timeout_s: float = 120) -> None:
        await self.until(
            lambda: (
                len(records := self.progress.partitions(self.build(version))) == self.build(version).partitions
                and not any(record.unsettled for record in records)
            ),
            timeout_s,
        )

    def restarted_since(self, version: str, at_ms: int) -> bool:
        """Every partition is reported by a start of the build later than that."""
        reports = self.progress.partitions(self.build(version))
        return len(reports) == self.build(version).partitions and all(r.running_since > at_ms for r in reports)

    # the oracle

    async def oracle(self) -> dict[str, str]:
        """Document id to source hash: the topic read once from the beginning, last write wins; rejects left out."""
        schema = schema_of(self.out.settings.collection(COLLECTION))
        newest: dict[str, str | None] = {}
        for partition, bounds in (await self.out.kafka.bounds(self.topic)).items():
            async for batch in self.out.kafka.read_range(self.topic, partition, 0, bounds.stable):
                for record in batch.records:
                    change = documents.parse(record.key, record.value, schema)
                    if isinstance(change, documents.Put):
                        newest[change.doc_id] = documents.source_hash(change, schema)
                    elif isinstance(change, documents.Delete):
                        newest[change.doc_id] = None
        return {doc_id: hashed for doc_id, hashed in newest.items() if hashed is not None}

    async def stored(self, version: str) -> dict[str, str]:
        """Document id to source hash, as the space holds them."""
        found: dict[str, str] = {}
        first: set[str] = set()
        async for page in self.out.store.space(self.build(version).space).scan():
            for head in page:
                if head.chunk == 0:
                    assert head.doc_id not in first, f"{head.doc_id} is stored twice"
                    first.add(head.doc_id)
                found[head.doc_id] = head.source_hash
        return found

    async def stored_texts(self, version: str) -> dict[str, str]:
        """Document id to stored text."""
        space = self.out.store.space(self.build(version).space)
        texts: dict[str, str] = {}
        async for page in space.scan():
            for properties in (await space.properties([head.uuid for head in page])).values():
                texts[str(properties[reserved.DOC_ID])] = str(properties[reserved.TEXT])
        return texts


def _addressed(raw: Mapping[str, JsonValue], at: Addresses) -> dict[str, JsonValue]:
    """The sections of a configuration that hold addresses, with these in them."""
    kafka, weaviate = raw["kafka"], raw["weaviate"]
    assert isinstance(kafka, dict)
    assert isinstance(weaviate, dict)
    return {
        "kafka": {**kafka, "bootstrap_servers": at.kafka},
        "weaviate": {**weaviate, "http": f"http://{at.weaviate_http}", "grpc": at.weaviate_grpc},
    }


@asynccontextmanager
async def deployed(
    services: Addresses,
    folder: Path,
    prefix: str,
    topic: str,
    alias: str,
    collection: Mapping[str, JsonValue],
    *,
    session_timeout_s: float = 20.0,
    settle_s: float = 2.0,
    write_timeout_s: float | None = None,
) -> AsyncIterator[Deployment]:
    """Topics made, nothing running yet. At the end workers are killed, and spaces and Crossfade's topics deleted.

    `write_timeout_s`: half of the session time-out when it is None.
    """
    raw: dict[str, JsonValue] = {
        "kafka": {
            "bootstrap_servers": services.kafka,
            "topic_prefix": prefix,
            "session_timeout_s": session_timeout_s,
        },
        "weaviate": {
            "http": f"http://{services.weaviate_http}",
            "grpc": services.weaviate_grpc,
            "settle_s": settle_s,
            "write_timeout_s": write_timeout_s or session_timeout_s / 2,
        },
        "collections": {COLLECTION: {"topic": topic, "alias": alias, "versions": {}, **collection}},
    }
    path = folder / "crossfade.yaml"
    path.write_text(yaml.safe_dump(raw))
    out = await Outside.open(config.load(path))
    await out.ensure_topics()
    state, progress = out.state_view(), out.progress_view()
    await state.load()
    await progress.load()
    following = [asyncio.create_task(state.run()), asyncio.create_task(progress.run())]
    deployment = Deployment(folder, raw, topic, out, state, progress)
    try:
        yield deployment
    finally:
        for process in deployment.workers:
            if process.poll() is None:
                process.kill()
                await asyncio.to_thread(process.wait)
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)
        await state.close()
        await progress.close()
        await out.store.drop_alias(alias)
        for build in state.builds.values():
            await out.store.drop_space(build.space)
        names = out.names
        for name in (names.commands, names.state, names.progress, names.journal, names.dead_letters):
            await out.topics.delete_topic(name)
        await out.close()
