"""Queries to a space as its users would ask them: for the proof after a cutover, and for the watch that follows.

It only counts what came of them; whether that is good enough is decided in streams.migration.watch.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import partial

from connectors.embedders.probe import PROBE_TEXTS
from connectors.errors import ConfigurationError, CrossfadeError, NotFound, Refused
from streams.migration.watch import Answered, sample_of
from streams.retry import a_while
from streams.state import BuildState, Sample
from streams.verbs.desk import Asked, Desk

log = logging.getLogger(__name__)

LEAST_ASKED = 20
MOST_ASKED = 100
PATIENCE_S = 10.0
PROOF_QUERIES = 4
PROOF_S = 5.0


async def queries_of(desk: Desk, collection: str) -> Sequence[str]:
    """The golden set's, or the probe texts; these too when the golden set cannot be read now."""
    try:
        return await desk.out.queries(collection) or PROBE_TEXTS
    except CrossfadeError as error:
        log.warning("the golden queries of %s are not asked: %s", collection, error.message)
        return PROBE_TEXTS


async def sample(
    desk: Desk, build: BuildState, queries: Sequence[str], for_s: float, *, most: int | None = None
) -> Sample | None:
    """Ask 20 to 100 queries one after the other, or `most` of them; fewer when that takes longer than `for_s`.

    None when it is this process that cannot ask (its configuration is of another model, say): that tells nothing of
    the space.
    """
    loop = asyncio.get_running_loop()
    ends_s = loop.time() + for_s
    answers: list[Answered] = []
    wanted = min(max(len(queries), LEAST_ASKED), MOST_ASKED) if most is None else most
    for at in range(wanted):
        began_s = loop.time()
        try:
            async with asyncio.timeout(PATIENCE_S):
                answer = await desk.out.ask(build, queries[at % len(queries)])
            answers.append(Answered(answer.found, answer.took_ms))
        except (Refused, NotFound, ConfigurationError) as error:
            log.warning("%s cannot be asked from here: %s", build.key, error.message)
            return None
        except (CrossfadeError, TimeoutError):
            answers.append(Answered(None, 1000 * (loop.time() - began_s)))
        if loop.time() >= ends_s:
            break
    return sample_of(answers)


async def problem(desk: Desk, build: BuildState, alias: str, documents: int) -> str:
    """What is wrong with the answers of a version that has begun to serve; "" when nothing is.

    Asked through what the alias names, with the version's own encoder. `documents`: how many the space holds.
    """
    queries = (await queries_of(desk, build.collection))[:PROOF_QUERIES]
    try:
        async with asyncio.timeout(PROOF_S):
            target = await a_while(lambda: desk.out.store.alias_target(alias))
            if target != build.space:
                return f"the alias {alias} points to {target or 'nothing'}, not to {build.space}"
            answers = [await a_while(partial(desk.out.ask, build, query)) for query in queries]
    except TimeoutError:
        return f"{len(queries)} queries were not answered within {PROOF_S:g} s"
    except CrossfadeError as error:
        return f"a query failed: {error.message}"
    return _wrong(build, answers, documents)


def _wrong(build: BuildState, answers: Sequence[Asked], documents: int) -> str:
    mark = f"{build.version}@{build.fingerprint}"
    if spaces := {answer.space for answer in answers} - {build.space}:
        return f"queries were answered by {', '.join(sorted(spaces))}"
    if strange := set().union(*(answer.marks for answer in answers)) - {mark}:
        return f"its documents carry the mark {', '.join(sorted(strange))}, not {mark}"
    if documents and (silent := sum(answer.found == 0 for answer in answers)):
        return f"{silent} of {len(answers)} queries found nothing in {documents} documents"
    return ""
