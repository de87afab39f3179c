"""The same broker, the same credentials: librdkafka's security settings in the form Faust's own client takes.

What cannot be translated is refused at start, never left out.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping

import faust
from faust.types.auth import CredentialsT

from connectors.errors import ConfigurationError

_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")


def broker_credentials(client: Mapping[str, str]) -> CredentialsT | None:
    """`client`: kafka.client of the configuration. None for plain text.

    Raises ConfigurationError for a mechanism the command stream cannot use, or files that cannot be read.
    """
    protocol = client.get("security.protocol", "plaintext").upper()
    context = _context(client) if protocol.endswith("SSL") else None
    if protocol.startswith("SASL"):
        mechanism = client.get("sasl.mechanism", client.get("sasl.mechanisms", "GSSAPI")).upper()
        if mechanism not in _MECHANISMS:
            raise ConfigurationError(
                f"kafka.client: sasl.mechanism {mechanism} is not supported by the command stream",
                next_step=f"use one of {', '.join(_MECHANISMS)}",
            )
        return faust.SASLCredentials(
            mechanism=mechanism,
            username=client.get("sasl.username"),
            password=client.get("sasl.password"),
            ssl_context=context,
        )
    return faust.SSLCredentials(context) if context is not None else None


def _context(client: Mapping[str, str]) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=client.get("ssl.ca.location"))
        if "ssl.certificate.location" in client:
            context.load_cert_chain(
                client["ssl.certificate.location"], client.get("ssl.key.location"), client.get("ssl.key.password")
            )
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            f"kafka.client: a certificate or key file cannot be read ({type(error).__name__})",
            next_step="check ssl.ca.location, ssl.certificate.location and ssl.key.location (PEM files)",
        ) from error
    if client.get("ssl.endpoint.identification.algorithm", "https").lower() == "none":
        context.check_hostname = False
    if client.get("enable.ssl.certificate.verification", "true").lower() == "false":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
