"""Hooks on real services with a real worker: one that stops a cutover, and one that hears of it over HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import JsonValue

from connectors.services import Addresses
from tests.conftest import MakeTopic, Unique
from tests.deployment import COLLECTION, Event, deployed
from tests.unit.loopback import always, loopback, reply

V1: Mapping[str, JsonValue] = {"embedder": {"provider": "hashing"}, "dimensions": 64}
DOCUMENTS = 30

GUARD = """#!/bin/sh
cd "$(dirname "$0")/.."
echo "$CROSSFADE_WHEN $CROSSFADE_EVENT $CROSSFADE_VERSION by $CROSSFADE_WHO: $CROSSFADE_WHY" >> asked
env > environment
test -e may && exit 0
echo "the search team has a change freeze" >&2
exit 7
"""


async def test_a_hook_stops_a_cutover_and_another_hears_of_it(
    services: Addresses, tmp_path: Path, unique: Unique, make_topic: MakeTopic
) -> None:
    guard = tmp_path / "hooks" / "guard"
    guard.parent.mkdir()
    guard.write_text(GUARD)
    guard.chmod(0o755)
    async with loopback(always(reply(b"", status=202))) as heard:
        hooks: list[JsonValue] = [
            {"on": ["serving"], "when": "before", "command": ["hooks/guard"], "name": "freeze"},
            {"on": ["building", "ready", "serving"], "http": heard.url() + "/crossfade", "name": "chat"},
        ]
        collection: dict[str, JsonValue] = {"text": {"fields": ["text"]}, "hooks": hooks}
        async with deployed(services, tmp_path, unique("cf"), make_topic(2), unique("Docs"), collection) as d:
            events: list[Event] = [(f"k{i}", {"text": f"document {i}"}, None) for i in range(DOCUMENTS)]
            await d.produce(events)
            d.start_worker()
            d.add_version("v1", V1)
            await d.until_stage("v1", "ready")

            checked = await d.run("cutover", COLLECTION, "v1", "--check")
            assert checked.returncode == 0, checked.stderr
            assert not (tmp_path / "asked").exists(), "--check runs no hooks"

            refused = await d.run("cutover", COLLECTION, "v1", "--why", "better answers")
            assert refused.returncode == 1
            assert (
                "error: the hook freeze before serving holds docs/v1 back: exit status 7: the search team has a change "
                "freeze; nothing was changed\n" in refused.stderr
            )
            assert "then again: crossfade cutover docs v1" in refused.stderr
            alias = d.state.collections[COLLECTION].alias
            assert await d.out.store.alias_target(alias) is None
            assert d.build("v1").stage == "ready"

            (tmp_path / "may").touch()
            done = await d.run("cutover", COLLECTION, "v1", "--why", "better answers")
            assert done.returncode == 0, done.stderr
            assert await d.out.store.alias_target(alias) == d.build("v1").space
            lines = (tmp_path / "asked").read_text().splitlines()
            assert len(lines) == 2
            assert all(line.startswith("before serving v1 by ") for line in lines)
            assert all(line.endswith(": better answers") for line in lines)
            inherited = (tmp_path / "environment").read_text()
            assert "PYTHONFAULTHANDLER" not in inherited, "of the worker's environment nothing else"

            async with asyncio.timeout(30):
                await d.state.wait_for(lambda view: not view.collections[COLLECTION].untold)
            told = [json.loads(request.body) for request in heard.requests]
            assert [(one["event"], one["from_stage"]) for one in told] == [
                ("building", "declared"),
                ("ready", "building"),
                ("serving", "ready"),
            ]
            assert told[2]["space"] == d.build("v1").space
            assert told[2]["fingerprint"] == d.build("v1").fingerprint
            assert (told[2]["why"], told[2]["hook"], told[2]["verb"]) == ("better answers", "chat", "cutover")

            history = await d.run("history", COLLECTION)
            assert "hooks told" in history.stdout
            assert "the search team has a change freeze" in history.stdout
