"""What `crossfade init` was told, as the text of a configuration file with comments.

Pure. It must never hold a secret: only where one stands, `${NAME}` or `file:/path`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import yaml

from streams.config_types import PropertyType
from streams.field_sample import SeenField

_PLAIN = re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_./:-]*")
_REFERENCE = re.compile(r"\$\{[A-Za-z_][A-Za-z0-9_]*\}|file:\S+")
_OWN = ("commands", "state", "progress")
_SECRET_SETTING = re.compile(r"password|secret|token|key\.pem|credentials", re.IGNORECASE)
_PREFIXES: Mapping[str, tuple[str, str]] = {
    "e5-": ("passage: ", "query: "),
    "nomic-embed-text": ("search_document: ", "search_query: "),
}
_COMMENT_AT = 34


@dataclass(frozen=True, slots=True)
class Model:
    """A version's model. `api_key`: a reference; `price`: USD for a million tokens."""

    provider: str
    dimensions: int
    url: str = ""
    model: str = ""
    revision: str = ""
    api_key: str = ""
    price: float | None = None
    max_batch: int | None = None
    max_tokens: int | None = None
    document_prefix: str = ""
    query_prefix: str = ""


@dataclass(frozen=True, slots=True)
class Draft:
    """Everything the file will say. `kafka`, `weaviate_http` and `weaviate_grpc` empty: what `crossfade up` starts."""

    topic: str
    collection: str
    version: str
    fields: Sequence[str]
    properties: Mapping[str, PropertyType]
    model: Model
    kafka: str = ""
    client: Mapping[str, str] = field(default_factory=dict)
    topic_prefix: str = "crossfade"
    weaviate_http: str = ""
    weaviate_grpc: str = ""
    weaviate_api_key: str = ""


def is_reference(text: str) -> bool:
    """Whether this says where a secret stands, rather than being one."""
    return _REFERENCE.fullmatch(text) is not None


def is_secret_setting(name: str) -> bool:
    """Whether the value of this librdkafka setting must not stand in a file."""
    return _SECRET_SETTING.search(name) is not None and not name.endswith(".location")


def collection_name(topic: str) -> str:
    """A collection for a topic: its last part, in the characters that are allowed."""
    words = re.sub(r"[^a-z0-9]+", "-", topic.rpartition(".")[2].lower()).strip("-")
    return words[:48] or "documents"


def prefixes(model: str) -> tuple[str, str]:
    """What this family of models wants before documents and before queries; empty where nothing is known."""
    name = model.lower()
    if "instruct" in name:
        return "", ""
    return next((pair for part, pair in _PREFIXES.items() if part in name), ("", ""))


def document_topics(names: Iterable[str]) -> list[str]:
    """Without the brokers' own topics, and without those of any Crossfade in the cluster, whatever its prefix."""
    there = set(names)
    crossfades = {name.rpartition(".")[0] for name in there if name.endswith(".state")}
    crossfades = {prefix for prefix in crossfades if all(f"{prefix}.{own}" in there for own in _OWN)}
    own = {f"{prefix}.{last}" for prefix in crossfades for last in (*_OWN, "dead-letters", "journal")}
    return sorted(name for name in there - own if not name.startswith("_"))


def yaml_text(draft: Draft, seen: Sequence[SeenField]) -> str:
    """The whole file. Fields that were seen and not chosen stand in it as comments."""
    lines = [
        "# Crossfade's configuration, written by `crossfade init`. config/crossfade.yaml of the project has all.",
        "#",
        "# ${NAME} is taken from the environment, file:/path from a file: secrets never stand here themselves.",
        "",
        *_kafka(draft),
        "",
        *_weaviate(draft),
        "",
        "collections:",
        *_key(1, draft.collection, "", "the name that commands use"),
        *_key(2, "topic", _scalar(draft.topic), "record key = document id, value = JSON object, null = delete"),
        *_key(2, "text", ""),
        *_key(3, "fields", _list(draft.fields), "what is embedded, in this order"),
        '      # template: "{title}: {text}"  # how the fields are joined; else by a blank line',
        *_properties(draft, seen),
        *_key(2, "store_text", "true", "the embedded text is kept beside the vector"),
        "    # gate:",
        "    #   golden: golden.jsonl          # judged queries: what `evaluate` and `cutover` measure a version with",
        "",
        "    # One entry for each model. Adding one, with a worker running, starts its build. What decides a vector",
        "    # (model, dimensions, normalize, prefixes, text, ...) is fixed then: to change it, add another version.",
        *_key(2, "versions", ""),
        *_key(3, draft.version, "", "a-z, 0-9 and _"),
        *_version(draft.model),
    ]
    return "\n".join(lines) + "\n"


def _kafka(draft: Draft) -> list[str]:
    lines = ["kafka:"]
    if draft.kafka:
        lines += _key(1, "bootstrap_servers", _scalar(draft.kafka))
    else:
        lines.append("  # bootstrap_servers: kafka-1:9092   # without it: what `crossfade up` started")
    lines += _key(1, "topic_prefix", _scalar(draft.topic_prefix), "of Crossfade's own topics and consumer groups")
    if draft.client:
        lines += _key(1, "client", "", "further librdkafka settings; all treated as secret")
        for name, value in draft.client.items():
            lines += _key(2, _scalar(name), value if is_reference(value) else _scalar(value))
    return lines


