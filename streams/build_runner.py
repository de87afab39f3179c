"""One build in one worker process: its agent, its live lane, its replays and its mender, started and stopped as one.

Failures end here: a lane that fails goes back to its committed positions after a pause, and only a cause that somebody
has to remove stops the build. Other builds never notice.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncIterable, Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Protocol

from connectors.errors import CrossfadeError, Fenced, IdentityChanged, NotFound, Terminal, Transient, WrongModel
from connectors.protocols import Bounds, Log, RecordSink, VectorStore
from streams import tracing
from streams.build import Batch, Build
from streams.config_operation import Throttle
from streams.embed_agent import EmbedAgent
from streams.identity import check_position, check_properties, check_space, check_topic, topic_gone
from streams.live import LiveLane
from streams.mend import Mender
from streams.migration.sweep import DeadLetterKey
from streams.observed import Observed, held_by, speed_of
from streams.ordering import PartitionLedger
from streams.progress import Counters, ProgressRecord, Rate, Status, eta_s
from streams.replay import ReplayLane
from streams.retry import pause_s
from streams.spending import Spending, shares, total
from streams.state import BuildState, Command, TopicNames
from streams.subject import Subject, about, about_partition
from streams.throttle_checks import CapacityLook, Gauges, ThrottleChecks, unknown_capacity
from streams.throttles import in_force
from streams.timed_space import Latencies, TimedSpace
from streams.versions import Stage

log = logging.getLogger(__name__)

REPORT_EVERY_S = 1.0
CHECK_EVERY_S = 5.0
MODEL_LOOKS = 12  # every so many of these also at what the endpoint says of itself
SAY_AGAIN_S = 5.0
REQUESTS_LOOK_EVERY_S = 0.5
CARRY_AGAIN_S, CARRY_AT_LEAST_EVERY_S = 15.0, 3600.0


class AgentHost(Protocol):
    """Where an agent runs: a channel with a body at its end (Faust in a worker, a plain queue elsewhere)."""

    async def start(self, body: Callable[[AsyncIterable[list[Batch]]], Awaitable[None]]) -> None: ...

    async def put(self, delivery: list[Batch]) -> None:
        """Waits while the channel is full. Raises what the body raised, once it has."""
        ...

    async def stop(self) -> None: ...


class BuildRunner:
    """See the module. `run` until cancelled.

    `make_build` gives fresh shared parts for each start; `state` the build's state as the view holds it now, and
    `throttle` the configured bounds; `capacity` looks at how full the store is. `observed`: for its metrics.
    """

    def __init__(
        self,
        state: Callable[[], BuildState],
        make_build: Callable[[BuildState], Build],
        kafka: Log,
        store: VectorStore,
        sink: RecordSink,
        topics: TopicNames,
        make_host: Callable[[str], AgentHost],
        worker_name: str,
        last_progress: Callable[[str], ProgressRecord | None],
        held: Callable[[BuildState], Awaitable[set[DeadLetterKey]]],
        throttle: Callable[[], Throttle] = Throttle,
        capacity: CapacityLook = unknown_capacity,
    ) -> None:
        self._state = state
        self._throttle = throttle
        self._capacity = capacity
        self.stopping = False
        self.observed = Observed()
        self._last_progress = last_progress
        self._held = held
        self._make_build = make_build
        self._kafka = kafka
        self._store = store
        self._sink = sink
        self._topics = topics
        self._make_host = make_host
        self._worker_name = worker_name

    def stop(self, task: asyncio.Task[None]) -> None:
        """Have `task`, in which this runs, drain and end."""
        self.stopping = True
        task.cancel()

    async def run(self) -> None:
        state = self._state()
        with about(Subject(state.collection, state.version, state.fingerprint, state.epoch)):
            await self._again_and_again()

    async def _again_and_again(self) -> None:
        attempt = 0
        while True:
            build = self._make_build(self._state())
            run = _Run(self, build)
            try:
                await run.until_it_ends()
            except Fenced as error:
                wait_s = pause_s(attempt, Transient(""))
                log.warning("%s joins its group again in %.1f s: %s", build.name, wait_s, error.message)
            except Terminal as error:
                if run.at_the_door and self._others_write(build.wall_ms()):
                    # what is wrong is here: another deployment's worker must not stop the one that is right (rule 10)
                    wait_s = SAY_AGAIN_S
                    log.error("%s is not hosted here, while others write it: %s", build.name, error)
                else:
                    await self._report_failure(await self._named(error))
                    await asyncio.Event().wait()  # the state view will have this runner stopped
            except Transient as error:
                wait_s = pause_s(attempt, error)
                log.warning("%s starts again in %.1f s: %s", build.name, wait_s, error.message)
            except Exception as error:
                wait_s = pause_s(attempt + 3, Transient(""))
                log.error(
                    "%s starts again in %.1f s after %s", build.name, wait_s, type(error).__name__, exc_info=error
                )
            attempt = 0 if run.resolved_something else attempt + 1
            await asyncio.sleep(wait_s)

    async def send(self, command: Command) -> None:
        """Put a command of this worker on the commands topic; the controller applies an id once."""
        await self._sink.send(self._topics.commands, command.collection.encode(), command.to_bytes())

    async def _named(self, error: Terminal) -> Terminal:
        """What a client can only call an offset out of range is mostly a topic created anew: then say that."""
        state = self._state()
        try:
            if isinstance(error, IdentityChanged | NotFound):
                check_topic(state, await self._kafka.facts(state.topic))
        except NotFound:
            return topic_gone(state)
        except IdentityChanged as named:
            return named
        except Transient:
            log.info("%s: the topic could not be looked at", state.key)
        return error

    def _others_write(self, now_ms: int) -> bool:
        """Whether another worker has just reported on this build."""
        state = self._state()
        records = [self._last_progress(f"{state.key}/{partition}") for partition in range(state.partitions)]
        return any(
            r is not None and r.epoch == state.epoch and r.worker != self._worker_name and r.is_fresh(now_ms)
            for r in records
        )

    async def _report_failure(self, error: CrossfadeError) -> None:
        state = self._state()
        log.error("%s stops: %s", state.key, error)
        command = failure_command(state, error, self._worker_name)
        while True:
            with contextlib.suppress(Transient):
                await self.send(command)
            if (failure := self._state().failure) is not None and failure.cause == error.message:
                return
            await asyncio.sleep(SAY_AGAIN_S)


def failure_command(state: BuildState, error: CrossfadeError, who: str) -> Command:
    """What tells the controller that a build must stop, with the cause and the command that helps."""
    return Command(
        verb="failed",
        collection=state.collection,
        version=state.version,
        args={"epoch": state.epoch, "cause": error.message, "next_step": _with_a_command(state, error.next_step)},
        who=who,
    )


def _with_a_command(state: BuildState, next_step: str) -> str:
    """A step that names no command of ours ends with the one that goes on when it is done."""
    if "crossfade " in next_step:
        return next_step
    return f"{next_step or 'remove the cause'}, then: crossfade resume {state.collection} {state.version}"


class _Run:
    """One start of a build: from the committed positions until something fails or the runner is cancelled."""

    def __init__(self, runner: BuildRunner, build: Build) -> None:
        self.at_the_door = True
        self._runner = runner
        self._build = build
        self._state = runner._state
        self._replays: dict[int, ReplayLane] = {}
        self._rates: dict[int, Rate] = {}
        self._requests_done: dict[int, int] = {}
        self._since_ms = build.wall_ms()
        self._group = asyncio.TaskGroup()
        self._tasks: dict[PartitionLedger, list[asyncio.Task[None]]] = {}
        build.spending = Spending(build.name, self._may_spend, self._spent)
        self._lag: dict[int, int] = {}
        latencies = Latencies(observe=runner.observed.calls.observe)
        self._throttle = ThrottleChecks(
            build.name,
            lambda: in_force(runner._throttle(), self._state().controls),
            Gauges(self._live_lag, latencies.p95_ms, build.encoder.pool.status, runner._capacity),
            lambda: any(replay.status != "done" for replay in self._replays.values()),
        )
        build.space = TimedSpace(build.space, latencies)
        build.held = self._why_held
        build.all_held = lambda: self._state().paused == "all"
        build.slowed = lambda: self._throttle.slowed
        build.concurrency = lambda: self._state().controls.concurrency

    def _live_lag(self) -> int:
        """Events behind, of the partitions owned here, as they last reported."""
        return sum(lag for partition, lag in self._lag.items() if partition in self._agent.ledgers)

    def _why_held(self) -> str | None:
        """Why no replayed document may go on now (Build.held)."""
        paused = self._state().paused
        return f"paused ({paused})" if paused is not None else self._throttle.held

    @property
    def resolved_something(self) -> bool:
        return any(c.written or c.stale or c.deleted for c in self._build.counters.values())

    async def until_it_ends(self) -> None:
        runner, state = self._runner, self._state()
        await self._check_space(state)
        await self._check_model()
        self.at_the_door = False
        self._agent = EmbedAgent(self._build, runner.observed.dead_letters)
        self._mender = Mender(self._build, runner._kafka, self._agent)
        self._host = runner._make_host(f"{state.collection}.{state.version}.{state.epoch}")
        reader = runner._kafka.group_reader(
            state.topic, runner._topics.group(state.collection, state.version, state.epoch, "live")
        )
        live = LiveLane(self._build, self._state, runner._kafka, reader, self._agent, self._host.put, self)
        await self._host.start(self._agent.run)
        try:
            async with self._group:
                for part in (
                    live.run(),
                    self._mender.run(),
                    self._agent_failed(),
                    self._report(),
                    self._check_identity(),
                    self._throttle.run(),
                    self._observe(),
                ):
                    self._group.create_task(part)
        except BaseExceptionGroup as group:
            if self._runner.stopping:  # a cancel that meets a failure is lost in the task group: still stop
                raise asyncio.CancelledError from group
            raise _worst(group) from group
        finally:
            await self._agent.stop()
            await self._host.stop()
            await self._build.encoder.close()

    async def _check_model(self) -> None:
        """Raises WrongModel when the endpoint names another revision; whether it tells the truth, the canary sees."""
        with contextlib.suppress(Transient):
            if (wrong := await self._build.encoder.facts_differ()) is not None:
                raise WrongModel(
                    f"{self._build.name}: {wrong}",
                    next_step="let the endpoint serve the version's revision (for the new one add a version)",
                )

    def _spent(self) -> int:
        return sum(self._build.counters[partition].spent_nano_usd for partition in self._agent.ledgers)

    def _may_spend(self) -> int | None:
        """nano-USD of the partitions owned here; a build that serves, or may be rolled back to, is never held."""
        state = self._state()
        if state.controls.budget_usd is None or state.stage not in (Stage.BUILDING, Stage.READY):
            return None
        planned = {p: self._documents(p) for p in range(state.partitions)}
        return total(shares(state.controls.budget_usd, planned, state.partitions), self._agent.ledgers)

    def _documents(self, partition: int) -> int | None:
        """To replay in that partition, as its owner has planned it; None before."""
        replay = self._replays.get(partition)
        if replay is not None and replay.planned:
            return self._build.counters[partition].total
        last = self._last_report(partition)
        return last.total if last is not None and last.planned else None

    async def _check_space(self, state: BuildState) -> None:
        """Refuse to write into a space that is not the one this build made (section 5)."""
        store, schema = self._runner._store, self._build.schema
        check_space(state, await store.description(state.space))
        late = check_properties(state, schema.properties, await store.properties(state.space))
        if late:
            log.warning("%s: %s came after its space was made and is left out there", state.key, ", ".join(late))
            kept = {name: kind for name, kind in schema.properties.items() if name not in late}
            self._build.schema = replace(schema, properties=kept)

    async def _agent_failed(self) -> None:
        await self._agent.failed

    async def _observe(self) -> None:
        """Endpoints and throttle for the metrics, which another thread reads."""
        observed = self._runner.observed
        while True:
            observed.endpoints = self._build.encoder.pool.status()
            verdict, readings = self._throttle.verdict, self._throttle.readings
            observed.held_by = held_by(verdict, self._throttle.settings(), readings, datetime.now(UTC))
            observed.speed = speed_of(verdict)
            await asyncio.sleep(REPORT_EVERY_S)

    # what comes and goes with partitions: see streams.live.Partitions

    def known(self, partition: int) -> bool:
        return self._last_report(partition) is not None

    async def gained(self, ledger: PartitionLedger) -> None:
        runner, state = self._runner, self._state()
        tasks = self._tasks.setdefault(ledger, [])
        self._rates[ledger.partition] = Rate()
        last = self._last_report(ledger.partition)
        counters = self._build.counters[ledger.partition] = last.counted() if last else Counters()
        if ledger.seen is None:  # replayed, whatever the last report had not yet counted
            counters.completed = counters.total
        self._requests_done[ledger.partition] = last.requests_done if last else 0
        if ledger.seen is not None:
            replay = ReplayLane(
                self._build,
                self._state,
                runner._kafka,
                runner._topics.group(state.collection, state.version, state.epoch, "replay"),
                self._agent,
                self._host.put,
                ledger,
                self._replayed,
            )
            self._replays[ledger.partition] = replay
            tasks.append(self._group.create_task(self._while_owned(ledger, replay.run())))
        tasks.append(self._group.create_task(self._while_owned(ledger, self._serve_requests(ledger))))

    def _last_report(self, partition: int) -> ProgressRecord | None:
        """What a former owner of the partition reported last; up to a report's interval of it may be missing."""
        state = self._state()
        last = self._runner._last_progress(f"{state.key}/{partition}")
        return last if last is not None and last.epoch == state.epoch else None

    async def dropped(self, ledgers: Sequence[PartitionLedger], *, lost: bool) -> None:
        for ledger in ledgers:
            tasks = self._tasks.pop(ledger, [])
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            replay = self._replays.pop(ledger.partition, None)
            if replay is not None and not lost:
                with contextlib.suppress(Transient):  # the next owner begins at the checkpoint before
                    await replay.close()
            self._build.counters.pop(ledger.partition, None)

    async def _while_owned(self, ledger: PartitionLedger, work: Awaitable[None]) -> None:
        try:
            with about_partition(ledger.partition):
                await work
        except Transient:
            if ledger.active:
                raise

    async def _serve_requests(self, ledger: PartitionLedger) -> None:
        """What operators ask of this partition's owner, one after the other; first its own sweep, when it needs one."""
        loop = asyncio.get_running_loop()
        carry_at_s, again_s = 0.0, CARRY_AGAIN_S
        while True:
            if not ledger.carry_due:
                carry_at_s, again_s = 0.0, CARRY_AGAIN_S
            carry = ledger.carry_due and loop.time() >= carry_at_s
            if (ledger.sweep_due or carry) and ledger.seen is None:  # a redrive need not wait for the replay
                await self._sweep(ledger)
                carry_at_s = loop.time() + again_s  # each attempt reads the log's keys and the space
                again_s = min(2 * again_s, CARRY_AT_LEAST_EVERY_S)
            state = self._state()
            for request in [r for r in state.requests if r.id > self._requests_done.get(ledger.partition, 0)]:
                if request.kind == "repair":
                    await self._sweep(ledger, asked=True)
                else:
                    held = await self._runner._held(state)
                    await self._mender.redrive(ledger, [h.offset for h in held if h.partition == ledger.partition])
                self._requests_done[ledger.partition] = request.id
            await asyncio.sleep(REQUESTS_LOOK_EVERY_S)

    async def _sweep(self, ledger: PartitionLedger, *, asked: bool = False) -> None:
        with tracing.span("sweep") as span:
            found = await self._mender.sweep(ledger, asked=asked)
            span.note(to_mend=found)
        log.warning("%s: swept partition %d, %d to mend", self._build.name, ledger.partition, found)
        await self._agent.progressed(lambda: not ledger.active or not ledger.doubts)

    async def _replayed(self, ledger: PartitionLedger) -> None:
        """Tell the controller until the state says so, and first everybody else: a build is not called ready with
        reports from before its last documents."""
        state, partition = self._state(), ledger.partition
        command = Command(
            id=f"{state.key}/{state.epoch}/replayed/{partition}",
            verb="replayed",
            collection=state.collection,
            version=state.version,
            args={"epoch": state.epoch, "partition": partition},
            who=self._runner._worker_name,
        )
        while partition not in self._state().replayed:
            with contextlib.suppress(Transient):
                await self._report_on([ledger])
                await self._runner.send(command)
            await asyncio.sleep(1.0)

    # reports

    async def _check_identity(self) -> None:
        """Rules 1 and 2 while it runs: topic, space and model are still the ones; `_report` looks at the log's ends."""
        for look in itertools.count(1):
            await asyncio.sleep(CHECK_EVERY_S)
            if look % MODEL_LOOKS == 0:
                await self._check_model()
            with contextlib.suppress(Transient):
                state = self._state()
                facts = await self._runner._kafka.facts(state.topic)
                check_topic(state, facts)
                for ledger in self._agent.ledgers.values():
                    ledger.following.retention_ms = facts.delete_retention_ms
                check_space(state, await self._runner._store.description(state.space))

    async def _report(self) -> None:
        """Progress of every owned partition, each second, to the progress topic."""
        while True:
            await asyncio.sleep(REPORT_EVERY_S)
            try:
                await self._report_on(list(self._agent.ledgers.values()))
            except Transient as error:
                log.info("%s: progress was not published: %s", self._build.name, error.message)

    async def _report_on(self, ledgers: Sequence[PartitionLedger]) -> None:
        before = {ledger: ledger.live.committable for ledger in ledgers}
        asked_ms = self._build.wall_ms()
        bounds = await self._runner._kafka.bounds(self._state().topic)
        for ledger, position in before.items():
            if not ledger.active:
                continue
            # the lane has read on meanwhile, also past that end: only where it was before must lie within it
            bound, now = bounds[ledger.partition], ledger.live.committable
            await self._check_position(ledger.partition, min(now, max(position, bound.stable)), bound)
            self._follow(ledger, bound.stable, asked_ms)
            self._lag[ledger.partition] = max(0, bound.stable - now)
            record = self._record(ledger, self._lag[ledger.partition])
            key = f"{self._state().key}/{ledger.partition}"
            await self._runner._sink.send(self._runner._topics.progress, key.encode(), record.to_bytes())

    async def _check_position(self, partition: int, position: int, bound: Bounds) -> None:
        """Raises IdentityChanged as `check_position`; Fenced where another has read on since: this worker stood still,
        and does not own the partition any more."""
        state = self._state()
        try:
            check_position(state, partition, position, bound)
        except IdentityChanged as error:
            group = self._runner._topics.group(state.collection, state.version, state.epoch, "live")
            commit = (await self._runner._kafka.committed(group, state.topic)).get(partition)
            if commit is not None and position < bound.earliest <= commit.offset <= bound.stable:
                raise Fenced(
                    f"{state.key}: another worker has read partition {partition} up to {commit.offset}"
                ) from error
            raise

    def _follow(self, ledger: PartitionLedger, end: int, seen_ms: int) -> None:
        """Rule 8: a lane that comes later than tombstones are kept sweeps itself once it has caught up."""
        if ledger.following.observe(end, seen_ms, ledger.live.position, self._build.wall_ms()):
            log.warning(
                "%s: partition %d was not followed for longer than delete.retention.ms, and is swept",
                self._build.name,
                ledger.partition,
            )
            ledger.sweep_due = True

    def _record(self, ledger: PartitionLedger, lag: int) -> ProgressRecord:
        state, counters = self._state(), self._build.counters[ledger.partition]
        replay, last = self._replays.get(ledger.partition), self._last_report(ledger.partition)
        status, reason = self._status(state, replay, ledger)
        rate, held_rate = self._rates[ledger.partition], state.replay_rate_of_a_partition
        if status in ("paused", "waiting"):
            rate.rest()
        else:
            rate.observe(counters.completed, asyncio.get_running_loop().time())
        done = replay is None or replay.status == "done"
        return ProgressRecord(
            name=state.version,
            epoch=state.epoch,
            partition=ledger.partition,
            status=status,
            reason=reason,
            progress=1.0 if done else (counters.completed / counters.total if counters.total else 0.0),
            total=counters.total,
            completed=counters.completed,
            rate_per_s=0.0 if done else rate.per_s,
            eta_s=0.0 if done else eta_s(counters.total, counters.completed, rate.per_s, held_rate),
            changed_mid_migration=counters.changed_mid_migration,
            unchanged_skipped=counters.unchanged_skipped,
            dead_letters=counters.dead_letters,
            live_lag=lag,
            cost_usd=counters.cost_usd,
            unsettled=len(ledger.doubts) or int(ledger.unsettled),
            planned=replay is None or replay.planned,
            replay_done=done,
            owing=ledger.carry_due,
            requests_done=self._requests_done.get(ledger.partition, 0),
            live_position=ledger.live.committable,
            worker=self._runner._worker_name,
            running_since=self._since_ms,
            counters=counters.as_dict(),
            tiers=replay.tiers() if replay is not None else (last.tiers if last is not None else []),
            updated_at=self._build.wall_ms(),
        )

    def _status(self, state: BuildState, replay: ReplayLane | None, ledger: PartitionLedger) -> tuple[Status, str]:
        if self._agent.trouble is not None:
            return "waiting", self._agent.trouble.message
        if state.paused is not None and (state.paused == "all" or (replay is not None and replay.status != "done")):
            return "paused", f"paused ({state.paused})"
        if replay is not None and replay.trouble is not None:
            return "waiting", replay.trouble.message
        if replay is not None and replay.status == "planning":
            return "building", "plan scan"
        if replay is not None and replay.status != "done" and self._throttle.held is not None:
            return "waiting", self._throttle.reason
        if replay is not None and replay.carrying and replay.status != "done":
            return "building", "brings over what the topic no longer has"
        if replay is not None and replay.status != "done":
            rate = state.controls.replay_rate
            at_most = f"held at {rate:g} documents/s" if rate else ""
            return "building", "; ".join(filter(None, (self._throttle.reason, at_most)))
        return _STATUS_OF_STAGE[state.stage.value], ledger.carry_trouble if ledger.carry_due else ""


_STATUS_OF_STAGE: dict[str, Status] = {
    "declared": "declared",
    "building": "building",
    "ready": "ready",
    "serving": "serving",
    "previous": "previous",
    "retired": "retired",
    "aborted": "aborted",
}


def _worst(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one exception that decides what happens next: a cause somebody must remove before one that may pass."""
    leaves: list[BaseException] = []

    def walk(error: BaseException) -> None:
        if isinstance(error, BaseExceptionGroup):
            for inner in error.exceptions:
                walk(inner)
        else:
            leaves.append(error)

    walk(group)
    for kind in (Terminal, Exception):
        for leaf in leaves:
            if isinstance(leaf, kind) and not (kind is Exception and isinstance(leaf, Transient)):
                return leaf
    return leaves[0]
