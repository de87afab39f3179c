"""A person at a pseudo-terminal who runs a verb in a process of its own."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pexpect

ROOT = Path(__file__).parents[1]
PATIENCE_S = 60


def _hear_interrupts() -> None:
    """Also where the tests run in the background of a shell, which has them ignore Ctrl-C for good."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """`seen`: all that was on the screen, once `end` has returned. `environment` None for a variable: unset.
    `patience_s`: how long a question, and the end, may take to come."""

    def __init__(
        self,
        folder: Path,
        args: Sequence[str],
        environment: Mapping[str, str | None] | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        wanted = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "dumb", **(environment or {})}
        self._child = pexpect.spawn(
            sys.executable,
            ["-c", "from streams.cli import main; main()", *args],
            cwd=str(folder),
            env={name: value for name, value in wanted.items() if value is not None},
            encoding="utf-8",
            timeout=patience_s,
            dimensions=(60, 160),
            preexec_fn=_hear_interrupts,
        )
        self.seen = ""

    def answer(self, question: str, said: str) -> None:
        """Wait for the question, then say it; where it promises to show nothing, not before the echo is off."""
        self._until(question)
        if "not shown" in question:
            self._child.waitnoecho()
        self._child.sendline(said)

    def interrupt(self, question: str) -> None:
        """Ctrl-C in place of an answer."""
        self._until(question)
        self._child.sendintr()

    def _until(self, question: str) -> None:
        self._child.expect_exact(question)
        self.seen += str(self._child.before) + question

    def end(self) -> int:
        """The exit status."""
        self._child.expect(pexpect.EOF)
        self.seen += str(self._child.before)
        self._child.close()
        assert self._child.exitstatus is not None
        return int(self._child.exitstatus)
