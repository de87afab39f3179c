"""What `rollout` refuses before it asks anybody, and how its figures read."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from streams.cli import MISUSED, cli
from streams.cli.rollout import lines
from streams.config_operation import Rollout
from streams.search.rolling import Rollouts, shown
from streams.search.tallies import SearchesRecord
from streams.state import BuildState, RolloutState, ServedBefore
from streams.versions import Stage


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--raise", "--end", "worse"], "do not go together"),
        (["--end", " "], "--end wants a reason in words"),
        (["--end"], "requires an argument"),
    ],
)
def test_what_does_not_go_together(options: list[str], said: str) -> None:
    result = CliRunner().invoke(cli, ["rollout", "docs", *options], prog_name="crossfade")
    assert result.exit_code == MISUSED
    assert said in result.stderr
    assert result.stdout == ""


def test_lines() -> None:
    build = BuildState(
        collection="docs", version="v2", epoch=2, stage=Stage.READY, envelope={}, fingerprint="f", space="S", topic="t",
        rollout=RolloutState(share=0.25, step=3, since_ms=0, configured=0.05),
    )  # fmt: skip
    rollouts = Rollouts()
    for at in range(1_200):
        hits, at_ms = None if at < 3 else at % 2, 0 if at < 1_000 else 100_000
        rollouts.add(build, 3, new=True, hits=hits, took_ms=12.0, at_ms=at_ms, window_s=60)
    record = SearchesRecord(collection="docs", replica="a", rollout=rollouts.tallies()["docs"], updated_at=0)
    rules = Rollout(automatic=True, window_s=60)
    found = lines(build, "v1", shown(build, rules, [record], 125_000))
    assert found == [
        "docs: the rollout of v2 stands at 25.0% of the callers, for 2m05s; raised by itself",
        "  version    queries   failed  nothing found         p95",
        "  v2           1,200        3            598     12.4 ms",
        "  v1               0        0              0           -",
        "  of these in the last 1m00s",
        "  v2             200        0            100     12.4 ms",
        "  v1               0        0              0           -",
        "  latency: not judged, since v1 has answered nothing to compare with",
        "  counted at this step by 1 server",
    ]
    assert build.rollout is not None
    before = ServedBefore(p95_ms=11.25, queries=2_400, step=2, share=0.05)
    after = build.model_copy(update={"rollout": build.rollout.model_copy(update={"before": before})})
    found = lines(after, "v1", shown(after, rules, [record], 40_000))
    assert found[-2] == (
        "  latency: compared with the 11.2 ms of v1 at step 2, with 5.0% of the callers, over 2,400 of its queries"
    )
    assert not any("in the last" in line for line in found), "the window is longer than the step"
    nothing = build.model_copy(update={"rollout": None})
    assert lines(nothing, "v1", shown(nothing, Rollout(), [], 0))[0] == "docs: no rollout of v2 has begun"
