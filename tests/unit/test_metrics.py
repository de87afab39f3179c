"""Prometheus metrics: of the partitions this worker owns, under names that say their unit, and over HTTP.

What docs/observing.md lists, and what the Grafana dashboard asks for, is what a worker shows.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError

from connectors.embedders.endpoint import EndpointStatus
from connectors.errors import ConfigurationError
from connectors.memory.log import MemoryLog
from connectors.services.ports import choose
from streams import metrics
from streams.app import Worker
from streams.config import Settings
from streams.config_operation import Throttle
from streams.observed import CallTimes, Observed, held_by, speed_of
from streams.progress import Counters, ProgressRecord
from streams.state import Bounds, BuildState, CollectionState, CommandOutcome, Failure, Watching
from streams.throttles import Reading, Verdict, decide
from streams.versions import Stage
from streams.views import ProgressView, StateView

ROOT = Path(__file__).parents[2]
TYPES = {"gauge", "counter", "histogram"}
UNITS = ("documents", "events", "texts", "tokens", "usd", "letters", "seconds", "requests")


def build(version: str, stage: Stage, epoch: int = 1, failure: Failure | None = None) -> BuildState:
    return BuildState(
        collection="docs",
        version=version,
        epoch=epoch,
        stage=stage,
        envelope={},
        fingerprint=f"f{version}",
        space=f"Docs_{version}",
        topic="docs",
        partitions=2,
        failure=failure,
    )


def report(version: str, worker: str, epoch: int = 1, **counted: int) -> ProgressRecord:
    counters = Counters(**counted)
    return ProgressRecord(
        name=version,
        epoch=epoch,
        status="building",
        progress=0.5,
        total=10,
        completed=5,
        rate_per_s=2.5,
        eta_s=2.0,
        changed_mid_migration=0,
        unchanged_skipped=0,
        dead_letters=0,
        live_lag=7,
        worker=worker,
        counters=counters.as_dict(),
        updated_at=5_000,
    )


BOUNDS = Bounds(every_s=1, max_zero_results=0, max_errors=0, max_latency_ratio=2, rollback=False)
COLLECTIONS = {
    "docs": CollectionState(
        collection="docs",
        alias="Docs",
        topic="docs",
        serving="v1",
        applied=[
            CommandOutcome(id="1", ok=False, message="", data={"gate": {"verdict": "fail"}}),
            CommandOutcome(id="2", ok=True, message="", data={"gate": {"verdict": "pass"}}),
            CommandOutcome(id="3", ok=True, message="set"),
        ],
        watch=Watching(
            version="v1", epoch=1, previous=None, swap_id="2", since_ms=0, until_ms=1, bounds=BOUNDS, result="crossed"
        ),
    )
}
BUILDS = {
    "docs/v1": build("v1", Stage.SERVING),
    "docs/v2": build("v2", Stage.BUILDING, epoch=3, failure=Failure(cause="a secret reason")),
    "docs/v0": build("v0", Stage.RETIRED),
}
PROGRESS = {
    "docs/v1/0": report("v1", "me", embedded_live=4, tokens=100, spent_nano_usd=2_000_000_000),
    "docs/v1/1": report("v1", "another"),
    "docs/v2/0": report("v2", "me", epoch=2),
    "docs/v2/1": report(
        "v2", "me", epoch=3, dead_letters=1, suppressed_by_live=5, suppressed_by_live_delete=2, stale=3
    ),
    "docs/v2": report("v2", "", epoch=3),
    "docs/v1": report("v1", "", epoch=9),
    "docs/v0/0": report("v0", "me"),
}


def endpoint(**changes: object) -> EndpointStatus:
    values: dict[str, object] = {
        "name": "models:80",
        "rank": 0,
        "state": "open",
        "in_flight": 3,
        "concurrency": 8,
        "waiting_urgent": 1,
        "waiting_replay": 2,
        "busy_s": 12.5,
        "held_s": 4.0,
        "tokens": 900,
        "outcomes": {"ok": 6, "throttled": 2},
        "last_error": None,
        "refused": "a reason",
    }
    return EndpointStatus(**{**values, **changes})  # type: ignore[arg-type]  # by name


def observed() -> Observed:
    seen = Observed(
        dead_letters=Counter({"content_rejected": 2}),
        endpoints=(endpoint(),),
        held_by=frozenset({"file"}),
        speed=0.0,
    )
    for took_s in (0.0005, 0.02, 0.02, 99.0):
        seen.calls.observe("upsert", took_s)
    return seen


def view(name: str = "me") -> metrics.View:
    hosted = {("docs/v2", 3): observed(), ("docs/v1", 7): observed()}
    return metrics.View(name, COLLECTIONS, BUILDS, PROGRESS, lambda: hosted, lambda: True)


def text_of(collector: metrics.Worker) -> str:
    registry = CollectorRegistry()
    registry.register(collector)
    return generate_latest(registry).decode()


def shown(text: str) -> dict[str, dict[tuple[str, ...], float]]:
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = tuple(value for _, value in sorted(sample.labels.items()))
            found.setdefault(sample.name, {})[labels] = sample.value
    return found


def declared() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Every metric of a worker, as its name on the page: type, and labels where it has a sample."""
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    for family in metrics.Worker(view()).collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {label for sample in family.samples for label in sample.labels if label != "le"}
        found[name] = (family.type, tuple(sorted(labels)))
    return found


