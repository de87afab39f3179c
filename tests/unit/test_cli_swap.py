"""What `cutover` refuses before it asks anybody, and how its figures read."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from streams.cli import MISUSED, cli
from streams.cli.swap import figures


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--check", "--approve"], "do not go together"),
        (["--approve", "--cancel"], "do not go together"),
        (["--force", " "], "--force wants a reason in words"),
        (["--accept-inconclusive", ""], "--accept-inconclusive wants a reason in words"),
        (["--approve", "--force", "now"], "withdraw the cutover and ask for it again"),
        (["--force"], "requires an argument"),
    ],
)
def test_what_does_not_go_together(options: list[str], said: str) -> None:
    result = CliRunner().invoke(cli, ["cutover", "docs", "v2", *options], prog_name="crossfade")
    assert result.exit_code == MISUSED
    assert said in result.stderr
    assert result.stdout == ""


def test_figures() -> None:
    assert figures({}) == []
    assert figures({"serving": "v2"}) == []
    assert figures({"checked": 1400, "missing": 0, "held": 0, "answers": "as it should"}) == [
        "  sweep: checked 1,400, missing 0, held 0",
        "  verified: its queries are answered by its space",
    ]
    assert figures({"answers": "2 queries found nothing"}) == ["  verified: NO"]
    assert figures({"forced": "a\nb", "approved_by": "ben@b"}) == ["  forced: a\\nb", "  approved by: ben@b"]
    assert figures({"accepted_held": ["k1", "k\n2"]}) == ["  accepted in the dead letters: k1, k\\n2"]
