"""Uploads: end-4 (begin, single POST, mount), end-5 (chunks), end-6 (finish), end-13 (status), end-14 (cancel).

Bodies are streamed to disk and hashed on the way; nothing is ever held in memory but one batch.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

from aiohttp import hdrs, web

from faas.auth import Permission
from faas.oci.digest import Digest
from faas.oci.reference import is_repository
from faas.web import read_chunk
from registry.errors import RegistryError
from registry.requests import CALLER, SCOPE, digest_of, refuse
from registry.service import Registry
from registry.space import Told
from registry.storage.base import DigestMismatch, SizeExceeded, Upload, UploadGone
from registry.tokens import scope_of

_RANGE = re.compile(r"([0-9]{1,18})-([0-9]{1,18})")


async def begin(request: web.Request, registry: Registry, repository: str, argument: str) -> web.StreamResponse:
    """end-4a, end-4b (`?digest=`), end-11 (`?mount=&from=`)."""
    if mounted := request.query.get("mount"):
        digest = digest_of(mounted)
        if await _mount(request, registry, repository, digest):
            return _created(repository, digest)
    algorithm = request.query.get("digest-algorithm", "sha256")
    if algorithm not in ("sha256", "sha512"):
        raise RegistryError("DIGEST_INVALID", f"unsupported digest algorithm {algorithm[:40]!r}")
    wanted = digest_of(request.query["digest"]) if "digest" in request.query else None
    upload = await registry.space.begin(repository)
    if wanted is None:
        return _status(upload, repository, 202)
    try:
        return await _commit(request, registry, repository, upload, wanted)
    except BaseException:
        await upload.cancel()
        raise


async def _mount(request: web.Request, registry: Registry, repository: str, digest: Digest) -> bool:
    """Only from where the caller may pull; without `from`, from any such repository.

    A token that does not name the source, where its owner may pull there, is asked to be made anew: clients learn only
    from that which scopes a mount needs.
    """
    caller = request[CALLER]
    wanted = request.query.get("from")
    if wanted and not is_repository(wanted):  # nobody's, and not to be repeated in a header
        return False
    candidates = [wanted] if wanted else await registry.index.seen_by(digest)
    source = next((name for name in candidates if registry.access.may(caller, Permission.PULL, name)), None)
    if source is not None:
        if await registry.blobs.missing([digest]) is not None:
            return False
        async with registry.space.writing(repository) as promised:
            return await registry.index.mount(repository, digest, source, promised)
    owner = caller.principal
    if (wider := next((name for name in candidates if owner.may_use(Permission.PULL, name)), None)) is not None:
        request[SCOPE] = f"{request[SCOPE]} {scope_of(wider, Permission.PULL)}"
        refuse(request, caller, f"the token says nothing of {wider}")
    return False


async def status(request: web.Request, registry: Registry, repository: str, argument: str) -> web.StreamResponse:
    """end-13."""
    return _status(await _session(registry, repository, argument), repository, 204)


async def append(request: web.Request, registry: Registry, repository: str, argument: str) -> web.StreamResponse:
    """end-5: with `Content-Range` in order, or streamed without one (docker, skopeo)."""
    upload = await _session(registry, repository, argument)
    _exclusive(upload)
    async with upload.lock:
        await _take(request, registry, repository, upload)
    return _status(upload, repository, 202)


async def finish(request: web.Request, registry: Registry, repository: str, argument: str) -> web.StreamResponse:
    """end-6, with the last chunk or without one."""
    if "digest" not in request.query:
        raise RegistryError("DIGEST_INVALID", "the digest parameter is missing")
    digest = digest_of(request.query["digest"])
    upload = await _session(registry, repository, argument)
    _exclusive(upload)
    return await _commit(request, registry, repository, upload, digest)


async def cancel(request: web.Request, registry: Registry, repository: str, argument: str) -> web.StreamResponse:
    """end-14."""
    upload = await _session(registry, repository, argument)
    _exclusive(upload)
    async with upload.lock:
        await upload.cancel()
    return web.Response(status=204)


async def _session(registry: Registry, repository: str, upload_id: str) -> Upload:
    upload = await registry.blobs.resume(upload_id, repository)
    if upload is None:
        raise RegistryError("BLOB_UPLOAD_UNKNOWN")
    return upload


def _exclusive(upload: Upload) -> None:
    if upload.lock.locked():
        raise RegistryError("BLOB_UPLOAD_INVALID", "another request writes to this upload", status=409)


async def _take(
    request: web.Request, registry: Registry, repository: str, upload: Upload, *, keep_end: bool = False
) -> bytes:
    """Append the request's body; with `keep_end` its end is returned, for the commit to store.

    Raises a 416 where its range does not follow what is stored; the session stays.
    """
    limit = None
    written = request.headers.get(hdrs.CONTENT_RANGE)
    if written is not None:
        if (match := _RANGE.fullmatch(written)) is None:
            raise RegistryError("BLOB_UPLOAD_INVALID", f"Content-Range is FIRST-LAST, not {written[:64]!r}", status=400)
        first, last = int(match[1]), int(match[2])
        if first != upload.size or last < first:
            raise RegistryError(
                "BLOB_UPLOAD_INVALID", "the range is out of order", headers=_headers(upload, repository)
            )
        limit = last - first + 1
        if request.content_length is not None and request.content_length != limit:
            raise RegistryError("SIZE_INVALID", "Content-Length and Content-Range differ")
    before, tail = upload.size, b""
    try:
        length = request.content_length if limit is None and request.body_exists else limit or 0
        async with registry.space.taking(repository, upload, length) as told:
            if keep_end:
                tail = await upload.gather(_body(request, told), limit)
            else:
                await upload.append(_body(request, told), limit)
    except SizeExceeded:
        raise RegistryError("SIZE_INVALID", "more bytes came than the range has") from None
    except UploadGone:
        raise RegistryError("BLOB_UPLOAD_UNKNOWN") from None
    finally:
        came = upload.size - before + len(tail)
        registry.metrics.registry_bytes.labels("in").inc(came)
    if limit is not None and came < limit:
        raise RegistryError("SIZE_INVALID", "fewer bytes came than the range has")
    return tail


async def _body(request: web.Request, told: Told) -> AsyncIterator[bytes]:
    while chunk := await read_chunk(request):
        await told(len(chunk))
        yield chunk


async def _commit(
    request: web.Request, registry: Registry, repository: str, upload: Upload, digest: Digest
) -> web.StreamResponse:
    async with upload.lock:
        tail = await _take(request, registry, repository, upload, keep_end=True)
        async with registry.index.turns.of(digest):
            try:
                size = await upload.commit(digest, tail)
            except DigestMismatch:
                raise RegistryError("DIGEST_INVALID", detail=str(digest)) from None
            except UploadGone:
                raise RegistryError("BLOB_UPLOAD_UNKNOWN") from None
            async with registry.space.writing(repository, upload) as promised:
                await registry.index.add_blob(repository, digest, size, promised)
    registry.stored()
    return _created(repository, digest)


def _created(repository: str, digest: Digest) -> web.Response:
    headers = {hdrs.LOCATION: f"/v2/{repository}/blobs/{digest}", "Docker-Content-Digest": str(digest)}
    return web.Response(status=201, headers=headers)


def _headers(upload: Upload, repository: str) -> dict[str, str]:
    """`Location` is relative: right behind any proxy. `Range` names the last byte stored; 0-0 for none, as others."""
    return {
        hdrs.LOCATION: f"/v2/{repository}/blobs/uploads/{upload.id}",
        hdrs.RANGE: f"0-{max(0, upload.size - 1)}",
        "Docker-Upload-UUID": upload.id,
    }


def _status(upload: Upload, repository: str, status: int) -> web.Response:
    return web.Response(status=status, headers=_headers(upload, repository))
