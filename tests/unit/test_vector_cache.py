"""The vector cache: what was put comes back bit for bit, to any process, within a bound, and from no other file."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from connectors.embedders import cache_file
from connectors.embedders.cache import SMALLEST, VectorCache
from connectors.errors import ConfigurationError, Transient
from connectors.protocols import Vectors

FINGERPRINT = "0123456789ab"
LARGE = 64 * 2**20


def vectors_of(count: int, dimensions: int = 8, seed: int = 0) -> Vectors:
    return np.random.default_rng(seed).standard_normal((count, dimensions)).astype(np.float32)


def texts_of(count: int, word: str = "text") -> list[str]:
    return [f"{word} {n}" for n in range(count)]


async def test_what_was_put_is_given_back_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "cache.db"
    cache = await VectorCache.open(path, LARGE)
    texts, vectors = [*texts_of(700), "\ud800", ""], vectors_of(702)
    await cache.put_many(FINGERPRINT, texts, vectors)
    await cache.close()
    cache = await VectorCache.open(path, LARGE)
    found = await cache.get_many(FINGERPRINT, ["unknown", *texts, texts[3]])
    assert sorted(found) == list(range(1, 704))
    assert np.stack([found[i + 1] for i in range(702)]).tobytes() == vectors.tobytes()
    assert found[703].tobytes() == vectors[3].tobytes()
    assert found[1].dtype == np.float32
    assert await cache.get_many("ba9876543210", texts) == {}
    assert await cache.get_many(FINGERPRINT, []) == {}
    await cache.close()


async def test_a_text_put_again_has_the_new_vector(tmp_path: Path) -> None:
    cache = await VectorCache.open(tmp_path / "c.db", LARGE)
    old, new = vectors_of(1), vectors_of(1, dimensions=16, seed=1)
    await cache.put_many(FINGERPRINT, ["a"], old)
    await cache.put_many(FINGERPRINT, ["a", "a"], np.concatenate([new, new]))
    assert (await cache.get_many(FINGERPRINT, ["a"]))[0].tobytes() == new.tobytes()
    await cache.close()


async def test_no_text_stands_in_the_file_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    cache = await VectorCache.open(path, LARGE)
    await cache.put_many(FINGERPRINT, ["a most secret document"], vectors_of(1))
    files = sorted(tmp_path / name for name in os.listdir(tmp_path))
    assert any(b"CREATE TABLE vectors" in file.read_bytes() for file in files)
    assert not any(b"secret" in file.read_bytes() for file in files)
    assert {file.stat().st_mode & 0o077 for file in files} == {0}
    await cache.close()


async def test_what_was_forgotten_is_never_given_again(tmp_path: Path) -> None:
    first, second = [await VectorCache.open(tmp_path / "c.db", LARGE) for _ in range(2)]
    await first.put_many(FINGERPRINT, ["a"], vectors_of(1))
    await first.put_many("ba9876543210", ["a"], vectors_of(1))
    await second.forget(FINGERPRINT)
    assert await first.get_many(FINGERPRINT, ["a"]) == {}
    assert list(await first.get_many("ba9876543210", ["a"])) == [0]
    await first.put_many(FINGERPRINT, ["a"], vectors_of(1, seed=1))
    assert list(await second.get_many(FINGERPRINT, ["a"])) == [0]
    await first.close()
    await second.close()


@pytest.mark.parametrize("dimensions", [8, 384, 1024, 3072, 5000])
async def test_the_file_stays_within_its_bound(tmp_path: Path, dimensions: int) -> None:
    path = tmp_path / "c.db"
    cache = await VectorCache.open(path, SMALLEST)
    size = 2 * SMALLEST // 5 // (dimensions * 4 + 200)  # two fifths of the cache at once
    for n in range(8):
        await cache.put_many(FINGERPRINT, texts_of(size, f"round {n}"), vectors_of(size, dimensions))
    newest = await cache.get_many(FINGERPRINT, texts_of(size, "round 7"))
    oldest = await cache.get_many(FINGERPRINT, texts_of(size, "round 0"))
    await cache.close()
    assert path.stat().st_size <= SMALLEST
    assert len(newest) == size
    assert oldest == {}
    with sqlite3.connect(path) as file:
        kept = int(file.execute("SELECT count(*) FROM vectors").fetchone()[0])
    file.close()
    assert kept * (dimensions * 4 + 100) > 0.4 * SMALLEST


async def test_what_was_used_last_stays_longest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000_000.0
    monkeypatch.setattr(time, "time", lambda: now)
    cache = await VectorCache.open(tmp_path / "c.db", SMALLEST)
    await cache.put_many(FINGERPRINT, texts_of(100, "kept"), vectors_of(100, 384))
    for n in range(40):
        now += 7200
        await cache.put_many(FINGERPRINT, texts_of(100, f"other {n}"), vectors_of(100, 384))
        assert len(await cache.get_many(FINGERPRINT, texts_of(100, "kept"))) == 100, n
    assert await cache.get_many(FINGERPRINT, texts_of(100, "other 0")) == {}
    await cache.close()


async def test_use_is_noted_at_the_end_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000_000.0
    monkeypatch.setattr(time, "time", lambda: now)
    cache = await VectorCache.open(tmp_path / "c.db", SMALLEST)
    await cache.put_many(FINGERPRINT, ["a", "b"], vectors_of(2))
    now += 7200
    await cache.get_many(FINGERPRINT, ["a"])
    await cache.close()
    file = sqlite3.connect(tmp_path / "c.db")
    assert sorted(used for (used,) in file.execute("SELECT used FROM vectors")) == [1_000_000, 1_007_200]
    file.close()


async def test_a_vector_larger_than_the_cache_is_not_kept(tmp_path: Path) -> None:
    cache = await VectorCache.open(tmp_path / "c.db", SMALLEST)
    await cache.put_many(FINGERPRINT, ["a"], vectors_of(1, 2 * 2**20))
    assert await cache.get_many(FINGERPRINT, ["a"]) == {}
    assert (tmp_path / "c.db").stat().st_size <= SMALLEST
    await cache.close()


async def test_a_damaged_vector_is_a_miss(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    cache = await VectorCache.open(path, LARGE)
    await cache.put_many(FINGERPRINT, ["a", "b", "c"], vectors_of(3))
    file = sqlite3.connect(path)
    (blob,) = file.execute("SELECT vector FROM vectors WHERE id = 1").fetchone()
    file.execute("UPDATE vectors SET vector = ? WHERE id = 1", (blob[:9] + bytes([blob[9] ^ 1]) + blob[10:],))
    other = file.execute("SELECT vector FROM vectors WHERE id = 3").fetchone()[0]
    file.execute("UPDATE vectors SET vector = ? WHERE id = 2", (other,))  # another text's, and whole
    file.commit()
    file.close()
    assert list(await cache.get_many(FINGERPRINT, ["a", "b", "c"])) == [2]
    await cache.put_many(FINGERPRINT, ["a"], vectors_of(1))
    assert list(await cache.get_many(FINGERPRINT, ["a", "b", "c"])) == [0, 2]
    await cache.close()


WORKER = """
import asyncio, sys
from pathlib import Path
import numpy as np
from connectors.embedders.cache import VectorCache

