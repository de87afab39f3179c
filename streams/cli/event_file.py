"""Document events from a JSONL file, line by line, plain or compressed, from a path or standard input.

It must never hold more than a line, and never let an event behind a malformed line through.
"""

from __future__ import annotations

import gzip
import io
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import orjson
import zstandard

from connectors.errors import ContentRejected

MAX_LINE_BYTES = 128 * 2**20
MAX_WINDOW_BYTES = 2**27
_KNOWN = {"key", "value", "timestamp_ms"}


class DocumentEvent(NamedTuple):
    """One event as the topic takes it. `value` None deletes the document; `timestamp_ms` None is now."""

    key: bytes
    value: bytes | None
    timestamp_ms: int | None


def open_events(name: str) -> BinaryIO:
    """`-` is standard input; .zst and .gz are decompressed as they are read."""
    if name == "-":
        return sys.stdin.buffer
    path = Path(name)
    if path.suffix == ".gz":
        return io.BufferedReader(gzip.open(path, "rb"))
    raw = path.open("rb")
    if path.suffix == ".zst":
        decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
        return io.BufferedReader(decompressor.stream_reader(raw, read_across_frames=True, closefd=True))
    return raw


def read_lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Line number, from 1, and line; blank lines are left out. Raises ContentRejected for a damaged file."""
    number = 0
    while True:
        number += 1
        try:
            line = file.readline(MAX_LINE_BYTES)
        except (zstandard.ZstdError, zlib.error, gzip.BadGzipFile, EOFError) as error:
            raise malformed(number, f"the compressed file is damaged ({error})") from error
        if not line:
            return
        if len(line) >= MAX_LINE_BYTES:
            raise malformed(number, f"the line is longer than {MAX_LINE_BYTES // 2**20} MiB")
        if not line.isspace():
            yield number, line


def parse_event(number: int, line: bytes) -> DocumentEvent:
    """Raises ContentRejected that names the line and what is wrong, never its text."""
    try:
        raw = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise malformed(number, f"not JSON at column {error.colno}") from error
    if not isinstance(raw, dict):
        raise malformed(number, "not a JSON object")
    if unknown := raw.keys() - _KNOWN:
        raise malformed(number, f"unknown field {sorted(unknown)[0]!r}")
    key, at = raw.get("key"), raw.get("timestamp_ms")
    if not isinstance(key, str):
        raise malformed(number, "no key" if key is None else "the key is not a string")
    if "value" not in raw:  # a forgotten value must never delete a document
        raise malformed(number, "no value; null deletes the document")
    if at is not None and (isinstance(at, bool) or not isinstance(at, int) or not 0 < at < 2**63):
        raise malformed(number, "timestamp_ms is not a whole number of milliseconds above 0")
    value = raw["value"]
    return DocumentEvent(key.encode(), None if value is None else orjson.dumps(value), at)


def malformed(number: int, problem: str) -> ContentRejected:
    return ContentRejected(
        f"line {number}: {problem}",
        next_step='each line is {"key": "id", "value": {...} or null, "timestamp_ms": 1700000000000 (optional)}',
    )
