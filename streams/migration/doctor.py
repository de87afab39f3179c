"""What a doctor says of what was seen: each judgement takes values and gives findings with the fix.

Pure. It must never call something sound that was not seen: that is "not known", with the reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

import numpy as np

from connectors import reserved
from connectors.embedders.canary import check_birth, from_base64
from connectors.errors import CrossfadeError, IdentityChanged
from connectors.inspected import ClusterFacts, SampledObject, ServerFacts, TopicLayout
from connectors.protocols import Bounds, Capacity, Commit, Head, ModelFacts, TopicFacts, Vectors
from streams import identity
from streams.documents import object_id
from streams.migration.plan import READ_ONLY_SHARE
from streams.migration.plan_risks import Topic, topic_risks
from streams.state import BuildState, CollectionState
from streams.versions import alias_of_space

Verdict = Literal["ok", "note", "wrong", "not known"]

MOST_SKEW_MS = 5_000
"""Clocks further apart make event times, ages and lags of the tools say what is not so."""
MANY_BEHIND = 10_000
DISK_NOTE_SHARE = 0.8
NAMED = 3
ON_TOPIC = ("describe", "describe_configs", "read")


@dataclass(frozen=True, slots=True)
class Finding:
    """`check`: its name in docs/doctor.md; `looked_at`: the very thing; `fix`: what helps, empty where all is well."""

    check: str
    looked_at: str
    verdict: Verdict
    found: str
    fix: str = ""


def unmade(check: str, looked_at: str, error: CrossfadeError) -> Finding:
    """Of a check that could not be made."""
    return Finding(check, looked_at, "not known", error.message.splitlines()[0], error.next_step)


def denied(check: str, looked_at: str, error: CrossfadeError) -> Finding:
    """Of a check that this client was not allowed to make: workers ask the same."""
    return Finding(
        check, looked_at, "wrong", error.message.splitlines()[0], error.next_step or "grant it, and try again"
    )


def healthy(findings: Iterable[Finding]) -> bool:
    """Nothing is wrong. What is not known is not wrong, and not well either: it stands in the list."""
    return all(finding.verdict != "wrong" for finding in findings)


# Kafka


def kafka(address: str, facts: ClusterFacts, prefix: str) -> list[Finding]:
    found = f"cluster {facts.cluster_id or '(without an id)'}, {_count(facts.brokers, 'broker')}"
    if facts.operations is not None and not facts.operations & {"create", "all"}:
        return [
            Finding(
                "kafka",
                address,
                "note",
                f"{found}; this client may not create topics in the cluster",
                f"create the topics {prefix}.* yourself, or grant Create on them to this client",
            )
        ]
    return [Finding("kafka", address, "ok", found)]


def client_settings(
    address: str, session_timeout_s: float, client: Iterable[str], broker: Mapping[str, str]
) -> Finding:
    """What the brokers allow this client. `client`: names of the further librdkafka settings, never their values."""
    names = ", ".join(sorted(client)) or "none"
    said = f"session_timeout_s {session_timeout_s:g}, kafka.client: {names}"
    least, most = (_number(broker.get(f"group.{end}.session.timeout.ms")) for end in ("min", "max"))
    kept = _number(broker.get("offsets.retention.minutes"))
    if least is None or most is None or kept is None:
        what = f"{said}; the broker does not tell the bounds of a session"
        fix = "grant DescribeConfigs on the cluster to this client"
        return Finding("client settings", address, "not known", what, fix)
    if not least <= session_timeout_s * 1000 <= most:
        what = f"{said}; the brokers take {least / 1000:g} to {most / 1000:g} s: no worker can join"
        return Finding("client settings", address, "wrong", what, "set kafka.session_timeout_s between these")
    if kept < 24 * 60:
        what = f"{said}; the brokers forget a group's offsets {kept} minutes after its last worker has gone"
        return Finding("client settings", address, "note", what, "set offsets.retention.minutes to a week (10080)")
    return Finding("client settings", address, "ok", said)


def documents_topic(
    collection: str, facts: TopicFacts, seen: Topic, layout: TopicLayout, brokers: int, max_record_bytes: int
) -> list[Finding]:
    """The documents topic: retention and compaction, copies, sizes, rights."""
    name = facts.name
    found = [
        Finding("retention", name, "note" if risk.severity == "note" else "wrong", risk.what, risk.next_step)
        for risk in topic_risks(seen)
    ]
    if not found:
        kept_h = facts.delete_retention_ms / 3.6e6
        found.append(
            Finding(
                "retention",
                name,
                "ok",
                f"cleanup.policy={facts.cleanup_policy}, deletes are kept for {kept_h:,.0f} h, "
                f"{_count(facts.partitions, 'partition')}, no transaction hangs",
            )
        )
    found += replicas(name, layout, seen.settings, brokers)
    if facts.max_message_bytes > 1.1 * max_record_bytes:
        found.append(
            Finding(
                "record size",
                name,
                "note",
                f"the topic takes records of {facts.max_message_bytes:,} bytes, {collection} of {max_record_bytes:,}: "
                "larger ones go to the dead letters",
                f"raise max_record_bytes of {collection}, or lower max.message.bytes of {name}",
            )
        )
    else:
        found.append(Finding("record size", name, "ok", f"max.message.bytes={facts.max_message_bytes:,}"))
    return [*found, *rights(name, layout, ON_TOPIC)]


def replicas(topic: str, layout: TopicLayout, settings: Mapping[str, str], brokers: int) -> list[Finding]:
    """Leaders, copies in sync, and what min.insync.replicas makes of them."""
    least = _number(settings.get("min.insync.replicas"))
    all_, where = layout.partitions, f"{topic}"
    if leaderless := [p for p, facts in all_.items() if not facts.led]:
        said = f"no broker leads {_partitions(leaderless)}: nothing is read or written there"
        return [Finding("replicas", where, "wrong", said, "bring the brokers back that hold it")]
    if least is None:
        said = "the broker does not tell min.insync.replicas"
        return [Finding("replicas", where, "not known", said, f"grant DescribeConfigs on {topic} to this client")]
    short = [p for p, facts in all_.items() if facts.in_sync < least]
    if short:
        said = f"fewer than min.insync.replicas={least} copies of {_partitions(short)} are in sync: writes are refused"
        return [Finding("replicas", where, "wrong", said, "bring the missing brokers back, or lower the setting")]
    if behind := [p for p, facts in all_.items() if facts.in_sync < facts.replicas]:
        said = f"not all copies of {_partitions(behind)} are in sync"
        return [Finding("replicas", where, "note", said, "see which broker is away or behind")]
    copies = min((facts.replicas for facts in all_.values()), default=0)
    if copies == 1 and brokers > 1:
        said = f"one copy only, on {brokers} brokers: the loss of one loses records"
        return [Finding("replicas", where, "note", said, f"give {topic} three replicas")]
    if copies > 1 and least >= copies:
        said = f"min.insync.replicas={least} of {copies} copies: writes stop as soon as one broker is away"
        return [Finding("replicas", where, "note", said, f"set min.insync.replicas of {topic} to {copies - 1}")]
    if copies > 2 and least == 1:
        said = f"min.insync.replicas=1 of {copies} copies: a record may be acknowledged by one broker alone, and lost"
        return [Finding("replicas", where, "note", said, f"set min.insync.replicas of {topic} to {copies - 1}")]
    alone = ", the cluster has no second broker" if copies == 1 else ""
    return [Finding("replicas", where, "ok", f"{_count(copies, 'copy', 'copies')} in sync{alone}")]


def rights(topic: str, layout: TopicLayout, wanted: Sequence[str]) -> list[Finding]:
    """`wanted`: Kafka's names of operations."""
    if layout.operations is None:
        return [
            Finding(
                "permissions",
                topic,
                "not known",
                "the brokers do not tell what this client may do",
                f"see that its ACLs hold {', '.join(wanted)} on {topic}",
            )
        ]
    missing = [] if "all" in layout.operations else [one for one in wanted if one not in layout.operations]
    if missing:
        said = f"this client may not {', '.join(missing)}"
        return [Finding("permissions", topic, "wrong", said, f"grant {', '.join(missing)} on {topic} to this client")]
    return [Finding("permissions", topic, "ok", f"may {', '.join(wanted)}")]


