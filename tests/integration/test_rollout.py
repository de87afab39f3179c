"""A rollout over two real `crossfade serve` and a worker: raised by what both have counted, ended in both by a bound,
and as it was after each of them has been started again.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from pydantic import JsonValue

from connectors.services import Addresses
from streams.journal import entries_of
from streams.search.rollout import is_in
from streams.search.sampled import read_sample
from streams.state import BuildState, RolloutState
from tests.conftest import MakeTopic, Unique
from tests.deployment import Deployment, Event, deployed
from tests.serving import Curl, listens, serving

ENOUGH = 16
ROUTES: dict[str, JsonValue] = {
    "default": "rollout",
    "rollout": {
        "share": 0.3,
        "automatic": True,
        "steps": [0.3, 0.6, 1.0],
        "every_s": 1,
        "min_queries": ENOUGH,
        "max_latency_ratio": 1000,
    },
}
COLLECTION: dict[str, JsonValue] = {"text": {"fields": ["text"]}, "properties": {"kind": "keyword"}, "routes": ROUTES}
V1: dict[str, JsonValue] = {"embedder": {"provider": "hashing", "word_ngrams": None}, "dimensions": 64}
V2: dict[str, JsonValue] = {"embedder": {"provider": "hashing"}, "dimensions": 256}
DOCUMENTS = 40


@pytest.fixture
async def d(services: Addresses, tmp_path: Path, unique: Unique, make_topic: MakeTopic) -> AsyncIterator[Deployment]:
    async with deployed(services, tmp_path, unique("ro"), make_topic(1), unique("Rolled"), COLLECTION) as deployment:
        listens(deployment)
        deployment.add_version("v1", V1)
        events: list[Event] = [(f"k{i}", {"text": f"matter number {i}", "kind": "a"}, None) for i in range(DOCUMENTS)]
        await deployment.produce(events)
        yield deployment


def inside(d: Deployment, share: float, count: int) -> list[str]:
    build = d.build("v2")
    callers = (f"caller {number}" for number in range(10_000))
    return [caller for caller in callers if is_in(caller, f"{build.key}/{build.epoch}", share)][:count]


async def asked(curl: Curl, caller: str, *, nothing: bool = False) -> str:
    """The version that answered."""
    body = {"query": "matter number 7", "caller": caller, **({"filter": {"kind": "none"}} if nothing else {})}
    status, found = await curl("POST", "/collections/docs/search", body)
    assert status == 200, found
    assert bool(found["hits"]) != nothing
    return str(found["version"])


async def until_seen(curl: Curl, stands: RolloutState) -> None:
    """This server goes by the step that stands."""
    async with asyncio.timeout(30):
        while True:
            _, found = await curl("GET", "/collections/docs/rollout")
            if found["rollout"]["step"] == stands.step:
                break
            await asyncio.sleep(0.1)
    assert (found["rollout"]["share"], found["rollout"]["stopped"]) == (stands.share, stands.stopped or None)


def stands(d: Deployment) -> RolloutState:
    now = d.build("v2").rollout
    assert now is not None
    return now


def at_share(share: float) -> Callable[[BuildState], bool]:
    return lambda build: build.rollout is not None and build.rollout.share == share


async def end(process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    process.send_signal(how)
    await asyncio.to_thread(process.wait, 30)


async def test_one_rollout_for_all_servers(d: Deployment) -> None:
    worker = d.start_worker()
    await d.until_live_and_settled("v1")
    assert (await d.ask("cutover", "v1")).ok
    d.add_version("v2", V2)
    await d.until_state("v2", lambda build: build.rollout is not None)
    assert stands(d).share == 0.3

    async with AsyncExitStack() as stack:
        one, first = await stack.enter_async_context(serving(d))
        other, second = await stack.enter_async_context(serving(d, "-b"))

        # raised by what both have counted: neither has as many queries as a step needs
        few = inside(d, 0.3, ENOUGH - 6)
        for curl in (one, other):
            for caller in few:
                assert await asked(curl, caller) == "v2"
        await d.until_state("v2", lambda build: build.rollout is not None and build.rollout.step == 2)
        raised = stands(d)
        assert (raised.share, raised.stopped) == (0.6, "")
        for curl in (one, other):
            await until_seen(curl, raised)
        callers = [f"caller {number}" for number in range(9)]
        answered = [[await asked(curl, caller) for caller in callers] for curl in (one, other)]
        assert answered[0] == answered[1]
        assert set(answered[0]) == {"v1", "v2"}

        # a server and the worker begin again, the one told to, the other killed: the step stands
        await end(first, signal.SIGTERM)
        await d.end_worker(worker, signal.SIGKILL)
        worker = d.start_worker()
        one, first = await stack.enter_async_context(serving(d))
        await until_seen(one, raised)

        # a failed bound, seen by one server alone, sends all back to nobody in both
        for caller in inside(d, 0.6, ENOUGH):
            await asked(other, caller, nothing=True)
        await d.until_state("v2", lambda build: build.rollout is not None and build.rollout.step == 3)
        fallen = stands(d)
        assert fallen.share == 0.0
        assert "found nothing, above max_zero_results" in fallen.stopped
        for curl in (one, other):
            await until_seen(curl, fallen)
            assert {await asked(curl, caller) for caller in few} == {"v1"}

        # and no restart forgets it
        await end(first, signal.SIGKILL)
        await end(second, signal.SIGTERM)
        await d.end_worker(worker)
        d.start_worker()
        one, first = await stack.enter_async_context(serving(d))
        other, second = await stack.enter_async_context(serving(d, "-b"))
        for curl in (one, other):
            await until_seen(curl, fallen)
            assert await asked(curl, few[0]) == "v1"

        # by hand: shown, raised, ended
        shown = await d.run("rollout", "docs", "--json")
        assert shown.returncode == 0, shown.stderr
        now = json.loads(shown.stdout)
        assert (now["rollout"]["stopped"], now["next"]) == (fallen.stopped, "crossfade rollout docs --raise")
        assert now["rollout"]["step"] == 3
        status = await d.run("status", "docs")
        assert f"the rollout of v2 stands at 0.0% of the callers: ended ({fallen.stopped})" in status.stdout
        up = await d.run("rollout", "docs", "--raise", "--why", "the filter was wrong")
        assert (up.returncode, up.stdout.splitlines()[0]) == (0, "the rollout of v2 stands at 30.0% of the callers")
        for curl in (one, other):
            await until_seen(curl, stands(d))
            assert await asked(curl, few[0]) == "v2"

        # to everybody: what its latency is compared with then was counted while both were asked
        within = set(inside(d, 0.6, 10_000))
        outside = [name for name in (f"caller {number}" for number in range(100)) if name not in within][:ENOUGH]
        for share in (0.6, 1.0):
            await until_seen(one, stands(d))
            for caller in [*outside, *inside(d, stands(d).share, ENOUGH)]:  # raised by the last of them
                await asked(one, caller)
            await d.until_state("v2", at_share(share))
        whole = stands(d)
        assert whole.before is not None
        assert (whole.before.step, whole.before.share) == (whole.step - 1, 0.6)
        assert whole.before.queries >= ENOUGH
        for curl in (one, other):
            await until_seen(curl, whole)
            assert await asked(curl, outside[0]) == "v2"
        async with asyncio.timeout(30):
            while True:
                now = json.loads((await d.run("rollout", "docs", "--json")).stdout)["rollout"]
                if now["recent"]["new"]["queries"] >= 2:
                    break
                await asyncio.sleep(0.1)
        when = f"at step {whole.before.step}, with 60.0% of the callers"
        assert now["compared_with"]["when"] == now["recent"]["compared_with"]["when"] == when
        plain = await d.run("rollout", "docs")
        assert f"ms of v1 {when}, over {whole.before.queries:,} of its queries\n" in plain.stdout

        status_code, ended = await other("POST", "/collections/docs/rollout/end", {"why": "enough"})
        assert (status_code, ended["message"]) == (
            200,
            "the rollout of v2 stands at 0.0% of the callers: ended (enough)",
        )
        plain = await d.run("rollout", "docs")
        assert plain.stdout.splitlines()[0].startswith("docs: the rollout of v2 stands at 0.0% of the callers")
        nobody = await d.run("rollout", "nobody")
        assert (nobody.returncode, "known: docs" in nobody.stderr) == (1, True)

    events = [e.event for e in await entries_of(d.out.kafka, d.out.names, "docs") if e.event.startswith("rollout")]
    assert events == [
        "rollout begins", "rollout raised", "rollout ended", "rollout raised", "rollout raised", "rollout raised",
        "rollout ended",
    ]  # fmt: skip


async def test_what_two_servers_have_shadowed_is_shown_judged_and_given_back(
    d: Deployment, make_topic: MakeTopic
) -> None:
    sample, topic = d.folder / "sample.jsonl", make_topic(2)
    kept: dict[str, JsonValue] = {"topic": topic, "most": 14}
    d.set_collection("routes", {"shadow": {"share": 1.0, "at_once": 50, "k": 5, "sample": kept}})
    d.set_collection("gate", {"min_queries": 1, "shadow": {"min_queries": 12, "min_overlap": 0.01}})
    d.start_worker()
    await d.until_live_and_settled("v1")
    assert (await d.ask("cutover", "v1")).ok
    d.add_version("v2", V2)
    await d.until_live_and_settled("v2")
    early = await d.run("shadow", "docs")
    assert early.stdout.splitlines()[0] == "docs: no query was asked of v2 beside v1 yet"
    async with serving(d) as (one, first), serving(d, "-b") as (other, _):

        async def ask(curl: Curl, queries: range) -> None:
            for number in queries:
                status, found = await curl("POST", "/collections/docs/search", {"query": f"matter number {number}"})
                assert (status, found["version"]) == (200, "v1")

        async def until(curl: Curl, compared: int) -> dict[str, object]:
            async with asyncio.timeout(30):
                while True:
                    _, found = await curl("GET", "/collections/docs/rollout")
                    if found["shadow"] is not None and found["shadow"]["compared"] >= compared:
                        return dict(found["shadow"])
                    await asyncio.sleep(0.1)

        await ask(one, range(8))
        few = await until(other, 8)
        assert (few["compared"], few["replicas"]) == (8, 1)
        judged = json.loads((await d.run("evaluate", "docs", "v2", "--json")).stdout)
        checks = {check["name"]: check["verdict"] for check in judged["gate"]["checks"]}
        assert (judged["gate"]["verdict"], checks["shadow queries"]) == ("inconclusive", "inconclusive")
        held = await d.ask("cutover", "v2", check=True)
        assert (held.ok, "8 of users' queries were asked of both; fewer than 12" in held.message) == (False, True)

        await ask(other, range(8, 14))
        await until(one, 14)
        async with asyncio.timeout(30):
            while True:
                if len(await read_sample(d.out.kafka, topic)) == 14:
                    break
                await asyncio.sleep(0.1)
        await end(first, signal.SIGTERM)  # what it has compared stays
        shown = json.loads((await d.run("shadow", "docs", "--json")).stdout)["shadow"]
        assert (shown["compared"], shown["replicas"], shown["live"], shown["shadow"]) == (14, 2, "v1", "v2")
        assert 0 < shown["overlap"] <= 1
        plain = await d.run("shadow", "docs")
        assert "14 queries of v1 also asked of v2 by 2 servers: 14 compared" in plain.stdout
        allowed = await d.ask("cutover", "v2", check=True)
        assert allowed.ok, allowed

        # a server that begins again knows what the sample has, and that it is full
        async with serving(d) as (anew, _):
            await ask(anew, range(12, 18))
            await until(anew, 20)

        # a person judges the sample, and gives it back
        exported = await d.run("shadow", "docs", "--sample", str(sample))
        assert exported.stdout.splitlines()[0] == f"docs: 14 queries to judge in {sample}"
        again = await d.run("shadow", "docs", "--sample", str(sample))
        assert (again.returncode, "name a file that is not there yet" in again.stderr) == (1, True)
        lines = [json.loads(line) for line in sample.read_text().splitlines()]
        assert sorted(line["query"] for line in lines) == sorted(f"matter number {number}" for number in range(14))
        for line in lines:
            assert len(line["old"]) == len(line["new"]) == 5
            line["relevant"] = {f"k{line['query'].rsplit()[-1]}": 1}
        golden = d.folder / "golden.jsonl"
        golden.write_text("".join(json.dumps(line) + "\n" for line in lines))
        evaluated = json.loads((await d.run("evaluate", "docs", "v2", "--golden", str(golden), "--json")).stdout)
        checks = {check["name"]: check["verdict"] for check in evaluated["gate"]["checks"]}
        assert checks["shadow overlap"] == checks["shadow empty"] == checks["golden set"] == "pass"
