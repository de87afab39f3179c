"""What a call may end with. All are CrossfadeErrors, so `except CrossfadeError` catches them too.

ClientError
├── Misconfigured         the address, the key or an argument; nothing was sent
├── Unreachable           nothing listens there, or no connection was made in time; nothing was sent
├── NoAnswer              it was sent, and no whole answer came: a verb may have been carried out
├── NotUnderstood         what came is no answer of Crossfade: no JSON, too large, a redirect, malformed events
├── NotActive             a space that was waited for failed, was deleted, or took too long
└── Answered              a problem answer (RFC 9457)
    ├── NotAdmitted       401, 403: no key, an unknown one, not its role; an endpoint that is not allowed
    ├── NotFound          404: no such collection, version or space
    ├── Refused           409: a rule forbids it now; `data` holds what was found
    ├── Unfit             400, 405, 408, 413, 422: the request does not fit; `errors` says where
    ├── TryLater          429, 503, 504: `retry_after_s` says when, where the server did
    └── Failed            everything else: the server, or what is behind it, is at fault

No message ever holds the key, a query or a document.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import JsonValue

from connectors.errors import CrossfadeError


@dataclass(frozen=True, slots=True)
class Wrong:
    """One thing that is wrong with a request: where, and what is wanted."""

    where: str
    problem: str


@dataclass(frozen=True, slots=True)
class Problem:
    """RFC 9457, as the server said it. `command_id`: of a verb that may still be carried out. `data`: what was
    found."""

    title: str
    status: int
    detail: str
    type: str = "about:blank"
    next_step: str = ""
    errors: Sequence[Wrong] = ()
    command_id: str | None = None
    data: Mapping[str, JsonValue] = field(default_factory=dict)


class ClientError(CrossfadeError):
    """Base of all. `idempotency_key`: under which a verb was sent; the same call with the same key is safe. `status`
    and `command_id` are of a problem answer, else None."""

    def __init__(
        self, detail: str, *, title: str = "", next_step: str = "", idempotency_key: str | None = None
    ) -> None:
        super().__init__(detail, next_step=next_step)
        self.title = title or detail
        self.detail = detail
        self.status: int | None = None
        self.command_id: str | None = None
        self.data: Mapping[str, JsonValue] = {}
        self.idempotency_key = idempotency_key

    def __reduce__(self) -> tuple[object, ...]:
        """For whoever asks in another process: as it is, not made again from its message alone."""
        return _as_it_was, (type(self), self.args), vars(self)


def _as_it_was(kind: type[ClientError], args: tuple[object, ...]) -> ClientError:
    return kind.__new__(kind, *args)


class Misconfigured(ClientError):
    """The address, the key or an argument cannot be used; nothing was sent."""


class Unreachable(ClientError):
    """Nothing answered the connection; the request was certainly not carried out."""


class NoAnswer(ClientError):
    """Sent, and no whole answer came: a verb may have been carried out, or may be later."""


class NotUnderstood(ClientError):
    """Something answered that is not Crossfade, or not one this client knows."""


class NotActive(ClientError):
    """The space did not become active."""


class Answered(ClientError):
    """A problem answer. `type`: its URN; `errors`: what is wrong with the request; `retry_after_s`: seconds, or
    None."""

    def __init__(
        self, problem: Problem, *, retry_after_s: float | None = None, idempotency_key: str | None = None
    ) -> None:
        super().__init__(
            problem.detail, title=problem.title, next_step=problem.next_step, idempotency_key=idempotency_key
        )
        self.status: int = problem.status
        self.type = problem.type
        self.command_id = problem.command_id
        self.data = problem.data
        self.errors = problem.errors
        self.retry_after_s = retry_after_s


class NotAdmitted(Answered):
    """No key, an unknown one, or not one that may do this."""


class NotFound(Answered):
    """The named thing does not exist."""


class Refused(Answered):
    """A rule forbids the step in this state."""


class Unfit(Answered):
    """The request does not fit."""


class TryLater(Answered):
    """The same call may succeed later."""


class Failed(Answered):
    """The server, or what is behind it, is at fault."""


_OF_STATUS: Mapping[int, type[Answered]] = {
    400: Unfit,
    401: NotAdmitted,
    403: NotAdmitted,
    404: NotFound,
    405: Unfit,
    408: Unfit,
    409: Refused,
    413: Unfit,
    422: Unfit,
    429: TryLater,
    503: TryLater,
    504: TryLater,
}


def error_of(problem: Problem, *, retry_after_s: float | None = None, idempotency_key: str | None = None) -> Answered:
    """The class that belongs to its status."""
    kind = _OF_STATUS.get(problem.status, Failed)
    return kind(problem, retry_after_s=retry_after_s, idempotency_key=idempotency_key)
