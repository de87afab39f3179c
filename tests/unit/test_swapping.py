"""Cutover and rollback over in-memory Kafka and vector store: the gate, waiting, being second, and the watch.

It looks at what an operator sees: outcomes, the state topic, the journal and the alias.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from connectors.errors import Refused, Unreachable
from streams.controller import Controller
from streams.migration.gate import Verdict
from streams.state import BuildState, CollectionState, Command, CommandOutcome
from streams.verbs.desk import Asked
from tests.merge import virtual_time
from tests.unit.test_controller import CONFIG, Crash, World, stages

WATCHED = "    watch: {for_s: 60, every_s: 1, rollback: true}\n"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def configure(world: World, lines: str) -> None:
    world.path.write_text(CONFIG.replace("    text: {fields: [text]}\n", f"    text: {{fields: [text]}}\n{lines}"))


async def two_versions(world: World) -> Controller:
    """v1 serves, v2 is ready."""
    controller = await world.controller()
    await world.ready(controller, "v1")
    assert (await world.ask(controller, "cutover", "v1")).ok
    await world.ready(controller, "v2")
    return controller


async def collection(world: World) -> CollectionState:
    return (await world.view()).collection("docs")


async def events(world: World) -> list[str]:
    return [entry.event for entry in await world.journal()]


# --- the gate -------------------------------------------------------------------------------------------------------


async def test_the_first_version_is_compared_with_nothing(world: World) -> None:
    await two_versions(world)
    assert world.judged == [("v1", None)]


async def test_a_failing_gate_refuses_unless_it_is_forced(world: World) -> None:
    controller = await two_versions(world)
    world.verdict = Verdict.FAIL
    for args in ({}, {"check": True}, {"accept_inconclusive": "a reason"}):
        refused = await world.ask(controller, "cutover", "v2", **args)
        assert not refused.ok
        assert refused.message == "docs/v2 does not pass the gate: recall: half of it"
        assert "--force" in refused.next_step
        assert refused.data["checked"] == 10, "what was found is shown with the refusal"
        assert refused.data["gate"]["verdict"] == "fail"  # type: ignore[index,call-overload]
    assert (await collection(world)).serving == "v1"
    forced = await world.ask(controller, "cutover", "v2", force="the old model ends tonight")
    assert (forced.ok, forced.data["forced"]) == (True, "the old model ends tonight")
    (entry,) = [entry for entry in await world.journal() if entry.event == "cutover" and entry.version == "v2"]
    assert entry.data["outcome"]["forced"] == "the old model ends tonight"  # type: ignore[index,call-overload]
    assert entry.data["docs/v2"]["fingerprint"]  # type: ignore[index,call-overload]
    refusals = [entry for entry in await world.journal() if entry.event == "cutover refused"]
    assert [entry.data["outcome"]["gate"]["verdict"] for entry in refusals] == ["fail"] * 3  # type: ignore[index,call-overload]


async def test_an_inconclusive_gate_waits_for_a_person(world: World) -> None:
    controller = await two_versions(world)
    world.verdict = Verdict.INCONCLUSIVE
    refused = await world.ask(controller, "cutover", "v2")
    assert "waits for a person" in refused.message
    assert "--accept-inconclusive" in refused.next_step
    accepted = await world.ask(controller, "cutover", "v2", accept_inconclusive="few queries, all read by hand")
    assert accepted.data["accepted_inconclusive"] == "few queries, all read by hand"
    await world.check()


@pytest.mark.parametrize("kind", ["missing", "stale", "extra", "held", "unsettled", "paused"])
async def test_force_never_overrides_what_a_sweep_finds(world: World, kind: str) -> None:
    controller = await two_versions(world)
    world.verdict = Verdict.FAIL
    if kind == "unsettled":
        world.report("v2", (await world.view()).build("docs", "v2").epoch, unsettled=1)
    elif kind == "paused":
        assert (await world.ask(controller, "pause", "v2")).ok
    else:
        world.found = {kind: 1}
    outcome = await world.ask(controller, "cutover", "v2", force="now", accept_inconclusive="now")
    assert not outcome.ok
    assert (await collection(world)).serving == "v1"


# --- the proof ------------------------------------------------------------------------------------------------------


async def test_a_version_that_does_not_answer_is_said_loudly(world: World) -> None:
    controller = await two_versions(world)
    build = (await world.view()).build("docs", "v2")
    world.answers["v2"] = Asked(build.space, 10, frozenset({"v1@another"}), 5.0)
    outcome = await world.ask(controller, "cutover", "v2")
    assert outcome.ok, "the swap stands: going back is for a person, or a watch, to decide"
    assert "does not answer as it should: its documents carry the mark v1@another" in outcome.message
    assert outcome.data["next"] == "crossfade rollback docs"
    assert (await events(world))[-1] == "cutover NOT verified"
    notice = (await collection(world)).notice
    assert notice is not None
    assert notice.next_step == "crossfade rollback docs"
    await world.check()
    gone_back = await world.ask(controller, "rollback")
    assert (gone_back.ok, gone_back.data["answers"]) == (True, "as it should")
    assert (await collection(world)).notice is None


async def test_a_rollback_is_proven_too(world: World) -> None:
    controller = await two_versions(world)
    await world.ask(controller, "cutover", "v2")
    world.failing["v1"] = Refused("no encoder here")
    outcome = await world.ask(controller, "rollback")
    assert "which does not answer as it should: a query failed: no encoder here" in outcome.message
    assert outcome.data["next"] == "crossfade verify docs v1 --repair"
    assert (await events(world))[-1] == "rollback NOT verified"
    assert (await world.check()).collection("docs").serving == "v1"


@pytest.mark.parametrize("what", ["nothing found", "another space", "away"])
def test_what_counts_as_no_answer(world: World, what: str) -> None:
    async def main() -> None:
        controller = await two_versions(world)
        configure(world, "    cutover: {warm_up_s: 0}\n")  # which would refuse it while the endpoint is away
        build = (await world.view()).build("docs", "v2")
        mark = frozenset({f"v2@{build.fingerprint}"})
        if what == "nothing found":
            world.answers["v2"] = Asked(build.space, 0, frozenset(), 5.0)
        elif what == "another space":
            world.answers["v2"] = Asked("Docs_v1", 10, mark, 5.0)
        else:
            world.failing["v2"] = Unreachable("the endpoint is away")
        await world.ask(controller, "cutover", "v2")
        assert (await events(world))[-1] == "cutover NOT verified"
        await world.check()

    virtual_time.run(main())


@pytest.mark.parametrize("at", range(6))
async def test_a_crash_around_the_proof_is_completed(world: World, at: int) -> None:
    first = await two_versions(world)
    world.fuse.blow(at, before=Crash())
    command = Command(verb="cutover", collection="docs", version="v2")
    try:
        await first.handle(command)
    except Crash:
        world.fuse.at = -1
        second = await world.controller()
        await second.handle(command)
    state = (await world.check()).collection("docs")
    outcome = state.outcome(command.id)
    assert outcome is not None
    assert (outcome.ok, outcome.data["answers"], state.serving) == (True, "as it should", "v2")
    assert (await events(world)).count("cutover verified") == 2, "once for v1, once for v2"


# --- two operators --------------------------------------------------------------------------------------------------


def as_operator(who: str, verb: str, version: str | None = None, **args: object) -> Command:
    return Command.model_validate(
        {"verb": verb, "collection": "docs", "version": version, "args": args, "who": who, "why": f"{who} says so"}
    )


async def outcome_of(world: World, command: Command) -> CommandOutcome:
    outcome = (await collection(world)).outcome(command.id)
    assert outcome is not None
    return outcome


async def test_of_two_cutovers_at_once_one_wins_and_the_other_is_told(world: World) -> None:
    controller = await two_versions(world)
    await world.ready(controller, "v3")
    anna = as_operator("anna@a", "cutover", "v2", **{"from": "v1"})
    ben = as_operator("ben@b", "cutover", "v3", **{"from": "v1"})
    again = as_operator("cleo@c", "cutover", "v2", **{"from": "v1"})
    world.meanwhile = lambda: asyncio.sleep(0.01)
    await asyncio.gather(controller.handle(anna), controller.handle(ben), controller.handle(again))
    assert (await outcome_of(world, anna)).ok
    for command in (ben, again):
        told = await outcome_of(world, command)
        assert not told.ok
        assert "somebody was first: anna@a asked at" in told.message
        assert "v1 serves" in told.message
        assert told.next_step
    late = as_operator("ben@b", "cutover", "v3", **{"from": "v1"})
    await controller.handle(late)
    told = await outcome_of(world, late)
    assert "somebody was first: when you looked, v1 served docs; v2 serves since " in told.message
    assert "cutover by anna@a (anna@a says so)" in told.message
    twice = as_operator("cleo@c", "cutover", "v2", **{"from": "v2"})
    await controller.handle(twice)
    assert "nothing to do: v2 serves since" in (await outcome_of(world, twice)).message
    await world.check()


async def test_a_second_rollback_does_not_undo_the_first(world: World) -> None:
    controller = await two_versions(world)
    await world.ask(controller, "cutover", "v2")
    first = as_operator("anna@a", "rollback", **{"from": "v2"})
    second = as_operator("ben@b", "rollback", **{"from": "v2"})
    await asyncio.gather(controller.handle(first), controller.handle(second))
    assert (await outcome_of(world, first)).ok
    told = await outcome_of(world, second)
    assert not told.ok
    assert "when you looked, v2 served docs; v1 serves since" in told.message
    assert "rollback by anna@a" in told.message
    assert (await collection(world)).serving == "v1"


async def test_a_rollback_of_a_rollback_must_name_what_it_leaves(world: World) -> None:
    """The second operator looked at the dashboard a while ago: what the command line sees is what the first one did."""
    controller = await two_versions(world)
    await world.ask(controller, "cutover", "v2")
    await controller.handle(as_operator("anna@a", "rollback", **{"from": "v2"}))
    late = as_operator("ben@b", "rollback", None, **{"from": "v1", "named": False})
    await controller.handle(late)
    told = await outcome_of(world, late)
    assert "docs was rolled back already: v1 serves since " in told.message
    assert "another rollback would bring v2 back" in told.message
    assert "crossfade rollback docs --from v1" in told.next_step
    assert (await collection(world)).serving == "v1"
    meant = as_operator("ben@b", "rollback", None, **{"from": "v1", "named": True})
    await controller.handle(meant)
    assert (await outcome_of(world, meant)).ok
    assert (await collection(world)).serving == "v2"


async def test_other_commands_do_not_wait_for_a_sweep(world: World) -> None:
    """`pause` takes effect at once, and what it changed is seen when the sweep has ended."""
    controller = await two_versions(world)
    judging, go = asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        judging.set()
        await go.wait()

    world.meanwhile = slow
    command = as_operator("anna@a", "cutover", "v2")
    cutting = asyncio.create_task(controller.handle(command))
    await judging.wait()
    await controller.handle(command)  # its sender asks again
    assert (await world.ask(controller, "pause", "v2")).ok
    elsewhere = Command(verb="pause", collection="other", version="v1")
    await controller.handle(elsewhere)
    assert (await world.view()).collection("other").outcome(elsewhere.id) is not None
    go.set()
    await cutting
    assert (await outcome_of(world, command)).message == "docs/v2 is paused"
    assert (await collection(world)).serving == "v1"
    assert (await world.ask(controller, "resume", "v2")).ok


async def test_a_swap_during_the_sweep_refuses_what_was_swept_for_another(world: World) -> None:
    controller = await two_versions(world)
    await world.ask(controller, "cutover", "v2")
    await world.ready(controller, "v3")
    back = as_operator("ben@b", "rollback")
    world.meanwhile = lambda: controller.handle(back)
    command = as_operator("anna@a", "cutover", "v3")
    await controller.handle(command)
    assert "what serves has changed while it was looked at" in (await outcome_of(world, command)).message
    assert (await collection(world)).serving == "v1"
    await world.check()


# --- waiting --------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def attended(controller: Controller) -> AsyncIterator[None]:
    attending = asyncio.create_task(controller.attend())
    try:
        yield
    finally:
        attending.cancel()
        await asyncio.gather(attending, return_exceptions=True)


def test_a_cutover_waits_for_a_file_to_go_away(world: World, tmp_path: Path) -> None:
    async def main() -> None:
        controller = await two_versions(world)
        flag = tmp_path / "hold"
        flag.touch()
        configure(world, f"    cutover: {{postpone_file: '{flag}'}}\n")
        command = as_operator("anna@a", "cutover", "v2", **{"from": "v1"})
        await controller.handle(command)
        outcome = await outcome_of(world, command)
        assert outcome.ok
        assert f"waits until the file {flag} is gone (asked for by anna@a)" in outcome.message
        assert (await collection(world)).serving == "v1"
        other = await world.ask(controller, "cutover", "v2")
        assert "the cutover to v2 waits" in other.message
        assert "--cancel" in other.next_step
        async with attended(controller):
            await asyncio.sleep(30)
            assert (await collection(world)).serving == "v1"
        heir = await world.controller()  # the first one died: what waited is in the state
        world.judged.clear()
        async with attended(heir):
            flag.unlink()
            await asyncio.sleep(3)
        state = await collection(world)
        assert (state.serving, state.pending) == ("v2", None)
        assert world.judged == [("v2", "v1")], "judged anew"
        assert state.swapped is not None
        assert (state.swapped.who, state.swapped.why) == ("anna@a", "anna@a says so")
        await world.check()

    virtual_time.run(main())


def test_what_waited_is_refused_when_it_is_no_longer_good(world: World, tmp_path: Path) -> None:
    async def main() -> None:
        controller = await two_versions(world)
        flag = tmp_path / "hold"
        flag.touch()
        configure(world, f"    cutover: {{postpone_file: '{flag}'}}\n")
        await world.ask(controller, "cutover", "v2")
        world.found = {"missing": 2}
        async with attended(controller):
            flag.unlink()
            await asyncio.sleep(5)
        state = await collection(world)
        assert (state.serving, state.pending) == ("v1", None)
        ((text, then),) = state.notes
        assert text.startswith("the cutover to v2 was given up: ")
        assert "missing 2" in text
        assert then == "crossfade verify docs v2"
        assert (await events(world))[-1] == "cutover refused"
        await world.check()

    virtual_time.run(main())


def test_trouble_does_not_end_the_wait(world: World, tmp_path: Path) -> None:
    async def main() -> None:
        controller = await two_versions(world)
        configure(world, f"    cutover: {{postpone_file: '{tmp_path / 'hold'}'}}\n")
        (tmp_path / "hold").touch()
        await world.ask(controller, "cutover", "v2")

        def away() -> None:
            raise Unreachable("away")

        epoch = (await world.view()).build("docs", "v2").epoch
        world.sweeping = away
        async with attended(controller):
            (tmp_path / "hold").unlink()
            await asyncio.sleep(30)
            assert (await collection(world)).pending is not None
            world.sweeping = lambda: None
            for report in ({"age_ms": 60_000}, {"unsettled": 1}):  # as after a crash: nobody reports, then in doubt
                world.report("v2", epoch, **report)
                await asyncio.sleep(30)
                assert (await collection(world)).pending is not None
            world.report("v2", epoch)
            await asyncio.sleep(30)
        assert (await collection(world)).serving == "v2"

    virtual_time.run(main())


def test_a_cutover_waits_for_approval(world: World) -> None:
    async def main() -> None:
        controller = await two_versions(world)
        configure(world, "    cutover: {approval: true}\n")
        assert "no cutover to docs/v2 waits" in (await world.ask(controller, "cutover", "v2", approve=True)).message
        asked = as_operator("anna@a", "cutover", "v2", force="needed", **{"from": "v1"})
        world.verdict = Verdict.FAIL
        await controller.handle(asked)
        assert "waits until somebody approves it" in (await outcome_of(world, asked)).message
        async with attended(controller):
            await asyncio.sleep(30)
        assert (await collection(world)).serving == "v1"
        approved = as_operator("ben@b", "cutover", "v2", approve=True)
        await controller.handle(approved)
        outcome = await outcome_of(world, approved)
        assert outcome.ok, outcome
        for name, value in (("asked_by", "anna@a"), ("approved_by", "ben@b"), ("forced", "needed")):
            assert outcome.data[name] == value
        assert (await collection(world)).serving == "v2"
        await world.check()

    virtual_time.run(main())


async def test_a_cutover_that_waits_is_withdrawn(world: World) -> None:
    controller = await two_versions(world)
    configure(world, "    cutover: {approval: true}\n")
    assert not (await world.ask(controller, "cutover", "v2", cancel=True)).ok
    assert (await world.ask(controller, "cutover", "v2")).ok
    assert (await world.ask(controller, "cutover", "v2", cancel=True)).ok
    assert (await collection(world)).pending is None
    assert (await events(world))[-1] == "cutover withdrawn"
    assert (await world.ask(controller, "cutover", "v2")).ok
    assert (await world.ask(controller, "abort", "v2", confirm="v2")).ok
    assert (await collection(world)).pending is None


def test_an_approval_does_not_overrule_a_file(world: World, tmp_path: Path) -> None:
    async def main() -> None:
        controller = await two_versions(world)
        (tmp_path / "hold").touch()
        configure(world, f"    cutover: {{approval: true, postpone_file: '{tmp_path / 'hold'}'}}\n")
        await world.ask(controller, "cutover", "v2")
        approved = as_operator("ben@b", "cutover", "v2", approve=True)
        await controller.handle(approved)
        assert "approved by ben@b" in (await outcome_of(world, approved)).message
        async with attended(controller):
            await asyncio.sleep(10)
            assert (await collection(world)).serving == "v1"
            (tmp_path / "hold").unlink()
            await asyncio.sleep(3)
        assert (await collection(world)).serving == "v2"
        assert "approved_by" in str((await world.journal())[-1].data)

    virtual_time.run(main())


def test_a_file_that_comes_back_during_the_examination_holds_it_again(world: World, tmp_path: Path) -> None:
    async def main() -> None:
        controller = await two_versions(world)
        flag = tmp_path / "hold"
        flag.touch()
        configure(world, f"    cutover: {{postpone_file: '{flag}'}}\n")
        await world.ask(controller, "cutover", "v2")
        world.sweeping = flag.touch  # somebody thinks better of it
        async with attended(controller):
            flag.unlink()
            await asyncio.sleep(5)
            state = await collection(world)
            assert (state.serving, state.pending is None) == ("v1", False)
            world.sweeping = lambda: None
            flag.unlink()
            await asyncio.sleep(30)
        assert (await collection(world)).serving == "v2"
        await world.check()

    virtual_time.run(main())


async def test_two_approvals_at_once_are_one(world: World) -> None:
    controller = await two_versions(world)
    configure(world, "    cutover: {approval: true}\n")
    assert (await world.ask(controller, "cutover", "v2")).ok
    world.meanwhile = lambda: asyncio.sleep(0.01)
    first = as_operator("ben@b", "cutover", "v2", approve=True)
    second = as_operator("cleo@c", "cutover", "v2", approve=True)
    await asyncio.gather(controller.handle(first), controller.handle(second))
    assert (await outcome_of(world, first)).ok
    assert "somebody was first: ben@b" in (await outcome_of(world, second)).message
    state = await collection(world)
    assert (state.serving, state.pending, state.notice) == ("v2", None, None)


async def test_a_reason_that_was_not_needed_does_not_wait(world: World) -> None:
    """Given for a gate that passed, it must not override what the gate finds days later."""
    controller = await two_versions(world)
    configure(world, "    cutover: {approval: true}\n")
    asked = as_operator("anna@a", "cutover", "v2", force="to be sure", accept_inconclusive="to be sure")
    await controller.handle(asked)
    assert (await outcome_of(world, asked)).ok
    world.verdict = Verdict.FAIL
    approved = await world.ask(controller, "cutover", "v2", approve=True)
    assert "does not pass the gate" in approved.message
    assert (await collection(world)).serving == "v1"


async def test_a_rollback_withdraws_what_waits(world: World) -> None:
    """Otherwise it would fire when the same version serves again, long after anybody thought of it."""
    controller = await two_versions(world)
    await world.ask(controller, "cutover", "v2")
    await world.ready(controller, "v3")
    configure(world, "    cutover: {approval: true}\n")
    asked = as_operator("anna@a", "cutover", "v3", **{"from": "v2"})
    await controller.handle(asked)
    assert (await collection(world)).pending is not None
    gone_back = await world.ask(controller, "rollback")
    assert gone_back.ok
    assert "the cutover to v3 that waited is withdrawn by this rollback" in gone_back.message
    state = await collection(world)
    assert (state.serving, state.pending) == ("v1", None)
    assert ("the cutover to v3 that waited is withdrawn by this rollback", "crossfade cutover docs v3") in state.notes
    await world.check()


async def test_a_cutover_is_withdrawn_while_it_is_examined(world: World) -> None:
    controller = await two_versions(world)
    judging, go = asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        judging.set()
        await go.wait()

    world.meanwhile = slow
    asked = as_operator("anna@a", "cutover", "v2")
    cutting = asyncio.create_task(controller.handle(asked))
    await judging.wait()
    cancelled = as_operator("ben@b", "cutover", "v2", cancel=True)
    await controller.handle(cancelled)
    assert (await outcome_of(world, cancelled)).message == "the cutover to v2 that anna@a asked for is withdrawn"
    told = await outcome_of(world, asked)
    assert (told.ok, "withdrawn by ben@b, while it was examined" in told.message) == (False, True)
    async with asyncio.timeout(5):
        await cutting  # without `go`: what is withdrawn is not examined to its end
    assert (await collection(world)).serving == "v1"
    assert (await events(world))[-1] == "cutover withdrawn"
    go.set()
    heir = await world.controller()
    await heir.handle(asked)  # its sender asks again
    assert (await collection(world)).serving == "v1"
    assert (await world.ask(heir, "cutover", "v2")).ok
    await world.check()


async def test_an_examination_ends_with_the_office_and_begins_anew_in_the_next(world: World) -> None:
    controller = await two_versions(world)
    judging = asyncio.Event()

    async def endless() -> None:
        judging.set()
        await asyncio.Event().wait()

    world.meanwhile = endless
    asked = as_operator("anna@a", "cutover", "v2")
    cutting = asyncio.create_task(controller.handle(asked))
    await judging.wait()
    controller.stand_down()
    world.meanwhile = lambda: asyncio.sleep(0)
    await asyncio.sleep(0.01)
    assert not cutting.done()
    await controller.take_over(world.view)
    async with asyncio.timeout(5):
        await cutting
    assert (await outcome_of(world, asked)).ok
    assert (await collection(world)).serving == "v2"
    await world.check()


def test_a_cutover_that_was_given_up_with_the_office_is_not_gone_on_with_much_later(world: World) -> None:
    async def main() -> None:
        controller = await two_versions(world)

        async def endless() -> None:
            controller.stand_down()
            await asyncio.Event().wait()

        world.meanwhile = endless
        asked = as_operator("anna@a", "cutover", "v2")
        await controller.handle(asked)
        world.meanwhile = lambda: asyncio.sleep(0)
        await controller.take_over(world.view)
        await asyncio.sleep(600)
        assert (await collection(world)).serving == "v1"
        assert (await collection(world)).outcome(asked.id) is None, "whoever hears it again may carry it out"

    virtual_time.run(main())


async def test_the_state_stays_small_however_often_a_cutover_is_checked(world: World) -> None:
    """A record of the state topic has to fit a broker's message.max.bytes, or nothing could be changed any more."""
    controller = await two_versions(world)
    world.notes = tuple(f"note {at}: {'x' * 100}" for at in range(30))
    commands = [as_operator("ci@ci", "cutover", "v2", check=True) for _ in range(520)]
    for command in commands:
        await controller.handle(command)
    state = await collection(world)
    assert len(state.to_bytes()) < 500_000
    newest = state.outcome(commands[-1].id)
    assert newest is not None
    assert newest.data["gate"]["notes"], "whoever waits for it sees it whole"  # type: ignore[index,call-overload]
    oldest = state.outcome(commands[40].id)
    assert (oldest is not None, oldest and oldest.data) == (True, {}), "still known to be applied"