def _weaviate(draft: Draft) -> list[str]:
    if not draft.weaviate_http:
        return [
            "# weaviate:                       # without it: what `crossfade up` started",
            "#   http: https://weaviate.example.com",
            "#   grpc: weaviate.example.com:50051",
            "#   api_key: ${WEAVIATE_API_KEY}",
        ]
    lines = ["weaviate:", *_key(1, "http", _scalar(draft.weaviate_http), "https means TLS on both")]
    lines += _key(1, "grpc", _scalar(draft.weaviate_grpc))
    return lines + (_key(1, "api_key", draft.weaviate_api_key) if draft.weaviate_api_key else [])


def _properties(draft: Draft, seen: Sequence[SeenField]) -> list[str]:
    known = {one.name: one for one in seen}
    lines = _key(
        2,
        "properties",
        "" if draft.properties else "{}",
        "kept beside the vector: text, keyword, int, number, bool, date (RFC 3339)",
    )
    for name, kind in draft.properties.items():
        lines += _key(3, _scalar(name), kind, _share(known.get(name)))
    for one in seen:
        if one.name not in draft.properties and one.name not in draft.fields and one.kind is not None:
            lines += [f"      # {line.strip()}" for line in _key(3, _scalar(one.name), one.kind, _share(one))]
    return lines


def _share(one: SeenField | None) -> str:
    return f"in {one.share:.0%} of the sampled documents" if one is not None else ""


def _version(model: Model) -> list[str]:
    lines = _key(4, "embedder", "")
    if model.provider == "hashing":
        lines += _key(5, "provider", "hashing", "pieces of words, hashed: no model, no network, modest quality")
        lines += _key(5, "word_ngrams", "[1, 2]", "words and pairs of words")
        lines += _key(5, "char_ngrams", "[3, 5]", "pieces of 3 to 5 characters")
    else:
        lines += _endpoint(model)
    lines += _key(4, "dimensions", str(model.dimensions), "the length of a vector")
    lines += _key(4, "metric", "cosine", "cosine, dot, l2-squared")
    lines += _key(4, "normalize", "true", "vectors are brought to length 1")
    if model.provider != "hashing":
        said = bool(model.document_prefix or model.query_prefix)
        mark = "" if said else "# "
        pair = (model.document_prefix, model.query_prefix) if said else ("passage: ", "query: ")
        for name, value, what in zip(("document_prefix", "query_prefix"), pair, ("documents", "queries"), strict=True):
            lines += [
                f"        {mark}{line.strip()}"
                for line in _key(4, name, _quoted(value), f"what the model wants before {what}")
            ]
        for name, value, what in (
            ("tokenizer", "tokenizer.json", "the model's own, beside this file: counts tokens exactly"),
            ("max_tokens", str(model.max_tokens or 512), "what the model reads of a text; longer ones"),
            ("overlong", "truncate", "are cut there and counted, else go to the dead letters"),
            ("budget_usd", "50", "hard: the build holds before it would spend more"),
        ):
            lines += [f"        # {line.strip()}" for line in _key(4, name, value, what)]
    return lines


def _endpoint(model: Model) -> list[str]:
    kind = {"tei": "HuggingFace Text Embeddings Inference", "openai": "POST {url}/embeddings"}[model.provider]
    lines = _key(5, "provider", model.provider, kind)
    lines += _key(5, "url", _scalar(model.url))
    lines += _key(5, "model", _scalar(model.model))
    if model.revision:
        lines += _key(5, "revision", _scalar(model.revision))
    if model.api_key:
        lines += _key(5, "api_key", model.api_key)
    if model.max_batch is not None:
        lines += _key(5, "max_batch", str(model.max_batch), "texts in a request: the most this endpoint takes")
    if model.price is not None:
        lines += _key(
            5, "price_per_million_tokens", f"{model.price:g}", "USD; what plan, compare and status count with"
        )
    else:
        lines.append("          # price_per_million_tokens: 0.02  # USD; what plan, compare and status count with")
    return lines


def _key(level: int, name: str, value: str, comment: str = "") -> list[str]:
    line = f"{'  ' * level}{name}:{' ' if value else ''}{value}"
    if not comment:
        return [line]
    return [f"{line:<{_COMMENT_AT - 2}}  # {comment}"]


def _list(values: Iterable[str]) -> str:
    return f"[{', '.join(_scalar(value) for value in values)}]"


def _scalar(text: str) -> str:
    """Plain where YAML reads it back as this very text."""
    if _PLAIN.fullmatch(text) and not text.endswith(":") and yaml.safe_load(text) == text:
        return text
    return _quoted(text)


def _quoted(text: str) -> str:
    """In double quotes; `${` is written so that the reader takes it for itself."""
    escaped = text.replace("${", "$${")
    return yaml.safe_dump(escaped, default_style='"', allow_unicode=True, width=1_000_000).strip()
