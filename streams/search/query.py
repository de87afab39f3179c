"""What is asked of a search, checked before any model or space sees it.

Pure: it must never show a query, a vector or a value of a filter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np

from connectors.errors import ConfigurationError
from connectors.protocols import JSON, Condition, Vectors
from streams.config import Collection
from streams.config_operation import RouteName
from streams.search.filters import conditions_of

MOST_HITS = 1000
MODES: tuple[RouteName, ...] = get_args(RouteName)


@dataclass(frozen=True, slots=True)
class Query:
    """What every space that is asked has to answer. `vector`: of the model `fingerprint`, or the text is encoded."""

    collection: str
    text: str
    limit: int
    conditions: tuple[Condition, ...] = ()
    vector: Vectors | None = None
    fingerprint: str = ""


def query_of(
    settings: Collection,
    collection: str,
    text: str,
    limit: int,
    filters: Mapping[str, JSON] | None,
    vector: Sequence[float] | Vectors | None,
    fingerprint: str | None,
) -> Query:
    """Raises ConfigurationError for what cannot be asked."""
    if not 1 <= limit <= MOST_HITS:
        raise ConfigurationError(f"a limit of {limit} documents", next_step=f"ask for 1 to {MOST_HITS}")
    conditions = conditions_of(filters, settings.properties) if filters else ()
    if vector is None:
        if fingerprint is not None:
            raise ConfigurationError("a fingerprint without a vector", next_step="send the vector, or the query alone")
        return Query(collection, text, limit, conditions)
    if text or fingerprint is None:
        raise ConfigurationError(
            "a vector beside a query" if text else "a vector without the fingerprint of its model",
            next_step="send the query as text, or its vector with the fingerprint of the model that made it",
        )
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, and the space refuses it
        given = np.asarray(vector, np.float32)
    return Query(collection, "", limit, conditions, given, fingerprint)


def mode_of(mode: str | None, version: str | None, question: Query) -> RouteName | None:
    """Raises ConfigurationError for a mode that is none, or that says something else than the rest of the question."""
    wanted = next((known for known in MODES if known == mode), None)
    if mode is not None and wanted is None:
        raise ConfigurationError(f"there is no mode {mode[:100]!r}", next_step=f"use one of {', '.join(MODES)}")
    if mode is not None and version is not None:
        raise ConfigurationError("a mode beside a named version", next_step="leave one of them out")
    if question.vector is not None:
        if wanted not in (None, "serving"):
            raise ConfigurationError(
                f"mode {wanted} may ask two models, a vector is of one",
                next_step="send the query as text, or leave the mode out",
            )
        return "serving"
    return wanted