def own_topic(topic: str, wanted: Mapping[str, str], seen: Mapping[str, str], partitions: int) -> Finding:
    """One of Crossfade's own, compared with what it is created with."""
    wrong: list[str] = []
    if partitions != 1:
        wrong.append(f"{partitions} partitions instead of 1")
    for name, value in wanted.items():
        told = seen.get(name)
        if told is None:
            fix = f"grant DescribeConfigs on {topic} to this client"
            return Finding("own topics", topic, "not known", f"the broker does not tell {name}", fix)
        if not _serves(name, value, told):
            wrong.append(f"{name}={told} instead of {value}")
    said = ", ".join(f"{name}={seen[name]}" for name in wanted)
    if not wrong:
        return Finding("own topics", topic, "ok", said)
    settings = ",".join(f"{name}={value}" for name, value in wanted.items() if not _serves(name, value, seen[name]))
    fix = f"kafka-configs.sh --alter --entity-type topics --entity-name {topic} --add-config {settings}"
    if partitions != 1:
        fix = f"stop the workers and create {topic} anew with one partition, from a copy of its records"
    return Finding("own topics", topic, "wrong", "; ".join(wrong), fix)


def _serves(name: str, wanted: str, told: str) -> bool:
    if name == "cleanup.policy":
        return {part.strip() for part in told.split(",")} == {wanted}
    least, have = _number(wanted), _number(told)
    if least is None or have is None:
        return told == wanted
    return have == -1 or (least != -1 and have >= least)


