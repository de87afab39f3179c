"""Retention: how long the previous version is kept, the reminder, and when the controller retires it by itself."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from connectors.errors import AccessDenied, Unreachable
from streams.cli.status_lines import notes, status_of
from streams.config_operation import Retention
from streams.controller import Controller
from streams.migration.retention import DAY_MS, hindrance, is_over, kept_ms, lasting, reminder
from streams.state import (
    Bounds,
    BuildState,
    CollectionState,
    Command,
    Failure,
    Intent,
    Notice,
    Pending,
    Swap,
    Watching,
)
from streams.versions import Stage
from tests.merge import virtual_time
from tests.unit.test_controller import CONFIG, Crash, World, stages

NOW_MS = 100 * DAY_MS
SWAPPED = Swap(verb="cutover", version="v2", before="v1", who="anna", at_ms=NOW_MS - 8 * DAY_MS, command_id="c1")
DOCS = CollectionState(
    collection="docs", alias="Docs", topic="docs", serving="v2", previous="v1", epochs=2, swapped=SWAPPED
)
AUTOMATIC = Retention(automatic=True)


def build(version: str, stage: Stage, **changes: Any) -> BuildState:
    return BuildState(
        collection="docs",
        version=version,
        epoch=int(version[1:]),
        stage=stage,
        envelope={},
        fingerprint="0123456789ab",
        space=f"Docs_{version}",
        topic="docs",
    ).model_copy(update=changes)


V1, V2 = build("v1", Stage.PREVIOUS), build("v2", Stage.SERVING)


def watching(result: str) -> Watching:
    bounds = Bounds(every_s=1, max_zero_results=0.1, max_errors=0.1, max_latency_ratio=2, rollback=True)
    data = {"version": "v2", "epoch": 2, "previous": "v1", "swap_id": "c1", "since_ms": 0, "until_ms": 1}
    return Watching.model_validate({**data, "bounds": bounds.model_dump(by_alias=True), "result": result})


# --- the decision ---------------------------------------------------------------------------------------------------


def test_it_is_counted_from_the_last_swap() -> None:
    assert kept_ms(DOCS, NOW_MS) == 8 * DAY_MS
    assert is_over(DOCS, Retention(), NOW_MS)
    assert is_over(DOCS, Retention(days=8), NOW_MS)
    assert not is_over(DOCS, Retention(days=8), NOW_MS - 1)
    assert not is_over(DOCS.model_copy(update={"previous": None}), Retention(days=0), NOW_MS)
    assert not is_over(DOCS.model_copy(update={"swapped": None}), Retention(days=0), NOW_MS)
    assert kept_ms(DOCS, 0) == 0, "a clock that went back"


def test_nothing_hinders_a_quiet_collection() -> None:
    assert hindrance(DOCS, V2, V1) == ""
    assert hindrance(DOCS.model_copy(update={"watch": watching("quiet")}), V2, V1) == ""


@pytest.mark.parametrize(
    ("changes", "serving", "previous", "said"),
    [
        ({"swapped": None}, V2, V1, "there is no previous version"),
        ({}, V2, None, "there is no previous version"),
        ({"serving": "v1"}, V1, V1, "there is no previous version"),
        ({}, V2, build("v1", Stage.RETIRED), "v1 is retired"),
        ({}, V2, build("v1", Stage.SERVING), "v1 is serving"),
        ({"swapped": SWAPPED.model_copy(update={"before": "v0"})}, V2, V1, "v1 is previous"),
        ({"swapped": SWAPPED.model_copy(update={"verb": "rollback"})}, V2, V1, "v1 served until a rollback"),
        ({"intent": Intent(command=Command(verb="cutover", collection="docs"))}, V2, V1, "a cutover is under way"),
        (
            {"pending": Pending(command=Command(verb="cutover", collection="docs", version="v3"), since_ms=1)},
            V2,
            V1,
            "the cutover to v3 waits",
        ),
        ({"watch": watching("watching")}, V2, V1, "the watch over v2: watching"),
        ({"watch": watching("crossed")}, V2, V1, "the watch over v2: crossed"),
        ({"watch": watching("not rolled back")}, V2, V1, "the watch over v2: not rolled back"),
        ({"watch": watching("ended")}, V2, V1, "the watch over v2: ended"),
        ({"notice": Notice(at_ms=1, text="v2 does not answer")}, V2, V1, "v2 does not answer"),
        ({}, None, V1, "nothing serves"),
        ({}, build("v2", Stage.SERVING, failure=Failure(cause="gone")), V1, "v2, which serves, is not kept current"),
        ({}, build("v2", Stage.SERVING, paused="all"), V1, "v2, which serves, is not kept current"),
    ],
)
def test_what_hinders_it(
    changes: dict[str, object], serving: BuildState | None, previous: BuildState | None, said: str
) -> None:
    collection = DOCS.model_copy(update=changes)
    assert hindrance(collection, serving, previous).startswith(said)


def test_an_examination_hinders_it() -> None:
    assert hindrance(DOCS, V2, V1, examined=True) == "a cutover is being examined"


@pytest.mark.parametrize(
    ("milliseconds", "said"),
    [
        (0, "less than a minute"),
        (60_000, "1 minute"),
        (2 * 3_600_000, "2 hours"),
        (DAY_MS - 1, "23 hours"),
        (DAY_MS, "1 day"),
        (8.9 * DAY_MS, "8 days"),
    ],
)
def test_lengths_of_time(milliseconds: float, said: str) -> None:
    assert lasting(milliseconds) == said


@pytest.mark.parametrize("wrong", [{"days": -1}, {"days": float("inf")}, {"automatic": "maybe"}, {"hours": 3}])
def test_what_is_no_retention(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Retention.model_validate(wrong)


# --- the reminder ---------------------------------------------------------------------------------------------------


def test_the_reminder_comes_when_the_retention_is_over() -> None:
    command = "crossfade retire docs v1 --confirm v1"
    assert reminder(DOCS, V2, V1, Retention(), NOW_MS) == ("v1 has been previous for 8 days", command)
    assert reminder(DOCS, V2, V1, Retention(days=9), NOW_MS) is None
    assert reminder(DOCS, V2, build("v1", Stage.RETIRED), Retention(), NOW_MS) is None
    assert reminder(DOCS.model_copy(update={"previous": None}), V2, None, Retention(), NOW_MS) is None


def test_what_is_retired_by_itself_is_announced() -> None:
    undo = "crossfade rollback docs"
    announced = reminder(DOCS, V2, V1, Retention(days=10, automatic=True), NOW_MS)
    assert announced == ("v1 is retired by itself in 2 days (retention.automatic)", undo)
    due = reminder(DOCS, V2, V1, AUTOMATIC, NOW_MS)
    assert due == ("v1 has been previous for 8 days; it is being retired (retention.automatic)", "")
    watched = DOCS.model_copy(update={"watch": watching("crossed")})
    said, command = reminder(watched, V2, V1, AUTOMATIC, NOW_MS) or ("", "")
    assert said == "v1 has been previous for 8 days; it is not retired by itself: the watch over v2: crossed"
    assert command == "crossfade retire docs v1 --confirm v1"
    assert reminder(watched, V2, V1, Retention(days=10, automatic=True), NOW_MS) is None


def test_status_shows_it_beside_the_notes_of_the_collection() -> None:
    noticed = DOCS.model_copy(update={"notice": Notice(at_ms=1, text="something", next_step="do it")})
    kept = status_of(V1, [], 0, noticed, NOW_MS)
    assert notes(noticed, [kept]) == [("something", "do it")]
    reminded = dataclasses.replace(kept, reminder=("v1 has been previous for 8 days", "retire it"))
    assert notes(noticed, [reminded])[1] == ("v1 has been previous for 8 days", "retire it")


# --- by itself ------------------------------------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def configure(world: World, **parts: object) -> None:
    """Options of the collection, in YAML's JSON form."""
    text = "    text: {fields: [text]}\n"
    lines = "".join(f"    {name}: {json.dumps(value)}\n" for name, value in parts.items())
    world.path.write_text(CONFIG.replace(text, text + lines))


