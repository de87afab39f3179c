"""What `verify` says of documents that the topic has forgotten."""

from __future__ import annotations

import pytest

from streams.cli import verify
from streams.migration.sweep import Sweep
from tests.unit.test_carrying import build


def swept(lost: int = 0, torn: int = 0, unread: str = "") -> Sweep:
    return Sweep("docs", "v2", 8, 0, 0, 0, [], 0, {}, kept=52, lost=lost, torn=torn, unread=unread)


def test_torn_documents_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    verify._print(build("v2"), swept(lost=2, torn=3))
    told = capsys.readouterr().out
    assert "kept 52" in told
    assert "torn 3: older than the topic's first record, and chunks of them are missing here" in told
    assert "lost 2: the serving space alone has them" in told
    as_json = verify._json(build("v2"), swept(lost=2, torn=3), "")
    assert (as_json["lost"], as_json["torn"], as_json["unread"]) == (2, 3, "")


def test_a_serving_space_that_cannot_be_read_is_no_loss_of_none(capsys: pytest.CaptureFixture[str]) -> None:
    found = swept(unread="Weaviate refuses access (403); next: check weaviate.api_key")
    verify._print(build("v2"), found)
    told = capsys.readouterr().out
    assert "lost unknown: the serving space cannot be read: Weaviate refuses access (403); next: check" in told
    assert verify._json(build("v2"), found, "")["lost"] is None
    assert verify._next(build("v2"), found).endswith("crossfade verify docs v2 --repair")
