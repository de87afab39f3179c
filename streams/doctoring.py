"""The gathering behind `crossfade doctor`: asks Kafka, Weaviate and the endpoints, and hands over what they say.

It only reads. Each check stands alone: one that cannot be made becomes "not known", and the others go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from connectors.embedders.probe import PROBE_TEXTS, probe
from connectors.errors import AccessDenied, ConfigurationError, CrossfadeError, NotFound, Transient, WrongModel
from connectors.inspected import SampledObject
from connectors.kafka.inspection import Inspection
from connectors.kafka.ranges import TopicTail
from connectors.kafka.settings import KafkaSettings
from connectors.protocols import Embedder
from connectors.weaviate.capacity import capacity
from connectors.weaviate.inspection import Inspection as WeaviateInspection
from connectors.weaviate.inspection import open_inspection
from streams.config import Collection, Settings, envelope_of
from streams.config_embedders import OpenAIEmbedder, TeiEmbedder, Version
from streams.migration import doctor
from streams.migration.doctor import Finding
from streams.migration.plan_risks import Topic
from streams.state import BuildState, CollectionState, TopicNames
from streams.views import ProgressView, StateView
from streams.wiring import (
    capacity_settings,
    kafka_settings,
    make_embedders,
    own_topics,
    wall_ms,
    weaviate_settings,
)

log = logging.getLogger(__name__)

SAMPLE = 1_000
SIBLINGS = 5_000
BROKER_PATIENCE_S = 5.0
REPORT_WAIT_S = 4.0  # workers report each second
AGAIN_S = 3.0
"""Before what looks amiss is looked at again: chunks of a document being written stand alone for a moment."""

Make = Callable[[], Awaitable[Sequence[Finding]]]


async def _check(name: str, looked_at: str, make: Make) -> list[Finding]:
    """Never raises: what kept the check from being made is its finding."""
    try:
        return list(await make())
    except AccessDenied as error:
        return [doctor.denied(name, looked_at, error)]
    except CrossfadeError as error:
        return [doctor.unmade(name, looked_at, error)]
    except Exception as error:  # noqa: BLE001  a check must not end the others
        return [_defect(name, looked_at, error)]


def _defect(name: str, looked_at: str, error: Exception) -> Finding:
    """Without the error's text, which may hold a document's."""
    log.debug("the check %s could not be made", name, exc_info=error)
    said = f"unexpected {type(error).__name__}: this is a defect"
    return Finding(name, looked_at, "not known", said, "see where with: crossfade --log-level debug doctor")


@dataclass(slots=True)
class Known:
    """What state and progress say, of the collections that are looked at. `worker`: whether one runs, None unknown."""

    collections: Mapping[str, CollectionState] = field(default_factory=dict)
    builds: Sequence[BuildState] = ()
    worker: bool | None = None

    @property
    def active(self) -> list[BuildState]:
        return [build for build in self.builds if build.active]


async def examine(
    settings: Settings, path: Path, only: str | None = None, *, probe_endpoints: bool = False, sample: int = SAMPLE
) -> list[Finding]:
    """Every check, in the order of docs/doctor.md. `only`: one collection; `sample`: objects of each space.

    Raises NotFound for a collection nobody has declared. `probe_endpoints` costs a few tokens for each endpoint.
    """
    chosen = [settings.collection(only)] if only else list(settings.collections.values())
    findings = [_configuration(settings, path, chosen)]
    kafka = await _kafka(settings, findings)
    known = await _known(settings, kafka, only, findings) if kafka is not None else None
    if kafka is not None:
        findings += await _topics(settings, kafka, chosen)
        if known is not None:
            findings += await _lanes(settings, kafka, known)
    if known is not None:
        findings += [_model(settings, build) for build in known.active]
    findings += await _weaviate(settings, chosen, known, sample)
    findings += await _endpoints(chosen, known, probe_endpoints)
    where = "the disk of Weaviate"
    findings += await _check("disk", where, lambda: _disk(settings, where))
    return findings


def _configuration(settings: Settings, path: Path, chosen: Sequence[Collection]) -> Finding:
    if not chosen:
        said, fix = "it declares no collection", "write one: crossfade init, or under collections in the file"
        return Finding("configuration", str(path), "wrong", said, fix)
    if empty := [one.name for one in chosen if not one.versions]:
        said, fix = f"no version is declared for {', '.join(empty)}", "add one under versions"
        return Finding("configuration", str(path), "note", said, fix)
    said = "; ".join(f"{one.name}: {', '.join(one.versions)}" for one in chosen)
    if settings.lease_s < 5:
        said += f"; only {settings.lease_s:g} s are left to begin a write in, after each commit"
        fix = "raise kafka.session_timeout_s, or lower weaviate.write_timeout_s"
        return Finding("configuration", str(path), "note", said, fix)
    return Finding("configuration", str(path), "ok", said)


# Kafka


@dataclass(slots=True)
class Kafka:
    """A cluster that answers."""

    settings: KafkaSettings
    topics: Inspection
    brokers: int


async def _kafka(settings: Settings, findings: list[Finding]) -> Kafka | None:
    """None when no broker answers; then nothing that needs one is looked at."""
    address = settings.kafka.bootstrap_servers or "the Kafka of crossfade up"
    try:
        at = replace(kafka_settings(settings), request_timeout_s=2 * BROKER_PATIENCE_S)
        address = at.bootstrap_servers
        topics = Inspection(at)
        await topics.wait_for_broker(BROKER_PATIENCE_S, lambda line: log.info("%s", line))
        cluster = await topics.cluster()
    except CrossfadeError as error:
        findings.append(Finding("kafka", address, "wrong", error.message, error.next_step))
        said = "not looked at: no broker answers"
        findings.append(Finding("topics, state and offsets", address, "not known", said, "mend Kafka first"))
        return None
    findings += doctor.kafka(address, cluster, settings.kafka.topic_prefix)

    async def client() -> list[Finding]:
        try:
            told = await topics.broker_settings()
        except AccessDenied:  # no worker needs it
            told = {}
        return [doctor.client_settings(address, settings.kafka.session_timeout_s, settings.kafka.client, told)]

    findings += await _check("client settings", address, client)
    return Kafka(at, topics, cluster.brokers)


async def _known(settings: Settings, kafka: Kafka, only: str | None, findings: list[Finding]) -> Known | None:
    """None when the state cannot be read; a state nobody has written yet is an empty one."""
    names = TopicNames(settings.kafka.topic_prefix)
    try:
        async with _loaded(StateView(TopicTail(kafka.settings, names.state))) as state:
            collections = {n: c for n, c in state.collections.items() if only in (None, n)}
            known = Known(collections, [b for b in state.builds.values() if b.collection in collections])
    except NotFound:
        said = "no worker has ever run with this kafka.topic_prefix: nothing is built"
        findings.append(Finding("state", names.state, "note", said, "crossfade worker"))
        return Known()
    except CrossfadeError as error:
        findings.append(doctor.unmade("state", names.state, error))
        return None
    except Exception as error:  # noqa: BLE001  a check must not end the others
        findings.append(_defect("state", names.state, error))
        return None
    count = len(known.active)
    findings.append(Finding("state", names.state, "ok", f"{count} active version{'' if count == 1 else 's'}"))

    async def worker() -> list[Finding]:
        known.worker = await kafka.topics.has_members(names.controller_group)
        return [doctor.worker(names.controller_group, known.worker, count)]

    async def clock() -> list[Finding]:
        return [await _worker_clock(kafka, names, known.worker)]

    findings += await _check("worker", names.controller_group, worker)
    findings += [doctor.build_state(build) for build in known.active]
    findings += await _check("clock", names.progress, clock)
    findings.append(doctor.broker_clock())
    return known


@asynccontextmanager
async def _loaded(view: StateView) -> AsyncIterator[StateView]:
    try:
        await view.load()
        yield view
    finally:
        await view.close()


async def _worker_clock(kafka: Kafka, names: TopicNames, worker: bool | None) -> Finding:
    """A record that arrives while we look is as old as nothing: its time is the worker's clock."""
    view = ProgressView(TopicTail(kafka.settings, names.progress))
    try:
        await view.load()
        before = {key: record.updated_at for key, record in view.records.items()}
        fresh: list[int] = []
        if worker:
            following = asyncio.create_task(view.run())
            try:
                async with asyncio.timeout(REPORT_WAIT_S):
                    await view.wait_for(lambda v: any(r.updated_at != before.get(key) for key, r in v.records.items()))
                fresh = [r.updated_at for key, r in view.records.items() if r.updated_at != before.get(key)]
            except TimeoutError:
                pass
            finally:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)
        newest = max(fresh or before.values(), default=None)
        return doctor.worker_clock(newest, wall_ms(), bool(fresh))
    finally:
        await view.close()


