"""The network cut by routing rules, for a run of pytest in a network namespace of its own (see test_network.py).

Not collected by itself: must never run where its rules would be the machine's.
"""

from __future__ import annotations

import asyncio
import os
import subprocess

import pytest

from tests.faults.conftest import INSIDE, Deploy, Say
from tests.faults.own_services import OwnServices
from tests.faults.test_network import SEED, SESSION_S, cut_rules
from tests.faults.test_services_fail import both_lanes, judge
from tests.faults.workload import Changes


@pytest.mark.parametrize("name", ["kafka", "weaviate_grpc"])
async def test_inside_cut(deploy: Deploy, own: OwnServices, say: Say, name: str) -> None:
    """Packets vanish for longer than session time-out and write deadline; nobody gets an answer, not even a refusal."""
    assert INSIDE in os.environ, "these rules are for a namespace of its own"
    changes = Changes(SEED, 200)
    port = int(getattr(own.addresses, name).rpartition(":")[2])
    async with deploy(session_timeout_s=SESSION_S) as d:
        async with both_lanes(d, changes):
            await asyncio.to_thread(subprocess.run, cut_rules(port), shell=True, check=True)
            await asyncio.sleep(SESSION_S + 4.0)
            await asyncio.to_thread(subprocess.run, cut_rules(port, "del"), shell=True, check=True)
        await judge(d, changes, say, f"network cut to {name} (namespace)")
