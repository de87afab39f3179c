"""Texts to embed, and the handing out of them: the same for every client that is measured.

It must never hand the same text to anyone twice: what the endpoint serves again is the client's doing.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Iterable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import NamedTuple

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


class Window(NamedTuple):
    """Some texts of the feed with their numbers."""

    numbers: list[int]
    texts: list[str]


class Feed:
    """Windows of `size` texts, or what is left of them. With `windows` there are so many, else no end. `record`, a
    file: texts noted there as done, also by a process that was killed since, are not handed out again."""

    def __init__(self, seed: int, size: int, windows: int | None = None, record: Path | None = None) -> None:
        self._texts = enumerate(texts(seed))
        self._size = size
        self._left = math.inf if windows is None else windows
        self._done = set(map(int, record.read_text().split())) if record is not None and record.exists() else set()
        self._file = None if record is None else os.open(record, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def take(self) -> Window | None:
        """The next texts that are not done; None when there are none."""
        while self._left > 0:
            self._left -= 1
            left = [(number, text) for number, text in islice(self._texts, self._size) if number not in self._done]
            if left:
                numbers, found = zip(*left, strict=True)
                return Window(list(numbers), list(found))
        return None

    def done(self, numbers: Iterable[int]) -> None:
        """These texts have their vectors."""
        if self._file is not None:
            os.write(self._file, b"".join(b"%d\n" % number for number in numbers))  # one write: whole or not at all

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
