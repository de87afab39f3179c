"""What every part of one build in one worker process works with: its space, encoder, limits, lease and counters.

Values and the ports they hold; it must never do anything by itself.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from connectors.protocols import Record, RecordSink, Space
from streams.carrying import OldSpace
from streams.chunking import Chunker
from streams.config_operation import TierName
from streams.documents import DocumentSchema, Put
from streams.encoding import Encoder
from streams.key_index import KeyIndex
from streams.ordering import Lane, Lease, PartitionLedger, Watermark
from streams.progress import Counters
from streams.spending import Spending
from streams.tiers import Passes, arrange

SCANS_AT_ONCE = 2


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one build keeps in flight. `window`: events a lane, at most; also what a former owner may have had.

    `concurrency`: groups of a lane that read or write the space at once; the endpoint has limits of its own.
    `together`: objects of groups that wait for their turn to write, and then go in one call: a whole request of the
    store, and small beside what a lane may have in flight.
    """

    batch: int = 64
    concurrency: int = 2
    together: int = 256
    window: int = 16384
    bytes_in_flight: int = 8 * 2**20
    read_records: int = 1000
    write_deadline_s: float = 20.0
    settle_s: float = 30.0

    @property
    def reach(self) -> int:
        """Events of a lane and partition that may be past the committed one: in flight, read, or in the channel."""
        return self.window + 4 * self.read_records


class Batch(NamedTuple):
    """Records of one lane and partition in offset order; everything below `position` has been delivered.

    `digests` stand beside the records (see documents.key_digest). A replay batch holds only records that the key
    index calls current, of the pass whose `watermark` this is; once that pass is over it means nothing. `changes`:
    beside records that no log holds any more, what they say.
    """

    lane: Lane
    ledger: PartitionLedger
    records: Sequence[Record]
    digests: Sequence[bytes]
    position: int
    tier: TierName = "rest"
    watermark: Watermark | None = None
    changes: Sequence[Put] | None = None


async def everything(partition: int, index: KeyIndex, tiers: Sequence[TierName] | None) -> Passes:
    """One pass."""
    return arrange(index, ())


@dataclass(slots=True)
class Build:
    """What every part of one build works with.

    `held`: why no replayed document may go on now, None when it may; `all_held`: live events may not either. `slowed`:
    the share of its speed at which a replay goes. `concurrency`: most requests of the replay at the endpoints. `order`:
    the passes of a partition's replay, by tiers that somebody set, None for those of the configuration. `scans`: whose
    turn it is to read a whole partition before its replay: each fetches far ahead, and few at once are as fast as all.
    `old_space`: what serves now beside this build, made from the same log; it may hold what that has forgotten.
    `sweep_share`: of the time, at most, in which a sweep of this space keeps the store at work (see Space.scan);
    `space_scans`: whose turn it is to read a whole space, since each partition's owner does it for itself.
    """

    collection: str
    version: str
    epoch: int
    topic: str
    dead_letters: str
    schema: DocumentSchema
    store_text: bool
    space_mark: str
    space: Space
    encoder: Encoder
    chunker: Chunker
    sink: RecordSink
    lease: Lease
    limits: Limits
    wall_ms: Callable[[], int]
    spending: Spending = field(default_factory=Spending)
    held: Callable[[], str | None] = lambda: None
    all_held: Callable[[], bool] = lambda: False
    slowed: Callable[[], float] = lambda: 1.0
    concurrency: Callable[[], int | None] = lambda: None
    order: Callable[[int, KeyIndex, Sequence[TierName] | None], Awaitable[Passes]] = everything
    old_space: Callable[[], OldSpace | None] = lambda: None
    sweep_share: Callable[[], float] = lambda: 1.0
    counters: dict[int, Counters] = field(default_factory=lambda: defaultdict(Counters))
    scans: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(SCANS_AT_ONCE))
    space_scans: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))

    @property
    def name(self) -> str:
        return f"{self.collection}/{self.version}"
