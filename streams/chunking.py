"""How a version cuts a document's text into the pieces that are embedded; part of its envelope.

Pure: the same text and envelope give the same chunks on every machine, and there is always at least one. The pinned
versions of semantic-text-splitter and sentencex decide where cuts fall: never raise them unnoticed.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import sentencex
from semantic_text_splitter import TextSplitter

from connectors.errors import ConfigurationError
from streams.tokens import Tokenizer, encodable

Span = tuple[int, int]

_NONE = "none"
_UNITS = ("characters", "sentences", "tokens")
_NUMBER = "(0|[1-9][0-9]{0,8})"
_CANONICAL = re.compile(rf"(characters|sentences):{_NUMBER}:{_NUMBER}|(tokens):{_NUMBER}:{_NUMBER}:([0-9a-f]{{12}})")
_KNOWN = "use none, characters, sentences or tokens, with a size and an overlap smaller than it"
_WINDOW = 20_000  # characters a look for sentences: in a text of nothing but opening brackets it costs their square


class Chunker(Protocol):
    """`splits`: whether a document may ever have more than one chunk; where not, no surplus is ever looked for."""

    splits: bool

    def split(self, text: str) -> list[str]:
        """At least one piece, in reading order."""
        ...


@dataclass(frozen=True, slots=True)
class Chunking:
    """What a configuration says: `by` none, characters, sentences or tokens; at most `size` of them in a piece, at
    most `overlap` of them again in the next. Raises ConfigurationError for values that make no sense."""

    by: str = _NONE
    size: int = 0
    overlap: int = 0

    def __post_init__(self) -> None:
        if self.by == _NONE:
            if self.size or self.overlap:
                raise ConfigurationError("chunking none has no size and no overlap", next_step=_KNOWN)
        elif self.by not in _UNITS:
            raise ConfigurationError(f"chunking by {self.by!r} is not known", next_step=_KNOWN)
        elif not 1 <= self.size < 10**9 or not 0 <= self.overlap < self.size:
            raise ConfigurationError(
                f"chunking by {self.by} with size {self.size} and overlap {self.overlap} cannot be done",
                next_step="set a size of at least 1, and an overlap of at least 0 and smaller than the size",
            )

    def canonical(self, tokenizer_id: str | None = None) -> str:
        """As it stands in the envelope. Tokens need the tokenizer's id; the others ignore it."""
        if self.by == _NONE:
            return _NONE
        text = f"{self.by}:{self.size}:{self.overlap}"
        if self.by != "tokens":
            return text
        if tokenizer_id is None:
            raise _no_tokenizer()
        return f"{text}:{tokenizer_id}"

    @staticmethod
    def parse(canonical: str) -> tuple[Chunking, str | None]:
        """The inverse of `canonical`, with the tokenizer's id. Raises ConfigurationError for any other spelling."""
        if canonical == _NONE:
            return Chunking(), None
        if (match := _CANONICAL.fullmatch(canonical)) is None:
            raise ConfigurationError(f"chunking {canonical[:80]!r} is not known", next_step=_KNOWN)
        by, size, overlap, tokens, token_size, token_overlap, tokenizer_id = match.groups()
        return Chunking(by or tokens, int(size or token_size), int(overlap or token_overlap)), tokenizer_id


class WholeText:
    """Chunking `none`: one object a document."""

    splits = False

    def split(self, text: str) -> list[str]:
        return [text]


class Pieces:
    """The pieces that `cut` finds, without the white space around them; a blank text is one piece, as it is.

    Blocks: 0.02 us a character, with tokens 1.3 us. Beyond some 2,000 characters by tokens in one go, or 100,000 by the
    others, a thread is right; all three libraries release the GIL for most of their time.
    """

    splits = True

    def __init__(self, cut: Callable[[str], Iterable[Span]]) -> None:
        self._cut = cut

    def split(self, text: str) -> list[str]:
        return [text[begin:end] for begin, end in _trimmed(text, self._cut(encodable(text)))] or [text]


