"""Schedules that once broke the merge core, or would break it if one rule of DESIGN.md section 3 were left out.

Each is the shortest history that shows it; the random ones beside it find what nobody thought of.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Literal

import pytest

from connectors.errors import AccessDenied, ConfigurationError, IdentityChanged, NotFound, Terminal, Unreachable
from connectors.memory.store import Effect
from connectors.protocols import Commit, Head
from streams import mend
from streams.build import Batch, Limits
from streams.carrying import OldSpace, OldSpaceFault, pages_of
from streams.config_operation import TierName
from streams.documents import Put, key_digest, object_id
from streams.embed_agent import EmbedAgent
from streams.key_index import Expected, KeyIndex
from streams.mend import Mender
from streams.ordering import Event, Lane, PartitionLedger
from streams.replay import CHECKPOINT_AGAIN_S
from streams.state import Failure
from streams.tiers import Passes, arrange
from tests.merge import broken, virtual_time
from tests.merge.world import NAMES, REFUSED_BY_MODEL, TOPIC, World
from tests.pools import ENDPOINT_AT_ONCE

LIMITS = Limits(batch=8, together=8, window=16, read_records=8, write_deadline_s=2.0, settle_s=4.0)


def play(story: Callable[[World], Awaitable[None]], *, limits: Limits = LIMITS, partitions: int = 1) -> World:
    """Run a story in a world of its own, to a settled end, and compare with the oracle."""

    async def main() -> World:
        world = World(1, partitions=partitions, chunks=False, limits=limits)
        await story(world)
        await world.until_settled()
        await world.check()
        return world

    random.seed(1)
    return virtual_time.run(main())


def put(world: World, key: str, text: str) -> int:
    return world.produce(key, {"text": text}).offset


class Fates:
    """What becomes of a worker's writes, one after the other: `plan` by number, all else goes well."""

    def __init__(self, world: World, worker: str, plan: dict[int, Effect]) -> None:
        self.plan = plan
        self.writes = 0
        world.workers[worker].network.on_write = self._fate

    async def _fate(self, _: str, __: Sequence[object]) -> Effect | None:
        self.writes += 1
        return self.plan.get(self.writes)


async def ready(world: World) -> None:
    await world.start_build()
    world.start_worker("a")
    await world.until_settled()


# --- rule 7: done on proof ------------------------------------------------------------------------------------------


def test_a_replay_whose_last_records_need_no_work_is_done() -> None:
    async def story(world: World) -> None:
        put(world, "a", "one")
        for _ in range(5):
            world.produce("a", None)
        world.kafka.skip(TOPIC, 0, 3)
        await world.start_build()
        world.start_worker("a")

    play(story)


def test_a_replay_suppressed_to_its_last_record_is_done() -> None:
    async def story(world: World) -> None:
        put(world, "a", "old")
        await world.start_build()
        put(world, "a", "new")
        world.state = world.state.model_copy(update={"paused": "replay"})
        world.start_worker("a")
        await asyncio.sleep(5.0)
        world.state = world.state.model_copy(update={"paused": None})

    assert play(story).counters().suppressed_by_live == 1


def test_a_replay_is_not_done_before_its_writes_are() -> None:
    """A worker dies with a replayed document on its way, which never arrives: the next one replays it."""

    async def story(world: World) -> None:
        for number in range(3):
            put(world, f"k{number}", "text")
        await world.start_build()
        world.start_worker("a")
        held = asyncio.Event()

        async def lost(_: str, __: Sequence[object]) -> Effect | None:
            held.set()
            await asyncio.sleep(1.5)
            return "lost"

        world.workers["a"].network.on_write = lost
        await held.wait()
        await asyncio.sleep(1.0)
        assert world.state.replayed == []
        world.kill_worker("a")
        world.start_worker("b")

    play(story)


def test_a_replay_that_is_held_commits_once_and_again_only_before_brokers_forget_it() -> None:
    made: list[float] = []

    async def story(world: World) -> None:
        for number in range(6):
            put(world, f"k{number}", "text")
        await world.start_build()
        world.state = world.state.model_copy(update={"paused": "replay"})
        commit = world.kafka.commit_offsets

        async def noted(group: str, topic: str, commits: Mapping[int, Commit]) -> None:
            made.append(world.loop.time())
            await commit(group, topic, commits)

        world.kafka.commit_offsets = noted  # type: ignore[method-assign]
        world.start_worker("a")
        await asyncio.sleep(30.0)
        assert len(made) == 1
        await asyncio.sleep(CHECKPOINT_AGAIN_S)
        assert len(made) == 2
        world.state = world.state.model_copy(update={"paused": None})

    play(story)
    assert len(made) > 2  # what was replayed is committed


# --- rule 5 ---------------------------------------------------------------------------------------------------------


def test_a_deleted_document_is_not_brought_back_by_a_later_owner() -> None:
    """Live deletes it; the replay goes on only in another worker, which has to learn that from the log."""

    async def story(world: World) -> None:
        put(world, "a", "old")
        put(world, "b", "old")
        await world.start_build()
        world.state = world.state.model_copy(update={"paused": "replay"})
        world.start_worker("a")
        await asyncio.sleep(2.0)
        world.produce("a", None)
        put(world, "b", "new")
        await asyncio.sleep(2.0)
        await world.stop_worker("a")
        world.start_worker("b")
        await asyncio.sleep(2.0)
        world.state = world.state.model_copy(update={"paused": None})

    counters = play(story).counters()
    assert (counters.suppressed_by_live, counters.suppressed_by_live_delete) == (2, 1)
    assert counters.embedded_replay == 0


# --- rule 11 --------------------------------------------------------------------------------------------------------


def late_then_newer(world: World) -> Callable[[], Awaitable[None]]:
    async def run() -> None:
        await ready(world)
        Fates(world, "a", {1: "late"})
        put(world, "k", "first")
        await asyncio.sleep(1.5)  # the retry has stored it, and the commit is past it
        put(world, "k", "second")
        await asyncio.sleep(0.9)

    return run


def test_a_late_write_is_mended_by_its_owner() -> None:
    async def story(world: World) -> None:
        await late_then_newer(world)()

    play(story)


def test_an_object_that_fell_out_of_the_stores_index_is_written_anew() -> None:
    """Weaviate killed in mid-batch: it is there, no filter finds it, and the same write again changes nothing."""

    async def story(world: World) -> None:
        await ready(world)
        Fates(world, "a", {1: "unindexed"})
        put(world, "k", "x")
        await asyncio.sleep(20.0)
        assert world.store.held(world.state.space).unindexed == set()

    play(story)


def test_a_delete_does_not_need_the_stores_index() -> None:
    async def story(world: World) -> None:
        await ready(world)
        Fates(world, "a", {1: "unindexed"})
        put(world, "k", "x")
        await asyncio.sleep(0.5)
        world.produce("k", None)

    play(story)


