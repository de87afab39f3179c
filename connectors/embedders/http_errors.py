"""The error tree's names for what an HTTP endpoint or httpx says.

By status and type alone: a reply's body may quote the text that was sent, so no message may ever hold it.
"""

from __future__ import annotations

import math
import ssl
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

import httpx

from connectors.errors import (
    AccessDenied,
    ConfigurationError,
    ContentRejected,
    CrossfadeError,
    NotFound,
    Terminal,
    Throttled,
    Transient,
    Unreachable,
)

_MAX_WAIT_S = 3600.0
_BAD_CERTIFICATE = {
    9: "correct the clock of this machine or of the one that made the certificate",  # not yet valid
    10: "renew the endpoint's certificate",  # expired
    62: "configure the host name that the certificate is for",
    64: "configure the host name that the certificate is for",  # an address instead of a name
}


@dataclass(frozen=True, slots=True)
class Advice:
    """Next steps that depend on the kind of endpoint."""

    address: str
    """When what answers is not such an endpoint."""
    rejected: str = "shorten the text; see max_batch too"
    """When it does not take this content."""


def map_httpx(error: httpx.HTTPError, where: str) -> CrossfadeError:
    """The error tree's name for an exception of httpx. Embedding has no effect, so what was sent may be sent again."""
    next_step = "start the endpoint, or correct its address in the configuration"
    match error:
        case httpx.ConnectError() if (tls := tls_error(error)) is not None:
            return map_tls(tls, where)
        case httpx.ConnectTimeout() | httpx.ConnectError() | httpx.ProxyError():
            return Unreachable(f"{where} does not answer", next_step=next_step)
        case httpx.PoolTimeout():
            return Unreachable(f"{where} has no free connection", next_step="lower the version's concurrency")
        case httpx.WriteTimeout() | httpx.WriteError():
            return Unreachable(f"{where} did not take the whole request", next_step=next_step)
        case httpx.ReadTimeout():
            return Transient(f"{where} did not reply in time", next_step="raise timeout_s, or lower batch or max_batch")
        case httpx.TransportError() if not isinstance(error, httpx.UnsupportedProtocol | httpx.LocalProtocolError):
            return Transient(f"{where} broke off: {type(error).__name__}", next_step=next_step)
        case httpx.UnsupportedProtocol():
            return ConfigurationError(f"{where} is no http or https URL", next_step="write http://host:port")
        case httpx.TooManyRedirects():
            return ConfigurationError(f"{where} redirects", next_step="configure the address it redirects to")
        case _:
            return Terminal(f"{where} gave a reply that cannot be read: {type(error).__name__}", next_step=next_step)


def tls_error(error: BaseException) -> ssl.SSLError | None:
    """The failed handshake behind an exception; None when the other side only went away during it."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError):
            went_away = isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError | ssl.SSLSyscallError)
            return None if went_away else cause
        cause = cause.__cause__ or cause.__context__
    return None


def map_tls(error: ssl.SSLError, where: str) -> ConfigurationError:
    if isinstance(error, ssl.SSLCertVerificationError):
        return ConfigurationError(
            f"{where} has a certificate that is not accepted: {error.verify_message}",
            next_step=_BAD_CERTIFICATE.get(error.verify_code, "give the authority that signed it as ca_file"),
        )
    return ConfigurationError(
        f"{where} and this side agree on no TLS: {error.reason or type(error).__name__}",
        next_step="write http:// if the endpoint has no TLS, else look at its TLS settings",
    )


def map_status(response: httpx.Response, where: str, advice: Advice) -> CrossfadeError:
    """What a status other than 200 means, and when to come back."""
    status = response.status_code
    said = f"{where} answered {status}"
    if status in (429, 503):
        wait_s = retry_after_s(response.headers.get("retry-after"), time.time())
        return Throttled(said, retry_after_s=wait_s, next_step="lower the version's concurrency or replay_rate")
    if status in (408, 424, 425) or status >= 500:  # 424 is TEI's own for an inference that failed
        return Transient(said, next_step="look at the endpoint's own log; lower batch or max_batch if it lacks memory")
    if status in (400, 413, 422):
        return ContentRejected(said, next_step=advice.rejected)
    if status in (401, 403, 407):
        return AccessDenied(said, next_step="check the embedder's api_key")
    if status == 404:
        return NotFound(said, next_step=advice.address)
    if 300 <= status < 400:
        return ConfigurationError(f"{said}, a redirect", next_step="configure the address it redirects to")
    return ConfigurationError(said, next_step=advice.address)


def retry_after_s(header: str | None, now_s: float) -> float | None:
    """Seconds that a Retry-After header (seconds, or an HTTP date) asks for; None when it says nothing usable."""
    if header is None:
        return None
    try:
        wait_s = float(header)
    except ValueError:
        try:
            wait_s = parsedate_to_datetime(header).timestamp() - now_s
        except (ValueError, OverflowError):
            return None
    return min(max(wait_s, 0.0), _MAX_WAIT_S) if math.isfinite(wait_s) else None
