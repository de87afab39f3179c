"""Which event of a key is current, and how far a lane may commit: the rules of DESIGN.md section 3 as plain values.

Pure: no I/O, no clock, no tasks. Everything a worker must never get wrong about order is decided in this file.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import NamedTuple
from uuid import UUID

from connectors.protocols import Head, Record
from streams.config_operation import TierName
from streams.documents import Delete, Put
from streams.key_index import ABSENT, Expected


class Lane(StrEnum):
    """Where an event came from."""

    LIVE = "live"
    REPLAY = "replay"
    MEND = "mend"


class Outcome(StrEnum):
    """How an event was resolved: acknowledged, proven stale, or in the dead letters. Nothing else resolves."""

    WRITTEN = "written"
    UNCHANGED = "unchanged"  # same source hash: offset and properties advanced, vector kept
    DELETED = "deleted"
    STALE = "stale"
    DEAD_LETTER = "dead_letter"


@dataclass(slots=True, eq=False)
class Event:
    """One change of one document on its way into a space. Compared by identity.

    `check`: look at what the space holds before writing. Live always does; replay only where a former owner may have
    written already; a mend only to keep the vectors of a document's chunks, since the space cannot be trusted.
    `superseded`: the newest older event of the key that was dropped as stale for this one; it stands after all if this
    one ends in the dead letters. `anew`: take the document away before it is written: the store may hold what it does
    not find. `uuid`: of chunk 0, once it was needed.
    """

    lane: Lane
    record: Record
    digest: bytes
    change: Put | Delete
    ledger: PartitionLedger
    check: bool
    superseded: Expected | None = None
    anew: bool = False
    tier: TierName = "rest"
    uuid: UUID | None = None


# rule 6: the contiguous prefix


class Watermark:
    """The contiguous prefix of resolved offsets of one lane of one partition (rule 6).

    Offsets are admitted in growing order; gaps are crossed by `advance`, never by counting. `acknowledged`: the last
    position the group has committed.
    """

    __slots__ = ("_open", "_resolved", "_uncommitted", "acknowledged", "position")

    def __init__(self, position: int) -> None:
        self.position = position
        self.acknowledged = position
        self._uncommitted: deque[int] = deque()
        self._open: deque[int] = deque()
        self._resolved: set[int] = set()

    def admit(self, offset: int) -> bool:
        """False when the offset was delivered before (a redelivery): it must not be processed again."""
        if offset < self.position:
            return False
        self._open.append(offset)
        self._uncommitted.append(offset)
        self.position = offset + 1
        return True

    def advance(self, position: int) -> None:
        """Everything below `position` has been delivered (a gap, or records that need no work)."""
        if position > self.position:
            self.position = position

    def resolve(self, offset: int) -> None:
        self._resolved.add(offset)

    def is_resolved(self, offset: int) -> bool:
        return offset < self.committable or offset in self._resolved

    @property
    def committable(self) -> int:
        """The first offset that is not resolved: what may be committed as the next to read."""
        while self._open and self._open[0] in self._resolved:
            self._resolved.discard(self._open.popleft())
        return self._open[0] if self._open else self.position

    def acknowledge(self, position: int) -> None:
        """The group has committed `position`."""
        self.acknowledged = max(self.acknowledged, position)
        while self._uncommitted and self._uncommitted[0] < position:
            self._uncommitted.popleft()

    @property
    def uncommitted(self) -> int:
        """Events admitted from the acknowledged commit on, resolved or not: what the next owner may have to doubt."""
        return len(self._uncommitted)

    def worth_committing(self, window: int) -> bool:
        """Half the window is used and a commit would free some of it: do not wait for the next regular one."""
        return self.uncommitted * 2 >= window and self.committable > self.acknowledged


# rule 4: newest wins, seen against what the space holds


class Action(Enum):
    """What to do about an event, given what the space holds for its document."""

    EMBED = "embed"
    KEEP_VECTOR = "keep_vector"
    DELETE = "delete"
    NOTHING = "nothing"


def decide(offset: int, source_hash: str | None, head: Head | None) -> Action:
    """The guard (rule 4). `head` is chunk 0 as stored, `source_hash` that of a put, None for a delete.

    An equal offset is a redelivery of what is already there; an equal source hash saves the embedding, nothing else.
    """
    if head is not None and head.offset >= offset:
        return Action.NOTHING
    if source_hash is None:
        # An absent chunk 0 does not prove that no other chunk is left behind: a delete always runs.
        return Action.DELETE
    if head is not None and head.source_hash == source_hash:
        return Action.KEEP_VECTOR
    return Action.EMBED


# rule 11: doubt


class Finding(Enum):
    """What reading a doubtful key back showed."""

    SETTLED = "settled"
    OVERWRITTEN = "overwritten"  # an older write landed late: mend
    AHEAD = "ahead"  # a former owner got further than its commits say; the event that decides is still to come


@dataclass(slots=True)
class Doubt:
    """A key that a write of unknown outcome, or of a former owner, may still change (rule 11).

    `held_at`: the newest offset of the key that went to the dead letters. `rewritten`: all chunks were written again
    after the settle time; chunk 0, which is what is read back, says nothing of a late write to the others.
    """

    doc_id: str
    not_before_s: float
    expected: Expected | None = None
    held_at: int = ABSENT
    rewritten: bool = False

    def judge(self, head: Head | None) -> Finding:
        """What was read back (chunk 0) against what was expected."""
        assert self.expected is not None
        if head is not None and head.offset > self.expected.offset:
            return Finding.SETTLED if self.held_at > head.offset else Finding.AHEAD
        if self.expected.deleted:
            return Finding.SETTLED if head is None else Finding.OVERWRITTEN
        return Finding.SETTLED if head is not None and head.offset == self.expected.offset else Finding.OVERWRITTEN


# one partition of one build


class Admitted(NamedTuple):
    """What came of a batch: events that may go now, and events already resolved as stale."""

    ready: list[Event]
    stale: list[Event]


@dataclass(slots=True)
class Seen:
    """Rule 5: every key live has seen at or after the start, with its newest offset and whether it was a delete.

    `hashes`: what live made of a key that the space did not hold yet, "" for a delete; `changed`: documents of the
    history whose text live has changed. Both are for counting only: a restart forgets them.
    """

    offsets: dict[bytes, int] = field(default_factory=dict)
    hashes: dict[bytes, str] = field(default_factory=dict)
    changed: set[bytes] = field(default_factory=set)

    def note(self, digest: bytes, offset: int, deleted: bool) -> None:
        entry = offset * 2 + deleted
        if self.offsets.get(digest, ABSENT) < entry:
            self.offsets[digest] = entry

    def met(self, digest: bytes, source_hash: str, stored: Head | None) -> bool:
        """Live met a put of this hash, or a delete (""). True: the text of a document of the history has changed, once
        for each document. Where nothing is `stored` yet, `replayed` will tell."""
        if stored is None or digest in self.hashes:
            self.hashes[digest] = source_hash
        elif stored.source_hash != source_hash:
            return self._first_change(digest)
        return False

    def replayed(self, digest: bytes, source_hash: str) -> bool:
        """The history's record of a key that live has seen. As `met`."""
        met = self.hashes.pop(digest, source_hash)
        return met != source_hash and self._first_change(digest)

    def _first_change(self, digest: bytes) -> bool:
        known = digest in self.changed
        self.changed.add(digest)
        return not known

    def get(self, digest: bytes) -> Expected | None:
        entry = self.offsets.get(digest)
        return None if entry is None else Expected(entry >> 1, bool(entry & 1))


