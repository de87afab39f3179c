"""Logging of the command line: one line per event on stderr, with time, level, logger and what it is about.

It must never let a line of another library drown our own, nor write to stdout.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import TextIO

from streams import subject

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("plain", "json")
FORMAT_VARIABLE = "CROSSFADE_LOG_FORMAT"
FOREIGN = (
    "asyncio",
    "faust",
    "grpc",
    "httpcore",
    "httpx",
    "mode",
    "opentelemetry",
    "py",
    "requests",
    "urllib3",
    "weaviate",
)
LIBRDKAFKA = "connectors.kafka.librdkafka"


class _About(logging.Filter):
    """Notes on each line what the code that wrote it is about; a line may name its partition itself (`extra`)."""

    def filter(self, record: logging.LogRecord) -> bool:
        about = subject.current()
        partition = getattr(record, "partition", None)
        if isinstance(partition, int):
            about = replace(about, partition=partition)
        record.subject = about
        record.about = f" [{about.text}]" if about.text else ""
        return True


class _OneLine(logging.Formatter):
    """Tracebacks and next steps too stand on the line of their event."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s%(about)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        return " | ".join(line.strip() for line in super().format(record).splitlines() if line.strip())


class _Json(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and of collection, version, fingerprint, epoch and
    partition what is known; `error` and `traceback` where an exception is shown, `next` where a step is known."""

    def format(self, record: logging.LogRecord) -> str:
        about = getattr(record, "subject", None)
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC)
            .isoformat(timespec="milliseconds")
            .replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **(about.known() if isinstance(about, subject.Subject) else {}),
        }
        if next_step := getattr(record, "next_step", ""):
            line["next"] = next_step
        if record.exc_info and record.exc_info[0] is not None:
            line |= {"error": record.exc_info[0].__name__, "traceback": self.formatException(record.exc_info)}
        return json.dumps(line)


class _Quiet(logging.Filter):
    """Other libraries: errors only, and each kind of line once a minute (a client may repeat itself without pause).

    `client`: whether librdkafka's own lines are wanted; a verb that ends with an error says the same better.
    """

    def __init__(self, *, client: bool) -> None:
        super().__init__()
        from connectors.kafka.settings import SayOnce

        self._once = SayOnce()
        self._client = client

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name == LIBRDKAFKA:
            return self._client or record.levelno >= logging.ERROR
        if record.name.partition(".")[0] not in FOREIGN:
            return True
        return record.levelno >= logging.ERROR and self._once.filter(record)


class _Stderr(logging.StreamHandler[TextIO]):
    """Whatever stderr is when the line is written."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]  # a plain attribute there
        return sys.stderr


def catch_warnings() -> None:
    """Make Python's warnings lines of the logger py.warnings, which is foreign: not for an operator's eyes."""
    logging.captureWarnings(True)


def to_stderr(level: str, form: str = "plain") -> Callable[[], None]:
    """Begin; the result ends it. At `debug` nothing is held back. `form`: of FORMATS."""
    root = logging.getLogger()
    handler = _Stderr()
    handler.setFormatter(_Json() if form == "json" else _OneLine())
    handler.addFilter(_About())
    if level != "debug":
        handler.addFilter(_Quiet(client=level == "info"))
    before = root.level
    root.addHandler(handler)
    root.setLevel(level.upper())
    catch_warnings()

    def undo() -> None:
        logging.captureWarnings(False)
        root.removeHandler(handler)
        root.setLevel(before)

    return undo
