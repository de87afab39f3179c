"""How well an embedding endpoint is used: kept busy, up to its limits, live first, and nothing paid twice.

    python -m benchmarks.embedding [--quick] [--only busy,limit,live,again]

Crossfade's encoder beside two plain loops, in alternating runs against `gpu_server`; writes
results/embedding.json and .md.
It must never compare figures of different runs.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import subprocess
import sys
import tempfile
from array import array
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import perf_counter

from benchmarks.clients import CLIENTS, Client, Limits
from benchmarks.gpu_server import Model, quantile
from benchmarks.harness import Control, Figures, Part, Table, Value, alternate, endpoint, median, ratio, spread, write
from benchmarks.workload import Feed

OURS = "crossfade"
A10G = Model(documents_per_s=1500)
FASTER = Model(documents_per_s=10_000)
SHARED = f"{OURS}, a slot for live events alone"
LIVE_PER_S = 50.0
FAULTS: Mapping[str, float] = {"error": 0.02, "cut": 0.01, "slow": 0.02, "slow_factor": 5.0}
SEARCH_S = 5.0
AWAY_S = 1.0


@dataclass(frozen=True, slots=True)
class Effort:
    """How long each run takes, how many rounds there are, and how many texts are worked off under faults."""

    seconds: float
    rounds: int
    texts: int


FULL, QUICK = Effort(5.0, 5, 20_480), Effort(2.0, 1, 5_120)

_seeds = iter(range(1, 1_000_000))  # texts of no two runs are alike


async def _for(work: Awaitable[None], seconds: float) -> None:
    """Let it run for so long, then end it. What it raises before that is raised."""
    task = asyncio.ensure_future(work)
    await asyncio.wait([task], timeout=seconds)
    if task.done():
        task.result()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _idle(control: Control) -> None:
    """Until the endpoint has finished what it took."""
    while control.books()["in_progress"]:  # noqa: ASYNC110  # polled: another process knows
        await asyncio.sleep(0.05)


# the endpoint is kept busy


async def _replay(control: Control, name: str, limits: Limits, seconds: float) -> Figures:
    """One run, and the endpoint's books at the moment it was over."""
    control.reset()
    async with CLIENTS[name](control.url, limits) as client:
        task = asyncio.ensure_future(client.replay(Feed(next(_seeds), client.window)))
        await asyncio.wait([task], timeout=seconds)
        books = control.books()  # takes about a millisecond; then nothing more is counted
        if task.done():
            task.result()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await _idle(control)
    return {
        "busy": books["busy"],
        "documents_per_s": books["texts"] / seconds,
        "filled": books.share("tokens", "tokens_padded"),
        "refused": (books["refused_rate"] + books["refused_queue"]) / max(1.0, books["requests"]),
        "of_requests_allowed": books.share("requests_served", "requests_allowed"),
        "of_tokens_allowed": books.share("tokens", "tokens_allowed"),
        "requests_per_minute": 60 * books["requests_served"] / books["elapsed_s"],
        "tokens_per_minute": 60 * books["tokens"] / books["elapsed_s"],
    }


async def busy(effort: Effort, details: dict[str, object]) -> list[Table]:
    """At both capacities: the share of the slots' time in which they ran."""
    tables = []
    for model in (A10G, FASTER):
        with endpoint(model) as control:
            runs = {name: partial(_replay, control, name, Limits(), effort.seconds) for name in CLIENTS}
            figures = await alternate(runs, effort.rounds)
        rows: list[dict[str, Value]] = [
            {
                "client": name,
                "busy": str(spread(of, "busy")),
                "documents/s": median(of, "documents_per_s"),
                "tokens / padded tokens": median(of, "filled"),
                "documents/s, as a multiple of serial": str(ratio(of, figures["serial"], "documents_per_s")),
                "of gather": str(ratio(of, figures["gather"], "documents_per_s")),
                "requests refused": median(of, "refused"),
            }
            for name, of in figures.items()
        ]
        what = (
            f"A replay of {effort.seconds:g} s against an endpoint of {model.documents_per_s:,.0f} documents/s "
            f"({model.slots} slots, batches of {model.batch}, {model.tokens} tokens each, padded to the longest). "
            "Busy: share of the slots' time from the first request on, so the search for the best concurrency counts. "
            f"Median of {effort.rounds} rounds, with the smallest and the largest."
        )
        tables.append(Table(f"Kept busy at {model.documents_per_s:,.0f} documents/s", what, rows))
        details[f"busy at {model.documents_per_s:g}"] = {"model": asdict(model), "figures": figures}
    return tables


# up to the limit


