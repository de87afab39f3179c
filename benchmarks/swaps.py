"""Cutover and rollback, again and again, under 200 searches a second: real `crossfade serve`, worker, Kafka, Weaviate.

Stretches with swaps alternate with quiet ones of the same length, with ones in which nothing but Weaviate's alias is
moved (what no swap can do without, however it is made), and with ones in which nothing is moved, but as much CPU is
used in the time a verb takes (what this machine lets nobody do without somebody waiting). All in one run. Every answer
is compared with what the space that it names answers alone; nothing is written to the topic meanwhile, so that these
are always the same.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
from pydantic import JsonValue

from benchmarks import deployment
from benchmarks.burning import Burners, burners
from benchmarks.deployment import busy_s, cpu_s, waited_s
from benchmarks.harness import Bench, Fact, Figures, Part, Table, Value, median, ratio, spread
from benchmarks.http_load import IDLE_S, Account, Answer, Connection, Load, latencies_ms, loaded, request
from tests.deployment import COLLECTION, Deployment, Event
from tests.serving import KEY, listens, serving

PER_S, TOP_K, QUERIES = 200.0, 10, 200
MOST_RATIO = 1.2
BETWEEN_S = 1.0
"""After each verb, and after each stretch."""
V1: Mapping[str, JsonValue] = {"embedder": {"provider": "hashing", "word_ngrams": None}, "dimensions": 128}
V2: Mapping[str, JsonValue] = {"embedder": {"provider": "hashing"}, "dimensions": 384}
KINDS = ("quiet", "alias", "cpu", "swaps")
SEARCH, SWAP = f"/collections/{COLLECTION}/search", f"/collections/{COLLECTION}/default-vector-space"


def text(number: int) -> str:
    """No two alike."""
    return f"document {number} about subject {number % 37} and matter {number % 41}, page {number * 17}"


def _events(documents: int) -> Iterator[Event]:
    return ((f"document-{number}", {"text": text(number)}, None) for number in range(documents))


@dataclass(slots=True)
class Asking:
    """Over one connection to a server, one call after the other. `status` is looked at: another than 200 raises."""

    host: str
    port: int
    _kept: Connection | None = None

    async def __call__(self, method: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        if self._kept is None or time.monotonic() - self._kept.used_s > IDLE_S:
            self.close()
            self._kept = await Connection.open(self.host, self.port)
        status, told = await self._kept.ask(request(self.host, self.port, path, KEY, body, method))
        found: dict[str, Any] = orjson.loads(told)
        if status != 200:
            raise RuntimeError(f"{method} {path}: {status}, {found.get('detail')}; {found.get('next_step')}")
        return found

    def close(self) -> None:
        if self._kept is not None:
            self._kept.close()
            self._kept = None


@dataclass(slots=True)
class Served:
    """v1 serves and v2 is ready, or the other way round. `expected`: by space, what it alone answers to each query."""

    deployed: Deployment
    server: subprocess.Popen[bytes]
    worker: subprocess.Popen[bytes]
    ask: Asking
    bodies: Sequence[Mapping[str, Any]]
    expected: dict[str, list[Any]] = field(default_factory=dict)

    def load(self, per_s: float = PER_S) -> Load:
        return Load(self.ask.host, self.ask.port, SEARCH, KEY, self.bodies, self.expected, per_s)

    async def swap(self, version: str) -> bool:
        """Returns whether it was a cutover, with its sweep. Raises RuntimeError when it was refused, or what serves
        then does not answer as it should."""
        swapped = await self.ask("PUT", SWAP, {"name": version})
        if not swapped["verified"]:
            raise RuntimeError(f"{version} was not verified: {swapped['message']}")
        return "checked" in swapped["data"]

    async def move_alias(self, version: str) -> None:
        """Past Crossfade: it has to point back before the next swap."""
        d = self.deployed
        await d.out.store.point_alias(d.out.settings.collection(COLLECTION).alias, d.build(version).space)


@asynccontextmanager
async def two_versions(deployed: Deployment, documents: int) -> AsyncIterator[Served]:
    """Into a deployment that has nothing running yet."""
    d = deployed
    listens(d, requests_per_minute=1_000_000)
    d.add_version("v1", V1)
    d.add_version("v2", V2)
    await d.produce(_events(documents))
    worker = d.start_worker()
    for version in ("v1", "v2"):
        await d.until_state(version, lambda build: build.stage == "ready", 300)
        await d.until_live_and_settled(version)
    async with serving(d) as (curl, server):
        host, _, port = curl.url.removeprefix("http://").partition(":")
        bodies = [{"query": text(7 * number % documents), "top_k": TOP_K} for number in range(QUERIES)]
        served = Served(d, server, worker, Asking(host, int(port)), bodies)
        await served.swap("v1")
        for version in ("v1", "v2"):
            answers = [await served.ask("POST", SEARCH, {**body, "vector_space": version}) for body in bodies]
            served.expected[d.build(version).space] = [answer["hits"] for answer in answers]
        try:
            yield served
        finally:
            served.ask.close()


@dataclass(frozen=True, slots=True)
class Stretch:
    """`begin_s`, `end_s`: on the monotonic clock; `used`: seconds of CPU of the server, of the worker and of the whole
    machine in it, and for how many the server was ready to run and had no core."""

    kind: str
    begin_s: float
    end_s: float
    used: Mapping[str, float]

    @property
    def seconds(self) -> float:
        return self.end_s - self.begin_s


@dataclass(frozen=True, slots=True)
class Verb:
    """What one of them took of the machine, beyond what was going on anyhow."""

    seconds: float
    cpu_s: float

    @classmethod
    def of(cls, stretches: Sequence[Stretch], kind: str) -> Verb:
        """The median."""
        seen = [one for one in stretches if one.kind == kind]
        quiet = [one.used["machine_cpu"] / one.seconds for one in stretches if one.kind == "quiet"]
        anyhow = statistics.median(quiet)
        return cls(
            statistics.median(one.seconds for one in seen),
            max(0.0, statistics.median(one.used["machine_cpu"] - anyhow * one.seconds for one in seen)),
        )


async def _stretch(
    served: Served, kind: str, swaps: int, seconds: float, burning: Burners, seen: Sequence[Stretch]
) -> list[Stretch]:
    """The whole, and, of one with swaps, each of them. `seen`: those before it."""
    since = _Since.now(served)
    parts: list[Stretch] = []
    if kind == "quiet":
        await asyncio.sleep(seconds)
    elif kind == "alias":
        for number in range(2 * swaps):
            await served.move_alias("v1" if number % 2 else "v2")
            await asyncio.sleep(max(0.0, since.at_s + (number + 1) * seconds / (2 * swaps) - time.monotonic()))
    elif kind == "cpu":
        verbs = [Verb.of(seen, what) for what in ("cutover", "rollback")]
        for verb in verbs * swaps:
            burning.burn(verb.cpu_s, verb.seconds)
            await asyncio.sleep(verb.seconds + BETWEEN_S)
    else:
        for _ in range(swaps):
            for what, version in (("cutover", "v2"), ("rollback", "v1")):
                this = _Since.now(served)
                if await served.swap(version) is not (what == "cutover"):
                    raise RuntimeError(f"the {what} was none")
                parts.append(this.stretch(what))
                await asyncio.sleep(BETWEEN_S)
    whole = since.stretch(kind)
    await asyncio.sleep(BETWEEN_S)
    return [whole, *parts]


@dataclass(frozen=True, slots=True)
class _Since:
    served: Served
    at_s: float
    used: Mapping[str, float]

    @classmethod
    def now(cls, served: Served) -> _Since:
        return cls(served, time.monotonic(), _used(served))

    def stretch(self, kind: str) -> Stretch:
        """Until now."""
        after = _used(self.served)
        used = {name: after[name] - before for name, before in self.used.items()}
        return Stretch(kind, self.at_s, time.monotonic(), used)


def _used(served: Served) -> dict[str, float]:
    return {
        "server_cpu": cpu_s(served.server),
        "worker_cpu": cpu_s(served.worker),
        "machine_cpu": busy_s(),
        "server_waits": waited_s(served.server),
    }


async def swapped(served: Served, rounds: int, swaps: int) -> tuple[Account, list[Stretch]]:
    """`rounds` of each of KINDS, with `swaps` cutovers and as many rollbacks, or what stands for them; under load all
    the time."""
    stretches: list[Stretch] = []
    async with loaded(served.load()) as account, burners() as burning:
        first = await _stretch(served, "swaps", 2, 0.0, burning, ())  # everything is warm then
        seconds, warm = first[0].seconds / 2 * swaps, first[1:]
        for number in range(rounds):
            for kind in reversed(KINDS) if number % 2 else KINDS:
                found = await _stretch(served, kind, swaps, seconds, burning, [*warm, *stretches])
                if kind == "swaps":
                    seconds = found[0].seconds
                stretches += found
    return account, stretches


def _figures(stretch: Stretch, answers: Sequence[Answer]) -> Figures:
    return {
        **latencies_ms(answers),
        "searches": float(len(answers)),
        "per_s": len(answers) / stretch.seconds,
        "failed": float(sum(bool(answer.failed) for answer in answers)),
        "mixed": float(sum(bool(answer.mixed) for answer in answers)),
        "spaces": float(len({answer.space for answer in answers if answer.space})),
        "seconds": stretch.seconds,
        **{name: used / stretch.seconds for name, used in stretch.used.items()},
    }


async def _measured(bench: Bench) -> tuple[Account, dict[str, list[Figures]]]:
    rounds, swaps = bench.sized(10, 1), bench.sized(5, 3)
    async with (
        deployment.deployment(bench.services, partitions=2) as d,
        two_versions(d, bench.sized(2000, 300)) as served,
    ):
        account, stretches = await swapped(served, rounds, swaps)
    figures: dict[str, list[Figures]] = {}
    for one in stretches:
        figures.setdefault(one.kind, []).append(_figures(one, account.window(one.begin_s, one.end_s)))
    for kind in ("cutover", "rollback"):  # all of them at once: one alone has too few searches for a p99
        whole = [one for one in stretches if one.kind == kind]
        answers = [answer for one in whole for answer in account.window(one.begin_s, one.end_s)]
        figures[f"all {kind}s"] = [latencies_ms(answers)]
    return account, figures


def measure(bench: Bench) -> Part:
    account, figures = asyncio.run(_measured(bench))
    quiet, swaps = figures["quiet"], figures["swaps"]
    rows: list[dict[str, Value]] = [
        {
            "stretches": name,
            "searches": sum(one["searches"] for one in of),
            "a second": str(spread(of, "per_s")),
            "p50, ms": str(spread(of, "p50_ms")),
            "p99, ms": str(spread(of, "p99_ms")),
            f"p99 / quiet (at most {MOST_RATIO:g})": str(ratio(of, quiet, "p99_ms")),
            "p99 / as much CPU": str(ratio(of, figures["cpu"], "p99_ms")),
            "worst, ms": max(one["worst_ms"] for one in of),
            "sent late, p99, ms": median(of, "late_p99_ms"),
            "cores used by the server": median(of, "server_cpu"),
            "by the worker": median(of, "worker_cpu"),
            "the server waits for a core, of the time": median(of, "server_waits"),
        }
        for name, of in (
            ("quiet", quiet),
            ("nothing but the alias moved, as often", figures["alias"]),
            ("nothing moved, as much CPU used", figures["cpu"]),
            ("cutover and rollback in turn", swaps),
        )
    ]
    each: list[dict[str, Value]] = [
        {
            "while one is under way": kind,
            "of them": len(figures[kind]),
            "one takes, s": str(spread(figures[kind], "seconds")),
            "p50, ms": figures[f"all {kind}s"][0]["p50_ms"],
            "p99, ms": figures[f"all {kind}s"][0]["p99_ms"],
            "worst, ms": figures[f"all {kind}s"][0]["worst_ms"],
            "the server waits for a core, of the time": median(figures[kind], "server_waits"),
        }
        for kind in ("cutover", "rollback")
    ]
    answers = account.answers
    problems = dict.fromkeys(answer.failed or answer.mixed for answer in answers if answer.failed or answer.mixed)
    for problem in list(problems)[:5]:
        print(f"swaps: {problem}")
    facts = [
        Fact("swaps: searches that failed", sum(bool(answer.failed) for answer in answers), most=0),
        Fact(
            "swaps: answers that are not whole of the one space they name", sum(bool(a.mixed) for a in answers), most=0
        ),
        Fact("swaps: spaces that answered in every stretch with swaps", min(s["spaces"] for s in swaps), least=2),
    ]
    what = (
        f"{PER_S:g} searches a second over HTTP, one each {1000 / PER_S:g} ms whatever is under way, for {TOP_K} "
        f"documents of {bench.sized(2000, 300):,}; {QUERIES} queries in turn, so their vectors are kept ones. Latency "
        "is from the moment a search was due. Cutovers (each sweeps and judges first) and rollbacks follow each other "
        f"with {BETWEEN_S:g} s between them; the other stretches are as long. Median of the stretches, with the "
        "smallest and the largest. Load, server, worker, Kafka and Weaviate share the machine."
    )
    by_verb = "The same searches, by the verb that was under way when they were due."
    tables = [Table("Cutover and rollback under load", what, rows), Table("Cutover, rollback", by_verb, each)]
    return Part(tables, facts, details=figures)
