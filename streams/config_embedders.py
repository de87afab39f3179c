"""What a version's part of the configuration says: its model, the endpoints that serve it, how text is cut and counted.

It must never read a file or open a connection; paths in it are relative to the configuration file.
"""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from streams.chunking import Chunking
from streams.config_operation import TIERS
from streams.config_types import Count, FilePath, HttpUrl, NgramRange, Rate, Seconds, Secret, Strict, Whole, wrong

Text = Annotated[str, Field(min_length=1)]
Lane = Literal["live", "replay", "query", "listed", "newest", "rest"]
LANES: tuple[Lane, ...] = ("live", "query", *TIERS)


def address_of(url: str) -> str:
    """One spelling of an address: scheme and host in small letters, the port written, no slash at the end; "" for
    what is no address, or holds more than one."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
    except ValueError:
        return ""
    if parts.query or parts.fragment or "@" in parts.netloc:
        return ""
    return f"{parts.scheme}://{parts.hostname}:{port}{parts.path.rstrip('/')}"


class HashingEmbedder(Strict):
    """No model, no network. `char_ngrams` null: words only; `word_ngrams` null: character n-grams only."""

    provider: Literal["hashing"] = "hashing"
    word_ngrams: NgramRange | None = (1, 2)
    char_ngrams: NgramRange | None = (3, 5)
    sublinear: bool = True
    seed: Annotated[Whole, Field(ge=0, lt=2**32)] = 0

    @model_validator(mode="after")
    def _ranges(self) -> HashingEmbedder:
        for name, ngrams in (("word_ngrams", self.word_ngrams), ("char_ngrams", self.char_ngrams)):
            if ngrams is not None and ngrams[0] > ngrams[1]:
                raise wrong("ends below where it begins", "[smallest, largest]", name)
        if self.word_ngrams is None and self.char_ngrams is None:
            raise wrong("has neither word_ngrams nor char_ngrams", "at least one of them")
        return self


class Endpoint(Strict):
    """One address that serves a model over HTTP, and how it wants to be asked.

    `concurrency`: most requests in flight, below which the best number is found while it runs. `rank`: endpoints of a
    higher one are used when all of a lower one are away, or with `overflow` also when they are full; `weight`: shares
    within a rank. `lanes`: which work goes there, all by default; replay means each of its tiers.
    `price_per_million_tokens`: USD, else from `prices`.
    `ca_file`: the authorities to trust instead of the public ones.
    """

    url: HttpUrl
    model: Text
    revision: str = ""
    api_key: Secret | None = None
    ca_file: FilePath | None = None
    http2: bool = True
    timeout_s: Seconds = 30.0
    max_batch: Count = 32
    max_batch_characters: Count | None = None
    max_batch_tokens: Count | None = None
    requests_per_minute: Rate | None = None
    tokens_per_minute: Rate | None = None
    concurrency: Annotated[Whole, Field(ge=1, le=1024)] | None = None
    price_per_million_tokens: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    rank: Annotated[Whole, Field(ge=0, le=100)] = 0
    weight: Rate = 1.0
    overflow: bool = False
    lanes: Annotated[list[Lane], Field(min_length=1)] | None = None

    @property
    def addresses(self) -> frozenset[str]:
        """What it may be called by, as `address_of` writes it."""
        return frozenset({address_of(self.url)})


class TeiEmbedder(Endpoint):
    """HuggingFace Text Embeddings Inference, or any endpoint of its shape at `path`. `model` and `revision` are what
    the endpoint serves, e.g. of its /info. `truncate`: the endpoint cuts long texts, which nobody can count."""

    provider: Literal["tei"] = "tei"
    path: Annotated[str, Field(pattern="^/[A-Za-z0-9._~/-]*$")] = "/embed"
    truncate: bool = False

    @property
    def addresses(self) -> frozenset[str]:
        """With the path or without."""
        return frozenset({address_of(self.url), address_of(self.url + self.path)})


class OpenAIEmbedder(Endpoint):
    """POST {url}/embeddings: OpenAI, vLLM, infinity, Ollama, LiteLLM; Azure with `api_version`, whose url is the
    deployment's. `send_dimensions`: ask the model for the version's dimensions, which not every model can."""

    provider: Literal["openai"] = "openai"
    max_batch: Count = 128
    encoding: Literal["float", "base64"] = "float"
    send_dimensions: bool = False
    api_version: Text | None = None


AnyEndpoint = Annotated[TeiEmbedder | OpenAIEmbedder, Field(discriminator="provider")]


class ChunkingSettings(Strict):
    """How documents are cut: at most `size` of `by`, `overlap` of them again in the next piece."""

    by: Literal["characters", "sentences", "tokens"]
    size: Count
    overlap: Annotated[Whole, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _sense(self) -> ChunkingSettings:
        if self.overlap >= self.size:
            raise wrong("is not below size", "an overlap smaller than the size", "overlap")
        return self

    @property
    def chunking(self) -> Chunking:
        return Chunking(self.by, self.size, self.overlap)


class Version(Strict):
    """One model version. `embedder` says what the model is; `fallbacks` are further endpoints of the same model.

    `tokenizer`: the model's tokenizer.json, to count, cut and chunk by tokens. `overlong`: what becomes of a text above
    `max_tokens`. `budget_usd`: most that may be spent before the version serves. `replay_rate` (documents a second),
    `concurrency` (writes in flight per lane), `batch` (documents), budget, `provenance` and the endpoints' addresses
    do not decide a vector: they are not in its envelope.
    """

    embedder: Annotated[HashingEmbedder | TeiEmbedder | OpenAIEmbedder, Field(discriminator="provider")]
    fallbacks: list[AnyEndpoint] = Field(default_factory=list)
    dimensions: Annotated[Whole, Field(ge=1, le=65535)]
    metric: Literal["cosine", "dot", "l2-squared"] = "cosine"
    quantization: Literal["none"] = "none"
    normalize: bool = True
    document_prefix: str = ""
    query_prefix: str = ""
    tokenizer: FilePath | None = None
    max_tokens: Count | None = None
    overlong: Literal["dead_letter", "truncate"] = "dead_letter"
    chunking: ChunkingSettings | None = None
    budget_usd: Rate | None = None
    provenance: dict[str, str] = Field(default_factory=dict)
    replay_rate: Rate | None = None
    concurrency: Annotated[Whole, Field(ge=1, le=256)] = 2
    batch: Annotated[Whole, Field(ge=1, le=10_000)] = 64

    @model_validator(mode="after")
    def _whole(self) -> Version:
        if self.fallbacks and isinstance(self.embedder, HashingEmbedder):
            raise wrong("stands beside hashing, which is never away", "fallbacks with an endpoint only", "fallbacks")
        if self.overlong == "truncate" and (self.tokenizer is None or self.max_tokens is None):
            raise wrong("needs to count tokens", "overlong: truncate with tokenizer and max_tokens", "overlong")
        if self.chunking is not None and self.chunking.by == "tokens" and self.tokenizer is None:
            raise wrong("needs to count tokens", "chunking by tokens with a tokenizer", "chunking")
        served = {lane for endpoint in self.endpoints for lane in endpoint.lanes or LANES}
        served |= set(TIERS) if "replay" in served else set()
        if self.endpoints and (idle := [lane for lane in LANES if lane not in served]):
            raise wrong(
                f"leaves no endpoint to {', '.join(idle)}",
                f"an endpoint for each of live, query and replay, or for each of its tiers {', '.join(TIERS)}",
            )
        return self

    @property
    def endpoints(self) -> list[TeiEmbedder | OpenAIEmbedder]:
        """The first is the one that says what the model is."""
        return [] if isinstance(self.embedder, HashingEmbedder) else [self.embedder, *self.fallbacks]
