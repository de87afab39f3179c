"""The rules as plain values: watermark, key index, guard, ledger, doubts, lease; against plainly right models."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import AsyncIterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.memory.log import MemoryLog
from connectors.protocols import Head, RangeBatch, Record
from streams.documents import Delete, Put, key_digest
from streams.key_index import ABSENT, Expected, KeyIndex, KeyIndexBuilder
from streams.ordering import (
    Action,
    Doubt,
    Event,
    Finding,
    Following,
    Lane,
    Lease,
    Outcome,
    PartitionLedger,
    Seen,
    Takeover,
    Watermark,
    decide,
)
from streams.replay import plan_scan


def record(offset: int, key: bytes = b"k", value: bytes | None = b"{}") -> Record:
    return Record(0, offset, 0, key, value)


def event(
    ledger: PartitionLedger, offset: int, key: bytes = b"k", lane: Lane = Lane.LIVE, *, gone: bool = False
) -> Event:
    change = Delete(key.decode()) if gone else Put(key.decode(), ("x",), {})
    return Event(lane, record(offset, key, None if gone else b"{}"), key_digest(key), change, ledger, check=True)


def head(offset: int, source_hash: str = "h") -> Head:
    return Head(uuid.uuid4(), "k", "", 0, 1, source_hash, 0, offset)


# --- rule 6 -------------------------------------------------------------------------------------------------------


@given(st.data())
def test_the_watermark_is_the_contiguous_prefix(data: st.DataObject) -> None:
    """Against a model: every offset below the committable one is resolved or never existed."""
    start = data.draw(st.integers(0, 3))
    mark = Watermark(start)
    unresolved: set[int] = set()
    position = start
    acknowledged = start
    admitted: list[int] = []
    for _ in range(data.draw(st.integers(0, 40))):
        step = data.draw(st.sampled_from(["admit", "again", "resolve", "advance", "acknowledge"]))
        if step == "admit":
            offset = position + data.draw(st.integers(0, 3))
            assert mark.admit(offset)
            unresolved.add(offset)
            admitted.append(offset)
            position = offset + 1
        elif step == "again" and position > start:
            assert not mark.admit(data.draw(st.integers(start, position - 1))), "a redelivery is not processed again"
        elif step == "resolve" and unresolved:
            offset = data.draw(st.sampled_from(sorted(unresolved)))
            unresolved.discard(offset)
            mark.resolve(offset)
        elif step == "advance":
            position = max(position, data.draw(st.integers(start, position + 4)))
            mark.advance(position)
        elif step == "acknowledge":
            acknowledged = max(acknowledged, mark.committable)
            mark.acknowledge(mark.committable)
        assert mark.committable == min(unresolved, default=position)
        assert mark.position == position
        assert mark.uncommitted == sum(offset >= acknowledged for offset in admitted)


def test_the_window_counts_from_the_commit_and_not_from_what_is_resolved() -> None:
    """A takeover doubts so many events from the commit on: one that hangs must not let the others run away."""
    ledger = PartitionLedger(0, live_position=0, replaying=False)
    for offset in range(10):
        ledger.admit_live(record(offset))
        if offset:
            ledger.live.resolve(offset)
    assert ledger.in_flight(Lane.LIVE) == 10
    assert not ledger.live.worth_committing(10), "the commit would not move"
    ledger.live.resolve(0)
    assert ledger.in_flight(Lane.LIVE) == 10, "resolved, but no commit says so yet"
    assert ledger.live.worth_committing(20)
    assert not ledger.live.worth_committing(21)
    ledger.live.acknowledge(10)
    assert ledger.in_flight(Lane.LIVE) == 0


# --- the key index ------------------------------------------------------------------------------------------------

EVENTS = st.lists(st.tuples(st.integers(0, 12), st.booleans()), max_size=60)


def narrow(key: int) -> bytes:
    """Digests of which many share the upper half."""
    return (key % 3).to_bytes(8, "big") + (key * 7).to_bytes(8, "big")


def build(
    events: Sequence[tuple[int, bool]], *, pending: int, gap: int = 3
) -> tuple[KeyIndex, dict[int, tuple[int, bool]]]:
    builder = KeyIndexBuilder()
    builder.LEAST = builder._BLOCK = pending
    newest: dict[int, tuple[int, bool]] = {}
    for n, (key, gone) in enumerate(events):
        builder.add([narrow(key)], [n * gap], [gone])
        newest[key] = (n * gap, gone)
    return builder.build(), newest


@given(EVENTS, st.sampled_from([1, 2, 7, 1000]))
def test_the_key_index_is_a_dict(events: list[tuple[int, bool]], pending: int) -> None:
    index, newest = build(events, pending=pending)
    digests = [narrow(key) for key in range(20)]
    wanted = [newest[key][0] * 2 + newest[key][1] if key in newest else -1 for key in range(20)]
    assert index.entries(digests).tolist() == wanted
    positions = index.positions(digests)
    for key in range(20):
        at = int(positions[key])
        assert (at >= 0) == (key in newest)
        if at >= 0:
            assert (index.digest(at), index.entry(at)) == (narrow(key), Expected(*newest[key]))
    live = [offset for offset, gone in newest.values() if not gone]
    assert (len(index), index.records) == (len(newest), len(events))
    assert (index.documents, index.deletes) == (len(live), len(newest) - len(live))
    assert index.superseded == len(events) - len(newest)
    assert index.document_offsets().tolist() == sorted(live)
    puts = [newest[key][0] if key in newest and not newest[key][1] else -1 for key in range(20)]
    assert index.put_offsets(digests).tolist() == puts


@given(EVENTS)
def test_current_puts_are_the_newest_of_their_keys(events: list[tuple[int, bool]]) -> None:
    index, newest = build(events, pending=5)
    digests = [narrow(key) for key, _ in events]
    offsets = [n * 3 for n in range(len(events))]
    wanted = [newest[key] == (n * 3, False) for n, (key, _) in enumerate(events)]
    assert index.current_puts(digests, offsets).tolist() == wanted
    matched = np.zeros(len(index), np.bool_)
    missing = {index.digest(int(at)) for at in index.unmatched_puts(matched)}
    assert missing == {narrow(key) for key, (_, gone) in newest.items() if not gone}


@given(st.sets(st.integers(0, 12)), st.sets(st.integers(0, 12)))
def test_a_shared_key_is_seen_and_a_shared_half_is_not(mine: set[int], other: set[int]) -> None:
    first, _ = build([(key, False) for key in sorted(mine)], pending=3)
    second, _ = build([(key, True) for key in sorted(other)], pending=3)
    assert first.shares_a_key(second) == bool(mine & other)


def test_an_empty_index() -> None:
    index = KeyIndexBuilder().build()
    assert index.entries([narrow(1)]).tolist() == [-1]
    assert index.entries([]).tolist() == []
    assert (len(index), index.documents, index.document_offsets().tolist()) == (0, 0, [])
    assert index.put_offsets([narrow(1)]).tolist() == [-1]


def test_a_digest_that_differs_only_in_its_lower_half_is_another_key() -> None:
    high = np.array([5, 5, 5], np.uint64)
    index = KeyIndex(high, np.array([1, 2, 9], np.uint64), np.array([2, 4, 6], np.int64), 3)
    digests = [(5).to_bytes(8, "big") + low.to_bytes(8, "big") for low in (9, 3, 2, 10)]
    assert index.entries(digests).tolist() == [6, -1, 4, -1]


# --- rule 4 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "source_hash", "stored", "action"),
    [
        (5, "h", None, Action.EMBED),
        (5, "h", head(4, "other"), Action.EMBED),
        (5, "h", head(4, "h"), Action.KEEP_VECTOR),
        (5, "h", head(5, "h"), Action.NOTHING),
        (5, "h", head(6, "other"), Action.NOTHING),
        (5, None, None, Action.DELETE),
        (5, None, head(4), Action.DELETE),
        (5, None, head(5), Action.NOTHING),
        (5, None, head(6), Action.NOTHING),
    ],
)
def test_the_guard(offset: int, source_hash: str | None, stored: Head | None, action: Action) -> None:
    assert decide(offset, source_hash, stored) is action


# --- rule 3 -------------------------------------------------------------------------------------------------------


@settings(max_examples=300)
@given(st.data())
def test_one_request_a_key_and_the_newest_last(data: st.DataObject) -> None:
    """Whatever is claimed and finished in whatever order: no key twice in flight, all resolved, newest applied last."""
    ledger = PartitionLedger(0, live_position=0, replaying=False)
    flying: list[Event] = []
    applied: dict[bytes, list[int]] = {}
    newest: dict[bytes, int] = {}
    offset = 0
    for _ in range(data.draw(st.integers(0, 30))):
        if flying and data.draw(st.sampled_from([True, False])):
            done = flying.pop(data.draw(st.integers(0, len(flying) - 1)))
            applied.setdefault(done.digest, []).append(done.record.offset)
            if (following := ledger.finish(done, Outcome.WRITTEN)) is not None:
                flying.append(following)
        else:
            batch: list[Event] = []
            for key in data.draw(st.lists(st.sampled_from([b"a", b"b", b"c"]), min_size=1, max_size=4)):
                batch.append(event(ledger, offset, key))
                ledger.admit_live(batch[-1].record)
                newest[key_digest(key)] = offset
                offset += 1
            flying += ledger.claim(batch).ready
        assert len({one.digest for one in flying}) == len(flying)
        assert ledger.busy.keys() == {one.digest for one in flying}
    while flying:
        done = flying.pop(0)
        applied.setdefault(done.digest, []).append(done.record.offset)
        if (following := ledger.finish(done, Outcome.WRITTEN)) is not None:
            flying.append(following)
    assert ledger.live.committable == offset
    assert not ledger.busy
    assert ledger.bytes_in_flight[Lane.LIVE] == 0
    for digest, offsets in applied.items():
        assert offsets == sorted(offsets)
        assert offsets[-1] == newest[digest]


def test_what_is_superseded_is_resolved_as_stale() -> None:
    ledger = PartitionLedger(0, live_position=0, replaying=False)
    first, second, third = (event(ledger, n) for n in range(3))
    for one in (first, second, third):
        ledger.admit_live(one.record)
    assert ledger.claim([first]) == ([first], [])
    assert ledger.claim([second]) == ([], [])
    assert ledger.claim([third]) == ([], [second])
    assert ledger.live.committable == 0, "the first is still in flight"
    assert ledger.finish(first, Outcome.WRITTEN) is third
    assert ledger.live.committable == 2
    assert ledger.finish(third, Outcome.DELETED) is None
    assert ledger.live.committable == 3


def test_at_one_offset_a_mend_goes_first() -> None:
    ledger = PartitionLedger(0, live_position=0, replaying=False)
    ledger.busy[key_digest(b"k")] = None
    live, mend = event(ledger, 4), event(ledger, 4, lane=Lane.MEND)
    assert ledger.claim([mend]).stale == []
    assert ledger.claim([live]).stale == [live]


# --- rule 5 -------------------------------------------------------------------------------------------------------


def replaying() -> PartitionLedger:
    ledger = PartitionLedger(0, live_position=10, replaying=True)
    ledger.begin_replay(0)
    return ledger


@pytest.mark.parametrize("seen", ["put", "delete", "dead letter"])
def test_what_live_has_seen_is_not_replayed(seen: str) -> None:
    ledger = replaying()
    ledger.note_live(record(10), key_digest(b"k"), None if seen == "dead letter" else "k", deleted=seen == "delete")
    assert not ledger.admit_replay(record(3), key_digest(b"k"), "k")
    assert ledger.replay is not None
    assert ledger.replay.committable == 4, "suppressed is proven stale, and so resolved"
    assert ledger.admit_replay(record(4, b"other"), key_digest(b"other"), "other")
    assert ledger.replay.committable == 4


def test_the_memory_keeps_the_newest_and_goes_when_the_replay_is_complete() -> None:
    ledger = replaying()
    assert ledger.seen is not None
    ledger.seen.note(key_digest(b"k"), 12, deleted=True)
    ledger.seen.note(key_digest(b"k"), 11, deleted=False)
    assert ledger.seen.get(key_digest(b"k")) == Expected(12, True)
    assert ledger.seen.get(key_digest(b"o")) is None
    ledger.end_replay()
    assert not ledger.in_flight(Lane.REPLAY)
    gone: object = ledger.seen
    assert gone is None


# --- rule 11 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expected", "held_at", "stored", "finding"),
    [
        (Expected(5, False), -1, head(5), Finding.SETTLED),
        (Expected(5, False), -1, head(4), Finding.OVERWRITTEN),
        (Expected(5, False), -1, None, Finding.OVERWRITTEN),
        (Expected(5, False), -1, head(6), Finding.AHEAD),
        (Expected(5, True), -1, None, Finding.SETTLED),
        (Expected(5, True), -1, head(4), Finding.OVERWRITTEN),
        (Expected(5, True), -1, head(6), Finding.AHEAD),
        (Expected(5, True), 7, head(6), Finding.SETTLED),
        (Expected(5, True), 6, head(7), Finding.AHEAD),
    ],
)
def test_what_reading_back_shows(expected: Expected, held_at: int, stored: Head | None, finding: Finding) -> None:
    assert Doubt("k", 0.0, expected, held_at).judge(stored) is finding


def claimed(ledger: PartitionLedger, offset: int, *, gone: bool = False) -> Event:
    one = event(ledger, offset, gone=gone)
    ledger.admit_live(one.record)
    assert ledger.claim([one]).ready == [one]
    return one


def test_a_doubt_waits_for_its_time_and_for_the_key_to_be_free() -> None:
    ledger = PartitionLedger(0, live_position=0, replaying=False)
    first = claimed(ledger, 0)
    ledger.doubt(first, 10.0)
    assert ledger.unsettled
    assert ledger.due(99.0, 5) == [], "still in flight"
    ledger.finish(first, Outcome.WRITTEN)
    assert ledger.due(9.0, 5) == []
    ((digest, doubt),) = ledger.due(10.0, 5)
    assert (digest, doubt.expected) == (key_digest(b"k"), Expected(0, False))
    second = claimed(ledger, 1, gone=True)
    assert ledger.due(10.0, 5) == []
    ledger.doubt(second, 20.0)
    ledger.finish(second, Outcome.DELETED)
    assert doubt.expected == Expected(1, True)
    assert ledger.due(19.0, 5) == [], "a second unknown outcome begins the settle time anew"
    assert len(ledger.due(20.0, 5)) == 1


def test_an_older_event_does_not_take_back_what_is_expected() -> None:
    ledger = PartitionLedger(0, live_position=0, replaying=False)
    one = claimed(ledger, 5)
    ledger.doubt(one, 0.0)
    ledger.finish(one, Outcome.WRITTEN)
    ledger.claim([mend := event(ledger, 3, lane=Lane.MEND)])
    ledger.finish(mend, Outcome.WRITTEN)
    assert ledger.doubts[key_digest(b"k")].expected == Expected(5, False)


def test_a_refused_key_is_not_waited_for() -> None:
    ledger = PartitionLedger(0, live_position=0, replaying=False)
    one = claimed(ledger, 0)
    ledger.doubt(one, 0.0)
    ledger.finish(one, Outcome.DEAD_LETTER)
    assert ledger.due(0.0, 5) == [], "it never had a form that could be expected"
    assert ledger.forget_held(0.0)
    assert not ledger.doubts
    good = claimed(ledger, 1)
    ledger.doubt(good, 0.0)
    ledger.finish(good, Outcome.WRITTEN)
    ledger.admit_live(record(2, value=b"{"))
    ledger.resolve_rejected(Lane.LIVE, 2, key_digest(b"k"))
    doubt = ledger.doubts[key_digest(b"k")]
    assert (doubt.expected, doubt.held_at) == (Expected(1, False), 2), "the last good form may still be overwritten"
    ledger.claim([mend := event(ledger, 1, lane=Lane.MEND)])
    ledger.finish(mend, Outcome.DEAD_LETTER)
    assert ledger.forget_held(0.0)
    assert not ledger.doubts, "refused once more: nothing else will ever be there"


def test_what_was_sent_for_a_refused_form_may_still_harm_the_next() -> None:
    """Its surplus chunks were deleted with an unknown outcome, then its chunk 0 was refused; a newer form has more."""
    ledger = PartitionLedger(0, live_position=0, replaying=False)
    refused = claimed(ledger, 0)
    ledger.doubt(refused, 10.0)
    ledger.finish(refused, Outcome.DEAD_LETTER)
    assert not ledger.forget_held(9.0), "the delete may still land"
    assert ledger.unsettled
    newer = claimed(ledger, 1)
    ledger.finish(newer, Outcome.WRITTEN)
    assert not ledger.forget_held(10.0)
    ((_, doubt),) = ledger.due(10.0, 5)
    assert (doubt.expected, doubt.rewritten) == (Expected(1, False), False), "all of its chunks are looked at"


def test_nothing_is_written_before_the_group_knows_of_every_doubt() -> None:
    ledger = PartitionLedger(0, live_position=0, replaying=False)
    assert not ledger.may_write, "the commit that stands is a former owner's, and may call the partition clean"
    ledger.told = False
    assert ledger.may_write
    one = claimed(ledger, 0)
    ledger.doubt(one, 0.0)
    assert not ledger.may_write
    ledger.told = True
    assert ledger.may_write
    ledger.told = False
    ledger.doubts.clear()
    ledger.sweep_due = True
    assert not ledger.may_write
    assert ledger.unsettled


def test_a_lane_that_follows_needs_no_sweep() -> None:
    following = Following(at_ms=0, retention_ms=60_000)
    for now in range(1_000, 500_000, 1_000):
        assert not following.observe(end=now, seen_ms=now - 100, position=now - 500, now_ms=now)
        assert not following.late
    assert following.at_ms > 490_000


def test_a_lane_that_was_away_is_late_until_it_has_caught_up() -> None:
    following = Following(at_ms=0, retention_ms=60_000)
    assert not following.observe(end=100, seen_ms=59_000, position=10, now_ms=60_001)
    assert following.late
    assert not following.observe(end=900, seen_ms=62_000, position=99, now_ms=62_000), "not yet at the first end seen"
    assert following.observe(end=999, seen_ms=63_000, position=100, now_ms=63_000)
    assert (following.at_ms, following.late) == (59_000, False)


def test_reading_all_the_time_is_not_following() -> None:
    """A lane that is always at work but further behind than tombstones are kept: every catch-up is late."""
    following = Following(at_ms=0, retention_ms=60_000)
    due = [following.observe(now, now, max(0, now - 70_000), now) for now in range(0, 400_000, 1_000)]
    assert sum(due) >= 4


def test_a_short_retention_does_not_make_every_look_late() -> None:
    following = Following(at_ms=0, retention_ms=0)
    assert not any(following.observe(now, now - 50, now, now) for now in range(1_000, 60_000, 1_000))


def test_a_takeover_doubts_what_a_former_owner_may_have_had_in_flight() -> None:
    ledger = PartitionLedger(0, live_position=0, replaying=True)
    ledger.takeover = Takeover(7.0, live_end=5, live_left=2, replay_left=1)
    ledger.begin_replay(0)
    assert ledger.unsettled
    for offset, key in enumerate([b"a", b"b", b"c"]):
        ledger.admit_live(record(offset, key))
        ledger.note_live(record(offset, key), key_digest(key), key.decode(), deleted=False)
    assert ledger.doubts.keys() == {key_digest(b"a"), key_digest(b"b")}, "its window ends there"
    ledger.admit_replay(record(0, b"r"), key_digest(b"r"), "r")
    ledger.admit_replay(record(1, b"s"), key_digest(b"s"), "s")
    assert key_digest(b"r") in ledger.doubts
    assert key_digest(b"s") not in ledger.doubts
    ledger.doubts.clear()
    assert not ledger.unsettled


def test_a_takeover_is_pending_until_its_events_were_seen() -> None:
    takeover = Takeover(0.0, live_end=3, live_left=9, replay_left=0)
    assert takeover.pending(2, replaying=True)
    assert not takeover.pending(3, replaying=True)
    assert not takeover.covers_live(3), "the log did not hold it yet when the former owner could write"
    replay = Takeover(0.0, live_end=0, live_left=9, replay_left=1)
    assert replay.pending(0, replaying=True)
    assert not replay.pending(0, replaying=False)


def test_a_suppressed_replay_of_a_former_owner_expects_what_live_has_seen() -> None:
    ledger = replaying()
    ledger.takeover = Takeover(7.0, live_end=0, live_left=0, replay_left=5)
    ledger.note_live(record(12), key_digest(b"k"), "k", deleted=True)
    assert not ledger.admit_replay(record(3), key_digest(b"k"), "k")
    assert ledger.doubts[key_digest(b"k")].expected == Expected(12, True)


def test_a_sweep_leaves_to_live_what_live_has_seen() -> None:
    ledger = PartitionLedger(0, live_position=0, replaying=False)
    ledger.touched = set()
    ledger.note_live(record(1, b"a"), key_digest(b"a"), "a", deleted=False)
    ledger.busy[key_digest(b"b")] = None
    for key in (b"a", b"b", b"c"):
        ledger.suspect(key_digest(key), key.decode(), Expected(0, False), 1.0)
    assert ledger.doubts.keys() == {key_digest(b"c")}
    assert len(ledger.due(1.0, 5)) == 1


def test_the_lease_counts_from_when_the_commit_was_sent() -> None:
    lease = Lease(10.0)
    assert lease.left_s(0.0) == float("-inf")
    lease.renew(5.0)
    lease.renew(3.0)
    assert (lease.left_s(5.0), lease.left_s(15.0)) == (10.0, 0.0)


def test_digests_are_128_bits() -> None:
    assert len(key_digest(b"k")) == 16
    assert ABSENT < 0


def test_what_gave_way_to_a_refused_event_stands_after_all() -> None:
    ledger = PartitionLedger(0, live_position=0, replaying=False)
    first = claimed(ledger, 0)
    good, refused, last = event(ledger, 1, gone=True), event(ledger, 2), event(ledger, 3)
    for one in (good, refused, last):
        ledger.admit_live(one.record)
    assert ledger.claim([good, refused]).stale == [good]
    assert ledger.finish(first, Outcome.WRITTEN) is refused
    assert ledger.claim([last]) == ([], [])
    assert ledger.finish(refused, Outcome.DEAD_LETTER) is last, "a newer one waits: it decides"
    assert last.superseded == Expected(1, True), "and if it is refused too, the same one stands"
    assert ledger.finish(last, Outcome.DEAD_LETTER) is None
    doubt = ledger.doubts[key_digest(b"k")]
    assert (doubt.expected, doubt.held_at) == (Expected(1, True), 3)
    assert len(ledger.due(0.0, 5)) == 1


# what has changed mid-migration


def stored_as(source_hash: str) -> Head:
    return Head(uuid.UUID(int=0), "k", "", 0, 1, source_hash, 0, 5)


def test_a_document_changed_while_it_migrates_is_counted_once_by_its_hash() -> None:
    seen = Seen()
    assert not seen.met(b"same", "h1", stored_as("h1")), "equal text: nothing changed"
    assert seen.met(b"other", "h2", stored_as("h1"))
    assert not seen.met(b"other", "h3", stored_as("h2")), "a document, not an event"
    assert seen.met(b"deleted", "", stored_as("h1"))
    # before the replay has come to it: only the history's record can tell
    assert not seen.met(b"early", "h1", None)
    assert not seen.met(b"early", "h2", stored_as("h1"))
    assert seen.replayed(b"early", "h1")
    assert not seen.met(b"back", "h2", None)
    assert not seen.met(b"back", "h1", stored_as("h2"))
    assert not seen.replayed(b"back", "h1"), "it was changed back"
    assert not seen.met(b"gone", "", None)
    assert seen.replayed(b"gone", "h1")
    assert not seen.replayed(b"unknown", "h1"), "after a restart nobody knows"


def test_millions_of_keys_are_sorted_beside_the_live_lane() -> None:
    """The scan of a large partition must not hold the loop that its live lane runs on."""
    count = 400_000

    class Log(MemoryLog):
        async def read_range(self, topic: str, partition: int, start: int, end: int) -> AsyncIterator[RangeBatch]:
            for at in range(0, count, 1000):
                records = [Record(0, n, 0, b"%d" % (n % 300_000), b"") for n in range(at, at + 1000)]
                yield RangeBatch(records, at + 1000, at + 1000 == count)
                await asyncio.sleep(0)

    async def main() -> None:
        elsewhere: set[str] = set()
        compact = KeyIndexBuilder.compact

        def noted(self: KeyIndexBuilder) -> None:
            elsewhere.add(threading.current_thread().name)
            compact(self)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(KeyIndexBuilder, "compact", noted)
            index = await plan_scan(Log(), "docs", 0, count)
        assert (len(index), index.records) == (300_000, count)
        assert elsewhere
        assert threading.main_thread().name not in elsewhere

    asyncio.run(main())