def test_a_late_write_is_mended_by_the_owner_after_a_killed_one() -> None:
    async def story(world: World) -> None:
        await late_then_newer(world)()
        world.kill_worker("a")
        world.start_worker("b")

    play(story)


def test_a_late_write_is_mended_by_the_owner_after_one_that_left() -> None:
    async def story(world: World) -> None:
        await late_then_newer(world)()
        await world.stop_worker("a")
        world.start_worker("b")

    play(story)


def test_a_late_write_is_mended_through_two_owners() -> None:
    async def story(world: World) -> None:
        await late_then_newer(world)()
        await world.stop_worker("a")
        world.start_worker("b")
        await asyncio.sleep(0.5)
        await world.stop_worker("b")
        world.start_worker("c")

    play(story, limits=Limits(batch=8, window=16, read_records=8, write_deadline_s=2.0, settle_s=20.0))


def test_a_dead_owners_write_beyond_what_its_last_commit_allows() -> None:
    """No commit for a while: a worker may not get further ahead of it than a next owner will doubt."""
    limits = Limits(batch=1, concurrency=1, window=2, read_records=1, write_deadline_s=2.0, settle_s=20.0)

    async def story(world: World) -> None:
        await ready(world)
        put(world, "first", "commits, so that the lease is fresh")
        await asyncio.sleep(1.0)
        network = world.workers["a"].network
        before = dict(world.kafka.group(TOPIC, world.live_group).commits)[0].offset
        for n in range(40):
            put(world, f"k{n}", "x")
        worst = 0
        for _ in range(400):
            await asyncio.sleep(0.01)
            committed = world.kafka.group(TOPIC, world.live_group).commits[0].offset
            stored = [int(str(objects[0]["cf_offset"])) for objects in (await world.stored()).values()]
            worst = max(worst, max(stored) - committed)
        assert before > 0
        assert not network.dead
        assert worst <= limits.reach, f"{worst} events ahead of the commit, {limits.reach} will be doubted"

    play(story, limits=limits)


def test_the_write_in_flight_of_a_killed_owner_is_found() -> None:
    async def story(world: World) -> None:
        await ready(world)
        world.weather.latency_s = 0.0
        for n in range(30):
            put(world, f"k{n}", "old")
        await asyncio.sleep(2.0)
        world.weather.latency_s = 0.5
        for n in range(30):
            put(world, f"k{n}", "new")
        await asyncio.sleep(1.2)
        world.kill_worker("a")
        world.weather.latency_s = 0.01
        world.start_worker("b")
        await asyncio.sleep(6.5)  # the dead one's session ends
        for n in range(30):
            put(world, f"k{n}", "newest")

    play(story, limits=Limits(batch=4, window=8, read_records=4, write_deadline_s=2.0, settle_s=8.0))


def test_a_key_whose_newest_record_is_refused_does_not_stay_in_doubt() -> None:
    async def story(world: World) -> None:
        await ready(world)
        Fates(world, "a", {1: "late"})
        put(world, "k", "good")
        await asyncio.sleep(1.0)
        world.produce("k", b"{")
        world.compact(keep_last=0)
        await asyncio.sleep(0.5)

    play(story)


def test_dead_letters_that_cannot_be_written_hold_the_lane() -> None:
    """Rather than losing the record: nothing at or past it is committed until the topic takes it."""

    async def story(world: World) -> None:
        await ready(world)
        world.dead_letters_away = True
        refused = world.produce("bad", b"{").offset
        put(world, "good", "goes on")
        await asyncio.sleep(60.0)
        group = NAMES.group(world.state.collection, world.state.version, world.state.epoch, "live")
        assert (await world.kafka.committed(group, TOPIC))[0].offset == refused
        assert world.dead_letters == []
        world.dead_letters_away = False

    world = play(story)
    assert [cause for _, cause in world.dead_letters] == ["malformed_json"]


def test_a_repair_does_not_fill_the_dead_letters() -> None:
    """The sweep finds a document missing whose newest record the model refuses: once more is enough to see that."""

    async def story(world: World) -> None:
        put(world, "k", REFUSED_BY_MODEL)
        await ready(world)
        before = len(world.dead_letters)
        world.ask("repair")
        await asyncio.sleep(30.0)
        assert len(world.dead_letters) - before <= 1

    play(story)


# --- rule 8 ---------------------------------------------------------------------------------------------------------


def test_a_delete_whose_tombstone_is_gone_is_mended_after_a_long_absence() -> None:
    async def story(world: World) -> None:
        put(world, "gone", "x")
        put(world, "kept", "x")
        await ready(world)
        await world.stop_worker("a")
        world.produce("gone", None)
        put(world, "kept", "y")
        await asyncio.sleep(3 * 86_400.0)
        world.compact(keep_last=0, expire_tombstones=True)
        world.start_worker("b")

    play(story)


def test_a_delete_whose_tombstone_is_gone_is_mended_after_a_long_pause() -> None:
    """Commits go on during a pause of live writes; they must not make it look as if the log had been followed."""

    async def story(world: World) -> None:
        put(world, "gone", "x")
        await ready(world)
        world.state = world.state.model_copy(update={"paused": "all"})
        await asyncio.sleep(2.0)
        world.produce("gone", None)
        await _a_long_time(world)
        world.compact(keep_last=0, expire_tombstones=True)
        world.state = world.state.model_copy(update={"paused": None})

    play(story)


def test_a_long_pause_counts_also_when_another_worker_ends_it() -> None:
    async def story(world: World) -> None:
        put(world, "gone", "x")
        await ready(world)
        world.state = world.state.model_copy(update={"paused": "all"})
        await asyncio.sleep(2.0)
        world.produce("gone", None)
        await _a_long_time(world)
        world.compact(keep_last=0, expire_tombstones=True)
        await world.stop_worker("a")
        world.start_worker("b")
        await asyncio.sleep(2.0)
        world.state = world.state.model_copy(update={"paused": None})

    play(story)


def test_a_delete_whose_tombstone_went_before_a_slow_lane_came_to_it_is_mended() -> None:
    """It was never away, only behind; it catches up after the log has forgotten the delete."""

    async def story(world: World) -> None:
        put(world, "gone", "x")
        await ready(world)
        world.weather.latency_s = 1.0
        for n in range(100):
            put(world, f"k{n}", "x")
        tombstone = world.produce("gone", None).offset
        await asyncio.sleep(75.0)
        position = world.progress["docs/v1/0"].live_position
        assert 20 < position < tombstone - 10, "the lane is at work, and not there yet"
        world.compact(keep_last=0, expire_tombstones=True)
        world.weather.latency_s = 0.01

    play(story, limits=Limits(batch=1, window=4, read_records=1, write_deadline_s=2.0, settle_s=4.0))


