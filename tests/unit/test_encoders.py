"""The encoders of a router."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

from connectors.memory.store import MemoryStore
from streams.config import Settings, envelope_of
from streams.search.encoders import Encoders, Outside
from streams.state import BuildState
from streams.versions import Stage


async def test_two_collections_of_one_model_keep_an_encoder_each() -> None:
    """The fingerprint is the model's alone, and what is configured beside it differs."""
    one = {"topic": "t", "text": {"fields": ["text"]}}
    model = {"embedder": {"provider": "hashing"}, "dimensions": 32}
    settings = Settings.model_validate(
        {
            "collections": {
                "papers": {**one, "versions": {"v1": {**model, "replay_rate": 50}}},
                "articles": {**one, "versions": {"v1": model}},
            }
        }
    )
    builds = []
    for name in ("papers", "articles"):
        configured = settings.collection(name)
        envelope = envelope_of(configured, configured.version("v1"))
        builds.append(
            BuildState(
                collection=name,
                version="v1",
                epoch=1,
                stage=Stage.SERVING,
                envelope={},
                fingerprint=envelope.fingerprint,
                space=name.title(),
                topic="t",
                partitions=1,
            )
        )
    assert builds[0].fingerprint == builds[1].fingerprint
    encoders = Encoders(cast(Outside, SimpleNamespace(settings=settings, store=MemoryStore())), lambda: 0.0)
    first = [encoders.route(build).encoder for build in builds]
    assert [encoders.route(build).encoder for build in builds] == first
    assert first[0] is not first[1]
    await encoders.close()
