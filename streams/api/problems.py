"""Errors as RFC 9457 problem answers: one for each kind of the error tree, with the next step, never a stack trace.

An answer must never repeat what was sent: it may be a query, a document or a key.
"""

from __future__ import annotations

import logging
import math
import traceback
from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, JsonValue
from starlette.exceptions import HTTPException

from connectors.errors import (
    AccessDenied,
    ConfigurationError,
    ContentRejected,
    CrossfadeError,
    Fenced,
    IdentityChanged,
    NotFound,
    Refused,
    Terminal,
    Throttled,
    Transient,
    WrongModel,
)

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 3
MOST_ERRORS = 20

STATUS: Mapping[type[CrossfadeError], HTTPStatus] = {
    NotFound: HTTPStatus.NOT_FOUND,
    Refused: HTTPStatus.CONFLICT,
    Fenced: HTTPStatus.CONFLICT,
    IdentityChanged: HTTPStatus.CONFLICT,
    ContentRejected: HTTPStatus.UNPROCESSABLE_ENTITY,
    AccessDenied: HTTPStatus.BAD_GATEWAY,  # it is we whom the other side turned away
    WrongModel: HTTPStatus.BAD_GATEWAY,
    ConfigurationError: HTTPStatus.INTERNAL_SERVER_ERROR,
    Terminal: HTTPStatus.INTERNAL_SERVER_ERROR,
    Throttled: HTTPStatus.SERVICE_UNAVAILABLE,
    Transient: HTTPStatus.SERVICE_UNAVAILABLE,
}
"""Of each kind of error, or of the nearest one above it."""

TITLES = {
    "not-found": "There is no such thing",
    "refused": "A rule forbids this now",
    "fenced": "Somebody else has taken over",
    "identity-changed": "It is not what it was",
    "content-rejected": "The model cannot take this",
    "access-denied": "Kafka, Weaviate or an endpoint says no to Crossfade",
    "wrong-model": "The endpoint serves another model",
    "configuration-error": "The configuration is wrong",
    "throttled": "An endpoint asks to slow down",
    "transient": "Something does not answer now",
    "terminal": "It will fail again until somebody changes something",
}


class Wrong(BaseModel):
    """One thing that is wrong with a request: where, and what is wanted."""

    where: str
    problem: str


class Problem(BaseModel):
    """RFC 9457. `next_step`: what helps, often a command. `data`: what was found, as a refused cutover shows it."""

    type: str = "about:blank"
    title: str
    status: Annotated[int, Field(ge=400, le=599)]
    detail: str
    next_step: str = ""
    errors: list[Wrong] | None = None
    command_id: str | None = None
    data: dict[str, JsonValue] | None = None


class Answered(Exception):
    """Ends a request with this problem."""

    def __init__(self, problem: Problem, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(problem.title)
        self.problem = problem
        self.headers = dict(headers or {})


def problem(
    status: HTTPStatus, detail: str, next_step: str = "", *, kind: str = "", title: str = "", **more: object
) -> Problem:
    """`kind`: the last part of its type; without one the type is that of the status alone."""
    return Problem.model_validate(
        {
            "type": f"urn:crossfade:problem:{kind}" if kind else "about:blank",
            "title": title or TITLES.get(kind, status.phrase),
            "status": int(status),
            "detail": detail,
            "next_step": next_step,
            **more,
        }
    )


def kind_of(error: CrossfadeError) -> tuple[str, HTTPStatus]:
    """The nearest class of the tree that has a status: its name with dashes, and the status."""
    found = next(cls for cls in type(error).__mro__ if cls in STATUS or cls is CrossfadeError)
    status = STATUS.get(found, HTTPStatus.INTERNAL_SERVER_ERROR)
    return "".join(f"-{c.lower()}" if c.isupper() else c for c in found.__name__).strip("-"), status


def problem_of(error: CrossfadeError, command_id: str | None = None) -> tuple[Problem, dict[str, str]]:
    """With the headers that belong to it."""
    kind, status = kind_of(error)
    headers = {}
    if isinstance(error, Transient):
        headers["Retry-After"] = str(math.ceil(error.retry_after_s or RETRY_AFTER_S))
    return problem(status, error.message, error.next_step, kind=kind, command_id=command_id), headers


def answer(found: Problem, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse(
        found.model_dump(mode="json", exclude_none=True),
        status_code=found.status,
        media_type=MEDIA_TYPE,
        headers=dict(headers or {}),
    )


def handle_all(app: FastAPI) -> None:
    """Every error of a request becomes a problem answer."""

    @app.exception_handler(Answered)
    async def answered(_: Request, error: Answered) -> JSONResponse:
        return answer(error.problem, error.headers)

    @app.exception_handler(CrossfadeError)
    async def known(_: Request, error: CrossfadeError) -> JSONResponse:
        return answer(*problem_of(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        wrong = [
            Wrong(where=".".join(str(part)[:80] for part in item["loc"][:8]), problem=str(item["msg"])[:200])
            for item in error.errors()[:MOST_ERRORS]
        ]
        said = "; ".join(f"{one.where}: {one.problem}" for one in wrong[:3])
        return answer(
            problem(
                HTTPStatus.UNPROCESSABLE_ENTITY,
                f"the request does not fit: {said}",
                "see /openapi.json for what is wanted",
                kind="invalid",
                title="The request does not fit",
                errors=wrong,
            )
        )

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        status = HTTPStatus(error.status_code)
        return answer(problem(status, status.description or status.phrase, "see /openapi.json"), error.headers)


def defect(error: Exception) -> Problem:
    """For what nobody foresaw. The log says where, without the error's own words: they may hold a query."""
    where = "".join(traceback.format_tb(error.__traceback__))
    log.error("a request failed by a defect, %s:\n%s", type(error).__name__, where)
    return problem(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "this is a defect of Crossfade, and its log says where",
        "look at the log of `crossfade serve`",
        kind="defect",
        title="It failed by a defect",
    )
