"""The command line on real services with a real worker: the whole walk, and what an operator sees of bad input.

Verbs run in this process through click's runner; the worker, and what depends on signals, in their own processes.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest
from click.testing import CliRunner, Result

from connectors.kafka.settings import KafkaSettings
from connectors.kafka.topics import Topics
from connectors.services import Addresses
from streams.cli import cli
from streams.config import load
from streams.documents import object_id
from streams.wiring import Outside
from tests.conftest import MakeTopic, Unique

ROOT = Path(__file__).parents[2]
CONSOLE_SCRIPT = (sys.executable, "-c", "from streams.cli import main; main()")
PATIENCE_S = 60.0
T = TypeVar("T")
V1 = "v1: {embedder: {provider: hashing, word_ngrams: null, char_ngrams: [3, 5]}, dimensions: 64}"
V2 = "v2: {embedder: {provider: hashing}, dimensions: 256}"


class Console:
    """One operator: a configuration file of their own, and the verbs."""

    def __init__(self, folder: Path, services: Addresses, unique: Unique, topic: str | None = None) -> None:
        self.folder = folder
        self.prefix = unique("cli")
        self.topic = topic or unique("docs")
        self.topic_is_ours = topic is None
        self.alias = unique("Docs")
        self.services = services
        self.path = folder / "crossfade.yaml"
        self.configure(V1)

    def configure(self, *versions: str, kafka: str = "", weaviate: Mapping[str, str] | None = None) -> None:
        addresses = weaviate or {"http": self.services.weaviate_http, "grpc": self.services.weaviate_grpc}
        below = "".join(f"\n      {version}" for version in versions) or " {}"
        self.path.write_text(
            f"kafka: {{bootstrap_servers: '{kafka or self.services.kafka}', topic_prefix: {self.prefix}}}\n"
            f"weaviate: {{http: 'http://{addresses['http']}', grpc: '{addresses['grpc']}', settle_s: 1}}\n"
            f"collections:\n  docs:\n    topic: {self.topic}\n    alias: {self.alias}\n"
            f"    text: {{fields: [text]}}\n    properties: {{title: text}}\n    versions:{below}\n"
        )

    def run(self, *args: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(cli, ["--config", str(self.path), *args], input=stdin, prog_name="crossfade")

    def done(self, *args: str, stdin: str | None = None) -> str:
        result = self.run(*args, stdin=stdin)
        assert result.exit_code == 0, (args, result.output)
        return result.stdout

    def data(self, *args: str) -> dict[str, Any]:
        """Of a read verb: nothing but one JSON object on stdout."""
        found = json.loads(self.done(*args, "--json"))
        assert isinstance(found, dict)
        return found

    def refused(self, *args: str, stdin: str | None = None, status: int = 1) -> str:
        """Stderr of a verb that must fail with a reason and a next step, and print nothing."""
        result = self.run(*args, stdin=stdin)
        assert result.exit_code == status, (args, result.output)
        assert result.stdout == ""
        assert "error: " in result.stderr
        assert "\n  next: " in result.stderr
        assert "Traceback" not in result.stderr
        return result.stderr

    def version(self, name: str) -> dict[str, Any]:
        versions = self.data("status", "docs")["collections"][0]["versions"]
        found: dict[str, Any] = {"state": "unknown", "reporting": False}
        for one in versions:
            found = one if one["version"] == name else found
        return found

    def until(self, name: str, state: str) -> dict[str, Any]:
        """Wait for a version's state as a worker reports it."""
        return eventually(lambda: self.version(name), lambda one: one["state"] == state and one["reporting"])

    def write(self, events: list[dict[str, Any]], name: str = "events.jsonl") -> str:
        path = self.folder / name
        path.write_text("".join(json.dumps(event) + "\n" for event in events))
        return str(path)

    def spawn(self, *args: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*CONSOLE_SCRIPT, "--config", str(self.path), *args],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @contextmanager
    def worker(self) -> Iterator[None]:
        log = self.folder / "worker.log"
        with log.open("a") as stderr:
            process = subprocess.Popen(
                [*CONSOLE_SCRIPT, "--config", str(self.path), "worker"],
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=stderr,
                stderr=stderr,
            )
            try:
                eventually(log.read_text, lambda said: "this worker is the controller" in said)
                yield
            finally:
                process.send_signal(signal.SIGTERM)
                status = process.wait(PATIENCE_S)
        assert status == 0, log.read_text()
        for line in log.read_text().splitlines():  # one line per event: time, level, logger
            assert line[:2] == "20", line
            assert line.split()[2] in ("INFO", "WARNING", "ERROR"), line
            assert "Authlib" not in line


