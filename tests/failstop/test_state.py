"""The state topic lost: nothing begins from nothing where something was built, and the worker says why it stopped."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from tests.badinput.speak import command, crossfade
from tests.conftest import ROOT, MakeTopic
from tests.deployment import COLLECTION, Deployment
from tests.failstop.conftest import LARGE, SMALL, Deploy
from tests.failstop.steps import documents, goes_on, running, stopped

LOST = "holds nothing, but there are"


async def restore(d: Deployment, records: list[tuple[bytes, bytes]]) -> None:
    for key, value in records:
        await d.out.sink.send(d.out.names.state, key, value)


async def kept(d: Deployment) -> list[tuple[bytes, bytes]]:
    """A copy of the state topic, as an operator's backup would hold it."""
    end = (await d.out.kafka.bounds(d.out.names.state))[0].stable
    return [
        (record.key, record.value)
        async for batch in d.out.kafka.read_range(d.out.names.state, 0, 0, end)
        for record in batch.records
        if record.key is not None and record.value is not None
    ]


async def ended(d: Deployment, number: int) -> tuple[int, str]:
    """Status and log of a worker that ends by itself."""
    status = await asyncio.to_thread(d.workers[number].wait, 120)
    return status, (d.folder / f"worker-{number}.log").read_text()


async def test_the_state_topic_deleted_while_a_worker_runs(deploy: Deploy) -> None:
    async with deploy() as d:
        await running(d, v1=SMALL)
        before = await d.stored("v1")
        copy = await kept(d)
        await d.out.topics.delete_topic(d.out.names.state)
        status, said = await ended(d, 0)
        assert status == 1
        assert f"topic {d.out.names.state} was deleted while it was followed" in said
        assert "next: restore it from a copy" in said
        # started again it refuses, whatever the topic is now: absent, or made anew and empty
        for _ in range(2):
            said = await crossfade(d, "worker")
            assert "-> 1\n" in said
            assert f"{d.out.names.state} {LOST} spaces {d.build('v1').space} and consumer groups" in said
            assert "next: restore the state topic from a copy" in said
        assert await d.stored("v1") == before
        # the step it names helps
        await restore(d, copy)
        d.start_worker()
        await d.produce(documents(20, "after the loss"))
        await d.until_live("v1")
        assert await d.stored("v1") == await d.oracle()


async def test_an_empty_state_where_only_consumer_groups_are_left(deploy: Deploy) -> None:
    async with deploy() as d:
        await running(d, v1=SMALL)
        group = d.out.names.group(COLLECTION, "v1", d.build("v1").epoch, "live")
        space = d.build("v1").space
        await d.end_worker(d.workers[0])
        await d.out.topics.delete_topic(d.out.names.state)
        await d.out.store.drop_space(space)
        said = await crossfade(d, "worker")
        assert "-> 1\n" in said
        assert f"{LOST} consumer groups {group}" in said


async def test_an_empty_state_where_another_deployments_spaces_are(deploy: Deploy) -> None:
    """One Weaviate and one alias, two prefixes: the second never begins."""
    async with deploy() as first:
        await running(first, v1=SMALL)
        alias = first.out.settings.collection(COLLECTION).alias
        async with deploy(alias=alias, folder="b") as second:
            second.add_version("v1", SMALL)
            said = await crossfade(second, "worker")
            assert "-> 1\n" in said
            assert f"{LOST} spaces {first.build('v1').space}" in said
            assert second.state.builds == {}
            await goes_on(first, "v1", "second")
            # only versions of the first deployment are dropped with it
            assert first.build("v1").space in await first.out.store.spaces()


async def test_a_new_deployment_beside_others_begins(deploy: Deploy) -> None:
    """An alias that is the beginning of another one, a group of another prefix: no reason to refuse."""
    async with deploy() as first:
        await running(first, v1=SMALL)
        alias = first.out.settings.collection(COLLECTION).alias
        async with deploy(prefix=first.out.names.prefix[:-1], alias=alias[:-1], folder="b") as second:
            await running(second, v1=LARGE)
            await goes_on(second, "v1", "second")
            await goes_on(first, "v1", "second")


@asynccontextmanager
async def another_worker(config: Path) -> AsyncIterator[Callable[[str], Awaitable[None]]]:
    """A worker with a configuration of its own; yields a wait for words in its log."""
    process = await asyncio.create_subprocess_exec(
        *command(config, "worker"), cwd=ROOT, stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL
    )
    said: list[str] = []

    async def says(words: str) -> None:
        assert process.stderr is not None
        async with asyncio.timeout(60):
            while not any(words in line for line in said):
                said.append((await process.stderr.readline()).decode())

    try:
        yield says
    finally:
        process.terminate()
        await process.communicate()


async def test_two_deployments_with_one_prefix(deploy: Deploy, make_topic: MakeTopic, tmp_path: Path) -> None:
    """A worker of the second hosts nothing of the first, starts nothing, and does not stop what others write."""
    async with deploy() as d:
        await running(d, v1=SMALL)
        other_topic = make_topic()
        other = json.loads(json.dumps(d.raw))
        other["collections"][COLLECTION] |= {"topic": other_topic, "versions": {"v1": SMALL, "v2": LARGE}}
        path = tmp_path / "other.yaml"
        path.write_text(json.dumps(other))
        mixed = f"docs/v1 is built from topic {d.topic}, the configuration says {other_topic}: two deployments"
        async with another_worker(path) as says:
            await says(mixed)
            await says("docs/v2 was not started")
            await goes_on(d, "v1", "second")
            # once nobody else hosts it, the reason stands where every worker and the command line see it
            await d.end_worker(d.workers[0])
            await stopped(d, "v1", "two deployments with one kafka.topic_prefix", "crossfade resume docs v1")
            outcome = await d.ask("start", "v2")
            assert not outcome.ok
            assert f"the topic of docs is {d.topic}, the configuration says {other_topic}" in outcome.message
        d.start_worker()
        assert (await d.ask("resume", "v1")).ok
        await goes_on(d, "v1", "third")
        assert set(d.state.builds) == {"docs/v1"}


async def test_a_worker_that_looks_at_another_weaviate(
    deploy: Deploy, other_weaviate: tuple[str, str], tmp_path: Path
) -> None:
    """It says so and hosts nothing, instead of stopping the workers that are right."""
    async with deploy() as d:
        await running(d, v1=SMALL)
        other = json.loads(json.dumps(d.raw))
        other["weaviate"] |= {"http": f"http://{other_weaviate[0]}", "grpc": other_weaviate[1]}
        path = tmp_path / "other.yaml"
        path.write_text(json.dumps(other))
        async with another_worker(path) as says:
            await says("docs/v1 is not hosted here, while others write it: the space")
            await goes_on(d, "v1", "second")
            await d.end_worker(d.workers[0])
            await stopped(d, "v1", "or this is not the Weaviate it was built in", "crossfade resume docs v1")
        d.start_worker()
        assert (await d.ask("resume", "v1")).ok
        await goes_on(d, "v1", "third")
