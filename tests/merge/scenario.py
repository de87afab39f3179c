"""Random histories: actions drawn from a seed, carried out against a world, and printed when they break it.

It must never draw from anything but the seed: a failing one replays with `python -m tests.merge.scenario SEED`.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sys

from streams.embed_agent import Limits
from tests.merge.virtual_time import run
from tests.merge.world import REFUSED_BY_MODEL, REFUSED_BY_STORE, TOPIC, World

WORDS = ("ant", "bee", "cat", "dog", "elk", "fox")


class Scenario:
    """`calm`: no faults and one worker throughout, so that exact counts can be asserted."""

    def __init__(self, seed: int, *, calm: bool = False) -> None:
        self.seed = seed
        self.calm = calm
        self.rng = random.Random(seed)
        rng = self.rng
        self.partitions = rng.choice((1, 1, 2, 3))
        self.chunks = calm and rng.random() < 0.5
        self.keys = [f"k{i}" for i in range(rng.choice((2, 5, 12)))]
        self.steps = rng.choice((20, 40, 80))
        self.limits = Limits(
            batch=rng.choice((1, 2, 64)),
            concurrency=rng.choice((1, 2, 4)),
            window=rng.choice((2, 4, 50)),
            bytes_in_flight=rng.choice((100, 2**20)),
            read_records=rng.choice((1, 3, 100)),
            write_deadline_s=2.0,
            settle_s=4.0,
        )
        self.malformed = rng.choice((0.0, 0.1, 0.25))

    async def play(self) -> World:
        """Raises AssertionError where the space is not what the oracle says."""
        self.world = world = World(self.seed, partitions=self.partitions, chunks=self.chunks, limits=self.limits, calm=self.calm)
        for _ in range(self.rng.choice((0, 5, 30))):
            self._event()
        if self.rng.random() < 0.5:
            world.compact(keep_last=self.rng.choice((0, 3)), expire_tombstones=self.rng.random() < 0.5)
        await world.start_build()
        world.start_worker("a")
        for _ in range(self.steps):
            await self._step()
            await asyncio.sleep(self.rng.choice((0.0, 0.01, 0.05, 0.3, 1.0)))
        await self._end()
        return world

    async def _step(self) -> None:
        if self.rng.random() < 0.7:
            for _ in range(self.rng.choice((1, 1, 2, 8))):
                self._event()
        elif self.calm:
            self._topic()
        else:
            await self.rng.choice((self._weather, self._workers, self._workers, self._controls, self._topic_later))()

    def _event(self) -> None:
        key = self.rng.choice(self.keys)
        kind = self.rng.random()
        if kind < self.malformed:
            bad = self.rng.choice(
                (b"{", b"[]", {"text": ""}, {"text": REFUSED_BY_MODEL}, {"text": REFUSED_BY_STORE}, {"tag": "x"})
            )
            self._produce(key, bad)
        elif kind < self.malformed + 0.25:
            self._produce(key, self.rng.choice((None, None, {"op": "d", "before": {"text": "x"}})))
        else:
            count = self.rng.randint(1, 4) if self.chunks else 1
            text = "|".join(self.rng.choice(WORDS) for _ in range(count))
            self._produce(key, {"text": text, "tag": self.rng.choice(("x", "y"))})

    def _produce(self, key: str, value: object) -> None:
        self.world.produce(key, value)  # type: ignore[arg-type]  # JSON or bytes, as drawn above

    def _topic(self) -> None:
        world, what = self.world, self.rng.random()
        partition = self.rng.randrange(self.partitions)
        if what < 0.4:
            keep = self.rng.choice((0, 2, 10))
            world.compact(keep_last=keep)
        elif what < 0.7:
            world.say(f"gap in {partition}")
            world.kafka.skip(TOPIC, partition, self.rng.randint(1, 5))
        else:
            world.say(f"aborted transaction in {partition}")
            transaction = world.kafka.transaction()
            world.kafka.append(TOPIC, b"k0", b'{"text": "aborted"}', partition=partition, transaction=transaction)
            transaction.abort()

    async def _topic_later(self) -> None:
        self._topic()

    async def _weather(self) -> None:
        weather, rng = self.world.weather, self.rng
        kind = rng.choice(("slow", "store_fails", "store_unknown", "object_fails", "kafka_fails"))
        much = rng.choice((0.0, 0.0, 0.1, 0.4))
        setattr(weather, kind, much)
        self.world.say(f"weather: {kind} {much}")

    async def _workers(self) -> None:
        world, rng = self.world, self.rng
        names = sorted(world.workers)
        kind = rng.random()
        if not names or (kind < 0.35 and len(names) < 3):
            world.start_worker(f"{rng.choice('abc')}{round(world.loop.time() * 1000)}")
        elif kind < 0.6:
            await world.stop_worker(rng.choice(names))
        elif kind < 0.75:
            world.kill_worker(rng.choice(names))
        elif kind < 0.85:
            world.move(rng.randrange(self.partitions))
        else:
            name = rng.choice(names)
            network = world.workers[name].network
            away_s = rng.choice((1.0, 5.0, 12.0))
            network.cut_until_s = world.loop.time() + away_s
            world.say(f"the way of {name} to Kafka is cut for {away_s} s")

    async def _controls(self) -> None:
        paused = self.rng.choice((None, "replay", "all"))
        self.world.say(f"paused: {paused}")
        self.world.state = self.world.state.model_copy(update={"paused": paused})

    async def _end(self) -> None:
        """Fair weather, and one worker at least: all must come right, and soon."""
        world, weather = self.world, self.world.weather
        world.say("the end begins")
        weather.slow = weather.store_fails = weather.store_unknown = weather.object_fails = weather.kafka_fails = 0.0
        world.state = world.state.model_copy(update={"paused": None})
        if not world.workers:
            world.start_worker("z")
        await world.until_settled()
        await world.check()


def play(seed: int, *, calm: bool = False) -> World:
    """One history from its seed. An AssertionError carries the seed and everything that happened."""
    scenario = Scenario(seed, calm=calm)
    random.seed(seed)  # the jitter of streams.retry
    try:
        return run(scenario.play())
    except BaseException as error:
        story = "\n".join(getattr(scenario, "world", None).trace) if hasattr(scenario, "world") else ""  # type: ignore[union-attr]
        raise AssertionError(
            f"seed {seed}{' (calm)' if calm else ''}: {type(error).__name__}: {error}\n{story}\n"
            f"again: python -m tests.merge.scenario {seed}{' calm' if calm else ''}"
        ) from error


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    play(int(sys.argv[1]), calm="calm" in sys.argv[2:])
