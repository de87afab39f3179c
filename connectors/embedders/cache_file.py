"""The file of the vector cache: made where there is none, recognised, and told from any other file.

It must never write into a file that another program made, nor replace one that is damaged.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

from connectors.errors import ConfigurationError, Transient

APPLICATION_ID = 0x43784656  # "CxFV", in the file's header: another program's database is never touched
SCHEMA = 1
_MAGIC = b"SQLite format 3\0"
_BUSY_MS = 5000
PAGE_BYTES = 16384  # ten vectors of 384 dimensions, three of 1024: with smaller pages up to half the file is padding
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)
_PASSING = frozenset(
    {*_BUSY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN}
)

_TABLES = """
CREATE TABLE vectors (id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, used INTEGER NOT NULL, vector BLOB NOT NULL);
CREATE INDEX by_use ON vectors (used);
CREATE TABLE forgotten (fingerprint TEXT PRIMARY KEY, times INTEGER NOT NULL) WITHOUT ROWID
"""


def is_passing(error: sqlite3.Error) -> bool:
    """Busy, full or out of reach: says nothing against the file."""
    return _code(error) in _PASSING


def _code(error: sqlite3.Error) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def unusable(path: Path, why: str) -> ConfigurationError:
    """What to raise for this file, and what a person can do about it."""
    return ConfigurationError(
        f"the vector cache {path} {why}",
        next_step=f"name a file that does not exist yet; or, if {path.name} is a vector cache, delete it with "
        f"{path.name}-wal and {path.name}-shm beside it: all it holds can be embedded again",
    )


def connect(path: Path) -> sqlite3.Connection:
    """A connection in autocommit mode for one thread at a time. Raises ConfigurationError for a file that is no cache,
    is damaged or cannot be written, Transient when another process holds it too long."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # from a vector its text can be guessed
        with path.open("rb") as file:
            head = file.read(len(_MAGIC))
    except OSError as error:
        raise unusable(path, f"cannot be written: {error.strerror}") from error
    if head not in (b"", _MAGIC):  # SQLite would take a file of a few bytes for an empty one
        raise unusable(path, "is no SQLite file")
    connection = sqlite3.connect(path, timeout=_BUSY_MS / 1000, isolation_level=None, check_same_thread=False)
    try:
        _prepare(connection, path)
    except BaseException as error:
        connection.close()
        if not isinstance(error, sqlite3.Error):
            raise
        if _code(error) in _BUSY:
            raise Transient(f"the vector cache {path} is held by another process", retry_after_s=5.0) from error
        raise unusable(path, f"is damaged or out of reach ({error})") from error
    return connection


def _patiently(statement: Callable[[], int | str]) -> int | str:
    """SQLite's own time-out does not cover a change of the journal mode: two that make the file at once would fail."""
    until_s = time.monotonic() + _BUSY_MS / 1000
    while True:
        try:
            return statement()
        except sqlite3.OperationalError as error:
            if _code(error) not in _BUSY or time.monotonic() > until_s:
                raise
        time.sleep(0.02)


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Reads before it writes: another program's file stays as it is."""

    def ask(statement: str) -> int | str:
        answer: int | str = connection.execute(statement).fetchone()[0]
        return answer

    is_new = "SELECT count(*) = 0 FROM sqlite_master"
    if ask("PRAGMA application_id") != APPLICATION_ID:
        if not ask(is_new):
            raise unusable(path, "is another program's database")
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
    if _patiently(lambda: ask("PRAGMA journal_mode = WAL")) != "wal":
        raise unusable(path, "lies on a file system where processes cannot share it (a network drive?)")
    connection.execute("BEGIN IMMEDIATE")
    if ask(is_new):  # else another process has made it meanwhile
        for statement in _TABLES.split(";"):
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA}")
    connection.execute("COMMIT")
    if (found := ask("PRAGMA user_version")) != SCHEMA:
        raise unusable(path, f"has schema {found}, this Crossfade writes {SCHEMA}")
    connection.execute("PRAGMA synchronous = NORMAL")  # a power cut may lose the newest vectors, never the file
    connection.execute(f"PRAGMA journal_size_limit = {16 * 2**20}")
    connection.execute("PRAGMA cache_size = -16000")
