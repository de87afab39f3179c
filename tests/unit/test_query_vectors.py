"""The vectors of the newest queries: by model and text, bounded, and nobody can change them."""

from __future__ import annotations

import numpy as np
import pytest

from connectors.protocols import Vectors
from streams.search.vectors import QueryVectors


def vector(value: float) -> Vectors:
    return np.full(4, value, np.float32)


def test_of_each_model_its_own() -> None:
    kept = QueryVectors()
    kept.put("one", "cats", vector(1))
    kept.put("two", "cats", vector(2))
    first, second = kept.get("one", "cats"), kept.get("two", "cats")
    assert first is not None
    assert second is not None
    assert (first[0], second[0]) == (1, 2)
    assert kept.get("one", "Cats") is None
    assert (kept.hits, kept.misses) == (2, 1)


def test_the_least_recently_used_goes_first() -> None:
    kept = QueryVectors(most=2)
    kept.put("m", "a", vector(1))
    kept.put("m", "b", vector(2))
    assert kept.get("m", "a") is not None
    kept.put("m", "c", vector(3))
    assert kept.get("m", "b") is None
    assert kept.get("m", "a") is not None
    assert len(kept) == 2


def test_what_is_kept_cannot_be_changed() -> None:
    kept, given = QueryVectors(), vector(1)
    kept.put("m", "a", given)
    given[0] = 9
    found = kept.get("m", "a")
    assert found is not None
    assert found[0] == 1
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 9


def test_a_text_that_is_no_utf8() -> None:
    kept = QueryVectors()
    kept.put("m", "\ud800", vector(1))
    assert kept.get("m", "\ud800") is not None
