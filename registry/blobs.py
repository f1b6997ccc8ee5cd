"""Blobs: end-2 (pull, also in ranges) and end-10 (delete)."""

from __future__ import annotations

import re

from aiohttp import hdrs, web

from faas.oci.digest import Digest
from registry.errors import RegistryError
from registry.index.index import Needed
from registry.requests import digest_of
from registry.service import Registry
from registry.upstream import stream

_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})", re.IGNORECASE)


async def get(request: web.Request, registry: Registry, repository: str, argument: str) -> web.StreamResponse:
    """GET and HEAD; on GET a `Range` gives 206 or 416 (RFC 9110 §14)."""
    digest = digest_of(argument)
    size = await registry.index.blob_size(repository, digest)
    response = web.StreamResponse(
        headers={
            "Docker-Content-Digest": str(digest),
            hdrs.CONTENT_TYPE: "application/octet-stream",
            hdrs.CACHE_CONTROL: "private, max-age=31536000, immutable",  # a digest's content never changes
            hdrs.ETAG: f'"{digest}"',
            hdrs.ACCEPT_RANGES: "bytes",
        }
    )
    if size is None:
        return await _from_upstream(request, registry, repository, digest, response)
    if request.method == "HEAD":
        if not await registry.index.lease(repository, digest) or await registry.blobs.size(digest) != size:
            return await _from_upstream(request, registry, repository, digest, response)
        response.content_length = size
        return response
    start, count = _part(request, response, size)
    if not await registry.sender.send(request, response, registry.blobs.path(digest), size, start, count):
        return await _from_upstream(request, registry, repository, digest, response)
    registry.metrics.registry_bytes.labels("out").inc(count)
    return response


async def _from_upstream(
    request: web.Request, registry: Registry, repository: str, digest: Digest, response: web.StreamResponse
) -> web.StreamResponse:
    """What is not here may be an upstream's to send, while it comes in. Raises BLOB_UNKNOWN."""
    if request.method == "HEAD":
        if (descriptor := await registry.cache.descriptor(repository, digest)) is None:
            raise RegistryError("BLOB_UNKNOWN", detail=str(digest))
        response.content_length = descriptor.size
        return response
    if (download := await registry.cache.download(repository, digest)) is None:
        raise RegistryError("BLOB_UNKNOWN", detail=str(digest))
    start, count = _part(request, response, download.size)
    await stream.send(request, response, download, start, count)
    registry.metrics.registry_bytes.labels("out").inc(count)
    return response


def _part(request: web.Request, response: web.StreamResponse, size: int) -> tuple[int, int]:
    """(start, count) of what is asked for; where that is a part, the response says which one."""
    if (part := asked_range(request.headers.get(hdrs.RANGE, ""), size)) is None:
        return 0, size
    start, count = part
    response.set_status(206)
    response.headers[hdrs.CONTENT_RANGE] = f"bytes {start}-{start + count - 1}/{size}"
    return start, count


def asked_range(written: str, size: int) -> tuple[int, int] | None:
    """The (start, count) that a `Range` header names of `size` bytes; what is no such header (another unit, several
    parts at once) is to be ignored: None. Raises a 416 that says the size where nothing of the blob lies in it."""
    match = _RANGE.fullmatch(written)
    if match is None or written.endswith("=-"):
        return None
    first, last = match[1], match[2]
    start = int(first) if first else max(0, size - int(last))
    end = min(size, int(last) + 1) if first and last else size
    if start >= end:
        headers: dict[str, str] = {hdrs.CONTENT_RANGE: f"bytes */{size}"}
        raise RegistryError("SIZE_INVALID", f"the blob has {size} bytes", status=416, headers=headers)
    return start, end - start


async def delete(request: web.Request, registry: Registry, repository: str, argument: str) -> web.StreamResponse:
    """The blob leaves this repository; its file stays. What a manifest here needs is not taken from under it: that is
    405, the spec's word for a delete that is not to be had."""
    digest = digest_of(argument)
    try:
        removed = await registry.index.remove_blob(repository, digest)
    except Needed as error:
        raise RegistryError(
            "UNSUPPORTED", f"the manifest {error.manifest} needs this blob", headers={hdrs.ALLOW: "GET, HEAD"}
        ) from None
    if not removed:
        raise RegistryError("BLOB_UNKNOWN", detail=str(digest))
    return web.Response(status=202)
