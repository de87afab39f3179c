"""Prometheus metrics of one worker: what it hosts, as it reports it to the progress topic, and what serves.

Each worker shows the partitions that it owns, so that a sum over workers is the whole. It only reads; no key, text or
address of a document is ever a label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import get_args
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from connectors.embedders.endpoint import EndpointStatus
from connectors.embedders.limits import State as CircuitState
from connectors.errors import ConfigurationError
from streams.observed import CALL_BUCKETS_S, Observed
from streams.progress import Counters, ProgressRecord
from streams.state import BuildState, CollectionState, CommandOutcome, Watching
from streams.throttles import Kind

BUILD = ("collection", "version", "fingerprint")
PARTITION = (*BUILD, "partition")
ENDPOINT = (*BUILD, "endpoint")
OUTCOMES = ("ok", "rejected", "throttled", "failed", "refused", "cancelled", "broken")
CIRCUITS: tuple[str, ...] = get_args(CircuitState)
HOLDS: tuple[str, ...] = (*get_args(Kind), "hours", "unread")
VERDICTS = ("pass", "fail", "inconclusive")
WATCHES: tuple[str, ...] = get_args(Watching.model_fields["result"].annotation)

Labels = tuple[str, ...]

GAUGES: Mapping[str, tuple[str, Callable[[ProgressRecord], float]]] = {
    "replay_documents": ("Documents of the history to replay.", lambda r: r.total),
    "replay_documents_completed": ("Documents of the history accounted for.", lambda r: r.completed),
    "replay_documents_per_second": ("How fast the history is replayed.", lambda r: r.rate_per_s),
    "replay_done": ("1 when the replay is complete.", lambda r: float(r.replay_done)),
    "live_lag_events": ("Events not yet resolved.", lambda r: r.live_lag),
    "unsettled_keys": ("Keys that a write of unknown outcome may still change.", lambda r: r.unsettled),
    "waiting": ("1 while it waits for something: see the reason in status.", lambda r: float(r.status == "waiting")),
    "reported_timestamp_seconds": ("When it was reported, since the epoch.", lambda r: r.updated_at / 1000),
}
COUNTERS: Mapping[str, tuple[str, Callable[[Counters], float]]] = {
    "live_events": ("Events of the live lane resolved.", lambda c: c.live_resolved),
    "replayed_documents": ("Documents of the history resolved.", lambda c: c.replayed),
    "written_documents": ("Documents written to the space.", lambda c: c.written),
    "deleted_documents": ("Documents deleted from the space.", lambda c: c.deleted),
    "changed_mid_migration_documents": (
        "Documents of the history that live changed before the replay was over.",
        lambda c: c.changed_mid_migration,
    ),
    "unchanged_skipped_events": ("Events of equal text, not embedded again.", lambda c: c.unchanged_skipped),
    "dead_letters": ("Events sent to the dead letters since the build began.", lambda c: c.dead_letters),
    "carried_documents": ("Documents that the topic has forgotten, from the serving space.", lambda c: c.carried),
    "not_carried_documents": ("Such documents that could not be put together again.", lambda c: c.not_carried),
    "mended_documents": ("Documents written again because of a doubt.", lambda c: c.mended),
    "cached_texts": ("Texts whose vectors came from the cache.", lambda c: c.cached),
    "truncated_texts": ("Texts cut at the model's limit.", lambda c: c.truncated),
    "embedding_tokens": ("Tokens paid for.", lambda c: c.tokens),
    "embedding_cost_usd": ("Spent on embeddings.", lambda c: c.cost_usd),
}
LANES: Mapping[str, Callable[[Counters], float]] = {
    "live": lambda c: c.embedded_live,
    "replay": lambda c: c.embedded_replay,
    "mend": lambda c: c.embedded_mend,
}
DISCARDED: Mapping[str, Callable[[Counters], float]] = {
    "stale": lambda c: c.stale,
    "superseded": lambda c: c.superseded,
    "compacted_away": lambda c: c.compacted_away,
    "newer_put_live": lambda c: c.suppressed_by_live - c.suppressed_by_live_delete,
    "deleted_live": lambda c: c.suppressed_by_live_delete,
}
"""Records that were rightly not written, by reason: every drop has one."""
ENDPOINT_GAUGES: Mapping[str, tuple[str, Callable[[EndpointStatus], float]]] = {
    "endpoint_in_flight_requests": ("Requests under way.", lambda e: e.in_flight),
    "endpoint_concurrency_requests": ("Most requests at once, as found so far.", lambda e: e.concurrency),
    "endpoint_held_seconds": ("Left of a Retry-After.", lambda e: e.held_s),
    "endpoint_refused": ("1 when it is used no more until somebody acts.", lambda e: float(e.refused is not None)),
}
ENDPOINT_COUNTERS: Mapping[str, tuple[str, Callable[[EndpointStatus], float]]] = {
    "endpoint_busy_seconds": ("Time with a request under way.", lambda e: e.busy_s),
    "endpoint_tokens": ("Tokens of the requests that gave vectors.", lambda e: e.tokens),
}


@dataclass(frozen=True, slots=True)
class View:
    """Of the worker `name`; `builds`, `collections` and `progress` as its views hold them now. `hosted`: what runs in
    this worker, by key and epoch; `is_controller`: whether this one is."""

    name: str
    collections: Mapping[str, CollectionState]
    builds: Mapping[str, BuildState]
    progress: Mapping[str, ProgressRecord]
    hosted: Callable[[], Mapping[tuple[str, int], Observed]] = dict
    is_controller: Callable[[], bool] = bool


class Worker(Collector):
    """What a View holds, as metrics. Called by the HTTP server's thread: it takes what there is, waits for nothing."""

    def __init__(self, view: View) -> None:
        self._view = view

    def collect(self) -> Iterator[Metric]:
        builds = [build for build in list(self._view.builds.values()) if build.active]
        hosted = self._view.hosted()
        observed = [(_of(b), seen) for b in builds if (seen := hosted.get((b.key, b.epoch))) is not None]
        yield from _of_partitions(list(self._mine(builds)))
        yield from self._of_builds(builds)
        yield from _of_endpoints([((*of, e.name), e) for of, seen in observed for e in seen.endpoints])
        yield from _of_hosted(observed)
        yield from _of_collections(list(self._view.collections.values()))
        yield _gauge("controller", "1 when this worker is the controller.", (), [((), self._view.is_controller())])

    def _mine(self, builds: Iterable[BuildState]) -> Iterator[tuple[Labels, ProgressRecord]]:
        for build in builds:
            for partition in range(build.partitions):
                record = self._view.progress.get(f"{build.key}/{partition}")
                if record is not None and record.epoch == build.epoch and record.worker == self._view.name:
                    yield (*_of(build), str(partition)), record

    def _of_builds(self, builds: Iterable[BuildState]) -> Iterator[Metric]:
        """The same from every worker."""
        info: list[tuple[Labels, float]] = []
        etas: list[tuple[Labels, float]] = []
        for build in builds:
            state = self._view.collections.get(build.collection)
            serving = str(state is not None and state.serving == build.version).lower()
            info.append(((*_of(build), build.stage.value, str(build.epoch), serving), 1.0))
            whole = self._view.progress.get(build.key)
            if whole is not None and whole.epoch == build.epoch and whole.eta_s is not None:
                etas.append((_of(build), whole.eta_s))
        yield _gauge(
            "build_info",
            "1 for every version that is written; the same from every worker.",
            (*BUILD, "stage", "epoch", "serving"),
            info,
        )
        yield _gauge(
            "replay_eta_seconds",
            "Until the replay is complete; absent while nobody can know. The same from every worker.",
            BUILD,
            etas,
        )
        yield _gauge(
            "build_failed",
            "1 while a build is stopped until somebody acts; the same from every worker.",
            BUILD,
            [(_of(build), float(build.failure is not None)) for build in builds],
        )
        yield _gauge(
            "build_paused",
            "1 while an operator has paused a build; the same from every worker.",
            BUILD,
            [(_of(build), float(build.paused is not None)) for build in builds],
        )


