"""The page of a migration: well-formed whatever stands in it, escaped, self-contained, and in words for what is not."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from connectors.errors import Refused
from streams.cli.report import write
from streams.cli.report_facts import Facts, facts_json, facts_of, rates
from streams.cli.report_page import MARK, page
from streams.cli.report_plots import Line, Plot, clock, number, svg, ticks
from streams.migration.gate import Check, GateResult, Verdict
from streams.migration.series import Chronicle, Point, Run, SeriesRecord, Track, Wait
from streams.progress import Counters, ProgressRecord, TierProgress
from streams.state import BuildState, CollectionState, Controls, JournalEntry
from streams.versions import Stage

START = 1_700_000_000_000
EVIL = "</td><script>alert('x')</script> & \"<b>\" \x1b[31m\u202e"
VOID = {"meta", "line", "circle", "polyline"}


class Page(HTMLParser):
    """Raises AssertionError for tags that do not close in order; collects what a person reads, and every attribute."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def build(**more: object) -> BuildState:
    fields = {
        "collection": "docs",
        "version": "v2",
        "epoch": 3,
        "stage": Stage.SERVING,
        "envelope": {"provider": "tei", "model": "m", "revision": None, "dimensions": 384, "query_prefix": ""},
        "fingerprint": "0123456789ab",
        "space": "Docs_v2_3_0123456789ab",
        "topic": "documents",
        "partitions": 2,
        "barrier": {0: 600, 1: 500},
        "started_ms": START,
        "ready_ms": START + 65_000,
        **more,
    }
    return BuildState.model_validate(fields)


COLLECTION = CollectionState(collection="docs", alias="Docs", topic="documents", serving="v2", previous="v1")


def entry(at_s: int, event: str, stage: str = "", **more: object) -> JournalEntry:
    data = more.pop("data", {})
    assert isinstance(data, dict)
    about = {"docs/v2": {"stage": stage, "space": "Docs_v2_3_0123456789ab"}} if stage else {}
    fields = {"at_ms": START + 1000 * at_s, "collection": "docs", "version": "v2", "epoch": 3, "event": event, **more}
    return JournalEntry.model_validate({**fields, "data": {**about, **data}})


GATE = GateResult(
    Verdict.INCONCLUSIVE,
    (
        Check("recall", 0.99, 0.98, Verdict.PASS, "recall@5 0.9000 -> 0.8910: 0.990 times that of v1"),
        Check("recall interval", 0.91, 0.95, Verdict.INCONCLUSIVE, "95% interval (0.910 to 1.060): its lower end"),
    ),
    ("slice 'short': worse",),
    judged=True,
)
FOUND = {"checked": 1000, "missing": 0, "stale": 0, "extra": 1, "held": 2, "gate": GATE.as_json()}
WHY = "the others are fine"

ENTRIES = [
    entry(-900, "declared", "declared", data={"docs/v2": {"stage": "building", "space": "Docs_v2_1_0123456789ab"}}),
    entry(0, "declared", "declared", who="ann"),
    entry(2, "start", "building", who="ann", message="docs/v2 is building"),
    entry(20, "pause", "building", who="bob", why="lunch", message="docs/v2 is paused (replay)"),
    entry(30, "resume", "building", who="bob"),
    entry(40, "failed", "building", message="docs/v2 stopped: the topic was recreated"),
    entry(65, "replayed", "ready", message="docs/v2 is ready", data={"outcome": {"tokens": 5000, "cost_usd": 0.25}}),
    entry(70, "cutover refused", "ready", who="ann", command_id="c1", data={"outcome": FOUND}),
    entry(
        80,
        "cutover",
        "serving",
        who="ann",
        command_id="c2",
        message="docs is served by v2",
        data={"outcome": {**FOUND, "accepted_inconclusive": WHY}},
    ),
    entry(81, "cutover verified", "serving", who="ann", command_id="c2", data={"outcome": FOUND}),
    entry(90, "rollback refused", who="eve", version=None, epoch=None, message="no previous version"),
    entry(91, "start", who="eve", version="v9", epoch=9, message="another version"),
]


def whole(**more: object) -> ProgressRecord:
    counters = Counters(
        total=1000,
        completed=1000,
        tokens=5100,
        spent_nano_usd=260_000_000,
        dead_letters=3,
        mended=4,
        embedded_replay=990,
    )
    fields = {
        "name": "v2",
        "epoch": 3,
        "status": "serving",
        "progress": 1.0,
        "total": 1000,
        "completed": 1000,
        "rate_per_s": 0.0,
        "eta_s": 0.0,
        "changed_mid_migration": 7,
        "unchanged_skipped": 2,
        "dead_letters": 3,
        "live_lag": 0,
        "planned": True,
        "replay_done": True,
        "counters": counters.as_dict(),
        "tiers": [
            TierProgress(name="listed", total=10, completed=10, weight=80, weight_completed=60),
            TierProgress(name="rest", total=990, completed=989),
        ],
        "updated_at": START + 100_000,
        **more,
    }
    return ProgressRecord.model_validate(fields)


