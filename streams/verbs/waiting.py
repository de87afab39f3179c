"""A cutover that was found good and waits: for a file to go away, for somebody's approval.

Nothing here moves anything; the controller looks again and again whether it may go on.
"""

from __future__ import annotations

from pydantic import JsonValue

from connectors.errors import CrossfadeError, Refused
from streams.state import BuildState, CollectionState, Command, Notice, Pending
from streams.verbs.desk import Desk

GOES_ON = "pending"
"""The origin of a command by which the controller goes on with a cutover that waited."""


def goes_on(command: Command) -> bool:
    """Whether it goes on with a cutover that waited."""
    return bool(command.args.get("approve")) or command.args.get("origin") == GOES_ON


async def postponed(desk: Desk, command: Command, collection: CollectionState) -> Pending | None:
    """What this cutover has still to wait for; None when it may go on now."""
    pending = collection.pending
    if pending is None:
        rules = desk.out.settings().collection(command.collection).cutover
        pending = Pending(
            command=command,
            since_ms=desk.out.wall_ms(),
            file=str(rules.postpone_file.absolute()) if rules.postpone_file else None,
            approval=rules.approval,
        )
    if command.args.get("approve"):
        pending = pending.model_copy(update={"approved_by": command.who or "-", "approved_why": command.why})
    return None if await may_go_on(desk, pending) else pending


async def may_go_on(desk: Desk, pending: Pending) -> bool:
    """Nothing that it waits for is left. A file that cannot be looked at counts as there."""
    if pending.approval and not pending.approved_by:
        return False
    return pending.file is None or not await desk.out.file_exists(pending.file)


def given_up(collection: CollectionState, command: Command, error: CrossfadeError, now_ms: int) -> CollectionState:
    """A cutover that waited was refused when its time came: nobody waits for the answer, so `status` shows it."""
    pending = collection.pending
    if pending is None or not goes_on(command) or pending.command.version != command.version:
        return collection
    text = f"the cutover to {command.version} was given up: {error.message}"
    notice = Notice(at_ms=now_ms, text=text, next_step=error.next_step)
    return collection.model_copy(update={"pending": None, "notice": notice})


def asked(pending: Pending | None, command: Command) -> dict[str, JsonValue]:
    """Who asked for a cutover that waited, and who approved it."""
    if pending is None or not goes_on(command):
        return {}
    approved = command.who if command.args.get("approve") else pending.approved_by
    why = command.why if command.args.get("approve") else pending.approved_why
    return {
        "asked_by": pending.command.who,
        "asked_why": pending.command.why,
        **({"approved_by": approved, "approved_why": why} if approved else {}),
    }


def args_of(collection: CollectionState, command: Command) -> dict[str, JsonValue]:
    """With those of the cutover that waited, when it goes on."""
    pending = collection.pending
    return {**(pending.command.args if pending is not None and goes_on(command) else {}), **command.args}


async def withdraw(desk: Desk, command: Command, collection: CollectionState, build: BuildState) -> None:
    if collection.pending is None or collection.pending.command.version != build.version:
        raise Refused(
            f"no cutover to {build.key} waits", next_step=f"crossfade status {build.collection} {build.version}"
        )
    await desk.state.done(
        command,
        f"{build.key}: the cutover that {collection.pending.command.who or 'nobody named'} asked for is withdrawn",
        collection={"pending": None},
        event="cutover withdrawn",
    )