class PartitionLedger:
    """All that the owner of one partition of one build believes about it (rules 3 to 7 and 11).

    `live` and `replay` are the lanes' watermarks; `seen` is rule 5's memory, None once the replay is complete.
    `busy` holds each key with a request in flight, and the one event that waits behind it. `recheck_replay`: how many
    replayed events a former owner may have written already. `touched`: keys live has seen while a sweep runs.
    `sweep_due`: only a sweep can tell what may be wrong, since the keys in question are not known. `told`: what the
    last acknowledged live commit says of `in_doubt`, None before the first; `told_carry`: what it says of `lacks`.
    `carry_due`: the next sweep brings over what the log has forgotten, from the space that serves; `carry_trouble`:
    what that waits for, as the last attempt found it; `carry_refused`: what was brought over and went to the dead
    letters, which only a person has tried again.
    """

    def __init__(
        self, partition: int, *, live_position: int, replaying: bool, following: Following | None = None
    ) -> None:
        self.partition = partition
        self.live = Watermark(live_position)
        self.following = following or Following(0, retention_ms=2**62)
        self.replay: Watermark | None = None
        self.seen: Seen | None = Seen() if replaying else None
        self.busy: dict[bytes, Event | None] = {}
        self.doubts: dict[bytes, Doubt] = {}
        self.takeover: Takeover | None = None
        self.recheck_replay = 0
        self.sweep_due = False
        self.told: bool | None = None
        self.carry_due = False
        self.carry_trouble = ""
        self.carry_refused: set[bytes] = set()
        self.told_carry = False
        self.touched: set[bytes] | None = None
        self.bytes_in_flight = dict.fromkeys(Lane, 0)
        self.active = True

    # live

    def admit_live(self, record: Record) -> bool:
        """Register a delivered record. False for a redelivery, which must not be processed again."""
        return self.live.admit(record.offset)

    def in_flight(self, lane: Lane) -> int:
        """Events admitted and not committed; a lane stays within its window of them, or a takeover would miss some."""
        if lane is Lane.LIVE:
            return self.live.uncommitted
        return self.replay.uncommitted if lane is Lane.REPLAY and self.replay is not None else 0

    def note_live(self, record: Record, digest: bytes, doc_id: str | None, *, deleted: bool) -> None:
        """Remember that live has seen the key, whatever becomes of the event (rule 5)."""
        if self.seen is not None:
            self.seen.note(digest, record.offset, deleted)
        if self.touched is not None:
            self.touched.add(digest)
        if self.takeover is not None and doc_id is not None and self.takeover.covers_live(record.offset):
            self._doubt(digest, doc_id, self.takeover.not_before_s)

    # replay

    def begin_replay(self, position: int) -> None:
        self.replay = Watermark(position)

    def admit_replay(self, record: Record, digest: bytes, doc_id: str | None) -> bool:
        """Register a record that the key index calls current. False when live has seen its key (rule 5).

        A suppressed record is resolved at once: it is proven stale.
        """
        assert self.replay is not None
        assert self.seen is not None
        if not self.replay.admit(record.offset):
            return False
        newer = self.seen.get(digest)
        if self.takeover is not None and doc_id is not None and self.takeover.covers_replay():
            self._doubt(digest, doc_id, self.takeover.not_before_s)
            if newer is not None and digest not in self.busy:
                self.doubts[digest].expected = newer
        if newer is not None:
            self.replay.resolve(record.offset)
            return False
        return True

    def end_replay(self) -> None:
        """The replay is complete and nothing of it is in flight: the memory of rule 5 may go."""
        self.replay = None
        self.seen = None

    # both

    def claim(self, events: Iterable[Event]) -> Admitted:
        """At most one request in flight for any key (rule 3); of those that wait, the newest alone."""
        ready: list[Event] = []
        stale: list[Event] = []
        latest: dict[bytes, Event] = {}
        for event in events:
            self.bytes_in_flight[event.lane] += len(event.record.value or b"")
            older = latest.get(event.digest)
            latest[event.digest] = _newer(older, event, stale) if older else event
        for digest, event in latest.items():
            if digest in self.busy:
                waiting = self.busy[digest]
                self.busy[digest] = _newer(waiting, event, stale) if waiting else event
            else:
                self.busy[digest] = None
                ready.append(event)
        for event in stale:
            self.resolve(event)
        return Admitted(ready, stale)

    def resolve(self, event: Event) -> None:
        """Mark the event's offset in its lane's watermark; a mend has none."""
        self.bytes_in_flight[event.lane] -= len(event.record.value or b"")
        if event.lane is Lane.LIVE:
            self.live.resolve(event.record.offset)
        elif event.lane is Lane.REPLAY and self.replay is not None:
            self.replay.resolve(event.record.offset)

    def resolve_rejected(self, lane: Lane, offset: int, digest: bytes) -> None:
        """The dead-letter topic acknowledged a record that never became an event."""
        if lane is Lane.LIVE:
            self.live.resolve(offset)
        elif lane is Lane.REPLAY and self.replay is not None:
            self.replay.resolve(offset)
        self.hold(digest, offset)

    def finish(self, event: Event, outcome: Outcome) -> Event | None:
        """The event is resolved; returns the one that waited for its key, now free to go."""
        self.resolve(event)
        doubt = self.doubts.get(event.digest)
        if doubt is not None and outcome is not Outcome.DEAD_LETTER:
            expected = Expected(event.record.offset, isinstance(event.change, Delete))
            if doubt.expected is None or doubt.expected.offset <= expected.offset:
                doubt.expected = expected
        waiting = self.busy.pop(event.digest)
        if waiting is not None:
            self.busy[event.digest] = None
            if outcome is Outcome.DEAD_LETTER and waiting.superseded is None:
                waiting.superseded = event.superseded
        elif outcome is Outcome.DEAD_LETTER and event.superseded is not None:
            self._doubt(event.digest, event.change.doc_id, 0.0)
            doubt = self.doubts[event.digest]
            doubt.expected, doubt.held_at = event.superseded, event.record.offset
        elif outcome is Outcome.DEAD_LETTER:
            self.hold(event.digest, event.record.offset)
        return waiting

    def hold(self, digest: bytes, offset: int) -> None:
        """The key's record at `offset` is in the dead letters: an older form may stand, this one is not waited for."""
        doubt = self.doubts.get(digest)
        if doubt is None:
            return
        doubt.held_at = max(doubt.held_at, offset)
        if doubt.expected is not None and doubt.expected.offset == offset:
            doubt.expected = None

    def forget_held(self, now_s: float) -> bool:
        """End the doubts of keys whose newest record is held, once the settle time has passed: whatever was sent for
        it has landed by then, and no newer form was there to be harmed by it. True when there were any."""
        over = [
            digest
            for digest, doubt in self.doubts.items()
            if doubt.held_at != ABSENT
            and doubt.expected is None
            and doubt.not_before_s <= now_s
            and digest not in self.busy
        ]
        for digest in over:
            del self.doubts[digest]
        return bool(over)

    # rule 11

    def _doubt(self, digest: bytes, doc_id: str, not_before_s: float) -> None:
        doubt = self.doubts.get(digest)
        if doubt is None:
            self.doubts[digest] = Doubt(doc_id, not_before_s)
        elif doubt.not_before_s < not_before_s:
            doubt.not_before_s, doubt.rewritten = not_before_s, False

    def doubt(self, event: Event, not_before_s: float) -> None:
        """A write of this event has an unknown outcome: read the key back when the settle time has passed."""
        self._doubt(event.digest, event.change.doc_id, not_before_s)

    def suspect(self, digest: bytes, doc_id: str, expected: Expected, now_s: float) -> None:
        """A sweep found the space to differ from the log for this key: read it back, and mend it if that is so.

        Nothing for a key that live has seen since the sweep began: its own event decides.
        """
        if digest in self.busy or (self.touched is not None and digest in self.touched):
            return
        self._doubt(digest, doc_id, now_s)
        self.doubts[digest].expected = expected

    def due(self, now_s: float, limit: int) -> list[tuple[bytes, Doubt]]:
        """Doubts whose settle time has passed and whose key has nothing in flight."""
        due: list[tuple[bytes, Doubt]] = []
        for digest, doubt in self.doubts.items():
            if len(due) >= limit:
                break
            if doubt.not_before_s <= now_s and doubt.expected is not None and digest not in self.busy:
                due.append((digest, doubt))
        return due

    @property
    def in_doubt(self) -> bool:
        """Something below the commits may still change: a next owner can only learn of it from the commit."""
        return bool(self.doubts) or self.sweep_due

    @property
    def lacks(self) -> bool:
        """Documents that the log has forgotten may be missing here. One that is in doubt may be forgotten before a next
        owner comes to it, and be missing then."""
        return self.carry_due or bool(self.doubts)

    @property
    def may_write(self) -> bool:
        """Nothing is sent before the group's commit says what the next owner must know, should this one die now.

        The first commit replaces the former owner's, which may call the partition clean.
        """
        return self.told is not None and (self.told or not self.in_doubt)

    @property
    def unsettled(self) -> bool:
        """Something may still land that is not current, or was missed: the space cannot cut over."""
        if self.in_doubt or self.following.late:
            return True
        if self.takeover is None:
            return False
        return self.takeover.pending(self.live.position, replaying=self.seen is not None)


