"""The controller: commands in, transitions of stages out, and nobody else writes the state topic or moves an alias.

A step of several writes stores its intent first, so that the next controller completes it after a crash. A command id
is applied once, whatever is sent again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from connectors.errors import CrossfadeError, Fenced, Transient, UnknownOutcome
from connectors.protocols import AtomicWriter
from streams.progress import ProgressRecord, combine
from streams.state import CollectionState, Command, CommandOutcome, JournalEntry, TopicNames
from streams.state_store import StateStore
from streams.verbs import VERBS
from streams.verbs.desk import Desk, Outside
from streams.views import ProgressView, StateView

log = logging.getLogger(__name__)

ALIAS_LOOK_EVERY_S = 15.0
PROGRESS_EVERY_S = 1.0


class Controller:
    """Active between `take_over` and the loss of the commands partition. Commands of one collection run in order."""

    def __init__(self, names: TopicNames, outside: Outside, writer: AtomicWriter, progress: ProgressView) -> None:
        self._out = outside
        self._state = StateStore(names, writer, outside.wall_ms)
        self._progress = progress
        self._desk = Desk(names, outside, self._state, progress)
        self._locks: dict[str, asyncio.Lock] = {}
        self.fenced = False
        self._in_office = asyncio.Event()
        self._out_of_office = asyncio.Event()

    @property
    def active(self) -> bool:
        return self._in_office.is_set()

    async def take_over(self, load_state: Callable[[], Awaitable[StateView]]) -> None:
        """Fence the controller before this one, read what stands, and complete what it had begun."""
        await self._state.open(load_state)
        self._in_office.set()
        self._out_of_office.clear()
        log.info("this worker is the controller")
        for name in list(self._state.collections):
            if (begun := self._state.begun(name)) is not None:
                log.warning("completes the %s of %s that a former controller began", begun.verb, name)
                await self.handle(begun)

    async def stood_down(self) -> None:
        """Return when this is no longer the controller."""
        await self._out_of_office.wait()

    def stand_down(self, *, fenced: bool = False) -> None:
        """Another worker is the controller now; `fenced`: it said so itself, before the group did."""
        self.fenced = fenced
        self._in_office.clear()
        self._out_of_office.set()
        self._state.close()

    async def handle(self, command: Command) -> None:
        """Apply one command, once. Refusals become outcomes; the sender reads them in the state topic.

        A command that comes before `take_over` is complete waits for it.
        """
        await self._in_office.wait()
        async with self._locks.setdefault(command.collection, asyncio.Lock()):
            if not await self._knows_the_state():
                return
            begun = self._state.begun(command.collection)
            if begun is not None and begun.id != command.id:  # one step at a time: that one first
                await self._attempt(begun)
                if self._state.begun(command.collection) is not None:
                    return  # it still waits out some trouble, and this one with it: its sender asks again
            current = self._state.collections.get(command.collection)
            if current is None or current.outcome(command.id) is None:
                await self._attempt(command)

    async def _knows_the_state(self) -> bool:
        """In office, and sure of what the state topic holds. False: the sender asks again."""
        try:
            if self.active and self._state.unsure:
                await self._state.read_again()
        except Fenced:
            self.stand_down(fenced=True)
        except Transient as error:
            log.error("the state cannot be read: %s", error)
            return False
        return self.active

    async def _attempt(self, command: Command) -> None:
        if not self.active:
            return
        try:
            await VERBS[command.verb](self._desk, command)
        except Fenced:
            log.warning("another controller has taken over")
            self.stand_down(fenced=True)
        except CrossfadeError as error:
            await self._refuse(command, error)

    async def _refuse(self, command: Command, error: CrossfadeError) -> None:
        collection = self._state.collections.get(command.collection)
        if collection is not None and collection.intent is not None and isinstance(error, Transient):
            log.error("%s of %s is not complete and will be tried again: %s", command.verb, command.collection, error)
            return  # the intent stands; `watch` completes it
        if isinstance(error, Transient) and (
            command.verb in ("replayed", "failed") or command.args.get("origin") == "configuration"
        ):
            log.error("%s of %s waits: %s", command.verb, command.collection, error)
            return  # a worker asks again under the same id: an outcome would end that
        if collection is None:
            collection = CollectionState(collection=command.collection, alias="", topic="")
        outcome = CommandOutcome(id=command.id, ok=False, message=error.message, next_step=error.next_step)
        try:
            await self._state.commit(
                collection.with_outcome(outcome, self._out.wall_ms()), [], command, "refused", error.message
            )
        except Fenced:
            self.stand_down(fenced=True)
        except Transient as trouble:
            log.error("the refusal of %s %s was not recorded: %s", command.verb, command.collection, trouble)

    async def watch(self) -> None:
        """While active: complete intents that a trouble interrupted, and put the alias where the state says it is."""
        while True:
            await asyncio.sleep(ALIAS_LOOK_EVERY_S)
            if not self.active:
                continue
            for collection in list(self._state.collections.values()):
                if collection.intent is not None:
                    await self.handle(collection.intent.command)
                    continue
                try:
                    await self._check_alias(collection)
                except Fenced:
                    self.stand_down(fenced=True)
                except CrossfadeError as error:  # its space is gone, say: that must not end what serves the others
                    self._state.unsure = self._state.unsure or isinstance(error, UnknownOutcome)
                    log.error("the alias of %s was not checked: %s", collection.collection, error)

    async def _check_alias(self, collection: CollectionState) -> None:
        """A late request of a former controller may have moved it (rule 10: one controller, and it looks first)."""
        async with self._locks.setdefault(collection.collection, asyncio.Lock()):
            current = self._state.collections[collection.collection]
            if not self.active or current.serving is None or current.intent is not None:
                return
            space = self._state.builds[f"{current.collection}/{current.serving}"].space
            if await self._out.store.alias_target(current.alias) != space:
                log.error("the alias %s was moved behind our back; it goes back to %s", current.alias, space)
                entry = JournalEntry(
                    at_ms=self._out.wall_ms(),
                    collection=current.collection,
                    version=current.serving,
                    event="alias put back",
                    why=f"{current.alias} did not point to {space}",
                )
                # the journal first: it fails if this controller was fenced, and then the alias is not ours to move
                await self._state.journal(entry)
                await self._out.store.point_alias(current.alias, space)

    async def summarise(self, send: Callable[[str, ProgressRecord], Awaitable[None]]) -> None:
        """While active: publish each build's progress as a whole, from its partitions'."""
        while True:
            await asyncio.sleep(PROGRESS_EVERY_S)
            for build in [b for b in self._state.builds.values() if self.active and b.active]:
                whole = combine(build.version, self._progress.partitions(build), build.partitions, self._out.wall_ms())
                if whole is None:
                    continue
                try:
                    await send(build.key, whole)
                except Transient as error:
                    log.info("progress of %s was not published: %s", build.key, error.message)
