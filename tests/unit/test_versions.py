"""Envelopes and fingerprints differ together, space names can be read back, and only legal moves are made."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.errors import ConfigurationError, Refused
from streams.versions import ACTIVE, TRANSITIONS, Envelope, Stage, check_transition, next_command, space_name

ENVELOPE = Envelope(
    provider="tei",
    model="m",
    revision="r",
    dimensions=4,
    text_fields=("title", "text"),
    options={"truncate": False},
)
_OPTIONS = st.dictionaries(
    st.text(max_size=3), st.none() | st.booleans() | st.integers(0, 2) | st.floats(0, 2), max_size=2
)
_ENVELOPES = st.builds(
    Envelope,
    provider=st.sampled_from(["tei", "hashing"]),
    model=st.text(max_size=2),
    revision=st.text(max_size=2),
    dimensions=st.integers(1, 3),
    text_fields=st.lists(st.text(max_size=2), max_size=2).map(tuple),
    template=st.none() | st.text(max_size=2),
    options=_OPTIONS,
    normalize=st.booleans(),
    metric=st.sampled_from(["cosine", "dot"]),
    document_prefix=st.text(max_size=2),
    query_prefix=st.text(max_size=2),
    max_tokens=st.none() | st.integers(1, 2),
)


@given(_ENVELOPES, _ENVELOPES)
def test_fingerprints_differ_exactly_when_envelopes_do(one: Envelope, other: Envelope) -> None:
    assert (one.fingerprint == other.fingerprint) == (one == other)
    assert (one == other) == (repr(one) == repr(other) or one.canonical_json() == other.canonical_json())


@given(_ENVELOPES)
def test_an_envelope_survives_its_json(envelope: Envelope) -> None:
    again = Envelope.from_json(envelope.canonical_json())
    assert again == envelope
    assert again.fingerprint == envelope.fingerprint
    assert hash(again) == hash(envelope)
    assert again.text_fields == envelope.text_fields


@pytest.mark.parametrize(
    "change",
    [
        {"provider": "x"},
        {"model": "x"},
        {"revision": "x"},
        {"dimensions": 5},
        {"text_fields": ("text", "title")},
        {"template": "{title}{text}"},
        {"options": {"truncate": True}},
        {"options": {"truncate": 0}},
        {"normalize": False},
        {"metric": "dot"},
        {"quantization": "rq"},
        {"document_prefix": "x"},
        {"query_prefix": "x"},
        {"max_tokens": 1},
        {"chunking": "x"},
    ],
    ids=str,
)
def test_every_part_decides_the_fingerprint(change: dict[str, object]) -> None:
    changed = replace(ENVELOPE, **change)  # type: ignore[arg-type]
    assert changed.fingerprint != ENVELOPE.fingerprint
    assert changed != ENVELOPE


def test_the_fingerprint_of_a_stored_envelope_never_changes() -> None:
    # spaces in the field carry fingerprints: if this fails, every one of them is orphaned
    assert ENVELOPE.canonical_json() == (
        '{"chunking":"none","dimensions":4,"document_prefix":"","max_tokens":null,"metric":"cosine","model":"m",'
        '"normalize":true,"options":{"truncate":false},"provider":"tei","quantization":"none","query_prefix":"",'
        '"revision":"r","template":null,"text_fields":["title","text"]}'
    )
    assert ENVELOPE.fingerprint == "b94b67908a7e"


@pytest.mark.parametrize("text", ["", "[]", "{}", json.dumps({"provider": "x", "later": 1}), '{"text_fields":1}'])
def test_foreign_envelopes_are_refused(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Envelope.from_json(text)
    assert caught.value.next_step


def test_space_name() -> None:
    assert space_name("Docs", "v1_2", 3, "0123456789ab") == "Docs_v1_2_3_0123456789ab"


@pytest.mark.parametrize("current", Stage)
@pytest.mark.parametrize("wanted", Stage)
def test_only_legal_transitions(current: Stage, wanted: Stage) -> None:
    if wanted in TRANSITIONS[current]:
        check_transition(current, wanted)
        return
    with pytest.raises(Refused) as caught:
        check_transition(current, wanted, collection="docs", version="v2")
    assert caught.value.next_step == next_command(current, collection="docs", version="v2")
    assert "docs" in caught.value.next_step


def test_a_serving_version_is_neither_retired_nor_aborted() -> None:
    assert {Stage.PREVIOUS} == TRANSITIONS[Stage.SERVING]
    assert Stage.RETIRED not in ACTIVE
    assert Stage.ABORTED not in ACTIVE
