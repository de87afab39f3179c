"""The verdict: every bound from both sides, what is not known, and what both verbs print of it."""

from __future__ import annotations

import json
from dataclasses import replace
from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.config_operation import Gate, ShadowGate
from streams.migration.evaluate import Comparison, Estimate, Figures, SliceQuality, SpaceQuality
from streams.migration.gate import NOT_SWEPT, GateResult, Health, Swept, Unjudged, Verdict, judge
from streams.progress import ProgressRecord
from streams.search.tallies import ShadowTally

CLEAN = Swept(checked=1000, missing=0, stale=0, extra=0, held=0)
HEALTHY = Health(documents=1000, coverage=1.0, live_lag=3, unsettled=0, dead_letters=0, index_queue=0, swept=CLEAN)
GATE = Gate()


def exactly(value: float) -> Estimate:
    return Estimate(value, value, value)


def space(version: str, recall: float, refused: int = 0) -> SpaceQuality:
    return SpaceQuality(version, exactly(recall), exactly(0.1), exactly(0.5), exactly(0.4), 5.0, 9.0, 0, refused)


def found(ratio: float = 1.0, low: float = 0.97, high: float = 1.05, **changes: Any) -> Comparison:
    comparison = Comparison(
        golden="golden.jsonl",
        notes=(),
        queries=225,
        k=10,
        gain="linear",
        keys=100,
        unknown=(),
        old=space("v1", 0.4),
        new=space("v2", 0.4 * ratio if ratio < inf else 0.4),
        ratio=Estimate(ratio, low, high),
        overlap=0.5,
        shifts=(),
        slices=(),
    )
    return replace(comparison, **changes)


def verdict_of(result: GateResult, name: str) -> Verdict | None:
    return next((check.verdict for check in result.checks if check.name == name), None)


def test_everything_is_well() -> None:
    result = judge(GATE, found(), HEALTHY)
    assert result.passed
    assert result.judged
    assert result.notes == ()
    assert [check.name for check in result.checks] == [
        "golden set",
        "recall",
        "recall interval",
        "coverage",
        "sweep",
        "dead letters",
        "live lag",
        "index queue",
    ]
    assert result.reasons() == ""


@pytest.mark.parametrize(
    ("ratio", "low", "verdict", "interval"),
    [
        (0.98, 0.951, Verdict.PASS, Verdict.PASS),
        (0.9799, 0.97, Verdict.FAIL, Verdict.PASS),
        (0.98, 0.95, Verdict.INCONCLUSIVE, Verdict.INCONCLUSIVE),
        (1.2, 0.9, Verdict.INCONCLUSIVE, Verdict.INCONCLUSIVE),
        (0.5, 0.4, Verdict.FAIL, Verdict.INCONCLUSIVE),
        (inf, 1.0, Verdict.PASS, Verdict.PASS),
        (0.0, 0.0, Verdict.FAIL, Verdict.INCONCLUSIVE),
    ],
)
def test_recall(ratio: float, low: float, verdict: Verdict, interval: Verdict) -> None:
    result = judge(GATE, found(ratio, low), HEALTHY)
    assert result.verdict is verdict
    assert verdict_of(result, "recall interval") is interval
    assert json.dumps(result.as_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("change", "name", "verdict"),
    [
        ({"coverage": 0.99}, "coverage", Verdict.PASS),
        ({"coverage": 0.98999}, "coverage", Verdict.FAIL),
        ({"coverage": None}, "coverage", Verdict.INCONCLUSIVE),
        ({"live_lag": 1000}, "live lag", Verdict.PASS),
        ({"live_lag": 1001}, "live lag", Verdict.FAIL),
        ({"live_lag": None}, "live lag", Verdict.INCONCLUSIVE),
        ({"index_queue": 10}, "index queue", Verdict.PASS),
        ({"index_queue": 11}, "index queue", Verdict.FAIL),  # 1% of 1,000 documents
        ({"index_queue": 1000, "documents": 10**6}, "index queue", Verdict.PASS),
        ({"index_queue": 1001, "documents": 10**6}, "index queue", Verdict.FAIL),
        ({"index_queue": 1000, "documents": None}, "index queue", Verdict.PASS),
        ({"index_queue": None}, "index queue", Verdict.INCONCLUSIVE),
        ({"unsettled": 2}, "unsettled", Verdict.INCONCLUSIVE),
        ({"unsettled": None}, "unsettled", Verdict.INCONCLUSIVE),
        ({"swept": replace(CLEAN, missing=1)}, "sweep", Verdict.FAIL),
        ({"swept": replace(CLEAN, stale=1)}, "sweep", Verdict.FAIL),
        ({"swept": replace(CLEAN, extra=1)}, "sweep", Verdict.FAIL),
        ({"swept": replace(CLEAN, held=1)}, "dead letters", Verdict.FAIL),
        ({"dead_letters": 7}, "dead letters", Verdict.PASS),  # the sweep found none held
    ],
)
def test_each_bound_of_completeness(change: dict[str, Any], name: str, verdict: Verdict) -> None:
    for quality in (found(), None):
        result = judge(GATE, quality, replace(HEALTHY, **change))
        assert (verdict_of(result, name), result.verdict) == (verdict, verdict)
        assert (name in result.reasons()) is (verdict is not Verdict.PASS)