async def test_the_journal_names_the_dead_letters_that_were_accepted(world: World) -> None:
    controller = await two_versions(world)
    world.found = {"held": 1}
    assert (await world.ask(controller, "cutover", "v2", accept_held=["k", "other"])).ok
    (entry,) = [entry for entry in await world.journal() if entry.event == "cutover" and entry.version == "v2"]
    assert entry.data["outcome"]["accepted_held"] == ["k"]  # type: ignore[index,call-overload]


# --- the watch ------------------------------------------------------------------------------------------------------


async def cut_over_watched(world: World, lines: str = WATCHED) -> Controller:
    controller = await two_versions(world)
    configure(world, lines)
    assert (await world.ask(controller, "cutover", "v2")).ok
    return controller


async def silent(world: World, version: str) -> None:
    build = (await world.view()).build("docs", version)
    world.answers[version] = Asked(build.space, 0, frozenset(), 5.0)


def test_a_watch_goes_back_by_itself_once(world: World) -> None:
    async def main() -> None:
        controller = await cut_over_watched(world)
        await silent(world, "v2")
        async with attended(controller):
            await asyncio.sleep(30)
        state = await collection(world)
        assert (state.serving, state.previous) == ("v1", "v2")
        assert state.swapped is not None
        assert (state.swapped.who, state.swapped.why) == ("watch", "20 of 20 queries found nothing, more than 2.0%")
        assert state.watch is not None
        assert state.watch.result == "rolled back"
        assert (await events(world)).count("rollback") == 1
        assert "watch: crossed" in await events(world)
        await world.check()

    virtual_time.run(main())


