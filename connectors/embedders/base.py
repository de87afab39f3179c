"""What all embedders share: the rejection that names its texts, and the strict check of a reply.

It must never repair a reply: vectors that are not exactly what was asked for are refused whole.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from connectors.errors import ContentRejected, WrongModel
from connectors.protocols import Vectors


class RejectedTexts(ContentRejected):
    """These texts of the call, by their `indexes`, and no others, cannot be embedded."""

    def __init__(self, message: str, indexes: Sequence[int], *, next_step: str = "") -> None:
        super().__init__(message, next_step=next_step)
        self.indexes = tuple(indexes)


def refuse_blank(texts: Sequence[str]) -> None:
    """Raises RejectedTexts naming the texts that are empty or only white space."""
    blank = [index for index, text in enumerate(texts) if not text or text.isspace()]
    if blank:
        raise RejectedTexts(
            f"{len(blank)} of {len(texts)} texts are blank", blank, next_step="give every document some text"
        )


def check_vectors(vectors: Vectors, count: int, source: str) -> Vectors:
    """`vectors` itself when it is one finite vector for each of `count` texts. Raises WrongModel otherwise."""
    if vectors.ndim != 2 or vectors.shape[0] != count or vectors.shape[1] == 0:
        raise WrongModel(
            f"{source} gave an array of shape {vectors.shape} for {count} texts",
            next_step="check that the address is that of an embedding endpoint",
        )
    if not np.isfinite(vectors).all():
        raise WrongModel(
            f"{source} gave numbers that are not finite", next_step="check the model's precision and its weights"
        )
    return vectors
