"""That what a soak of hours has measured can be written down at its end."""

from __future__ import annotations

from pathlib import Path

import orjson

from benchmarks.harness import write
from benchmarks.soak import Minute, part_of


def test_each_tenth_stands_beside_the_first_and_each_minute_is_kept(tmp_path: Path) -> None:
    minutes = [Minute(60.0 * (n + 1), 1_000, 10.0 + n // 2, 150.0) for n in range(20)]
    write("soak", {"soak": part_of(minutes)}, tmp_path)
    told = orjson.loads((tmp_path / "soak.json").read_bytes())["parts"]["soak"]
    assert [row["of that of the first"] for row in told["tables"][0]["rows"]][::9] == [1.0, 1.9]
    assert len(told["details"]["minutes"]) == 20
    assert told["details"]["minutes"][3]["cpu_us"] == 11.0
