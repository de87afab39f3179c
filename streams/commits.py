"""What a live lane says beside its committed offset, for whoever owns the partition next, or reads its space.

Values only.
"""

from __future__ import annotations

from dataclasses import dataclass

import orjson


@dataclass(frozen=True, slots=True)
class LiveCommit:
    """Metadata of a live commit. `clean`: the owner left with nothing in flight and nothing in doubt.

    `doubts`: events below this commit may still change, or were never swept (rules 8 and 11). `at_ms`: until when the
    lane had read all that the log held (see ordering.Following). `carry`: documents that the log has forgotten may be
    missing, and are still to be had from the space that serves.
    """

    epoch: int
    clean: bool
    doubts: bool
    at_ms: int
    carry: bool = False

    def to_metadata(self) -> str:
        values = {
            "epoch": self.epoch,
            "clean": self.clean,
            "doubts": self.doubts,
            "at": self.at_ms,
            "carry": self.carry,
        }
        return orjson.dumps(values).decode()

    @classmethod
    def from_metadata(cls, metadata: str) -> LiveCommit:
        """Metadata that somebody else wrote counts as an unclean leave, long ago."""
        try:
            raw = orjson.loads(metadata)
            told = int(raw["epoch"]), bool(raw["clean"]), bool(raw["doubts"]), int(raw["at"])
            return cls(*told, carry=bool(raw.get("carry")))
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
            return LONG_AGO


LONG_AGO = LiveCommit(0, clean=False, doubts=True, at_ms=0)
"""No `carry`: after so long the serving version may have missed deletes too. What is missing is only counted."""
