"""The controller: commands in, transitions of stages out, and nobody else writes the state topic or moves an alias.

A step of several writes stores its intent first, so that the next controller completes it after a crash. A command id
is applied once, whatever is sent again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from connectors.errors import CrossfadeError, Fenced, Transient, UnknownOutcome
from connectors.protocols import AtomicWriter
from streams import tracing
from streams.hooks import HooksFirst
from streams.migration.series import Chronicle, SeriesRecord, series_key
from streams.progress import ProgressRecord, Whole
from streams.search.rolling import outdated
from streams.state import CollectionState, Command, CommandOutcome, JournalEntry, TopicNames
from streams.state_store import StateStore, described
from streams.subject import Subject, about
from streams.verbs import VERBS
from streams.verbs.attending import WATCH, Attendant, held_back, let_go
from streams.verbs.desk import Amendment, Desk, NotYet, Outside, Shown
from streams.verbs.ending import RETENTION, not_retired
from streams.verbs.examining import Examined, examine, may_begin, needs_examination
from streams.verbs.swapping import cutover
from streams.verbs.telling import TRY_AGAIN_S, ask_before
from streams.verbs.waiting import GOES_ON, given_up, withdraw_examined
from streams.views import ProgressView, StateView

log = logging.getLogger(__name__)

ALIAS_LOOK_EVERY_S = 15.0
PROGRESS_EVERY_S = 1.0
PARKED_S = 300.0
"""For a cutover whose controller is one no more: it may soon be one again. Later it would be a surprise."""
ATTEND_EVERY_S = 1.0
CONTROLLER = "controller"
"""Its name in the journal, for what it does on its own."""
SENT_AGAIN = frozenset({"configuration", GOES_ON, WATCH, RETENTION})
"""Origins of commands that no person waits for: whoever sent them sends them again."""


class Controller:
    """Active between `take_over` and the loss of the commands partition. Commands of one collection run in order."""

    def __init__(self, names: TopicNames, outside: Outside, writer: AtomicWriter, progress: ProgressView) -> None:
        self._out = outside
        self._state = StateStore(names, writer, outside.wall_ms, outside.hooks)
        self._progress = progress
        self._desk = Desk(names, outside, self._state, progress)
        self._locks: dict[str, asyncio.Lock] = {}
        self._under_way: set[str] = set()
        self._examined: dict[str, tuple[Command, int]] = {}
        self._examining: dict[str, asyncio.Task[Examined]] = {}
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
        for task in self._examining.values():
            task.cancel()
        self._state.close()

    async def handle(self, command: Command) -> None:
        """Apply one command, once. Refusals become outcomes; the sender reads them in the state topic.

        A command that comes before `take_over` is complete waits for it. While a cutover is examined, which takes as
        long as a sweep, the other commands of its collection go on.
        """
        await self._in_office.wait()
        if command.id in self._under_way:
            return  # it was sent again
        self._under_way.add(command.id)
        try:
            with about(self._subject(command)), tracing.span(command.verb, command=command.id):
                if command.verb == "cutover":
                    while not await self._cut_over(command):
                        if not await self._soon_in_office():
                            log.info("the cutover of %s is left to another controller", command.collection)
                            return
                else:
                    await self._take_turn(command)
        finally:
            self._under_way.discard(command.id)

    async def _soon_in_office(self) -> bool:
        try:
            async with asyncio.timeout(PARKED_S):
                await self._in_office.wait()
        except TimeoutError:
            return False
        return True

    def _subject(self, command: Command) -> Subject:
        """What a command is about, as the state knows it before it is applied."""
        build = self._state.builds.get(f"{command.collection}/{command.version}")
        if build is None:
            fingerprint = command.args.get("fingerprint")
            return Subject(command.collection, command.version, fingerprint if isinstance(fingerprint, str) else None)
        return Subject(build.collection, build.version, build.fingerprint, build.epoch)

    def _turn(self, collection: str) -> asyncio.Lock:
        """Commands of one collection change its state one after the other."""
        return self._locks.setdefault(collection, asyncio.Lock())

    async def _take_turn(self, command: Command, step: Callable[[], Awaitable[None]] | None = None) -> None:
        """Attempt it when its turn comes. Hooks that want to be asked first are asked between two turns: a `pause`
        must not wait for them."""
        try:
            while True:
                try:
                    async with self._turn(command.collection):
                        if await self._is_next(command):
                            await self._attempt(command, step)
                    if command.verb == "replayed":
                        await self._amend(command.collection, let_go(command))
                    return
                except HooksFirst as first:
                    changes = first.changes
                try:
                    await ask_before(self._desk, command, changes)
                except CrossfadeError as error:
                    async with self._turn(command.collection):
                        if await self._is_next(command):
                            await self._refuse(command, error)
                    if isinstance(error, NotYet):
                        await self._amend(command.collection, held_back(command, error, self._out.wall_ms()))
                        await asyncio.sleep(TRY_AGAIN_S)  # it is sent again each second; that is no pace for a hook
                    return
                self._state.cleared[command.id] = changes
        finally:
            self._state.cleared.pop(command.id, None)

    async def _cut_over(self, command: Command) -> bool:
        """Look whether it may begin, examine outside the collection's turn, and then look again and swap. False: the
        examination was given up, because the cutover was withdrawn, or because another worker is the controller."""
        if not await self._may_examine(command):
            return True
        examining = self._examining[command.id] = asyncio.create_task(examine(self._desk, command))
        try:
            await asyncio.wait([examining])
            if examining.cancelled():
                return False
            try:
                examined = examining.result()
            except CrossfadeError as error:
                async with self._turn(command.collection):
                    if await self._is_next(command):
                        await self._refuse(command, error)
                return True
            await self._take_turn(command, lambda: cutover(self._desk, command, examined))
            return True
        finally:
            examining.cancel()
            del self._examining[command.id]
            if self._examined.get(command.collection, (None,))[0] is command:
                del self._examined[command.collection]

    async def _may_examine(self, command: Command) -> bool:
        """False: it was refused, or is done without looking at a space."""
        async with self._turn(command.collection):
            if not await self._is_next(command):
                return False
            if not needs_examination(self._desk, command):
                await self._attempt(command, self._withdrawn(command))
                return False
            try:
                may_begin(self._desk, command)
                if not command.args.get("check"):  # which changes nothing, and may run beside another
                    self._check_alone(command)
                    self._examined[command.collection] = (command, self._out.wall_ms())
            except CrossfadeError as error:
                await self._refuse(command, error)
                return False
            return True

    def _withdrawn(self, command: Command) -> Callable[[], Awaitable[None]] | None:
        """The step that withdraws a cutover while it is examined; None when this is no such command."""
        first, _ = self._examined.get(command.collection, (None, 0))
        state = self._state.collections.get(command.collection)
        waits = state is not None and state.pending is not None  # then it is the waiting that is withdrawn
        if first is None or first.version != command.version or not command.args.get("cancel") or waits:
            return None

        async def step() -> None:
            await withdraw_examined(self._desk, command, first)
            self._examined.pop(command.collection, None)
            if (examining := self._examining.get(first.id)) is not None:
                examining.cancel()

        return step

    def _check_alone(self, command: Command) -> None:
        """Raises NotYet while another cutover of the collection is examined: one of the two would be a surprise."""
        if (other := self._examined.get(command.collection)) is None:
            return
        first, since_ms = other
        now = self._state.collection(command)
        at = datetime.fromtimestamp(since_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        raise NotYet(
            f"somebody was first: {first.who or 'somebody'} asked at {at} to cut {command.collection} over to "
            f"{first.version}, which is being examined; {now.serving or 'nothing'} serves",
            next_step=f"crossfade history {command.collection} --limit 5 says what came of it; or withdraw it: "
            f"crossfade cutover {command.collection} {first.version} --cancel",
        )

    async def _is_next(self, command: Command) -> bool:
        """In its collection's turn: in office, nothing else has begun, and it was not yet applied."""
        if not await self._knows_the_state():
            return False
        begun = self._state.begun(command.collection)
        if begun is None and command.args.get("origin") == RETENTION and command.collection in self._examined:
            return False  # nothing is dropped by itself while somebody is about to swap
        if begun is not None and begun.id != command.id:  # one step at a time: that one first
            await self._attempt(begun)
            if self._state.begun(command.collection) is not None:
                return False  # it still waits out some trouble, and this one with it: its sender asks again
        current = self._state.collections.get(command.collection)
        return current is None or current.outcome(command.id) is None

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

    async def _attempt(self, command: Command, step: Callable[[], Awaitable[None]] | None = None) -> None:
        """`step`: instead of the whole verb, from its beginning."""
        if not self.active:
            return
        try:
            await (step() if step is not None else VERBS[command.verb](self._desk, command))
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
        if isinstance(error, Fenced):
            self.stand_down(fenced=True)
            return
        passes = isinstance(error, Transient | NotYet)
        if passes and (command.verb in ("replayed", "failed") or command.args.get("origin") in SENT_AGAIN):
            log.error("%s of %s waits: %s", command.verb, command.collection, error)
            return  # it is sent again under the same id: an outcome would end that
        if collection is None:
            collection = CollectionState(collection=command.collection, alias="", topic="")
        now_ms = self._out.wall_ms()
        if not passes:
            collection = not_retired(given_up(collection, command, error, now_ms), command, error, now_ms)
        data = error.data if isinstance(error, Shown) else {}
        outcome = CommandOutcome(id=command.id, ok=False, message=error.message, next_step=error.next_step, data=data)
        event = f"{command.verb} refused"
        log.warning("%s of %s is refused: %s", command.verb, command.collection, error)
        try:
            await self._state.commit(
                collection.with_outcome(outcome, now_ms), [], command, event, error.message, data=data or None
            )
        except Fenced:
            self.stand_down(fenced=True)
        except CrossfadeError as trouble:
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
        async with self._turn(collection.collection):
            current = self._state.collections[collection.collection]
            if not self.active or current.serving is None or current.intent is not None:
                return
            build = self._state.builds[f"{current.collection}/{current.serving}"]
            space = build.space
            if await self._out.store.alias_target(current.alias) != space:
                log.error("the alias %s was moved behind our back; it goes back to %s", current.alias, space)
                entry = JournalEntry(
                    at_ms=self._out.wall_ms(),
                    collection=current.collection,
                    version=current.serving,
                    epoch=build.epoch,
                    event="alias put back",
                    who=CONTROLLER,
                    data={build.key: described(build)},
                    why=f"{current.alias} did not point to {space}",
                )
                # the journal first: it fails if this controller was fenced, and then the alias is not ours to move
                await self._state.journal(entry)
                await self._out.store.point_alias(current.alias, space)

    async def attend(self) -> None:
        """While active: go on with cutovers that waited, watch over those that were made, move rollouts, retire what
        was kept."""
        attendant = Attendant(self._desk, self.handle, self._amend, self._examined.__contains__)
        try:
            while True:
                await asyncio.sleep(ATTEND_EVERY_S)
                attendant.look(self._state.collections.values() if self.active else ())
        finally:
            await attendant.close()

    async def _amend(self, collection: str, change: Callable[[CollectionState], Amendment | None]) -> None:
        """Change a collection in its turn, without a command. `change` gives None when there is nothing to change."""
        async with self._turn(collection):
            if not await self._knows_the_state() or self._state.begun(collection) is not None:
                return
            current = self._state.collections.get(collection)
            if current is None or (amended := change(current)) is None:
                return
            try:
                await self._state.commit(
                    amended.state,
                    amended.builds,
                    amended.command,
                    amended.event,
                    amended.message,
                    data=amended.data,
                    told=amended.told,
                )
            except Fenced:
                self.stand_down(fenced=True)
            except CrossfadeError as error:
                log.error("%s of %s was not recorded: %s", amended.event, collection, error)

    async def summarise(self, send: Callable[[str, ProgressRecord | SeriesRecord | None], Awaitable[None]]) -> None:
        """While active: publish each build's progress as a whole, from its partitions', and its course over time; and
        take away (None) what servers that have ended once counted, when nothing is judged by it any more."""
        followed: dict[tuple[str, int], Whole] = defaultdict(Whole)
        chronicles: dict[tuple[str, int], Chronicle] = {}
        while True:
            await asyncio.sleep(PROGRESS_EVERY_S)
            if not self.active:
                chronicles.clear()  # another controller goes on with them
            for build in [b for b in self._state.builds.values() if self.active and b.active]:
                records, now_ms = self._progress.partitions(build), self._out.wall_ms()
                whole = followed[build.key, build.epoch].combine(
                    build.version, records, build.partitions, now_ms, build.controls.replay_rate
                )
                if whole is None:
                    continue
                course = chronicles.get((build.key, build.epoch))
                if course is None:
                    course = Chronicle(build.epoch, now_ms, self._progress.series(build))
                    chronicles[build.key, build.epoch] = course
                due = course.look(whole, records, now_ms)
                try:
                    await send(build.key, whole)
                    if due:
                        await send(series_key(build.key, build.epoch), course.record)
                        course.published(now_ms)
                except Transient as error:
                    log.info("progress of %s was not published: %s", build.key, error.message)
            for key, record in list(self._progress.counted.items()) if self.active else ():
                if outdated(record, list(self._state.builds.values()), self._out.wall_ms()):
                    try:
                        await send(key, None)
                    except Transient as error:
                        log.info("outdated counts were not taken away: %s", error.message)
