"""How the state of a version reads: one line of one shape, its reason, its details, and the command to run next.

Pure: it turns state and progress records into words and JSON, and never looks anything up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from connectors.protocols import JSON
from streams.cli.output import count, duration, moment
from streams.controls import summary
from streams.progress import ProgressRecord, TierProgress, combine
from streams.state import BuildState, CollectionState
from streams.versions import Stage, next_command

PARTITIONS_SHOWN = 12
FOLLOWED_MS = 5_000
NEAR_END = 0.95
NEAR_END_S = 120.0
NEAR_START_S = 60.0
SOON_S, LATER_S, SELDOM_S = 1.0, 5.0, 10.0
LATER_UNTIL_S = 300.0


@dataclass(frozen=True, slots=True)
class VersionStatus:
    """What is known of one version. `whole` None: nothing was ever reported of this build.

    `silent`: partitions whose owner has not reported lately. `build` None: declared in the configuration only, and
    `refused` then says why it was not started, if it was tried. `reports`: the newest record of each partition.
    `rolled_back`: the last change of what serves was a rollback, which another rollback would undo. `reminder`: of a
    previous version whose retention is over, or ends by itself, with the command to type.
    """

    collection: str
    version: str
    build: BuildState | None
    whole: ProgressRecord | None
    silent: int
    alone: bool
    refused: str = ""
    reports: tuple[ProgressRecord, ...] = ()
    now_ms: int = 0
    rolled_back: bool = False
    reminder: tuple[str, str] | None = None

    @property
    def name(self) -> str:
        return f"{self.collection}/{self.version}"

    @property
    def state(self) -> str:
        """The stage, or the condition that stands in its way."""
        build = self.build
        if build is None:
            return "declared"
        if not build.active:
            return build.stage.value
        if build.failure is not None:
            return "failed"
        if build.paused is not None:
            return "paused"
        if self.whole is not None and self.whole.status == "waiting" and not self.silent:
            return "waiting"
        return build.stage.value

    @property
    def unreported(self) -> bool:
        """No worker speaks for an active build, in whole or in part."""
        return self.build is not None and self.build.active and self.build.failure is None and self.silent > 0

    @property
    def moving(self) -> ProgressRecord | None:
        """The whole, while somebody reports on every partition: what it says of rate, ETA and lag is then so now."""
        active = self.build is not None and self.build.active
        return self.whole if active and not self.silent and self.state != "failed" else None

    @property
    def replaying(self) -> bool:
        """Its history is being read: there is a progress to show."""
        building = self.build is not None and self.build.stage is Stage.BUILDING
        return building and self.whole is not None and self.whole.planned


def status_of(
    build: BuildState,
    reports: Sequence[ProgressRecord],
    fresh: int,
    collection: CollectionState,
    now_ms: int,
    followed: ProgressRecord | None = None,
) -> VersionStatus:
    """`reports`: the newest record of each partition; `fresh`: how many of them are recent; `followed`: the
    controller's record of the whole, whose rate and ETA are better than those of one look."""
    whole = combine(build.version, reports, build.partitions, now_ms, build.controls.replay_rate)
    if whole is not None and whole.eta_s and followed is not None and followed.eta_s:
        recent = followed.epoch == build.epoch and now_ms - followed.updated_at < FOLLOWED_MS
        if recent:
            whole = whole.model_copy(update={"rate_per_s": followed.rate_per_s, "eta_s": followed.eta_s})
    silent = build.partitions - fresh if build.active else 0
    alone = collection.serving == build.version and collection.previous is None
    swapped = collection.swapped
    return VersionStatus(
        build.collection,
        build.version,
        build,
        whole,
        silent,
        alone,
        reports=tuple(reports),
        now_ms=now_ms,
        rolled_back=swapped is not None and swapped.verb == "rollback",
    )


# the line


def cells(status: VersionStatus) -> list[str]:
    """The parts of a version's line, always as many, always in this order; the reason last."""
    whole, moving = status.whole, status.moving
    known = whole is not None and whole.planned
    return [
        status.name,
        f"{status.state:<8}",
        f"{whole.completed:,}/{whole.total:,}" if whole and known else "-/-",
        f"{100 * whole.progress:.1f}%" if whole and known else "-%",
        f"{moving.rate_per_s:.1f}/s" if moving else "-/s",
        f"eta {eta(moving if status.state != 'paused' else None)}",
        f"lag {moving.live_lag:,}" if moving else "lag -",
        f"spent {spent(status)}",
        note(status),
    ]


def line(status: VersionStatus) -> str:
    """`docs/v2  building  1,234/7,400  16.7%  52.1/s  eta 1m58s  lag 12  spent 0.42 USD  held at 50 documents/s`."""
    return "  ".join(cells(status))


