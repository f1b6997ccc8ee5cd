"""Posts results to `X-Callback-Url`, at addresses of the public internet alone (`faas.addresses`)."""

from __future__ import annotations

import io
from collections.abc import Mapping
from ssl import SSLContext
from urllib.parse import urlsplit

from aiohttp import ClientConnectorError, ClientError, ClientSession, ClientTimeout, DummyCookieJar, TCPConnector

from faas.addresses import public_socket
from faas.errors import InvalidInput, Unavailable

URL_CHARACTERS = 2048
TOTAL_SECONDS = 10.0


def check_url(url: str) -> str:
    """The URL, if it is one of http or https. Raises InvalidInput."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    if not valid or len(url) > URL_CHARACTERS or not url.isascii() or not url.isprintable():
        raise InvalidInput("X-Callback-Url must be an http or https URL of at most 2,048 characters")
    return url


class Callbacks:
    """`start`ed once, `stop`ped once. `allow_private`: callbacks may stay on this machine and its networks."""

    def __init__(self, *, allow_private: bool = False) -> None:
        self._allow_private = allow_private
        self._session: ClientSession | None = None

    async def start(self) -> None:
        allowed = None if self._allow_private else public_socket
        connector = TCPConnector(limit=0, force_close=True, socket_factory=allowed)
        self._session = ClientSession(
            connector=connector,
            timeout=ClientTimeout(total=TOTAL_SECONDS),
            cookie_jar=DummyCookieJar(),  # one receiver's cookies are nothing to the next call
            auto_decompress=False,
        )

    async def stop(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def post(self, url: str, headers: Mapping[str, str], body: bytes, *, trust: SSLContext | None = None) -> None:
        """Raises Unavailable where it was not taken (2xx); redirects are not followed. `trust`: None for whom this
        machine trusts."""
        assert self._session is not None
        sent = self._session.post(
            url, data=io.BytesIO(body), headers=headers, allow_redirects=False, ssl=True if trust is None else trust
        )
        try:
            async with sent as answer:
                status = answer.status
        except (TimeoutError, ClientError, OSError, ValueError) as error:
            # One without a number is our own refusal of an address: aiohttp does not show its words.
            refusal = error.os_error if isinstance(error, ClientConnectorError) else None
            why = refusal if refusal is not None and refusal.errno is None else error
            raise Unavailable(f"the callback could not be delivered: {type(why).__name__}: {why}") from None
        if not 200 <= status < 300:
            raise Unavailable(f"the callback was answered with {status}")
