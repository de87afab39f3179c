"""The router on its routes: two spaces in one answer, no stale text, fallback, vectors, filters, rollout, shadow."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from connectors import reserved
from connectors.errors import (
    AccessDenied,
    ConfigurationError,
    ContentRejected,
    IdentityChanged,
    NotFound,
    Refused,
    Unreachable,
    WrongModel,
)
from connectors.memory.store import MemoryStore
from connectors.protocols import JSON, Hit, SpaceObject, SpaceSpec, Vectors
from streams.config import Settings, envelope_of
from streams.documents import doc_hash, object_id
from streams.encoding import Encoder
from streams.priority import read_file
from streams.progress import ProgressRecord
from streams.search.router import Router
from streams.search.searched import AccessCounts
from streams.search.shadow import Shadows
from streams.state import BuildState, CollectionState, RolloutState
from streams.versions import Stage
from streams.wiring import make_encoder
from tests.views import Views

TEXTS = {
    "cats": "cats and kittens purr",
    "dogs": "dogs and puppies bark",
    "kafka": "a log of events in partitions",
    "birds": "birds sing in the morning",
}
LANGS = {"cats": "en", "dogs": "de", "kafka": "en", "birds": "fr"}


def settings(routes: Mapping[str, JSON] | None = None) -> Settings:
    return Settings.model_validate(
        {
            "collections": {
                "docs": {
                    "topic": "docs",
                    "text": {"fields": ["text"]},
                    "properties": {"lang": "keyword", "title": "text"},
                    "routes": routes or {},
                    "versions": {
                        "v1": {"embedder": {"provider": "hashing", "word_ngrams": None}, "dimensions": 64},
                        "v2": {"embedder": {"provider": "hashing"}, "dimensions": 256},
                    },
                }
            }
        }
    )


@dataclass
class Outside:
    settings: Settings
    store: MemoryStore


class World:
    """Two versions; the first serves, the second is being built. `held`: what each space holds, by id and offset."""

    def __init__(self, routes: Mapping[str, JSON] | None = None) -> None:
        self.store, self.state = MemoryStore(), Views()
        self.outside = Outside(settings(routes), self.store)
        self.now_s = 0.0
        self.shadows = Shadows(lambda: 0.0)
        self.router = Router(
            self.outside, self.state, self.state, live=True, shadows=self.shadows, clock_s=lambda: self.now_s
        )
        self.encoders: dict[str, Encoder] = {}
        collection = self.outside.settings.collection("docs")
        for epoch, (version, stage) in enumerate({"v1": Stage.SERVING, "v2": Stage.BUILDING}.items(), 1):
            configured = collection.version(version)
            self.encoders[version] = make_encoder(self.outside.settings, collection, configured)
            fingerprint = envelope_of(collection, configured).fingerprint
            self.state.builds[f"docs/{version}"] = BuildState(
                collection="docs",
                version=version,
                epoch=epoch,
                stage=stage,
                envelope={},
                fingerprint=fingerprint,
                space=f"Docs_{version}_{epoch}_{fingerprint}",
                topic="docs",
                partitions=1,
            )
        self.serve("v1")

    def serve(self, version: str, previous: str | None = None) -> None:
        self.state.collections["docs"] = CollectionState(
            collection="docs", alias="Docs", topic="docs", serving=version, previous=previous
        )

    def stage(self, version: str, stage: Stage) -> None:
        key = f"docs/{version}"
        self.state.builds[key] = self.state.builds[key].model_copy(update={"stage": stage})

    def swapped(self) -> None:
        self.serve("v2", "v1")
        self.stage("v2", Stage.SERVING)
        self.stage("v1", Stage.PREVIOUS)

    def covered(self, completed: int, total: int, *, owing: bool = False) -> None:
        said: dict[str, JSON] = {
            **dict.fromkeys(("progress", "rate_per_s", "changed_mid_migration", "unchanged_skipped"), 0),
            **dict.fromkeys(("dead_letters", "live_lag", "updated_at"), 0),
        }
        known = {"name": "v2", "epoch": 2, "status": "building", "eta_s": None, "planned": True, "owing": owing}
        self.state.records = [ProgressRecord.model_validate({**said, **known, "total": total, "completed": completed})]

    def space(self, version: str) -> str:
        return self.state.builds[f"docs/{version}"].space

    def fingerprint(self, version: str) -> str:
        return self.state.builds[f"docs/{version}"].fingerprint

    async def create(self) -> None:
        for version, encoder in self.encoders.items():
            spec = SpaceSpec(
                self.space(version), encoder.envelope.dimensions, "cosine", version, properties={"lang": "keyword"}
            )
            await self.store.create_space(spec)

    async def hold(
        self, version: str, *ids: str, offset: int = 0, text: str = "", texts: Mapping[str, str] = TEXTS
    ) -> None:
        bodies = [text or texts[doc_id] for doc_id in ids]
        vectors = await self.encoders[version].encode_documents(bodies)
        objects = [
            SpaceObject(
                object_id("docs", doc_id, 0),
                {
                    reserved.DOC_ID: doc_id,
                    reserved.DOC_HASH: doc_hash(doc_id),
                    reserved.CHUNK: 0,
                    reserved.CHUNKS: 1,
                    reserved.SOURCE_HASH: "s",
                    reserved.PARTITION: 0,
                    reserved.OFFSET: offset,
                    reserved.TEXT: body,
                    reserved.SPACE: f"{version}@{self.fingerprint(version)}",
                    "lang": LANGS.get(doc_id, "en"),
                },
                vector,
            )
            for doc_id, body, vector in zip(ids, bodies, vectors, strict=True)
        ]
        assert await self.store.space(self.space(version)).upsert(objects) == {}

    def away(self, version: str) -> list[int]:
        """The model's endpoint is down from now on. Returns a list that grows with each time it is asked."""
        asked: list[int] = []
        encoder = self.router.resolve("docs", version).encoder

        async def encode(text: str) -> Vectors:
            asked.append(1)
            raise Unreachable(f"the endpoint of {version} is away")

        encoder.encode_query = encode  # type: ignore[method-assign]
        return asked

    async def close(self) -> None:
        await self.router.close()
        for encoder in self.encoders.values():
            await encoder.close()


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    await made.create()
    await made.hold("v1", *TEXTS)
    yield made
    await made.close()


