"""An embedding endpoint in the shape of TEI, on loopback, that wants a key and says what it is; in a thread.

It must never listen on anything but loopback.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
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
    """`embedded`: the texts it answered for, in order; `refused`: requests without the key."""

    url: str = ""
    key: str = ""
    embedded: list[str] = field(default_factory=list)
    refused: int = 0


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:  # a client that has read enough and left
        return


@contextmanager
def keyed_endpoint(key: str = "") -> Iterator[Endpoint]:
    """Up until the end of the block. An empty key: it wants none."""
    endpoint = Endpoint(key=key)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:  # the test's output is the terminal that is looked at
            return

        def _reply(self, status: int, value: object) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
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
                self._reply(200, [_vector(text) for text in texts])

    with _Server(("127.0.0.1", 0), Handler) as server:
        endpoint.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield endpoint
        finally:
            server.shutdown()
            thread.join()


def _vector(text: str) -> list[float]:
    return [byte / 256 + 0.01 for byte in hashlib.sha256(text.encode()).digest()[:DIMENSIONS]]
