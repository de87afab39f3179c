"""Verbs that begin a build and change it while it runs, and what workers tell: its replay is complete, or it failed.

A verb only decides and asks the state store to write; it never writes a document.
"""

from __future__ import annotations

import contextlib

import orjson
from pydantic import JsonValue, ValidationError

from connectors.embedders.canary import check_birth, to_base64
from connectors.embedders.probe import probe
from connectors.errors import ConfigurationError, Refused, Transient
from connectors.protocols import SpaceSpec
from streams import config
from streams.config import envelope_of
from streams.config_embedders import HashingEmbedder, Version
from streams.controls import changed as changed_controls
from streams.controls import summary
from streams.declared import Declarations, version_of
from streams.retry import a_while
from streams.state import BuildState, CollectionState, Command, Controls, Declared, Failure, Intent, Request
from streams.verbs.desk import Desk, must_be_active, spent
from streams.versions import Stage, check_transition, space_name

REQUESTS_KEPT = 50


async def pause(desk: Desk, command: Command) -> None:
    build = desk.state.build(command)
    must_be_active(build)
    paused = "all" if command.args.get("all") else "replay"
    await desk.state.done(command, f"{build.key} is paused ({paused})", build.model_copy(update={"paused": paused}))


async def resume(desk: Desk, command: Command) -> None:
    build = desk.state.build(command)
    must_be_active(build)
    changed = build.model_copy(update={"paused": None, "failure": None})
    await desk.state.done(command, f"{build.key} goes on", changed)


async def set_(desk: Desk, command: Command) -> None:
    build = desk.state.build(command)
    must_be_active(build)
    controls = changed_controls(build.controls, command.args)
    await desk.state.done(command, f"{build.key}: {summary(controls)}", build.model_copy(update={"controls": controls}))


async def request(desk: Desk, command: Command) -> None:
    """Work for the partitions' owners, who alone write (section 4). Done when each partition reports its id."""
    build = desk.state.build(command)
    must_be_active(build)
    number = build.requests[-1].id + 1 if build.requests else 1
    request = Request(id=number, kind="repair" if command.verb == "repair" else "redrive")
    changed = build.model_copy(update={"requests": [*build.requests, request][-REQUESTS_KEPT:]})
    await desk.state.done(
        command, f"{build.key}: {request.kind} asked of the workers", changed, data={"request": number}
    )


async def replayed(desk: Desk, command: Command) -> None:
    build = desk.state.build(command)
    partition = command.args.get("partition")
    if command.args.get("epoch") != build.epoch or not isinstance(partition, int) or partition in build.replayed:
        await desk.state.done(command, "nothing to do")
        return
    replayed = sorted([*build.replayed, partition])
    update: dict[str, object] = {"replayed": replayed}
    complete = len(replayed) == build.partitions and build.stage is Stage.BUILDING
    if complete:
        update |= {"stage": Stage.READY, "ready_ms": desk.out.wall_ms()}
    message = f"{build.key} is ready" if complete else f"{build.key}: the replay of partition {partition} is complete"
    data = spent(desk, build) if complete else None
    await desk.state.done(command, message, build.model_copy(update=update), data=data)


async def failed(desk: Desk, command: Command) -> None:
    build = desk.state.build(command)
    if command.args.get("epoch") != build.epoch or not build.active:
        await desk.state.done(command, "nothing to do")
        return
    failure = Failure(
        cause=str(command.args.get("cause", "")),
        next_step=str(command.args.get("next_step", "")),
        at_ms=desk.out.wall_ms(),
    )
    await desk.state.done(
        command, f"{build.key} stopped: {failure.cause}", build.model_copy(update={"failure": failure})
    )


async def start(desk: Desk, command: Command) -> None:
    """declared (with its epoch) -> space created, start and barrier taken -> building. Rule 2: before any write."""
    configured, declared = _with_declaration(desk, command)
    build = desk.state.builds.get(f"{command.collection}/{command.version}")
    begun = desk.state.begun(command.collection)
    if begun is None or begun.id != command.id:
        build = await _declare(desk, command, configured, build, declared)
    if build is not None:
        await _create_and_begin(desk, command, configured, build)