async def _topics(settings: Settings, kafka: Kafka, chosen: Sequence[Collection]) -> list[Finding]:
    findings: list[Finding] = []
    largest = [1024 * 1024]

    async def documents(collection: Collection) -> list[Finding]:
        topic, topics = collection.topic, kafka.topics
        try:
            facts = await topics.facts(topic)
        except NotFound:
            said = f"there is no such topic, from which {collection.name} is built"
            fix = (
                f"correct collections.{collection.name}.topic, or create it: crossfade produce {collection.name} FILE "
                "--create-topic"
            )
            return [Finding("retention", topic, "wrong", said, fix)]
        largest.append(facts.max_message_bytes)
        seen = Topic(
            topic, await topics.topic_settings(topic), await topics.bounds(topic), await topics.ends(topic), []
        )
        return doctor.documents_topic(
            collection.name, facts, seen, await topics.layout(topic), kafka.brokers, collection.max_record_bytes
        )

    for collection in chosen:
        findings += await _check("retention", collection.topic, partial(documents, collection))

    async def own(name: str, wanted: Mapping[str, str]) -> list[Finding]:
        try:
            layout = await kafka.topics.layout(name)
        except NotFound:
            said = "there is none yet: the first worker creates it"
            return [Finding("own topics", name, "note", said, "crossfade worker")]
        seen = await kafka.topics.topic_settings(name)
        found = [doctor.own_topic(name, wanted, seen, len(layout.partitions))]
        copies = doctor.replicas(name, layout, seen, kafka.brokers)
        allowed = doctor.rights(name, layout, ("describe", "read", "write"))
        return [*found, *(one for one in (*copies, *allowed) if one.verdict != "ok")]

    for other in (one for one in settings.collections.values() if one not in chosen):
        with contextlib.suppress(CrossfadeError):  # the dead letters take what each of them takes
            largest.append((await kafka.topics.facts(other.topic)).max_message_bytes)
    for name, wanted in own_topics(TopicNames(settings.kafka.topic_prefix), max(largest)).items():
        findings += await _check("own topics", name, partial(own, name, wanted))
    return findings