def worker(controller_group: str, there: bool | None, active: int) -> Finding:
    """`there`: whether anybody is in the controller's group; `active`: builds that are to be written."""
    if there:
        return Finding("worker", controller_group, "ok", "a worker runs")
    if there is None and active:
        said = "the brokers know no such group, or do not show it"
        return Finding("worker", controller_group, "not known", said, "if none runs: crossfade worker")
    if active:
        said = f"no worker runs: nobody writes {_count(active, 'active version')}"
        return Finding("worker", controller_group, "wrong", said, "crossfade worker")
    return Finding("worker", controller_group, "note", "no worker runs, and no version is built", "crossfade worker")


def worker_clock(newest_ms: int | None, now_ms: int, fresh: bool) -> Finding:
    """`newest_ms`: when the newest progress record says it was written, by the clock of a worker; `fresh`: it was
    watched as it arrived."""
    where = "time of the newest progress record"
    if newest_ms is None:
        return Finding("clock", where, "not known", "no worker has reported yet", "crossfade worker")
    ahead_ms = newest_ms - now_ms
    if ahead_ms > MOST_SKEW_MS:
        said = f"a worker's clock is {ahead_ms / 1000:,.1f} s ahead of this machine's"
        return Finding("clock", where, "wrong", said, "synchronise the clocks of both (NTP)")
    if not fresh:
        said = (
            f"it is {-ahead_ms / 1000:,.0f} s old, and none came while we looked: a late clock cannot be told from age"
        )
        return Finding("clock", where, "not known", said, "look again while a worker runs: crossfade worker")
    if ahead_ms < -MOST_SKEW_MS:
        said = f"a worker's clock is {-ahead_ms / 1000:,.1f} s behind this machine's"
        return Finding("clock", where, "wrong", said, "synchronise the clocks of both (NTP)")
    return Finding("clock", where, "ok", f"workers and this machine agree within {MOST_SKEW_MS / 1000:g} s")


def broker_clock() -> Finding:
    """Records of our topics carry their writer's time, and Kafka answers no question about its own."""
    said = "Kafka tells no time of its own, and records carry their writers': only a write could show it"
    return Finding("clock", "brokers", "not known", said, "see that NTP runs on the brokers")


# builds


def build_state(build: BuildState) -> Finding:
    if build.failure is not None:
        fix = build.failure.next_step or f"crossfade resume {build.collection} {build.version}"
        return Finding("build", build.key, "wrong", f"stopped: {build.failure.cause}", fix)
    if build.paused:
        what = "its replay is paused" if build.paused == "replay" else "it is paused, live writes too"
        return Finding(
            "build", build.key, "note", f"{build.stage}, {what}", f"crossfade resume {build.collection} {build.version}"
        )
    return Finding("build", build.key, "ok", f"{build.stage}, epoch {build.epoch}, model {build.fingerprint}")


def build_topic(build: BuildState, facts: TopicFacts | None) -> Finding:
    """`facts`: None when there is no such topic."""
    try:
        if facts is None:
            raise identity.topic_gone(build)
        identity.check_topic(build, facts)
    except IdentityChanged as error:
        return Finding("identity", build.key, "wrong", error.message, error.next_step)
    return Finding("identity", build.key, "ok", f"{build.topic} is the topic it began with")


