"""The client against `crossfade serve`, real Kafka and Weaviate: what docs/client.md says, as it stands there, and the
whole upgrade by asyncio with a space that no configuration file has.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from connectors.services import Addresses
from streams.client import AsyncCrossfade, NotAdmitted, NotFound, Refused, Version
from streams.client.settings import KEY_VARIABLE, URL_VARIABLE
from tests.conftest import ROOT, MakeTopic, Unique
from tests.deployment import Deployment
from tests.faults.tei_server import DIMENSIONS, tei_server
from tests.serving import DOCUMENTS, KEY, V1, V2, serving, with_matters


@pytest.fixture
async def d(services: Addresses, tmp_path: Path, unique: Unique, make_topic: MakeTopic) -> AsyncIterator[Deployment]:
    async with with_matters(services, tmp_path, unique, make_topic) as deployment:
        yield deployment


async def test_what_the_documentation_says(d: Deployment) -> None:
    d.start_worker()
    await d.until_live_and_settled("v1")
    d.add_version("v2", V2)
    async with serving(d) as (curl, _):
        async with AsyncCrossfade(curl.url, KEY) as api:
            await api.set_default_vector_space("docs", "v1")
        blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "client.md").read_text(), re.DOTALL)
        assert len(blocks) == 7
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-W", "ignore", "-c", "\n".join(blocks)],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env={**d.environment(), URL_VARIABLE: curl.url, KEY_VARIABLE: KEY},
        )
        assert done.returncode == 0, done.stderr
        said = done.stdout.splitlines()
    assert said[0] == "v1 serving"
    assert said[1] == "k7 odd matter number 7"
    assert said[4:7] == [
        f"active {DOCUMENTS} of {DOCUMENTS}",
        "the answers are as they should be: True",
        "serving 100%",
    ]
    assert "pause" in said[7]
    assert said[8] == "409 A rule forbids this now"
    assert said[9].startswith("crossfade ")
    assert said[10] == "['k3', 'k5']"
    assert said[11].startswith("k7 matter number 7 ")
    assert said[12].split()[-1] == "serving"
    assert said[13] == "k7 matter number 7 named"
    assert len(said) == 14, said


async def test_the_upgrade_by_asyncio(d: Deployment) -> None:
    """Added at an endpoint that the configuration allows, followed while it is built, tried, swapped to and from,
    deleted; each step asked for by this client alone."""
    async with tei_server() as endpoint:
        d.raw["embed_endpoints"] = [{"provider": "tei", "url": endpoint.url, "model": "acme/words", "max_batch": 8}]
        d.add_version("v1", V1)
        d.start_worker()
        await d.until_live_and_settled("v1")
        async with serving(d) as (curl, _), AsyncCrossfade(curl.url, KEY) as api:
            assert await api.ready()
            with pytest.raises(Refused) as nothing_serves:
                await api.search("docs", "matter number 7")
            assert nothing_serves.value.next_step == "crossfade cutover docs v1"
            assert (await api.set_default_vector_space("docs", "v1")).verified is True
            before = await api.search("docs", "matter number 7", top_k=3)

            with pytest.raises(NotFound, match="no endpoint"):
                await api.add_vector_space("docs", "words", dims=DIMENSIONS, model="acme/other")
            added = await api.add_vector_space("docs", "words", dims=DIMENSIONS, model="acme/words")
            assert (added.status, added.default) == ("building", False)
            told = list[Version]()

            async def follow() -> None:
                async for version in api.progress("docs", "words"):
                    told.append(version)
                    if version.stage == "ready":
                        return

            following = asyncio.create_task(follow())
            with pytest.raises(NotAdmitted):
                await api.rebuild_vector_space("docs", "words", embed_endpoint="http://169.254.169.254/embed")
            await api.rebuild_vector_space("docs", "words", embed_endpoint=endpoint.url)
            active = await api.wait_until_active("docs", "words", timeout_s=90)
            assert (active.space, active.progress) == (added.space, 1.0)
            async with asyncio.timeout(30):
                await following
            assert told[-1].fingerprint == active.fingerprint
            await d.until_live_and_settled("words")
            assert len(set(endpoint.embedded)) == DOCUMENTS

            tried = await api.search("docs", "matter number 7", vector_space="words", top_k=3, filter={"kind": "odd"})
            assert (tried.route, tried.hits[0].id, tried.fingerprint) == ("named", "k7", active.fingerprint)
            assert {hit.properties["kind"] for hit in tried.hits} == {"odd"}
            near = await api.search(
                "docs", vector=[0.5] * DIMENSIONS, fingerprint=active.fingerprint, vector_space="words", top_k=2
            )
            assert len(near.hits) == 2

            swap = await api.set_default_vector_space("docs", "words", idempotency_key="swap-1")
            again = await api.set_default_vector_space("docs", "words", idempotency_key="swap-1")
            assert (swap.verified, again) == (True, swap), "the same request with its key has the same answer"
            assert (await api.search("docs", "matter number 7")).fingerprint == active.fingerprint
            assert (await api.set_default_vector_space("docs", "v1")).verified is True
            assert (await api.search("docs", "matter number 7")).fingerprint == before.fingerprint
            with pytest.raises(Refused):
                await api.delete_vector_space("docs", "v1")
            await api.delete_vector_space("docs", "words")
            spaces = await api.vector_spaces("docs")
            assert spaces.default == "v1"
            assert {one.name: one.status for one in spaces.vector_spaces} == {"v1": "active", "words": "deleted"}
            assert active.space not in await d.out.store.spaces()
            entries = (await api.history("docs", version="words")).entries
            assert {"ops@http"} <= {entry.who for entry in entries}
            assert len([entry for entry in entries if entry.event == "cutover"]) == 1
        log = (d.folder / "serve.log").read_text()
        assert "matter number" not in log
        assert KEY not in log
