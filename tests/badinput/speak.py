"""The real command, run as an operator would, both its streams as one text."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tests.conftest import ROOT
from tests.deployment import Deployment


def command(path: Path, *words: str) -> list[str]:
    return [sys.executable, "-c", "from streams.cli import main; main()", "--config", str(path), *words]


async def crossfade(d: Deployment, *words: str) -> str:
    """`$ words -> status`, then what it printed. Two minutes at most."""
    process = await asyncio.create_subprocess_exec(
        *command(d.config_path, *words), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, cwd=ROOT
    )
    async with asyncio.timeout(120):
        printed, _ = await process.communicate()
    return f"$ {' '.join(words)} -> {process.returncode}\n{printed.decode()}\n"
