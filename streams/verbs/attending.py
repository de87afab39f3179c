"""What the controller does without being asked: go on with a cutover that waited, watch over one that was made, move
the rollout of a version that is ready, and, where that is configured, retire the version that was kept.

It acts through commands like anybody else, so that each of them is applied once, checked and journalled; after a
crash the next controller goes on from the state.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence

from pydantic import JsonValue

from connectors.errors import CrossfadeError
from streams.migration.watch import IN_A_ROW, after, crossed, next_step
from streams.state import CollectionState, Command, Notice, Sample, StageChange, Watching
from streams.verbs.asking import queries_of, sample
from streams.verbs.desk import Amendment, Desk, NotYet
from streams.verbs.ending import due
from streams.verbs.rolling import next_of, wanted
from streams.verbs.telling import HOOKS, tell_after, waits
from streams.verbs.waiting import GOES_ON, may_go_on

log = logging.getLogger(__name__)

WATCH = "watch"
"""The origin of a rollback by a watch, and the name it has in the journal."""

TRY_AGAIN_S = 10.0
ROLLOUT_EVERY_S = 1.0
RETENTION_EVERY_S = 15.0


class Attendant:
    """`look` often, from one task; `close` ends what is under way. `busy`: a cutover of the collection is examined."""

    def __init__(
        self,
        desk: Desk,
        handle: Callable[[Command], Awaitable[None]],
        amend: Callable[[str, Callable[[CollectionState], Amendment | None]], Awaitable[None]],
        busy: Callable[[str], bool],
    ) -> None:
        self._desk = desk
        self._handle = handle
        self._amend = amend
        self._busy = busy
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}

    def look(self, collections: Iterable[CollectionState]) -> None:
        """Begin what is to be done for each of them, one task at a time of either kind; none: end all of it."""
        found = {collection.collection: collection for collection in collections}
        for (kind, name), task in list(self._tasks.items()):
            if task.done():
                del self._tasks[kind, name]
                if not task.cancelled() and (error := task.exception()) is not None:
                    log.error("the %s of %s failed and begins anew", kind, name, exc_info=error)
            elif name not in found:
                task.cancel()
        for name, collection in found.items():
            if collection.pending is not None and ("pending", name) not in self._tasks:
                self._tasks["pending", name] = asyncio.create_task(self._guarded(self._go_on, name))
            if waits(collection) and ("hooks", name) not in self._tasks:
                self._tasks["hooks", name] = asyncio.create_task(self._guarded(self._tell, name))
            if collection.watch is not None and collection.watch.going and ("watch", name) not in self._tasks:
                self._tasks["watch", name] = asyncio.create_task(self._guarded(self._watch, name))
            if collection.previous is not None and ("retention", name) not in self._tasks:
                self._tasks["retention", name] = asyncio.create_task(self._guarded(self._retire, name))

            if ("rollout", name) not in self._tasks and wanted(self._desk, collection):
                self._tasks["rollout", name] = asyncio.create_task(self._guarded(self._roll, name))

    async def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _guarded(self, work: Callable[[str], Awaitable[None]], name: str) -> None:
        try:
            await work(name)
        except CrossfadeError as error:  # it is begun anew at the next look
            log.error("what was to be done for %s waits: %s", name, error)
            await asyncio.sleep(TRY_AGAIN_S)

    def _state(self, name: str) -> CollectionState | None:
        return self._desk.state.collections.get(name)

    # a cutover that waited

    async def _go_on(self, name: str) -> None:
        """Once, when nothing is left to wait for; the examination and what is refused are the command's own."""
        current = self._state(name)
        pending = current.pending if current is not None else None
        if pending is None or self._busy(name) or not await may_go_on(self._desk, pending):
            return
        asked = pending.command
        log.info("%s: nothing holds the cutover to %s any more", name, asked.version)
        command = asked.model_copy(update={"id": f"{asked.id}/{GOES_ON}", "args": {"origin": GOES_ON}})
        await self._handle(command)
        now = self._state(name)
        if now is not None and now.pending == pending:
            await asyncio.sleep(TRY_AGAIN_S)  # some trouble: the same command again

    # the retention

    async def _retire(self, name: str) -> None:
        """One look, and a pause until the next: days are what is counted here."""
        current = self._state(name)
        command = due(self._desk, current) if current is not None and not self._busy(name) else None
        if current is not None and command is not None and current.outcome(command.id) is None:
            log.info("%s/%s has been kept long enough: it is retired", name, command.version)
            await self._handle(command)
        await asyncio.sleep(RETENTION_EVERY_S)

    # the rollout

    async def _roll(self, name: str) -> None:
        """One look, and a pause until the next: the servers publish their counts each second."""
        await self._amend(name, next_of(self._desk))
        await asyncio.sleep(ROLLOUT_EVERY_S)

    # hooks that are told of what has changed

    async def _tell(self, name: str) -> None:
        await tell_after(self._desk, name, self._told)

    async def _told(
        self, name: str, change: StageChange, event: str, message: str, results: dict[str, JsonValue]
    ) -> None:
        command = Command(
            id=f"{HOOKS}/{change.id}", verb=change.verb, collection=name, version=change.version, who=HOOKS
        )
        await self._amend(name, lambda current: Amendment(current, command, event, message, results, change.id))

    # the watch

    async def _watch(self, name: str) -> None:
        """From now to its end, or until something else is swapped or this is no longer the controller."""
        looks: list[Sample] = []
        queries = await queries_of(self._desk, name)
        first = self._watching(name)
        while (watching := self._watching(name)) is not None and first is not None:
            if watching.swap_id != first.swap_id:
                return
            await asyncio.sleep(watching.bounds.every_s)
            build = self._desk.state.builds[f"{name}/{watching.version}"]
            look = await sample(self._desk, build, queries, watching.bounds.every_s)
            looks = [*looks, look][-IN_A_ROW:] if look is not None else looks
            if (step := next_step(watching, looks, self._desk.out.wall_ms())) is not None:
                if step.to == "crossed":
                    log.error("%s/%s since its cutover: %s", name, watching.version, step.reason)
                await self._amend(name, _amendment(after(watching, step), look))
            now = self._watching(name)
            if now is None or now.swap_id != watching.swap_id or now.result != "crossed" or not now.bounds.rollback:
                continue
            if look is not None and crossed(now.before, look, now.bounds) is not None:  # not while it is well again
                await self._go_back(name, now, queries)

    def _watching(self, name: str) -> Watching | None:
        current = self._state(name)
        watch = current.watch if current is not None else None
        return watch if watch is not None and watch.going else None

    async def _go_back(self, name: str, watching: Watching, queries: Sequence[str]) -> None:
        """Roll back, unless the previous version answers no better now: that would help nobody."""
        if watching.previous is None:
            return
        previous = self._desk.state.builds[f"{name}/{watching.previous}"]
        there = await sample(self._desk, previous, queries, watching.bounds.every_s)
        if there is None or (no_better := crossed(watching.before, there, watching.bounds)) is not None:
            said = no_better if there is not None else "it cannot be asked from here"
            log.error("%s is not rolled back, %s does no better: %s", name, previous.key, said)
            return
        command = Command(
            id=f"{WATCH}/{watching.swap_id}",
            verb="rollback",
            collection=name,
            args={"from": watching.version, "swap": watching.swap_id, "origin": WATCH},
            who=WATCH,
            why=watching.reason,
        )
        await self._handle(command)
        now = self._state(name)
        outcome = now.outcome(command.id) if now is not None else None
        if outcome is not None and not outcome.ok:
            refused = watching.model_copy(update={"result": "not rolled back", "reason": outcome.message})
            await self._amend(name, _amendment(refused, there))


