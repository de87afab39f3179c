"""Schedules that once broke the merge core, or would break it if one rule of DESIGN.md section 3 were left out.

Each is the shortest history that shows it; the random ones beside it find what nobody thought of.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal

from connectors.errors import ConfigurationError, Unreachable
from connectors.memory.store import Effect
from streams.build import Batch, Limits
from streams.config_operation import TierName
from streams.documents import Put, key_digest
from streams.embed_agent import EmbedAgent
from streams.key_index import Expected, KeyIndex
from streams.mend import Mender
from streams.ordering import Event, Lane, PartitionLedger
from streams.tiers import Passes, arrange
from tests.merge import virtual_time
from tests.merge.world import NAMES, REFUSED_BY_MODEL, TOPIC, World
from tests.pools import ENDPOINT_AT_ONCE

LIMITS = Limits(batch=8, window=16, read_records=8, write_deadline_s=2.0, settle_s=4.0)


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
        assert counters.stale >= 40

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
