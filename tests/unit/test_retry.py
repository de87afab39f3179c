"""Waiting out trouble: until it is over, until somebody else owns the work, and never for what cannot pass."""

from __future__ import annotations

import asyncio
import random

import pytest

from connectors.errors import Refused, Throttled, Transient, Unreachable
from streams.retry import FIRST_PAUSE_S, LONGEST_PAUSE_S, patiently, pause_s
from tests.merge import virtual_time


class Call:
    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.at_s: list[float] = []

    async def __call__(self) -> str:
        self.at_s.append(asyncio.get_running_loop().time())
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def test_pauses_grow_to_a_limit_and_keep_their_jitter() -> None:
    random.seed(1)
    for attempt in (0, 1, 3, 50, 10_000):
        most = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(attempt, 30))
        drawn = {pause_s(attempt, Transient("")) for _ in range(50)}
        assert most / 2 <= min(drawn) <= max(drawn) <= most
        assert len(drawn) > 10


def test_the_other_side_decides_where_it_said_when() -> None:
    assert pause_s(0, Throttled("", retry_after_s=7.5)) == 7.5
    assert pause_s(9, Throttled("", retry_after_s=0.0)) == 0.0


def test_it_calls_until_it_succeeds_and_tells_of_the_trouble() -> None:
    heard: list[Transient | None] = []

    async def main() -> None:
        errors = [Unreachable("a"), Throttled("b", retry_after_s=7.0)]
        call = Call(*errors)
        assert await patiently(call, going=lambda: True, trouble=heard.append) == "done"
        assert heard == [*errors, None]
        assert call.at_s[2] - call.at_s[1] == pytest.approx(7.0)

    virtual_time.run(main())


async def test_without_trouble_nothing_is_said() -> None:
    heard: list[Transient | None] = []
    assert await patiently(Call(), going=lambda: False, trouble=heard.append) == "done"
    assert heard == []


async def test_what_cannot_pass_is_raised_at_once() -> None:
    call = Call(Refused("no"))
    with pytest.raises(Refused):
        await patiently(call, going=lambda: True, trouble=lambda _: None)
    assert len(call.at_s) == 1


def test_it_ends_with_the_last_trouble_when_it_is_no_longer_going() -> None:
    async def main() -> None:
        call = Call(*(Unreachable(str(n)) for n in range(9)))
        with pytest.raises(Unreachable, match="2"):
            await patiently(call, going=lambda: len(call.at_s) < 3, trouble=lambda _: None)

    virtual_time.run(main())
