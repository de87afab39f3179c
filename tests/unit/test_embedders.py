"""Beyond the contract: hashing's bits and qualities, TEI's replies and errors, memory's faults."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import json
import threading
from collections.abc import Mapping, Sequence

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.embedders.hashing import _LOG_WEIGHTS, HashingEmbedder
from connectors.embedders.http_errors import map_httpx, retry_after_s
from connectors.embedders.tei import TeiEmbedder
from connectors.errors import (
    AccessDenied,
    ConfigurationError,
    ContentRejected,
    CrossfadeError,
    NotFound,
    Terminal,
    Throttled,
    Transient,
    Unreachable,
    WrongModel,
)
from connectors.memory.embedder import MemoryEmbedder
from connectors.protocols import ModelFacts, Vectors

GOLDEN = ["The wing, in a slipstream.", "naïve Ünïcode 漢字 🚀 – 'quoted'", "a a a a b", "!?"]


Options = Mapping[str, tuple[int, int] | bool | int | None]


def embed(texts: Sequence[str], dimensions: int = 64, options: Options = {}) -> Vectors:  # noqa: B006  # never changed
    return asyncio.run(HashingEmbedder(dimensions, **options).embed(texts)).vectors  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "digest"),
    [
        ({}, "70d9fd6bed4a896d"),
        ({"word_ngrams": None}, "be8ef782256f5182"),
        ({"char_ngrams": None, "sublinear": False, "seed": 7}, "3f0a6c5637079724"),
    ],
    ids=["default", "characters", "words"],
)
def test_hashing_gives_the_same_bits_everywhere(options: Options, digest: str) -> None:
    # a change here needs a new REVISION: stored vectors would no longer match new ones
    assert hashlib.sha256(embed(GOLDEN, options=options).astype("<f4").tobytes()).hexdigest()[:16] == digest


def test_sublinear_weights_are_one_and_the_logarithm() -> None:
    counts = np.arange(1, len(_LOG_WEIGHTS))
    assert np.abs(_LOG_WEIGHTS[1:] / 64 - (1 + np.log(counts))).max() < 0.04
    assert (np.diff(_LOG_WEIGHTS) >= 0).all()


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text(min_size=1).filter(lambda text: not text.isspace()), min_size=1, max_size=6))
def test_hashing_takes_any_text_and_neighbours_change_nothing(texts: list[str]) -> None:
    together = embed(texts, 8)
    assert np.allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-6)
    for index, text in enumerate(texts):
        assert (embed([text], 8)[0] == together[index]).all()


def test_hashing_ignores_case_and_punctuation_but_not_words() -> None:
    one, same, other = embed(["Wing, in a SLIPSTREAM!", "wing in a slipstream", "heat transfer in plates"])
    assert (one == same).all()
    assert float(one @ other) < 0.5


def test_word_pairs_and_pieces_of_words_tell_texts_apart() -> None:
    words = embed(["dog bites man", "man bites dog"], options={"word_ngrams": (1, 1), "char_ngrams": None})
    pairs = embed(["dog bites man", "man bites dog"], options={"char_ngrams": None})
    assert (words[0] == words[1]).all()
    assert not np.allclose(pairs[0], pairs[1])
    pieces = embed(["aerodynamic", "aerodynamics", "propeller"], 512, {"word_ngrams": None})
    assert float(pieces[0] @ pieces[1]) > 0.7 > float(pieces[0] @ pieces[2])


def test_every_option_changes_the_vectors() -> None:
    text = ["the wing of the aeroplane and the other wing"]
    options: list[Options] = [
        {},
        {"seed": 1},
        {"sublinear": False},
        {"word_ngrams": None},
        {"word_ngrams": (1, 1)},
        {"word_ngrams": (2, 2)},
        {"char_ngrams": None},
        {"char_ngrams": (3, 3)},
    ]
    assert len({embed(text, options=option).tobytes() for option in options}) == len(options)


def test_more_dimensions_and_words_find_more_known_items() -> None:
    # docstrings without their summary line; the summary is the query
    modules = [json, asyncio, hashlib, inspect, threading, httpx, np, pytest]
    documents, queries = [], []
    for module in modules:
        for name in sorted(vars(module)):
            doc = inspect.getdoc(getattr(module, name)) or ""
            summary, _, rest = doc.partition("\n")
            if len(rest) > 200 and 20 < len(summary) < 100:
                documents.append(rest)
                queries.append(summary)
    assert len(documents) > 50

    def found(dimensions: int, options: Options) -> float:
        scores = embed(queries, dimensions, options) @ embed(documents, dimensions, options).T
        ranks = (scores > np.diag(scores)[:, None]).sum(axis=1)
        return float((ranks < 10).mean())

    small, large = found(64, {"word_ngrams": None}), found(512, {})
    assert large > small + 0.05, (small, large)


async def test_a_large_batch_leaves_the_event_loop_alone() -> None:
    where: list[int] = []

    class Spy(HashingEmbedder):
        def _embed(self, texts: Sequence[str]) -> Vectors:
            where.append(threading.get_ident())
            return super()._embed(texts)

    embedder = Spy(8)
    await embedder.embed(["short"])
    await embedder.embed(["long " * 10_000])
    assert where[0] == threading.get_ident() != where[1]


@pytest.mark.parametrize(
    "options", [{"word_ngrams": None, "char_ngrams": None}, {"word_ngrams": (2, 1)}, {"char_ngrams": (0, 3)}]
)
def test_hashing_refuses_options_without_sense(options: dict[str, tuple[int, int] | None]) -> None:
    with pytest.raises(ConfigurationError):
        HashingEmbedder(8, **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError):
        HashingEmbedder(0)


def tei(response: httpx.Response | Exception) -> TeiEmbedder:
    def answer(_: httpx.Request) -> httpx.Response:
        if isinstance(response, Exception):
            raise response
        return response

    return TeiEmbedder("http://tei.test", api_key="key", transport=httpx.MockTransport(answer))


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (429, Throttled),
        (503, Throttled),
        (408, Transient),
        (424, Transient),
        (500, Transient),
        (502, Transient),
        (400, ContentRejected),
        (413, ContentRejected),
        (422, ContentRejected),
        (401, AccessDenied),
        (403, AccessDenied),
        (404, NotFound),
        (301, ConfigurationError),
        (307, ConfigurationError),
        (405, ConfigurationError),
        (204, ConfigurationError),
    ],
)
async def test_tei_statuses(status: int, expected: type[CrossfadeError]) -> None:
    response = httpx.Response(
        status, json={"error": "quotes the secret"}, headers={"location": "http://elsewhere.test"}
    )
    with pytest.raises(CrossfadeError) as caught:
        await tei(response).embed(["secret"])
    assert type(caught.value) is expected
    assert caught.value.next_step
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "response",
    [
        httpx.Response(200, html="<html>welcome</html>"),
        httpx.Response(200, json={"data": []}),
        httpx.Response(200, json=[[1.0, 2.0]]),
        httpx.Response(200, json=[[1.0, 2.0], [1.0]]),
        httpx.Response(200, json=[[1.0, 2.0], [1.0, None]]),
        httpx.Response(200, json=[[1.0, 2.0], [1.0, "2"]]),
        httpx.Response(200, json=[[1.0, 2.0], [1.0, True]]),
        httpx.Response(200, json=[[1.0, 2.0], [1.0, 1e300]]),
        httpx.Response(200, json=[[1.0, 2.0], [[1.0], [2.0]]]),
        httpx.Response(200, json=[[], []]),
        httpx.Response(200, json=[1.0, 2.0]),
        httpx.Response(200, content=b"[[1.0, NaN], [1.0, 2.0]]"),
    ],
    ids=lambda response: response.text[:30],
)
async def test_tei_replies_that_are_no_vectors(response: httpx.Response) -> None:
    with pytest.raises(WrongModel) as caught:
        await tei(response).embed(["one", "two"])
    assert caught.value.next_step


async def test_tei_sends_what_it_should() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json=[[1, 2.5]])

    embedder = TeiEmbedder("http://tei.test/base/", api_key="key", truncate=True, transport=httpx.MockTransport(answer))
    assert (await embedder.embed(["text"])).vectors.tolist() == [[1.0, 2.5]]
    assert str(seen[0].url) == "http://tei.test/base/embed"
    assert seen[0].headers["authorization"] == "Bearer key"
    assert json.loads(seen[0].content) == {"inputs": ["text"], "truncate": True, "normalize": False}


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (httpx.Response(404), ModelFacts()),
        (httpx.Response(405), ModelFacts()),
        (httpx.Response(200, html="<html>welcome</html>"), ModelFacts()),
        (httpx.Response(200, json=["m"]), ModelFacts()),
        (httpx.Response(200, json={"status": "up"}), ModelFacts()),
        (httpx.Response(200, content=b"1" * 100_000), ModelFacts()),
        (
            httpx.Response(200, json={"model_id": 7, "max_client_batch_size": 0, "max_batch_tokens": True}),
            ModelFacts(),
        ),
        (
            httpx.Response(200, json={"model_id": "m", "model_sha": None, "max_batch_tokens": 16384, "more": [1]}),
            ModelFacts(model="m", max_batch_tokens=16384),
        ),
    ],
    ids=["404", "405", "html", "a list", "another's", "endless", "nonsense", "TEI's"],
)
async def test_tei_facts_are_what_can_be_believed_of_info(response: httpx.Response, expected: ModelFacts) -> None:
    assert await tei(response).facts() == expected


@pytest.mark.parametrize(("status", "expected"), [(401, AccessDenied), (503, Throttled), (302, ConfigurationError)])
async def test_tei_facts_that_cannot_be_had_now_are_no_facts(status: int, expected: type[CrossfadeError]) -> None:
    with pytest.raises(expected):
        await tei(httpx.Response(status)).facts()


@pytest.mark.parametrize(("header", "tokens"), [("12", 12), ("0", 0), ("-1", None), ("1.5", None), ("٣", None)])
async def test_tei_counts_tokens_in_a_header(header: str, tokens: int | None) -> None:
    response = httpx.Response(200, json=[[1.0]], headers={b"x-compute-tokens": header.encode()})
    assert (await tei(response).embed(["text"])).tokens == tokens


async def test_tei_follows_no_redirect() -> None:
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.url.host)
        return httpx.Response(307, headers={"location": "http://elsewhere.test/embed"})

    with pytest.raises(ConfigurationError):
        await TeiEmbedder("http://tei.test", transport=httpx.MockTransport(answer)).embed(["text"])
    assert seen == ["tei.test"]


async def test_tei_passes_the_wait_on() -> None:
    with pytest.raises(Throttled) as caught:
        await tei(httpx.Response(429, headers={"retry-after": "7"})).embed(["text"])
    assert caught.value.retry_after_s == 7.0


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("2.5", 2.5),
        ("-3", 0.0),
        ("nan", None),
        ("1e9", 3600.0),
        ("Thu, 01 Jan 1970 00:16:50 GMT", 10.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("soon", None),
        ("", None),
    ],
)
def test_retry_after_in_both_forms(header: str | None, expected: float | None) -> None:
    assert retry_after_s(header, 1000.0) == expected


def _httpx_errors() -> list[type[httpx.HTTPError]]:
    found: list[type[httpx.HTTPError]] = []
    waiting: list[type[httpx.HTTPError]] = [httpx.HTTPError]
    while waiting:
        kind = waiting.pop()
        found.append(kind)
        waiting.extend(kind.__subclasses__())
    return [kind for kind in found if kind.__module__.startswith("httpx") and kind is not httpx.HTTPStatusError]


@pytest.mark.parametrize("kind", _httpx_errors())
def test_every_exception_of_httpx_is_mapped(kind: type[httpx.HTTPError]) -> None:
    mapped = map_httpx(kind("shows http://u:secret@h"), "the endpoint")
    assert mapped.next_step
    assert "secret" not in str(mapped)
    if issubclass(kind, httpx.ConnectError | httpx.ConnectTimeout):
        assert type(mapped) is Unreachable
    elif issubclass(kind, httpx.ReadTimeout | httpx.ReadError | httpx.RemoteProtocolError):
        assert type(mapped) is Transient
    elif issubclass(kind, httpx.UnsupportedProtocol | httpx.LocalProtocolError | httpx.DecodingError):
        assert isinstance(mapped, Terminal)


def test_tei_refuses_a_key_no_header_can_hold() -> None:
    with pytest.raises(ConfigurationError) as caught:
        TeiEmbedder("http://tei.test", api_key="secret\n")
    assert "secret" not in str(caught.value)


async def test_memory_has_a_table_faults_and_a_record_of_calls() -> None:
    async def fault(call: int, texts: Sequence[str]) -> None:
        if call == 1:
            raise Unreachable("away")

    embedder = MemoryEmbedder(2, table={"a": [3.0, 4.0]}, fault=fault)
    assert (await embedder.embed(["a"])).vectors.tolist() == [[3.0, 4.0]]
    with pytest.raises(Unreachable):
        await embedder.embed(["b"])
    vectors = (await embedder.embed(["b", "c"])).vectors
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0)
    assert embedder.calls == [("a",), ("b",), ("b", "c")]
    assert embedder.embedded == ["a", "b", "b", "c"]
    await embedder.close()
    assert embedder.closed