async def _lanes(settings: Settings, kafka: Kafka, known: Known) -> list[Finding]:
    names, findings = TopicNames(settings.kafka.topic_prefix), list[Finding]()

    async def lane(build: BuildState, group: str) -> list[Finding]:
        try:
            facts = await kafka.topics.facts(build.topic)
        except NotFound:
            return [doctor.build_topic(build, None)]
        same = doctor.build_topic(build, facts)
        if same.verdict != "ok":  # then offsets mean nothing
            return [same]
        # commits before the log's bounds: what is committed meanwhile is not beyond an end that was read earlier
        commits = await kafka.topics.committed(group, build.topic)
        bounds, members = await kafka.topics.bounds(build.topic), await kafka.topics.has_members(group)
        return [same, doctor.offsets(build, group, commits, bounds, members, known.worker)]

    for build in known.active:
        group = names.group(build.collection, build.version, build.epoch, "live")
        findings += await _check("offsets", group, partial(lane, build, group))
    return findings


def _model(settings: Settings, build: BuildState) -> Finding:
    collection = settings.collections.get(build.collection)
    version = collection.versions.get(build.version) if collection else None
    if collection is None or version is None:
        return doctor.configured_model(build, None, "")
    try:
        fingerprint = envelope_of(collection, version).fingerprint
    except ConfigurationError as error:
        return Finding("model", build.key, "wrong", error.message, error.next_step)
    return doctor.configured_model(build, fingerprint, collection.topic)


