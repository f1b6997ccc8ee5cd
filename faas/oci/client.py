"""A client of OCI registries (distribution-spec 1.1): what a push and a pull need, streamed."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, urlencode, urljoin

import aiohttp
from yarl import URL

from faas.errors import (
    Conflict,
    FaasError,
    Forbidden,
    ImageUnusable,
    InvalidInput,
    NotFound,
    PayloadTooLarge,
    Throttled,
    Unauthenticated,
    Unavailable,
)
from faas.oci import media_types
from faas.oci.descriptor import Descriptor
from faas.oci.digest import Digest
from faas.oci.manifest import MANIFEST_BYTES, Manifest
from faas.trust import Trust, untrusted

CHUNK = 1 << 18
ACCEPT = ", ".join(sorted(media_types.MANIFESTS | media_types.INDEXES))
TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=120)
ATTEMPTS = 3  # of a request that may be repeated, when the connection breaks
_ERRORS: dict[int, type[FaasError]] = {
    400: InvalidInput,
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    413: PayloadTooLarge,
    429: Throttled,
    503: Unavailable,
}
_HINTS = {
    401: "log in again: faas login",
    403: "this login may not do that there: ask an administrator for one that may",
}

Progress = Callable[[int], None]
Source = Path | bytes | BinaryIO


class RegistryUnreachable(Unavailable):
    """The registry cannot be reached."""

    code = "RegistryUnreachable"


class RegistryClient:
    """An `async with` client of one registry. `url` is its root (http://host:port), without /v2."""

    def __init__(self, url: str, user: str = "", password: str = "", trust: Trust = Trust()) -> None:  # noqa: B008
        self._url = url.rstrip("/")
        pair = base64.b64encode(f"{user}:{password}".encode()).decode()
        self._headers = {"Authorization": f"Basic {pair}"} if password else {}
        self._trust = trust
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> RegistryClient:
        connector = aiohttp.TCPConnector(ssl=self._trust.context())
        self._session = aiohttp.ClientSession(
            connector=connector, headers=self._headers, timeout=TIMEOUT, auto_decompress=False
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def is_there(self) -> bool:
        """Whether this is a registry at all. Raises Unauthenticated where it does not let us in."""
        try:
            async with self._call("GET", "/v2/"):
                return True
        except NotFound:
            return False

    async def get_manifest(self, repository: str, reference: str) -> Manifest:
        """By tag or digest; the bytes are checked against the digest. Raises NotFound."""
        async with self._call("GET", f"/v2/{repository}/manifests/{reference}", headers={"Accept": ACCEPT}) as answer:
            raw = await answer.content.read(MANIFEST_BYTES + 1)
            while len(raw) <= MANIFEST_BYTES and (more := await answer.content.read(CHUNK)):
                raw += more
            content_type = answer.headers.get("Content-Type", "").partition(";")[0].strip()
        algorithm = reference.partition(":")[0] if ":" in reference else "sha256"
        try:
            manifest = Manifest.parse(raw, content_type, algorithm)
        except ValueError as error:
            raise ImageUnusable(f"{repository}: {error}") from None
        if ":" in reference and str(manifest.digest) != reference:
            raise ImageUnusable(f"{repository}@{reference}: the registry sent another manifest")
        return manifest

    async def put_manifest(self, repository: str, reference: str, manifest: Manifest) -> Digest:
        headers = {"Content-Type": manifest.media_type}
        path = f"/v2/{repository}/manifests/{reference}"
        async with self._call("PUT", path, data=manifest.raw, headers=headers):
            return manifest.digest

    async def has_blob(self, repository: str, digest: Digest) -> bool:
        try:
            async with self._call("HEAD", f"/v2/{repository}/blobs/{digest}"):
                return True
        except NotFound:
            return False

    async def mount_blob(self, repository: str, digest: Digest, source: str) -> bool:
        """Make a blob of `source` visible in `repository`, without its bytes. False: it must be uploaded."""
        query = urlencode({"mount": str(digest), "from": source})
        async with self._call("POST", f"/v2/{repository}/blobs/uploads/?{query}") as answer:
            if answer.status == 201:
                return True
            location = answer.headers.get("Location", "")
        if location:  # the registry opened an upload session instead: we do not need it
            try:
                async with self._call("DELETE", location):
                    pass
            except FaasError:
                pass
        return False

    async def upload_blob(
        self, repository: str, source: Source, digest: Digest, progress: Progress | None = None
    ) -> None:
        """Stream a blob; `progress` is told how many bytes more have been sent. An open file is read from its start."""
        await self.upload_chunks(repository, _chunks(source, progress), _size(source), digest)

    async def upload_chunks(self, repository: str, chunks: AsyncIterable[bytes], size: int, digest: Digest) -> None:
        """Stream a blob that comes in pieces, `size` bytes in all."""
        async with self._call("POST", f"/v2/{repository}/blobs/uploads/") as answer:
            location = urljoin(self._url + "/", answer.headers["Location"])
        joiner = "&" if "?" in location else "?"
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        url = f"{location}{joiner}{urlencode({'digest': str(digest)})}"
        async with self._call("PUT", url, data=chunks, headers=headers, once=True):
            pass

    async def read_blob(self, repository: str, digest: Digest, limit: int) -> bytes:
        """A small blob, checked. Raises ImageUnusable where it is larger than `limit` or not what its digest says."""
        async with self._call("GET", f"/v2/{repository}/blobs/{digest}") as answer:
            raw = b""
            while len(raw) <= limit and (more := await answer.content.read(CHUNK)):
                raw += more
        if len(raw) > limit or Digest.of(raw, digest.algorithm) != digest:
            raise ImageUnusable(f"the blob {digest} is not what its digest says")
        return raw

    @asynccontextmanager
    async def open_blob(self, repository: str, digest: Digest) -> AsyncIterator[AsyncIterator[bytes]]:
        """A blob in pieces as they come, not checked. Raises NotFound."""
        async with self._call("GET", f"/v2/{repository}/blobs/{digest}") as answer:
            yield answer.content.iter_chunked(CHUNK)

    async def download_blob(self, repository: str, descriptor: Descriptor) -> BinaryIO:
        """A blob in a temporary file at its beginning, checked."""
        spool: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
        hasher = hashlib.new(descriptor.digest.algorithm)
        try:
            async with self.open_blob(repository, descriptor.digest) as chunks:
                async for chunk in chunks:
                    hasher.update(chunk)
                    await asyncio.to_thread(spool.write, chunk)
            if hasher.hexdigest() != descriptor.digest.hex:
                raise ImageUnusable(f"the blob {descriptor.digest} is not what its digest says")
            spool.seek(0)
        except BaseException:
            spool.close()
            raise
        return spool

    async def repositories(self) -> list[str]:
        """All that the caller may pull, sorted."""
        return [name async for page in self._pages("/v2/_catalog") for name in page["repositories"]]

    async def tags(self, repository: str) -> list[str]:
        """Raises NotFound."""
        return [tag async for page in self._pages(f"/v2/{repository}/tags/list") for tag in page["tags"] or ()]

    async def referrers(self, repository: str, digest: Digest) -> list[Descriptor]:
        """What refers to a manifest as its `subject`: signatures, SBOMs. Empty for an unknown one."""
        pages = self._pages(f"/v2/{repository}/referrers/{digest}")
        try:
            return [Descriptor.from_json(row) async for page in pages for row in page["manifests"] or ()]
        except (ValueError, KeyError, TypeError) as error:
            raise ImageUnusable(f"{repository}: no list of referrers: {error}") from None

    async def image(self, repository: str, reference: str) -> dict[str, Any]:
        """Our registry's own extension: what is known of an image beside its bytes. Raises NotFound."""
        async with self._call("GET", f"/v2/_faas/images/{repository}/{reference}") as answer:
            found: dict[str, Any] = await answer.json()
            return found

    async def delete_manifest(self, repository: str, reference: str) -> None:
        """By tag: the tag alone; by digest: the manifest with its tags. Raises NotFound, Conflict with the holders."""
        async with self._call("DELETE", f"/v2/{repository}/manifests/{reference}"):
            pass

    async def collect_garbage(self, *, dry_run: bool) -> dict[str, int]:
        """Our registry's own extension: what was taken, or would be. Raises Forbidden."""
        async with self._call("POST", f"/v2/_faas/gc{'?dry-run=1' if dry_run else ''}") as answer:
            found: dict[str, int] = await answer.json()
            return found

    async def policies(self) -> list[dict[str, Any]]:
        """Ours as well: `{"pattern", "public", "sparse"}` of what the caller administers. Raises Forbidden."""
        async with self._call("GET", "/v2/_faas/policies") as answer:
            return list((await answer.json())["policies"])

    async def put_policy(self, pattern: str, policy: Mapping[str, bool]) -> None:
        """Raises InvalidInput, Forbidden."""
        async with self._call("PUT", f"/v2/_faas/policies/{quote(pattern)}", json=dict(policy)):
            pass

    async def remove_policy(self, pattern: str) -> None:
        """Raises NotFound, Forbidden."""
        async with self._call("DELETE", f"/v2/_faas/policies/{quote(pattern)}"):
            pass

    async def retention_rules(self) -> list[dict[str, Any]]:
        """Ours: the rules of the patterns that the caller administers, by pattern. Raises Forbidden."""
        async with self._call("GET", "/v2/_faas/retention") as answer:
            return list((await answer.json())["rules"])

    async def put_retention_rule(self, pattern: str, rule: Mapping[str, Any]) -> None:
        """The whole rule. Raises InvalidInput, Forbidden."""
        async with self._call("PUT", f"/v2/_faas/retention/{quote(pattern)}", json=dict(rule)):
            pass

    async def remove_retention_rule(self, pattern: str) -> None:
        """Raises NotFound, Forbidden."""
        async with self._call("DELETE", f"/v2/_faas/retention/{quote(pattern)}"):
            pass

    async def preview_retention(self) -> dict[str, Any]:
        """What would go now: `counts`, and of `tags` and `manifests` the first by name, with why. Raises Forbidden."""
        async with self._call("POST", "/v2/_faas/retention/run?dry-run=1") as answer:
            found: dict[str, Any] = await answer.json()
            return found

    async def run_retention(self) -> dict[str, int]:
        """Apply the rules now; what went. Raises Forbidden."""
        async with self._call("POST", "/v2/_faas/retention/run") as answer:
            counts: dict[str, int] = (await answer.json())["counts"]
            return counts

    async def quotas(self) -> list[dict[str, Any]]:
        """Ours: `{"namespace", "logical_bytes", "physical_bytes", "used"}` of each namespace. Raises Forbidden."""
        async with self._call("GET", "/v2/_faas/quotas") as answer:
            return list((await answer.json())["quotas"])

    async def put_quota(self, namespace: str, quota: Mapping[str, int | None]) -> None:
        """Raises InvalidInput, Forbidden."""
        async with self._call("PUT", f"/v2/_faas/quotas/{quote(namespace, safe='')}", json=dict(quota)):
            pass

    async def remove_quota(self, namespace: str) -> None:
        """Raises NotFound, Forbidden."""
        async with self._call("DELETE", f"/v2/_faas/quotas/{quote(namespace, safe='')}"):
            pass

    async def scrub(self, *, begin: bool) -> dict[str, Any]:
        """Ours: what the scrub has found so far; with `begin` it starts to check everything. Raises Forbidden."""
        async with self._call("POST" if begin else "GET", "/v2/_faas/scrub") as answer:
            found: dict[str, Any] = await answer.json()
            return found

    async def _pages(self, path: str) -> AsyncIterator[dict[str, Any]]:
        """A list that may come in pages (distribution-spec, "Listing Tags": `Link`)."""
        while path:
            async with self._call("GET", path) as answer:
                yield await answer.json(content_type=None)
                following = answer.links.get("next")
            path = URL(str(following["url"])).path_qs if following else ""  # of this registry, whatever host it says

    @asynccontextmanager
    async def _call(
        self, method: str, path: str, *, once: bool = False, **options: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request; errors of the registry and of the network become ours."""
        url = path if path.startswith("http") else self._url + path
        answer = await self._send(method, url, 1 if once else ATTEMPTS, options)
        async with answer:
            if answer.status >= 400:
                raise await _error(method, answer)
            try:
                yield answer
            except aiohttp.ClientError as error:
                raise Unavailable(f"the registry broke off: {error}") from None

    async def _send(self, method: str, url: str, attempts: int, options: dict[str, Any]) -> aiohttp.ClientResponse:
        for attempt in range(1, attempts + 1):
            try:
                return await self._session.request(method, url, allow_redirects=method in ("GET", "HEAD"), **options)
            except aiohttp.ClientConnectorCertificateError as error:
                raise untrusted(self._url, error) from None
            except (aiohttp.ClientError, TimeoutError) as error:
                if attempt == attempts:
                    raise RegistryUnreachable(f"cannot reach the registry at {self._url}: {error}") from None
                await asyncio.sleep(0.1 * attempt)
        raise AssertionError("unreachable")


async def _error(method: str, answer: aiohttp.ClientResponse) -> FaasError:
    """The registry's own words: `{"errors": [{"code", "message"}]}`. What it says of a request that it refuses is a
    sentence for people; of a failure, and of who asks, they see which request it was."""
    text = (await answer.content.read(4096)).decode(errors="replace")
    kind = _ERRORS.get(answer.status, Unavailable)
    try:
        first = json.loads(text)["errors"][0]
        code, words = str(first.get("code") or ""), str(first.get("message") or "")
    except (ValueError, LookupError, TypeError, AttributeError):
        code, words = "", text[:200]
    if code and words and answer.status < 500 and kind is not Unauthenticated:
        return kind(words)
    message = f"the registry refused {method} {answer.url.path}: {answer.status} {code} {words}".rstrip()
    return kind(message, hint=_HINTS.get(answer.status, ""))


def _size(source: Source) -> int:
    if isinstance(source, bytes):
        return len(source)
    return (source.stat() if isinstance(source, Path) else os.fstat(source.fileno())).st_size


async def _chunks(source: Source, progress: Progress | None) -> AsyncIterator[bytes]:
    if isinstance(source, bytes):
        yield source
        if progress:
            progress(len(source))
        return
    with source.open("rb") if isinstance(source, Path) else contextlib.nullcontext(source) as file:
        while chunk := await asyncio.to_thread(file.read, CHUNK):
            yield chunk
            if progress:
                progress(len(chunk))


def for_platform(index: Manifest, architecture: str) -> Descriptor:
    """The entry of an index for linux on `architecture`. Raises ImageUnusable that names what there is."""
    for entry in index.manifests:
        if entry.platform and entry.platform[:2] == ("linux", architecture):
            return entry
    offered = ", ".join(sorted({"/".join(filter(None, e.platform)) for e in index.manifests if e.platform}))
    raise ImageUnusable(f"the image is for {offered or 'no platform'}, this machine is linux/{architecture}")
