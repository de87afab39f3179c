"""The configuration file of a process that runs for long: it is changed meanwhile, and the change counts."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path

from connectors.errors import ConfigurationError
from streams.config import Settings, load

log = logging.getLogger(__name__)

LOOK_EVERY_S = 2.0


class ConfigurationFile:
    """`settings`: as it was read when the process began."""

    def __init__(self, path: Path, settings: Settings) -> None:
        self._path = path
        self._settings = settings
        self._seen: tuple[int, int, int] | None = None
        self._look_now = asyncio.Event()

    def look_now(self) -> None:
        """Read it again, changed or not: what it names, a file with a key, may have changed. For SIGHUP."""
        self._look_now.set()

    def newest(self) -> Settings:
        """As the file says now; as it said before while it cannot be used, which is logged once for each change."""
        try:
            stat = self._path.stat()
        except FileNotFoundError:
            return self._settings
        found = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
        if found != self._seen or self._look_now.is_set():
            self._seen = found
            self._look_now.clear()
            try:
                self._settings = load(self._path)
            except ConfigurationError as error:
                log.error("the changed configuration is not taken: %s", error)
        return self._settings

    async def wait(self) -> None:
        """Until it is time to ask for the newest again."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_EVERY_S):
                await self._look_now.wait()
