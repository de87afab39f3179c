"""What the doctor says of what was seen: each judgement sound and unsound, and the lines a person reads."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import orjson
import pytest

from connectors import reserved
from connectors.embedders.canary import to_base64
from connectors.embedders.probe import PROBE_TEXTS
from connectors.errors import AccessDenied, ContentRejected, Unreachable
from connectors.inspected import ClusterFacts, PartitionFacts, SampledObject, ServerFacts, TopicLayout
from connectors.protocols import JSON, Bounds, Capacity, Commit, Embedded, Head, ModelFacts, TopicFacts
from streams import doctoring
from streams.cli.doctor import lines
from streams.config_embedders import TeiEmbedder, Version
from streams.documents import object_id
from streams.migration import doctor
from streams.migration.doctor import Finding
from streams.migration.plan_risks import Topic
from streams.state import BuildState, CollectionState, Command, Failure, Intent, TopicNames
from streams.versions import Envelope, Stage
from streams.wiring import own_topics

ENVELOPE = Envelope(provider="tei", model="m", revision="", dimensions=4, text_fields=("text",))
BUILD = BuildState(
    collection="c", version="v1", epoch=1, stage=Stage.SERVING, envelope=orjson.loads(ENVELOPE.canonical_json()),
    fingerprint=ENVELOPE.fingerprint, space=f"C_v1_1_{ENVELOPE.fingerprint}", topic="t", topic_id="id", partitions=2,
    start={0: 10, 1: 10}, barrier={0: 10, 1: 10},
)  # fmt: skip
FACTS = TopicFacts("t", "id", 2, "compact", -1, 86_400_000, 1_048_588)
SETTINGS = {
    "cleanup.policy": "compact",
    "retention.ms": "604800000",
    "delete.retention.ms": "86400000",
    "min.insync.replicas": "1",
}
SEEN = Topic("t", SETTINGS, {0: Bounds(0, 60), 1: Bounds(0, 60)}, {0: 60, 1: 60}, [])
ALL = frozenset({"describe", "describe_configs", "read", "write"})
ONE_COPY = TopicLayout({0: PartitionFacts(1, 1, True)}, ALL)
MARK = f"v1@{ENVELOPE.fingerprint}"


def verdicts(findings: list[Finding]) -> dict[str, str]:
    return {one.check: one.verdict for one in findings}


def topic(**settings: str) -> Topic:
    return replace(SEEN, settings={**SETTINGS, **{name.replace("_", "."): v for name, v in settings.items()}})


def copies(shall: int, are: int, *, led: bool = True) -> TopicLayout:
    return TopicLayout({0: PartitionFacts(shall, shall, True), 1: PartitionFacts(shall, are, led)}, ALL)


@pytest.mark.parametrize(
    ("seen", "verdict", "fix"),
    [
        (SEEN, "ok", ""),
        (topic(cleanup_policy="delete"), "wrong", "set cleanup.policy=compact on t"),
        (topic(cleanup_policy="compact,delete"), "wrong", "set cleanup.policy=compact on t"),
        (topic(delete_retention_ms="3600000"), "note", "86400000"),
        (replace(SEEN, ends={0: 5_000, 1: 60}), "wrong", "find-hanging --topic t"),
        (replace(SEEN, settings={}), "note", "DescribeConfigs"),
    ],
)
def test_the_documents_topic(seen: Topic, verdict: str, fix: str) -> None:
    found = doctor.documents_topic("c", FACTS, seen, ONE_COPY, 1, 1_000_000)
    retention = [one for one in found if one.check == "retention"]
    assert verdict in {one.verdict for one in retention}
    assert any(fix in one.fix for one in retention)


def test_records_larger_than_a_collection_takes_are_noted() -> None:
    sizes = [verdicts(doctor.documents_topic("c", replace(FACTS, max_message_bytes=n), SEEN, ONE_COPY, 1, 1_000_000))
             for n in (1_048_588, 5_000_000)]  # fmt: skip
    assert [one["record size"] for one in sizes] == ["ok", "note"]


@pytest.mark.parametrize(
    ("layout", "least", "brokers", "verdict"),
    [
        (ONE_COPY, "1", 1, "ok"),
        (ONE_COPY, "1", 3, "note"),
        (copies(3, 3), "2", 3, "ok"),
        (copies(3, 2), "2", 3, "note"),
        (copies(3, 1), "2", 3, "wrong"),
        (copies(3, 3), "3", 3, "note"),
        (copies(3, 3), "1", 3, "note"),
        (copies(3, 3, led=False), "2", 3, "wrong"),
        (copies(3, 3), None, 3, "not known"),
    ],
)
def test_replicas(layout: TopicLayout, least: str | None, brokers: int, verdict: str) -> None:
    settings = {} if least is None else {"min.insync.replicas": least}
    (found,) = doctor.replicas("t", layout, settings, brokers)
    assert found.verdict == verdict
    assert bool(found.fix) == (verdict != "ok")


def test_rights() -> None:
    said = [
        doctor.rights("t", replace(ONE_COPY, operations=operations), ("read", "write"))[0]
        for operations in (ALL, frozenset({"all"}), frozenset({"read"}), None)
    ]
    assert [one.verdict for one in said] == ["ok", "ok", "wrong", "not known"]
    assert said[2].fix == "grant write on t to this client"
    assert doctor.kafka("b:1", ClusterFacts("x", 1, frozenset({"describe"})), "cf")[0].verdict == "note"


@pytest.mark.parametrize(
    ("session_s", "broker", "verdict"),
    [
        (45.0, {}, "ok"),
        (5.0, {}, "wrong"),
        (1801.0, {}, "wrong"),
        (45.0, {"offsets.retention.minutes": "60"}, "note"),
        (45.0, None, "not known"),
    ],
)
def test_client_settings(session_s: float, broker: Mapping[str, str] | None, verdict: str) -> None:
    told = {
        "group.min.session.timeout.ms": "6000", "group.max.session.timeout.ms": "1800000",
        "offsets.retention.minutes": "10080",
    }  # fmt: skip
    seen = {} if broker is None else {**told, **broker}
    found = doctor.client_settings("b:1", session_s, {"sasl.password": "secret"}, seen)
    assert found.verdict == verdict
    assert "kafka.client: sasl.password" in found.found
    assert "secret" not in found.found


@pytest.mark.parametrize(
    ("name", "changes", "partitions", "wrong"),
    [
        ("state", {}, 1, ""),
        ("state", {"cleanup.policy": "delete"}, 1, "cleanup.policy=delete instead of compact"),
        ("state", {}, 3, "3 partitions instead of 1"),
        ("journal", {"retention.ms": "604800000"}, 1, "retention.ms=604800000 instead of -1"),
        ("commands", {"retention.ms": "-1"}, 1, ""),
        ("commands", {"retention.ms": "1000"}, 1, "retention.ms=1000 instead of 604800000"),
        ("dead_letters", {"max.message.bytes": "9000000"}, 1, ""),
        ("dead_letters", {"max.message.bytes": "1048588"}, 1, "max.message.bytes=1048588 instead of 1114124"),
    ],
)
def test_own_topics(name: str, changes: Mapping[str, str], partitions: int, wrong: str) -> None:
    names = TopicNames("cf")
    own = getattr(names, name)
    wanted = own_topics(names, 1_048_588)[own]
    found = doctor.own_topic(own, wanted, {**wanted, **changes}, partitions)
    assert (found.verdict, found.found if wrong else "") == ("wrong" if wrong else "ok", wrong)
    assert bool(found.fix) == bool(wrong)
    assert doctor.own_topic(own, wanted, {}, 1).verdict == "not known"


@pytest.mark.parametrize(
    ("there", "active", "verdict"),
    [(True, 1, "ok"), (False, 1, "wrong"), (None, 1, "not known"), (False, 0, "note"), (None, 0, "note")],
)
def test_a_worker(there: bool | None, active: int, verdict: str) -> None:
    assert doctor.worker("cf.controller", there, active).verdict == verdict


@pytest.mark.parametrize(
    ("newest_ms", "fresh", "verdict"),
    [
        (100_000, True, "ok"),
        (90_000, True, "wrong"),
        (110_000, True, "wrong"),
        (110_000, False, "wrong"),
        (90_000, False, "not known"),
        (None, False, "not known"),
    ],
)
def test_the_clocks_of_workers(newest_ms: int | None, fresh: bool, verdict: str) -> None:
    assert doctor.worker_clock(newest_ms, 100_000, fresh).verdict == verdict


@pytest.mark.parametrize(
    ("ahead_ms", "verdict"), [(0, "ok"), (5_400, "ok"), (5_600, "wrong"), (-60_000, "wrong"), (None, "not known")]
)
def test_the_clock_of_weaviate(ahead_ms: int | None, verdict: str) -> None:
    found = doctor.weaviate("http://w", ServerFacts("1.38.11", {"node1": "HEALTHY"}, ahead_ms, 500))
    assert verdicts(found) == {"weaviate": "ok", "clock": verdict}
    assert doctor.weaviate("http://w", ServerFacts("1", {"a": "UNHEALTHY"}))[0].verdict == "wrong"


def test_a_build_that_stopped_or_is_paused() -> None:
    stopped = BUILD.model_copy(update={"failure": Failure(cause="the space is gone", next_step="do this")})
    found = [doctor.build_state(one) for one in (BUILD, stopped, BUILD.model_copy(update={"paused": "replay"}))]
    assert [one.verdict for one in found] == ["ok", "wrong", "note"]
    assert found[1].fix == "do this"


def test_a_topic_that_is_not_the_one_it_began_with() -> None:
    seen = [FACTS, replace(FACTS, topic_id="other"), replace(FACTS, partitions=3), None]
    assert [doctor.build_topic(BUILD, one).verdict for one in seen] == ["ok", "wrong", "wrong", "wrong"]


@pytest.mark.parametrize(
    ("commits", "bounds", "members", "worker", "verdict"),
    [
        ({0: 60, 1: 60}, (0, 60), True, True, "ok"),
        ({0: 60}, (0, 60), True, True, "ok"),  # the other begins at its start
        ({0: 5, 1: 60}, (6, 60), True, True, "wrong"),  # removed before it was read
        ({0: 60}, (11, 60), True, True, "wrong"),  # so is what a group without a commit begins at
        ({0: 61, 1: 60}, (0, 60), True, True, "wrong"),  # the log was truncated
        ({0: 60, 1: 60}, (0, 60), False, True, "wrong"),
        ({0: 60, 1: 60}, (0, 60), False, False, "note"),
        ({0: 60, 1: 60}, (0, 60), None, True, "not known"),
        ({0: 60, 1: 60}, (0, 60_000), True, True, "note"),
    ],
)
def test_offsets(
    commits: Mapping[int, int], bounds: tuple[int, int], members: bool | None, worker: bool, verdict: str
) -> None:
    committed = {partition: Commit(offset) for partition, offset in commits.items()}
    found = doctor.offsets(BUILD, "g", committed, {0: Bounds(*bounds), 1: Bounds(*bounds)}, members, worker)
    assert found.verdict == verdict
    assert bool(found.fix) == (verdict != "ok")


def test_the_configured_model() -> None:
    said = [(BUILD.fingerprint, "t"), ("0" * 12, "t"), (BUILD.fingerprint, "other"), (None, "t")]
    assert [doctor.configured_model(BUILD, *one).verdict for one in said] == ["ok", "wrong", "wrong", "wrong"]


@pytest.mark.parametrize(
    ("serving", "target", "intent", "verdict"),
    [
        ("v1", BUILD.space, False, "ok"),
        (None, None, False, "ok"),
        ("v1", None, False, "wrong"),
        ("v1", "C_v0_1_aaaaaaaaaaaa", False, "wrong"),
        (None, BUILD.space, False, "wrong"),
        ("v1", "C_v0_1_aaaaaaaaaaaa", True, "note"),
    ],
)
def test_the_alias(serving: str | None, target: str | None, intent: bool, verdict: str) -> None:
    command = Intent(command=Command(verb="cutover", collection="c"))
    state = CollectionState(collection="c", alias="C", topic="t", serving=serving, intent=command if intent else None)
    found = doctor.alias(state, {"v1": BUILD.space}, target)
    assert (found.verdict, bool(found.fix)) == (verdict, verdict != "ok")


def test_a_space() -> None:
    other = replace(ENVELOPE, model="another").canonical_json()
    seen = [doctor.space(BUILD, said, []) for said in (ENVELOPE.canonical_json(), None, "mine", other)]
    assert [one.verdict for one in seen] == ["ok", "wrong", "wrong", "wrong"]
    assert doctor.space(BUILD, ENVELOPE.canonical_json(), ["shard1"]).verdict == "wrong"
    assert doctor.properties(BUILD, {"a": "int"}, {"a": "int"}).verdict == "ok"
    assert doctor.properties(BUILD, {"a": "int"}, {}).verdict == "note"
    assert doctor.properties(BUILD, {"a": "int"}, {"a": "text"}).verdict == "wrong"


def test_orphaned_spaces_are_those_of_our_naming_alone() -> None:
    spaces = [BUILD.space, "Other", "C_mine", "Cars_v1_1_aaaaaaaaaaaa", "C_v9_3_aaaaaaaaaaaa"]
    found = doctor.orphans({"C": "c"}, [BUILD.space], spaces)
    assert [(one.looked_at, one.verdict) for one in found] == [("C_v9_3_aaaaaaaaaaaa", "wrong")]
    assert verdicts(doctor.orphans({"C": "c"}, [BUILD.space], spaces[:-1])) == {"orphaned spaces": "ok"}


def stored(doc_id: str, chunk: int = 0, chunks: int = 1, **changes: JSON) -> SampledObject:
    properties: dict[str, JSON] = {
        reserved.DOC_ID: doc_id, reserved.CHUNK: chunk, reserved.CHUNKS: chunks, reserved.PARTITION: 0,
        reserved.OFFSET: 7, reserved.SPACE: MARK, **changes,
    }  # fmt: skip
    return SampledObject(object_id("c", doc_id, chunk), properties, True, np.ones(4, np.float32))


def test_mixed_and_unknown_models() -> None:
    sound = [stored("a"), stored("b")]
    assert doctor.marks(BUILD, sound).verdict == "ok"
    found = doctor.marks(BUILD, [*sound, stored("x", cf_space="v2@0"), stored("y", cf_space=None)])
    assert found.verdict == "wrong"
    assert found.found == f"1 of 4 objects carry none, 1 of 4 objects carry v2@0 instead of {MARK}; one is document x"


def test_missing_text() -> None:
    sample = [stored("a"), replace(stored("b"), has_text=False)]
    assert doctor.texts(BUILD, sample[:1], store_text=True).verdict == "ok"
    assert "1 of 2 objects have no text" in doctor.texts(BUILD, sample, store_text=True).found
    assert doctor.texts(BUILD, sample, store_text=False).verdict == "ok"


@pytest.mark.parametrize(
    ("vector", "problem"),
    [
        (None, "without a vector"),
        (np.zeros(4, np.float32), "with a zero vector"),
        (np.array([1, 2, np.nan, 0], np.float32), "with a vector that is not finite"),
        (np.ones(5, np.float32), "with 5 dimensions instead of 4"),
    ],
)
def test_vectors(vector: np.ndarray[tuple[int], np.dtype[np.float32]] | None, problem: str) -> None:
    assert doctor.vectors(BUILD, [stored("a")]).verdict == "ok"
    found = doctor.vectors(BUILD, [stored("a"), replace(stored("b"), vector=vector)])
    assert found.found == f"of 2 objects: 1 {problem}; one is document b"
    assert found.verdict == "wrong"


@pytest.mark.parametrize(
    ("sample", "beside", "amiss"),
    [
        ([stored("a", 0, 1)], [], {}),
        ([stored("a", 0, 3)], [("a", 1, 3), ("a", 2, 3)], {}),
        ([stored("a", 0, 3)], [("a", 2, 3)], {"a": "1 of 3 chunks are missing"}),
        ([stored("a", 1, 3)], [("a", 0, 3)], {}),
        ([stored("a", 1, 3)], [], {"a": "chunk 1 has no chunk 0"}),
        ([stored("a", 2, 3)], [("a", 0, 2)], {"a": "chunk 2 is left over: chunk 0 says 2"}),
        (
            [replace(stored("a"), uuid=object_id("c", "b", 0))],
            [],
            {"a": "chunk 0 stands under an id that is not its own"},
        ),
        (
            [stored("a", cf_doc_id=None)],
            [],
            {str(object_id("c", "a", 0)): "is no object of Crossfade's"},
        ),
    ],
)  # fmt: skip
def test_orphaned_chunks(
    sample: list[SampledObject], beside: list[tuple[str, int, int]], amiss: Mapping[str, str]
) -> None:
    heads = {object_id("c", *one[:2]): Head(object_id("c", *one[:2]), one[0], "", *one[1:], "", 0, 7) for one in beside}
    asked = doctor.siblings("c", sample, 100)
    assert doctor.orphaned_chunks("c", sample, heads, asked) == amiss
    assert doctor.chunks(BUILD, amiss, 1).verdict == ("wrong" if amiss else "ok")


def test_what_was_not_looked_for_is_not_missing() -> None:
    sample = [stored("a", 0, 300), stored("b", 1, 2)]
    asked = doctor.siblings("c", sample, 100)
    assert len(asked) == 100
    there = {uuid: Head(uuid, "a", "", 1, 300, "", 0, 7) for uuid in asked}
    assert doctor.orphaned_chunks("c", sample, there, asked) == {}


def test_endpoints() -> None:
    facts = [ModelFacts("m", "r"), ModelFacts("m", "other"), ModelFacts("/data/m"), ModelFacts()]
    said = [doctor.endpoint("c/v1", "host", one, "m", "r", True, "probe it").verdict for one in facts]
    assert said == ["ok", "wrong", "note", "not known"]
    vectors = np.eye(len(PROBE_TEXTS), 4, dtype=np.float32)
    canary = to_base64(vectors)
    assert doctor.probed("c/v1", "host", vectors, 4, canary).verdict == "ok"
    assert doctor.probed("c/v1", "host", vectors, 4, "").verdict == "ok"
    assert doctor.probed("c/v1", "host", vectors[::-1], 4, canary).verdict == "wrong"
    assert doctor.probed("c/v1", "host", vectors, 8, canary).verdict == "wrong"


class Served:
    """An endpoint that says `facts`, and counts what it is asked to embed."""

    max_batch = 8

    def __init__(self, facts: ModelFacts | Exception, dimensions: int = 4) -> None:
        self._facts, self._dimensions = facts, dimensions
        self.embedded, self.closed = 0, False

    async def embed(self, texts: Sequence[str]) -> Embedded:
        self.embedded += len(texts)
        return Embedded(np.ones((len(texts), self._dimensions), np.float32))

    async def facts(self) -> ModelFacts:
        if isinstance(self._facts, Exception):
            raise self._facts
        return self._facts

    async def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize(
    ("facts", "probed", "verdict", "spent"),
    [
        (ModelFacts("m"), False, "ok", 0),
        (ModelFacts("m"), True, "ok", len(PROBE_TEXTS)),
        (Unreachable("nothing answers"), False, "wrong", 0),
        (AccessDenied("the key is refused"), False, "wrong", 0),
        (ContentRejected("400"), False, "not known", 0),
    ],
)
def test_an_endpoint_is_asked_for_vectors_only_with_probe(
    facts: ModelFacts | Exception, probed: bool, verdict: str, spent: int
) -> None:
    said = TeiEmbedder(provider="tei", url="http://tei", model="m")
    version, served = Version(embedder=said, dimensions=4), Served(facts)
    look = partial(doctoring._endpoint, "c/v1", "tei", served, said, version, "", probed)
    (found,) = asyncio.run(doctoring._check("endpoint", "c/v1 at tei", look))
    assert (found.verdict, served.embedded, served.closed) == (verdict, spent, True)


def test_the_disk() -> None:
    free = [Capacity(disk_free_bytes=n, disk_total_bytes=100) for n in (50, 15, 10)]
    assert [doctor.disk("w", one).verdict for one in free] == ["ok", "note", "wrong"]
    assert doctor.disk("w", Capacity(troubles=("nobody says",))).verdict == "not known"
    assert doctor.auto_schema("w", ours=True).verdict == "ok"
    assert "AUTOSCHEMA_ENABLED=false" in doctor.auto_schema("w", ours=False).fix
    assert doctor.broker_clock().verdict == "not known"


def test_a_check_that_cannot_be_made_is_not_known_and_a_denied_one_wrong() -> None:
    async def fails(error: Exception) -> list[Finding]:
        raise error

    async def verdict(error: Exception) -> Finding:
        (found,) = await doctoring._check("alias", "C", lambda: fails(error))
        return found

    away = asyncio.run(verdict(Unreachable("nothing answers", next_step="start it")))
    assert (away.verdict, away.found, away.fix) == ("not known", "nothing answers", "start it")
    assert asyncio.run(verdict(AccessDenied("no"))).verdict == "wrong"
    defect = asyncio.run(verdict(ValueError("a document's text")))
    assert defect.verdict == "not known"
    assert "document" not in defect.found


def test_lines_are_in_columns_and_a_fix_stands_below_what_is_wrong() -> None:
    found = [
        Finding("alias", "C", "ok", "points to C_v1"),
        Finding("mixed models", "C\x1b[2J", "wrong", "1 of 2", "crossfade verify c v1 --repair"),
        Finding("disk", "w", "not known", "nobody says", "set weaviate.metrics"),
    ]
    assert list(lines(found)) == [
        "ok         alias         C: points to C_v1",
        "wrong      mixed models  C\\x1b[2J: 1 of 2",
        "           fix: crossfade verify c v1 --repair",
        "not known  disk          w: nobody says",
        "           fix: set weaviate.metrics",
        "1 wrong, 1 not known, 1 ok",
    ]
    assert not doctor.healthy(found)
    assert doctor.healthy(found[::2])