RIGHT = (False, False, True, True, True, False, False, False, False)  # numbers under one another; reasons not padded


def table(statuses: Sequence[VersionStatus]) -> list[str]:
    """The lines of several versions, column under column."""
    rows = [cells(status) for status in statuses]
    widths = [*[max(len(cell) for cell in column) for column in zip(*rows, strict=True)][:-1], 0]
    return [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, RIGHT, strict=True)
        )
        for row in rows
    ]


def eta(record: ProgressRecord | None) -> str:
    """5s, 1m58s, 2h05m, 3d04h; "-" where nobody can know. Never 0s while documents are missing."""
    if record is None or record.eta_s is None:
        return "-"
    return duration(max(1.0, record.eta_s) if record.completed < record.total else record.eta_s)


def spent(status: VersionStatus) -> str:
    """`0.42 USD`, `0.42 of 50 USD` with a budget; "-" where nothing was paid for, or nobody knows a price."""
    cost = status.whole.cost_usd if status.whole is not None else None
    budget = status.build.controls.budget_usd if status.build is not None else None
    if not cost and budget is None:
        return "-"
    paid = 0.0 if cost is None else cost
    shown = f"{paid:,.2f}" if paid == 0 or paid >= 0.1 else f"{paid:.2g}" if paid >= 1e-4 else "<0.0001"
    return f"{shown} of {budget:,.10g} USD" if budget is not None else f"{shown} USD"


def note(status: VersionStatus) -> str:
    """The reason of the state, with what an operator must know beside the numbers; never empty."""
    build, whole = status.build, status.whole
    if build is None:
        return f"not started: {status.refused}" if status.refused else "not started"
    if not build.active:
        return f"ended {moment(build.updated_ms)}"
    notes: list[str] = []
    if build.failure is not None:
        notes.append(f"stopped: {build.failure.cause}")
    elif status.silent:
        every = status.silent == build.partitions
        notes.append(
            "no worker is reporting"
            if every
            else f"no worker is reporting on {status.silent} of {build.partitions} partitions"
        )
    if build.paused is not None:
        notes.append("replay is paused" if build.paused == "replay" else "replay and live writes are paused")
    elif whole is not None and whole.reason and not status.silent and not _outdated(build, whole):
        notes.append(whole.reason)
    if not notes:
        notes.append(_reason_of_the_stage(status, build))
    if whole is not None and whole.unsettled:
        notes.append(f"unsettled {whole.unsettled}")
    if whole is not None and whole.dead_letters:
        notes.append(f"dead letters {whole.dead_letters}")
    return ", ".join(notes)


def _outdated(build: BuildState, whole: ProgressRecord) -> bool:
    """The reports are still those of the replay, a second after the stage has changed."""
    return whole.status == "building" and build.stage is not Stage.BUILDING


def _reason_of_the_stage(status: VersionStatus, build: BuildState) -> str:
    """Why it is in this stage, when nothing is in its way."""
    if build.stage is Stage.BUILDING:
        if status.whole is None or not status.whole.planned:
            return "plan scan"
        if status.whole.replay_done:
            return "the controller is told that the replay is complete"
        if status.whole.completed >= status.whole.total:
            return "the last records before the barrier"
        return "history is replayed"
    if build.stage is Stage.READY:
        return "complete; waits for a cutover"
    if build.stage is Stage.SERVING:
        return "answers searches"
    return "kept current for a rollback"


def next_of(status: VersionStatus) -> str:
    """The command an operator would run next."""
    build = status.build
    if build is None:
        return f"crossfade start {status.collection} {status.version}"
    this = f"{build.collection} {build.version}"
    if build.active and build.failure is not None:
        return build.failure.next_step or f"remove the cause, then: crossfade resume {this}"
    if status.unreported:
        return "crossfade worker"
    if build.active and build.paused is not None:
        return f"crossfade resume {this}"
    if status.alone:
        return f"crossfade search {build.collection} QUERY"
    if status.rolled_back and build.stage is Stage.SERVING:
        return f"crossfade search {build.collection} QUERY"
    if build.stage is Stage.SERVING:
        return f"crossfade rollback {build.collection}, if anything is wrong with {build.version}"
    if status.rolled_back and build.stage is Stage.PREVIOUS:
        return f"crossfade cutover {this} --check, or crossfade retire {this} --confirm {build.version}"
    if build.stage is Stage.READY and status.whole is not None and status.whole.unsettled:
        return f"wait for the settle time, then: crossfade cutover {this} --check"
    return next_command(build.stage, collection=build.collection, version=build.version)


def heading(collection: CollectionState) -> str:
    """What serves, and what a rollback would go back to."""
    parts = [
        f"serving {collection.serving or '(nothing yet)'}",
        f"previous {collection.previous or '(none)'}",
        f"alias {collection.alias or '-'}",
        f"topic {collection.topic or '-'}",
    ]
    if collection.intent is not None:
        parts.append(f"{collection.intent.command.verb} under way")
    return f"{collection.collection}: {', '.join(parts)}"


