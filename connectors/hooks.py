"""Runs what an operator has configured to be called at a change of stage: a command, or one HTTP POST.

A command gets no shell, no standard input, and of this process's environment only PATH, HOME and LANG. Nothing here
waits longer than it may, whatever the other side does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import Mapping, Sequence

from connectors.errors import CrossfadeError, Refused
from connectors.http_get import HttpGet

INHERITED = ("PATH", "HOME", "LANG")
MOST_SAID = 200
"""Characters of the last line on standard error that are shown."""
MOST_VALUE = 4_000
_TAIL_BYTES = 4_096
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")  # what could move a terminal's cursor


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """What a command is started with: `given`, values cut to MOST_VALUE characters, beside what is inherited."""
    inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
    cut = {name: value.replace("\0", "")[:MOST_VALUE] for name, value in given.items()}
    return inherited | {name: value.encode(errors="replace").decode() for name, value in cut.items()}


async def run_command(argv: Sequence[str], given: Mapping[str, str], timeout_s: float) -> None:
    """Run it to its end. Raises Refused for an exit status that is not 0, a command that cannot be run, and one that
    has not ended in time, which is killed with all of its process group; with its last line on standard error."""
    read, write = os.pipe()
    tail = bytearray()
    try:
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=write,
                env=environment(given),
                start_new_session=True,
            )
        except (OSError, ValueError) as error:  # the latter: a NUL in an argument
            reason = error.strerror if isinstance(error, OSError) else "an argument no program can take"
            raise Refused(f"cannot be run: {reason}") from None
        finally:
            os.close(write)
        os.set_blocking(read, False)
        loop = asyncio.get_running_loop()
        loop.add_reader(read, _take, read, tail, loop)
        try:
            async with asyncio.timeout(timeout_s):
                await process.wait()
        except TimeoutError:
            raise Refused(f"did not end within {timeout_s:g} s and was killed{_said(tail)}") from None
        finally:
            if process.returncode is None:  # too late, or nobody waits for it any more
                _kill(process.pid)
                await asyncio.shield(process.wait())
            # not to its end: a child left behind in the background may keep it open for ever
            _take(read, tail, loop)
            loop.remove_reader(read)
    finally:
        os.close(read)
    if process.returncode:
        status = process.returncode
        ended = f"exit status {status}" if status > 0 else f"ended by signal {-status}"
        raise Refused(f"{ended}{_said(tail)}")


async def post(url: str, body: bytes, timeout_s: float) -> None:
    """POST JSON; no redirect is followed, and the reply's body is not read.

    Raises Refused for a reply that is not 2xx, and without one.
    """
    http: HttpGet | None = None
    try:
        http = HttpGet(url, "its address", timeout_s=timeout_s)  # which may hold a secret, and is not shown
        status = await http.post(body)
    except CrossfadeError as error:
        raise Refused(error.message) from None
    finally:
        if http is not None:
            await http.close()
    if not 200 <= status < 300:
        raise Refused(f"answered {status}")


def _take(read: int, tail: bytearray, loop: asyncio.AbstractEventLoop) -> None:
    """What stands in the pipe just now; of all of it the last bytes are kept."""
    with contextlib.suppress(BlockingIOError):
        for _ in range(16):  # then others have their turn, however fast it writes
            if not (piece := os.read(read, 65_536)):
                loop.remove_reader(read)
                return
            tail += piece
            del tail[:-_TAIL_BYTES]


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _said(tail: bytearray) -> str:
    lines = [_CONTROL.sub(" ", line).strip() for line in tail.decode(errors="replace").splitlines()]
    last = next((line for line in reversed(lines) if line), "")
    return f": {last[:MOST_SAID]}" if last else ""