def offsets(
    build: BuildState,
    group: str,
    commits: Mapping[int, Commit],
    bounds: Mapping[int, Bounds],
    members: bool | None,
    worker_runs: bool | None,
) -> Finding:
    """The live group: its commits within the log, somebody in it, and not far behind."""
    behind = 0
    for partition, bound in sorted(bounds.items()):
        commit = commits.get(partition)
        position = commit.offset if commit is not None else build.start.get(partition, bound.earliest)
        try:
            identity.check_position(build, partition, position, bound)
        except IdentityChanged as error:
            return Finding("offsets", group, "wrong", error.message, error.next_step)
        behind += bound.stable - position
    bare = [partition for partition in bounds if partition not in commits]
    said = f"lag {behind:,}" + (f", no commit yet for {_partitions(bare)}" if bare else ", commits within the log")
    status = f"see what holds it: crossfade status {build.collection} {build.version}"
    if members is False and worker_runs and build.failure is None:
        return Finding("offsets", group, "wrong", f"nobody reads for it, though a worker runs; {said}", status)
    if not members:
        nobody = "nobody reads for it" if members is False else "whether anybody reads for it is not told"
        verdict: Verdict = "note" if members is False else "not known"
        return Finding("offsets", group, verdict, f"{nobody}; {said}", "crossfade worker")
    if behind > MANY_BEHIND:
        return Finding("offsets", group, "note", said, status)
    return Finding("offsets", group, "ok", said)


def configured_model(build: BuildState, fingerprint: str | None, topic: str) -> Finding:
    """`fingerprint`: of the version as the configuration has it now, None when it is not there."""
    if fingerprint is None:
        said = "it is written, but no longer in the configuration: a worker that starts cannot embed for it"
        fix = (
            f"put {build.version} back, or end it: crossfade retire {build.collection} {build.version} --confirm "
            f"{build.version}"
        )
        return Finding("model", build.key, "wrong", said, fix)
    try:
        identity.check_model(build, fingerprint)
        identity.check_source(build, topic)
    except IdentityChanged as error:
        return Finding("model", build.key, "wrong", error.message, error.next_step)
    return Finding("model", build.key, "ok", f"the configuration means model {fingerprint}, as the build does")


# Weaviate


def weaviate(address: str, facts: ServerFacts) -> list[Finding]:
    """Version, nodes, clock."""
    ill = {name: status for name, status in facts.nodes.items() if status != "HEALTHY"}
    if ill:
        said = ", ".join(f"{name} is {status}" for name, status in sorted(ill.items()))
        found = [Finding("weaviate", address, "wrong", f"version {facts.version}; {said}", "see those nodes' logs")]
    else:
        nodes = _count(len(facts.nodes), "node") if facts.nodes else "its nodes are not told"
        found = [Finding("weaviate", address, "ok", f"version {facts.version}, {nodes}, HTTP and gRPC answer")]
    where = f"Date of {address}"
    if facts.clock_ms is None:
        said, fix = "its answers carry no date", "see that NTP runs on its machine"
        return [*found, Finding("clock", where, "not known", said, fix)]
    if abs(facts.clock_ms) - facts.within_ms > MOST_SKEW_MS:
        side = "ahead of" if facts.clock_ms > 0 else "behind"
        said = f"Weaviate's clock is {abs(facts.clock_ms) / 1000:,.1f} s {side} this machine's"
        return [*found, Finding("clock", where, "wrong", said, "synchronise the clocks of both (NTP)")]
    return [*found, Finding("clock", where, "ok", f"agrees with this machine within {MOST_SKEW_MS / 1000:g} s")]


def auto_schema(address: str, ours: bool) -> Finding:
    """`ours`: the server was started by `crossfade up`, which switches it off."""
    if ours:
        return Finding("auto-schema", address, "ok", "started by crossfade up, which switches it off")
    said = "Weaviate tells nobody whether it is on; on, a late write could create a dropped space again"
    return Finding("auto-schema", address, "not known", said, "start Weaviate with AUTOSCHEMA_ENABLED=false")


