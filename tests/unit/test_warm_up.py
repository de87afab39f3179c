"""The warm-up before a cutover: when a space counts as warm, what is said of it, and what stops a cutover."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from connectors.errors import Refused, Unreachable
from streams.cli.swap import figures as shown
from streams.migration.warm_up import all_failed, figures, stable, unheard
from streams.state import BuildState, Command, Sample
from streams.verbs.desk import Asked
from tests.merge import virtual_time
from tests.unit.test_controller import CONFIG, World


def round_of(p95_ms: float | None, asked: int = 30, errors: int = 0) -> Sample:
    return Sample(asked=asked, zero=0, errors=errors, p95_ms=p95_ms)


@pytest.mark.parametrize(
    ("p95s", "warm"),
    [
        ([], False),
        ([12.0], False),
        ([41.0, 12.0], False),
        ([41.0, 12.0, 13.0], True),
        ([100.0, 80.0], True),
        ([100.0, 79.0], False),
        ([100.0, 121.0], False),
        ([1.0, 2.5], True),
        ([None, None], False),
        ([None, 10.0], False),
        ([10.0, None], False),
    ],
)
def test_when_a_space_is_warm(p95s: list[float | None], warm: bool) -> None:
    assert stable([round_of(p95) for p95 in p95s]) is warm


def test_all_failed_wants_enough_of_them() -> None:
    assert not all_failed([])
    assert not all_failed([round_of(None, 2, 2)])
    assert all_failed([round_of(None, 2, 2), round_of(None, 1, 1)])
    assert not all_failed([round_of(5.0, 30, 29)])
    assert unheard([])
    assert unheard([round_of(None, 1, 1)])
    assert not unheard([round_of(5.0, 1, 0)])
    assert not unheard([round_of(None, 3, 3)])


def test_what_is_said_of_it() -> None:
    found = figures([round_of(41.2), round_of(13.0), round_of(12.4)], 2.5)
    assert found["text"] == "warmed up: 3 rounds of 30 queries, p95 41 ms -> 12 ms"
    assert (found["rounds"], found["asked"], found["stable"]) == (3, 90, True)
    slow = figures([round_of(90.0, errors=1), round_of(40.0, 12, 1)], 10.02)
    assert slow["text"] == (
        "warm-up ended after 10.0 s, latency not yet stable: 2 rounds of 30 queries, p95 90 ms -> 40 ms, 2 failed"
    )
    assert figures([round_of(4.26)], 10.0)["text"] == (
        "warm-up ended after 10.0 s, latency not yet stable: 1 round of 30 queries, p95 4.3 ms -> 4.3 ms"
    )
    assert "  warmed up: 3 rounds of 30 queries, p95 41 ms -> 12 ms" in shown({"warm_up": found})


# --- in a cutover ---------------------------------------------------------------------------------------------------


class Cold:
    """A space whose queries take 200 ms, then a quarter of it each round, but 10 ms at least. `failing`: at random."""

    def __init__(self, world: World, every: int = 4) -> None:
        self.world, self.every = world, every
        self.asked: list[str] = []
        self.failing: set[int] = set()

    async def answer(self, build: BuildState, query: str) -> Asked:
        self.asked.append(build.version)
        number = len(self.asked) - 1
        took_ms = max(10.0, 200.0 / 4 ** (number // self.every))
        await asyncio.sleep(took_ms / 1000)
        if number in self.failing:
            raise Unreachable("away")
        mark = frozenset({f"{build.version}@{build.fingerprint}"})
        return Asked(build.space, 10, mark, took_ms)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def warm_up_s(world: World, seconds: float) -> None:
    text = "    text: {fields: [text]}\n"
    world.path.write_text(CONFIG.replace(text, f"{text}    cutover: {{warm_up_s: {seconds:g}}}\n"))


def test_the_new_space_is_asked_until_it_is_warm_and_that_is_journalled(world: World) -> None:
    async def main() -> None:
        controller = await world.controller()
        await world.ready(controller, "v1")
        cold = Cold(world)
        cold.failing = {1}
        world.answering = cold.answer
        outcome = await world.ask(controller, "cutover", "v1")
        assert outcome.ok, outcome
        warmed = outcome.data["warm_up"]
        assert isinstance(warmed, dict)
        assert warmed["text"] == "warmed up: 4 rounds of 4 queries, p95 200 ms -> 10 ms, 1 failed"
        assert warmed["p95_ms"] == [200.0, 50.0, 12.5, 10.0]
        (entry,) = [entry for entry in await world.journal() if entry.event == "cutover"]
        assert warmed["text"] in str(entry.data)

    virtual_time.run(main())


def test_it_ends_at_its_bound_and_the_cutover_goes_on(world: World) -> None:
    async def main() -> None:
        controller = await world.controller()
        await world.ready(controller, "v1")
        warm_up_s(world, 2)
        cold = Cold(world, every=10_000)
        flips = iter(range(10_000))

        async def restless(build: BuildState, query: str) -> Asked:
            answered = await cold.answer(build, query)
            return Asked(answered.space, 10, answered.marks, 100.0 if next(flips) // 4 % 2 else 200.0)

        world.answering = restless
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        outcome = await world.ask(controller, "cutover", "v1")
        assert outcome.ok
        assert "warm-up ended after 2." in str(outcome.data["warm_up"])
        assert loop.time() - began_s < 2 + 0.2 + 4 * 0.2 + 0.1  # the bound, the query in flight, and the proof after it

    virtual_time.run(main())


def test_zero_switches_it_off_and_a_check_asks_nothing(world: World) -> None:
    async def main() -> None:
        controller = await world.controller()
        await world.ready(controller, "v1")
        cold = Cold(world)
        world.answering = cold.answer
        assert (await world.ask(controller, "cutover", "v1", check=True)).ok
        assert cold.asked == []
        warm_up_s(world, 0)
        outcome = await world.ask(controller, "cutover", "v1")
        assert outcome.ok
        assert "warm_up" not in outcome.data
        assert len(cold.asked) == 4, "the proof alone"

    virtual_time.run(main())


def test_only_when_every_query_fails_is_the_cutover_refused(world: World) -> None:
    async def main() -> None:
        controller = await world.controller()
        await world.ready(controller, "v1")
        world.failing["v1"] = Unreachable("away")
        refused = await world.ask(controller, "cutover", "v1")
        assert not refused.ok
        assert "warm-up queries was answered by docs/v1" in refused.message
        assert "cutover.warm_up_s: 0" in refused.next_step
        assert (await world.view()).collection("docs").serving is None
        world.failing.clear()
        assert (await world.ask(controller, "cutover", "v1")).ok
        await world.check()

    virtual_time.run(main())


def test_queries_that_hang_are_given_up_within_bounds(world: World) -> None:
    async def main() -> None:
        controller = await world.controller()
        await world.ready(controller, "v1")

        async def hang(build: BuildState, query: str) -> Asked:
            await asyncio.sleep(3600)
            raise AssertionError

        world.answering = hang
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        refused = await world.ask(controller, "cutover", "v1")
        assert "not one of 3 warm-up queries was answered" in refused.message
        assert loop.time() - began_s < 35

    virtual_time.run(main())


def test_a_machine_that_cannot_ask_stops_nothing(world: World) -> None:
    async def main() -> None:
        controller = await world.controller()
        await world.ready(controller, "v1")
        world.failing["v1"] = Refused("no encoder here")
        outcome = await world.ask(controller, "cutover", "v1")
        assert outcome.ok
        assert outcome.data["warm_up"] == {"text": "not warmed up: it cannot be asked from the controller's machine"}

    virtual_time.run(main())


def test_a_cutover_that_waited_goes_on_waiting_while_nothing_answers(world: World, tmp_path: Path) -> None:
    async def main() -> None:
        controller = await world.controller()
        await world.ready(controller, "v1")
        flag = tmp_path / "hold"
        flag.touch()
        text = "    text: {fields: [text]}\n"
        world.path.write_text(CONFIG.replace(text, f"{text}    cutover: {{postpone_file: '{flag}'}}\n"))
        assert (await world.ask(controller, "cutover", "v1")).ok
        world.failing["v1"] = Unreachable("away")
        flag.unlink()
        attending = asyncio.create_task(controller.attend())
        await asyncio.sleep(60)
        state = (await world.view()).collection("docs")
        assert (state.serving, state.pending is None) == (None, False)
        world.failing.clear()
        await asyncio.sleep(30)
        assert (await world.view()).collection("docs").serving == "v1"
        attending.cancel()
        await asyncio.gather(attending, return_exceptions=True)

    virtual_time.run(main())


def test_a_command_of_another_verb_is_not_warmed_up(world: World) -> None:
    async def main() -> None:
        controller = await world.controller()
        for version in ("v1", "v2"):
            await world.ready(controller, version)
            assert (await world.ask(controller, "cutover", version)).ok
        command = Command(verb="rollback", collection="docs")
        await controller.handle(command)
        outcome = (await world.view()).collection("docs").outcome(command.id)
        assert outcome is not None
        assert outcome.ok, "a rollback is immediate"
        assert "warm_up" not in outcome.data

    virtual_time.run(main())
