"""The texts of several documents on their way to the model together, and coming back as vectors in any order.

Pure: it never decides what becomes of a document, only whether all of it has come.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from connectors.errors import ContentRejected
from connectors.protocols import Vectors


class Parts:
    """The texts of several documents in one list, and which documents have all their vectors."""

    def __init__(self, pieces: Sequence[list[str]]) -> None:
        self.texts = [text for parts in pieces for text in parts]
        self._pieces = pieces
        self._owner = [number for number, parts in enumerate(pieces) for _ in parts]
        self._place = [place for parts in pieces for place in range(len(parts))]
        self._found: list[dict[int, Vectors]] = [{} for _ in pieces]

    def arrived(self, indexes: Sequence[int], vectors: Vectors) -> list[int]:
        """`vectors`: float32[len(indexes), dim]. Returns the documents that are complete now."""
        complete: list[int] = []
        for index, vector in zip(indexes, vectors, strict=True):
            number = self._owner[index]
            self._found[number][self._place[index]] = vector
            if len(self._found[number]) == len(self._pieces[number]):
                complete.append(number)
        return complete

    def document(self, number: int) -> tuple[list[str], list[Vectors]]:
        """Its texts with their vectors."""
        found = self._found[number]
        return self._pieces[number], [found[place] for place in range(len(found))]

    def refused(self, rejected: Mapping[int, ContentRejected]) -> dict[int, ContentRejected]:
        """By document, for the first of its texts that was."""
        refused: dict[int, ContentRejected] = {}
        for index in sorted(rejected):
            refused.setdefault(self._owner[index], rejected[index])
        return refused
