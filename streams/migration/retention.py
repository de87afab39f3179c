"""How long the previous version has been kept, when that is long enough, and whether it may be retired by itself.

Pure: state and clock in, words and a decision out. What serves, or may be wanted again soon, is never named.
"""

from __future__ import annotations

from streams.config_operation import Retention
from streams.state import BuildState, CollectionState
from streams.versions import Stage

DAY_MS = 86_400_000


def kept_ms(collection: CollectionState, now_ms: int) -> int | None:
    """Since when it has been the previous one, as a length of time; None when there is none, or nobody noted."""
    if collection.previous is None or collection.swapped is None:
        return None
    return max(0, now_ms - collection.swapped.at_ms)


def is_over(collection: CollectionState, rules: Retention, now_ms: int) -> bool:
    """The previous version has been kept as long as configured."""
    kept = kept_ms(collection, now_ms)
    return kept is not None and kept >= rules.days * DAY_MS


def hindrance(
    collection: CollectionState, serving: BuildState | None, previous: BuildState | None, *, examined: bool = False
) -> str:
    """Why the previous version is not retired by itself just now; "" when nothing speaks against it.

    `serving`, `previous`: their builds; `examined`: a cutover of the collection is being looked at.
    """
    swapped, watch = collection.swapped, collection.watch
    if swapped is None or previous is None or previous.version == collection.serving:
        return "there is no previous version"
    if previous.stage is not Stage.PREVIOUS or swapped.before != previous.version:
        return f"{previous.version} is {previous.stage}"
    if swapped.verb != "cutover":
        return f"{previous.version} served until a rollback, and may be cut over to again"
    if collection.intent is not None:
        return f"a {collection.intent.command.verb} is under way"
    if collection.pending is not None:
        return collection.pending.text
    if examined:
        return "a cutover is being examined"
    if watch is not None and watch.result != "quiet":
        return watch.text
    if collection.notice is not None:
        return collection.notice.text
    if serving is None or serving.stage is not Stage.SERVING:
        return "nothing serves"
    if serving.failure is not None or serving.paused == "all":
        return f"{serving.version}, which serves, is not kept current"
    return ""


def lasting(milliseconds: float) -> str:
    """`8 days`, `1 day`, `5 hours`, `12 minutes`: rounded down."""
    for unit, length in (("day", DAY_MS), ("hour", 3_600_000), ("minute", 60_000)):
        if milliseconds >= length:
            number = int(milliseconds // length)
            return f"{number} {unit}{'' if number == 1 else 's'}"
    return "less than a minute"


def reminder(
    collection: CollectionState,
    serving: BuildState | None,
    previous: BuildState | None,
    rules: Retention,
    now_ms: int,
) -> tuple[str, str] | None:
    """For `status`: what is to be said of the previous version, and the command to type; None when nothing is."""
    kept = kept_ms(collection, now_ms)
    if kept is None or previous is None or previous.stage is not Stage.PREVIOUS:
        return None
    name = previous.version
    command = f"crossfade retire {collection.collection} {name} --confirm {name}"
    over = is_over(collection, rules, now_ms)
    if not rules.automatic:
        return (f"{name} has been previous for {lasting(kept)}", command) if over else None
    if hinders := hindrance(collection, serving, previous):
        said = f"{name} has been previous for {lasting(kept)}; it is not retired by itself: {hinders}"
        return (said, command) if over else None
    if over:
        return f"{name} has been previous for {lasting(kept)}; it is being retired (retention.automatic)", ""
    left = lasting(rules.days * DAY_MS - kept)
    return f"{name} is retired by itself in {left} (retention.automatic)", f"crossfade rollback {collection.collection}"
