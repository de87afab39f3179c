"""The network cut between a worker and the broker, and between a worker and Weaviate.

By a proxy for one worker of two, here; by routing rules of a network namespace of its own where the machine allows
one. Must never touch the routing of the machine itself.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.deployment import Deployment
from tests.faults.conftest import INSIDE, Deploy, Say
from tests.faults.own_services import OwnServices
from tests.faults.proxy import proxy
from tests.faults.workload import HASHING, Changes, check, produce, resolved, steady, until_settled, worker_of

SEED = 8
SESSION_S = 8.0
INSIDE_TIMEOUT_S = 300
INSIDE_FILE = Path(__file__).with_name("inside_namespace.py")


async def test_one_worker_cut_off_from_the_broker(deploy: Deploy, own: OwnServices, say: Say) -> None:
    """It can still reach Weaviate, and must not write: the other worker owns its partitions by then."""
    changes = Changes(SEED, 200)
    front, back = own.kafka_behind_proxy
    async with proxy(back, front) as broker, deploy(partitions=1, session_timeout_s=SESSION_S) as d:
        await produce(d, changes.first())
        d.add_version("v1", HASHING)
        alone = d.start_worker(replace(own.addresses, kafka=broker.address))
        await d.until_stage("v1", "ready")
        await until_settled(d, "v1")
        name = worker_of(d, "v1")
        d.start_worker()
        async with steady(d, changes):
            for how in ("silent", "refused"):
                if how == "silent":
                    broker.freeze()
                else:
                    await broker.cut()
                await d.until(lambda: worker_of(d, "v1") != name)
                await until_more(d, 50)
                await broker.mend()
                if how == "silent":
                    # the other one goes, so that the worker that was cut off owns the partition once more
                    await d.end_worker(d.workers[-1])
                    await d.until(lambda: worker_of(d, "v1") == name)
                    d.start_worker()
        checked = await check(d, "v1")
        assert alone.poll() is None
        say(f"one worker cut off from the broker: {changes.made} changes, {checked} documents checked")


async def test_worker_cut_off_from_weaviate(deploy: Deploy, own: OwnServices, say: Say) -> None:
    """Silent beyond every write deadline, then refused, then slow: doubtful writes, and no dead letter."""
    changes = Changes(SEED, 200)
    at = own.addresses
    async with proxy(at.weaviate_grpc) as grpc, proxy(at.weaviate_http) as http, deploy(partitions=2) as d:
        await produce(d, changes.first())
        d.add_version("v1", {**HASHING, "replay_rate": 10})
        d.start_worker(replace(at, weaviate_grpc=grpc.address, weaviate_http=http.address))
        await d.until_stage("v1", "building")
        async with steady(d, changes):
            await until_more(d, 20)
            for both in (grpc, http):
                both.freeze()
            await until_waiting(d)
            for both in (grpc, http):
                await both.mend()
            await until_more(d, 20)
            for both in (grpc, http):
                await both.cut()
            await until_waiting(d)
            for both in (grpc, http):
                await both.mend()
            grpc.delay_s = 0.3
            await until_more(d, 20)
            grpc.delay_s = 0.0
        assert (await d.ask("set", "v1", replay_rate=0)).ok
        checked = await check(d, "v1")
        say(f"worker cut off from Weaviate: {changes.made} changes, {checked} documents checked")


async def until_more(d: Deployment, events: int) -> None:
    before = resolved(d, "v1")
    await d.until(lambda: resolved(d, "v1") > before + events)


async def until_waiting(d: Deployment) -> None:
    await d.until(lambda: any(r.status == "waiting" for r in d.progress.partitions(d.build("v1"))))


# in a namespace


# Only rules before the one for local addresses can stop packets to them, so that one is moved back.
ENTER = "ip link set lo up && ip rule add pref 100 lookup local && ip rule del pref 0"


def namespaces_work() -> bool:
    """Whether an unprivileged network namespace with routing rules of its own can be made here."""
    try:
        tried = subprocess.run(["unshare", "-rn", "sh", "-c", f"{ENTER} && {cut_rules(1)}"], check=False, timeout=10)
    except OSError:
        return False
    return tried.returncode == 0


def cut_rules(port: int, verb: str = "add") -> str:
    """Shell commands that make packets from and to a port vanish, or (`del`) pass again."""
    ends = enumerate(("dport", "sport"), 1)
    rules = [f"ip rule {verb} pref {pref} ipproto tcp {end} {port} blackhole" for pref, end in ends]
    return " && ".join(rules)


def test_network_cut_in_a_namespace(say: Say) -> None:
    if not namespaces_work():
        pytest.skip("no network namespaces here; the proxy shows the same above")
    inner = f'{ENTER} && exec "{sys.executable}" -m pytest -q -s "{INSIDE_FILE}"'
    run = subprocess.run(
        ["unshare", "-rn", "sh", "-c", inner],
        cwd=ROOT,
        env={**os.environ, INSIDE: "1"},
        timeout=INSIDE_TIMEOUT_S,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-6000:]
    for line in run.stdout.splitlines():
        if ":" in line and "documents checked" in line:
            say(line[line.find("network cut") :])
