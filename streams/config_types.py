"""The checked kinds of value a configuration is made of: addresses, seconds, secrets, models that refuse unknown keys.

Their errors say what is wrong and what is wanted; they must never show the value, which may be a secret.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    model_validator,
)
from pydantic_core import PydanticCustomError

_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")


def wrong(problem: str, wanted: str, *at: str) -> PydanticCustomError:
    """`at`: the keys from the model that is being checked down to the guilty one."""
    return PydanticCustomError("crossfade", f"{problem}; wanted: {wanted}", {"at": list(at)})


def _no_bool(value: object) -> object:
    if isinstance(value, bool):
        raise wrong("is true or false", "a number")
    return value


def _scalar_text(value: object) -> object:
    """librdkafka takes every setting as text; YAML gives 500 and true."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value


def _http_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise wrong("is no URL", "http://host:port or https://host:port") from None
    if "@" in parts.netloc:
        raise wrong("holds credentials in a URL", "a URL without them, and the key in api_key") from None
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise wrong("is no http URL", "http://host:port or https://host:port")
    return url.rstrip("/")


def _host_ports(addresses: str) -> str:
    for address in addresses.split(","):
        if "@" in address:
            raise wrong("holds credentials", "host:port, and credentials in kafka.client or api_key")
        host, _, port = address.strip().rpartition(":")
        if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise wrong("is no address", "host:port (several brokers: comma between them)")
    return ",".join(address.strip() for address in addresses.split(","))


def _host_port(address: str) -> str:
    if "," in address:
        raise wrong("is more than one address", "host:port")
    return _host_ports(address)


def _listen(address: str) -> str:
    return address if address == "none" else _host_port(address)


def _http_origin(url: str) -> str:
    if urlsplit(checked := _http_url(url)).path:
        raise wrong("has a path", "http://host:port or https://host:port")
    return checked


def _secret(secret: SecretStr) -> SecretStr:
    value = secret.get_secret_value()
    if not value or not value.isascii() or not value.isprintable() or " " in value:
        # it goes into an HTTP header, whose encoder would show it in its error
        raise wrong("is empty, or has spaces or characters no HTTP header can hold", "the key alone")
    return secret


def _beside_the_file(path: Path, info: ValidationInfo) -> Path:
    folder = (info.context or {}).get("folder")
    return (Path(folder) / path.expanduser()) if folder is not None else path.expanduser()


def _topic_name(topic: str) -> str:
    if not _TOPIC.fullmatch(topic) or topic in (".", ".."):
        raise wrong("is no topic name", "up to 249 letters, digits, '.', '_' or '-'")
    return topic


FilePath = Annotated[Path, AfterValidator(_beside_the_file)]
TopicName = Annotated[str, AfterValidator(_topic_name)]
Seconds = Annotated[float, BeforeValidator(_no_bool), Field(gt=0, le=3600, allow_inf_nan=False)]
Count = Annotated[int, BeforeValidator(_no_bool), Field(ge=1)]
Rate = Annotated[float, BeforeValidator(_no_bool), Field(gt=0, allow_inf_nan=False)]
Part = Annotated[float, BeforeValidator(_no_bool), Field(gt=0, le=1, allow_inf_nan=False)]
Whole = Annotated[int, BeforeValidator(_no_bool)]
ClientValue = Annotated[str, BeforeValidator(_scalar_text)]
HttpUrl = Annotated[str, AfterValidator(_http_url)]
HttpOrigin = Annotated[str, AfterValidator(_http_origin)]
HostPort = Annotated[str, AfterValidator(_host_port)]
Listen = Annotated[str, AfterValidator(_listen)]
"""host:port, or `none`."""
Secret = Annotated[SecretStr, AfterValidator(_secret)]
HostPorts = Annotated[str, AfterValidator(_host_ports)]
PropertyType = Literal["text", "keyword", "int", "number", "bool", "date"]
NgramRange = tuple[Annotated[int, Field(ge=1, le=8)], Annotated[int, Field(ge=1, le=8)]]


class Strict(BaseModel):
    """Frozen; unknown keys are refused by name, with the keys there are."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, raw: object) -> object:
        if not isinstance(raw, Mapping):
            return raw
        for key in raw:
            if key not in cls.model_fields:
                known = [name for name in cls.model_fields if name != "name"]  # a collection's is its key
                near = get_close_matches(str(key), known, 1)
                hint = f"did you mean {near[0]}? " if near else ""
                raise PydanticCustomError(
                    "unknown_key",
                    "unknown key; {hint}wanted one of: {allowed}",
                    {"at": [str(key)], "hint": hint, "allowed": ", ".join(known)},
                )
        return raw
