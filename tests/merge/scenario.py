"""Random histories: actions drawn from a seed, carried out against worlds, and printed when they break them.

It must never draw from anything but the seed: a failing one replays with the command that it prints.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sys
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field

from streams.build import Limits
from tests.merge.virtual_time import run
from tests.merge.world import REFUSED_BY_MODEL, REFUSED_BY_STORE, TOMBSTONES_MS, TOPIC, World

WORDS = ("ant", "bee", "cat", "dog", "elk", "fox")
SHRINK_REPLAYS = 80


class Scenario:
    """`calm`: no faults and one worker throughout, so that exact counts can be asserted.

    Every action draws from a generator of its own, so that those named in `without` can be left out (by number, from
    0) and the others stay what they were. `worlds`: of the builds beside each other, one for each version.
    `forgetting`: the log loses its beginning once the first version is complete, and a second one is built.
    """

    def __init__(
        self, seed: int, *, calm: bool = False, without: Collection[int] = (), forgetting: bool = False
    ) -> None:
        self.seed = seed
        self.calm = calm
        self.without = without
        self.rng = rng = random.Random(f"{seed}")
        self.partitions = rng.choice((1, 1, 2, 3))
        self.chunks = rng.random() < (0.5 if calm else 0.2)
        self.keys = [f"k{i}" for i in range(rng.choice((2, 5, 12)))]
        self.early = rng.choice((0, 5, 30))
        self.steps = rng.choice((20, 40, 80))
        self.limits = Limits(
            batch=rng.choice((1, 2, 64)),
            concurrency=rng.choice((1, 2, 4)),
            together=1 if seed % 5 else 256,
            window=rng.choice((2, 4, 50)),
            bytes_in_flight=rng.choice((100, 2**20)),
            read_records=rng.choice((1, 3, 100)),
            write_deadline_s=2.0,
            settle_s=4.0,
        )
        self.malformed = rng.choice((0.0, 0.1, 0.25))
        self.second_version = not calm and rng.random() < 0.15
        self.stop_for = None if calm or self.second_version or rng.random() > 0.1 else rng.choice(tuple(STOPS))
        self.tiered = rng.random() < 0.4
        self.forgets = forgetting or (self.second_version and rng.random() < 0.4)
        if forgetting:
            self.second_version, self.stop_for = True, None
        self.worlds: list[World] = []
        self.world: World
        self.actions = 0

    async def play(self) -> None:
        """Raises AssertionError where a space is not what the oracle says, or a cause to stop goes unnoticed."""
        self.world = World(
            self.seed, partitions=self.partitions, chunks=self.chunks, limits=self.limits, calm=self.calm
        )
        self.worlds.append(self.world)
        for _ in range(self.early):
            await self._act(self._early_event)
        await self._act(self._early_compaction)
        if self.tiered:
            await self._act(self._searches)
        await self.world.start_build()
        if not self.calm:
            await self._act(self._late_worker)
        self.world.start_worker("a")
        if not self.calm:
            await self._act(self._early_trouble)
        for _ in range(self.steps):
            await self._act(self._step)
        if self.second_version:
            if self.forgets:
                await self._act(self._forget)
            await self._begin_second()
            if self.forgets:
                await self._act(self._forget_under_a_replay)
            for _ in range(self.steps // 2):
                await self._act(self._step)
        if not self.calm:
            await self._act(self._finale)
        await self._end()

    async def _act(self, action: Callable[[], Awaitable[None]]) -> None:
        number, self.actions = self.actions, self.actions + 1
        if number not in self.without:
            self.rng = random.Random(f"{self.seed}/{number}")
            await action()

    async def _step(self) -> None:
        if self.rng.random() < 0.7:
            for _ in range(self.rng.choice((1, 1, 2, 8))):
                self._event()
        elif self.calm:
            await self._topic()
        else:
            kinds = (self._weather, self._weather, self._workers, self._workers, self._workers, self._controls)
            # a delete that nobody saw of a document that the log has forgotten leaves no trace: see docs/forgotten.md
            rare = (self._forget_more, self._abort) if self.forgets else (self._long_absence, self._abort)
            if self.forgets and len(self.worlds) > 1 and self.rng.random() < 0.2:
                await self._forget_more()
            await (self.rng.choice(rare) if self.rng.random() < 0.03 else self.rng.choice((*kinds, self._topic)))()
        await asyncio.sleep(self.rng.choice((0.0, 0.01, 0.05, 0.3, 1.0)))

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

    async def _early_trouble(self) -> None:
        """Something befalls the first worker while it replays, or just after."""
        if self.rng.random() < 0.6:
            return
        if self.rng.random() < 0.3:
            await self._replay_after_a_restart()
            return
        self._weather_of(self.rng.choice(("slow", "store_fails", "store_unknown")), 0.4)
        await asyncio.sleep(self.rng.uniform(0.1, 3.0))
        await self._disturb(self.world, self.rng.uniform(0.3, 1.0))

    async def _replay_after_a_restart(self) -> None:
        """Live goes on while the replay is paused; whoever resumes it has not seen what live saw."""
        world, rng = self.world, self.rng
        await asyncio.sleep(rng.choice((0.0, 0.0, 0.1)))
        world.state = world.state.model_copy(update={"paused": "replay"})
        for _ in range(rng.choice((2, 8))):
            self._event()
        await asyncio.sleep(rng.choice((0.5, 3.0)))
        if rng.random() < 0.5:
            await world.stop_worker("a")
        else:
            world.kill_worker("a")
        world.start_worker("r")
        await asyncio.sleep(rng.choice((0.0, 1.0, 10.0)))
        world.state = world.state.model_copy(update={"paused": None})

    async def _early_event(self) -> None:
        self._event()

    def _produce(self, key: str, value: object) -> None:
        self.world.produce(key, value)  # type: ignore[arg-type]  # JSON or bytes, as drawn above

    def _compact(self, *, keep_last: int, expire_tombstones: bool = False) -> None:
        self.world.compact(keep_last=keep_last, expire_tombstones=expire_tombstones)
        for world in self.worlds:
            world.compacted = True

    async def _early_compaction(self) -> None:
        if self.rng.random() < 0.5:
            self._compact(keep_last=self.rng.choice((0, 3)), expire_tombstones=self.rng.random() < 0.5)

    async def _late_worker(self) -> None:
        """The first worker may come a while after the build has begun."""
        for _ in range(self.rng.choice((0, 0, 2, 8))):
            self._event()

    async def _topic(self) -> None:
        what, partition = self.rng.random(), self.rng.randrange(self.partitions)
        if what < 0.4:
            self._compact(keep_last=self.rng.choice((0, 2, 10)))
        elif what < 0.7:
            self.world.say(f"gap in {partition}")
            self.world.kafka.skip(TOPIC, partition, self.rng.randint(1, 5))
        else:
            self.world.say(f"aborted transaction in {partition}")
            transaction = self.world.kafka.transaction()
            self.world.kafka.append(TOPIC, b"k0", b'{"text": "aborted"}', partition=partition, transaction=transaction)
            if self.rng.random() < 0.3:  # open for a while: the last stable offset stands still
                await asyncio.sleep(self.rng.choice((0.3, 2.0)))
            transaction.abort()

    async def _weather(self) -> None:
        kind = self.rng.choice(("slow", "store_fails", "store_unknown", "object_fails", "kafka_fails"))
        self._weather_of(kind, self.rng.choice((0.0, 0.0, 0.1, 0.4)))

    def _weather_of(self, kind: str, much: float) -> None:
        setattr(self.world.weather, kind, much)
        self.world.say(f"weather: {kind} {much}")

    async def _workers(self) -> None:
        world, kind = self.rng.choice(self.worlds), self.rng.random()
        names = sorted(world.workers)
        if not names or (kind < 0.3 and len(names) < 3):
            world.start_worker(f"{self.rng.choice('abc')}{round(world.loop.time() * 1000)}")
        else:
            await self._disturb(world, kind)

    async def _disturb(self, world: World, kind: float) -> None:
        """Something befalls a worker."""
        rng = self.rng
        name = rng.choice(sorted(world.workers))
        network = world.workers[name].network
        away_s = rng.choice((1.0, 5.0, 12.0, 20.0))
        if kind < 0.5:
            await world.stop_worker(name)
        elif kind < 0.65:
            world.kill_worker(name)
        elif kind < 0.8:
            partition = rng.randrange(self.partitions)
            for _ in range(rng.choice((1, 2, 2))):  # from A to B, and back to A
                world.move(partition)
                await asyncio.sleep(rng.choice((0.1, 0.5, 2.0)))
        elif kind < 0.9:
            network.cut_until_s = world.loop.time() + away_s
            world.say(f"the way of {name} to Kafka is cut for {away_s} s")
        else:
            network.frozen_until_s = world.loop.time() + away_s
            world.say(f"{name} is frozen for {away_s} s")

    async def _finale(self) -> None:
        """Trouble with writes in flight, and after it one newer event of each key: nothing comes later to hide it."""
        rng, world = self.rng, self.rng.choice(self.worlds)
        if rng.random() < 0.4:
            return
        world.state = world.state.model_copy(update={"paused": None})
        while len(world.workers) < 2:
            world.start_worker(f"f{len(world.workers)}{round(world.loop.time() * 1000)}")
        await asyncio.sleep(rng.choice((2.0, 8.0)))
        self._weather_of(rng.choice(("slow", "slow", "store_fails", "store_unknown")), 0.4)
        for _ in range(rng.choice((2, 10, 30))):
            self._event()
        await asyncio.sleep(rng.choice((0.05, 0.3, 1.0)))
        await self._disturb(world, rng.uniform(0.35, 1.0))
        await asyncio.sleep(rng.choice((0.0, 0.1, 0.5, 2.0, 8.0)))
        for key in self.keys:
            self._produce(key, rng.choice((None, {"text": rng.choice(WORDS), "tag": "x"})))
        await asyncio.sleep(rng.choice((0.0, 0.3, 2.0, 20.0)))

    async def _controls(self) -> None:
        world, rng = self.rng.choice(self.worlds), self.rng
        if rng.random() < 0.3:
            kind = rng.choice(("repair", "redrive"))
            world.say(f"asked: {kind}")
            world.ask("repair" if kind == "repair" else "redrive")
            return
        if self.tiered and rng.random() < 0.5:
            await self._searches()
            tiers = rng.choice((None, [], ["listed"], ["newest"], ["newest", "listed"], ["listed", "newest"]))
            world.say(f"tiers: {tiers}")
            controls = world.state.controls.model_copy(update={"tiers": tiers})
            world.state = world.state.model_copy(update={"controls": controls})
            return
        paused = rng.choice((None, "replay", "all"))
        world.say(f"paused: {paused}")
        world.state = world.state.model_copy(update={"paused": paused})

    async def _searches(self) -> None:
        for world in self.worlds:
            keys = self.rng.sample(self.keys, self.rng.randint(0, len(self.keys)))
            world.search_for(keys, self.rng.choice((0.0, 0.3, 0.6)))

    async def _long_absence(self) -> None:
        """Live writes stand still until tombstones expire that nobody has read, by a pause or for want of a worker."""
        world = self.rng.choice(self.worlds)
        paused = self.rng.random() < 0.5
        if paused:
            world.say("paused: all")
            world.state = world.state.model_copy(update={"paused": "all"})
        else:
            for name in sorted(world.workers):
                await world.stop_worker(name)
        await asyncio.sleep(1.0)
        for key in self.rng.sample(self.keys, 2):
            self._produce(key, None)
        await asyncio.sleep(1.0 + TOMBSTONES_MS / 1000)
        world.expire()
        for other in self.worlds:
            other.compacted = True
        if paused:
            world.say("paused: None")
            world.state = world.state.model_copy(update={"paused": None})
        else:
            world.start_worker(f"w{round(world.loop.time() * 1000)}")

    async def _forget(self) -> None:
        """The first version is complete and nothing of it in doubt; then the log loses its beginning."""
        self._fair_weather()
        self.world.state = self.world.state.model_copy(update={"paused": None})
        if not self.world.workers:
            self.world.start_worker("y")
        await self.world.until_settled()
        for partition in range(self.partitions):
            if self.rng.random() < 0.5:
                await self._forget_below(partition)

    async def _forget_under_a_replay(self) -> None:
        """The second version has counted what the log has to give, and finds less when it comes to read it; the first
        may fall behind then, and somebody may be lost while documents are brought over from it."""
        first, second, rng = *self.worlds, self.rng
        if rng.random() < 0.5:
            second.state = second.state.model_copy(update={"paused": "replay"})
            await asyncio.sleep(rng.choice((1.0, 4.0, 8.0)))
            for _ in range(2 * self.partitions):
                await self._forget_more()
            if rng.random() < 0.6:
                first.state = first.state.model_copy(update={"paused": "all"})
                await asyncio.sleep(rng.choice((0.5, 2.0)))
                for key in rng.sample(self.keys, rng.randint(1, len(self.keys))):
                    self._produce(key, rng.choice((None, None, {"text": rng.choice(WORDS), "tag": "x"})))
                await asyncio.sleep(rng.choice((0.0, 0.5, 1.5)))
            second.state = second.state.model_copy(update={"paused": None})
        if rng.random() < 0.5:
            self._weather_of(rng.choice(("slow", "store_fails", "store_unknown")), 0.4)
            await asyncio.sleep(rng.uniform(0.1, 3.0))
            await self._disturb(second, rng.uniform(0.3, 1.0))
        await asyncio.sleep(rng.choice((0.0, 3.0)))
        first.state = first.state.model_copy(update={"paused": None})

    async def _forget_more(self) -> None:
        """Unless something is in doubt in the first version: nobody keeps a log for less than a settle time."""
        if self.world.settled(round(self.world.loop.time() * 1000) + 1_000_000 - 3_000):
            await self._forget_below(self.rng.randrange(self.partitions))

    async def _forget_below(self, partition: int) -> None:
        part = self.world.kafka.topic(TOPIC).partition(partition)
        most = min([part.stable, *(world.read_up_to(partition) for world in self.worlds)])
        if most > part.start:
            self.world.forget(partition, self.rng.choice((most, self.rng.randint(part.start, most))))
            for world in self.worlds:
                world.compacted = True

    async def _abort(self) -> None:
        worlds = self.worlds[1:] if self.forgets else self.worlds  # what the log forgot, the first alone has
        if not worlds:
            return
        world = self.rng.choice(worlds)
        if self.rng.random() < 0.5:
            for name in sorted(world.workers):
                world.kill_worker(name)
        await world.abort_build()
        world.start_worker(f"n{round(world.loop.time() * 1000)}")

    async def _begin_second(self) -> None:
        """Another version on the same topic, while the first goes on."""
        limits, partitions = self.limits, self.partitions
        second = World(self.seed, partitions=partitions, chunks=self.chunks, limits=limits, beside=self.world)
        self.worlds.append(second)
        await second.start_build()
        second.start_worker("s")

    def _fair_weather(self) -> None:
        weather = self.world.weather
        weather.slow = weather.store_fails = weather.store_unknown = weather.object_fails = weather.kafka_fails = 0.0

    async def _end(self) -> None:
        """Fair weather, and one worker at least: all must come right, and soon; also after the last zombie woke."""
        self.world.say("the end begins")
        self._fair_weather()
        for world in self.worlds:
            world.state = world.state.model_copy(update={"paused": None})
            if not world.workers:
                world.start_worker("z")
        for world in self.worlds:
            await world.until_settled()
            await world.check()
        awake_s = [worker.network.frozen_until_s for world in self.worlds for worker in world.workers.values()]
        if (wait_s := max(awake_s) + 3.0 - self.world.loop.time()) > 0:
            self.world.say("wait for the zombies")
            await asyncio.sleep(max(wait_s, 3.0))
            for world in self.worlds:
                await world.until_settled()
                await world.check()
        if self.stop_for is not None:
            await self._must_stop(STOPS[self.stop_for])

    async def _must_stop(self, stop: Stop) -> None:
        """Rules 1 and 2: something happens to the topic after which nothing may be written, and the cause be named."""
        world = self.world
        world.to_stop = True
        world.say(f"to stop for: {self.stop_for}")
        if not await stop.happens(world):
            return
        for _ in range(60):
            await asyncio.sleep(1.0)
            if world.failure is not None:
                break
        assert world.failure is not None, f"nobody noticed: {self.stop_for}"
        assert stop.cause in world.failure, f"{self.stop_for}: the cause named is: {world.failure}"


@dataclass(frozen=True, slots=True)
class Stop:
    """What happens to a settled build's topic, and words of the cause that must be named. False: it cannot here."""

    happens: Callable[[World], Awaitable[bool]]
    cause: str


