"""A plan put together: the scan of the topic, what the configuration, the state and Weaviate say, and the risks.

It reads only. The one thing that may cost anything is the probe, which has to be asked for.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from connectors.embedders.endpoint import MOST_IN_FLIGHT
from connectors.embedders.probe import PROBE_TEXTS
from connectors.errors import ConfigurationError, CrossfadeError, NotFound
from connectors.protocols import Bounds, Capacity, Embedder, Log, Space, TopicFacts
from streams import config
from streams.batching import BatchLimits
from streams.chunking import make_chunker
from streams.config import Settings
from streams.config_embedders import Version
from streams.config_operation import TIERS
from streams.key_index import KeyIndex
from streams.migration import plan as figures
from streams.migration.difference import Losses, keys_in_two_partitions
from streams.migration.plan import Earlier, Plan, Replayer, Speed
from streams.migration.plan_probe import Probed, probe_speed, together
from streams.migration.plan_risks import Risk, Topic, risks
from streams.migration.plan_scan import Progress, Reading, Scan, scan
from streams.priority import Order
from streams.progress import ProgressRecord, TierProgress, combine
from streams.state import BuildState
from streams.tokens import TokenEstimate, Tokenizer
from streams.versions import Envelope, Stage

FEW = 100
"""Documents below which an earlier build's speed says nothing: it was mostly starting."""


class Inspector(Protocol):
    """Of connectors.kafka.inspection."""

    async def topic_settings(self, topic: str) -> Mapping[str, str]: ...

    async def ends(self, topic: str) -> Mapping[int, int]: ...


@dataclass(frozen=True, slots=True)
class Known:
    """What is known from elsewhere. `builds`: the newest of each version of the collection; `progress`: of a build's
    partitions; `objects`: in a build's space, None where Weaviate does not answer; `space` itself, likewise."""

    builds: Sequence[BuildState]
    progress: Callable[[BuildState], Sequence[ProgressRecord]]
    objects: Callable[[BuildState], Awaitable[int | None]]
    capacity: Capacity
    space: Callable[[BuildState], Space | None] = lambda _: None


@dataclass(frozen=True, slots=True)
class Planned:
    """`build`: the newest one of the version; `probed`: what a probe has spent and found, empty without one."""

    plan: Plan
    risks: list[Risk]
    build: BuildState | None
    probed: list[Probed]


