"""The configuration file of a process that runs for long: it is changed meanwhile, and the change counts."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from pathlib import Path

from connectors.errors import ConfigurationError
from streams.config import Settings, load
from streams.config_file import Stamp, stamp

log = logging.getLogger(__name__)

LOOK_EVERY_S = 2.0


class ConfigurationFile:
    """`settings`: as it was read when the process began.

    Read again when it, or a file it has a secret from, is another than before; while it cannot be used, also every two
    seconds, since what it lacks may have come.
    """

    def __init__(self, path: Path, settings: Settings) -> None:
        self._path = path
        self._settings = settings
        self._said = ""
        self._wrong: tuple[str, str] | None = None
        self._wrong_stamps: dict[Path, Stamp | None] = {}
        self._again_s = 0.0
        self._look_now = asyncio.Event()

    def look_now(self) -> None:
        """Read it again, changed or not: a variable's value that it names may be another. For SIGHUP."""
        self._look_now.set()

    def newest(self) -> Settings:
        """As the file says now; as it said before while it cannot be used, which is logged once for each cause."""
        try:
            return self.checked()
        except ConfigurationError as error:
            if self._path.exists() and error.message != self._said:
                self._said = error.message
                log.error("the changed configuration is not taken: %s", error)
        return self._settings

    def checked(self) -> Settings:
        """As the file says now. Raises ConfigurationError, as `config.load`, while it cannot be used."""
        stamps = {file: stamp(file) for file in (self._path, *self._settings.files)}
        if not self._look_now.is_set():
            if stamps == self._settings.files:
                return self._settings
            if self._wrong is not None and stamps == self._wrong_stamps and time.monotonic() < self._again_s:
                message, next_step = self._wrong
                raise ConfigurationError(message, next_step=next_step)
        self._look_now.clear()
        try:
            self._settings, self._wrong, self._said = load(self._path), None, ""
        except ConfigurationError as error:
            self._wrong = error.message, error.next_step
            self._wrong_stamps, self._again_s = stamps, time.monotonic() + LOOK_EVERY_S
            raise
        return self._settings

    async def wait(self) -> None:
        """Until it is time to ask for the newest again."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_EVERY_S):
                await self._look_now.wait()
