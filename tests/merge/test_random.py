"""Random histories over the whole merge core, against the oracle; a failing seed prints itself and how to replay it.

More of them: CROSSFADE_SEEDS=5000 pytest tests/merge/test_random.py
"""

from __future__ import annotations

import os

import pytest

from tests.merge import scenario

SEEDS = int(os.environ.get("CROSSFADE_SEEDS", "300"))
BLOCK = 50


@pytest.mark.parametrize("first", range(0, SEEDS, BLOCK))
def test_whatever_happens_the_space_equals_the_oracle(first: int) -> None:
    for seed in range(first, min(first + BLOCK, SEEDS)):
        scenario.play(seed)


@pytest.mark.parametrize("first", [0, 50])
def test_in_calm_weather_nothing_is_embedded_twice(first: int) -> None:
    for seed in range(first, first + 50):
        world = scenario.play(seed, calm=True)
        counters = world.counters()
        documents = sum(world.replay_documents.values())
        assert counters.embedded_replay <= documents, f"seed {seed}: more embeddings than keys live at the barrier"
        assert counters.completed == counters.total, f"seed {seed}"
        refused = {at for at, cause in world.dead_letters if cause in ("content_rejected", "store_refused")}
        assert counters.embedded_mend <= len(refused), f"seed {seed}: only what a refused record gave way to"
        assert counters.total <= documents, f"seed {seed}"


def test_a_seed_repeats_exactly() -> None:
    for seed in (3, 17, 33, 115):
        assert scenario.play(seed).trace == scenario.play(seed).trace
