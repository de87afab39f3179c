"""The controller over in-memory Kafka and vector store: refusals, once-only commands, and a crash at every single call.

It must never look inside the controller: only at the state topic, the alias, and the spaces.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from connectors.errors import (
    AccessDenied,
    ConfigurationError,
    CrossfadeError,
    Fenced,
    NotFound,
    UnknownOutcome,
    Unreachable,
)
from connectors.memory.embedder import MemoryEmbedder
from connectors.memory.log import MemoryLog
from connectors.memory.store import MemoryStore
from connectors.protocols import Embedder, SpaceSpec, Write
from streams import config
from streams.config import Settings
from streams.config_embedders import Version
from streams.config_operation import Hook, Routes
from streams.controller import Controller
from streams.migration.gate import Check, GateResult, Swept, Verdict
from streams.migration.sweep import Sweep
from streams.progress import ProgressRecord
from streams.state import BuildState, Command, CommandOutcome, JournalEntry, TopicNames
from streams.verbs.desk import Asked, Outside
from streams.versions import Stage
from streams.views import ProgressView, StateView
from tests.merge import virtual_time

NAMES = TopicNames("cf")


class Crash(BaseException):
    """The process ends here. No handler of ordinary errors may catch it."""


class Fuse:
    """Counts every call that goes outside, and lets something happen before or after the n-th."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.at = -1
        self.before: BaseException | None = None
        self.after: BaseException | None = None

    def blow(self, at: int, *, before: BaseException | None = None, after: BaseException | None = None) -> None:
        self.at, self.before, self.after = len(self.calls) + at, before, after

    def enter(self, what: str) -> bool:
        self.calls.append(what)
        now = len(self.calls) - 1 == self.at
        if now and self.before is not None:
            raise self.before
        return now

    def leave(self, now: bool) -> None:
        if now and self.after is not None:
            raise self.after


class FusedStore(MemoryStore):
    def __init__(self, fuse: Fuse) -> None:
        super().__init__()
        self.fuse = fuse

    async def create_space(self, spec: SpaceSpec) -> None:
        now = self.fuse.enter("create_space")
        await super().create_space(spec)
        self.fuse.leave(now)

    async def drop_space(self, name: str) -> None:
        now = self.fuse.enter("drop_space")
        await super().drop_space(name)
        self.fuse.leave(now)

    async def alias_target(self, alias: str) -> str | None:
        now = self.fuse.enter("alias_target")
        target = await super().alias_target(alias)
        self.fuse.leave(now)
        return target

    async def point_alias(self, alias: str, space: str) -> None:
        now = self.fuse.enter("point_alias")
        await super().point_alias(alias, space)
        self.fuse.leave(now)


class MemoryWriter:
    """controller.StateWriter on a MemoryLog: whoever fenced last may write, all or nothing."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._mine = -1

    async def fence(self) -> None:
        self._world.writer_epoch += 1
        self._mine = self._world.writer_epoch

    async def write(self, records: Sequence[Write]) -> None:
        now = self._world.fuse.enter("write")
        if self._mine != self._world.writer_epoch:
            raise Fenced("another producer has taken over")
        for record in records:
            self._world.kafka.append(record.topic, record.key, record.value)
        self._world.fuse.leave(now)


CONFIG = """
kafka: {topic_prefix: cf}
collections:
  docs:
    topic: documents
    text: {fields: [text]}
    versions:
      v1: {embedder: {provider: hashing}, dimensions: 8}
      v2: {embedder: {provider: hashing, seed: 2}, dimensions: 8}
      v3: {embedder: {provider: hashing, seed: 3}, dimensions: 8}
