"""Which way a query takes: pure decisions over what is known, each with its reason."""

from __future__ import annotations

from typing import Any

import pytest

from streams.config_operation import RouteName, Routes
from streams.progress import ProgressRecord
from streams.search.rollout import Standing
from streams.search.routes import Situation, by_name, coming_of, coverage_of, decide, ready_of, stand_in
from streams.state import BuildState, Failure
from streams.versions import Stage


def build(version: str, epoch: int, stage: Stage, **changes: Any) -> BuildState:
    base = BuildState(
        collection="docs",
        version=version,
        epoch=epoch,
        stage=stage,
        envelope={},
        fingerprint=f"f{epoch}",
        space=f"Docs_{version}",
        topic="docs",
        partitions=2,
    )
    return base.model_copy(update=changes)


V1 = build("v1", 1, Stage.SERVING)
V2 = build("v2", 2, Stage.BUILDING)
READY = build("v2", 2, Stage.READY)
ROUTES = Routes()


def way(now: Situation, mode: RouteName | None = None, **more: Any) -> tuple[str, str | None, str]:
    found = decide(now, more.pop("routes", ROUTES), mode=mode, **more)
    assert found.why
    return found.build.version, found.beside.version if found.beside else None, found.why


def test_by_default_the_serving_version_answers_whatever_is_built() -> None:
    for coverage in (None, 0.0, 0.7, 1.0):
        assert way(Situation(V1, None, V2, coverage)) == ("v1", None, "v1 serves")


@pytest.mark.parametrize(
    ("coverage", "expected", "said"),
    [
        (None, ("v1", None), "not said"),
        (0.0, ("v1", None), "0% of the documents, below 50%"),
        (0.499, ("v1", None), "below"),
        (0.5, ("v2", "v1"), "merged with v1 by places"),
        (0.999, ("v2", "v1"), "merged"),
        (1.0, ("v2", None), "complete"),
    ],
)
def test_hybrid_goes_by_coverage(coverage: float | None, expected: tuple[str, str | None], said: str) -> None:
    version, beside, why = way(Situation(V1, None, V2, coverage), "hybrid")
    assert (version, beside) == expected
    assert said in why


def test_hybrid_thresholds_and_fusion_are_configured() -> None:
    routes = Routes.model_validate(
        {"default": "hybrid", "hybrid": {"from_coverage": 0.2, "complete": 0.8, "fusion": "weighted"}}
    )
    found = decide(Situation(V1, None, V2, 0.3), routes)
    assert (found.build.version, found.beside, found.fusion, found.coverage) == ("v2", V1, "weighted", 0.3)
    assert way(Situation(V1, None, V2, 0.8), routes=routes)[:2] == ("v2", None)
    assert way(Situation(V1, None, V2, 0.8), "serving", routes=routes)[:2] == ("v1", None), "as the query asks"


@pytest.mark.parametrize("mode", ["hybrid", "bridge", "rollout"])
def test_nothing_is_coming(mode: RouteName) -> None:
    assert way(Situation(V1), mode)[:2] == ("v1", None)


@pytest.mark.parametrize("mode", ["hybrid", "bridge", "rollout"])
@pytest.mark.parametrize("changes", [{"paused": "all"}, {"failure": Failure(cause="x")}])
def test_a_build_that_may_be_behind_is_not_asked(mode: RouteName, changes: dict[str, Any]) -> None:
    behind = READY.model_copy(update=changes)
    version, beside, why = way(Situation(V1, None, behind, 1.0), mode, caller="c", standing=Standing(1.0, 0))
    assert (version, beside) == ("v1", None)
    assert "behind" in why


def test_a_bridge_asks_both_from_the_first_document_on() -> None:
    assert way(Situation(V1, None, V2, None), "bridge")[:2] == ("v2", "v1")
    assert way(Situation(V1, None, V2, 0.01), "bridge")[:2] == ("v2", "v1")
    assert way(Situation(V1, None, READY, None), "bridge")[:2] == ("v2", None)


