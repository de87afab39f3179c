"""Asks two spaces the same judged queries, and gathers what `gate.judge` looks at.

It decides nothing, and never sends a query to a space whose model it was not embedded with: that is its callers' `Ask`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence

from connectors.errors import ContentRejected, Transient
from connectors.protocols import Space
from streams.config_operation import Gate
from streams.documents import object_id
from streams.migration.evaluate import Comparison, Reply, compare
from streams.migration.gate import Unjudged
from streams.migration.golden import GoldenQuery, GoldenSet
from streams.retry import a_while
from streams.turns import in_turns

AT_ONCE = 4
ATTEMPTS = 5  # a few seconds of trouble
KEYS_AT_ONCE = 1000

Ask = Callable[[str, int], Awaitable[Reply]]
"""A query and how many documents, to a `Reply`: best first, each document once. Raises as the router does."""

Holds = Callable[[Sequence[str]], Awaitable[Collection[str]]]
"""Which of these document keys at least one of the spaces holds."""


def _silent(_: int) -> None:
    return None


async def quality_of(
    ask_old: Ask | None,
    ask_new: Ask,
    golden: GoldenSet | None,
    gate: Gate,
    *,
    versions: tuple[str, str] = ("old", "new"),
    holds: Holds | None = None,
) -> Comparison | Unjudged | None:
    """What `gate.judge` takes: None without a golden set, Unjudged when trouble lasts while its queries are asked.

    Raises whatever `Ask` raises that is not Transient.
    """
    if golden is None:
        return None
    try:
        return await evaluate_spaces(ask_old, ask_new, golden, gate, versions=versions, holds=holds)
    except Transient as error:
        return Unjudged(error.message)


async def evaluate_spaces(
    ask_old: Ask | None,
    ask_new: Ask,
    golden: GoldenSet,
    gate: Gate,
    *,
    versions: tuple[str, str] = ("old", "new"),
    holds: Holds | None = None,
    thresholds: Sequence[float] = (),
    done: Callable[[int], None] = _silent,
) -> Comparison:
    """Ask every query of both, `gate.k` documents deep, the two in turn so that both meet the same conditions.

    `AT_ONCE` queries are under way at a time. `ask_old` None: there is nothing to compare with. `holds` finds relevant
    keys that no space knows; without it none is looked for. `thresholds`: scores of the old space (`Shift`). `done`
    hears how many queries are done. A query that a model cannot take (ContentRejected) counts as nothing found.
    Raises Transient when trouble lasts, and whatever else `Ask` raises.
    """
    asks = [ask for ask in (ask_new, ask_old) if ask is not None]
    known = set(await a_while(lambda: holds(golden.keys), ATTEMPTS)) if holds is not None else set(golden.keys)
    for ask in asks:
        await _reply(ask, golden.queries[0], gate.k)  # connections are opened before time is taken
    replies: list[list[Reply]] = [[] for _ in golden.queries]
    finished = 0

    async def ask_all(at: int) -> None:
        nonlocal finished
        query = golden.queries[at]
        replies[at] = [await _reply(ask, query, gate.k) for ask in (asks if at % 2 else reversed(asks))]
        if not at % 2:
            replies[at].reverse()  # who is asked first meets the colder caches: in turn
        finished += 1
        done(finished)

    await in_turns(range(len(golden.queries)), ask_all, AT_ONCE)
    return await asyncio.to_thread(
        compare,
        golden,
        None if ask_old is None else [both[1] for both in replies],
        [both[0] for both in replies],
        k=gate.k,
        gain=gate.gain,
        versions=versions,
        unknown=[key for key in golden.keys if key not in known],
        thresholds=thresholds,
    )


def holds_of(collection: str, *spaces: Space) -> Holds:
    """Looks for each document's first chunk in the spaces, by id. Raises as `Space.heads` does."""

    async def holds(keys: Sequence[str]) -> set[str]:
        found: set[str] = set()
        for space in spaces:
            left = [key for key in keys if key not in found]
            for start in range(0, len(left), KEYS_AT_ONCE):  # ids too: 200,000 at once would hold up the event loop
                ids = {object_id(collection, key, 0): key for key in left[start : start + KEYS_AT_ONCE]}
                found.update(ids[uuid] for uuid in await space.heads(list(ids)))
        return found

    return holds


async def _reply(ask: Ask, query: GoldenQuery, k: int) -> Reply:
    try:
        return await a_while(lambda: ask(query.query, k), ATTEMPTS)
    except ContentRejected as error:
        return Reply((), 0.0, error.message)