def make_chunker(chunking: str, tokenizer: Tokenizer | None = None) -> Chunker:
    """The chunker an envelope names; `tokenizer` is looked at for tokens only.

    Raises ConfigurationError when the chunking is not known, or its tokenizer is missing or another one.
    """
    wanted, tokenizer_id = Chunking.parse(chunking)
    if wanted.by == _NONE:
        return WholeText()
    if wanted.by == "characters":
        splitter = TextSplitter(wanted.size, wanted.overlap)
        return Pieces(lambda text: _found(splitter, text))
    if wanted.by == "sentences":
        return Pieces(lambda text: _by_sentences(text, wanted.size, wanted.overlap))
    if tokenizer is None:
        raise _no_tokenizer()
    if tokenizer.id != tokenizer_id:
        raise ConfigurationError(
            f"the tokenizer file is {tokenizer.id}, but the version was built with {tokenizer_id}",
            next_step="put back the tokenizer file the version was built with, or declare a new version for this one",
        )
    if wanted.size - tokenizer.special <= wanted.overlap:
        raise ConfigurationError(
            f"chunks of {wanted.size} tokens, of which the model adds {tokenizer.special} itself, leave no room beside "
            f"an overlap of {wanted.overlap}",
            next_step=f"set a size above {wanted.overlap + tokenizer.special}, or a smaller overlap",
        )
    return Pieces(lambda text: _by_tokens(text, wanted.size, wanted.overlap, tokenizer))


def _no_tokenizer() -> ConfigurationError:
    return ConfigurationError(
        "chunking by tokens needs the model's tokenizer", next_step="set the version's tokenizer to a tokenizer.json"
    )


def _trimmed(text: str, spans: Iterable[Span]) -> Iterator[Span]:
    for begin, end in spans:
        piece = text[begin:end]
        if stripped := len(piece.strip()):
            begin += len(piece) - len(piece.lstrip())
            yield begin, begin + stripped


def _found(splitter: TextSplitter, text: str) -> Iterator[Span]:
    for begin, piece in splitter.chunk_indices(text):
        yield begin, begin + len(piece)


def _by_sentences(text: str, size: int, overlap: int) -> Iterator[Span]:
    sentences = list(_trimmed(text, _sentences(text)))
    for first in range(0, max(1, len(sentences) - overlap), size - overlap):
        if group := sentences[first : first + size]:
            yield group[0][0], group[-1][1]


def _sentences(text: str) -> Iterator[Span]:
    """By sentencex: unlike UAX #29 it knows abbreviations ("Dr. Smith"), and it is some thousand times faster than
    that in Python. Lengths are counted, not trusted: the last one reaches the end of the text whatever was returned."""
    begin = 0
    while begin < len(text):
        stop = min(begin + _WINDOW, len(text))
        lengths = [len(sentence) for sentence in sentencex.segment("en", text[begin:stop])]
        if stop < len(text) and len(lengths) > 1:
            lengths.pop()  # cut off by the window: the next look begins with it
        elif len(lengths) > 0:
            lengths[-1] = stop - begin - sum(lengths[:-1])
        for length in lengths if any(lengths) else [stop - begin]:
            yield begin, begin + length
            begin += length


def _by_tokens(text: str, size: int, overlap: int, tokenizer: Tokenizer) -> Iterator[Span]:
    """The text is tokenized once, and the splitter asks how many tokens begin within a piece: the same cuts as when it
    tokenizes every candidate itself, in an eighth of the time. Then each piece is counted alone, as the model will."""
    starts = [begin for begin, _ in tokenizer.spans(text)]

    def inside(piece: str) -> int:
        at = text.find(piece)  # of equal pieces the first will do: they hold equal tokens but for their edges
        return bisect_left(starts, at + len(piece)) - bisect_left(starts, at)

    splitter = TextSplitter.from_callback(inside, size - tokenizer.special, overlap)
    spans = list(_trimmed(text, _found(splitter, text)))
    cut_until = 0
    for (begin, end), counted in zip(spans, tokenizer.count([text[b:e] for b, e in spans]), strict=True):
        if counted <= size and begin >= cut_until:
            yield begin, end
            continue
        parts = list(_cut_down(text, max(begin, cut_until), end, size, tokenizer))
        cut_until = end if len(parts) > 1 else cut_until  # the next piece does not overlap with what was cut once more
        yield from parts


def _cut_down(text: str, begin: int, end: int, size: int, tokenizer: Tokenizer) -> Iterator[Span]:
    while span := next(_trimmed(text, [(begin, end)]), None):
        begin, end = span
        if tokenizer.count([text[begin:end]])[0] <= size:
            yield span
            return
        stop = begin + max(1, tokenizer.cut(text[begin:end], size))  # a single character is never cut
        yield begin, stop
        begin = stop
