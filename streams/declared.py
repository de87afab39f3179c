"""Versions that were added over HTTP: kept in the state topic, and put beside those of the configuration file.

Where texts may be sent is said by the file alone: such a version uses an endpoint of its section `embed_endpoints`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from pydantic import ValidationError

from connectors.errors import Refused
from streams.config import Collection, Settings
from streams.config_embedders import OpenAIEmbedder, TeiEmbedder, Version, address_of
from streams.state import CollectionState, Declared

log = logging.getLogger(__name__)


def endpoint_for(settings: Settings, model: str, url: str | None = None) -> TeiEmbedder | OpenAIEmbedder | None:
    """The first endpoint of the section that serves this model; the one at `url`, with its path or without."""
    for endpoint in settings.embed_endpoints:
        if endpoint.model == model and (url is None or address_of(url) in endpoint.addresses):
            return endpoint
    return None


def version_of(settings: Settings, declared: Declared) -> Version:
    """As the file would say it. Raises Refused when the file does not allow its endpoint (any more)."""
    endpoint = endpoint_for(settings, declared.model, declared.url)
    if endpoint is None:
        raise Refused(
            f"no endpoint that serves {declared.model} at the address asked for stands under embed_endpoints",
            next_step="add it there, in the configuration of every worker and of `crossfade serve`",
        )
    try:
        return Version(embedder=endpoint, dimensions=declared.dimensions)
    except ValidationError as error:
        raise Refused(
            f"the endpoint that serves {declared.model} cannot serve all of a version",
            next_step="give it, under embed_endpoints, no lanes of its own; dimensions are 1 to 65535",
        ) from error


class Declarations:
    """Keeps what it merged last, since it is asked for at every query."""

    def __init__(self) -> None:
        self._of: Settings | None = None
        self._found: list[tuple[str, dict[str, Declared]]] = []
        self._merged: Settings | None = None

    def merged(self, settings: Settings, collections: Mapping[str, CollectionState]) -> Settings:
        """The settings with the declared versions beside the file's own, which come first where both have a name."""
        found = [(name, state.declared) for name, state in collections.items() if state.declared]
        if not found:
            return settings
        if self._merged is None or self._of is not settings or self._found != found:
            changed = {
                name: _with(settings, settings.collections[name], declared)
                for name, declared in found
                if name in settings.collections
            }
            self._merged = settings.model_copy(update={"collections": {**settings.collections, **changed}})
            self._of, self._found = settings, found
        return self._merged


def _with(settings: Settings, collection: Collection, declared: Mapping[str, Declared]) -> Collection:
    versions: dict[str, Version] = {}
    for name, one in declared.items():
        try:
            versions[name] = version_of(settings, one)
        except Refused as error:
            log.error("%s/%s is left out: %s", collection.name, name, error.message)
    return collection.model_copy(update={"versions": {**versions, **collection.versions}})