def test_a_group_whose_commits_have_expired_is_no_new_one() -> None:
    """A group without members loses its commits in time; what was written and deleted since S is not known again."""

    async def story(world: World) -> None:
        await ready(world)
        put(world, "gone", "x")
        await world.until_settled()
        await world.stop_worker("a")
        world.produce("gone", None)
        await asyncio.sleep(8 * 86_400.0)
        world.kafka.group(TOPIC, world.live_group).commits.clear()
        world.compact(keep_last=0, expire_tombstones=True)
        world.start_worker("b")

    play(story)


def test_a_doubtful_key_that_was_deleted_and_forgotten_does_not_stay_in_doubt() -> None:
    """Its record has gone before it was read back; the delete that live was to bring has gone before live went on.

    A sweep sees nothing of it: neither the log nor the space holds the key, since an old delete landed late.
    """

    async def story(world: World) -> None:
        put(world, "k", "first")
        await ready(world)
        Fates(world, "a", {1: "late"})
        world.workers["a"].network.land_after_s = 3.0
        world.produce("k", None)
        await asyncio.sleep(1.5)
        put(world, "k", "second")
        await asyncio.sleep(0.9)
        world.state = world.state.model_copy(update={"paused": "all"})
        await asyncio.sleep(0.5)
        world.produce("k", None)
        world.compact(keep_last=0)
        await _a_long_time(world)
        world.compact(keep_last=0, expire_tombstones=True)
        world.state = world.state.model_copy(update={"paused": None})

    play(story)


async def _a_long_time(world: World) -> None:
    """Longer than tombstones are kept; here that is a minute, since a waiting worker does cost something."""
    await asyncio.sleep(90.0)


def test_a_sweep_takes_nothing_away_that_live_has_still_to_renew() -> None:
    """Old records were compacted away because newer ones exist, which the returning lane has not read yet."""

    async def story(world: World) -> None:
        for n in range(20):
            put(world, f"k{n}", "old")
        await ready(world)
        await world.stop_worker("a")
        for n in range(20):
            put(world, f"k{n}", "new")
        await asyncio.sleep(3 * 86_400.0)
        world.compact(keep_last=0)
        world.weather.latency_s = 1.0  # live is slow to catch up
        world.start_worker("b")
        for _ in range(200):
            await asyncio.sleep(0.25)
            assert len(await world.stored()) == 20, "a document vanished that was never deleted"
        world.weather.latency_s = 0.01

    play(story, limits=Limits(batch=8, window=16, read_records=1, write_deadline_s=2.0, settle_s=4.0))


# --- rule 3 and 9: owners -------------------------------------------------------------------------------------------


def test_a_partition_held_before_a_rebalance_goes_on_after_it() -> None:
    """Gaining a partition while live is on hold must not leave the others paused for ever."""

    async def story(world: World) -> None:
        await world.start_build()
        world.start_worker("a")
        world.start_worker("b")
        await world.until_settled()
        world.state = world.state.model_copy(update={"paused": "all"})
        await asyncio.sleep(2.0)
        world.kill_worker("b")
        for n in range(10):
            put(world, f"k{n}", "x")
        group = world.kafka.group(TOPIC, world.live_group)
        while len({id(holder) for holder in group.holder.values()}) > 1:  # noqa: ASYNC110  simulated time
            await asyncio.sleep(0.01)
        world.state = world.state.model_copy(update={"paused": None})

    play(story, partitions=2)


def test_a_worker_cut_off_from_kafka_stops_writing_before_another_may_begin() -> None:
    async def story(world: World) -> None:
        put(world, "k", "old")
        await ready(world)
        world.workers["a"].network.cut_until_s = world.loop.time() + 30.0
        last_write_s = 0.0

        async def note(_: str, __: Sequence[object]) -> None:
            nonlocal last_write_s
            last_write_s = world.loop.time()

        world.workers["a"].network.on_write = note
        cut_s = world.loop.time()
        world.workers["a"].network.weather.store_fails = 1.0  # so that it keeps trying
        put(world, "k", "new")
        await asyncio.sleep(20.0)
        assert last_write_s < cut_s + 6.0 - 2.0, "sent when its session could have ended within the deadline"
        world.weather.store_fails = 0.0
        world.start_worker("b")

    play(story)


def test_a_partition_gained_during_a_hold_is_held_too() -> None:
    async def story(world: World) -> None:
        await world.start_build()
        world.start_worker("a")
        world.start_worker("b")
        await world.until_settled()
        world.state = world.state.model_copy(update={"paused": "all"})
        await asyncio.sleep(2.0)
        await world.stop_worker("b")
        await asyncio.sleep(2.0)
        for n in range(10):
            put(world, f"k{n}", "x")
        await asyncio.sleep(5.0)
        assert await world.stored() == {}
        world.state = world.state.model_copy(update={"paused": None})

    play(story, partitions=2)


# --- what is refused ------------------------------------------------------------------------------------------------


def test_a_delete_is_not_lost_because_a_newer_record_is_refused() -> None:
    """Both waited behind the same request, so the delete was dropped as stale: it was not, as it turned out."""

    async def story(world: World) -> None:
        await ready(world)
        put(world, "k", "secret")
        put(world, "l", "old")
        await asyncio.sleep(2.0)
        world.produce("k", None)
        put(world, "k", REFUSED_BY_MODEL)
        put(world, "l", "newer")
        put(world, "l", REFUSED_BY_MODEL)
        await asyncio.sleep(5.0)
        stored = await world.stored()
        assert "k" not in stored
        assert stored["l"][0]["cf_text"] == "newer"

    play(story)


# --- cost -----------------------------------------------------------------------------------------------------------


def test_a_killed_replay_costs_no_more_than_what_was_in_flight() -> None:
    """The checkpoint is behind by what was embedded since: the next owner looks before it embeds."""
    limits = Limits(batch=4, concurrency=1, window=100, read_records=8, write_deadline_s=2.0, settle_s=4.0)

    async def story(world: World) -> None:
        for n in range(60):
            put(world, f"k{n}", f"text {n}")
        await world.start_build()
        world.weather.latency_s = 0.05
        world.start_worker("a")
        while len(await world.stored()) < 30:  # noqa: ASYNC110  simulated time
            await asyncio.sleep(0.01)
        world.kill_worker("a")
        world.start_worker("b")

    groups = limits.concurrency + ENDPOINT_AT_ONCE // 2  # a group is two requests there
    assert play(story, limits=limits).embeddings <= 60 + limits.batch * groups


# --- redrive --------------------------------------------------------------------------------------------------------


def test_a_late_redrive_of_a_killed_owner_does_not_overwrite_what_came_after() -> None:
    """A redriven record lies far below the commit: only the doubt that was committed before it tells the next owner."""

    async def story(world: World) -> None:
        await ready(world)
        put(world, "k", REFUSED_BY_MODEL)
        await asyncio.sleep(3.0)
        world.refusing = False
        network = world.workers["a"].network
        network.land_after_s = 15.0
        Fates(world, "a", {1: "late"})
        world.ask("redrive")
        while not world.store.late:  # noqa: ASYNC110  simulated time
            await asyncio.sleep(0.01)
        world.kill_worker("a")
        world.start_worker("b")
        await asyncio.sleep(8.0)
        put(world, "k", "newer")

    play(story, limits=Limits(batch=8, window=16, read_records=8, write_deadline_s=2.0, settle_s=20.0))