def series() -> SeriesRecord:
    points = [
        Point(START + 1000 * s, 16 * s, 1000, 2 * s, 5 if s == 33 else s % 3, 80 * s, 4_000_000 * s) for s in range(63)
    ]
    after = [Point(START + 65_000 + 1000 * s, 1000, 1000, 126 + s, 0, 5100, 260_000_000) for s in range(30)]
    return SeriesRecord(
        epoch=3,
        since_ms=START,
        updated_ms=START + 95_000,
        unseen_ms=61_000,
        replay=Track(points=points),
        after=Track(points=after),
        waits=[
            Wait(
                status="waiting",
                reason="live lag 12 is above 10",
                times=2,
                lasted_ms=9000,
                first_ms=START + 21_000,
                last_ms=START + 40_000,
            )
        ],
        runs=[Run(worker="host-1", since_ms=START, last_ms=START + 50_000)],
        starts=4,
    )


def facts(**more: object) -> Facts:
    given = {
        "build": build(),
        "entries": ENTRIES,
        "whole": whole(),
        "series": series(),
        "letters": {"not_json": 3},
        **more,
    }
    return facts_of(COLLECTION, now_ms=START + 100_000, **given)  # type: ignore[arg-type]


def test_the_page_says_everything_that_was_recorded() -> None:
    html = page(facts())
    assert html.startswith(MARK)
    shown = Page(html)
    for words in (
        "docs/v2: report of a migration",
        "Begun 2023-11-14T22:13:20Z and ready 2023-11-14T22:14:25Z, 1m05s later",
        "1,000 of 1,000 documents of the history are done; 7 of them changed meanwhile",
        "Cutover 2023-11-14T22:14:40Z by ann: docs is served by v2.",
        "building 2023-11-14T22:13:22Z 2023-11-14T22:14:25Z 1m03s",
        "listed 10 10 100% 75.0%",
        "rest 989 990 99.8%",
        "Weighted by traffic: 75.0%",
        "95% interval (0.910 to 1.060)",
        "Note: slice 'short': worse",
        f"Accepted although inconclusive: {WHY}",
        "1,000 0 0 1 2",
        "tokens 5,100",
        "0.26 USD",
        "3 events (by cause: not_json 3)",
        "mended after a doubt 4 documents",
        "docs/v2 stopped: the topic was recreated",
        "steps refused 2: entries 7, 10",
        "why: lunch",
        "sweep: checked 1,000, missing 0, stale 0, extra 1, held 2",
        "dimensions 384",
        "revision null",
        "host-1",
        "Started 4 times. 3 older ones are not kept. Nobody looked, or no worker reported, for 1m01s.",
        "waiting live lag 12 is above 10 2 9s",
        "live lag: at most 5 (events)",
        "offsets before the barrier 1,100",
        "0123456789ab",
    ):
        assert words in shown.text, words
    assert "another version" not in shown.text
    assert "Docs_v2_1_" not in html, "of an earlier build of the same name"
    assert shown.tags.count("svg") == 6
    assert shown.tags.count("h3") == 2 + 2 + 1, "one gate for each cutover, not for each of its entries"


def test_nothing_is_fetched_and_nothing_runs() -> None:
    shown = Page(page(facts()))
    assert not {"script", "link", "img", "iframe", "object", "image", "use"} & set(shown.tags)
    assert not {name for name, _ in shown.attributes if name in ("src", "href", "xlink:href") or name.startswith("on")}
    policy = [value for name, value in shown.attributes if name == "content" and value and "default-src" in value]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]
    assert "url(" not in page(facts())


