"""A configuration that changes while a process runs."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

import pytest

from connectors.errors import ConfigurationError
from streams import config, config_watch
from streams.config_watch import ConfigurationFile

TEXT = "prices: {{some-model: {}}}\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "crossfade.yaml"
    found.write_text(TEXT.format(20))
    return found


def price(file: ConfigurationFile) -> float:
    return file.newest().prices["some-model"]


def replace(path: Path, text: str) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(path)


def test_a_change_counts_at_once_and_nothing_is_read_twice(path: Path) -> None:
    file = ConfigurationFile(path, config.load(path))
    first = file.newest()
    assert file.newest() is first
    replace(path, TEXT.format(30))
    assert price(file) == 30


def test_a_change_of_the_same_size_within_one_tick_of_the_clock_is_seen(path: Path) -> None:
    file = ConfigurationFile(path, config.load(path))
    before = path.stat().st_mtime_ns
    file.newest()
    replace(path, TEXT.format(40))
    os.utime(path, ns=(before, before))
    assert price(file) == 40


def test_what_cannot_be_used_is_said_once_and_the_former_one_stays(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = ConfigurationFile(path, config.load(path))
    with caplog.at_level(logging.ERROR):
        replace(path, "prices: soon\n")
        assert price(file) == price(file) == 20
    assert len(caplog.records) == 1
    assert "prices" in caplog.text
    with pytest.raises(ConfigurationError, match="prices"):
        file.checked()
    path.unlink()
    assert price(file) == 20
    with pytest.raises(ConfigurationError, match="cannot be read"):
        file.checked()


def test_what_cannot_be_used_is_not_read_again_at_each_question(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []

    def load(file: Path) -> config.Settings:
        read.append(file)
        return config.load(file)

    file = ConfigurationFile(path, config.load(path))
    monkeypatch.setattr(config_watch, "load", load)
    replace(path, "prices: soon\n")
    for _ in range(5):
        assert price(file) == 20
    assert len(read) == 1
    replace(path, TEXT.format(50))
    assert price(file) == 50


def test_a_secret_that_is_rotated_counts_at_once(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def key() -> str:
        found = file.newest().weaviate.api_key
        assert found is not None
        return found.get_secret_value()

    secret = path.with_name("weaviate.key")
    secret.write_text("first")
    path.write_text("weaviate: {http: 'http://127.0.0.1:1', grpc: '127.0.0.1:2', api_key: 'file:weaviate.key'}\n")
    file = ConfigurationFile(path, config.load(path))
    first = file.checked()
    assert file.checked() is first
    replace(secret, "second")
    assert key() == "second"
    secret.unlink()  # as it is for a moment where it is not replaced in one step
    with caplog.at_level(logging.ERROR):
        assert key() == key() == "second"
    assert len(caplog.records) == 1
    secret.write_text("third")
    assert key() == "third"


async def test_a_signal_has_it_read_again_although_it_is_the_same(path: Path) -> None:
    file = ConfigurationFile(path, config.load(path))
    first = file.newest()
    file.look_now()
    async with asyncio.timeout(1):
        await file.wait()
    assert file.newest() is not first
