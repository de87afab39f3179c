"""Chunks: nothing of the text is lost, nothing is too large, and the envelope's string says all that decides them."""

from __future__ import annotations

import hashlib
import json
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.errors import ConfigurationError
from streams.chunking import Chunker, Chunking, make_chunker
from streams.tokens import Tokenizer
from tests.unit.tokenizers import byte_level, word_level

WORDS, BYTES = Tokenizer(word_level()), Tokenizer(byte_level())
PARTS = [
    "the ",
    "quick",
    "Dr. Smith. ",
    "fox! ",
    "She sells. ",
    "\n\n",
    "\r\n",
    "。",
    "日本",
    "é",
    "e\u0301",
    "😀",
    "\u3000",
]
TEXTS = st.text(max_size=120) | st.lists(st.sampled_from([*PARTS, "\x1c", "\u200b", '"', "(", "\ud800"])).map("".join)
SIZES = st.integers(1, 25).flatmap(lambda size: st.tuples(st.just(size), st.integers(0, size - 1)))


def located(text: str, pieces: list[str]) -> list[tuple[int, int]]:
    """Where each piece stands, each as early as it can be and beginning after the one before it did."""
    spans: list[tuple[int, int]] = []
    at = -1
    for piece in pieces:
        at = text.find(piece, at + 1)
        assert at >= 0, "a piece is not in the text, or not in order"
        spans.append((at, at + len(piece)))
    return spans


def assert_nothing_lost(text: str, pieces: list[str]) -> None:
    """Every character but white space is in a piece, in order. Greedy, so that repeated words cannot mislead it."""
    assert pieces
    if not text.strip():
        assert pieces == [text]
        return
    assert all(piece.strip() == piece != "" for piece in pieces)
    reachable = {0}  # how much of the squeezed text may be covered after the pieces so far
    squeezed = "".join(text.split())
    for piece in pieces:
        solid = "".join(piece.split())
        begins = {
            begin
            for covered in reachable
            for begin in range(max(0, covered - len(solid)), covered + 1)
            if squeezed.startswith(solid, begin)
        }
        reachable = {begin + len(solid) for begin in begins}
        assert reachable, "text is missing between pieces, or they are out of order"
    assert len(squeezed) in reachable


@given(TEXTS, SIZES)
def test_characters(text: str, sizes: tuple[int, int]) -> None:
    size, overlap = sizes
    chunker = make_chunker(f"characters:{size}:{overlap}")
    pieces = chunker.split(text)
    assert_nothing_lost(text, pieces)
    assert pieces == chunker.split(text)
    if text.strip():
        assert max(map(len, pieces)) <= size
        assert sum(map(len, pieces)) <= len(text) + overlap * (len(pieces) - 1)


