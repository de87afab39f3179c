"""What the wiring decides by itself: how many documents go together."""

from __future__ import annotations

import pytest

from connectors.memory.embedder import MemoryEmbedder
from streams.config_embedders import HashingEmbedder, Version
from streams.encoding import Encoder
from streams.versions import Envelope
from streams.wiring import whole_requests
from tests.pools import pool_of


@pytest.mark.parametrize(
    ("batch", "most", "documents"),
    [(64, 32, 64), (64, 31, 62), (64, 127, 64), (8, 31, 8), (31, 31, 31), (100, 1, 100), (40, 31, 31)],
)
def test_a_group_makes_full_requests(batch: int, most: int, documents: int) -> None:
    encoder = Encoder(Envelope("p", "m", "1", 2, ("text",)), pool_of(MemoryEmbedder(2, max_batch=most)))
    version = Version(embedder=HashingEmbedder(), dimensions=2, batch=batch)
    assert whole_requests(version, encoder) == documents
