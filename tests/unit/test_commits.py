"""What a live commit says beside its offset: read back as written, by older and newer workers too."""

from __future__ import annotations

import pytest

from streams.commits import LONG_AGO, LiveCommit


@pytest.mark.parametrize("carry", [True, False])
def test_a_commit_is_read_back(carry: bool) -> None:
    commit = LiveCommit(3, clean=True, doubts=False, at_ms=7, carry=carry)
    assert LiveCommit.from_metadata(commit.to_metadata()) == commit


def test_one_of_an_older_worker_owes_nothing() -> None:
    read = LiveCommit.from_metadata('{"epoch": 3, "clean": false, "doubts": true, "at": 7}')
    assert read == LiveCommit(3, clean=False, doubts=True, at_ms=7, carry=False)


@pytest.mark.parametrize("metadata", ["", "[]", "7", "{}", '{"epoch": "x", "clean": 1, "doubts": 1, "at": 1}'])
def test_what_somebody_else_wrote_was_long_ago(metadata: str) -> None:
    assert LiveCommit.from_metadata(metadata) == LONG_AGO
    assert not LONG_AGO.carry
