"""Which space answers a query, with the encoder that belongs to it: resolved once for each query from the state view.

It must never let a query meet vectors of another model, nor change the space of a query that is under way.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

from connectors.errors import ConfigurationError, NotFound, Refused
from connectors.protocols import JSON, Hit, Space, VectorStore
from streams.config import Settings, envelope_of
from streams.config_embedders import Version
from streams.encoding import Encoder
from streams.search.nearest import nearest
from streams.state import BuildState, CollectionState
from streams.versions import Stage, next_command
from streams.wiring import make_encoder

MOST_HITS = 1000


class Outside(Protocol):
    """What the router needs of `streams.wiring.Outside`."""

    @property
    def settings(self) -> Settings: ...

    @property
    def store(self) -> VectorStore: ...


class State(Protocol):
    """What it needs of `streams.views.StateView`, which follows while queries run."""

    def collection(self, name: str) -> CollectionState: ...

    def build(self, collection: str, version: str) -> BuildState: ...

    def builds_of(self, collection: str) -> list[BuildState]: ...


@dataclass(frozen=True, slots=True)
class Route:
    """One query's way: fixed when it was resolved, whatever is swapped meanwhile."""

    collection: str
    version: str
    stage: Stage
    epoch: int
    fingerprint: str
    space: Space
    encoder: Encoder


@dataclass(frozen=True, slots=True)
class Answer:
    """`hits`: one for each document, by its best chunk, best first. `took_ms`: encoding and searching."""

    collection: str
    version: str
    stage: Stage
    epoch: int
    space: str
    fingerprint: str
    hits: tuple[Hit, ...]
    took_ms: float

    def as_json(self) -> dict[str, JSON]:
        """With every property a hit carries, its text included."""
        return {
            "collection": self.collection,
            "version": self.version,
            "stage": self.stage.value,
            "epoch": self.epoch,
            "space": self.space,
            "fingerprint": self.fingerprint,
            "took_ms": round(self.took_ms, 3),
            "hits": [
                {
                    "key": hit.doc_id,
                    "chunk": hit.chunk,
                    "score": hit.score,
                    "distance": hit.distance,
                    "properties": dict(hit.properties),
                }
                for hit in self.hits
            ],
        }


class Router:
    """Safe for any number of queries at once. Holds an encoder for each fingerprint, made anew when the configuration
    of its version changes (an endpoint that moved); `close` closes them, also those that queries may still be using."""

    def __init__(self, outside: Outside, state: State) -> None:
        self._out = outside
        self._state = state
        self._encoders: dict[str, tuple[Version, Encoder]] = {}
        self._replaced: list[Encoder] = []
        self._spaces: dict[str, Space] = {}

    def resolve(self, collection: str, version: str | None = None) -> Route:
        """The serving version, or the named one. No I/O.

        Raises NotFound with the names there are; Refused when nothing serves yet, when the version has no space any
        more, or when this process's configuration is another model than the one the space was built with.
        """
        state = self._state.collection(collection)
        build = self._state.build(collection, version) if version else self._serving(state)
        if not build.active:
            raise Refused(
                f"{build.key} is {build.stage}: its space is gone",
                next_step=f"crossfade search {collection} QUERY, which asks the version that serves; or "
                + next_command(build.stage, collection=collection, version=build.version),
            )
        return Route(
            collection,
            build.version,
            build.stage,
            build.epoch,
            build.fingerprint,
            self._space(build.space),
            self._encoder(build),
        )

    async def search(self, collection: str, query: str, limit: int, version: str | None = None) -> Answer:
        """The `limit` (1 to 1000) documents nearest to the query, from one space from beginning to end.

        Raises as `resolve` does; ContentRejected for a query the model cannot take; Transient when the endpoint or
        the store is away; IdentityChanged when the space is gone.
        """
        if not 1 <= limit <= MOST_HITS:
            raise ConfigurationError(f"a limit of {limit} documents", next_step=f"ask for 1 to {MOST_HITS}")
        began = time.perf_counter()
        route = self.resolve(collection, version)
        vector = await route.encoder.encode_query(query)
        hits = await nearest(route.space, vector, limit)
        return Answer(
            route.collection,
            route.version,
            route.stage,
            route.epoch,
            route.space.name,
            route.fingerprint,
            hits,
            1000 * (time.perf_counter() - began),
        )

    async def close(self) -> None:
        encoders = [*self._replaced, *(encoder for _, encoder in self._encoders.values())]
        self._replaced, self._encoders = [], {}
        for encoder in encoders:
            await encoder.close()

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

    def _space(self, name: str) -> Space:
        """Kept, because a space asks for its schema at first use."""
        if name not in self._spaces:
            self._spaces[name] = self._out.store.space(name)
        return self._spaces[name]

    def _encoder(self, build: BuildState) -> Encoder:
        try:
            configured = self._out.settings.collection(build.collection)
            version = configured.version(build.version)
        except NotFound as error:
            raise Refused(
                f"{build.key} is not in this process's configuration, so its queries cannot be embedded",
                next_step="use the configuration of the workers that built it",
            ) from error
        fingerprint = envelope_of(configured, version).fingerprint
        if fingerprint != build.fingerprint:
            raise Refused(
                f"{build.key} was built with model {build.fingerprint}, this process's configuration says "
                f"{fingerprint}: the query's vector would mean nothing in that space",
                next_step="use the configuration of the workers that built it; a changed model needs a version name "
                "of its own",
            )
        made_of, encoder = self._encoders.get(fingerprint, (None, None))
        if encoder is None or (made_of is not version and made_of != version):
            if encoder is not None:
                self._replaced.append(encoder)
            encoder = make_encoder(self._out.settings, configured, version, canary=build.canary)
            self._encoders[fingerprint] = version, encoder
        return encoder
