"""Where the server is, the key to it, and how long and how often to ask: checked before anything is sent.

The key must never be shown, nor go over a network in the clear unless that is asked for.
"""

from __future__ import annotations

import ipaddress
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from connectors.embedders.keys import key_headers
from connectors.errors import ConfigurationError
from streams.client.errors import Misconfigured

DEFAULT_URL = "http://127.0.0.1:8470"
URL_VARIABLE = "CROSSFADE_URL"
KEY_VARIABLE = "CROSSFADE_API_KEY"
MOST_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Settings:
    """`url`: without a slash at its end. `timeout_s`: most that one try of a call may take; `command_timeout_s`: of one
    that sweeps, judges or swaps. `retries`: most repetitions, each after a pause of `longest_pause_s` at most."""

    url: str
    key: str | None = field(repr=False)
    timeout_s: float
    command_timeout_s: float
    retries: int
    most_bytes: int
    longest_pause_s: float = 60.0
    chance: Callable[[], float] = field(default=random.random, repr=False)

    @property
    def headers(self) -> dict[str, str]:
        """Of every request."""
        return key_headers(self.key, "Authorization") | {"Accept": "application/json", "Accept-Encoding": "identity"}


def checked(
    url: str | None, key: str | None, *, timeout_s: float, command_timeout_s: float, retries: int, plain_http: bool
) -> Settings:
    """`url`, `key`: None takes them from the environment. Raises Misconfigured, which never shows the key."""
    where = (url if url is not None else os.environ.get(URL_VARIABLE) or DEFAULT_URL).rstrip("/")
    secret = (key if key is not None else os.environ.get(KEY_VARIABLE)) or None
    try:
        parts = urlsplit(where)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https") or not where.isascii() or not where.isprintable():
        raise Misconfigured("the url is no http or https URL", next_step=f"give a url like {DEFAULT_URL}")
    if "@" in parts.netloc or parts.query or parts.fragment or "?" in where or "#" in where:
        raise Misconfigured(  # without showing it: it is shown wherever the client is
            "the url has a user name, a password, a query or a fragment",
            next_step=f"give the key as api_key or in {KEY_VARIABLE}, and a url like {DEFAULT_URL}",
        )
    try:
        key_headers(secret, "Authorization")
    except ConfigurationError:
        raise Misconfigured(
            "the key has characters that no HTTP header can hold",
            next_step=f"give it as `crossfade serve --new-key` printed it, as api_key or in {KEY_VARIABLE}",
        ) from None
    if secret is not None and parts.scheme == "http" and not _is_loopback(host) and not plain_http:
        raise Misconfigured(
            f"the key would go to {host} in the clear",
            next_step="give an https url, or plain_http=True where the network itself is encrypted",
        )
    for name, given in (("timeout_s", timeout_s), ("command_timeout_s", command_timeout_s)):
        if not 0 < given <= 86_400:
            raise Misconfigured(f"{name} is {given}", next_step="give seconds above 0 and up to 86,400")
    if not 0 <= retries <= 100:
        raise Misconfigured(f"retries is {retries}", next_step="give a number from 0 to 100")
    return Settings(where, secret, timeout_s, command_timeout_s, retries, MOST_BYTES)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
