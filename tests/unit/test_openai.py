"""OpenAI's form: what is sent to each kind of server, and every reply that must not become a vector."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from typing import Literal

import httpx
import numpy as np
import pytest

from connectors.embedders.openai import OpenAIEmbedder
from connectors.errors import (
    AccessDenied,
    ConfigurationError,
    ContentRejected,
    CrossfadeError,
    NotFound,
    Throttled,
    Transient,
    WrongModel,
)
from connectors.protocols import ModelFacts

URL = "https://api.test/v1"
Item = dict[str, object]


def items(*vectors: object) -> list[Item]:
    return [{"object": "embedding", "index": n, "embedding": vector} for n, vector in enumerate(vectors)]


def body(data: object, **more: object) -> httpx.Response:
    """Python's own JSON, with NaN."""
    return httpx.Response(200, content=json.dumps({"object": "list", "data": data} | more))


def openai(
    response: httpx.Response | Callable[[httpx.Request], httpx.Response],
    encoding: Literal["float", "base64"] = "float",
) -> OpenAIEmbedder:
    answer = response if callable(response) else lambda _: response
    return OpenAIEmbedder(
        URL, model="m", api_key="SECRETm3x7", encoding=encoding, transport=httpx.MockTransport(answer)
    )


def packed(vector: Sequence[float], kind: str = "<f4") -> str:
    return base64.b64encode(np.array(vector, kind).tobytes()).decode()


GOOD = body(items([1.0, 2.0], [3.0, 4.0]))


async def sent(embedder_of: Callable[[httpx.MockTransport], OpenAIEmbedder]) -> httpx.Request:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return GOOD

    await embedder_of(httpx.MockTransport(answer)).embed(["one", "two"])
    return seen[0]


async def test_openai_is_asked_plainly() -> None:
    request = await sent(lambda to: OpenAIEmbedder(URL + "/", model="m", api_key="key", transport=to))
    assert (request.method, str(request.url)) == ("POST", "https://api.test/v1/embeddings")
    assert request.headers["authorization"] == "Bearer key"
    assert json.loads(request.content) == {"model": "m", "input": ["one", "two"]}


async def test_dimensions_and_base64_are_asked_for_only_when_chosen() -> None:
    request = await sent(lambda to: OpenAIEmbedder(URL, model="m", dimensions=2, encoding="base64", transport=to))
    asked = json.loads(request.content)
    assert (asked["dimensions"], asked["encoding_format"]) == (2, "base64")
    assert "authorization" not in request.headers


async def test_azure_has_its_own_path_query_and_header() -> None:
    deployment = "https://mine.openai.azure.test/openai/deployments/small"
    request = await sent(
        lambda to: OpenAIEmbedder(deployment, model="m", api_key="key", api_version="2024-10-21", transport=to)
    )
    assert str(request.url) == f"{deployment}/embeddings?api-version=2024-10-21"
    assert request.headers["api-key"] == "key"
    assert "authorization" not in request.headers


async def test_a_key_header_of_choice() -> None:
    request = await sent(
        lambda to: OpenAIEmbedder(
            URL, model="m", api_key="key", api_version="1", key_header="Authorization", transport=to
        )
    )
    assert request.headers["authorization"] == "Bearer key"
    assert "api-key" not in request.headers


async def test_the_index_decides_the_order() -> None:
    permuted = [{"index": n, "embedding": [n, 0.5]} for n in (2, 0, 1)]
    result = await openai(body(permuted)).embed(["a", "b", "c"])
    assert result.vectors.tolist() == [[0.0, 0.5], [1.0, 0.5], [2.0, 0.5]]
    assert result.vectors.dtype == np.float32


async def test_whole_numbers_are_numbers() -> None:
    assert (await openai(body(items([1, 0], [0, -1]))).embed(["a", "b"])).vectors.tolist() == [[1, 0], [0, -1]]


async def test_base64_is_little_endian_float32_bit_for_bit() -> None:
    exact = np.random.default_rng(5).standard_normal((2, 33)).astype(np.float32)
    result = await openai(body(items(*(packed(row.tolist()) for row in exact))), "base64").embed(["a", "b"])
    assert (result.vectors == exact).all()
    assert result.vectors.dtype == np.float32
    assert result.vectors.dtype.isnative


async def test_lists_are_understood_where_base64_was_asked_for() -> None:
    assert (await openai(GOOD, "base64").embed(["a", "b"])).vectors.tolist() == [[1.0, 2.0], [3.0, 4.0]]