async def _created_anew(world: World) -> bool:
    world.kafka.delete_topic(TOPIC)
    world.kafka.create_topic(TOPIC, world.state.partitions, delete_retention_ms=TOMBSTONES_MS)
    for n in range(200):
        world.produce(f"k{n}", {"text": "of another life"})
    return True


async def _more_partitions(world: World) -> bool:
    world.kafka.add_partitions(TOPIC, world.state.partitions + 1)
    return True


async def _two_partitions(world: World) -> bool:
    if world.state.partitions < 2:
        return False
    world.produce("astray", {"text": "one"}, partition=0)
    await world.until_settled()
    world.produce("astray", {"text": "two"}, partition=1)
    return True


async def _removed_unread(world: World) -> bool:
    for name in sorted(world.workers):
        await world.stop_worker(name)
    record = world.produce("k0", {"text": "never read"})
    world.kafka.truncate(TOPIC, record.partition, record.offset + 1)
    world.start_worker("after")
    return True


STOPS = {
    "the topic is created anew": Stop(_created_anew, "created anew"),
    "partitions are added": Stop(_more_partitions, "partitions, "),
    "a key in two partitions": Stop(_two_partitions, "in two partitions"),
    "records are removed unread": Stop(_removed_unread, "removed before they were read"),
}


