"""Reading requests: digests, page sizes."""

from __future__ import annotations

import re
from urllib.parse import quote, urlencode

from aiohttp import web

from faas.oci.digest import Digest
from registry.access import Caller
from registry.errors import RegistryError

PAGE = 1000  # most names in one answer, whatever the client asks for (distribution CVE-2023-2253)
CALLER = web.RequestKey("caller", Caller)
_NUMBER = re.compile(r"\d{1,9}")


def digest_of(text: str) -> Digest:
    """Raises DIGEST_INVALID."""
    try:
        return Digest.parse(text)
    except ValueError as error:
        raise RegistryError("DIGEST_INVALID", str(error)) from None


def page(request: web.Request) -> tuple[int, str]:
    """(n, last) of a list; n is bounded. Raises a 400 for an n that is no number."""
    written = request.query.get("n")
    if written is None:
        return PAGE, request.query.get("last", "")
    if not _NUMBER.fullmatch(written):
        raise RegistryError("UNSUPPORTED", f"n must be a whole number, not {written[:40]!r}", status=400)
    return min(int(written), PAGE), request.query.get("last", "")


def next_link(path: str, count: int, last: str) -> dict[str, str]:
    """The `Link` header to the next page (RFC 5988); relative, so that proxies need not rewrite it."""
    return {"Link": f'<{quote(path)}?{urlencode({"n": count, "last": last})}>; rel="next"'}