def test_a_redriven_record_is_applied() -> None:
    async def story(world: World) -> None:
        await ready(world)
        put(world, "k", REFUSED_BY_MODEL)
        await asyncio.sleep(3.0)
        world.refusing = False
        world.ask("redrive")
        await asyncio.sleep(5.0)
        assert "k" in await world.stored()

    play(story)


# --- nothing waits for ever, nor for long ---------------------------------------------------------------------------


def test_a_small_window_does_not_wait_for_the_regular_commit() -> None:
    async def story(world: World) -> None:
        for n in range(100):
            put(world, f"r{n}", "x")
        await ready(world)
        took_s = world.loop.time()
        for n in range(300):
            put(world, f"k{n}", "x")
        await world.until_settled()
        assert took_s < 15.0, f"the replay took {took_s} s"
        assert world.loop.time() - took_s < 60.0, f"live took {world.loop.time() - took_s} s"

    play(story, limits=Limits(batch=2, window=2, read_records=2, write_deadline_s=2.0, settle_s=4.0))


def test_a_repair_asked_for_during_the_replay_is_done_after_it() -> None:
    async def story(world: World) -> None:
        put(world, "k", "x")
        await world.start_build()
        world.state = world.state.model_copy(update={"paused": "replay"})
        world.start_worker("a")
        await asyncio.sleep(3.0)
        world.ask("repair")
        await asyncio.sleep(3.0)
        world.state = world.state.model_copy(update={"paused": None})
        await world.until_settled()
        await asyncio.sleep(5.0)
        assert world.progress["docs/v1/0"].requests_done == 1

    play(story)


def test_a_partition_that_leaves_during_trouble_does_not_take_the_others_with_it() -> None:
    async def story(world: World) -> None:
        await world.start_build()
        world.start_worker("a")
        await world.until_settled()
        Fates(world, "a", {1: "applied", 2: "applied"})
        world.produce("k", {"text": "x"}, partition=0)
        await asyncio.sleep(3.0)
        world.weather.store_fails = 1.0  # reading back will begin, and fail
        await asyncio.sleep(6.0)
        worker = world.workers["a"]
        world.start_worker("b")
        group = world.kafka.group(TOPIC, world.live_group)
        while len(group.members) < 2:  # noqa: ASYNC110  simulated time
            await asyncio.sleep(0.001)
        first, second = group.members
        world.kafka.assign(TOPIC, world.live_group, {0: second, 1: first})
        await asyncio.sleep(20.0)
        world.weather.store_fails = 0.0
        await world.until_settled()
        assert len(worker.builds) == 1, "the lane of the partition that stayed was started anew"

    play(story, partitions=2)


def test_a_doubt_renewed_while_it_is_read_back_stays() -> None:
    """The same event was sent again meanwhile, again without an answer: its settle time begins anew."""

    async def main() -> None:
        world = World(1, partitions=1, chunks=False, limits=LIMITS)
        await ready(world)
        put(world, "k", "x")
        await world.until_settled()
        build = world.workers["a"].builds[-1]
        record = world.records[-1]
        agent = EmbedAgent(build)
        ledger = PartitionLedger(0, live_position=0, replaying=False)
        digest = key_digest(b"k")
        event = Event(Lane.LIVE, record, digest, Put("k", ("x",), {}), ledger, check=True)
        ledger.suspect(digest, "k", Expected(record.offset, False), world.loop.time())
        reading = asyncio.create_task(Mender(build, world.kafka, agent)._read_back(ledger, ledger.due(1e9, 9)))
        await asyncio.sleep(0)
        ledger.doubt(event, world.loop.time() + 4.0)
        await reading
        assert ledger.doubts.keys() == {digest}
        await Mender(build, world.kafka, agent)._read_back(ledger, ledger.due(1e9, 9))
        assert not ledger.doubts

    virtual_time.run(main())


# --- tiers, pauses and the valve ------------------------------------------------------------------------------------


def pause(world: World, what: Literal["replay", "all"] | None) -> None:
    world.state = world.state.model_copy(update={"paused": what})


def set_tiers(world: World, *tiers: TierName) -> None:
    controls = world.state.controls.model_copy(update={"tiers": list(tiers)})
    world.state = world.state.model_copy(update={"controls": controls})


async def replaying_in_part(world: World, documents: int) -> None:
    """Of `documents` some are stored, and a window of the others is admitted: at the model, and behind it."""
    world.kafka._range_records = 1000
    for n in range(documents):
        put(world, f"k{n}", f"text {n}")
    await world.start_build()
    world.weather.latency_s = 0.05
    world.start_worker("a")
    while not await world.stored():  # noqa: ASYNC110  simulated time
        await asyncio.sleep(0.01)


def test_live_never_waits_for_a_replay_that_is_paused() -> None:
    """Also where the replay's event of the key has not got as far as the valve: it waits for its turn before that."""
    limits = Limits(batch=2, concurrency=1, window=100, read_records=8, write_deadline_s=2.0, settle_s=4.0)

    async def story(world: World) -> None:
        await replaying_in_part(world, 60)
        pause(world, "replay")
        await asyncio.sleep(2.0)
        for n in range(40, 60):  # far behind those that are at the valve
            put(world, f"k{n}", f"newer {n}")
        await asyncio.sleep(20.0)
        stored = await world.stored()
        left = [n for n in range(40, 60) if stored.get(f"k{n}", [{}])[0].get("cf_text") != f"newer {n}"]
        assert not left, "live waits for somebody to resume the replay"
        pause(world, None)

    play(story, limits=limits)


def test_what_is_paused_whole_lets_nothing_through() -> None:
    """Also not for the sake of a live event, which may not go either."""

    async def main() -> None:
        world = World(1, partitions=1, chunks=False, limits=LIMITS)
        await ready(world)
        build = world.workers["a"].builds[-1]
        agent, ledger, digest = EmbedAgent(build), PartitionLedger(0, live_position=9, replaying=True), key_digest(b"k")
        old, new = world.produce("k", {"text": "old"}), world.produce("k", {"text": "new"})
        replayed = Event(Lane.REPLAY, old, digest, Put("k", ("old",), {}), ledger, check=False)
        ledger.claim([replayed])
        ledger.claim([Event(Lane.LIVE, new, digest, Put("k", ("new",), {}), ledger, check=True)])
        pause(world, "replay")
        assert agent._urgency([replayed]).pressing()
        pause(world, "all")
        assert not agent._urgency([replayed]).pressing()

    virtual_time.run(main())


