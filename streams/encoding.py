"""Texts to the vectors of one model version: prefixes, batches, checks and normalisation, as its envelope says.

It must never let through a vector of another size, not finite, or zero, nor pay for a text again because of another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from connectors.embedders.base import RejectedTexts, check_vectors
from connectors.embedders.cache import VectorCache
from connectors.embedders.pool import EndpointPool, Served, Withheld
from connectors.embedders.probe import PROBE_TEXT
from connectors.errors import ConfigurationError, ContentRejected, Transient, WrongModel
from connectors.protocols import Vectors
from streams.batching import BatchLimits, pack
from streams.retry import patiently
from streams.tokens import TokenEstimate, Tokenizer
from streams.turns import together
from streams.valve import Unwanted, Valve
from streams.versions import Envelope

_UNIT_TOLERANCE = 1e-6
_COUNT_IN_THREAD = 4_000  # characters: above, counting tokens would hold the event loop for milliseconds


class Meter(Protocol):
    """Who pays. `reserve` before each request, with its estimated tokens; `paid` after it, None when it failed."""

    def reserve(self, tokens: int) -> None:
        """Raises Transient when that may not be spent now."""
        ...

    def paid(self, reserved: int, served: Served | None) -> None: ...


class Free:
    """Nobody counts."""

    def reserve(self, tokens: int) -> None:
        return None

    def paid(self, reserved: int, served: Served | None) -> None:
        return None


@dataclass(frozen=True, slots=True)
class Urgency:
    """For whom a text is embedded. `lane`: live, query, or a tier of the replay; the first two go first. `going`:
    whether anybody still waits for it; `trouble` hears what holds it up, and None when that is over. `valve`: what each
    request passes, also when it is shut if that is `pressing`."""

    lane: str = "query"
    going: Callable[[], bool] = lambda: False
    trouble: Callable[[Transient | None], None] = lambda _: None
    meter: Meter = field(default_factory=Free)
    valve: Valve | None = None
    pressing: Callable[[], bool] = lambda: False

    @property
    def urgent(self) -> bool:
        return self.lane in ("live", "query")


Ready = Callable[[Sequence[int], Vectors], None]
"""Called as vectors come: with the texts' indexes, and float32[n, dim] of them."""


class Encoded(NamedTuple):
    """`vectors`: float32[n, dim], in the order of the texts, rows of rejected texts zero; `rejected`: by index.

    `truncated`: texts cut at the version's max_tokens; `cached`: texts whose vectors were kept from before.
    """

    vectors: Vectors
    rejected: Mapping[int, ContentRejected]
    truncated: int = 0
    cached: int = 0


class _Job:
    """The texts of one call on their way: prefixed, cut, measured; their vectors as they come."""

    def __init__(self, texts: list[str], dimensions: int, urgency: Urgency, ready: Ready) -> None:
        self.texts = texts
        self.urgency = urgency
        self.ready = ready
        self.vectors: Vectors = np.zeros((len(texts), dimensions), np.float32)
        self.refused: dict[int, ContentRejected] = {}
        self.tokens = [0] * len(texts)


