"""Every call there is: its arguments checked and written as a request, and what its answer is.

Nothing is sent here. A call that changes something gets its Idempotency-Key here, once, and keeps it however often it
is sent; who gives a key of their own may repeat the call even from another process.
"""

from __future__ import annotations

import math
import re
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import JsonValue, TypeAdapter

from streams.client.answers import (
    Collection,
    Collections,
    Evaluated,
    Health,
    History,
    Objects,
    Outcome,
    RolloutAnswer,
    SearchAnswer,
    SpaceStatus,
    Swept,
    VectorSpace,
    VectorSpaces,
    Version,
    reader_of,
)
from streams.client.errors import ClientError, Misconfigured, NoAnswer, NotActive, TryLater, Unreachable
from streams.client.exchange import Asked, Broken, Call, Flow, Reply, Wait, refusal
from streams.client.settings import Settings

Mode = Literal["serving", "hybrid", "rollout", "bridge"]
_COLLECTION = re.compile(r"[a-z0-9_][a-z0-9_-]{0,47}")
_VERSION = re.compile(r"[a-z0-9_]{1,48}")
_KEY = re.compile(r"[A-Za-z0-9_.:-]{1,100}")
_JSON_OBJECT: TypeAdapter[dict[str, JsonValue]] = TypeAdapter(dict[str, JsonValue])
_AWAY_S = 60.0
"""So long a server may be away while something is waited for: longer than a restart of it."""


# search


def search(
    collection: str,
    query: str | None = None,
    *,
    top_k: int = 10,
    filter: Mapping[str, JsonValue] | None = None,  # noqa: A002  as the interface calls it
    vector_space: str | None = None,
    mode: Mode | None = None,
    caller: str | None = None,
    vector: Iterable[float] | None = None,
    fingerprint: str | None = None,
) -> Call[SearchAnswer]:
    """The documents nearest to a query, each once, best first.

    `query`, or `vector` with the `fingerprint` of the model that made it. `filter`: over declared properties, such as
    {"lang": "en", "year": {"gte": 1990}, "kind": ["a", "b"]}. `vector_space`: another one than the default, to try it
    before the swap; or `mode`: another route than the configured one. `caller`: who asks, the same for the same one, by
    which a progressive rollout goes.
    """
    if (query is None) == (vector is None):
        raise Misconfigured("a search has either a query or a vector", next_step="give one of the two")
    body: dict[str, JsonValue] = {"top_k": top_k}
    if query is not None:
        body["query"] = query
    if vector is not None:
        numbers = [float(number) for number in vector]
        if not all(map(math.isfinite, numbers)):
            raise Misconfigured("the vector has numbers that are not finite", next_step="give what the model gave")
        body["vector"] = [*numbers]
    if filter is not None:
        body["filter"] = dict(filter)
    given = {"vector_space": vector_space, "mode": mode, "caller": caller, "fingerprint": fingerprint}
    body |= {name: value for name, value in given.items() if value is not None}
    return Call("POST", f"{_of(collection)}/search", reader_of(SearchAnswer), body=body, only_reads=True)


def rollout(collection: str) -> Call[RolloutAnswer]:
    """Where the progressive rollout of the version that comes stands, and how it agrees with the serving one."""
    return Call("GET", f"{_of(collection)}/rollout", reader_of(RolloutAnswer), only_reads=True)


def raise_rollout(collection: str, *, why: str = "", idempotency_key: str | None = None) -> Call[Outcome]:
    """Let the version that comes answer the next larger share of the callers, also after a failed bound."""
    return _verb(f"{_of(collection)}/rollout", "raise", {}, why, idempotency_key)


def end_rollout(collection: str, *, why: str = "", idempotency_key: str | None = None) -> Call[Outcome]:
    """Back to nobody, until somebody raises it or the configuration says another share."""
    return _verb(f"{_of(collection)}/rollout", "end", {}, why, idempotency_key)


# vector spaces


def vector_spaces(collection: str) -> Call[VectorSpaces]:
    """Every vector space there is or was, oldest first, and which one is the default."""
    return Call("GET", f"{_of(collection)}/vector-spaces", reader_of(VectorSpaces), only_reads=True)


def vector_space(collection: str, space: str) -> Call[VectorSpace]:
    """One vector space."""
    return Call("GET", _space(collection, space), reader_of(VectorSpace), only_reads=True)


def vector_space_status(collection: str, space: str) -> Call[SpaceStatus]:
    """How far it is: `building`, then `active`, when every document of the topic is in it."""
    return Call("GET", f"{_space(collection, space)}/status", reader_of(SpaceStatus), only_reads=True)


