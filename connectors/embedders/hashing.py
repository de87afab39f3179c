"""An embedder without model or network: words and pieces of words hashed into a fixed number of dimensions.

The same text gives the same bits on every machine: sums are of integers, and only correctly rounded operations follow.
It must never change what it computes without a new REVISION, or stored vectors would no longer match new ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from connectors.embedders.base import refuse_blank
from connectors.errors import ConfigurationError
from connectors.protocols import Embedded, ModelFacts, Vectors

MODEL = "crossfade-hashing"
REVISION = "1"

Ids = NDArray[np.uint64]
Ints = NDArray[np.int64]

_GROUP_CHARS = 1 << 16  # texts are worked on together up to this many characters: enough to fill the vectors
_GROUP_TEXTS = 1 << 12  # and this many texts, so that a text's number fits above the hash
_THREAD_CHARS = 1 << 13  # above about a millisecond of work the event loop should not wait for it
_HASH_BITS = np.uint64(50)
_HASH_MASK = np.uint64((1 << 50) - 1)
_MAX_WORD = 64  # characters further on count without their position
_MAX_COUNT = 4096
_ONE = 64  # the weight of a word that occurs once, as an integer


def _powers(count: int) -> Ids:
    powers, power = [], 1
    for _ in range(count):
        powers.append(power)
        power = power * 0x9E3779B97F4A7C15 % 2**64
    return np.array(powers, np.uint64)


def _log_weights() -> Ints:
    """1 + ln(count) in 64ths, by integers alone, as libraries' logarithms differ in the last bit.

    floor(64 * log2(c)) is the bit length of c**64, less one; 45426 / 65536 is ln 2.
    """
    counts = range(1, _MAX_COUNT + 1)
    return np.array([0] + [_ONE + ((((c**64).bit_length() - 1) * 45426) >> 16) for c in counts], np.int64)


def _separators() -> NDArray[np.bool_]:
    """Code points that end a word: ASCII and Latin-1 signs, general and CJK punctuation. Not Python's own tables,
    which change with the Unicode version."""
    ends = np.zeros(0x10000, np.bool_)
    ends[:0x80] = [not (chr(c).isalnum() or chr(c) == "_") for c in range(0x80)]
    ends[0x80:0xC0] = True
    ends[[0xAA, 0xB5, 0xBA]] = False
    ends[[0xD7, 0xF7]] = True
    for first, last in ((0x2000, 0x206F), (0x2190, 0x2BFF), (0x3000, 0x3004), (0x3008, 0x303F), (0xFF01, 0xFF0F)):
        ends[first : last + 1] = True
    return ends


_POWERS = _powers(_MAX_WORD)
_LOG_WEIGHTS = _log_weights()
_SEPARATORS = _separators()
_WORD_START, _WORD_END = 0x110000, 0x110001  # no character has these


def _mix(values: Ids) -> Ids:
    """The finaliser of splitmix64, in place: every bit of the input moves every bit of the output."""
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def _mix_number(number: int) -> np.uint64:
    return np.uint64(_mix(np.array([number], np.uint64))[0])


class HashingEmbedder:
    """`word_ngrams` and `char_ngrams`: (smallest, largest) n, or None for none. Character n-grams are those of each
    distinct word of a text, with marks for its start and end. `sublinear`: 1 + ln(count) instead of the count.

    float32[n, dimensions], rows of length 1. Raises ConfigurationError for options that make no sense.
    """

    max_batch = 1024

    def __init__(
        self,
        dimensions: int,
        *,
        word_ngrams: tuple[int, int] | None = (1, 2),
        char_ngrams: tuple[int, int] | None = (3, 5),
        sublinear: bool = True,
        seed: int = 0,
    ) -> None:
        for ngrams in (word_ngrams, char_ngrams):
            if ngrams is not None and not 1 <= ngrams[0] <= ngrams[1] <= 8:
                raise ConfigurationError("n-grams go from 1 to 8", next_step="write them as [smallest, largest]")
        if word_ngrams is None and char_ngrams is None:
            raise ConfigurationError("neither word nor character n-grams", next_step="give one of them")
        if dimensions < 1:
            raise ConfigurationError("dimensions below 1", next_step="give the number of dimensions, e.g. 512")
        self.dimensions = dimensions
        self._words = word_ngrams
        self._chars = char_ngrams
        self._sublinear = sublinear
        self._salt = _mix_number(seed + 1)

    async def embed(self, texts: Sequence[str]) -> Embedded:
        """Raises RejectedTexts for blank texts."""
        refuse_blank(texts)
        if sum(map(len, texts)) > _THREAD_CHARS:
            return Embedded(await asyncio.to_thread(self._embed, texts))
        return Embedded(self._embed(texts))

    async def facts(self) -> ModelFacts:
        return ModelFacts(model=MODEL, revision=REVISION)

    async def close(self) -> None:
        """Nothing is held."""

    def _embed(self, texts: Sequence[str]) -> Vectors:
        vectors = np.zeros((len(texts), self.dimensions), np.float32)
        for first, group in _groups(texts):
            vectors[first : first + len(group)] = self._embed_group(group)
        return vectors

    def _embed_group(self, texts: Sequence[str]) -> Vectors:
        chars, text_ends = _code_points(texts)
        starts, ends = _word_spans(chars)
        if len(starts) == 0:
            return self._spread(texts, [])
        text_of = np.searchsorted(text_ends, starts, side="right").astype(np.uint64)
        words = _hash_words(chars, starts, ends)
        features: list[tuple[Ids, Ints]] = []
        if self._words is not None:
            ids = words
            for n in range(1, self._words[1] + 1):
                if n > 1:
                    ids = _mix(ids[:-1] * np.uint64(0xD6E8FEB86659FD93) + words[n - 1 :])
                if n >= self._words[0]:
                    whole = text_of[: len(ids)] == text_of[n - 1 :]  # no n-gram reaches into the next text
                    keys, counts, _ = _count(ids[whole] ^ np.uint64(n), text_of[: len(ids)][whole])
                    features.append((keys, self._weigh(counts)))
        if self._chars is not None:
            keys, counts, where = _count(words, text_of)
            features.append(
                _char_ngrams(chars, starts[where], ends[where], text_of[where], self._weigh(counts), self._chars)
            )
        return self._spread(texts, features)

    def _weigh(self, counts: Ints) -> Ints:
        return _LOG_WEIGHTS[np.minimum(counts, _MAX_COUNT)] if self._sublinear else counts * _ONE

    def _spread(self, texts: Sequence[str], features: list[tuple[Ids, Ints]]) -> Vectors:
        """Each feature adds its weight, with a sign of its own, to one dimension of its text's row."""
        rows, dims = len(texts), self.dimensions
        sums = np.zeros(rows * dims)
        for keys, weights in features:
            hashes = _mix((keys & _HASH_MASK) ^ self._salt)
            places = (keys >> _HASH_BITS) * np.uint64(dims) + (hashes >> np.uint64(1)) % np.uint64(dims)
            signed = np.where(hashes & np.uint64(1), weights, -weights)
            # float64 sums of integers far below 2**53: exact, so their order cannot matter
            sums += np.bincount(places.astype(np.int64), signed, rows * dims)
        matrix = sums.reshape(rows, dims)
        for row in np.flatnonzero(~matrix.any(axis=1)).tolist():
            matrix[row] = self._fallback(texts[row])
        squares = (matrix.astype(np.int64) ** 2).sum(axis=1)
        # square root, division and the cast are correctly rounded everywhere
        vectors: Vectors = (matrix / np.sqrt(squares.astype(np.float64))[:, None]).astype(np.float32)
        return vectors

    def _fallback(self, text: str) -> NDArray[np.float64]:
        """A text of signs alone, or whose features cancel out, still needs a vector: its characters decide it."""
        row = np.zeros(self.dimensions)
        chars, _ = _code_points([text])
        place = int(_mix(np.bitwise_xor.reduce(_mix(chars + np.uint64(1)), keepdims=True) ^ self._salt)[0])
        row[place % self.dimensions] = 1.0
        return row


