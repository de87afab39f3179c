"""How the state of a version reads: one line of one shape, its note, and the command an operator would run next.

Pure: it turns state and progress records into words and JSON, and never looks anything up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from connectors.protocols import JSON
from streams.cli.output import duration, moment
from streams.progress import ProgressRecord, combine
from streams.state import BuildState, CollectionState
from streams.versions import Stage, next_command


@dataclass(frozen=True, slots=True)
class VersionStatus:
    """What is known of one version. `whole` None: nothing was ever reported of this build.

    `silent`: partitions whose owner has not reported lately. `build` None: declared in the configuration only, and
    `refused` then says why it was not started, if it was tried.
    """

    collection: str
    version: str
    build: BuildState | None
    whole: ProgressRecord | None
    silent: int
    alone: bool
    refused: str = ""

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


def status_of(
    build: BuildState, reports: Sequence[ProgressRecord], fresh: int, collection: CollectionState, now_ms: int
) -> VersionStatus:
    """`reports`: the newest record of each partition; `fresh`: how many of them are recent."""
    whole = combine(build.version, reports, build.partitions, now_ms)
    silent = build.partitions - fresh if build.active else 0
    alone = collection.serving == build.version and collection.previous is None
    return VersionStatus(build.collection, build.version, build, whole, silent, alone)


def line(status: VersionStatus) -> str:
    """`docs/v2  building  1,234/7,400  16.7%  52.1/s  eta 1m58s  lag 12  held at 50 documents/s`, always so."""
    whole = status.whole
    active = status.build is not None and status.build.active
    known = whole is not None and whole.planned
    speaks = whole is not None and active and not status.silent and status.state != "failed"
    parts = [
        status.name,
        f"{status.state:<8}",
        f"{whole.completed:,}/{whole.total:,}" if whole and known else "-/-",
        f"{100 * whole.progress:.1f}%" if whole and known else "-%",
        f"{whole.rate_per_s:.1f}/s" if whole and speaks else "-/s",
        f"eta {duration(whole.eta_s)}" if whole and speaks and whole.eta_s is not None else "eta -",
        f"lag {whole.live_lag:,}" if whole and speaks else "lag -",
    ]
    return "  ".join([*parts, *([note(status)] if note(status) else [])])


def note(status: VersionStatus) -> str:
    """What an operator must know beside the numbers; "" most of the time."""
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
    elif whole is not None and whole.reason and not status.silent:
        notes.append(whole.reason)
    if whole is not None and whole.unsettled:
        notes.append(f"unsettled {whole.unsettled}")
    if whole is not None and whole.dead_letters:
        notes.append(f"dead letters {whole.dead_letters}")
    if whole is not None and whole.cost_usd:
        budget = build.controls.budget_usd
        notes.append(f"spent {whole.cost_usd:.2f}{f' of {budget:g}' if budget else ''} USD")
    return ", ".join(notes)


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
            "provenance": dict(build.provenance),
            "started_ms": build.started_ms,
            "ready_ms": build.ready_ms or None,
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
            "dead_letters": whole.dead_letters,
            "counters": dict(whole.counters),
        }
    return data
