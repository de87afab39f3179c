"""What every part of one build in one worker process works with: its space, encoder, limits, lease and counters.

Values and the ports they hold; it must never do anything by itself.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from connectors.protocols import Record, RecordSink, Space
from streams.chunking import Chunker
from streams.config_operation import TierName
from streams.documents import DocumentSchema
from streams.encoding import Encoder
from streams.key_index import KeyIndex
from streams.ordering import Lane, Lease, PartitionLedger, Watermark
from streams.progress import Counters
from streams.spending import Spending
from streams.tiers import Passes, arrange


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one build keeps in flight. `window`: events a lane, at most; also what a former owner may have had.

    `concurrency`: groups of a lane that read or write the space at once; the endpoint has limits of its own.
    """

    batch: int = 64
    concurrency: int = 2
    window: int = 4096
    bytes_in_flight: int = 64 * 2**20
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
    index calls current, of the pass whose `watermark` this is; once that pass is over it means nothing.
    """

    lane: Lane
    ledger: PartitionLedger
    records: Sequence[Record]
    digests: Sequence[bytes]
    position: int
    tier: TierName = "rest"
    watermark: Watermark | None = None


async def everything(partition: int, index: KeyIndex, tiers: Sequence[TierName] | None) -> Passes:
    """One pass."""
    return arrange(index, ())


@dataclass(slots=True)
class Build:
    """What every part of one build works with.

    `held`: why no replayed document may go on now, None when it may; `all_held`: live events may not either. `slowed`:
    the share of its speed at which a replay goes. `concurrency`: most requests of the replay at the endpoints. `order`:
    the passes of a partition's replay, by tiers that somebody set, None for those of the configuration.
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
    counters: dict[int, Counters] = field(default_factory=lambda: defaultdict(Counters))

    @property
    def name(self) -> str:
        return f"{self.collection}/{self.version}"