def test_no_golden_set_is_said_and_does_not_fail() -> None:
    result = judge(GATE, None, HEALTHY)
    assert result.passed
    assert not result.judged
    assert result.notes == ("quality is not judged: no golden set is configured (gate.golden)",)


def test_queries_that_could_not_be_asked_are_inconclusive() -> None:
    result = judge(GATE, Unjudged("nothing answers at http://h"), HEALTHY)
    assert result.verdict is Verdict.INCONCLUSIVE
    assert "recall: not known: nothing answers at http://h" in result.reasons()
    assert not result.judged


def test_nothing_serves_yet() -> None:
    result = judge(GATE, replace(found(), old=None, ratio=None, new=space("v1", 0.01)), HEALTHY)
    assert result.passed
    assert "nothing to be worse than: recall@10 of v1 is 0.0100" in result.notes[0]


def test_queries_that_neither_answers_prove_nothing() -> None:
    result = judge(GATE, found(1.0, 1.0, 1.0, old=space("v1", 0.0), new=space("v2", 0.0)), HEALTHY)
    assert result.verdict is Verdict.INCONCLUSIVE
    assert "neither finds a relevant document" in result.reasons()


def test_not_swept() -> None:
    result = judge(GATE, found(), replace(HEALTHY, swept=None))
    assert result.passed
    assert NOT_SWEPT in result.notes
    assert verdict_of(result, "sweep") is None
    result = judge(GATE, found(), replace(HEALTHY, swept=None, dead_letters=2))
    assert result.passed
    assert any("2 events went to the dead letters" in note for note in result.notes)
    assert judge(GATE, None, replace(HEALTHY, swept=None, dead_letters=None)).verdict is Verdict.INCONCLUSIVE


def test_unknown_keys_are_counted_and_named_and_too_many_are_inconclusive() -> None:
    few = judge(GATE, found(unknown=("a", "b", "c", "d", "e")), HEALTHY)
    assert few.passed
    assert any("5 of 100 relevant documents are in no space ('a', 'b', 'c', 'd', 'e'), within 5%" in line
               for line in few.lines())  # fmt: skip
    many = judge(GATE, found(unknown=tuple("abcdef")), HEALTHY)
    assert many.verdict is Verdict.INCONCLUSIVE
    assert "'e', ...), more than 5%" in many.reasons()