async def main(path, name):
    cache = await VectorCache.open(path, 64 * 2**20)
    for n in range(30):
        texts = [f"{name} {n} {i}" for i in range(50)] + [f"common {i}" for i in range(50)]
        await cache.put_many("f", texts, np.full((100, 64), n + 1, np.float32))
        assert len(await cache.get_many("f", texts)) == 100
    assert cache.failures == 0, cache.failures
    await cache.close()

asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
"""


async def test_several_processes_make_and_use_one_file(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    command = [sys.executable, "-W", "error", "-c", WORKER, str(path)]
    workers = [await asyncio.create_subprocess_exec(*command, f"w{n}", stderr=subprocess.PIPE) for n in range(4)]
    errors = [(await worker.communicate())[1].decode() for worker in workers]
    assert errors == [""] * 4
    cache = await VectorCache.open(path, LARGE)
    texts = [f"w{w} {n} {i}" for w in range(4) for n in range(30) for i in range(50)]
    assert len(await cache.get_many("f", texts)) == 6000
    await cache.close()


async def test_a_busy_file_is_a_miss_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cache_file, "_BUSY_MS", 50)
    path = tmp_path / "c.db"
    cache = await VectorCache.open(path, LARGE)
    await cache.put_many(FINGERPRINT, ["a"], vectors_of(1))
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            await cache.put_many(FINGERPRINT, ["b"], vectors_of(1))
    assert cache.failures == 5
    assert len(caplog.records) == 3  # the 1st, 2nd and 4th
    assert list(await cache.get_many(FINGERPRINT, ["a", "b"])) == [0]  # reading waits for nobody
    with pytest.raises(Transient, match="is held by another process"):
        await VectorCache.open(path, LARGE)
    holder.execute("ROLLBACK")
    holder.close()
    await cache.put_many(FINGERPRINT, ["b"], vectors_of(1))
    assert len(await cache.get_many(FINGERPRINT, ["a", "b"])) == 2
    await cache.close()


async def test_calls_run_one_at_a_time_and_never_in_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = await VectorCache.open(tmp_path / "c.db", LARGE)
    threads: list[int] = []
    inside = 0
    really = VectorCache._keys

    def noting(self: VectorCache, fingerprint: str, texts: list[str]) -> list[bytes]:
        nonlocal inside
        inside += 1
        threads.append(threading.get_ident())
        time.sleep(0.01)
        assert inside == 1
        inside -= 1
        return really(self, fingerprint, texts)

    monkeypatch.setattr(VectorCache, "_keys", noting)
    rounds = [cache.put_many(FINGERPRINT, texts_of(300, str(n)), vectors_of(300)) for n in range(8)]
    await asyncio.gather(*rounds, *(cache.get_many(FINGERPRINT, texts_of(300, str(n))) for n in range(8)))
    assert len(threads) == 16
    assert threading.get_ident() not in threads
    found = [await cache.get_many(FINGERPRINT, texts_of(300, str(n))) for n in range(8)]
    assert [len(one) for one in found] == [300] * 8
    await cache.close()


@pytest.mark.parametrize("content", [b"x", b"not a database at all\n" * 500, b"SQLite format 3\0" + b"\xff" * 5000])
async def test_a_file_that_is_no_cache_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    for _ in range(2):
        with pytest.raises(ConfigurationError) as caught:
            await VectorCache.open(path, LARGE)
        assert str(path) in caught.value.message
        assert "name a file that does not exist yet" in caught.value.next_step
    assert path.read_bytes() == content


@pytest.mark.parametrize("application_id", [0, 77])
async def test_another_programs_database_is_refused_and_left_alone(tmp_path: Path, application_id: int) -> None:
    path = tmp_path / "other.db"
    file = sqlite3.connect(path)
    file.execute("CREATE TABLE vectors (mine)")
    file.execute(f"PRAGMA application_id = {application_id}")
    file.commit()
    file.close()
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match="is another program's database"):
        await VectorCache.open(path, LARGE)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["other.db"]


async def test_a_newer_cache_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    await (await VectorCache.open(path, LARGE)).close()
    file = sqlite3.connect(path)
    file.execute("PRAGMA user_version = 2")
    file.close()
    with pytest.raises(ConfigurationError, match="has schema 2, this Crossfade writes 1"):
        await VectorCache.open(path, LARGE)


async def test_damage_found_later_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    cache = await VectorCache.open(path, LARGE)
    await cache.put_many(FINGERPRINT, texts_of(2000), vectors_of(2000, 384))
    await cache.close()
    content = bytearray(path.read_bytes())
    content[2 * 16384 :] = b"\xa5" * (len(content) - 2 * 16384)
    path.write_bytes(content)
    cache = await VectorCache.open(path, LARGE)  # the whole file is not read for it
    with pytest.raises(ConfigurationError) as caught:
        await cache.get_many(FINGERPRINT, texts_of(2000))
    await cache.close()
    assert f"{path} is damaged" in caught.value.message
    assert "delete it with c.db-wal and c.db-shm" in caught.value.next_step
    assert path.read_bytes() == content


async def test_what_cannot_be_opened_or_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be written"):
        await VectorCache.open(tmp_path, LARGE)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        await VectorCache.open(tmp_path / "file" / "c.db", LARGE)
    with pytest.raises(ConfigurationError, match="is too small"):
        await VectorCache.open(tmp_path / "c.db", SMALLEST - 1)
    cache = await VectorCache.open(tmp_path / "c.db", SMALLEST)
    for texts, vectors in ((["a"], vectors_of(2)), (["a"], vectors_of(1)[0])):
        with pytest.raises(ValueError, match="an array of shape"):
            await cache.put_many(FINGERPRINT, texts, vectors)
    await cache.close()
    with pytest.raises(sqlite3.ProgrammingError):
        await cache.get_many(FINGERPRINT, ["a"])
