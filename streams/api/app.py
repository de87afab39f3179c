"""The FastAPI app: routes, limits and problem answers put together, and what says whether it is well.

It opens nothing: what it answers from is handed in.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from http import HTTPStatus
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel

from streams.api import examining, reading, searching, spaces, verbs
from streams.api.access import Access
from streams.api.backend import Opened, reason_of
from streams.api.limits import Limits
from streams.api.problems import MEDIA_TYPE, Problem, handle_all
from streams.config_serve import Serve

EVERYWHERE = (400, 401, 403, 404, 405, 408, 409, 413, 422, 429, 500, 502, 503, 504)


class Away(BaseModel):
    """What does not answer, why (no more of it than anybody may know), and since when (milliseconds since 1970)."""

    name: str
    reason: str
    since_ms: int


class Health(BaseModel):
    """`state`: `none` until it was read once, `current`, or `last known` while Kafka is away or the state is being read
    again. `status`: ok, degraded (what is `away` is missed, the rest goes on) or starting."""

    status: str
    state: str
    away: list[Away]


def make_app(opened: Opened, serve: Callable[[], Serve]) -> FastAPI:
    """`serve`: the newest configuration."""
    app = _App(
        title="Crossfade",
        summary="Search while the model changes, and the remote control of a migration.",
        version=version("crossfade"),
        docs_url=None,  # they would load scripts from elsewhere
        redoc_url=None,
        responses={status: {"model": Problem, "description": HTTPStatus(status).phrase} for status in EVERYWHERE},
        generate_unique_id_function=_name_of,
        redirect_slashes=False,
    )
    app.state.opened = opened
    app.state.access = access = Access(serve)
    handle_all(app)

    @app.get("/healthz", tags=["health"])
    async def healthz() -> Health:
        """Whether this process works; 200 as long as it does."""
        return _health(opened)

    @app.get("/readyz", tags=["health"], responses={503: {"model": Health, "description": "Not yet, or not now"}})
    async def readyz(response: Response) -> Health:
        """Whether it can answer searches: the state is known, and Weaviate answers. While Kafka is away, or the state
        is read again, it can, from the last known state, and says so."""
        health = _health(opened)
        if opened.backend is None or "weaviate" in opened.backend.health.away:
            response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
        return health

    for part in (searching, spaces, verbs, examining, reading):
        app.include_router(part.routes)
    app.add_middleware(Limits, serve=serve, access=access)
    return app


def _health(opened: Opened) -> Health:
    if opened.backend is None:
        now_ms = time.time_ns() // 1_000_000
        reason = reason_of(opened.error) if opened.error is not None else "it has just been started"
        return Health(status="starting", state="none", away=[Away(name="state", reason=reason, since_ms=now_ms)])
    health = opened.backend.health
    away = [Away(name=n, reason=reason, since_ms=health.since_ms[n]) for n, reason in sorted(health.away.items())]
    current = not {"kafka", "state"} & health.away.keys()
    return Health(status="degraded" if away else "ok", state="current" if current else "last known", away=away)


def _name_of(route: APIRoute) -> str:
    return route.name.strip("_")


class _App(FastAPI):
    """Its OpenAPI document says of problem answers that they are problem answers."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            document = super().openapi()
            for operation in (operation for path in document["paths"].values() for operation in path.values()):
                for response in operation["responses"].values():
                    shown = response.get("content", {}).get("application/json", {}).get("schema", {}).get("$ref", "")
                    if shown.endswith("/Problem"):
                        response["content"] = {MEDIA_TYPE: response["content"]["application/json"]}
        assert self.openapi_schema is not None
        return self.openapi_schema
