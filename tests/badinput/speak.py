"""The real command, run as an operator would, both its streams as one text."""

from __future__ import annotations

import asyncio
import sys

from tests.conftest import ROOT
from tests.deployment import Deployment


async def crossfade(d: Deployment, *words: str) -> str:
    """`$ words -> status`, then what it printed. Two minutes at most."""
    command = [sys.executable, "-c", "from streams.cli import main; main()", "--config", str(d.config_path), *words]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, cwd=ROOT
    )
    async with asyncio.timeout(120):
        printed, _ = await process.communicate()
    return f"$ {' '.join(words)} -> {process.returncode}\n{printed.decode()}\n"