def add_vector_space(
    collection: str, name: str, *, dims: int, model: str, idempotency_key: str | None = None
) -> Call[VectorSpace]:
    """Add a vector space beside the default one, and begin to fill it from the topic. `name`: of a version in the
    configuration, with `dims` and `model` as there; or a new one, whose model one of `embed_endpoints` serves."""
    body: dict[str, JsonValue] = {"name": name, "dims": dims, "model": model}
    path = f"{_of(collection)}/vector-spaces"
    return Call("POST", path, reader_of(VectorSpace), body=body, key=_key(idempotency_key))


def rebuild_vector_space(
    collection: str, space: str, *, embed_endpoint: str, idempotency_key: str | None = None
) -> Call[SpaceStatus]:
    """Fill the space from the topic again after it was deleted or given up, or let it go on after a pause or a failure.
    `embed_endpoint`: one of the configuration."""
    return Call(
        "POST",
        f"{_space(collection, space)}/rebuild",
        reader_of(SpaceStatus),
        body={"embed_endpoint": embed_endpoint},
        key=_key(idempotency_key),
    )


def set_default_vector_space(collection: str, name: str, *, idempotency_key: str | None = None) -> Call[Outcome]:
    """Move searches to this space, in one step: forward a cutover, swept and judged first; with the name of the space
    that served before, the rollback. Look at `pending` of the outcome, and then at `verified`."""
    path = f"{_of(collection)}/default-vector-space"
    return Call("PUT", path, reader_of(Outcome), body={"name": name}, key=_key(idempotency_key), long=True)


def delete_vector_space(collection: str, space: str, *, idempotency_key: str | None = None) -> Call[Outcome]:
    """Delete a vector space for good, with everything in it. Refused for the default one."""
    return Call("DELETE", _space(collection, space), reader_of(Outcome), key=_key(idempotency_key))


@dataclass(frozen=True, slots=True)
class Activation:
    """A space that is waited for. `timeout_s`: None waits as long as it takes."""

    collection: str
    space: str
    timeout_s: float | None
    poll_s: float
    clock: Callable[[], float] = time.monotonic

    def flow(self, settings: Settings) -> Flow[VectorSpace]:
        asked = vector_space(self.collection, self.space)
        began_s = answered_s = self.clock()
        found: VectorSpace | None = None
        while True:
            pause_s = self.poll_s
            try:
                found = yield from asked.flow(settings)
                answered_s = self.clock()
            except (Unreachable, NoAnswer, TryLater) as error:
                if self.clock() - answered_s > _AWAY_S:
                    raise
                if isinstance(error, TryLater) and error.retry_after_s is not None:
                    pause_s = max(pause_s, error.retry_after_s)
            if found is not None and found.status == "active":
                return found
            self._look(found, self.clock() - began_s)
            yield Wait(pause_s)

    def _look(self, found: VectorSpace | None, waited_s: float) -> None:
        """Raises NotActive when there is no use in waiting on."""
        named = f"{self.collection}/{self.space}"
        if found is not None and found.status == "failed":
            raise NotActive(
                f"{named} stopped: {found.note or 'no cause is known'}",
                next_step=f"remove the cause, then `crossfade resume {self.collection} {self.space}`",
            )
        if found is not None and found.status == "deleted":
            raise NotActive(f"{named} was deleted", next_step="rebuild_vector_space begins it again")
        if self.timeout_s is not None and waited_s > self.timeout_s:
            stands = f"{found.status}, {found.progress:.0%}" if found is not None else "without an answer"
            raise NotActive(
                f"{named} is not active after {self.timeout_s:g} s: {stands}",
                next_step=f"wait longer, or look at `crossfade status {self.collection} {self.space}`",
            )


def wait_until_active(
    collection: str, space: str, *, timeout_s: float | None = None, poll_s: float = 1.0
) -> Asked[VectorSpace]:
    """The vector space, once it is active. Raises NotActive when it failed, was deleted, or is not active after
    `timeout_s`; a paused one is waited for, and so is a server that is away for less than a minute."""
    _space(collection, space)
    if not 0 < poll_s <= 3600:
        raise Misconfigured(f"poll_s is {poll_s}", next_step="give seconds above 0 and up to 3,600")
    return Activation(collection, space, timeout_s, poll_s)


# what stands


