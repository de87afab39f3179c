"""Prometheus metrics of one worker: what it hosts, as it reports it to the progress topic, and what serves.

Each worker shows the partitions that it owns, so that a sum over workers is the whole. It only reads; no key, text or
address of a document is ever a label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from connectors.errors import ConfigurationError
from streams.progress import Counters, ProgressRecord
from streams.state import BuildState, CollectionState

LABELS = ("collection", "version", "partition")

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
    "stale_events": ("Events proven stale.", lambda c: c.stale),
    "changed_mid_migration_documents": (
        "Documents changed meanwhile.",
        lambda c: c.changed_mid_migration,
    ),
    "unchanged_skipped_events": ("Events of equal text, not embedded again.", lambda c: c.unchanged_skipped),
    "dead_letters": ("Events sent to the dead letters.", lambda c: c.dead_letters),
    "mended_documents": ("Documents written again because of a doubt.", lambda c: c.mended),
    "cached_texts": ("Texts whose vectors came from the cache.", lambda c: c.cached),
    "truncated_texts": ("Texts cut at the model's limit.", lambda c: c.truncated),
    "embedding_tokens": ("Tokens paid for.", lambda c: c.tokens),
    "embedding_cost_usd": ("Spent on embeddings.", lambda c: c.cost_usd),
}


class Worker(Collector):
    """Of the worker `name`; `builds`, `collections` and `progress` as its views hold them now."""

    def __init__(
        self,
        name: str,
        collections: Mapping[str, CollectionState],
        builds: Mapping[str, BuildState],
        progress: Mapping[str, ProgressRecord],
    ) -> None:
        self._name = name
        self._collections = collections
        self._builds = builds
        self._progress = progress

    def collect(self) -> Iterator[Metric]:
        """Called by the HTTP server's thread: it takes what there is at once and waits for nothing."""
        builds = [build for build in list(self._builds.values()) if build.active]
        mine = list(self._mine(builds))
        for name, (text, value) in GAUGES.items():
            gauge = GaugeMetricFamily(f"crossfade_{name}", text, labels=LABELS)
            for labels, record in mine:
                gauge.add_metric(labels, value(record))
            yield gauge
        for name, (text, count) in COUNTERS.items():
            counter = CounterMetricFamily(f"crossfade_{name}", text, labels=LABELS)
            for labels, record in mine:
                counter.add_metric(labels, count(record.counted()))
            yield counter
        embedded = CounterMetricFamily("crossfade_embedded_documents", "Sent to the model.", labels=(*LABELS, "lane"))
        for labels, record in mine:
            counted = record.counted()
            lanes = {"live": counted.embedded_live, "replay": counted.embedded_replay, "mend": counted.embedded_mend}
            for lane, documents in lanes.items():
                embedded.add_metric((*labels, lane), documents)
        yield embedded
        yield self._info(builds)

    def _mine(self, builds: Iterable[BuildState]) -> Iterator[tuple[tuple[str, ...], ProgressRecord]]:
        for build in builds:
            for partition in range(build.partitions):
                record = self._progress.get(f"{build.key}/{partition}")
                if record is not None and record.epoch == build.epoch and record.worker == self._name:
                    yield (build.collection, build.version, str(partition)), record

    def _info(self, builds: Iterable[BuildState]) -> Metric:
        info = GaugeMetricFamily(
            "crossfade_build_info",
            "1 for every version that is written; the same from every worker.",
            labels=("collection", "version", "stage", "epoch", "fingerprint", "serving"),
        )
        for build in builds:
            state = self._collections.get(build.collection)
            serving = str(state is not None and state.serving == build.version).lower()
            labels = (build.collection, build.version, build.stage.value, str(build.epoch), build.fingerprint, serving)
            info.add_metric(labels, 1.0)
        return info


def serve(collector: Collector, listen: str) -> WSGIServer:
    """GET /metrics at `listen`, host:port, on a thread of its own. Raises ConfigurationError when it cannot listen."""
    registry = CollectorRegistry()
    registry.register(collector)
    host, _, port = listen.rpartition(":")
    try:
        server, _ = start_http_server(int(port), host.strip("[]"), registry)
    except OSError as error:
        raise ConfigurationError(
            f"metrics cannot be served at {listen}: {error.strerror}",
            next_step="set metrics.listen to a free port of this machine; each worker on it needs one of its own",
        ) from error
    return server
