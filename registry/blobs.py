"""Blobs: end-2 (pull, also in ranges) and end-10 (delete)."""

from __future__ import annotations

from aiohttp import hdrs, web

from registry.errors import RegistryError
from registry.requests import digest_of
from registry.service import Registry


async def get(request: web.Request, registry: Registry, repository: str, argument: str) -> web.StreamResponse:
    """GET and HEAD; `Range` gives 206 or 416 (RFC 9110 §14)."""
    digest = digest_of(argument)
    size = await registry.index.blob_size(repository, digest)
    if size is None or await registry.blobs.size(digest) != size:
        raise RegistryError("BLOB_UNKNOWN", detail=str(digest))
    if request.method == "HEAD":
        await registry.index.lease(repository, digest)
    headers = {
        "Docker-Content-Digest": str(digest),
        hdrs.CONTENT_TYPE: "application/octet-stream",
        hdrs.CACHE_CONTROL: "private, max-age=31536000, immutable",  # a digest's content never changes
        hdrs.ACCEPT_RANGES: "bytes",
    }
    response = web.FileResponse(registry.blobs.path(digest), headers=headers)
    if request.method == "GET":
        registry.metrics.registry_bytes.labels("out").inc(size)
    return response


async def delete(request: web.Request, registry: Registry, repository: str, argument: str) -> web.StreamResponse:
    """The blob leaves this repository; its file stays. What a manifest here needs is not taken from under it."""
    digest = digest_of(argument)
    if needing := await registry.index.parents(repository, str(digest)):
        raise RegistryError("DENIED", f"the manifest {needing[0]} needs this blob", status=409)
    if not await registry.index.remove_blob(repository, digest):
        raise RegistryError("BLOB_UNKNOWN", detail=str(digest))
    return web.Response(status=202)
