"""Texts to embed, and the handing out of them: the same for every client that is measured.

It must never hand the same text to anyone twice: what the endpoint serves again is the client's doing.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from benchmarks.gpu_server import CHARS_PER_TOKEN

MEDIAN_TOKENS, SPREAD = 54, 0.6  # log-normal: a mean of about 64 tokens, a tenth of the texts above 115
LEAST_TOKENS, MOST_TOKENS = 8, 500

_WORDS = "the model of a document changes while people go on editing it and what was embedded once is stale again "
_LONG = _WORDS * (2 * MOST_TOKENS * CHARS_PER_TOKEN // len(_WORDS) + 1)


def texts(seed: int) -> Iterator[str]:
    """Without end, no two alike; equal for equal seeds."""
    drawn = random.Random(seed)
    for number in count():
        tokens = min(max(round(MEDIAN_TOKENS * drawn.lognormvariate(0, SPREAD)), LEAST_TOKENS), MOST_TOKENS)
        head = f"{seed} {number} "
        yield head + _LONG[number % 97 :][: tokens * CHARS_PER_TOKEN - 1 - len(head)]


class Feed:
    """Windows of `size` texts. With `windows` there are so many, else no end. `record`, a file: windows noted there as
    done, also by a process that was killed since, are not handed out again."""

    def __init__(self, seed: int, size: int, windows: int | None = None, record: Path | None = None) -> None:
        self._texts = texts(seed)
        self._size = size
        self._windows = windows
        self._next = 0
        self._done = set(map(int, record.read_text().split())) if record is not None and record.exists() else set()
        self._file = None if record is None else os.open(record, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def take(self) -> tuple[int, list[str]] | None:
        """The next window and its number; None when there is none."""
        while self._windows is None or self._next < self._windows:
            window = [next(self._texts) for _ in range(self._size)]
            self._next += 1
            if self._next - 1 not in self._done:
                return self._next - 1, window
        return None

    def done(self, number: int) -> None:
        """Every text of this window has its vector."""
        if self._file is not None:
            os.write(self._file, b"%d\n" % number)  # one write: whole or not at all

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