def alias(state: CollectionState, spaces: Mapping[str, str], target: str | None) -> Finding:
    """`spaces`: by version, of the collection's builds; `target`: where the alias points, None for nowhere."""
    wanted = spaces.get(state.serving) if state.serving else None
    if state.intent is not None:
        said = f"a {state.intent.command.verb} has begun and is not done; it points to {target or 'nothing'}"
        fix = f"crossfade status {state.collection}; a running worker completes it"
        return Finding("alias", state.alias, "note", said, fix)
    if target == wanted:
        version = f" of {state.serving}, which serves" if state.serving else ": no version serves yet"
        return Finding("alias", state.alias, "ok", f"points to {target or 'nothing'}{version}")
    said = (
        f"points to {target or 'nothing'}, but {state.serving} serves, from {wanted}"
        if state.serving
        else f"points to {target}, but no version serves"
    )
    fix = (
        "find out who moved it; a running worker puts it back by itself: crossfade worker"
        if state.serving
        else f"find out who made it, and remove it before: crossfade cutover {state.collection} VERSION"
    )
    return Finding("alias", state.alias, "wrong", said, fix)


def space(build: BuildState, description: str | None, read_only: Sequence[str]) -> Finding:
    """`description`: None when there is no such space; `read_only`: shards that take no writes."""
    try:
        identity.check_space(build, description)
    except IdentityChanged as error:
        return Finding("space", build.space, "wrong", error.message, error.next_step)
    if read_only:
        said = f"read-only: {_few(read_only)}"
        fix = "free disk or memory on the server, then set its shards READY"
        return Finding("space", build.space, "wrong", said, fix)
    return Finding("space", build.space, "ok", f"there, with the envelope of {build.key}")


def properties(build: BuildState, configured: Mapping[str, str], stored: Mapping[str, str]) -> Finding:
    """Names and types, in the configuration and in the space."""
    try:
        missing = identity.check_properties(build, configured, stored)
    except IdentityChanged as error:
        return Finding("properties", build.space, "wrong", error.message, error.next_step)
    if missing:
        said = f"declared after it was built, and not stored in it: {', '.join(missing)}"
        return Finding("properties", build.space, "note", said, "build a version anew to have them")
    return Finding(
        "properties", build.space, "ok", f"{_count(len(configured), 'declared property', 'properties')} in it"
    )


def orphans(aliases: Mapping[str, str], known: Iterable[str], spaces: Iterable[str]) -> list[Finding]:
    """Spaces of our naming that no build owns. `aliases`: collection by alias; `known`: spaces of active builds."""
    owned = set(known)
    found: list[Finding] = []
    for name in sorted(spaces):
        alias_ = alias_of_space(name, aliases)
        if alias_ is not None and name not in owned:
            said = f"it is named like a space of {aliases[alias_]}, but no active version owns it"
            fix = "see whether another deployment uses it; if nobody does, delete the collection in Weaviate"
            found.append(Finding("orphaned spaces", name, "wrong", said, fix))
    if not found:
        where = f"Weaviate's collections named {', '.join(sorted(aliases))}_*"
        return [Finding("orphaned spaces", where, "ok", f"{_count(len(owned), 'space')}, each of an active version")]
    return found


# what a space holds


def marks(build: BuildState, sample: Sequence[SampledObject]) -> Finding:
    """Every object carries the mark of the build's model (rule 10)."""
    wanted = f"{build.version}@{build.fingerprint}"
    seen = Counter(str(one.properties.get(reserved.SPACE) or "none") for one in sample)
    strange = {mark: number for mark, number in seen.items() if mark != wanted}
    if strange:
        said = ", ".join(f"{number} of {len(sample)} objects carry {mark}" for mark, number in sorted(strange.items()))
        first = next(one for one in sample if (one.properties.get(reserved.SPACE) or "none") != wanted)
        return Finding(
            "mixed models",
            build.space,
            "wrong",
            f"{said} instead of {wanted}; one is {_who(first)}",
            f"find out who else writes into it; then {_repair(build)}, or build the version anew",
        )
    return Finding("mixed models", build.space, "ok", f"{_count(len(sample), 'object')}, all {wanted}")


