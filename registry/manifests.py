"""Manifests and what names them: end-3, end-7, end-8, end-9, end-12, and Docker's catalog."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from aiohttp import hdrs, web

from faas.auth import ALL_NAMESPACES, Principal
from faas.errors import PayloadTooLarge
from faas.oci import media_types
from faas.oci.manifest import MANIFEST_BYTES, Manifest
from faas.oci.reference import TAG_PATTERN
from faas.web import read_body
from registry.errors import RegistryError
from registry.requests import digest_of, next_link, page
from registry.service import Registry

TAGS_AT_ONCE = 32


def _checked(reference: str) -> str:
    """A tag or a digest."""
    return str(digest_of(reference)) if ":" in reference else _tag(reference)


def _tag(reference: str) -> str:
    if not TAG_PATTERN.fullmatch(reference):
        raise RegistryError("MANIFEST_INVALID", f"not a tag: {reference[:128]!r}")
    return reference


async def get(request: web.Request, registry: Registry, repository: str, argument: str) -> web.StreamResponse:
    """end-3: the bytes as they were pushed, under the type that they were pushed with."""
    try:
        reference = _checked(argument)
    except RegistryError as error:
        if error.code == "DIGEST_INVALID":
            raise
        raise RegistryError("MANIFEST_UNKNOWN", detail=argument[:128]) from None
    stored = await registry.index.manifest(repository, reference)
    if stored is None:
        raise RegistryError("MANIFEST_UNKNOWN", detail=reference)
    digest = str(stored.digest)
    headers = {"Docker-Content-Digest": digest, hdrs.ETAG: f'"{digest}"', hdrs.CONTENT_TYPE: stored.media_type}
    return web.Response(body=stored.raw, headers=headers)


async def put(request: web.Request, registry: Registry, repository: str, argument: str) -> web.StreamResponse:
    """end-7a, and end-7b with `?tag=` beside a digest."""
    reference = _checked(argument)
    wanted = request.query.getall("tag", [])
    if len(wanted) > TAGS_AT_ONCE:
        raise RegistryError("UNSUPPORTED", f"at most {TAGS_AT_ONCE} tags at once", status=414)
    wanted = [_tag(tag) for tag in wanted]
    content_type = request.headers.get(hdrs.CONTENT_TYPE, "").partition(";")[0].strip()
    if content_type in media_types.SCHEMA1:
        raise RegistryError("MANIFEST_INVALID", "schema 1 manifests are not accepted")
    try:
        raw = await read_body(request, MANIFEST_BYTES)
    except PayloadTooLarge as error:
        raise RegistryError("MANIFEST_INVALID", error.message, status=413) from None
    algorithm = reference.partition(":")[0] if ":" in reference else "sha256"
    try:
        manifest = Manifest.parse(raw, content_type, algorithm)
    except ValueError as error:
        raise RegistryError("MANIFEST_INVALID", str(error)) from None
    if ":" in reference:
        if str(manifest.digest) != reference:
            raise RegistryError("DIGEST_INVALID", detail=reference)
    else:
        wanted.append(reference)
    lost = await registry.blobs.missing(descriptor.digest for descriptor in manifest.blobs)
    missing = str(lost) if lost else await registry.index.put_manifest(repository, manifest, wanted)
    if missing is not None:
        raise RegistryError("MANIFEST_BLOB_UNKNOWN", detail=missing)
    headers = {
        hdrs.LOCATION: f"/v2/{repository}/manifests/{manifest.digest}",
        "Docker-Content-Digest": str(manifest.digest),
    }
    if manifest.subject is not None:
        headers["OCI-Subject"] = str(manifest.subject.digest)
    response = web.Response(status=201, headers=headers)
    if ":" in reference:
        for tag in wanted:
            response.headers.add("OCI-Tag", tag)
    return response


async def delete(request: web.Request, registry: Registry, repository: str, argument: str) -> web.StreamResponse:
    """end-9: a tag alone, or a manifest with every tag to it. What is deployed stays."""
    reference = _checked(argument)
    if ":" not in reference:
        if not await registry.index.remove_tag(repository, reference):
            raise RegistryError("MANIFEST_UNKNOWN", detail=reference)
        return web.Response(status=202)
    if holders := await _holders(registry, repository, reference):
        raise RegistryError("DENIED", f"the image is in use by {', '.join(holders)}", status=409)
    if not await registry.index.remove_manifest(repository, digest_of(reference)):
        raise RegistryError("MANIFEST_UNKNOWN", detail=reference)
    return web.Response(status=202)


async def _holders(registry: Registry, repository: str, digest: str) -> Sequence[str]:
    """Who needs this manifest, itself or as an entry of an index that is held."""
    if registry.holders is None:
        return ()
    held = await registry.holders.held()
    indexes = await registry.index.parents(repository, digest)
    return [name for wanted in (digest, *indexes) for name in held.get(wanted, ())]


async def tags(request: web.Request, registry: Registry, repository: str, argument: str) -> web.StreamResponse:
    """end-8."""
    count, last = page(request)
    names = await registry.index.tag_names(repository, last, count + 1)
    if names is None:
        raise RegistryError("NAME_UNKNOWN", detail=repository)
    more = len(names) > count > 0
    names = names[:count]
    headers = next_link(f"/v2/{repository}/tags/list", count, names[-1]) if more else {}
    return web.json_response({"name": repository, "tags": names}, headers=headers)


async def referrers(request: web.Request, registry: Registry, repository: str, argument: str) -> web.StreamResponse:
    """end-12: always an index, empty for what nobody refers to."""
    found = await registry.index.referrers(repository, digest_of(argument))
    headers = {}
    if wanted := request.query.get("artifactType"):
        found = [row for row in found if row.artifact_type == wanted]
        headers["OCI-Filters-Applied"] = "artifactType"
    entries: list[dict[str, Any]] = []
    for row in found:
        entry: dict[str, Any] = {"mediaType": row.media_type, "digest": row.digest, "size": row.size}
        if row.artifact_type:
            entry["artifactType"] = row.artifact_type
        if row.annotations:
            entry["annotations"] = row.annotations
        entries.append(entry)
    index = {"schemaVersion": 2, "mediaType": media_types.OCI_INDEX, "manifests": entries}
    # Set as a header, so that aiohttp adds no charset: the type must be the spec's, without parameters.
    return web.Response(body=json.dumps(index).encode(), headers={**headers, hdrs.CONTENT_TYPE: media_types.OCI_INDEX})


async def catalog(request: web.Request, registry: Registry, principal: Principal) -> web.StreamResponse:
    """Docker's `_catalog`, for the caller's namespace."""
    count, last = page(request)
    namespace = None if principal.namespace == ALL_NAMESPACES else principal.namespace
    names = await registry.index.repository_names(last, count + 1, namespace)
    more = len(names) > count > 0
    names = names[:count]
    headers = next_link("/v2/_catalog", count, names[-1]) if more else {}
    return web.json_response({"repositories": names}, headers=headers)
