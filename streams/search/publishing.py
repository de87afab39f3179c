"""What a server process has counted, published to the progress topic, so that the controller can add all of it up.

It must never delay or fail a query: what cannot be written now is written with the next counts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from connectors.errors import CrossfadeError
from connectors.protocols import RecordSink
from streams.search.rolling import Rollouts
from streams.search.shadow import Shadows
from streams.search.tallies import SearchesRecord, searches_key

log = logging.getLogger(__name__)

EVERY_S = 1.0


class Publisher:
    """`run` in a task of its own, until it is cancelled; then `publish` once more, for what came last.

    `replica`: a name that no other process has, and this one never had before.
    """

    def __init__(
        self,
        rollouts: Rollouts,
        shadows: Shadows,
        sink: RecordSink,
        topic: str,
        replica: str,
        wall_ms: Callable[[], int],
    ) -> None:
        self._rollouts = rollouts
        self._shadows = shadows
        self._sink = sink
        self._topic = topic
        self._replica = replica
        self._wall_ms = wall_ms
        self._written: dict[str, bytes] = {}
        self._said = False

    async def run(self) -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            await self.publish()

    async def publish(self) -> None:
        """Whatever has changed since it was written last; a whole record each time, so a lost one is no loss."""
        steps, pairs = self._rollouts.tallies(), self._shadows.tallies()
        for collection in {**steps, **pairs}:
            record = SearchesRecord(
                collection=collection,
                replica=self._replica,
                rollout=steps.get(collection),
                shadow=pairs.get(collection),
                updated_at=0,
            )
            if self._written.get(collection) == (content := record.to_bytes()):
                continue
            dated = record.model_copy(update={"updated_at": self._wall_ms()})
            key = searches_key(collection, self._replica).encode()
            try:
                await self._sink.send(self._topic, key, dated.to_bytes())
            except CrossfadeError as error:
                if not self._said:
                    log.warning("what was counted of the searches waits to be published: %s", error.message)
                self._said = True
                return
            self._written[collection] = content
            self._said = False
