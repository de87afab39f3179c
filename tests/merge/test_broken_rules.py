"""The simulator is itself proven: each rule of DESIGN.md section 3 is broken on purpose, and it must find out.

The schedules needed are printed; CROSSFADE_REPORT names a file that gets them with each shortest history.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from tests.merge import broken, pool

MOST = 2000


@pytest.fixture(scope="module")
def hunts() -> Iterator[dict[str, Future[pool.Found | None]]]:
    """All faults at once, over all cores."""
    with pool.processes() as executor:
        yield {fault: executor.submit(pool.hunt, fault, MOST) for fault in broken.FAULTS}


def test_every_rule_is_broken_once() -> None:
    assert {fault.rule for fault in broken.FAULTS.values()} == set(range(1, 12))


@pytest.mark.parametrize("fault", broken.FAULTS)
def test_a_broken_rule_is_noticed(fault: str, hunts: dict[str, Future[pool.Found | None]]) -> None:
    found = hunts[fault].result()
    assert found is not None, f"{MOST} schedules do not show that {broken.FAULTS[fault].what}"
    what = f"rule {broken.FAULTS[fault].rule}: {broken.FAULTS[fault].what}: {found.seed + 1} schedules"
    print(what)
    if path := os.environ.get("CROSSFADE_REPORT"):
        with Path(path).open("a") as file:
            file.write(f"{what}\n{found.report}\n\n")
