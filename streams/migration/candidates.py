"""Candidate models side by side on a sample of the real documents: which documents, which questions, who is better.

Pure: it embeds nothing and reads nothing. It must never say that a model is better, or worse, where the sample's
interval does not show it.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from connectors.protocols import JSON, Vectors
from streams import documents
from streams.documents import DocumentSchema, Put
from streams.key_index import KeyIndex
from streams.migration.evaluate import CONFIDENCE, RESAMPLES, SEED, Estimate, Gain, Reply, Scored, ndcg_at
from streams.migration.golden import GoldenQuery, GoldenSet

MOST_JUDGED = 10_000
LEAST_QUERIES = 20  # with fewer, a bootstrap interval is narrower than the truth
TITLE_FIELDS = ("title", "headline", "heading", "subject", "name")
_BLOCK = 4_000_000  # scores held at once, as float32


# which documents


class Drawn(NamedTuple):
    """Records of the sample, by partition: offsets drawn at random, and those of judged documents (some of them both).

    `missing`: judged keys that the topic does not hold, as it is now.
    """

    random: Mapping[int, frozenset[int]]
    judged: Mapping[int, frozenset[int]]
    missing: tuple[str, ...]

    @property
    def offsets(self) -> dict[int, frozenset[int]]:
        return {partition: self.random[partition] | self.judged[partition] for partition in self.random}

    @property
    def size(self) -> int:
        return sum(map(len, self.offsets.values()))

    @property
    def drawn(self) -> int:
        return sum(map(len, self.random.values()))


def draw(indexes: Mapping[int, KeyIndex], most: int, judged: Iterable[str] = (), seed: int = SEED) -> Drawn:
    """`most` of the current documents, each as likely as any other, and all judged ones beside them.

    The same topic and seed give the same sample. So the random part still stands for all documents, and what is
    measured on it can be extrapolated.
    """
    current = {p: index.unmatched_puts(np.zeros(len(index), np.bool_)) for p, index in sorted(indexes.items())}
    ends = np.cumsum([len(positions) for positions in current.values()])
    total = int(ends[-1]) if len(ends) else 0
    chosen = range(total) if total <= most else random.Random(seed).sample(range(total), most)
    at_random: dict[int, set[int]] = {p: set() for p in indexes}
    partitions = list(current)
    for at in chosen:
        which = int(np.searchsorted(ends, at, side="right"))
        positions = current[partitions[which]]
        place = int(positions[at - int(ends[which])])  # counted from the partition's end: negative
        at_random[partitions[which]].add(indexes[partitions[which]].entry(place).offset)
    keys = list(judged)
    digests = [documents.key_digest(key.encode("utf-8", "surrogatepass")) for key in keys]
    wanted: dict[int, set[int]] = {p: set() for p in indexes}
    found: set[str] = set()
    for p, index in indexes.items():
        for key, at in zip(keys, index.positions(digests).tolist(), strict=True):
            if at >= 0 and not (entry := index.entry(at)).deleted:
                wanted[p].add(entry.offset)
                found.add(key)
    return Drawn(
        {p: frozenset(offsets) for p, offsets in at_random.items()},
        {p: frozenset(offsets) for p, offsets in wanted.items()},
        tuple(key for key in keys if key not in found),
    )


def within(golden: GoldenSet, most_queries: int, most_judged: int = MOST_JUDGED, seed: int = SEED) -> GoldenSet:
    """The golden set, or as many of its queries, drawn at random, as the two bounds allow; with a note that says so."""
    queries = list(golden.queries)
    if len(queries) > most_queries:
        queries = random.Random(seed).sample(queries, most_queries)
    kept: list[GoldenQuery] = []
    keys: set[str] = set()
    for query in queries:
        if len(keys | query.relevant.keys()) > most_judged and kept:
            continue
        keys |= query.relevant.keys()
        kept.append(query)
    if len(kept) == len(golden.queries):
        return golden
    note = f"{len(kept):,} of {len(golden.queries):,} queries asked, drawn at random"
    return replace(golden, queries=tuple(kept), notes=(*golden.notes, note))


# which texts and questions


@dataclass(frozen=True, slots=True)
class SampleDocument:
    """`text`: what is embedded, before any prefix; `title` only for known-item queries. `drawn`: at random. `whole`:
    how many times the text's length the document's whole text has, title included."""

    key: str
    text: str
    title: str
    drawn: bool
    whole: float = 1.0


def plain_document(put: Put, schema: DocumentSchema, *, drawn: bool) -> SampleDocument:
    """As the pipeline would embed it."""
    return SampleDocument(put.doc_id, documents.text(put, schema), "", drawn)


def titleless_document(put: Put, schema: DocumentSchema, title: str, *, drawn: bool) -> SampleDocument:
    """Without the title, which will be the query: also where it opens another field, as it often does. `text` is blank
    for a document that is nothing but its title."""
    if title in schema.fields:
        named = put.fields[schema.fields.index(title)].strip()
    else:
        value = put.properties.get(title)
        named = value.strip() if isinstance(value, str) else ""
    rest = tuple(
        "" if name == title else _without(value, named) for name, value in zip(schema.fields, put.fields, strict=True)
    )
    left = any(part and not part.isspace() for part in rest)
    if not left:
        return SampleDocument(put.doc_id, "", named, drawn)
    text = documents.text(put._replace(fields=rest), schema)
    return SampleDocument(put.doc_id, text, named, drawn, len(documents.text(put, schema)) / len(text))


def _without(value: str, opening: str) -> str:
    text = value.lstrip()
    return text[len(opening) :] if opening and text.lower().startswith(opening.lower()) else value


def title_field(schema: DocumentSchema) -> str | None:
    """The field whose name is a title's, among those a collection keeps."""
    kept = [*schema.fields, *(name for name, kind in schema.properties.items() if kind in ("text", "keyword"))]
    return next((name for wanted in TITLE_FIELDS for name in kept if name.lower() == wanted), None)


