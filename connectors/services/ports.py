"""Free loopback ports, and whether the real protocol answers on them.

Must never take an open TCP port for an answer: Docker's proxy opens ports long before the service behind them listens.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Iterable, Mapping
from contextlib import ExitStack

import httpx
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from connectors.services.state import Addresses

# HTTP/2 connection preface and an empty SETTINGS frame: what every gRPC server answers with SETTINGS of its own.
_HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
_HTTP2_SETTINGS = 4

# Below what systems give to outgoing connections: one of those may take a port between our choice and the bind.
_OURS = range(15_000, 30_000)
_RANDOM = random.SystemRandom()  # tests seed the common one: two processes would then choose the same ports


def choose(names: Iterable[str], wanted: Mapping[str, int]) -> dict[str, int]:
    """A free port for each name, the wanted one where it is still free; all different.

    Nothing holds them afterwards: who starts a service on them must be ready to choose again when it cannot bind.
    """
    with ExitStack() as held:
        chosen: dict[str, int] = {}
        for name in names:
            probe = held.enter_context(socket.socket())
            # As the services do it: a port whose last connections are in TIME_WAIT is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            for port in (*filter(None, [wanted.get(name)]), *_RANDOM.sample(_OURS, 200), 0):
                try:
                    # All interfaces, without listening: a free loopback port may be taken on another address.
                    probe.bind(("", port))
                except OSError:
                    continue
                break
            chosen[name] = probe.getsockname()[1]
        return chosen


def kafka_answers(address: str, *, timeout_s: float = 3) -> bool:
    """Whether a broker gives its metadata."""
    if not _opens(address):  # librdkafka would go on trying in the background, and say so on stderr
        return False
    try:
        AdminClient({"bootstrap.servers": address, "log_level": 0}).list_topics(timeout=timeout_s)
    except KafkaException:
        return False
    return True


def weaviate_answers(http: str, grpc: str, *, timeout_s: float = 3) -> bool:
    """Whether Weaviate says it is ready, and its gRPC port speaks HTTP/2."""
    try:
        with httpx.Client(trust_env=False, timeout=timeout_s) as client:
            ready = client.get(f"http://{http}/v1/.well-known/ready").status_code == 200
    except httpx.HTTPError:
        return False
    return ready and speaks_http2(grpc, timeout_s)


def answers(addresses: Addresses) -> bool:
    return kafka_answers(addresses.kafka) and weaviate_answers(addresses.weaviate_http, addresses.weaviate_grpc)


def _endpoint(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


def _opens(address: str) -> bool:
    try:
        with socket.create_connection(_endpoint(address), timeout=1):
            return True
    except OSError:
        return False


def speaks_http2(address: str, timeout_s: float) -> bool:
    """Whether what listens there answers as a gRPC server does."""
    try:
        with socket.create_connection(_endpoint(address), timeout=timeout_s) as connection:
            connection.sendall(_HTTP2_HELLO)
            header = connection.recv(9, socket.MSG_WAITALL)
    except OSError:
        return False
    return len(header) == 9 and header[3] == _HTTP2_SETTINGS
