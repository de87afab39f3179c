"""The verbs that look before anything is moved: plan, verify, evaluate. They take as long as reading everything takes.

They only read, but for `verify` with `repair`, which asks the workers; two of them at a time in one process.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Body
from pydantic import BaseModel, JsonValue

from connectors.errors import Refused, Transient
from streams.api.access import Reader
from streams.api.asking import Asker, Asking
from streams.api.backend import Back, Backend, one_of_few
from streams.api.models import CollectionName, Evaluate, Outcome, PlanRequest, Said, Verify, VersionName
from streams.api.problems import Answered, problem
from streams.api.verbs import OF_VERSION
from streams.migration.gate import judge
from streams.migration.golden import load_golden
from streams.migration.judging import evaluate_spaces, holds_of
from streams.search.questions import health_of, index_queue_of, ranked
from streams.state import BuildState, Verb
from streams.versions import next_command

routes = APIRouter(tags=["verbs"])


class Swept(BaseModel):
    """What `verify` found; `examples`: keys of each kind. `kept`: documents that the topic has forgotten and this
    space has; `torn`: those of which it has not all chunks; `lost`: those that the serving space has and this one has
    not, null where that cannot be read: `unread` says why, and the next step."""

    collection: str
    version: str
    epoch: int
    space: str
    clean: bool
    checked: int
    missing: int
    stale: int
    extra: int
    held: int
    moved: int
    kept: int
    lost: int | None
    torn: int
    unread: str
    examples: dict[str, list[str]]


class Evaluated(BaseModel):
    """`gate`: the verdict and every check of it; `quality`: null without judged queries."""

    collection: str
    version: str
    against: str | None
    verdict: str
    gate: dict[str, JsonValue]
    quality: dict[str, JsonValue] | None


@routes.post(f"{OF_VERSION}/plan")
async def plan(
    collection: CollectionName, version: VersionName, _: Reader, backend: Back, asked: Annotated[PlanRequest, Body()]
) -> dict[str, JsonValue]:
    """What building a version will take: documents, tokens, cost, time, disk and memory, and what may go wrong.

    The same object as `crossfade plan --json`.
    """
    backend.current.collection(collection).version(version)
    async with _examining(backend):
        return {**await backend.plan(collection, version, asked.sample)}


@routes.post(f"{OF_VERSION}/verify")
async def verify(version: VersionName, asker: Asking, asked: Annotated[Verify, Body()]) -> Swept:
    """Compare the whole space with the log, both ways; with `repair`, have the workers mend what differs first."""
    build = _active(asker, version)
    async with _examining(asker.backend):
        if asked.repair:
            await _have_done(asker, build, "repair")
        found = await asker.backend.sweep(build, asker.backend.state.serving(asker.collection))
    return Swept(
        collection=asker.collection,
        version=version,
        epoch=build.epoch,
        space=build.space,
        clean=found.clean,
        checked=found.checked,
        missing=found.missing,
        stale=found.stale,
        extra=found.extra,
        held=len(found.held_keys),
        moved=found.moved,
        kept=found.kept,
        lost=found.lost_if_known,
        torn=found.torn,
        unread=found.unread,
        examples={**found.examples, **({"held": found.held_keys[:10]} if found.held_keys else {})},
    )


@routes.post(f"{OF_VERSION}/redrive")
async def redrive(version: VersionName, asker: Asking, asked: Annotated[Said, Body()]) -> Outcome:
    """Apply a version's dead letters again, each at its own offset, unless its document has a newer record."""
    return await _have_done(asker, _active(asker, version), "redrive", asked.why)


@routes.post(f"{OF_VERSION}/evaluate")
async def evaluate(
    collection: CollectionName, version: VersionName, _: Reader, backend: Back, asked: Annotated[Evaluate, Body()]
) -> Evaluated:
    """Is it good enough to serve? The judged queries of the configuration asked of both spaces, and the gate's verdict.

    `gate.golden` is read from the machine of this process.
    """
    state, build = backend.state.collection(collection), backend.state.build(collection, version)
    other = asked.against or (state.serving if state.serving != version else None)
    if other == version:
        raise Answered(
            problem(HTTPStatus.UNPROCESSABLE_ENTITY, f"{version} would be compared with itself", "name another version")
        )
    compared = backend.state.build(collection, other) if other else None
    gate = backend.current.collection(collection).gate
    gate = gate.model_copy(update={"k": asked.k or gate.k})
    space = backend.router.resolve(collection, version).space
    spaces = [space] + ([backend.router.resolve(collection, other).space] if other else [])
    async with _examining(backend):
        golden = await load_golden(gate.golden) if gate.golden is not None else None
        quality = None
        if golden is not None:
            quality = await evaluate_spaces(
                ranked(backend.router, collection, other) if other else None,
                ranked(backend.router, collection, version),
                golden,
                gate,
                versions=(other or "", version),
                holds=holds_of(collection, *spaces),
                thresholds=(),
            )
        queue = await index_queue_of(space)
    result = judge(gate, quality, health_of(backend.progress, build, queue, serving=compared))
    return Evaluated(
        collection=collection,
        version=version,
        against=other,
        verdict=result.verdict.value,
        gate=dict(result.as_json()),
        quality=dict(quality.as_json()) if quality is not None else None,
    )


def _active(asker: Asker, version: str) -> BuildState:
    """Raises Refused when it has no space."""
    build = asker.build(version)
    if not build.active:
        raise Refused(
            f"{build.key} is {build.stage}: it has no space",
            next_step=next_command(build.stage, collection=asker.collection, version=version),
        )
    return build


@asynccontextmanager
async def _examining(backend: Backend) -> AsyncIterator[None]:
    """Raises Answered when enough of them are under way, and when it takes longer than a verb may."""
    timeout_s = backend.settings.serve.command_timeout_s
    try:
        async with (
            one_of_few(backend.examining, "two plans, verifications or evaluations", 10),
            asyncio.timeout(timeout_s),
        ):
            yield
    except TimeoutError as error:
        raise Answered(
            problem(
                HTTPStatus.GATEWAY_TIMEOUT,
                f"it took longer than {timeout_s:g} s and was given up",
                "use the command line, or raise serve.command_timeout_s",
                kind="timeout",
            )
        ) from error


async def _have_done(asker: Asker, build: BuildState, verb: Verb, why: str = "") -> Outcome:
    """Ask the partitions' owners, and return when each has reported that it is done."""
    backend = asker.backend
    outcome = await asker.ask(verb, build.version, {}, why)
    number = outcome.data.get("request")

    def done(_: object) -> bool:
        found = backend.progress.partitions(build)
        return (
            isinstance(number, int) and len(found) == build.partitions and all(r.requests_done >= number for r in found)
        )

    try:
        async with asyncio.timeout(backend.settings.serve.command_timeout_s):
            await backend.progress.wait_for(done)
    except TimeoutError as error:
        raise Transient(
            f"the {verb} of {build.key} is not done yet; it goes on while its workers run",
            next_step=f"look at GET /collections/{build.collection}/versions/{build.version}, then ask again",
        ) from error
    return asker.answer(outcome, f"POST {OF_VERSION}/verify".format(collection=build.collection, version=build.version))