def held_back(command: Command, error: NotYet, now_ms: int) -> Callable[[CollectionState], Amendment | None]:
    """A build that is complete, and that a hook does not let be ready: nobody waits for an answer, so `status` says
    it."""

    def change(current: CollectionState) -> Amendment | None:
        if current.notice is not None and current.notice.text == error.message:
            return None
        notice = Notice(at_ms=now_ms, text=error.message, next_step=error.next_step, about=command.id)
        state = current.model_copy(update={"notice": notice})
        return Amendment(state, command, "held back by a hook", error.message, {})

    return change


def let_go(command: Command) -> Callable[[CollectionState], Amendment | None]:
    """The hook agrees now: the notice that it did not is over."""

    def change(current: CollectionState) -> Amendment | None:
        if current.notice is None or current.notice.about != command.id:
            return None
        state = current.model_copy(update={"notice": None})
        return Amendment(state, command, "no longer held back by a hook", "", {})

    return change


def _amendment(after: Watching, look: Sample | None) -> Callable[[CollectionState], Amendment | None]:
    """The change of state for a step of a watch, if it is still going by then."""

    def change(current: CollectionState) -> Amendment | None:
        now = current.watch
        if now is None or now.swap_id != after.swap_id or not now.going:
            return None
        data = {
            name: figures.model_dump(by_alias=True)
            for name, figures in (("now", look), ("before", after.before))
            if figures is not None
        }
        command = Command(
            id=f"{WATCH}/{after.swap_id}/{after.result}",
            verb="cutover",
            collection=current.collection,
            version=after.version,
            who=WATCH,
        )
        state = current.model_copy(update={"watch": after})
        return Amendment(state, command, f"watch: {after.result}", after.text, dict(data))

    return change
