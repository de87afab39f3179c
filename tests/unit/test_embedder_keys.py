"""Keys into headers: every way to have none, said clearly, and never shown."""

from __future__ import annotations

import pytest

from connectors.embedders.keys import key_headers
from connectors.errors import ConfigurationError

KEY = "SECRETm3x7"


def test_a_header_for_each_kind_of_endpoint() -> None:
    assert key_headers(KEY, "Authorization") == {"Authorization": f"Bearer {KEY}"}
    assert key_headers(KEY, "authorization") == {"authorization": f"Bearer {KEY}"}
    assert key_headers(KEY, "api-key") == {"api-key": KEY}
    assert key_headers(None, "api-key") == key_headers("", "Authorization") == {}


@pytest.mark.parametrize("name", ["", "api key", "api-key:", "api\nkey", "Host", "Content-Length", "ä"])
def test_a_header_that_is_none_for_a_key(name: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        key_headers(KEY, name)
    assert KEY not in str(caught.value)