def test_a_rollout_begins_when_the_version_is_ready_and_goes_by_caller() -> None:
    half = Standing(0.5, 0.0)
    assert "once it is ready" in way(Situation(V1, None, V2, 1.0), "rollout", caller="c", standing=half)[2]
    ready = Situation(V1, None, READY)
    assert "names no caller" in way(ready, "rollout", standing=half)[2]
    assert "0%" in way(ready, "rollout", caller="c", standing=Standing(0.0, 0.0, "5.0% of its queries failed"))[2]
    answered = [way(ready, "rollout", caller=f"c{at}", standing=half)[0] for at in range(200)]
    assert 60 < answered.count("v2") < 140
    assert answered == [way(ready, "rollout", caller=f"c{at}", standing=half)[0] for at in range(200)]
    assert way(ready, "rollout", caller="c", standing=Standing(1.0, 0.0))[0] == "v2"


def test_what_is_coming_was_begun_after_what_serves() -> None:
    v3 = build("v3", 3, Stage.BUILDING)
    assert coming_of([V1, V2, v3], V1) == v3
    kept = build("v0", 0, Stage.READY)  # served once, and is kept
    assert coming_of([V1, kept], V1) is None
    back = build("v2", 2, Stage.PREVIOUS)  # after a rollback
    assert coming_of([V1, back], V1) is None


def test_who_stands_in() -> None:
    serving2, previous1 = build("v2", 2, Stage.SERVING), build("v1", 1, Stage.PREVIOUS)
    swapped = Situation(serving2, previous1)
    chosen = decide(swapped, ROUTES)
    found = stand_in(chosen, serving2, swapped, ROUTES, "its model does not answer")
    assert found is not None
    assert found.build == previous1
    assert found.why == "v2 serves; but v2 cannot answer (its model does not answer), so v1 does"
    assert stand_in(found, previous1, swapped, ROUTES, "away too", {serving2.key, previous1.key}) is None, "no ring"
    merged = Situation(V1, None, V2, 0.7)
    both = decide(merged, ROUTES, mode="hybrid")
    found = stand_in(both, V2, merged, ROUTES, "away")
    assert found is not None
    assert (found.build, found.beside) == (V1, None)
    assert stand_in(both, V1, merged, ROUTES, "away") is None, "a part of the documents is no answer"


def test_nobody_stands_in_for_a_named_space_or_when_told_not_to_or_by_what_is_behind() -> None:
    serving2, previous1 = build("v2", 2, Stage.SERVING), build("v1", 1, Stage.PREVIOUS)
    swapped = Situation(serving2, previous1)
    assert stand_in(by_name(serving2), serving2, swapped, ROUTES, "away") is None
    assert stand_in(decide(swapped, ROUTES), serving2, swapped, Routes(fall_back=False), "away") is None
    held = Situation(serving2, previous1.model_copy(update={"paused": "all"}))
    assert stand_in(decide(held, ROUTES), serving2, held, ROUTES, "away") is None
    assert stand_in(decide(Situation(V1), ROUTES), V1, Situation(V1), ROUTES, "away") is None


def record(total: int, completed: int, *, planned: bool = True) -> ProgressRecord:
    return ProgressRecord.model_validate(
        {
            "name": "v2",
            "epoch": 2,
            "status": "building",
            "progress": 0.0,
            "total": total,
            "completed": completed,
            "rate_per_s": 0.0,
            "eta_s": None,
            "changed_mid_migration": 0,
            "unchanged_skipped": 0,
            "dead_letters": 0,
            "live_lag": 0,
            "planned": planned,
            "updated_at": 0,
        }
    )


def test_what_is_begun_later_does_not_end_the_rollout_of_what_is_ready() -> None:
    v3 = build("v3", 3, Stage.BUILDING)
    assert ready_of([V1, READY, v3], V1) == READY
    assert ready_of([V1, v3], V1) is None
    assert ready_of([build("v0", 1, Stage.READY), build("v4", 4, Stage.SERVING)], build("v4", 4, Stage.SERVING)) is None


def test_coverage_is_known_once_every_partition_has_planned() -> None:
    assert coverage_of([record(10, 5), record(30, 25)], 2) == 0.75
    assert coverage_of([record(10, 5)], 2) is None
    assert coverage_of([record(10, 5), record(0, 0, planned=False)], 2) is None
    for done in ([record(0, 0), record(0, 0)], [record(10, 10), record(3, 3)]):
        assert 0.99 < (coverage_of(done, 2) or 0.0) < 1.0, "what the topic has forgotten is still to come"
    assert coverage_of([], 0) is None
