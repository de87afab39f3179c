"""Where the agents of builds live: a Faust app without a broker, whose agents have channels of their own."""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable

import faust

from streams.build import Batch

CHANNEL_DELIVERIES = 2


class _Unconnected(faust.App):
    """A stream asks its app for a consumer, also one of a channel; that one is never started."""

    def _new_consumer(self) -> faust.types.transports.ConsumerT:
        consumer = super()._new_consumer()
        consumer._thread.thread_loop.close()  # type: ignore[attr-defined]  # made for a thread that will not run
        return consumer


def agents_app(folder: str) -> faust.App:
    """It is never started: its agents are. `folder`: Faust insists on one for tables, which we never have.

    Not the app of the command stream: at each rebalance of its group, Faust empties the queues of all channels of an
    app, and what was delivered to an agent would never be resolved.
    """
    app = _Unconnected("crossfade-agents", store="memory://", datadir=folder, web_enabled=False)
    app.flow_control.resume()
    return app


class FaustHost:
    """A Faust agent on a channel of its own, started and stopped while the app is there (build_runner.AgentHost)."""

    def __init__(self, app: faust.App, name: str) -> None:
        self._app = app
        self._name = name
        self._channel = app.channel(maxsize=CHANNEL_DELIVERIES)
        self._agent: faust.types.AgentT[list[Batch]] | None = None

    async def start(self, body: Callable[[AsyncIterable[list[Batch]]], Awaitable[None]]) -> None:
        async def embed(stream: AsyncIterable[list[Batch]]) -> None:
            await body(stream)

        self._agent = self._app.agent(self._channel, name=self._name)(embed)
        await self._agent.start()

    async def put(self, delivery: list[Batch]) -> None:
        await self._channel.put(delivery)  # type: ignore[arg-type]  # typed for events, made for any value

    async def stop(self) -> None:
        if self._agent is not None:
            await self._agent.stop()
            self._app.agents.pop(self._name, None)
            self._agent = None
