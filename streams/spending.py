"""What a build's embeddings cost, and the hard budget that holds it before it spends more.

Every partition has a share of the budget, so owners need not ask each other before they spend. It must never let a
request go out whose estimated cost does not fit; what a killed worker had not reported yet is the one thing it misses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from connectors.embedders.pool import Served
from connectors.errors import Throttled
from streams.progress import Counters

NANO = 1_000_000_000
PER_MILLION = 1000
"""nano-USD a token for a price of 1 USD for a million tokens."""


def nano_usd(tokens: int, price_per_million_tokens: float) -> int:
    """Rounded up: what is paid is never more than what is counted."""
    return -int(-tokens * price_per_million_tokens * PER_MILLION // 1)


def shares(budget_usd: float, documents: Mapping[int, int | None], partitions: int) -> dict[int, int]:
    """Of each partition, in nano-USD: by its documents to replay once all are planned, else equal. Sums to at most
    the budget. `documents`: of the partitions that were planned."""
    whole = int(budget_usd * NANO)
    counts = [documents.get(partition) for partition in range(partitions)]
    if any(count is None for count in counts):
        return dict.fromkeys(range(partitions), whole // max(1, partitions))
    weights = [(count or 0) + 1 for count in counts]  # live events come to partitions without history, too
    return {partition: whole * weight // sum(weights) for partition, weight in enumerate(weights)}


@dataclass(slots=True)
class Spending:
    """Of one build in one worker process. `allowed`: nano-USD of all owned partitions, None without a budget; `spent`:
    what they have spent since the build began; `reserved`: what requests under way may cost."""

    name: str = ""
    allowed: Callable[[], int | None] = lambda: None
    spent: Callable[[], int] = lambda: 0
    reserved: int = 0

    def reserve(self, cost: int) -> None:
        """Before a request. Raises Throttled, to be tried again, when the budget has no room for it."""
        allowed = self.allowed()
        if allowed is not None and cost and self.spent() + self.reserved + cost > allowed:
            raise Throttled(
                f"the budget of {self.name} is reached: {self.spent() / NANO:.6g} of {allowed / NANO:.6g} USD "
                "of this worker's partitions are spent; raise it with crossfade set "
                f"{self.name.replace('/', ' ')} budget_usd=USD",
                next_step=f"crossfade set {self.name.replace('/', ' ')} budget_usd=USD, or abort the build",
            )
        self.reserved += cost

    def release(self, cost: int) -> None:
        """After the request, whatever became of it."""
        self.reserved -= cost


@dataclass(frozen=True, slots=True)
class PartitionMeter:
    """encoding.Meter that books to a partition's counters. `highest_price`: USD for a million tokens, of whichever
    endpoint may answer."""

    spending: Spending
    counters: Counters
    highest_price: float

    def reserve(self, tokens: int) -> None:
        self.spending.reserve(nano_usd(tokens, self.highest_price))

    def paid(self, reserved: int, served: Served | None) -> None:
        self.spending.release(nano_usd(reserved, self.highest_price))
        if served is not None:
            self.counters.tokens += served.tokens
            self.counters.spent_nano_usd += nano_usd(served.tokens, served.price)


def total(shares_of: Mapping[int, int], owned: Iterable[int]) -> int:
    return sum(shares_of[partition] for partition in owned)