def _groups(texts: Sequence[str]) -> Iterator[tuple[int, Sequence[str]]]:
    first = chars = 0
    for index, text in enumerate(texts):
        if index > first and (chars + len(text) > _GROUP_CHARS or index - first == _GROUP_TEXTS):
            yield first, texts[first:index]
            first, chars = index, 0
        chars += len(text)
    if first < len(texts):
        yield first, texts[first:]


def _code_points(texts: Sequence[str]) -> tuple[Ids, Ints]:
    """Lower-cased code points of all texts with a separator after each, and where each text ends."""
    lowered = [text.lower() for text in texts]
    joined = "\0".join([*lowered, ""])
    raw = (
        np.frombuffer(joined.encode("ascii"), np.uint8)
        if joined.isascii()
        else np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), "<u4")
    )
    lengths = np.fromiter((len(text) + 1 for text in lowered), np.int64, len(lowered))
    return raw.astype(np.uint64), np.cumsum(lengths)


def _word_spans(chars: Ids) -> tuple[Ints, Ints]:
    """Start and end of every word."""
    inside = np.empty(len(chars) + 1, np.bool_)
    inside[0] = False
    np.logical_not(_SEPARATORS[np.minimum(chars, np.uint64(0xFFFF))], out=inside[1:])
    edges = np.flatnonzero(inside[1:] != inside[:-1])  # the last character is a separator: edges come in pairs
    return edges[::2], edges[1::2]


