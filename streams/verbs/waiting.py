"""A cutover that was found good and waits: for a file to go away, for somebody's approval.

Nothing here moves anything; the controller looks again and again whether it may go on.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import JsonValue

from connectors.errors import CrossfadeError, Refused
from streams.state import BuildState, CollectionState, Command, CommandOutcome, Notice, Pending
from streams.verbs.desk import Desk

GOES_ON = "pending"
"""The origin of a command by which the controller goes on with a cutover that waited."""


def goes_on(command: Command) -> bool:
    """Whether it goes on with a cutover that waited."""
    return bool(command.args.get("approve")) or command.args.get("origin") == GOES_ON


_REASONS = {"force": "forced", "accept_inconclusive": "accepted_inconclusive"}
"""A reason's argument, and where it stands in what was found when it was needed."""


async def postponed(
    desk: Desk, command: Command, collection: CollectionState, found: Mapping[str, JsonValue]
) -> Pending | None:
    """What this cutover has still to wait for; None when it may go on now.

    A reason that was not needed for what was `found` does not wait with it: nobody gave it for what comes later.
    """
    pending = collection.pending
    if pending is None:
        rules = desk.out.settings().collection(command.collection).cutover
        unneeded = {name for name, needed in _REASONS.items() if needed not in found}
        args = {name: value for name, value in command.args.items() if name not in unneeded}
        pending = Pending(
            command=command.model_copy(update={"args": args}),
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


async def withdraw_examined(desk: Desk, command: Command, examined: Command) -> None:
    """End a cutover that is still examined: both get their outcome in one write, so no controller takes it up again."""
    message = f"the cutover to {command.version} that {examined.who or 'nobody named'} asked for is withdrawn"
    now_ms = desk.out.wall_ms()
    told = CommandOutcome(
        id=examined.id,
        ok=False,
        message=f"{message} by {command.who or 'nobody named'}, while it was examined",
        next_step=f"crossfade history {command.collection} --limit 5 says why",
    )
    own = CommandOutcome(id=command.id, ok=True, message=message)
    collection = desk.state.collection(command).with_outcome(told, now_ms).with_outcome(own, now_ms)
    await desk.state.commit(collection, [], command, "cutover withdrawn", message)
