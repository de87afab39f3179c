"""A worker seen from outside, on real services: its metrics, its log as JSON, its spans at a collector."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from prometheus_client.parser import text_string_to_metric_families
from pydantic import JsonValue

from connectors.services import Addresses
from streams.versions import Stage
from tests.conftest import MakeTopic, Unique
from tests.deployment import COLLECTION, Deployment, Event, deployed

V1: dict[str, JsonValue] = {"embedder": {"provider": "hashing"}, "dimensions": 32, "concurrency": 2}
SECRET = "a-sentence-of-a-document"
KEY = "a-key-of-a-document"


@pytest.fixture
async def d(services: Addresses, tmp_path: Path, unique: Unique, make_topic: MakeTopic) -> AsyncIterator[Deployment]:
    collection: dict[str, JsonValue] = {"text": {"fields": ["text"]}, "properties": {}}
    async with deployed(
        services, tmp_path, unique("cf"), make_topic(partitions=2), unique("Docs"), collection
    ) as deployment:
        yield deployment


class Collector:
    """Takes OTLP over HTTP, as an OpenTelemetry collector does."""

    def __init__(self) -> None:
        self.spans: dict[str, list[dict[str, str | int | float | bool]]] = {}
        self.raw = b""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                outer.take(body)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                return None

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def take(self, body: bytes) -> None:
        self.raw += body
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    attributes = {pair.key.removeprefix("crossfade."): value_of(pair.value) for pair in span.attributes}
                    self.spans.setdefault(span.name, []).append(attributes)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def value_of(value: AnyValue) -> str | int | float | bool:
    found: str | int | float | bool = getattr(value, value.WhichOneof("value") or "string_value")
    return found


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    collector = Collector()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield collector
    collector.close()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


async def figures(port: int) -> dict[str, float]:
    """Of each metric, all its samples together."""
    async with httpx.AsyncClient(trust_env=False) as client:
        text = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
    assert SECRET not in text
    assert KEY not in text
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


async def figures_when(port: int, name: str, value: float) -> dict[str, float]:
    async with asyncio.timeout(30):
        while True:
            now = await figures(port)
            if now.get(name) == value:
                return now
            await asyncio.sleep(0.2)


async def test_a_worker_can_be_watched(d: Deployment, collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSFADE_LOG_FORMAT", "json")
    port = free_port()
    d.raw["metrics"] = {"listen": f"127.0.0.1:{port}"}
    history: list[Event] = [(f"{KEY}-{i}", {"text": f"{SECRET} {i}"}, None) for i in range(200)]
    await d.produce([*history, (f"{KEY}-bad", {"no": "text"}, None)])
    d.add_version("v1", V1)
    worker = d.start_worker()
    await d.until_state("v1", lambda build: build.stage is Stage.READY)
    await d.produce([(f"{KEY}-0", {"text": f"{SECRET} changed"}, None), (f"{KEY}-1", None, None)])

    now = await figures_when(port, "crossfade_live_events_total", 2)
    assert now["crossfade_replay_documents"] == now["crossfade_replay_documents_completed"] == 201
    assert now["crossfade_embedded_documents_total"] == 201
    assert now["crossfade_dead_letters_total"] == now["crossfade_dead_letter_events_total"] == 1
    assert now["crossfade_replay_done"] == 2
    assert now["crossfade_build_info"] == now["crossfade_controller"] == 1
    assert now["crossfade_weaviate_call_seconds_count"] > 0
    assert now["crossfade_endpoint_requests_total"] > 0
    assert now["crossfade_throttle_speed_ratio"] == 1

    second = d.start_worker()  # the address was chosen, and is taken
    assert await asyncio.to_thread(second.wait, 60) == 2
    assert (await d.ask("cutover", "v1", accept_held=[f"{KEY}-bad"])).ok
    assert await d.end_worker(worker) == 0

    build = d.build("v1")
    about = {"collection": COLLECTION, "version": "v1", "fingerprint": build.fingerprint}
    logs = [(d.folder / f"worker-{n}.log").read_text() for n in range(2)]
    lines = [json.loads(line) for line in logs[0].splitlines()]
    begun = next(n for n, line in enumerate(lines) if "owns partitions" in line["message"])
    mine = [line for line in lines[begun:] if "v1" in line["message"]]
    assert {"streams.live", "streams.embed_agent", "streams.state_store"} <= {line["logger"] for line in mine}
    assert all(line.items() >= {**about, "epoch": build.epoch}.items() for line in mine)
    assert any("dead letters" in line["message"] and "partition" in line for line in mine)
    refused = json.loads(logs[1].splitlines()[-1])
    assert refused["level"] == "error"
    assert "metrics cannot be served" in refused["message"]
    assert "metrics.listen" in refused["next"]

    spans = collector.spans
    assert {"group", "embed", "write", "delete", "plan scan", "sweep", "gate", "cutover"} <= spans.keys()
    for name in ("group", "embed", "write", "plan scan", "gate", "sweep", "cutover"):
        assert all(span.items() >= about.items() for span in spans[name]), name
    assert {span["lane"] for span in spans["group"]} == {"live", "replay"}
    assert sum(int(span["documents"]) for span in spans["embed"]) == 201
    assert sum(int(span["documents"]) for span in spans["plan scan"]) == 201
    assert not any(secret.encode() in collector.raw for secret in (SECRET, KEY))
    assert SECRET not in "".join(logs)
