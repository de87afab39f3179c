"""Every verb of `crossfade --help` on real Kafka and Weaviate, at a pseudo-terminal, as an operator goes through them.

What a verb says to type next is what is typed next, wherever there is a choice of nothing else: so it is true.
`up` and `down` are walked in test_services.py and test_cli.py, `demo` in test_demo.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from confluent_kafka import Consumer, TopicPartition

from connectors.embedders.hashing import HashingEmbedder
from connectors.embedders.probe import PROBE_TEXTS
from connectors.kafka.producer import produce_many
from connectors.kafka.settings import KafkaSettings
from connectors.services import Addresses
from streams.config import load
from streams.migration.series import is_series
from streams.progress import ProgressRecord
from streams.tokens import Tokenizer
from streams.wiring import Outside
from tests.conftest import MakeTopic, Unique
from tests.keyed_endpoint import INFO, Endpoint, keyed_endpoint
from tests.terminal import ROOT
from tests.unit.tokenizers import byte_level
from tests.walking import BAR, COMMAND, Operator, Screen, command_of

KEYS, DELETED, EDITED = 900, 40, 100
DOCUMENTS = KEYS - DELETED
RATE = 30.0  # documents a second: the build takes about half a minute
KEY = "sk-NOBODYMAYSEETHIS"
LARGE = 4_000  # bytes; the configuration says half of it
EVIL_KEY = "evil\x1b]0;owned\x07\x1b[31mKEY"
EVIL_TEXT = "zebra crossing \x1b[31mEVIL\x1b[2J\x07 zebra \x9b31m crossing zebra"
FORBIDDEN = (KEY, "\x07", "\x1b]", "\x9b", "\x1b[31mEVIL", "\x1b[31mKEY", "\x1b[2J")
ELSEWHERE = {"up", "down", "demo", "serve"}
PATIENCE_S = 90.0


def text(i: int) -> str:
    """Words of its own, so that a question for some of them has one answer."""
    chosen = random.Random(i)
    words = ["".join(chosen.choices("bcdfglmnprst", k=2) + chosen.choices("aeiou", k=2)) for _ in range(20)]
    return " ".join(words)


def query(i: int) -> str:
    return " ".join(text(i).split()[3:9])


def history() -> list[tuple[bytes, bytes | None, int | None]]:
    """What an application has written before Crossfade is there: documents, edits, deletes."""

    def put(i: int, said: str) -> tuple[bytes, bytes, None]:
        return f"k{i}".encode(), json.dumps({"title": f"Title {i}", "text": said, "year": 1990 + i % 30}).encode(), None

    events: list[tuple[bytes, bytes | None, int | None]] = [put(i, text(i)) for i in range(KEYS)]
    events += [put(i, text(i) + " edited") for i in range(EDITED)]
    return events + [(f"k{KEYS - 1 - i}".encode(), None, None) for i in range(DELETED)]


@dataclass(slots=True)
class Walk:
    """The operator, the file they edit, the worker they started in another window, and the endpoint they pay for."""

    operator: Operator
    topic: str
    prefix: str
    alias: str
    services: Addresses
    endpoint: Endpoint
    worker: subprocess.Popen[bytes] | None = None

    @property
    def path(self) -> Path:
        return self.operator.folder / "config" / "crossfade.yaml"

    @property
    def raw(self) -> dict[str, Any]:
        found = yaml.safe_load(self.path.read_text())
        assert isinstance(found, dict)
        return found

    def write(self, raw: Mapping[str, Any], path: Path | None = None) -> None:
        fresh = self.path.with_suffix(".new")
        fresh.write_text(yaml.safe_dump(dict(raw)))
        fresh.replace(path or self.path)

    def start_worker(self) -> None:
        with (self.operator.folder / "worker.log").open("wb") as log:
            self.worker = subprocess.Popen(
                [*COMMAND, "worker"],
                cwd=self.operator.folder,
                env={**os.environ, "PYTHONPATH": str(ROOT), "WALK_KEY": KEY},
                stdout=log,
                stderr=log,
            )
        self.operator.typed.append("worker")

    def end_worker(self) -> None:
        assert self.worker is not None
        self.worker.send_signal(signal.SIGTERM)
        status = self.worker.wait(PATIENCE_S)
        log = (self.operator.folder / "worker.log").read_text(errors="replace")
        assert status == 0, log
        assert KEY not in log

    def status(self, version: str) -> dict[str, Any]:
        """As data, for figures; what people read is looked at on the screen."""
        (collection,) = json.loads(self.operator.pipes("status", "docs", "--json"))["collections"]
        (found,) = [one for one in collection["versions"] if one["version"] == version]
        assert isinstance(found, dict)
        return found

    def until_status(self, version: str, **wanted: object) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE_S
        while any((found := self.status(version)).get(name) != value for name, value in wanted.items()):
            assert time.monotonic() < deadline, found
        return found


@pytest.fixture
def walk(tmp_path: Path, services: Addresses, unique: Unique, make_topic: MakeTopic) -> Iterator[Walk]:
    topic = make_topic(2)
    produce_many(KafkaSettings(bootstrap_servers=services.kafka), topic, iter(history()))
    model, tokenizer = HashingEmbedder(256), Tokenizer(byte_level())

    def vectors(texts: list[str]) -> list[list[float]]:
        found: list[list[float]] = asyncio.run(model.embed(texts)).vectors.tolist()
        return found

    environment = {"TERM": "xterm-256color", "CROSSFADE_CONFIG": None, "WALK_KEY": KEY}
    with keyed_endpoint(KEY, vectors, lambda texts: sum(tokenizer.count(texts))) as endpoint:
        made = Walk(
            Operator(tmp_path, environment, FORBIDDEN), topic, unique("walk"), unique("Walk"), services, endpoint
        )
        try:
            yield made
        finally:
            if made.worker is not None and made.worker.poll() is None:
                made.worker.kill()
                made.worker.wait()
            os.environ["WALK_KEY"] = KEY
            try:
                asyncio.run(clean(made))
            finally:
                del os.environ["WALK_KEY"]


async def clean(made: Walk) -> None:
    if not made.path.exists():
        return
    out = await Outside.open(load(made.path))
    await out.store.drop_alias(made.alias)
    for space in await out.store.spaces():
        if space.startswith(f"{made.alias}_"):
            await out.store.drop_space(space)
    names = out.names
    for topic in (names.commands, names.state, names.progress, names.journal, names.dead_letters):
        await out.topics.delete_topic(topic)
    await out.close()


@contextmanager
def following(bootstrap: str, topic: str) -> Iterator[list[ProgressRecord]]:
    """The progress topic's records from here on, while the block runs."""
    found: list[ProgressRecord] = []
    stopping = threading.Event()
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "walk", "enable.auto.commit": False})
    partitions = [TopicPartition(topic, p) for p in consumer.list_topics(topic, 10).topics[topic].partitions]
    for partition in partitions:
        partition.offset = consumer.get_watermark_offsets(partition, 10)[1]
    consumer.assign(partitions)

    def follow() -> None:
        while not stopping.is_set():
            message = consumer.poll(0.2)
            value = message.value() if message is not None and message.error() is None else None
            if message is not None and value is not None and not is_series((message.key() or b"").decode()):
                found.append(ProgressRecord.model_validate_json(value))

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        yield found
    finally:
        stopping.set()
        thread.join()
        consumer.close()