def _positions(lengths: Ints) -> tuple[Ints, Ints]:
    """For runs of these lengths laid end to end: each element's place in its run, and where each run begins."""
    begins = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum())) - np.repeat(begins, lengths), begins


def _hash_words(chars: Ids, starts: Ints, ends: Ints) -> Ids:
    """One hash a word: the sum of its characters times a power of their place, mixed."""
    lengths = ends - starts
    place, begins = _positions(lengths)
    letters = chars[np.repeat(starts, lengths) + place]
    terms = (letters + np.uint64(1)) * _POWERS[np.minimum(place, _MAX_WORD - 1)]
    return _mix(np.add.reduceat(terms, begins))


def _count(ids: Ids, text_of: Ids) -> tuple[Ids, Ints, Ints]:
    """Distinct (text, id) pairs as one number each, how often each occurs, and where it first does.

    The text's number stands above the hash, so what a text's neighbours hold cannot change its vector.
    """
    keys = (ids & _HASH_MASK) | (text_of << _HASH_BITS)
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    firsts = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1]))) if len(keys) else np.zeros(0, np.int64)
    return keys[firsts], np.diff(firsts, append=len(keys)), order[firsts]


def _char_ngrams(
    chars: Ids, starts: Ints, ends: Ints, text_of: Ids, weights: Ints, sizes: tuple[int, int]
) -> tuple[Ids, Ints]:
    """The n-grams of these words, marks included, each with its word's weight."""
    lengths = ends - starts + 2
    place, begins = _positions(lengths)
    total = len(place)
    lasts = begins + lengths - 1
    at = np.repeat(starts - 1, lengths) + place
    at[begins] = 0
    at[lasts] = 0
    letters = chars[at]
    letters[begins] = _WORD_START
    letters[lasts] = _WORD_END
    left = np.repeat(lengths, lengths) - place
    texts_above = np.repeat(text_of << _HASH_BITS, lengths)
    spread = np.repeat(weights, lengths)
    sums = np.zeros(total, np.uint64)
    keys: list[Ids] = []
    values: list[Ints] = []
    for n in range(1, sizes[1] + 1):
        sums = sums[: max(total - n + 1, 0)] + letters[n - 1 :] * _POWERS[n - 1]
        if n >= sizes[0]:
            whole = np.flatnonzero(left[: len(sums)] >= n)
            hashes = _mix(sums[whole] + np.uint64(n << 56))
            keys.append((hashes & _HASH_MASK) | texts_above[whole])
            values.append(spread[whole])
    return np.concatenate(keys), np.concatenate(values)
