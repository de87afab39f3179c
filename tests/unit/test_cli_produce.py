"""Events from files: what a line may be, what stops the reading, and that nothing behind a fault gets through."""

from __future__ import annotations

import gzip
import io
import json
import os
import signal
import threading
import time
from pathlib import Path

import orjson
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from connectors.errors import ContentRejected
from streams.cli.event_file import DocumentEvent, open_events, parse_event, read_lines
from streams.cli.produce import _Events

LINES = [json.dumps({"key": f"k{i}", "value": {"n": i}, "timestamp_ms": 1000 + i}) for i in range(10)]
TEXT = "\n".join(LINES).encode() + b"\n"


def write(path: Path, content: bytes) -> Path:
    if path.suffix == ".gz":
        content = gzip.compress(content)
    elif path.suffix == ".zst":
        half = len(content) // 2  # two frames, as `cat a.zst b.zst` makes them
        content = b"".join(zstandard.compress(part) for part in (content[:half], content[half:]))
    path.write_bytes(content)
    return path


def events(path: Path, *, skip: int = 0, limit: int | None = None, rate: float | None = None) -> _Events:
    return _Events(str(path), skip=skip, limit=limit, rate=rate)


@pytest.mark.parametrize("name", ["e.jsonl", "e.jsonl.gz", "e.jsonl.zst"])
def test_every_form_reads_the_same(tmp_path: Path, name: str) -> None:
    found = list(events(write(tmp_path / name, TEXT)))
    assert found == [DocumentEvent(b"k%d" % i, b'{"n":%d}' % i, 1000 + i) for i in range(10)]


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(TEXT)))
    assert len(list(events(Path("-")))) == 10


def test_skip_and_limit(tmp_path: Path) -> None:
    path = write(tmp_path / "e.jsonl", b"\n" + TEXT)  # a blank line is no event
    assert [event.key for event in events(path, skip=3, limit=2)] == [b"k3", b"k4"]
    assert list(events(path, limit=0)) == []
    assert list(events(path, skip=100)) == []


def test_null_deletes_and_a_time_is_optional() -> None:
    assert parse_event(1, b'{"key":"a","value":null}') == DocumentEvent(b"a", None, None)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"nonsense", "not JSON"),
        (b"[1]", "not a JSON object"),
        (b'{"value":{}}', "no key"),
        (b'{"key":7,"value":{}}', "the key is not a string"),
        (b'{"key":"a"}', "no value"),
        (b'{"key":"a","valu":null}', "unknown field 'valu'"),
        (b'{"key":"a","value":{},"timestamp_ms":"soon"}', "timestamp_ms"),
        (b'{"key":"a","value":{},"timestamp_ms":true}', "timestamp_ms"),
        (b'{"key":"a","value":{},"timestamp_ms":-5}', "timestamp_ms"),
        (b'{"key":"\xff","value":{}}', "not JSON"),
    ],
)
def test_malformed_lines_are_named_without_their_text(line: bytes, problem: str) -> None:
    with pytest.raises(ContentRejected, match=f"line 12: {problem}") as raised:
        parse_event(12, line)
    assert raised.value.next_step


def test_nothing_behind_a_malformed_line_gets_through(tmp_path: Path) -> None:
    some = events(write(tmp_path / "e.jsonl", b"\n".join([*(one.encode() for one in LINES[:3]), b"oops", TEXT])))
    assert len(list(some)) == 3
    assert some.fault is not None
    assert some.fault.message.startswith("line 4: ")


@pytest.mark.parametrize("name", ["e.jsonl.gz", "e.jsonl.zst"])
def test_a_damaged_file_is_a_fault_not_an_end(tmp_path: Path, name: str) -> None:
    content = b"\n".join(orjson.dumps({"key": os.urandom(8).hex(), "value": {}}) for _ in range(5000)) + b"\n"
    path = write(tmp_path / name, content)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 4 : len(raw) // 4 + 64] = bytes(64)
    path.write_bytes(raw)
    some = events(path)
    assert len(list(some)) < 5000
    assert some.fault is not None


def test_a_line_is_never_read_beyond_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.cli.event_file.MAX_LINE_BYTES", 50)
    with pytest.raises(ContentRejected, match="longer than"):
        list(read_lines(io.BytesIO(b"x" * 60)))


def test_the_rate_is_held(tmp_path: Path) -> None:
    began = time.monotonic()
    assert len(list(events(write(tmp_path / "e.jsonl", TEXT), rate=50))) == 10
    assert time.monotonic() - began >= 9 / 50


def test_an_interrupt_ends_the_wait_and_keeps_the_count(tmp_path: Path) -> None:
    some = events(write(tmp_path / "e.jsonl", TEXT), rate=0.5)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    before = signal.getsignal(signal.SIGINT)
    with some.until_interrupted():
        timer.start()
        found = list(some)
    assert some.interrupted
    assert len(found) == 1
    assert signal.getsignal(signal.SIGINT) is before


def test_the_file_is_closed_when_the_reading_stops(tmp_path: Path) -> None:
    with open_events(str(write(tmp_path / "e.jsonl.zst", TEXT))) as file:
        assert next(read_lines(file))[0] == 1
    assert file.closed


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(st.text(), _VALUES, st.none() | st.integers(1, 2**62))
def test_what_is_written_is_what_is_sent(key: str, value: object, at: int | None) -> None:
    line = orjson.dumps({"key": key, "value": value, **({"timestamp_ms": at} if at else {})})
    event = parse_event(1, line)
    assert event.key == key.encode()
    assert event.timestamp_ms == at
    assert (None if event.value is None else orjson.loads(event.value)) == value