# --- hybrid, bridge ---


async def test_hybrid_below_its_threshold_is_the_old_space(world: World) -> None:
    await world.hold("v2", "cats")
    world.covered(1, 4)
    answer = await world.router.search("docs", "kittens", 4, mode="hybrid")
    assert (answer.version, answer.route) == ("v1", "hybrid")
    assert answer.why == "v2 holds 25% of the documents, below 50%"
    assert {hit.version for hit in answer.hits} == {"v1"}


async def test_hybrid_above_it_asks_both_and_shows_each_document_once_from_where_it_is_ranked(world: World) -> None:
    await world.hold("v2", "cats", "dogs")
    world.covered(2, 4)
    answer = await world.router.search("docs", "kittens purr", 4, mode="hybrid")
    assert (answer.version, answer.route) == ("v2", "hybrid")
    assert {hit.doc_id: hit.version for hit in answer.hits} == {
        "cats": "v2",
        "dogs": "v2",
        "kafka": "v1",
        "birds": "v1",
    }
    assert len(answer.hits) == 4
    for hit in answer.hits:
        assert (hit.space, hit.fingerprint) == (world.space(hit.version), world.fingerprint(hit.version))
        assert hit.properties[reserved.SPACE] == f"{hit.version}@{hit.fingerprint}"
    shown = answer.as_json()
    assert shown["route"] == "hybrid"
    assert "merged with v1 by places" in str(shown["why"])
    assert {hit["space"] for hit in shown["hits"]} == {world.space("v1"), world.space("v2")}  # type: ignore[union-attr, index, call-overload]


async def test_hybrid_of_a_complete_version_is_the_new_space(world: World) -> None:
    await world.hold("v2", *TEXTS)
    world.stage("v2", Stage.READY)
    answer = await world.router.search("docs", "kittens", 4, mode="hybrid")
    assert answer.version == "v2"
    assert {hit.version for hit in answer.hits} == {"v2"}


