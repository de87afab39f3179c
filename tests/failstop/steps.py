"""Steps the fail-stop tests share: documents, a running version, and what a named stop looks like from outside."""

from __future__ import annotations

import asyncio
import re

from pydantic import JsonValue

from streams.state import Failure
from tests.badinput.speak import crossfade
from tests.deployment import COLLECTION, Deployment, Event


def documents(count: int, form: str = "first") -> list[Event]:
    return [(f"k{n}", {"text": f"document {n}, {form} form"}, None) for n in range(count)]


async def running(d: Deployment, **versions: dict[str, JsonValue]) -> None:
    """Documents in the topic, one worker, these versions ready and current."""
    await d.produce(documents(20))
    for name, version in versions.items():
        d.add_version(name, version)
    d.start_worker()
    for name in versions:
        await d.until_stage(name, "ready")
        await d.until_live(name)


async def failed(d: Deployment, version: str, timeout_s: float = 60) -> Failure:
    """The cause in the state, once it is there."""
    async with asyncio.timeout(timeout_s):
        await d.state.wait_for(lambda _: d.build(version).failure is not None)
    failure = d.build(version).failure
    assert failure is not None
    return failure


async def stopped(d: Deployment, version: str, cause: str, step: str) -> Failure:
    """Stopped with this cause (a regular expression) and this next command, which `crossfade status` says too."""
    failure = await failed(d, version)
    assert re.search(cause, failure.cause), failure.cause
    assert step in failure.next_step
    said = await crossfade(d, "status", COLLECTION, version)
    assert re.search(cause, said), said
    assert step in said
    return failure


async def goes_on(d: Deployment, version: str, form: str) -> None:
    """New documents reach the version's space."""
    await d.produce(documents(20, form))
    await d.until_live(version)
    assert await d.stored(version) == await d.oracle()
    assert d.build(version).failure is None