# Weaviate


async def _weaviate(
    settings: Settings, chosen: Sequence[Collection], known: Known | None, sample: int
) -> list[Finding]:
    address = settings.weaviate.http or "the Weaviate of crossfade up"
    try:
        at = weaviate_settings(settings)
        address = at.http
        store = await open_inspection(at)
    except Exception as error:  # noqa: BLE001  a check must not end the others
        said = "not looked at: Weaviate does not answer as it should"
        return [
            Finding("weaviate", address, "wrong", error.message, error.next_step)
            if isinstance(error, CrossfadeError)
            else _defect("weaviate", address, error),
            Finding("alias, spaces and objects", address, "not known", said, "mend Weaviate first"),
        ]
    try:
        return await _spaces(settings, store, address, chosen, known, sample)
    finally:
        await store.close()


async def _spaces(
    settings: Settings,
    store: WeaviateInspection,
    address: str,
    chosen: Sequence[Collection],
    known: Known | None,
    sample: int,
) -> list[Finding]:
    async def server() -> list[Finding]:
        return doctor.weaviate(address, await store.server())

    findings = await _check("weaviate", address, server)
    findings.append(doctor.auto_schema(address, ours=settings.weaviate.http is None))
    if known is None:
        said = "not looked at: what it should be stands in the state topic, which cannot be read"
        return [*findings, Finding("alias, spaces and objects", address, "not known", said, "mend Kafka first")]

    async def alias(collection: CollectionState) -> list[Finding]:
        spaces = {build.version: build.space for build in known.builds if build.collection == collection.collection}
        return [doctor.alias(collection, spaces, await store.alias_target(collection.alias))]

    for collection in known.collections.values():
        findings += await _check("alias", collection.alias, partial(alias, collection))

    async def orphans() -> list[Finding]:
        aliases = {one.alias: one.name for one in chosen}
        aliases |= {state.alias: name for name, state in known.collections.items() if state.alias}
        return doctor.orphans(aliases, [build.space for build in known.active], await store.spaces())

    findings += await _check("orphaned spaces", address, orphans)
    for build in known.active:
        findings += await _space(settings, store, build, sample)
    return findings


async def _space(settings: Settings, store: WeaviateInspection, build: BuildState, most: int) -> list[Finding]:
    """The space itself, then what a sample of it holds: every judgement of its own."""

    async def there() -> list[Finding]:
        description = await store.description(build.space)
        read_only = await store.read_only_shards(build.space) if description is not None else []
        return [doctor.space(build, description, read_only)]

    findings = await _check("space", build.space, there)
    if findings[0].verdict != "ok" and await _is_gone(store, build):
        return findings
    collection = settings.collections.get(build.collection)

    async def properties() -> list[Finding]:
        configured = dict(collection.properties) if collection else {}
        return [doctor.properties(build, configured, await store.properties(build.space))]

    findings += await _check("properties", build.space, properties)
    sampled: list[SampledObject] = []

    async def contents() -> list[Finding]:
        sampled.extend(await store.sample(build.space, most))
        return []

    if unread := await _check("objects", build.space, contents):
        return [*findings, *unread]

    async def judge(make: Callable[[], Finding]) -> list[Finding]:
        return [make()]

    store_text = collection.store_text if collection else True
    for name, make in (
        ("mixed models", lambda: doctor.marks(build, sampled)),
        ("missing text", lambda: doctor.texts(build, sampled, store_text)),
        ("vectors", lambda: doctor.vectors(build, sampled)),
    ):
        findings += await _check(name, build.space, partial(judge, make))
    findings += await _check("orphaned chunks", build.space, lambda: _chunks(store, build, sampled))
    return findings