def test_a_watch_reads_the_golden_set_once(world: World) -> None:
    """It asks what was asked before the cutover, and does not parse a large file every few seconds."""

    async def main() -> None:
        controller = await cut_over_watched(world)
        world.golden_read = 0
        async with attended(controller):
            await asyncio.sleep(30)
        assert world.golden_read == 1

    virtual_time.run(main())


def test_another_controller_goes_on_with_the_watch(world: World) -> None:
    async def main() -> None:
        controller = await cut_over_watched(world)
        async with attended(controller):
            await asyncio.sleep(5)
        heir = await world.controller()
        await silent(world, "v2")
        async with attended(heir):
            await asyncio.sleep(10)
        assert (await collection(world)).serving == "v1"

    virtual_time.run(main())


def test_a_watch_without_rollback_only_says_so(world: World) -> None:
    async def main() -> None:
        controller = await cut_over_watched(world, WATCHED.replace("true", "false"))
        world.failing["v2"] = Unreachable("away")
        async with attended(controller):
            await asyncio.sleep(10)
        state = await collection(world)
        assert state.serving == "v2"
        ((text, then),) = state.notes
        assert text == "the watch over v2: crossed (20 of 20 queries failed, more than 1.0%)"
        assert then == "crossfade rollback docs"
        assert (await events(world)).count("watch: crossed") == 1
        world.failing.clear()
        async with attended(controller):
            await asyncio.sleep(5)
            assert "within the bounds again" in (await collection(world)).notes[0][0]
            world.now_ms += 60_000
            await asyncio.sleep(5)
        watch = (await collection(world)).watch
        assert watch is not None
        assert watch.result == "quiet"
        assert not watch.going

    virtual_time.run(main())