def collections() -> Call[Collections]:
    """Every collection, what serves in it, and its versions."""
    return Call("GET", "/collections", reader_of(Collections), only_reads=True)


def collection(collection: str) -> Call[Collection]:
    """One collection."""
    return Call("GET", _of(collection), reader_of(Collection), only_reads=True)


def version(collection: str, version: str) -> Call[Version]:
    """One version: stage, progress, rate, ETA, lag, spend."""
    return Call("GET", _version(collection, version), reader_of(Version), only_reads=True)


def progress(collection: str, version: str) -> Call[Version]:
    """The same as a stream of events."""
    return Call("GET", f"{_version(collection, version)}/events", reader_of(Version), only_reads=True)


def history(collection: str, *, version: str | None = None, limit: int = 100, before: str = "") -> Call[History]:
    """Who did what to a collection, when and why, and what came of it: the newest `limit` entries, oldest first.
    `before`: `older` of the page after it."""
    given = {"limit": str(limit), "version": version, "before": before}
    params = {name: value for name, value in given.items() if value}
    return Call("GET", f"{_of(collection)}/history", reader_of(History), params=params, only_reads=True)


@dataclass(frozen=True, slots=True)
class Readiness:
    """Asked once, whatever comes of it: that it is not ready is an answer."""

    def flow(self, settings: Settings) -> Flow[bool]:
        call = Call("GET", "/readyz", reader_of(Health), only_reads=True)
        came = yield call.sending(settings)
        if isinstance(came, Broken):
            if isinstance(came.error, Unreachable | NoAnswer):
                return False
            raise came.error
        assert isinstance(came, Reply)
        if came.status in (200, 429, 502, 503, 504):
            return came.status == 200
        raise refusal(came, settings, "GET /readyz")


def health() -> Call[Health]:
    """Whether the process works, and what is away."""
    return Call("GET", "/healthz", reader_of(Health), only_reads=True)


def ready() -> Asked[bool]:
    """Whether the process can answer searches now; False also when nothing answers. Never raises for that."""
    return Readiness()


# verbs


def start(
    collection: str,
    version: str,
    *,
    replay_rate: float | None = None,
    why: str = "",
    idempotency_key: str | None = None,
) -> Call[Outcome]:
    """Begin building a version. `replay_rate`: documents a second."""
    body: dict[str, JsonValue] = {"replay_rate": replay_rate} if replay_rate is not None else {}
    return _verb(_version(collection, version), "start", body, why, idempotency_key)


def pause(
    collection: str,
    version: str,
    *,
    all: bool = False,  # noqa: A002  as the interface calls it
    why: str = "",
    idempotency_key: str | None = None,
) -> Call[Outcome]:
    """Hold the replay until `resume`. `all`: live writes too; the space then falls behind the log."""
    return _verb(_version(collection, version), "pause", {"all": all}, why, idempotency_key)


def resume(collection: str, version: str, *, why: str = "", idempotency_key: str | None = None) -> Call[Outcome]:
    """Let a version go on after `pause`, or after it stopped for a cause that has been removed."""
    return _verb(_version(collection, version), "resume", {}, why, idempotency_key)


def set_(
    collection: str,
    version: str,
    changes: Mapping[str, JsonValue],
    *,
    why: str = "",
    idempotency_key: str | None = None,
) -> Call[Outcome]:
    """Change a build while it runs: `replay_rate`, `budget_usd`, `concurrency`, `tiers`, and the throttle's bounds;
    None goes back to no limit, or to what is configured."""
    return _verb(_version(collection, version), "set", {"changes": dict(changes)}, why, idempotency_key)


def abort(
    collection: str, version: str, *, confirm: str, why: str = "", idempotency_key: str | None = None
) -> Call[Outcome]:
    """Give up a build and delete its space. `confirm`: the version's name again."""
    return _verb(_version(collection, version), "abort", {"confirm": confirm}, why, idempotency_key)


def retire(
    collection: str, version: str, *, confirm: str, why: str = "", idempotency_key: str | None = None
) -> Call[Outcome]:
    """Stop writing a version and delete its space; nothing can go back to it. `confirm`: the version's name again."""
    return _verb(_version(collection, version), "retire", {"confirm": confirm}, why, idempotency_key)


