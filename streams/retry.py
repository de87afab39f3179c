"""Waiting out trouble: one backoff for every call that may succeed later.

Never gives up by itself and never looks at messages: the type says whether to try again, the caller says until when.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from connectors.errors import Transient

T = TypeVar("T")

FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 15.0


def pause_s(attempt: int, error: Transient) -> float:
    """Seconds before attempt number `attempt + 1`: what the other side asked for, else exponential with full jitter.

    Full jitter after AWS, "Exponential Backoff and Jitter" (2015).
    """
    if error.retry_after_s is not None:
        return error.retry_after_s
    return random.uniform(0.5, 1.0) * min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(attempt, 16))


async def a_while(call: Callable[[], Awaitable[T]], attempts: int = 7) -> T:
    """Wait out short trouble, about half a minute of it; longer trouble is raised."""
    left = iter(range(attempts - 1))
    return await patiently(call, going=lambda: next(left, None) is not None, trouble=lambda _: None)


async def patiently(
    call: Callable[[], Awaitable[T]],
    *,
    going: Callable[[], bool],
    trouble: Callable[[Transient | None], None],
) -> T:
    """Call until it succeeds or fails for good. `trouble` hears each Transient, and None when it is over.

    Raises whatever is not Transient, and the last Transient once `going` answers False.
    """
    attempt = 0
    while True:
        try:
            result = await call()
        except Transient as error:
            trouble(error)
            if not going():
                raise
            await asyncio.sleep(pause_s(attempt, error))
            attempt += 1
        else:
            if attempt:
                trouble(None)
            return result