@asynccontextmanager
async def attended(controller: Controller) -> AsyncIterator[None]:
    attending = asyncio.create_task(controller.attend())
    try:
        yield
    finally:
        attending.cancel()
        await asyncio.gather(attending, return_exceptions=True)


async def swapped(world: World) -> Controller:
    """v2 serves, v1 is the previous one."""
    controller = await world.controller()
    for version in ("v1", "v2"):
        await world.ready(controller, version)
        assert (await world.ask(controller, "cutover", version)).ok
    return controller


async def as_the_controller(world: World) -> Command:
    """What it gives itself when v1 has been kept for the one day that is configured."""
    swap = (await world.view()).collection("docs").swapped
    assert swap is not None
    return Command(
        id=f"retention/{swap.command_id}/v1/1",
        verb="retire",
        collection="docs",
        version="v1",
        args={"confirm": "v1", "origin": "retention"},
        who="retention",
        why="previous for 1 days (retention.automatic)",
    )


async def events(world: World) -> list[str]:
    return [f"{entry.event} by {entry.who}" for entry in await world.journal() if entry.event.startswith("retire")]


def test_it_is_retired_by_itself_only_where_configured_and_only_when_it_is_over(world: World) -> None:
    async def main() -> None:
        controller = await swapped(world)
        async with attended(controller):
            world.now_ms += 30 * DAY_MS
            await asyncio.sleep(200)
            assert await stages(world) == {"v1": "previous", "v2": "serving"}, "nobody has switched it on"
            configure(world, retention={"days": 31, "automatic": True})
            await asyncio.sleep(200)
            assert await stages(world) == {"v1": "previous", "v2": "serving"}
            world.now_ms += DAY_MS
            await asyncio.sleep(200)
            assert await stages(world) == {"v1": "retired", "v2": "serving"}
            await asyncio.sleep(600)
        assert await events(world) == ["retire begins by retention", "retire by retention"]
        (entry,) = [entry for entry in await world.journal() if entry.event == "retire"]
        assert entry.why == "previous for 31 days (retention.automatic)"
        view = await world.check()
        assert view.collection("docs").previous is None

    virtual_time.run(main())