def test_few_queries_prove_little() -> None:
    assert judge(GATE, found(queries=20), HEALTHY).passed
    result = judge(GATE, found(queries=19), HEALTHY)
    assert result.verdict is Verdict.INCONCLUSIVE
    assert "fewer than 20 say little" in result.reasons()


def test_slices_that_got_worse_without_doubt_are_named() -> None:
    figures = Figures(30, 10, 0.4, 0.1, 0.5, 0.4)
    slices = (
        SliceQuality("short", 30, figures, figures, Estimate(0.8, 0.7, 0.97)),
        SliceQuality("long", 30, figures, figures, Estimate(0.8, 0.6, 0.99)),
    )
    result = judge(GATE, found(slices=slices), HEALTHY)
    assert result.passed
    assert [note for note in result.notes if "slice" in note] == [
        "slice 'short': recall is 0.800 times what it was (0.700 to 0.970), over 30 queries"
    ]


def test_refused_queries_and_what_the_golden_set_left_out_are_said() -> None:
    result = judge(GATE, found(new=space("v2", 0.4, refused=3), notes=("1 query has no relevant",)), HEALTHY)
    assert result.notes == (
        "golden set: 1 query has no relevant",
        "v2 cannot take 3 of the queries: they count as nothing found",
    )


def test_a_fail_outweighs_what_is_not_known() -> None:
    result = judge(GATE, found(0.5), replace(HEALTHY, coverage=None))
    assert result.verdict is Verdict.FAIL


def test_the_lines() -> None:
    lines = judge(GATE, found(0.9, 0.8, 1.0), replace(HEALTHY, swept=None, live_lag=None)).lines()
    assert lines == [
        "gate: fail",
        "  ok   golden set       225 judged queries",
        "  FAIL recall           recall@10 0.4000 -> 0.3600: 0.900 times that of v1, below 0.98",
        "  ?    recall interval  95% interval (0.800 to 1.000): its lower end is not above 0.95",
        "  ok   coverage         100% of the documents are replayed, at least 99%",
        "  ok   dead letters     none",
        "  ?    live lag         not known: no worker reports on every partition",
        "  ok   index queue      0 vectors are stored and not yet found by a search, at most 10",
        "  note: not swept; cutover does",
    ]


def test_a_share_is_cut_not_rounded() -> None:
    lines = judge(GATE, None, replace(HEALTHY, coverage=0.989999)).lines()
    assert "  FAIL coverage      98.99% of the documents are replayed, below 99%" in lines


maybe = st.none() | st.integers(0, 2000)


@given(
    st.builds(
        Health,
        st.none() | st.integers(0, 10**7),
        st.none() | st.floats(0, 1),
        maybe,
        maybe,
        maybe,
        maybe,
        st.none() | st.builds(Swept, *[st.integers(0, 2)] * 5),
    ),
    st.none()
    | st.builds(Unjudged, st.text())
    | st.builds(found, st.floats(0, 2) | st.just(inf), st.floats(0, 2), st.floats(0, 2) | st.just(inf)),
)
def test_a_result_survives_its_json_and_is_the_worst_of_its_checks(
    health: Health, quality: Comparison | Unjudged | None
) -> None:
    result = judge(GATE, quality, health)
    written = json.loads(json.dumps(result.as_json(), allow_nan=False))
    read = GateResult.from_json(written)
    assert (read.verdict, read.notes, read.judged, read.lines()) == (
        result.verdict,
        result.notes,
        result.judged,
        result.lines(),
    )
    verdicts = {check.verdict for check in result.checks}
    assert result.verdict is next((v for v in (Verdict.FAIL, Verdict.INCONCLUSIVE) if v in verdicts), Verdict.PASS)


def test_what_is_no_result_is_refused() -> None:
    for data in ({}, {"verdict": "pass", "judged": True, "checks": [{}], "notes": []}):
        with pytest.raises(ValueError, match="validation error"):
            GateResult.from_json(data)  # type: ignore[arg-type]