def notes(collection: CollectionState, statuses: Sequence[VersionStatus]) -> list[tuple[str, str]]:
    """What is to be said of a collection above its versions, each with the command that helps (or "")."""
    of_builds = [note for one in statuses if one.build is not None for note in one.build.notes]
    return [*collection.notes, *of_builds, *(one.reminder for one in statuses if one.reminder is not None)]


# one version in full


def details(status: VersionStatus) -> list[tuple[str, str]]:
    """What else is known of a version, as pairs of label and words; one screen, however many partitions it has."""
    build, whole = status.build, status.whole
    if build is None:
        return []
    started = f"started {moment(build.started_ms)}"
    if build.started_ms and status.now_ms > build.started_ms and build.active:
        started += f" ({duration((status.now_ms - build.started_ms) / 1000)} ago)"
    ready = f", ready {moment(build.ready_ms)}" if build.ready_ms else ""
    shown = [
        ("space", build.space or "-"),
        ("build", f"epoch {build.epoch}, fingerprint {build.fingerprint}, {started}{ready}"),
        *([("origin", ", ".join(f"{k} {v}" for k, v in build.provenance.items()))] if build.provenance else []),
        ("controls", summary(build.controls)),
    ]
    if whole is None:
        return shown
    counted = whole.counted()
    if covered := coverage(whole.tiers):
        shown.append(("coverage", covered))
    if counted.carried or counted.not_carried:
        unfit = f", {counted.not_carried:,} could not be" if counted.not_carried else ""
        shown.append(("forgotten", f"{counted.carried:,} from the serving space, which the topic no longer has{unfit}"))
    shown += [
        (
            "changes",
            f"{counted.changed_mid_migration:,} while migrating, {counted.unchanged_skipped:,} of equal text not "
            f"embedded again, {counted.suppressed_by_live:,} old forms left out",
        ),
        (
            "history",
            f"{count(counted.superseded, 'superseded record')}, {count(counted.deletes, 'delete')}; embedded "
            f"{counted.embedded_replay:,} of it, {counted.embedded_live + counted.embedded_mend:,} live",
        ),
        (
            "spend",
            f"{spent(status)}, {count(counted.tokens, 'token')}, {counted.cached:,} texts from the vector cache, "
            f"{counted.truncated:,} cut",
        ),
    ]
    if whole.dead_letters:
        letters = count(whole.dead_letters, "dead letter")
        shown.append(("refused", f"{letters}; crossfade redrive {build.collection} {build.version}"))
    return shown + (partitions(status) if build.active else [])


def coverage(tiers: Sequence[TierProgress]) -> str:
    """Documents by tier, and the share of the traffic that is covered; "" where there is only the rest."""
    if all(tier.name == "rest" for tier in tiers):
        return ""
    parts = []
    for tier in tiers:
        of = " of the documents people search for" if tier.name == "listed" else ""
        parts.append(f"{tier.name} {tier.completed:,}/{tier.total:,} {_percent(tier.completed, tier.total)}{of}")
    if (share := traffic(tiers)) is not None:
        parts.append(f"traffic covered {_percent(share, 1.0)}")
    return "; ".join(parts)


def traffic(tiers: Sequence[TierProgress]) -> float | None:
    """The share of the traffic whose documents are done, 0 to 1; None where nobody has counted any."""
    weight = sum(tier.weight for tier in tiers)
    return sum(tier.weight_completed for tier in tiers) / weight if weight > 0 else None


def _percent(part: float, whole: float) -> str:
    """Rounded down: 100% is all of it."""
    if whole <= 0 or part >= whole:
        return "100%"
    return f"{int(1000 * part / whole) / 10:.1f}%"


def partitions(status: VersionStatus) -> list[tuple[str, str]]:
    """Each partition with its owner; of many those that are in trouble, then those that take longest."""
    build = status.build
    if build is None:
        return []
    found = {report.partition: report for report in status.reports}
    numbers = sorted(range(build.partitions), key=lambda number: _urgency(found.get(number), status.now_ms))
    chosen = sorted(numbers[:PARTITIONS_SHOWN])
    rows = [_partition(found.get(number), status.now_ms) for number in chosen]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)] if rows else []
    width = len(str(build.partitions - 1))
    lines = [
        (
            f"partition {number:>{width}}",
            "  ".join(
                f"{cell:>{w}}" if at < 3 else f"{cell:<{w}}"
                for at, (cell, w) in enumerate(zip(row, widths, strict=True))
            ).rstrip(),
        )
        for number, row in zip(chosen, rows, strict=True)
    ]
    if len(numbers) > len(chosen):
        lines.append(("", f"and {len(numbers) - len(chosen)} more partitions, none of them slower or in trouble"))
    return lines