"""


def _there(path: str) -> bool:
    return Path(path).exists()


async def _at_once() -> None:
    """The gate takes no time."""


class World:
    """Everything outside the controller. `found`: what the next sweep says."""

    def __init__(self, folder: Path) -> None:
        self.fuse = Fuse()
        self.kafka = MemoryLog()
        self.kafka.create_topic("documents", 2)
        for topic in (NAMES.state, NAMES.journal, NAMES.progress):
            self.kafka.create_topic(topic)
        self.store = FusedStore(self.fuse)
        self.writer_epoch = 0
        self.path = folder / "crossfade.yaml"
        self.path.write_text(CONFIG)
        self.found: dict[str, int] = {}
        self.unread = ""
        self.verdict = Verdict.PASS
        self.golden_read = 0
        self.notes: tuple[str, ...] = ()
        self.answering: Callable[[BuildState, str], Awaitable[Asked]] = self.answer
        self.meanwhile: Callable[[], Awaitable[None]] = _at_once
        self.judged: list[tuple[str, str | None]] = []
        self.answers: dict[str, Asked] = {}
        self.failing: dict[str, CrossfadeError] = {}
        self.sweeping: Callable[[], None] = lambda: None
        self.progress = ProgressView(self.kafka.tail(NAMES.progress))
        self.now_ms = 1_000_000

    def settings(self) -> Settings:
        return config.load(self.path)

    def hooks(self, collection: str) -> list[Hook]:
        """A worker knows those of the last file that it could read; here that has none."""
        try:
            return self.settings().collection(collection).hooks
        except (ConfigurationError, NotFound):
            return []

    def routes(self, collection: str) -> Routes | None:
        try:
            return self.settings().collection(collection).routes
        except (ConfigurationError, NotFound):
            return None

    def embedder(self, version: Version) -> list[tuple[str, Embedder]]:
        return [("memory", MemoryEmbedder(version.dimensions))]

    async def sweep(self, build: BuildState, serving: BuildState | None) -> Sweep:
        self.sweeping()
        missing, stale, extra = (self.found.get(name, 0) for name in ("missing", "stale", "extra"))
        held = ["k"] * self.found.get("held", 0)
        lost = self.found.get("lost", 0)
        examples = {"lost": [f"old-{n}" for n in range(lost)]} if lost else {}
        return Sweep(
            build.collection,
            build.version,
            10,
            missing,
            stale,
            extra,
            held,
            moved=0,
            examples=examples,
            lost=lost,
            unread=self.unread,
        )

    async def judge(self, build: BuildState, serving: BuildState | None, swept: Swept) -> GateResult:
        self.judged.append((build.version, serving.version if serving else None))
        await self.meanwhile()
        check = Check("recall", 0.5, 0.98, self.verdict, "half of it")
        return GateResult(self.verdict, (check,), self.notes, judged=True)

    async def answer(self, build: BuildState, query: str) -> Asked:
        """`answers`: how each version answers, if not as it should; its time is that of the loop."""
        if (error := self.failing.get(build.version)) is not None:
            raise error
        mark = f"{build.version}@{build.fingerprint}"
        return self.answers.get(build.version, Asked(build.space, 10, frozenset({mark}), 5.0))

    async def file_exists(self, path: str) -> bool:
        return _there(path)

    async def journal(self) -> list[JournalEntry]:
        """Oldest first."""
        entries: list[JournalEntry] = []
        for partition, bounds in (await self.kafka.bounds(NAMES.journal)).items():
            async for batch in self.kafka.read_range(NAMES.journal, partition, 0, bounds.stable):
                entries += [JournalEntry.model_validate_json(r.value) for r in batch.records if r.value is not None]
        return entries

    async def golden(self, collection: str) -> list[str]:
        self.golden_read += 1
        return []

    async def controller(self) -> Controller:
        outside = Outside(
            settings=self.settings,
            kafka=self.kafka,
            store=self.store,
            make_embedders=self.embedder,
            sweep=self.sweep,
            wall_ms=lambda: self.now_ms,
            judge=self.judge,
            ask=lambda build, query: self.answering(build, query),
            queries=self.golden,
            file_exists=self.file_exists,
            hooks=self.hooks,
            routes=self.routes,
        )
        controller = Controller(NAMES, outside, MemoryWriter(self), self.progress)
        await controller.take_over(self.view)
        return controller

    async def view(self) -> StateView:
        view = StateView(self.kafka.tail(NAMES.state))
        await view.load()
        return view

    def report(self, version: str, epoch: int, *, unsettled: int = 0, age_ms: int = 0) -> None:
        """What the workers that own the partitions report."""
        for partition in (0, 1):
            self.progress.records[f"docs/{version}/{partition}"] = ProgressRecord(
                name=version, epoch=epoch, partition=partition, status="ready", progress=1.0, total=0, completed=0,
                rate_per_s=0.0, eta_s=0.0, changed_mid_migration=0, unchanged_skipped=0, dead_letters=0, live_lag=0,
                unsettled=unsettled, planned=True, replay_done=True, updated_at=self.now_ms - age_ms,
            )  # fmt: skip

    async def ready(self, controller: Controller, version: str) -> BuildState:
        """A build that only waits to be cut over to."""
        await controller.handle(Command(verb="start", collection="docs", version=version))
        build = (await self.view()).build("docs", version)
        for partition in (0, 1):
            args = {"epoch": build.epoch, "partition": partition}
            await controller.handle(Command(verb="replayed", collection="docs", version=version, args=dict(args)))
        self.report(version, build.epoch)
        return (await self.view()).build("docs", version)

    async def ask(
        self, controller: Controller, verb: str, version: str | None = None, **args: object
    ) -> CommandOutcome:
        """One command to its outcome."""
        command = Command.model_validate({"verb": verb, "collection": "docs", "version": version, "args": args})
        await controller.handle(command)
        outcome = (await self.view()).collection("docs").outcome(command.id)
        assert outcome is not None, f"no outcome of {verb}"
        return outcome

    async def check(self) -> StateView:
        """The alias agrees with the state, spaces with the stages, and one version at most serves."""
        view = await self.view()
        collection = view.collections.get("docs")
        if collection is None:
            return view
        assert collection.intent is None, "a step has begun and nobody completes it"
        serving = collection.serving
        target = await self.store.alias_target(collection.alias) if collection.alias else None
        assert target == (view.build("docs", serving).space if serving else None)
        for build in view.builds_of("docs"):
            assert (build.stage is Stage.SERVING) == (build.version == serving)
            assert (build.stage is Stage.PREVIOUS) == (build.version == collection.previous)
            assert build.stage not in (Stage.RETIRED, Stage.ABORTED) or build.space not in await self.store.spaces()
            assert not build.active or build.space in await self.store.spaces()
        return view


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def stages(world: World) -> dict[str, str]:
    return {build.version: build.stage.value for build in (await world.view()).builds.values()}


async def test_a_life(world: World) -> None:
    controller = await world.controller()
    for key in (b"a", b"b", b"c"):
        world.kafka.append("documents", key, b"{}")
    v1 = await world.ready(controller, "v1")
    assert v1.stage is Stage.READY
    ends = {p: b.stable for p, b in (await world.kafka.bounds("documents")).items()}
    assert v1.start == v1.barrier == ends
    assert sum(ends.values()) == 3
    assert (await world.ask(controller, "cutover", "v1")).ok
    await world.ready(controller, "v2")
    assert (await world.ask(controller, "cutover", "v2")).ok
    assert await stages(world) == {"v1": "previous", "v2": "serving"}
    assert (await world.ask(controller, "rollback", None, max_lag=10)).ok
    assert await stages(world) == {"v1": "serving", "v2": "previous"}
    assert (await world.ask(controller, "retire", "v2", confirm="v2")).ok
    assert await stages(world) == {"v1": "serving", "v2": "retired"}
    again = await world.ready(controller, "v2")
    assert (again.epoch, v1.epoch) == (3, 1), "an epoch is never used again"
    await world.check()


async def test_a_start_that_a_worker_was_faster_with_is_no_error(world: World) -> None:
    """`plan` says: crossfade start. The worker that finds the version in its configuration may have done so already."""
    controller = await world.controller()
    begun = await world.ask(controller, "start", "v1")
    again = await world.ask(controller, "start", "v1")
    assert (again.ok, again.message.split(":")[0]) == (True, "docs/v1 is building already")
    assert (await world.view()).build("docs", "v1").epoch == begun.data["epoch"]
    faster = await world.ask(controller, "start", "v1", replay_rate=5)
    assert (faster.ok, faster.next_step) == (False, "crossfade set docs v1 replay_rate=5")
    assert (await world.view()).build("docs", "v1").controls.replay_rate is None
    await world.ready(controller, "v2")
    assert not (await world.ask(controller, "start", "v2")).ok


async def test_a_third_version_takes_the_place_of_the_previous(world: World) -> None:
    controller = await world.controller()
    for version in ("v1", "v2", "v3"):
        await world.ready(controller, version)
        assert (await world.ask(controller, "cutover", version)).ok
        await world.check()
    assert await stages(world) == {"v1": "ready", "v2": "previous", "v3": "serving"}


async def test_an_id_is_applied_once(world: World) -> None:
    controller = await world.controller()
    command = Command(verb="start", collection="docs", version="v1")
    await controller.handle(command)
    writes = world.fuse.calls.count("write")
    await controller.handle(command)
    await asyncio.gather(*(controller.handle(command) for _ in range(3)))
    other = await world.controller()
    await other.handle(command)
    assert world.fuse.calls.count("write") == writes
    assert (await world.view()).collection("docs").epochs == 1


async def test_refusals_name_the_next_step(world: World) -> None:
    controller = await world.controller()
    await world.ready(controller, "v1")
    for verb, version, args in (
        ("start", "v9", {}),
        ("start", "v1", {}),
        ("retire", "v2", {"confirm": "v2"}),
        ("retire", "v1", {}),
        ("rollback", None, {}),
        ("set", "v1", {"replay_rate": -1}),
    ):
        outcome = await world.ask(controller, verb, version, **args)
        assert not outcome.ok, verb
        assert "crossfade" in outcome.next_step or "versions" in outcome.next_step or "above 0" in outcome.next_step
    await world.ask(controller, "cutover", "v1")
    refused = await world.ask(controller, "retire", "v1", confirm="v1")
    assert (refused.ok, refused.next_step) == (False, "crossfade rollback docs")
    await world.check()


async def test_what_search_would_lose_is_given_up_by_number_only(world: World) -> None:
    """Documents that the topic has forgotten: refused, also for fewer than there are, and kept in the outcome."""
    controller = await world.controller()
    await world.ready(controller, "v1")
    world.found = {"lost": 3}
    refused = await world.ask(controller, "cutover", "v1")
    assert not refused.ok
    assert "would lose 3 of the documents" in refused.message
    assert "old-0, old-1, old-2" in refused.message
    assert "--accept-lost 3" in refused.next_step
    for too_few in (2, True, "3"):
        assert not (await world.ask(controller, "cutover", "v1", accept_lost=too_few)).ok
    done = await world.ask(controller, "cutover", "v1", accept_lost=3)
    assert done.ok
    assert (done.data["lost"], done.data["accepted_lost"]) == (3, 3)


async def test_what_search_would_lose_must_be_known(world: World) -> None:
    """A serving space that cannot be read: whatever number was accepted, it is of nothing."""
    controller = await world.controller()
    await world.ready(controller, "v1")
    world.unread = "Weaviate refuses access (403); next: check weaviate.api_key"
    for accepted in ({}, {"accept_lost": 10**9}):
        refused = await world.ask(controller, "cutover", "v1", **accepted)
        assert not refused.ok
        assert "is not known: the space that serves cannot be read: Weaviate refuses access (403)" in refused.message
        assert "crossfade cutover docs v1" in refused.next_step
        assert refused.data["unread"] == world.unread
    world.unread = ""
    assert (await world.ask(controller, "cutover", "v1")).ok


@pytest.mark.parametrize("kind", ["missing", "stale", "extra", "held"])
async def test_no_cutover_to_a_space_that_differs(world: World, kind: str) -> None:
    controller = await world.controller()
    await world.ready(controller, "v1")
    world.found = {kind: 1}
    outcome = await world.ask(controller, "cutover", "v1")
    assert not outcome.ok
    assert await world.store.alias_target("Docs") is None
    if kind == "held":
        assert not (await world.ask(controller, "cutover", "v1", accept_held=["another"])).ok
        assert (await world.ask(controller, "cutover", "v1", accept_held=["k"])).ok
    await world.check()


def test_no_cutover_in_doubt(world: World) -> None:
    async def main() -> None:
        controller = await world.controller()
        build = await world.ready(controller, "v1")
        world.report("v1", build.epoch, unsettled=1)
        assert "unsettled" in (await world.ask(controller, "cutover", "v1")).message
        world.report("v1", build.epoch, age_ms=60_000)
        assert "no worker has reported" in (await world.ask(controller, "cutover", "v1")).message
        world.report("v1", build.epoch - 1)
        assert "no worker has reported" in (await world.ask(controller, "cutover", "v1")).message
        world.report("v1", build.epoch)
        assert (await world.ask(controller, "cutover", "v1", check=True)).ok
        assert await world.store.alias_target("Docs") is None
        assert (await world.ask(controller, "cutover", "v1")).ok

    virtual_time.run(main())  # it waits for reports before it says that there are none


def test_a_cutover_is_judged_by_reports_made_after_it_was_asked_for(world: World) -> None:
    swept: list[int] = []

    async def main() -> None:
        controller = await world.controller()
        build = await world.ready(controller, "v1")
        world.sweeping = lambda: swept.append(world.progress.records["docs/v1/0"].unsettled)
        world.report("v1", build.epoch, unsettled=1, age_ms=1_000)
        asked = asyncio.create_task(world.ask(controller, "cutover", "v1"))
        await asyncio.sleep(2.0)
        assert not swept
        world.report("v1", build.epoch)
        async with world.progress._changed:
            world.progress._changed.notify_all()
        assert (await asked).ok

    virtual_time.run(main())
    assert swept == [0]


async def test_no_cutover_when_doubt_comes_up_during_the_sweep(world: World) -> None:
    controller = await world.controller()
    build = await world.ready(controller, "v1")
    world.sweeping = lambda: world.report("v1", build.epoch, unsettled=3)
    assert "unsettled" in (await world.ask(controller, "cutover", "v1")).message
    assert await world.store.alias_target("Docs") is None


async def test_no_cutover_when_somebody_else_moved_the_alias(world: World) -> None:
    controller = await world.controller()
    await world.ready(controller, "v1")
    await world.store.create_space(SpaceSpec("Foreign", 8, "cosine", "{}"))
    await world.store.point_alias("Docs", "Foreign")
    outcome = await world.ask(controller, "cutover", "v1")
    assert "which Crossfade did not do" in outcome.message
    assert await world.store.alias_target("Docs") == "Foreign"
    assert (await world.view()).collection("docs").intent is None


def test_an_alias_moved_behind_our_back_is_put_back(world: World) -> None:
    async def main() -> None:
        controller = await world.controller()
        build = await world.ready(controller, "v1")
        await world.ask(controller, "cutover", "v1")
        await world.store.create_space(SpaceSpec("Foreign", 8, "cosine", "{}"))
        await world.store.point_alias("Docs", "Foreign")
        watch = asyncio.create_task(controller.watch())
        await asyncio.sleep(20.0)
        assert await world.store.alias_target("Docs") == build.space
        (entry,) = [one for one in await world.journal() if one.event == "alias put back"]
        assert (entry.who, entry.epoch) == ("controller", build.epoch)
        assert entry.data[build.key]["envelope"] == build.envelope  # type: ignore[index,call-overload]
        # and a space that somebody dropped does not end the watch, nor the worker with it
        await world.store.point_alias("Docs", "Foreign")
        await world.store.drop_space(build.space)
        await asyncio.sleep(40.0)
        assert not watch.done()
        watch.cancel()

    virtual_time.run(main())


async def test_a_space_that_could_not_be_dropped_can_be_dropped_later(world: World) -> None:
    """The stage comes first, so that no worker writes into what is dropped; the space must not be left for good."""
    controller = await world.controller()
    build = await world.ready(controller, "v1")
    denied = [AccessDenied("this key may not delete", next_step="give it the right to")]
    real = world.store.drop_space

    async def drop(name: str) -> None:
        if denied:
            raise denied.pop()
        await real(name)

    world.store.drop_space = drop  # type: ignore[method-assign]
    refused = await world.ask(controller, "abort", "v1", confirm="v1")
    assert (refused.ok, refused.message) == (False, "this key may not delete")
    assert build.space in await world.store.spaces()
    assert not (await world.ask(controller, "abort", "v1")).ok, "not without its name"
    assert (await world.ask(controller, "abort", "v1", confirm="v1")).ok
    assert build.space not in await world.store.spaces()
    assert "aborted" in (await world.ask(controller, "abort", "v1", confirm="v1")).message
    await world.check()


async def test_a_rollback_after_partitions_were_added_has_an_outcome(world: World) -> None:
    """Nothing of the new one is written yet: all of it is lag."""
    controller = await world.controller()
    for version in ("v1", "v2"):
        await world.ready(controller, version)
        assert (await world.ask(controller, "cutover", version)).ok
    world.kafka.add_partitions("documents", 3)
    world.kafka.append("documents", b"k", b"{}", partition=2)
    outcome = await world.ask(controller, "rollback")
    assert (outcome.ok, outcome.data["lag"]) == (True, 1)


async def test_a_refusal_that_cannot_be_recorded_ends_nothing(world: World) -> None:
    """Whoever holds the office would end with it, and the worker too."""
    controller = await world.controller()
    await world.ready(controller, "v1")
    world.fuse.blow(0, before=AccessDenied("the state topic takes no such record"))
    await controller.handle(Command(verb="rollback", collection="docs"))
    assert controller.active
    assert (await world.ask(controller, "cutover", "v1")).ok


async def test_a_fenced_controller_stands_down_and_moves_nothing(world: World) -> None:
    first = await world.controller()
    await world.ready(first, "v1")
    await world.ask(first, "cutover", "v1")
    second = await world.controller()
    await world.ready(second, "v2")
    await first.handle(Command(verb="cutover", collection="docs", version="v2"))
    assert (first.active, second.active) == (False, True)
    assert await stages(world) == {"v1": "serving", "v2": "ready"}
    assert (await world.ask(second, "cutover", "v2")).ok
    await world.check()


# --- crashes --------------------------------------------------------------------------------------------------------


async def prepare(world: World, verb: str) -> Command:
    """The situation in which this verb may be applied, and the command."""
    controller = await world.controller()
    if verb == "start":
        return Command(verb="start", collection="docs", version="v1")
    await world.ready(controller, "v1")
    if verb == "abort":
        return Command(verb="abort", collection="docs", version="v1", args={"confirm": "v1"})
    await world.ask(controller, "cutover", "v1")
    await world.ready(controller, "v2")
    if verb == "cutover":
        return Command(verb="cutover", collection="docs", version="v2")
    await world.ask(controller, "cutover", "v2")
    if verb == "rollback":
        return Command(verb="rollback", collection="docs", args={"max_lag": 10**6})
    return Command(verb="retire", collection="docs", version="v1", args={"confirm": "v1"})


ENDS = {
    "start": {"v1": "building"},
    "abort": {"v1": "aborted"},
    "cutover": {"v1": "previous", "v2": "serving"},
    "rollback": {"v1": "serving", "v2": "previous"},
    "retire": {"v1": "retired", "v2": "serving"},
}
MOST_CALLS = 12


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("verb", ENDS)
async def test_a_crash_at_every_call_is_completed_by_the_next(tmp_path: Path, verb: str, when: str) -> None:
    crashes = 0
    for at in range(MOST_CALLS):
        (folder := tmp_path / str(at)).mkdir()
        world = World(folder)
        command = await prepare(world, verb)
        first = await world.controller()
        world.fuse.blow(at, **{when: Crash()})
        try:
            await first.handle(command)
        except Crash:
            crashes += 1
        world.fuse.at = -1
        second = await world.controller()  # completes what had begun
        await world.check()
        await second.handle(command)  # the sender asks again, under the same id
        assert (await world.check()).collection("docs").outcome(command.id) is not None
        assert await stages(world) == ENDS[verb], f"after a crash {when} call {at}"
    assert crashes >= 3


@pytest.mark.parametrize("verb", ENDS)
def test_a_lost_answer_at_every_call_changes_nothing(tmp_path: Path, verb: str) -> None:
    async def main(at: int, when: str, error: CrossfadeError) -> None:
        (folder := tmp_path / f"{at}-{when}").mkdir()
        world = World(folder)
        command = await prepare(world, verb)
        controller = await world.controller()
        world.fuse.blow(at, **{when: error})
        await controller.handle(command)
        world.fuse.at = -1
        assert await stages(world) == ENDS[verb], f"after trouble {when} call {at}"
        await world.check()

    random.seed(1)
    for at in range(MOST_CALLS):
        virtual_time.run(main(at, "before", Unreachable("away")))
        virtual_time.run(main(at, "after", UnknownOutcome("no answer")))


def test_a_lost_answer_does_not_fence_the_next_controller(world: World) -> None:
    """The zombie's write was lost because it was cut off: the other one is in office by the time it tries again."""

    async def main() -> None:
        zombie = await world.controller()
        await world.ready(zombie, "v1")
        world.fuse.blow(0, before=UnknownOutcome("no answer"))
        asking = asyncio.create_task(zombie.handle(Command(verb="pause", collection="docs", version="v1")))
        await asyncio.sleep(0.05)
        zombie.stand_down()
        heir = await world.controller()
        assert (await world.ask(heir, "cutover", "v1")).ok
        await asking
        assert (await world.ask(heir, "pause", "v1", all=True)).ok, "the heir was fenced by the zombie"
        assert await stages(world) == {"v1": "serving"}
        await world.check()

    virtual_time.run(main())


