"""The one way in which embedding requests leave this process: verified TLS, HTTP/2 where offered, connections kept.

It must never let out an exception that httpx has no name for: below it are libraries whose own do come through.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from connectors.errors import ConfigurationError, CrossfadeError

_LIMITS = httpx.Limits(max_connections=256, max_keepalive_connections=256, keepalive_expiry=30.0)

logging.getLogger("hpack").setLevel(logging.INFO)  # at debug it would write keys: it holds back Authorization only


class ConnectionsTransport(httpx.AsyncBaseTransport):
    """`ca_file`: PEM, instead of the public authorities. Raises httpx.TransportError, and what a guard raises."""

    def __init__(self, ca_file: str | Path | None, *, http2: bool) -> None:
        self._inner = httpx.AsyncHTTPTransport(
            verify=tls_context(ca_file), trust_env=False, http2=http2, limits=_LIMITS
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        with _named_by_httpx(request):
            response = await self._inner.handle_async_request(request)
        assert isinstance(response.stream, httpx.AsyncByteStream)
        response.stream = _Body(response.stream, request)
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Body(httpx.AsyncByteStream):
    def __init__(self, inner: httpx.AsyncByteStream, request: httpx.Request) -> None:
        self._inner = inner
        self._request = request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _named_by_httpx(self._request):
            async for piece in self._inner:
                yield piece

    async def aclose(self) -> None:
        with _named_by_httpx(self._request):
            await self._inner.aclose()


@contextmanager
def _named_by_httpx(request: httpx.Request) -> Iterator[None]:
    """ssl's errors after the handshake and those of HTTP/2 while a body is read would come through as they are."""
    try:
        yield
    except (httpx.TransportError, CrossfadeError):
        raise
    except Exception as error:
        raise httpx.RemoteProtocolError(type(error).__name__, request=request) from error


def tls_context(ca_file: str | Path | None) -> ssl.SSLContext:
    if ca_file is None:
        return httpx.create_ssl_context(trust_env=False)
    try:
        return ssl.create_default_context(cafile=str(ca_file))
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ConfigurationError(
            f"the ca_file {ca_file} cannot be read: {type(error).__name__}",
            next_step="give a file with certificates in PEM form that this user may read",
        ) from error
