"""What stands: collections, versions with their progress (once, or as it changes), and the journal.

Read from the views, so it is answered while Kafka is away; the journal alone is read from its topic.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Query
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, JsonValue

from streams.api.access import Needs, StillMay
from streams.api.backend import Back, Backend, in_time, one_of_few
from streams.api.models import CollectionName, VersionName
from streams.journal import newest
from streams.progress import ProgressRecord, combine
from streams.state import BuildState, CollectionState, Controls, Failure, JournalEntry
from streams.versions import next_command

routes = APIRouter(tags=["state"], dependencies=[Depends(Needs("read"))])

EVENTS_EVERY_S = 1.0
HEARTBEAT_S = 15.0
MOST_ENTRIES = 1_000
BEFORE = r"^([0-9]{1,19}(-[0-9]{1,19}){0,99})?$"


EVENT: dict[str, JsonValue] = {
    "type": "object",
    "properties": {
        "event": {"const": "progress"},
        "data": {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": {"$ref": "#/components/schemas/VersionAnswer"},
        },
    },
    "required": ["event", "data"],
}
"""For OpenAPI: one of a stream."""


class VersionAnswer(BaseModel):
    """`stage` as the state topic has it; `progress`: null until a worker has reported. `next`: the command one would
    run next. `reporting`: every partition has an owner that has just reported."""

    collection: str
    version: str
    stage: str
    epoch: int
    fingerprint: str
    space: str
    paused: str | None
    failure: Failure | None
    controls: Controls
    provenance: dict[str, str]
    started_ms: int
    ready_ms: int
    reporting: bool
    progress: ProgressRecord | None
    next: str


class CollectionAnswer(BaseModel):
    """`under_way`: the verb of a step that has begun. `notes`: what waits, is watched or went wrong unseen."""

    collection: str
    alias: str
    topic: str
    serving: str | None
    previous: str | None
    under_way: str | None
    notes: list[str]
    versions: list[VersionAnswer]


class CollectionsAnswer(BaseModel):
    """Those that the state topic knows."""

    collections: list[CollectionAnswer]


class History(BaseModel):
    """Oldest first. `older`: give it as `before`, and older entries follow (there may be some also where few or none
    were found: one call reads a bounded piece of the journal); "" when there are none. `next`: that call."""

    collection: str
    entries: list[JournalEntry]
    older: str
    next: str


@routes.get("/collections")
async def collections(backend: Back) -> CollectionsAnswer:
    """Every collection, what serves in it, and its versions."""
    known = [state for _, state in sorted(backend.state.collections.items()) if state.alias]
    return CollectionsAnswer(collections=[_collection(backend, state) for state in known])


@routes.get("/collections/{collection}")
async def collection(collection: CollectionName, backend: Back) -> CollectionAnswer:
    """One collection."""
    return _collection(backend, backend.state.collection(collection))


@routes.get("/collections/{collection}/versions/{version}")
async def version(collection: CollectionName, version: VersionName, backend: Back) -> VersionAnswer:
    """One version: stage, progress, rate, ETA, lag, spend."""
    return _version(backend, backend.state.build(collection, version))


@routes.get(
    "/collections/{collection}/versions/{version}/events",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {"itemSchema": EVENT}}}},
)
async def events(
    collection: CollectionName,
    version: VersionName,
    backend: Back,
    still: StillMay,
    for_s: Annotated[float | None, Query(ge=0, le=86_400, description="End it after so many seconds.")] = None,
) -> StreamingResponse:
    """The same as server-sent events (`event: progress`), each second at most, while it changes; a comment as a sign of
    life where nothing does. What stands is told at once. It goes on until the caller goes away, their key is taken
    back, this process stops, or `for_s` is over."""
    backend.state.build(collection, version)
    told = events_of(backend, collection, version, still, math.inf if for_s is None else for_s)
    return StreamingResponse(told, media_type="text/event-stream")


@routes.get("/collections/{collection}/history")
async def history(
    collection: CollectionName,
    backend: Back,
    version: Annotated[str | None, Query(pattern=r"^[a-z0-9_]{1,48}$")] = None,
    limit: Annotated[int, Query(ge=1, le=MOST_ENTRIES, description="The newest ones.")] = 100,
    before: Annotated[str, Query(pattern=BEFORE, description="`older` of the page after it.")] = "",
) -> History:
    """Who did what to a collection, when and why, and what came of it; read from the newest on, page by page."""
    backend.state.collection(collection)
    async with one_of_few(backend.journal, "four readings of the journal", 1), in_time(backend, "Kafka"):
        page = await newest(backend.kafka, backend.names, collection, limit, version=version, before=before)
    if version is not None and not (page.entries or page.older or before):
        backend.state.build(collection, version)
    asked = {"limit": str(limit), **({"version": version} if version is not None else {}), "before": page.older}
    then = f"GET /collections/{collection}/history?{urlencode(asked)}" if page.older else ""
    return History(collection=collection, entries=page.entries, older=page.older, next=then)


async def events_of(
    backend: Backend, collection: str, version: str, still: Callable[[], bool], for_s: float = math.inf
) -> AsyncIterator[str]:
    """The first one at once. Until `stopping`, not `still`, the version is gone from the state, or `for_s` is over."""
    ends_s = time.monotonic() + for_s
    said = ""
    silent_s = 0.0
    while still() and not backend.stopping.is_set():
        if (build := backend.state.builds.get(f"{collection}/{version}")) is None:
            return
        now = _version(backend, build).model_dump_json(by_alias=True)
        if now != said:
            yield f"event: progress\ndata: {now}\n\n"
            said, silent_s = now, 0.0
        elif silent_s >= HEARTBEAT_S:
            yield ": still here\n\n"
            silent_s = 0.0
        if (left_s := ends_s - time.monotonic()) <= 0:
            return
        try:
            async with asyncio.timeout(min(EVENTS_EVERY_S, left_s)):
                await backend.stopping.wait()
        except TimeoutError:
            silent_s += EVENTS_EVERY_S


def _collection(backend: Backend, state: CollectionState) -> CollectionAnswer:
    builds = sorted(backend.state.builds_of(state.collection), key=lambda build: build.epoch)
    return CollectionAnswer(
        collection=state.collection,
        alias=state.alias,
        topic=state.topic,
        serving=state.serving,
        previous=state.previous,
        under_way=state.intent.command.verb if state.intent else None,
        notes=[said for said, _ in [*state.notes, *(note for build in builds for note in build.notes)]],
        versions=[_version(backend, build) for build in builds],
    )


def _version(backend: Backend, build: BuildState) -> VersionAnswer:
    records, now_ms = backend.progress.partitions(build), backend.wall_ms()
    whole = combine(build.version, records, build.partitions, now_ms, build.controls.replay_rate)
    if whole is not None:  # the time of the newest report, not of this look
        whole = whole.model_copy(update={"updated_at": max(record.updated_at for record in records)})
    fresh = sum(record.is_fresh(now_ms) for record in records)
    return VersionAnswer(
        collection=build.collection,
        version=build.version,
        stage=build.stage.value,
        epoch=build.epoch,
        fingerprint=build.fingerprint,
        space=build.space,
        paused=build.paused,
        failure=build.failure,
        controls=build.controls,
        provenance=build.provenance,
        started_ms=build.started_ms,
        ready_ms=build.ready_ms,
        reporting=build.active and fresh == build.partitions > 0,
        progress=whole,
        next=next_command(build.stage, collection=build.collection, version=build.version),
    )
