"""The OpenAPI document is complete and true: schemathesis asks every operation what it allows and what it does not."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from pydantic import JsonValue
from schemathesis import GenerationMode
from starlette.types import Receive, Scope, Send

from streams.api.app import make_app
from streams.api.backend import Opened
from streams.config_serve import Serve, hash_of
from tests.served import Served, served

KEY = "k" * 40
EXAMPLES = 15
MOST_S = 30.0
THERE = {"collection": "docs", "version": "v1", "space": "v1"}


class _Bridge:
    """The app on a loop of its own thread: schemathesis asks from threads and loops that come and go."""

    def __init__(self, folder: Path) -> None:
        self.loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._done = asyncio.Event()
        self.api: Served
        self._thread = threading.Thread(target=self.loop.run_until_complete, args=(self._run(folder),))

    async def _run(self, folder: Path) -> None:
        keys: list[JsonValue] = [
            {"name": "all", "hash": hash_of(KEY), "roles": ["search", "operate"], "requests_per_minute": 1e6}
        ]
        async with served(folder, keys=keys) as self.api:
            await self.api.serve("v1")
            await self.api.ready("v2")
            self._ready.set()
            await self._done.wait()

    def __enter__(self) -> _Bridge:
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self._done.set)
        self._thread.join(30)
        self.loop.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI: each request is one of the other loop's; its body is read first, its answer given back whole."""
        if scope["type"] != "http":
            return
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)

        async def ask() -> httpx.Response:
            path = scope.get("raw_path", scope["path"].encode()) + (
                b"?" + scope["query_string"] if scope["query_string"] else b""
            )
            url = httpx.URL("http://127.0.0.1:8470").copy_with(raw_path=path)
            return await self.api.http.request(scope["method"], url, headers=list(scope["headers"]), content=body)

        async with asyncio.timeout(MOST_S):
            answer = await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(ask(), self.loop))
        await send({"type": "http.response.start", "status": answer.status_code, "headers": answer.headers.raw})
        await send({"type": "http.response.body", "body": answer.content})


@pytest.fixture(scope="module")
def bridge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Bridge]:
    with _Bridge(tmp_path_factory.mktemp("openapi")) as made:
        yield made


@pytest.fixture(scope="module")
def schema(bridge: _Bridge) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_asgi("/openapi.json", bridge)


OPERATIONS = sorted(
    (path, method) for path, operations in make_app(Opened(), Serve).openapi()["paths"].items() for method in operations
)


def ending(case: schemathesis.Case[Any]) -> schemathesis.Case[Any]:
    """The stream of events goes on for as long as it was asked to: not for long, wherever it would be answered."""
    if case.path.endswith("/events"):
        query = dict(case.query or {})
        if type(query.get("for_s", 0)) in (int, float):
            case.query = {**query, "for_s": min(query.get("for_s", 0), 0)}
    return case


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=str)
@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_every_operation_answers_as_documented(
    schema: schemathesis.BaseSchema, path: str, method: str, mode: GenerationMode
) -> None:
    operation = schema[path][method]

    there = st.booleans() if method == "get" and mode is GenerationMode.POSITIVE else st.just(False)

    @given(case=operation.as_strategy(generation_mode=mode), there=there)
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def ask(case: schemathesis.Case[Any], there: bool) -> None:
        if there:  # a name made by chance is nowhere: that is answered with 404
            case.path_parameters = {name: THERE[name] for name in case.path_parameters or {}}
        ending(case).call_and_validate(headers={"Authorization": f"Bearer {KEY}"})

    try:
        ask()
    except Unsatisfiable:
        assert mode is GenerationMode.NEGATIVE, "nothing can be asked of this operation"
