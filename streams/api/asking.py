"""The way to the controller: a command sent for a caller, and its outcome."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any

import orjson
from fastapi import Depends, Response
from pydantic import JsonValue

from connectors.errors import Transient
from streams import control
from streams.api.access import Caller, Operator
from streams.api.backend import Back, Backend
from streams.api.models import CollectionName, IdempotencyKey, Outcome
from streams.api.problems import Answered, problem, problem_of
from streams.state import BuildState, Command, CommandOutcome, Verb

ASK_S = 20.0
PROVEN = "as it should"


@dataclass(frozen=True, slots=True)
class Asker:
    """Whoever may change a collection, at one request. `key`: its Idempotency-Key; `response`: its status and
    headers."""

    backend: Backend
    caller: Caller
    collection: str
    key: str | None
    response: Response

    def build(self, version: str) -> BuildState:
        """Raises NotFound when there is none; asked first, since the controller would say the same seconds later."""
        return self.backend.state.build(self.collection, version)

    def outcome(self, asked: str) -> CommandOutcome | None:
        """Of the same request with the same key, where it was carried out already. Raises Answered as `ask` does."""
        known = self.backend.state.collections.get(self.collection)
        return known.outcome(self._id(_bound(asked))) if known is not None else None

    async def ask(
        self,
        verb: Verb,
        version: str | None,
        args: dict[str, JsonValue],
        why: str,
        *,
        seen: dict[str, JsonValue] | None = None,
        asked: str = "",
    ) -> CommandOutcome:
        """Send a command and wait for its outcome. `seen`: arguments that say what stood when it was asked; they are no
        part of what the key is bound to. `asked`: what was asked for, if that came to different commands at different
        times (a swap that was a cutover once is still the same request).

        Raises Answered for a refusal, for a key that was used for another request, and when no outcome came in time:
        the same request with the same key is then safe.
        """
        backend = self.backend
        command_id = self._id(_bound(asked) if asked else _bound(verb, version, args))
        known = backend.state.collections.get(self.collection)
        outcome = known.outcome(command_id) if known is not None else None
        if outcome is None:
            if self.key is not None:
                backend.repeats.use(self.collection, self.key, command_id)
            command = Command(
                id=command_id,
                verb=verb,
                collection=self.collection,
                version=version,
                args={**args, **(seen or {})},
                who=self.caller.who,
                why=why,
            )
            timeout_s = backend.settings.serve.command_timeout_s
            if verb != "cutover":  # which takes as long as a sweep takes
                timeout_s = min(timeout_s, ASK_S)
            try:
                outcome = await control.ask(backend.sink, backend.names, backend.state, command, timeout_s=timeout_s)
            except Transient as error:
                found, headers = problem_of(error, command_id=command_id)
                raise Answered(found, headers) from error
        if not outcome.ok:
            raise Answered(
                problem(
                    HTTPStatus.CONFLICT,
                    outcome.message or "it was refused",
                    outcome.next_step,
                    kind="refused",
                    command_id=command_id,
                    data=dict(outcome.data) or None,
                )
            )
        return outcome

    def answer(self, outcome: CommandOutcome, then: str) -> Outcome:
        """200, or 202 for a swap that waits. `then`: what one would ask next, where the outcome itself does not say."""
        said, pending = outcome.data.get("next"), outcome.data.get("pending")
        if isinstance(pending, str):
            self.accept()
        return Outcome(
            command_id=outcome.id,
            verified=outcome.data["answers"] == PROVEN if "answers" in outcome.data else None,
            pending=pending if isinstance(pending, str) else "",
            message=outcome.message,
            data=dict(outcome.data),
            next=said if isinstance(said, str) else then,
        )

    def accept(self) -> None:
        """It is not done yet, and seen at the collection."""
        self.response.status_code = HTTPStatus.ACCEPTED
        self.response.headers["Location"] = f"/collections/{self.collection}"

    def _id(self, bound: bytes) -> str:
        """The key with a hash of what it stands for. Raises Answered when it stands for something else already."""
        key = self.key
        if key is None:
            return str(uuid.uuid4())
        command_id = f"{key}.{hashlib.sha256(bound).hexdigest()[:16]}"
        known = self.backend.state.collections.get(self.collection)
        others = [o.id for o in (known.applied if known else []) if o.id[:-17] == key and o.id[-17:-16] == "."]
        if (used := self.backend.repeats.used_for(self.collection, key)) is not None:
            others.append(used)
        if others and command_id not in others:
            raise Answered(
                problem(
                    HTTPStatus.UNPROCESSABLE_ENTITY,
                    f"the Idempotency-Key {key} was used for another request to {self.collection}",
                    "choose a new key for a new request",
                    kind="key-used",
                    title="The key stands for another request",
                )
            )
        return command_id


def _bound(*stands_for: JsonValue) -> bytes:
    """What a key is bound to."""
    return orjson.dumps([*stands_for], option=orjson.OPT_SORT_KEYS)


async def asker_of(
    collection: CollectionName,
    caller: Operator,
    backend: Back,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> AsyncIterator[Asker]:
    """A dependency. Raises Answered when another request with the key is under way, and does not end in time."""
    asker = Asker(backend, caller, collection, idempotency_key, response)
    if idempotency_key is None:
        yield asker
        return
    async with backend.repeats.turn(collection, idempotency_key, backend.settings.serve.timeout_s):
        yield asker


Asking = Annotated[Asker, Depends(asker_of)]
MAY_WAIT: dict[int | str, dict[str, Any]] = {
    202: {
        "model": Outcome,
        "description": "Found good, and not done yet: it waits, as the configuration wants it",
        "headers": {"Location": {"description": "Where it can be seen", "schema": {"type": "string"}}},
    }
}
"""Of a swap, for its OpenAPI."""
