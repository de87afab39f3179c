"""Addresses in every form people write them, and a key that shows nowhere.

It must never open a connection.
"""

from __future__ import annotations

import pytest

from connectors.errors import ConfigurationError
from connectors.weaviate.settings import WeaviateSettings


@pytest.mark.parametrize(
    ("given", "secure", "expected"),
    [
        ("localhost:8080", False, ("localhost", 8080, False)),
        ("localhost:8080", True, ("localhost", 8080, True)),
        ("http://localhost:8080", True, ("localhost", 8080, False)),
        ("https://vectors.example:8443/", False, ("vectors.example", 8443, True)),
        ("https://vectors.example", False, ("vectors.example", 443, True)),
        ("[::1]:8080", False, ("::1", 8080, False)),
    ],
)
def test_addresses(given: str, secure: bool, expected: tuple[str, int, bool]) -> None:
    settings = WeaviateSettings(http=given, grpc=given, http_secure=secure, grpc_secure=secure)
    assert settings.http_address == expected
    assert settings.grpc_address == expected


@pytest.mark.parametrize("given", ["", "localhost", "localhost:port", "localhost:99999", ":8080", "http://localhost"])
def test_an_address_without_host_or_port_says_what_it_wants(given: str) -> None:
    with pytest.raises(ConfigurationError, match=r"weaviate\.http as host:port"):
        WeaviateSettings(http=given, grpc="localhost:50051")


def test_time_outs_are_above_zero() -> None:
    with pytest.raises(ConfigurationError, match="write_timeout_s"):
        WeaviateSettings("localhost:8080", "localhost:50051", write_timeout_s=0)


def test_the_key_shows_nowhere() -> None:
    settings = WeaviateSettings("localhost:8080", "localhost:50051", api_key="very-secret")
    assert "very-secret" not in f"{settings!r} {settings}"