def test_words_from_outside_stay_words() -> None:
    evil_gate = GateResult(Verdict.FAIL, (Check(EVIL, None, 0, Verdict.FAIL, EVIL),), (EVIL,), judged=True)
    events = [
        entry(
            1,
            EVIL,
            EVIL,
            who=EVIL,
            why=EVIL,
            message=EVIL,
            data={"outcome": {**FOUND, "gate": evil_gate.as_json(), "forced": EVIL}},
        )
    ]
    given = series()
    wait = given.waits[0].model_copy(update={"reason": EVIL})
    run = Run(worker=EVIL, since_ms=START, last_ms=START)
    tiers = [TierProgress(name=EVIL, total=1, completed=0)]
    html = page(
        facts(
            build=build(envelope={EVIL: EVIL}, provenance={EVIL: EVIL}, topic=EVIL),
            entries=events,
            series=given.model_copy(update={"waits": [wait], "runs": [run]}),
            letters={EVIL: 1},
            whole=whole(tiers=tiers),
        )
    )
    shown = Page(html)
    assert not {"script", "b"} & set(shown.tags)
    assert "<script>alert('x')</script>" in shown.text
    assert "\x1b" not in html
    assert "\u202e" not in html


@pytest.mark.parametrize("stage", list(Stage))
def test_a_build_of_which_nothing_was_recorded_says_so_in_words(stage: Stage) -> None:
    bare = build(stage=stage, started_ms=0, ready_ms=0, barrier={}, envelope={}, partitions=0)
    shown = Page(page(facts(build=bare, entries=[], whole=None, series=None, letters={})))
    assert "svg" not in shown.tags
    for words in (
        "The journal holds no stage of it.",
        "nothing to plot",
        "No progress record of this build is left.",
        "No cutover to this version has asked the gate yet.",
        "No sweep of this version stands in the journal",
        "Nobody has reported what it came to.",
        "The journal holds no entry of this build.",
    ):
        assert words in shown.text, words
    just_begun = Chronicle(3, START).record
    shown = Page(page(facts(build=bare, series=just_begun, whole=whole(tiers=[], planned=False))))
    assert shown.text.count("too short to plot") == 5
    assert "No worker has reported." in shown.text
    assert "It never gave a reason to wait" in shown.text
    assert "the number of documents is not known" in shown.text


def test_what_was_spent_comes_from_the_journal_when_no_record_is_left() -> None:
    assert facts(whole=None).spent == (5000, 0.25)
    assert facts(whole=whole(epoch=2)).spent == (5000, 0.25), "an older build's record is not this one's"
    with_budget = facts(build=build(controls=Controls(budget_usd=1.5)))
    assert "budget 1.50 USD" in Page(page(with_budget)).text


def test_rates_are_exact_means_and_gaps_stay_gaps() -> None:
    points = [
        Point(START + at, done, 100, 0, 0, 0, 0)
        for at, done in ((0, 0), (1000, 10), (3000, 50), (60_000, 60), (61_000, 5))
    ]
    track = Track(points=points)
    assert rates(track, lambda p: p.completed) == [(START + 1000, 10.0), (START + 3000, 20.0), None, None]


def test_json_holds_the_same() -> None:
    data = json.loads(json.dumps(facts_json(facts())))
    assert (data["total"], data["tokens"], data["stage"]) == (1000, 5100, "serving")
    assert [one["number"] for one in data["gates"]] == [7, 8]
    assert data["sweeps"][0]["extra"] == 1
    assert [one["event"] for one in data["time_line"]][:3] == ["declared", "start", "pause"]


@pytest.mark.parametrize("most", [0.0, 1e-9, 0.3, 1.0, 7.0, 99.9, 100.0, 12_345.0, 3e12])
def test_ticks_are_round_and_reach_the_highest(most: float) -> None:
    steps = ticks(most)
    assert steps[0] == 0
    assert steps[-1] >= most * 0.999999
    assert 2 <= len(steps) <= 7
    plot = Plot("t", "a <unit>", (Line("one", [(START, 0.0), None, (START + 5, most), (START + 9, most)]),))
    Page(svg(plot))


def test_numbers_and_times_on_an_axis_are_short() -> None:
    assert [number(value) for value in (0, 0.25, 1234, 1.5e6, 2e9)] == ["0", "0.25", "1,234", "1.5M", "2G"]
    assert clock(START, 60_000) == "22:13:20"
    assert clock(START, 3 * 3_600_000) == "22:13"
    assert clock(START, 3 * 86_400_000) == "2023-11-14 22:13"


def test_a_page_takes_the_place_of_an_older_one_and_of_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "v2.html"
    write(path, MARK + "one")
    write(path, MARK + "two")
    assert path.read_text() == MARK + "two"
    assert path.stat().st_mode & 0o400
    other = tmp_path / "golden.jsonl"
    other.write_text("precious")
    with pytest.raises(Refused, match="no report of Crossfade"):
        write(other, MARK)
    assert other.read_text() == "precious"
    with pytest.raises(Refused, match="cannot be written"):
        write(tmp_path / "missing" / "v2.html", MARK)
    assert sorted(found.name for found in tmp_path.iterdir()) == ["golden.jsonl", "v2.html"]
