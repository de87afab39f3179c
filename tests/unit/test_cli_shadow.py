"""How the figures of shadowed queries read."""

from __future__ import annotations

from streams.cli.shadow import lines
from streams.search.rolling import compared
from streams.search.tallies import SearchesRecord, ShadowTally
from streams.state import BuildState
from streams.versions import Stage


def build(version: str) -> BuildState:
    return BuildState(
        collection="docs", version=version, epoch=1, stage=Stage.READY, envelope={}, fingerprint="f", space=version,
        topic="t",
    )  # fmt: skip


def test_lines() -> None:
    tally = ShadowTally(live="v1", live_space="v1", shadow="v2", shadow_space="v2", k=10, asked=3, failed=1)
    tally.add(0.5, 0.25, (10, 20.0), (0, 30.0))
    tally.add(1.0, 1.0, (10, 20.0), (10, 30.0))
    record = SearchesRecord(collection="docs", replica="a", shadow=tally, updated_at=0)
    found = compared(build("v1"), build("v2"), [record])
    assert found is not None
    assert lines("docs", found) == [
        "docs: 3 queries of v1 also asked of v2 by 1 server: 2 compared, 1 failed, 0 dropped",
        "  of the first 10: overlap 75.0%, in order 62.5%",
        "  found nothing: v1 0.0%, v2 50.0%",
        "  95% within: v1 20.2 ms, v2 31.3 ms",
    ]
    assert compared(build("v1"), build("v3"), [record]) is None