def test_a_worker_shows_its_own_partitions_of_active_builds() -> None:
    port = choose(["metrics"], {})["metrics"]
    server = metrics.serve(metrics.Worker(view()), f"127.0.0.1:{port}")
    try:
        reply = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False)
        assert reply.status_code == 200
        with pytest.raises(ConfigurationError, match="cannot be served"):
            metrics.serve(metrics.Worker(view("another")), f"127.0.0.1:{port}")
    finally:
        server.shutdown()
        server.server_close()
    found = shown(reply.text)
    v1, v2 = ("docs", "fv1", "0", "v1"), ("docs", "fv2", "1", "v2")
    assert found["crossfade_live_lag_events"] == {v1: 7.0, v2: 7.0}
    assert found["crossfade_embedding_cost_usd_total"][v1] == 2.0
    assert found["crossfade_embedding_tokens_total"][v1] == 100.0
    assert found["crossfade_dead_letters_total"][v2] == 1.0
    assert found["crossfade_embedded_documents_total"][("docs", "fv1", "live", "0", "v1")] == 4.0
    assert found["crossfade_reported_timestamp_seconds"][v1] == 5.0
    assert found["crossfade_build_info"] == {
        ("docs", "1", "fv1", "true", "serving", "v1"): 1.0,
        ("docs", "3", "fv2", "false", "building", "v2"): 1.0,
    }
    assert found["crossfade_replay_eta_seconds"] == {("docs", "fv2", "v2"): 2.0}, "that of an older epoch says nothing"
    assert found["crossfade_build_failed"] == {("docs", "fv1", "v1"): 0.0, ("docs", "fv2", "v2"): 1.0}
    assert found["crossfade_controller"] == {(): 1.0}
    assert found["process_open_fds"][()] > 0
    with socket.socket() as again:  # and it let the port go
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", port))


def test_every_drop_has_a_reason() -> None:
    found = shown(text_of(metrics.Worker(view())))
    by_reason = {k[3]: n for k, n in found["crossfade_discarded_events_total"].items() if k[4] == "v2"}
    assert by_reason == {"stale": 3, "superseded": 0, "compacted_away": 0, "newer_put_live": 3, "deleted_live": 2}
    assert found["crossfade_dead_letter_events_total"] == {("content_rejected", "docs", "fv2", "v2"): 2.0}


def test_what_a_build_meets_outside() -> None:
    found = shown(text_of(metrics.Worker(view())))
    at = ("docs", "models:80", "fv2")
    requests = {k[3]: n for k, n in found["crossfade_endpoint_requests_total"].items()}
    assert requests == {**dict.fromkeys(metrics.OUTCOMES, 0.0), "ok": 6.0, "throttled": 2.0}
    assert found["crossfade_endpoint_circuit"] == {
        (*at, "closed", "v2"): 0.0,
        (*at, "open", "v2"): 1.0,
        (*at, "probing", "v2"): 0.0,
    }
    assert found["crossfade_endpoint_refused"] == {(*at, "v2"): 1.0}
    assert found["crossfade_endpoint_waiting_requests"] == {(*at, "urgent", "v2"): 1.0, (*at, "replay", "v2"): 2.0}
    held = {k[2]: n for k, n in found["crossfade_throttle_held"].items()}
    assert held == {kind: float(kind == "file") for kind in metrics.HOLDS}
    buckets = {k[2]: n for k, n in found["crossfade_weaviate_call_seconds_bucket"].items()}
    assert (buckets["0.001"], buckets["0.01"], buckets["0.025"], buckets["30"], buckets["+Inf"]) == (1, 1, 3, 3, 4)
    assert found["crossfade_weaviate_call_seconds_count"] == {("docs", "fv2", "upsert", "v2"): 4.0}
    assert found["crossfade_weaviate_call_seconds_sum"][("docs", "fv2", "upsert", "v2")] == pytest.approx(99.0405)


def test_the_last_verdict_and_the_watch_of_a_collection() -> None:
    found = shown(text_of(metrics.Worker(view())))
    assert found["crossfade_gate_verdict"] == {
        ("docs", "pass"): 1.0,
        ("docs", "fail"): 0.0,
        ("docs", "inconclusive"): 0.0,
    }
    watched = {k[1] for k, n in found["crossfade_watch_result"].items() if n == 1.0}
    assert watched == {"crossed"}
    assert found["crossfade_cutover_pending"] == {("docs",): 0.0}


def test_no_reason_or_error_is_ever_shown() -> None:
    text = text_of(metrics.Worker(view()))
    assert "reason" not in {label for _, labels in declared().values() for label in labels} - {"reason"}
    assert "a secret reason" not in text
    assert "a reason" not in text