class Away(FusedStore):
    """The vector store answers nothing that writes."""

    away = False

    async def create_space(self, spec: SpaceSpec) -> None:
        if self.away:
            raise Unreachable("away")
        await super().create_space(spec)

    async def point_alias(self, alias: str, space: str) -> None:
        if self.away:
            raise Unreachable("away")
        await super().point_alias(alias, space)

    async def drop_space(self, name: str) -> None:
        if self.away:
            raise Unreachable("away")
        await super().drop_space(name)


@pytest.mark.parametrize(
    ("pending", "then"),
    [
        (("start", "v3", {}), ("cutover", "v2", {})),
        (("start", "v3", {}), ("retire", "v1", {})),
        (("start", "v3", {}), ("rollback", None, {})),
        (("cutover", "v2", {}), ("pause", "v2", {})),
        (("cutover", "v2", {}), ("start", "v3", {})),
        (("retire", "v2", {"confirm": "v2"}), ("cutover", "v2", {})),
    ],
)
def test_a_step_that_waits_is_never_taken_for_another(
    world: World, pending: tuple[str, str, dict[str, str]], then: tuple[str, str | None, dict[str, str]]
) -> None:
    """While one step waits out an outage, a second command must neither skip its checks nor wipe the first out."""

    async def main() -> None:
        world.store = store = Away(world.fuse)
        controller = await world.controller()
        await world.ready(controller, "v1")
        await world.ask(controller, "cutover", "v1")
        await world.ready(controller, "v2")
        world.found = {"missing": 1} if then[0] == "cutover" else {}
        store.away = True
        commands = [
            Command.model_validate({"verb": verb, "collection": "docs", "version": version, "args": args})
            for verb, version, args in (pending, then)
        ]
        for command in commands:
            await controller.handle(command)
        assert (await world.view()).collection("docs").intent is not None
        assert await store.alias_target("Docs") == (await world.view()).build("docs", "v1").space
        assert (await world.view()).collection("docs").serving == "v1"
        store.away = False
        for command in commands:  # their senders ask again
            await controller.handle(command)
        await world.check()
        outcomes = [(await world.view()).collection("docs").outcome(command.id) for command in commands]
        assert outcomes[0] is not None
        assert outcomes[0].ok
        assert outcomes[1] is not None
        if then[0] in ("cutover", "retire", "rollback"):
            assert not outcomes[1].ok, "its own checks refuse it"

    random.seed(1)
    virtual_time.run(main())