async def make_plan(
    settings: Settings,
    kafka: Log,
    inspector: Inspector,
    known: Known,
    embedders: Sequence[tuple[str, Embedder]],
    collection: str,
    name: str,
    *,
    sample: int | None,
    probe: bool,
    progress: Progress = lambda *_: None,
) -> Planned:
    """`embedders`: of the version's endpoints, in their order; asked only with `probe`. `sample`: see `Reading`.

    Raises NotFound for an unknown collection or version or a topic that does not exist, and what Kafka and, with
    `probe`, the endpoints raise.
    """
    configured = settings.collection(collection)
    version = configured.version(name)
    envelope, tokenizer = config.envelope_of(configured, version), config.tokenizer_of(version)
    try:
        facts = await kafka.facts(configured.topic)
    except NotFound as error:
        raise NotFound(
            f"there is no topic {configured.topic}, from which {collection} is built",
            next_step=f"correct collections.{collection}.topic, or create it: crossfade produce {collection} FILE "
            "--create-topic",
        ) from error
    bounds = await kafka.bounds(configured.topic)
    reading = _reading(configured, version, envelope, tokenizer, embedders, sample)
    found = await scan(kafka, configured.topic, bounds, reading, progress)
    measured = found.measured

    endpoints = figures.replayers(version, settings.prices)
    build = next((one for one in known.builds if one.version == name), None)
    earlier = _earlier(known, envelope, measured.documents)
    tokens = figures.tokens_of(
        measured,
        _probe_tokens(tokenizer) if endpoints else 0.0,
        has_tokenizer=tokenizer is not None,
        has_endpoint=bool(version.endpoints),
        earlier=earlier,
    )
    probed = await _probe(version, endpoints, embedders, measured) if probe else []
    chunks_each = measured.chunks / max(1, measured.documents)
    speeds = [
        Speed(version.replay_rate, "replay_rate of the version", measured=False) if version.replay_rate else None,
        figures.limits_of(measured, tokens, endpoints),
        Speed(together(probed) / max(chunks_each, 1e-9), "the probe", measured=True) if probed else None,
    ]
    if not probed and earlier is not None and earlier.documents_per_s:
        speeds.append(Speed(earlier.documents_per_s, f"the speed of {earlier.name}", measured=True))
    others = [f"{one.key} was built at {rate:,.0f} documents/s" for one in known.builds if (rate := _rate(known, one))]
    made = Plan(
        collection=collection,
        version=name,
        fingerprint=envelope.fingerprint,
        model=envelope.model,
        dimensions=envelope.dimensions,
        topic=configured.topic,
        partitions=facts.partitions,
        measured=measured,
        tokens=tokens,
        cost=figures.cost_of(tokens, endpoints, version.budget_usd),
        duration=figures.duration_of(measured.documents, speeds, "; ".join(others)),
        new=figures.space_size(name, "", measured.chunks, envelope.dimensions, measured),
        present=await _present(known, name, envelope, measured),
        capacity=known.capacity,
        tiers=await _tiers(configured, kafka, found),
        paid=bool(version.endpoints),
    )
    topic = Topic(
        configured.topic,
        await inspector.topic_settings(configured.topic),
        bounds,
        await inspector.ends(configured.topic),
        keys_in_two_partitions(found.indexes),
    )
    found_risks = risks(made, topic, build)
    if (forgotten := await _forgotten(known, facts, bounds, found.indexes, configured.cutover.sweep_share)) is not None:
        found_risks.append(forgotten)
    if settings.vector_cache is not None:
        found_risks.append(
            Risk(
                "note",
                "vector_cache",
                "texts whose vectors are in a worker's vector_cache cost nothing: what this plan says is the most",
            )
        )
    return Planned(made, found_risks, build, probed)


def _reading(
    configured: config.Collection,
    version: Version,
    envelope: Envelope,
    tokenizer: Tokenizer | None,
    embedders: Sequence[tuple[str, Embedder]],
    sample: int | None,
) -> Reading:
    """As wiring.make_encoder and the worker would set it up."""
    most = min(embedder.max_batch for _, embedder in embedders)
    if version.endpoints:
        most = max(1, most - 1)  # the probe text rides with each request (connectors.embedders.canary)
    characters = [said.max_batch_characters for said in version.endpoints if said.max_batch_characters]
    tokens = [said.max_batch_tokens for said in version.endpoints if said.max_batch_tokens]
    return Reading(
        schema=config.schema_of(configured),
        envelope=envelope,
        chunker=make_chunker(envelope.chunking, tokenizer),
        tokenizer=tokenizer,
        batch=version.batch,
        limits=BatchLimits(most, min(characters, default=None), min(tokens, default=None)),
        store_text=configured.store_text,
        sample=sample,
    )


def _probe_tokens(tokenizer: Tokenizer | None) -> float:
    """Of the probe text in a request; they take turns."""
    counted = tokenizer.count(PROBE_TEXTS) if tokenizer else [TokenEstimate().estimate(text) for text in PROBE_TEXTS]
    return sum(counted) / len(counted)


async def _probe(
    version: Version,
    endpoints: Sequence[Replayer],
    embedders: Sequence[tuple[str, Embedder]],
    measured: figures.Measured,
) -> list[Probed]:
    if not version.endpoints:
        raise ConfigurationError(
            "this version has no endpoint to probe: the worker embeds by itself", next_step="plan without --probe"
        )
    characters = round(measured.characters / max(1, measured.chunks))
    return [
        await probe_speed(
            embedders[endpoint.place][0],
            embedders[endpoint.place][1],
            characters,
            version.endpoints[endpoint.place].concurrency or MOST_IN_FLIGHT,
            version.dimensions,
        )
        for endpoint in figures.first_choice(endpoints)
    ]


