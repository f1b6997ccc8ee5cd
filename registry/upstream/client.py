"""`Client`: what we ask of one upstream: manifests, blobs, tags. Everything that comes back is checked or bounded.

Two sessions: one for the hosts that the administrator named, one for everywhere else that a redirect may lead (blobs
often lie at a CDN): that one reaches public addresses alone, and never carries our login.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import ClientResponse, ClientSession, ClientTimeout, DummyCookieJar, TCPConnector, hdrs
from yarl import URL

from faas.addresses import public_socket
from faas.oci.client import ACCEPT
from faas.oci.descriptor import Descriptor
from faas.oci.digest import Digest
from faas.oci.manifest import MANIFEST_BYTES, Manifest, parsed
from faas.oci.reference import TAG_PATTERN
from registry.upstream.errors import Busy, Denied, Missing, TooSlow, Unreachable, Untrusted
from registry.upstream.login import Login
from registry.upstream.reading import paced, read
from registry.upstream.upstream import Upstream

CONNECTIONS = 40  # to one upstream
CONNECT_SECONDS = 10.0
STALL_SECONDS = 60.0  # without a byte
ANSWER_SECONDS = 60.0  # for everything but a blob's body
REDIRECTS = 3
LOCATION_CHARACTERS = 8192  # CDNs sign their URLs at length
TAGS_BYTES = 4 * 1024 * 1024
PAUSE_SECONDS = 5.0  # an upstream that does not answer is not asked again at once: a herd would wait in vain
PATIENCE_SECONDS = 60  # the longest that a Retry-After is heeded and passed on
_REDIRECT = frozenset({301, 302, 303, 307, 308})
_NUMBER = re.compile(r"\d{1,6}")


class Pause:
    """An upstream that cannot answer now is left alone for a while; who asks meanwhile hears why at once."""

    def __init__(self) -> None:
        self._until = 0.0  # monotonic
        self._words = ""
        self._busy = False

    def begin(self, seconds: float, words: str, *, busy: bool = False) -> None:
        self._until, self._words, self._busy = time.monotonic() + seconds, words, busy

    def check(self) -> None:
        """Raises Busy or Unreachable."""
        left = self._until - time.monotonic()
        if left > 0:
            raise Busy(self._words, math.ceil(left)) if self._busy else Unreachable(self._words)


class Client:
    """Made within a running loop; `close` it. Every method raises UpstreamError."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._name = upstream.name
        self._own = _session(TCPConnector(limit=CONNECTIONS))
        self._elsewhere = _session(TCPConnector(limit=CONNECTIONS, socket_factory=public_socket))
        self._login = Login(upstream, self._own)
        self._pause = Pause()

    async def close(self) -> None:
        await self._own.close()
        await self._elsewhere.close()

    async def digest(self, name: str, tag: str) -> str | None:
        """What a tag names there, without its bytes (Docker Hub does not count that); None where it does not say."""
        async with self._answer("HEAD", name, f"manifests/{tag}") as answer:
            return answer.headers.get("Docker-Content-Digest")

    async def manifest(self, name: str, reference: str) -> Manifest:
        """By tag or digest; the bytes have the digest that was asked for, or that the upstream says."""
        async with self._answer("GET", name, f"manifests/{reference}") as answer:
            raw = await read(answer, MANIFEST_BYTES, self._name)
            content_type = answer.headers.get(hdrs.CONTENT_TYPE, "").partition(";")[0].strip()
            said = answer.headers.get("Docker-Content-Digest", "")
        wanted = reference if ":" in reference else said
        try:
            algorithm = Digest.parse(wanted).algorithm if wanted else "sha256"
            manifest = await parsed(raw, content_type, algorithm)
        except ValueError as error:
            raise Untrusted(f"{self._name} sends no manifest that can be used: {str(error)[:200]}") from None
        if wanted and str(manifest.digest) != wanted:
            raise Untrusted(f"{self._name} sends another manifest than {wanted}")
        return manifest

    @asynccontextmanager
    async def blob(self, name: str, descriptor: Descriptor) -> AsyncIterator[AsyncIterator[bytes]]:
        """Its bytes as they come. Who reads them checks them."""
        async with self._answer("GET", name, f"blobs/{descriptor.digest}", whole=False) as answer:
            if answer.content_length not in (None, descriptor.size):
                raise Untrusted(f"{self._name} sends another blob than {descriptor.digest}: its size is wrong")
            yield paced(answer, self._name)

    async def tags(self, name: str, last: str, count: int) -> tuple[list[str], bool]:
        """Sorted tags after `last`, `count` at most, and whether there are more."""
        async with self._answer("GET", name, "tags/list", {"n": str(count), "last": last}) as answer:
            raw = await read(answer, TAGS_BYTES, self._name)
            linked = hdrs.LINK in answer.headers
        try:
            written = json.loads(raw)["tags"] or []
            tags = sorted({tag for tag in written if TAG_PATTERN.fullmatch(tag) and tag > last})
        except (ValueError, LookupError, TypeError, RecursionError):
            raise Untrusted(f"{self._name} sends no list of tags") from None
        return tags[:count], len(tags) > count or (linked and bool(tags))

    @asynccontextmanager
    async def _answer(
        self, method: str, name: str, path: str, query: dict[str, str] | None = None, *, whole: bool = True
    ) -> AsyncIterator[ClientResponse]:
        """One answer of 200. With `whole` the time-out covers the reading too. Foreign errors become ours here."""
        self._pause.check()
        url = self._upstream.url.join(URL(f"/v2/{name}/{path}"))
        url = url.with_query({key: value for key, value in (query or {}).items() if value})
        try:
            async with asyncio.timeout(ANSWER_SECONDS) as deadline:
                async with await self._authorized(method, url, name) as answer:
                    self._check(answer)
                    if not whole:
                        deadline.reschedule(None)
                    yield answer
        except Busy as error:
            self._pause.begin(error.retry_after, str(error), busy=True)
            raise
        except TimeoutError as error:
            raise TooSlow(f"{self._name} does not answer in time") from error
        except (aiohttp.ClientError, ValueError) as error:
            raise Unreachable(f"{self._name} broke off") from error

    async def _authorized(self, method: str, url: URL, name: str) -> ClientResponse:
        answer = await self._follow(method, url, self._login.header(name))
        if answer.status != 401 or answer.url.origin() != self._upstream.url:
            return answer
        challenges = answer.headers.getall(hdrs.WWW_AUTHENTICATE, [])
        answer.close()
        await self._login.answer(challenges, name)
        return await self._follow(method, url, self._login.header(name))

    async def _follow(self, method: str, url: URL, login: dict[str, str]) -> ClientResponse:
        """The answer behind at most REDIRECTS redirects; a login that has left its host once is not shown again."""
        for _ in range(REDIRECTS + 1):
            own = url.origin() == self._upstream.url
            if not own:
                login = {}
            session = self._own if own else self._elsewhere
            try:
                answer = await session.request(method, url, headers=login, allow_redirects=False)
            except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
                if not own:
                    raise Unreachable(f"{self._name} redirects to a host that cannot be reached") from error
                self._pause.begin(PAUSE_SECONDS, f"{self._name} cannot be reached")
                raise Unreachable(f"{self._name} cannot be reached") from error
            if answer.status not in _REDIRECT:
                return answer
            answer.close()
            url = target(self._name, answer.url, answer.headers.get(hdrs.LOCATION, ""))
        raise Untrusted(f"{self._name} redirects more than {REDIRECTS} times")

    def _check(self, answer: ClientResponse) -> None:
        status, name = answer.status, self._name
        if status == 404:
            raise Missing(f"{name} has no such thing")
        if status in (401, 403):
            raise Denied(f"{name} does not let this registry pull that")
        if status == 429:
            written = answer.headers.get(hdrs.RETRY_AFTER, "")
            seconds = int(written) if _NUMBER.fullmatch(written) else PATIENCE_SECONDS
            raise Busy(f"{name} asks for patience", min(max(seconds, 1), PATIENCE_SECONDS))
        if status >= 500:
            raise Unreachable(f"{name} failed: {status}")
        if status != 200:
            raise Untrusted(f"{name} answered {status}")


def target(name: str, asked: URL, location: str) -> URL:
    """Where a redirect leads from `asked`. Raises Untrusted."""
    try:
        url = asked.join(URL(location, encoded=True))  # as it is written: it may be signed
        valid = url.scheme in ("http", "https") and bool(url.host) and not url.user and not url.password
    except ValueError:
        valid = False
    if not valid or not location or len(location) > LOCATION_CHARACTERS:
        raise Untrusted(f"{name} redirects to what is no URL")
    if asked.scheme == "https" and url.scheme != "https":
        raise Untrusted(f"{name} redirects from https to http")
    return url


def _session(connector: TCPConnector) -> ClientSession:
    return ClientSession(
        connector=connector,
        headers={hdrs.ACCEPT: ACCEPT, hdrs.ACCEPT_ENCODING: "identity", hdrs.USER_AGENT: "faas-registry"},
        timeout=ClientTimeout(connect=STALL_SECONDS, sock_connect=CONNECT_SECONDS, sock_read=STALL_SECONDS),
        cookie_jar=DummyCookieJar(),
        auto_decompress=False,
    )
