"""Golden sets: queries with the documents that answer them, read from JSONL or from a folder of TREC files.

Parsing is pure; `read_golden` reads within bounds and `load_golden` does so in a thread. Nothing is left out silently:
what a person has to mend raises ConfigurationError with file and line, what can be done without is named in `notes`.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from connectors.errors import ConfigurationError

TOPICS, QRELS = "topics.tsv", "qrels.txt"  # of a folder in TREC's form
MOST_BYTES = 64 * 1024 * 1024
MOST_QUERIES = 20_000
MOST_CHARACTERS = 10_000  # of one query
BEST_GRADE = 1000.0  # 2**grade is still a number
NAMED = 5

_WANTED = 'one JSON object a line: {"id": "q1", "query": "some words", "relevant": {"document key": 1}}'
_FIELDS = frozenset({"id", "query", "relevant", "slice"})


@dataclass(frozen=True, slots=True)
class GoldenQuery:
    """One judged query. `relevant`: grade by document key, each above 0, at least one; `slices`: groups it is in."""

    id: str
    query: str
    relevant: Mapping[str, float]
    slices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GoldenSet:
    """At least one query, ids distinct, in the order of the file. `notes`: what was left out, a sentence each."""

    name: str
    queries: tuple[GoldenQuery, ...]
    notes: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """Every relevant document's key once, in order."""
        return tuple(dict.fromkeys(key for query in self.queries for key in query.relevant))


async def load_golden(path: Path) -> GoldenSet:
    """`read_golden` in a thread: for a worker's or server's event loop. Raises as it does."""
    return await asyncio.to_thread(read_golden, path)


def read_golden(path: Path) -> GoldenSet:
    """A JSONL file, or a folder that holds `topics.tsv` and `qrels.txt`. Blocks.

    Raises ConfigurationError for what cannot be read, is larger than 64 MiB, or says something that nobody can mean.
    """
    if path.is_dir():
        topics, qrels = path / TOPICS, path / QRELS
        return replace(parse_trec(_read(topics), _read(qrels), str(topics), str(qrels)), name=str(path))
    return parse_jsonl(_read(path), str(path))


def parse_jsonl(data: bytes, name: str) -> GoldenSet:
    """Lines of `{"id", "query", "relevant": {key: grade}, "slice"?: text or list of texts}`; empty lines are skipped.

    A grade is a number, 0 or more; 0 is judged and not relevant. A query without a relevant document is left out and
    named in `notes`, since it measures nothing. Raises ConfigurationError with every line that is wrong (the first
    five in full).
    """
    faults = _Faults(name, "correct the golden set; docs/gate.md has its form")
    queries: dict[str, GoldenQuery] = {}
    first_at: dict[str, int] = {}
    pointless: list[str] = []
    unread: dict[str, None] = {}
    for at, line in _lines(data, faults):
        try:
            query = _query(line, unread)
        except _Wrong as wrong:
            faults.add(at, wrong)
            continue
        if query.id in first_at:
            faults.add(at, _Wrong(f"id {_shown(query.id)} stands in line {first_at[query.id]} already", "distinct ids"))
            continue
        first_at[query.id] = at
        if query.relevant:
            queries[query.id] = query
        else:
            pointless.append(query.id)
    notes = [_left_out(pointless)] if pointless else []
    if unread:
        notes.append(f"fields that nobody reads: {_few(unread)}")
    return _whole(name, queries, notes, faults, _WANTED)


