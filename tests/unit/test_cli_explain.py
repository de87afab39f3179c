"""What a stored form means beside the log's newest record: every verdict, and none by default."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from connectors.protocols import Head, Record
from streams.explain import judge

NEWEST = Record(1, 40, 0, b"k", b"{}")


def head(offset: int = 40, partition: int = 1) -> Head:
    return Head(UUID(int=1), "k", "h", 0, 1, "s", partition, offset)


@pytest.mark.parametrize(
    ("stored", "newest", "facts", "verdict"),
    [
        (head(), NEWEST, {}, "current"),
        (head(39), NEWEST, {}, "stale"),
        (head(), NEWEST, {"whole": False}, "stale"),
        (head(40, partition=0), NEWEST, {}, "stale"),
        (head(39), NEWEST, {"resolved": False}, "pending"),
        (None, NEWEST, {}, "missing"),
        (None, NEWEST, {"resolved": False}, "pending"),
        (None, NEWEST, {"deletes": True}, "current"),
        (head(39), NEWEST, {"deletes": True}, "extra"),
        (head(39), NEWEST, {"deletes": True, "resolved": False}, "pending"),
        (head(39), NEWEST, {"held": True}, "held"),
        (None, NEWEST, {"held": True}, "held"),
        (head(), NEWEST, {"held": True}, "current"),  # redriven since
        (None, None, {}, "current"),
        (head(), None, {}, "extra"),
        (head(), None, {"older": True}, "kept"),
        (head(), None, {"older": True, "whole": False}, "torn"),
        (head(39), NEWEST, {"older": True}, "stale"),
        (head(39), NEWEST, {"older": True, "deletes": True}, "extra"),
    ],
)
def test_verdicts(stored: Head | None, newest: Record | None, facts: dict[str, Any], verdict: str) -> None:
    assert (
        judge(stored, newest, **{"whole": True, "deletes": False, "held": False, "resolved": True, **facts}) == verdict
    )
