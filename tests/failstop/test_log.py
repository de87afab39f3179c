"""The documents topic is no longer what a build began with: it stops, names the cause, and writes nothing more."""

from __future__ import annotations

import asyncio

from confluent_kafka import ConsumerGroupTopicPartitions, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions  # type: ignore[attr-defined]  # imported there without `as`

from connectors.kafka.headers import read_headed
from connectors.services import Addresses
from streams import config
from streams.wiring import kafka_settings
from tests.badinput.speak import crossfade
from tests.conftest import COMPACTED, MakeTopic
from tests.deployment import COLLECTION, Deployment
from tests.failstop.conftest import LARGE, SMALL, Deploy
from tests.failstop.steps import documents, goes_on, running, stopped

ABORT = f"crossfade abort {COLLECTION} v1 --confirm v1, then crossfade start {COLLECTION} v1"


WITH_RETENTION = {"cleanup.policy": "compact,delete"}  # of a topic that is only compacted nobody can remove records


async def remove_below(admin: AdminClient, topic: str, offset: int) -> None:
    where = TopicPartition(topic, 0, offset)
    await asyncio.to_thread(lambda: admin.delete_records([where])[where].result(timeout=30))


async def recreate(d: Deployment, admin: AdminClient, partitions: int) -> None:
    await d.out.topics.delete_topic(d.topic)
    await d.out.topics.ensure_topic(d.topic, partitions, COMPACTED)


async def test_a_topic_created_anew_while_a_worker_runs(deploy: Deploy, admin: AdminClient) -> None:
    async with deploy() as d:
        await running(d, v1=SMALL, v2=LARGE)
        before = await d.stored("v1")
        await recreate(d, admin, 1)
        await d.produce(documents(30, "of another topic"))
        for version in ("v1", "v2"):
            await stopped(
                d,
                version,
                f"topic {d.topic} (was deleted and created anew|of docs/{version} is gone)",
                f"crossfade abort docs {version}",
            )
        assert await d.stored("v1") == before
        # told to go on, it stops again: only a new build can read this topic
        assert (await d.ask("resume", "v1")).ok
        await d.state.wait_for(lambda _: d.build("v1").failure is None)
        await stopped(d, "v1", f"topic {d.topic} was deleted and created anew", ABORT)


async def test_a_topic_created_anew_while_no_worker_runs(deploy: Deploy, admin: AdminClient) -> None:
    async with deploy() as d:
        await running(d, v1=SMALL)
        before = await d.stored("v1")
        await d.end_worker(d.workers[0])
        await recreate(d, admin, 1)
        await d.produce(documents(30, "of another topic"))
        d.start_worker()
        await stopped(d, "v1", f"topic {d.topic} was deleted and created anew", ABORT)
        assert await d.stored("v1") == before
        # the commands it names do help
        assert (await d.ask("abort", "v1", confirm="v1")).ok
        assert (await d.ask("start", "v1")).ok
        await d.until_stage("v1", "ready")
        await goes_on(d, "v1", "of the new topic")


async def test_partitions_added(deploy: Deploy, admin: AdminClient) -> None:
    async with deploy(partitions=2) as d:
        await running(d, v1=SMALL)
        admin.create_partitions([NewPartitions(d.topic, 3)])[d.topic].result(timeout=30)
        await stopped(d, "v1", "has 3 partitions, 2 when docs/v1 began", ABORT)


async def test_records_removed_before_they_were_read(deploy: Deploy, admin: AdminClient, make_topic: MakeTopic) -> None:
    async with deploy(topic=make_topic(config=WITH_RETENTION)) as d:
        await running(d, v1=SMALL)
        before = await d.stored("v1")
        await d.end_worker(d.workers[0])
        await d.produce(documents(20, "never read"))
        await remove_below(admin, d.topic, 30)
        d.start_worker()
        await stopped(d, "v1", r"begins at 30, but docs/v1 has still to read from 20: records were removed", ABORT)
        assert await d.stored("v1") == before


async def test_records_removed_while_everything_is_paused(
    deploy: Deploy, admin: AdminClient, make_topic: MakeTopic
) -> None:
    async with deploy(topic=make_topic(config=WITH_RETENTION)) as d:
        await running(d, v1=SMALL)
        assert (await d.ask("pause", "v1", all=True)).ok
        await d.state.wait_for(lambda _: d.build("v1").paused == "all")
        await d.until(lambda: all(r.status == "paused" for r in d.progress.partitions(d.build("v1"))))
        await d.produce(documents(20, "never read"))
        end = (await d.out.kafka.bounds(d.topic))[0].stable
        await remove_below(admin, d.topic, end)
        await stopped(d, "v1", f"begins at {end}, .* records were removed before they were read", ABORT)