def test_a_partition_that_leaves_while_the_replay_is_paused_is_no_trouble() -> None:
    async def story(world: World) -> None:
        for n in range(80):
            world.produce(f"k{n}", {"text": f"text {n}"}, partition=n % 2)
        world.kafka._range_records = 1000
        await world.start_build()
        world.weather.latency_s = 0.05
        world.start_worker("a")
        while not await world.stored():  # noqa: ASYNC110  simulated time
            await asyncio.sleep(0.01)
        pause(world, "replay")
        await asyncio.sleep(2.0)
        world.start_worker("b")
        await asyncio.sleep(10.0)
        assert {record.worker for record in world.progress.values()} == {"a", "b"}
        shown = {record.reason for record in world.progress.values()}
        assert shown == {"paused (replay)"}
        pause(world, None)

    play(story, partitions=2)


def test_another_order_after_a_kill_writes_nothing_again() -> None:
    """Only a sweep can tell what the killed owner's last writes did to documents that come much later in this order."""

    async def main() -> None:
        world = World(1, partitions=1, chunks=True, limits=LIMITS)
        for n in range(60):
            put(world, f"k{n}", f"text|{n}")
        await world.start_build()
        world.weather.latency_s = 0.05
        world.start_worker("a")
        while len(await world.stored()) < 45:  # noqa: ASYNC110  simulated time
            await asyncio.sleep(0.01)
        world.kill_worker("a")
        world.search_for([f"k{n}" for n in range(50, 60)], 0.0)
        world.start_worker("b")
        await world.until_settled()
        await world.check()
        counters = world.counters()
        assert counters.mended == 0, "what is stored is right"
        assert counters.stale >= 35

    random.seed(1)
    virtual_time.run(main())


def test_a_killed_owners_late_write_is_found_in_another_order() -> None:
    """It is of a document that the log does not hold any more when the new order would come to it."""

    async def story(world: World) -> None:
        for n in range(40):
            put(world, f"k{n}", "old")
        await world.start_build()
        world.start_worker("a")
        world.workers["a"].network.land_after_s = 10.0
        Fates(world, "a", {1: "late"})
        while not world.store.late:  # noqa: ASYNC110  simulated time
            await asyncio.sleep(0.01)
        world.kill_worker("a")
        world.search_for([f"k{n}" for n in range(8, 40)], 0.0)
        pause(world, "replay")
        world.start_worker("b")
        await asyncio.sleep(8.0)
        put(world, "k0", "new")
        await asyncio.sleep(1.0)
        assert (await world.stored())["k0"][0]["cf_text"] == "new"
        await asyncio.sleep(5.0)
        world.compact(keep_last=0)
        pause(world, None)

    play(story)


def test_what_was_delivered_for_one_pass_does_not_move_the_next() -> None:
    """A read that breaks at its end is made again, and says a second time how far it came."""

    async def main() -> None:
        world = World(1, partitions=1, chunks=False, limits=LIMITS)
        await ready(world)
        agent = EmbedAgent(world.workers["a"].builds[-1])
        ledger = PartitionLedger(0, live_position=9, replaying=True)
        ledger.begin_replay(0)
        first = Batch(Lane.REPLAY, ledger, [], [], 9, watermark=ledger.replay)
        agent.accept([first])
        assert ledger.replay is not None
        assert ledger.replay.position == 9
        ledger.begin_replay(0)
        agent.accept([first])
        assert ledger.replay.position == 0, "the records of the next pass would be taken for redeliveries"

    virtual_time.run(main())


def order_of(world: World, error: Exception | None) -> None:
    """The searched keys cannot be read, or can again."""

    async def order(_: int, index: KeyIndex, __: Sequence[TierName] | None) -> Passes:
        if error is not None:
            raise error
        return arrange(index, ())

    world.workers["a"].builds[-1].order = order


def test_a_replay_whose_order_cannot_be_read_now_says_so() -> None:
    async def story(world: World) -> None:
        put(world, "k", "x")
        await world.start_build()
        world.start_worker("a")
        await asyncio.sleep(0)
        order_of(world, Unreachable("simulated: the searched keys do not answer"))
        await asyncio.sleep(10.0)
        report = world.progress["docs/v1/0"]
        assert (report.status, report.reason) == ("waiting", "simulated: the searched keys do not answer")
        put(world, "l", "live goes on")
        await asyncio.sleep(5.0)
        assert "l" in await world.stored()
        order_of(world, None)
        await world.until_settled()
        assert world.progress["docs/v1/0"].status == "ready"

    play(story)


def test_a_replay_whose_order_cannot_be_read_at_all_stops_the_build() -> None:
    async def main() -> None:
        world = World(1, partitions=1, chunks=False, limits=LIMITS)
        world.to_stop = True
        put(world, "k", "x")
        await world.start_build()
        world.start_worker("a")
        await asyncio.sleep(0)
        order_of(world, ConfigurationError("the searched keys are no list", next_step="correct priority.keys"))
        await asyncio.sleep(10.0)
        assert world.failure == "the searched keys are no list"

    virtual_time.run(main())


def test_a_redrive_does_not_wait_for_a_replay_that_ends_in_a_sweep() -> None:
    async def story(world: World) -> None:
        for n in range(40):
            put(world, f"k{n}", REFUSED_BY_MODEL if n == 0 else "old")
        await world.start_build()
        world.weather.latency_s = 0.05
        world.start_worker("a")
        while len(await world.stored()) < 10:  # noqa: ASYNC110  simulated time
            await asyncio.sleep(0.01)
        world.kill_worker("a")
        world.search_for([f"k{n}" for n in range(8, 40)], 0.0)
        pause(world, "replay")
        world.start_worker("b")
        await asyncio.sleep(15.0)
        assert world.progress["docs/v1/0"].unsettled
        world.refusing = False
        world.ask("redrive")
        await asyncio.sleep(5.0)
        assert world.progress["docs/v1/0"].requests_done == 1
        pause(world, None)

    play(story)


# what the log has forgotten


def forgetting(
    story: Callable[[World, World], Awaitable[None]],
    *,
    documents: int = 6,
    chunks: bool = False,
    limits: Limits = LIMITS,
) -> tuple[World, World]:
    """A first version that serves and holds k0 to k5, of which the log has lost all but the last two; a second one,
    whose build has begun and has no worker yet. Both must equal all that was ever written."""

    async def main() -> tuple[World, World]:
        first = World(1, partitions=1, chunks=chunks, limits=limits)
        await first.start_build()
        first.start_worker("a")
        for n in range(documents):
            put(first, f"k{n}", f"text {n}|and more" if chunks else f"text {n}")
        await first.until_settled()
        first.forget(0, documents - 2)
        second = World(1, partitions=1, chunks=chunks, limits=limits, beside=first)
        await second.start_build()
        await story(first, second)
        for world in (first, second):
            await world.until_settled()
            await world.check()
        return first, second

    random.seed(1)
    return virtual_time.run(main())


