"""Damage done to sound input: bytes changed, cut out, doubled, moved, or replaced by what parsers stumble over."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

CASES = int(os.environ.get("CROSSFADE_FUZZ_CASES", "1000"))

many = settings(
    max_examples=CASES,
    deadline=None,  # the machine may be busy
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)

WORDS = (
    "{ } [ ] : , - # ' | > ? % << &a *a !!python/object:x ${ $${ ${X ${CF_SECRET} ${CF_SECRET:- null true 1e999 NaN "
    "0x10 1_0 2024-99-99 \\ud800 \\u0000 file: file:. file:secret"
)
STUMBLING = [
    *(word.encode() for word in WORDS.split(" ")),
    *(b"\x00", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"\xf0\x9f\xa7\xaa", b"\n", b"\r", b"\t"),
    *(b" ", b'"', b"\\", b"a" * 300, b"[" * 100, b"[" * 3000, b"9" * 400, b"9" * 5000),
]

Edit = tuple[int, int, bytes]


def apply(seed: bytes, edits: Sequence[Edit]) -> bytes:
    """Each edit: where (modulo the length), how many bytes go, what comes instead; b"\\0copy" doubles them."""
    for at, gone, new in edits:
        place = at % (len(seed) + 1)
        cut = seed[place : place + gone]
        seed = seed[:place] + (cut + cut if new == b"\0copy" else new) + seed[place + gone :]
    return seed


def edited(seeds: Sequence[bytes], most: int = 6) -> st.SearchStrategy[bytes]:
    new = st.sampled_from([*STUMBLING, b"", b"\0copy"]) | st.binary(max_size=4)
    edit = st.tuples(st.integers(0, 10_000), st.sampled_from([0, 0, 1, 1, 2, 5, 20, 100_000]), new)
    build: Callable[[bytes, list[Edit]], bytes] = apply
    return st.builds(build, st.sampled_from(list(seeds)), st.lists(edit, min_size=1, max_size=most))
