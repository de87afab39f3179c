"""The state as the controller holds and writes it: collections, builds and journal, all or nothing, under one identity.

Nobody else writes the state topic. After a lost answer nothing is believed until it was read again.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence

from pydantic import JsonValue

from connectors.errors import Fenced, Refused, UnknownOutcome
from connectors.protocols import AtomicWriter, Write
from streams.config_operation import Hook
from streams.hooks import UNTOLD_KEPT, HooksFirst, begins, hooks_for, made, same
from streams.retry import a_while
from streams.state import (
    BuildState,
    CollectionState,
    Command,
    CommandOutcome,
    Intent,
    JournalEntry,
    StageChange,
    TopicNames,
    unknown,
)
from streams.views import StateView

log = logging.getLogger(__name__)


def described(build: BuildState) -> dict[str, JsonValue]:
    """For the journal: which model of which space it was."""
    return {
        "stage": build.stage.value,
        "space": build.space,
        "fingerprint": build.fingerprint,
        "envelope": build.envelope,
    }


class StateStore:
    """Call order: `open`, then the rest, `close` when another controller takes over. Writes raise Fenced once replaced.

    `unsure`: whether the last write stands is not known; `read_again` before anything else. `hooks`: of a collection,
    as configured now; `cleared`: the changes that hooks have agreed to, by command id. The first write of a step that
    hooks want to be asked about raises HooksFirst.
    """

    def __init__(
        self,
        names: TopicNames,
        writer: AtomicWriter,
        wall_ms: Callable[[], int],
        hooks: Callable[[str], Sequence[Hook]] = lambda _: (),
    ) -> None:
        self._names = names
        self._writer = writer
        self._wall_ms = wall_ms
        self._load: Callable[[], Awaitable[StateView]] | None = None
        self.collections: dict[str, CollectionState] = {}
        self.builds: dict[str, BuildState] = {}
        self.unsure = False
        self._hooks = hooks
        self.cleared: dict[str, list[StageChange]] = {}

    async def open(self, load: Callable[[], Awaitable[StateView]]) -> None:
        """Fence the controller before this one and read what stands. `load` reads the state topic to its end."""
        self._load = load
        await self.read_again()

    def close(self) -> None:
        """Another controller has taken over: it must not be fenced by a late write of this one."""
        self._load = None

    async def read_again(self) -> None:
        """Fence every other controller, and take what stands for the truth, whoever wrote it."""
        if self._load is None:
            raise Fenced("another worker is the controller now")
        await self._writer.fence()
        view = await self._load()
        self.collections, self.builds = dict(view.collections), dict(view.builds)
        self.unsure = False

    async def journal(self, entry: JournalEntry) -> None:
        """Add an entry alone: it fails if this controller was fenced, so it also proves that it was not."""
        await self._writer.write([Write(self._names.journal, entry.collection.encode(), entry.to_bytes())])

    def begun(self, collection: str) -> Command | None:
        """The step of several writes that has begun and has no result yet."""
        current = self.collections.get(collection)
        return current.intent.command if current is not None and current.intent is not None else None

    async def intend(self, command: Command, data: dict[str, JsonValue], *builds: BuildState) -> CollectionState:
        """Store that a step of several writes begins; after a crash the next controller runs the command again."""
        collection = self.collection(command).model_copy(update={"intent": Intent(command=command, data=data)})
        await self.commit(collection, builds, command, f"{command.verb} begins")
        return collection

    async def done(
        self,
        command: Command,
        message: str,
        *builds: BuildState,
        data: dict[str, JsonValue] | None = None,
        collection: dict[str, object] | None = None,
        event: str = "",
    ) -> None:
        """The command's outcome with the builds and fields of the collection it changed; it also ends an intent."""
        outcome = CommandOutcome(id=command.id, ok=True, message=message, data=data or {})
        changed = self.collection(command).with_outcome(outcome, self._wall_ms(), **(collection or {}))
        await self.commit(changed, builds, command, event or command.verb, message, data=data)

    async def commit(
        self,
        collection: CollectionState,
        builds: Sequence[BuildState],
        command: Command,
        event: str,
        message: str = "",
        *,
        data: dict[str, JsonValue] | None = None,
        told: str = "",
    ) -> None:
        """State and journal, all or nothing. `data`: what the journal keeps beside the builds; `told`: the id of a
        change that hooks have been told of."""
        now_ms = self._wall_ms()
        collection = self._with_untold(collection, builds, command, told, now_ms)
        named = self.builds.get(f"{command.collection}/{command.version}")
        about = builds or ([named] if named is not None else [])  # a refusal too says of which model it was
        builds = [build.model_copy(update={"updated_ms": now_ms}) for build in builds]
        entry = JournalEntry(
            at_ms=now_ms,
            collection=command.collection,
            version=command.version,
            epoch=about[0].epoch if about else None,
            event=event,
            who=command.who,
            why=command.why,
            message=message,
            command_id=command.id,
            data={
                **{b.key: described(b) for b in about},
                **({"outcome": data} if data else {}),
            },
        )
        records = [Write(self._names.state, collection.collection.encode(), collection.to_bytes())]
        records += [Write(self._names.state, build.key.encode(), build.to_bytes()) for build in builds]
        records.append(Write(self._names.journal, command.collection.encode(), entry.to_bytes()))

        before = self.collections.get(collection.collection)

        async def write() -> None:
            if self.unsure:  # all of it stands or nothing does, or another controller has written since
                await self.read_again()
                stands = self.collections.get(collection.collection)
                if stands == collection:
                    return
                if stands != before:
                    raise Refused(
                        f"another controller has changed {collection.collection} meanwhile", next_step="try again"
                    )
            try:
                await self._writer.write(records)
            except UnknownOutcome:
                self.unsure = True
                raise

        await a_while(write)
        self.collections[collection.collection] = collection
        self.builds.update((build.key, build) for build in builds)
        log.info("%s: %s %s", command.collection, event, message)

    def _with_untold(
        self, collection: CollectionState, builds: Sequence[BuildState], command: Command, told: str, now_ms: int
    ) -> CollectionState:
        """With the changes that hooks are to be told of, in the write that makes them. Raises HooksFirst."""
        stored = self.collections.get(collection.collection)
        untold = [change for change in (stored.untold if stored is not None else []) if change.id != told]
        coming, done = begins(command, stored, collection, self.builds, builds), made(command, self.builds, builds)
        hooks = self._hooks(collection.collection) if coming or done else ()
        first = [change for change in coming if hooks_for(hooks, change.event, "before")]
        if first and not same(first, self.cleared.get(command.id, [])):
            raise HooksFirst(first)
        untold += [
            change.model_copy(update={"at_ms": now_ms}) for change in done if hooks_for(hooks, change.event, "after")
        ]
        for lost in untold[:-UNTOLD_KEPT]:
            log.error("no hook is told of %s, after %d others that wait", lost.id, UNTOLD_KEPT)
        return collection.model_copy(update={"untold": untold[-UNTOLD_KEPT:]})

    def collection(self, command: Command) -> CollectionState:
        """Raises NotFound with the names that exist."""
        try:
            return self.collections[command.collection]
        except KeyError:
            raise unknown("collection", command.collection, self.collections) from None

    def build(self, command: Command) -> BuildState:
        """The newest build of the command's version. Raises NotFound with the names that exist."""
        self.collection(command)
        try:
            return self.builds[f"{command.collection}/{command.version}"]
        except KeyError:
            known = [b.version for b in self.builds.values() if b.collection == command.collection]
            raise unknown(f"version of {command.collection}", command.version or "", known) from None