def eventually(look: Callable[[], T], good: Callable[[T], bool]) -> T:
    deadline = time.monotonic() + PATIENCE_S
    while not good(found := look()):
        assert time.monotonic() < deadline, found
        time.sleep(0.2)
    return found


def put(i: int, key: str | None = None) -> dict[str, Any]:
    return {
        "key": key or f"k{i % 20}",
        "value": {"title": f"title {i}", "text": f"document number {i} about cats and topics"},
        "timestamp_ms": 1_700_000_000_000 + i,
    }


class MakeConsole(Protocol):
    """Makes an operator's console; without a topic, for one that does not exist yet."""

    def __call__(self, topic: str | None = None) -> Console: ...


@pytest.fixture
def make_console(tmp_path: Path, services: Addresses, unique: Unique) -> Iterator[MakeConsole]:
    made: list[Console] = []

    def make(topic: str | None = None) -> Console:
        made.append(Console(tmp_path, services, unique, topic))
        return made[-1]

    yield make
    for one in made:
        one.configure(V1)
        asyncio.run(_clean(one))


async def _clean(one: Console) -> None:
    """Take away what the workers of a test have made; the documents topic goes with its own fixture, or here."""
    out = await Outside.open(load(one.path))
    await out.store.drop_alias(one.alias)
    for space in await out.store.spaces():
        if space.startswith(f"{one.alias}_"):
            await out.store.drop_space(space)
    names = out.names
    for topic in (names.commands, names.state, names.progress, names.journal, names.dead_letters):
        await out.topics.delete_topic(topic)
    if one.topic_is_ours:
        await out.topics.delete_topic(one.topic)
    await out.close()


@pytest.fixture
def console(make_console: MakeConsole) -> Console:
    return make_console()


@pytest.fixture
def topic_console(make_console: MakeConsole, make_topic: MakeTopic) -> Console:
    return make_console(make_topic(2))


