"""The seams between the pipeline and the outside world: values that cross them, and what each side promises.

The real connectors and the in-memory ones of `connectors.memory` both pass the suite in `tests/contract`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
JSON = str | int | float | bool | None | list["JSON"] | dict[str, "JSON"]


class Record(NamedTuple):
    """One record of a topic as the log holds it. `value` None is a delete (a tombstone)."""

    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None


class RangeBatch(NamedTuple):
    """Records of a bounded read, in offset order, and `position`: every offset below it has been passed.

    `done` is proof that the end of the range was reached (rule 7): a record at or past the end, or
    end-of-partition at or past it.
    """

    records: list[Record]
    position: int
    done: bool


class KeyBatch(NamedTuple):
    """Of each record of a bounded read, in offset order: what stands for its key, its offset, and whether it is a
    delete. `position` and `done` as in RangeBatch."""

    digests: list[bytes]
    offsets: list[int]
    deleted: list[bool]
    position: int
    done: bool


class Commit(NamedTuple):
    """A group's committed position of one partition: the next offset to read, and its metadata string."""

    offset: int
    metadata: str = ""


@dataclass(frozen=True, slots=True)
class TopicFacts:
    """What a topic is. `topic_id` differs after the topic was deleted and created anew."""

    name: str
    topic_id: str
    partitions: int
    cleanup_policy: str
    retention_ms: int
    delete_retention_ms: int
    max_message_bytes: int


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of one partition: the first offset still in the log, and the last stable offset (read_committed)."""

    earliest: int
    stable: int


class Rebalance(Protocol):
    """What a group reader tells its owner. Called while no read is delivered; each may take its time."""

    async def assigned(self, committed: Mapping[int, Commit | None]) -> Mapping[int, int]:
        """Partitions gained, with the group's commits. Returns where to begin reading each (never a default)."""
        ...

    async def revoked(self, partitions: Sequence[int]) -> Mapping[int, Commit]:
        """Stop and drain these partitions (rule 9). Returns the last commit to make, while they are ours."""
        ...

    async def lost(self, partitions: Sequence[int]) -> None:
        """These are already somebody else's: drop everything in flight, commit nothing."""
        ...


class GroupReader(Protocol):
    """A member of one consumer group on one topic, read_committed. Delivers, and commits what it is told to.

    Call order: `start`, then `read` over and over (also while paused: membership and rebalances live there),
    `commit` at any time between reads, `close` last: it revokes what is held (callback included) and leaves.
    """

    async def start(self, owner: Rebalance) -> None: ...

    async def read(self, max_records: int, timeout_s: float) -> list[Record]:
        """At most `max_records` records, in offset order for each partition; [] when nothing came in `timeout_s`.

        Raises Transient when brokers are away, IdentityChanged when a position is out of the log's range,
        Fenced when the group has thrown this member out.
        """
        ...

    def positions(self) -> Mapping[int, int]:
        """Next offset to be delivered, for each assigned partition; gaps crossed by position (rule 6)."""
        ...

    def pause(self, partitions: Sequence[int]) -> None: ...

    def resume(self, partitions: Sequence[int]) -> None: ...

    async def commit(self, commits: Mapping[int, Commit]) -> None:
        """Commit, and return when the broker acknowledged it: the proof of membership that rule 11 builds on.

        Raises Fenced when this member is no longer in the group, Transient when no answer came.
        """
        ...

    async def close(self) -> None: ...


