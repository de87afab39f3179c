"""How the demo tells its story: numbered steps, a moving progress line, and the closing table of checks.

On a terminal with colours, in a pipe as plain lines; it must never print beyond the width it is given.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from textwrap import wrap

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from streams.progress import ProgressRecord

PIPE_LINE_EVERY_S = 4.0


@dataclass(frozen=True, slots=True)
class Check:
    """One claim and what was measured."""

    name: str
    passed: bool
    found: str


class Narrator:
    """Everything the reader sees while the demo runs goes through here."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began_s = time.monotonic()
        self._step = 0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began_s

    def step(self, title: str) -> None:
        self._step += 1
        self._console.print()
        self._print(f"{self._step}. {title}", style="bold", indent="", later="   ")

    def heading(self, title: str) -> None:
        self._console.print()
        self._print(title, style="bold", indent="", later="")

    def say(self, line: str) -> None:
        for part in line.splitlines():
            self._print(part, indent="   ", later="   ")

    def note(self, line: str) -> None:
        """Something less important than what is said."""
        self._print(line, style="dim", indent="   ", later="   ")

    def command(self, line: str) -> None:
        """A line to copy: never broken, on a narrow terminal by the terminal alone."""
        self._console.print(Text(f"   {line}", style="cyan"), soft_wrap=True)

    def _print(self, line: str, *, style: str = "", indent: str, later: str) -> None:
        width = max(20, self._console.width - 1)
        for part in wrap(line, width, initial_indent=indent, subsequent_indent=later) or [""]:
            self._console.print(Text(part, style=style), soft_wrap=True)

    @contextmanager
    def progress(self) -> Iterator[ProgressLine]:
        """A line that is written over on a terminal, and every few seconds anew in a pipe."""
        if not self._console.is_terminal:
            yield ProgressLine(self, None)
            return
        with Live(console=self._console, refresh_per_second=4, transient=True) as live:
            yield ProgressLine(self, live)

    def closing(self, checks: list[Check]) -> None:
        """The table, and the one line that counts."""
        table = Table(box=box.SIMPLE, title=None, expand=False, pad_edge=False)
        table.add_column("", no_wrap=True)
        table.add_column("checked")
        table.add_column("found in this run")
        for check in checks:
            mark = Text("ok", style="green") if check.passed else Text("FAILED", style="bold red")
            table.add_row(mark, Text(check.name), Text(check.found))
        self._console.print()
        self._console.print(table)
        failed = [check.name for check in checks if not check.passed]
        if failed:
            style, line = "bold red", f"{len(failed)} of {len(checks)} checks failed: {'; '.join(failed)}"
        else:
            style, line = "bold green", f"all {len(checks)} checks passed"
        self._print(f"{line} ({self.seconds:.0f} s)", style=style, indent="", later="")


class ProgressLine:
    """See `Narrator.progress`."""

    def __init__(self, narrator: Narrator, live: Live | None) -> None:
        self._narrator = narrator
        self._live = live
        self._said_s = float("-inf")

    def show(self, line: str) -> None:
        if self._live is not None:
            self._live.update(Text(f"   {line}", no_wrap=True, overflow="ellipsis"))
        elif time.monotonic() - self._said_s >= PIPE_LINE_EVERY_S:
            self._narrator.say(line)
            self._said_s = time.monotonic()


def progress_line(record: ProgressRecord) -> str:
    """Always the same shape: done/total, share, rate, ETA, then what else happens."""
    eta = "?" if record.eta_s is None else f"{record.eta_s:.0f} s"
    return (
        f"{record.name} {record.completed:,}/{record.total:,} {record.progress:4.0%}  {record.rate_per_s:.0f}/s  "
        f"ETA {eta}  changed meanwhile {record.changed_mid_migration:,}"
    )
