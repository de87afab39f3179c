"""Verbs that end a version and drop its space: retire and abort.

Never the version that serves, and never without its name.
"""

from __future__ import annotations

from connectors.errors import Refused
from streams.retry import a_while
from streams.state import Command
from streams.verbs.desk import Desk, spent
from streams.versions import Stage, check_transition


async def retire(desk: Desk, command: Command) -> None:
    await _end(desk, command, Stage.RETIRED)


async def abort(desk: Desk, command: Command) -> None:
    await _end(desk, command, Stage.ABORTED)


async def _end(desk: Desk, command: Command, stage: Stage) -> None:
    """Stop writing, then drop the space: the stage first, so that no worker writes into what is being dropped."""
    build, collection = desk.state.build(command), desk.state.collection(command)
    if collection.intent is None:
        if collection.serving == build.version:
            raise Refused(
                f"{build.key} is serving: it cannot be {stage}",
                next_step=f"crossfade rollback {build.collection}",
            )
        check_transition(build.stage, stage, collection=build.collection, version=build.version)
        if command.args.get("confirm") != build.version:
            raise Refused(
                f"this drops the space {build.space} for good and must be confirmed by name",
                next_step=f"crossfade {command.verb} {build.collection} {build.version} --confirm {build.version}",
            )
        collection = await desk.state.intend(command, {}, build.model_copy(update={"stage": stage}))
        build = desk.state.build(command)
    await a_while(lambda: desk.out.store.drop_space(build.space))
    previous = None if collection.previous == build.version else collection.previous
    waits = collection.pending is not None and collection.pending.command.version == build.version
    await desk.state.done(
        command,
        f"{build.key} is {stage}; space {build.space} is dropped",
        data=spent(desk, build),
        collection={"previous": previous, **({"pending": None} if waits else {})},
    )
