"""The CA of a server that is not trusted yet: fetched from it, and believed only by its fingerprint."""

from __future__ import annotations

import re

import aiohttp

from faas.certificate import alone, fingerprint
from faas.client_errors import Unreachable
from faas.errors import FaasError, InvalidInput
from faas.trust import HINT, Untrusted, unverified

FETCH_SECONDS = 10.0
PEM_BYTES = 65_536
_HEX = re.compile(r"[0-9a-f]{64}")


async def by_fingerprint(url: str, given: str) -> str:
    """The CA (PEM) that the server at `url` names, if it is the one with this fingerprint. Nothing secret is sent.

    Raises InvalidInput, Untrusted, Unreachable.
    """
    wanted = given.lower().removeprefix("sha256:").replace(":", "")
    if not _HEX.fullmatch(wanted):
        raise InvalidInput(f"{given!r} is no fingerprint", hint="faas tls show prints it: sha256: and 64 digits")
    pem = await _fetched(url)
    try:
        found = fingerprint(pem)
    except ValueError:
        raise Unreachable(f"{url} names no CA", hint="is this the API's address? else pass --ca FILE") from None
    if found != f"sha256:{wanted}":
        raise Untrusted(
            f"{url} has another CA: {found}", hint="compare it with what faas tls show prints on the server itself"
        )
    return alone(pem)  # a second one would be trusted as well, and nobody has compared it


async def explained(error: Untrusted, url: str) -> Untrusted:
    """With the fingerprint that the server itself names, for people who compare."""
    try:
        found = fingerprint(await _fetched(url))
    except (FaasError, ValueError):
        return error
    return Untrusted(f"{error.message}; whoever answers there says that its CA is {found}", hint=HINT.format(url=url))


async def _fetched(url: str) -> str:
    timeout = aiohttp.ClientTimeout(total=FETCH_SECONDS)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(ssl=unverified())) as http,
            http.get(f"{url}/v1/ca", allow_redirects=False) as answer,
        ):
            if answer.status != 200:
                return ""
            pem = b""
            while len(pem) <= PEM_BYTES and (more := await answer.content.read(PEM_BYTES)):
                pem += more
            return pem.decode(errors="replace")
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise Unreachable(f"cannot reach the server at {url}: {error}", hint="is it running? see faas doctor") from None
