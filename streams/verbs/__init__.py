"""What each command does, one file for each family; the controller calls them and nobody else.

A verb of several writes stores its intent first and may run again from there after a crash, to the same end.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from streams.state import Command, Verb
from streams.verbs import building, ending, rolling, swapping
from streams.verbs.desk import Desk

VERBS: Mapping[Verb, Callable[[Desk, Command], Awaitable[None]]] = {
    "start": building.start,
    "pause": building.pause,
    "resume": building.resume,
    "set": building.set_,
    "repair": building.request,
    "redrive": building.request,
    "replayed": building.replayed,
    "failed": building.failed,
    "cutover": swapping.cutover,
    "rollback": swapping.rollback,
    "retire": ending.retire,
    "abort": ending.abort,
    "rollout": rolling.rollout,
}
