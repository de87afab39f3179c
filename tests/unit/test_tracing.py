"""Spans: nothing without an endpoint, what they are about with one, and never the message of an error."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from streams import tracing
from streams.subject import Subject, about, about_partition

ABOUT = Subject("docs", "v1", "0e6aeaeaa572", 3)


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    yield exporter
    exporter.shutdown()


def traced(exporter: InMemorySpanExporter, work: Callable[[], None]) -> dict[str, ReadableSpan]:
    """Run `work` with a tracer, in a context of its own; the spans that ended, by name."""

    def run() -> None:
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        tracing.Tracing.over(provider)
        work()

    contextvars.copy_context().run(run)
    return {span.name: span for span in exporter.get_finished_spans()}


def test_a_span_says_what_it_is_about(exporter: InMemorySpanExporter) -> None:
    async def embed() -> None:
        with tracing.span("embed", texts=2) as span:
            span.note(rejected=1)

    async def work() -> None:
        with about(ABOUT), about_partition(1), tracing.span("group", lane="live", events=2):
            await asyncio.create_task(embed())

    spans = traced(exporter, lambda: asyncio.run(work()))
    known = {"collection": "docs", "version": "v1", "fingerprint": "0e6aeaeaa572", "epoch": 3, "partition": 1}
    assert spans["embed"].attributes == {f"crossfade.{k}": v for k, v in {**known, "texts": 2, "rejected": 1}.items()}
    assert spans["group"].attributes == {f"crossfade.{k}": v for k, v in {**known, "lane": "live", "events": 2}.items()}
    parent, group = spans["embed"].parent, spans["group"].context
    assert parent is not None
    assert group is not None
    assert parent.span_id == group.span_id


def test_a_failed_span_names_the_type_alone(exporter: InMemorySpanExporter) -> None:
    def fail() -> None:
        with suppress(ValueError), tracing.span("write"):
            raise ValueError("the text of a document")

    span = traced(exporter, fail)["write"]
    assert (span.status.is_ok, span.status.description) == (False, "ValueError")
    assert not span.events, "an event would carry the message"
    assert "the text of a document" not in span.to_json()


def test_a_cancelled_span_is_no_failure(exporter: InMemorySpanExporter) -> None:
    def cancel() -> None:
        with suppress(asyncio.CancelledError), tracing.span("write"):
            raise asyncio.CancelledError

    span = traced(exporter, cancel)["write"]
    assert span.attributes == {"crossfade.cancelled": True}
    assert span.status.description is None


def test_without_an_endpoint_nothing_is_imported() -> None:
    script = (
        "import sys; from streams import tracing\n"
        "assert tracing.Tracing.begin('w') is None\n"
        "with tracing.span('group', events=1) as span: span.note(more=2)\n"
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", script], env={}, check=False).returncode == 0


def test_without_the_extra_it_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with caplog.at_level(logging.WARNING):
        assert tracing.Tracing.begin("w") is None
    assert "pip install 'crossfade[otel]'" in caplog.text


async def test_a_collector_that_is_away_does_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr(tracing, "LAST_SPANS_S", 0.2)
    for name in ("opentelemetry.exporter.otlp.proto.http.trace_exporter", "opentelemetry.exporter.otlp.common.http"):
        monkeypatch.setattr(logging.getLogger(name), "disabled", True)
    before = set(threading.enumerate())
    traces = tracing.Tracing.begin("w")
    assert traces is not None
    with tracing.span("group"):
        pass
    began = asyncio.get_running_loop().time()
    await traces.end()
    assert asyncio.get_running_loop().time() - began < 2
    async with asyncio.timeout(2):  # of itself it would try for 10 s
        while set(threading.enumerate()) - before:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    with tracing.span("group") as span:
        assert span is tracing._NOTHING, "it has ended"
