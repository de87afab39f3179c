"""Spaces and settings changed behind our back: the version concerned stops and says why, the others go on."""

from __future__ import annotations

import asyncio
from typing import Any

from pydantic import JsonValue

from connectors.protocols import SpaceSpec
from streams.config import envelope_of
from streams.versions import Envelope, Stage
from tests.badinput.speak import crossfade
from tests.deployment import COLLECTION, Deployment
from tests.failstop.conftest import LARGE, SMALL, Deploy
from tests.failstop.steps import documents, goes_on, running, stopped


def version(seed: int) -> dict[str, JsonValue]:
    return {"embedder": {"provider": "hashing", "seed": seed}, "dimensions": 16}


async def describe_anew(d: Deployment, space: str, description: str) -> None:
    collection = d.out.store._client.collections.use(space)
    await collection.config.update(description=description)


async def test_a_space_dropped_redescribed_or_replaced(deploy: Deploy) -> None:
    async with deploy() as d:
        names = ("sound", "dropped", "other", "foreign", "replaced")
        await running(d, **{name: version(seed) for seed, name in enumerate(names)})
        before = await d.stored("other")
        await d.out.store.drop_space(d.build("dropped").space)
        envelope = Envelope.from_json((await d.out.store.description(d.build("other").space)) or "")
        altered = Envelope(**{**_fields(envelope), "document_prefix": "another model"})
        await describe_anew(d, d.build("other").space, altered.canonical_json())
        await describe_anew(d, d.build("foreign").space, "of somebody else")
        replaced = d.build("replaced").space
        await d.out.store.drop_space(replaced)
        await d.out.store.create_space(SpaceSpec(replaced, 16, "cosine", "not an envelope"))
        await stopped(d, "dropped", "the space .* of docs/dropped is gone", "crossfade abort docs dropped")
        await stopped(d, "other", f"holds vectors of model {altered.fingerprint}", "crossfade abort docs other")
        await stopped(d, "foreign", "its description is no longer Crossfade's", "crossfade abort docs foreign")
        await stopped(d, "replaced", "its description is no longer Crossfade's", "crossfade abort docs replaced")
        await goes_on(d, "sound", "second")
        assert await d.stored("other") == before
        assert await d.out.store.space(replaced).count() == 0
        # neither a resume nor a new worker makes the space again
        assert (await d.ask("resume", "dropped")).ok
        d.start_worker()
        await stopped(d, "dropped", "the space .* of docs/dropped is gone", "crossfade abort docs dropped")
        assert await d.out.store.description(d.build("dropped").space) is None
        # the named step does
        assert (await d.ask("abort", "dropped", confirm="dropped")).ok
        assert (await d.ask("start", "dropped")).ok
        await d.until_stage("dropped", "ready")
        await goes_on(d, "dropped", "third")


def _fields(envelope: Envelope) -> dict[str, Any]:
    return {name: getattr(envelope, name) for name in Envelope.__slots__}


async def test_the_serving_space_and_its_alias_dropped(deploy: Deploy) -> None:
    """The controller looks at the alias every 15 s: that it cannot put it right must not end it."""
    async with deploy() as d:
        await running(d, v1=SMALL, v2=LARGE)
        await d.until_settled("v1")
        assert (await d.ask("cutover", "v1")).ok
        await d.out.store.drop_alias(d.state.collections[COLLECTION].alias)
        await d.out.store.drop_space(d.build("v1").space)
        await stopped(d, "v1", "the space .* of docs/v1 is gone", "crossfade rollback docs")

        async def tried() -> None:
            while "the alias" not in d.logs():  # noqa: ASYNC110  a log cannot be subscribed to
                await asyncio.sleep(0.2)

        await asyncio.wait_for(tried(), 60)
        assert d.workers[0].poll() is None
        await goes_on(d, "v2", "second")
        assert d.build("v1").stage is Stage.SERVING


async def test_a_model_changed_under_the_same_name(deploy: Deploy) -> None:
    async with deploy() as d:
        await running(d, v1=SMALL, v2=LARGE)
        before = await d.stored("v1")
        d.add_version("v1", {**SMALL, "document_prefix": "passage: "})
        await stopped(d, "v1", "the configuration now says .* under the same name", "crossfade resume docs v1")
        await goes_on(d, "v2", "second")
        assert await d.stored("v1") == before
        d.add_version("v1", SMALL)
        assert (await d.ask("resume", "v1")).ok
        await goes_on(d, "v1", "third")


async def test_properties_changed_in_the_configuration(deploy: Deploy) -> None:
    async with deploy(properties={"rank": "int"}) as d:
        await running(d, v1=SMALL)
        d.raw["collections"][COLLECTION]["properties"] = {"rank": "int", "tag": "keyword"}  # type: ignore[index,call-overload]
        d._write()
        await d.produce([(key, {**(value or {}), "rank": 1, "tag": "new"}, None) for key, value, _ in documents(20)])
        d.add_version("v2", LARGE)
        await d.until_stage("v2", "ready")
        await goes_on(d, "v1", "second")  # as it was built: without the new property
        await goes_on(d, "v2", "third")
        assert [item async for item in d.out.dead_letters()] == []
        d.raw["collections"][COLLECTION]["properties"] = {"rank": "keyword", "tag": "keyword"}  # type: ignore[index,call-overload]
        d._write()
        for name in ("v1", "v2"):
            await stopped(d, name, "property rank is keyword in the configuration, but int in the space", "set it back")
        await d.produce([("k0", {"text": "as a word", "rank": "first"}, None)])
        assert [item async for item in d.out.dead_letters()] == []
        said = await crossfade(d, "status", COLLECTION)
        assert "set it back" in said


async def test_a_space_that_the_state_does_not_know_is_never_taken_over(deploy: Deploy) -> None:
    async with deploy() as d:
        await d.produce(documents(5))
        d.add_version("v1", SMALL)
        envelope = config_envelope(d)
        space = f"{d.out.settings.collection(COLLECTION).alias}_v1_1_{envelope.fingerprint}"
        d.start_worker()
        await d.until_stage("v1", "ready")
        foreign = space.replace("_v1_1_", "_v1_2_")
        await d.out.store.create_space(SpaceSpec(foreign, 16, "cosine", envelope.canonical_json()))
        try:
            assert (await d.ask("abort", "v1", confirm="v1")).ok
            outcome = await d.ask("start", "v1")
            assert not outcome.ok
            assert f"the space {foreign} exists already, and the state knows nothing of it" in outcome.message
            assert "alias" in outcome.next_step
            assert await d.out.store.space(foreign).count() == 0
        finally:
            await d.out.store.drop_space(foreign)


def config_envelope(d: Deployment) -> Envelope:
    collection = d.out.settings.collection(COLLECTION)
    return envelope_of(collection, collection.version("v1"))
