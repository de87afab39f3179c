"""POST /collections/{collection}/search: one question, one route from beginning to end.

The question's text and vector are never logged, and never repeated in an error.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Body, Depends

from connectors import reserved
from connectors.errors import ConfigurationError
from streams.api.access import Needs, Reader
from streams.api.backend import Back, Backend, in_time
from streams.api.models import (
    CollectionName,
    RolloutAnswer,
    SearchAnswer,
    SearchHit,
    SearchRequest,
    TextSearch,
    VectorSearch,
)
from streams.api.problems import Answered, problem
from streams.search.answer import Placed
from streams.search.filters import conditions_of
from streams.search.rolling import compared, shown

routes = APIRouter(tags=["search"])


@routes.post("/collections/{collection}/search", dependencies=[Depends(Needs("search"))])
async def search(collection: CollectionName, asked: Annotated[SearchRequest, Body()], backend: Back) -> SearchAnswer:
    """The documents nearest to a query, each once, by its best chunk, best first.

    Without `vector_space` the route of the configuration is taken, or that of `mode`; it is decided once, so a swap
    meanwhile does not change the answer of a query that is under way. Documents of two spaces are in one answer only
    where the route says so, and their scores cannot be compared: the order counts.
    """
    serve = backend.settings.serve
    if asked.top_k > serve.max_results:
        raise _unfit(
            f"top_k is more than {serve.max_results}", f"ask for up to {serve.max_results} (serve.max_results)"
        )
    _check(backend, collection, asked)
    async with in_time(backend, "the model's endpoint or Weaviate"):
        found = await backend.router.search(
            collection,
            asked.query if isinstance(asked, TextSearch) else "",
            asked.top_k,
            asked.vector_space,
            mode=asked.mode if isinstance(asked, TextSearch) else None,
            caller=asked.caller if isinstance(asked, TextSearch) else None,
            filters=asked.filter,
            vector=asked.vector if isinstance(asked, VectorSearch) else None,
            fingerprint=asked.fingerprint if isinstance(asked, VectorSearch) else None,
        )
    return SearchAnswer(
        collection=found.collection,
        route=found.route,
        why=found.why,
        version=found.version,
        stage=found.stage.value,
        space=found.space,
        fingerprint=found.fingerprint,
        took_ms=round(found.took_ms, 3),
        hits=[_hit(hit) for hit in found.hits],
    )


@routes.get("/collections/{collection}/rollout")
async def rollout(collection: CollectionName, backend: Back, _: Reader) -> RolloutAnswer:
    """Where the progressive rollout of the version that comes stands, and how it agrees with the serving one in
    shadowed queries; with the figures of all servers together."""
    build, rules = backend.state.coming(collection), backend.current.collection(collection).routes.rollout
    if build is None:
        return RolloutAnswer(collection=collection, rollout=None, shadow=None)
    records = backend.progress.searches(collection)
    serving = backend.state.build(collection, backend.state.collection(collection).serving or "")
    return RolloutAnswer(
        collection=collection,
        rollout=shown(build, rules, records, backend.wall_ms()),
        shadow=compared(serving, build, records),
    )


def _check(backend: Backend, collection: str, asked: TextSearch | VectorSearch) -> None:
    """Raises Answered for a filter that the properties do not allow, and for a vector of another model than the
    space's."""
    backend.state.collection(collection)
    if asked.filter:
        declared = backend.current.collections.get(collection)
        try:
            conditions_of(asked.filter, declared.properties if declared is not None else {})
        except ConfigurationError as error:
            raise _unfit(error.message, error.next_step) from error
    if isinstance(asked, TextSearch):
        return
    route = backend.router.resolve(collection, asked.vector_space)
    if asked.fingerprint != route.fingerprint:
        raise _wrong_vector(
            f"the vector is of model {asked.fingerprint}, {collection}/{route.version} is of {route.fingerprint}",
            f"make it with the model of {route.version}, or name the vector_space whose model made it",
        )
    dims = route.encoder.envelope.dimensions
    if len(asked.vector) != dims:
        raise _wrong_vector(
            f"the vector has {len(asked.vector)} dimensions, the space has {dims}", f"send {dims} numbers"
        )
    with np.errstate(over="ignore", under="ignore"):
        vector = np.asarray(asked.vector, dtype=np.float32)
    if not np.isfinite(vector).all() or not vector.any():
        raise _wrong_vector("the vector is zero, or has numbers too large for 32 bits", "send what the model gave")


def _unfit(detail: str, next_step: str) -> Answered:
    return Answered(
        problem(HTTPStatus.UNPROCESSABLE_ENTITY, detail, next_step, kind="invalid", title="The request does not fit")
    )


def _wrong_vector(detail: str, next_step: str) -> Answered:
    return Answered(
        problem(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            detail,
            next_step,
            kind="wrong-vector",
            title="The vector does not belong to this space",
        )
    )


def _hit(hit: Placed) -> SearchHit:
    text = hit.properties.get(reserved.TEXT)
    return SearchHit.model_validate(
        {
            "id": hit.doc_id,
            "score": hit.score,
            "properties": {n: v for n, v in hit.properties.items() if not n.startswith(reserved.PREFIX)},
            "text": text if isinstance(text, str) else None,
            "chunk": hit.chunk,
            "space": hit.space,
            "fingerprint": hit.fingerprint,
        }
    )