# rule 8: what a lane that was away may have missed

FOLLOWED_WITHIN_MS = 10_000  # a lane at work looks at the log's end each second, or so: less is no lateness yet


@dataclass(slots=True)
class Following:
    """Until when a lane has read all that the log held: deletes whose tombstones went before that were seen.

    `at_ms`: that time, wall clock. `retention_ms`: how long the log keeps a tombstone at least. `late`: the lane came
    later than that, paused, cut off, moved or slow; what it passed unseen, only a sweep can tell once it has caught up.
    """

    at_ms: int
    retention_ms: int
    late: bool = False
    _mark: tuple[int, int] | None = None

    def observe(self, end: int, seen_ms: int, position: int, now_ms: int) -> bool:
        """The log ended at `end` at `seen_ms`; the lane has read up to `position` by now. True: a sweep is due."""
        if self._mark is None:
            self._mark = (end, seen_ms)
        if now_ms - self.at_ms > max(self.retention_ms, FOLLOWED_WITHIN_MS):
            self.late = True
        if position < self._mark[0]:
            return False
        self.at_ms, self._mark = self._mark[1], None
        caught_up_late, self.late = self.late, False
        return caught_up_late


# rule 11: what a former owner may have in flight


@dataclass(slots=True)
class Takeover:
    """What a former owner that did not leave cleanly may have had in flight (rule 11).

    Its writes were of unresolved events: within `window` events of what it had committed in each lane, and, since its
    lease ended before this assignment, of records that the log held by then (`live_end`).
    """

    not_before_s: float
    live_end: int
    live_left: int
    replay_left: int

    def covers_live(self, offset: int) -> bool:
        if self.live_left <= 0 or offset >= self.live_end:
            return False
        self.live_left -= 1
        return True

    def covers_replay(self) -> bool:
        if self.replay_left <= 0:
            return False
        self.replay_left -= 1
        return True

    def pending(self, live_position: int, *, replaying: bool) -> bool:
        """Events that the former owner may have written have not been seen by this one yet."""
        return (self.live_left > 0 and live_position < self.live_end) or (replaying and self.replay_left > 0)


def _newer(waiting: Event, event: Event, stale: list[Event]) -> Event:
    """The newer of two events of a key by offset; the other is proven stale. At the same offset a mend wins."""
    keep_first = (waiting.record.offset, waiting.lane is Lane.MEND) > (event.record.offset, event.lane is Lane.MEND)
    keep, drop = (waiting, event) if keep_first else (event, waiting)
    stale.append(drop)
    if drop.record.offset < keep.record.offset:
        keep.superseded = Expected(drop.record.offset, isinstance(drop.change, Delete))
    return keep


@dataclass(slots=True)
class Lease:
    """Rule 11: writes are sent only within `duration_s` of the last acknowledged group commit, monotonic clock.

    `duration_s` is session time-out - write deadline - margin, so that every write this member sends has ended before
    the group can have given its partitions to somebody else.
    """

    duration_s: float
    renewed_at_s: float = float("-inf")

    def renew(self, sent_at_s: float) -> None:
        """`sent_at_s`: when the acknowledged commit was sent, not when its answer came."""
        self.renewed_at_s = max(self.renewed_at_s, sent_at_s)

    def left_s(self, now_s: float) -> float:
        return self.renewed_at_s + self.duration_s - now_s
