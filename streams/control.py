"""How operators and workers speak to the controller: a command goes out, its outcome comes back in the state topic.

The sender never acts by itself; it sends the same id again until it sees the outcome, since an id is applied once.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import socket

from connectors.errors import Transient
from connectors.protocols import RecordSink
from streams.state import Command, CommandOutcome, TopicNames
from streams.views import StateView

SEND_AGAIN_S = 3.0


def whoami() -> str:
    """user@host, for the journal."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


async def send(sink: RecordSink, names: TopicNames, command: Command) -> None:
    """Put the command on the commands topic, keyed by its collection."""
    await sink.send(names.commands, command.collection.encode(), command.to_bytes())


async def ask(
    sink: RecordSink, names: TopicNames, view: StateView, command: Command, *, timeout_s: float
) -> CommandOutcome:
    """Send until the outcome is there. `view` must be running.

    Raises Transient when there is none within `timeout_s`; sending the same command again is then safe. Raises what is
    Terminal when it cannot be sent at all.
    """

    def outcome(state: StateView) -> CommandOutcome | None:
        collection = state.collections.get(command.collection)
        return collection.outcome(command.id) if collection else None

    async def keep_sending() -> None:
        while True:
            with contextlib.suppress(Transient):
                await send(sink, names, command)
            await asyncio.sleep(SEND_AGAIN_S)

    sender = asyncio.create_task(keep_sending())
    waiting = asyncio.create_task(view.wait_for(lambda state: outcome(state) is not None))
    try:
        async with asyncio.timeout(timeout_s):
            await asyncio.wait({sender, waiting}, return_when=asyncio.FIRST_COMPLETED)
        # the sender ends by itself only when the command cannot be sent: nobody else would say so
        await (waiting if waiting.done() else sender)
    except TimeoutError as error:
        raise Transient(
            f"no outcome of {command.verb} {command.collection} within {timeout_s:g} s: no controller seems to run",
            next_step="start one: crossfade worker; it will find this command and apply it once",
        ) from error
    finally:
        for task in (sender, waiting):
            task.cancel()
        await asyncio.gather(sender, waiting, return_exceptions=True)
    found = outcome(view)
    assert found is not None
    return found