async def limit(effort: Effort, details: dict[str, object]) -> list[Table]:
    """Under a limit of tokens, then of requests a minute: how much of it is used, and what is refused."""
    tables = []
    seconds = 2.5 * effort.seconds  # a limit is reached over seconds, not at once
    for title, limits in (
        ("tokens", Limits(tokens_per_minute=600_000)),
        ("requests", Limits(requests_per_minute=600)),
    ):
        model = Model(
            documents_per_s=10_000,
            requests_per_minute=limits.requests_per_minute,
            tokens_per_minute=limits.tokens_per_minute,
            retry_after="seconds",
        )
        share, rate = f"of_{title}_allowed", f"{title}_per_minute"
        most = limits.tokens_per_minute or limits.requests_per_minute
        with endpoint(model) as control:
            runs = {name: partial(_replay, control, name, limits, seconds) for name in CLIENTS}
            figures = await alternate(runs, min(3, effort.rounds))
        rows: list[dict[str, Value]] = [
            {
                "client": name,
                "used of the limit": str(spread([{"of": one[rate] / most} for one in of], "of")),
                "of the limit and its burst": str(spread(of, share)),
                "requests refused": str(spread(of, "refused")),
                "used, as a multiple of serial": str(ratio(of, figures["serial"], share)),
                "of gather": str(ratio(of, figures["gather"], share)),
            }
            for name, of in figures.items()
        ]
        what = (
            f"An endpoint that lets {most:,.0f} {title} a minute through ({model.burst_s:g} s of them at once), else "
            f"answers 429 with Retry-After in whole seconds; it could serve {model.documents_per_s:,.0f} documents/s. "
            f"{seconds:g} s a run. Used: what was served, beside the limit times the time, and beside all that "
            "could pass, burst at the start included. The plain loops know no limit; they wait as told, and try again."
        )
        tables.append(Table(f"Up to a limit of {title} a minute", what, rows))
        details[f"limit of {title}"] = {"model": asdict(model), "figures": figures}
    return tables


# live first


async def _events(client: Client, seed: int, seconds: float) -> array[float]:
    """Single texts at random moments, LIVE_PER_S of them a second; how long each took."""
    feed, drawn = Feed(-seed, 64), random.Random(seed)
    taken: array[float] = array("d")

    async def one(text: str) -> None:
        began = perf_counter()
        await client.live(text)
        taken.append(perf_counter() - began)

    end, coming = perf_counter() + seconds, list[str]()
    async with asyncio.TaskGroup() as group:
        while perf_counter() < end:
            if not coming:
                window = feed.take()
                assert window is not None  # it has no end
                coming = window.texts
            group.create_task(one(coming.pop()))
            await asyncio.sleep(drawn.expovariate(LIVE_PER_S))
    return taken


async def _live(control: Control, name: str, limits: Limits, seconds: float) -> Figures:
    """The same stream of events, first alone, then beside a replay at full speed."""
    control.reset()
    async with CLIENTS[name](control.url, limits) as client:
        await _events(client, next(_seeds), 0.5)  # connections are open
        quiet = await _events(client, next(_seeds), seconds)
        task = asyncio.ensure_future(client.replay(Feed(next(_seeds), client.window)))
        await _events(client, next(_seeds), SEARCH_S)
        control.reset()
        beside = await _events(client, next(_seeds), seconds)
        books = control.books()
        if task.done():
            task.result()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await _idle(control)
    figures = {"busy": books["busy"], "quiet_events": float(len(quiet)), "beside_events": float(len(beside))}
    for share in (0.5, 0.99):
        for phase, latencies in (("quiet", quiet), ("beside", beside)):
            figures[f"{phase}_p{share * 100:g}_ms"] = 1000 * (quantile(latencies, share) or 0.0)
    figures["p99_ratio"] = figures["beside_p99_ms"] / figures["quiet_p99_ms"]
    return figures


async def live(effort: Effort, details: dict[str, object]) -> list[Table]:
    """A text of now: how long until it has its vector, alone and beside a replay."""
    tables = []
    for model in (A10G, FASTER):
        with endpoint(model) as control:
            runs = {name: partial(_live, control, name, Limits(), effort.seconds) for name in CLIENTS}
            runs[SHARED] = partial(_live, control, OURS, Limits(live_slots=1, slots=model.slots), effort.seconds)
            figures = await alternate(runs, min(3, effort.rounds))
        rows: list[dict[str, Value]] = [
            {
                "client": name,
                "p50 alone, ms": median(of, "quiet_p50_ms"),
                "p99 alone, ms": median(of, "quiet_p99_ms"),
                "p50 beside a replay, ms": median(of, "beside_p50_ms"),
                "p99 beside a replay, ms": median(of, "beside_p99_ms"),
                "p99 beside / alone": str(spread(of, "p99_ratio")),
                "busy meanwhile": median(of, "busy"),
            }
            for name, of in figures.items()
        ]
        what = (
            f"{LIVE_PER_S:g} single texts a second at random moments, {effort.seconds:g} s alone and as long beside "
            f"a replay at full speed, on one client; the replay's first {SEARCH_S:g} s, in which the best concurrency "
            f"is looked for, are not counted; {model.documents_per_s:,.0f} documents/s, {model.slots} slots, "
            "first come first served: the endpoint knows no urgent requests, and a batch once begun is not "
            f"interrupted. {SHARED}: configured twice, with `lanes` and `concurrency`, so that the replay never has it."
        )
        tables.append(Table(f"Live first, at {model.documents_per_s:,.0f} documents/s", what, rows))
        details[f"live at {model.documents_per_s:g}"] = {"model": asdict(model), "figures": figures}
    return tables


