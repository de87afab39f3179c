"""The cache of programs for local services, and what filling it needs: a download, a build with progress.

Must never keep what it fetched without having compared its checksum, and names no host: addresses come from the user.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx

from connectors.errors import ConfigurationError
from connectors.services.state import Say, locked


def cache_folder() -> Path:
    """`$CROSSFADE_CACHE`, else `~/.cache/crossfade`."""
    return Path(os.environ.get("CROSSFADE_CACHE") or Path.home() / ".cache" / "crossfade")


@contextmanager
def filling(cache: Path, say: Say) -> Iterator[Path]:
    """A scratch folder inside the cache, for one process at a time; what is finished is renamed into place."""
    with locked(cache / "lock", say, busy=f"another process is filling {cache}; waiting for it"):
        scratch = Path(tempfile.mkdtemp(prefix="new-", dir=cache))
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def download(client: httpx.Client, address: str, target: Path, checksum: str, *, name: str) -> None:
    digest = hashlib.sha256()
    try:
        with client.stream("GET", address) as response, target.open("wb") as out:
            response.raise_for_status()
            for block in response.iter_bytes():
                digest.update(block)
                out.write(block)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        # The address may carry credentials, and httpx repeats it in its messages.
        status = f", status {error.response.status_code}" if isinstance(error, httpx.HTTPStatusError) else ""
        raise ConfigurationError(
            f"{name} could not be fetched ({type(error).__name__}{status})",
            next_step="check the address you configured and that this machine may reach it",
        ) from None
    if digest.hexdigest() != checksum.lower():
        raise ConfigurationError(
            f"{name} has another SHA-256 than expected", next_step="check the address you configured"
        )


def run_with_progress(
    command: list[str], say: Say, *, what: str, environment: Mapping[str, str] | None = None, every_s: float = 15
) -> str:
    """Run to the end, saying every few seconds that it goes on; returns its stdout. Raises ConfigurationError."""
    say(what)
    began = told = time.monotonic()
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        run = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, text=True, env=environment
        )
        with run:
            try:
                while run.poll() is None:
                    time.sleep(0.1)
                    if time.monotonic() - told >= every_s:
                        told = time.monotonic()
                        say(f"  still {what.split(' (')[0]}: {told - began:.0f} s so far")
            except BaseException:
                run.kill()
                raise
        output.seek(0)
        errors.seek(0)
        said, complained = output.read(), errors.read()
    if run.returncode != 0:
        raise ConfigurationError(
            f"`{' '.join(command[:2])}` ended with status {run.returncode}:\n{(said + complained).strip()[-2000:]}",
            next_step="see what it says, then run the same command again",
        )
    return said