def parse_trec(topics: bytes, qrels: bytes, topics_name: str, qrels_name: str) -> GoldenSet:
    """`topics`: lines of id, tab, query. `qrels`: lines of query id, anything, document key, whole grade.

    A grade of 0 or less is judged and not relevant, as trec_eval has it. Left out and named in `notes`: topics without
    a relevant document, and judgements of queries that are no topics. Raises as `parse_jsonl`.
    """
    faults = _Faults(qrels_name, f"correct {qrels_name}; docs/gate.md has its form")
    grades: dict[str, dict[str, int]] = {}
    for at, line in _lines(qrels, faults):
        try:
            query_id, key, grade = _judgement(line)
        except _Wrong as wrong:
            faults.add(at, wrong)
            continue
        if key in grades.setdefault(query_id, {}):
            problem = f"document {_shown(key)} of query {_shown(query_id)} is judged a second time"
            faults.add(at, _Wrong(problem, "one judgement for each document of a query"))
        grades[query_id][key] = grade
    faults.raise_any()
    faults = _Faults(topics_name, f"correct {topics_name}; docs/gate.md has its form")
    queries: dict[str, GoldenQuery] = {}
    seen: set[str] = set()
    pointless: list[str] = []
    for at, line in _lines(topics, faults):
        query_id, tab, text = line.partition("\t")
        query_id = query_id.strip()
        try:
            if not tab or not query_id or "\t" in text:
                raise _Wrong("is no topic", "id, one tab, the query")
            if query_id in seen:
                raise _Wrong(f"id {_shown(query_id)} stands there already", "distinct ids")
            query = _text(text.strip(), "the query")
        except _Wrong as wrong:
            faults.add(at, wrong)
            continue
        seen.add(query_id)
        relevant = {key: float(grade) for key, grade in grades.get(query_id, {}).items() if grade > 0}
        if relevant:
            queries[query_id] = GoldenQuery(query_id, query, relevant)
        else:
            pointless.append(query_id)
    notes = [_left_out(pointless)] if pointless else []
    if strangers := [query_id for query_id in grades if query_id not in seen]:
        notes.append(f"{qrels_name} judges {len(strangers)} queries that {topics_name} has not: {_few(strangers)}")
    return _whole(topics_name, queries, notes, faults, "id, one tab, the query; one topic a line")


class _Wrong(Exception):
    """What is wrong in one line, and what is wanted instead."""

    def __init__(self, problem: str, wanted: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.wanted = wanted


@dataclass(slots=True)
class _Faults:
    """All that is wrong in one file, so that one look mends it."""

    name: str
    next_step: str
    found: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, at: int, wrong: _Wrong) -> None:
        self.count += 1
        if self.count <= NAMED:
            self.found.append(f"{self.name}, line {at}: {wrong.problem}; wanted: {wrong.wanted}")

    def raise_any(self) -> None:
        if self.count:
            more = f"\n... and {self.count - NAMED} more lines" if self.count > NAMED else ""
            raise ConfigurationError("\n".join(self.found) + more, next_step=self.next_step)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"{path}: there is no such file",
            next_step=f"name a golden set: a JSONL file, or a folder that holds {TOPICS} and {QRELS}",
        ) from error
    except OSError as error:
        raise ConfigurationError(
            f"{path}: cannot be read: {error.strerror}", next_step="make the golden set readable for this process"
        ) from error
    if len(data) > MOST_BYTES:
        raise ConfigurationError(
            f"{path}: is larger than {MOST_BYTES // 1024**2} MiB",
            next_step="use a sample: some hundred queries give intervals narrow enough to judge by",
        )
    return data


def _lines(data: bytes, faults: _Faults) -> Iterator[tuple[int, str]]:
    """Numbered from 1, without the empty ones; what is not UTF-8 is a fault."""
    for at, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        try:
            line = raw.decode()
        except UnicodeDecodeError:
            faults.add(at, _Wrong("is not UTF-8", "text in UTF-8"))
            continue
        if line.strip():
            yield at, line


def _whole(
    name: str, queries: Mapping[str, GoldenQuery], notes: Sequence[str], faults: _Faults, wanted: str
) -> GoldenSet:
    faults.raise_any()
    if not queries:
        reason = "; ".join(notes) or "it is empty"
        raise ConfigurationError(
            f"{name}: holds no query to judge by: {reason}", next_step=f"fill it with {wanted}; see docs/gate.md"
        )
    if len(queries) > MOST_QUERIES:
        raise ConfigurationError(
            f"{name}: {len(queries):,} queries, more than {MOST_QUERIES:,}",
            next_step="use a sample: some hundred queries give intervals narrow enough to judge by",
        )
    return GoldenSet(name, tuple(queries.values()), tuple(notes))


