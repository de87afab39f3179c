"""Hooks: which changes call which of them, what they are told, what they run in, and what a refusal says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from pydantic import ValidationError

from connectors.errors import ConfigurationError, Refused
from connectors.hooks import MOST_SAID, environment, post, run_command
from streams import config
from streams.config_operation import Event, Hook
from streams.controller import Controller
from streams.hooks import as_json, as_variables, hooks_for, told
from streams.state import Command, JournalEntry, StageChange
from streams.verbs import telling
from streams.versions import Stage
from tests.unit.loopback import always, loopback, reply
from tests.unit.test_controller import CONFIG, Crash, World, stages

PATIENCE_S = 20.0
SAYS = 'echo "$CROSSFADE_WHEN $CROSSFADE_EVENT $CROSSFADE_VERSION $CROSSFADE_FROM_STAGE" >> "$0"'


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The controller looks for what is to be told more often than each second."""
    monkeypatch.setattr("streams.controller.ATTEND_EVERY_S", 0.02)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def configure(world: World, *hooks: Mapping[str, object]) -> None:
    """JSON is YAML."""
    line = f"    hooks: {json.dumps(hooks)}\n"
    world.path.write_text(CONFIG.replace("    text: {fields: [text]}\n", f"    text: {{fields: [text]}}\n{line}"))


def shell(text: str, *arguments: object) -> list[str]:
    return ["/bin/sh", "-c", text, *map(str, arguments)]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:  # polled: files and processes tell nobody
            if condition():
                return
            await asyncio.sleep(0.02)


async def entries(world: World, event: str) -> list[JournalEntry]:
    return [entry for entry in await world.journal() if entry.event == event]


async def all_told(world: World, controller: Controller) -> None:
    attending = asyncio.create_task(controller.attend())
    try:
        async with asyncio.timeout(PATIENCE_S):
            while True:  # polled: this view is read anew each time
                if not (await world.view()).collection("docs").untold:
                    break
                await asyncio.sleep(0.05)
    finally:
        attending.cancel()
        await asyncio.gather(attending, return_exceptions=True)


# --- which, and what they are told ----------------------------------------------------------------------------------


async def test_every_change_of_stage_calls_its_hooks_before_and_after(world: World, tmp_path: Path) -> None:
    said = tmp_path / "said"
    on = ["building", "ready", "serving", "previous", "retired", "aborted"]
    configure(
        world,
        {"on": on, "when": "before", "command": shell(SAYS, said)},
        {"on": [*on, "failed", "paused"], "command": shell(SAYS, said)},
    )
    controller = await world.controller()

    async def lines() -> list[str]:
        await all_told(world, controller)
        found = said.read_text().splitlines()
        said.write_text("")
        return found

    v1 = await world.ready(controller, "v1")
    assert await lines() == [
        "before building v1 declared",
        "before ready v1 building",
        "after building v1 declared",
        "after ready v1 building",
    ]
    assert (await world.ask(controller, "cutover", "v1")).ok
    await world.ready(controller, "v2")
    await lines()
    assert (await world.ask(controller, "cutover", "v2")).ok
    both = ["serving v2 ready", "previous v1 serving"]
    assert await lines() == [f"{when} {line}" for when in ("before", "after") for line in both]
    assert (await world.ask(controller, "rollback", None, max_lag=10)).ok
    both = ["serving v1 previous", "previous v2 serving"]
    assert await lines() == [f"{when} {line}" for when in ("before", "after") for line in both]
    assert (await world.ask(controller, "retire", "v2", confirm="v2")).ok
    assert await lines() == ["before retired v2 previous", "after retired v2 previous"]
    assert (await world.ask(controller, "pause", "v1")).ok
    assert (await world.ask(controller, "pause", "v1")).ok, "twice is one change"
    failed = Command(verb="failed", collection="docs", version="v1", args={"epoch": v1.epoch, "cause": "it is away"})
    await controller.handle(failed)
    assert await lines() == ["after paused v1 serving", "after failed v1 serving"]
    await world.ready(controller, "v3")
    await lines()
    assert (await world.ask(controller, "abort", "v3", confirm="v3")).ok
    assert await lines() == ["before aborted v3 ready", "after aborted v3 ready"]
    await world.check()


