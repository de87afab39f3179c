"""Blue-green vector spaces, as hosted products speak of them: a vector space is a version, the default one serves.

Each call sends the commands of the verbs behind it, with their rules and refusals; nothing is decided twice.
"""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from http import HTTPStatus

from fastapi import APIRouter, Depends
from pydantic import JsonValue

from connectors.embedders import hashing
from connectors.errors import NotFound, Refused
from streams.api.access import Needs
from streams.api.asking import MAY_WAIT, Asker, Asking
from streams.api.backend import Back, Backend
from streams.api.models import (
    CollectionName,
    DefaultSpace,
    NewSpace,
    Outcome,
    Rebuild,
    SpaceName,
    SpaceState,
    SpaceStatus,
    VectorSpace,
    VectorSpaces,
)
from streams.api.problems import Answered, problem
from streams.config import Collection, envelope_of
from streams.config_embedders import HashingEmbedder, Version, address_of
from streams.declared import endpoint_for
from streams.progress import combine
from streams.state import BuildState, Declared, Verb
from streams.versions import Stage
from streams.views import StateView

routes = APIRouter(tags=["vector spaces"])
SEEN_S = 5.0
SPACES = "/collections/{collection}/vector-spaces"


@routes.get(SPACES, dependencies=[Depends(Needs("read"))])
async def list_spaces(collection: CollectionName, backend: Back) -> VectorSpaces:
    """Every vector space there is or was, oldest first, and which one is the default."""
    state = backend.state.collection(collection)
    builds = sorted(backend.state.builds_of(collection), key=lambda build: build.epoch)
    return VectorSpaces(default=state.serving, vector_spaces=[_shown(backend, build) for build in builds])


@routes.post(SPACES, status_code=HTTPStatus.CREATED)
async def add_space(asker: Asking, asked: NewSpace) -> VectorSpace:
    """Add a vector space beside the default one, and begin to fill it from the topic.

    The name is that of a version in the configuration, and `dims` and `model` are as they are there; or it is new, and
    an endpoint of the section `embed_endpoints` serves `model`.
    """
    backend, collection = asker.backend, asker.collection
    configured = backend.current.collection(collection)
    # the same request under a key, also when it comes again once the version is known
    why, said = "added as a vector space", f"add {asked.name} {asked.model} {asked.dims}"
    if asked.name not in configured.versions:
        endpoint = endpoint_for(backend.settings, asked.model)
        if endpoint is None:
            raise NotFound(
                f"{collection} has no version {asked.name}, and no endpoint of embed_endpoints serves such a model",
                next_step=f"add an endpoint that serves it under embed_endpoints, or the version under collections."
                f"{collection}.versions, in the configuration of every worker and of this process; then ask again",
            )
        declared = Declared(model=asked.model, dimensions=asked.dims, url=endpoint.url)
        await _start(asker, configured, asked.name, declared, why, said)
        return _shown(backend, backend.state.build(collection, asked.name))
    version = configured.versions[asked.name]
    fingerprint = envelope_of(configured, version).fingerprint
    for what, given, stands in (("dims", asked.dims, version.dimensions), ("model", asked.model, _model(version))):
        if given != stands:
            raise Refused(
                f"the configuration says that {what} of {asked.name} is {stands}",
                next_step=f"send {what} {stands}, or add a version of another name under collections.{collection}"
                ".versions in the configuration of the workers",
            )
    there = backend.state.builds.get(f"{collection}/{asked.name}")
    if there is None or not there.active or there.fingerprint != fingerprint:  # else a worker has begun it by itself
        await _start(asker, configured, asked.name, None, why, said)
    return _shown(backend, backend.state.build(collection, asked.name))


@routes.get(f"{SPACES}/{{space}}", dependencies=[Depends(Needs("read"))])
async def one_space(collection: CollectionName, space: SpaceName, backend: Back) -> VectorSpace:
    """One vector space."""
    return _shown(backend, backend.state.build(collection, space))


@routes.get(f"{SPACES}/{{space}}/status", dependencies=[Depends(Needs("read"))])
async def space_status(collection: CollectionName, space: SpaceName, backend: Back) -> SpaceStatus:
    """How far it is: `building`, then `active`, when every document of the topic is in it."""
    shown = _shown(backend, backend.state.build(collection, space))
    return SpaceStatus(
        name=shown.name, status=shown.status, progress=shown.progress, total=shown.total, completed=shown.completed
    )


@routes.post(f"{SPACES}/{{space}}/rebuild", status_code=HTTPStatus.ACCEPTED)
async def rebuild(space: SpaceName, asker: Asking, asked: Rebuild) -> SpaceStatus:
    """Fill the space from the topic: starts it, or lets it go on after a pause or a failure. One that is complete is
    kept current, and left as it is; to embed all of it again, delete it first.

    `embed_endpoint` must be one that the configuration names for the version, or, for a version that was added here,
    one of `embed_endpoints` that serves its model: document texts are sent nowhere else.
    """
    backend, collection = asker.backend, asker.collection
    configured = backend.current.collection(collection)
    version = _configured(configured, space)
    added = space not in backend.settings.collection(collection).versions
    other = endpoint_for(backend.settings, _model(version), asked.embed_endpoint) if added else None
    if other is None:
        _check_endpoint(version, asked.embed_endpoint)
    build = backend.state.builds.get(f"{collection}/{space}")
    if build is not None and build.active and other is not None:
        _check_same(build, version, asked.embed_endpoint)
    why = "rebuild of the vector space"
    said = f"rebuild {space} {asked.embed_endpoint}"
    if build is None or not build.active:
        declared = None
        if other is not None:
            declared = Declared(model=_model(version), dimensions=version.dimensions, url=other.url)
        await _start(asker, configured, space, declared, why, said)
    elif build.paused is not None or build.failure is not None:
        await asker.ask("resume", space, {}, why, asked=said)
    return await space_status(collection, space, backend)


