"""What the code that runs now is about: a collection, a version's build, a partition. Log lines and spans carry it.

Pure, and kept in a context variable: whoever starts a piece of work says it once, and all that grows out of it inherits
it. It never holds a document's id or text.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import asdict, dataclass, replace


@dataclass(frozen=True, slots=True)
class Subject:
    """None: not known here, or not about one."""

    collection: str | None = None
    version: str | None = None
    fingerprint: str | None = None
    epoch: int | None = None
    partition: int | None = None

    def known(self) -> dict[str, str | int]:
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def text(self) -> str:
        """As in a plain log line: docs/v2@0e6aeaeaa572 epoch 3 partition 0; empty when it is about nothing."""
        if self.collection is None:
            return ""
        name = self.collection if self.version is None else f"{self.collection}/{self.version}"
        model = f"@{self.fingerprint}" if self.fingerprint else ""
        epoch = f" epoch {self.epoch}" if self.epoch is not None else ""
        partition = f" partition {self.partition}" if self.partition is not None else ""
        return f"{name}{model}{epoch}{partition}"


_SUBJECT: ContextVar[Subject] = ContextVar("crossfade_subject", default=Subject())  # noqa: B039  frozen


def current() -> Subject:
    """Of the task or thread that asks."""
    return _SUBJECT.get()


@contextlib.contextmanager
def about(subject: Subject) -> Iterator[None]:
    """For what runs within, and every task that is started there."""
    token = _SUBJECT.set(subject)
    try:
        yield
    finally:
        _SUBJECT.reset(token)


@contextlib.contextmanager
def about_partition(partition: int) -> Iterator[None]:
    """As `about`: the same as now, and of one partition of it."""
    with about(replace(current(), partition=partition)):
        yield
