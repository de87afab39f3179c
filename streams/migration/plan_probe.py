"""How fast an endpoint is, measured: a few requests with the built-in probe text, and no document ever.

It costs the tokens it says; a plan asks for it only when told to.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from connectors.embedders.probe import PROBE_TEXT
from connectors.errors import ConfigurationError
from connectors.protocols import Embedder
from streams.tokens import TokenEstimate

AT_ONCE = 4
MOST_CHARACTERS = 8_000
MOST_TEXTS = 32


@dataclass(frozen=True, slots=True)
class Probed:
    """Of one endpoint. `tokens`: spent, as the endpoint counted (`counted`) or at 4 bytes each."""

    name: str
    requests: int
    texts: int
    texts_per_s: float
    tokens: int
    counted: bool


async def probe_speed(name: str, embedder: Embedder, characters: int, concurrency: int, dimensions: int) -> Probed:
    """One request to wake it up, then `AT_ONCE` beside each other, of texts as long as the documents' chunks are.

    Raises ConfigurationError for vectors of another length, else what the embedder raises.
    """
    text = text_of(characters)
    batch = [text] * max(1, min(embedder.max_batch, MOST_TEXTS))
    first = await embedder.embed(batch[:1])
    if first.vectors.shape[1] != dimensions:
        raise ConfigurationError(
            f"the version declares {dimensions} dimensions, {name} gives {first.vectors.shape[1]}",
            next_step=f"set dimensions: {first.vectors.shape[1]}, or correct the endpoint",
        )
    at_once = max(1, min(AT_ONCE, concurrency))
    began_s = time.monotonic()
    replies = [first, *await asyncio.gather(*(embedder.embed(batch) for _ in range(at_once)))]
    took_s = max(time.monotonic() - began_s, 1e-6)
    texts = at_once * len(batch)
    counted = [reply.tokens for reply in replies if reply.tokens is not None]
    spent = sum(counted) if len(counted) == len(replies) else (texts + 1) * TokenEstimate().estimate(text)
    return Probed(name, at_once + 1, texts, texts / took_s, spent, len(counted) == len(replies))


def text_of(characters: int) -> str:
    """The probe text over and over, about as long as that."""
    wanted = max(1, min(characters, MOST_CHARACTERS))
    return " ".join([PROBE_TEXT] * -(-wanted // (len(PROBE_TEXT) + 1)))


def together(probed: Sequence[Probed]) -> float:
    """Texts a second, of all endpoints that share the work."""
    return sum(one.texts_per_s for one in probed)
