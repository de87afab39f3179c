"""What may go wrong with a migration that nobody has begun: read off the topic, the plan's figures and what runs.

Pure: each risk says what was seen and what to do. It must never call a topic fit because a setting was not told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from connectors.protocols import Bounds
from streams.migration.plan import Plan, room_left
from streams.state import BuildState

OPEN_TRANSACTIONS = 1_000
"""Offsets between the last stable one and the end of the log that are still no cause for a word: a writer at work."""
MANY_REFUSED = 0.01
MANY_SUPERSEDED = 0.75
DAY_S = 86_400.0

Severity = Literal["stops", "loses", "note"]


@dataclass(frozen=True, slots=True)
class Risk:
    """`severity`: stops the build, loses documents or deletes, or is a note. `next_step`: what helps, or empty."""

    severity: Severity
    name: str
    what: str
    next_step: str = ""


@dataclass(frozen=True, slots=True)
class Topic:
    """What was seen of the documents topic. `settings`: as the broker tells them; `ends`: of the log, by partition."""

    name: str
    settings: Mapping[str, str]
    bounds: Mapping[int, Bounds]
    ends: Mapping[int, int]
    keys_in_two: Sequence[tuple[int, int]]

    def milliseconds(self, setting: str) -> int | None:
        """None where it is not told or no number."""
        try:
            return int(self.settings[setting])
        except (KeyError, ValueError):
            return None


def risks(plan: Plan, topic: Topic, build: BuildState | None) -> list[Risk]:
    """The worst first. `build`: the newest one of this version, None when it was never started."""
    found = [
        *_keys(plan, topic),
        *_retention(topic, plan.duration.seconds),
        *_transactions(topic),
        *_money(plan),
        *_room(plan),
        *_refused(plan),
        *_build(plan, build),
        *_tombstones(topic, plan.duration.seconds),
        *_superseded(plan, topic),
    ]
    order: Sequence[Severity] = ("stops", "loses", "note")
    return sorted(found, key=lambda risk: order.index(risk.severity))


def _keys(plan: Plan, topic: Topic) -> list[Risk]:
    if not topic.keys_in_two:
        return []
    first, second = topic.keys_in_two[0]
    return [
        Risk(
            "stops",
            "keys_in_two_partitions",
            f"a key of {topic.name} is in partitions {first} and {second}: the order of its records cannot be known, "
            "and the build would stop",
            "make all producers use one partitioner (murmur2), write the key's last form again, and delete it from "
            "the other partition",
        )
    ]


def topic_risks(topic: Topic) -> list[Risk]:
    """Of the topic alone, whatever is built from it."""
    return [*_retention(topic, 0.0), *_transactions(topic), *_tombstones(topic, 0.0)]


def _retention(topic: Topic, seconds: float | None) -> list[Risk]:
    """`seconds`: how long a replay takes, None where nobody knows."""
    policy = topic.settings.get("cleanup.policy")
    if policy is None:
        return [
            Risk(
                "note",
                "policy_unknown",
                f"the broker does not tell the settings of {topic.name}: whether it loses records is not known",
                "grant DescribeConfigs on the topic to this client, and plan again",
            )
        ]
    policies = {part.strip() for part in policy.split(",")}
    found: list[Risk] = []
    if "delete" in policies:
        limits = {name: topic.milliseconds(name) for name in ("retention.ms", "retention.bytes")}
        bounded = [name for name, value in limits.items() if value is None or value >= 0]
        if bounded:
            said = " and ".join(f"{name}={topic.settings.get(name, '?')}" for name in bounded)
            kept_ms = limits["retention.ms"]
            late = kept_ms is not None and kept_ms >= 0 and (seconds is None or seconds * 1000 >= kept_ms)
            found.append(
                Risk(
                    "loses",
                    "retention",
                    f"{topic.name} has cleanup.policy={policy} with {said}: documents that nobody writes again are "
                    "removed from the log"
                    + (", some of them before the replay has read them" if late else "")
                    + "; a space built later has them from the one that serves, where that kept their text whole, and "
                    "a delete of theirs that no lane saw leaves no trace",
                    f"set cleanup.policy=compact on {topic.name}, and produce again what has gone",
                )
            )
    if "compact" not in policies:
        found.append(
            Risk(
                "stops",
                "not_compacted",
                f"{topic.name} is not compacted, so no version is built from it: it would keep every form of every "
                "document, or forget those that nobody writes again",
                f"set cleanup.policy=compact on {topic.name}",
            )
        )
    return found


def _transactions(topic: Topic) -> list[Risk]:
    open_ = {p: topic.ends.get(p, b.stable) - b.stable for p, b in topic.bounds.items()}
    hanging = {p: behind for p, behind in open_.items() if behind > OPEN_TRANSACTIONS}
    if not hanging:
        return []
    worst = max(hanging, key=lambda p: hanging[p])
    return [
        Risk(
            "loses",
            "open_transactions",
            f"{hanging[worst]:,} records of partition {worst} stand behind a transaction that nobody has ended: no "
            "version sees them until it is committed or aborted, and they are not in this plan",
            f"find it and abort it: kafka-transactions.sh find-hanging --topic {topic.name}",
        )
    ]


def _money(plan: Plan) -> list[Risk]:
    cost, found = plan.cost, []
    if cost.unpriced:
        names = ", ".join(cost.unpriced)
        held = " and its budget would hold nothing" if cost.budget is not None else ""
        found.append(
            Risk(
                "note",
                "no_price",
                f"nobody has said what {names} costs: it would be counted as free{held}",
                "set price_per_million_tokens at the endpoint, or the model under prices",
            )
        )
    if cost.over_budget and cost.high:
        share = (cost.budget or 0.0) / cost.high
        found.append(
            Risk(
                "note",
                "over_budget",
                f"the budget of {cost.budget:g} USD is below the cost of up to {cost.high:.4g} USD: the build would be "
                f"held at about {share:.0%} of it",
                f"raise budget_usd in the configuration, or later: crossfade set {plan.collection} {plan.version} "
                "budget_usd=USD",
            )
        )
    return found


def _room(plan: Plan) -> list[Risk]:
    room, found = room_left(plan.capacity), []
    if room is not None and plan.new.disk > room:
        found.append(
            Risk(
                "stops",
                "disk",
                f"the new space takes about {plan.new.disk / 1e6:,.1f} MB, and Weaviate's disk has room for "
                f"{room / 1e6:,.1f} MB before Weaviate turns read-only",
                "give Weaviate a larger disk, or retire a version that is no longer needed",
            )
        )
    used, limit = plan.capacity.memory_used_bytes, plan.capacity.memory_limit_bytes
    if used is not None and limit is not None and used + plan.new.memory > limit:
        found.append(
            Risk(
                "note",
                "memory",
                f"the new space needs about {plan.new.memory / 1e6:,.1f} MB of memory, and Weaviate has "
                f"{max(0, limit - used) / 1e6:,.1f} MB left",
                "give Weaviate more memory, or plan a version of fewer dimensions",
            )
        )
    return found


def _refused(plan: Plan) -> list[Risk]:
    refused = sum(plan.measured.refused.values())
    if not refused:
        return []
    causes = ", ".join(f"{number:,} {cause}" for cause, number in plan.measured.refused.items())
    share = refused / max(1, plan.measured.replayed)
    then = "repair them at their producer"
    if plan.measured.refused.get("record_too_large"):
        then += ", or raise max_record_bytes"
    if plan.measured.refused.get("content_rejected"):
        then += "; chunking or overlong: truncate embeds long ones"
    if share > MANY_REFUSED and {"bad_text", "empty_text"} & plan.measured.refused.keys():
        then += "; are text.fields the right ones?"
    return [Risk("note", "refused", f"{refused:,} documents ({share:.1%}) go to the dead letters: {causes}", then)]


def _build(plan: Plan, build: BuildState | None) -> list[Risk]:
    if build is None or not build.active:
        return []
    name = f"{plan.collection}/{plan.version}"
    if build.fingerprint != plan.fingerprint:
        return [
            Risk(
                "stops",
                "another_model",
                f"{name} is {build.stage} as model {build.fingerprint}; the configuration now says {plan.fingerprint}",
                "give the changed model a version name of its own",
            )
        ]
    return [
        Risk(
            "note",
            "already_built",
            f"{name} is already {build.stage}, as this very model, in space {build.space}: this is what building it "
            "anew would take",
        )
    ]


def _tombstones(topic: Topic, seconds: float | None) -> list[Risk]:
    kept_ms = topic.milliseconds("delete.retention.ms")
    if kept_ms is None or "compact" not in topic.settings.get("cleanup.policy", ""):
        return []
    if seconds is not None and seconds * 1000 >= kept_ms:
        return [
            Risk(
                "loses",
                "delete_retention",
                f"delete.retention.ms of {topic.name} is {kept_ms / 3.6e6:,.1f} h, and the replay takes longer: a "
                "worker that stands still for that long misses deletes, which only the sweep then finds",
                f"set delete.retention.ms of {topic.name} to {_milliseconds(2 * seconds)} at least",
            )
        ]
    if kept_ms < DAY_S * 1000:
        return [
            Risk(
                "note",
                "delete_retention_short",
                f"delete.retention.ms of {topic.name} is {kept_ms / 1000:,.0f} s: a worker that is away for longer "
                "misses deletes, which only the sweep then finds",
                f"set delete.retention.ms of {topic.name} to a day (86400000) at least",
            )
        ]
    return []


def _milliseconds(seconds: float) -> int:
    """Whole days, upwards."""
    return int(-(-seconds // DAY_S) * DAY_S * 1000)


def _superseded(plan: Plan, topic: Topic) -> list[Risk]:
    measured = plan.measured
    share = measured.superseded / max(1, measured.records)
    ratio = topic.settings.get("min.cleanable.dirty.ratio")
    if share < MANY_SUPERSEDED or measured.records < 10_000:
        return []
    said = f" (min.cleanable.dirty.ratio={ratio}, segment.ms={topic.settings.get('segment.ms', '?')})" if ratio else ""
    return [
        Risk(
            "note",
            "superseded",
            f"{share:.0%} of the records have been replaced by newer ones: compaction is behind{said}; they are read, "
            "and never embedded",
        )
    ]