@pytest.mark.parametrize("at", range(4))
def test_it_survives_a_crash_at_every_call(world: World, at: int) -> None:
    async def main() -> None:
        controller = await swapped(world)
        configure(world, retention={"days": 1, "automatic": True})
        world.now_ms += 2 * DAY_MS
        world.fuse.blow(at, before=Crash())
        attending = asyncio.create_task(controller.attend())
        await asyncio.sleep(5)
        attending.cancel()
        await asyncio.gather(attending, return_exceptions=True)
        world.fuse.at = -1
        heir = await world.controller()
        async with attended(heir):
            await asyncio.sleep(5)
        assert await stages(world) == {"v1": "retired", "v2": "serving"}
        assert (await events(world)).count("retire by retention") == 1
        await world.check()

    virtual_time.run(main())


def test_not_while_a_cutover_waits_nor_after_a_rollback(world: World, tmp_path: Path) -> None:
    async def main() -> None:
        flag = tmp_path / "hold"
        flag.touch()
        controller = await swapped(world)
        await world.ready(controller, "v3")
        rules = {"days": 1, "automatic": True}
        configure(world, retention=rules, cutover={"postpone_file": str(flag)})
        assert (await world.ask(controller, "cutover", "v3")).ok
        world.now_ms += 2 * DAY_MS
        async with attended(controller):
            await asyncio.sleep(200)
            assert (await stages(world))["v1"] == "previous"
        assert (await world.ask(controller, "cutover", "v3", cancel=True)).ok
        assert (await world.ask(controller, "rollback")).ok
        world.now_ms += 2 * DAY_MS
        async with attended(controller):
            await asyncio.sleep(200)
        assert await stages(world) == {"v1": "serving", "v2": "previous", "v3": "ready"}
        await world.check()

    virtual_time.run(main())


def test_not_while_a_cutover_is_examined(world: World) -> None:
    async def main() -> None:
        controller = await swapped(world)
        await world.ready(controller, "v3")
        configure(world, retention={"days": 1, "automatic": True})
        world.now_ms += 2 * DAY_MS
        world.report("v3", (await world.view()).build("docs", "v3").epoch)
        seen: list[str] = []
        late = await as_the_controller(world)

        async def long() -> None:
            await asyncio.sleep(200)
            await controller.handle(late)  # decided just before the examination began
            seen.append((await stages(world))["v1"])

        world.meanwhile = long
        command = Command(verb="cutover", collection="docs", version="v3")
        cutting = asyncio.create_task(controller.handle(command))
        await asyncio.sleep(0.01)
        async with attended(controller):
            await asyncio.sleep(150)
            await cutting
        assert seen == ["previous"]
        assert (await stages(world))["v3"] == "serving"

    virtual_time.run(main())