@pytest.mark.parametrize("mode", ["hybrid", "bridge"])
async def test_a_ready_version_that_still_owes_what_the_topic_has_forgotten_does_not_answer_alone(
    world: World, mode: str
) -> None:
    await world.hold("v2", *(doc_id for doc_id in TEXTS if doc_id != "cats"))
    world.stage("v2", Stage.READY)
    world.covered(4, 4, owing=True)
    answer = await world.router.search("docs", TEXTS["cats"], 4, mode=mode)
    assert ("cats", "v1") in [(hit.doc_id, hit.version) for hit in answer.hits]
    world.covered(4, 4)
    answer = await world.router.search("docs", TEXTS["cats"], 4, mode=mode)
    assert {hit.version for hit in answer.hits} == {"v2"}


async def test_without_progress_hybrid_waits_for_a_ready_version(world: World) -> None:
    router = Router(world.outside, world.state)
    answer = await router.search("docs", "kittens", 1, mode="hybrid")
    assert answer.version == "v1"
    assert "has not said" in answer.why
    await router.close()


@pytest.mark.parametrize("fusion", ["places", "reciprocal", "weighted", "calibrated"])
async def test_a_stale_text_is_never_shown_though_the_new_form_is_not_near(fusion: str) -> None:
    """The old space is behind: it still has the text about cats, of which the new one has only a text about ports."""
    world = World({"hybrid": {"fusion": fusion, "from_coverage": 0.1}})
    await world.create()
    await world.hold("v1", "cats", "dogs", "kafka", offset=5)
    await world.hold("v2", "cats", offset=9, text="a port is a place where ships are")
    await world.hold("v2", "dogs", offset=3, text="dogs and kittens were here long ago")  # here the new one is behind
    await world.hold("v2", *(key for key in TEXTS if key == "birds"), offset=6)
    world.covered(3, 4)
    for limit in (1, 2, 4):
        answer = await world.router.search("docs", "kittens purr", limit, mode="hybrid")
        shown = {hit.doc_id: str(hit.properties[reserved.TEXT]) for hit in answer.hits}
        assert len(shown) == limit
        assert shown.get("cats", "a port").startswith("a port")
        assert shown.get("dogs", TEXTS["dogs"]) == TEXTS["dogs"]
    await world.close()


async def test_what_the_other_space_did_not_find_is_looked_up_there(world: World) -> None:
    """The newer form is not among the new space's hits, only in the space: it must be known all the same."""
    filler = {f"f{at}": f"kittens purr and purr number {at}" for at in range(80)}
    await world.hold("v2", *filler, texts=filler)
    await world.hold("v2", "cats", offset=9, text="zzz qqq www")
    world.covered(81, 84)
    answer = await world.router.search("docs", "cats and kittens purr", 5, mode="hybrid")
    assert "cats" not in {hit.doc_id for hit in answer.hits}
    assert len(answer.hits) == 5


async def test_a_new_space_that_is_behind_is_looked_up_in_the_old_one(world: World) -> None:
    """The other way round: the old space has the newer form, and does not find it near."""
    world.outside.settings = settings({"hybrid": {"fusion": "reciprocal"}})
    filler = {f"f{at}": f"kittens purr and purr number {at}" for at in range(80)}
    await world.hold("v1", *filler, texts=filler)
    await world.hold("v1", "dogs", offset=9, text="zzz qqq www")
    await world.hold("v2", "dogs", offset=3, text="cats and kittens purr")
    world.covered(3, 4)
    answer = await world.router.search("docs", "cats and kittens purr", 5, mode="hybrid")
    assert "dogs" not in {hit.doc_id for hit in answer.hits}
    assert len(answer.hits) == 5


async def test_a_bridge_ranks_the_new_by_the_new_and_the_old_by_the_old(world: World) -> None:
    await world.hold("v2", "dogs")
    answer = await world.router.search("docs", "puppies bark", 4, mode="bridge")
    assert answer.route == "bridge"
    assert {hit.doc_id: hit.version for hit in answer.hits}["dogs"] == "v2"
    assert answer.hits[0].doc_id == "dogs"
    assert len(answer.hits) == 4


