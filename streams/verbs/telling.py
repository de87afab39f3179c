"""Hooks: those that are asked before a step begins, and those that are told of a change that stands in the state.

What they are told, and which of them, is decided in streams.hooks; nothing here holds a collection's turn meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal

from pydantic import JsonValue

from connectors import hooks as calls
from connectors.errors import Refused
from streams.config_operation import Hook
from streams.hooks import again, as_json, as_variables, hooks_for, refusal, told
from streams.state import CollectionState, Command, StageChange
from streams.verbs.desk import Desk, NotYet

log = logging.getLogger(__name__)

HOOKS = "hooks"
"""The name they have in the journal."""
TRY_AGAIN_S = 10.0

Told = Callable[[str, StageChange, str, str, dict[str, JsonValue]], Awaitable[None]]
"""Takes a collection's change off those to be told, with what the journal says: event, message, data."""


async def ask_before(desk: Desk, command: Command, changes: Sequence[StageChange]) -> None:
    """One after the other, in the order of the configuration; the first that fails ends it.

    Raises Refused, or NotYet for a step that is tried again by itself (a replay that is complete).
    """
    for change in changes:
        change = change.model_copy(update={"at_ms": desk.out.wall_ms()})
        for hook in hooks_for(desk.out.hooks(change.collection), change.event, "before"):
            try:
                await _call(hook, change, "before")
            except Refused as error:
                text = refusal(hook, change, error.message)
                if command.verb != "replayed":
                    raise Refused(text, next_step=again(command)) from None
                raise NotYet(
                    f"{text}; it is asked again every {TRY_AGAIN_S:g} s",
                    next_step=f"look at what the hook objects to (collections.{change.collection}.hooks), and at "
                    f"crossfade status {change.collection} {change.version}",
                ) from None
            log.info("%s/%s: the hook %s before %s agrees", change.collection, change.version, hook.label, change.event)


async def tell_after(desk: Desk, name: str, done: Told) -> None:
    """Tell hooks of the oldest change of a collection that they have not heard of.

    They are told before that is written down: at least once, and again by the next controller after a crash between.
    """
    current = desk.state.collections.get(name)
    if current is None or not waits(current):
        return
    change = current.untold[0]
    results: dict[str, JsonValue] = {}
    failed = []
    for hook in hooks_for(desk.out.hooks(name), change.event, "after"):
        try:
            await _call(hook, change, "after")
        except Refused as error:
            results[hook.label] = error.message
            failed.append(f"the hook {hook.label} {error.message}")
        else:
            results[hook.label] = "done"
    what = f"after {change.event} of {name}/{change.version}"
    if failed:
        log.error("%s: %s", what, "; ".join(failed))
    message = f"{what}: {'; '.join(failed)}" if failed else f"{what}: {', '.join(results) or 'no hook any more'}"
    while True:  # and none of them is called again because this could not be written
        await done(name, change, "hook failed" if failed else "hooks told", message, results)
        now = desk.state.collections.get(name)
        if now is None or change.id not in {left.id for left in now.untold}:
            return
        await asyncio.sleep(1.0)


def waits(collection: CollectionState) -> bool:
    """Whether there is something to tell: not while a step is going on, which nobody wants to hear half of."""
    return bool(collection.untold) and collection.intent is None


async def _call(hook: Hook, change: StageChange, when: Literal["before", "after"]) -> None:
    """Raises Refused with what came of it."""
    context = {**told(change, when), "hook": hook.label}
    if hook.command is not None:
        await calls.run_command(hook.command, as_variables(context), hook.timeout_s)
    else:
        assert hook.http is not None, "a hook has one of the two"
        await calls.post(hook.http, as_json(context), hook.timeout_s)
