"""The demo's parts, each made to meet the fault it exists to find: mixed answers, failed queries, other spaces."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from uuid import uuid4

import pytest
import yaml
from click.testing import CliRunner
from rich.console import Console

from connectors import reserved
from connectors.errors import ConfigurationError, Terminal, Unreachable
from connectors.protocols import JSON, Bounds, Head, RangeBatch, Record
from connectors.services import Addresses
from streams import config, documents
from streams.cli import cli
from streams.cli import demo as cli_demo
from streams.config import schema_of
from streams.demo.asking import mixed
from streams.demo.documents import Docstring, Question
from streams.demo.editor import GONE_AT_LEAST, Editor
from streams.demo.load import Load
from streams.demo.logcheck import Stood, compare, newest_records
from streams.demo.report import Check, Narrator
from streams.demo.stage import Stage
from streams.search.answer import Answer, Placed
from streams.versions import Stage as BuildStage

ADDRESSES = Addresses("127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3")


# --- the stage ---


def test_the_second_version_is_added_to_the_same_file(tmp_path: Path) -> None:
    stage = Stage(tmp_path, print)
    stage.write_config(ADDRESSES, whole=False)
    before = config.load(stage.config)
    stage.write_config(ADDRESSES, whole=True)
    after = config.load(stage.config)
    assert list(before.collections["stdlib"].versions) == ["v1"]
    assert list(after.collections["stdlib"].versions) == ["v1", "v2"]
    assert after.kafka.bootstrap_servers == ADDRESSES.kafka
    assert (after.weaviate.http, after.weaviate.grpc) == ("http://127.0.0.1:2", "127.0.0.1:3")
    assert yaml.safe_load(stage.config.read_text())["collections"]["stdlib"]["versions"]["v2"]["dimensions"] == 512


def test_a_worker_that_has_ended_is_noticed(tmp_path: Path) -> None:
    stage = Stage(tmp_path, print)
    with pytest.raises(Terminal, match="has ended"):
        stage.check_worker()
    assert not stage.stop_worker()
    (tmp_path / "worker.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="does not name a process"):
        stage.check_worker()


# --- the editor ---


async def test_the_editor_edits_deletes_and_brings_back_but_keeps_what_is_asked_for() -> None:
    docs = [Docstring(f"k{i}", "function", "s", "t") for i in range(60)]
    kept = frozenset(f"k{i}" for i in range(10))
    log: dict[str, bytes | None] = {document.key: document.to_value() for document in docs}
    deleted: set[str] = set()
    enough = asyncio.Event()

    async def send(topic: str, key: bytes, value: bytes | None) -> None:
        assert topic == "docs"
        if value is None:
            assert log[key.decode()] is not None, "only what stands is deleted"
            deleted.add(key.decode())
        log[key.decode()] = value
        if editor.edits.total >= 400:
            enough.set()

    editor = Editor(send, "docs", docs, kept, per_s=100_000)
    running = asyncio.create_task(editor.run())
    await enough.wait()
    editor.stop()
    await running
    assert editor.edits.edited
    assert editor.edits.recreated
    assert deleted
    assert not deleted & kept
    gone = sum(value is None for value in log.values())
    assert gone == editor.edits.deleted - editor.edits.recreated >= GONE_AT_LEAST


# --- asking ---


def hit(mark: str | None) -> Placed:
    properties: dict[str, JSON] = {} if mark is None else {reserved.SPACE: mark}
    return Placed(uuid4(), "a", 0, 1.0, 0.0, properties, 0, "v2", "Docs_v2_2_abc", "abc")


def answer(*marks: str | None, space: str = "Docs_v2_2_abc") -> Answer:
    return Answer("docs", "v2", BuildStage.SERVING, 2, space, "abc", tuple(hit(mark) for mark in marks), 1.0)


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        (answer("v2@abc", "v2@abc"), ""),
        (answer("v2@abc", "v1@def"), "v1@def"),
        (answer("v1@def"), "v1@def"),
        (answer("v2@abc", None), "None"),
        (answer(), "nothing"),
        (answer("v2@abc", space="Docs_v1_1_def"), "Docs_v1_1_def"),
        (answer("v2@abc", space="Docs_v9_9_abc"), "no version's"),
    ],
)
def test_an_answer_that_is_not_of_one_space_is_called_mixed(given: Answer, fault: str) -> None:
    found = mixed(given, ["Docs_v1_1_def", "Docs_v2_2_abc"])
    assert bool(found) == bool(fault)
    assert fault in found


async def test_the_load_accounts_for_every_query() -> None:
    async def ask(query: str) -> tuple[str, str]:
        if query == "fails":
            raise Unreachable("away")
        return ("old", "mixed up") if query == "mixes" else ("new", "")

    load = Load(ask, ["works", "fails", "mixes", "works"], per_s=2000)
    running = asyncio.create_task(load.run())
    await load.answered(40)
    load.stop()
    await running
    window = load.window(0, 40)
    assert (window.queries, window.failed, window.mixed) == (40, 10, 10)
    assert window.by_space == {"old": 10, "new": 20}
    assert window.problems == ["Unreachable: away", "mixed up"]
    assert 0 < window.per_s < 4000


async def test_the_load_does_not_wait_for_answers_before_the_next_query() -> None:
    release = asyncio.Event()

    async def ask(query: str) -> tuple[str, str]:
        if query == "slow":
            await release.wait()
        return "space", ""

    load = Load(ask, ["slow", *["quick"] * 1000], per_s=2000)
    running = asyncio.create_task(load.run())
    await load.answered(20)
    release.set()
    load.stop()
    await running


# --- the check against the log ---


class OneLog:
    """A log of two partitions, as `newest_records` reads it."""

    def __init__(self, records: list[Record]) -> None:
        self._records = records

    async def bounds(self, topic: str) -> dict[int, Bounds]:
        return {partition: Bounds(0, 100) for partition in (0, 1)}

    async def read_range(self, topic: str, partition: int, start: int, end: int) -> AsyncIterator[RangeBatch]:
        for record in self._records:
            if record.partition == partition:
                yield RangeBatch([record], record.offset + 1, False)
        yield RangeBatch([], end, True)


def record(partition: int, offset: int, key: str, document: Docstring | None) -> Record:
    return Record(partition, offset, 0, key.encode(), document.to_value() if document else None)


async def test_the_last_record_of_a_key_wins_and_its_hash_is_the_pipelines(tmp_path: Path) -> None:
    one, two = Docstring("a", "function", "s", "t\u00e4xt"), Docstring("a", "function", "s", "later")
    log = OneLog([record(0, 1, "a", one), record(0, 2, "b", one), record(0, 5, "a", two), record(1, 7, "c", one)])
    log._records.append(record(0, 9, "b", None))
    newest = await newest_records(log, "docs", ["title", "text"])  # type: ignore[arg-type]  # the two calls it makes
    stage = Stage(tmp_path, print)
    stage.write_config(ADDRESSES, whole=True)
    schema = schema_of(config.load(stage.config).collections["stdlib"])

    def pipelines(document: Docstring) -> str:
        put = documents.parse(b"a", document.to_value(), schema)
        assert isinstance(put, documents.Put)
        return documents.source_hash(put, schema)

    assert newest == {"a": Stood(0, 5, pipelines(two)), "b": Stood(0, 9, None), "c": Stood(1, 7, pipelines(one))}


Break = Callable[[dict[str, Head]], object]


def head(key: str, offset: int, source_hash: str) -> Head:
    return Head(uuid4(), key, "", 0, 1, source_hash, 0, offset)


@pytest.mark.parametrize(
    ("fault", "missing", "different", "extra"),
    [
        (lambda heads: None, [], [], []),
        (lambda heads: heads.pop("a"), ["a"], [], []),
        (lambda heads: heads.update(a=head("a", 1, "old")), [], ["a"], []),
        (lambda heads: heads.update(a=head("a", 0, "ha")), [], ["a"], []),
        (lambda heads: heads.update(gone=head("gone", 1, "hg")), [], [], ["gone"]),
        (lambda heads: heads.update(again=head("b", 2, "hb")), [], [], ["b"]),
    ],
)
async def test_every_difference_between_log_and_space_is_found(
    fault: Break, missing: list[str], different: list[str], extra: list[str]
) -> None:
    newest = {"a": Stood(0, 1, "ha"), "b": Stood(0, 2, "hb"), "gone": Stood(0, 3, None)}
    heads = {"a": head("a", 1, "ha"), "b": head("b", 2, "hb")}
    fault(heads)

    class Scanned:
        async def scan(self, page: int | None = None) -> AsyncIterator[list[Head]]:
            yield list(heads.values())

    found = await compare(newest, Scanned())  # type: ignore[arg-type]  # the one call it makes
    assert (found.missing, found.different, found.extra) == (missing, different, extra)
    assert found.none == (not (missing or different or extra))
    assert found.documents == 2


# --- telling ---


@pytest.mark.parametrize("width", [40, 80])
def test_nothing_is_wider_than_the_terminal_but_commands(width: int) -> None:
    out = io.StringIO()
    narrator = Narrator(Console(file=out, width=width, highlight=False))
    narrator.step("A title " * 20)
    narrator.say("Many words " * 30)
    narrator.note("[not markup] " * 10)
    narrator.closing([Check("a claim " * 6, True, "found " * 12), Check("another", False, "x" * 70)])
    assert max(len(line) for line in out.getvalue().splitlines()) <= width
    assert "[not markup]" in out.getvalue()
    assert "1 of 2 checks failed: another" in " ".join(out.getvalue().split())
    narrator.command("crossfade " + "word " * 30)
    assert "crossfade " + "word " * 29 in out.getvalue(), "a command can be copied whole"


@pytest.mark.parametrize("passed", [True, False])
def test_the_exit_status_and_the_object_say_whether_every_check_passed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, passed: bool
) -> None:
    calls: list[str] = []

    class Told:
        def __init__(self, *_: object) -> None:
            self.checks = [Check("one", True, "1"), Check("two", passed, "2")]
            self.facts: dict[str, JSON] = {"documents": 3}
            self.example = Question("q", "k")

        async def run(self) -> None:
            calls.append("story")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli_demo, "Story", Told)
    monkeypatch.setattr(Stage, "start_services", lambda _: ADDRESSES)
    monkeypatch.setattr(Stage, "clear", lambda _: calls.append("clear"))
    result = CliRunner().invoke(cli, ["demo", "--json"])
    assert result.exit_code == (0 if passed else 1)
    told = yaml.safe_load(result.stdout)
    assert told["passed"] is passed
    assert [check["passed"] for check in told["checks"]] == [True, passed]
    assert told["documents"] == 3
    assert calls == ["clear", "story", "clear"], "nothing is left behind without --keep"