@given(TEXTS, SIZES)
def test_sentences(text: str, sizes: tuple[int, int]) -> None:
    size, overlap = sizes
    pieces = make_chunker(f"sentences:{size}:{overlap}").split(text)
    assert_nothing_lost(text, pieces)
    alone = make_chunker("sentences:1:0").split(text)
    step = size - overlap
    assert len(pieces) == max(1, -(-(len(alone) - overlap) // step))
    for index, piece in enumerate(pieces):
        wanted = alone[index * step : index * step + size]
        assert "".join(piece.split()) == "".join("".join(wanted).split())


@pytest.mark.parametrize("tokenizer", [WORDS, BYTES], ids=["words", "bytes"])
@given(text=TEXTS, sizes=SIZES)
def test_tokens(tokenizer: Tokenizer, text: str, sizes: tuple[int, int]) -> None:
    size, overlap = sizes[0] + tokenizer.special, sizes[1]
    chunker = make_chunker(f"tokens:{size}:{overlap}:{tokenizer.id}", tokenizer)
    pieces = chunker.split(text)
    assert_nothing_lost(text, pieces)
    assert pieces == chunker.split(text)
    if text.strip():
        for piece, counted in zip(pieces, tokenizer.count(pieces), strict=True):
            assert counted <= size or len(piece) == 1  # a character is never cut
        if tokenizer.count([text])[0] <= size:
            assert pieces == [text.strip()]


@given(st.lists(st.integers(0, 999), min_size=1, max_size=60), SIZES)
def test_tokens_overlap_no_more_than_asked(numbers: list[int], sizes: tuple[int, int]) -> None:
    size, overlap = sizes[0] + 2, sizes[1]
    text = " ".join(f"w{i}x{n}" for i, n in enumerate(numbers))  # every word differs, so places are certain
    pieces = make_chunker(f"tokens:{size}:{overlap}:{WORDS.id}", WORDS).split(text)
    for (_, end), (begin, _) in pairwise(located(text, pieces)):
        assert len(text[begin:end].split()) <= overlap


@given(st.lists(st.integers(0, 999), min_size=1, max_size=60), SIZES)
def test_characters_overlap_no_more_than_asked(numbers: list[int], sizes: tuple[int, int]) -> None:
    text = " ".join(f"w{i}x{n}" for i, n in enumerate(numbers))
    pieces = make_chunker(f"characters:{sizes[0] + 12}:{sizes[1]}").split(text)
    for (_, end), (begin, _) in pairwise(located(text, pieces)):
        assert end - begin <= sizes[1]


def test_a_piece_that_counts_more_alone_than_within_the_text_is_cut_once_more() -> None:
    merged = json.loads(byte_level())
    merged["post_processor"] = None
    merged["normalizer"] = {"type": "Prepend", "prepend": "~~~"}  # every text alone begins with three more tokens
    tokenizer = Tokenizer(json.dumps(merged).encode())
    text = "zq" * 40
    pieces = make_chunker(f"tokens:8:2:{tokenizer.id}", tokenizer).split(text)
    assert max(tokenizer.count(pieces)) <= 8
    assert len(pieces) > 1
    assert_nothing_lost(text, pieces)


def test_the_models_own_tokens_are_part_of_the_size_and_the_overlap_is_kept() -> None:
    text = "a1 a2 a3 a4 a5 a6 a7 a8"
    assert make_chunker(f"tokens:6:2:{WORDS.id}", WORDS).split(text) == ["a1 a2 a3 a4", "a3 a4 a5 a6", "a5 a6 a7 a8"]
    assert make_chunker(f"tokens:6:0:{WORDS.id}", WORDS).split(text) == ["a1 a2 a3 a4", "a5 a6 a7 a8"]


def test_sentences_know_abbreviations_paragraphs_and_other_scripts() -> None:
    split = make_chunker("sentences:1:0").split
    assert split("Dr. Smith paid 3.5 dollars. He left.\n\nNew part") == [
        "Dr. Smith paid 3.5 dollars.",
        "He left.",
        "New part",
    ]
    assert split("你好。今天好！") == ["你好。", "今天好！"]
    assert make_chunker("sentences:2:1").split("A cat. A dog. A cow.") == ["A cat. A dog.", "A dog. A cow."]


def test_sentences_are_the_same_across_the_border_of_a_look() -> None:
    sentences = [f"Sentence number {i} has some words in it." for i in range(2000)]
    assert make_chunker("sentences:1:0").split(" ".join(sentences)) == sentences


def test_a_text_made_to_be_slow_is_not() -> None:
    begin = time.perf_counter()
    pieces = make_chunker("sentences:5:1").split("([“" * 100_000)
    assert time.perf_counter() - begin < 10  # in one look: 13 seconds on an idle machine; so, less than one
    assert len("".join(pieces)) >= 300_000


def test_what_the_libraries_do_has_not_changed() -> None:
    """Chunks are part of what a space holds: if this fails after an upgrade, spaces built before it hold other chunks,
    and a version must be able to say so."""
    text = " ".join(f"Item {i}, e.g. no. {i * i}, was (briefly) seen. It cost 3.{i} euro!\n\nNext?" for i in range(40))
    seen = {
        chunking: hashlib.sha256("\0".join(make_chunker(chunking, WORDS).split(text)).encode()).hexdigest()[:12]
        for chunking in ("characters:200:20", "sentences:3:1", f"tokens:40:8:{WORDS.id}")
    }
    assert list(seen.values()) == GOLDEN


GOLDEN = ["c9f2a645852a", "87aed15ff285", "c6a0469eb53d"]


def test_only_none_never_splits() -> None:
    assert not make_chunker("none").splits
    assert make_chunker("none").split("  ") == ["  "]
    chunkers: list[Chunker] = [
        make_chunker("characters:5:0"),
        make_chunker("sentences:5:0"),
        make_chunker(f"tokens:5:0:{WORDS.id}", WORDS),
    ]
    for chunker in chunkers:
        assert chunker.splits
        assert chunker.split("") == [""]
        assert chunker.split(" \n ") == [" \n "]
        assert chunker.split(" the ") == ["the"]


@pytest.mark.parametrize("chunking", [Chunking(), Chunking("characters", 5, 4), Chunking("sentences", 1)])
def test_the_canonical_string_and_back(chunking: Chunking) -> None:
    assert Chunking.parse(chunking.canonical()) == (chunking, None)
    assert chunking.canonical("0123456789ab") == chunking.canonical()


def test_the_canonical_string_of_tokens_names_the_tokenizer() -> None:
    chunking = Chunking("tokens", 256, 32)
    assert chunking.canonical("0123456789ab") == "tokens:256:32:0123456789ab"
    assert Chunking.parse("tokens:256:32:0123456789ab") == (chunking, "0123456789ab")
    with pytest.raises(ConfigurationError, match="needs the model's tokenizer"):
        chunking.canonical()


@pytest.mark.parametrize(
    ("by", "size", "overlap"),
    [
        ("characters", 5, 5),
        ("characters", 0, 0),
        ("tokens", -1, 0),
        ("sentences", 3, -1),
        ("none", 5, 0),
        ("lines", 5, 0),
    ],
)
def test_values_that_make_no_sense_are_refused(by: str, size: int, overlap: int) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Chunking(by, size, overlap)
    assert caught.value.next_step


@pytest.mark.parametrize(
    "chunking",
    [
        "", "None", "characters", "characters:5", "characters:05:1", "characters:5:5", "characters:٥:1",
        "characters:5:1:0123456789ab", "tokens:5:1", "tokens:5:1:0123", "tokens:5:1:0123456789AB", "characters:5:1\n",
        "characters:0:0", "none:1:0", "characters:9999999999:0",
    ],
)  # fmt: skip
def test_any_other_spelling_is_refused(chunking: str) -> None:
    with pytest.raises(ConfigurationError):
        make_chunker(chunking)


def test_tokens_need_the_tokenizer_of_the_envelope_and_room() -> None:
    chunking = f"tokens:10:2:{WORDS.id}"
    with pytest.raises(ConfigurationError, match="needs the model's tokenizer"):
        make_chunker(chunking)
    with pytest.raises(ConfigurationError, match=f"is {BYTES.id}, but the version was built with {WORDS.id}") as caught:
        make_chunker(chunking, BYTES)
    assert "put back the tokenizer file" in caught.value.next_step
    with pytest.raises(ConfigurationError, match="leave no room") as caught:
        make_chunker(f"tokens:4:2:{WORDS.id}", WORDS)
    assert "above 4" in caught.value.next_step
    assert make_chunker(f"tokens:5:2:{WORDS.id}", WORDS).split("the fox the fox")[0] == "the fox the"
