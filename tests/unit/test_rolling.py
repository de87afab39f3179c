"""The rollout of a collection over several servers: what they publish, what the controller makes of it, what lasts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import cast

import pytest

from connectors.errors import Unreachable
from streams.config_operation import Rollout, Routes
from streams.controller import ATTEND_EVERY_S, Controller
from streams.migration.series import SeriesRecord
from streams.progress import ProgressRecord
from streams.search.publishing import Publisher
from streams.search.rolling import KEPT_MS, Rollouts
from streams.search.shadow import Shadows
from streams.state import BuildState, RolloutState
from streams.versions import Stage
from streams.views import ProgressView
from tests.merge import virtual_time
from tests.unit.test_controller import CONFIG, NAMES, World

RULES = Rollout(share=0.1, automatic=True, steps=[0.1, 0.5, 1.0], every_s=60, min_queries=10, window_s=300)


def configure(world: World, rules: Rollout) -> None:
    routes = Routes(default="rollout", rollout=rules).model_dump_json()
    world.path.write_text(CONFIG.replace("topic: documents", f"topic: documents\n    routes: {routes}"))


class Fleet:
    """Servers without sockets: each counts and publishes for itself."""

    def __init__(self, world: World, count: int) -> None:
        self.world = world
        self.away = False
        self.begun = 0
        self.servers = [self.begin() for _ in range(count)]

    def begin(self) -> tuple[Rollouts, Publisher]:
        rollouts = Rollouts()
        self.begun += 1
        publisher = Publisher(rollouts, Shadows(), self, NAMES.progress, f"s{self.begun}", lambda: self.world.now_ms)
        return rollouts, publisher

    async def send(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]] = ()
    ) -> None:
        if self.away:
            raise Unreachable("Kafka is away")
        self.world.kafka.append(topic, key, value)

    async def count(
        self, build: BuildState, queries: int, *, failed: int = 0, took_ms: float = 10, serving: bool = True
    ) -> None:
        """At each server, of the step that stands; `serving`: as many of the serving version, in 10 ms each."""
        assert build.rollout is not None
        step = build.rollout.step

        def add(rollouts: Rollouts, *, new: bool, hits: int | None, took_ms: float) -> None:
            at_ms = self.world.now_ms
            rollouts.add(build, step, new=new, hits=hits, took_ms=took_ms, at_ms=at_ms, window_s=RULES.window_s)

        for rollouts, _ in self.servers:
            for at in range(queries):
                add(rollouts, new=True, hits=None if at < failed else 5, took_ms=took_ms)
                if serving:
                    add(rollouts, new=False, hits=5, took_ms=10)
        await self.publish()

    async def publish(self) -> None:
        for _, publisher in self.servers:
            await publisher.publish()


async def stands(world: World) -> RolloutState | None:
    return (await world.view()).build("docs", "v2").rollout


async def build_of(world: World) -> BuildState:
    return (await world.view()).build("docs", "v2")


async def restarted(world: World) -> Controller:
    """Another controller, which knows what the topics say and nothing more."""
    world.progress = ProgressView(world.kafka.tail(NAMES.progress))
    controller = await world.controller()
    await world.progress.load()
    return controller


@asynccontextmanager
async def attending(world: World, controller: Controller) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(part) for part in (controller.attend(), world.progress.run())]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def looks() -> None:
    """The controller has looked, in time that is not real."""
    await asyncio.sleep(6 * ATTEND_EVERY_S)


async def rolled(folder: Path) -> tuple[World, Controller]:
    """v1 serves, v2 is ready."""
    world = World(folder)
    world.kafka.idle = asyncio.sleep
    controller = await world.controller()
    await world.ready(controller, "v1")
    assert (await world.ask(controller, "cutover", "v1")).ok
    await world.ready(controller, "v2")
    await world.progress.load()
    return world, controller


def test_it_is_begun_raised_by_all_servers_together_and_journalled(tmp_path: Path) -> None:
    async def story() -> None:
        world, controller = await rolled(tmp_path)
        fleet = Fleet(world, 2)
        async with attending(world, controller):
            await looks()
            assert await stands(world) is None, "nothing is configured"
            configure(world, RULES)
            await looks()
            beside = (await world.view()).build("docs", "v1").space
            begun = RolloutState(share=0.1, step=1, since_ms=world.now_ms, configured=0.1, beside=beside)
            assert await stands(world) == begun
            await fleet.count(await build_of(world), 5)  # none of the two has seen ten
            world.now_ms += 59_000
            await looks()
            assert await stands(world) == begun
            world.now_ms += 2_000
            await looks()
            now = await stands(world)
            assert now is not None
            assert (now.share, now.step, now.stopped) == (0.5, 2, "")
            world.now_ms += 61_000
            await looks()
            assert await stands(world) == now, "the queries of a step before do not count"
        entries = [entry for entry in await world.journal() if entry.event.startswith("rollout")]
        assert [(entry.event, entry.who, entry.version) for entry in entries] == [
            ("rollout begins", "rollout", "v2"),
            ("rollout raised", "rollout", "v2"),
        ]
        figures = cast(dict[str, dict[str, dict[str, object]]], entries[1].data["outcome"])["rollout"]["before"]
        assert (figures["replicas"], figures["share"]) == (2, 0.1)
        assert cast(dict[str, object], figures["new"])["queries"] == 10

    virtual_time.run(story())


def test_a_failed_bound_sends_all_back_and_no_restart_forgets_it(tmp_path: Path) -> None:
    async def story() -> None:
        world, controller = await rolled(tmp_path)
        configure(world, RULES)
        fleet = Fleet(world, 2)
        async with attending(world, controller):
            await looks()
            await fleet.count(await build_of(world), 10, failed=1)
            await looks()
            fallen = await stands(world)
            assert fallen is not None
            assert (fallen.share, fallen.step) == (0.0, 2)
            assert "10.0% of its queries failed, above max_errors" in fallen.stopped
            assert (await build_of(world)).notes[0][1] == "crossfade rollout docs"
            world.now_ms += 1_000_000
            fleet.servers = [fleet.begin(), fleet.begin()]  # both servers are started again
            await looks()
            assert await stands(world) == fallen
        controller = await world.controller()  # and the controller
        async with attending(world, controller):
            await looks()
            assert await stands(world) == fallen
            raised = await world.ask(controller, "rollout", action="raise")
            assert raised.ok, raised
            now = await stands(world)
            assert now is not None
            assert (now.share, now.step, now.stopped) == (0.1, 3, "")
            configure(world, RULES.model_copy(update={"share": 0.3}))
            await looks()
            now = await stands(world)
            assert now is not None
            assert (now.share, now.step, now.configured) == (0.3, 4, 0.3), "another share there begins it anew"

    virtual_time.run(story())


def test_a_failure_that_begins_late_in_a_long_step_is_not_hidden_by_hours_of_good_figures(tmp_path: Path) -> None:
    async def story() -> None:
        world, controller = await rolled(tmp_path)
        configure(world, RULES.model_copy(update={"automatic": False}))
        fleet = Fleet(world, 2)
        async with attending(world, controller):
            await looks()
            for _ in range(4):
                await fleet.count(await build_of(world), 1_000)
                world.now_ms += 3_600_000
            controller = await restarted(world)  # nothing of the window is in the controller alone
        async with attending(world, controller):
            await fleet.count(await build_of(world), 4)
            world.now_ms += 60_000
            await fleet.count(await build_of(world), 16, failed=4)
            await looks()
            fallen = await stands(world)
            assert fallen is not None
            assert fallen.share == 0.0, "8 of 8,040 in all; 8 of the last 40"
            assert fallen.stopped.startswith("20.0% of its queries of the last 300 s failed, above max_errors 1.0%")
        entry = next(entry for entry in await world.journal() if entry.event == "rollout ended")
        figures = cast(dict[str, dict[str, dict[str, object]]], entry.data["outcome"])["rollout"]["before"]
        recent = cast(dict[str, dict[str, object]], figures["recent"])
        assert (recent["new"]["queries"], recent["new"]["errors"], recent["serving"]["queries"]) == (40, 8, 40)

    virtual_time.run(story())


def test_at_the_whole_share_latency_is_compared_with_the_last_step_that_had_both(tmp_path: Path) -> None:
    async def story() -> None:
        world, controller = await rolled(tmp_path)
        configure(world, RULES.model_copy(update={"automatic": False, "steps": [0.1, 1.0]}))
        fleet = Fleet(world, 2)
        async with attending(world, controller):
            await looks()
            await fleet.count(await build_of(world), 10)
            await looks()
            assert (await world.ask(controller, "rollout", action="raise")).ok
            now = await stands(world)
            assert now is not None
            assert now.before is not None
            assert (now.share, now.before.step, now.before.share, now.before.queries) == (1.0, 1, 0.1, 20)
            assert now.before.p95_ms == pytest.approx(10, rel=0.05)
            await fleet.count(await build_of(world), 10, took_ms=35, serving=False)
            await looks()
            assert await stands(world) == now, "within twice the 20 ms that a faster version is taken for"
        controller = await restarted(world)  # what it is compared with stands in the state
        async with attending(world, controller):
            await fleet.count(await build_of(world), 20, took_ms=90, serving=False)
            await looks()
            fallen = await stands(world)
            assert fallen is not None
            assert fallen.share == 0.0, "nobody is asked beside it any more, and still it is judged"
            assert "max_latency_ratio" in fallen.stopped
            assert "ms at step 1, with 10.0% of the callers" in fallen.stopped
            assert fallen.before == now.before

    virtual_time.run(story())


def test_late_figures_of_a_rollout_before_a_cutover_and_a_rollback_do_not_count(tmp_path: Path) -> None:
    async def story() -> None:
        world, controller = await rolled(tmp_path)
        configure(world, RULES.model_copy(update={"automatic": False}))
        fleet = Fleet(world, 1)
        async with attending(world, controller):
            await looks()
            before = await build_of(world)
            assert before.rollout is not None
            await fleet.count(before, 5)
            assert (await world.ask(controller, "cutover", "v2")).ok
            assert (await world.ask(controller, "rollback")).ok
            await world.ready(controller, "v3")
            assert (await world.ask(controller, "cutover", "v3")).ok
            assert (await world.ask(controller, "rollback")).ok
            await looks()
            again = await build_of(world)
            assert (again.epoch, again.stage) == (before.epoch, Stage.READY), "v2 comes once more, the same build"
            assert again.rollout is not None
            assert again.rollout.step > before.rollout.step
            await fleet.count(before, 100, failed=100)  # a server that has not heard of any of it
            await looks()
            now = await stands(world)
            assert now is not None
            assert (now.share, now.stopped) == (0.1, "")
        begun = [e for e in await world.journal() if (e.event, e.version) == ("rollout begins", "v2")]
        assert len({entry.command_id for entry in begun}) == 2

    virtual_time.run(story())


def test_when_another_version_serves_it_is_counted_anew_beside_that_one(tmp_path: Path) -> None:
    async def story() -> None:
        world, controller = await rolled(tmp_path)
        await world.ready(controller, "v3")
        configure(world, RULES.model_copy(update={"automatic": False}))
        fleet = Fleet(world, 1)

        async def v3() -> BuildState:
            return (await world.view()).build("docs", "v3")

        async with attending(world, controller):
            await looks()
            await fleet.count(await v3(), 10)
            await looks()
            assert (await world.ask(controller, "rollout", action="raise")).ok
            stood = (await v3()).rollout
            assert stood is not None
            assert stood.before is not None, "how v1 did"
            assert (await world.ask(controller, "cutover", "v2")).ok
            world.now_ms += 1_000
            await looks()
            now = (await v3()).rollout
            assert now is not None
            assert (now.share, now.step, now.before, now.since_ms) == (0.5, 3, None, world.now_ms)
            assert now.beside == (await build_of(world)).space
            await looks()
            assert (await v3()).rollout == now
        events = [entry.event for entry in await world.journal() if entry.event.startswith("rollout")]
        assert events == ["rollout begins", "rollout raised", "rollout counted anew"]

    virtual_time.run(story())


def test_a_server_that_begins_again_neither_takes_counts_away_nor_counts_twice(tmp_path: Path) -> None:
    async def story() -> None:
        world, controller = await rolled(tmp_path)
        configure(world, RULES.model_copy(update={"automatic": False, "min_queries": 30}))
        fleet = Fleet(world, 1)
        async with attending(world, controller):
            await looks()
            for _ in range(2):
                await fleet.count(await build_of(world), 10, failed=1)
                await fleet.publish()
                await fleet.publish()
                fleet.servers = [fleet.begin()]
            await looks()
            assert len(world.progress.searches("docs")) == 2
            now = await stands(world)
            assert now is not None
            assert now.step == 1, "20 queries, not 30"
            await fleet.count(await build_of(world), 10)
            await looks()
            now = await stands(world)
            assert now is not None
            assert "6.7% of its queries failed" in now.stopped

    virtual_time.run(story())


async def test_while_kafka_is_away_counts_wait(tmp_path: Path) -> None:
    world, controller = await rolled(tmp_path)
    configure(world, RULES)
    assert (await world.ask(controller, "rollout", action="raise")).ok
    fleet = Fleet(world, 1)
    fleet.away = True
    await fleet.count(await build_of(world), 3)
    fleet.away = False
    await fleet.count(await build_of(world), 4)
    while not world.progress.searches("docs"):
        world.progress._take(await world.progress._tail.read(0.1))
    found = world.progress.searches("docs")[0].rollout
    assert found is not None
    assert found.new.queries == 7


async def test_by_hand(tmp_path: Path) -> None:
    world, controller = await rolled(tmp_path)
    first = await world.ask(controller, "rollout", action="raise")
    assert first.ok
    assert "routes.default is serving: only queries that ask for the mode rollout go by it" in first.message
    configure(world, RULES.model_copy(update={"share": 0.0}))
    for share in (0.1, 0.5, 1.0):
        if share > 0.1:
            assert (await world.ask(controller, "rollout", action="raise")).ok
        else:
            assert (await world.ask(controller, "rollout", action="end")).ok
            assert (await world.ask(controller, "rollout", action="raise")).ok
        now = await stands(world)
        assert now is not None
        assert now.share == share
    top = await world.ask(controller, "rollout", action="raise")
    assert (top.ok, top.next_step.split(" --")[0]) == (False, "crossfade cutover docs v2")
    assert (await world.ask(controller, "rollout", action="end")).ok
    late = await world.ask(controller, "rollout", action="raise", step=1)
    assert (late.ok, "changed meanwhile" in late.message) == (False, True)
    ended = await stands(world)
    assert ended is not None
    assert (ended.share, ended.stopped) == (0.0, "ended by nobody named")
    assert (await world.ask(controller, "cutover", "v2")).ok
    assert (await build_of(world)).rollout is None, "it serves: there is nothing to roll out"
    nothing = await world.ask(controller, "rollout", action="raise")
    assert (nothing.ok, nothing.next_step) == (
        False,
        "crossfade status docs; a rollout begins once a version is ready",
    )


def test_what_ended_servers_counted_is_taken_away_in_time(tmp_path: Path) -> None:
    async def story() -> None:
        world, controller = await rolled(tmp_path)
        configure(world, RULES)
        assert (await world.ask(controller, "rollout", action="raise")).ok
        fleet = Fleet(world, 1)
        await fleet.count(await build_of(world), 3)
        assert (await world.ask(controller, "rollout", action="raise")).ok
        gone: list[str] = []

        async def send(key: str, record: ProgressRecord | SeriesRecord | None) -> None:
            if record is None:
                gone.append(key)
                world.progress.counted.pop(key)

        tasks = [asyncio.create_task(part) for part in (controller.summarise(send), world.progress.run())]
        await looks()
        assert gone == []
        world.now_ms += KEPT_MS + 1
        await looks()
        assert gone == ["docs//s1/searches"]
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    virtual_time.run(story())


@pytest.mark.parametrize("stage", [Stage.BUILDING, Stage.READY])
def test_a_version_that_is_not_ready_has_no_note(stage: Stage) -> None:
    build = BuildState(
        collection="docs", version="v2", epoch=2, stage=stage, envelope={}, fingerprint="f", space="S", topic="t",
        rollout=RolloutState(share=0.1, step=1, since_ms=0, configured=0.1),
    )  # fmt: skip
    assert bool(build.notes) == (stage is Stage.READY)
