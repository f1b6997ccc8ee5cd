"""What holds for the repositories that a pattern fits, policies and retention rules: who may see and say it."""

from __future__ import annotations

from typing import TypeVar

from aiohttp import web

from faas import patterns
from faas.auth import ALL_NAMESPACES, Permission
from registry.errors import RegistryError
from registry.index.remembered import Remembered
from registry.requests import administrator
from registry.service import Registry

PATTERNS = 100  # with a policy, or with a rule, in one namespace: each request compares with all of them
V = TypeVar("V")


async def of_caller(request: web.Request, registry: Registry, known: Remembered[V]) -> dict[str, V]:
    """Those whose pattern the caller administers."""
    caller = await administrator(request, registry, None)
    may = caller.principal.may
    return {
        pattern: value
        for pattern, value in known.all().items()
        if may(Permission.ADMIN, namespace_of(registry, pattern))
    }


async def administered(request: web.Request, registry: Registry) -> str:
    """The pattern in the path, where the caller administers every repository that it may fit."""
    pattern = request.match_info["pattern"]
    try:
        patterns.check(pattern)
    except ValueError as error:
        raise RegistryError("NAME_INVALID", f"the pattern must be {error}") from None
    await administrator(request, registry, namespace_of(registry, pattern))
    return pattern


def check_room(registry: Registry, known: Remembered[V], pattern: str) -> None:
    """Raises DENIED where `pattern` would be one too many in its namespace."""
    namespace = namespace_of(registry, pattern)
    beside = sum(namespace_of(registry, other) == namespace for other in known.all() if other != pattern)
    if beside >= PATTERNS and namespace != ALL_NAMESPACES:
        raise RegistryError("DENIED", f"{namespace} has {PATTERNS} patterns already: take one away")


def namespace_of(registry: Registry, pattern: str) -> str:
    """The namespace that one must administer to say what holds for the repositories of `pattern`. Copies of an
    upstream's belong to none, also where one is called as they are."""
    namespace = patterns.namespace_of(pattern)
    return ALL_NAMESPACES if namespace is None or registry.cache.upstreams.of(pattern) is not None else namespace