def test_the_whole_walk(topic_console: Console) -> None:
    c = topic_console
    file = c.write([put(i) for i in range(60)] + [{"key": "k3", "value": None}])
    said = c.done("produce", "docs", file, "--limit", "40")
    assert said.startswith(f"40 events sent to {c.topic}; last offset of partition 0: ")
    with c.worker():
        c.until("v1", "ready")
        assert "next: crossfade cutover docs v1" in c.refused("search", "docs", "cats")
        assert "docs: serving (nothing yet), previous (none)" in c.done("status")
        assert "docs/v1 can cut over" in c.done("cutover", "docs", "v1", "--check")
        assert c.data("status")["collections"][0]["serving"] is None

        assert "docs is served by v1\n  sweep: checked 20, missing 0, stale 0, extra 0" in c.done(
            "cutover", "docs", "v1"
        )
        found = c.data("search", "docs", "document number 25", "-k", "5")
        assert (found["version"], found["query"], len(found["hits"])) == ("v1", "document number 25", 5)
        assert found["hits"][0]["properties"]["cf_space"].startswith("v1@")

        c.configure(V1, V2)
        c.until("v2", "ready")
        assert c.data("produce", "docs", file, "--skip", "40")["sent"] == 21
        clean = c.data("verify", "docs", "v2")
        assert (clean["clean"], clean["checked"], clean["missing"], clean["stale"], clean["extra"]) == (
            True,
            19,
            0,
            0,
            0,
        )
        assert c.done("verify", "docs", "v1").startswith("docs/v1: clean")

        swapped = json.loads(c.done("cutover", "docs", "v2", "--why", "better", "--json"))
        assert (swapped["ok"], swapped["data"]["serving"]) == (True, "v2")
        assert c.data("search", "docs", "cats")["version"] == "v2"
        assert c.data("search", "docs", "cats", "--version", "v1")["stage"] == "previous"
        assert "docs is served by v1; v2 is kept current" in c.done("rollback", "docs")
        assert c.done("search", "docs", "number 55").startswith("docs/v1 (serving): 10 documents in ")

        assert "serving: it cannot be retired" in c.refused("retire", "docs", "v1", "--confirm", "v1")
        assert "--confirm v2" in c.refused("retire", "docs", "v2", "--confirm", "v1")
        assert "--confirm v2" in c.refused("retire", "docs", "v2")
        assert "v2 is retired" in c.done("retire", "docs", "v2", "--confirm", "v2")
        assert "its space is gone" in c.refused("search", "docs", "cats", "--version", "v2")
        assert "no space to compare" in c.refused("verify", "docs", "v2")

        story = c.data("explain", "docs", "k5")
        # older records may have been compacted away meanwhile
        assert [r["newest"] for r in story["records"]] == [False] * (len(story["records"]) - 1) + [True]
        assert {s["version"]: s["verdict"] for s in story["spaces"]} == {"v1": "current"}
        assert story["spaces"][0]["offset"] == story["records"][-1]["offset"]
        assert story["spaces"][0]["source_hash"] == story["records"][-1]["source_hash"]
        assert "document number" not in json.dumps(story)  # text only when asked for
        assert "document number 45" in c.done("explain", "docs", "k5", "--text")
        deleted = c.done("explain", "docs", "k3")
        assert "delete" in deleted
        assert "it holds nothing of this document" in deleted

        events = [(e["version"], e["event"]) for e in c.data("history", "docs")["entries"]]
        for expected in (("v1", "start"), ("v2", "start"), ("v2", "cutover"), (None, "rollback"), ("v2", "retire")):
            assert expected in events
        assert "better" in c.done("history", "docs")
        assert len(c.data("history", "docs", "--limit", "2")["entries"]) == 2


def test_a_build_is_held_paused_and_given_up(topic_console: Console) -> None:
    c = topic_console
    c.configure()
    c.done("produce", "docs", c.write([put(i, f"k{i}") for i in range(300)]))
    with c.worker():
        assert "declare a version" in c.done("status")
        c.configure(V1, V2.replace("dimensions", "replay_rate: 1, dimensions"))
        held = eventually(lambda: c.version("v2"), lambda one: one["reporting"] and "held" in one["note"])
        assert held["note"] == "held at 1 documents/s"
        assert "  building  " in c.done("status", "docs", "v2")
        assert "is paused" in c.done("pause", "docs", "v2", "--why", "lunch")
        assert c.version("v2")["next"] == "crossfade resume docs v2"
        assert "docs/v2 is building and cannot become serving" in c.refused("cutover", "docs", "v2")
        c.done("resume", "docs", "v2")
        c.done("set", "docs", "v2", "replay_rate=2")
        assert c.version("v2")["replay_rate"] == 2
        assert "--confirm v2" in c.refused("abort", "docs", "v2")
        assert "v2 is aborted" in c.done("abort", "docs", "v2", "--confirm", "v2")
        assert c.version("v2")["state"] == "aborted"
        assert "is building" in c.done("start", "docs", "v2", "--rate", "1000")
        again = c.until("v2", "ready")
        assert again["epoch"] == 3


def test_documents_that_cannot_be(topic_console: Console) -> None:
    c = topic_console
    with c.worker():
        c.until("v1", "ready")
        lines = ['{"key":"good","value":{"text":"fine"}}', '{"key":"bad","value":"text alone"}', "nonsense"]
        stdin = "\n".join([*lines, '{"key":"z","value":{"text":"behind the malformed line"}}'])
        error = c.refused("produce", "docs", "-", stdin=stdin)
        assert "standard input, line 3: not JSON" in error
        assert "nothing from there on was sent; 2 events sent" in error
        report = eventually(lambda: c.data("verify", "docs", "v1"), lambda found: found["held"] == 1)
        assert report["clean"]
        assert report["examples"] == {"held": ["bad"]}
        assert "held in the dead letters" in c.refused("cutover", "docs", "v1")
        told = c.done("explain", "docs", "bad")
        assert "rejected (not_an_object" in told
        assert ": held\n" in told
        assert "dead letter of docs/v1: partition " in told
        (letter,) = c.data("explain", "docs", "bad")["dead_letters"]
        assert letter["cause"] == "not_an_object"
        assert "docs is served by v1" in c.done("cutover", "docs", "v1", "--accept-held", "bad")
        assert "no record in topic" in c.done("explain", "docs", "z")  # it stood behind the malformed line