def test_names_say_their_unit() -> None:
    for name, (kind, labels) in declared().items():
        assert name.startswith("crossfade_")
        assert kind in TYPES
        assert labels or name == "crossfade_controller", f"{name} has no sample here"
        if kind == "counter":
            assert name.removesuffix("_total").endswith(UNITS), name
        if "version" in labels and name != "crossfade_watch_result":
            assert "fingerprint" in labels, name


def test_a_throttle_says_which_setting_holds() -> None:
    wall = datetime(2026, 1, 1, 12, tzinfo=UTC)
    settings = Throttle(max_live_lag=10, hours=["22:00-06:00"], http="http://h/x", max_disk=None)
    readings: Mapping[object, Reading] = {
        "max_live_lag": Reading(20.0, 1.0),
        "http": Reading(0.0, 1.0),
    }
    verdict = decide(settings, readings, 1.0, wall)  # type: ignore[arg-type]  # keys are kinds
    assert held_by(verdict, settings, readings, wall) == {"max_live_lag", "hours"}  # type: ignore[arg-type]
    assert speed_of(verdict) == 0.0
    unread = decide(settings.model_copy(update={"hours": []}), {}, 1.0, wall)
    assert held_by(unread, settings.model_copy(update={"hours": []}), {}, wall) == {"unread"}
    assert held_by(Verdict(), settings, {}, wall) == frozenset()
    assert speed_of(Verdict()) == 1.0


def test_buckets_count_what_took_no_longer() -> None:
    calls = CallTimes()
    calls.observe("heads", 0.001)
    counted = calls.by_operation()["heads"]
    assert set(counted.within) == {1}, "a bucket holds its bound"


ROW = re.compile(r"^\| `(crossfade_\w+)` \| (\w+) \| ([^|]*) \|", re.MULTILINE)


def test_the_documentation_lists_every_metric() -> None:
    rows = {name: (kind, labels) for name, kind, labels in ROW.findall((ROOT / "docs/observing.md").read_text())}
    listed = {name: (kind, tuple(sorted(re.findall(r"\w+", labels)))) for name, (kind, labels) in rows.items()}
    assert listed == declared()


def queries(panel: object) -> list[str]:
    """Every query below a panel, or in a variable of the dashboard."""
    if isinstance(panel, dict):
        here = [panel["expr"]] if isinstance(panel.get("expr"), str) else []
        if isinstance(panel.get("definition"), str):
            here.append(panel["definition"])
        return here + [query for value in panel.values() for query in queries(value)]
    return [query for value in panel for query in queries(value)] if isinstance(panel, list) else []


def test_the_dashboard_asks_for_what_there_is() -> None:
    dashboard = json.loads((ROOT / "deploy/grafana-crossfade.json").read_text())
    known = {
        part
        for name, (kind, _) in declared().items()
        for part in ([f"{name}_bucket", f"{name}_count", f"{name}_sum"] if kind == "histogram" else [name])
    }
    asked = [name for query in queries(dashboard) for name in re.findall(r"crossfade_\w+", query)]
    assert set(asked) <= known
    assert len(set(asked)) > 20
    labels = {label for _, of in declared().values() for label in of} | {"le", "job", "instance"}
    for query in queries(dashboard):
        named = set(re.findall(r"(\w+)\s*=~?\s*\"", query))
        for group in re.findall(r"\b(?:by|without)\s*\(([^)]*)\)", query):
            named |= set(re.findall(r"\w+", group))
        assert named <= labels, query
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        if panel["type"] != "row":
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert panel["targets"]
            assert panel["description"]


@pytest.mark.parametrize("chosen", [False, True])
def test_without_the_default_address_a_worker_goes_on(
    chosen: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def taken(_: object, listen: str) -> None:
        raise ConfigurationError(f"metrics cannot be served at {listen}: taken", next_step="set metrics.listen")

    monkeypatch.setattr(metrics, "serve", taken)
    raw = {"metrics": {"listen": "127.0.0.1:9464"}} if chosen else {}
    worker = Worker(tmp_path / "crossfade.yaml", Settings.model_validate(raw))
    log = MemoryLog()
    worker._view, worker._progress = StateView(log.tail("state")), ProgressView(log.tail("progress"))
    with caplog.at_level("INFO"), contextlib.ExitStack() as closing:
        if chosen:
            with pytest.raises(ConfigurationError, match="cannot be served"):
                worker._serve_metrics(closing)
        else:
            worker._serve_metrics(closing)
            assert [record.levelname for record in caplog.records] == ["INFO"]
            assert "goes on without metrics" in caplog.text
            assert "set metrics.listen" in caplog.text


def test_metrics_can_be_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(metrics, "serve", never)
    worker = Worker(tmp_path / "crossfade.yaml", Settings.model_validate({"metrics": {"listen": "none"}}))
    with contextlib.ExitStack() as closing:
        worker._serve_metrics(closing)
    with pytest.raises(ValidationError, match="is no address; wanted: host:port"):
        Settings.model_validate({"metrics": {"listen": "off"}})
