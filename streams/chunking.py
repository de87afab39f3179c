"""How a version cuts a document's text into the pieces that are embedded; part of its envelope.

Pure: the same text and envelope give the same chunks on every machine, and there is always at least one.
"""

from __future__ import annotations

from typing import Protocol

from connectors.errors import ConfigurationError


class Chunker(Protocol):
    """`splits`: whether a document may ever have more than one chunk; where not, no surplus is ever looked for."""

    splits: bool

    def split(self, text: str) -> list[str]:
        """At least one piece, in reading order."""
        ...


class WholeText:
    """Chunking `none`: one object a document."""

    splits = False

    def split(self, text: str) -> list[str]:
        return [text]


def make_chunker(chunking: str) -> Chunker:
    """The chunker an envelope names. Raises ConfigurationError for one this version does not know."""
    if chunking == "none":
        return WholeText()
    raise ConfigurationError(f"chunking {chunking!r} is not known", next_step="use chunking: none")