def record(**changes: Any) -> ProgressRecord:
    values: dict[str, Any] = {
        "name": "v2",
        "epoch": 1,
        "status": "ready",
        "progress": 0.5,
        "total": 10,
        "completed": 5,
        "rate_per_s": 0.0,
        "eta_s": None,
        "changed_mid_migration": 0,
        "unchanged_skipped": 0,
        "dead_letters": 2,
        "live_lag": 7,
        "unsettled": 1,
        "planned": True,
        "updated_at": 0,
    }
    return ProgressRecord(**values | changes)


def test_health_of_what_is_reported() -> None:
    assert Health.of(None, 1, 4) == Health(None, None, None, None, None, 4)
    assert Health.of(record(), 0, None, CLEAN) == Health(10, 0.5, 7, 1, 2, None, CLEAN)
    assert Health.of(record(), 1, 0) == Health(10, 0.5, None, None, 2, 0), "who is silent may lag"
    assert Health.of(record(planned=False), 0, 0).coverage is None


def test_a_set_of_many_slices_does_not_fill_the_journal() -> None:
    figures = Figures(5, 10, 0.4, 0.1, 0.5, 0.4)
    ratio = Estimate(0.5, 0.4, 0.6)
    worse = tuple(SliceQuality(f"slice {at}", 5, figures, figures, ratio) for at in range(5000))
    result = judge(GATE, found(slices=worse), HEALTHY)
    assert len(result.notes) == 21
    assert result.notes[-1] == "4,980 more slices are worse: crossfade evaluate --json has all of them"


def seen(compared: int = 100, overlap: float = 60.0, live_zero: int = 1, shadow_zero: int = 1) -> ShadowTally:
    return ShadowTally(
        live="v1", shadow="v2", k=10, compared=compared, overlap=overlap, live_zero=live_zero, shadow_zero=shadow_zero
    )


@pytest.mark.parametrize(
    ("bounds", "shadow", "verdict", "said"),
    [
        (ShadowGate(), seen(), Verdict.PASS, {"shadow queries": Verdict.PASS, "shadow empty": Verdict.PASS}),
        (ShadowGate(), seen(99), Verdict.INCONCLUSIVE, {"shadow queries": Verdict.INCONCLUSIVE}),
        (ShadowGate(), ShadowTally(), Verdict.INCONCLUSIVE, {"shadow queries": Verdict.INCONCLUSIVE}),
        (
            ShadowGate(min_overlap=0.6),
            seen(),
            Verdict.PASS,
            {"shadow queries": Verdict.PASS, "shadow overlap": Verdict.PASS, "shadow empty": Verdict.PASS},
        ),
        (
            ShadowGate(min_overlap=0.61),
            seen(),
            Verdict.FAIL,
            {"shadow queries": Verdict.PASS, "shadow overlap": Verdict.FAIL, "shadow empty": Verdict.PASS},
        ),
        (
            ShadowGate(max_empty_increase=0.01),
            seen(shadow_zero=3),
            Verdict.FAIL,
            {"shadow queries": Verdict.PASS, "shadow empty": Verdict.FAIL},
        ),
        (
            ShadowGate(),
            seen(live_zero=9, shadow_zero=3),
            Verdict.PASS,
            {"shadow queries": Verdict.PASS, "shadow empty": Verdict.PASS},
        ),
        (None, seen(shadow_zero=90), Verdict.PASS, {}),
        (ShadowGate(), None, Verdict.PASS, {}),
    ],
)
def test_shadowed_queries_are_judged_where_they_are_configured(
    bounds: ShadowGate | None, shadow: ShadowTally | None, verdict: Verdict, said: dict[str, Verdict]
) -> None:
    gate = GATE.model_copy(update={"shadow": bounds})
    result = judge(gate, found(), replace(HEALTHY, shadow=shadow))
    assert result.verdict is verdict
    assert {check.name: check.verdict for check in result.checks if check.name.startswith("shadow")} == said
