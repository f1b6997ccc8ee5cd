"""`GET /v2/_catalog`, Docker's list of repositories: those that the caller may pull; a stranger sees what is public."""

from __future__ import annotations

from aiohttp import web

from faas.auth import Permission, Principal
from faas.oci.reference import BASES
from registry.access import CATALOG_SCOPE, Caller
from registry.index.catalog import repository_names
from registry.requests import PAGE, SCOPE, caller_of, next_link, page, refuse
from registry.service import Registry


async def reader(request: web.Request, registry: Registry) -> Caller:
    """Who asks, where there may be something to list for them. Raises what says that there is not."""
    request[SCOPE] = CATALOG_SCOPE
    caller = await caller_of(request, registry)
    somebody = caller.principal.may(Permission.PULL)
    if not caller.may_list or not (somebody or registry.policies.public):
        refuse(request, caller, f"{caller.principal.title} may not pull")
    return caller


async def listed(request: web.Request, registry: Registry, caller: Caller) -> web.StreamResponse:
    count, last = page(request)
    names = await _pullable(registry, caller.principal, last, count + 1)
    more = len(names) > count > 0
    names = names[:count]
    headers = next_link("/v2/_catalog", count, names[-1]) if more else {}
    return web.json_response({"repositories": names}, headers=headers)


async def _pullable(registry: Registry, principal: Principal, last: str, limit: int) -> list[str]:
    """Names after `last`. The database leaves out most of what is not for `principal`; each one is asked for here."""
    caller, found = Caller(principal), list[str]()
    copies = [f"{upstream.prefix}*" for upstream in registry.cache.upstreams]
    namespace, patterns = reach(principal, registry.policies.public, copies)
    while len(found) < limit:
        batch = await repository_names(registry.index.database, last, PAGE, namespace, patterns)
        found += [name for name in batch if registry.access.may(caller, Permission.PULL, name)]
        if len(batch) < PAGE:
            break
        last = batch[-1]
    return found[:limit]


def reach(principal: Principal, public: list[str], copies: list[str]) -> tuple[str | None, list[str]]:
    """(namespace, patterns) for `repository_names` that hold everything that `principal` may pull.

    `copies` are the patterns of what is kept of other registries, and of no namespace.
    """
    if not principal.may(Permission.PULL):
        return "", public
    if principal.repositories:
        return "", [*public, *principal.repositories, f"{BASES}*"]
    namespaces = principal.where(Permission.PULL)
    namespace = next(iter(namespaces)) if namespaces is not None and len(namespaces) == 1 else None
    return namespace, [*public, *copies, f"{BASES}*"]
