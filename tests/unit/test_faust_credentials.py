"""librdkafka's security settings as Faust takes them."""

from __future__ import annotations

import ssl
from pathlib import Path

import faust
import pytest

from connectors.errors import ConfigurationError
from streams.faust_credentials import broker_credentials


def test_plain_text_needs_none() -> None:
    assert broker_credentials({}) is None
    assert broker_credentials({"security.protocol": "PLAINTEXT"}) is None


@pytest.mark.parametrize("protocol", ["sasl_plaintext", "SASL_SSL"])
def test_sasl_user_and_password(protocol: str) -> None:
    found = broker_credentials(
        {
            "security.protocol": protocol,
            "sasl.mechanism": "SCRAM-SHA-256",
            "sasl.username": "crossfade",
            "sasl.password": "secret",
        }
    )
    assert isinstance(found, faust.SASLCredentials)
    assert (found.username, found.password, str(found.mechanism.value)) == ("crossfade", "secret", "SCRAM-SHA-256")
    assert (found.ssl_context is not None) == protocol.endswith("SSL")
    assert "secret" not in repr(found)


def test_tls_verifies_unless_told_otherwise() -> None:
    found = broker_credentials({"security.protocol": "ssl"})
    assert isinstance(found, faust.SSLCredentials)
    assert found.context.verify_mode is ssl.CERT_REQUIRED
    assert found.context.check_hostname
    lax = broker_credentials({"security.protocol": "ssl", "enable.ssl.certificate.verification": "false"})
    assert isinstance(lax, faust.SSLCredentials)
    assert lax.context.verify_mode is ssl.CERT_NONE


def test_a_mechanism_the_command_stream_cannot_use_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="OAUTHBEARER"):
        broker_credentials({"security.protocol": "sasl_ssl", "sasl.mechanism": "OAUTHBEARER"})


def test_an_unreadable_certificate_names_the_settings(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as raised:
        broker_credentials({"security.protocol": "ssl", "ssl.ca.location": str(tmp_path / "absent.pem")})
    assert "ssl.ca.location" in raised.value.next_step
