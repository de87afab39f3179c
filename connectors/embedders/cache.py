"""Vectors that were paid for once, kept in one SQLite file for the next build of the same envelope.

It must never give a vector of another text or fingerprint, hold a text, or stop a build for being busy or full: what it
cannot answer is a miss, and what it cannot keep is embedded again one day. Only a file that is no cache is an error.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np

from connectors.embedders.cache_file import PAGE_BYTES, connect, is_passing, unusable
from connectors.errors import ConfigurationError
from connectors.protocols import Vectors

log = logging.getLogger(__name__)
T = TypeVar("T")

SMALLEST = 4 * 2**20
_ROWS = 256  # a statement or a transaction, so that other processes get their turn
_TOUCH_S = 3600  # use is noted by the hour: reading a vector a thousand times is one write
_PENDING = 4096
_ROOM = 0.95  # what is evicted goes beyond the need, so that not every write evicts


class VectorCache:
    """See the module. Text hash and fingerprint to vector, for several processes at once; close it at the end.

    A key is SHA-256 over fingerprint and text, a row carries a checksum. Size: before rows are added, those whose last
    use is longest ago (by the hour) go, so that the file never grows beyond `max_bytes`; SQLite's journal beside it
    takes up to some 20 MB more. All work is done in a thread: the event loop never waits.
    """

    def __init__(self, path: Path, max_bytes: int, connection: sqlite3.Connection) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self.failures = 0
        self._db = connection
        self._lock = threading.Lock()
        self._touched: set[int] = set()

    @classmethod
    async def open(cls, path: Path, max_bytes: int) -> VectorCache:
        """Creates the file and its folder where they are missing. Raises ConfigurationError for a file that is not a
        cache, is damaged, cannot be written, or lies where SQLite cannot share it."""
        if max_bytes < SMALLEST:
            raise ConfigurationError(
                f"a vector cache of {max_bytes} bytes is too small", next_step=f"set at least {SMALLEST} bytes"
            )
        return cls(path, max_bytes, await asyncio.to_thread(connect, path))

    async def get_many(self, fingerprint: str, texts: Sequence[str]) -> dict[int, Vectors]:
        """float32[dim] of those texts that are known, by their index. Raises ConfigurationError when the file is
        found damaged."""
        return await asyncio.to_thread(self._or_else, lambda: self._get(fingerprint, texts), {})

    async def put_many(self, fingerprint: str, texts: Sequence[str], vectors: Vectors) -> None:
        """Keep `vectors`, float32[n, dim], one for each text; a text kept before gets the new one. Raises as
        `get_many` does."""
        if vectors.ndim != 2 or len(vectors) != len(texts):
            raise ValueError(f"an array of shape {vectors.shape} for {len(texts)} texts")
        rows = np.ascontiguousarray(vectors, "<f4")
        await asyncio.to_thread(self._or_else, lambda: self._put(fingerprint, texts, rows), None)

    async def forget(self, fingerprint: str) -> None:
        """No vector kept so far for this fingerprint is ever given again: for a model that was found changed."""
        await asyncio.to_thread(self._or_else, lambda: self._forget(fingerprint), None)

    async def close(self) -> None:
        """Notes what was used, and lets go of the file."""
        await asyncio.to_thread(self._close)

    def _get(self, fingerprint: str, texts: Sequence[str]) -> dict[int, Vectors]:
        places: dict[bytes, list[int]] = {}
        for index, key in enumerate(self._keys(fingerprint, texts)):
            places.setdefault(key, []).append(index)
        keys = list(places)
        found: dict[int, Vectors] = {}
        stale = int(time.time()) - _TOUCH_S
        for begin in range(0, len(keys), _ROWS):
            some = keys[begin : begin + _ROWS]
            marks = ",".join("?" * len(some))
            query = f"SELECT id, key, used, vector FROM vectors WHERE key IN ({marks})"
            for row, key, used, blob in self._db.execute(query, some):
                vector = _unpack(key, blob)
                if vector is None:
                    continue  # damaged: a miss, and replaced when it is embedded again
                found.update(dict.fromkeys(places[key], vector))
                if used < stale:
                    self._touched.add(row)
        if len(self._touched) >= _PENDING:  # else with the next vectors kept: reading waits for no other process
            with self._transaction():
                self._touch()
        return found

    def _put(self, fingerprint: str, texts: Sequence[str], vectors: Vectors) -> None:
        keys = self._keys(fingerprint, texts)
        row_bytes = _stored_bytes(vectors.shape[1] * 4 + 4)
        step = max(1, min(_ROWS, self.max_bytes // 8 // row_bytes))  # room is made for no more than an eighth at once
        for begin in range(0, len(keys), step):
            now = int(time.time())
            rows = [
                (key, now, _pack(key, vector))
                for key, vector in zip(keys[begin : begin + step], vectors[begin : begin + step], strict=True)
            ]
            with self._transaction():
                self._touch()
                if self._make_room(len(rows), row_bytes):
                    self._db.executemany(
                        "INSERT INTO vectors (key, used, vector) VALUES (?, ?, ?) "
                        "ON CONFLICT (key) DO UPDATE SET used = excluded.used, vector = excluded.vector",
                        rows,
                    )

    def _forget(self, fingerprint: str) -> None:
        with self._transaction():
            self._db.execute(
                "INSERT INTO forgotten VALUES (?, 1) ON CONFLICT (fingerprint) DO UPDATE SET times = times + 1",
                (fingerprint,),
            )

    def _close(self) -> None:
        def finish() -> None:
            with self._transaction():
                self._touch()

        try:
            self._or_else(finish, None)
        finally:
            with self._lock:
                self._db.close()

    def _keys(self, fingerprint: str, texts: Sequence[str]) -> list[bytes]:
        row = self._db.execute("SELECT times FROM forgotten WHERE fingerprint = ?", (fingerprint,)).fetchone()
        head = hashlib.sha256(f"{fingerprint}\0{row[0] if row else 0}\0".encode())
        keys: list[bytes] = []
        for text in texts:
            digest = head.copy()
            digest.update(text.encode("utf-8", "surrogatepass"))
            keys.append(digest.digest())
        return keys

    def _touch(self) -> None:
        now = int(time.time())
        self._db.executemany("UPDATE vectors SET used = ? WHERE id = ?", [(now, row) for row in self._touched])
        self._touched.clear()

    def _make_room(self, rows: int, row_bytes: int) -> bool:
        """Whether so many rows fit now. Pages that deletes leave empty are used again; the file never shrinks."""
        wanted = rows * row_bytes
        if self._bytes() + wanted <= self.max_bytes:
            return True
        while (too_many := self._bytes() + wanted - int(self.max_bytes * _ROOM)) > 0:
            gone = self._db.execute(
                "DELETE FROM vectors WHERE id IN (SELECT id FROM vectors ORDER BY used, id LIMIT ?)",
                (-(-too_many // row_bytes),),
            )
            if gone.rowcount < 1:
                return False
        return True

    def _bytes(self) -> int:
        pages, free = (self._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count"))
        return int(pages - free) * PAGE_BYTES

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def _or_else(self, work: Callable[[], T], otherwise: T) -> T:
        """What `work` gives, one call at a time; `otherwise` when the file is busy, full or out of reach."""
        with self._lock:
            try:
                return work()
            except sqlite3.ProgrammingError:
                raise  # closed, or called wrongly: nothing is wrong with the file
            except sqlite3.Error as error:
                if not is_passing(error):
                    raise unusable(self.path, "is damaged") from error
                self.failures += 1
                if self.failures & (self.failures - 1) == 0:  # the 1st, 2nd, 4th, 8th time: not a line for each batch
                    log.warning("the vector cache %s failed %d times: %s", self.path, self.failures, error)
                return otherwise


def _pack(key: bytes, vector: Vectors) -> bytes:
    raw = vector.tobytes()
    return zlib.crc32(raw, zlib.crc32(key)).to_bytes(4, "little") + raw


def _unpack(key: bytes, blob: bytes) -> Vectors | None:
    if len(blob) % 4 or zlib.crc32(memoryview(blob)[4:], zlib.crc32(key)) != int.from_bytes(blob[:4], "little"):
        return None
    return np.frombuffer(blob, "<f4", offset=4)


def _stored_bytes(blob: int) -> int:
    """Of one row, padding of its page and index entries included; rather too many."""
    row = blob + 64
    return 160 + (PAGE_BYTES // (PAGE_BYTES // row) if row <= PAGE_BYTES else (row // PAGE_BYTES + 1) * PAGE_BYTES)
