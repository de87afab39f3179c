"""An embedding endpoint in the shape of TEI, on loopback, that wants a key, says what it is and counts; in a thread.

It must never listen on anything but loopback.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

DIMENSIONS = 24
INFO = {
    "model_id": "intfloat/multilingual-e5-base",
    "model_sha": "d13f1b27baf31030b7fd040960d60d909913633f",
    "max_client_batch_size": 16,
    "max_input_length": 512,
}


@dataclass(slots=True)
class Endpoint:
    """`embedded`: the texts it answered for, in order, and `at_s` when, by the wall clock; `refused`: requests without
    the key."""

    url: str = ""
    key: str = ""
    embedded: list[str] = field(default_factory=list)
    at_s: list[float] = field(default_factory=list)
    refused: int = 0


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:  # a client that has read enough and left
        return


def _vectors(texts: list[str]) -> list[list[float]]:
    return [[byte / 256 + 0.01 for byte in hashlib.sha256(text.encode()).digest()[:DIMENSIONS]] for text in texts]


@contextmanager
def keyed_endpoint(
    key: str = "",
    vectors: Callable[[list[str]], list[list[float]]] = _vectors,
    tokens: Callable[[list[str]], int] | None = None,
) -> Iterator[Endpoint]:
    """Up until the end of the block. An empty key: it wants none. `tokens`: counts, for a header as TEI's."""
    endpoint = Endpoint(key=key)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:  # the test's output is the terminal that is looked at
            return

        def _reply(self, status: int, value: object, counted: int | None = None) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            if counted is not None:
                self.send_header("x-compute-tokens", str(counted))
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _known(self) -> bool:
            if not endpoint.key or self.headers.get("authorization") == f"Bearer {endpoint.key}":
                return True
            endpoint.refused += 1
            self._reply(401, {"error": "no"})
            return False

        def do_GET(self) -> None:
            if self._known():
                self._reply(200, INFO)

        def do_POST(self) -> None:
            texts: list[str] = json.loads(self.rfile.read(int(self.headers["content-length"])))["inputs"]
            if self._known():
                endpoint.embedded += texts
                endpoint.at_s += [time.time()] * len(texts)
                self._reply(200, vectors(texts), tokens(texts) if tokens is not None else None)

    with _Server(("127.0.0.1", 0), Handler) as server:
        endpoint.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield endpoint
        finally:
            server.shutdown()
            thread.join()
