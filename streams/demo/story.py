"""The story itself: two versions, somebody who keeps editing, a backfill, a cutover under load and the way back.

Every number it tells is read from the topics, the spaces or the clock of this run; it must never wait for time alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import partial
from typing import TypeVar

from connectors.errors import Terminal
from connectors.kafka.producer import produce_many
from connectors.protocols import JSON
from connectors.services import Addresses
from streams import config, control
from streams.demo.asking import Asker
from streams.demo.documents import Docstring, Question, collect, questions
from streams.demo.editor import Editor, Edits
from streams.demo.load import Load, Window
from streams.demo.logcheck import Difference, compare, newest_records
from streams.demo.report import Check, Narrator, progress_line
from streams.demo.stage import Stage
from streams.migration.evaluate import evaluate
from streams.migration.verify import verify
from streams.progress import ProgressRecord
from streams.state import BuildState, Command
from streams.versions import Stage as BuildStage
from streams.views import ProgressView, StateView
from streams.wiring import Outside

T = TypeVar("T")

COLLECTION = "stdlib"
PARTITIONS = 2
EDITS_PER_S = 25.0
QUERIES_PER_S = 200.0
LEAST_PER_S = 100.0
BEFORE_AND_AFTER = 550
LEAST_QUERIES = 1000
DEPTH = 10
PATIENCE_S = 120.0
WATCH_EVERY_S = 0.5


class Story:
    """Call `run` once; the services and the folder must be fresh. Afterwards `checks` has every claim, `facts` what
    `--json` prints beside them, and `example` a question to try.
    """

    def __init__(self, stage: Stage, addresses: Addresses, narrator: Narrator) -> None:
        self._stage = stage
        self._addresses = addresses
        self._narrator = narrator
        self.checks: list[Check] = []
        self.facts: dict[str, JSON] = {}
        self.example = Question("", "")

    async def run(self) -> None:
        """Raises what stops the story; a claim that does not hold stops nothing: it is in `checks`."""
        self._stage.write_config(self._addresses, whole=False)
        self._out = await Outside.open(config.load(self._stage.config))
        try:
            await self._out.ensure_topics()
            await self._tell()
        except BaseExceptionGroup as group:
            raise _first(group) from group
        finally:
            await self._out.close()

    async def _tell(self) -> None:
        documents, asked = await self._produce()
        self._state, self._progress = self._out.state_view(), self._out.progress_view()
        async with self._following(self._state), self._following(self._progress), self._watching_worker():
            self._asker = Asker(self._out, self._state, COLLECTION, DEPTH)
            try:
                await self._first_version(len(documents))
                kept = frozenset(question.key for question in asked)
                editor = Editor(self._out.sink.send, self._topic, documents, kept, EDITS_PER_S)
                async with self._beside(editor.run()):
                    await self._migrate(asked)
                    editor.stop()
                await self._against_the_log(editor.edits)
                await self._closing_state()
            finally:
                await self._asker.close()

    async def _migrate(self, asked: Sequence[Question]) -> None:
        self._narrator.step("Somebody keeps changing documents, from now to the end")
        self._narrator.say(
            f"{EDITS_PER_S:g} changes a second: edits, deletes, deleted documents brought back. "
            "Nobody is told that a migration begins."
        )
        await self._second_version()
        await self._sweep()
        await self._quality(asked)
        await self._swaps(asked)

    # --- 2: documents and the first version --------------------------------------------------------------------------

    async def _produce(self) -> tuple[list[Docstring], list[Question]]:
        self._narrator.step("Documents: the docstrings of this machine's Python standard library")
        documents = await asyncio.to_thread(collect)
        asked = questions(documents)
        self._topic = self._out.settings.collection(COLLECTION).topic
        await self._out.topics.ensure_topic(self._topic, PARTITIONS, {"cleanup.policy": "compact"})
        records = ((document.key.encode(), document.to_value(), None) for document in documents)
        produced = await asyncio.to_thread(produce_many, self._out.kafka_settings, self._topic, records)
        self._narrator.say(f"{produced.count:,} documents are on the compacted topic {self._topic}.")
        self._narrator.note(
            f"{len(asked)} summary lines will be the questions: that line is left out of the embedded text, "
            "else each question would be a copy of its answer."
        )
        self.example = asked[0]
        self.facts |= {"documents": produced.count, "questions": len(asked)}
        return documents, asked

    async def _first_version(self, documents: int) -> None:
        self._narrator.step("Version v1 goes live: character n-grams, 64 dimensions")
        record = await self._built("v1")
        await self._ask("cutover", "v1")
        self._narrator.say(f"v1 holds {record.completed:,} documents and serves the alias {self._alias()}.")
        self._check(
            "v1 built from the topic",
            record.completed == record.total == documents,
            f"{record.completed:,} of {documents:,} documents",
        )

    # --- 4: the second version ---------------------------------------------------------------------------------------

    async def _second_version(self) -> None:
        self._narrator.step("Version v2 is added to the configuration: words and n-grams, 512 dimensions")
        self._stage.write_config(self._addresses, whole=True)
        self._out.settings = config.load(self._stage.config)
        self._narrator.say(
            "The worker reads the file, creates a second space and begins two lanes: live follows every new change at "
            "once, replay goes through the history (held back, so that you can watch)."
        )
        record = await self._built("v2")
        counted = record.counted()
        build = self._build("v2")
        seconds = (build.ready_ms - build.started_ms) / 1000
        self._narrator.say(
            f"v2 is ready after {seconds:.0f} s: {counted.embedded_replay:,} documents from the history, "
            f"{record.changed_mid_migration:,} changed meanwhile."
        )
        self._narrator.say(
            f"{counted.suppressed_by_live:,} old versions in the history were left out, because live had already seen "
            f"newer ones ({counted.suppressed_by_live_delete:,} of them of deleted documents)."
        )
        self.facts["replay"] = {"seconds": seconds, "total": record.total, **counted.as_dict()}
        self._check(
            "the migration met changes",
            record.changed_mid_migration > 0
            and counted.suppressed_by_live > 0
            and counted.suppressed_by_live_delete > 0,
            f"{record.changed_mid_migration:,} changed, {counted.suppressed_by_live:,} old puts left out",
        )
        self._check(
            "history embedded at most once each",
            counted.embedded_replay + counted.suppressed_by_live <= record.total == record.completed,
            f"{counted.embedded_replay:,} for {record.total:,} documents",
        )
        self._check("nothing in the dead letters", record.dead_letters == 0, str(record.dead_letters))

    # --- 5, 6: is it complete, is it better --------------------------------------------------------------------------

    async def _sweep(self) -> None:
        self._narrator.step("Is v2 complete? The sweep compares it with the log, both ways")
        found = await verify(self._out, self._build("v2"))
        line = f"missing {found.missing}, stale {found.stale}, extra {found.extra}"
        self._narrator.say(f"{found.checked:,} documents checked while changes go on: {line}.")
        self.facts["sweep"] = {
            "checked": found.checked,
            "missing": found.missing,
            "stale": found.stale,
            "extra": found.extra,
            "moved": found.moved,
        }
        self._check("sweep of v2", found.clean and found.checked > 0, line)

    async def _quality(self, asked: Sequence[Question]) -> None:
        self._narrator.step(f"Is v2 better? {len(asked)} questions to both, each about one known document")
        found = {version: await self._ranked(version, asked) for version in ("v1", "v2")}
        figures = {
            version: evaluate([(ids, {q.key: 1.0}) for q, ids in zip(asked, ranked, strict=True)], DEPTH)
            for version, ranked in found.items()
        }
        for version, one in figures.items():
            self._narrator.say(
                f"{version}: found among the first {DEPTH} {one.recall:6.1%}   MRR {one.mrr:.3f}   "
                f"nDCG@{DEPTH} {one.ndcg:.3f}"
            )
        gained = [
            question
            for question, first, second in zip(asked, found["v1"], found["v2"], strict=True)
            if question.key not in first and second[:1] == [question.key]
        ]
        if gained:
            self.example = min(gained, key=lambda question: len(question.query))
            self._narrator.note(f'e.g. "{self.example.query}": v2 has {self.example.key} first, v1 not at all')
        self.facts["quality"] = {version: asdict(one) for version, one in figures.items()}
        v1, v2 = figures["v1"], figures["v2"]
        self._check(
            "v2 better than v1",
            v2.recall > v1.recall and v2.mrr > v1.mrr and v2.ndcg > v1.ndcg,
            f"nDCG@{DEPTH} {v1.ndcg:.3f} -> {v2.ndcg:.3f}",
        )

    async def _ranked(self, version: str, asked: Sequence[Question]) -> list[list[str]]:
        """The keys one version finds for each question, best first."""
        at_once = asyncio.Semaphore(4)

        async def one(question: Question) -> list[str]:
            async with at_once:
                return await self._asker.ranked(question.query, version)

        return await asyncio.gather(*(one(question) for question in asked))

    # --- 7, 8: swaps under load --------------------------------------------------------------------------------------

    async def _swaps(self, asked: Sequence[Question]) -> None:
        self._narrator.step(f"Cutover to v2 under load: {QUERIES_PER_S:g} searches a second, before, during and after")
        load = Load(self._asker.serving, [question.query for question in asked], QUERIES_PER_S)
        async with self._beside(load.run()):
            begin = await self._swap(load, 0, "cutover", "v2", "cutover to v2, searches meanwhile")
            self._narrator.step("Second thoughts: rollback to v1, which was kept current, under the same load")
            begin = await self._swap(load, begin, "rollback", "v1", "rollback to v1, searches meanwhile")
            self._narrator.step("And forward again to v2, where it stays")
            await self._swap(load, begin, "cutover", "v2", "and to v2 again, searches meanwhile")
            load.stop()

    async def _swap(self, load: Load, begin: int, verb: str, to: str, name: str) -> int:
        """Returns where the next swap's answers begin: those after this one are those before the next."""
        await self._meanwhile(load.answered(begin + BEFORE_AND_AFTER), f"{BEFORE_AND_AFTER} searches")
        old = self._build(self._serving()).space
        await self._ask(verb, to)
        swapped = len(load.answers)
        await self._meanwhile(load.answered(swapped + BEFORE_AND_AFTER), f"{BEFORE_AND_AFTER} searches")
        window = load.window(begin, swapped + BEFORE_AND_AFTER)
        new = self._build(to).space
        alias = await self._out.store.alias_target(self._alias())
        self._narrator.say(
            f"{window.queries:,} searches at {window.per_s:.0f}/s (median {window.median_ms:.0f} ms, "
            f"99th percentile {window.p99_ms:.0f} ms): {window.failed} failed, {window.mixed} mixed."
        )
        self._narrator.say(
            f"{window.by_space.get(old, 0):,} answered by the old space, {window.by_space.get(new, 0):,} by the new."
        )
        for problem in window.problems:
            self._narrator.say(f"problem: {problem}")
        self._note_swap(name, window, old, new, alias)
        return swapped

    def _note_swap(self, name: str, window: Window, old: str, new: str, alias: str | None) -> None:
        swaps = self.facts.setdefault("swaps", [])
        assert isinstance(swaps, list)
        swaps.append({"name": name, "from": old, "to": new, "per_s": window.per_s, **asdict(window)})
        whole = not (window.failed or window.mixed) and set(window.by_space) == {old, new} and alias == new
        enough = window.queries >= LEAST_QUERIES and window.per_s >= LEAST_PER_S
        found = f"{window.queries:,} at {window.per_s:.0f}/s: {window.failed} failed, {window.mixed} mixed"
        self._check(name, whole and enough, found if alias == new else f"{found}; the alias points to {alias}")

    # --- 9: the log has the last word --------------------------------------------------------------------------------

    async def _against_the_log(self, edits: Edits) -> None:
        self._narrator.step("The last word: the topic read once from the beginning, against every stored document")
        self._narrator.say(
            f"The changes end: {edits.edited:,} edits, {edits.deleted:,} deletes, {edits.recreated:,} brought back."
        )
        self.facts["changes"] = asdict(edits)
        fields = self._out.settings.collection(COLLECTION).text.fields
        ends = {partition: bounds.stable for partition, bounds in (await self._out.kafka.bounds(self._topic)).items()}
        newest = await newest_records(self._out.kafka, self._topic, fields)
        found: dict[str, JSON] = {}
        for version in ("v1", "v2"):
            await self._until(
                self._progress, partial(self._resolved, version, ends), f"{version} to reach the end of the log"
            )
            difference = await compare(newest, self._out.store.space(self._build(version).space))
            found[version] = asdict(difference)
            line = _differs(difference)
            self._narrator.say(f"{version}: {line}, by source hash and offset.")
            self._check(f"{version} equals the log", difference.none and difference.documents > 0, line)
        self.facts["log_check"] = found

    def _resolved(self, version: str, ends: dict[int, int], view: ProgressView) -> bool:
        records = {record.partition: record for record in view.partitions(self._build(version))}
        return all(partition in records and records[partition].live_position >= end for partition, end in ends.items())

    async def _closing_state(self) -> None:
        collection = self._state.collection(COLLECTION)
        alias = await self._out.store.alias_target(self._alias())
        self.facts["state"] = {
            "serving": collection.serving,
            "previous": collection.previous,
            "alias": self._alias(),
            "alias_target": alias,
        }
        self._narrator.say(f"At the end {collection.serving} serves, {collection.previous} is kept current behind it.")
        self._check(
            "the alias names what serves",
            collection.serving == "v2" and alias == self._build("v2").space,
            alias or "nowhere",
        )

    # --- helpers -----------------------------------------------------------------------------------------------------

    def _check(self, name: str, passed: bool, found: str) -> None:
        self.checks.append(Check(name, passed, found))

    def _build(self, version: str) -> BuildState:
        return self._state.build(COLLECTION, version)

    def _serving(self) -> str:
        return self._state.collection(COLLECTION).serving or ""

    def _alias(self) -> str:
        return self._out.settings.collection(COLLECTION).alias

    async def _built(self, version: str) -> ProgressRecord:
        """The build's progress once it is ready, its line shown until then."""
        key = f"{COLLECTION}/{version}"
        with self._narrator.progress() as line:

            def done(view: ProgressView) -> bool:
                record, build = view.records.get(key), self._state.builds.get(key)
                if build is not None and build.failure is not None:
                    raise Terminal(f"{key} stopped: {build.failure.cause}", next_step=build.failure.next_step)
                if record is None or build is None or record.epoch != build.epoch:
                    return False
                if record.planned and record.rate_per_s > 0:
                    line.show(progress_line(record))
                return build.stage is BuildStage.READY and record.replay_done

            await self._until(self._progress, done, f"{version} to be ready")
        return self._progress.records[key]

    async def _ask(self, verb: str, version: str) -> None:
        """One operator's command, as the command line would send it. Raises Terminal when it is refused."""
        command = Command.model_validate(
            {"verb": verb, "collection": COLLECTION, "version": version, "who": control.whoami(), "why": "the demo"}
        )
        names, view = self._out.names, self._state
        asked = control.ask(self._out.sink, names, view, command, timeout_s=PATIENCE_S)
        outcome = await self._meanwhile(asked, f"{verb} {version}")
        if not outcome.ok:
            raise Terminal(f"{verb} {version} was refused: {outcome.message}", next_step=outcome.next_step)

    async def _until(self, view: ProgressView, condition: Callable[[ProgressView], bool], what: str) -> None:
        await self._meanwhile(view.wait_for(condition), what)

    async def _meanwhile(self, wait: Awaitable[T], what: str) -> T:
        """Raises Terminal after `PATIENCE_S`."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await wait
        except TimeoutError as error:
            raise Terminal(
                f"waited {PATIENCE_S:g} s for {what}", next_step=f"read {self._stage.worker_log}, then run again"
            ) from error

    @asynccontextmanager
    async def _following(self, view: StateView | ProgressView) -> AsyncIterator[None]:
        try:
            await view.load()
            async with self._beside(view.run(), endless=True):
                yield
        finally:
            await view.close()

    @asynccontextmanager
    async def _watching_worker(self) -> AsyncIterator[None]:
        await asyncio.to_thread(self._stage.start_worker)

        async def watch() -> None:
            while True:
                await asyncio.sleep(WATCH_EVERY_S)
                self._stage.check_worker()

        async with self._beside(watch(), endless=True):
            yield

    @asynccontextmanager
    async def _beside(self, work: Coroutine[None, None, None], *, endless: bool = False) -> AsyncIterator[None]:
        """`work` beside the body: a failure of either ends both; after the body it is awaited, or ended if endless."""
        async with asyncio.TaskGroup() as group:
            task = group.create_task(work)
            yield
            if endless:
                task.cancel()


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What failed inside task groups, rather than the groups."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _differs(found: Difference) -> str:
    if found.none:
        return f"{found.equal:,} of {found.documents:,} documents equal"
    return (
        f"{found.equal:,} of {found.documents:,} equal; missing {len(found.missing)}, "
        f"different {len(found.different)}, extra {len(found.extra)}"
    )