async def test_the_configured_route_is_taken_and_one_answer_keeps_it(world: World) -> None:
    world.outside.settings = settings({"default": "hybrid"})
    await world.hold("v2", "cats", "dogs")
    world.covered(3, 4)
    assert (await world.router.search("docs", "kittens", 2)).route == "hybrid"
    assert (await world.router.search("docs", "kittens", 2, mode="serving")).version == "v1"
    held, swap = asyncio.Event(), asyncio.Event()
    encoder = world.router.resolve("docs", "v2").encoder
    plain = encoder.encode_query

    async def slow(text: str) -> Any:
        held.set()
        await swap.wait()
        return await plain(text)

    encoder.encode_query = slow  # type: ignore[method-assign]
    query = asyncio.create_task(world.router.search("docs", "puppies", 4))
    await held.wait()
    world.swapped()
    swap.set()
    answer = await query
    assert {hit.version for hit in answer.hits} == {"v1", "v2"}, "decided before the swap"


async def test_a_space_that_is_dropped_while_it_is_asked_leaves_the_old_one(world: World) -> None:
    world.covered(3, 4)
    await world.store.drop_space(world.space("v2"))
    answer = await world.router.search("docs", "kittens", 4, mode="hybrid")
    assert answer.version == "v1"
    assert "its space is gone" in answer.why
    with pytest.raises(IdentityChanged):
        await world.router.search("docs", "kittens", 4, version="v2")


async def test_a_coming_version_that_is_not_configured_here_is_left_out(world: World) -> None:
    world.covered(3, 4)
    del world.outside.settings.collections["docs"].versions["v2"]
    answer = await world.router.search("docs", "kittens", 4, mode="hybrid")
    assert answer.version == "v1"
    assert "cannot embed" in answer.why


# --- fallback ---


async def test_the_previous_version_answers_while_the_serving_models_endpoint_is_away(world: World) -> None:
    await world.hold("v2", *TEXTS)
    world.swapped()
    assert (await world.router.search("docs", "kittens", 2)).version == "v2"
    asked = world.away("v2")
    answer = await world.router.search("docs", "puppies", 2)
    assert (answer.version, answer.route) == ("v1", "serving")
    assert answer.why == "v2 serves; but v2 cannot answer (its model does not answer), so v1 does"
    assert {hit.version for hit in answer.hits} == {"v1"}
    assert len(asked) == 1
    assert (await world.router.search("docs", "kittens", 2)).version == "v2", "its vector is still known"
    with pytest.raises(Unreachable):
        await world.router.search("docs", "puppies", 2, version="v2")


async def test_hybrid_falls_back_to_the_old_space(world: World) -> None:
    await world.hold("v2", "cats", "dogs")
    world.covered(3, 4)
    world.away("v2")
    answer = await world.router.search("docs", "kittens", 4, mode="hybrid")
    assert {hit.version for hit in answer.hits} == {"v1"}
    assert "v2 cannot answer (its model does not answer), so v1 does" in answer.why


async def test_nobody_to_fall_back_to(world: World) -> None:
    world.away("v1")
    with pytest.raises(Unreachable, match="endpoint of v1"):
        await world.router.search("docs", "kittens", 2)
    world.covered(3, 4)
    with pytest.raises(Unreachable):
        await world.router.search("docs", "kittens", 2, mode="hybrid")
    world.outside.settings = settings({"fall_back": False})
    world.swapped()
    world.away("v2")
    with pytest.raises(Unreachable, match="endpoint of v2"):
        await world.router.search("docs", "puppies", 2)


