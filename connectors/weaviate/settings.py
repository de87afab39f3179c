"""Where Weaviate is and how long a call to it may take.

It must never show the key: not in `repr`, not in an error.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import urlsplit

from connectors.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class WeaviateSettings:
    """`http` and `grpc`: host:port, or a URL whose scheme (https) then decides over the secure flag.

    `write_timeout_s` bounds a whole write call, however many requests it takes: rule 11 counts on it.
    """

    http: str
    grpc: str
    api_key: str | None = field(default=None, repr=False)
    http_secure: bool = False
    grpc_secure: bool = False
    connect_timeout_s: float = 5.0
    write_timeout_s: float = 20.0
    read_timeout_s: float = 20.0

    def __post_init__(self) -> None:
        _ = (self.http_address, self.grpc_address)
        for name in ("connect_timeout_s", "write_timeout_s", "read_timeout_s"):
            if getattr(self, name) <= 0:
                raise ConfigurationError(f"weaviate {name} is not above 0", next_step="give it in seconds")

    @property
    def http_address(self) -> tuple[str, int, bool]:
        """Host, port, TLS. Raises ConfigurationError when `http` names no port."""
        return _address("http", self.http, self.http_secure)

    @property
    def grpc_address(self) -> tuple[str, int, bool]:
        """Host, port, TLS. Raises ConfigurationError when `grpc` names no port."""
        return _address("grpc", self.grpc, self.grpc_secure)


def _address(name: str, given: str, secure: bool) -> tuple[str, int, bool]:
    has_scheme = "://" in given
    parts = urlsplit(given if has_scheme else f"//{given}")
    try:
        port = parts.port
    except ValueError:
        port = None
    if has_scheme:
        secure = parts.scheme in {"https", "grpcs"}
        port = port or (443 if secure else None)
    if not parts.hostname or not port:
        raise ConfigurationError(
            f"the Weaviate {name} address {parts.hostname or given!r} has no host or no port",
            next_step=f"write weaviate.{name} as host:port, for example localhost:{8080 if name == 'http' else 50051}",
        )
    return parts.hostname, port, secure
