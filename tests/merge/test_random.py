"""Random histories over the whole merge core, against the oracle; a failing seed prints itself and how to replay it.

More of them: CROSSFADE_SEEDS=200000, or for a time: CROSSFADE_SOAK_MINUTES=30
"""

from __future__ import annotations

import os
import time

from tests.merge import pool, scenario

SEEDS = int(os.environ.get("CROSSFADE_SEEDS", "10000"))
SOAK_MINUTES = float(os.environ.get("CROSSFADE_SOAK_MINUTES", "0"))
FAR = 10**6


def test_whatever_happens_the_space_equals_the_oracle() -> None:
    begun_s = time.monotonic()
    cores = os.cpu_count() or 1
    with pool.processes(cores) as executor:
        if SOAK_MINUTES:  # other seeds each time
            first = time.time_ns() // 10**6 % 10**9 * FAR
            starts = [first + core * FAR // cores for core in range(cores)]
            soaked = list(executor.map(pool.play_until, starts, [begun_s + SOAK_MINUTES * 60.0] * cores))
            played = sum(count for count, _ in soaked)
            found = next((found for _, found in soaked if found), None)
        else:
            played = SEEDS
            firsts = range(0, SEEDS, pool.BLOCK)
            ends = [min(first + pool.BLOCK, SEEDS) for first in firsts]
            found = next(filter(None, executor.map(pool.play, firsts, ends)), None)
        assert found is None, found.report
    took_s = time.monotonic() - begun_s
    print(f"{played} schedules in {took_s:.0f} s, {played / took_s:.1f} a second on {cores} cores")


def test_what_the_log_forgets_is_not_lost() -> None:
    """The log loses its beginning, before a second version is built and while it is; the oracle forgets nothing."""
    played = max(pool.BLOCK, SEEDS // 10)
    with pool.processes() as executor:
        firsts = range(0, played, pool.BLOCK)
        plays = [executor.submit(pool.play, first, min(first + pool.BLOCK, played), True) for first in firsts]
        found = next(filter(None, (play.result() for play in plays)), None)
    assert found is None, found.report


def test_in_calm_weather_nothing_is_embedded_twice() -> None:
    for seed in range(100):
        world = scenario.play(seed, calm=True)
        counters = world.counters()
        documents = sum(world.replay_documents.values())
        assert counters.embedded_replay <= documents, f"seed {seed}: more embeddings than keys live at the barrier"
        assert counters.completed == counters.total, f"seed {seed}"
        refused = {at for at, cause in world.dead_letters if cause in ("content_rejected", "store_refused")}
        assert counters.embedded_mend <= len(refused), f"seed {seed}: only what a refused record gave way to"
        assert counters.total <= documents, f"seed {seed}"


def test_a_seed_repeats_exactly() -> None:
    for seed in (3, 9, 17, 33, 115):
        assert scenario.attempt(seed).story == scenario.attempt(seed).story


def test_what_is_left_out_changes_nothing_else() -> None:
    whole = scenario.attempt(17)
    assert scenario.attempt(17, without=range(whole.actions)).story != whole.story
    assert scenario.from_spans(scenario.spans({0, 1, 2, 7, 9, 10})) == {0, 1, 2, 7, 9, 10}