def texts(build: BuildState, sample: Sequence[SampledObject], store_text: bool) -> Finding:
    """`store_text`: as configured for the collection."""
    if not store_text:
        return Finding("missing text", build.space, "ok", "store_text: false, none is kept")
    without = [one for one in sample if not one.has_text]
    if without:
        said = (
            f"{len(without)} of {len(sample)} objects have no text, though store_text is on; one is {_who(without[0])}"
        )
        fix = f"if store_text was switched on later, build a version anew; else {_repair(build)}"
        return Finding("missing text", build.space, "wrong", said, fix)
    return Finding("missing text", build.space, "ok", f"{_count(len(sample), 'object')}, all with their text")


def vectors(build: BuildState, sample: Sequence[SampledObject]) -> Finding:
    """Right length, finite, not zero."""
    dimensions = build.model.dimensions
    wrong: Counter[str] = Counter()
    first: SampledObject | None = None
    for one in sample:
        problem = _vector_problem(one.vector, dimensions)
        if problem:
            wrong[problem] += 1
            first = first or one
    if first is not None:
        said = ", ".join(f"{number} {problem}" for problem, number in sorted(wrong.items()))
        said = f"of {_count(len(sample), 'object')}: {said}; one is {_who(first)}"
        return Finding("vectors", build.space, "wrong", said, f"{_repair(build)}; if it comes back, see the endpoint")
    found = f"{_count(len(sample), 'object')}, each with {dimensions} finite numbers, none zero"
    return Finding("vectors", build.space, "ok", found)


def _vector_problem(vector: Vectors | None, dimensions: int) -> str:
    if vector is None:
        return "without a vector"
    if vector.shape != (dimensions,):
        return f"with {vector.size} dimensions instead of {dimensions}"
    if not np.isfinite(vector).all():
        return "with a vector that is not finite"
    return "" if vector.any() else "with a zero vector"


def siblings(collection: str, sample: Sequence[SampledObject], most: int) -> list[UUID]:
    """Ids that have to exist beside the sample, `most` of them: chunk 0 of every other chunk, and the rest of each
    document that has several."""
    wanted: dict[UUID, None] = {}
    for one in sample:
        doc_id, chunk, chunks = (
            one.properties.get(name) for name in (reserved.DOC_ID, reserved.CHUNK, reserved.CHUNKS)
        )
        if not isinstance(doc_id, str) or not isinstance(chunk, int | float) or not isinstance(chunks, int | float):
            continue
        if chunk > 0:
            wanted[object_id(collection, doc_id, 0)] = None
        else:
            wanted |= {object_id(collection, doc_id, n): None for n in range(1, int(chunks))}
        if len(wanted) >= most:
            break
    return list(wanted)[:most]


def orphaned_chunks(
    collection: str, sample: Sequence[SampledObject], beside: Mapping[UUID, Head], asked: Iterable[UUID]
) -> dict[str, str]:
    """Documents of which something is amiss, by id: chunks without their chunk 0, or not as many as it says. `asked`:
    the ids of `siblings` that were looked for, `beside` those that were found."""
    looked, amiss = set(asked), dict[str, str]()
    for one in sample:
        doc_id, chunk, chunks = (
            one.properties.get(name) for name in (reserved.DOC_ID, reserved.CHUNK, reserved.CHUNKS)
        )
        if not isinstance(doc_id, str) or not isinstance(chunk, int | float) or not isinstance(chunks, int | float):
            amiss[str(one.uuid)] = "is no object of Crossfade's"
            continue
        if one.uuid != object_id(collection, doc_id, int(chunk)):
            amiss[doc_id] = f"chunk {int(chunk)} stands under an id that is not its own"
            continue
        if chunk > 0:
            first = object_id(collection, doc_id, 0)
            if first not in looked:
                continue
            head = beside.get(first)
            if head is None:
                amiss[doc_id] = f"chunk {int(chunk)} has no chunk 0"
            elif chunk >= head.chunks:
                amiss[doc_id] = f"chunk {int(chunk)} is left over: chunk 0 says {head.chunks}"
        else:
            rest = [object_id(collection, doc_id, n) for n in range(1, int(chunks))]
            missing = [uuid for uuid in rest if uuid in looked and uuid not in beside]
            if missing:
                amiss[doc_id] = f"{len(missing)} of {int(chunks)} chunks are missing"
    return amiss


def is_of(one: SampledObject, amiss: Mapping[str, str]) -> bool:
    """Whether the object is one of a document that looks amiss."""
    return str(one.uuid) in amiss or one.properties.get(reserved.DOC_ID) in amiss