def test_a_space_that_differs_from_the_log_is_named(topic_console: Console) -> None:
    c = topic_console
    c.done("produce", "docs", c.write([put(i) for i in range(20)]))

    async def lose(space: str) -> None:
        out = await Outside.open(load(c.path))
        await out.store.space(space).delete([object_id("docs", "k7", 0)])
        await out.close()

    with c.worker():
        asyncio.run(lose(c.until("v1", "ready")["space"]))
        result = c.run("verify", "docs", "v1")
        assert result.exit_code == 1
        assert "missing (in the log, not in the space): k7" in result.stdout
        assert "error: docs/v1 differs from the log: missing 1, stale 0, extra 0" in result.stderr
        assert "next: crossfade explain docs k7" in result.stderr
        as_json = c.run("verify", "docs", "v1", "--json")
        assert (as_json.exit_code, json.loads(as_json.stdout)["missing"]) == (1, 1)
        assert ": missing\n" in c.done("explain", "docs", "k7")
        assert "differs from the log" in c.refused("cutover", "docs", "v1")


def test_names_nobody_knows(topic_console: Console) -> None:
    c = topic_console
    with c.worker():
        c.until("v1", "ready")
        for verb in (["pause", "nodocs", "v1"], ["rollback", "nodocs"], ["history", "nodocs"], ["status", "nodocs"]):
            assert "known: docs" in c.refused(*verb)
        for name in ("pause", "verify", "cutover", "retire", "status"):
            assert "known: v1" in c.refused(name, "docs", "v9")
        assert "use one of v1" in c.refused("start", "docs", "v9")
        assert "use one of docs" in c.refused("start", "nodocs", "v1")
        assert "use one of docs" in c.refused("produce", "nodocs", "-", stdin="")
        assert "no previous version" in c.refused("rollback", "docs")


def test_no_worker_ever_ran(console: Console) -> None:
    for verb in (
        ["status"],
        ["history", "docs"],
        ["cutover", "docs", "v1"],
        ["start", "docs", "v1"],
        ["search", "docs", "q"],
    ):
        error = console.refused(*verb)
        assert f"there is no topic {console.prefix}.state" in error
        assert "crossfade worker" in error


