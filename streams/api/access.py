"""Who calls, and may they: keys by their hash, roles, and a rate for each key.

A key is hashed once for each request, compared in constant time, and never logged. Without configured keys everybody on
this machine may do all.
"""

from __future__ import annotations

import datetime
import hmac
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from streams.api.problems import Answered, problem
from streams.config_serve import ApiKey, Role, Serve, hash_of

ANYBODY = "anybody"
FOUND_KEY = "crossfade.key"
"""In the ASGI scope: the ApiKey of whoever asks, or None without configured keys."""
BURST_S = 5.0
"""A key may spend the requests of so many seconds at once."""

bearer = HTTPBearer(auto_error=False, description="A key of the configuration's section `serve`.")


@dataclass(frozen=True, slots=True)
class Caller:
    """`name`: of the key, for the journal."""

    name: str

    @property
    def who(self) -> str:
        return f"{self.name}@http"


@dataclass(slots=True)
class _Bucket:
    left: float
    at_s: float


class Access:
    """`serve` gives the newest configuration: a key that was taken out of it is refused from then on."""

    def __init__(
        self,
        serve: Callable[[], Serve],
        clock: Callable[[], float] = time.monotonic,
        today: Callable[[], datetime.date] = lambda: datetime.datetime.now(datetime.UTC).date(),
    ) -> None:
        self._serve = serve
        self._clock = clock
        self._today = today
        self._buckets: dict[str, _Bucket] = {}

    def known(self, token: str | None) -> ApiKey | None:
        """Whose token this is; None without configured keys. Raises Answered, 401, for no key or one that is not known
        or has expired. Costs the key nothing."""
        keys = self._serve().keys
        if not keys:
            return None
        if token is None:
            raise _unknown("no key was given", "send the header: Authorization: Bearer KEY")
        found = _find(keys, token)
        self._check(found)
        return found

    def admit(self, key: ApiKey | None, role: Role) -> Caller:
        """`key`: as `known` found it. Raises Answered: 401 when it does not count any more, 403 without the role, 429
        above the key's rate."""
        serve = self._serve()
        if not serve.keys:
            return Caller(ANYBODY)
        key = self._check(key)
        self._spend(key, key.requests_per_minute or serve.requests_per_minute)
        if role not in key.allowed:
            raise Answered(
                problem(
                    HTTPStatus.FORBIDDEN,
                    f"the key {key.name} has the roles {', '.join(key.roles)}, this wants {role}",
                    f"use a key with the role {role} (serve.keys)",
                    kind="wrong-role",
                    title="The key may not do this",
                )
            )
        return Caller(key.name)

    def counts(self, key: ApiKey | None) -> bool:
        """Whether whoever has this key is known here, now; everybody is where there are no keys."""
        try:
            return not self._serve().keys or self._check(key) is not None
        except Answered:
            return False

    def _check(self, key: ApiKey | None) -> ApiKey:
        """As it is configured now. Raises Answered as `known` does."""
        now = next((one for one in self._serve().keys if key is not None and one.hash == key.hash), None)
        if now is None:
            raise _unknown("this key is not known here", "ask who operates Crossfade for one (serve.keys)")
        if now.expires is not None and self._today() > now.expires:
            raise _unknown(f"the key {now.name} has expired on {now.expires}", "ask for a new one (serve.keys)")
        return now

    def _spend(self, key: ApiKey, per_minute: float) -> None:
        per_s, now_s = per_minute / 60, self._clock()
        most = max(1.0, per_s * BURST_S)
        bucket = self._buckets.setdefault(key.name, _Bucket(most, now_s))
        bucket.left = min(most, bucket.left + (now_s - bucket.at_s) * per_s)
        bucket.at_s = now_s
        if bucket.left < 1:
            wait_s = max(1, int((1 - bucket.left) / per_s + 1))
            raise Answered(
                problem(
                    HTTPStatus.TOO_MANY_REQUESTS,
                    f"the key {key.name} may ask {per_minute:g} times a minute",
                    f"ask again in {wait_s} s, or have requests_per_minute of the key raised",
                    kind="too-many-requests",
                ),
                {"Retry-After": str(wait_s)},
            )
        bucket.left -= 1


def _find(keys: Sequence[ApiKey], token: str) -> ApiKey | None:
    """Every key is compared, in constant time, whichever is right."""
    given = hash_of(token).encode()
    found = None
    for key in keys:
        if hmac.compare_digest(given, key.hash.encode()):
            found = key
    return found


def _unknown(detail: str, next_step: str) -> Answered:
    return Answered(
        problem(HTTPStatus.UNAUTHORIZED, detail, next_step, kind="unknown-caller", title="Who are you?"),
        {"WWW-Authenticate": "Bearer"},
    )


class Needs:
    """A dependency: the caller, once it is known that they have the role. Whose key it is was found before the body was
    read (streams.api.limits); the scheme stands here for the OpenAPI document alone."""

    def __init__(self, role: Role) -> None:
        self.role = role

    async def __call__(
        self, request: Request, _: Annotated[HTTPAuthorizationCredentials | None, Security(bearer)]
    ) -> Caller:
        access: Access = request.app.state.access
        return access.admit(request.scope[FOUND_KEY], self.role)


async def still_may(request: Request) -> Callable[[], bool]:
    """A dependency, for answers that last: whether the caller's key still counts."""
    access: Access = request.app.state.access
    key: ApiKey | None = request.scope[FOUND_KEY]
    return lambda: access.counts(key)


StillMay = Annotated[Callable[[], bool], Depends(still_may)]
Reader = Annotated[Caller, Depends(Needs("read"))]
Operator = Annotated[Caller, Depends(Needs("operate"))]