def _of(build: BuildState) -> Labels:
    return (build.collection, build.version, build.fingerprint)


def _gauge(name: str, text: str, labels: Labels, samples: Iterable[tuple[Labels, float]]) -> Metric:
    family = GaugeMetricFamily(f"crossfade_{name}", text, labels=labels)
    for values, value in samples:
        family.add_metric(values, float(value))
    return family


def _counter(name: str, text: str, labels: Labels, samples: Iterable[tuple[Labels, float]]) -> Metric:
    family = CounterMetricFamily(f"crossfade_{name}", text, labels=labels)
    for values, value in samples:
        family.add_metric(values, float(value))
    return family


def _one_of(of: Labels, possible: Iterable[str], now: Iterable[str]) -> Iterator[tuple[Labels, float]]:
    """A sample for each possible value: 1 for those of now, 0 for the others."""
    return (((*of, value), float(value in now)) for value in possible)


def _of_partitions(mine: list[tuple[Labels, ProgressRecord]]) -> Iterator[Metric]:
    for name, (text, value) in GAUGES.items():
        yield _gauge(name, text, PARTITION, [(labels, value(record)) for labels, record in mine])
    counted = [(labels, record.counted()) for labels, record in mine]
    for name, (text, count) in COUNTERS.items():
        yield _counter(name, text, PARTITION, [(labels, count(counters)) for labels, counters in counted])
    yield _counter(
        "embedded_documents",
        "Sent to the model, by lane (live, replay, mend).",
        (*PARTITION, "lane"),
        [((*labels, lane), count(counters)) for labels, counters in counted for lane, count in LANES.items()],
    )
    yield _counter(
        "discarded_events",
        "Records rightly not written, by reason.",
        (*PARTITION, "reason"),
        [((*labels, reason), count(counters)) for labels, counters in counted for reason, count in DISCARDED.items()],
    )