def test_a_watch_does_not_go_back_to_what_is_no_better(world: World) -> None:
    async def main() -> None:
        controller = await cut_over_watched(world)
        for version in ("v1", "v2"):
            world.failing[version] = Unreachable("the store is away")
        async with attended(controller):
            await asyncio.sleep(30)
            assert (await collection(world)).serving == "v2"
            del world.failing["v1"]
            await asyncio.sleep(10)
        assert (await collection(world)).serving == "v1"

    virtual_time.run(main())


def test_a_watch_does_not_go_back_once_all_is_well_again(world: World) -> None:
    """An endpoint of both was away: two looks crossed a bound, and by the third both answer as they should."""

    async def main() -> None:
        controller = await cut_over_watched(world)
        looks = 0
        real = world.answer

        async def answer(build: BuildState, query: str) -> Asked:
            nonlocal looks
            looks += build.version == "v2"
            if looks <= 40:
                raise Unreachable("away")
            return await real(build, query)

        world.answering = answer
        async with attended(controller):
            await asyncio.sleep(20)
        state = await collection(world)
        assert "watch: crossed" in await events(world)
        assert state.serving == "v2", "what answers well is left alone"
        assert state.watch is not None
        assert state.watch.result == "watching"

    virtual_time.run(main())


def test_a_watch_tells_nothing_from_what_it_cannot_ask(world: World) -> None:
    """Its own configuration is wrong, say: that is no failure of the space."""

    async def main() -> None:
        controller = await cut_over_watched(world)
        world.failing["v2"] = Refused("another model here")
        async with attended(controller):
            await asyncio.sleep(30)
        state = await collection(world)
        assert state.serving == "v2"
        assert state.watch is not None
        assert state.watch.result == "watching"

    virtual_time.run(main())