TWO = items([1.0, 2.0], [3.0, 4.0])
BAD: dict[str, httpx.Response] = {
    "a list": httpx.Response(200, json=[[1.0], [2.0]]),
    "an error of status 200": httpx.Response(200, json={"error": {"message": "SECRETm3x7 CANARYt4w8"}}),
    "null": httpx.Response(200, json=None),
    "html": httpx.Response(200, html="<p>CANARYt4w8"),
    "half": httpx.Response(200, content=GOOD.content[:-9]),
    "nothing": httpx.Response(200, content=b""),
    "data of null": body(None),
    "data as an object": body({"0": [1.0, 2.0], "1": [1.0, 2.0]}),
    "no data": body([]),
    "one of two": body(TWO[:1]),
    "three of two": body([*TWO, {"index": 2, "embedding": [1.0, 2.0]}]),
    "no index": body([{"embedding": [1.0, 2.0]}, TWO[1]]),
    "no index at all": body([{"embedding": [1.0, 2.0]}, {"embedding": [1.0, 2.0]}]),
    "index of null": body([TWO[0] | {"index": None}, TWO[1]]),
    "index as text": body([TWO[0] | {"index": "0"}, TWO[1]]),
    "index as true": body([TWO[0], TWO[1] | {"index": True}]),
    "index as float": body([TWO[0], TWO[1] | {"index": 1.0}]),
    "index twice": body([TWO[0], TWO[1] | {"index": 0}]),
    "index beyond": body([TWO[0], TWO[1] | {"index": 2}]),
    "index below": body([TWO[0], TWO[1] | {"index": -1}]),
    "vectors without items": body([[1.0, 2.0], [1.0, 2.0]]),
    "no vector": body([{"index": 0}, TWO[1]]),
    "vector of null": body(items(None, [1.0, 2.0])),
    "vector as text": body(items("[1.0, 2.0]", [1.0, 2.0])),
    "base64 unasked": body(items(packed([1.0, 2.0]), packed([1.0, 2.0]))),
    "numbers as text": body(items(["1.0", "2.0"], [1.0, 2.0])),
    "numbers of null": body(items([1.0, None], [1.0, 2.0])),
    "numbers of true": body(items([1.0, True], [1.0, 2.0])),
    "empty vectors": body(items([], [])),
    "two sizes": body(items([1.0], [1.0, 2.0])),
    "nested": body(items([[1.0, 2.0]], [[1.0, 2.0]])),
    "too large": body(items([1.0, 1e39], [1.0, 2.0])),
    "far too large": body(items([1.0, 10**18], [1.0, 10**400])),
    "nan": body(items([1.0, float("nan")], [1.0, 2.0])),
}


@pytest.mark.parametrize("name", BAD)
async def test_a_reply_that_is_not_one_vector_a_text_is_refused_whole(name: str) -> None:
    with pytest.raises(WrongModel) as caught:
        await openai(BAD[name]).embed(["CANARYt4w8", "two"])
    assert caught.value.next_step
    assert "SECRETm3x7" not in str(caught.value)
    assert "CANARYt4w8" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "====",
        "not base64!",
        "AACAPwAAAEA",
        "AACAPwAA\nAEA=",
        "ÄÄÄÄ",
        base64.b64encode(b"abcde").decode(),
        packed([1.0, 2.0], "<f8") + "AA==",
        packed([float("nan"), 1.0]),
        packed([float("inf"), 1.0]),
        packed([1.0, 2.0, 3.0]),
    ],
)
async def test_base64_that_is_no_vector_is_refused(text: str) -> None:
    with pytest.raises(WrongModel):
        await openai(body(items(text, packed([1.0, 2.0]))), "base64").embed(["one", "two"])


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 5, "total_tokens": 7}, 7),
        ({"prompt_tokens": 5}, 5),
        ({"prompt_tokens": 5, "total_tokens": None}, 5),
        ({"total_tokens": 0}, 0),
        ({"total_tokens": -1}, None),
        ({"total_tokens": 7.0}, None),
        ({"total_tokens": "7"}, None),
        ({"total_tokens": True}, None),
        ({}, None),
        (None, None),
        ([7], None),
    ],
)
async def test_tokens_are_a_whole_number_or_unknown(usage: object, tokens: int | None) -> None:
    assert (await openai(body(TWO, usage=usage)).embed(["a", "b"])).tokens == tokens


async def test_the_facts_are_the_last_reply_s() -> None:
    names: list[object] = ["m-2024-01-01", "m-2025-06-01", None, 7, ""]
    embedder = openai(lambda _: body(TWO, model=names.pop(0)))
    told = [await embedder.facts()]
    while names:
        await embedder.embed(["a", "b"])
        told.append(await embedder.facts())
    assert told == [ModelFacts(model=name) for name in (None, "m-2024-01-01", "m-2025-06-01", None, None, None)]


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (429, Throttled),
        (503, Throttled),
        (408, Transient),
        (500, Transient),
        (400, ContentRejected),
        (413, ContentRejected),
        (422, ContentRejected),
        (401, AccessDenied),
        (403, AccessDenied),
        (404, NotFound),
        (302, ConfigurationError),
        (405, ConfigurationError),
        (201, ConfigurationError),
    ],
)
async def test_statuses(status: int, expected: type[CrossfadeError]) -> None:
    headers = {"retry-after": "3", "location": "https://other.test/v1/embeddings"}
    with pytest.raises(CrossfadeError) as caught:
        await openai(httpx.Response(status, json={"error": "SECRETm3x7 CANARYt4w8"}, headers=headers)).embed(["x"])
    assert type(caught.value) is expected
    assert caught.value.next_step
    assert "SECRETm3x7" not in str(caught.value) + repr(openai(GOOD))
    assert "CANARYt4w8" not in str(caught.value)
    if isinstance(caught.value, Throttled):
        assert caught.value.retry_after_s == 3.0


async def test_nothing_is_asked_for_no_texts() -> None:
    def answer(_: httpx.Request) -> httpx.Response:
        raise AssertionError("asked")

    assert (await openai(answer).embed([])).vectors.shape == (0, 0)


def test_a_model_is_needed() -> None:
    with pytest.raises(ConfigurationError):
        OpenAIEmbedder(URL, model="")
