"""Batches: every text once, no limit crossed, little padding."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.errors import ConfigurationError
from streams.batching import BatchLimits, pack

SIZES = st.lists(st.tuples(st.integers(0, 600), st.integers(0, 3000)), max_size=120)
LIMITS = st.builds(
    BatchLimits,
    st.integers(1, 40),
    st.none() | st.integers(1, 9000),
    st.none() | st.integers(1, 3000),
)


@given(SIZES, LIMITS)
def test_every_text_once_and_no_limit_crossed(sizes: list[tuple[int, int]], limits: BatchLimits) -> None:
    lengths, characters = [tokens for tokens, _ in sizes], [count for _, count in sizes]
    batches = pack(lengths, characters, limits)
    assert sorted(index for batch in batches for index in batch) == list(range(len(sizes)))
    for batch in batches:
        assert batch
        assert len(batch) <= limits.items
        if len(batch) > 1:  # a text above a limit by itself goes alone
            padded = max(lengths[index] for index in batch) * len(batch)
            assert limits.tokens is None or padded <= limits.tokens
            assert limits.characters is None or sum(characters[index] for index in batch) <= limits.characters


@given(SIZES, LIMITS)
def test_longest_first_and_the_same_every_time(sizes: list[tuple[int, int]], limits: BatchLimits) -> None:
    lengths, characters = [tokens for tokens, _ in sizes], [count for _, count in sizes]
    batches = pack(lengths, characters, limits)
    in_order = [lengths[index] for batch in batches for index in batch]
    assert in_order == sorted(lengths, reverse=True)
    assert pack(lengths, characters, limits) == batches


@given(SIZES, LIMITS)
def test_a_batch_ends_only_where_a_limit_is_met(sizes: list[tuple[int, int]], limits: BatchLimits) -> None:
    lengths, characters = [tokens for tokens, _ in sizes], [count for _, count in sizes]
    batches = pack(lengths, characters, limits)
    for batch, following in pairwise(batches):
        more = [*batch, following[0]]
        assert (
            len(more) > limits.items
            or (limits.tokens is not None and lengths[batch[0]] * len(more) > limits.tokens)
            or (limits.characters is not None and sum(characters[index] for index in more) > limits.characters)
        )


def test_each_limit_alone() -> None:
    assert pack([5, 9, 7], [1, 1, 1], BatchLimits(2)) == [[1, 2], [0]]
    assert pack([1, 1, 1], [60, 50, 40], BatchLimits(9, characters=100)) == [[0], [1, 2]]
    # 9 + 7 + 5 = 21 tokens, but a GPU computes 3 x 9 = 27
    assert pack([5, 9, 7], [1, 1, 1], BatchLimits(9, tokens=26)) == [[1, 2], [0]]
    assert pack([5, 9, 7], [1, 1, 1], BatchLimits(9, tokens=27)) == [[1, 2, 0]]
    assert pack([100, 3, 3], [1, 1, 1], BatchLimits(9, tokens=10)) == [[0], [1, 2]]
    assert pack([], [], BatchLimits(9)) == []


def test_padding_is_far_less_than_in_the_order_of_arrival() -> None:
    lengths = [16, 512] * 256
    batches = pack(lengths, lengths, BatchLimits(32))
    padded = sum(max(lengths[index] for index in batch) * len(batch) for batch in batches)
    as_they_came = sum(max(lengths[begin : begin + 32]) * 32 for begin in range(0, len(lengths), 32))
    assert padded == sum(lengths)
    assert as_they_came > 1.9 * padded


@pytest.mark.parametrize("limits", [{"items": 0}, {"items": 8, "characters": 0}, {"items": 8, "tokens": -1}])
def test_limits_that_let_nothing_through_are_refused(limits: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError, match="a batch cannot be limited to") as caught:
        BatchLimits(**limits)
    assert "set at least 1" in caught.value.next_step


def test_lengths_and_characters_must_stand_beside_each_other() -> None:
    with pytest.raises(ValueError, match="2 lengths beside 1"):
        pack([1, 2], [1], BatchLimits(8))
