"""Which texts go to the endpoint together: sorted by length, cut where the first of its limits is met.

Pure: it never sees a text, only what each measures, and must never leave one out or name one twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from connectors.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What one request may hold; None is no limit. `tokens` counts as a GPU pays: longest text x items, padded."""

    items: int
    characters: int | None = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        for name, limit in (("items", self.items), ("characters", self.characters), ("tokens", self.tokens)):
            if limit is not None and limit < 1:
                raise ConfigurationError(
                    f"a batch cannot be limited to {limit} {name}", next_step=f"set at least 1, or no limit of {name}"
                )


def pack(lengths: Sequence[int], characters: Sequence[int], limits: BatchLimits) -> list[list[int]]:
    """Indexes of the texts of each batch; `lengths` in tokens and `characters` stand beside each other.

    Longest first, equal ones in their order. The first text of a batch is then its longest, so what a further one
    costs is known before it is taken; requests that run beside each other end at about the same time, because the
    small ones come last; and an endpoint whose memory is too small says so at once, not after an hour. A text that is
    above a limit by itself has a batch of its own.
    """
    if len(lengths) != len(characters):
        raise ValueError(f"{len(lengths)} lengths beside {len(characters)} counts of characters")
    batches: list[list[int]] = []
    longest = total = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], -characters[i], i)):
        batch = batches[-1] if batches else []
        fits = (
            bool(batch)
            and len(batch) < limits.items
            and (limits.tokens is None or longest * (len(batch) + 1) <= limits.tokens)
            and (limits.characters is None or total + characters[index] <= limits.characters)
        )
        if not fits:
            batch = []
            batches.append(batch)
            longest, total = lengths[index], 0
        batch.append(index)
        total += characters[index]
    return batches