def _query(line: str, unread: dict[str, None]) -> GoldenQuery:
    try:
        value = json.loads(line, object_pairs_hook=_distinct, parse_constant=_no_constant)
        json.dumps(value, ensure_ascii=False).encode()
    except _Wrong:
        raise
    except UnicodeEncodeError:
        raise _Wrong("holds half a character (a lone surrogate)", "text in UTF-8") from None
    except (ValueError, RecursionError):
        raise _Wrong("is no JSON", _WANTED) from None  # the parser's own error shows the line's text
    if not isinstance(value, dict):
        raise _Wrong("is no JSON object", _WANTED)
    for name in ("id", "query", "relevant"):
        if name not in value:
            raise _Wrong(f"has no {name}", _WANTED)
    unread.update((str(name), None) for name in value.keys() - _FIELDS)
    query_id = value["id"]
    if isinstance(query_id, int) and not isinstance(query_id, bool):
        query_id = str(query_id)
    return GoldenQuery(
        _text(query_id, "id"), _text(value["query"], "query"), _relevant(value["relevant"]), _slices(value.get("slice"))
    )


def _relevant(value: object) -> dict[str, float]:
    """Those above 0."""
    wanted = "relevant: {document key: grade}, a grade being a number, 0 or more"
    if not isinstance(value, dict):
        raise _Wrong("relevant is no object", wanted)
    relevant: dict[str, float] = {}
    for key, grade in value.items():
        if not key:
            raise _Wrong("relevant names a document with an empty key", wanted)
        if isinstance(grade, bool) or not isinstance(grade, int | float):
            raise _Wrong(f"the grade of {_shown(key)} is no number", wanted)
        if not 0 <= grade <= BEST_GRADE:  # also what is not a number at all: NaN
            raise _Wrong(f"the grade of {_shown(key)} is not between 0 and {BEST_GRADE:g}", wanted)
        if grade > 0:
            relevant[key] = float(grade)
    return relevant


def _slices(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    names = value if isinstance(value, list) else [value]
    if not all(isinstance(name, str) and name.strip() for name in names):
        raise _Wrong("slice is no text", 'slice: "name" or ["name", "other name"]')
    return tuple(dict.fromkeys(str(name) for name in names))


def _judgement(line: str) -> tuple[str, str, int]:
    wanted = "query id, 0, document key, grade (a whole number), with blanks between them"
    parts = line.split()
    if len(parts) != 4:
        raise _Wrong(f"has {len(parts)} columns", wanted)
    query_id, _, key, grade = parts
    try:
        number = int(grade)
    except ValueError:
        raise _Wrong(f"the grade of {_shown(key)} is no whole number", wanted) from None
    if number > BEST_GRADE:
        raise _Wrong(f"the grade of {_shown(key)} is above {BEST_GRADE:g}", wanted)
    return query_id, key, number


def _text(value: object, what: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _Wrong(f"{what} is no text", _WANTED if what in _FIELDS else "some words")
    if len(value) > MOST_CHARACTERS:
        raise _Wrong(f"{what} is longer than {MOST_CHARACTERS:,} characters", "what a person would type")
    return value


def _distinct(pairs: Iterable[tuple[str, object]]) -> dict[str, object]:
    """JSON lets a key come twice and keeps the last: one of the two would be left out silently."""
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise _Wrong(f"{_shown(key)} stands there twice", "each key once")
        found[key] = value
    return found


def _no_constant(name: str) -> float:
    return math.nan if name == "NaN" else math.inf


def _left_out(ids: Sequence[str]) -> str:
    some = "query has" if len(ids) == 1 else "queries have"
    return f"{len(ids)} {some} no relevant document and measure nothing: left out: {_few(ids)}"


def _few(names: Iterable[str]) -> str:
    """The first five by name."""
    every = list(names)
    return ", ".join(_shown(name) for name in every[:NAMED]) + (", ..." if len(every) > NAMED else "")


def _shown(name: str) -> str:
    return ascii(name if len(name) <= 60 else name[:59] + "…")
