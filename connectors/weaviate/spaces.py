"""Spaces and aliases of one Weaviate server.

It must never delete or describe through an alias, nor move an alias in more than one request.
"""

from __future__ import annotations

from collections.abc import Mapping

from connectors import reserved
from connectors.errors import ConfigurationError, NotFound, Refused
from connectors.protocols import SpaceSpec
from connectors.weaviate.client import Connection, open_connection
from connectors.weaviate.schema import config_of, create, shape_of
from connectors.weaviate.settings import WeaviateSettings
from connectors.weaviate.writer import WeaviateSpace


class WeaviateStore:
    """A `VectorStore`. Open it with `open_store`, close it once."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._client = connection.client

    async def create_space(self, spec: SpaceSpec) -> None:
        """Raises ConfigurationError for a name, metric, quantization or property type that cannot be."""
        reserved.check_spec(spec)
        try:
            await create(self._connection, spec)
        except ConfigurationError as error:
            if await self.alias_target(spec.name) is not None:
                raise Refused(f"{spec.name} is the name of an alias", next_step="name the space otherwise") from error
            existing = await self.description(spec.name)
            if existing is None:
                raise
            if existing != spec.description:
                raise Refused(
                    f"a space {spec.name} exists with another description",
                    next_step="start a new build of the version: it gets a name of its own",
                ) from error

    async def description(self, name: str) -> str | None:
        config = await config_of(self._connection, name)
        return None if config is None else config.description or ""

    async def properties(self, name: str) -> Mapping[str, str]:
        config = await config_of(self._connection, name)
        if config is None:
            raise reserved.gone(name)
        return {n: kind for n, kind in shape_of(config).types.items() if n not in reserved.TYPES}

    async def drop_space(self, name: str) -> None:
        """An alias of this name is left alone, and so is one that points to the space: it then leads nowhere."""
        await self._connection.rest(self._client.collections.delete(name), write=True)

    async def spaces(self) -> list[str]:
        return sorted(await self._connection.rest(self._client.collections.list_all(), write=False))

    def space(self, name: str) -> WeaviateSpace:
        reserved.check_name(name)
        return WeaviateSpace(self._connection, name)

    async def alias_target(self, alias: str) -> str | None:
        found = await self._connection.rest(self._client.alias.get(alias_name=alias), write=False)
        return found.collection if found else None

    async def point_alias(self, alias: str, space: str) -> None:
        """One request: readers see the old target or the new one, never none. Raises Refused for a space's name."""
        reserved.check_name(alias)
        try:
            if await self._connection.rest(
                self._client.alias.update(alias_name=alias, new_target_collection=space), write=True
            ):
                return
            if await self.description(alias) is not None:
                raise Refused(f"{alias} is the name of a space", next_step="choose another name for the alias")
            await self._connection.rest(
                self._client.alias.create(alias_name=alias, target_collection=space), write=True
            )
        except ConfigurationError as error:
            if await self.description(space) is None:
                raise NotFound(
                    f"the space {space} does not exist", next_step="`crossfade status` lists the spaces there are"
                ) from error
            raise

    async def drop_alias(self, alias: str) -> None:
        await self._connection.rest(self._client.alias.delete(alias_name=alias), write=True)

    async def close(self) -> None:
        await self._connection.close()


async def open_store(settings: WeaviateSettings) -> WeaviateStore:
    """Raises Unreachable, AccessDenied, or ConfigurationError (a server too old, an address that is wrong)."""
    return WeaviateStore(await open_connection(settings))
