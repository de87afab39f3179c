"""What answers a query, with the encoder that belongs to each space: decided once for each query, then carried out.

It must never let a query meet vectors of another model, change the route of a query that is under way, or mix spaces
in an answer whose route does not say so.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

from connectors.errors import (
    ContentRejected,
    CrossfadeError,
    IdentityChanged,
    NotFound,
    Refused,
    Transient,
)
from connectors.protocols import JSON, Hit, Vectors
from streams.config import Collection
from streams.documents import object_id
from streams.progress import ProgressRecord
from streams.search.answer import Answer, Placed
from streams.search.encoders import Encoders, Outside, Route
from streams.search.fusion import Calibration, Pair, calibration_of, depth_of, merge
from streams.search.nearest import nearest
from streams.search.query import Query, mode_of, query_of
from streams.search.rolling import Rollouts, standing_of
from streams.search.routes import (
    Decision,
    Situation,
    by_name,
    coming_of,
    coverage_of,
    decide,
    is_current,
    stand_in,
    to_come,
)
from streams.search.searched import AccessFiles, AccessTopics
from streams.search.shadow import Shadowed, Shadows
from streams.state import BuildState, CollectionState
from streams.versions import Stage, next_command
from streams.wiring import wall_ms

PAIRS_KEPT = 2000
CALIBRATE_EVERY = 50

T = TypeVar("T")
Patience = Callable[[BuildState], float | None]
"""How many seconds a build's model has for a query; None: as long as it takes."""


class State(Protocol):
    """What it needs of `streams.views.StateView`, which follows while queries run."""

    def collection(self, name: str) -> CollectionState: ...

    def build(self, collection: str, version: str) -> BuildState: ...

    def builds_of(self, collection: str) -> list[BuildState]: ...


class Progress(Protocol):
    """What it needs of `streams.views.ProgressView`."""

    def partitions(self, build: BuildState) -> list[ProgressRecord]: ...


class _Unusable(Exception):
    """This build cannot take part in the answer, for `error`; another one may stand in."""

    def __init__(self, build: BuildState, error: CrossfadeError) -> None:
        super().__init__(build.key)
        self.build = build
        self.error = error

    @property
    def reason(self) -> str:
        match self.error:
            case Transient():
                return "its model does not answer"
            case IdentityChanged():
                return "its space is gone"
            case _:
                return "this process cannot embed queries for it"


class _Pairs:
    """Scores of documents that two spaces have both found, for the calibrated fusion."""

    def __init__(self) -> None:
        self._pairs: deque[tuple[float, float]] = deque(maxlen=PAIRS_KEPT)
        self._new = 0
        self._calibration: Calibration | None = None

    def add(self, pairs: Sequence[tuple[float, float]]) -> None:
        self._pairs.extend(pairs)
        self._new += len(pairs)

    def calibration(self) -> Calibration | None:
        if self._calibration is None or self._new >= CALIBRATE_EVERY:
            self._calibration, self._new = calibration_of(self._pairs), 0
        return self._calibration