def _with_declaration(desk: Desk, command: Command) -> tuple[config.Collection, Declared | None]:
    """With the versions that were added over HTTP, and the one that the command itself brings (`declaration`).

    Raises Refused for one that cannot be had.
    """
    file = desk.out.settings()
    settings = Declarations().merged(file, desk.state.collections)
    configured, name = settings.collection(command.collection), command.version or ""
    if (given := command.args.get("declaration")) is None:
        return configured, None
    try:
        declared = Declared.model_validate(given)
        version = version_of(settings, declared)
    except ValidationError as error:
        raise Refused(
            f"the declaration of {name} cannot be read", next_step="send model, dimensions and endpoint"
        ) from error
    if (there := configured.versions.get(name)) is not None:
        if envelope_of(configured, there) != envelope_of(configured, version):
            raise Refused(
                f"{command.collection}/{name} is another model already",
                next_step="choose another name: a changed model needs a version of its own",
            )
        if name in file.collection(command.collection).versions:
            return configured, None  # what the file says of it counts
    fingerprint = envelope_of(configured, version).fingerprint
    for other, one in configured.versions.items():
        if other != name and envelope_of(configured, one).fingerprint == fingerprint:
            raise Refused(f"{name} would be the same model as version {other}", next_step=f"use version {other}")
    return configured.model_copy(update={"versions": {**configured.versions, name: version}}), declared


async def _declare(
    desk: Desk,
    command: Command,
    configured: config.Collection,
    existing: BuildState | None,
    declared: Declared | None,
) -> BuildState | None:
    """Check everything that can be checked, and give the build its epoch. None when there is nothing to start."""
    name = command.version or ""
    version = configured.version(name)
    envelope = envelope_of(configured, version)
    collection = desk.state.collections.get(command.collection)
    if (fingerprint := command.args.get("fingerprint")) not in (None, envelope.fingerprint):
        raise Refused(
            f"{name} is model {fingerprint} in your configuration, {envelope.fingerprint} here",
            next_step="give the workers the same configuration file (they read it again when it changes)",
        )
    if existing is not None and existing.stage is not Stage.DECLARED:
        if command.args.get("origin") == "configuration":
            await desk.state.done(command, f"{existing.key} is {existing.stage}; nothing to do")
            return None
        if existing.stage is Stage.BUILDING and existing.fingerprint == envelope.fingerprint:
            await _already(desk, command, existing)
            return None
        check_transition(existing.stage, Stage.BUILDING, collection=command.collection, version=name)
    facts = await desk.out.kafka.facts(configured.topic)
    if "compact" not in facts.cleanup_policy:
        raise Refused(
            f"topic {configured.topic} is not compacted (cleanup.policy={facts.cleanup_policy}): "
            "it will forget documents that no event has changed for a while",
            next_step=f"kafka-configs --alter --topic {configured.topic} --add-config cleanup.policy=compact",
        )
    _check_same_deployment(desk, collection, configured)
    canary = await _birth(desk, command.collection, name, version)
    collection = (collection or CollectionState(collection=command.collection, alias="", topic="")).model_copy(
        update={"alias": configured.alias, "topic": configured.topic}
    )
    if declared is not None:
        collection = collection.model_copy(update={"declared": {**collection.declared, name: declared}})
    epoch = collection.epochs + 1
    build = BuildState(
        collection=command.collection,
        version=name,
        epoch=epoch,
        stage=Stage.DECLARED,
        envelope=_envelope_json(envelope.canonical_json()),
        fingerprint=envelope.fingerprint,
        space=space_name(configured.alias, name, epoch, envelope.fingerprint),
        topic=configured.topic,
        topic_id=facts.topic_id,
        partitions=facts.partitions,
        controls=changed_controls(
            Controls(replay_rate=version.replay_rate, budget_usd=version.budget_usd), command.args
        ),
        provenance=dict(version.provenance),
        canary=canary,
        started_ms=desk.out.wall_ms(),
    )
    if await desk.out.store.description(build.space) is not None:
        raise Refused(
            f"the space {build.space} exists already, and the state knows nothing of it: another deployment "
            "made it, or the state was lost",
            next_step="give this deployment an alias of its own; drop the space only if nobody reads it",
        )
    collection = collection.model_copy(update={"epochs": epoch, "intent": Intent(command=command)})
    await desk.state.commit(collection, [build], command, "declared")
    return build