def test_no_worker_is_running(topic_console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.progress.FRESH_MS", 2000)
    c = topic_console
    c.done("produce", "docs", c.write([put(i) for i in range(20)]))
    with c.worker():
        c.until("v1", "ready")
    error = c.refused("cutover", "docs", "v1", "--timeout", "1")
    assert "no worker runs" in error
    assert "crossfade worker" in error
    silent = eventually(lambda: c.version("v1"), lambda one: not one["reporting"])
    assert (silent["note"], silent["next"]) == ("no worker is reporting", "crossfade worker")
    with c.worker():  # it finds the command that was sent, and applies it
        eventually(lambda: c.data("status")["collections"][0], lambda one: one["serving"] == "v1")


def test_a_missing_topic_and_what_creates_it(console: Console) -> None:
    file = console.write([put(i) for i in range(20)])
    error = console.refused("produce", "docs", file)
    assert f"topic {console.topic} of docs does not exist" in error
    assert "--create-topic" in error
    with console.worker():
        assert console.topic in console.refused("start", "docs", "v1")
        not_started = eventually(lambda: console.version("v1"), lambda one: "not started: " in one["note"])
        assert console.topic in not_started["note"]
        made = console.run("produce", "docs", file, "--create-topic", "--partitions", "3")
        assert made.exit_code == 0, made.output
        assert f"created topic {console.topic}: 3 partitions, compacted" in made.stderr
        assert "docs/v1 is building" in console.done("start", "docs", "v1")
        assert console.until("v1", "ready")["partitions"] == 3


def test_a_topic_that_is_not_compacted(make_console: MakeConsole, make_topic: MakeTopic) -> None:
    c = make_console(make_topic(1, {"cleanup.policy": "delete"}))
    assert "is not compacted" in c.run("produce", "docs", c.write([put(1)])).stderr
    with c.worker():
        error = c.refused("start", "docs", "v1")
        assert f"topic {c.topic} is not compacted" in error
        assert "cleanup.policy=compact" in error


class _Embeds(BaseHTTPRequestHandler):
    """A TEI endpoint whose model has 4 dimensions."""

    def do_POST(self) -> None:
        texts = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["inputs"]
        body = json.dumps([[0.5] * 4 for _ in ([texts] if isinstance(texts, str) else texts)]).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def endpoint() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Embeds) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_another_dimension_than_the_endpoint_gives(topic_console: Console, endpoint: str) -> None:
    c = topic_console
    version = f"v1: {{embedder: {{provider: tei, url: '{endpoint}', model: m}}, dimensions: "
    c.configure(version + "8}")
    with c.worker():
        error = c.refused("start", "docs", "v1")
        assert "8" in error.partition("next:")[0]
        assert "dimensions: 4" in error.partition("next:")[2]
        c.configure(version + "4}")
        c.until("v1", "ready")  # the worker sees another model under the name, and starts it


def test_nothing_answers(console: Console) -> None:
    began = time.monotonic()
    console.configure(V1, kafka="127.0.0.1:1")
    for verb in (["produce", "docs", "-"], ["search", "docs", "q"]):
        assert "no Kafka broker answered at 127.0.0.1:1" in console.refused(*verb, stdin="")
    assert time.monotonic() - began < 120


def test_weaviate_is_away(topic_console: Console) -> None:
    c = topic_console
    with c.worker():
        c.until("v1", "ready")
    c.configure(V1, weaviate={"http": "127.0.0.1:1", "grpc": "127.0.0.1:2"})
    began = time.monotonic()
    assert c.version("v1")["stage"] == "ready"  # status needs no Weaviate
    for verb in (["search", "docs", "q"], ["verify", "docs", "v1"], ["explain", "docs", "k"], ["up"], ["worker"]):
        assert "Weaviate" in c.refused(*verb)
    assert time.monotonic() - began < 120


def test_up_asks_the_configured_services(console: Console) -> None:
    found = json.loads(console.done("up", "--json"))
    assert found["kafka"] == console.services.kafka
    assert "kafka: " in console.done("up")


def test_an_interrupt_of_a_watch_is_quiet(topic_console: Console) -> None:
    c = topic_console
    with c.worker():
        c.until("v1", "ready")
        watching = c.spawn("status", "docs", "-w")
        assert watching.stdout is not None
        assert watching.stdout.readline().startswith("docs/v1  ready")
        watching.send_signal(signal.SIGINT)
        rest, stderr = watching.communicate(timeout=PATIENCE_S)
        assert (watching.returncode, stderr) == (130, "")
        assert "Traceback" not in rest


def test_produce_stops_at_an_interrupt_and_counts(topic_console: Console) -> None:
    c = topic_console
    file = c.write([put(i) for i in range(1000)])
    sending = c.spawn("produce", "docs", file, "--rate", "20", "--json")
    eventually(lambda: _stable(c), lambda end: end > 0)
    sending.send_signal(signal.SIGINT)
    stdout, stderr = sending.communicate(timeout=PATIENCE_S)
    assert (sending.returncode, stderr) == (130, "")
    found = json.loads(stdout)
    assert found["interrupted"]
    assert 0 < found["sent"] < 1000
    assert _stable(c) == found["sent"]


def _stable(c: Console) -> int:
    """Records in the topic."""

    async def look() -> int:
        bounds = await Topics(KafkaSettings(c.services.kafka)).bounds(c.topic)
        return sum(b.stable for b in bounds.values())

    return asyncio.run(look())
