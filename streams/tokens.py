"""How many tokens a text costs a model: by its own tokenizer file, or by an estimate that learns from the endpoint.

It must never change a text but by cutting its end, and never let the file's own truncation or padding bend a count.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer as HuggingFaceTokenizer

from connectors.errors import ConfigurationError

ID_DIGITS = 12
_SURROGATE = re.compile("[\ud800-\udfff]")
_CHARACTERS_AT_FIRST = 16  # a token, when looking for the end of a cut: no need to tokenize a megabyte to keep 512


def encodable(text: str) -> str:
    """The text with lone surrogates, which no UTF-8 library takes, as U+FFFD: every character keeps its place."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return _SURROGATE.sub("\ufffd", text)
    return text


class Tokenizer:
    """One tokenizer file. `id`: first 12 hex digits of the file's SHA-256; `special`: tokens the model adds to a text.

    May be used from several threads. Measured with MiniLM's file: about 0.5 us a character, so 60 us for 100
    characters and half a second for a megabyte; the library releases the GIL. Above 4,000 characters in one call
    (2 ms) a thread is right.
    """

    def __init__(self, content: bytes) -> None:
        """Raises ValueError when the content is no tokenizer."""
        self.id = hashlib.sha256(content).hexdigest()[:ID_DIGITS]
        try:
            self._model = HuggingFaceTokenizer.from_str(content.decode())
        except Exception as error:  # the library raises nothing narrower
            raise ValueError("not a tokenizer") from error
        self._model.no_truncation()  # many files hold both: every text would count as 128 tokens
        self._model.no_padding()
        self.special = int(self._model.num_special_tokens_to_add(False))

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, the model's special ones included."""
        encodings = self._model.encode_batch_fast([encodable(text) for text in texts], add_special_tokens=True)
        return [len(encoding) for encoding in encodings]

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where in the text each token begins and ends, in characters; special tokens left out."""
        encoding = self._model.encode(encodable(text), add_special_tokens=False)
        return [(int(begin), int(end)) for begin, end in encoding.offsets]

    def cut(self, text: str, most: int) -> int:
        """Length of the longest beginning, ending at a token and without white space at its end, that counts at most
        `most` tokens; 0 when not even one token fits."""
        spans = self.spans(text)
        kept = min(most - self.special, len(spans))
        while kept > 0:
            end = spans[kept - 1][1]
            if kept < len(spans):
                end = min(end, spans[kept][0])  # several tokens may share one character: it is left out whole
            beginning = text[:end].rstrip()
            if self.count([beginning])[0] <= most:  # alone, a beginning may fall into other tokens
                return len(beginning)
            kept -= 1
        return 0

    def truncate(self, text: str, most: int) -> tuple[str, bool]:
        """The text, or its longest beginning of at most `most` tokens, special ones included; and whether it was cut.

        What is left may be blank where `most` is no more than the special tokens: there is nothing to embed then.
        """
        size = max(1, most) * _CHARACTERS_AT_FIRST
        while (counted := self.count([text[:size]])[0]) <= 2 * most and size < len(text):
            size *= 2
        if counted <= most:
            return text, False
        return text[: self.cut(text[:size], most)], True


def load_tokenizer(path: Path) -> Tokenizer:
    """A HuggingFace tokenizer.json. Raises ConfigurationError naming the file when it is missing or is none."""
    next_step = "point the version's tokenizer at its model's tokenizer.json, as the model's repository publishes it"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"the tokenizer file {path} cannot be read: {error.strerror}", next_step=next_step
        ) from error
    try:
        return Tokenizer(content)
    except ValueError as error:
        raise ConfigurationError(
            f"the file {path} is not a HuggingFace tokenizer.json",
            next_step=f"{next_step} (the file itself, not a Git LFS pointer, vocab.txt or tokenizer_config.json)",
        ) from error


class TokenEstimate:
    """Tokens of a text where no tokenizer is configured, from its UTF-8 bytes and what endpoints have reported.

    Bytes, not characters: a token is about 4 bytes of English and 3 of Chinese, but 4 characters and 1. The ratio is
    that of all reports, older ones fading: half of a report's weight is gone after some 70,000 further tokens.
    """

    PRIOR_TOKENS = 500.0
    BYTES_A_TOKEN = 4.0
    MEMORY_TOKENS = 100_000.0

    def __init__(self) -> None:
        self._tokens = self.PRIOR_TOKENS
        self._bytes = self.PRIOR_TOKENS * self.BYTES_A_TOKEN

    @property
    def bytes_a_token(self) -> float:
        return self._bytes / self._tokens

    def estimate(self, text: str) -> int:
        """Rounded up: never 0 for a text that is not empty."""
        return -int(-_utf8_bytes(text) // self.bytes_a_token)

    def learn(self, texts: Sequence[str], tokens: int) -> None:
        """What an endpoint said these texts came to. What no tokenizer could count is no report, and is ignored."""
        reported = sum(map(_utf8_bytes, texts))
        if not reported / 16 <= tokens <= 2 * reported + 8 * len(texts) or tokens <= 0:
            return
        fade = self.MEMORY_TOKENS / (self.MEMORY_TOKENS + tokens)
        self._tokens = self._tokens * fade + tokens
        self._bytes = self._bytes * fade + max(reported, 1)


def _utf8_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
