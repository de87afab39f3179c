"""Whether the topic is still the one a build began with (rules 1 and 2): every fail-stop cause about the log.

Pure: it compares what was stored at the start with what the log says now, and never looks for itself.
"""

from __future__ import annotations

from connectors.errors import IdentityChanged
from connectors.protocols import Bounds, TopicFacts
from streams.state import BuildState


def _rebuild(build: BuildState) -> str:
    return (
        f"abort this build and begin a new one: crossfade abort {build.collection} {build.version} "
        f"--confirm {build.version}, then crossfade start {build.collection} {build.version}"
    )


def check_topic(build: BuildState, facts: TopicFacts) -> None:
    """Raises IdentityChanged when the topic was recreated or its partitions were changed."""
    if facts.topic_id != build.topic_id:
        raise IdentityChanged(
            f"topic {build.topic} was deleted and created anew since {build.key} began: its offsets mean nothing now",
            next_step=_rebuild(build),
        )
    if facts.partitions != build.partitions:
        raise IdentityChanged(
            f"topic {build.topic} has {facts.partitions} partitions, {build.partitions} when {build.key} began: "
            "keys may have moved between partitions, and their order is lost",
            next_step=_rebuild(build),
        )


def check_position(build: BuildState, partition: int, position: int, bounds: Bounds) -> None:
    """Raises IdentityChanged when the log no longer holds what comes next, or ends before what was read."""
    if position < bounds.earliest:
        raise IdentityChanged(
            f"partition {partition} of {build.topic} begins at {bounds.earliest}, but {build.key} has still to read "
            f"from {position}: records were removed before they were read",
            next_step=_rebuild(build),
        )
    if position > bounds.stable:
        raise IdentityChanged(
            f"partition {partition} of {build.topic} ends at {bounds.stable}, but {build.key} has read up to "
            f"{position}: the log was truncated",
            next_step=_rebuild(build),
        )