def test_what_the_log_has_forgotten_comes_from_the_serving_space() -> None:
    async def story(_: World, second: World) -> None:
        second.start_worker("b")

    first, second = forgetting(story)
    found = virtual_time.run(second.sweep())
    assert (found.checked, found.kept, found.lost) == (2, 4, 0)
    assert second.counters().carried == 4
    assert (second.counters().total, second.counters().completed) == (6, 6)
    assert virtual_time.run(first.sweep()).kept == 4


def test_live_wins_over_what_is_carried() -> None:
    """An edit and a delete come while the first carried documents are on their way to the space."""

    async def story(_: World, second: World) -> None:
        second.start_worker("b")
        held, writes = asyncio.Event(), 0

        async def wait(verb: str, ids: Sequence[object]) -> Effect | None:
            nonlocal writes
            writes += 1
            if writes == 2:  # the first was of what the log still has
                held.set()
                await asyncio.sleep(1.5)
            return None

        second.workers["b"].network.on_write = wait
        await held.wait()
        put(second, "k1", "edited")
        second.produce("k2", None)

    _, second = forgetting(story)
    assert second.counters().carried == 4


def test_a_delete_whose_tombstone_is_gone_when_the_memory_is_rebuilt() -> None:
    """Live saw it before a restart; only the serving space can still tell, and that has come further."""

    async def story(first: World, second: World) -> None:
        second.state = second.state.model_copy(update={"paused": "replay"})
        second.start_worker("b")
        await asyncio.sleep(3.0)
        second.produce("k2", None)
        put(second, "k9", "later")
        await asyncio.sleep(3.0)
        await second.stop_worker("b")
        first.compact(keep_last=0, expire_tombstones=True)
        second.start_worker("c")
        second.state = second.state.model_copy(update={"paused": None})

    _, second = forgetting(story)
    assert second.counters().carried == 3


def test_a_serving_space_that_lags_is_waited_for() -> None:
    async def story(first: World, second: World) -> None:
        first.state = first.state.model_copy(update={"paused": "all"})
        await asyncio.sleep(1.0)
        second.produce("k2", None)
        put(second, "k3", "edited")
        second.state = second.state.model_copy(update={"paused": "replay"})
        second.start_worker("b")
        await asyncio.sleep(3.0)
        await second.stop_worker("b")
        second.state = second.state.model_copy(update={"paused": None})
        second.start_worker("c")  # its live lane begins behind the delete
        await asyncio.sleep(20.0)
        assert second.state.replayed == []
        assert "brought over" in second.progress["docs/v2/0"].reason
        first.state = first.state.model_copy(update={"paused": None})

    forgetting(story)


def test_a_carry_that_is_killed_begins_again() -> None:
    async def story(_: World, second: World) -> None:
        second.start_worker("b")
        writes = 0

        async def last(verb: str, ids: Sequence[object]) -> Effect | None:
            nonlocal writes
            writes += 1
            if writes == 3:
                second.kill_worker("b")
            return "late" if writes == 3 else None

        second.limits = Limits(batch=1, window=2, read_records=1, write_deadline_s=2.0, settle_s=4.0)
        second.workers["b"].network.on_write = last
        await asyncio.sleep(2.0)
        second.produce("k1", None)
        second.start_worker("c")

    forgetting(story)


def test_a_carried_write_of_unknown_outcome_is_mended_from_the_serving_space() -> None:
    """Where documents have chunks all of a doubtful one is written again, and here no record can say what."""

    async def story(_: World, second: World) -> None:
        second.start_worker("b")
        uuid, told = object_id("docs", "k1", 0), False

        async def unheard(verb: str, ids: Sequence[object]) -> Effect | None:
            nonlocal told
            if verb != "upsert" or uuid not in ids or told:
                return None
            told = True
            return "applied"

        second.workers["b"].network.on_write = unheard

    _, second = forgetting(story, chunks=True)
    assert second.counters().mended >= 1


def test_repair_removes_nothing_that_the_log_has_forgotten() -> None:
    async def story(first: World, second: World) -> None:
        first.ask("repair")
        second.start_worker("b")
        await second.until_settled()
        second.ask("repair")
        await asyncio.sleep(5.0)

    forgetting(story)


def test_repair_brings_over_what_was_not_there_to_carry() -> None:
    """Nothing served while the second version was built: what the log had forgotten is lost, named, and then had."""

    async def story(_: World, second: World) -> None:
        second.beside_serves = False
        second.start_worker("b")
        await second.until_settled()
        found = await second.sweep()
        assert (found.clean, found.kept, found.lost) == (True, 0, 4)
        assert found.examples["lost"] == ["k0", "k1", "k2", "k3"]
        second.beside_serves = True
        second.ask("repair")
        await asyncio.sleep(10.0)
        put(second, "k3", "edited since")

    forgetting(story)


def test_a_serving_version_that_has_stopped_gives_nothing() -> None:
    """It may hold what was deleted since. What it alone has is counted as lost, and does not hold up the build."""

    async def story(first: World, second: World) -> None:
        await first.stop_worker("a")
        first.state = first.state.model_copy(update={"failure": Failure(cause="its space is gone")})
        second.start_worker("b")
        await second.until_settled()
        assert (await second.sweep()).lost == 4
        first.state = first.state.model_copy(update={"failure": None})
        first.start_worker("c")
        await first.until_settled()
        second.ask("repair")
        await asyncio.sleep(10.0)

    forgetting(story)


def test_what_goes_from_the_log_under_a_held_replay() -> None:
    """It was counted by the plan, and is gone when its turn comes."""

    async def story(first: World, second: World) -> None:
        for n in range(20, 40):
            put(second, f"k{n}", f"text {n}")
        await first.until_settled()
        await second.abort_build()
        second.state = second.state.model_copy(update={"paused": "replay"})
        second.start_worker("b")
        await asyncio.sleep(5.0)
        assert second.counters().total == 22
        first.forget(0, 26)
        second.state = second.state.model_copy(update={"paused": None})

    _, second = forgetting(story)
    assert virtual_time.run(second.sweep()).kept == 26


def test_a_delete_that_live_has_seen_and_the_serving_space_has_not() -> None:
    """It comes while others are brought over; its document is read from there afterwards, and is not written."""

    async def story(first: World, second: World) -> None:
        second.start_worker("b")
        held, writes = asyncio.Event(), 0

        async def wait(_: str, __: Sequence[object]) -> Effect | None:
            nonlocal writes
            writes += 1
            if writes == 3:  # the first two were of what the log still has
                held.set()
                await asyncio.sleep(1.5)
            return None

        second.workers["b"].network.on_write = wait
        await held.wait()
        first.state = first.state.model_copy(update={"paused": "all"})
        await asyncio.sleep(0.5)
        second.produce("k11", None)
        await asyncio.sleep(15.0)
        assert second.state.replayed == [0]
        first.state = first.state.model_copy(update={"paused": None})

    small = Limits(batch=1, window=2, read_records=1, write_deadline_s=2.0, settle_s=4.0)
    _, second = forgetting(story, documents=14, limits=small)
    assert second.counters().suppressed_by_live_delete == 1