def _of_endpoints(endpoints: list[tuple[Labels, EndpointStatus]]) -> Iterator[Metric]:
    for name, (text, value) in ENDPOINT_GAUGES.items():
        yield _gauge(name, text, ENDPOINT, [(labels, value(endpoint)) for labels, endpoint in endpoints])
    for name, (text, value) in ENDPOINT_COUNTERS.items():
        yield _counter(name, text, ENDPOINT, [(labels, value(endpoint)) for labels, endpoint in endpoints])
    yield _counter(
        "endpoint_requests",
        f"Requests ended, by outcome ({', '.join(OUTCOMES)}).",
        (*ENDPOINT, "outcome"),
        [((*of, outcome), endpoint.outcomes.get(outcome, 0)) for of, endpoint in endpoints for outcome in OUTCOMES],
    )
    yield _gauge(
        "endpoint_waiting_requests",
        "Requests that wait for their turn: urgent (live, query) and replay.",
        (*ENDPOINT, "urgency"),
        [
            ((*of, urgency), waiting)
            for of, endpoint in endpoints
            for urgency, waiting in (("urgent", endpoint.waiting_urgent), ("replay", endpoint.waiting_replay))
        ],
    )
    yield _gauge(
        "endpoint_circuit",
        f"1 for the state of the circuit breaker ({', '.join(CIRCUITS)}).",
        (*ENDPOINT, "state"),
        [sample for of, endpoint in endpoints for sample in _one_of(of, CIRCUITS, (endpoint.state,))],
    )


def _of_hosted(observed: list[tuple[Labels, Observed]]) -> Iterator[Metric]:
    yield _counter(
        "dead_letter_events",
        "Events sent to the dead letters, by cause, since this worker began to host the build.",
        (*BUILD, "cause"),
        [((*of, cause), n) for of, seen in observed for cause, n in dict(seen.dead_letters).items()],
    )
    yield _gauge(
        "throttle_held",
        "1 for each setting of the throttle that holds the replay.",
        (*BUILD, "kind"),
        [sample for of, seen in observed for sample in _one_of(of, HOLDS, seen.held_by)],
    )
    yield _gauge(
        "throttle_speed_ratio",
        "The share of its speed that the throttle leaves the replay: 1 all, 0 held.",
        BUILD,
        [(of, seen.speed) for of, seen in observed],
    )
    calls = HistogramMetricFamily(
        "crossfade_weaviate_call_seconds",
        "Calls to Weaviate that ended, well or not, by operation.",
        labels=(*BUILD, "operation"),
    )
    names = [*(f"{bound:g}" for bound in CALL_BUCKETS_S), "+Inf"]
    for of, seen in observed:
        for operation, counted in seen.calls.by_operation().items():
            buckets = list(zip(names, counted.within, strict=True))
            calls.add_metric((*of, operation), buckets=buckets, sum_value=counted.sum_s)
    yield calls


def _of_collections(states: list[CollectionState]) -> Iterator[Metric]:
    """The same from every worker."""
    judged = [(state, found) for state in states if (found := newest_verdict(state.applied)) is not None]
    yield _gauge(
        "gate_verdict",
        f"1 for what the gate said last ({', '.join(VERDICTS)}); absent before it was asked.",
        ("collection", "verdict"),
        [sample for state, found in judged for sample in _one_of((state.collection,), VERDICTS, (found,))],
    )
    yield _gauge(
        "watch_result",
        f"1 for the state of the watch over the newest cutover ({', '.join(WATCHES)}).",
        ("collection", "version", "result"),
        [
            sample
            for state in states
            if (watch := state.watch) is not None
            for sample in _one_of((state.collection, watch.version), WATCHES, (watch.result,))
        ],
    )
    yield _gauge(
        "cutover_pending",
        "1 while a cutover waits for a file or for somebody's approval.",
        ("collection",),
        [((state.collection,), float(state.pending is not None)) for state in states],
    )


def newest_verdict(applied: Iterable[CommandOutcome]) -> str | None:
    """Of the gate, as the outcomes of commands tell it; None when none of them tells."""
    verdict: str | None = None
    for outcome in applied:
        gate = outcome.data.get("gate")
        said = gate.get("verdict") if isinstance(gate, dict) else None
        verdict = said if isinstance(said, str) else verdict
    return verdict


def serve(collector: Collector, listen: str) -> WSGIServer:
    """GET /metrics at `listen`, host:port, on a thread of its own, with figures of the process beside them.

    Raises ConfigurationError when it cannot listen there.
    """
    registry = CollectorRegistry()
    registry.register(collector)
    ProcessCollector(registry=registry)
    host, _, port = listen.rpartition(":")
    try:
        server, _ = start_http_server(int(port), host.strip("[]"), registry)
    except OSError as error:
        raise ConfigurationError(
            f"metrics cannot be served at {listen}: {error.strerror}",
            next_step="set metrics.listen to a free port of this machine; each worker on it needs one of its own",
        ) from error
    return server