async def test_a_model_that_hangs_holds_no_query_for_long(world: World) -> None:
    """One query finds out; then none waits but one every few seconds, until the model answers again."""
    world.outside.settings = settings({"fall_back_after_s": 0.05})
    await world.hold("v2", *TEXTS)
    world.swapped()
    encoder = world.router.resolve("docs", "v2").encoder
    plain, asked = encoder.encode_query, list[str]()

    async def hang(text: str) -> Vectors:
        asked.append(text)
        return await asyncio.Event().wait()  # type: ignore[return-value]

    encoder.encode_query = hang  # type: ignore[method-assign]
    for text in ("one", "two", "three"):
        answer = await world.router.search("docs", f"kittens {text}", 2)
        assert (answer.version, {hit.version for hit in answer.hits}) == ("v1", {"v1"})
    assert asked == ["kittens one"]
    world.now_s = 5.1
    first, second = await asyncio.gather(
        world.router.search("docs", "kittens four", 2), world.router.search("docs", "kittens five", 2)
    )
    assert (first.version, second.version) == ("v1", "v1")
    assert asked == ["kittens one", "kittens four"]
    world.now_s = 10.3
    encoder.encode_query = plain  # type: ignore[method-assign]
    assert (await world.router.search("docs", "kittens six", 2)).version == "v2"
    assert (await world.router.search("docs", "kittens seven", 2)).version == "v2"


async def test_a_hanging_model_is_waited_for_where_nobody_stands_in(world: World) -> None:
    world.outside.settings = settings({"fall_back_after_s": 0.01})
    encoder = world.router.resolve("docs", "v1").encoder
    plain = encoder.encode_query

    async def slow(text: str) -> Vectors:
        await asyncio.sleep(0.05)
        return await plain(text)

    encoder.encode_query = slow  # type: ignore[method-assign]
    assert (await world.router.search("docs", "kittens", 2)).version == "v1"


async def test_a_coming_model_that_answers_wrongly_is_left_out(world: World) -> None:
    await world.hold("v2", "cats", "dogs")
    world.covered(3, 4)
    encoder = world.router.resolve("docs", "v2").encoder

    async def wrong(text: str) -> Vectors:
        raise AccessDenied("the key has expired")

    encoder.encode_query = wrong  # type: ignore[method-assign]
    answer = await world.router.search("docs", "kittens", 4, mode="hybrid")
    assert {hit.version for hit in answer.hits} == {"v1"}
    with pytest.raises(ContentRejected):
        await world.router.search("docs", "  ", 4, mode="hybrid")
    world.swapped()
    with pytest.raises(AccessDenied):
        await world.router.search("docs", "kittens", 4)


async def test_when_both_are_away_the_query_fails_and_ends(world: World) -> None:
    await world.hold("v2", *TEXTS)
    world.swapped()
    world.away("v1")
    world.away("v2")
    with pytest.raises(Unreachable, match="endpoint of v2"):
        await world.router.search("docs", "kittens", 2)


async def test_a_wrong_configuration_of_what_serves_is_not_hidden(world: World) -> None:
    world.swapped()
    del world.outside.settings.collections["docs"].versions["v2"]
    with pytest.raises(Refused, match="not in this process's configuration"):
        await world.router.search("docs", "kittens", 2)


# --- vectors ---


async def test_a_vector_asks_the_space_of_its_model(world: World) -> None:
    vector = await world.encoders["v1"].encode_query("kittens purr")
    answer = await world.router.search("docs", "", 1, vector=vector.tolist(), fingerprint=world.fingerprint("v1"))
    assert answer.hits[0].doc_id == "cats"


async def test_a_vector_of_another_model_is_refused_with_the_version_it_belongs_to(world: World) -> None:
    vector = await world.encoders["v2"].encode_query("kittens")
    with pytest.raises(Refused, match=world.fingerprint("v2")) as raised:
        await world.router.search("docs", "", 1, vector=vector, fingerprint=world.fingerprint("v2"))
    assert raised.value.next_step.startswith("ask version v2")
    await world.hold("v2", "cats")
    assert (
        await world.router.search("docs", "", 1, "v2", vector=vector, fingerprint=world.fingerprint("v2"))
    ).version == "v2"
    with pytest.raises(Refused) as raised:
        await world.router.search("docs", "", 1, vector=vector, fingerprint="0" * 12)
    assert "embed the query" in raised.value.next_step


@pytest.mark.parametrize("bad", [[0.0] * 64, [float("nan")] * 64, [1e39] * 64, [1.0] * 63, [[1.0]]])
async def test_a_vector_that_is_none_is_refused(world: World, bad: list[Any]) -> None:
    with pytest.raises(WrongModel):
        await world.router.search("docs", "", 1, vector=bad, fingerprint=world.fingerprint("v1"))


