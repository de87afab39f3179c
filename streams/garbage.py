"""How often a worker or a server process looks for garbage in cycles.

The pipeline makes hardly any: nearly all of its objects go by reference count. What is in flight is many thousands of
objects that live for a while, and Python's default looks through them again and again: that took a fifth of the merge
core's time.
"""

from __future__ import annotations

import gc

ALLOCATIONS, YOUNG, MIDDLE = 50_000, 20, 100


def collect_seldom() -> None:
    """For the rest of the process; what has been imported by now is never looked through again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(ALLOCATIONS, YOUNG, MIDDLE)
