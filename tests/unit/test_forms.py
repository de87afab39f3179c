"""Forms and digests in columns, against dictionaries; sorted in again and again, as where there are millions."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.protocols import Head
from streams.documents import key_digest
from streams.key_index import ABSENT
from streams.migration.forms import Digests, Forms

CHUNKS = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 2), st.integers(1, 3), st.integers(5, 6)), max_size=80)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Forms, "LEAST", 4)
    monkeypatch.setattr(Digests, "LEAST", 4)


def digest(key: int) -> bytes:
    return key_digest(str(key).encode())


@given(CHUNKS, st.integers(1, 9))
def test_forms_are_what_a_dictionary_says(chunks: list[tuple[int, int, int, int]], page: int) -> None:
    once = list({(key, chunk): (key, chunk, of, offset) for key, chunk, of, offset in chunks}.values())
    forms = Forms()
    for at in range(0, len(once), page):
        part = once[at : at + page]
        heads = [Head(uuid.uuid4(), str(key), "", chunk, of, "h", 0, offset) for key, chunk, of, offset in part]
        forms.add(heads, [digest(key) for key, *_ in part])
    stored: dict[int, dict[int, tuple[int, int]]] = {}
    for key, chunk, of, offset in once:
        stored.setdefault(key, {})[chunk] = (of, offset)
    whole = {
        key: parts[0][1]
        for key, parts in stored.items()
        if 0 in parts
        and len(parts) == parts[0][0]
        and len({offset for _, offset in parts.values()}) == 1
        and all(chunk < of for chunk, (of, _) in parts.items())
    }
    assert (len(forms), forms.whole) == (len(stored), len(whole))
    asked = [digest(key) for key in range(22)]
    assert forms.whole_offsets(asked).tolist() == [whole.get(key, ABSENT) for key in range(22)]


@given(st.lists(st.sets(st.integers(0, 30), max_size=9)))
def test_digests_are_a_set(pages: list[set[int]]) -> None:
    digests = Digests()
    for page in pages:
        digests.add([digest(key) for key in page])
    wanted = set[int]().union(*pages)
    assert digests.holds([digest(key) for key in range(32)]).tolist() == [n in wanted for n in range(32)]
    assert len(digests) == len(wanted)


def test_nothing_is_in_what_nothing_was_added_to() -> None:
    assert Digests().holds([key_digest(b"k")]).tolist() == [False]
    assert Digests().holds([]).tolist() == []
    assert Forms().whole_offsets([]).tolist() == []
    assert Forms().whole_offsets([key_digest(b"k")]).tolist() == [ABSENT]