@dataclass(slots=True)
class Played:
    """One history as it went. `failure`: what was wrong, "" when all was well; `actions`: how many there were."""

    worlds: list[World] = field(default_factory=list)
    actions: int = 0
    failure: str = ""
    cause: BaseException | None = None

    @property
    def story(self) -> str:
        return "\n".join(self.worlds[0].trace) if self.worlds else ""


def attempt(seed: int, *, calm: bool = False, without: Collection[int] = (), forgetting: bool = False) -> Played:
    """One history from its seed, whatever comes of it."""
    scenario = Scenario(seed, calm=calm, without=without, forgetting=forgetting)
    random.seed(seed)  # the jitter of streams.retry
    failure, cause = "", None
    try:
        run(scenario.play())
    except Exception as error:  # noqa: BLE001  whatever it is, it is what the history shows
        failure, cause = f"{type(error).__name__}: {error}", error
    return Played(scenario.worlds, scenario.actions, failure, cause)


def shrink(seed: int, actions: int, *, calm: bool = False, forgetting: bool = False) -> list[int]:
    """Numbers of actions without which the seed still fails: pieces are left out, ever smaller ones, within a bound."""
    without: set[int] = set()
    replays, size = 0, max(1, actions // 2)
    while replays < SHRINK_REPLAYS:
        dropped = False
        for first in range(0, actions, size):
            piece = set(range(first, min(first + size, actions))) - without
            if piece and replays < SHRINK_REPLAYS:
                replays += 1
                if attempt(seed, calm=calm, without=without | piece, forgetting=forgetting).failure:
                    without |= piece
                    dropped = True
        if size == 1 and not dropped:
            break
        size = max(1, size // 2)
    return sorted(without)


def spans(numbers: Collection[int]) -> str:
    """1, 2, 3, 7 as 1-3,7."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in runs)


def from_spans(text: str) -> set[int]:
    pairs = [part.partition("-") for part in text.split(",") if part]
    return {number for first, _, last in pairs for number in range(int(first), int(last or first) + 1)}


def report(
    seed: int, failed: Played, *, calm: bool = False, forgetting: bool = False, command: str = "tests.merge.scenario"
) -> str:
    """What broke, the shortest history found that breaks it, and the command that replays it exactly."""
    without = shrink(seed, failed.actions, calm=calm, forgetting=forgetting)
    least = attempt(seed, calm=calm, without=without, forgetting=forgetting)
    again = f"python -m {command} {seed}{' calm' if calm else ''}{' forgetting' if forgetting else ''}"
    return (
        f"seed {seed}: {failed.failure}\n"
        f"{failed.actions - len(without)} of {failed.actions} actions are enough:\n{least.story}\n"
        f"     ===>  {least.failure}\nagain: {again} without={spans(without)}\nin full: {again}"
    )


def play(seed: int, *, calm: bool = False) -> World:
    """One history from its seed. An AssertionError carries the seed and a short history that fails."""
    played = attempt(seed, calm=calm)
    if played.failure:
        raise AssertionError(report(seed, played, calm=calm)) from played.cause
    return played.worlds[0]


def main(arguments: list[str]) -> None:
    """SEED [calm] [forgetting] [without=SPANS]"""
    without = [from_spans(a.removeprefix("without=")) for a in arguments if a.startswith("without=")]
    played = attempt(
        int(arguments[0]),
        calm="calm" in arguments,
        without=without[0] if without else (),
        forgetting="forgetting" in arguments,
    )
    print(played.story)
    print(f"     ===>  {played.failure or 'all is well'}")
    sys.exit(1 if played.failure else 0)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main(sys.argv[1:])