def test_a_watch_leaves_alone_what_somebody_else_swapped(world: World) -> None:
    async def main() -> None:
        controller = await cut_over_watched(world)
        await silent(world, "v2")
        watch = (await collection(world)).watch
        assert watch is not None
        assert (await world.ask(controller, "rollback")).ok
        assert (await world.ask(controller, "cutover", "v2")).ok  # anew, and watched anew
        stray = Command(
            id=f"watch/{watch.swap_id}",
            verb="rollback",
            collection="docs",
            args={"from": "v2", "swap": watch.swap_id, "origin": "watch"},
            who="watch",
        )
        await controller.handle(stray)
        assert "has been swapped meanwhile" in (await outcome_of(world, stray)).message
        assert (await collection(world)).serving == "v2"
        await world.check()

    virtual_time.run(main())


def test_a_watch_that_may_not_go_back_says_why(world: World) -> None:
    async def main() -> None:
        controller = await two_versions(world)
        configure(world, WATCHED + "    cutover: {max_rollback_lag: 0}\n")
        assert (await world.ask(controller, "cutover", "v2")).ok
        for i in range(5):
            world.kafka.append("documents", f"k{i}".encode(), b"{}")
        await silent(world, "v2")
        async with attended(controller):
            await asyncio.sleep(20)
        state = await collection(world)
        assert state.serving == "v2"
        assert state.watch is not None
        assert state.watch.result == "not rolled back"
        assert "5 events behind the log, more than 0" in state.watch.reason

    virtual_time.run(main())


# --- rollback -------------------------------------------------------------------------------------------------------


async def test_a_rollback_names_the_lag_and_the_bound_of_the_configuration(world: World) -> None:
    controller = await two_versions(world)
    await world.ask(controller, "cutover", "v2")
    configure(world, "    cutover: {max_rollback_lag: 2}\n")
    for i in range(3):
        world.kafka.append("documents", f"k{i}".encode(), b"{}")
    refused = await world.ask(controller, "rollback")
    assert refused.message == "docs/v1 is 3 events behind the log, more than 2: going back would hide them"
    assert "--accept-lag" in refused.next_step
    world.path.write_text("no configuration: at all")  # must not stand in the way of going back
    gone_back = await world.ask(controller, "rollback")
    assert (gone_back.ok, gone_back.data["lag"]) == (True, 3)
    assert await stages(world) == {"v1": "serving", "v2": "previous"}
