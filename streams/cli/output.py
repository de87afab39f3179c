"""What verbs print: one JSON object, or words and numbers in forms that never vary.

It must never let control characters of a document or a key reach a terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TypeVar

import click
import orjson

from connectors.errors import CrossfadeError
from connectors.protocols import JSON
from streams.state import CommandOutcome

F = TypeVar("F", bound=Callable[..., None])

WIDTH = 100  # columns that lines of words keep to; tables and names may need more

json_option: Callable[[F], F] = click.option(
    "--json", "as_json", is_flag=True, help="One JSON object on stdout and nothing else."
)


def emit(data: Mapping[str, object]) -> None:
    """The one JSON object: on one line, or indented where a person reads it."""
    option = orjson.OPT_INDENT_2 if sys.stdout.isatty() else 0
    click.echo(orjson.dumps(data, option=option | orjson.OPT_NON_STR_KEYS))


def say(line: str) -> None:
    """A line for the person who waits, on stderr."""
    click.echo(line, err=True)


def next_line(command: str) -> None:
    """The command an operator would run next, on stdout."""
    if command:
        click.echo(f"  next: {command}")


def plain(text: str, most: int | None = None) -> str:
    """On one line, control characters shown as escapes, cut to `most` characters."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return shown if most is None or len(shown) <= most else shown[: most - 1] + "…"


def duration(seconds: float) -> str:
    """5s, 1m58s, 2h05m, 3d04h."""
    left = round(seconds)
    if left < 60:
        return f"{left}s"
    if left < 3600:
        return f"{left // 60}m{left % 60:02}s"
    if left < 86_400:
        return f"{left // 3600}h{left % 3600 // 60:02}m"
    return f"{left // 86_400}d{left % 86_400 // 3600:02}h"


def moment(at_ms: int) -> str:
    """ISO 8601, UTC, to the second; "-" for a time nobody noted."""
    if at_ms <= 0:
        return "-"
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def size(number: int) -> str:
    """1.2 MB, 340 B: decimal units, as disks are sold."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= scale:
            return f"{number / scale:,.1f} {unit}"
    return f"{number} B"


def usd(amount: float) -> str:
    """Cents from a dollar on, three digits below."""
    return f"{amount:,.2f}" if amount >= 1 or amount == 0 else f"{amount:.3g}"


def count(number: int, noun: str) -> str:
    """1 event, 1,234 events."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


class Failed(CrossfadeError):
    """The controller's refusal, as it came back in the outcome."""


def require(outcome: CommandOutcome) -> CommandOutcome:
    """Raises Failed, with the controller's own reason and next step, unless the command was carried out."""
    if not outcome.ok:
        raise Failed(outcome.message, next_step=outcome.next_step)
    return outcome


def outcome_json(outcome: CommandOutcome, next_step: str) -> dict[str, JSON]:
    return {"ok": outcome.ok, "message": outcome.message, "data": dict(outcome.data), "next": next_step}