def same_form(one: SampledObject, other: SampledObject) -> bool:
    """Whether both are of one record: an edit in between gives another offset."""
    return all(one.properties.get(name) == other.properties.get(name) for name in (reserved.PARTITION, reserved.OFFSET))


def chunks(build: BuildState, amiss: Mapping[str, str], objects: int) -> Finding:
    """`amiss`: what two looks agree on; `objects`: how many were looked at."""
    if amiss:
        doc_id, what = next(iter(sorted(amiss.items())))
        said = f"{_count(len(amiss), 'document')} of {_count(objects, 'object')}: {doc_id}: {what}"
        fix = f"{_repair(build)}; see it: crossfade explain {build.collection} KEY"
        return Finding("orphaned chunks", build.space, "wrong", said, fix)
    return Finding("orphaned chunks", build.space, "ok", f"{_count(objects, 'object')}, each document whole")


# endpoints and room


def endpoint(key: str, name: str, facts: ModelFacts, model: str, revision: str, asks: bool, fix: str) -> Finding:
    """What an endpoint says of itself, without a text. `model`, `revision`: as configured; `asks`: it has an answer."""
    where = f"{key} at {name}"
    if facts.model is None:
        said = "it answers, but tells nothing of its model" if asks else "of its kind none tells its model unasked"
        return Finding("endpoint", where, "not known", said, fix)
    if facts.revision is not None and revision and facts.revision != revision:
        said = f"it serves {facts.model} at revision {facts.revision}, the version says {revision}"
        return Finding("endpoint", where, "wrong", said, "let it serve that revision, or add a version for the new one")
    if facts.model != model:
        said = f"it calls its model {facts.model}, the version says {model}: a path or another name of it, perhaps"
        return Finding("endpoint", where, "note", said, fix)
    return Finding("endpoint", where, "ok", f"serves {facts.model}")


def probed(key: str, name: str, answer: Vectors, dimensions: int, canary: str) -> Finding:
    """`answer`: float32[len(PROBE_TEXTS), dim] of the probe texts; `canary`: of the build, empty where it has none."""
    where = f"{key} at {name}"
    if answer.shape[1] != dimensions:
        said = f"its vectors have {answer.shape[1]} dimensions, the version says {dimensions}"
        return Finding("endpoint", where, "wrong", said, "check which model it serves")
    if not canary:
        return Finding("endpoint", where, "ok", f"answers with {dimensions} dimensions; no canary to compare with yet")
    try:
        check_birth(name, answer, from_base64(canary))
    except CrossfadeError as error:
        return Finding("endpoint", where, "wrong", error.message, error.next_step)
    return Finding("endpoint", where, "ok", "gives the vectors that the space was born with")


def disk(where: str, capacity: Capacity) -> Finding:
    used = capacity.disk_used
    if used is None:
        said = "; ".join(capacity.troubles) or "nobody says how full Weaviate's disk is"
        return Finding("disk", where, "not known", said, "set weaviate.metrics or weaviate.data_path")
    assert capacity.disk_free_bytes is not None
    said = f"{used:.0%} used, {capacity.disk_free_bytes / 1e9:,.1f} GB free"
    fix = "give Weaviate a larger disk, or retire a version that is no longer needed"
    if used >= READ_ONLY_SHARE:
        return Finding("disk", where, "wrong", f"{said}: Weaviate turns read-only at {READ_ONLY_SHARE:.0%}", fix)
    if used >= DISK_NOTE_SHARE:
        return Finding("disk", where, "note", f"{said}; Weaviate turns read-only at {READ_ONLY_SHARE:.0%}", fix)
    return Finding("disk", where, "ok", said)


# words


def _repair(build: BuildState) -> str:
    return f"crossfade verify {build.collection} {build.version} --repair"


def _who(one: SampledObject) -> str:
    doc_id = one.properties.get(reserved.DOC_ID)
    return f"document {doc_id}" if isinstance(doc_id, str) else f"object {one.uuid}"


def _number(text: str | None) -> int | None:
    try:
        return int(text) if text is not None else None
    except ValueError:
        return None


def _count(number: int, noun: str, many: str = "") -> str:
    return f"{number:,} {noun if number == 1 else many or noun + 's'}"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _partitions(numbers: Iterable[int]) -> str:
    shown = [str(number) for number in sorted(numbers)]
    return f"partition{'' if len(shown) == 1 else 's'} {_few(shown)}"