async def test_a_third_version_and_the_one_that_stands_by(world: World, tmp_path: Path) -> None:
    said = tmp_path / "said"
    controller = await world.controller()
    for version in ("v1", "v2"):
        await world.ready(controller, version)
        assert (await world.ask(controller, "cutover", version)).ok
    await world.ready(controller, "v3")
    on = ["ready", "serving", "previous"]
    both = ("before", "after")
    configure(world, *[{"on": on, "when": when, "command": shell(SAYS, said)} for when in both])
    assert (await world.ask(controller, "cutover", "v3")).ok
    await all_told(world, controller)
    lines = ["serving v3 ready", "previous v2 serving", "ready v1 previous"]
    assert said.read_text().splitlines() == [f"{when} {line}" for when in both for line in lines]


def test_what_is_told(world: World) -> None:
    change = StageChange(
        id="c/serving/v2", event="serving", verb="cutover", collection="docs", version="v2", epoch=2,
        stage=Stage.SERVING, from_stage=Stage.READY, space="Docs_v2_2_abc", fingerprint="abc", who="anna@host",
        why="better answers", at_ms=0,
    )  # fmt: skip
    context = told(change, "before")
    assert as_variables(context) == {
        "CROSSFADE_EVENT": "serving", "CROSSFADE_WHEN": "before", "CROSSFADE_VERB": "cutover",
        "CROSSFADE_COLLECTION": "docs", "CROSSFADE_VERSION": "v2", "CROSSFADE_EPOCH": "2",
        "CROSSFADE_STAGE": "serving", "CROSSFADE_FROM_STAGE": "ready", "CROSSFADE_SPACE": "Docs_v2_2_abc",
        "CROSSFADE_FINGERPRINT": "abc", "CROSSFADE_WHO": "anna@host", "CROSSFADE_WHY": "better answers",
        "CROSSFADE_CAUSE": "", "CROSSFADE_CHANGE_ID": "c/serving/v2", "CROSSFADE_AT": "1970-01-01T00:00:00Z",
    }  # fmt: skip
    assert json.loads(as_json(context)) == {"schema": 1, **context, "epoch": 2}


def test_hooks_are_chosen_in_the_order_of_the_file() -> None:
    def hook(name: str, on: list[Event], when: str) -> Hook:
        return Hook.model_validate({"name": name, "on": on, "when": when, "http": "http://h.test"})

    hooks = [hook("a", ["ready"], "after"), hook("b", ["serving"], "before"), hook("c", ["ready", "serving"], "after")]
    assert [one.name for one in hooks_for(hooks, "ready", "after")] == ["a", "c"]
    assert [one.name for one in hooks_for(hooks, "serving", "before")] == ["b"]
    assert hooks_for(hooks, "retired", "after") == []


# --- before: a failing one stops the step ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ({"command": shell("echo first >&2; echo frozen until monday >&2; exit 3")},
         "exit status 3: frozen until monday"),
        ({"command": shell("sleep 60"), "timeout_s": 0.2}, "did not end within 0.2 s and was killed"),
        ({"command": ["/nowhere/guard"]}, "cannot be run: No such file or directory"),
        ({"http": "http://127.0.0.1:1/x", "name": "guard"}, "its address did not answer: ConnectError"),
        ({"http": "http://169.254.169.254/x", "name": "guard"}, "never called"),
    ],
)  # fmt: skip
async def test_a_failing_hook_refuses_the_cutover(world: World, call: dict[str, object], said: str) -> None:
    controller = await world.controller()
    await world.ready(controller, "v1")
    configure(world, {"on": ["serving"], "when": "before", "name": "guard", **call})
    assert (await world.ask(controller, "cutover", "v1", check=True)).ok, "--check runs no hooks"
    refused = await world.ask(controller, "cutover", "v1")
    assert not refused.ok
    assert "the hook guard before serving holds docs/v1 back: " in refused.message
    assert said in refused.message
    assert "nothing was changed" in refused.message
    assert "then again: crossfade cutover docs v1" in refused.next_step
    assert await world.store.alias_target("Docs") is None
    (entry,) = await entries(world, "cutover refused")
    assert said in entry.message
    configure(world)
    assert (await world.ask(controller, "cutover", "v1")).ok
    await world.check()


