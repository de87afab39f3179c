"""What operators mistype or ask for at the wrong time: versions named like options, no worker, a golden set gone bad.

Two operators at once are in tests/integration/test_cutover.py, `set` out of range in test_control.py, hooks that hang
in test_hooks.py, golden sets as such in test_golden_sets.py.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from pydantic import JsonValue

from connectors.services import Addresses
from streams.cli import cli
from tests.conftest import MakeTopic, Unique
from tests.deployment import COLLECTION, Deployment, deployed

VERSION: dict[str, JsonValue] = {"embedder": {"provider": "hashing"}, "dimensions": 32}
OPTIONS = {
    # a verb, and an option that it, or another one, really has
    "compare": "--yes",
    "plan": "--exact",
    "start": "--rate",
    "status": "--watch",
    "pause": "--all",
    "resume": "--why",
    "abort": "--confirm",
    "verify": "--repair",
    "redrive": "--json",
    "evaluate": "--golden",
    "cutover": "--force",
    "retire": "--confirm",
    "history": "--limit",
}


@pytest.fixture
async def d(services: Addresses, tmp_path: Path, unique: Unique, make_topic: MakeTopic) -> AsyncIterator[Deployment]:
    collection: dict[str, JsonValue] = {"text": {"fields": ["text"]}}
    async with deployed(services, tmp_path, unique("cf"), make_topic(), unique("Docs"), collection) as deployment:
        deployment.add_version("v1", VERSION)
        await deployment.produce([(f"k{i}", {"text": f"text number {i}"}, None) for i in range(5)])
        yield deployment


async def ran(d: Deployment, *arguments: str) -> Result:
    """In this process: there are many."""
    whole = ["--config", str(d.config_path), *arguments]
    return await asyncio.to_thread(CliRunner().invoke, cli, whole, prog_name="crossfade")


async def test_a_version_named_like_an_option(d: Deployment) -> None:
    d.start_worker()
    await d.until_stage("v1", "ready")
    for verb, option in OPTIONS.items():
        named = await ran(d, verb, COLLECTION, "--", option)
        assert named.exit_code == 1, (verb, named.output)
        said, then, step = named.stderr.partition("\n  next: ")
        assert said.startswith("error: "), (verb, said)
        assert "no version " in said, (verb, said)
        assert option in said, (verb, said)
        assert then, (verb, said)
        assert "v1" in said + step, (verb, "the names there are")
        if verb not in ("status", "history"):  # there the version may be left out
            taken = await ran(d, verb, COLLECTION, option)
            assert taken.exit_code == 2, (verb, taken.output)
            assert "Missing argument 'VERSION" in taken.stderr or "requires an argument" in taken.stderr, taken.stderr
    for arguments in (["set", COLLECTION, "--", "--why", "replay_rate=5"], ["search", COLLECTION, "q", "--version=-k"]):
        assert (await ran(d, *arguments)).exit_code == 1
    unconfirmed = await ran(d, "retire", COLLECTION, "v1", "--confirm", "--why")
    assert unconfirmed.exit_code == 1
    assert "--confirm v1" in unconfirmed.stderr
    assert d.build("v1").stage == "ready"


@pytest.mark.parametrize("name", ["--force", "-k", "v1 v2", "V1", "../v1", ""])
def test_no_version_can_be_declared_under_such_a_name(name: str, tmp_path: Path) -> None:
    path = tmp_path / "crossfade.yaml"
    version = json.dumps(name) + ": {embedder: {provider: hashing}, dimensions: 32}"
    path.write_text(f"collections:\n  docs:\n    topic: t\n    text: {{fields: [a]}}\n    versions:\n      {version}\n")
    result = CliRunner().invoke(cli, ["--config", str(path), "status"], prog_name="crossfade")
    assert result.exit_code == 2
    assert f"{path}:" in result.stderr
    assert "a-z, 0-9" in result.stderr
    options = ["--bootstrap", "127.0.0.1:1", "--topic", "t", "--fields", "a", "--provider", "hashing"]
    new = tmp_path / "new.yaml"
    made = CliRunner().invoke(cli, ["init", "--output", str(new), *options, f"--version={name}"], prog_name="crossfade")
    assert made.exit_code == 2, made.output
    assert "--version" in made.stderr
    assert not new.exists()


COMMANDS: Sequence[Sequence[str]] = (
    ("start", COLLECTION, "v2"),
    ("pause", COLLECTION, "v1"),
    ("resume", COLLECTION, "v1"),
    ("set", COLLECTION, "v1", "replay_rate=5"),
    ("abort", COLLECTION, "v1", "--confirm", "v1"),
    ("verify", COLLECTION, "v1", "--repair"),
    ("redrive", COLLECTION, "v1"),
    ("cutover", COLLECTION, "v1", "--check"),
    ("cutover", COLLECTION, "v1"),
    ("rollback", COLLECTION),
    ("retire", COLLECTION, "v1", "--confirm", "v1"),
)


async def test_every_command_says_that_no_worker_runs_and_names_it(d: Deployment) -> None:
    worker = d.start_worker()
    await d.until_stage("v1", "ready")
    assert await d.end_worker(worker) == 0
    d.add_version("v2", {**VERSION, "dimensions": 64})
    before = d.state.collections[COLLECTION]
    for first in range(0, len(COMMANDS), 4):
        some = COMMANDS[first : first + 4]
        for command, alone in zip(some, await asyncio.gather(*(d.run(*one) for one in some)), strict=True):
            assert alone.returncode == 1, (command, alone.stdout, alone.stderr)
            verb = "repair" if "--repair" in command else command[0]
            assert f"error: no worker runs, so nobody carries out {verb} {COLLECTION}" in alone.stderr, alone.stderr
            assert "\n  next: start one: crossfade worker; it will find this command" in alone.stderr
    shown = await d.run("status", COLLECTION, "v1")
    assert shown.returncode == 0, "what there is to read needs no worker"
    assert d.state.collections[COLLECTION] == before


GOOD = {"id": "q0", "query": "text number 3", "relevant": {"k3": 1}}


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([GOOD, GOOD], "line 2: id 'q0' stands in line 1 already"),
        ([{**GOOD, "relevant": {}}], "1 query has no relevant document"),
        ([{**GOOD, "relevance": 1, "relevant": "k3"}], "line 1: relevant is no object"),
        (None, "there is no such file"),
    ],
    ids=["duplicate", "nothing relevant", "misshapen", "gone"],
)
async def test_a_cutover_with_a_golden_set_that_nobody_can_judge_by(
    d: Deployment, lines: list[dict[str, JsonValue]] | None, said: str
) -> None:
    d.start_worker()
    await d.until_stage("v1", "ready")
    path = d.folder / "golden.jsonl"
    if lines is not None:
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    d.set_collection("gate", {"golden": str(path)})
    for more in ((), ("--check",), ("--accept-inconclusive", "never mind")):
        refused = await d.run("cutover", COLLECTION, "v1", *more)
        assert refused.returncode == 1, refused.stdout
        assert said in refused.stderr, refused.stderr
        assert "\n  next: " in refused.stderr
    assert d.state.collections[COLLECTION].serving is None


async def test_a_golden_set_of_keys_that_nobody_knows_waits_for_a_person(d: Deployment) -> None:
    d.start_worker()
    await d.until_stage("v1", "ready")
    path = d.folder / "golden.jsonl"
    lines = [{"id": f"q{i}", "query": f"text number {i}", "relevant": {f"unheard-of-{i}": 1}} for i in range(40)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    d.set_collection("gate", {"golden": str(path)})
    refused = await d.run("cutover", COLLECTION, "v1")
    assert refused.returncode == 1
    assert "gate: inconclusive" in refused.stderr
    assert "40 of 40 relevant documents are in no space ('unheard-of-0', " in refused.stderr
    assert d.state.collections[COLLECTION].serving is None