def test_a_carry_is_not_done_before_its_writes_are() -> None:
    """A worker dies with a carried document on its way, which never arrives: the next one brings it over."""

    async def story(_: World, second: World) -> None:
        second.start_worker("b")
        held, writes = asyncio.Event(), 0

        async def lost(_: str, __: Sequence[object]) -> Effect | None:
            nonlocal writes
            writes += 1
            if writes != 2:
                return None
            held.set()
            await asyncio.sleep(1.5)
            return "lost"

        second.workers["b"].network.on_write = lost
        await held.wait()
        await asyncio.sleep(1.0)
        assert second.state.replayed == []
        second.kill_worker("b")
        second.start_worker("c")

    forgetting(story)


@pytest.mark.parametrize(
    ("verb", "error", "lost"),
    [
        ("scan", AccessDenied("Weaviate refuses access (403)", next_step="check weaviate.api_key"), 0),
        ("scan", NotFound("Weaviate does not have it", next_step="`crossfade status` lists the spaces there are"), 0),
        ("scan", IdentityChanged("the space Docs_v1_1_x is gone", next_step="see `crossfade status`"), 0),
        ("properties", ConfigurationError("Weaviate refuses the request (422)", next_step="correct its schema"), 4),
    ],
)
def test_a_fault_of_the_serving_space_does_not_stop_the_build(verb: str, error: Terminal, lost: int) -> None:
    """The replay and live go on without it, the fault is named, and what is still due comes over once it is gone; by
    whoever owns the partition then."""

    async def story(_: World, second: World) -> None:
        second.beside_fault = verb, error
        second.start_worker("b")
        put(second, "k9", "live")
        await second.until_settled()
        assert {"k4", "k5", "k9"} == (await second.stored()).keys()
        report = second.progress["docs/v2/0"]
        assert report.status == "ready"
        assert "no longer has are not brought over from docs/v1" in report.reason
        assert error.message in report.reason
        assert error.next_step in report.reason
        found = await second.sweep()
        assert (found.clean, found.lost) == (True, lost)
        assert found.unread == ("" if lost else f"{error.message}; next: {error.next_step}")
        put(second, "k3", "edited since")
        await asyncio.sleep(100.0)
        await second.stop_worker("b")
        second.beside_fault = None
        second.start_worker("c")
        await asyncio.sleep(5.0)
        assert second.progress["docs/v2/0"].reason == ""

    _, second = forgetting(story)
    assert second.counters().total == second.counters().completed


def test_a_serving_group_that_may_not_be_looked_at_does_not_stop_the_build() -> None:
    async def story(first: World, second: World) -> None:
        second.start_worker("b")
        kafka = second.workers["b"].runner._kafka
        committed = kafka.committed

        async def refused(group: str, topic: str) -> Mapping[int, Commit]:
            if group == first.live_group:
                raise AccessDenied("the broker refuses the group", next_step="grant DESCRIBE on it")
            return await committed(group, topic)

        kafka.committed = refused  # type: ignore[method-assign]
        put(second, "k9", "live")
        await second.until_settled()
        assert "the broker refuses the group; next: grant DESCRIBE on it" in second.progress["docs/v2/0"].reason
        kafka.committed = committed  # type: ignore[method-assign]
        await asyncio.sleep(60.0)

    forgetting(story)


def test_what_is_due_from_the_serving_space_is_known_after_a_kill() -> None:
    """It is in the commits before the replay is called complete."""

    async def story(_: World, second: World) -> None:
        second.beside_fault = "scan", AccessDenied("Weaviate refuses access (403)")
        second.start_worker("b")
        while second.state.replayed != [0]:  # noqa: ASYNC110  simulated time
            await asyncio.sleep(0.01)
        second.kill_worker("b")
        second.beside_fault = None
        second.start_worker("c")
        await asyncio.sleep(20.0)

    forgetting(story)


def test_a_serving_space_that_fails_on_the_way_leaves_the_rest_due() -> None:
    """What had been delivered is resolved before the memory of what live has seen is given up."""

    async def story(_: World, second: World) -> None:
        second.start_worker("b")
        carried = on_their_way = 0

        async def then_refused(_: str, ids: Sequence[object]) -> Effect | None:
            nonlocal carried, on_their_way
            carried += 1
            if carried == 3:  # the first two were of what the log still has
                second.beside_fault = "properties", AccessDenied("Weaviate refuses access (403)")
            if carried >= 3:
                on_their_way += 1
                await asyncio.sleep(1.9)
                on_their_way -= 1
            return None

        second.workers["b"].network.on_write = then_refused
        while second.beside_fault is None:  # noqa: ASYNC110  simulated time
            await asyncio.sleep(0.01)
        second.produce("k2", None)
        while second.state.replayed != [0]:  # noqa: ASYNC110  simulated time
            await asyncio.sleep(0.01)
        assert not on_their_way
        await second.until_settled()
        assert 3 <= len(await second.stored()) < 29
        second.beside_fault = None
        await asyncio.sleep(40.0)

    wide = Limits(batch=1, together=1, window=50, read_records=1, write_deadline_s=2.0, settle_s=4.0)
    forgetting(story, documents=30, limits=wide)