async def test_questions_that_contradict_themselves(world: World) -> None:
    one = np.ones(64, np.float32)
    known = world.fingerprint("v1")
    for asked in (
        {"query": "x", "vector": one, "fingerprint": known},
        {"query": "", "vector": one},
        {"query": "x", "fingerprint": known},
        {"query": "", "vector": one, "fingerprint": known, "mode": "hybrid"},
        {"query": "x", "mode": "fastest"},
        {"query": "x", "mode": "hybrid", "version": "v1"},
    ):
        with pytest.raises(ConfigurationError) as raised:
            await world.router.search("docs", limit=1, **asked)
        assert raised.value.next_step
    world.outside.settings = settings({"default": "hybrid"})
    world.covered(3, 4)
    answer = await world.router.search("docs", "", 1, vector=one, fingerprint=known)
    assert answer.route == "serving", "a vector is of one model, whatever the default is"


async def test_a_query_asked_again_is_not_embedded_again(world: World) -> None:
    encoder = world.router.resolve("docs").encoder
    plain, asked = encoder.encode_query, list[str]()

    async def counted(text: str) -> Vectors:
        asked.append(text)
        return await plain(text)

    encoder.encode_query = counted  # type: ignore[method-assign]
    first = await world.router.search("docs", "kittens", 3)
    second = await world.router.search("docs", "kittens", 3)
    assert asked == ["kittens"]
    assert first.hits == second.hits
    await world.hold("v2", "cats")
    await world.router.search("docs", "kittens", 3, version="v2")
    assert len(world.router.vectors) == 2, "of each model its own"


# --- filters ---


async def test_a_filter_over_declared_properties(world: World) -> None:
    answer = await world.router.search("docs", "kittens", 4, filters={"lang": ["en", "fr"]})
    assert {hit.doc_id for hit in answer.hits} == {"cats", "kafka", "birds"}
    await world.hold("v2", "cats", "dogs")
    world.covered(3, 4)
    answer = await world.router.search("docs", "kittens", 4, mode="hybrid", filters={"lang": "en"})
    assert {hit.doc_id: hit.version for hit in answer.hits} == {"cats": "v2", "kafka": "v1"}


@pytest.mark.parametrize(
    "filters",
    [
        {"nothing": "x"},
        {"title": "x"},
        {"cf_doc_id": "cats"},
        {"lang": 3},
        {"lang": None},
        {"lang": {"like": "e*"}},
        {"lang": {"eq": {"eq": "en"}}},
        {"lang": [["en"]]},
        {"lang": {"gt": "en"}},
    ],
)
async def test_a_filter_that_cannot_be(world: World, filters: dict[str, JSON]) -> None:
    with pytest.raises(ConfigurationError) as raised:
        await world.router.search("docs", "kittens", 4, filters=filters)
    assert raised.value.next_step


# --- rollout ---


def stand(world: World, share: float, step: int = 1, stopped: str = "") -> None:
    """As the controller has written it."""
    build = world.state.builds["docs/v2"]
    stands = RolloutState(share=share, step=step, since_ms=0, configured=0.5, stopped=stopped)
    world.state.builds["docs/v2"] = build.model_copy(update={"rollout": stands})


async def test_a_rollout_goes_by_caller_as_the_state_says_and_counts_its_queries() -> None:
    world = World({"default": "rollout", "rollout": {"share": 0.5}})
    await world.create()
    await world.hold("v1", *TEXTS)
    await world.hold("v2", *TEXTS)
    world.stage("v2", Stage.READY)
    callers = [f"caller {at}" for at in range(40)]
    router = world.router
    first = await router.search("docs", "kittens", 1, caller="caller 1")
    assert (first.version, "0%" in first.why) == ("v1", True), "nobody is in before the controller has begun it"
    assert router.rollouts.tallies() == {}
    stand(world, 0.5)
    inside = [c for c in callers if (await router.search("docs", "kittens", 1, caller=c)).version == "v2"]
    assert 8 < len(inside) < 32
    again = [c for c in callers if (await router.search("docs", "puppies", 1, caller=c)).version == "v2"]
    assert again == inside
    assert (await router.search("docs", "kittens", 1)).version == "v1", "no caller, no rollout"
    tally = router.rollouts.tallies()["docs"]
    assert (tally.step, tally.new.queries, tally.serving.queries) == (1, 2 * len(inside), 81 - 2 * len(inside))
    stand(world, 1.0, 2)
    world.away("v2")
    for at in range(6):
        answer = await router.search("docs", f"events {at}", 1, caller=inside[0])
        assert answer.version == "v1", "users notice nothing"
    tally = router.rollouts.tallies()["docs"]
    assert (tally.step, tally.new.queries, tally.new.errors) == (2, 6, 6)
    assert tally.serving.queries == 0, "it stood in: that says nothing about it"
    stand(world, 0.0, 3, "50.0% of its queries failed")
    why = (await router.search("docs", "events", 1, caller=inside[0])).why
    assert "stands at 0% (50.0% of its queries failed)" in why
    await world.close()