class Router:
    """Safe for any number of queries at once. `close` closes its encoders, also those that queries may still be using.

    `progress`: says how far a build is; without it the hybrid route waits until a version is ready. `live`: its queries
    are users', so they are shadowed, what they find is counted, as configured, and so is what they say of a rollout.
    `searched`: closed with it.
    """

    def __init__(
        self,
        outside: Outside,
        state: State,
        progress: Progress | None = None,
        *,
        live: bool = False,
        shadows: Shadows | None = None,
        searched: AccessTopics | None = None,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._out = outside
        self._encoders = Encoders(outside, clock_s)
        self._state = state
        self._progress = progress
        self._pairs: dict[tuple[str, str], _Pairs] = {}
        self.rollouts = Rollouts()
        self._live = live
        self._searched = AccessFiles(clock_s, wall_ms)
        self._published = searched
        self.shadows = shadows or Shadows()
        self.vectors = self._encoders.vectors

    def resolve(self, collection: str, version: str | None = None) -> Route:
        """The serving version, or the named one. No I/O.

        Raises NotFound with the names there are; Refused when nothing serves yet, when the version has no space any
        more, or when this process's configuration is another model than the one the space was built with.
        """
        state = self._state.collection(collection)
        return self._encoders.route(self._named(collection, version) if version else self._serving(state))

    async def search(
        self,
        collection: str,
        query: str,
        limit: int,
        version: str | None = None,
        *,
        mode: str | None = None,
        caller: str | None = None,
        filters: Mapping[str, JSON] | None = None,
        vector: Sequence[float] | Vectors | None = None,
        fingerprint: str | None = None,
    ) -> Answer:
        """The `limit` (1 to 1000) documents nearest to the query, on the route that is decided now.

        `version` names a space, `mode` another route than the configured one; `caller` is the key by which a rollout
        goes. `vector`, with the fingerprint of its model, stands for the query: then one space alone answers.

        Raises as `resolve` does; ConfigurationError for what cannot be asked; Refused for a vector of another model;
        ContentRejected for a query the model cannot take; Transient when the endpoint or the store is away and no other
        version may stand in; IdentityChanged when the space is gone.
        """
        began = time.perf_counter()
        settings = self._settings(collection)
        question = query_of(settings, collection, query, limit, filters, vector, fingerprint)
        wanted = mode_of(mode, version, question)
        now: Situation | None = None
        if version:
            decision = by_name(self._named(collection, version))
        else:
            route = wanted or settings.routes.default
            now = self._situation(collection, route)
            standing = standing_of(now.coming) if route == "rollout" and now.coming is not None else None
            decision = decide(now, settings.routes, mode=route, caller=caller, standing=standing)
        asked = decision

        def count(build: BuildState, hits: int | None) -> None:
            if now is not None:
                self._count(asked, now, build, hits, began, settings.routes.rollout.window_s)

        tried: dict[str, _Unusable] = {}
        while True:
            try:
                hits = await self._carry_out(decision, question, self._patience(decision, now, settings, tried))
                break
            except _Unusable as unusable:
                count(unusable.build, None)
                tried[unusable.build.key] = unusable
                following = self._instead(decision, unusable, now, settings, tried)
                if following is None:
                    first = next(iter(tried.values())).error  # what is wrong with the version that should answer
                    raise first from first.__cause__
                decision = following
            except ContentRejected:
                raise
            except asyncio.CancelledError:  # the time is over, or nobody waits: after long, that is a failure
                if time.perf_counter() - began >= settings.routes.fall_back_after_s:
                    count(decision.build, None)
                raise
            except CrossfadeError:  # its space: nobody stands in for that, and a rollout must not go on
                count(decision.build, None)
                raise
        build = decision.build
        answer = Answer(
            collection,
            build.version,
            build.stage,
            build.epoch,
            build.space,
            build.fingerprint,
            hits,
            1000 * (time.perf_counter() - began),
            decision.route,
            decision.why,
        )
        count(build, len(hits))
        if now is not None and self._live:
            self._shadow(decision, now, settings, question, answer)
            found = [hit.doc_id for hit in hits]
            self._searched.found(settings.routes.searched, found)
            if self._published is not None:
                self._published.found(settings.routes.searched, found)
        return answer

    async def close(self) -> None:
        await self.shadows.close()
        await self._searched.close()
        if self._published is not None:
            await self._published.close()
        await self._encoders.close()

    # --- what is known at the moment of a query ---

    def _settings(self, collection: str) -> Collection:
        """Raises NotFound for a collection nobody knows, Refused for one that is not configured here."""
        self._state.collection(collection)
        try:
            return self._out.settings.collection(collection)
        except NotFound as error:
            raise Refused(
                f"{collection} is not in this process's configuration, so its queries cannot be embedded",
                next_step="use the configuration of the workers that built it",
            ) from error

    def _situation(self, collection: str, route: str) -> Situation:
        state = self._state.collection(collection)
        serving = self._serving(state)
        builds = self._state.builds_of(collection)
        previous = next((b for b in builds if b.version == state.previous and b.active), None)
        coming = (to_come if route == "rollout" else coming_of)(builds, serving)
        return Situation(serving, previous, coming, self._coverage(coming) if route in ("hybrid", "bridge") else None)

    def _coverage(self, coming: BuildState | None) -> float | None:
        """Of a version that is being built, or still owes what the topic has forgotten; None of any other."""
        if coming is None or self._progress is None:
            return None
        records = self._progress.partitions(coming)
        if coming.stage is not Stage.BUILDING and not any(record.owing for record in records):
            return None
        return coverage_of(records, coming.partitions)

    def _named(self, collection: str, version: str) -> BuildState:
        build = self._state.build(collection, version)
        if not build.active:
            raise Refused(
                f"{build.key} is {build.stage}: its space is gone",
                next_step=f"crossfade search {collection} QUERY, which asks the version that serves; or "
                + next_command(build.stage, collection=collection, version=build.version),
            )
        return build

    # --- carrying a decision out ---

    @staticmethod
    def _patience(
        decision: Decision, now: Situation | None, settings: Collection, tried: Mapping[str, _Unusable]
    ) -> Patience:
        """How many seconds a build's model has, where another version may stand in; None: as long as it takes."""

        def patience_s(build: BuildState) -> float | None:
            if now is None or stand_in(decision, build, now, settings.routes, "", tried) is None:
                return None
            return settings.routes.fall_back_after_s

        return patience_s

    async def _carry_out(self, decision: Decision, question: Query, patience: Patience) -> tuple[Placed, ...]:
        """Raises _Unusable for a build that cannot take part."""
        if decision.beside is not None:
            return await self._merged(decision, decision.beside, question, patience)
        route, hits = await self._ask(decision.build, question, question.limit, patience)
        return tuple(_placed(hit, route) for hit in hits)

    async def _ask(
        self, build: BuildState, question: Query, depth: int, patience: Patience
    ) -> tuple[Route, tuple[Hit, ...]]:
        try:
            route = self._encoders.route(build)
            vector = self._given(route, question)
            if vector is None:
                vector = await self._encoders.vector(route, question.text, patience(build))
        except ContentRejected:
            raise  # the query's own fault, whoever is asked
        except CrossfadeError as error:
            raise _Unusable(build, error) from error
        return route, await _there(build, nearest(route.space, vector, depth, question.conditions))

    async def _merged(
        self, decision: Decision, beside: BuildState, question: Query, patience: Patience
    ) -> tuple[Placed, ...]:
        depth = depth_of(decision.fusion, question.limit)
        (new_route, new), (old_route, old) = await _both(
            self._ask(decision.build, question, depth, patience), self._ask(beside, question, depth, patience)
        )
        in_old, in_new = {hit.doc_id: hit for hit in old}, {hit.doc_id: hit for hit in new}
        # what only one space has found, the other may hold in a newer form, or not at all: both decide its place
        new_at, old_at = await _both(
            _there(decision.build, _offsets(new_route, [key for key in in_old if key not in in_new])),
            _there(beside, _offsets(old_route, [key for key in in_new if key not in in_old])),
        )
        pairs = self._pairs.setdefault((old_route.fingerprint, new_route.fingerprint), _Pairs())
        pairs.add([(in_old[key].score, hit.score) for key, hit in in_new.items() if key in in_old])
        merged = merge(
            decision.fusion,
            Pair(old, new, old_at, new_at),
            question.limit,
            coverage=decision.coverage,
            calibration=pairs.calibration() if decision.fusion == "calibrated" else None,
        )
        return tuple(_placed(one.hit, new_route if one.side == "new" else old_route) for one in merged)

    @staticmethod
    def _instead(
        decision: Decision, unusable: _Unusable, now: Situation | None, settings: Collection, tried: Iterable[str]
    ) -> Decision | None:
        """A serving version is stood in for only while its model is away: what is wrong with it must not be hidden."""
        if now is None:
            return None
        if unusable.build.key == now.serving.key and not isinstance(unusable.error, Transient):
            return None
        return stand_in(decision, unusable.build, now, settings.routes, unusable.reason, frozenset(tried))

    def _given(self, route: Route, question: Query) -> Vectors | None:
        """The query as a vector, if it came as one. Raises Refused where it is of another model than the space."""
        if question.vector is not None and question.fingerprint != route.fingerprint:
            builds = self._state.builds_of(route.collection)
            own = next((b.version for b in builds if b.active and b.fingerprint == question.fingerprint), None)
            raise Refused(
                f"the vector is of model {question.fingerprint}, {route.collection}/{route.version} is of "
                f"{route.fingerprint}: it would mean nothing in that space",
                next_step=f"ask version {own}, whose model it is; or send the query as text"
                if own
                else "embed the query with the model of the space, or send the query as text",
            )
        return question.vector

    # --- what a query leaves behind ---

    def _count(
        self, asked: Decision, now: Situation, build: BuildState, hits: int | None, began: float, window_s: float
    ) -> None:
        """For the rollout: a query that it has routed, by the version that answered, or could not (`hits` None)."""
        coming = now.coming
        if not self._live or asked.route != "rollout" or coming is None or coming.rollout is None:
            return
        if build.key != asked.build.key:
            return  # it stood in: that says nothing about either
        present = self._state.build(coming.collection, coming.version)
        if present.epoch != coming.epoch or present.rollout is None or present.rollout.step != coming.rollout.step:
            return  # the step was over before the query was
        took_ms = 1000 * (time.perf_counter() - began)
        self.rollouts.add(
            coming,
            coming.rollout.step,
            new=build.key == coming.key,
            hits=hits,
            took_ms=took_ms,
            at_ms=wall_ms(),
            window_s=window_s,
        )

    def _shadow(
        self, decision: Decision, now: Situation, settings: Collection, question: Query, answer: Answer
    ) -> None:
        coming = now.coming
        if coming is None or coming.stage is not Stage.READY or not is_current(coming):
            return  # what it lacks says nothing of its model
        if decision.build.key != now.serving.key or question.vector is not None:
            return

        async def ask() -> Shadowed:
            began = time.perf_counter()
            route = self._encoders.route(coming)
            vector = await self._encoders.vector(route, question.text)
            hits = await nearest(route.space, vector, question.limit, question.conditions)
            return [hit.doc_id for hit in hits], 1000 * (time.perf_counter() - began)

        found = [hit.doc_id for hit in answer.hits], answer.took_ms
        text = None if question.conditions else question.text  # a golden set has no filters
        self.shadows.offer(settings.routes.shadow, now.serving, coming, found, ask, text)

    def _serving(self, state: CollectionState) -> BuildState:
        if state.serving is not None:
            return self._state.build(state.collection, state.serving)
        builds = self._state.builds_of(state.collection)
        ready = next((b for b in builds if b.stage is Stage.READY), None)
        active = ready or next((b for b in builds if b.active), None)
        raise Refused(
            f"no version of {state.collection} serves yet",
            next_step=f"crossfade cutover {state.collection} {active.version}"
            + ("" if ready else f", once it is ready: crossfade status {state.collection} {active.version}")
            if active
            else f"crossfade start {state.collection} VERSION, then crossfade cutover {state.collection} VERSION",
        )


def _placed(hit: Hit, route: Route) -> Placed:
    return Placed(
        hit.uuid,
        hit.doc_id,
        hit.chunk,
        hit.score,
        hit.distance,
        hit.properties,
        hit.offset,
        route.version,
        route.space.name,
        route.fingerprint,
    )


async def _offsets(route: Route, doc_ids: Sequence[str]) -> dict[str, int]:
    """Where the space holds each of these documents, by its commit record; those it does not hold are absent."""
    if not doc_ids:
        return {}
    heads = await route.space.heads([object_id(route.collection, doc_id, 0) for doc_id in doc_ids])
    return {head.doc_id: head.offset for head in heads.values()}


async def _there(build: BuildState, work: Awaitable[T]) -> T:
    """Raises _Unusable when the space is gone: an aborted build's is dropped while queries run."""
    try:
        return await work
    except IdentityChanged as error:
        raise _Unusable(build, error) from error


async def _both(one: Awaitable[T], other: Awaitable[T]) -> tuple[T, T]:
    """At once, and both ended when this returns or raises; what another version may stand in for is raised last."""
    first, second = await asyncio.gather(one, other, return_exceptions=True)
    failed = [end for end in (first, second) if isinstance(end, BaseException)]
    for error in sorted(failed, key=lambda error: isinstance(error, _Unusable)):
        raise error
    assert not isinstance(first, BaseException)
    assert not isinstance(second, BaseException)
    return first, second