def test_every_verb_as_an_operator_goes_through_them(walk: Walk) -> None:
    o = walk.operator
    verbs = set(re.findall(r"^  ([a-z]+)  +[A-Z]", o.types("--help").text, re.MULTILINE))
    assert {"init", "plan", "cutover", "up"} <= verbs
    o.typed.clear()

    the_first_version(walk)
    what_cannot_be_stored_is_redriven(walk)
    the_first_cutover(walk)
    is_the_second_model_worth_it(walk)
    planned = what_it_will_take(walk)
    a_build_is_governed_and_given_up(walk)
    the_build_takes_what_the_plan_said(walk, planned)
    over_and_back_and_over_again(walk, is_it_good_enough(walk))
    the_end_of_the_old_version(walk)

    assert set(o.typed) == verbs - ELSEWHERE, "every verb of --help is walked here or named in ELSEWHERE"
    walk.end_worker()


def the_first_version(walk: Walk) -> None:
    """init, plan, start without a worker, worker, status until it is ready."""
    o = walk.operator
    weaviate = walk.services
    written = o.types(
        "init",
        *("--bootstrap", weaviate.kafka, "--weaviate-http", f"http://{weaviate.weaviate_http}"),
        *("--weaviate-grpc", weaviate.weaviate_grpc),
        answers=[
            ("Documents topic (number or name)", walk.topic),
            ("Text fields to embed, in order [title,text]", "text"),
            ("Properties kept beside the vector", "title:text,year:int"),
            ("Key for Weaviate: none, env (a variable) or file [none]", ""),
            ("Embedding model, served by", "hashing"),
            ("Dimensions [256]", "32"),
            ("Name of the collection", "docs"),
        ],
    )
    written.has("wrote config/crossfade.yaml: collection docs, version v1")
    assert "# " in walk.path.read_text(), "a commented file"
    raw = walk.raw
    raw["kafka"] |= {"topic_prefix": walk.prefix}
    raw["weaviate"] |= {"settle_s": 1}
    raw["collections"]["docs"] |= {"alias": walk.alias, "max_record_bytes": LARGE // 2, "gate": golden(walk)}
    raw["collections"]["docs"]["versions"]["v1"]["embedder"] |= {"word_ngrams": None, "char_ngrams": [3, 5]}
    walk.write(raw)

    planned = o.obeys(written.next).has(
        "docs/v1: model crossfade-hashing, 32 dimensions",
        f"  documents  {DOCUMENTS:,} to embed, of ",
        "  cost       none: this model has no endpoint to pay",
        f"Building v1 embeds {DOCUMENTS:,} documents: ",
    )
    for bar in ("reading keys", "reading documents", BAR):
        assert bar in planned.raw
    assert planned.next == "crossfade start docs v1"
    assert f"{DOCUMENTS:,} to embed" in o.pipes("plan", "docs", "v1")

    alone = o.obeys(planned.next, status=1).has(f"no worker has ever run here: there is no topic {walk.prefix}.state")
    assert alone.next.startswith("start one: crossfade worker")
    walk.start_worker()
    deadline = time.monotonic() + PATIENCE_S
    while "this worker is the controller" not in (o.folder / "worker.log").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.2)
    ready = o.types("status", "docs", "v1", "--until", "ready")
    ready.has(f"docs/v1  ready     {DOCUMENTS}/{DOCUMENTS}  100.0%", "complete; waits for a cutover")
    assert ready.next == "crossfade cutover docs v1 --check"


