"""Keys from files and into headers: every way to have none, said clearly, and never shown."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from connectors.embedders.keys import key_headers, read_key_file
from connectors.errors import ConfigurationError

KEY = "SECRETm3x7"


def key_file(folder: Path, content: bytes, mode: int = 0o600) -> Path:
    path = folder / "key"
    path.write_bytes(content)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("content", [b"SECRETm3x7", b"SECRETm3x7\n", b"  SECRETm3x7\r\n\n"])
def test_white_space_around_a_key_is_not_the_key(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    assert read_key_file(key_file(tmp_path, content)) == KEY
    assert caplog.records == []


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b" \n\t", "is empty"),
        (b"SECRETm3x7\nSECRETm3x7", "no API key"),
        (b"SECRETm3x7\x00", "no API key"),
        ("SECRETm3x7ä".encode(), "no API key"),
        (b"SECRETm3x7" * 2000, "no API key"),
    ],
)
def test_a_file_without_a_key(tmp_path: Path, content: bytes, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        read_key_file(key_file(tmp_path, content))
    assert caught.value.next_step
    assert KEY not in str(caught.value)


def test_a_file_that_is_not_there_or_is_none(tmp_path: Path) -> None:
    for path, says in ((tmp_path / "none", "does not exist"), (tmp_path, "IsADirectory"), ("a\0b", "ValueError")):
        with pytest.raises(ConfigurationError, match=says) as caught:
            read_key_file(path)
        assert caught.value.next_step


def test_a_file_this_user_may_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = key_file(tmp_path, b"SECRETm3x7", 0)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    if os.access(path, os.R_OK):  # root may read everything
        monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ConfigurationError, match="PermissionError"):
        read_key_file(path)


def test_a_file_everyone_may_read_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert read_key_file(key_file(tmp_path, b"SECRETm3x7", 0o644)) == KEY
    assert "may be read by every user" in caplog.text
    assert KEY not in caplog.text


def test_a_header_for_each_kind_of_endpoint() -> None:
    assert key_headers(KEY, "Authorization") == {"Authorization": f"Bearer {KEY}"}
    assert key_headers(KEY, "authorization") == {"authorization": f"Bearer {KEY}"}
    assert key_headers(KEY, "api-key") == {"api-key": KEY}
    assert key_headers(None, "api-key") == key_headers("", "Authorization") == {}


@pytest.mark.parametrize("name", ["", "api key", "api-key:", "api\nkey", "Host", "Content-Length", "ä"])
def test_a_header_that_is_none_for_a_key(name: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        key_headers(KEY, name)
    assert KEY not in str(caught.value)
