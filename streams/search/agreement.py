"""How alike two answers to one query are.

Pure: it knows ids, never a query or a text.
"""

from __future__ import annotations

from collections.abc import Sequence

PERSISTENCE = 0.9
"""p of rank-biased overlap: how likely a reader goes on to the next hit. 0.9 gives the first ten 86% of the weight."""


def overlap(one: Sequence[str], other: Sequence[str], k: int) -> float:
    """The share of the first k that both have, of as many as the longer one has; 1 when both are empty."""
    first, second = set(one[:k]), set(other[:k])
    longest = max(len(first), len(second))
    return len(first & second) / longest if longest else 1.0


def rank_biased_overlap(one: Sequence[str], other: Sequence[str], p: float = PERSISTENCE) -> float:
    """RBO, extrapolated from what is seen (Webber, Moffat, Zobel 2010, equation 32), so that equal lists have 1 and
    disjoint ones 0 also where they are short or of different length. Both without duplicates; 1 when both are empty."""
    short, long = sorted((list(one), list(other)), key=len)
    s, length = len(short), len(long)
    if not s:
        return 0.0 if length else 1.0
    seen_short: set[str] = set()
    seen_long: set[str] = set()
    agreed = agreed_at_s = 0
    total = 0.0
    for depth in range(1, length + 1):
        item = long[depth - 1]
        agreed += item in seen_short
        seen_long.add(item)
        if depth <= s:
            agreed += short[depth - 1] in seen_long
            seen_short.add(short[depth - 1])
            agreed_at_s = agreed
        else:
            total += agreed_at_s * (depth - s) / (s * depth) * p**depth
        total += agreed / depth * p**depth
    tail = ((agreed - agreed_at_s) / length + agreed_at_s / s) * p**length
    return (1 - p) / p * total + tail
