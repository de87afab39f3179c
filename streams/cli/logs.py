"""Logging of the command line: one line per event on stderr, with time, level and logger.

It must never let a line of another library drown our own, nor write to stdout.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import TextIO

LEVELS = ("debug", "info", "warning", "error")
FOREIGN = ("aiokafka", "asyncio", "faust", "grpc", "httpcore", "httpx", "mode", "py", "weaviate")
LIBRDKAFKA = "connectors.kafka.librdkafka"


class _OneLine(logging.Formatter):
    """Tracebacks and next steps too stand on the line of their event."""

    def format(self, record: logging.LogRecord) -> str:
        return " | ".join(line.strip() for line in super().format(record).splitlines() if line.strip())


class _Quiet(logging.Filter):
    """Other libraries: errors only, and each kind of line once a minute (aiokafka repeats itself without pause).

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


def to_stderr(level: str) -> Callable[[], None]:
    """Begin; the result ends it. At `debug` nothing is held back."""
    root = logging.getLogger()
    handler = _Stderr()
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(name)s: %(message)s"))
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