class Log(Protocol):
    """Reading one cluster's topics outside any group, and the offsets a group without members keeps."""

    async def facts(self, topic: str) -> TopicFacts:
        """Raises NotFound when the topic does not exist, Unreachable when no broker answers."""
        ...

    async def bounds(self, topic: str) -> Mapping[int, Bounds]: ...

    def group_reader(self, topic: str, group: str) -> GroupReader: ...

    def read_range(self, topic: str, partition: int, start: int, end: int) -> AsyncIterator[RangeBatch]:
        """[start, end) of one partition, read_committed; the last batch has `done`, also for an empty range.

        A `start` below the log's first offset begins at what is left; callers who must know ask `bounds` first.
        """
        ...

    def read_keys(
        self, topic: str, partition: int, start: int, end: int, digest: Callable[[bytes], bytes]
    ) -> AsyncIterator[KeyBatch]:
        """As `read_range`, and faster: of the keys it gives only what `digest` makes of them (b"" where there is none).

        `digest` is called where the log is read, for any number of records on end: it must be quick and touch nothing.
        """
        ...

    async def committed(self, group: str, topic: str) -> Mapping[int, Commit]:
        """Partitions without a commit are absent."""
        ...

    async def commit_offsets(self, group: str, topic: str, commits: Mapping[int, Commit]) -> None:
        """For a group that has no members (the replay lane's)."""
        ...


class RecordSink(Protocol):
    """Appends records to a topic; returns when all in-sync replicas have them."""

    async def send(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]] = ()
    ) -> None: ...


class Write(NamedTuple):
    """One record of an atomic write."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()


class AtomicWriter(Protocol):
    """Writes all or nothing, under one identity that whoever fenced last holds alone.

    Call order: `fence`, then `write` over and over. After UnknownOutcome call `fence` again before anything else.
    """

    async def fence(self) -> None: ...

    async def write(self, records: Sequence[Write]) -> None:
        """Raises Fenced when another has fenced since; any other error but UnknownOutcome means nothing was written."""
        ...


class SpaceObject(NamedTuple):
    """One object to store. `vector`: float32[dim]."""

    uuid: UUID
    properties: Mapping[str, JSON]
    vector: Vectors


@dataclass(frozen=True, slots=True)
class Head:
    """The reserved properties of one stored object; `vector` float32[dim] only where it was asked for."""

    uuid: UUID
    doc_id: str
    doc_hash: str
    chunk: int
    chunks: int
    source_hash: str
    partition: int
    offset: int
    vector: Vectors | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    """One search result. `score` is 1 - distance/2 for cosine, negative distance otherwise; higher is better.

    `offset`: of the event it was written from, in its document's partition.
    """

    uuid: UUID
    doc_id: str
    chunk: int
    score: float
    distance: float
    properties: Mapping[str, JSON]
    offset: int


Operator = Literal["eq", "in", "lt", "lte", "gt", "gte"]
Scalar = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Condition:
    """What a user's property of a hit must be; an object without the property never matches. `in` has a tuple.

    keyword and bool: eq; keyword, int and number: in; int, number and date (RFC 3339): eq, lt, lte, gt, gte.
    """

    name: str
    operator: Operator
    value: Scalar | tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class SpaceSpec:
    """What a space is created with: metric cosine, dot or l2-squared; the user's properties by name and type.

    Types are text, keyword, int, number, bool and date.
    """

    name: str
    dimensions: int
    metric: str
    description: str
    quantization: str = "none"
    properties: Mapping[str, str] = field(default_factory=dict)


class Space(Protocol):
    """One space, by its concrete name. Reads and writes are QUORUM; every id of a call is accounted for."""

    name: str

    async def heads(self, uuids: Sequence[UUID], *, vectors: bool = False) -> Mapping[UUID, Head]:
        """Those that exist and that the store's index knows: a store that died may have lost an object from its index
        alone (see `erase`). Raises Transient; IdentityChanged when the space itself is gone."""
        ...

    async def upsert(self, objects: Sequence[SpaceObject]) -> Mapping[UUID, Exception]:
        """Store all, replacing what has the same id. Returns the objects that failed, each with its mapped error.

        Raises only when nothing is known of the whole call: UnknownOutcome, Unreachable, Overloaded,
        IdentityChanged (the space is gone; it is never created by a write).
        """
        ...

    async def delete(self, uuids: Sequence[UUID]) -> None:
        """Remove these objects; absent ones are no error. Returns when the store finds none of them."""
        ...

    async def erase(self, uuids: Sequence[UUID]) -> None:
        """As `delete`, but one by one and not through the store's index: also what that does not find is gone."""
        ...

    async def delete_chunks(self, doc_hashes: Sequence[str], from_chunk: int) -> int:
        """Remove these documents' objects with chunk >= from_chunk, until none is left. Returns how many."""
        ...

    def scan(self, page: int | None = None, share: float = 1.0) -> AsyncIterator[list[Head]]:
        """Every object once, chunks included, by cursor, without vectors. A page that fails for a moment is asked for
        again.

        `page`: objects of one; as many as suit the store, by default. `share`: of the time, at most, in which the store
        is at work on this; the rest is other callers' alone, and pages are short, so that none of them waits for long.
        """
        ...

    async def count(self) -> int: ...

    async def properties(self, uuids: Sequence[UUID]) -> Mapping[UUID, Mapping[str, JSON]]:
        """All stored properties of those that exist."""
        ...

    async def search(self, vector: Vectors, limit: int, filters: Sequence[Condition] = ()) -> list[Hit]:
        """The `limit` nearest objects that match all of `filters`. Raises ConfigurationError for a filter that this
        space cannot judge, WrongModel for a vector of another length."""
        ...

    async def indexing_queue(self) -> int:
        """Vectors that are stored and wait for their place in the index: a search may not find them yet.

        Raises Transient; IdentityChanged when the space is gone.
        """
        ...