class Encoder:
    """One model version's way from text to vector. Owns the pool: `close` closes it; a cache is shared.

    `tokenizer`: the model's own, to count exactly and to cut; without it tokens are estimated from what endpoints say.
    """

    def __init__(
        self,
        envelope: Envelope,
        pool: EndpointPool,
        *,
        limits: BatchLimits | None = None,
        tokenizer: Tokenizer | None = None,
        cache: VectorCache | None = None,
    ) -> None:
        self.envelope = envelope
        self.pool = pool
        self._limits = limits or BatchLimits(max(1, pool.max_batch))
        self._tokenizer = tokenizer
        self._estimate = TokenEstimate()
        self._cache = cache

    async def encode_documents(self, texts: Sequence[str]) -> Vectors:
        """float32[n, dim]. Raises RejectedTexts (a ContentRejected) whose `indexes` name the guilty texts when there
        are any, and what `encode_each` raises."""
        vectors, rejected, _, _ = await self.encode_each(texts)
        if rejected:
            first = rejected[min(rejected)]
            raise RejectedTexts(
                f"{len(rejected)} of {len(texts)} texts cannot be embedded: {first.message}",
                sorted(rejected),
                next_step=first.next_step,
            ) from first
        return vectors

    async def encode_each(
        self,
        texts: Sequence[str],
        urgency: Urgency = Urgency(),
        ready: Ready = lambda _, __: None,
    ) -> Encoded:
        """As `encode_documents`, but the texts the model cannot take are told apart and the others' vectors kept:
        nothing is embedded twice because of a neighbour, or because another batch has to wait for the endpoint.
        `ready` hears of each text that has its vector, once, before this returns or raises.

        Raises Transient when the endpoint is away or busy and nobody waits any more, AccessDenied, WrongModel when
        what it gives is not of this model, ConfigurationError when it refuses even a plain sentence.
        """
        job = _Job([self.envelope.document_prefix + text for text in texts], self.envelope.dimensions, urgency, ready)
        blank: dict[int, ContentRejected] = {}
        for index, text in enumerate(texts):
            if not text or text.isspace():  # a prefix would hide that there is nothing to embed
                blank[index] = RejectedTexts("the text is blank", [index], next_step="give the document some text")
        wanted = [index for index in range(len(texts)) if index not in blank]
        wanted, truncated = await self._measure(job, wanted)
        kept = await self._from_cache(job, wanted)
        wanted = [index for index in wanted if index not in kept]
        await self._embed_all(job, wanted)
        if self._cache is not None and wanted:
            new = [index for index in wanted if index not in job.refused]
            await self._cache.put_many(self.envelope.fingerprint, [job.texts[i] for i in new], job.vectors[new])
        return Encoded(job.vectors, blank | job.refused, truncated, len(kept))

    async def encode_query(self, text: str) -> Vectors:
        """float32[dim]. Raises ContentRejected when this query cannot be embedded, else as `encode_each`."""
        if not text or text.isspace():
            raise RejectedTexts("the query is blank", [0], next_step="search for some text")
        query = self.envelope.query_prefix + text
        vectors = await self._embed([query], self._estimate.estimate(query), Urgency())
        if len(self._unusable(vectors)):
            raise RejectedTexts("the query has no vector in this model", [0], next_step="search for other words")
        vector: Vectors = self._finish(vectors)[0]
        return vector

    async def facts_differ(self) -> str | None:
        """What is wrong with the revision an endpoint says it serves; None while none says another than the envelope.

        Raises as the endpoint does.
        """
        served = (await self.pool.facts()).revision
        wanted = self.envelope.revision
        if served is None or not wanted or served == wanted or served.startswith(wanted):
            return None
        return f"the endpoint serves revision {served}, the version was built with {wanted}"

    async def close(self) -> None:
        """Closes the endpoints' connections."""
        await self.pool.close()

    async def _measure(self, job: _Job, wanted: list[int]) -> tuple[list[int], int]:
        """Count the tokens of each; cut or refuse what is too long. Returns what is left, and how many were cut."""
        most, tokenizer = self.envelope.max_tokens, self._tokenizer
        if tokenizer is None:
            for index in wanted:
                job.tokens[index] = self._estimate.estimate(job.texts[index])
            return wanted, 0
        counted = await self._count(tokenizer, [job.texts[index] for index in wanted])
        cut = 0
        for index, tokens in zip(wanted, counted, strict=True):
            job.tokens[index] = tokens
            if most is None or tokens <= most:
                continue
            if self.envelope.options.get("overlong") == "truncate":
                job.texts[index], _ = await asyncio.to_thread(tokenizer.truncate, job.texts[index], most)
                job.tokens[index] = most
                cut += 1
            else:
                job.refused[index] = ContentRejected(
                    f"the text has {tokens} tokens, the model reads {most}",
                    next_step="give the version chunking, or overlong: truncate; either is another version",
                )
        return [index for index in wanted if index not in job.refused], cut

    @staticmethod
    async def _count(tokenizer: Tokenizer, texts: list[str]) -> list[int]:
        if sum(map(len, texts)) > _COUNT_IN_THREAD:
            return await asyncio.to_thread(tokenizer.count, texts)
        return tokenizer.count(texts)

    async def _from_cache(self, job: _Job, wanted: list[int]) -> set[int]:
        if self._cache is None or not wanted:
            return set()
        found = await self._cache.get_many(self.envelope.fingerprint, [job.texts[index] for index in wanted])
        kept = [wanted[at] for at in found]
        for at, vector in found.items():
            job.vectors[wanted[at]] = vector
        if kept:
            job.ready(kept, job.vectors[kept])
        return set(kept)

    async def _embed_all(self, job: _Job, wanted: list[int]) -> None:
        refused_before = set(job.refused)
        batches = pack([job.tokens[i] for i in wanted], [len(job.texts[i]) for i in wanted], self._limits)
        await together(self._encode_some(job, [wanted[at] for at in batch]) for batch in batches)
        if refused := job.refused.keys() - refused_before:
            await self._check_canary(job.refused[min(refused)], job.urgency)

    async def _encode_some(self, job: _Job, wanted: list[int]) -> None:
        """Fill in the rows of `wanted`; halve what is refused until the guilty texts stand alone."""
        try:
            raw = await self._embed([job.texts[i] for i in wanted], sum(job.tokens[i] for i in wanted), job.urgency)
        except ContentRejected as error:
            if isinstance(error, RejectedTexts):
                named = {wanted[place] for place in error.indexes if 0 <= place < len(wanted)}
            else:
                named = set()
            if len(wanted) == 1:
                named = set(wanted)
            job.refused.update(dict.fromkeys(named, error))
            rest = [index for index in wanted if index not in named]
            parts = [rest] if named else [rest[: len(rest) // 2], rest[len(rest) // 2 :]]
            await together(self._encode_some(job, part) for part in parts if part)
            return
        for place in self._unusable(raw):
            job.refused[wanted[place]] = ContentRejected(
                "the model gives a zero vector for this text, by which nothing can be found",
                next_step="change the text",
            )
        job.vectors[wanted] = self._finish(raw)
        if usable := [index for index in wanted if index not in job.refused]:
            job.ready(usable, job.vectors[usable])

    async def _embed(self, texts: Sequence[str], tokens: int, urgency: Urgency) -> Vectors:
        """One request, again until it is answered or nobody waits for it any more."""
        meter, valve = urgency.meter, urgency.valve or Valve()

        async def once() -> Served:
            while True:
                async with valve.passed(urgency.going, urgency.pressing):
                    meter.reserve(tokens)
                    served: Served | None = None
                    try:
                        served = await self.pool.embed(
                            texts,
                            tokens=tokens,
                            urgent=urgency.urgent,
                            lane_or_tier=urgency.lane,
                            may_go=lambda: valve.open(urgency.pressing),
                        )
                    except Withheld:
                        continue
                    finally:
                        meter.paid(tokens, served)
                    return served

        def trouble(error: Transient | None) -> None:
            if not isinstance(error, Unwanted):
                urgency.trouble(error)

        served = await patiently(once, going=urgency.going, trouble=trouble)
        if served.counted:
            self._estimate.learn(texts, served.tokens)
        raw = check_vectors(served.vectors, len(texts), "the embedder")
        if raw.shape[1] != self.envelope.dimensions:
            raise WrongModel(
                f"the model gives {raw.shape[1]} dimensions, the configuration says {self.envelope.dimensions}",
                next_step=f"set dimensions: {raw.shape[1]} in the version, or point it at the model it was built with",
            )
        return raw

    def _unusable(self, raw: Vectors) -> list[int]:
        """Places of zero rows: they have no cosine, and no store takes them whatever the metric."""
        return [int(place) for place in np.flatnonzero(~raw.any(axis=1))]

    def _finish(self, raw: Vectors) -> Vectors:
        if not self.envelope.normalize:
            return raw.astype(np.float32, copy=False)
        wide = raw.astype(np.float64)
        norms = np.sqrt(np.einsum("nd,nd->n", wide, wide))
        # rows of length 1 stay the very bits the model gave; zero rows stay zero and are refused by the caller
        norms[(np.abs(norms - 1.0) <= _UNIT_TOLERANCE) | (norms == 0.0)] = 1.0
        unit: Vectors = (wide / norms[:, None]).astype(np.float32)
        return unit

    async def _check_canary(self, cause: ContentRejected, urgency: Urgency) -> None:
        """An endpoint that now refuses all must not fill the dead letters: after a refusal, ask a plain sentence."""
        try:
            text = self.envelope.document_prefix + PROBE_TEXT
            raw = await self._embed([text], self._estimate.estimate(text), urgency)
        except ContentRejected as error:
            raise ConfigurationError(
                f"the model refuses every text, also a plain sentence: {error.message}",
                next_step="check the version's embedder (address, options, max_tokens) against its endpoint",
            ) from cause
        if len(self._unusable(raw)):
            raise WrongModel(
                "the model gives zero vectors, also for a plain sentence", next_step="check the model's weights"
            ) from cause