def test_a_command_that_comes_late_retires_nothing(world: World) -> None:
    """Between the look and its turn somebody rolled back: the version serves again."""

    async def main() -> None:
        controller = await swapped(world)
        configure(world, retention={"days": 1, "automatic": True})
        world.now_ms += 2 * DAY_MS
        back = Command(verb="rollback", collection="docs")
        late = await as_the_controller(world)
        await asyncio.gather(controller.handle(back), controller.handle(late))
        assert await stages(world) == {"v1": "serving", "v2": "previous"}
        state = (await world.view()).collection("docs")
        assert (state.outcome(late.id), state.notice) == (None, None), "no refusal: nobody asked"
        assert (await world.ask(controller, "rollback")).ok
        await controller.handle(late)  # of another swap by now
        assert await stages(world) == {"v1": "previous", "v2": "serving"}
        await world.check()

    virtual_time.run(main())


def test_a_space_that_cannot_be_dropped_is_said_and_not_tried_for_ever(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        controller = await swapped(world)
        configure(world, retention={"days": 1, "automatic": True})
        world.now_ms += 2 * DAY_MS
        tried = 0

        async def refuse(name: str) -> None:
            nonlocal tried
            tried += 1
            raise AccessDenied("Weaviate refuses access", next_step="check weaviate.api_key")

        monkeypatch.setattr(world.store, "drop_space", refuse)
        async with attended(controller):
            await asyncio.sleep(600)
        assert tried == 1
        ((text, then),) = (await world.view()).collection("docs").notes
        assert text == "v1 was not retired by itself: Weaviate refuses access"
        assert then == "check weaviate.api_key; then: crossfade retire docs v1 --confirm v1"
        monkeypatch.undo()
        assert (await world.ask(controller, "retire", "v1", confirm="v1")).ok
        await world.check()

    virtual_time.run(main())


def test_trouble_is_waited_out(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        controller = await swapped(world)
        configure(world, retention={"days": 1, "automatic": True})
        world.now_ms += 2 * DAY_MS
        drop = world.store.drop_space

        async def away(name: str) -> None:
            raise Unreachable("away")

        monkeypatch.setattr(world.store, "drop_space", away)
        watching = asyncio.create_task(controller.watch())
        async with attended(controller):
            await asyncio.sleep(200)
            assert (await world.view()).collection("docs").intent is not None
            monkeypatch.setattr(world.store, "drop_space", drop)
            await asyncio.sleep(200)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        assert await events(world) == ["retire begins by retention", "retire by retention"]
        await world.check()

    virtual_time.run(main())


# --- by hand --------------------------------------------------------------------------------------------------------


async def test_the_command_that_the_controller_gives_itself(world: World) -> None:
    """As the tests above send it: otherwise they would show nothing."""
    controller = await swapped(world)
    configure(world, retention={"days": 1, "automatic": True})
    world.now_ms += 2 * DAY_MS
    await controller.handle(await as_the_controller(world))
    assert await stages(world) == {"v1": "retired", "v2": "serving"}


async def test_by_hand_it_goes_earlier_with_a_word_about_it(world: World) -> None:
    controller = await swapped(world)
    world.now_ms += 2 * DAY_MS
    unnamed = await world.ask(controller, "retire", "v1")
    assert not unnamed.ok
    assert "for good (kept for 2 days of the 7 days configured) and must be confirmed by name" in unnamed.message
    assert unnamed.next_step == "crossfade retire docs v1 --confirm v1"
    done = await world.ask(controller, "retire", "v1", confirm="v1")
    assert done.ok
    assert done.message.endswith("is dropped (kept for 2 days of the 7 days configured)")


async def test_by_hand_after_the_retention_there_is_nothing_to_say(world: World) -> None:
    controller = await swapped(world)
    world.now_ms += 7 * DAY_MS
    serving = await world.ask(controller, "retire", "v2", confirm="v2")
    assert (serving.ok, serving.next_step) == (False, "crossfade rollback docs")
    done = await world.ask(controller, "retire", "v1", confirm="v1")
    assert done.message.endswith("is dropped")
