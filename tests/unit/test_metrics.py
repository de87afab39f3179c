"""Prometheus metrics: of the partitions this worker owns, under names that say their unit, and over HTTP."""

from __future__ import annotations

import socket

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from connectors.errors import ConfigurationError
from connectors.services.ports import choose
from streams import metrics
from streams.progress import Counters, ProgressRecord
from streams.state import BuildState, CollectionState
from streams.versions import Stage


def build(version: str, stage: Stage, epoch: int = 1) -> BuildState:
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


COLLECTIONS = {"docs": CollectionState(collection="docs", alias="Docs", topic="docs", serving="v1")}
BUILDS = {
    "docs/v1": build("v1", Stage.SERVING),
    "docs/v2": build("v2", Stage.BUILDING, epoch=3),
    "docs/v0": build("v0", Stage.RETIRED),
}
PROGRESS = {
    "docs/v1/0": report("v1", "me", embedded_live=4, tokens=100, spent_nano_usd=2_000_000_000),
    "docs/v1/1": report("v1", "another"),
    "docs/v2/0": report("v2", "me", epoch=2),
    "docs/v2/1": report("v2", "me", epoch=3, dead_letters=1),
    "docs/v0/0": report("v0", "me"),
}


def shown(text: str) -> dict[str, dict[tuple[str, ...], float]]:
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = tuple(value for _, value in sorted(sample.labels.items()))
            found.setdefault(sample.name, {})[labels] = sample.value
    return found


def test_a_worker_shows_its_own_partitions_of_active_builds() -> None:
    port = choose(["metrics"], {})["metrics"]
    server = metrics.serve(metrics.Worker("me", COLLECTIONS, BUILDS, PROGRESS), f"127.0.0.1:{port}")
    try:
        reply = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False)
        assert reply.status_code == 200
        with pytest.raises(ConfigurationError, match="cannot be served"):
            metrics.serve(metrics.Worker("me", {}, {}, {}), f"127.0.0.1:{port}")
    finally:
        server.shutdown()
        server.server_close()
    found = shown(reply.text)
    assert found["crossfade_live_lag_events"] == {("docs", "0", "v1"): 7.0, ("docs", "1", "v2"): 7.0}
    assert found["crossfade_embedding_cost_usd_total"][("docs", "0", "v1")] == 2.0
    assert found["crossfade_embedding_tokens_total"][("docs", "0", "v1")] == 100.0
    assert found["crossfade_dead_letters_total"][("docs", "1", "v2")] == 1.0
    assert found["crossfade_embedded_documents_total"][("docs", "live", "0", "v1")] == 4.0
    assert found["crossfade_reported_timestamp_seconds"][("docs", "0", "v1")] == 5.0
    assert found["crossfade_build_info"] == {
        ("docs", "1", "fv1", "true", "serving", "v1"): 1.0,
        ("docs", "3", "fv2", "false", "building", "v2"): 1.0,
    }
    with socket.socket() as again:  # and it let the port go
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", port))