async def _is_gone(store: WeaviateInspection, build: BuildState) -> bool:
    try:
        return await store.description(build.space) is None
    except CrossfadeError:
        return True  # not known: then there is nothing to read either


async def _chunks(store: WeaviateInspection, build: BuildState, sampled: Sequence[SampledObject]) -> list[Finding]:
    space = store.space(build.space)

    async def amiss(some: Sequence[SampledObject]) -> dict[str, str]:
        asked = doctor.siblings(build.collection, some, SIBLINGS)
        return doctor.orphaned_chunks(build.collection, some, await space.heads(asked), asked)

    found = await amiss(sampled)
    if found:
        await asyncio.sleep(AGAIN_S)
        suspects = {one.uuid for one in sampled if doctor.is_of(one, found)}
        still = await space.properties(sorted(suspects, key=str))
        again = [
            replace(one, properties=still[one.uuid]) for one in sampled if one.uuid in suspects and one.uuid in still
        ]
        # an edit between the looks writes another offset: then this is not the object that looked amiss
        before = {one.uuid: one for one in sampled}
        again = [one for one in again if doctor.same_form(one, before[one.uuid])]
        found = {doc_id: what for doc_id, what in (await amiss(again)).items() if found.get(doc_id) == what}
    return [doctor.chunks(build, found, len(sampled))]


# endpoints and room


async def _endpoints(chosen: Sequence[Collection], known: Known | None, probe_them: bool) -> list[Finding]:
    """Of every declared version, one after the other: a doctor must not be a load."""
    builds = {build.key: build for build in known.active} if known is not None else {}
    findings: list[Finding] = []
    for collection in chosen:
        for name, version in collection.versions.items():
            key = f"{collection.name}/{name}"
            canary = builds[key].canary if key in builds else ""
            for at, (host, embedder) in enumerate(make_embedders(version)):
                said = version.endpoints[at] if version.endpoints else None
                look = partial(_endpoint, key, host, embedder, said, version, canary, probe_them)
                findings += await _check("endpoint", f"{key} at {host}", look)
    return findings


async def _endpoint(
    key: str,
    host: str,
    embedder: Embedder,
    said: TeiEmbedder | OpenAIEmbedder | None,
    version: Version,
    canary: str,
    probe_it: bool,
) -> list[Finding]:
    """`said`: None for `hashing`, which runs here and costs nothing, so it is always asked."""
    try:
        if said is None:
            await probe(embedder)
            return [Finding("endpoint", f"{key} at {host}", "ok", "computed in the worker itself: nobody to ask")]
        if probe_it:
            return [doctor.probed(key, host, await probe(embedder), version.dimensions, canary)]
        collection = key.partition("/")[0]
        fix = f"crossfade doctor {collection} --probe asks it for {len(PROBE_TEXTS)} short texts"
        facts = await embedder.facts()
        return [doctor.endpoint(key, host, facts, said.model, said.revision, isinstance(said, TeiEmbedder), fix)]
    except (Transient, WrongModel) as error:
        return [Finding("endpoint", f"{key} at {host}", "wrong", error.message, error.next_step)]
    finally:
        await embedder.close()


async def _disk(settings: Settings, where: str) -> list[Finding]:
    return [doctor.disk(where, await capacity(capacity_settings(settings)))]
