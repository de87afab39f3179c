"""Lists of numbers out of JSON or base64 to float32, by exact types: numpy would turn "1", true and null into numbers.

It must never repair anything: what is not exactly one vector a text is refused whole.
"""

from __future__ import annotations

import binascii
from collections.abc import Sequence

import numpy as np

from connectors.embedders.base import check_vectors
from connectors.errors import WrongModel
from connectors.protocols import JSON, Vectors

Row = Sequence[float] | Vectors


def numbers(row: JSON, where: str, next_step: str) -> list[float]:
    """`row` itself when it is a list of numbers, whole ones included. Raises WrongModel otherwise."""
    if not isinstance(row, list) or not row or not {float, int}.issuperset(map(type, row)):
        raise WrongModel(f"{where} replied something that is no list of numbers", next_step=next_step)
    return row  # type: ignore[return-value]  # just shown


def packed_numbers(text: str, where: str, next_step: str) -> Vectors:
    """float32[dim] from base64 of little-endian float32. Raises WrongModel for anything else."""
    try:
        raw = binascii.a2b_base64(text.encode("ascii"), strict_mode=True)
    except (binascii.Error, UnicodeEncodeError):
        raw = b""
    if not raw or len(raw) % 4:
        raise WrongModel(f"{where} replied something that is no base64 of float32", next_step=next_step)
    return np.frombuffer(raw, "<f4").astype(np.float32)


def stack(rows: Sequence[Row], where: str, next_step: str) -> Vectors:
    """float32[n, dim]. Raises WrongModel when the sizes differ or a number is not finite."""
    try:
        with np.errstate(over="ignore"):  # what does not fit becomes infinite, and check_vectors refuses it
            vectors = np.array(rows, np.float32)
    except (ValueError, OverflowError) as error:
        raise WrongModel(f"{where} replied vectors of different sizes", next_step=next_step) from error
    return check_vectors(vectors, len(rows), where)
