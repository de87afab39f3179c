"""What the section `serve` says: where the HTTP interface listens, who may call it, and its limits.

Keys are kept as hashes only; without any key it must never listen beyond this machine.
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from streams.config_types import FilePath, HostPort, Rate, Seconds, Strict, Whole, wrong

Role = Literal["search", "read", "operate"]
SHORTEST_KEY = 32
_HASH = re.compile(r"sha256:[0-9a-f]{64}")


def _hash(text: str) -> str:
    if not _HASH.fullmatch(text):
        raise wrong("is no hash of a key", "what `crossfade serve --new-key` or `--hash-key` prints")
    return text


def hash_of(key: str) -> str:
    """As the configuration keeps it. Plain SHA-256: a key of 32 random characters cannot be guessed from it."""
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


class ApiKey(Strict):
    """One caller. `name` stands in the journal. `roles`: search; read (state, progress, history, plans); operate (every
    verb, and read). `expires`: the last day, in UTC, on which it is taken."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,47}$")]
    hash: Annotated[str, AfterValidator(_hash), Field(repr=False)]
    roles: Annotated[list[Role], Field(min_length=1)]
    requests_per_minute: Rate | None = None
    expires: datetime.date | None = None

    @property
    def allowed(self) -> frozenset[Role]:
        also: set[Role] = {"read"} if "operate" in self.roles else set()
        return frozenset({*self.roles, *also})


class Serve(Strict):
    """The process `crossfade serve`. `requests_per_minute`: of each key that has none of its own. `timeout_s`: most
    that a search, or the receiving of a request, may take; `command_timeout_s`: most that a verb is waited for (it
    goes on after that). `in_flight`: searches at once, beyond which callers are asked to come again; as many event
    streams, and as many of all other requests, have room beside them."""

    listen: HostPort = "127.0.0.1:8470"
    keys: list[ApiKey] = Field(default_factory=list)
    requests_per_minute: Rate = 6000.0
    certificate: FilePath | None = None
    private_key: FilePath | None = None
    max_body_bytes: Annotated[Whole, Field(ge=1_000, le=100_000_000)] = 1_000_000
    max_results: Annotated[Whole, Field(ge=1, le=1000)] = 1000
    timeout_s: Seconds = 30.0
    command_timeout_s: Seconds = 600.0
    in_flight: Annotated[Whole, Field(ge=1, le=10_000)] = 256

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)

    @property
    def on_loopback(self) -> bool:
        host, _ = self.address
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    @model_validator(mode="after")
    def _whole(self) -> Serve:
        if not self.keys and not self.on_loopback:
            raise wrong("listens beyond this machine without keys", "keys, or an address like 127.0.0.1:8470", "listen")
        if (self.certificate is None) != (self.private_key is None):
            raise wrong("has one of certificate and private_key", "both files, or neither")
        for what in ("name", "hash"):
            values = [getattr(key, what) for key in self.keys]
            if len(set(values)) != len(values):
                raise wrong(f"has two keys of one {what}", f"a {what} of its own for each key", "keys")
        return self
