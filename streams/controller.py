"""The controller: commands in, transitions of stages out, and nobody else writes the state topic or moves an alias.

A step of several writes stores its intent first, so that the next controller completes it after a crash. A command id
is applied once, whatever is sent again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import orjson
from pydantic import JsonValue

from connectors.errors import ConfigurationError, CrossfadeError, Fenced, Refused, Terminal, Transient, UnknownOutcome
from connectors.protocols import AtomicWriter, Embedder, Log, SpaceSpec, VectorStore, Write
from streams import config
from streams.config import Settings, envelope_of
from streams.migration.sweep import Sweep
from streams.progress import ProgressRecord, combine
from streams.retry import patiently
from streams.state import (
    BuildState,
    CollectionState,
    Command,
    CommandOutcome,
    Controls,
    Failure,
    Intent,
    JournalEntry,
    Request,
    TopicNames,
    unknown,
)
from streams.versions import Stage, check_transition, next_command, space_name
from streams.views import ProgressView, StateView

log = logging.getLogger(__name__)
T = TypeVar("T")

ALIAS_LOOK_EVERY_S = 15.0
PROGRESS_EVERY_S = 1.0
FRESH_PROGRESS_MS = 15_000
MOST_RATE = 1e6
REQUESTS_KEPT = 50


@dataclass(frozen=True, slots=True)
class Outside:
    """What the controller acts on. `settings` reads the configuration anew; `sweep` compares a build with the log."""

    settings: Callable[[], Settings]
    kafka: Log
    store: VectorStore
    make_embedder: Callable[[config.HashingEmbedder | config.TeiEmbedder, int], Embedder]
    sweep: Callable[[BuildState], Awaitable[Sweep]]
    wall_ms: Callable[[], int]


class Controller:
    """Active between `take_over` and the loss of the commands partition. Commands of one collection run in order."""

    def __init__(self, names: TopicNames, outside: Outside, writer: AtomicWriter, progress: ProgressView) -> None:
        self._names = names
        self._out = outside
        self._writer = writer
        self._progress = progress
        self._collections: dict[str, CollectionState] = {}
        self._builds: dict[str, BuildState] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._in_office = asyncio.Event()
        self._load_state: Callable[[], Awaitable[StateView]]
        self._unsure = False  # whether the last write stands

    @property
    def active(self) -> bool:
        return self._in_office.is_set()

    async def take_over(self, load_state: Callable[[], Awaitable[StateView]]) -> None:
        """Fence the controller before this one, read what stands, and complete what it had begun."""
        await self._writer.fence()
        self._load_state = load_state
        view = await load_state()
        self._collections, self._builds = dict(view.collections), dict(view.builds)
        self._unsure = False
        self._in_office.set()
        log.info("this worker is the controller")
        for name, collection in list(self._collections.items()):
            if collection.intent is not None:
                log.warning(
                    "completes the %s of %s that a former controller began", collection.intent.command.verb, name
                )
                await self.handle(collection.intent.command)

    def stand_down(self) -> None:
        """Another worker is the controller now."""
        self._in_office.clear()

    async def handle(self, command: Command) -> None:
        """Apply one command, once. Refusals become outcomes; the sender reads them in the state topic.

        A command that comes before `take_over` is complete waits for it.
        """
        await self._in_office.wait()
        async with self._locks.setdefault(command.collection, asyncio.Lock()):
            if not await self._knows_the_state():
                return
            begun = self._begun(command.collection)
            if begun is not None and begun.id != command.id:  # one step at a time: that one first
                await self._attempt(begun)
                if self._begun(command.collection) is not None:
                    return  # it still waits out some trouble, and this one with it: its sender asks again
            current = self._collections.get(command.collection)
            if current is None or current.outcome(command.id) is None:
                await self._attempt(command)

    async def _knows_the_state(self) -> bool:
        """In office, and sure of what the state topic holds. False: the sender asks again."""
        try:
            if self.active and self._unsure:
                await self._read_again()
        except Fenced:
            self.stand_down()
        except Transient as error:
            log.error("the state cannot be read: %s", error)
            return False
        return self.active

    async def _read_again(self) -> None:
        """After a lost answer: fence, and take what stands for the truth, whoever wrote it."""
        if not self.active:
            raise Fenced("another worker is the controller now")
        await self._writer.fence()
        view = await self._load_state()
        self._collections, self._builds = dict(view.collections), dict(view.builds)
        self._unsure = False

    def _begun(self, collection: str) -> Command | None:
        """The step of several writes that has begun and has no result yet."""
        current = self._collections.get(collection)
        return current.intent.command if current is not None and current.intent is not None else None

    async def _attempt(self, command: Command) -> None:
        if not self.active:
            return
        try:
            await self._apply(command)
        except Fenced:
            log.warning("another controller has taken over")
            self.stand_down()
        except CrossfadeError as error:
            await self._refuse(command, error)

    async def _apply(self, command: Command) -> None:
        verbs = {
            "start": self._start,
            "pause": self._pause,
            "resume": self._resume,
            "set": self._set,
            "abort": self._abort,
            "cutover": self._cutover,
            "rollback": self._rollback,
            "retire": self._retire,
            "repair": self._request,
            "redrive": self._request,
            "replayed": self._replayed,
            "failed": self._failed,
        }
        await verbs[command.verb](command)

    async def _refuse(self, command: Command, error: CrossfadeError) -> None:
        collection = self._collections.get(command.collection)
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
            await self._commit(
                collection.with_outcome(outcome, self._out.wall_ms()), [], command, "refused", error.message
            )
        except Fenced:
            self.stand_down()
        except Transient as trouble:
            log.error("the refusal of %s %s was not recorded: %s", command.verb, command.collection, trouble)

    # verbs of one write

    async def _pause(self, command: Command) -> None:
        build = self._build(command)
        self._must_be_active(build)
        paused = "all" if command.args.get("all") else "replay"
        await self._done(command, f"{build.key} is paused ({paused})", build.model_copy(update={"paused": paused}))

    async def _resume(self, command: Command) -> None:
        build = self._build(command)
        self._must_be_active(build)
        changed = build.model_copy(update={"paused": None, "failure": None})
        await self._done(command, f"{build.key} goes on", changed)

    async def _set(self, command: Command) -> None:
        build = self._build(command)
        self._must_be_active(build)
        controls = _controls(build.controls, command.args)
        rate = f"{controls.replay_rate:g} documents/s" if controls.replay_rate else "no limit"
        await self._done(command, f"{build.key}: replay_rate {rate}", build.model_copy(update={"controls": controls}))

    async def _request(self, command: Command) -> None:
        """Work for the partitions' owners, who alone write (section 4). Done when each partition reports its id."""
        build = self._build(command)
        self._must_be_active(build)
        number = build.requests[-1].id + 1 if build.requests else 1
        request = Request(id=number, kind="repair" if command.verb == "repair" else "redrive")
        changed = build.model_copy(update={"requests": [*build.requests, request][-REQUESTS_KEPT:]})
        await self._done(
            command, f"{build.key}: {request.kind} asked of the workers", changed, data={"request": number}
        )

    async def _replayed(self, command: Command) -> None:
        build = self._build(command)
        partition = command.args.get("partition")
        if command.args.get("epoch") != build.epoch or not isinstance(partition, int) or partition in build.replayed:
            await self._done(command, "nothing to do")
            return
        replayed = sorted([*build.replayed, partition])
        update: dict[str, object] = {"replayed": replayed}
        complete = len(replayed) == build.partitions and build.stage is Stage.BUILDING
        if complete:
            update |= {"stage": Stage.READY, "ready_ms": self._out.wall_ms()}
        message = (
            f"{build.key} is ready" if complete else f"{build.key}: the replay of partition {partition} is complete"
        )
        await self._done(command, message, build.model_copy(update=update))

    async def _failed(self, command: Command) -> None:
        build = self._build(command)
        if command.args.get("epoch") != build.epoch or not build.active:
            await self._done(command, "nothing to do")
            return
        failure = Failure(
            cause=str(command.args.get("cause", "")),
            next_step=str(command.args.get("next_step", "")),
            at_ms=self._out.wall_ms(),
        )
        await self._done(
            command, f"{build.key} stopped: {failure.cause}", build.model_copy(update={"failure": failure})
        )

    # start

    async def _start(self, command: Command) -> None:
        """declared (with its epoch) -> space created, start and barrier taken -> building. Rule 2: before any write."""
        settings = self._out.settings()
        configured = settings.collection(command.collection)
        version_name = command.version or ""
        version = configured.version(version_name)
        envelope = envelope_of(configured, version)
        collection = self._collections.get(command.collection)
        existing = self._builds.get(f"{command.collection}/{version_name}")
        if collection is None or collection.intent is None or collection.intent.command.id != command.id:
            if (fingerprint := command.args.get("fingerprint")) not in (None, envelope.fingerprint):
                raise Refused(
                    f"{version_name} is model {fingerprint} in your configuration, {envelope.fingerprint} here",
                    next_step="give the workers the same configuration file (they read it again when it changes)",
                )
            if existing is not None and existing.stage is not Stage.DECLARED:
                if command.args.get("origin") == "configuration":
                    await self._done(command, f"{existing.key} is {existing.stage}; nothing to do")
                    return
                check_transition(existing.stage, Stage.BUILDING, collection=command.collection, version=version_name)
            facts = await self._out.kafka.facts(configured.topic)
            if "compact" not in facts.cleanup_policy:
                raise Refused(
                    f"topic {configured.topic} is not compacted (cleanup.policy={facts.cleanup_policy}): "
                    "it will forget documents that no event has changed for a while",
                    next_step=f"kafka-configs --alter --topic {configured.topic} --add-config cleanup.policy=compact",
                )
            self._check_same_deployment(collection, configured)
            await self._check_dimensions(command.collection, version_name, version)
            collection = (collection or CollectionState(collection=command.collection, alias="", topic="")).model_copy(
                update={"alias": configured.alias, "topic": configured.topic}
            )
            epoch = collection.epochs + 1
            existing = BuildState(
                collection=command.collection,
                version=version_name,
                epoch=epoch,
                stage=Stage.DECLARED,
                envelope=_envelope_json(envelope.canonical_json()),
                fingerprint=envelope.fingerprint,
                space=space_name(configured.alias, version_name, epoch, envelope.fingerprint),
                topic=configured.topic,
                topic_id=facts.topic_id,
                partitions=facts.partitions,
                controls=_controls(Controls(replay_rate=version.replay_rate), command.args),
                provenance=dict(version.provenance),
                started_ms=self._out.wall_ms(),
            )
            if await self._out.store.description(existing.space) is not None:
                raise Refused(
                    f"the space {existing.space} exists already, and the state knows nothing of it: another deployment "
                    "made it, or the state was lost",
                    next_step="give this deployment an alias of its own; drop the space only if nobody reads it",
                )
            collection = collection.model_copy(update={"epochs": epoch, "intent": Intent(command=command)})
            await self._commit(collection, [existing], command, "declared")
        assert existing is not None
        envelope = existing.model  # as it was declared: the configuration may have changed since
        spec = SpaceSpec(
            existing.space,
            envelope.dimensions,
            envelope.metric,
            envelope.canonical_json(),
            envelope.quantization,
            dict(configured.properties),
        )
        await self._surely(lambda: self._out.store.create_space(spec))
        bounds = await self._surely(lambda: self._out.kafka.bounds(existing.topic))
        ends = {partition: b.stable for partition, b in bounds.items()}
        building = existing.model_copy(update={"stage": Stage.BUILDING, "start": ends, "barrier": ends})
        await self._done(
            command,
            f"{building.key} is building: space {building.space}, {sum(ends.values())} offsets to replay",
            building,
            data={"space": building.space, "epoch": building.epoch, "fingerprint": building.fingerprint},
        )

    def _check_same_deployment(self, collection: CollectionState | None, configured: config.Collection) -> None:
        """While versions of a collection are written, its topic and alias stay what they are."""
        if collection is None or not any(
            b.active for b in self._builds.values() if b.collection == collection.collection
        ):
            return
        for what, stored, wanted in (
            ("topic", collection.topic, configured.topic),
            ("alias", collection.alias, configured.alias),
        ):
            if stored != wanted:
                raise Refused(
                    f"the {what} of {collection.collection} is {stored}, the configuration says {wanted}: two "
                    f"deployments with one kafka.topic_prefix, or a changed {what}",
                    next_step=f"give each deployment a kafka.topic_prefix of its own, or put the {what} back",
                )

    async def _check_dimensions(self, collection: str, name: str, version: config.Version) -> None:
        """The endpoint must give what the version declares, before a space of the wrong size exists."""
        embedder = self._out.make_embedder(version.embedder, version.dimensions)
        try:
            vectors = await embedder.embed(["crossfade asks for the length of a vector"])
        finally:
            await embedder.close()
        if vectors.shape[1] != version.dimensions:
            raise ConfigurationError(
                f"{collection}/{name} declares {version.dimensions} dimensions, its endpoint gives {vectors.shape[1]}",
                next_step=f"set dimensions: {vectors.shape[1]} in the configuration, or correct the endpoint",
            )

    # cutover and rollback

    async def _cutover(self, command: Command) -> None:
        """Sweep, intent, alias, result. The alias is the one atomic step; everything before it can be given up."""
        build, collection = self._build(command), self._collection(command)
        if collection.intent is None:
            check_transition(build.stage, Stage.SERVING, collection=build.collection, version=build.version)
            self._check_settled(build)
            sweep = await self._out.sweep(build)
            found: dict[str, JsonValue] = {
                "checked": sweep.checked,
                "missing": sweep.missing,
                "stale": sweep.stale,
                "extra": sweep.extra,
                "held": sweep.held,
            }
            if not sweep.clean:
                raise Refused(
                    f"{build.space} differs from the log: missing {sweep.missing}, stale {sweep.stale}, "
                    f"extra {sweep.extra} of {sweep.checked}",
                    next_step=f"crossfade verify {build.collection} {build.version}",
                )
            accepted = command.args.get("accept_held") or []
            left = [key for key in sweep.held_keys if key not in (accepted if isinstance(accepted, list) else [])]
            if left:
                names = ", ".join(left[:5]) + (" ..." if len(left) > 5 else "")
                raise Refused(
                    f"{len(left)} documents are held in the dead letters: {names}",
                    next_step=f"repair them at their producer, or crossfade redrive {build.collection} {build.version} "
                    f"if their cause is gone, or accept them by name: crossfade cutover "
                    f"{build.collection} {build.version} --accept-held KEY (once for each)",
                )
            self._check_settled(build)  # again: a sweep takes its time, and a worker may have died meanwhile
            if command.args.get("check"):
                await self._done(command, f"{build.key} can cut over", data=found, event="cutover --check")
                return
            collection = await self._intend(command, found)
        await self._swap(command, collection, build, "cutover")

    async def _rollback(self, command: Command) -> None:
        """Back to the previous space, which live has kept current. Refused while it lags beyond the bound."""
        collection = self._collection(command)
        if collection.intent is None:
            if collection.previous is None:
                raise Refused(
                    f"{collection.collection} has no previous version to go back to",
                    next_step=f"crossfade status {collection.collection}",
                )
            build = self._builds[f"{collection.collection}/{collection.previous}"]
            if build.failure is not None or build.paused == "all":
                raise Refused(
                    f"{build.key} is not kept current: " + (build.failure.cause if build.failure else "it is paused"),
                    next_step=f"crossfade resume {build.collection} {build.version}",
                )
            lag = await self._lag(build)
            bound = command.args.get("max_lag", 1000)
            if lag > (bound if isinstance(bound, int) else 0) and not command.args.get("accept_lag"):
                raise Refused(
                    f"{build.key} is {lag} events behind the log, more than {bound}",
                    next_step=f"crossfade rollback {collection.collection} --accept-lag, or wait: crossfade status "
                    f"{build.collection} {build.version} -w",
                )
            collection = await self._intend(command, {"lag": lag, "to": build.version})
        assert collection.intent is not None
        build = self._builds[f"{collection.collection}/{collection.intent.data['to']}"]
        await self._swap(command, collection, build, "rolled back")

    async def _swap(self, command: Command, collection: CollectionState, build: BuildState, event: str) -> None:
        """Move the alias to `build` and record it. Runs again, to the same end, after a crash anywhere in it."""
        serving = self._builds.get(f"{collection.collection}/{collection.serving}") if collection.serving else None
        target = await self._surely(lambda: self._out.store.alias_target(collection.alias))
        if target not in (build.space, serving.space if serving else None):
            raise Refused(
                f"the alias {collection.alias} points to {target or 'nothing'}, which Crossfade did not do",
                next_step="find out who moved it, then try again: the alias is Crossfade's alone",
            )
        await self._surely(lambda: self._out.store.point_alias(collection.alias, build.space))
        builds = [build.model_copy(update={"stage": Stage.SERVING})]
        if serving is not None and serving.key != build.key:
            builds.append(serving.model_copy(update={"stage": Stage.PREVIOUS}))
        older = self._builds.get(f"{collection.collection}/{collection.previous}") if collection.previous else None
        if older is not None and older.key not in {b.key for b in builds} and older.stage is Stage.PREVIOUS:
            builds.append(older.model_copy(update={"stage": Stage.READY}))
        intent = collection.intent
        await self._done(
            command,
            f"{collection.collection} is served by {build.version}"
            + (f"; {collection.serving} is kept current for a rollback" if collection.serving else ""),
            *builds,
            data={**(intent.data if intent else {}), "serving": build.version, "space": build.space, "event": event},
            collection={"serving": build.version, "previous": serving.version if serving else None},
        )

    def _check_settled(self, build: BuildState) -> None:
        """Nothing failed, nothing held, nothing in doubt (rule 11), as each partition's owner has just reported."""
        status = f"crossfade status {build.collection} {build.version}"
        if build.failure is not None:
            raise Refused(f"{build.key} stopped: {build.failure.cause}", next_step=build.failure.next_step or status)
        if build.paused is not None:
            raise Refused(f"{build.key} is paused", next_step=f"crossfade resume {build.collection} {build.version}")
        records = self._progress.partitions(build)
        now_ms = self._out.wall_ms()
        silent = build.partitions - sum(now_ms - r.updated_at < FRESH_PROGRESS_MS for r in records)
        if silent:
            raise Refused(
                f"no worker has reported on {silent} of {build.partitions} partitions of {build.key} lately",
                next_step="start one: crossfade worker",
            )
        if unsettled := sum(r.unsettled for r in records):
            raise Refused(
                f"{build.key} is unsettled: {unsettled} keys may still be changed by a write of unknown outcome",
                next_step=f"wait for the settle time (weaviate.settle_s), then again; {status}",
            )

    async def _lag(self, build: BuildState) -> int:
        """Events between what the build's live lane has committed and the log's end."""
        group = self._names.group(build.collection, build.version, build.epoch, "live")
        committed = await self._out.kafka.committed(group, build.topic)
        bounds = await self._out.kafka.bounds(build.topic)
        return sum(
            max(0, b.stable - (committed[p].offset if p in committed else build.start[p])) for p, b in bounds.items()
        )

    # the end of a version

    async def _retire(self, command: Command) -> None:
        await self._end(command, Stage.RETIRED)

    async def _abort(self, command: Command) -> None:
        await self._end(command, Stage.ABORTED)

    async def _end(self, command: Command, stage: Stage) -> None:
        """Stop writing, then drop the space: the stage first, so that no worker writes into what is being dropped."""
        build, collection = self._build(command), self._collection(command)
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
            collection = await self._intend(command, {}, build.model_copy(update={"stage": stage}))
            build = self._build(command)
        await self._surely(lambda: self._out.store.drop_space(build.space))
        previous = None if collection.previous == build.version else collection.previous
        await self._done(
            command, f"{build.key} is {stage}; space {build.space} is dropped", collection={"previous": previous}
        )

    # what runs beside the commands

    async def watch(self) -> None:
        """While active: complete intents that a trouble interrupted, and put the alias where the state says it is."""
        while True:
            await asyncio.sleep(ALIAS_LOOK_EVERY_S)
            if not self.active:
                continue
            for collection in list(self._collections.values()):
                if collection.intent is not None:
                    await self.handle(collection.intent.command)
                    continue
                try:
                    await self._check_alias(collection)
                except Fenced:
                    self.stand_down()
                except CrossfadeError as error:
                    self._unsure = self._unsure or isinstance(error, UnknownOutcome)
                    log.error("the alias of %s was not checked: %s", collection.collection, error)
                except Terminal as error:  # its space is gone, say: that must not end what serves the others
                    log.error("the alias of %s cannot be put right: %s", collection.collection, error)

    async def _check_alias(self, collection: CollectionState) -> None:
        """A late request of a former controller may have moved it (rule 10: one controller, and it looks first)."""
        async with self._locks.setdefault(collection.collection, asyncio.Lock()):
            current = self._collections[collection.collection]
            if not self.active or current.serving is None or current.intent is not None:
                return
            space = self._builds[f"{current.collection}/{current.serving}"].space
            if await self._out.store.alias_target(current.alias) != space:
                log.error("the alias %s was moved behind our back; it goes back to %s", current.alias, space)
                entry = JournalEntry(
                    at_ms=self._out.wall_ms(),
                    collection=current.collection,
                    version=current.serving,
                    event="alias put back",
                    why=f"{current.alias} did not point to {space}",
                )
                # the write first: it fails if this controller was fenced, and then the alias is not ours to move
                await self._writer.write([Write(self._names.journal, current.collection.encode(), entry.to_bytes())])
                await self._out.store.point_alias(current.alias, space)

    async def summarise(self, send: Callable[[str, ProgressRecord], Awaitable[None]]) -> None:
        """While active: publish each build's progress as a whole, from its partitions'."""
        while True:
            await asyncio.sleep(PROGRESS_EVERY_S)
            for build in [b for b in self._builds.values() if self.active and b.active]:
                whole = combine(build.version, self._progress.partitions(build), build.partitions, self._out.wall_ms())
                if whole is None:
                    continue
                try:
                    await send(build.key, whole)
                except Transient as error:
                    log.info("progress of %s was not published: %s", build.key, error.message)

    # writing

    async def _intend(self, command: Command, data: dict[str, JsonValue], *builds: BuildState) -> CollectionState:
        collection = self._collection(command).model_copy(update={"intent": Intent(command=command, data=data)})
        await self._commit(collection, builds, command, f"{command.verb} begins")
        return collection

    async def _done(
        self,
        command: Command,
        message: str,
        *builds: BuildState,
        data: dict[str, JsonValue] | None = None,
        collection: dict[str, object] | None = None,
        event: str = "",
    ) -> None:
        outcome = CommandOutcome(id=command.id, ok=True, message=message, data=data or {})
        changed = self._collection(command).with_outcome(outcome, self._out.wall_ms(), **(collection or {}))
        await self._commit(changed, builds, command, event or command.verb, message)

    async def _commit(
        self,
        collection: CollectionState,
        builds: Sequence[BuildState],
        command: Command,
        event: str,
        message: str = "",
    ) -> None:
        """State and journal, all or nothing."""
        now_ms = self._out.wall_ms()
        builds = [build.model_copy(update={"updated_ms": now_ms}) for build in builds]
        entry = JournalEntry(
            at_ms=now_ms,
            collection=command.collection,
            version=command.version,
            epoch=builds[0].epoch if builds else None,
            event=event,
            who=command.who,
            why=command.why or message,
            command_id=command.id,
            data={b.key: {"stage": b.stage.value, "space": b.space, "envelope": b.envelope} for b in builds},
        )
        records = [Write(self._names.state, collection.collection.encode(), collection.to_bytes())]
        records += [Write(self._names.state, build.key.encode(), build.to_bytes()) for build in builds]
        records.append(Write(self._names.journal, command.collection.encode(), entry.to_bytes()))

        before = self._collections.get(collection.collection)

        async def write() -> None:
            if self._unsure:  # all of it stands or nothing does, or another controller has written since
                await self._read_again()
                stands = self._collections.get(collection.collection)
                if stands == collection:
                    return
                if stands != before:
                    raise Refused(
                        f"another controller has changed {collection.collection} meanwhile", next_step="try again"
                    )
            try:
                await self._writer.write(records)
            except UnknownOutcome:
                self._unsure = True
                raise

        await self._surely(write)
        self._collections[collection.collection] = collection
        self._builds.update((build.key, build) for build in builds)
        log.info("%s: %s %s", command.collection, event, message)

    async def _surely(self, call: Callable[[], Awaitable[T]]) -> T:
        """Wait out short trouble; longer trouble is raised, and the intent, if there is one, completed later."""
        patience = iter(range(6))
        return await patiently(call, going=lambda: next(patience, None) is not None, trouble=lambda _: None)

    # looking up

    def _collection(self, command: Command) -> CollectionState:
        try:
            return self._collections[command.collection]
        except KeyError:
            raise unknown("collection", command.collection, self._collections) from None

    def _build(self, command: Command) -> BuildState:
        self._collection(command)
        try:
            return self._builds[f"{command.collection}/{command.version}"]
        except KeyError:
            known = [b.version for b in self._builds.values() if b.collection == command.collection]
            raise unknown(f"version of {command.collection}", command.version or "", known) from None

    def _must_be_active(self, build: BuildState) -> None:
        if not build.active:
            raise Refused(
                f"{build.key} is {build.stage}",
                next_step=next_command(build.stage, collection=build.collection, version=build.version),
            )


def _envelope_json(canonical: str) -> dict[str, JsonValue]:
    parsed: dict[str, JsonValue] = orjson.loads(canonical)
    return parsed


def _controls(controls: Controls, args: Mapping[str, JsonValue]) -> Controls:
    """What `set` and `start` may change. Raises Refused for a value out of range; unknown names change nothing."""
    if "replay_rate" not in args:
        return controls
    rate = args["replay_rate"]
    if rate is None or rate == 0:
        return controls.model_copy(update={"replay_rate": None})
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate <= MOST_RATE:
        raise Refused(
            f"replay_rate {rate!r} is out of range",
            next_step=f"documents a second: above 0 and up to {MOST_RATE:g}; 0 for no limit",
        )
    return controls.model_copy(update={"replay_rate": float(rate)})
