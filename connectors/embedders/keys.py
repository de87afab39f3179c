"""API keys: read from a file, put into the one header their endpoint wants. A key must never be shown."""

from __future__ import annotations

import logging
import os
import re
import stat
from pathlib import Path

from connectors.errors import ConfigurationError

log = logging.getLogger(__name__)

_MAX_KEY_BYTES = 16_384
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


def read_key_file(path: str | Path) -> str:
    """The key in a file, without white space around it. Raises ConfigurationError when there is none to be had.

    A file that every user of the machine may read is a warning in the log: secrets mounted into containers often are.
    """
    where = f"the key file {path}"
    try:
        with Path(path).open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(_MAX_KEY_BYTES + 1)
    except FileNotFoundError as error:
        raise ConfigurationError(f"{where} does not exist", next_step="write the key into it") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ConfigurationError(
            f"{where} cannot be read: {type(error).__name__}", next_step="give a file this user may read"
        ) from error
    key = content.decode("latin-1").strip()
    if not key:
        raise ConfigurationError(f"{where} is empty", next_step="write the key into it")
    if len(content) > _MAX_KEY_BYTES or not key.isascii() or not key.isprintable():
        raise ConfigurationError(
            f"{where} holds something that is no API key", next_step="one line with the key and nothing else"
        )
    if mode & stat.S_IROTH:
        log.warning("%s may be read by every user of this machine; chmod o-r would stop that", where)
    return key