def test_what_the_model_refuses_is_asked_once_however_often_the_rest_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page of the serving space cannot be read, so what is due is tried again and again; a person's repair asks for
    the refused one too."""
    pages = pages_of

    async def then_broken(old: OldSpace) -> AsyncIterator[list[Head]]:
        async for page in pages(old):
            yield page
        raise OldSpaceFault(old.state, "somebody else's object stands in it", "find out who writes there")

    async def story(_: World, second: World) -> None:
        monkeypatch.setattr("tests.merge.world.REFUSED_BY_MODEL", "text 1")
        monkeypatch.setattr(mend, "pages_of", then_broken)
        second.refusing = True
        second.beside_fault = "scan", AccessDenied("Weaviate refuses access (403)")
        second.start_worker("b")
        await second.until_settled()
        second.beside_fault = None
        put(second, "k9", "live")
        await asyncio.sleep(600.0)
        assert (await second.stored()).keys() == {"k0", "k2", "k3", "k4", "k5", "k9"}
        assert second.progress["docs/v2/0"].reason.count("somebody else's object") == 1
        assert len(second.dead_letters) == 1
        monkeypatch.setattr(mend, "pages_of", pages)
        second.refusing = False
        second.ask("repair")
        await asyncio.sleep(30.0)
        assert second.progress["docs/v2/0"].reason == ""

    forgetting(story)


def _one_late_delete(second: World) -> None:
    """The next delete of worker b gets no answer, and lands 3.5 s later."""
    network = second.workers["b"].network
    network.land_after_s = 3.5
    late: list[Effect] = ["late"]

    async def fate(verb: str, _: object) -> Effect | None:
        return late.pop() if late and verb in ("erase", "delete") else None

    network.on_write = fate


def test_a_doubtful_document_whose_only_holder_cannot_be_read_comes_over_later() -> None:
    """It is overwritten by a late delete while its owner goes on, and the log has forgotten it."""

    async def main() -> None:
        first, second = await _both_ready()
        _one_late_delete(second)
        second.produce("k1", None)
        await asyncio.sleep(1.5)
        put(second, "k1", "again")
        await asyncio.sleep(1.5)
        await first.until_settled()
        first.forget(0, second.kafka.topic(TOPIC).partition(0).end)
        second.beside_fault = "properties", AccessDenied("Weaviate refuses access (403)")
        await asyncio.sleep(40.0)
        assert "k1" not in await second.stored()
        assert "Weaviate refuses access (403)" in second.progress["docs/v2/0"].reason
        second.beside_fault = None
        await asyncio.sleep(60.0)
        await second.until_settled()
        await second.check()

    random.seed(1)
    virtual_time.run(main())


def test_a_serving_version_that_goes_on_gives_what_is_due() -> None:
    async def story(first: World, second: World) -> None:
        first.state = first.state.model_copy(
            update={"failure": Failure(cause="its disk was full", next_step="free it")}
        )
        second.start_worker("b")
        await second.until_settled()
        assert "it has stopped: its disk was full; next: free it" in second.progress["docs/v2/0"].reason
        first.state = first.state.model_copy(update={"failure": None})
        await asyncio.sleep(40.0)
        assert second.counters().mended == 4

    forgetting(story)


def test_an_automatic_sweep_brings_back_nothing_whose_delete_the_serving_version_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of that delete nobody has a trace any more. It is counted; a person may ask for it."""
    swept = sweeps(monkeypatch)

    async def main() -> None:
        first, second = await _both_ready()
        await second.store.space(second.state.space).delete([object_id("docs", "k1", 0)])
        pause(second, "all")
        await asyncio.sleep(2.0)
        put(second, "k9", "later")
        await _a_long_time(second)
        pause(second, None)
        await asyncio.sleep(30.0)
        await second.until_settled()
        assert swept, "nothing was swept"
        assert not any(swept)
        found = await second.sweep()
        assert (found.clean, found.lost, found.examples.get("lost")) == (True, 1, ["k1"])
        assert "k1" not in await second.stored()
        second.ask("repair")
        await asyncio.sleep(10.0)
        assert (await second.sweep()).lost == 0
        assert "k1" in await first.stored()

    random.seed(1)
    virtual_time.run(main())


def sweeps(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of every worker from now on, each with whether somebody asked for it."""
    swept: list[bool] = []
    sweep = Mender.sweep

    async def counted(self: Mender, ledger: PartitionLedger, *, asked: bool = False) -> int:
        swept.append(asked)
        return await sweep(self, ledger, asked=asked)

    monkeypatch.setattr(Mender, "sweep", counted)
    return swept


@pytest.mark.parametrize("forgets", [False, True])
def test_doubts_that_are_handed_on_are_swept_for_once(monkeypatch: pytest.MonkeyPatch, forgets: bool) -> None:
    """Also where nothing serves, and where the log has lost nothing: then nothing is to be brought over."""
    swept = sweeps(monkeypatch)

    async def story(world: World) -> None:
        await late_then_newer(world)()
        await world.stop_worker("a")
        if forgets:
            world.forget(0, 1)
        world.start_worker("b")
        await asyncio.sleep(100.0)

    play(story)
    assert swept == [False]


async def _both_ready(*, chunks: bool = False) -> tuple[World, World]:
    """As for `forgetting`, and the second version has what the log has forgotten."""
    first = World(1, partitions=1, chunks=chunks, limits=LIMITS)
    await first.start_build()
    first.start_worker("a")
    for n in range(6):
        put(first, f"k{n}", f"text {n}|and more" if chunks else f"text {n}")
    await first.until_settled()
    first.forget(0, 4)
    second = World(1, partitions=1, chunks=chunks, limits=LIMITS, beside=first)
    await second.start_build()
    second.start_worker("b")
    await second.until_settled()
    await second.check()
    return first, second


def test_a_doubtful_document_that_the_log_forgets_before_it_is_read_back() -> None:
    """A late delete takes it away after its owner has left; only a sweep finds that, and only the serving space has
    it: a sweep for the sake of doubts brings over, though nobody has asked."""

    async def main() -> None:
        first, second = await _both_ready()
        _one_late_delete(second)
        second.produce("k1", None)
        await asyncio.sleep(1.5)
        assert second.store.late
        put(second, "k1", "again")
        await asyncio.sleep(1.0)
        await second.stop_worker("b")
        await first.until_settled()
        first.forget(0, second.kafka.topic(TOPIC).partition(0).end)
        await asyncio.sleep(3.0)
        assert not second.store.late
        assert "k1" not in await second.stored()
        second.start_worker("c")
        await second.until_settled()
        await second.check()
        assert (await second.stored())["k1"][0]["cf_text"] == "again"

    random.seed(1)
    virtual_time.run(main())


@pytest.mark.parametrize("chunk", [0, 1])
def test_a_forgotten_document_without_one_of_its_chunks_is_lost_and_brought_over_whole(chunk: int) -> None:
    async def main() -> None:
        _, second = await _both_ready(chunks=True)
        await second.store.space(second.state.space).delete([object_id("docs", "k1", chunk)])
        found = await second.sweep()
        assert (found.kept, found.torn, found.lost, found.examples.get("lost")) == (3, 1, 1, ["k1"])
        second.ask("repair")
        await asyncio.sleep(10.0)
        await second.until_settled()
        await second.check()
        found = await second.sweep()
        assert (found.kept, found.torn, found.lost) == (4, 0, 0)

    random.seed(1)
    virtual_time.run(main())


@pytest.mark.parametrize(
    ("fault", "history"),
    [
        ("2-forgotten", test_what_goes_from_the_log_under_a_held_replay),
        ("5-carry", test_a_delete_that_live_has_seen_and_the_serving_space_has_not),
        ("7-resolved", test_a_replay_is_not_done_before_its_writes_are),
        ("7-carry", test_a_carry_is_not_done_before_its_writes_are),
        ("8-forgotten", test_what_the_log_has_forgotten_comes_from_the_serving_space),
        ("7-owed", test_what_is_due_from_the_serving_space_is_known_after_a_kill),
        ("8-torn", lambda: test_a_forgotten_document_without_one_of_its_chunks_is_lost_and_brought_over_whole(1)),
        ("11-forgotten", test_a_carried_write_of_unknown_outcome_is_mended_from_the_serving_space),
        ("11-lacks", test_a_doubtful_document_that_the_log_forgets_before_it_is_read_back),
    ],
)
def test_a_broken_rule_shows_in_these(fault: str, history: Callable[[], None]) -> None:
    with broken.break_rule(fault), pytest.raises(AssertionError):
        history()