def _earlier(known: Known, envelope: Envelope, documents: int) -> Earlier | None:
    """The largest build that sent the same texts to the same model, and paid for all of them itself."""
    found: list[Earlier] = []
    for build in known.builds:
        whole = combine(build.key, known.progress(build), build.partitions, 0)
        if whole is None or not figures.same_texts(build.model, envelope):
            continue
        counters = whole.counted()
        embedded = counters.embedded_live + counters.embedded_replay + counters.embedded_mend
        if not embedded or not counters.tokens or counters.cached:
            continue
        found.append(Earlier(build.key, embedded, counters.tokens, _rate(known, build, min(FEW, documents))))
    return max(found, key=lambda one: one.documents, default=None)


def _rate(known: Known, build: BuildState, least: int = FEW) -> float | None:
    """Documents a second over a whole build, pauses included; None where it was held, or had less than `least`."""
    whole = combine(build.key, known.progress(build), build.partitions, 0)
    if whole is None or build.controls.replay_rate or whole.counted().replayed < max(1, least):
        return None
    took_s = (build.ready_ms - build.started_ms) / 1000 if build.ready_ms else 0.0
    return whole.counted().replayed / took_s if took_s > 0 else whole.rate_per_s or None


async def _present(
    known: Known, planned: str, envelope: Envelope, measured: figures.Measured
) -> tuple[figures.SpaceSize, ...]:
    """Spaces of the collection that stay beside the new one. Their texts are the same, so their size is, by object."""
    found = []
    for build in known.builds:
        if not build.active or (build.version == planned and build.fingerprint == envelope.fingerprint):
            continue
        objects = await known.objects(build)
        if objects is None:
            whole = combine(build.key, known.progress(build), build.partitions, 0)
            objects = whole.completed if whole else 0
        found.append(figures.space_size(build.version, build.stage.value, objects, build.model.dimensions, measured))
    return tuple(found)


async def _forgotten(
    known: Known, facts: TopicFacts, bounds: Mapping[int, Bounds], indexes: Mapping[int, KeyIndex], share: float
) -> Risk | None:
    """How many documents the topic no longer has; None where its log is whole, or nothing that serves holds any.
    `share`: of the time, at most, in which the space that serves is read."""
    begins = {p: b.earliest for p, b in bounds.items() if b.earliest and p in indexes}
    serving = next((one for one in known.builds if one.stage is Stage.SERVING), None)
    same = serving is not None and (serving.topic_id, serving.partitions) == (facts.topic_id, facts.partitions)
    if not begins or serving is None or not same or (space := known.space(serving)) is None:
        return None
    losses = Losses(indexes, begins, {})
    try:
        async for page in space.scan(share=share):
            losses.add(page)
    except CrossfadeError as error:  # whatever is wrong there, this build can be planned and made without it
        return Risk(
            "note",
            "forgotten",
            f"how many documents that {facts.name} no longer has are in the space of {serving.key} is not known: "
            f"{error.message}; they are not in these figures",
            error.next_step,
        )
    if not losses.lost:
        return None
    return Risk(
        "note",
        "forgotten",
        f"{len(losses.lost):,} documents that {facts.name} no longer has are in the space of {serving.key}: they are "
        "not in these figures, and are brought over from there after the replay, where their text was kept whole",
    )


async def _tiers(configured: config.Collection, kafka: Log, found: Scan) -> tuple[TierProgress, ...]:
    """Documents of each tier, in the order in which the replay will go; nothing where it goes in one."""
    order = Order(configured.priority, kafka, configured.topic, config.schema_of(configured))
    totals: dict[str, TierProgress] = {}
    for partition, index in found.indexes.items():
        for one in (await order.passes(partition, index, None)).passes:
            part = one.progress(0)
            before = totals.get(part.name, TierProgress(name=part.name, total=0, completed=0))
            totals[part.name] = before.model_copy(
                update={"total": before.total + part.total, "weight": before.weight + part.weight}
            )
    return tuple(totals[name] for name in TIERS if name in totals) if len(totals) > 1 else ()
