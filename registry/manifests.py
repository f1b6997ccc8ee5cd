"""Manifests: end-3 (pull), end-7 (push), end-9 (delete)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, nullcontext

from aiohttp import hdrs, web

from faas.errors import PayloadTooLarge
from faas.oci import media_types
from faas.oci.manifest import MANIFEST_BYTES, SMALL_BYTES, Manifest, parsed
from faas.oci.reference import TAG_PATTERN
from faas.web import held_body
from registry.answers import send
from registry.errors import RegistryError
from registry.holders import holders_of
from registry.index.index import TagStays, TooDeep
from registry.requests import digest_of
from registry.service import Registry
from registry.upstream.errors import UpstreamError, answer_for

TAGS_AT_ONCE = 32


def reference_of(reference: str) -> str:
    """A tag or a digest. Raises a 400."""
    return str(digest_of(reference)) if ":" in reference else _tag(reference)


def _tag(reference: str) -> str:
    if not TAG_PATTERN.fullmatch(reference):
        raise RegistryError("MANIFEST_INVALID", f"not a tag: {reference[:128]!r}")
    return reference


async def get(request: web.Request, registry: Registry, repository: str, argument: str) -> web.StreamResponse:
    """end-3: the bytes as they were pushed, under the type that they were pushed with."""
    try:
        reference = reference_of(argument)
    except RegistryError as error:
        if error.code == "DIGEST_INVALID":
            raise
        raise RegistryError("MANIFEST_UNKNOWN", detail=argument[:128]) from None
    try:
        copy = await registry.cache.manifest(repository, reference)
    except UpstreamError as error:
        raise answer_for(error, "MANIFEST_UNKNOWN") from None
    stored = await registry.index.manifest(repository, reference) if copy is None else copy.stored
    if stored is None or (
        request.method == "HEAD" and not await registry.index.lease_manifest(repository, stored.digest)
    ):
        raise RegistryError("MANIFEST_UNKNOWN", detail=reference)
    digest = str(stored.digest)
    headers = {"Docker-Content-Digest": digest, hdrs.ETAG: f'"{digest}"', hdrs.CONTENT_TYPE: stored.media_type}
    headers |= {} if copy is None else copy.headers
    return await send(request, registry.answers, stored.raw, headers)


async def put(request: web.Request, registry: Registry, repository: str, argument: str) -> web.StreamResponse:
    """end-7a, and end-7b with `?tag=` beside a digest."""
    reference = reference_of(argument)
    wanted = request.query.getall("tag", [])
    if len(wanted) > TAGS_AT_ONCE:
        raise RegistryError("UNSUPPORTED", f"at most {TAGS_AT_ONCE} tags at once", status=414)
    asked = [_tag(tag) for tag in wanted]
    content_type = request.headers.get(hdrs.CONTENT_TYPE, "").partition(";")[0].strip()
    if content_type in media_types.SCHEMA1:
        raise RegistryError("MANIFEST_INVALID", "schema 1 manifests are not accepted")
    try:
        async with held_body(request, MANIFEST_BYTES) as raw, _in_turn(registry, raw):
            manifest = await _parsed(raw, content_type, reference)
            await _store(registry, repository, manifest, asked if ":" in reference else [*asked, reference])
    except PayloadTooLarge as error:
        raise RegistryError("MANIFEST_INVALID", error.message, status=413) from None
    headers = {
        hdrs.LOCATION: f"/v2/{repository}/manifests/{manifest.digest}",
        "Docker-Content-Digest": str(manifest.digest),
    }
    if manifest.subject is not None:
        headers["OCI-Subject"] = str(manifest.subject.digest)
    response = web.Response(status=201, headers=headers)
    for tag in asked:
        response.headers.add("OCI-Tag", tag)
    return response


def _in_turn(registry: Registry, raw: bytes) -> AbstractAsyncContextManager[object]:
    return registry.large_manifests if len(raw) > SMALL_BYTES else nullcontext()


async def _parsed(raw: bytes, content_type: str, reference: str) -> Manifest:
    """Raises MANIFEST_INVALID, and DIGEST_INVALID where it is not the one that `reference` names."""
    algorithm = reference.partition(":")[0] if ":" in reference else "sha256"
    try:
        manifest = await parsed(raw, content_type, algorithm)
    except ValueError as error:
        raise RegistryError("MANIFEST_INVALID", str(error)) from None
    if ":" in reference and str(manifest.digest) != reference:
        raise RegistryError("DIGEST_INVALID", detail=reference)
    return manifest


async def _store(registry: Registry, repository: str, manifest: Manifest, tags: Sequence[str]) -> None:
    """Raises MANIFEST_BLOB_UNKNOWN where a child is missing, unless the repository is one for sparse images."""
    sparse = registry.policies.of(repository).sparse
    needed = [descriptor.digest for descriptor in manifest.blobs]
    lost = None if sparse else await registry.blobs.missing(needed)
    if lost is not None:  # a file that is there may be another repository's: that is nobody else's to know
        unseen = await registry.index.unseen(repository, needed)
        raise RegistryError("MANIFEST_BLOB_UNKNOWN", detail=unseen or str(lost))
    stays = registry.retention.of(repository).fixes
    try:
        async with registry.space.writing(repository) as promised:
            missing = await registry.index.put_manifest(
                repository, manifest, tags, sparse=sparse, promised=promised, stays=stays
            )
    except TooDeep as error:
        raise RegistryError("MANIFEST_INVALID", str(error)) from None
    except TagStays as error:
        words = f"the tag {error.tag} is immutable and names {error.digest}: push under another tag"
        raise RegistryError("DENIED", words, error.tag, status=409) from None
    if missing is not None:
        raise RegistryError("MANIFEST_BLOB_UNKNOWN", detail=missing)


async def delete(request: web.Request, registry: Registry, repository: str, argument: str) -> web.StreamResponse:
    """end-9: a tag alone, or a manifest with every tag to it. What is deployed stays."""
    reference = reference_of(argument)
    if ":" not in reference:
        if not await registry.index.remove_tag(repository, reference):
            raise RegistryError("MANIFEST_UNKNOWN", detail=reference)
        return web.Response(status=202)
    digest = digest_of(reference)
    async with registry.index.turns.of(digest):  # see `registry.holders`: no deploy comes between
        if holders := await holders_of(registry.holders, registry.index, repository, reference):
            raise RegistryError("DENIED", f"the image is in use by {', '.join(holders)}", status=409)
        if not await registry.index.remove_manifest(repository, digest):
            raise RegistryError("MANIFEST_UNKNOWN", detail=reference)
    return web.Response(status=202)