@dataclass(frozen=True, slots=True)
class Capacity:
    """What the store has left, in bytes, on its fullest node; None where nobody says, and `troubles` why."""

    disk_free_bytes: int | None = None
    disk_total_bytes: int | None = None
    memory_used_bytes: int | None = None
    memory_limit_bytes: int | None = None
    troubles: tuple[str, ...] = ()

    @property
    def disk_used(self) -> float | None:
        """A share, 0 to 1."""
        if self.disk_free_bytes is None or not self.disk_total_bytes:
            return None
        return 1 - self.disk_free_bytes / self.disk_total_bytes

    @property
    def memory_used(self) -> float | None:
        """A share of the limit, 0 to 1."""
        if self.memory_used_bytes is None or not self.memory_limit_bytes:
            return None
        return self.memory_used_bytes / self.memory_limit_bytes


class VectorStore(Protocol):
    """Spaces and aliases of one store."""

    async def create_space(self, spec: SpaceSpec) -> None:
        """Raises Refused when a space of this name exists with another description; same description is no error."""
        ...

    async def description(self, name: str) -> str | None:
        """The description the space was created with, or None when there is no such space."""
        ...

    async def properties(self, name: str) -> Mapping[str, str]:
        """The user's properties of a space, by name and type. Raises IdentityChanged when it is gone."""
        ...

    async def drop_space(self, name: str) -> None:
        """Absent is no error."""
        ...

    async def spaces(self) -> list[str]: ...

    def space(self, name: str) -> Space: ...

    async def alias_target(self, alias: str) -> str | None: ...

    async def point_alias(self, alias: str, space: str) -> None:
        """Create or move the alias, atomically for its readers. Raises NotFound when the space does not exist."""
        ...

    async def drop_alias(self, alias: str) -> None: ...

    async def close(self) -> None: ...


class Embedded(NamedTuple):
    """`vectors`: float32[n, dim], in the order of the texts. `tokens`: as the endpoint counted, or None."""

    vectors: Vectors
    tokens: int | None = None


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What an endpoint says of itself; None where it does not say."""

    model: str | None = None
    revision: str | None = None
    max_batch: int | None = None
    max_batch_tokens: int | None = None
    max_input_tokens: int | None = None


class Embedder(Protocol):
    """Texts to vectors; knows an endpoint, nothing of documents, prefixes or versions. Never retries."""

    max_batch: int

    async def embed(self, texts: Sequence[str]) -> Embedded:
        """One vector for each text.

        Raises Transient when the endpoint is away or busy, ContentRejected when it refuses this content,
        AccessDenied for keys, WrongModel when the reply is not one finite vector for each text.
        """
        ...

    async def facts(self) -> ModelFacts:
        """Asks the endpoint; all None where it has no such question. Raises as `embed` does."""
        ...

    async def close(self) -> None: ...
