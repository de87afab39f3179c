"""Token counts by a tokenizer file, cuts at token borders, and the estimate that stands in for a tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.errors import ConfigurationError
from streams.tokens import TokenEstimate, Tokenizer, load_tokenizer
from tests.unit.tokenizers import byte_level, word_level

WORDS, BYTES = Tokenizer(word_level()), Tokenizer(byte_level())
TEXTS = st.text(max_size=60) | st.lists(st.sampled_from(["the", "quick", " ", "\n", "é", "😀", "fox."])).map("".join)


def test_a_file_is_known_by_its_content(tmp_path: Path) -> None:
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    first.write_bytes(word_level())
    second.write_bytes(word_level() + b"\n")
    assert load_tokenizer(first).id == load_tokenizer(first).id
    assert load_tokenizer(first).id != load_tokenizer(second).id
    assert len(load_tokenizer(first).id) == 12
    assert int(load_tokenizer(first).id, 16) >= 0


def test_counts_include_what_the_model_adds() -> None:
    assert WORDS.special == 2
    assert WORDS.count(["the quick fox", "", "the"]) == [5, 2, 3]
    assert WORDS.count([]) == []
    assert BYTES.special == 0
    assert BYTES.count(["😀"]) == [4]


def test_truncation_and_padding_of_the_file_do_not_bend_the_count() -> None:
    content = json.loads(word_level())
    content["truncation"] = {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    content["padding"] = {
        "strategy": {"Fixed": 4},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "[UNK]",
    }
    tokenizer = Tokenizer(json.dumps(content).encode())
    assert tokenizer.count(["the " * 50, "the"]) == [52, 3]
    assert len(tokenizer.spans("the " * 50)) == 50


def test_a_cut_falls_on_a_token_border() -> None:
    assert WORDS.truncate("the quick  fox\n", 5) == ("the quick  fox\n", False)
    assert WORDS.truncate("the quick  fox\n", 4) == ("the quick", True)
    assert WORDS.truncate("the quick", 2) == ("", True)
    assert BYTES.truncate("a😀b", 4) == ("a", True)  # a character of four tokens stays whole
    assert BYTES.truncate("a😀b", 5) == ("a😀", True)


def test_a_beginning_that_counts_more_alone_is_cut_shorter() -> None:
    content = json.loads(byte_level())
    content["normalizer"] = {"type": "Replace", "pattern": {"Regex": "q$"}, "content": "zzz"}
    tokenizer = Tokenizer(json.dumps(content).encode())
    assert tokenizer.count(["zqzqz", "zqzq"]) == [5, 6]  # a q at the end alone is three tokens
    assert tokenizer.truncate("zqzqzqzq", 4) == ("zqz", True)


@pytest.mark.parametrize("tokenizer", [WORDS, BYTES], ids=["words", "bytes"])
@given(text=TEXTS, most=st.integers(1, 30))
def test_truncation_keeps_a_beginning_that_fits(tokenizer: Tokenizer, text: str, most: int) -> None:
    kept, cut = tokenizer.truncate(text, most)
    assert text.startswith(kept)
    assert cut == (tokenizer.count([text])[0] > most)
    if not cut:
        assert kept == text
    elif kept:
        assert tokenizer.count([kept])[0] <= most
        assert kept == kept.rstrip()


@given(st.integers(1, 40))
def test_truncation_keeps_as_much_as_fits(most: int) -> None:
    kept, _ = WORDS.truncate("the quick fox " * 10, most + 2)
    assert WORDS.count([kept])[0] == min(most, 30) + 2


def test_a_very_long_text_is_cut_as_a_short_one() -> None:
    spaced = "fox" + " " * 5000 + "the quick " * 50_000
    assert WORDS.truncate(spaced, 5) == ("fox" + " " * 5000 + "the quick", True)
    assert WORDS.truncate(spaced[:5006], 5) == (spaced[:5006], False)


def test_lone_surrogates_are_counted_not_refused() -> None:
    assert WORDS.count(["the \ud800"]) == [4]
    assert WORDS.truncate("the \ud800 fox", 4) == ("the \ud800", True)


def test_a_file_that_is_missing_or_no_tokenizer_is_named(tmp_path: Path) -> None:
    pointer = tmp_path / "tokenizer.json"
    for path in (tmp_path / "missing.json", tmp_path):
        with pytest.raises(ConfigurationError, match="cannot be read") as caught:
            load_tokenizer(path)
        assert str(path) in caught.value.message
        assert "tokenizer.json" in caught.value.next_step
    for content in (b"version git-lfs 7f3a", b"", b"{}", b'{"secret": 1}', b"\xff\xfe"):
        pointer.write_bytes(content)
        with pytest.raises(ConfigurationError, match=r"is not a HuggingFace tokenizer\.json") as caught:
            load_tokenizer(pointer)
        assert str(pointer) in caught.value.message
        assert "secret" not in str(caught.value)
        assert "Git LFS" in caught.value.next_step


def test_the_first_estimate_is_a_quarter_of_the_bytes_rounded_up() -> None:
    estimate = TokenEstimate()
    assert [estimate.estimate(text) for text in ("", "a", "abcd", "abcde", "日本")] == [0, 1, 1, 2, 2]


@given(st.lists(st.tuples(st.lists(st.text(max_size=50), max_size=4), st.integers(-5, 10**7))), st.text(min_size=1))
def test_an_estimate_is_never_nothing(reports: list[tuple[list[str], int]], text: str) -> None:
    estimate = TokenEstimate()
    for texts, tokens in reports:
        estimate.learn(texts, tokens)
    assert estimate.estimate(text) >= 1
    assert estimate.estimate(text) <= 20 * len(text.encode())


def test_an_estimate_comes_to_what_endpoints_report() -> None:
    estimate = TokenEstimate()
    estimate.learn(["x" * 30], 10)
    assert 3.9 < estimate.bytes_a_token < 4.0  # one small report moves it little
    for _ in range(100):
        estimate.learn(["x" * 3000], 1000)
    assert estimate.bytes_a_token == pytest.approx(3.0, rel=0.01)
    for _ in range(500):  # other documents come: the old ones fade
        estimate.learn(["x" * 6000], 1000)
    assert estimate.bytes_a_token == pytest.approx(6.0, rel=0.01)
    assert 1000 <= estimate.estimate("x" * 6000) <= 1010


@pytest.mark.parametrize(("texts", "tokens"), [([], 0), (["x" * 4000], 1), (["x" * 40], 0), (["x"], 10**6), ([""], -1)])
def test_a_report_no_tokenizer_could_make_is_ignored(texts: list[str], tokens: int) -> None:
    estimate = TokenEstimate()
    estimate.learn(texts, tokens)
    assert estimate.bytes_a_token == TokenEstimate.BYTES_A_TOKEN
