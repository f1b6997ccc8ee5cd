"""Images over HTTP, beside the spec's manifests: `GET /v2/_faas/images/<repository>/<tag or digest>`."""

from __future__ import annotations

from aiohttp import web

from faas.auth import Permission
from faas.oci.reference import REPOSITORY_LENGTH, is_repository
from registry.errors import RegistryError
from registry.extension import OwnEndpoint
from registry.holders import holders_of
from registry.index.images import image_of
from registry.manifests import reference_of
from registry.requests import SCOPE, caller_of, refuse
from registry.service import Registry
from registry.tokens import scope_of


async def described(request: web.Request, registry: Registry) -> web.StreamResponse:
    """What is known of an image, its platforms with it: when it was pushed first, which tags name it, how many bytes
    it has, and who needs it. For who may pull by a role: what is public says nothing of who uses it."""
    repository = request.match_info["repository"]
    if not is_repository(repository):
        raise RegistryError("NAME_INVALID", detail=repository[:REPOSITORY_LENGTH])
    request[SCOPE] = scope_of(repository, Permission.PULL)
    caller = await caller_of(request, registry)
    if not caller.principal.may(Permission.PULL) or not registry.access.may(caller, Permission.PULL, repository):
        refuse(request, caller, f"{caller.principal.title} may not pull {repository}")
    reference = reference_of(request.match_info["reference"])
    stored = await registry.index.manifest(repository, reference)
    image = None if stored is None else await image_of(registry.index.database, repository, str(stored.digest))
    if image is None:
        raise RegistryError("MANIFEST_UNKNOWN", detail=reference)
    return web.json_response(
        {
            "repository": repository,
            "digest": image.digest,
            "media_type": image.media_type,
            "created_at": image.created_at,
            "tags": image.tags,
            "bytes": image.bytes,
            "holders": await holders_of(
                registry.holders, registry.index, repository, image.digest, below=image.manifests
            ),
        }
    )


ENDPOINTS: tuple[tuple[str, str, OwnEndpoint], ...] = (
    ("GET", "/v2/_faas/images/{repository:.+}/{reference}", described),
)
