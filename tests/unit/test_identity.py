"""Every cause that stops a build because the log is not what it was (rules 1 and 2)."""

from __future__ import annotations

import pytest

from connectors.errors import IdentityChanged
from connectors.protocols import Bounds, TopicFacts
from streams.identity import check_position, check_topic
from streams.state import BuildState
from streams.versions import Stage

BUILD = BuildState(
    collection="docs", version="v1", epoch=1, stage=Stage.BUILDING, envelope={}, fingerprint="f", space="S", topic="t",
    topic_id="id-1", partitions=2, start={0: 3, 1: 0}, barrier={0: 3, 1: 0},
)  # fmt: skip


def facts(topic_id: str = "id-1", partitions: int = 2) -> TopicFacts:
    return TopicFacts("t", topic_id, partitions, "compact", 1, 1, 1)


def test_the_same_topic() -> None:
    check_topic(BUILD, facts())


@pytest.mark.parametrize(("now", "cause"), [(facts("id-2"), "created anew"), (facts(partitions=3), "3 partitions")])
def test_another_topic(now: TopicFacts, cause: str) -> None:
    with pytest.raises(IdentityChanged, match=cause) as caught:
        check_topic(BUILD, now)
    assert "crossfade abort docs v1 --confirm v1" in caught.value.next_step


@pytest.mark.parametrize("position", [2, 5, 9])
def test_a_position_in_the_log(position: int) -> None:
    check_position(BUILD, 0, position, Bounds(2, 9))


@pytest.mark.parametrize(("position", "cause"), [(1, "removed before they were read"), (10, "truncated")])
def test_a_position_outside_the_log(position: int, cause: str) -> None:
    with pytest.raises(IdentityChanged, match=cause):
        check_position(BUILD, 0, position, Bounds(2, 9))