@routes.put("/collections/{collection}/default-vector-space", responses=MAY_WAIT)
async def set_default(asker: Asking, asked: DefaultSpace) -> Outcome:
    """Move searches to this space, in one step; queries under way finish on the one they began with.

    Forward it is a cutover: swept and judged first, and refused while anything differs from the log. With the name of
    the space that served before the newest cutover, it is the rollback; from there on it is forward again. 202 when it
    was found good and waits, for somebody's approval or a file.
    """
    state = asker.backend.state.collection(asker.collection)
    asker.build(asked.name)
    said = f"default {asked.name}"
    if state.serving == asked.name and asker.outcome(said) is None:
        return Outcome(command_id="", message=f"{asked.name} is the default already", data={}, next="")
    pending = state.pending
    if pending is not None and pending.command.version == asked.name and asker.outcome(said) is None:
        asker.accept()
        return Outcome(
            command_id=pending.command.id,
            pending=pending.text,
            message=f"it was found good; {pending.text}",
            data={},
            next=pending.next_step,
        )
    back = state.previous == asked.name and state.swapped is not None and state.swapped.verb == "cutover"
    seen: dict[str, JsonValue] = {"from": state.serving}
    done = await asker.ask(
        "rollback" if back else "cutover",
        None if back else asked.name,
        {},
        "",
        seen=seen,
        asked=said,
    )
    return asker.answer(done, f"POST /collections/{asker.collection}/search")


@routes.delete(f"{SPACES}/{{space}}")
async def delete_space(space: SpaceName, asker: Asking) -> Outcome:
    """Delete a vector space for good, with everything in it. Refused for the default one."""
    verb: Verb = "abort" if asker.build(space).stage is Stage.BUILDING else "retire"
    done = await asker.ask(verb, space, {"confirm": space}, "deleted as a vector space", asked=f"delete {space}")
    return asker.answer(done, f"GET /collections/{asker.collection}/vector-spaces")


async def _start(
    asker: Asker, configured: Collection, name: str, declared: Declared | None, why: str, asked: str
) -> None:
    """The verb `start`, with the version itself where no configuration file has it."""
    if declared is not None:
        args: dict[str, JsonValue] = {"declaration": declared.model_dump(mode="json", by_alias=True)}
    else:
        args = {"fingerprint": envelope_of(configured, configured.version(name)).fingerprint}
    outcome = await asker.ask("start", name, args, why, asked=asked)
    if isinstance(epoch := outcome.data.get("epoch"), int):
        with contextlib.suppress(TimeoutError):  # a moment: both are records of one write
            async with asyncio.timeout(SEEN_S):
                await asker.backend.state.wait_for(partial(_has, f"{configured.name}/{name}", epoch))


def _has(key: str, epoch: int, state: StateView) -> bool:
    return key in state.builds and state.builds[key].epoch >= epoch


def _configured(configured: Collection, name: str) -> Version:
    try:
        return configured.version(name)
    except NotFound as error:
        raise NotFound(
            error.message,
            next_step=f"add it under collections.{configured.name}.versions in the configuration of the workers and of "
            "this process (they read it again when it changes), then ask again",
        ) from error


def _model(version: Version) -> str:
    return hashing.MODEL if isinstance(version.embedder, HashingEmbedder) else version.embedder.model


def _check_endpoint(version: Version, asked: str) -> None:
    """Raises Answered for an address that the version does not name."""
    known = frozenset[str]().union(*(endpoint.addresses for endpoint in version.endpoints))
    if address_of(asked) not in known:
        raise Answered(
            problem(
                HTTPStatus.FORBIDDEN,
                "this embed_endpoint is none of those that the configuration of the version names",
                "put it under embedder or fallbacks of the version, or under embed_endpoints, in the configuration of "
                "every worker and of this process"
                if version.endpoints
                else "this version's model needs no endpoint: POST .../start builds it",
                kind="endpoint-not-allowed",
                title="Document texts are not sent there",
            )
        )


def _check_same(build: BuildState, version: Version, asked: str) -> None:
    """Raises Refused for another endpoint than the one it is built at: nothing would be sent there."""
    if not any(address_of(asked) in endpoint.addresses for endpoint in version.endpoints):
        raise Refused(
            f"{build.key} is {build.stage} at another endpoint",
            next_step=f"DELETE /collections/{build.collection}/vector-spaces/{build.version}, then rebuild it there; "
            "or give the one under embed_endpoints its new address",
        )


def _shown(backend: Backend, build: BuildState) -> VectorSpace:
    records = backend.progress.partitions(build)
    whole = combine(build.version, records, build.partitions, backend.wall_ms(), build.controls.replay_rate)
    done = build.stage in (Stage.READY, Stage.SERVING, Stage.PREVIOUS)
    dims, model = build.envelope.get("dimensions"), build.envelope.get("model")
    total = whole.total if whole is not None else 0
    return VectorSpace(
        name=build.version,
        status=_status(build),
        default=build.stage is Stage.SERVING,
        dims=dims if isinstance(dims, int) else 0,
        model=str(model or ""),
        fingerprint=build.fingerprint,
        space=build.space,
        progress=1.0 if done else whole.progress if whole is not None else 0.0,
        total=total,
        completed=total if done else whole.completed if whole is not None else 0,
        note=build.failure.cause if build.failure is not None else "",
    )


def _status(build: BuildState) -> SpaceState:
    if not build.active:
        return "declared" if build.stage is Stage.DECLARED else "deleted"
    if build.failure is not None:
        return "failed"
    if build.stage is not Stage.BUILDING:
        return "active"
    return "paused" if build.paused is not None else "building"
