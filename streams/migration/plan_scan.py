"""The reading behind a plan: the keys of a topic, then the values of its current documents, measured as the pipeline
would embed them.

It reads only, keeps 24 bytes a key, and never keeps, logs or returns a document's text.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple
from uuid import UUID

import numpy as np
import orjson

from connectors.protocols import Bounds, Log, RangeBatch, Record
from streams import documents
from streams.batching import BatchLimits, pack
from streams.chunking import Chunker
from streams.documents import Delete, DocumentSchema, Put, Rejected, key_digest
from streams.key_index import KeyIndex
from streams.migration.plan import Measured
from streams.replay import plan_scan
from streams.space_objects import Origin, space_object
from streams.tokens import TokenEstimate, Tokenizer
from streams.versions import Envelope

SEED = 20_240_229  # of the sample: the same topic gives the same plan

Progress = Callable[[str, int, int], None]
"""What is read (keys or documents), offsets done, offsets in all."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How a version would embed: `batch` documents to a group, `limits` of a request (its probe text left out).

    `sample`: documents whose tokens are counted, where there is a tokenizer; None counts them all.
    """

    schema: DocumentSchema
    envelope: Envelope
    chunker: Chunker
    tokenizer: Tokenizer | None
    batch: int
    limits: BatchLimits
    store_text: bool
    sample: int | None

    @property
    def refuses_overlong(self) -> bool:
        """Whether a text above `max_tokens` goes to the dead letters: then every text that may be is counted."""
        return (
            self.tokenizer is not None
            and self.envelope.max_tokens is not None
            and self.envelope.options.get("overlong") != "truncate"
        )


@dataclass(frozen=True, slots=True)
class Scan:
    """`indexes`: the newest offset of each key, by partition; `measured` of all partitions together."""

    indexes: Mapping[int, KeyIndex]
    measured: Measured


async def scan(
    kafka: Log, topic: str, bounds: Mapping[int, Bounds], reading: Reading, progress: Progress = lambda *_: None
) -> Scan:
    """Two passes over [earliest, last stable offset) of every partition. Raises what the log raises."""
    whole = sum(bound.stable - bound.earliest for bound in bounds.values())
    indexes: dict[int, KeyIndex] = {}
    done = 0
    for partition, bound in bounds.items():
        reached = partial(_reached, progress, whole, done - bound.earliest)
        indexes[partition] = await plan_scan(
            kafka, topic, partition, bound.stable, start=bound.earliest, reached=reached
        )
        done += bound.stable - bound.earliest
    current = sum(index.documents for index in indexes.values())
    measure = _Measure(reading, current)
    done = 0
    for partition, bound in bounds.items():
        async for batch in kafka.read_range(topic, partition, bound.earliest, bound.stable):
            await asyncio.to_thread(measure.take, _newest(batch, indexes[partition]))
            progress("documents", done + batch.position - bound.earliest, whole)
        done += bound.stable - bound.earliest
    measured = measure.measured
    measured.records = sum(index.records for index in indexes.values())
    measured.superseded = sum(index.superseded for index in indexes.values())
    measured.deletes += sum(index.deletes for index in indexes.values())
    measured.moved = current - measure.met
    return Scan(indexes, measured)


def _reached(progress: Progress, whole: int, before: int, position: int) -> None:
    progress("keys", before + position, whole)


def _newest(batch: RangeBatch, index: KeyIndex) -> list[Record]:
    current = index.current_puts(
        [key_digest(record.key or b"") for record in batch.records], [record.offset for record in batch.records]
    )
    return [record for record, keep in zip(batch.records, current.tolist(), strict=True) if keep]


class _Document(NamedTuple):
    """`texts`: its chunks as they are sent, prefix included; `blank`: those with nothing behind the prefix."""

    number: int
    texts: list[str]
    blank: frozenset[int]
    bytes: int
    stored_text_bytes: int
    property_bytes: int
    terms: int


class _Measure:
    """Adds up current records, as the embedding agent and the encoder would treat them."""

    def __init__(self, reading: Reading, current: int) -> None:
        self._reading = reading
        self._estimate = TokenEstimate()
        self._prefix_bytes = _size(reading.envelope.document_prefix)
        self._refused: Counter[str] = Counter()
        self.measured = Measured()
        self.met = 0
        # chosen by their place in the log before any of them is read; None: all of them
        self._sampled: frozenset[int] | None = None
        if reading.sample is not None and reading.sample < current:
            self._sampled = frozenset(random.Random(SEED).sample(range(current), reading.sample))

    def take(self, records: Sequence[Record]) -> None:
        """The current puts of one batch of the log, in order. Work for a thread: it parses, cuts and counts."""
        reading, measured = self._reading, self.measured
        found: list[_Document] = []
        for at in range(0, len(records), reading.batch):
            group = [one for record in records[at : at + reading.batch] if (one := self._read(record)) is not None]
            texts = [text for one in group for place, text in enumerate(one.texts) if place not in one.blank]
            lengths = [self._estimate.estimate(text) for text in texts]
            measured.estimated_tokens += sum(lengths)
            measured.requests += len(pack(lengths, [len(text) for text in texts], reading.limits))
            found += group
        self._count(found)
        measured.refused = dict(self._refused.most_common())

    def _read(self, record: Record) -> _Document | None:
        """None when there is nothing to embed."""
        reading = self._reading
        number, self.met = self.met, self.met + 1
        change = documents.parse(record.key, record.value, reading.schema)
        if isinstance(change, Rejected):
            self._refused[change.cause] += 1
            return None
        if isinstance(change, Delete):  # said in an envelope: to the key index it is a put
            self.measured.deletes += 1
            return None
        chunks = reading.chunker.split(documents.text(change, reading.schema))
        texts = [reading.envelope.document_prefix + chunk for chunk in chunks]
        text_bytes = sum(map(_size, texts))
        return _Document(
            number,
            texts,
            frozenset(place for place, chunk in enumerate(chunks) if not chunk or chunk.isspace()),
            text_bytes,
            text_bytes - len(chunks) * self._prefix_bytes if reading.store_text else 0,
            len(chunks) * (_RESERVED + _size(change.doc_id) + len(orjson.dumps(change.properties))),
            len(chunks) * self._terms(change),
        )

    def _terms(self, put: Put) -> int:
        """Text is indexed twice, word by word (to filter, and to search by keyword); other values once."""
        kinds = self._reading.schema.properties
        return sum(
            2 * len(value.split()) if kinds[name] == "text" and isinstance(value, str) else 1
            for name, value in put.properties.items()
        )

    def _count(self, found: Sequence[_Document]) -> None:
        """Tokens of those that are to be counted, all in one call of the tokenizer."""
        tokenizer = self._reading.tokenizer
        if tokenizer is None:
            for document in found:
                self._book(document)
            return
        exact = {one.number for one in found if self._sampled is None or self._may_be_overlong(one)}
        chosen = [one for one in found if one.number in exact or one.number in (self._sampled or ())]
        counted = iter(tokenizer.count([text for one in chosen for text in one.texts]))
        tokens = {one.number: [next(counted) for _ in one.texts] for one in chosen}
        for document in found:
            self._book(document, tokens.get(document.number), exact=document.number in exact)

    def _book(self, document: _Document, counted: Sequence[int] | None = None, *, exact: bool = False) -> None:
        """`counted`: tokens of each chunk, None where nobody counted. `exact`: they stand for themselves alone."""
        measured, most = self.measured, self._reading.envelope.max_tokens
        tokens = 0
        refused = bool(document.blank)
        for place, size in enumerate(counted or ()):
            if place in document.blank:
                continue
            if most is not None and size > most:
                if self._reading.refuses_overlong:
                    refused = True  # its other chunks are embedded and paid for all the same
                    continue
                size = most
            tokens += size
        if exact:
            measured.counted_tokens += tokens
        if refused:
            self._refused["content_rejected"] += 1
            return
        measured.documents += 1
        measured.chunks += len(document.texts)
        measured.characters += sum(map(len, document.texts))
        measured.text_bytes += document.bytes
        measured.stored_text_bytes += document.stored_text_bytes
        measured.property_bytes += document.property_bytes
        measured.terms += document.terms
        if exact:
            measured.counted_documents += 1
            return
        measured.other_documents += 1
        measured.other_bytes += document.bytes
        if counted is not None:
            measured.sample.add(tokens, document.bytes)

    def _may_be_overlong(self, document: _Document) -> bool:
        """A token is a byte at least. Such a document is counted whatever the sample: its count must be exact."""
        most, tokenizer = self._reading.envelope.max_tokens, self._reading.tokenizer
        if not self._reading.refuses_overlong or most is None or tokenizer is None:
            return False
        return any(_size(text) + tokenizer.special > most for text in document.texts)


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _reserved() -> int:
    """Bytes of the reserved properties of an object as JSON, without document id and text."""
    example = space_object(
        UUID(int=0),
        Record(0, 10**6, 10**12, b"", b""),
        Put("", (), {}),
        "0" * 64,
        chunk=0,
        texts=[""],
        vector=np.zeros(1, np.float32),
        origin=Origin("embedded", 10**12),
        space_mark="v1@" + "0" * 12,
        store_text=True,
    )
    return len(orjson.dumps(dict(example.properties)))


_RESERVED = _reserved()
