"""The shape of a space in Weaviate's terms: what it is created with, and the same read back from the server.

It must never leave a choice to the server's defaults that could change what is stored or found.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from weaviate.classes.config import Configure, DataType, Property, Tokenization, VectorDistances
from weaviate.outputs.config import CollectionConfig, VectorIndexConfigHNSW

from connectors import reserved
from connectors.errors import ConfigurationError, NotFound
from connectors.protocols import SpaceSpec
from connectors.weaviate.client import Connection

VECTOR: Final = "default"
"""Name of the one vector of an object. Under a name it is kept bit-exact, also with the cosine metric."""

_DATA_TYPES: Final[Mapping[str, DataType]] = {
    "text": DataType.TEXT,
    "keyword": DataType.TEXT,
    "int": DataType.INT,
    "number": DataType.NUMBER,
    "bool": DataType.BOOL,
    "date": DataType.DATE,
}
_DISTANCES: Final[Mapping[str, VectorDistances]] = {
    "cosine": VectorDistances.COSINE,
    "dot": VectorDistances.DOT,
    "l2-squared": VectorDistances.L2_SQUARED,
}
# Weaviate learns the vector length from the first object, so an empty space would take any: ours is written down here.
_DIMENSIONS_NOTE: Final = "model version of the vectors; dimensions={}"
_DIMENSIONS: Final = re.compile(r"dimensions=(\d+)")


@dataclass(frozen=True, slots=True)
class Shape:
    """What a space was created with. `types`: of the reserved and the user's properties."""

    metric: str
    dimensions: int
    types: Mapping[str, str]

    @property
    def shown(self) -> tuple[str, ...]:
        """The properties a search result carries."""
        return tuple(n for n in self.types if n in reserved.SHOWN or not n.startswith(reserved.PREFIX))


def properties_of(spec: SpaceSpec) -> list[Property]:
    """Reserved properties first. Of these only what Crossfade filters on has an index; the user's have all.

    The document's text (cf_text) has no keyword index: measured, that index makes a write of 256 chunks of 220 words
    take 210 ms of the server's time instead of 85.
    """
    reserved_properties = [
        _property(name, kind, filterable=name in {reserved.DOC_HASH, reserved.CHUNK}, dimensions=spec.dimensions)
        for name, kind in reserved.TYPES.items()
    ]
    return reserved_properties + [_property(name, kind) for name, kind in spec.properties.items()]


def _property(name: str, kind: str, *, filterable: bool = True, dimensions: int = 0) -> Property:
    is_text = _DATA_TYPES[kind] is DataType.TEXT
    tokenization = Tokenization.FIELD if kind == "keyword" else Tokenization.WORD
    return Property(
        name=name,
        data_type=_DATA_TYPES[kind],
        description=_DIMENSIONS_NOTE.format(dimensions) if name == reserved.SPACE else None,
        tokenization=tokenization if is_text else None,
        index_filterable=filterable,
        index_searchable=(kind == "text" and name != reserved.TEXT) if is_text else None,
    )


async def create(connection: Connection, spec: SpaceSpec) -> None:
    """One vector of our own per object, HNSW, with exactly the metric and the quantization asked for."""
    quantizer = Configure.VectorIndex.Quantizer
    quantizers = {
        "none": quantizer.none(),  # said aloud: servers have a default quantization of their own
        "sq": quantizer.sq(),
        "bq": quantizer.bq(),
        "rq": quantizer.rq(),
        "pq": quantizer.pq(),
    }
    vector = Configure.Vectors.self_provided(
        name=VECTOR,
        quantizer=quantizers[spec.quantization],
        vector_index_config=Configure.VectorIndex.hnsw(distance_metric=_DISTANCES[spec.metric]),
    )
    collections = connection.client.collections
    await connection.rest(
        collections.create(
            spec.name, description=spec.description, properties=properties_of(spec), vector_config=vector
        ),
        write=True,
    )


async def config_of(connection: Connection, name: str) -> CollectionConfig | None:
    """The server's record of the space with exactly this name (not of an alias), or None."""
    try:
        config = await connection.rest(connection.client.collections.export_config(name), write=False)
    except NotFound:
        return None
    return config if config.name == name else None


def shape_of(config: CollectionConfig) -> Shape:
    """Raises ConfigurationError for a collection that `create` did not make."""
    types: dict[str, str] = {}
    dimensions: int | None = None
    for prop in config.properties:
        kind = {"boolean": "bool"}.get(prop.data_type.value, prop.data_type.value)
        types[prop.name] = "keyword" if kind == "text" and prop.tokenization is Tokenization.FIELD else kind
        if prop.name == reserved.SPACE and (found := _DIMENSIONS.search(prop.description or "")):
            dimensions = int(found[1])
    vectors = config.vector_config or {}
    index = vectors[VECTOR].vector_index_config if VECTOR in vectors else None
    if dimensions is None or not isinstance(index, VectorIndexConfigHNSW):
        raise ConfigurationError(
            f"the collection {config.name} is not a space of Crossfade",
            next_step="give the collection in the configuration a name that nobody else uses",
        )
    return Shape(index.distance_metric.value, dimensions, types)