def golden(walk: Walk) -> dict[str, Any]:
    """Sixty judged queries, and what `gate` says of them."""
    lines = [{"id": f"q{i}", "query": query(i), "relevant": {f"k{i}": 1}} for i in range(EDITED, EDITED + 60)]
    (walk.path.parent / "golden.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {"golden": "golden.jsonl", "k": 5}


def what_cannot_be_stored_is_redriven(walk: Walk) -> None:
    """produce, status, verify, explain, redrive, verify: a record that is too large, until it may be."""
    o = walk.operator
    value = {"title": "Large", "text": "alpaca " * (LARGE // 7), "year": 2000}
    events = [{"key": "large", "value": value}, {"key": EVIL_KEY, "value": {"title": EVIL_TEXT, "text": EVIL_TEXT}}]
    (o.folder / "more.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    sent = o.types("produce", "docs", "more.jsonl").has(f"2 events sent to {walk.topic}; last offset of partition ")
    assert sent.next == "crossfade status docs"
    walk.until_status("v1", dead_letters=1, live_lag=0)
    shown = o.obeys(sent.next).has("docs: serving (nothing yet), previous (none), alias Walk_", ", dead letters 1")
    assert shown.next == "crossfade cutover docs v1 --check"

    swept = o.types("verify", "docs", "v1").has(
        f"docs/v1: clean  (space {walk.alias}_v1_1_",
        f"  checked {DOCUMENTS + 2:,}, missing 0, stale 0, extra 0, held 1",
        "held (the newest record is in the dead letters",
    )
    assert swept.next == "crossfade explain docs large; to mend: crossfade redrive docs v1"
    o.obeys(swept.next).has(
        "large: 1 record", "rejected (record_too_large: the value has ", ": held", "dead letter of docs/v1: part"
    )

    raw = walk.raw
    raw["collections"]["docs"]["max_record_bytes"] = 10 * LARGE
    with following(walk.services.kafka, f"{walk.prefix}.progress") as reports:
        began_ms = int(time.time() * 1000)
        walk.write(raw)
        deadline = time.monotonic() + PATIENCE_S
        while len({r.partition for r in list(reports) if r.name == "v1" and r.running_since >= began_ms}) < 2:
            assert time.monotonic() < deadline, "the worker has not taken the changed configuration"
            time.sleep(0.1)
    redriven = o.obeys(swept.next.partition("; to mend: ")[2])
    redriven.has("docs/v1: 1 dead letter", " applied, 0 refused again")
    mended = o.obeys(redriven.next).has(f"  checked {DOCUMENTS + 2:,}, missing 0, stale 0, extra 0, held 0")
    assert mended.next == "crossfade cutover docs v1"


def the_first_cutover(walk: Walk) -> None:
    """cutover, search, and a document that would like to write to the terminal by itself."""
    o = walk.operator
    swapped = o.types("cutover", "docs", "v1", "--why", "the first").has(
        "docs is served by v1", f"  sweep: checked {DOCUMENTS + 2:,}, missing 0", "  gate: pass"
    )
    assert swapped.next == "crossfade search docs QUERY"
    o.obeys(swapped.next, query=text(7)).has(
        "docs/v1 (serving): 10 documents in ", "  k7  ", f"space {walk.alias}_v1_1_"
    )
    found = o.obeys(swapped.next, "-k", "1", query="zebra crossing")
    found.has(r"evil\x1b]0;owned\x07\x1b[31mKEY  zebra crossing \x1b[31mEVIL\x1b[2J\x07 zebra \x9b31m crossing zebra")
    assert "evil" in o.pipes("search", "docs", "zebra crossing", "-k", "1")
    told = o.types("explain", "docs", EVIL_KEY, "--text").has(r"evil\x1b]0;owned\x07\x1b[31mKEY: 1 record in topic")
    told.has("docs/v1 (serving, space", ": current", r"text: zebra crossing \x1b[31mEVIL")


V2_RATE = 2.0


def second(walk: Walk) -> dict[str, Any]:
    (walk.path.parent / "tokenizer.json").write_bytes(byte_level())
    embedder = {
        "provider": "tei", "url": walk.endpoint.url, "model": INFO["model_id"], "revision": INFO["model_sha"],
        "api_key": "${WALK_KEY}", "max_batch": 16, "price_per_million_tokens": 2.0,
    }  # fmt: skip
    return {"embedder": embedder, "dimensions": 256, "tokenizer": "tokenizer.json", "replay_rate": V2_RATE}


def is_the_second_model_worth_it(walk: Walk) -> None:
    """compare, with a copy of the configuration that no worker sees, and nothing spent before somebody says yes."""
    o = walk.operator
    raw = walk.raw
    raw["collections"]["docs"]["versions"]["v2"] = second(walk)
    walk.write(raw, walk.path.with_name("planned.yaml"))
    assert walk.endpoint.embedded == []
    compared = o.types(
        *("--config", "config/planned.yaml", "compare", "docs", "v1", "v2", "--sample", "200"),
        answers=[("Go on? [y/N]:", "y")],
    )
    compared.has(
        f"docs: 200 of {DOCUMENTS + 2:,} documents, drawn at random",
        "queries: 60, config/golden.jsonl",
        "v1 will embed",
        "for nothing",
        "v2 is better than v1: worth its migration (nDCG@5 +",
    )
    assert compared.next == "crossfade plan docs v2"


def what_it_will_take(walk: Walk) -> dict[str, Any]:
    """plan, which spends nothing; its figures are returned as data."""
    o, asked = walk.operator, len(walk.endpoint.embedded)
    shown = o.types("--config", "config/planned.yaml", "plan", "docs", "v2").has(
        f"docs/v2: model {INFO['model_id']}, 256 dimensions, fingerprint ",
        f"  documents  {DOCUMENTS + 2:,} to embed, of ",
        " USD, at 2 USD a million tokens",
        "v1 (serving)",
        "v2 (new)",
        f"Building v2 embeds {DOCUMENTS + 2:,} documents: ",
    )
    assert shown.next == "crossfade start docs v2"
    planned = json.loads(o.pipes("--config", "config/planned.yaml", "plan", "docs", "v2", "--json"))
    assert len(walk.endpoint.embedded) == asked, "a plan spends nothing"
    assert isinstance(planned, dict)
    walk.path.with_name("planned.yaml").replace(walk.path)
    begun = o.obeys(shown.next).has("docs/v2 is building")  # by the worker, if it was faster; that is no error
    assert begun.next == "crossfade status docs v2 -w"
    return planned


def a_build_is_governed_and_given_up(walk: Walk) -> None:
    """set, pause, resume, and abort: of the build that was configured far too slow."""
    o = walk.operator
    read = o.types("set", "docs", "v2", "?").has("docs/v2: what can be set while it runs")
    read.has("  replay_rate             2               configuration  documents a second; ")
    o.types("set", "docs", "v2", "replay_rate=-1", status=1).has(
        "error: replay_rate -1 is out of range", "next: documents a second: above 0 and up to 1,000,000"
    )
    changed = o.types("set", "docs", "v2", "replay_rate=3").has("docs/v2: replay_rate 3")
    assert changed.next == "crossfade status docs v2 -w"
    assert "replay_rate" in o.pipes("set", "docs", "v2", "?")
    paused = o.types("pause", "docs", "v2", "--why", "lunch").has("docs/v2 is paused (replay)")
    held = o.types("status", "docs", "v2").has("docs/v2  paused  ", "replay is paused")
    assert held.next == paused.next == "crossfade resume docs v2"
    resumed = o.obeys(paused.next).has("docs/v2 goes on")
    assert resumed.next == "crossfade status docs v2 -w"
    refused = o.types("abort", "docs", "v2", status=1)
    given_up = o.obeys(refused.next).has("docs/v2 is aborted")
    assert given_up.next == "crossfade start docs v2"
    o.types("status", "docs", "v2").has("docs/v2  aborted ", "ended 20")


def the_build_takes_what_the_plan_said(walk: Walk, planned: Mapping[str, Any]) -> None:
    """start, status -w until it is ready: in place with a bar at the terminal, lines in a pipe; and the figures."""
    o = walk.operator
    with following(walk.services.kafka, f"{walk.prefix}.progress") as reports:
        embedded, began_s = len(walk.endpoint.embedded), time.monotonic()
        begun = o.types("start", "docs", "v2", "--rate", f"{RATE:g}").has(
            f"docs/v2 is building: space {walk.alias}_v2_3_"
        )
        piped = subprocess.Popen(
            [*COMMAND, "status", "docs", "v2", "--until", "ready"],
            cwd=o.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "WALK_KEY": KEY, "TERM": "xterm-256color"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert begun.next == "crossfade status docs v2 -w"
        watching = o.begins(*command_of(begun.next), patience_s=180)
        watching.interrupt("crossfade cutover docs v2 --check")
        watched = o.reads(watching, 130)
        took_s = time.monotonic() - began_s
        lines, errors = piped.communicate(timeout=PATIENCE_S)
        ready = walk.until_status("v2", state="ready", completed=DOCUMENTS + 2, live_lag=0)

    total = DOCUMENTS + 2
    assert total / RATE < took_s < 2 * total / RATE + 10, "the rate was held"
    watched.has(
        "docs: serving v1, previous (none)", f"/{total}  ", "held at 30 documents/s", "  next: crossfade status"
    )
    assert BAR in watched.raw
    assert watched.raw.count("\x1b[") > 10, "drawn again in place"
    assert (piped.returncode, errors) == (0, "")
    assert BAR not in lines
    assert all(c == "\n" or c.isprintable() for c in lines)
    shapes = [re.sub(r"[\d,.]+", "#", line) for line in lines.splitlines() if "  held at " in line]
    assert len(shapes) >= 10, lines
    assert set(shapes) <= {
        f"docs/v#  building  #/#  #%  #/s  eta {eta}  lag #  spent {spent}  held at # documents/s"
        for eta in ("-", "#s", "#m#s")
        for spent in ("-", "# USD", "<# USD")
    }, lines
    assert lines.splitlines()[-1].startswith(f"docs/v2  ready     {total}/{total}  100.0%")

    assert planned["documents"] == ready["total"] == ready["completed"] == total
    assert abs(planned["tokens"]["total"] - ready["counters"]["tokens"]) <= 0.02 * ready["counters"]["tokens"]
    asked = zip(walk.endpoint.embedded[embedded:], walk.endpoint.at_s[embedded:], strict=True)
    sent = {text: at_s for text, at_s in asked if text not in PROBE_TEXTS}
    assert len(sent) == total
    etas_are_true([r for r in reports if r.name == "v2" and r.partition is None], max(sent.values()))


def etas_are_true(records: list[ProgressRecord], ended_s: float) -> None:
    """Within 15% of the time that was then really left, from 10% of the documents on; at the very end within what the
    count itself is behind: partitions report each second, and the whole is put together each second."""
    said = [r for r in records if r.epoch == 3 and 0.1 <= r.progress < 1]
    assert len(said) >= 15, f"{len(said)} records of a build of half a minute"
    truth = [(r.completed, r.eta_s, ended_s - r.updated_at / 1000) for r in said]
    wrong = [one for one in truth if one[1] is None or abs(one[1] - one[2]) > max(0.15 * one[2], 2.0)]
    assert not wrong, f"of {truth}: {wrong}"


def is_it_good_enough(walk: Walk) -> str:
    """verify, evaluate, cutover --check: each names the next, and the last one is handed on."""
    o, total = walk.operator, DOCUMENTS + 2
    swept = o.types("verify", "docs", "v2").has(f"  checked {total:,}, missing 0, stale 0, extra 0, held 0")
    assert swept.next == "crossfade cutover docs v2"
    judged = o.types("evaluate", "docs", "v2").has(
        "docs/v2 (ready) against v1 (serving): judged queries of golden.jsonl: 60, k 5",
        "  recall@5",
        "  nDCG@5",
        "gate: pass",
        "  ok   golden set       60 judged queries",
        "  ok   coverage         100% of the documents",
        "  ok   live lag         0 events behind the log",
    )
    assert o.types("shadow", "docs").has("docs: no query was asked of v2 beside v1 yet").next
    assert o.types("rollout", "docs").has("docs: no rollout of v2 has begun").next
    checked = o.obeys(judged.next).has(
        "docs/v2 can cut over", f"  sweep: checked {total:,}, missing 0, stale 0, extra 0, held 0", "  gate: pass"
    )
    assert checked.next == "crossfade cutover docs v2"
    return checked.next


def over_and_back_and_over_again(walk: Walk, said: str) -> None:
    """cutover, search, rollback, status, and what status says: cutover --check, cutover."""
    o, total = walk.operator, DOCUMENTS + 2
    swapped = o.obeys(said, "--why", "better answers").has(
        "docs is served by v2; v1 is kept current for a rollback",
        f"  sweep: checked {total:,}, missing 0, stale 0, extra 0, held 0",
        "  verified: its queries are answered by its space",
    )
    assert swapped.next == "crossfade rollback docs, if anything is wrong with v2"
    assert o.pipes("search", "docs", query(130), "-k", "1").startswith("docs/v2 (serving): 1 documents in ")
    back = o.obeys(swapped.next, "--why", "a second look").has(
        "docs is served by v1; v2 is kept current for a rollback",
        "  v1 was 0 events behind the log",
        "  verified: its queries are answered by its space",
    )
    shown = o.obeys(back.next).has("docs: serving v1, previous v2", "  serving  ", "  previous ", "kept current")
    o.obeys(shown.next_of("v1"), query=query(130)).has("docs/v1 (serving): ")
    again = o.obeys(shown.next_of("v2")).has("docs/v2 can cut over")
    o.obeys(again.next).has("docs is served by v2; v1 is kept current for a rollback")


def the_end_of_the_old_version(walk: Walk) -> None:
    """status, retire, status, search, history, report."""
    o = walk.operator
    shown = o.types("status", "docs").has("docs: serving v2, previous v1")
    o.types("retire", "docs", "v2", "--confirm", "v2", status=1).has("serving: it cannot be retired")
    either = shown.next_of("v1")
    assert either == "crossfade rollback docs, or crossfade retire docs v1 --confirm v1"
    gone = o.obeys(either.partition(", or ")[2]).has("docs/v1 is retired; space ")
    last: Screen = o.obeys(gone.next).has("docs: serving v2, previous (none)", "docs/v1  retired ", "docs/v2  serving ")
    o.obeys(last.next_of("v2"), query=query(140)).has("docs/v2 (serving): ", "  k140  ")
    told = o.types("history", "docs").has(
        "  declared", "  start", "  set", "  pause", "  resume", "  abort", "  rollback  by ", "  retire",
        "why: lunch", "why: better answers", "why: a second look", f"({'tei'} {INFO['model_id']} ",
    )  # fmt: skip
    assert len(re.findall(r"^20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ  ", told.text, re.MULTILINE)) >= 20
    o.types("doctor", "docs").has("ok         alias            ", "ok         worker  ", " ok")
    o.types("report", "docs", "v2").has("the report of docs/v2 stands in docs-v2-")
    (page,) = o.folder.glob("docs-v2-*.html")
    assert "why: better answers" in page.read_text()
