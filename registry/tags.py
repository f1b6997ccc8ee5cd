"""Tags: end-8."""

from __future__ import annotations

from aiohttp import web

from registry.errors import RegistryError
from registry.requests import next_link, page
from registry.service import Registry
from registry.upstream.errors import UpstreamError, answer_for


async def listed(request: web.Request, registry: Registry, repository: str, argument: str) -> web.StreamResponse:
    """end-8: in ASCII order; `last` need not be there."""
    count, last = page(request)
    try:
        copied = await registry.cache.tags(repository, last, count)
    except UpstreamError as error:
        raise answer_for(error, "NAME_UNKNOWN") from None
    names, more = copied or await _own(registry, repository, last, count)
    headers = next_link(f"/v2/{repository}/tags/list", count, names[-1]) if more else {}
    return web.json_response({"name": repository, "tags": names}, headers=headers)


async def _own(registry: Registry, repository: str, last: str, count: int) -> tuple[list[str], bool]:
    """(tags, whether more follow)."""
    names = await registry.index.tag_names(repository, last, count + 1)
    if names is None:
        raise RegistryError("NAME_UNKNOWN", detail=repository)
    return names[:count], len(names) > count > 0
