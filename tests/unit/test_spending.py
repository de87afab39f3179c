"""The budget is hard: shares never add up to more, and nothing is asked that does not fit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.embedders.pool import Served
from connectors.errors import Throttled
from connectors.protocols import Vectors
from streams.progress import Counters
from streams.spending import NANO, PartitionMeter, Spending, nano_usd, shares, total

NOTHING: Vectors = np.zeros((0, 0), np.float32)


def test_prices_are_for_a_million_tokens_and_rounded_up() -> None:
    assert nano_usd(1_000_000, 0.02) == 20_000_000
    assert nano_usd(1, 0.02) == 20
    assert nano_usd(1, 0.0001) == 1
    assert nano_usd(0, 5.0) == nano_usd(7, 0.0) == 0


@given(
    st.floats(1e-6, 1e6),
    st.integers(1, 40).flatmap(
        lambda n: st.tuples(st.just(n), st.dictionaries(st.integers(0, n - 1), st.integers(0, 10**9)))
    ),
)
def test_shares_never_add_up_to_more_than_the_budget(budget: float, counted: tuple[int, dict[int, int | None]]) -> None:
    partitions, documents = counted
    given_out = shares(budget, documents, partitions)
    assert set(given_out) == set(range(partitions))
    assert 0 <= sum(given_out.values()) <= budget * NANO


def test_shares_follow_the_documents_once_all_are_planned() -> None:
    assert shares(1.0, {0: 99, 1: None}, 2) == {0: NANO // 2, 1: NANO // 2}
    assert shares(1.0, {0: 99, 1: 299}, 2) == {0: NANO // 4, 1: 3 * NANO // 4}
    assert total(shares(1.0, {0: 99, 1: 299}, 2), [1]) == 3 * NANO // 4


def test_what_is_under_way_counts_as_spent() -> None:
    counters = Counters()
    spending = Spending("docs/v2", lambda: 1_000, lambda: counters.spent_nano_usd)
    meter = PartitionMeter(spending, counters, highest_price=0.1)  # 100 nano-USD a token
    meter.reserve(6)
    with pytest.raises(Throttled, match="the budget of docs/v2 is reached") as caught:
        meter.reserve(5)
    assert "crossfade set docs v2 budget_usd=" in caught.value.next_step
    meter.paid(6, Served(NOTHING, tokens=4, counted=True, price=0.05))
    assert (counters.tokens, counters.spent_nano_usd, spending.reserved) == (4, 200, 0)
    meter.reserve(8)
    meter.paid(8, None)
    assert (counters.spent_nano_usd, spending.reserved) == (200, 0)


def test_without_a_budget_or_a_price_nothing_is_held() -> None:
    counters = Counters()
    PartitionMeter(Spending("docs/v2", lambda: None, lambda: 10**18), counters, 5.0).reserve(10**9)
    PartitionMeter(Spending("docs/v2", lambda: 0, lambda: 10**18), counters, 0.0).reserve(10**9)