async def test_history_removed_below_what_was_read_stops_nothing(
    deploy: Deploy, admin: AdminClient, make_topic: MakeTopic
) -> None:
    async with deploy(topic=make_topic(config=WITH_RETENTION)) as d:
        await running(d, v1=SMALL)
        await d.produce(documents(20, "second"))
        await d.until_live("v1")
        await remove_below(admin, d.topic, 20)
        await goes_on(d, "v1", "third")


async def test_a_position_beyond_the_end(deploy: Deploy, admin: AdminClient) -> None:
    """What a log that lost its end looks like: the group has committed more than there is."""
    async with deploy() as d:
        await running(d, v1=SMALL)
        await d.end_worker(d.workers[0])
        group = d.out.names.group(COLLECTION, "v1", d.build("v1").epoch, "live")
        offsets = ConsumerGroupTopicPartitions(group, [TopicPartition(d.topic, 0, 1_000)])
        await asyncio.to_thread(lambda: admin.alter_consumer_group_offsets([offsets])[group].result(timeout=30))
        d.start_worker()
        await stopped(d, "v1", r"ends at 20, but docs/v1 has read up to 1000: the log was truncated", ABORT)


async def test_a_batch_that_cannot_be_unpacked(deploy: Deploy, services: Addresses) -> None:
    """4.6 KB on the wire, 150 MB inside: above what a client unpacks. It stops by name instead of trying for ever."""
    async with deploy() as d:
        await running(d, v1=SMALL)
        producer = Producer(
            {"bootstrap.servers": services.kafka, "compression.type": "zstd", "message.max.bytes": 1_000_000_000}
        )
        producer.produce(d.topic, b'{"text": "' + b"a" * 150_000_000 + b'"}', b"bomb")
        await asyncio.to_thread(producer.flush, 60)
        await stopped(d, "v1", r"partition 0 failed: Decompression .* of message at 20", "receive.message.max.bytes")
        # the step it names helps: unpacked, the record is only too large, and the partition goes on
        d.raw["kafka"]["client"] = {"receive.message.max.bytes": 400_000_000}  # type: ignore[index,call-overload]
        d._write()
        await d.end_worker(d.workers[0])
        d.start_worker()
        assert (await d.ask("resume", "v1")).ok
        await d.produce(documents(20, "after the bomb"))
        await d.until_live("v1")
        settings = kafka_settings(config.load(d.config_path))
        dead = [item async for item in read_headed(settings, d.out.names.dead_letters)]
        assert [(item.headers["cause"], item.headers["offset"]) for item in dead] == [("record_too_large", "20")]
        assert len(dead[0].record.value or b"") == 150_000_012
        assert "held 1" in await crossfade(d, "verify", COLLECTION, "v1")


async def test_history_removed_under_a_held_replay(deploy: Deploy, admin: AdminClient, make_topic: MakeTopic) -> None:
    """Nothing serves that could still hold it: the new space has what the log has, and what was replayed before, which
    is older than the log and no fault of either space."""
    async with deploy(topic=make_topic(config=WITH_RETENTION)) as d:
        await running(d, v1=SMALL)
        d.add_version("v2", {**LARGE, "replay_rate": 1})
        await d.until(lambda: d.counters("v2").completed >= 3 if "docs/v2" in d.state.builds else False)
        assert (await d.ask("pause", "v2")).ok
        await d.until(lambda: all(r.status == "paused" for r in d.progress.partitions(d.build("v2"))))
        await remove_below(admin, d.topic, 15)
        assert (await d.ask("set", "v2", replay_rate=0)).ok
        assert (await d.ask("resume", "v2")).ok
        await d.until_stage("v2", "ready")
        oracle = await d.oracle()
        assert set(oracle) == {f"k{n}" for n in range(15, 20)}
        sweep = await d.verify("v2")
        assert (sweep.missing, sweep.stale, sweep.extra) == (0, 0, 0)
        assert sweep.kept == len(set(await d.stored("v2")) - set(oracle))
        found = await d.verify("v1")
        assert (found.clean, found.kept) == (True, 15)