# nothing paid twice


def _worker(name: str, url: str, record: Path, seed: int, texts: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "benchmarks.embedding", "--worker", name, url, str(record), str(seed)]
    return subprocess.Popen([*command, str(texts)], cwd=Path(__file__).parent.parent, stdin=subprocess.DEVNULL)


async def _work(name: str, url: str, record: str, seed: str, texts: str) -> None:
    """What a worker process does: everything that the record does not have yet."""
    async with CLIENTS[name](url, Limits()) as client:
        feed = Feed(int(seed), client.window, int(texts) // client.window, Path(record))
        await client.replay(feed)
        feed.close()


async def _again(control: Control, name: str, texts: int) -> Figures:
    """Faults all the time, the worker killed at a third and two thirds, the endpoint away for a second between."""
    control.reset()
    seed = next(_seeds)
    in_flight, away = 0.0, False
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "done"
        control.faults(**FAULTS, seed=seed)
        for share in (1 / 3, 2 / 3, 1.0):
            worker = _worker(name, control.url, record, seed, texts)
            try:
                while worker.poll() is None:
                    await asyncio.sleep(0.02)
                    books = control.books()
                    if not away and books["texts"] >= texts / 2:
                        control.faults(**FAULTS, seed=seed + 1, down_s=AWAY_S)
                        away = True
                    if share < 1 and books["texts"] >= share * texts:
                        in_flight += books["in_progress"]
                        worker.kill()
                        worker.wait()
            finally:
                worker.kill()
                worker.wait()
            if share == 1 and worker.returncode != 0:
                raise RuntimeError(f"{name} ended with {worker.returncode}")
            await _idle(control)
            control.mark()
    control.faults()
    books = control.books()
    return {
        "texts": float(texts),
        "served": books["texts"],
        "wasted": books["texts_wasted"],
        "wasted_tokens": books["tokens_wasted"],
        "after_a_kill": books["texts_again_restart"],
        "reply_lost": books["texts_again_lost"],
        "in_flight_at_kills": in_flight,
        "missing": texts - books["texts_delivered"],
        "faults": books["faults_error"] + books["faults_cut"] + books["faults_slow"] + books["refused_down"],
    }


async def again(effort: Effort, details: dict[str, object]) -> list[Table]:
    """What the endpoint served more than once, and why."""
    with endpoint(FASTER) as control:
        runs = {name: partial(_again, control, name, effort.texts) for name in CLIENTS}
        figures = await alternate(runs, min(3, effort.rounds))
    rows: list[dict[str, Value]] = [
        {
            "client": name,
            "texts": median(of, "texts"),
            "without a vector": str(spread(of, "missing")),
            "served again for nothing": str(spread(of, "wasted")),
            "tokens of these": median(of, "wasted_tokens"),
            "again after a kill": str(spread(of, "after_a_kill")),
            "requests in flight at the kills": median(of, "in_flight_at_kills"),
            "again, the reply was cut": median(of, "reply_lost"),
            "faults met": median(of, "faults"),
        }
        for name, of in figures.items()
    ]
    what = (
        f"{effort.texts:,} texts through a worker process that is killed twice, at {FASTER.documents_per_s:,.0f} "
        f"documents/s; {FAULTS['error']:.0%} of requests get 500, {FAULTS['cut']:.0%} a reply cut off, "
        f"{FAULTS['slow']:.0%} are {FAULTS['slow_factor']:g} times slower, and between the kills the endpoint is away "
        f"for {AWAY_S:g} s. What was done is noted as each client does it: a batch (serial), a round of them (gather), "
        "each text as its vector comes, which is when it is stored (crossfade); what a killed worker had begun and "
        "not noted is embedded again. For nothing: served again although this very process had been given the vector."
    )
    details["again"] = {"model": asdict(FASTER), "faults": FAULTS, "figures": figures}
    return [Table("Nothing paid twice, with faults and two kills", what, rows)]


PARTS: Mapping[str, Callable[[Effort, dict[str, object]], Awaitable[list[Table]]]] = {
    "busy": busy,
    "limit": limit,
    "live": live,
    "again": again,
}


async def run(parts: Sequence[str], effort: Effort, name: str) -> None:
    """Each part's tables are printed and written as they come."""
    for part in parts:
        details: dict[str, object] = {"effort": asdict(effort)}
        tables = await PARTS[part](effort, details)
        for table in tables:
            print(table.markdown(), flush=True)
        written = write(name, {part: Part(tables, details=details)})
    for path in written:
        print(f"wrote {path}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.embedding", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="in about two minutes, to see that all of it works")
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--worker", nargs=5, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        asyncio.run(_work(*given.worker))
        return
    parts = given.only.split(",")
    if unknown := set(parts) - PARTS.keys():
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    asyncio.run(run(parts, QUICK if given.quick else FULL, "embedding-quick" if given.quick else "embedding"))


if __name__ == "__main__":
    main()