def test_replayed_is_not_lost_to_an_outage_of_kafka(world: World) -> None:
    """Workers send it under one id until the state shows it: a refusal for trouble would end that for ever."""

    async def main() -> None:
        controller = await world.controller()
        await world.ask(controller, "start", "v1")
        command = Command(
            id="once", verb="replayed", collection="docs", version="v1", args={"epoch": 1, "partition": 0}
        )
        real = world.fuse.enter

        def down(what: str) -> bool:
            if what == "write" and asyncio.get_running_loop().time() < 10.0:
                raise Unreachable("away")
            return real(what)

        world.fuse.enter = down  # type: ignore[method-assign]
        await controller.handle(command)
        await asyncio.sleep(20.0)
        await controller.handle(command)
        assert (await world.view()).build("docs", "v1").replayed == [0]

    random.seed(1)
    virtual_time.run(main())


async def test_a_start_is_completed_as_it_was_declared(world: World) -> None:
    """The configuration changed between the crash and the next controller: space and fingerprint must not part."""
    controller = await world.controller()
    world.fuse.blow(1, before=Crash())
    command = Command(verb="start", collection="docs", version="v1")
    with pytest.raises(Crash):
        await controller.handle(command)
    world.path.write_text(CONFIG.replace("{provider: hashing}", "{provider: hashing, seed: 7}"))
    await world.controller()
    build = (await world.check()).build("docs", "v1")
    assert build.stage is Stage.BUILDING
    assert await world.store.description(build.space) == build.model.canonical_json()
