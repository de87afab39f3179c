"""A real `crossfade serve` beside a deployment, and curl to ask it, as a person at a terminal would."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import JsonValue

from connectors.services import Addresses
from streams.config_serve import hash_of
from tests.conftest import MakeTopic, Unique
from tests.deployment import RUN_CROSSFADE, Deployment, Event, deployed

KEY = "an-operators-key-of-more-than-32-characters"
BEARER = ["-H", f"Authorization: Bearer {KEY}"]
V1: dict[str, JsonValue] = {"embedder": {"provider": "hashing", "word_ngrams": None}, "dimensions": 64}
V2: dict[str, JsonValue] = {"embedder": {"provider": "hashing"}, "dimensions": 256}
DOCUMENTS = 60


@dataclass
class Curl:
    """Asks as a person at a terminal would."""

    url: str

    async def __call__(self, method: str, path: str, body: object = None, *more: str) -> tuple[int, dict[str, Any]]:
        """The status and the JSON."""
        words = ["curl", "-sS", "--max-time", "90", "-X", method, "-w", "\n%{http_code}", *BEARER, *more]
        if body is not None:
            words += ["-H", "Content-Type: application/json", "-d", json.dumps(body)]
        done = await asyncio.to_thread(
            subprocess.run, [*words, self.url + path], capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, f"curl {method} {path}: {done.stderr}"
        text, _, status = done.stdout.rpartition("\n")
        found: dict[str, Any] = json.loads(text) if text else {}
        return int(status), found


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def listens(d: Deployment, **more: object) -> None:
    """Into the configuration: a free port, and one key, of an operator who also searches."""
    keys = [{"name": "ops", "hash": hash_of(KEY), "roles": ["search", "operate"]}]
    section = {"listen": f"127.0.0.1:{_free_port()}", "keys": keys, "command_timeout_s": 60, **more}
    d.raw["serve"] = section  # type: ignore[assignment]


@asynccontextmanager
async def with_matters(
    services: Addresses, folder: Path, unique: Unique, make_topic: MakeTopic
) -> AsyncIterator[Deployment]:
    """A deployment to serve, with version v1 and DOCUMENTS documents, k0, k1 and so on, on the topic."""
    collection: dict[str, JsonValue] = {"text": {"fields": ["text"]}, "properties": {"kind": "keyword"}}
    async with deployed(services, folder, unique("cf"), make_topic(2), unique("Docs"), collection) as d:
        listens(d)
        d.add_version("v1", V1)
        events: list[Event] = [
            (f"k{i}", {"text": f"matter number {i}", "kind": "odd" if i % 2 else "even"}, None)
            for i in range(DOCUMENTS)
        ]
        await d.produce(events)
        yield d


@asynccontextmanager
async def serving(d: Deployment, beside: str = "") -> AsyncIterator[tuple[Curl, subprocess.Popen[bytes]]]:
    """From when it is ready; ended at the end, if nobody has. Its log is `serve.log` in the deployment's folder.

    `beside`: of another server beside it, with the configuration of now, a port and a log of its own by this name.
    """
    path, section = d.config_path, d.raw["serve"]
    assert isinstance(section, dict)
    if beside:
        section = {**section, "listen": f"127.0.0.1:{_free_port()}"}
        path = d.folder / f"serve{beside}.yaml"
        path.write_text(yaml.safe_dump({**d.raw, "serve": section}))
    said = d.folder / f"serve{beside}.log"
    with said.open("wb") as log:
        process = await asyncio.to_thread(
            subprocess.Popen,
            [sys.executable, "-c", RUN_CROSSFADE, "--config", str(path), "serve"],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=d.environment(),
        )
    curl = Curl(f"http://{section['listen']}")
    try:
        async with asyncio.timeout(60):
            while True:
                try:
                    status, _ = await curl("GET", "/readyz")
                except AssertionError:
                    status = 0
                if status == 200:
                    break
                assert process.poll() is None, said.read_text()
                await asyncio.sleep(0.2)
        yield curl, process
    finally:
        if process.poll() is None:
            process.kill()
            await asyncio.to_thread(process.wait)
