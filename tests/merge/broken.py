"""The production code with one rule of DESIGN.md section 3 broken on purpose: would the simulator notice?

It must never be imported by anything but the test that plays it. One history: python -m tests.merge.broken FAULT SEED
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch
from uuid import UUID

from connectors.protocols import Commit, Head
from streams import build_runner, embed_agent, live, ordering, replay
from streams.carrying import Forgotten, OldSpaceFault, ReadBack
from streams.commits import LiveCommit
from streams.documents import key_digest
from streams.embed_agent import EmbedAgent
from streams.key_index import ABSENT, Expected
from streams.live import LiveLane
from streams.mend import Mender
from streams.migration.difference import Comparison
from streams.migration.forms import Forms
from streams.ordering import Action, Admitted, Event, Outcome, PartitionLedger, Seen
from streams.replay import Place, ReplayCommit, ReplayLane
from streams.space_writer import SpaceWriter
from streams.state import TopicNames
from streams.tiers import Pass, Passes
from tests.merge import scenario


@dataclass(frozen=True, slots=True)
class Broken:
    """`what` no longer holds. `patches`: what to put in place of what, as (owner, name, replacement). `forgetting`: it
    shows only where the log loses its beginning."""

    rule: int
    what: str
    patches: Callable[[], list[tuple[object, str, object]]]
    forgetting: bool = False


@contextmanager
def break_rule(name: str) -> Iterator[None]:
    """Within it, the named fault is in the production code of this process."""
    with ExitStack() as stack:
        for owner, attribute, replacement in {**FAULTS, **DIRECTED}[name].patches():
            stack.enter_context(patch.object(owner, attribute, replacement))
        yield


# rule 1


def _topic_unchecked() -> list[tuple[object, str, object]]:
    return [(module, "check_topic", lambda *_: None) for module in (live, build_runner)]


def _positions_unchecked() -> list[tuple[object, str, object]]:
    return [(module, "check_position", lambda *_: None) for module in (live, build_runner)]


def _partitions_mixed() -> list[tuple[object, str, object]]:
    async def heads(self: EmbedAgent, events: Sequence[Event]) -> Mapping[Event, Head]:
        ids = {event: self._object_id(event, 0) for event in events if event.check}
        stored = await self._patiently(lambda: self.build.space.heads(list(ids.values())), events) if ids else {}
        return {event: head for event, uuid in ids.items() if (head := stored.get(uuid)) is not None}

    return [(EmbedAgent, "_heads", heads)]


# rule 2


def _starts_at_the_end() -> list[tuple[object, str, object]]:
    original = LiveLane.assigned

    async def assigned(self: LiveLane, committed: Mapping[int, Commit | None]) -> Mapping[int, int]:
        state = self._state
        ends = {p: b.stable for p, b in (await self._kafka.bounds(state().topic)).items()}
        self._state = lambda: state().model_copy(update={"start": ends})
        try:
            return await original(self, committed)
        finally:
            self._state = state

    return [(LiveLane, "assigned", assigned)]


def _replay_ends_early() -> list[tuple[object, str, object]]:
    original = ReplayLane._read

    async def one_short(self: ReplayLane, one: Pass, end: int) -> None:
        await original(self, one, end - 1)
        if self._ledger.replay is not None:
            self._ledger.replay.advance(end)

    return [(ReplayLane, "_read", one_short)]


def _another_order_goes_on() -> list[tuple[object, str, object]]:
    def at_the_same_offset(commit: Commit | None, epoch: int, passes: Passes, *, replayed: bool) -> Place:
        made = ReplayCommit.from_metadata(commit.metadata) if commit else None
        if commit is None or made is None or made.epoch != epoch:
            return Place(0, 0)
        return Place(min(made.tier, len(passes) - 1), commit.offset)

    return [(replay, "resume", at_the_same_offset)]


# rule 3


def _one_key_twice() -> list[tuple[object, str, object]]:
    finish = PartitionLedger.finish

    def claim(self: PartitionLedger, events: Iterable[Event]) -> Admitted:
        latest: dict[bytes, Event] = {}
        stale: list[Event] = []
        for event in events:
            self.bytes_in_flight[event.lane] += len(event.record.value or b"")
            older = latest.get(event.digest)
            latest[event.digest] = ordering._newer(older, event, stale) if older else event
        for event in stale:
            self.resolve(event)
        self.busy.update(dict.fromkeys(latest))
        return Admitted(list(latest.values()), stale)

    def lenient(self: PartitionLedger, event: Event, outcome: Outcome) -> Event | None:
        self.busy.setdefault(event.digest, None)
        return finish(self, event, outcome)

    return [(PartitionLedger, "claim", claim), (PartitionLedger, "finish", lenient)]


# rule 4


def _oldest_waits() -> list[tuple[object, str, object]]:
    def older(waiting: Event, event: Event, stale: list[Event]) -> Event:
        keep, drop = (waiting, event) if waiting.record.offset < event.record.offset else (event, waiting)
        stale.append(drop)
        return keep

    return [(ordering, "_newer", older)]


def _unchanged_left_alone() -> list[tuple[object, str, object]]:
    decide = ordering.decide

    def skip(offset: int, source_hash: str | None, head: Head | None) -> Action:
        action = decide(offset, source_hash, head)
        return Action.NOTHING if action is Action.KEEP_VECTOR else action

    return [(embed_agent, "decide", skip)]


# rule 5


def _nothing_seen() -> list[tuple[object, str, object]]:
    return [(Seen, "note", lambda *_: None)]


def _not_rebuilt() -> list[tuple[object, str, object]]:
    async def forget(self: ReplayLane, start: int, live_position: int) -> None:
        return None

    return [(ReplayLane, "_remember_live", forget)]


def _deletes_unseen() -> list[tuple[object, str, object]]:
    note = Seen.note

    def only_puts(self: Seen, digest: bytes, offset: int, deleted: bool) -> None:
        if not deleted:
            note(self, digest, offset, deleted)

    return [(Seen, "note", only_puts)]


# rule 6


def _commits_the_position() -> list[tuple[object, str, object]]:
    return [(ordering.Watermark, "committable", property(lambda self: self.position))]


def _counts_records() -> list[tuple[object, str, object]]:
    """A gap is not crossed: what follows the last record is waited for."""
    return [(ordering.Watermark, "advance", lambda *_: None)]


# rule 7


def _done_unresolved() -> list[tuple[object, str, object]]:
    def reached(self: ReplayLane, barrier: int) -> bool:
        replay = self._ledger.replay
        return replay is not None and replay.position >= barrier

    def forget(self: PartitionLedger) -> None:
        if self.replay is not None:
            self.replay.acknowledge(self.replay.position)
        self.replay = self.seen = None

    return [(ReplayLane, "_resolved_up_to", reached), (PartitionLedger, "end_replay", forget)]


def _waits_for_the_last_record() -> list[tuple[object, str, object]]:
    original = ReplayLane._deliver_current

    async def seen_last(self: ReplayLane, batch: Any, one: Pass, end: int) -> None:
        last = batch.records[-1].offset if batch.records else ABSENT
        await original(self, batch._replace(position=min(batch.position, last + 1), done=False), one, end)

    return [(ReplayLane, "_deliver_current", seen_last)]


# rule 8


def _absence_forgiven() -> list[tuple[object, str, object]]:
    read = LiveCommit.from_metadata

    def just_now(metadata: str) -> LiveCommit:
        return replace(read(metadata), at_ms=2**62)

    return [
        (LiveCommit, "from_metadata", staticmethod(just_now)),
        (ordering.Following, "observe", lambda *_: False),
    ]


# rule 9


def _revoked_undrained() -> list[tuple[object, str, object]]:
    async def at_once(self: SpaceWriter, ledgers: Sequence[PartitionLedger], timeout_s: float) -> bool:
        for ledger in ledgers:
            ledger.active = False
        return True

    return [(SpaceWriter, "drain", at_once)]


def _revoked_and_going_on() -> list[tuple[object, str, object]]:
    async def never_stops(self: SpaceWriter, ledgers: Sequence[PartitionLedger], timeout_s: float) -> bool:
        return True

    return [(SpaceWriter, "drain", never_stops)]


# rule 10


def _shared_group() -> list[tuple[object, str, object]]:
    def of_all(self: TopicNames, collection: str, version: str, epoch: int, lane: str) -> str:
        return f"{self.prefix}.{collection}.{epoch}.{lane}"

    return [(TopicNames, "group", of_all)]


def _shared_epochs() -> list[tuple[object, str, object]]:
    def of_all(self: TopicNames, collection: str, version: str, epoch: int, lane: str) -> str:
        return f"{self.prefix}.{collection}.{version}.{lane}"

    original = replay.resume

    def of_any(commit: Commit | None, epoch: int, passes: Passes, *, replayed: bool) -> Place:
        made = ReplayCommit.from_metadata(commit.metadata) if commit else None
        return original(commit, made.epoch if made else epoch, passes, replayed=replayed)

    return [(TopicNames, "group", of_all), (replay, "resume", of_any)]


def _shared_memory() -> list[tuple[object, str, object]]:
    """One memory of what live has seen for every version and owner in the process."""
    everything: dict[bytes, int] = {}
    original = scenario.Scenario.__init__

    def fresh(self: scenario.Scenario, *args: Any, **kwargs: Any) -> None:
        everything.clear()
        original(self, *args, **kwargs)

    shared = property(lambda _: everything, lambda *_: None)
    return [(Seen, "offsets", shared), (scenario.Scenario, "__init__", fresh)]


# rule 11


def _lease_ignored() -> list[tuple[object, str, object]]:
    return [(ordering.Lease, "left_s", lambda *_: 1.0)]


def _never_in_doubt() -> list[tuple[object, str, object]]:
    return [(PartitionLedger, "doubt", lambda *_: None)]


def _no_takeover() -> list[tuple[object, str, object]]:
    return [(live, "Takeover", lambda *_: None)]


def _read_back_at_once() -> list[tuple[object, str, object]]:
    original = PartitionLedger._doubt

    def now(self: PartitionLedger, digest: bytes, doc_id: str, not_before_s: float) -> None:
        original(self, digest, doc_id, 0.0)

    return [(PartitionLedger, "_doubt", now)]


def _doubts_not_handed_on() -> list[tuple[object, str, object]]:
    read = LiveCommit.from_metadata

    def forgetful(metadata: str) -> LiveCommit:
        return replace(read(metadata), doubts=False)

    return [(LiveCommit, "from_metadata", staticmethod(forgetful))]


def _overwritten_is_settled() -> list[tuple[object, str, object]]:
    def judge(self: ordering.Doubt, head: Head | None) -> ordering.Finding:
        return ordering.Finding.SETTLED

    return [(ordering.Doubt, "judge", judge)]


def _delete_left_by_a_sweep() -> list[tuple[object, str, object]]:
    original = PartitionLedger.suspect

    def puts_only(self: PartitionLedger, digest: bytes, doc_id: str, expected: Expected, now_s: float) -> None:
        if not expected.deleted:
            original(self, digest, doc_id, expected, now_s)

    return [(PartitionLedger, "suspect", puts_only)]


# what the log has forgotten


def _forgotten_is_extra() -> list[tuple[object, str, object]]:
    def all_there(self: Comparison) -> None:
        self.begins = {}
        begin(self)

    begin = Comparison.__post_init__
    return [(Comparison, "__post_init__", all_there)]


def _carried_without_memory() -> list[tuple[object, str, object]]:
    original = ReplayLane._deliver_carried

    async def forgetful(self: ReplayLane, wanted: Mapping[UUID, int], found: ReadBack) -> None:
        self._ledger.seen = Seen()
        await original(self, wanted, found)

    return [(ReplayLane, "_deliver_carried", forgetful)]


def _only_what_the_plan_missed() -> list[tuple[object, str, object]]:
    original = Forgotten.add

    def unknown(self: Forgotten, heads: Sequence[Head]) -> None:
        digests = [key_digest(head.doc_id.encode()) for head in heads]
        known = self.index.entries(digests).tolist()
        original(self, [head for head, entry in zip(heads, known, strict=True) if entry == ABSENT])

    return [(Forgotten, "add", unknown)]


def _doubtful_is_deleted() -> list[tuple[object, str, object]]:
    async def none(self: Mender, partition: int, gone: Mapping[bytes, int]) -> dict[bytes, int]:
        return {}

    return [(Mender, "_forgotten", none)]


def _carry_ends_unresolved() -> list[tuple[object, str, object]]:
    original = ReplayLane._done_or_revoked

    def at_once(self: ReplayLane, end: int) -> bool:
        return self.carrying or original(self, end)

    return [(ReplayLane, "_done_or_revoked", at_once)]


def _owed_unsaid() -> list[tuple[object, str, object]]:
    async def at_once(self: ReplayLane, fault: OldSpaceFault) -> None:
        self._ledger.carry_due, self._ledger.carry_trouble = True, fault.text

    return [(ReplayLane, "_owe", at_once)]


def _doubts_lack_nothing() -> list[tuple[object, str, object]]:
    return [(PartitionLedger, "lacks", property(lambda self: self.carry_due))]


def _torn_is_whole() -> list[tuple[object, str, object]]:
    return [(Forms, "_whole", lambda self, at=slice(None): self._chunks[at] > 0)]


FAULTS = {
    "1-topic": Broken(1, "the topic's id and partition count are not looked at", _topic_unchecked),
    "1-position": Broken(1, "positions below the log's start or past its end are not looked at", _positions_unchecked),
    "1-key": Broken(1, "a key may be in two partitions", _partitions_mixed),
    "2-start": Broken(2, "a live group without commits starts at the log's end", _starts_at_the_end),
    "2-order": Broken(2, "a replay whose order has changed goes on at the same offset", _another_order_goes_on),
    "2-barrier": Broken(2, "the replay stops one offset before the barrier", _replay_ends_early),
    "3-busy": Broken(3, "two requests for one key at once", _one_key_twice),
    "4-older": Broken(4, "of two waiting events of a key the older goes", _oldest_waits),
    "4-unchanged": Broken(4, "an equal source hash writes nothing", _unchanged_left_alone),
    "5-memory": Broken(5, "what live has seen is not remembered", _nothing_seen),
    "5-deletes": Broken(5, "deletes that live has seen are not remembered", _deletes_unseen),
    "5-restart": Broken(5, "the memory is not rebuilt after a restart", _not_rebuilt),
    "6-position": Broken(6, "the position is committed, not the contiguous prefix", _commits_the_position),
    "6-gaps": Broken(6, "gaps are not crossed by position", _counts_records),
    "7-last": Broken(7, "the replay waits for the record before the barrier", _waits_for_the_last_record),
    "8-absence": Broken(8, "no sweep after an absence longer than tombstones are kept", _absence_forgiven),
    "8-deletes": Broken(8, "a sweep mends no deletes", _delete_left_by_a_sweep),
    "9-drain": Broken(9, "a revoke does not wait for the writes in flight", _revoked_undrained),
    "9-stop": Broken(9, "a revoke stops nothing and waits for nothing", _revoked_and_going_on),
    "10-group": Broken(10, "two versions share their consumer groups", _shared_group),
    "10-epoch": Broken(10, "two builds of a version share their consumer groups", _shared_epochs),
    "10-memory": Broken(10, "all versions share one memory of what live has seen", _shared_memory),
    "11-lease": Broken(11, "writes are sent without a lease", _lease_ignored),
    "11-unknown": Broken(11, "an unknown outcome leaves no doubt", _never_in_doubt),
    "11-takeover": Broken(11, "a takeover leaves no doubt", _no_takeover),
    "11-settle": Broken(11, "doubts are read back before the settle time", _read_back_at_once),
    "11-handover": Broken(11, "a next owner does not learn of doubts", _doubts_not_handed_on),
    "11-mend": Broken(11, "what was overwritten counts as settled", _overwritten_is_settled),
    "2-forgotten": Broken(2, "what goes from the log while it is replayed is lost", _only_what_the_plan_missed, True),
    "8-forgotten": Broken(8, "what the log has forgotten counts as extra", _forgotten_is_extra, True),
}


DIRECTED = {
    "7-resolved": Broken(7, "the replay is done before all below the barrier is resolved", _done_unresolved),
    "5-carry": Broken(5, "what live has seen is not remembered by the carry", _carried_without_memory),
    "7-carry": Broken(7, "the carry is done before all of it is resolved", _carry_ends_unresolved),
    "7-owed": Broken(7, "the replay is done before a next owner would know what is still due", _owed_unsaid),
    "8-torn": Broken(8, "a forgotten document is whole whose chunk 0 is there", _torn_is_whole),
    "11-forgotten": Broken(11, "a forgotten document in doubt counts as deleted", _doubtful_is_deleted),
    "11-lacks": Broken(11, "what was left in doubt is not brought over", _doubts_lack_nothing),
}
"""Too rare for thousands of random schedules: tests/merge/test_directed.py has a history for each."""


def main(arguments: list[str]) -> None:
    """FAULT SEED [without=SPANS]"""
    with break_rule(arguments[0]):
        scenario.main(arguments[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