async def _already(desk: Desk, command: Command, build: BuildState) -> None:
    """A worker has found the version in its configuration before the operator's `start` came: that is what was wanted.

    Raises Refused where other controls were asked for than it runs with.
    """
    wanted = changed_controls(build.controls, command.args)
    if wanted != build.controls:
        asked = [
            f"{name}={f'{value:.10g}' if isinstance(value, float) else 'none' if value is None else value}"
            for name, value in wanted
            if value != getattr(build.controls, name)
        ]
        raise Refused(
            f"{build.key} is building already, with {summary(build.controls)}",
            next_step=f"crossfade set {build.collection} {build.version} {' '.join(asked)}",
        )
    await desk.state.done(command, f"{build.key} is building already: space {build.space}")


async def _create_and_begin(desk: Desk, command: Command, configured: config.Collection, build: BuildState) -> None:
    envelope = build.model  # as it was declared: the configuration may have changed since
    spec = SpaceSpec(
        build.space,
        envelope.dimensions,
        envelope.metric,
        envelope.canonical_json(),
        envelope.quantization,
        dict(configured.properties),
    )
    await a_while(lambda: desk.out.store.create_space(spec))
    bounds = await a_while(lambda: desk.out.kafka.bounds(build.topic))
    ends = {partition: b.stable for partition, b in bounds.items()}
    building = build.model_copy(update={"stage": Stage.BUILDING, "start": ends, "barrier": ends})
    await desk.state.done(
        command,
        f"{building.key} is building: space {building.space}, {sum(ends.values())} offsets to replay",
        building,
        data={"space": building.space, "epoch": building.epoch, "fingerprint": building.fingerprint},
    )


def _check_same_deployment(desk: Desk, collection: CollectionState | None, configured: config.Collection) -> None:
    """While versions of a collection are written, its topic and alias stay what they are."""
    if collection is None or not any(
        b.active for b in desk.state.builds.values() if b.collection == collection.collection
    ):
        return
    for what, stored, wanted in (
        ("topic", collection.topic, configured.topic),
        ("alias", collection.alias, configured.alias),
    ):
        if stored != wanted:
            raise Refused(
                f"the {what} of {collection.collection} is {stored}, the configuration says {wanted}: two "
                f"deployments with one kafka.topic_prefix, or a changed {what}",
                next_step=f"give each deployment a kafka.topic_prefix of its own, or put the {what} back",
            )


async def _birth(desk: Desk, collection: str, name: str, version: Version) -> str:
    """The probe texts' vectors that every later reply is compared with (BuildState.canary).

    The endpoint must give what the version declares before a space of the wrong size exists, and every fallback that
    answers must give the same. Raises ConfigurationError, WrongModel, and what the first endpoint raises.
    """
    endpoints = desk.out.make_embedders(version)
    try:
        first = await probe(endpoints[0][1])
        if first.shape[1] != version.dimensions:
            raise ConfigurationError(
                f"{collection}/{name} declares {version.dimensions} dimensions, its endpoint gives {first.shape[1]}",
                next_step=f"set dimensions: {first.shape[1]} in the configuration, or correct the endpoint",
            )
        for where, embedder in endpoints[1:]:
            with contextlib.suppress(Transient):  # away for now: its first reply will be compared
                check_birth(where, await probe(embedder), first)
    finally:
        for _, embedder in endpoints:
            await embedder.close()
    return "" if isinstance(version.embedder, HashingEmbedder) else to_base64(first)


def _envelope_json(canonical: str) -> dict[str, JsonValue]:
    parsed: dict[str, JsonValue] = orjson.loads(canonical)
    return parsed