def known_items(found: Sequence[SampleDocument], field: str, most: int, seed: int = SEED) -> GoldenSet | None:
    """Titles as queries, each with the documents that bear it as the right answers; None without any title."""
    bearers: dict[str, list[str]] = {}
    for document in found:
        if document.title and document.text:
            bearers.setdefault(document.title, []).append(document.key)
    titles = list(bearers)
    if len(titles) > most:
        titles = random.Random(seed).sample(titles, most)
    queries = tuple(GoldenQuery(f"title-{i}", t, dict.fromkeys(bearers[t], 1.0)) for i, t in enumerate(titles, 1))
    return GoldenSet(f"known-item queries from field {field}", queries) if queries else None


# search


class Stored(NamedTuple):
    """What a space would hold of the sample. `vectors`: float32[n, dim], a document's chunks side by side; `keys`: of
    each document; `starts`: int64[documents], the first row of each."""

    keys: Sequence[str]
    starts: NDArray[np.int64]
    vectors: Vectors


def nearest(stored: Stored, queries: Vectors, metric: str, k: int) -> list[tuple[Scored, ...]]:
    """The best `k` documents for each query, by exact search: a document is as near as its nearest chunk.

    `queries`: float32[n, dim]. Scores are those of `Hit.score`; equal ones stand in the order of the keys.
    """
    if not stored.keys:
        return [()] * len(queries)
    by_key = np.argsort(np.array(stored.keys, dtype=object), kind="stable")
    rows, sides = _unit(stored.vectors, metric), _unit(queries, metric)
    found: list[tuple[Scored, ...]] = []
    step = max(1, _BLOCK // len(rows))
    for begin in range(0, len(sides), step):
        block = sides[begin : begin + step]
        scores = block @ rows.T
        if metric == "l2-squared":
            scores = 2 * scores - (rows**2).sum(axis=1)[None, :] - (block**2).sum(axis=1)[:, None]
        best = np.maximum.reduceat(scores, stored.starts, axis=1)[:, by_key]
        order = np.argsort(-best, axis=1, kind="stable")[:, :k]
        for line, places in zip(best, order, strict=True):
            found.append(tuple(Scored(stored.keys[by_key[at]], _score(float(line[at]), metric)) for at in places))
    return found


def _unit(vectors: Vectors, metric: str) -> Vectors:
    if metric != "cosine":
        return vectors
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Vectors = (vectors / np.where(lengths == 0, 1, lengths)).astype(np.float32, copy=False)
    return unit


def _score(value: float, metric: str) -> float:
    return (1 + value) / 2 if metric == "cosine" else value


# who is better


class Worth(StrEnum):
    BETTER = "better"
    WORSE = "worse"
    UNCLEAR = "no difference that this sample can show"


@dataclass(frozen=True, slots=True)
class Difference:
    """nDCG@k of a version minus that of the baseline, on the same queries, with its 95% interval."""

    version: str
    baseline: str
    k: int
    queries: int
    ndcg: Estimate

    @property
    def worth(self) -> Worth:
        if self.queries < LEAST_QUERIES:
            return Worth.UNCLEAR
        if self.ndcg.low > 0:
            return Worth.BETTER
        return Worth.WORSE if self.ndcg.high < 0 else Worth.UNCLEAR

    def sentence(self) -> str:
        """For a person who has to decide."""
        by = f"nDCG@{self.k} {self.ndcg.value:+.3f}, 95% interval {self.ndcg.low:+.3f} to {self.ndcg.high:+.3f}"
        said = {
            Worth.BETTER: f"{self.version} is better than {self.baseline}: worth its migration",
            Worth.WORSE: f"{self.version} is worse than {self.baseline}: not worth a migration",
            Worth.UNCLEAR: f"between {self.version} and {self.baseline} there is no difference that this sample can "
            "show: not worth a migration for its answers alone",
        }[self.worth]
        few = f"; {self.queries} queries are too few to tell" if self.queries < LEAST_QUERIES else ""
        return f"{said} ({by}{few})"

    def as_json(self) -> dict[str, JSON]:
        return {
            "version": self.version,
            "baseline": self.baseline,
            "verdict": self.worth.value,
            "ndcg_difference": self.ndcg.as_json(),
        }


def difference(
    golden: GoldenSet, baseline: Sequence[Reply], candidate: Sequence[Reply], names: tuple[str, str], k: int, gain: Gain
) -> Difference:
    """Paired bootstrap over the queries: the same draws for both, so that hard queries weigh on neither alone.

    `names`: of the baseline and the candidate. Replies are in the golden set's order.
    """
    gained = np.array(
        [
            _ndcg(new, query, k, gain) - _ndcg(old, query, k, gain)
            for query, old, new in zip(golden.queries, baseline, candidate, strict=True)
        ]
    )
    n = len(gained)
    generator = np.random.default_rng(SEED)
    sampled = np.array([generator.multinomial(n, np.full(n, 1 / n)) @ gained / n for _ in range(RESAMPLES)])
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(sampled, [tail, 1 - tail])
    return Difference(names[1], names[0], k, n, Estimate(float(gained.mean()), float(low), float(high)))


def _ndcg(reply: Reply, query: GoldenQuery, k: int, gain: Gain) -> float:
    return ndcg_at([hit.key for hit in reply.hits], query.relevant, k, gain)


# what it takes


def table(rows: Sequence[tuple[str, Sequence[str]]], names: Sequence[str]) -> list[str]:
    """Lines of a table: one column for each version, as wide as its longest cell."""
    whole = [("", list(names)), *((label, list(cells)) for label, cells in rows)]
    first = max(len(label) for label, _ in whole)
    widths = [max(len(cells[at]) for _, cells in whole) for at in range(len(names))]
    lines = (
        f"  {label:<{first}}  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True))
        for label, cells in whole
    )
    return [line.rstrip() for line in lines]