async def rolled_out(**routes: JSON) -> World:
    """Both versions hold everything, and every caller is in."""
    world = World({"default": "rollout", **routes})
    await world.create()
    await world.hold("v1", *TEXTS)
    await world.hold("v2", *TEXTS)
    world.stage("v2", Stage.READY)
    stand(world, 1.0)
    return world


async def test_a_space_that_does_not_answer_is_counted_against_its_rollout(monkeypatch: pytest.MonkeyPatch) -> None:
    world = await rolled_out()
    space = world.router.resolve("docs", "v2").space

    async def away(*_: object) -> list[Hit]:
        raise Unreachable("Weaviate does not answer")

    monkeypatch.setattr(space, "search", away)
    with pytest.raises(Unreachable):
        await world.router.search("docs", "kittens", 1, caller="somebody")
    tally = world.router.rollouts.tallies()["docs"]
    assert (tally.new.queries, tally.new.errors) == (1, 1)
    await world.close()


async def test_a_query_that_was_given_up_after_long_is_counted_against_its_rollout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the time-out of the server, or by a caller who went away; one who went away at once says nothing."""
    world = await rolled_out(fall_back_after_s=0.1)
    space = world.router.resolve("docs", "v2").space

    async def hangs(*_: object) -> list[Hit]:
        await asyncio.Event().wait()
        return []

    monkeypatch.setattr(space, "search", hangs)
    for after_s in (0.02, 0.15):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(after_s):
                await world.router.search("docs", "kittens", 1, caller="somebody")
    tally = world.router.rollouts.tallies()["docs"]
    assert (tally.new.queries, tally.new.errors) == (1, 1)
    await world.close()


async def test_a_query_that_ends_after_its_step_is_counted_for_none() -> None:
    world = await rolled_out()
    encoder = world.router.resolve("docs", "v2").encoder
    encode, gate = encoder.encode_query, asyncio.Event()

    async def slowly(text: str) -> Vectors:
        await gate.wait()
        return await encode(text)

    encoder.encode_query = slowly  # type: ignore[method-assign]
    asking = asyncio.create_task(world.router.search("docs", "kittens", 1, caller="a"))
    await asyncio.sleep(0.01)
    stand(world, 0.0, 2, "by hand")
    gate.set()
    assert (await asking).version == "v2", "a query keeps its route"
    assert world.router.rollouts.tallies() == {}
    await world.close()


async def test_only_a_server_counts_for_a_rollout(world: World) -> None:
    await world.hold("v2", *TEXTS)
    world.stage("v2", Stage.READY)
    stand(world, 1.0)
    router = Router(world.outside, world.state)
    assert (await router.search("docs", "kittens", 1, mode="rollout", caller="a")).version == "v2"
    assert router.rollouts.tallies() == {}
    await router.close()


# --- shadow ---


async def test_the_shadow_asks_the_coming_version_and_compares(world: World) -> None:
    world.outside.settings = settings({"shadow": {"share": 1.0}})
    await world.hold("v2", "cats", "dogs")
    await world.router.search("docs", "kittens", 4)
    assert world.shadows.tallies() == {}, "it is being built: what it lacks says nothing of its model"
    world.stage("v2", Stage.READY)
    answer = await world.router.search("docs", "kittens", 4)
    await world.shadows.settle()
    tally = world.shadows.tallies()["docs"]
    assert (tally.live, tally.shadow, tally.compared) == ("v1", "v2", 1)
    assert tally.overlap == 0.5
    assert {hit.version for hit in answer.hits} == {"v1"}
    world.away("v2")
    await world.router.search("docs", "puppies", 4)
    await world.shadows.settle()
    assert tally.failed == 1
    await world.router.search("docs", "kittens", 4, version="v2")
    assert tally.asked == 2, "a query that names its space is no sample"


async def test_a_filtered_query_is_compared_and_kept_in_no_sample(world: World, tmp_path: Path) -> None:
    path = tmp_path / "sample.jsonl"
    world.outside.settings = settings({"shadow": {"share": 1.0, "sample": {"file": str(path)}}})
    await world.hold("v2", "cats", "dogs")
    world.stage("v2", Stage.READY)
    await world.router.search("docs", "kittens", 4, filters={"lang": "en"})
    await world.router.search("docs", "puppies", 2)
    await world.shadows.settle()
    assert world.shadows.tallies()["docs"].compared == 2
    assert [json.loads(line)["query"] for line in path.read_text().splitlines()] == ["puppies"]


# --- access counts ---


async def test_what_users_find_is_counted_by_key_for_the_next_replay(world: World, tmp_path: Path) -> None:
    path = tmp_path / "searched.jsonl"
    path.write_text('{"key": "dogs", "count": 10, "at_ms": 5}\n')
    world.outside.settings = settings({"searched": {"file": str(path), "every_s": 60}})
    await world.router.search("docs", "kittens purr", 1)
    await world.router.search("docs", "cats and kittens", 1)
    await world.router.search("docs", "events", 1, version="v1")  # of an operator, not of a user
    await world.close()
    assert [(row.key, row.searches) for row in read_file(path)] == [(b"dogs", 10.0), (b"cats", 2.0)]
    assert "kittens" not in path.read_text()


async def others_end() -> None:
    here = asyncio.current_task()
    if others := [task for task in asyncio.all_tasks() if task is not here]:
        await asyncio.wait(others)


async def test_counts_are_written_as_time_goes_on(world: World, tmp_path: Path) -> None:
    path = tmp_path / "searched.jsonl"
    world.outside.settings = settings({"searched": {"file": str(path), "every_s": 60}})
    await world.router.search("docs", "kittens purr", 1)
    await others_end()
    assert not path.exists()
    world.now_s = 61.0
    await world.router.search("docs", "kittens purr", 1)
    await others_end()
    assert [(row.key, row.searches) for row in read_file(path)] == [(b"cats", 2.0)]
    assert os.listdir(tmp_path) == ["searched.jsonl"]


async def test_only_users_queries_are_counted_and_shadowed(world: World, tmp_path: Path) -> None:
    world.outside.settings = settings({"searched": {"file": str(tmp_path / "s.jsonl")}, "shadow": {"share": 1.0}})
    router = Router(world.outside, world.state, shadows=world.shadows)  # the command line's, or the gate's
    await router.search("docs", "kittens purr", 1)
    await router.close()
    assert os.listdir(tmp_path) == []
    assert world.shadows.tallies() == {}


async def test_counts_that_cannot_be_written_lose_no_answer(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world.outside.settings = settings({"searched": {"file": str(tmp_path / "nowhere" / "searched.jsonl")}})
    assert (await world.router.search("docs", "kittens purr", 1)).hits
    await world.close()
    assert "cannot be written" in caplog.text


def test_counts_are_bounded_and_the_most_searched_stay() -> None:
    counts = AccessCounts(100)
    for at in range(1000):
        counts.add(["hot", f"k{at}"], at)
    rows = counts.rows()
    assert len(rows) == 100
    assert (rows[0].key, rows[0].searches) == (b"hot", 1000.0)
    assert rows[1].key == b"k999", "of equal ones the newest stay"


async def test_collections_that_are_not_known_or_not_configured(world: World) -> None:
    with pytest.raises(NotFound):
        await world.router.search("nodocs", "x", 1)
    world.outside.settings = Settings()
    with pytest.raises(Refused, match="not in this process's configuration"):
        await world.router.search("docs", "x", 1)