def cutover(
    collection: str,
    version: str,
    *,
    check: bool = False,
    approve: bool = False,
    cancel: bool = False,
    force: str | None = None,
    accept_inconclusive: str | None = None,
    accept_held: Sequence[str] = (),
    accept_lost: int | None = None,
    why: str = "",
    idempotency_key: str | None = None,
) -> Call[Outcome]:
    """Move search to a version, atomically, once a sweep has found its space equal to the log and the gate lets it
    pass. `check` only reports. `force`, `accept_inconclusive`: the reason, in words. `accept_held`: keys of dead
    letters. `accept_lost`: how many documents that only the serving space has may be given up."""
    flags = {"check": check, "approve": approve, "cancel": cancel}
    body: dict[str, JsonValue] = {name: True for name, given in flags.items() if given}
    accepted: dict[str, JsonValue] = {
        "force": force,
        "accept_inconclusive": accept_inconclusive,
        "accept_lost": accept_lost,
    }
    body |= {name: value for name, value in accepted.items() if value is not None}
    if accept_held:
        body["accept_held"] = [*accept_held]
    return _verb(_version(collection, version), "cutover", body, why, idempotency_key, long=True)


def rollback(
    collection: str,
    *,
    from_version: str | None = None,
    accept_lag: bool = False,
    max_lag: int | None = None,
    why: str = "",
    idempotency_key: str | None = None,
) -> Call[Outcome]:
    """Move search back to the previous version. `from_version`: what serves now and shall not any more; wanted when the
    last swap was a rollback itself. `max_lag`: records."""
    body: dict[str, JsonValue] = {"accept_lag": True} if accept_lag else {}
    given: dict[str, JsonValue] = {"from_version": from_version, "max_lag": max_lag}
    body |= {name: value for name, value in given.items() if value is not None}
    return _verb(_of(collection), "rollback", body, why, idempotency_key)


def redrive(collection: str, version: str, *, why: str = "", idempotency_key: str | None = None) -> Call[Outcome]:
    """Apply a version's dead letters again, each at its own offset, unless its document has a newer record."""
    return _verb(_version(collection, version), "redrive", {}, why, idempotency_key, long=True)


def verify(collection: str, version: str, *, repair: bool = False, idempotency_key: str | None = None) -> Call[Swept]:
    """Compare the whole space with the log, both ways. `repair`: have the workers mend what differs first."""
    path = f"{_version(collection, version)}/verify"
    body: dict[str, JsonValue] = {"repair": repair}
    return Call("POST", path, reader_of(Swept), body=body, key=_key(idempotency_key), long=True)


def plan(collection: str, version: str, *, sample: int | None = 2_000) -> Call[Objects]:
    """What building a version will take, as `crossfade plan --json`. `sample`: documents whose tokens are counted; None
    for all of them."""
    path = f"{_version(collection, version)}/plan"
    return Call("POST", path, _JSON_OBJECT.validate_json, body={"sample": sample}, only_reads=True, long=True)


def evaluate(collection: str, version: str, *, k: int | None = None, against: str | None = None) -> Call[Evaluated]:
    """Is it good enough to serve? `k`: how many documents count; `against`: another version than the serving one."""
    given: dict[str, JsonValue] = {"k": k, "against": against}
    body = {name: value for name, value in given.items() if value is not None}
    path = f"{_version(collection, version)}/evaluate"
    return Call("POST", path, reader_of(Evaluated), body=body, only_reads=True, long=True)


def _verb(
    below: str, verb: str, body: Mapping[str, JsonValue], why: str, key: str | None, *, long: bool = False
) -> Call[Outcome]:
    told: dict[str, JsonValue] = {**body, **({"why": why} if why else {})}
    return Call("POST", f"{below}/{verb}", reader_of(Outcome), body=told, key=_key(key), long=long)


def _key(given: str | None) -> str:
    if given is None:
        return str(uuid.uuid4())
    if not _KEY.fullmatch(given):
        raise Misconfigured(
            "the idempotency_key is none", next_step="give up to 100 letters, digits, or any of _ . : -"
        )
    return given


def _of(collection: str) -> str:
    if not _COLLECTION.fullmatch(collection):
        raise _no_name("collection")
    return f"/collections/{collection}"


def _version(collection: str, version: str) -> str:
    if not _VERSION.fullmatch(version):
        raise _no_name("version")
    return f"{_of(collection)}/versions/{version}"


def _space(collection: str, space: str) -> str:
    if not _VERSION.fullmatch(space):
        raise _no_name("vector space")
    return f"{_of(collection)}/vector-spaces/{space}"


def _no_name(what: str) -> ClientError:
    return Misconfigured(  # without showing it: somebody may have mixed it up with a query
        f"the {what} given has no such name", next_step="give its name of the configuration: a-z, 0-9 and _"
    )