def _urgency(report: ProgressRecord | None, now_ms: int) -> tuple[int, float, int]:
    if report is None:
        return 0, 0.0, 0
    rank = 1 if report.stands_still(now_ms) else 2 if not report.replay_done else 3
    return rank, -(report.eta_s if report.eta_s is not None else float("inf")), -report.live_lag


def _partition(report: ProgressRecord | None, now_ms: int) -> tuple[str, ...]:
    if report is None:
        return "-/-", "-%", "-/s", "eta -", "lag -", "-", "nobody has reported on it yet"
    done = (
        f"{report.completed:,}/{report.total:,}" if report.planned else "-/-",
        f"{100 * report.progress:.1f}%" if report.planned else "-%",
    )
    if not report.is_fresh(now_ms):
        silence = f"silent for {duration((now_ms - report.updated_at) / 1000)}"
        return *done, "-/s", "eta -", "lag -", f"was {report.worker or '-'}", silence
    still = report.stands_still(now_ms)
    return (
        *done,
        f"{0.0 if still else report.rate_per_s:.1f}/s",
        f"eta {'-' if still else eta(report)}",
        f"lag {report.live_lag:,}",
        report.worker or "-",
        report.reason or ("replay done" if report.replay_done else "replaying"),
    )


# how often to look


def refresh_s(statuses: Sequence[VersionStatus]) -> float:
    """Seconds until a watch shows the numbers again: 1 near the start and the end of a replay, 5 to 10 between."""
    return min([_refresh_s(status) for status in statuses], default=SELDOM_S)


def _refresh_s(status: VersionStatus) -> float:
    build, whole = status.build, status.whole
    if build is None or build.stage is not Stage.BUILDING or build.failure is not None:
        return SELDOM_S
    since_start_s = (status.now_ms - build.started_ms) / 1000
    if whole is None or not whole.planned or since_start_s < NEAR_START_S or whole.progress >= NEAR_END:
        return SOON_S
    if whole.eta_s is not None and whole.eta_s < NEAR_END_S:
        return SOON_S
    return LATER_S if since_start_s < LATER_UNTIL_S else SELDOM_S


def version_json(status: VersionStatus) -> dict[str, JSON]:
    build, whole = status.build, status.whole
    data: dict[str, JSON] = {
        "version": status.version,
        "state": status.state,
        "stage": build.stage.value if build else Stage.DECLARED.value,
        "note": note(status),
        "next": next_of(status),
        "reporting": build is not None and build.active and not status.silent,
    }
    if build is not None:
        data |= {
            "epoch": build.epoch,
            "fingerprint": build.fingerprint,
            "space": build.space,
            "partitions": build.partitions,
            "silent_partitions": status.silent,
            "paused": build.paused,
            "failure": build.failure.cause if build.failure else None,
            "replay_rate": build.controls.replay_rate,
            "budget_usd": build.controls.budget_usd,
            "concurrency": build.controls.concurrency,
            "tier_order": list(build.controls.tiers) if build.controls.tiers is not None else None,
            "provenance": dict(build.provenance),
            "started_ms": build.started_ms,
            "ready_ms": build.ready_ms or None,
            "owners": [_partition_json(report, status.now_ms) for report in status.reports],
        }
    if whole is not None:
        data |= {
            "planned": whole.planned,
            "total": whole.total,
            "completed": whole.completed,
            "progress": whole.progress,
            "rate_per_s": whole.rate_per_s,
            "eta_s": whole.eta_s,
            "live_lag": whole.live_lag,
            "unsettled": whole.unsettled,
            "cost_usd": whole.cost_usd,
            "tokens": whole.counters.get("tokens", 0),
            "changed_mid_migration": whole.changed_mid_migration,
            "unchanged_skipped": whole.unchanged_skipped,
            "dead_letters": whole.dead_letters,
            "tiers": [tier.model_dump(mode="json") for tier in whole.tiers],
            "traffic_covered": traffic(whole.tiers),
            "counters": dict(whole.counters),
        }
    return data


def _partition_json(report: ProgressRecord, now_ms: int) -> dict[str, JSON]:
    return {
        "partition": report.partition,
        "worker": report.worker,
        "reporting": report.is_fresh(now_ms),
        "status": report.status,
        "reason": report.reason,
        "total": report.total,
        "completed": report.completed,
        "progress": report.progress,
        "rate_per_s": report.rate_per_s,
        "eta_s": report.eta_s,
        "live_lag": report.live_lag,
        "unsettled": report.unsettled,
        "dead_letters": report.dead_letters,
        "replay_done": report.replay_done,
        "updated_at_ms": report.updated_at,
    }
