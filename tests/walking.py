"""An operator at a pseudo-terminal: types verbs, reads the screen, and types next what the tool says to type next.

Must never hand on a control character of a document: every screen is looked at before anything is read from it.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.terminal import PATIENCE_S, ROOT, Terminal

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
"""What rich writes at a terminal: colours, and the cursor moved to draw again."""

BAR = "━"
COMMAND = (sys.executable, "-c", "from streams.cli import main; main()")


@dataclass(frozen=True, slots=True)
class Screen:
    """What one verb showed. `text`: without the sequences that a terminal obeys; `raw`: with them."""

    text: str
    raw: str

    @property
    def next(self) -> str:
        """The last `next:` on it. Raises AssertionError where there is none."""
        found = re.findall(r"^  next(?: \([^)]*\))?: (.+)$", self.text, re.MULTILINE)
        assert found, f"nothing says what to type next:\n{self.text}"
        return str(found[-1]).rstrip()

    def next_of(self, version: str) -> str:
        """The `next` of one version among several."""
        (found,) = re.findall(rf"^  next \({version}\): (.+)$", self.text, re.MULTILINE)
        return str(found).rstrip()

    def has(self, *lines: str) -> Screen:
        """A terminal that says nothing of its width is taken for 80 columns: a long line may have been wrapped."""
        unwrapped = " ".join(self.text.split())
        for line in lines:
            shown = line in self.text or " ".join(line.split()) in unwrapped
            assert shown, f"{line!r} is not on the screen:\n{self.text}"
        return self


@dataclass(slots=True)
class Operator:
    """`folder`: where everything is typed; `typed`: the verbs so far; `forbidden`: what no screen may show."""

    folder: Path
    environment: Mapping[str, str | None]
    forbidden: tuple[str, ...] = ()
    typed: list[str] = field(default_factory=list)

    def types(self, *args: str, status: int = 0, answers: Iterable[tuple[str, str]] = ()) -> Screen:
        """A verb at the terminal, to its end."""
        terminal = self.begins(*args)
        for question, said in answers:
            terminal.answer(question, said)
        return self.reads(terminal, status)

    def begins(self, *args: str, patience_s: float = PATIENCE_S) -> Terminal:
        """A verb at the terminal that goes on until something is done about it."""
        self.typed.append(next(arg for arg in args if arg != "--config" and not arg.endswith(".yaml")))
        return Terminal(self.folder, args, self.environment, patience_s)

    def reads(self, terminal: Terminal, status: int = 0) -> Screen:
        ended = terminal.end()
        screen = self._screen(terminal.seen)
        assert ended == status, f"exit status {ended}:\n{screen.text}"
        return screen

    def obeys(self, said: str, *more: str, status: int = 0, query: str = "") -> Screen:
        """Type what a `next:` says, up to the `,` or `;` behind which it says something else. `query` for QUERY."""
        return self.types(*command_of(said, query), *more, status=status)

    def pipes(self, *args: str, status: int = 0) -> str:
        """The same verb where nobody looks: stdout of a pipe."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **self.environment}
        ran = subprocess.run(
            [*COMMAND, *args],
            cwd=self.folder,
            env={name: value for name, value in environment.items() if value is not None},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert ran.returncode == status, ran.stderr + ran.stdout
        for out in (ran.stdout, ran.stderr):
            assert BAR not in out
            assert all(c == "\n" or c.isprintable() for c in out), repr(out)
            assert not any(word in out for word in self.forbidden), out
        return ran.stdout

    def _screen(self, raw: str) -> Screen:
        for word in self.forbidden:
            assert word not in raw, repr(raw)
        text = CONTROL.sub("", raw)
        assert all(c in "\r\n" or c.isprintable() for c in text), repr(text)
        assert "Traceback" not in text, text
        return Screen(text.replace("\r\n", "\n"), raw)


def command_of(said: str, query: str = "") -> list[str]:
    """The first command in what a `next:` says, as arguments of `crossfade`."""
    assert said.startswith("crossfade "), said
    command = re.split(r"[,;] |, ", said)[0].removeprefix("crossfade ")
    assert "QUERY" not in command or query, command
    words = [query if word == "QUERY" else word for word in shlex.split(command)]
    assert not any(word.isupper() and len(word) > 2 for word in words if word != query), f"left to guess: {command}"
    return words
