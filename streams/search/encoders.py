"""The model of each space: its encoder, and the vectors it gave to the newest queries.

It must never let a query meet vectors of another model, nor wait long for a model where another version may stand in.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from connectors.errors import NotFound, Refused, Unreachable
from connectors.protocols import Space, Vectors, VectorStore
from streams.config import Collection, Settings, envelope_of
from streams.config_embedders import Version
from streams.encoding import Encoder
from streams.search.vectors import QueryVectors
from streams.state import BuildState
from streams.versions import Stage
from streams.wiring import make_encoder

SLOW_AGAIN_S = 5.0


class Outside(Protocol):
    """What the router needs of `streams.wiring.Outside`."""

    @property
    def settings(self) -> Settings: ...

    @property
    def store(self) -> VectorStore: ...


@dataclass(frozen=True, slots=True)
class Route:
    """One query's way to one space: fixed when it was resolved, whatever is swapped meanwhile."""

    collection: str
    version: str
    stage: Stage
    epoch: int
    fingerprint: str
    space: Space
    encoder: Encoder


class Encoders:
    """Holds a space and an encoder for each build, made anew when the configuration of its version changes (an
    endpoint that moved); `close` closes them, also those that queries may still be using."""

    def __init__(self, outside: Outside, clock_s: Callable[[], float]) -> None:
        self._out = outside
        self._clock_s = clock_s
        self._encoders: dict[str, tuple[Version, Encoder]] = {}
        self._replaced: list[Encoder] = []
        self._spaces: dict[str, Space] = {}
        self._slow: dict[str, float] = {}
        self._fingerprints: dict[str, tuple[Collection, Version, str]] = {}
        self.vectors = QueryVectors()

    def route(self, build: BuildState) -> Route:
        """No I/O. Raises Refused when this process's configuration is another model than the one the space was built
        with."""
        return Route(
            build.collection,
            build.version,
            build.stage,
            build.epoch,
            build.fingerprint,
            self._space(build.space),
            self._encoder(build),
        )

    async def vector(self, route: Route, text: str, within_s: float | None = None) -> Vectors:
        """Raises Unreachable after `within_s`, and at once while a model that was so slow has not answered since."""
        kept = self.vectors.get(route.fingerprint, text)
        if kept is not None:
            return kept
        if within_s is None:
            vector = await route.encoder.encode_query(text)
        else:
            vector = await self._in_time(route, text, within_s)
        self.vectors.put(route.fingerprint, text, vector)
        return vector

    async def _in_time(self, route: Route, text: str, within_s: float) -> Vectors:
        """A request that is given up tells the endpoint's circuit nothing, so what is slow is remembered here: one
        query tries it again each SLOW_AGAIN_S, the others do not wait."""
        build = f"{route.collection}/{route.version}"
        again_s = self._slow.get(build)
        if again_s is not None:
            if self._clock_s() < again_s:
                raise _too_slow(route, within_s)
            self._slow[build] = self._clock_s() + SLOW_AGAIN_S
        try:
            async with asyncio.timeout(within_s):
                vector = await route.encoder.encode_query(text)
        except TimeoutError as error:
            self._slow[build] = self._clock_s() + SLOW_AGAIN_S
            raise _too_slow(route, within_s) from error
        self._slow.pop(build, None)
        return vector

    async def close(self) -> None:
        encoders = [*self._replaced, *(encoder for _, encoder in self._encoders.values())]
        self._replaced, self._encoders = [], {}
        for encoder in encoders:
            await encoder.close()

    def _space(self, name: str) -> Space:
        """Kept, because a space asks for its schema at first use."""
        if name not in self._spaces:
            self._spaces[name] = self._out.store.space(name)
        return self._spaces[name]

    def _fingerprint(self, key: str, configured: Collection, version: Version) -> str:
        """Of the model that the configuration says, made anew when the configuration was: every query asks for it."""
        known = self._fingerprints.get(key)
        if known is None or known[0] is not configured or known[1] is not version:
            known = self._fingerprints[key] = configured, version, envelope_of(configured, version).fingerprint
        return known[2]

    def _encoder(self, build: BuildState) -> Encoder:
        try:
            configured = self._out.settings.collection(build.collection)
            version = configured.version(build.version)
        except NotFound as error:
            raise Refused(
                f"{build.key} is not in this process's configuration, so its queries cannot be embedded",
                next_step="use the configuration of the workers that built it",
            ) from error
        fingerprint = self._fingerprint(build.key, configured, version)
        if fingerprint != build.fingerprint:
            raise Refused(
                f"{build.key} was built with model {build.fingerprint}, this process's configuration says "
                f"{fingerprint}: the query's vector would mean nothing in that space",
                next_step="use the configuration of the workers that built it; a changed model needs a version name "
                "of its own",
            )
        made_of, encoder = self._encoders.get(build.key, (None, None))
        if encoder is None or (made_of is not version and made_of != version):
            if encoder is not None:
                self._replaced.append(encoder)
            encoder = make_encoder(self._out.settings, configured, version, canary=build.canary)
            self._encoders[build.key] = version, encoder
        return encoder


def _too_slow(route: Route, within_s: float) -> Unreachable:
    return Unreachable(
        f"the model of {route.collection}/{route.version} does not answer within {within_s:g} s",
        next_step="look at its endpoint, or raise routes.fall_back_after_s",
    )
