"""The command stream: whoever has the partition of the commands topic is the controller, and hears every command.

It reads as the live lanes do, not from a Faust topic: a Faust app that crashes, as it may in a rebalance while brokers
go away, says so to nobody. It reads no more, and its process lives on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

from pydantic import ValidationError

from connectors.errors import CrossfadeError, Fenced, IdentityChanged, NotFound, Transient
from connectors.protocols import Commit, GroupReader, Log, Record
from streams.retry import pause_s
from streams.state import Command, TopicNames

log = logging.getLogger(__name__)

READ_RECORDS, READ_S = 100, 0.3
LEAVE_S = 3.0


class CommandStream:
    """`run` until it is cancelled. `elected`: the partition is ours.

    `join` makes a new member of the controllers' group. `handle` gets each command, beside the stream: a sweep of one
    collection must not hold back the commands of another. `lost` is called when the partition goes.
    """

    def __init__(
        self,
        names: TopicNames,
        kafka: Log,
        join: Callable[[], GroupReader],
        handle: Callable[[Command], Awaitable[None]],
        lost: Callable[[], None],
    ) -> None:
        self._names = names
        self._kafka = kafka
        self._join = join
        self._handle = handle
        self._lost = lost
        self._held: set[int] = set()
        self._handling: dict[asyncio.Task[None], Record] = {}
        self._reached: dict[int, int] = {}
        self._committed: dict[int, int] = {}

    @property
    def elected(self) -> bool:
        return bool(self._held)

    async def run(self) -> None:
        """A new member of the group after each trouble. Raises NotFound when the topic is gone: a start makes it."""
        attempt = 0
        while True:
            reader = self._join()
            try:
                await reader.start(self)
                while True:
                    await self._read(reader)
                    if self.elected:
                        attempt = 0
            except NotFound:
                raise
            except (Transient, Fenced, IdentityChanged) as error:
                log.warning("the command stream joins again: %s", error.message)
            except CrossfadeError as error:  # a broker that is starting may refuse anybody; the builds go on meanwhile
                log.error("the command stream joins again: %s; next: %s", error.message, error.next_step)
            finally:
                await self._leave(reader)
            await asyncio.sleep(pause_s(attempt, Transient("")))
            attempt += 1

    async def _read(self, reader: GroupReader) -> None:
        """Commits stay before the oldest command that is still being carried out: whoever comes next hears it again,
        and an id is applied once."""
        for record in await reader.read(READ_RECORDS, READ_S):
            self._take(record)
        self._reached = dict(reader.positions())
        if new := self._committable(self._reached):
            await reader.commit(new)
            self._committed.update({partition: commit.offset for partition, commit in new.items()})

    def _committable(self, partitions: Collection[int]) -> dict[int, Commit]:
        """What is not committed yet, of these."""
        done = {partition: self._reached[partition] for partition in partitions if partition in self._reached}
        for record in self._handling.values():
            if record.partition in done:
                done[record.partition] = min(done[record.partition], record.offset)
        return {p: Commit(at) for p, at in done.items() if at > self._committed.get(p, -1)}

    def _take(self, record: Record) -> None:
        try:
            command = Command.model_validate_json(record.value or b"")
        except ValidationError:
            log.error("a record on %s is no command of this version of Crossfade; it is left out", self._names.commands)
            return
        task = asyncio.ensure_future(self._handle(command))
        self._handling[task] = record
        task.add_done_callback(self._handling.pop)

    async def _leave(self, reader: GroupReader) -> None:
        self._give_up(self._held)
        try:
            async with asyncio.timeout(LEAVE_S):
                await reader.close()
        except CrossfadeError as error:
            log.warning("the command stream did not leave in order: %s", error.message)
        except TimeoutError:
            log.warning("the command stream did not leave within %g s: its session will end", LEAVE_S)
        self._give_up(self._held)

    def _give_up(self, partitions: Collection[int]) -> None:
        if self._held and self._held <= set(partitions):
            self._lost()
        self._held -= set(partitions)

    # the group's callbacks

    async def assigned(self, committed: Mapping[int, Commit | None]) -> Mapping[int, int]:
        bounds = await self._kafka.bounds(self._names.commands)
        starts = {  # what retention took meanwhile has nobody who still waits for it
            partition: min(max(commit.offset if commit else 0, bounds[partition].earliest), bounds[partition].stable)
            for partition, commit in committed.items()
        }
        self._committed.update(starts)
        self._reached.update(starts)
        self._held |= starts.keys()
        return starts

    async def revoked(self, partitions: Sequence[int]) -> Mapping[int, Commit]:
        self._give_up(partitions)
        return self._committable(partitions)

    async def lost(self, partitions: Sequence[int]) -> None:
        self._give_up(partitions)
