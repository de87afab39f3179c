"""OpenTelemetry spans around what takes time, when the extra `otel` is installed and an OTLP endpoint is named.

Otherwise nothing of OpenTelemetry is imported, and a span costs one look at a context variable. A span never carries a
document's id or text, nor the message of an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING

from connectors.aside import Aside
from streams import subject

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

log = logging.getLogger(__name__)

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
INSTRUMENTATION = "crossfade"
LAST_SPANS_S = 5.0

Value = str | int | float | bool

_tracer: ContextVar[Tracer | None] = ContextVar("crossfade_tracer", default=None)


class Noted:
    """A span that has begun: counts known only later are noted on it. Without a tracer they go nowhere."""

    __slots__ = ("_span",)

    def __init__(self, span: Span | None = None) -> None:
        self._span = span

    def note(self, **attributes: Value) -> None:
        if self._span is not None:
            self._span.set_attributes({f"crossfade.{name}": value for name, value in attributes.items()})


_NOTHING = Noted()


@contextlib.contextmanager
def span(name: str, **attributes: Value) -> Iterator[Noted]:
    """Around one piece of work: with what it is about (streams.subject) and `attributes`, as crossfade.<name>.

    An exception marks it as failed, by its type alone; one that was cancelled says so.
    """
    tracer = _tracer.get()
    if tracer is None:
        yield _NOTHING
        return
    from opentelemetry.trace import Status, StatusCode

    named = {f"crossfade.{key}": value for key, value in {**subject.current().known(), **attributes}.items()}
    with tracer.start_as_current_span(
        name, attributes=named, record_exception=False, set_status_on_exception=False
    ) as begun:
        try:
            yield Noted(begun)
        except asyncio.CancelledError:
            begun.set_attribute("crossfade.cancelled", True)
            raise
        except BaseException as error:
            begun.set_status(Status(StatusCode.ERROR, type(error).__name__))
            raise


class Tracing:
    """Of one worker, between `begin` and `end`: for the task that begins it and all that are started there."""

    def __init__(self, provider: TracerProvider, give_up: Callable[[], None] = lambda: None) -> None:
        """`give_up` ends the sending of what could not be sent in time."""
        self._provider = provider
        self._give_up = give_up

    @classmethod
    def begin(cls, worker: str) -> Tracing | None:
        """None, without an import, when no endpoint is named in the environment; said once when the extra lacks."""
        if not any(os.environ.get(name) for name in ENDPOINTS):
            return None
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError:
            log.warning(
                "an OTLP endpoint is named, but OpenTelemetry is not installed: no traces. To have them: "
                "pip install 'crossfade[otel]'"
            )
            return None
        name = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": INSTRUMENTATION}
        resource = Resource.create({**name, "service.instance.id": worker})
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter = OTLPSpanExporter()
        provider.add_span_processor(BatchSpanProcessor(exporter))
        return cls.over(provider, exporter.shutdown)

    @classmethod
    def over(cls, provider: TracerProvider, give_up: Callable[[], None] = lambda: None) -> Tracing:
        """Spans go to this provider."""
        _tracer.set(provider.get_tracer(INSTRUMENTATION))
        return cls(provider, give_up)

    async def end(self) -> None:
        """Sends what is left, for LAST_SPANS_S at most: a collector that is away must not hold up a worker's end."""
        _tracer.set(None)
        try:
            await Aside[None]("last spans").run(self._provider.shutdown, LAST_SPANS_S)
        except TimeoutError:
            self._give_up()  # or a thread would go on trying for as long as the exporter's own time-out