async def test_other_steps_are_held_back_before_their_first_write(world: World) -> None:
    configure(world, {"on": ["building", "retired"], "when": "before", "command": ["false"]})
    controller = await world.controller()
    refused = await world.ask(controller, "start", "v1")
    assert "the hook false before building holds docs/v1 back: exit status 1;" in refused.message
    assert (await world.view()).builds == {}
    assert await world.store.spaces() == []
    configure(world)
    for version in ("v1", "v2"):
        await world.ready(controller, version)
        assert (await world.ask(controller, "cutover", version)).ok
    configure(world, {"on": ["retired", "previous"], "when": "before", "command": ["false"]})
    refused = await world.ask(controller, "retire", "v1", confirm="v1")
    assert refused.next_step.endswith("crossfade retire docs v1 --confirm v1")
    refused = await world.ask(controller, "rollback", None, max_lag=10)
    assert "before previous holds docs/v2 back" in refused.message
    assert refused.next_step.endswith("again: crossfade rollback docs")
    assert await stages(world) == {"v1": "previous", "v2": "serving"}
    await world.check()


async def test_a_version_is_ready_once_its_hook_agrees(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker says again that the replay is complete, under the same id: a refusal must not be the last word."""
    monkeypatch.setattr("streams.controller.TRY_AGAIN_S", 0.01)
    flag = tmp_path / "may"
    configure(world, {"on": ["ready"], "when": "before", "command": shell('test -e "$0"', flag), "name": "may"})
    controller = await world.controller()
    begun = await world.ask(controller, "start", "v1")
    last = Command(verb="replayed", collection="docs", version="v1")
    for partition in (0, 1):
        last = Command(
            id=f"replayed/{partition}", verb="replayed", collection="docs", version="v1",
            args={"epoch": begun.data["epoch"], "partition": partition},
        )  # fmt: skip
        await controller.handle(last)
    await controller.handle(last)
    build = (await world.view()).build("docs", "v1")
    assert (build.stage, build.replayed) == (Stage.BUILDING, [0])
    ((note, then),) = (await world.view()).collection("docs").notes
    assert note.startswith("the hook may before ready holds docs/v1 back: exit status 1;")
    assert note.endswith("it is asked again every 10 s")
    assert "crossfade status docs v1" in then
    assert len(await entries(world, "held back by a hook")) == 1, "said once, however often it is asked"
    flag.touch()
    await controller.handle(last)
    assert await stages(world) == {"v1": "ready"}
    assert (await world.view()).collection("docs").notes == []


async def test_while_a_hook_hangs_the_collection_obeys(world: World, tmp_path: Path) -> None:
    controller = await world.controller()
    await world.ready(controller, "v1")
    pid = tmp_path / "pid"
    hanging = shell('echo $$ > "$0"; sleep 60', pid)
    configure(world, {"on": ["serving"], "when": "before", "command": hanging, "timeout_s": 60})
    command = Command(verb="cutover", collection="docs", version="v1")
    cutover = asyncio.create_task(controller.handle(command))
    await until(lambda: pid.exists() and pid.read_text().strip() != "")
    assert (await world.ask(controller, "pause", "v1")).ok
    assert (await world.ask(controller, "cutover", "v1", cancel=True)).ok
    os.killpg(int(pid.read_text()), 9)
    await cutover
    outcome = (await world.view()).collection("docs").outcome(command.id)
    assert outcome is not None
    assert "is withdrawn by" in outcome.message
    assert await world.store.alias_target("Docs") is None


async def test_what_changed_while_a_hook_was_asked_is_looked_at_again(world: World, tmp_path: Path) -> None:
    controller = await world.controller()
    await world.ready(controller, "v1")
    asked, go = tmp_path / "asked", tmp_path / "go"
    waiting = shell('touch "$0"; while ! test -e "$1"; do sleep 0.05; done', asked, go)
    configure(world, {"on": ["serving"], "when": "before", "command": waiting})
    command = Command(verb="cutover", collection="docs", version="v1")
    cutover = asyncio.create_task(controller.handle(command))
    await until(asked.exists)
    assert (await world.ask(controller, "pause", "v1")).ok
    go.touch()
    await cutover
    outcome = (await world.view()).collection("docs").outcome(command.id)
    assert outcome is not None
    assert outcome.message == "docs/v1 is paused"


# --- after: told at least once, undoing nothing ---------------------------------------------------------------------


async def test_a_hook_that_fails_afterwards_undoes_nothing(world: World) -> None:
    controller = await world.controller()
    await world.ready(controller, "v1")
    async with loopback(always(reply(b"", status=204))) as server:
        configure(
            world,
            {"on": ["serving"], "name": "pager", "http": server.url() + "/hook"},
            {"on": ["serving"], "name": "broken", "command": shell("echo no such channel >&2; exit 9")},
        )
        assert (await world.ask(controller, "cutover", "v1")).ok
        await all_told(world, controller)
    (request,) = server.requests
    assert request.line == "POST /hook HTTP/1.1"
    assert request.headers["content-type"] == "application/json"
    body = json.loads(request.body)
    assert (body["event"], body["when"], body["version"], body["hook"]) == ("serving", "after", "v1", "pager")
    (entry,) = await entries(world, "hook failed")
    assert entry.message == "after serving of docs/v1: the hook broken exit status 9: no such channel"
    assert entry.data["outcome"] == {"pager": "done", "broken": "exit status 9: no such channel"}
    assert entry.who == "hooks"
    await world.check()


async def test_a_change_is_told_by_the_next_controller(world: World, tmp_path: Path) -> None:
    said = tmp_path / "said"
    configure(world, {"on": ["serving"], "command": shell(SAYS, said)})
    controller = await world.controller()
    await world.ready(controller, "v1")
    assert (await world.ask(controller, "cutover", "v1")).ok
    controller.stand_down()
    assert [change.event for change in (await world.view()).collection("docs").untold] == ["serving"]
    await all_told(world, await world.controller())
    assert said.read_text() == "after serving v1 ready\n"
    (entry,) = await entries(world, "hooks told")
    assert entry.data["outcome"] == {"sh": "done"}


async def test_nothing_is_told_of_a_step_that_is_half_done(world: World, tmp_path: Path) -> None:
    """Retired is stored before the space is dropped: who is told of it may rely on the drop."""
    said = tmp_path / "said"
    controller = await world.controller()
    for version in ("v1", "v2"):
        await world.ready(controller, version)
        assert (await world.ask(controller, "cutover", version)).ok
    configure(world, {"on": ["retired"], "command": shell(SAYS, said)})
    world.fuse.blow(1, before=Crash())
    command = Command(verb="retire", collection="docs", version="v1", args={"confirm": "v1"})
    with pytest.raises(Crash):
        await controller.handle(command)
    half = (await world.view()).collection("docs")
    assert half.intent is not None
    assert len(half.untold) == 1
    assert not telling.waits(half)
    after = await world.controller()
    await all_told(world, after)
    assert said.read_text() == "after retired v1 previous\n"
    await world.check()


@pytest.mark.parametrize("where", ["before", "after"])
async def test_wherever_the_controller_crashes_the_change_is_told(where: str, tmp_path: Path) -> None:
    """At each call of a cutover, and of the telling itself; then the same command comes again."""
    crashes = 0
    for at in range(100):
        folder = tmp_path / str(at)
        folder.mkdir()
        said, world = folder / "said", World(folder)
        controller = await world.controller()
        await world.ready(controller, "v1")
        configure(world, {"on": ["serving"], "command": shell(SAYS, said)})
        world.fuse.blow(at, **{where: Crash()})
        command = Command(verb="cutover", collection="docs", version="v1")
        with contextlib.suppress(Crash):
            await controller.handle(command)
            await all_told(world, controller)
        crashed = len(world.fuse.calls) > world.fuse.at
        world.fuse.at = -1
        crashes += crashed
        controller.stand_down()
        after = await world.controller()
        await after.handle(command)
        await all_told(world, after)
        lines = said.read_text().splitlines()
        assert lines in (["after serving v1 ready"], ["after serving v1 ready"] * 2), f"a crash {where} call {at}"
        await world.check()
        if not crashed:
            assert lines == ["after serving v1 ready"]
            break
    assert crashes >= 5


async def test_without_hooks_nothing_is_remembered(world: World) -> None:
    controller = await world.controller()
    await world.ready(controller, "v1")
    assert (await world.view()).collection("docs").untold == []


# --- commands -------------------------------------------------------------------------------------------------------


async def test_a_command_gets_a_clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEAVIATE_API_KEY", "SECRETm3x7")
    out = tmp_path / "env"
    await run_command(["/bin/sh", "-c", 'env > "$0"; cat >> "$0"', str(out)], {"CROSSFADE_WHY": "a\0b\nc"}, 10)
    assert "SECRETm3x7" not in out.read_text()
    names = {line.partition("=")[0] for line in out.read_text().splitlines() if "=" in line}
    assert names <= {"PATH", "HOME", "LANG", "CROSSFADE_WHY", "PWD", "OLDPWD", "SHLVL", "_"}
    assert "CROSSFADE_WHY=ab\nc\n" in out.read_text()


def test_values_fit_an_environment() -> None:
    assert len(environment({"CROSSFADE_WHY": "x" * 200_000})["CROSSFADE_WHY"]) == 4_000
    assert environment({"CROSSFADE_WHY": "\ud800"})["CROSSFADE_WHY"] == "?"


async def test_no_shell_reads_the_arguments(tmp_path: Path) -> None:
    await run_command(["touch", str(tmp_path / "$HOME; x")], {}, 10)
    assert os.listdir(tmp_path) == ["$HOME; x"]


async def test_the_whole_process_group_is_killed_in_time(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    text = 'trap "" TERM; sleep 60 & echo $$ $! > "$0"; wait'
    began_s = time.monotonic()
    with pytest.raises(Refused, match=r"did not end within 0\.5 s and was killed"):
        await run_command(["/bin/sh", "-c", text, str(pids)], {}, 0.5)
    assert time.monotonic() - began_s < PATIENCE_S
    await until(lambda: not any(running(int(pid)) for pid in pids.read_text().split()))


def running(pid: int) -> bool:
    """Not there, or only waiting to be reaped, is not running."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


async def test_a_hook_nobody_waits_for_any_more_is_killed_too(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    task = asyncio.create_task(run_command(["/bin/sh", "-c", 'echo $$ > "$0"; sleep 60', str(pid)], {}, 60))
    await until(lambda: pid.exists() and pid.read_text().strip() != "")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await until(lambda: not running(int(pid.read_text())))


async def test_a_child_left_in_the_background_holds_up_nothing(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    await run_command(["/bin/sh", "-c", 'sleep 60 & echo $! > "$0"', str(pid)], {}, PATIENCE_S)
    assert running(int(pid.read_text()))
    os.kill(int(pid.read_text()), 9)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("exit 4", "exit status 4"),
        ("kill -9 $$", "ended by signal 9"),
        ("printf '\\033[2Jred\\007\\n\\n' >&2; exit 1", "exit status 1: [2Jred"),
        ("printf 'a\\377b' >&2; exit 1", "exit status 1: a\ufffdb"),
    ],
)
async def test_what_a_failure_says(text: str, said: str) -> None:
    with pytest.raises(Refused) as raised:
        await run_command(["/bin/sh", "-c", text], {}, PATIENCE_S)
    assert raised.value.message == said


async def test_endless_talk_is_cut_to_its_last_line() -> None:
    text = 'i=0; while test $i -lt 5000; do echo "$i xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"; i=$((i+1)); done >&2; '
    with pytest.raises(Refused) as raised:
        await run_command(["/bin/sh", "-c", text + f"printf '%0{MOST_SAID + 50}d' 7 >&2; exit 1"], {}, PATIENCE_S)
    assert raised.value.message == "exit status 1: " + "0" * MOST_SAID


# --- HTTP -----------------------------------------------------------------------------------------------------------


async def test_the_address_of_a_hook_is_shown_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    async with loopback(always(reply(b"x" * 100, status=503))) as server:
        with pytest.raises(Refused) as raised:
            await post(server.url() + "/services/SECRETm3x7", b"{}", 5)
    assert raised.value.message == "answered 503"
    hook = Hook.model_validate({"on": ["ready"], "http": "https://h.test/SECRETm3x7"})
    assert "SECRETm3x7" not in repr(hook) + hook.label + caplog.text


async def test_a_redirect_is_a_failure_and_is_not_followed() -> None:
    moved = reply(b"", headers="location: /elsewhere\r\n", status=307)
    async with loopback(always(moved)) as server:
        with pytest.raises(Refused, match="answered 307"):
            await post(server.url(), b"{}", 5)
    assert len(server.requests) == 1


# --- configuration --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hook", "said"),
    [
        ({"on": ["serving"]}, "one of command and http"),
        ({"on": ["serving"], "command": ["x"], "http": "http://h.test"}, "one of command and http"),
        ({"on": ["serving"], "command": "rm -rf /"}, "command"),
        ({"on": ["serving"], "command": []}, "command"),
        ({"on": ["serving"], "command": [" "]}, "names no program"),
        ({"on": [], "http": "http://h.test"}, "on"),
        ({"on": ["declared"], "http": "http://h.test"}, "on"),
        ({"on": ["serving"], "when": "during", "http": "http://h.test"}, "when"),
        ({"on": ["failed"], "when": "before", "http": "http://h.test"}, "cannot come before failed"),
        ({"on": ["serving"], "http": "ftp://h.test"}, "is no http URL"),
        ({"on": ["serving"], "http": "http://h.test", "timeout_s": 0}, "timeout_s"),
        ({"on": ["serving"], "http": "http://h.test", "timeout_s": 3600}, "timeout_s"),
        ({"on": ["serving"], "http": "http://h.test", "name": "a\x1bb"}, "name"),
        ({"on": ["serving"], "http": "http://h.test", "retries": 3}, "unknown key"),
    ],
)
def test_a_hook_that_is_none_is_refused(world: World, hook: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError):
        Hook.model_validate(hook)
    configure(world, hook)
    with pytest.raises(ConfigurationError) as raised:
        config.load(world.path)
    assert said in raised.value.message
    assert "hooks" in raised.value.message


def test_a_program_with_a_path_begins_at_the_configuration_file(world: World, tmp_path: Path) -> None:
    configure(
        world, {"on": ["ready"], "command": ["hooks/tell", "x"]}, {"on": ["ready"], "command": ["tell", "hooks/x"]}
    )
    first, second = config.load(world.path).collection("docs").hooks
    assert first.command == [str(tmp_path / "hooks/tell"), "x"]
    assert second.command == ["tell", "hooks/x"]
    assert first.label == "tell"
