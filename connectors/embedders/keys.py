"""API keys, in the one header their endpoint wants. A key must never be shown."""

from __future__ import annotations

import re

from connectors.errors import ConfigurationError

_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_OWN_HEADERS = frozenset({"host", "content-type", "content-length", "transfer-encoding", "accept-encoding"})


def key_headers(api_key: str | None, key_header: str) -> dict[str, str]:
    """`Authorization` says Bearer before the key, every other header holds the key alone. None for no or an empty key.

    Raises ConfigurationError for a key or a name that no header can hold: the HTTP library's own would show the key.
    """
    if not _HEADER_NAME.fullmatch(key_header) or key_header.lower() in _OWN_HEADERS:
        raise ConfigurationError(
            "key_header is no name of a header for a key", next_step="write a name like Authorization or api-key"
        )
    if not api_key:
        return {}
    if not api_key.isascii() or not api_key.isprintable():
        raise ConfigurationError("api_key has characters no HTTP header can hold", next_step="correct api_key")
    return {key_header: f"Bearer {api_key}" if key_header.lower() == "authorization" else api_key}
